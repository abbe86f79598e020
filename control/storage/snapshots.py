"""Snapshots of storage namespaces and of folders in them.

A snapshot is a directory of ``/storage-snapshots/NAME.ID``, a copy that shares its chunks with the
files (the paper, section 3.4); its attributes say what it is of. Its files count towards the quota
of who made it, as other copies do (:mod:`.trees`), but not as files of the storage namespace. It is
deleted with that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from control.api import (
    BadRequest,
    Call,
    Conflict,
    Content,
    Control,
    NoSuchThing,
    Response,
    Route,
    within,
)
from control.api.internals import add_space
from control.storage.accounting import REFUSALS, change_of
from control.storage.cluster import Cluster
from control.storage.folders import (
    CHANGE_SECONDS,
    LOOK_SECONDS,
    OWN,
    EntryPage,
    EntryQuery,
    FolderRoutes,
    MovedInfo,
    Purged,
    moved_info,
)
from control.storage.names import KEPT, check_path, in_folder
from control.storage.permission import CREATE, DELETE
from control.storage.rows import Space
from control.storage.shapes import TransferQuery
from control.storage.spaces import Spaces
from control.storage.transfer import OCTETS, Transfers, download
from control.storage.trees import Trees
from gfs.client import Entry
from gfs.errors import NotADirectory, NotFound

#: Of one storage namespace: a list is one page.
SNAPSHOTS_MAX = 200
#: Attributes have 1,024 bytes together.
FOLDER_BYTES_MAX = 640
NAME_BYTES_MAX = 200

#: Sixteen hexadecimal digits: nanoseconds since 1970.
ID = "[0-9a-f]{16}"


class SnapshotInfo(msgspec.Struct):
    id: str
    name: str
    folder: Annotated[str, Meta(description="Empty: it is of all of the storage namespace")]
    created_at: int
    files: int
    size: int


class SnapshotList(msgspec.Struct):
    snapshots: Annotated[list[SnapshotInfo], Meta(description="The newest first")]


class NewSnapshot(msgspec.Struct):
    name: Annotated[
        str,
        Meta(max_length=NAME_BYTES_MAX, description=f"For people, at most {NAME_BYTES_MAX} bytes"),
    ] = ""
    folder: Annotated[str, Meta(description="Empty: all of the storage namespace")] = ""


class RestoreBody(msgspec.Struct):
    path: Annotated[str, Meta(description="In the snapshot; empty: all of it")] = ""
    target: Annotated[
        str,
        Meta(description="The new path in the storage namespace; left out: where it was"),
    ] = ""
    overwrite: Annotated[bool, Meta(description="A file at the target goes to the trash")] = False


class SnapshotRoutes:
    def __init__(
        self,
        control: Control,
        cluster: Cluster,
        spaces: Spaces,
        trees: Trees,
        folders: FolderRoutes,
        transfers: Transfers,
    ) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._trees = trees
        self._folders = folders
        self._transfers = transfers

    def routes(self) -> Sequence[Route]:
        base = "/storage/namespaces/{namespace}/snapshots"
        one = f"{base}/{{id:snapshot}}"
        reads = (400, 401, 403, 404, 503)
        return [
            Route(
                "GET",
                base,
                self.all,
                OWN,
                "The snapshots of a storage namespace",
                answer=SnapshotList,
                errors=[401, 403, 404, 503],
            ),
            Route(
                "POST",
                base,
                self.make,
                CREATE,
                "Make a snapshot of a storage namespace, or of a folder",
                body=NewSnapshot,
                answer=SnapshotInfo,
                errors=[401, 403, 404, 409, 413, 503, 507],
                description=(
                    "All files as they are at one instant; no bytes are copied. They count towards "
                    f"the quota. A storage namespace has at most {SNAPSHOTS_MAX}."
                ),
            ),
            Route(
                "DELETE",
                one,
                self.delete,
                DELETE,
                "Delete a snapshot",
                answer=Purged,
                errors=[401, 403, 404, 503, 507],
            ),
            Route(
                "GET",
                f"{one}/entries",
                self.entries,
                OWN,
                "List one folder of a snapshot, page by page",
                query=EntryQuery,
                answer=EntryPage,
                errors=reads,
            ),
            Route(
                "GET",
                f"{one}/files/{{path:path}}",
                self.save,
                replace(OWN, file=("id", "path")),
                "Download a file of a snapshot",
                query=TransferQuery,
                answer=Content(OCTETS),
                errors=[400, 401, 403, 404, 412, 416],
                others={206: "The ranges asked for", 304: "The client has it already"},
            ),
            Route(
                "POST",
                f"{one}/restore",
                self.restore,
                CREATE,
                "Copy a file or a folder of a snapshot back",
                body=RestoreBody,
                answer=MovedInfo,
                errors=[401, 403, 404, 409, 413, 503, 507],
            ),
        ]

    async def all(self, call: Call) -> SnapshotList:
        space = self._spaces.own(call, call.params["namespace"])
        with within(LOOK_SECONDS):
            return SnapshotList([_info(each) for each in reversed(await self._of(space))])

    async def _of(self, space: Space) -> list[Entry]:
        found: list[Entry] = []
        try:
            async with aclosing(self._cluster.fs.scan(space.snapshots)) as entries:
                async for each in entries:
                    found.append(each)
        except NotFound:
            pass
        return found

    async def make(self, call: Call, body: NewSnapshot) -> SnapshotInfo:
        space = self._spaces.own(call, call.params["namespace"])
        folder = body.folder.strip("/")
        _check(body.name, folder)
        source = f"{space.directory}/{folder}" if folder else space.directory
        with within(CHANGE_SECONDS):
            if len(await self._of(space)) >= SNAPSHOTS_MAX:
                raise Conflict(f"there are {SNAPSHOTS_MAX} snapshots: delete one first")
            try:
                entry = await self._cluster.fs.stat(source)
            except (NotFound, NotADirectory):
                raise NoSuchThing(f"{folder or space.name} does not exist") from None
            if entry.kind == "file":
                raise BadRequest("folder: is a file: copy it instead")
            await self._control.ledger.records.write(
                partial(add_space, space_id=space.snapshots_id, is_counted=True)
            )
            now = time.time_ns()
            full = f"{space.snapshots}/{now:016x}"
            attributes = {"name": body.name, "folder": folder}
            found = await self._trees.copy_to(
                call, entry, space, full, folder, attributes=attributes
            )
            if not self._spaces.still_exists(space):
                await self._cluster.fs.delete(space.snapshots, recursive=True, now=True)
                raise NoSuchThing(f"there is no storage namespace {space.name}")
        count = len(found.changes)
        return SnapshotInfo(f"{now:016x}", body.name, folder, now // 10**9, count, found.size)

    async def delete(self, call: Call) -> Purged:
        space = self._spaces.own(call, call.params["namespace"])
        fs, ledger = self._cluster.fs, self._control.ledger
        with within(CHANGE_SECONDS):
            entry = await self._find(space, call.params["id"])
            async with aclosing(fs.files(entry.path)) as found:
                changes = [change_of(each, came=False) async for each in found]
            async with ledger.claim("", space.snapshots_id) as claim:
                await claim.publish_deletion("", 0, self._control.limits, 0.0)
                with trio.CancelScope(shield=True):
                    try:
                        await fs.delete(entry.path, recursive=True, expect=entry.inode, now=True)
                    except REFUSALS:
                        claim.refused()
                        raise NoSuchThing("there is no such snapshot") from None
                    await claim.record(changes, partial(self._spaces.still_exists, space))
        return Purged(entry.attributes.get("name", ""))

    async def entries(self, call: Call) -> EntryPage:
        query = call.query(EntryQuery)
        space = self._spaces.own(call, call.params["namespace"])
        with within(LOOK_SECONDS):
            entry = await self._find(space, call.params["id"])
            return await self._folders.page(call, entry.path, query)

    async def save(self, call: Call) -> Response:
        path = check_path(call.params["path"])
        transfer = self._transfers.begin(call, call.query(TransferQuery).id, "download")
        try:
            space = self._spaces.own(call, call.params["namespace"])
            with within(LOOK_SECONDS):
                entry = await self._find(space, call.params["id"])
            fs = self._cluster.fs
            return await download.send(
                call, fs, space, path, transfer, inline=False, directory=entry.path
            )
        except BaseException as error:
            transfer.finish_early(error)
            raise

    async def restore(self, call: Call, body: RestoreBody) -> MovedInfo:
        space = self._spaces.own(call, call.params["namespace"])
        if body.path:
            check_path(body.path)
        with within(CHANGE_SECONDS):
            snapshot = await self._find(space, call.params["id"])
            folder = snapshot.attributes.get("folder", "")
            target = body.target or in_folder(folder, body.path).strip("/")
            if not target:
                raise BadRequest("target: give the folder to restore it to")
            full = f"{snapshot.path}/{body.path}" if body.path else snapshot.path
            try:
                source = await self._cluster.fs.stat(full)
            except (NotFound, NotADirectory):
                raise NoSuchThing(f"{body.path} is not in the snapshot") from None
            return moved_info(await self._trees.copy(call, source, space, target, body.overwrite))

    async def _find(self, space: Space, id_: str) -> Entry:
        try:
            return await self._cluster.fs.stat(f"{space.snapshots}/{id_}")
        except NotFound:
            raise NoSuchThing("there is no such snapshot") from None


def _check(name: str, folder: str) -> None:
    """Raises BadRequest."""
    if len(name.encode()) > NAME_BYTES_MAX or not name.isprintable():
        raise BadRequest(f"name: at most {NAME_BYTES_MAX} bytes, without control characters")
    if folder:
        check_path(folder)
    if folder.partition("/")[0] in KEPT:
        raise BadRequest(f"folder: {folder} has parts of uploads over S3, or versions")
    if len(folder.encode()) > FOLDER_BYTES_MAX:
        raise BadRequest(f"folder: at most {FOLDER_BYTES_MAX} bytes")


def _info(entry: Entry) -> SnapshotInfo:
    id_ = entry.path.rpartition("/")[2]
    attributes = entry.attributes
    return SnapshotInfo(
        id_,
        attributes.get("name", ""),
        attributes.get("folder", ""),
        int(id_, 16) // 10**9,
        int(attributes.get("files", "0")),
        int(attributes.get("size", "0")),
    )

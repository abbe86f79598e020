"""Uploads that go on after a lost connection: a file is sent in parts, one after the other.

An upload under way is a folder of its storage namespace, ``.s3-uploads/ID``, as one of S3 is: in
it ``about``, what the file is to be, and a file for each part, named by its offset. So parts count
in the quotas, survive any crash, and expire with those of S3 (:mod:`.unfinished`). A part is there
whole or not at all: what a lost connection costs is the part that was under way.

With the last part the file is published, in one step. It shares the chunks of the parts if all but
the last are of whole ones; else their bytes are copied through this process. Either way both are
counted for a moment, which is checked at the beginning.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from control.api import BadRequest, Call, Conflict, Content, Control, NoSuchThing, Route
from control.api.internals import check_quota, count, used_by
from control.storage.cluster import Cluster
from control.storage.names import check_own_path, check_path, last_segment
from control.storage.permission import CREATE, owner_of
from control.storage.rows import Space
from control.storage.shapes import Done, FileName
from control.storage.spaces import Spaces
from control.storage.transfer import Transfers, Upload, UploadRequest
from control.storage.turns import completions
from control.storage.unfinished import UPLOAD, end_upload, folder_of
from gfs.blocks import CHUNK_BYTES, KIB
from gfs.client import Entry
from gfs.errors import FileChanged, NotADirectory, NotFound

#: Of one upload. With parts of 16 MiB it is 160 GiB.
PARTS_MAX = 10_000
#: Uploads whose progress a process remembers: of others it lists all parts.
KNOWN_MAX = 1000
ABOUT = "about"
ABOUT_BYTES_MAX = 8 * KIB
_ID = re.compile(r"[0-9a-f]{32}")
_integer = re.compile(r"[0-9]{1,18}")


class NewUpload(msgspec.Struct):
    path: FileName
    size: Annotated[int, Meta(ge=1, le=1 << 50, description="Of the whole file, in bytes")]
    overwrite: Annotated[bool, Meta(description="Replace a file that is there")] = False


class UploadInfo(msgspec.Struct):
    id: str
    path: str
    size: int
    offset: Annotated[int, Meta(description="Where the next part begins")]
    complete: Annotated[bool, Meta(description="Whether the file is there")] = False


class PartQuery(msgspec.Struct):
    offset: Annotated[int, Meta(ge=0, description="Where the part begins")]


class Progress(NamedTuple):
    """How many parts there are that follow one another from the beginning."""

    parts: int = 0
    offset: int = 0
    #: The name of the last one.
    last: str = ""


class _Instead(Call):
    """A call whose body is something else than its request's."""

    __slots__ = ("_length", "_source")

    def __init__(self, call: Call, source: AsyncIterator[Any], length: int) -> None:
        super().__init__(
            call.control, call.need, call.route, call.request, call.params, call.principal
        )
        self._source = source
        self._length = length

    def header(self, name: str) -> str | None:
        changed = {"content-length": str(self._length), "x-file-size": None}
        return changed.get(name.lower(), super().header(name))

    def body(self) -> AsyncIterator[bytes]:
        return self._source


class UploadRoutes:
    def __init__(
        self, control: Control, cluster: Cluster, spaces: Spaces, transfers: Transfers
    ) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._transfers = transfers
        self._end = partial(end_upload, control, cluster, spaces)
        self._completions = completions(control)
        #: By upload: how far it had come when it was last looked at, the last one last.
        self._known: dict[str, Progress] = {}

    def routes(self) -> Sequence[Route]:
        base = "/storage/namespaces/{namespace}/uploads"
        errors = (400, 401, 403, 404, 409, 413, 429, 503, 507)
        return [
            Route(
                "POST",
                base,
                self.begin,
                CREATE,
                "Begin an upload in parts",
                body=NewUpload,
                answer=UploadInfo,
                errors=errors,
                description=(
                    "For large files, and connections that break: what was sent stays. Send the "
                    "parts in their order to `/{id}`. The quota must have room for the file twice "
                    "while it is put together. An upload that is not complete after a week is "
                    "deleted."
                ),
            ),
            Route(
                "GET",
                f"{base}/{{id}}",
                self.get,
                CREATE,
                "How far an upload in parts has come",
                answer=UploadInfo,
                errors=errors,
            ),
            Route(
                "PUT",
                f"{base}/{{id}}",
                self.put,
                CREATE,
                "Send the next part",
                query=PartQuery,
                headers={"Content-Length": "The length of the part; required"},
                body=Content("*/*", "The bytes"),
                answer=UploadInfo,
                errors=errors,
                description=(
                    "A part that is cut short is not stored: ask how far the upload has come, and "
                    "go on from there. With the last byte the file is published. If that fails, an "
                    "empty part at the end tries it again."
                ),
            ),
            Route(
                "DELETE",
                f"{base}/{{id}}",
                self.drop,
                CREATE,
                "Give up an upload in parts",
                answer=Done,
                errors=errors,
            ),
        ]

    async def begin(self, call: Call, body: NewUpload) -> UploadInfo:
        space = self._space(call)
        check_own_path(body.path)
        self._check_room(call, body)
        full = f"{space.directory}/{body.path}"
        if not body.overwrite:
            try:
                there = await self._cluster.fs.stat(full)
            except (NotFound, NotADirectory):
                pass
            else:
                raise Conflict(
                    f"{body.path} exists already: send overwrite=true to replace it"
                    if there.kind == "file"
                    else f"{body.path} is a folder"
                )
        upload_id = secrets.token_hex(16)
        about = msgspec.json.encode(body)
        await self._store(
            _Instead(call, _once(about), len(about)), space, f"{folder_of(upload_id)}/{ABOUT}", ""
        )
        return UploadInfo(upload_id, body.path, body.size, 0)

    async def get(self, call: Call) -> UploadInfo:
        space, about = await self._find(call)
        progress = await self._progress(space, call.params["id"])
        return self._info(call, about, progress.offset)

    async def put(self, call: Call) -> UploadInfo:
        offset = call.query(PartQuery).offset
        space, about = await self._find(call)
        upload_id = call.params["id"]
        parts, present, _ = await self._progress(space, upload_id)
        if offset != present:
            raise Conflict(f"offset: the next part begins at {present}")
        text = call.header("Content-Length")
        if text is None or not _integer.fullmatch(text):
            raise BadRequest("Content-Length: the length of the part is required")
        length = int(text)
        if present + length > about.size:
            raise BadRequest(f"the file has {about.size} bytes, and this part goes beyond its end")
        if length:
            if parts >= PARTS_MAX:
                raise BadRequest(f"an upload has {PARTS_MAX} parts at most: send larger ones")
            folder = folder_of(upload_id)
            try:
                await self._store(call, space, f"{folder}/{offset:018d}", folder)
            except Conflict:
                raise Conflict(
                    "this part has come with another request: ask how far the upload has come"
                ) from None
        info = self._info(call, about, present + length)
        if info.offset == about.size:
            async with self._completions.turn(upload_id):
                await self._complete(call, space, about, upload_id)
            info.complete = True
        elif not length:
            raise BadRequest("the part is empty")
        return info

    async def drop(self, call: Call) -> Done:
        space, about = await self._find(call)
        await self._end(space, folder_of(call.params["id"]))
        return Done(about.path)

    async def _complete(self, call: Call, space: Space, about: NewUpload, upload_id: str) -> None:
        is_there = await self._is_there(space, about, upload_id)
        try:
            await self._find(call)
        except NoSuchThing:
            if not is_there:
                raise
            return  # another request has completed it, whose answer may have been lost
        if not is_there:
            async with aclosing(self._after(space, upload_id, Progress())) as found:
                await self._join(call, space, about, [part async for part in found])
        self._known.pop(upload_id, None)
        await self._end(space, folder_of(upload_id))

    # --- what they are made of ----------------------------------------------------

    def _space(self, call: Call) -> Space:
        space = self._spaces.get(call.params["namespace"])
        call.allow(space.target)
        return space

    def _check_room(self, call: Call, body: NewUpload) -> None:
        """Raises TooLarge, QuotaReached."""
        user_id = call.user.user_id
        with self._control.ledger.read() as txn:
            used, reserved = used_by(txn, user_id).bytes, count(txn, "r", user_id).bytes
        check_quota("bytes", self._control.limits_of(user_id).bytes, used, 2 * body.size, reserved)

    async def _find(self, call: Call) -> tuple[Space, NewUpload]:
        space = self._space(call)
        upload_id = call.params["id"]
        missing = NoSuchThing("there is no such upload: it is complete, or was given up")
        if not _ID.fullmatch(upload_id):
            raise missing
        path = f"{space.directory}/{folder_of(upload_id)}/{ABOUT}"
        try:
            entry = await self._cluster.fs.stat(path)
            if entry.kind != "file" or entry.length > ABOUT_BYTES_MAX:
                raise missing
            about = msgspec.json.decode(await self._cluster.fs.get(path), type=NewUpload)
        except (NotFound, NotADirectory, msgspec.DecodeError):
            raise missing from None
        if owner_of(entry) != call.user.user_id:
            raise missing
        return space, about

    async def _progress(self, space: Space, upload_id: str) -> Progress:
        """How far it has come. Of parts that were there at the last look only those are listed
        that are new, or each part would cost a list of all before it. Parts stay as they are."""
        known = self._known.pop(upload_id, Progress())
        async with aclosing(self._after(space, upload_id, known)) as found:
            async for part in found:
                end = known.offset + part.length
                known = Progress(known.parts + 1, end, last_segment(part.path))
        self._known[upload_id] = known
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
        return known

    async def _after(
        self, space: Space, upload_id: str, known: Progress
    ) -> AsyncGenerator[Entry, None]:
        """The parts after these that follow one another."""
        end, folder = known.offset, f"{space.directory}/{folder_of(upload_id)}"
        try:
            async with aclosing(self._cluster.fs.scan(folder, known.last)) as entries:
                async for entry in entries:
                    if last_segment(entry.path) == f"{end:018d}" and entry.kind == "file":
                        yield entry
                        end += entry.length
        except (NotFound, NotADirectory):
            return

    def _info(self, call: Call, about: NewUpload, offset: int) -> UploadInfo:
        return UploadInfo(call.params["id"], about.path, about.size, offset)

    async def _store(self, call: Call, space: Space, path: str, within: str) -> None:
        request = UploadRequest(space.name, path, "", False, "", within=within, check=check_path)
        await self._take(call, request)

    async def _take(self, call: Call, request: UploadRequest) -> None:
        parts = (call, self._control, self._cluster, self._spaces)
        await Upload(*parts, request, self._transfers, form=False).take()

    async def _join(
        self, call: Call, space: Space, about: NewUpload, parts: Sequence[Entry]
    ) -> None:
        mark = {UPLOAD: call.params["id"]}
        is_whole = not any(part.length % CHUNK_BYTES for part in parts[:-1])
        request = UploadRequest(
            space.name, about.path, "", about.overwrite, "", describe=lambda: mark,
            joined=parts if is_whole else (),
        )  # fmt: skip
        async with aclosing(self._bytes(parts)) as source:
            await self._take(_Instead(call, source, about.size), request)

    async def _is_there(self, space: Space, about: NewUpload, upload_id: str) -> bool:
        """Whether the file was published by a process that was killed before it removed the
        upload."""
        try:
            entry = await self._cluster.fs.stat(f"{space.directory}/{about.path}")
        except (NotFound, NotADirectory):
            return False
        return entry.attributes.get(UPLOAD) == upload_id

    async def _bytes(self, parts: Sequence[Entry]) -> AsyncGenerator[bytes | memoryview, None]:
        try:
            for part in parts:
                file: Any = await self._cluster.fs.open(part.path)
                if file.entry.inode != part.inode:
                    raise FileChanged(part.path)
                async with aclosing(file.stream(0, part.length)) as stream:
                    async for piece in stream:
                        yield piece
        except (FileChanged, NotFound):
            raise Conflict("the upload was completed or given up meanwhile") from None


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data

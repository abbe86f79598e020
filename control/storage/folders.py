"""Routes for people who look at their files: pages of folders and of the trash; moving, copying,
deleting and undeleting of files and folders.

All are below ``/storage/namespaces/{namespace}``, where no file has its path. While the file system
does not answer, they do not wait as long as a transfer does: a person has a page in front.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Literal
from weakref import WeakValueDictionary

import msgspec
import trio
from msgspec import Meta

from control.api import BadRequest, Call, Control, NoSuchThing, Route, Unauthorized, scoped, within
from control.storage.cluster import Cluster
from control.storage.names import DEFAULT, KEPT, check_path, last_segment
from control.storage.paging import (
    PAGE_DEFAULT,
    After,
    Place,
    cursor_of,
    first_after,
    place_of,
)
from control.storage.permission import CREATE, DELETE, READ
from control.storage.rows import Space
from control.storage.shapes import FileName, IsKept, Until
from control.storage.spaces import Spaces
from control.storage.trees import Moved, Trees
from gfs.client import Entry, TrashEntry
from gfs.errors import NotADirectory, NotFound

#: A look waits so long for a master that is away.
LOOK_SECONDS = 10.0
#: Whole folders, or trashes, that are read at once for one user; others wait. One of 100,000
#: entries takes a second of a processor.
WHOLE_AT_ONCE = 2
#: Of a folder or trash with more entries no page is read whole: that would take most of
#: LOOK_SECONDS, and a client that asks again would never see one.
WHOLE_MAX = 500_000
#: A large page spares whole reads: a folder of 100,000 entries is listed in any order with ten.
#: Sorting takes 13 ms, and the answer has 1.2 MB.
ENTRIES_MAX = 10_000
#: What is carried out may have to read 200,000 files.
CHANGE_SECONDS = 120.0

#: As READ, but never without a credential: what only the owner sees.
OWN = scoped("storage", "files", "read", parameter="namespace", fallback=DEFAULT)

Folder = Annotated[str, Meta(description="The folder; empty: all of the storage namespace")]
Id = Annotated[str, Meta(description="`id` of an entry", extra_json_schema={"pattern": "^[0-9]*$"})]
Order = Literal["asc", "desc"]
Limit = Annotated[int, Meta(ge=1, le=ENTRIES_MAX, description="At most so many")]
#: Instead of a place, of an order that the file system has: the rest is its own cursor.
OWN_ORDER = -1


class EntryInfo(msgspec.Struct):
    kind: Literal["folder", "file"]
    name: str
    path: str
    #: Of a folder 0.
    size: int
    created_at: int
    modified_at: int


class EntryPage(msgspec.Struct):
    folder: str
    entries: list[EntryInfo]
    next: Annotated[str | None, Meta(description="For `after`; null: this is the last page")]


class EntryQuery(msgspec.Struct):
    folder: Folder = ""
    sort: Literal["name", "size", "modified"] = "name"
    order: Order = "asc"
    match: Annotated[str, Meta(description="Only names with this text in any case")] = ""
    limit: Limit = PAGE_DEFAULT
    after: After = ""

    @property
    def is_in_order(self) -> bool:
        """Whether the file system has this order."""
        return (self.sort, self.order) == ("name", "asc")

    @property
    def is_short(self) -> bool:
        """Whether a page is read without the rest of the folder."""
        return self.is_in_order and not self.match


class DeletedInfo(msgspec.Struct):
    id: Annotated[str, Meta(description="Of this deletion; there may be several of one path")]
    kind: Literal["folder", "file"]
    name: str
    path: str
    size: Annotated[int, Meta(description="-1: the files of a folder are still being counted")]
    files: int
    deleted_at: int
    until: Annotated[int, Meta(description="When it is deleted for good")]


class DeletedPage(msgspec.Struct):
    entries: list[DeletedInfo]
    next: Annotated[str | None, Meta(description="For `after`; null: this is the last page")]
    kept_seconds: Annotated[int, Meta(description="How long what is deleted now is kept")]


class DeletedQuery(msgspec.Struct):
    folder: Folder = ""
    sort: Literal["deleted", "path", "size"] = "deleted"
    order: Order = "desc"
    limit: Limit = PAGE_DEFAULT
    after: After = ""

    @property
    def is_in_order(self) -> bool:
        """Whether the file system has this order."""
        return (self.sort, self.order) == ("path", "asc")


class PurgeQuery(msgspec.Struct):
    path: FileName
    id: Id = ""


class UndeleteBody(msgspec.Struct):
    path: FileName
    id: Annotated[Id, Meta(description="Of the deletion; left out: the last one")] = ""
    target: Annotated[str, Meta(description="Its new path; left out: the old one")] = ""


class FolderQuery(msgspec.Struct):
    path: FileName


class MoveBody(msgspec.Struct):
    source: FileName
    target: FileName
    overwrite: Annotated[bool, Meta(description="A file at the target goes to the trash")] = False


class CopyBody(msgspec.Struct):
    source: FileName
    target: FileName
    namespace: Annotated[str, Meta(description="Of the target; left out: the same")] = ""
    overwrite: Annotated[bool, Meta(description="A file at the target goes to the trash")] = False


class MovedInfo(msgspec.Struct):
    name: str
    path: str
    kind: Literal["folder", "file"]
    files: int
    size: int
    status: Literal["ok"] = "ok"


class DeletedFolder(MovedInfo, kw_only=True):
    kept: IsKept
    until: Until


class Purged(msgspec.Struct):
    name: str
    status: Literal["ok"] = "ok"


class FolderRoutes:
    def __init__(self, control: Control, cluster: Cluster, spaces: Spaces, trees: Trees) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._trees = trees
        #: The turns of users, as long as they have any.
        self._turns = WeakValueDictionary[str, trio.Semaphore]()

    def routes(self) -> Sequence[Route]:
        base = "/storage/namespaces/{namespace}"
        changes = (401, 403, 404, 409, 503, 507)
        return [
            Route(
                "GET",
                f"{base}/entries",
                self.entries,
                READ,
                "List one folder, page by page",
                query=EntryQuery,
                answer=EntryPage,
                errors=[400, 401, 403, 404, 503],
                description=(
                    "Folders and files together. By name, ascending (the order of the bytes), a "
                    "page costs the same however many there are; another order, or `match`, reads "
                    f"the folder, and takes a credential: choose a large `limit`. Of over "
                    f"{WHOLE_MAX:,} entries it is refused. A folder that does not exist is empty."
                ),
            ),
            Route(
                "GET",
                f"{base}/trash",
                self.trash,
                OWN,
                "What was deleted and can be undeleted",
                query=DeletedQuery,
                answer=DeletedPage,
                errors=[400, 401, 403, 404, 503],
                description=(
                    "For the owner. Of `default`, for administrators. By path, ascending, a page "
                    "costs the same however much there is; another order reads the trash: choose a "
                    f"large `limit`. Of over {WHOLE_MAX:,} entries it is refused."
                ),
            ),
            Route(
                "DELETE",
                f"{base}/trash",
                self.purge,
                DELETE,
                "Delete for good what is in the trash",
                query=PurgeQuery,
                answer=Purged,
                errors=[400, 401, 403, 404, 503],
            ),
            Route(
                "POST",
                f"{base}/undelete",
                self.undelete,
                CREATE,
                "Undelete a file, or a folder with its files",
                body=UndeleteBody,
                answer=MovedInfo,
                errors=[*changes, 413],
                description=(
                    "It counts towards the quota again. 409 if something else is at its path: "
                    "give a `target`. Where versions are kept, its delete markers are removed."
                ),
            ),
            Route(
                "DELETE",
                f"{base}/folder",
                self.delete_folder,
                DELETE,
                "Delete a folder with its files, in one step",
                query=FolderQuery,
                answer=DeletedFolder,
                errors=[400, *changes],
                description=(
                    "It goes to the trash, as far as that has room. In `default` only "
                    "administrators may."
                ),
            ),
            Route(
                "POST",
                f"{base}/move",
                self.move,
                CREATE,
                "Move or rename a file or a folder, in one step",
                body=MoveBody,
                answer=MovedInfo,
                errors=[*changes, 413],
                description=(
                    "An API token also needs `delete` on `storage.files`. Where versions are kept, "
                    "a file is copied and then deleted; a folder is answered 409."
                ),
            ),
            Route(
                "POST",
                f"{base}/copy",
                self.copy,
                OWN,
                "Copy a file or a folder, also to another storage namespace",
                body=CopyBody,
                answer=MovedInfo,
                errors=[*changes, 413],
                description=(
                    "The copy shares the bytes and appears at once; it counts towards the quota as "
                    "other files do. An API token also needs `create` on the target."
                ),
            ),
        ]

    # --- looking ------------------------------------------------------------------

    async def entries(self, call: Call) -> EntryPage:
        query = call.query(EntryQuery)
        space = self._spaces.readable(call, call.params["namespace"])
        if call.principal is None and not query.is_short:
            raise Unauthorized("log in: match, and orders but by name, read the whole folder")
        with within(LOOK_SECONDS):
            return await self.page(call, space.directory, query)

    async def page(self, call: Call, directory: str, query: EntryQuery) -> EntryPage:
        """A page of a folder below a directory."""
        if query.is_short:
            return await self._page(directory, query)
        async with self._turn(call.user.user_id):
            return await self._page(directory, query)

    def _turn(self, user_id: str) -> trio.Semaphore:
        return self._turns.setdefault(user_id, trio.Semaphore(WHOLE_AT_ONCE))

    async def _page(self, directory: str, query: EntryQuery) -> EntryPage:
        folder = query.folder.strip("/")
        if folder:
            check_path(folder)
        if folder.partition("/")[0] in KEPT:
            return EntryPage(folder, [], None)
        full = f"{directory}/{folder}" if folder else directory
        after = place_of(query.after)
        if query.is_in_order:
            found, cursor = await self._by_name(full, query, after)
        else:
            key = {"name": _by_name, "size": _by_size, "modified": _by_time}[query.sort]
            found, cursor = await first_after(
                self._scan(full, query.match, "", not folder),
                key,
                after,
                query.limit,
                reverse=query.order == "desc",
            )
            await trio.lowlevel.checkpoint()  # sorting took a while
        return EntryPage(folder, [_entry(folder, each) for each in found], cursor)

    async def _by_name(
        self, full: str, query: EntryQuery, after: Place | None
    ) -> tuple[list[Entry], str | None]:
        found: list[Entry] = []
        start = str(after[0]) if after is not None else ""
        scan = self._scan(full, query.match, start, not query.folder.strip("/"))
        async with aclosing(scan) as entries:
            async for each in entries:
                if len(found) == query.limit:
                    return found, cursor_of(_by_name(found[-1]))
                found.append(each)
        return found, None

    async def _scan(
        self, full: str, match: str, start: str, is_top: bool
    ) -> AsyncGenerator[Entry, None]:
        wanted = match.casefold()
        count = 0
        try:
            async with aclosing(self._cluster.fs.scan(full, start)) as entries:
                async for each in entries:
                    count += 1
                    if count > WHOLE_MAX:
                        raise BadRequest(
                            f"folder: it has over {WHOLE_MAX:,} entries, which are listed by name "
                            "alone, ascending and without match"
                        )
                    name = last_segment(each.path)
                    if (wanted and wanted not in name.casefold()) or (is_top and name in KEPT):
                        continue
                    yield each
        except (NotFound, NotADirectory):
            return

    async def trash(self, call: Call) -> DeletedPage:
        query = call.query(DeletedQuery)
        space = self._spaces.own(call, call.params["namespace"])
        folder = query.folder.strip("/")
        if folder:
            check_path(folder)
        full = f"{space.directory}/{folder}" if folder else space.directory
        after = place_of(query.after)
        with within(LOOK_SECONDS):
            if query.is_in_order:
                found, cursor = await self._trash_by_path(space, full, query.limit, after)
            else:
                key = {"deleted": _by_deletion, "path": _by_path, "size": _by_length}[query.sort]
                async with self._turn(call.user.user_id):
                    found, cursor = await first_after(
                        self._deleted(space, full),
                        key,
                        after,
                        query.limit,
                        reverse=query.order == "desc",
                    )
        entries = [_deleted(space, each) for each in found]
        return DeletedPage(entries, cursor, int(self._cluster.trash_seconds))

    async def _trash_by_path(
        self, space: Space, full: str, limit: int, after: Place | None
    ) -> tuple[list[TrashEntry], str | None]:
        cursor = b""
        if after is not None:
            if after[0] != OWN_ORDER:
                raise BadRequest("after: is the `next` of a page in another order")
            cursor = after[1].encode("latin-1", "replace")
        found: list[TrashEntry] = []
        while True:
            page = await self._cluster.fs.trash_page(full, cursor, limit - len(found))
            cursor = page.cursor
            found += [each for each in page.entries if _is_listed(space, each)]
            if not cursor:
                return found, None
            if len(found) == limit:
                return found, cursor_of((OWN_ORDER, cursor.decode("latin-1")))

    async def _deleted(self, space: Space, full: str) -> AsyncGenerator[TrashEntry, None]:
        count = 0
        async with aclosing(self._cluster.fs.trash(full)) as entries:
            async for each in entries:
                count += 1
                if count > WHOLE_MAX:
                    raise BadRequest(
                        f"the trash has over {WHOLE_MAX:,} entries here, which are listed by path "
                        "alone, ascending"
                    )
                if _is_listed(space, each):
                    yield each

    # --- changing -----------------------------------------------------------------

    async def purge(self, call: Call) -> Purged:
        query = call.query(PurgeQuery)
        with within(CHANGE_SECONDS):
            await self._trees.purge(call, call.params["namespace"], query.path, _inode(query.id))
        return Purged(last_segment(query.path))

    async def undelete(self, call: Call, body: UndeleteBody) -> MovedInfo:
        name = call.params["namespace"]
        with within(CHANGE_SECONDS):
            return moved_info(
                await self._trees.undelete(call, name, body.path, _inode(body.id), body.target)
            )

    async def delete_folder(self, call: Call) -> DeletedFolder:
        path, name = call.query(FolderQuery).path, call.params["namespace"]
        with within(CHANGE_SECONDS):
            moved, (is_kept, until) = await self._trees.delete_folder(call, name, path)
        info = msgspec.structs.asdict(moved_info(moved))
        return DeletedFolder(**info, kept=is_kept, until=until)

    async def move(self, call: Call, body: MoveBody) -> MovedInfo:
        space = self._spaces.get(call.params["namespace"])
        with within(CHANGE_SECONDS):
            return moved_info(
                await self._trees.move(call, space, body.source, body.target, body.overwrite)
            )

    async def copy(self, call: Call, body: CopyBody) -> MovedInfo:
        space = self._spaces.readable(call, call.params["namespace"])
        target = self._spaces.get(body.namespace or space.name)
        check_path(body.source)
        if body.source.partition("/")[0] in KEPT:
            raise NoSuchThing(f"{body.source} does not exist")
        with within(CHANGE_SECONDS):
            try:
                source = await self._cluster.fs.stat(f"{space.directory}/{body.source}")
            except (NotFound, NotADirectory):
                raise NoSuchThing(f"{body.source} does not exist") from None
            return moved_info(
                await self._trees.copy(call, source, target, body.target, body.overwrite)
            )


def _by_name(entry: Entry) -> Place:
    name = last_segment(entry.path)
    return name, ""


def _by_size(entry: Entry) -> Place:
    return entry.length, last_segment(entry.path)


def _by_time(entry: Entry) -> Place:
    return entry.modified_ns, last_segment(entry.path)


def _is_listed(space: Space, entry: TrashEntry) -> bool:
    path = entry.path.removeprefix(f"{space.directory}/")
    return entry.path != space.directory and path.partition("/")[0] not in KEPT


def _by_deletion(entry: TrashEntry) -> Place:
    return entry.deleted_ns, f"{entry.path}/{entry.inode}"


def _by_path(entry: TrashEntry) -> Place:
    return entry.path, str(entry.inode)


def _by_length(entry: TrashEntry) -> Place:
    return entry.length, f"{entry.path}/{entry.inode}"


def _inode(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise BadRequest("id: is not the id of an entry of the trash")
    return min(int(text), (1 << 63) - 1)


def _entry(folder: str, entry: Entry) -> EntryInfo:
    name = last_segment(entry.path)
    return EntryInfo(
        "file" if entry.kind == "file" else "folder",
        name,
        f"{folder}/{name}" if folder else name,
        entry.length,
        entry.created_ns // 10**9,
        entry.modified_ns // 10**9,
    )


def _deleted(space: Space, entry: TrashEntry) -> DeletedInfo:
    path = entry.path.removeprefix(f"{space.directory}/")
    is_folder = entry.kind == "directory"
    return DeletedInfo(
        str(entry.inode),
        "folder" if is_folder else "file",
        last_segment(path),
        path,
        entry.length,
        entry.files if is_folder else 1,
        entry.deleted_ns // 10**9,
        entry.until_ns // 10**9,
    )


def moved_info(moved: Moved) -> MovedInfo:
    kind: Literal["folder", "file"] = "file" if moved.kind == "file" else "folder"
    return MovedInfo(last_segment(moved.path), moved.path, kind, moved.files, moved.size)

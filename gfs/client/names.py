"""The calls of a client on names: of files, directories and the trash."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    nullcontext,
)
from typing import TypeVar

import trio

from gfs.client.core import ClientCore, flat_nursery, one_request
from gfs.client.publish import check_expect, goal_of
from gfs.client.read import FileMap, check_path
from gfs.diagnostics import asked_for, request_of
from gfs.errors import (
    ChunkUnavailable,
    NotFound,
)
from gfs.protocol.attributes import check_attributes
from gfs.protocol.messages import (
    PATH_BYTES_MAX,
    Delete,
    DiskUsage,
    DiskUsageReply,
    Done,
    EmptyTrash,
    EmptyTrashReply,
    Entry,
    List,
    ListFiles,
    ListFilesReply,
    ListReply,
    ListTrash,
    ListTrashReply,
    MakeDirectory,
    Message,
    Prune,
    Rename,
    SetAttributes,
    SetReplication,
    Snapshot,
    SnapshotReply,
    Stat,
    StatReply,
    TrashEntry,
    Undelete,
)

ReplyT = TypeVar("ReplyT", bound=Message)

LIST_PAGE = 1000
_NAMES = ("path", "source", "target")


def _raw(text: str) -> bytes:
    """A text that is compared with paths, and need not be one."""
    return text.encode("utf-8", "surrogatepass")


class Names:
    """Questions to the master about paths, and changes of them."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    async def _ask(self, request: Message, kind: type[ReplyT]) -> ReplyT:
        for name in _NAMES:
            if name in request.__struct_fields__:
                check_path(getattr(request, name))
        return await self._core.master.ask(request, kind)

    async def stat(self, path: str) -> Entry:
        """The entry of a file or directory. The length of a file with appended records is
        read from its replicas; in a listing it is one or two heartbeats old.

        Raises NotFound, NotADirectory, InvalidName.
        """
        question = Stat(id=0, path=path)
        entry = (await self._ask(question, StatReply)).entry
        if entry.appended:
            # The same request id: only here, since most calls need one message.
            with asked_for(request_of(question.id)):
                try:
                    return (await FileMap.open(self._core, path, patient=False)).entry
                except ChunkUnavailable:
                    return entry  # no replica can be asked
        return entry

    async def exists(self, path: str) -> bool:
        try:
            await self._ask(Stat(id=0, path=path), StatReply)
        except (NotFound, NotADirectoryError):
            return False
        return True

    def scan(self, path: str = "/", after: str = "") -> AsyncGenerator[Entry, None]:
        """A directory's entries in order of the bytes of their names, in constant memory.

        ``after``: only entries whose names are above it; no others are read. It need not
        be the name of an entry.

        Raises NotFound, NotADirectory, InvalidName.
        """
        return self._scan(path, after)

    async def _scan(
        self, path: str, after: str = "", request: int = 0
    ) -> AsyncGenerator[Entry, None]:
        """``request`` is the id of the request that this belongs to, if there is one."""
        check_path(after)
        asked = asked_for(request or self._core.present_request())
        while True:
            question = List(id=0, path=path, after=after, limit=LIST_PAGE)
            with asked:
                page = await self._ask(question, ListReply)
            for entry in page.entries:
                yield entry
            if not page.more or not page.entries:
                return
            after = page.entries[-1].path.rpartition("/")[2]

    async def files(
        self,
        path: str = "/",
        *,
        prefix: str = "",
        after: str = "",
        folders: bool = False,
        without: Iterable[str] = (),
        page: int = LIST_PAGE,
        turn: AbstractAsyncContextManager[object] | None = None,
    ) -> AsyncGenerator[Entry, None]:
        """The files below a directory, however deep, in order of the bytes of their paths, in
        constant memory. The master is asked once for each page, and for each 1,000 rows that it
        must read for one. It is no snapshot: of what is made or deleted meanwhile it has some.

        Args:
            prefix: only those whose paths, relative to ``path``, begin with it; no other
                directories are read.
            after: only those whose relative paths are above it; nothing before it is read.
            folders: a directory whose relative path begins with ``prefix`` is yielded instead of
                what is in it; it sorts as its path with a slash.
            without: relative paths of directories, with a slash, that are passed over.
            page: at most so many are asked for at once.
            turn: entered for each question, and left before anything is yielded.

        Raises NotFound, NotADirectory, InvalidName. A master of an older release cannot be asked:
        ProtocolError says so.
        """
        asked = asked_for(self._core.present_request())
        # No path is longer, so it is above the whole of a longer one or below it, too.
        cursor = _raw(after)[: PATH_BYTES_MAX + 1]
        while len(_raw(prefix)) <= PATH_BYTES_MAX:
            question = ListFiles(
                id=0,
                path=path,
                prefix=_raw(prefix),
                after=cursor,
                limit=page,
                folders=folders,
                without=[_raw(each) for each in without],
            )
            async with turn or nullcontext():
                with asked:
                    reply = await self._ask(question, ListFilesReply)
            for entry in reply.entries:
                yield entry
            cursor = reply.cursor
            if not cursor:
                return

    @one_request
    async def list(self, path: str = "/") -> list[Entry]:
        return [entry async for entry in self.scan(path)]

    async def walk(self, path: str = "/") -> AsyncGenerator[Entry, None]:
        """Everything below ``path``, directories before their entries."""
        request = self._core.present_request()
        pending = [path]
        while pending:
            found: list[str] = []
            async for entry in self._scan(pending.pop(), request=request):
                yield entry
                if entry.kind == "directory":
                    found.append(entry.path)
            pending.extend(reversed(found))

    async def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> Entry:
        """``attributes``: those of the last directory, if this makes it. Raises AlreadyExists,
        NotFound (a parent), NotADirectory."""
        check_attributes(attributes or {})
        request = MakeDirectory(
            *self._core.master.stamp(),
            path=path,
            parents=parents,
            exist_ok=exist_ok,
            attributes=dict(attributes or {}),
        )
        return (await self._ask(request, StatReply)).entry

    @one_request
    async def set_attributes(
        self,
        path: str,
        attributes: Mapping[str, str] | None = None,
        *,
        removed: Iterable[str] = (),
        modified_ns: int = 0,
        expect: int | None = None,
    ) -> Entry:
        """Give a file or directory these attributes besides those that it has, without the
        ``removed`` ones; and a time of change (0: it stays). Durable when this returns.

        ``expect``: the inode that must be at the path.

        Raises NotFound, FileChanged (another inode is there), InvalidArgument.
        """
        check_attributes(attributes or {})
        check_expect(expect)
        request = SetAttributes(
            *self._core.master.stamp(),
            path=path,
            attributes=dict(attributes or {}),
            removed=list(removed),
            modified_ns=modified_ns,
            expect=-1 if expect is None else expect,
        )
        return (await self._ask(request, StatReply)).entry

    async def rename(
        self, source: str, target: str, *, replace: bool = False, parents: bool = False
    ) -> None:
        """Move or rename a file or directory, atomically. ``replace`` lets a file replace a file.

        Raises NotFound, AlreadyExists, NotADirectory, InvalidArgument (a
        directory into itself).
        """
        request = Rename(
            *self._core.master.stamp(),
            source=source,
            target=target,
            replace=replace,
            parents=parents,
        )
        await self._ask(request, Done)

    @one_request
    async def delete(
        self, path: str, *, recursive: bool = False, expect: int | None = None, now: bool = False
    ) -> None:
        """Delete a file or directory. It can be undeleted for the master's
        ``trash_seconds``, unless ``now`` is given: then its space is free within seconds.
        Open files can be read until they are purged.

        ``expect``: the inode that must be at the path.

        Raises NotFound, DirectoryNotEmpty, FileChanged (another inode is there).
        """
        check_expect(expect)
        request = Delete(
            *self._core.master.stamp(),
            path=path,
            recursive=recursive,
            expect=-1 if expect is None else expect,
            now=now,
        )
        await self._ask(request, Done)

    async def prune(self, path: str, *, below: str = "/") -> None:
        """Delete an empty directory for good, and with it those above it, below the directory
        ``below``, that have nothing else in them: in one step, however many they are.

        Raises NotFound, NotADirectory, DirectoryNotEmpty, InvalidArgument. A master of an older
        release cannot be asked: ProtocolError says so.
        """
        request = Prune(
            *self._core.master.stamp(),
            path=path,
            below=below,
        )
        await self._ask(request, Done)

    @one_request
    async def set_replication(self, path: str, goal: int, *, recursive: bool = False) -> int:
        """Change a file's goal (0: the cluster's default), or with ``recursive`` that of all
        files at and below ``path``. Returns the number of files. The master then copies
        or deletes replicas in the background.

        Raises NotFound, IsADirectory, InvalidArgument.
        """

        async def set_goal(path: str) -> None:
            stamp = self._core.master.stamp()
            request = SetReplication(*stamp, path=path, replication=goal_of(goal))
            await self._ask(request, StatReply)

        async def set_one(path: str, borrower: object) -> None:
            try:
                await set_goal(path)
            except NotFound:
                pass  # it was deleted meanwhile
            finally:
                slots.release_on_behalf_of(borrower)

        entry = await self.stat(path)
        if entry.kind != "directory" or not recursive:
            await set_goal(path)
            return 1
        count = 0
        slots = trio.CapacityLimiter(self._core.settings.parallel_files)
        async with flat_nursery() as nursery, aclosing(self.walk(path)) as entries:
            async for below in entries:
                if below.kind == "file":
                    count += 1
                    borrower = object()
                    await slots.acquire_on_behalf_of(borrower)
                    nursery.start_soon(set_one, below.path, borrower)
        return count

    @one_request
    async def snapshot(
        self,
        source: str,
        target: str,
        *,
        parents: bool = False,
        progress: Callable[[SnapshotReply], object] | None = None,
    ) -> SnapshotReply:
        """Make ``target`` a copy of the file or directory ``source`` at one instant during
        the call. The copy appears complete or not at all.

        No data is copied: both share chunks until one of them is written. Changes at or
        below ``source`` wait meanwhile (seconds for 100,000 files). ``progress`` is called
        with the counts so far.

        Raises NotFound, AlreadyExists, NotADirectory, InvalidArgument (``target`` in
        ``source``).
        """
        request = Snapshot(
            *self._core.master.stamp(),
            source=source,
            target=target,
            parents=parents,
        )
        while True:
            reply = await self._ask(request, SnapshotReply)
            if progress is not None:
                progress(reply)
            if reply.done:
                return reply

    @one_request
    async def undelete(self, path: str, *, target: str = "", inode: int = 0) -> Entry:
        """Restore the last deletion of ``path``, or the one with ``inode`` (see
        :meth:`trash`), under its old name or as ``target``; a directory with its contents.
        Missing parents are created.

        Raises NotFound (not in the trash), AlreadyExists, NotADirectory.
        """
        request = Undelete(
            *self._core.master.stamp(),
            path=path,
            target=target,
            inode=inode,
        )
        return (await self._ask(request, StatReply)).entry

    async def trash(self, path: str = "/") -> AsyncGenerator[TrashEntry, None]:
        """What was deleted at and below ``path`` and can be undeleted, by path, then by
        time; in constant memory."""
        asked = asked_for(self._core.present_request())
        cursor = b""
        while True:
            with asked:
                page = await self.trash_page(path, cursor)
            for entry in page.entries:
                yield entry
            cursor = page.cursor
            if not cursor:
                return

    @one_request
    async def trash_page(
        self, path: str = "/", cursor: bytes = b"", limit: int = LIST_PAGE
    ) -> ListTrashReply:
        """At most ``limit`` entries of what :meth:`trash` gives, after the page with this
        ``cursor``; the last page has an empty one. In one question."""
        question = ListTrash(id=0, path=path, cursor=cursor, limit=limit)
        return await self._ask(question, ListTrashReply)

    @one_request
    async def empty_trash(self, path: str, *, recursive: bool = False, inode: int = 0) -> int:
        """Purge the deletions of ``path``, and with ``recursive`` those below it, from the
        trash; only the one with ``inode``, if that is given. Returns how many were purged."""
        count = 0
        while True:
            request = EmptyTrash(
                *self._core.master.stamp(),
                path=path,
                recursive=recursive,
                inode=inode,
            )
            reply = await self._ask(request, EmptyTrashReply)
            count += reply.rows
            if not reply.more:
                return count

    async def disk_usage(self, path: str = "/") -> DiskUsageReply:
        return await self._ask(DiskUsage(id=0, path=path), DiskUsageReply)

"""The client: one object for all operations of a program on the cluster."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, overload

import msgspec
import trio

from gfs import config
from gfs.blocks import Buffer
from gfs.client import fsck, many, small, transfer
from gfs.client.append import Appends, Record, read_records
from gfs.client.core import ClientCore, one_request
from gfs.client.files import ExistingFile, File, NewFile, normal_mode
from gfs.client.fsck import ChunkReport, FsckReport
from gfs.client.master import MasterClient
from gfs.client.publish import PublishOptions, check_expect, goal_of
from gfs.client.read import FileMap, check_path
from gfs.client.rescue import Rescued, rescue
from gfs.config import ClientSettings
from gfs.diagnostics import asked_for, request_of
from gfs.errors import (
    AlreadyExists,
    ChunkUnavailable,
    GfsError,
    InvalidArgument,
    IsADirectory,
    NotFound,
    SettingsError,
)
from gfs.io import World, real_world
from gfs.protocol.attributes import check_attributes
from gfs.protocol.credentials import Credentials, load_credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.links import Links
from gfs.protocol.messages import (
    PATH_BYTES_MAX,
    AcceptRestore,
    Delete,
    Disk,
    DiskOrder,
    DiskOrderReply,
    DiskUsage,
    DiskUsageReply,
    Done,
    Drain,
    DrainReply,
    Election,
    ElectionReply,
    EmptyTrash,
    EmptyTrashReply,
    Entry,
    ForgetServer,
    ForgetShadow,
    List,
    ListFiles,
    ListFilesReply,
    ListReply,
    ListTrash,
    ListTrashReply,
    Maintenance,
    MakeDirectory,
    Message,
    Promote,
    PromoteReply,
    Prune,
    Rename,
    Repair,
    RepairReply,
    ServerStatus,
    SetAttributes,
    SetReplication,
    Snapshot,
    SnapshotReply,
    Stat,
    StatReply,
    Status,
    StatusReply,
    TrashEntry,
    Undelete,
)
from gfs.protocol.pool import BulkPool
from gfs.state import KEY_NAME, READY_NAME, find_tls

ReplyT = TypeVar("ReplyT", bound=Message)

LIST_PAGE = 1000
#: A promotion waits for the old master and for other shadow masters, each for some seconds.
PROMOTE_SECONDS = 60.0
#: Reading the heads of a million replicas on a disk takes minutes.
DISK_ORDER_SECONDS = 600.0
_NAMES = ("path", "source", "target")


@dataclass(frozen=True)
class LocateReport:
    """A file and the master's state of its chunks."""

    entry: Entry
    chunks: list[ChunkReport]


@asynccontextmanager
async def connect(
    master: str | Sequence[str] | None = None,
    *,
    state: str | os.PathLike[str] | None = None,
    key: bytes | str | os.PathLike[str] | None = None,
    tls: str | os.PathLike[str] | None = None,
    settings: ClientSettings | None = None,
    world: World | None = None,
) -> AsyncIterator[Client]:
    """Connect to a cluster.

    Args:
        master: ``HOST:PORT`` of the master, or several (a list, or with commas): the
            master and its shadow masters, one of which may be promoted. Default:
            ``GFS_MASTER``, else the address that ``gfs up`` wrote into the state
            directory. The single address of a shadow master allows look-ups only.
        state: the state directory. Default: ``GFS_STATE``, else the one that
            ``gfs up`` uses.
        key: the cluster key, or its file, which is read again when it changes.
            Default: the file named by ``GFS_KEY_FILE``, else the state directory's.
        tls: a directory with the ``ca.pem`` of a cluster whose connections are
            encrypted (see :mod:`gfs.io.tls`). Default: ``tls`` in the state directory
            if it exists, else ``GFS_TLS``; no TLS if the key is given as bytes.
        settings: see :class:`gfs.config.ClientSettings`.
        world: clock, network and disks (:mod:`gfs.io`); only tests replace this machine's.

    Raises SettingsError when the cluster cannot be found, MasterUnavailable when
    no master answers within ``settings.retry_seconds``, WrongClusterKey, TlsRefused.

    When the block ends, running transfers are cancelled; an upload that was not
    acknowledged does not become visible.
    """
    settings = settings or config.load(ClientSettings, "client")
    settings.check()
    world = world or real_world()
    addresses = find_masters(master, state)
    credentials = find_credentials(key, tls, state)
    identity = Identity(role="client", peer=world.random_bytes(8).hex(), key=credentials)
    async with _flat_nursery() as nursery:
        link = MasterClient(world, addresses, identity, nursery, settings.retry_seconds)
        pool = BulkPool(world, identity)
        links = Links(world, identity)
        core = ClientCore(world, settings, link, pool, links)
        small.start(core, nursery)
        appends = Appends(core, nursery)
        try:
            await link.connect_now()
            nursery.start_soon(core.upkeep)
            nursery.start_soon(core.patience.run)
            await nursery.start(links.run)
            yield Client(core, appends)
        finally:
            small.close(core)
            with trio.move_on_after(1.0, shield=True):
                await small.closed(core)
                await core.release_spare(everything=True)
            nursery.cancel_scope.cancel()
            pool.close()
            link.close()


@asynccontextmanager
async def _flat_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that raises a single failure without a group: its tasks never fail, so
    an exception is the caller's own."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__


def find_masters(
    master: str | Sequence[str] | None, state: str | os.PathLike[str] | None
) -> list[str]:
    """The masters' addresses: as given, else ``GFS_MASTER``, else from the state directory."""
    if master is None and state is None:
        master = os.environ.get("GFS_MASTER") or None
    if isinstance(master, str):
        master = [part.strip() for part in master.split(",")]
    if master:
        return list(master)
    path = _state_directory(state) / READY_NAME
    try:
        ready = msgspec.json.decode(path.read_bytes())
        return [str(each["address"]) for each in ready.get("masters", [ready["master"]])]
    except FileNotFoundError:
        raise SettingsError(
            f"no cluster runs in {path.parent}: start one with `gfs up`, or say where it "
            "is with --master or --state"
        ) from None
    except (OSError, msgspec.DecodeError, AttributeError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None


def find_credentials(
    key: bytes | str | os.PathLike[str] | None,
    tls: str | os.PathLike[str] | None,
    state: str | os.PathLike[str] | None,
) -> Credentials:
    """The cluster key and TLS, found as :func:`connect` says."""
    secure = Path(tls) if tls is not None else None
    if isinstance(key, bytes):
        return load_credentials(key, secure, server=False)
    if key is None:
        key = (os.environ.get("GFS_KEY_FILE") or None) if state is None else None
        key = key if key is not None else _state_directory(state) / KEY_NAME
    secure = find_tls(secure, Path(state) if state is not None else None)
    return load_credentials(Path(key), secure, server=False)


def _raw(text: str) -> bytes:
    """A text that is compared with paths, and need not be one."""
    return text.encode("utf-8", "surrogatepass")


def _state_directory(state: str | os.PathLike[str] | None) -> Path:
    return Path(state) if state is not None else config.default_state_directory()


class Client:
    """A connected client. Get one with :func:`connect`. Safe for many tasks.

    Every call may raise MasterUnavailable, and, if it reads or writes bytes,
    ChunkUnavailable; other errors are named with each call. A cancelled call may or may
    not have taken effect; a file is never partly visible.
    """

    def __init__(self, core: ClientCore, appends: Appends) -> None:
        self._core = core
        self._appends = appends

    # --- bytes ----------------------------------------------------------------------

    @one_request
    async def put(
        self,
        source: transfer.Source,
        path: str,
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
        progress: transfer.Progress | None = None,
        attributes: Mapping[str, str] | None = None,
        expect: int | None = None,
        modified_ns: int = 0,
    ) -> Entry:
        """Store ``source`` as ``path``; acknowledged when it returns. Files up to 64 KiB that are
        stored by several tasks at the same time share messages, and each is acknowledged by
        itself.

        Args:
            source: a local path, bytes, a binary file object, or an async
                iterator of bytes.
            overwrite: replace a file of that name, atomically, at the end.
            replication: the goal for this file, instead of the cluster's.
            parents: make missing directories. A path: only below that directory, which
                must exist when the file is published (NotFound).
            progress: called with each number of bytes taken from the source
                (negative when an upload starts over).
            attributes: up to 16 short texts stored with the file, names and values at
                most 1,024 bytes together; every Entry of the file has them.
            expect: the condition on the path, instead of ``overwrite``: 0, nothing is
                there (else AlreadyExists); or the ``inode`` of the file to replace
                (FileChanged if another one is there, or none).
            modified_ns: the file's time of change, in nanoseconds since 1970; 0: the present
                time.

        Raises AlreadyExists, IsADirectory, NotADirectory, InvalidName,
        InvalidArgument, FileChanged, NotFound, NotEnoughChunkservers, DiskFull.
        """
        return await transfer.put(
            self._core,
            source,
            path,
            options=PublishOptions(overwrite, parents, attributes, expect, modified_ns),
            replication=goal_of(replication),
            progress=progress,
        )

    @overload
    async def get(
        self, path: str, target: None = None, *, progress: transfer.Progress | None = None
    ) -> bytes: ...

    @overload
    async def get(
        self,
        path: str,
        target: transfer.Target,
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
        partial: Literal[False] = False,
    ) -> Entry: ...

    @overload
    async def get(
        self,
        path: str,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
        partial: Literal[True],
    ) -> Rescued: ...

    @one_request
    async def get(
        self,
        path: str,
        target: transfer.Target | None = None,
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
        partial: bool = False,
    ) -> bytes | Entry | Rescued:
        """Fetch ``path``, every byte verified: as bytes, or to ``target``.

        A local path gets the whole file or nothing; a file object gets the bytes
        as they arrive. Raises NotFound, IsADirectory, AlreadyExists (local), and
        FileChanged if the file is replaced again and again meanwhile.

        ``partial`` writes a damaged or partly lost file to a local path, with all verified
        bytes that any replica still has; the result lists the holes. Servers that do
        not answer are waited for as in any read; after the first wait without an
        answer, the rest of the file is read without waiting.
        """
        if partial:
            if not isinstance(target, (str, os.PathLike)):
                raise InvalidArgument("partial needs a local path as its target")
            return await rescue(
                self._core,
                path,
                os.fspath(target),
                overwrite=overwrite,
                progress=progress or (lambda _: None),
            )
        if target is None:
            return await transfer.get_bytes(self._core, path, progress)
        if isinstance(target, (str, os.PathLike)):
            return await transfer.get_to_path(
                self._core, path, os.fspath(target), overwrite=overwrite, progress=progress
            )
        return await transfer.get_to_file(self._core, path, target, progress)

    @one_request
    async def put_many(
        self,
        items: Iterable[tuple[str, Buffer]],
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
    ) -> list[Entry | GfsError]:
        """As :meth:`put` of each (path, bytes), files up to 64 KiB together: a few round trips
        for each 256 files, whatever else is stored at the same time. Returns entries in the
        order of ``items``, and in the place of a file that was not stored the error that
        ``put`` raises. Each file is acknowledged by itself, as a whole; two items of one path
        race.
        """
        options = PublishOptions(overwrite, parents, None, None)
        return await many.put_many(self._core, items, options, goal_of(replication))

    @one_request
    async def get_many(self, paths: Iterable[str]) -> list[bytes | GfsError]:
        """As :meth:`get` of each path, small files together: a round trip for each server and
        each 256 files, whatever else is read at the same time. Returns the bytes, every one
        verified, in the order of ``paths``, and in the place of a file that could not be read
        the error that ``get`` raises. All of it is in memory at once. Large files, and those
        with appended records, are read one by one, ``parallel_files`` at a time.

        The files wait together for chunkservers that do not answer: when one has had no good
        replica for ``retry_seconds``, those that are left ask each of theirs once.
        """
        return await many.get_many(self._core, paths)

    @one_request
    async def stat_many(self, paths: Iterable[str]) -> list[Entry | GfsError]:
        """As :meth:`stat` of each path, 256 in one round trip; for a file with appended records
        its chunkservers are asked as well. Returns the entries in the order of ``paths``, and in
        the place of one that failed the error that ``stat`` raises.
        """
        return await many.stat_many(self._core, paths, self.stat)

    @one_request
    async def delete_many(
        self,
        paths: Iterable[str],
        *,
        recursive: bool = False,
        expect: Iterable[int | None] | None = None,
        now: bool = False,
    ) -> list[GfsError | None]:
        """As :meth:`delete` of each path, 256 in one round trip; ``expect`` has an inode, or None,
        for each. Returns None for each that was deleted, in the order of ``paths``, and in the
        place of one that was not the error that ``delete`` raises.
        """
        names = list(paths)
        inodes = [None] * len(names) if expect is None else list(expect)
        if len(inodes) != len(names):
            raise InvalidArgument(f"{len(names)} paths, but {len(inodes)} inodes to expect")
        for inode in inodes:
            check_expect(inode)
        return await many.delete_many(self._core, zip(names, inodes, strict=True), recursive, now)

    @one_request
    async def get_ranges(
        self, ranges: Iterable[tuple[str, int | None, int | None]]
    ) -> list[bytes | GfsError]:
        """Of each ``(path, start, end)`` the bytes ``[start:end]``, as a slice has them: None is
        the beginning or the end, negative numbers count from the end. Small files go together,
        as in :meth:`get_many`; each other one is opened once for every 256 ranges. Returns the
        bytes, every one verified, in the order of ``ranges``, and in the place of a range that
        could not be read the error that reading an open file raises. All of it is in memory
        at once, and the files wait together, as there.
        """
        return await many.get_ranges(self._core, ranges)

    def stream(
        self, path: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """Verified pieces of up to 1 MiB; each view is valid until the next step.

        Leave it early only inside ``contextlib.aclosing``.
        """
        return transfer.stream(self._core, path, offset, length)

    @one_request
    async def open(self, path: str, mode: str = "r", *, replication: int | None = None) -> File:
        """A file object: ``r``, ``w`` (replaces on close), ``x``, ``r+`` (in place).

        Use it with ``async with await fs.open(…)``.
        """
        plain = normal_mode(mode)
        if plain in ("r", "r+"):
            return ExistingFile(self._core, await FileMap.open(self._core, path), plain)
        # What publishing would raise at the end is raised early.
        with suppress(NotFound):
            entry = await self.stat(path)
            if entry.kind == "directory":
                raise IsADirectory(f"{path}: is a directory")
            if plain == "x":
                raise AlreadyExists(f"{path}: exists")
        return self.create(path, overwrite=plain == "w", replication=replication)

    def create(
        self,
        path: str,
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
        attributes: Mapping[str, str] | None = None,
        expect: int | None = None,
    ) -> NewFile:
        """A new file to be written, published when it is closed; the arguments are
        those of :meth:`put`. Use it with ``async with``.

        Sends no request: the path is checked only on close. Raises InvalidName and
        InvalidArgument at once.
        """
        check_path(path)
        options = PublishOptions(overwrite, parents, attributes, expect)
        return NewFile(self._core, path, goal_of(replication), options)

    # --- records --------------------------------------------------------------------

    @one_request
    async def append(self, path: str, record: Buffer, *, create: bool = True) -> int:
        """Append ``record`` to a file, which is created if it does not exist; returns its
        offset, for :meth:`records`. Any number of clients may append to one file at the
        same time: each record is stored in one piece, at an offset that the primary chooses.

        On return it is on all replicas, and every later open of the file reads it. *At
        least once*: an append that is retried after a failure may be stored twice. An
        append that raises may have been stored, or be stored later; no part of it is
        ever returned as a record.

        Args:
            record: up to a quarter of a chunk (16 MiB), 0 bytes included.
            create: make a missing file, and missing directories; else NotFound.

        A file that is replaced or deleted meanwhile may still take records for a while
        (``location_seconds``).

        Raises InvalidArgument (too long), IsADirectory, InvalidName, DiskFull,
        ChunkUnavailable when no replicas could be had within ``retry_seconds``.
        Cancelled, it may have been stored or not.
        """
        return (await self._appends.append(path, [record], create))[0]

    @one_request
    async def append_many(
        self, path: str, records: Iterable[Buffer], *, create: bool = True
    ) -> list[int]:
        """Append several records, as :meth:`append`, and return the offset of each. They
        keep their order, but others' records may be in between. If it raises, some may have
        been stored.
        """
        return await self._appends.append(path, records, create)

    def records(
        self, path: str, *, start: int = 0, duplicates: bool = False
    ) -> AsyncGenerator[Record, None]:
        """The records of a file in file order, up to its end at the time of the call. Bytes
        that are not a record are skipped.

        Args:
            start: the offset of a record, from :meth:`append` or from a record; reading
                starts there. Add one to start after that record.
            duplicates: also yield repeated records (with the same ``client`` and
                ``sequence``).

        Leave it early only inside ``contextlib.aclosing``. Raises NotFound,
        IsADirectory, ChunkUnavailable.
        """
        return read_records(self._core, path, start, duplicates)

    # --- namespace ------------------------------------------------------------------

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
        async with _flat_nursery() as nursery, aclosing(self.walk(path)) as entries:
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

    # --- the cluster ----------------------------------------------------------------

    async def status(self) -> StatusReply:
        """The totals, all servers with all their disks, and the masters."""
        reply = page = await self._ask(Status(id=0), StatusReply)
        while page.more and page.servers:
            last = page.servers[-1]
            page = await self._ask(Status(id=0, after=[last.rack, last.id]), StatusReply)
            reply.servers += page.servers
        reply.more = False
        return reply

    async def repair(
        self, *, paused: bool | None = None, settings: Mapping[str, int] | None = None
    ) -> RepairReply:
        """Pause or resume repair and set its limits, if asked to, and return its progress.
        The limits are ``clones_per_server``, ``clones_total``, ``moves_total`` (copy orders)
        or ``bytes_per_second`` (of each chunkserver that serves clients); -1 restores
        the value that the process was started with. Durable when this returns.

        Raises InvalidArgument.
        """
        request = Repair(id=0, paused=paused, settings=dict(settings or {}))
        return await self._ask(request, RepairReply)

    async def maintain(self, server: str, seconds: int) -> None:
        """Start maintenance of a chunkserver, by id or address, for this long, at most a
        week: while it is away it is not declared dead and its chunks are not re-replicated.
        0 ends the maintenance. Durable when this returns.

        Raises NotFound, InvalidArgument (it is dead already).
        """
        await self._ask(Maintenance(id=0, server=server, seconds=seconds), Done)

    async def forget_server(self, server: str) -> None:
        """Remove a chunkserver, by id or address, that is dead, or drained and stopped, from
        the master's list. Durable when this returns.

        Raises NotFound, InvalidArgument (it lives), Busy (try again in a minute).
        """
        await self._ask(ForgetServer(id=0, server=server), Done)

    async def drain(
        self, server: str, *, cancel: bool = False, fewer_racks: bool = False
    ) -> ServerStatus:
        """Drain a chunkserver, by id or address, so that it can be stopped.

        It gets no new replicas, and its replicas are copied elsewhere before they are
        deleted. Returns as soon as the drain is stored: ``drain`` of each server in
        :meth:`status` is its progress; when it is ``"drained"`` the server can be stopped.
        ``cancel`` cancels the drain.

        Raises NotFound, and DrainRefused if it cannot be done: the other servers are too
        few for the goals or have too little space; replicas would be in fewer racks
        (``fewer_racks`` accepts that); or the server does not answer.
        """
        request = Drain(id=0, server=server, cancel=cancel, fewer_racks=fewer_racks)
        return (await self._ask(request, DrainReply)).server

    async def order_disk(self, server: str, path: str, action: str) -> Sequence[Disk]:
        """Change the disk at ``path`` of a chunkserver, by id or address; returns the state
        of all its disks.

        ``action``: ``"add"`` a directory to the server; ``"drain"``: move its replicas to
        the server's other disks (``"undrain"``: cancel that); ``"remove"`` one that is
        empty, or has failed; ``"retry"`` one that has failed. ``"add-unmounted"`` also adds a
        directory where the file system of a former disk is not mounted, and
        ``"remove-damaged"`` also removes a drained disk on which only damaged replicas are left,
        which are lost if there is no good one. The change is stored on the server's disks when
        this returns.

        Raises NotFound, AlreadyExists, InvalidArgument, DiskFailed (it cannot be used),
        ReplicaUnavailable (the server is not connected), DeadlineExceeded.
        """
        request = DiskOrder(id=0, server=server, path=path, action=action)
        return (await self._core.master.once(request, DiskOrderReply, DISK_ORDER_SECONDS)).disks

    async def promote(self, *, force: bool = False) -> PromoteReply:
        """Make the shadow master that this client is connected to the master.

        Raises StaleVersion if acknowledged operations may be lost (``force`` accepts
        that) or the old master cannot hand over, InvalidArgument if this is not a shadow
        master.
        """
        request = Promote(id=0, force=force)
        return await self._core.master.once(request, PromoteReply, PROMOTE_SECONDS)

    async def election(self) -> ElectionReply:
        """Which master has the hold, if an engine elects the masters of this cluster."""
        nobody = ElectionReply(id=0)  # elects masters of an older release
        return await self._core.master.call(lambda: Election(id=0), ElectionReply, unknown=nobody)

    async def forget_shadow(self, address: str) -> None:
        """Declare the shadow master at ``address`` lost for good: it does not count any more
        for ``replicas_before_ack``. It must not be promoted afterwards with its data.

        Raises NotFound if none is known there, Busy if it follows.
        """
        await self._ask(ForgetShadow(id=0, address=address), Done)

    async def accept_restore(self) -> None:
        """Accept that files made after a restored backup are lost: from now on chunks that no
        file has are garbage, as always. Durable when this returns; without effect if no
        backup was restored."""
        await self._ask(AcceptRestore(id=0), Done)

    @one_request
    async def locate(self, path: str) -> LocateReport:
        """The file and the master's state of its chunks."""
        entry = await self.stat(path)
        if entry.kind == "directory":
            raise IsADirectory(f"{path}: is a directory")
        chunks = []
        async for page in fsck.chunk_pages(self._core, path):
            for c in page.chunks:
                replicas = [page.servers[n] for n in c.servers]
                chunks.append(
                    ChunkReport(
                        c.index,
                        c.handle,
                        c.version,
                        c.length,
                        c.goal,
                        replicas,
                        c.lease_ms,
                        c.primary,
                    )
                )
        return LocateReport(entry, chunks)

    @one_request
    async def fsck(
        self,
        path: str = "/",
        *,
        verify: bool = True,
        server: str = "",
        progress: Callable[[int], object] = lambda chunks: None,
    ) -> FsckReport:
        """Check all replicas of all files at and below ``path``; see FsckReport.

        Args:
            verify: have every server read and verify its replicas; else compare metadata.
            server: check only the replicas of the chunkserver with this id; chunks below
                their goal, lost chunks and orphans are not reported then.
            progress: called with each number of chunks that were checked.
        """
        return await fsck.fsck(fsck.Check(self._core, verify, server, progress), path)

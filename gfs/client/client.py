"""The client: one object for everything a program does with the cluster."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, overload

import msgspec
import trio

from gfs import config
from gfs.blocks import Buffer
from gfs.client import fsck, transfer
from gfs.client.append import Appends, Record, read_records
from gfs.client.core import ClientCore, one_request
from gfs.client.files import ExistingFile, File, NewFile, normal_mode
from gfs.client.fsck import ChunkReport, FsckReport
from gfs.client.master import MasterClient
from gfs.client.read import FileMap, check_path
from gfs.client.rescue import Rescued, rescue
from gfs.client.upload import Terms, check_expect
from gfs.config import ClientSettings
from gfs.diagnostics import asked_for, request_of
from gfs.errors import (
    AlreadyExists,
    ChunkUnavailable,
    InvalidArgument,
    IsADirectory,
    NotFound,
    SettingsError,
)
from gfs.io import World, real_world
from gfs.protocol.credentials import Credentials, load_credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import (
    Delete,
    Disk,
    DiskOrder,
    DiskOrderReply,
    DiskUsage,
    DiskUsageReply,
    Done,
    Drain,
    DrainReply,
    EmptyTrash,
    EmptyTrashReply,
    Entry,
    ForgetServer,
    ForgetShadow,
    List,
    ListReply,
    ListTrash,
    ListTrashReply,
    Maintenance,
    MakeDirectory,
    Message,
    Promote,
    PromoteReply,
    Rename,
    Repair,
    RepairReply,
    ServerStatus,
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
#: A promotion waits for the master before it and for other shadows, each for a while.
PROMOTE_SECONDS = 60.0
#: Reading a disk of a million replicas takes minutes.
DISK_ORDER_SECONDS = 600.0
_NAMES = ("path", "source", "target")


@dataclass(frozen=True)
class LocateReport:
    """A file and, chunk by chunk, what the master knows of it."""

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
        master: ``HOST:PORT`` of the master, or several (a list, or with commas):
            the master and its shadows, of which one may be promoted. Default:
            ``GFS_MASTER``, else what ``gfs up`` wrote in the state directory. If it
            is one shadow master's, look-ups are all that can be done.
        state: the state directory. Default: ``GFS_STATE``, else the one that
            ``gfs up`` uses.
        key: the cluster key, or the file it is in, which is read again when it
            changes. Default: the file named by ``GFS_KEY_FILE``, else the state
            directory's.
        tls: a directory with the ``ca.pem`` of a cluster whose connections are
            encrypted (see :mod:`gfs.io.tls`). Default: ``tls`` in the state directory
            if it is there, else ``GFS_TLS``; and no TLS if the key is given as bytes.
        settings: see :class:`gfs.config.ClientSettings`.
        world: the seam; only tests give another than this machine.

    Raises SettingsError when the cluster cannot be found, MasterUnavailable when
    no master answers within ``settings.retry_seconds``, WrongClusterKey, TlsRefused.

    When the block ends, transfers still running are cancelled; nothing of an
    upload that was not acknowledged becomes visible.
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
        core = ClientCore(world, settings, link, pool)
        appends = Appends(core, nursery)
        try:
            await link.connect_now()
            nursery.start_soon(core.upkeep)
            nursery.start_soon(core.patience.run)
            yield Client(core, appends)
        finally:
            with trio.move_on_after(1.0, shield=True):
                await core.release_spare(everything=True)
            nursery.cancel_scope.cancel()
            pool.close()
            link.close()


@asynccontextmanager
async def _flat_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose one failure is raised as itself: the tasks in it never fail
    by themselves, so what comes out is the caller's own exception."""
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
    """The masters' addresses: as given, else ``GFS_MASTER``, else the state directory's."""
    if master is None and state is None:
        master = os.environ.get("GFS_MASTER") or None
    if isinstance(master, str):
        master = [part.strip() for part in master.split(",")]
    if master:
        return list(master)
    path = _state_directory(state) / READY_NAME
    try:
        ready = msgspec.json.decode(path.read_bytes())
        return [str(ready["master"]["address"])]
    except FileNotFoundError:
        raise SettingsError(
            f"no cluster runs in {path.parent}: start one with `gfs up`, or say where it "
            "is with --master or --state"
        ) from None
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
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


def _state_directory(state: str | os.PathLike[str] | None) -> Path:
    return Path(state) if state is not None else config.default_state_directory()


class Client:
    """A connected client. Get one with :func:`connect`. Safe for many tasks.

    Every call may raise MasterUnavailable, and ChunkUnavailable where it reads or
    writes bytes; the namespace's own errors are named with each call. A call
    that is cancelled may or may not have happened; a file is never half there.
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
    ) -> Entry:
        """Store ``source`` as ``path``; acknowledged when it returns.

        Args:
            source: a local path, bytes, a binary file object, or an async
                iterator of bytes.
            overwrite: replace a file of that name, atomically, at the end.
            replication: the goal for this file, instead of the cluster's.
            parents: make missing directories. A path: only below that one, which
                must be there when the file is published (NotFound).
            progress: called with each number of bytes taken from the source
                (negative when an upload starts over).
            attributes: up to 16 short texts that are kept with the file, names and
                values at most 1,024 bytes together; they are in every Entry of it.
            expect: what must be at the path, whatever ``overwrite`` says: 0, nothing
                (AlreadyExists); or the ``inode`` of the file that is to be replaced
                (FileChanged if another is there by now, or none).

        Raises AlreadyExists, IsADirectory, NotADirectory, InvalidName,
        InvalidArgument, FileChanged, NotFound, NotEnoughChunkservers, DiskFull.
        """
        return await transfer.put(
            self._core,
            source,
            path,
            terms=Terms(overwrite, parents, attributes, expect),
            replication=replication or 0,
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
        as they come. Raises NotFound, IsADirectory, AlreadyExists (local), and
        FileChanged if the file keeps being replaced meanwhile.

        ``partial``: of a file that is damaged or partly lost, to a local path, what any
        replica still has, verified as ever; the answer tells where nothing could be had,
        and holes were left. Servers that do not answer are waited for as long as any read
        does; once that was in vain, no other chunk of the file is waited for.
        """
        if partial:
            if not isinstance(target, (str, os.PathLike)):
                raise InvalidArgument("what is left of a file goes to a local path")
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
        await self._check_target(path, plain)
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

        Asks nobody: what is at the path matters, and is told, only on close. Raises
        InvalidName and InvalidArgument at once.
        """
        check_path(path)
        terms = Terms(overwrite, parents, attributes, expect)
        return NewFile(self._core, path, replication or 0, terms)

    async def _check_target(self, path: str, mode: str) -> None:
        """Say early what publishing would refuse in the end."""
        try:
            entry = await self.stat(path)
        except NotFound:
            return
        if entry.kind == "directory":
            raise IsADirectory(f"{path}: is a directory")
        if mode == "x":
            raise AlreadyExists(f"{path}: exists")

    # --- records --------------------------------------------------------------------

    @one_request
    async def append(self, path: str, record: Buffer, *, create: bool = True) -> int:
        """Append ``record`` to a file, which is made if there is none; returns its
        offset, for :meth:`records`. Any number of clients may append to one file at the
        same time: each record is there whole, and where the primary chose.

        On return it is on all replicas, and everybody who opens the file from now on
        reads it. *At least once*: when an append is tried again after a failure, it may be
        there twice. One that raises may be there, or come to be there; a part of it never
        passes for a record.

        Args:
            record: up to a quarter of a chunk (16 MiB), 0 bytes included.
            create: make a missing file, and missing directories; else NotFound.

        A file that is replaced or deleted meanwhile may still take records for a while
        (``location_seconds``).

        Raises InvalidArgument (too long), IsADirectory, InvalidName, DiskFull,
        ChunkUnavailable when no replicas could be had within ``retry_seconds``.
        Cancelled, it may be there or not.
        """
        return (await self._appends.append(path, [record], create))[0]

    @one_request
    async def append_many(
        self, path: str, records: Iterable[Buffer], *, create: bool = True
    ) -> list[int]:
        """As :meth:`append`, of several records: in this order, though those of others
        may come in between; the offset of each. When it raises, some may be there.
        """
        return await self._appends.append(path, records, create)

    def records(
        self, path: str, *, start: int = 0, duplicates: bool = False
    ) -> AsyncGenerator[Record, None]:
        """The records of a file, in the order they are in it, up to where it ended when
        this began. What is no record is passed over.

        Args:
            start: the offset of a record, as :meth:`append` or a record told it; all
                before it is not read. Plus one, to go on behind a record.
            duplicates: also give what was appended twice (it has the same ``client``
                and ``sequence``) for the second time.

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
        """Of a file that records are appended to, the length is asked for at its
        replicas; a listing tells one that is a heartbeat or two behind.

        Raises NotFound, NotADirectory, InvalidName.
        """
        question = Stat(id=0, path=path)
        entry = (await self._ask(question, StatReply)).entry
        if entry.appended:
            # Still the same request: only here, since most are done with one message.
            with asked_for(request_of(question.id)):
                try:
                    return (await FileMap.open(self._core, path, patient=False)).entry
                except ChunkUnavailable:
                    return entry  # nobody is there to be asked
        return entry

    async def exists(self, path: str) -> bool:
        try:
            await self._ask(Stat(id=0, path=path), StatReply)
        except (NotFound, NotADirectoryError):
            return False
        return True

    def scan(self, path: str = "/", after: str = "") -> AsyncGenerator[Entry, None]:
        """A directory's entries in order of the bytes of their names, in constant memory.

        ``after``: only those whose names are above it; no other is looked at. It need
        not be the name of anything.

        Raises NotFound, NotADirectory, InvalidName.
        """
        return self._scan(path, after)

    async def _scan(
        self, path: str, after: str = "", request: int = 0
    ) -> AsyncGenerator[Entry, None]:
        """``request`` is what it is a part of, if not a request of its own."""
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

    @one_request
    async def list(self, path: str = "/") -> list[Entry]:
        return [entry async for entry in self.scan(path)]

    async def walk(self, path: str = "/") -> AsyncGenerator[Entry, None]:
        """Everything below ``path``, directories before what is in them."""
        request = self._core.present_request()
        pending = [path]
        while pending:
            found: list[str] = []
            async for entry in self._scan(pending.pop(), request=request):
                yield entry
                if entry.kind == "directory":
                    found.append(entry.path)
            pending.extend(reversed(found))

    async def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Entry:
        """Raises AlreadyExists, NotFound (a parent), NotADirectory."""
        request = MakeDirectory(
            id=0,
            client=self._core.master.id,
            sequence=self._core.master.next_sequence(),
            path=path,
            parents=parents,
            exist_ok=exist_ok,
        )
        return (await self._ask(request, StatReply)).entry

    async def rename(
        self, source: str, target: str, *, replace: bool = False, parents: bool = False
    ) -> None:
        """Atomic, for files and directories. ``replace`` allows a file over a file.

        Raises NotFound, AlreadyExists, NotADirectory, InvalidArgument (a
        directory into itself).
        """
        request = Rename(
            id=0,
            client=self._core.master.id,
            sequence=self._core.master.next_sequence(),
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
        """For a while it can be undeleted (the master's ``trash_seconds``), unless
        ``now``: then its space is free within seconds. Readers who have a file open
        read on until it is gone for good.

        ``expect``: the inode that must be at the path.

        Raises NotFound, DirectoryNotEmpty, FileChanged (another inode is there).
        """
        check_expect(expect)
        request = Delete(
            id=0,
            client=self._core.master.id,
            sequence=self._core.master.next_sequence(),
            path=path,
            recursive=recursive,
            expect=-1 if expect is None else expect,
            now=now,
        )
        await self._ask(request, Done)

    @one_request
    async def set_replication(self, path: str, goal: int, *, recursive: bool = False) -> int:
        """Change a file's goal, 0: to the cluster's default; with ``recursive`` that
        of all files at and below ``path``. Returns how many files there were. Copies
        are made, or given up, in the minutes that follow.

        Raises NotFound, IsADirectory, InvalidArgument.
        """
        entry = await self.stat(path)
        if entry.kind != "directory" or not recursive:
            await self._set_replication(path, goal)
            return 1
        count = 0
        slots = trio.CapacityLimiter(self._core.settings.parallel_files)
        async with _flat_nursery() as nursery, aclosing(self.walk(path)) as entries:
            async for below in entries:
                if below.kind == "file":
                    count += 1
                    borrower = object()
                    await slots.acquire_on_behalf_of(borrower)
                    nursery.start_soon(self._set_one, below.path, goal, slots, borrower)
        return count

    async def _set_one(
        self, path: str, goal: int, slots: trio.CapacityLimiter, borrower: object
    ) -> None:
        try:
            await self._set_replication(path, goal)
        except NotFound:
            pass  # it was deleted meanwhile
        finally:
            slots.release_on_behalf_of(borrower)

    async def _set_replication(self, path: str, goal: int) -> None:
        request = SetReplication(
            id=0,
            client=self._core.master.id,
            sequence=self._core.master.next_sequence(),
            path=path,
            replication=goal,
        )
        await self._ask(request, StatReply)

    @one_request
    async def snapshot(
        self,
        source: str,
        target: str,
        *,
        parents: bool = False,
        progress: Callable[[SnapshotReply], object] | None = None,
    ) -> SnapshotReply:
        """Make ``target`` a copy of ``source``, a file or a directory with all that is in
        it, as that is at one instant during the call. It appears whole or not at all.

        No data is copied: both have the same chunks until one of them is written.
        Changes of what is at or below ``source`` wait meanwhile (seconds for 100,000
        files). ``progress`` is called with what was copied so far.

        Raises NotFound, AlreadyExists, NotADirectory, InvalidArgument (``target`` in
        ``source``).
        """
        request = Snapshot(
            id=0,
            client=self._core.master.id,
            sequence=self._core.master.next_sequence(),
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
        """Bring back what was deleted under ``path``, a directory with all that was in
        it: the last one, or the one with ``inode`` (see :meth:`trash`); under its old
        name, or as ``target``. Missing parents are made.

        Raises NotFound (not in the trash), AlreadyExists, NotADirectory.
        """
        request = Undelete(
            id=0,
            client=self._core.master.id,
            sequence=self._core.master.next_sequence(),
            path=path,
            target=target,
            inode=inode,
        )
        return (await self._ask(request, StatReply)).entry

    async def trash(self, path: str = "/") -> AsyncGenerator[TrashEntry, None]:
        """What was deleted at and below ``path`` and can be undeleted: by path, then
        by when it was deleted; in constant memory."""
        asked = asked_for(self._core.present_request())
        cursor = b""
        while True:
            question = ListTrash(id=0, path=path, cursor=cursor, limit=LIST_PAGE)
            with asked:
                page = await self._ask(question, ListTrashReply)
            for entry in page.entries:
                yield entry
            cursor = page.cursor
            if not cursor:
                return

    @one_request
    async def empty_trash(self, path: str, *, recursive: bool = False, inode: int = 0) -> int:
        """Give up at once what was deleted under ``path``, and below it if
        ``recursive``; only what has ``inode``, if one is given. Returns how many
        deletions cannot be undone any more."""
        count = 0
        while True:
            request = EmptyTrash(
                id=0,
                client=self._core.master.id,
                sequence=self._core.master.next_sequence(),
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
        """How far repair is. Before that, if given, pause it or go on, and set
        ``clones_per_server``, ``clones_total``, ``moves_total`` (orders to copy) or
        ``bytes_per_second`` (of each chunkserver that serves clients); -1 is as the process
        was started. That is durable when this returns.

        Raises InvalidArgument.
        """
        request = Repair(id=0, paused=paused, settings=dict(settings or {}))
        return await self._ask(request, RepairReply)

    async def maintain(self, server: str, seconds: int) -> None:
        """A chunkserver, by id or address, may be away for so long, at most a week, without
        being dead: nothing is copied for want of its replicas. 0 ends that. Durable when
        this returns.

        Raises NotFound, InvalidArgument (it is dead already).
        """
        await self._ask(Maintenance(id=0, server=server, seconds=seconds), Done)

    async def forget_server(self, server: str) -> None:
        """A chunkserver, by id or address, that is dead, or drained and stopped, never
        comes back. Durable when this returns.

        Raises NotFound, InvalidArgument (it lives), Busy (try again in a minute).
        """
        await self._ask(ForgetServer(id=0, server=server), Done)

    async def drain(
        self, server: str, *, cancel: bool = False, fewer_racks: bool = False
    ) -> ServerStatus:
        """Empty a chunkserver, named by its id or address, so that it can be stopped.

        It gets no new replicas, and those it has are copied elsewhere before they are
        deleted. Returns at once, when that is remembered: :meth:`status` tells of each
        server in ``drain`` how far it is; when that is ``"drained"`` it can be stopped.
        ``cancel`` makes it a server as all others again.

        Raises NotFound, and DrainRefused if it cannot be done: the others are too few
        for the goals or have too little space; replicas would be in fewer racks
        (``fewer_racks`` accepts that); or the server does not answer.
        """
        request = Drain(id=0, server=server, cancel=cancel, fewer_racks=fewer_racks)
        return (await self._ask(request, DrainReply)).server

    async def order_disk(self, server: str, path: str, action: str) -> Sequence[Disk]:
        """Have a chunkserver, named by its id or address, do something with the disk at
        ``path``; returns all its disks as they are then.

        ``action``: ``"add"`` a directory to the server; ``"drain"`` it: its replicas move
        to the server's other disks (``"undrain"``: do not); ``"remove"`` one that is empty,
        or has failed; ``"retry"`` one that has failed. The server remembers it on its
        disks when this returns.

        Raises NotFound, AlreadyExists, InvalidArgument, DiskFailed (it cannot be used),
        ReplicaUnavailable (the server is not connected), DeadlineExceeded.
        """
        request = DiskOrder(id=0, server=server, path=path, action=action)
        return (await self._core.master.once(request, DiskOrderReply, DISK_ORDER_SECONDS)).disks

    async def promote(self, *, force: bool = False) -> PromoteReply:
        """Make the shadow master that this client is connected to the master.

        Raises StaleVersion if what was acknowledged may be lost (``force`` does it all
        the same) or the master before it cannot hand over, InvalidArgument if this is
        no shadow master.
        """
        request = Promote(id=0, force=force)
        return await self._core.master.once(request, PromoteReply, PROMOTE_SECONDS)

    async def forget_shadow(self, address: str) -> None:
        """The shadow master at ``address`` is lost for good: it does not count any more
        for ``replicas_before_ack``. What it has must not be promoted afterwards.

        Raises NotFound if none is known there, Busy if it follows.
        """
        await self._ask(ForgetShadow(id=0, address=address), Done)

    @one_request
    async def locate(self, path: str) -> LocateReport:
        """The file and, chunk by chunk, what the master knows."""
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
            verify: have every replica read itself, all blocks; else compare what is known.
            server: check only the replicas of the chunkserver with this id. What is below
                its goal, lost or orphaned is not told then.
            progress: called with each number of chunks that are through.
        """
        return await fsck.fsck(fsck.Check(self._core, verify, server, progress), path)

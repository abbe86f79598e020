"""The client: one object for everything a program does with the cluster."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import msgspec
import trio

from gfs import config
from gfs.client import fsck, transfer
from gfs.client.core import ClientCore
from gfs.client.files import ExistingFile, File, NewFile, normal_mode
from gfs.client.fsck import ChunkReport, FsckReport
from gfs.client.master import MasterClient
from gfs.client.read import FileMap, check_path
from gfs.config import ClientSettings
from gfs.errors import AlreadyExists, IsADirectory, NotFound, SettingsError
from gfs.io import World, real_world
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import (
    Delete,
    DiskUsage,
    DiskUsageReply,
    Done,
    Entry,
    List,
    ListReply,
    MakeDirectory,
    Message,
    Rename,
    Stat,
    StatReply,
    Status,
    StatusReply,
)
from gfs.protocol.pool import BulkPool
from gfs.state import KEY_NAME, READY_NAME, read_key

ReplyT = TypeVar("ReplyT", bound=Message)

LIST_PAGE = 1000
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
    key: bytes | None = None,
    settings: ClientSettings | None = None,
    world: World | None = None,
) -> AsyncIterator[Client]:
    """Connect to a cluster.

    Args:
        master: ``HOST:PORT`` of the master, or several. Default: ``GFS_MASTER``,
            else what ``gfs up`` wrote in the state directory.
        state: the state directory. Default: ``GFS_STATE``, else the one that
            ``gfs up`` uses.
        key: the cluster key. Default: the file named by ``GFS_KEY_FILE``, else
            the state directory's.
        settings: see :class:`gfs.config.ClientSettings`.
        world: the seam; only tests give another than this machine.

    Raises SettingsError when the cluster cannot be found, MasterUnavailable when
    no master answers within ``settings.retry_seconds``, WrongClusterKey.

    When the block ends, transfers still running are cancelled; nothing of an
    upload that was not acknowledged becomes visible.
    """
    settings = settings or config.load(ClientSettings, "client")
    settings.check()
    world = world or real_world()
    addresses = find_masters(master, state)
    identity = Identity(role="client", peer=world.random_bytes(8).hex(), key=find_key(key, state))
    async with _flat_nursery() as nursery:
        link = MasterClient(world, addresses, identity, nursery, settings.retry_seconds)
        pool = BulkPool(world, identity)
        core = ClientCore(world, settings, link, pool)
        try:
            await link.connect_now()
            nursery.start_soon(core.upkeep)
            yield Client(core)
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


def find_key(key: bytes | None, state: str | os.PathLike[str] | None) -> bytes:
    if key is not None:
        return key
    named = os.environ.get("GFS_KEY_FILE") if state is None else None
    return read_key(Path(named) if named else _state_directory(state) / KEY_NAME)


def _state_directory(state: str | os.PathLike[str] | None) -> Path:
    return Path(state) if state is not None else config.default_state_directory()


class Client:
    """A connected client. Get one with :func:`connect`. Safe for many tasks.

    Every call may raise MasterUnavailable, and ChunkUnavailable where it reads or
    writes bytes; the namespace's own errors are named with each call. A call
    that is cancelled may or may not have happened; a file is never half there.
    """

    def __init__(self, core: ClientCore) -> None:
        self._core = core

    # --- bytes ----------------------------------------------------------------------

    async def put(
        self,
        source: transfer.Source,
        path: str,
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool = True,
        progress: transfer.Progress | None = None,
    ) -> Entry:
        """Store ``source`` as ``path``; acknowledged when it returns.

        Args:
            source: a local path, bytes, a binary file object, or an async
                iterator of bytes.
            overwrite: replace a file of that name, atomically, at the end.
            replication: the goal for this file, instead of the cluster's.
            parents: make missing directories.
            progress: called with each number of bytes taken from the source
                (negative when an upload starts over).

        Raises AlreadyExists, IsADirectory, NotADirectory, InvalidName,
        NotEnoughChunkservers, DiskFull.
        """
        return await transfer.put(
            self._core,
            source,
            path,
            overwrite=overwrite,
            replication=replication or 0,
            parents=parents,
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
    ) -> Entry: ...

    async def get(
        self,
        path: str,
        target: transfer.Target | None = None,
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
    ) -> bytes | Entry:
        """Fetch ``path``, every byte verified: as bytes, or to ``target``.

        A local path gets the whole file or nothing; a file object gets the bytes
        as they come. Raises NotFound, IsADirectory, AlreadyExists (local), and
        FileChanged if the file keeps being replaced meanwhile.
        """
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

    async def open(self, path: str, mode: str = "r", *, replication: int | None = None) -> File:
        """A file object: ``r``, ``w`` (replaces on close), ``x``, ``r+`` (in place).

        Use it with ``async with await fs.open(…)``.
        """
        plain = normal_mode(mode)
        if plain in ("r", "r+"):
            return ExistingFile(self._core, await FileMap.open(self._core, path), plain)
        await self._check_target(path, plain)
        return NewFile(self._core, path, plain, replication or 0)

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

    # --- namespace ------------------------------------------------------------------

    async def _ask(self, request: Message, kind: type[ReplyT]) -> ReplyT:
        for name in _NAMES:
            if name in request.__struct_fields__:
                check_path(getattr(request, name))
        return await self._core.master.ask(request, kind)

    async def stat(self, path: str) -> Entry:
        """Raises NotFound, NotADirectory, InvalidName."""
        return (await self._ask(Stat(id=0, path=path), StatReply)).entry

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except (NotFound, NotADirectoryError):
            return False
        return True

    async def scan(self, path: str = "/") -> AsyncGenerator[Entry, None]:
        """A directory's entries in order of their names, in constant memory."""
        after = ""
        while True:
            page = await self._ask(List(id=0, path=path, after=after, limit=LIST_PAGE), ListReply)
            for entry in page.entries:
                yield entry
            if not page.more or not page.entries:
                return
            after = page.entries[-1].path.rpartition("/")[2]

    async def list(self, path: str = "/") -> list[Entry]:
        return [entry async for entry in self.scan(path)]

    async def walk(self, path: str = "/") -> AsyncGenerator[Entry, None]:
        """Everything below ``path``, directories before what is in them."""
        pending = [path]
        while pending:
            found: list[str] = []
            async for entry in self.scan(pending.pop()):
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
        await self._ask(request, Done)
        return await self.stat(path)

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

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        """Raises NotFound, DirectoryNotEmpty."""
        request = Delete(
            id=0,
            client=self._core.master.id,
            sequence=self._core.master.next_sequence(),
            path=path,
            recursive=recursive,
        )
        await self._ask(request, Done)

    async def disk_usage(self, path: str = "/") -> DiskUsageReply:
        return await self._ask(DiskUsage(id=0, path=path), DiskUsageReply)

    # --- the cluster ----------------------------------------------------------------

    async def status(self) -> StatusReply:
        return await self._ask(Status(id=0), StatusReply)

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

    async def fsck(
        self,
        path: str = "/",
        *,
        verify: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> FsckReport:
        """Check all replicas of all files at and below ``path``; see FsckReport."""
        return await fsck.fsck(self._core, path, verify=verify, progress=progress)

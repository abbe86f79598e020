"""The client, blocking: for scripts, notebooks, pandas, threads.

The async client runs in a Trio loop in one background thread (anyio's blocking
portal); calls from any thread wait for it. After a fork the
child starts its own loop at its first call: the loop, the connections and the open
uploads stay the parent's, and file objects opened before the fork raise when used.

::

    from gfs.client import sync

    with sync.connect() as fs:
        fs.put("model.bin", "/models/1")
        with fs.open("/models/1") as file:
            head = file.read(100)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from gfs.blocks import Buffer
from gfs.client import client as client_module
from gfs.client import transfer
from gfs.client.append import Record
from gfs.client.client import Client, LocateReport
from gfs.client.files import File
from gfs.client.fsck import FsckReport
from gfs.client.rescue import Rescued
from gfs.config import ClientSettings
from gfs.protocol.messages import (
    DiskUsageReply,
    Entry,
    PromoteReply,
    RepairReply,
    ServerStatus,
    SnapshotReply,
    StatusReply,
    TrashEntry,
)

T = TypeVar("T")

#: Entries fetched from the loop's thread at once by iterating methods.
BATCH = 500
#: Records fetched at once, each of up to 16 MiB.
RECORDS_BATCH = 4


class _Running:
    """The loop of one process."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.pid = os.getpid()
        self._exit = ExitStack()
        self.portal: BlockingPortal = self._exit.enter_context(
            start_blocking_portal("trio", name="gfs client")
        )
        try:
            manager: AbstractContextManager[Client] = self.portal.wrap_async_context_manager(
                client_module.connect(**arguments)
            )
            self.client = self._exit.enter_context(manager)
        except BaseException:
            self._exit.close()
            raise

    def close(self) -> None:
        self._exit.close()


class SyncClient:
    """As :class:`gfs.client.Client`, method for method. Thread-safe."""

    def __init__(
        self,
        master: str | Sequence[str] | None = None,
        *,
        state: str | os.PathLike[str] | None = None,
        key: bytes | str | os.PathLike[str] | None = None,
        tls: str | os.PathLike[str] | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        self._arguments = {
            "master": master,
            "state": state,
            "key": key,
            "tls": tls,
            "settings": settings,
        }
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closed = False
        self._current()

    def _current(self) -> _Running:
        """The loop of this process, started if the process is new (a fork)."""
        running = self._running
        if running is not None and running.pid == os.getpid():
            return running
        if running is not None:
            # A fork: another thread may have held the lock when it happened.
            self._lock = threading.Lock()
        with self._lock:
            if self._closed:
                raise ValueError("the client is closed")
            if self._running is None or self._running.pid != os.getpid():
                self._running = _Running(self._arguments)
            return self._running

    def _method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        running = self._current()
        function = getattr(running.client, method)
        return running.portal.call(lambda: function(*args, **kwargs))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the background loop. Open uploads are discarded."""
        running, self._running = self._running, None
        self._closed = True
        if running is not None and running.pid == os.getpid():
            running.close()

    # --- as in Client -------------------------------------------------------------

    def put(
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
        entry: Entry = self._method(
            "put",
            source,
            path,
            overwrite=overwrite,
            replication=replication,
            parents=parents,
            progress=progress,
            attributes=attributes,
            expect=expect,
        )
        return entry

    def get(
        self,
        path: str,
        target: transfer.Target | None = None,
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
        partial: bool = False,
    ) -> bytes | Entry | Rescued:
        if partial:
            rescued: Rescued = self._method(
                "get", path, target, overwrite=overwrite, progress=progress, partial=True
            )
            return rescued
        if target is None:
            data: bytes = self._method("get", path, progress=progress)
            return data
        entry: Entry = self._method("get", path, target, overwrite=overwrite, progress=progress)
        return entry

    def open(self, path: str, mode: str = "r", *, replication: int | None = None) -> SyncFile:
        running = self._current()
        file = running.portal.call(lambda: running.client.open(path, mode, replication=replication))
        return SyncFile(running, file)

    def create(
        self,
        path: str,
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
        attributes: Mapping[str, str] | None = None,
        expect: int | None = None,
    ) -> SyncFile:
        file: File = self._method(
            "create",
            path,
            overwrite=overwrite,
            replication=replication,
            parents=parents,
            attributes=attributes,
            expect=expect,
        )
        return SyncFile(self._current(), file)

    def append(self, path: str, record: Buffer, *, create: bool = True) -> int:
        offset: int = self._method("append", path, record, create=create)
        return offset

    def append_many(
        self, path: str, records: Iterable[Buffer], *, create: bool = True
    ) -> list[int]:
        offsets: list[int] = self._method("append_many", path, list(records), create=create)
        return offsets

    def records(self, path: str, *, start: int = 0, duplicates: bool = False) -> Iterator[Record]:
        """As the async client's; a few records are fetched ahead."""
        return self._iterate(
            "records", path, start=start, duplicates=duplicates, batch=RECORDS_BATCH
        )

    def stat(self, path: str) -> Entry:
        entry: Entry = self._method("stat", path)
        return entry

    def exists(self, path: str) -> bool:
        return bool(self._method("exists", path))

    def list(self, path: str = "/") -> list[Entry]:
        entries: list[Entry] = self._method("list", path)
        return entries

    def scan(self, path: str = "/", after: str = "") -> Iterator[Entry]:
        return self._iterate("scan", path, after)

    def walk(self, path: str = "/") -> Iterator[Entry]:
        return self._iterate("walk", path)

    def _iterate(
        self, method: str, *arguments: str, batch: int = BATCH, **options: Any
    ) -> Iterator[Any]:
        running = self._current()
        source = getattr(running.client, method)(*arguments, **options)

        async def some() -> list[Any]:
            entries: list[Any] = []
            async for entry in source:
                entries.append(entry)
                if len(entries) >= batch:
                    break
            return entries

        try:
            while entries := running.portal.call(some):
                yield from entries
        finally:
            running.portal.call(source.aclose)

    def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> Entry:
        entry: Entry = self._method("mkdir", path, parents=parents, exist_ok=exist_ok)
        return entry

    def rename(
        self, source: str, target: str, *, replace: bool = False, parents: bool = False
    ) -> None:
        self._method("rename", source, target, replace=replace, parents=parents)

    def delete(
        self, path: str, *, recursive: bool = False, expect: int | None = None, now: bool = False
    ) -> None:
        self._method("delete", path, recursive=recursive, expect=expect, now=now)

    def set_replication(self, path: str, goal: int, *, recursive: bool = False) -> int:
        return int(self._method("set_replication", path, goal, recursive=recursive))

    def snapshot(
        self,
        source: str,
        target: str,
        *,
        parents: bool = False,
        progress: Callable[[SnapshotReply], object] | None = None,
    ) -> SnapshotReply:
        reply: SnapshotReply = self._method(
            "snapshot", source, target, parents=parents, progress=progress
        )
        return reply

    def undelete(self, path: str, *, target: str = "", inode: int = 0) -> Entry:
        entry: Entry = self._method("undelete", path, target=target, inode=inode)
        return entry

    def trash(self, path: str = "/") -> Iterator[TrashEntry]:
        return self._iterate("trash", path)

    def empty_trash(self, path: str, *, recursive: bool = False, inode: int = 0) -> int:
        return int(self._method("empty_trash", path, recursive=recursive, inode=inode))

    def disk_usage(self, path: str = "/") -> DiskUsageReply:
        reply: DiskUsageReply = self._method("disk_usage", path)
        return reply

    def status(self) -> StatusReply:
        reply: StatusReply = self._method("status")
        return reply

    def repair(
        self, *, paused: bool | None = None, settings: Mapping[str, int] | None = None
    ) -> RepairReply:
        reply: RepairReply = self._method("repair", paused=paused, settings=settings)
        return reply

    def maintain(self, server: str, seconds: int) -> None:
        self._method("maintain", server, seconds)

    def forget_server(self, server: str) -> None:
        self._method("forget_server", server)

    def drain(
        self, server: str, *, cancel: bool = False, fewer_racks: bool = False
    ) -> ServerStatus:
        status: ServerStatus = self._method("drain", server, cancel=cancel, fewer_racks=fewer_racks)
        return status

    def promote(self, *, force: bool = False) -> PromoteReply:
        reply: PromoteReply = self._method("promote", force=force)
        return reply

    def forget_shadow(self, address: str) -> None:
        self._method("forget_shadow", address)

    def locate(self, path: str) -> LocateReport:
        report: LocateReport = self._method("locate", path)
        return report

    def fsck(
        self,
        path: str = "/",
        *,
        verify: bool = True,
        server: str = "",
        progress: Callable[[int], object] = lambda chunks: None,
    ) -> FsckReport:
        report: FsckReport = self._method(
            "fsck", path, verify=verify, server=server, progress=progress
        )
        return report


class SyncFile:
    """As :class:`gfs.client.File`, blocking; also what ``io`` expects of a binary file."""

    def __init__(self, running: _Running, file: File) -> None:
        self._running = running
        self._file = file

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._running.pid != os.getpid():
            raise ValueError(
                f"{self._file.path}: opened before this process was forked: open it again"
            )
        return self._running.portal.call(function, *args)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    @property
    def path(self) -> str:
        return self._file.path

    @property
    def mode(self) -> str:
        return self._file.mode

    @property
    def length(self) -> int:
        return self._file.length

    @property
    def closed(self) -> bool:
        return self._file.closed

    def readable(self) -> bool:
        return self._file.mode in ("r", "r+")

    def writable(self) -> bool:
        return self._file.mode != "r"

    def seekable(self) -> bool:
        return self.readable()

    def read(self, count: int | None = -1) -> bytes:
        data: bytes = self._call(self._file.read, -1 if count is None else count)
        return data

    def readinto(self, target: bytearray | memoryview) -> int:
        return int(self._call(self._file.readinto, target))

    def pread(self, offset: int, count: int) -> bytes:
        data: bytes = self._call(self._file.pread, offset, count)
        return data

    def write(self, data: Buffer) -> int:
        return int(self._call(self._file.write, data))

    def pwrite(self, offset: int, data: Buffer) -> int:
        return int(self._call(self._file.pwrite, offset, data))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._call(self._file.seek, offset, whence))

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._call(self._file.flush)

    def close(self) -> None:
        if not self._file.closed:
            self._call(self._file.close)

    def abort(self) -> None:
        if not self._file.closed:
            self._call(self._file.abort)


def connect(
    master: str | Sequence[str] | None = None,
    *,
    state: str | os.PathLike[str] | None = None,
    key: bytes | str | os.PathLike[str] | None = None,
    tls: str | os.PathLike[str] | None = None,
    settings: ClientSettings | None = None,
) -> SyncClient:
    """As :func:`gfs.client.connect`; close the client or use it with ``with``."""
    return SyncClient(master, state=state, key=key, tls=tls, settings=settings)

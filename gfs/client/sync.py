"""The client, blocking: for scripts, notebooks, pandas, threads.

The async client runs in a Trio loop in one background thread (anyio's blocking
portal); calls from any thread wait for it. After a fork the
child starts its own loop at its first call: the loop, the connections and the open
uploads stay the parent's, and file objects opened before the fork raise when used.
A pickled client is, in each process, one that connects at its first call.

What a call raises is of the classes of :mod:`gfs.errors`, and here always an OSError with an errno,
or a ValueError.

::

    from gfs.client import sync

    with sync.connect() as fs:
        fs.put("model.bin", "/models/1")
        with fs.open("/models/1") as file:
            head = file.read(100)
"""

from __future__ import annotations

import atexit
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from inspect import isawaitable, signature
from types import TracebackType
from typing import Any, Self, TypeVar

import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gfs.blocks import Buffer
from gfs.client import client as client_module
from gfs.client import transfer
from gfs.client.append import Record
from gfs.client.client import Client, LocateReport
from gfs.client.errnos import as_built_in
from gfs.client.files import ExistingFile, File, NewFile
from gfs.client.fsck import FsckReport
from gfs.client.rescue import Rescued
from gfs.config import ClientSettings
from gfs.errors import GfsError, InvalidArgument
from gfs.protocol.messages import (
    DiskUsageReply,
    Done,
    ElectionReply,
    Entry,
    ListTrashReply,
    PromoteReply,
    RepairReply,
    ServerStatus,
    SetLength,
    SnapshotReply,
    StatusReply,
    TrashEntry,
)

T = TypeVar("T")

#: A call that was interrupted ends within this.
ENDING_SECONDS = 10.0
#: Entries fetched from the loop's thread at once by iterating methods.
BATCH = 500
#: Records fetched at once, each of up to 16 MiB.
RECORDS_BATCH = 4


#: What a fork copies, and a child must not wait for.
_runs: weakref.WeakSet[_Running] = weakref.WeakSet()
_clients: weakref.WeakSet[SyncClient] = weakref.WeakSet()
#: By their pickled arguments.
_unpickled: dict[bytes, SyncClient] = {}


class _Task:
    """A call in the loop. Its caller can have it ended without knowing whether it was begun."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._scope = trio.CancelScope()
        self.cancel = self._scope.cancel
        self._begun, self._ended = False, trio.Event()

    async def run(self) -> Any:
        self._begun = True
        try:
            with self._scope:
                if not self._scope.cancel_called:
                    found = self._function()
                    return await found if isawaitable(found) else found
            raise ValueError("the client is closed")  # by another thread, or by Python's end
        finally:
            self._ended.set()

    async def end(self) -> None:
        self.cancel()
        if self._begun:
            await self._ended.wait()


class _Running:
    """The loop of one process."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        _runs.add(self)
        self.pid = os.getpid()
        self.closed = False
        self._tasks: set[_Task] = set()
        self._exit = ExitStack()
        self.portal: BlockingPortal = self._exit.enter_context(
            start_blocking_portal("trio", name="gfs client")
        )
        try:
            manager: AbstractContextManager[Client] = self.portal.wrap_async_context_manager(
                client_module.connect(**arguments)
            )
            self.client = self._exit.enter_context(manager)
            # Or calls of other threads would try without connections until their deadlines.
            self._exit.callback(self.portal.call, _cancel, self._tasks)
        except BaseException as error:
            self._exit.close()
            found = as_built_in(error)
            try:
                if found is not error:
                    raise found from error
                raise
            finally:
                del found  # as below

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """As the portal's. But a call whose caller is interrupted (Ctrl-C) is cancelled, and has
        ended then: the next call for a file, which may be to abort it, comes alone."""
        task = _Task(partial(function, *args))
        future = found = None
        self._tasks.add(task)
        try:
            if self.closed:
                raise ValueError("the client is closed")
            future = self.portal.start_task_soon(task.run)
            return future.result()
        except GfsError as error:
            found = as_built_in(error)
            if found is not error:
                raise found from error
            raise
        except BaseException:
            if not self.closed and (future is None or not future.done()):
                wait([self.portal.start_task_soon(task.end)], ENDING_SECONDS)
            raise
        finally:
            self._tasks.discard(task)
            del future, found  # which hold the error, which holds this frame

    def close(self) -> None:
        self.closed = True
        self._exit.close()

    def forget(self) -> None:
        """In a child: the loop is the parent's. When the child drops this object, the portal
        would ask the loop to stop, and wait for that without end; so it has nobody to ask."""
        if hasattr(self, "portal"):
            self.portal.call = _not_here  # type: ignore[assignment, method-assign]
            self.portal.start_task_soon = _not_here  # type: ignore[assignment, method-assign]


def _cancel(tasks: set[_Task]) -> None:
    for task in list(tasks):
        task.cancel()


def _unpickle(arguments: bytes) -> SyncClient:
    """The client of this process with these arguments: the tasks of a pool, each of which may
    bring a pickled one, have one connection."""
    client = _unpickled.get(arguments)
    if client is None or client.closed:
        client = SyncClient.__new__(SyncClient)
        client._begin(pickle.loads(arguments))
        _unpickled[arguments] = client
    return client


def _paths(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str]:
    """Of the arguments of a call those that its error is of, as with the functions of ``os``."""
    given = signature(function).bind(*args, **kwargs).arguments
    names = ["path"] if "path" in given else ["source", "target"]
    return [given[name] for name in names if name in given]


def _not_here(*_: object) -> Any:
    raise RuntimeError("the loop is that of the process this one was forked from")


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
        self._begin(
            {"master": master, "state": state, "key": key, "tls": tls, "settings": settings}
        )
        self._current()

    def _begin(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closed = False
        _clients.add(self)

    def __reduce__(self) -> tuple[Callable[[bytes], SyncClient], tuple[bytes]]:
        if isinstance(self._arguments["key"], bytes):
            raise InvalidArgument(
                "a client that has the cluster key itself is not pickled: give the key's file"
            )
        return _unpickle, (pickle.dumps(self._arguments),)

    def _current(self) -> _Running:
        """The loop of this process, started if the process is new (a fork)."""
        running = self._running
        if running is not None and running.pid == os.getpid():
            return running
        with self._lock:
            if self._closed:
                raise ValueError("the client is closed")
            if self._running is None or self._running.pid != os.getpid():
                self._running = _Running(self._arguments)
            return self._running

    @property
    def closed(self) -> bool:
        return self._closed

    def renew_lock(self) -> None:
        """In a child: another thread of the parent may have held it when that forked."""
        self._lock = threading.Lock()

    def _method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        running = self._current()
        function = getattr(running.client, method)
        try:
            return running.call(lambda: function(*args, **kwargs))
        except GfsError as error:
            as_built_in(error, *_paths(function, args, kwargs))
            raise

    def _many(self, method: str, items: list[Any], **kwargs: Any) -> Any:
        """Of one whose errors are among what it returns. Each item is a path, or begins with it."""
        found = self._method(method, items, **kwargs)
        paths = [item if isinstance(item, str) else item[0] for item in items]
        return [as_built_in(each, path) for path, each in zip(paths, found, strict=True)]

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
        """Stop the background loop. Open uploads are discarded, and calls that other threads have
        under way are cancelled, with ValueError."""
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
        modified_ns: int = 0,
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
            modified_ns=modified_ns,
        )
        return entry

    def put_many(
        self,
        items: Iterable[tuple[str, Buffer]],
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
    ) -> list[Entry | GfsError]:
        entries: list[Entry | GfsError] = self._many(
            "put_many", list(items), overwrite=overwrite, replication=replication, parents=parents
        )
        return entries

    def get_many(self, paths: Iterable[str]) -> list[bytes | GfsError]:
        found: list[bytes | GfsError] = self._many("get_many", list(paths))
        return found

    def stat_many(self, paths: Iterable[str]) -> list[Entry | GfsError]:
        found: list[Entry | GfsError] = self._many("stat_many", list(paths))
        return found

    def delete_many(
        self,
        paths: Iterable[str],
        *,
        recursive: bool = False,
        expect: Iterable[int | None] | None = None,
        now: bool = False,
    ) -> list[GfsError | None]:
        errors: list[GfsError | None] = self._many(
            "delete_many",
            list(paths),
            recursive=recursive,
            expect=None if expect is None else list(expect),
            now=now,
        )
        return errors

    def get_ranges(
        self, ranges: Iterable[tuple[str, int | None, int | None]]
    ) -> list[bytes | GfsError]:
        found: list[bytes | GfsError] = self._many("get_ranges", list(ranges))
        return found

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
        file: File = self._method("open", path, mode, replication=replication)
        return SyncFile(self._current(), file)

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
            while entries := running.call(some):
                yield from entries
        except GfsError as error:
            as_built_in(error, *arguments[:1])
            raise
        finally:
            running.call(source.aclose)

    def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> Entry:
        entry: Entry = self._method(
            "mkdir", path, parents=parents, exist_ok=exist_ok, attributes=attributes
        )
        return entry

    def set_attributes(
        self,
        path: str,
        attributes: Mapping[str, str] | None = None,
        *,
        removed: Iterable[str] = (),
        modified_ns: int = 0,
        expect: int | None = None,
    ) -> Entry:
        entry: Entry = self._method(
            "set_attributes",
            path,
            attributes,
            removed=removed,
            modified_ns=modified_ns,
            expect=expect,
        )
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

    def trash_page(
        self, path: str = "/", cursor: bytes = b"", limit: int = client_module.LIST_PAGE
    ) -> ListTrashReply:
        page: ListTrashReply = self._method("trash_page", path, cursor, limit)
        return page

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

    def election(self) -> ElectionReply:
        reply: ElectionReply = self._method("election")
        return reply

    def accept_restore(self) -> None:
        self._method("accept_restore")

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


def _after_fork() -> None:
    for running in list(_runs):
        running.forget()
    for client in list(_clients):
        client.renew_lock()


@atexit.register
def _close_all() -> None:
    # After this the loop's thread runs no more, and what called it would wait without end:
    # a client that nobody closed, when the interpreter drops it.
    for running in list(_runs):
        if running.pid == os.getpid() and not running.closed:
            running.close()


os.register_at_fork(after_in_child=_after_fork)


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
        if self._running.closed:
            raise ValueError(f"{self._file.path}: the client is closed")
        try:
            return self._running.call(function, *args)
        except GfsError as error:
            as_built_in(error, self._file.path)
            raise

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
    def entry(self) -> Entry | None:
        """Of an existing file, as it was opened; of a new one, once it is published."""
        assert isinstance(self._file, (ExistingFile, NewFile))
        return self._file.entry

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

    def touch(self) -> None:
        """Make the present time, by the master's clock, that of the file's last change, whatever
        its path is by now: a write in place that makes a file no longer is not known to the
        master. Raises NotFound if the file is gone."""
        assert isinstance(self._file, ExistingFile)
        self._call(_touch, self._file)

    def close(self) -> None:
        if not self._file.closed:
            self._call(self._file.close)

    def abort(self) -> None:
        if not self._file.closed:
            self._call(self._file.abort)


async def _touch(file: ExistingFile) -> None:
    master = file._core.master
    await master.ask(
        SetLength(
            id=0,
            client=master.id,
            sequence=master.next_sequence(),
            inode=file.entry.inode,
            length=file.length,
        ),
        Done,
    )


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

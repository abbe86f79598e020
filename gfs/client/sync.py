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
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, ExitStack
from functools import partial, update_wrapper
from inspect import isawaitable, signature
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gfs.blocks import Buffer
from gfs.client import client as client_module
from gfs.client.client import Client
from gfs.client.errnos import as_built_in
from gfs.client.files import ExistingFile, File, NewFile
from gfs.client.items import ONE_THING
from gfs.client.mutate import set_length
from gfs.config import ClientSettings
from gfs.errors import GfsError, InvalidArgument
from gfs.protocol.messages import Entry

P = ParamSpec("P")
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


def _blocking(
    method: Callable[Concatenate[Client, P], Awaitable[T]],
) -> Callable[Concatenate[SyncClient, P], T]:
    """The same method of :class:`SyncClient`."""

    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._method(method.__name__, *args, **kwargs)
        return result

    update_wrapper(call, method)
    return call


def _many(
    method: Callable[Concatenate[Client, P], Awaitable[list[T]]], items: str
) -> Callable[Concatenate[SyncClient, P], list[T]]:
    """As :func:`_blocking`, of a method whose errors are among what it returns, one for each of
    its ``items``, which are paths, or begin with one. A generator runs in the caller's thread."""

    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        given: list[Any] = [_listed(each) for each in args]
        named = {name: _listed(each) for name, each in kwargs.items()}
        found = self._method(method.__name__, *given, **named)
        paths = [
            each if isinstance(each, str) else each[0] for each in (given or [named[items]])[0]
        ]
        return [as_built_in(each, path) for path, each in zip(paths, found, strict=True)]

    update_wrapper(call, method)
    return call


def _listed(argument: object) -> object:
    if isinstance(argument, ONE_THING) or not isinstance(argument, Iterable):
        return argument
    return list(argument)


def _opening(
    method: Callable[Concatenate[Client, P], Awaitable[File] | File],
) -> Callable[Concatenate[SyncClient, P], SyncFile]:
    """As :func:`_blocking`, of a method that returns a file object."""

    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> SyncFile:
        file: File = self._method(method.__name__, *args, **kwargs)
        return SyncFile(self._current(), file)

    update_wrapper(call, method)
    call.__doc__ = f"As :meth:`gfs.client.Client.{method.__name__}`, to be used with ``with``."
    return call


def _iterating(
    method: Callable[Concatenate[Client, P], AsyncGenerator[T, None]], batch: int = BATCH
) -> Callable[Concatenate[SyncClient, P], Iterator[T]]:
    """As :func:`_blocking`, of an async generator, of which ``batch`` items are fetched at once."""

    def call(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        running = self._current()
        source = method(running.client, *args, **kwargs)

        async def some() -> list[T]:
            found: list[T] = []
            async for each in source:
                found.append(each)
                if len(found) >= batch:
                    break
            return found

        try:
            while found := running.call(some):
                yield from found
        except GfsError as error:
            as_built_in(error, *_paths(method, (running.client, *args), kwargs))
            raise
        finally:
            running.call(source.aclose)

    update_wrapper(call, method)
    call.__doc__ = f"As :meth:`gfs.client.Client.{method.__name__}`; {batch} are fetched at once."
    return call


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

    put = _blocking(Client.put)
    get = _blocking(Client.get)
    append = _blocking(Client.append)

    def append_many(
        self, path: str, records: Iterable[Buffer], *, create: bool = True
    ) -> list[int]:
        """As :meth:`gfs.client.Client.append_many`; a generator runs in the caller's thread."""
        offsets: list[int] = self._method("append_many", path, _listed(records), create=create)
        return offsets

    stat = _blocking(Client.stat)
    exists = _blocking(Client.exists)
    list = _blocking(Client.list)
    mkdir = _blocking(Client.mkdir)
    set_attributes = _blocking(Client.set_attributes)
    rename = _blocking(Client.rename)
    delete = _blocking(Client.delete)
    set_replication = _blocking(Client.set_replication)
    snapshot = _blocking(Client.snapshot)
    undelete = _blocking(Client.undelete)
    trash_page = _blocking(Client.trash_page)
    empty_trash = _blocking(Client.empty_trash)
    disk_usage = _blocking(Client.disk_usage)
    status = _blocking(Client.status)
    repair = _blocking(Client.repair)
    maintain = _blocking(Client.maintain)
    forget_server = _blocking(Client.forget_server)
    drain = _blocking(Client.drain)
    promote = _blocking(Client.promote)
    election = _blocking(Client.election)
    accept_restore = _blocking(Client.accept_restore)
    forget_shadow = _blocking(Client.forget_shadow)
    locate = _blocking(Client.locate)
    fsck = _blocking(Client.fsck)

    put_many = _many(Client.put_many, "items")
    get_many = _many(Client.get_many, "paths")
    stat_many = _many(Client.stat_many, "paths")
    delete_many = _many(Client.delete_many, "paths")
    get_ranges = _many(Client.get_ranges, "ranges")

    open = _opening(Client.open)
    create = _opening(Client.create)

    records = _iterating(Client.records, RECORDS_BATCH)
    scan = _iterating(Client.scan)
    walk = _iterating(Client.walk)
    trash = _iterating(Client.trash)


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
        file = self._file
        assert isinstance(file, ExistingFile)
        self._call(set_length, file._core, file.entry.inode, file.length)

    def close(self) -> None:
        if not self._file.closed:
            self._call(self._file.close)

    def abort(self) -> None:
        if not self._file.closed:
            self._call(self._file.abort)


#: As :func:`gfs.client.connect`; close the client or use it with ``with``.
connect = SyncClient

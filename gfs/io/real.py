"""This machine: non-blocking sockets under Trio, plain files, real clocks.

Streams try the system call first and wait only when it would block: at full
speed a megabyte costs a handful of Python steps. Since such a call may never
wait, every so many calls yield to the other tasks (``TURNS_PER_YIELD``).
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import queue
import random
import re
import socket
import stat
import termios
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import outcome
import trio

from gfs.io.world import (
    Buffer,
    DiskSpace,
    File,
    Listener,
    Lock,
    ReadFailed,
    Runner,
    Stream,
    World,
)

T = TypeVar("T")

#: Socket buffers asked for; the kernel caps them at its own maximum. With
#: 64 KiB one loopback stream reaches less than half its rate.
SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
#: Consecutive calls on one stream that did not have to wait, before it yields.
TURNS_PER_YIELD = 16
ACCEPT_BACKLOG = 512
#: Accept errors that pass by themselves: a bound of the process was reached.
_ACCEPT_RETRY = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: A worker thread with nothing to do ends after this long.
WORKER_IDLE_SECONDS = 10.0
#: What copy_file_range says where the kernel cannot do it: the bytes come through here.
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
COPY_BYTES = 1024 * 1024
#: What a sendfile that fails says of its socket; all else it says of its file.
_OF_SOCKETS = {
    errno.EPIPE, errno.ESHUTDOWN, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN,
    errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENOBUFS,
}  # fmt: skip
#: Of a file, in one blocking call: a slow disk that many read from returns from it in time.
SENT_IN_ONE_CALL_BYTES = 8 * 1024 * 1024
#: What is to be mounted, and what is.
FSTAB, MOUNTED = "/etc/fstab", "/proc/self/mountinfo"
BOOT_PATH = "/proc/sys/kernel/random/boot_id"
#: Buffers of one sendmsg (Linux: UIO_MAXIOV).
_BUFFERS_MAX = 1024


#: sync_file_range(2), which Python does not have, nor every system.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2


#: Calls of preadv2 that a file system cannot serve from memory alone.
_CANNOT_SAY = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_RWF_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
#: A read changes nothing on the disk then; granted to a file's owner alone.
_O_NOATIME: int = getattr(os, "O_NOATIME", 0)


class _Descriptor:
    """An open descriptor: closed when nobody holds this any more.

    Every call holds it while it runs. So its number cannot come to mean another file
    under a thread that hangs, or goes on after it did: one that was closed here would.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


_CLOSED = _Descriptor(-1)


class RealFile:
    def __init__(self, descriptor: int) -> None:
        self.held = _Descriptor(descriptor)
        #: Whether the file system can say that it would have to wait.
        self._tells = bool(_RWF_NOWAIT)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        held, done = self.held, 0
        while done < len(buffer):
            try:
                count = os.preadv(held.number, [buffer[done:] if done else buffer], offset + done)
            except OSError as error:
                raise ReadFailed(error.errno, error.strerror) from error
            if not count:
                break
            done += count
        return done

    def read_cached(self, buffer: memoryview, offset: int) -> bool:
        if not self._tells:
            return False
        held = self.held
        try:
            return os.preadv(held.number, [buffer], offset, _RWF_NOWAIT) == len(buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _CANNOT_SAY:
                raise
            self._tells = False
            return False

    def write(self, data: Buffer, offset: int) -> None:
        held = self.held
        done = os.pwrite(held.number, data, offset)
        if done < len(data):
            view = memoryview(data)
            while done < len(view):
                done += os.pwrite(held.number, view[done:], offset + done)

    def copy_from(self, source: File, offset: int, count: int) -> None:
        if not isinstance(source, RealFile):
            raise TypeError("a real file is copied from a real file")
        here, there = self.held, source.held
        end = offset + count
        while offset < end:
            try:
                done = os.copy_file_range(there.number, here.number, end - offset, offset, offset)
            except OSError as error:
                if error.errno == errno.EIO:
                    # Of the read, as far as one can tell: what cannot be written shows when
                    # it is synced.
                    raise ReadFailed(errno.EIO, error.strerror) from error
                if error.errno not in _CANNOT_COPY:
                    raise
                done = _copy_some(there, here, offset, min(COPY_BYTES, end - offset))
            if not done:
                raise ReadFailed(errno.EIO, "the file to be copied ended early")
            offset += done

    def size(self) -> int:
        held = self.held
        return os.fstat(held.number).st_size

    def truncate(self, size: int) -> None:
        held = self.held
        os.ftruncate(held.number, size)

    def start_sync(self, offset: int, count: int) -> None:
        held = self.held
        if _sync_file_range is not None:
            # An error shows at the next fdatasync.
            _sync_file_range(held.number, offset, count, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        held = self.held
        os.fdatasync(held.number)

    def drop_cached(self) -> None:
        held = self.held
        os.posix_fadvise(held.number, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self.held = _CLOSED


def _copy_some(source: _Descriptor, target: _Descriptor, offset: int, count: int) -> int:
    data = os.pread(source.number, count, offset)
    done = 0
    while done < len(data):
        done += os.pwrite(target.number, data[done:], offset + done)
    return done


_OPEN_FLAGS = {
    "r": os.O_RDONLY,
    "rw": os.O_RDWR,
    "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "replace": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
}
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Place(NamedTuple):
    """Where a path leads: a name, and the open directory that it counts from, if one."""

    name: str
    held: _Descriptor | None

    @property
    def at(self) -> int | None:
        return None if self.held is None else self.held.number

    def open(self, flags: int) -> int:
        return os.open(self.name, flags | os.O_CLOEXEC, 0o600, dir_fd=self.at)


class RealFileSystem:
    """``directory`` is absolute, or whatever prefix the paths have that lead into it."""

    def __init__(self, directory: str = "", held: _Descriptor | None = None) -> None:
        self._directory = directory
        self._held = held

    def within(self, directory: str) -> RealFileSystem:
        directory = directory.rstrip("/") or "/"
        return RealFileSystem(directory, _Descriptor(self._place(directory).open(_OPEN_DIRECTORY)))

    def close(self) -> None:
        if self._held is not None:
            self._held = _CLOSED

    def _place(self, path: str) -> _Place:
        held = self._held
        if held is not None and path.startswith(self._directory):
            name = path[len(self._directory) :]
            if not name or name[0] == "/" or self._directory == "/":
                return _Place(name.lstrip("/") or ".", held)
        return _Place(path, None)

    def open(self, path: str, mode: str) -> RealFile:
        place, flags = self._place(path), _OPEN_FLAGS[mode]
        try:
            return RealFile(place.open(flags | _O_NOATIME))
        except PermissionError:
            return RealFile(place.open(flags))  # another user's file
        except OSError as error:
            if error.errno == errno.EIO and mode in ("r", "rw"):
                raise ReadFailed(error.errno, error.strerror, path) from error
            raise

    def lock(self, path: str) -> RealFile:
        file = RealFile(self._place(path).open(os.O_RDWR | os.O_CREAT))
        try:
            fcntl.flock(file.held.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            file.close()
            raise
        return file

    def list(self, path: str) -> list[str]:
        directory = _Descriptor(self._place(path).open(_OPEN_DIRECTORY))
        return os.listdir(directory.number)

    def exists(self, path: str) -> bool:
        try:
            self._stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def file_size(self, path: str) -> int:
        return self._stat(path).st_size

    def _stat(self, path: str) -> os.stat_result:
        place = self._place(path)
        try:
            return os.stat(place.name, dir_fd=place.at)
        except OSError as error:
            if error.errno == errno.EIO:
                raise ReadFailed(error.errno, error.strerror, path) from error
            raise

    def unlink(self, path: str) -> None:
        place = self._place(path)
        os.unlink(place.name, dir_fd=place.at)

    def rename(self, source: str, target: str) -> None:
        old, new = self._place(source), self._place(target)
        os.replace(old.name, new.name, src_dir_fd=old.at, dst_dir_fd=new.at)

    def make_directories(self, path: str) -> None:
        place = self._place(path)
        if place.held is None:
            os.makedirs(path, mode=0o700, exist_ok=True)
            return
        name = ""
        for part in place.name.split("/"):
            name = f"{name}/{part}" if name else part
            try:
                os.mkdir(name, 0o700, dir_fd=place.at)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=place.at).st_mode):
                    raise

    def sync_directory(self, path: str) -> None:
        directory = _Descriptor(self._place(path).open(_OPEN_DIRECTORY))
        os.fsync(directory.number)

    def space(self, path: str) -> DiskSpace:
        directory = _Descriptor(self._place(path).open(_OPEN_DIRECTORY))
        found = os.statvfs(directory.number)
        return DiskSpace(
            found.f_blocks * found.f_frsize,
            found.f_bavail * found.f_frsize,
            bool(found.f_flag & os.ST_RDONLY),
        )

    def awaits_mount(self, path: str) -> bool:
        below = f"{os.path.abspath(path).rstrip('/')}/"
        wanted = [point for point in _mount_points(FSTAB, 1) if below.startswith(f"{point}/")]
        return not set(wanted) <= set(_mount_points(MOUNTED, 4))

    def make_lock(self) -> Lock:
        return threading.RLock()

    def device(self, path: str) -> int:
        return os.stat(path).st_dev


def _mount_points(table: str, column: int) -> list[str]:
    """Of a table of file systems; spaces in names are written as octal numbers there."""
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.split() for line in file if not line.lstrip().startswith("#")]
    except OSError:
        return []
    names = [row[column] for row in rows if len(row) > column]
    points = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), name) for name in names]
    return [point.rstrip("/") for point in points if point.startswith("/") and point != "/"]


class RealStream:
    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._socket = sock
        self.peer = peer
        self._turns = 0
        self._closed = False
        #: A worker thread is inside a system call on the socket.
        self._in_thread = False

    async def _turn(self) -> None:
        self._turns += 1
        if self._turns >= TURNS_PER_YIELD:
            self._turns = 0
            await trio.lowlevel.checkpoint()

    async def _wait(self, wait: Callable[[int], Awaitable[None]]) -> None:
        self._turns = 0
        self._require_open()
        try:
            await wait(self._socket.fileno())
        except trio.ClosedResourceError:
            raise self._closed_here() from None

    def _require_open(self) -> None:
        if self._closed:
            raise self._closed_here()

    def _closed_here(self) -> ConnectionError:
        return ConnectionAbortedError(f"the connection to {self.peer} was closed here")

    def _map(self, error: OSError) -> ConnectionError:
        if self._closed:
            return self._closed_here()
        if isinstance(error, ConnectionError):
            return error
        return ConnectionResetError(f"the connection to {self.peer} failed: {error}")

    async def receive_into(self, buffer: memoryview) -> int:
        await self._turn()
        while True:
            try:
                return self._socket.recv_into(buffer)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)
            except OSError as error:
                raise self._map(error) from error

    async def send_all(self, *buffers: Buffer) -> None:
        await self._turn()
        pending = [buffer for buffer in buffers if len(buffer)]
        while pending:
            try:
                if len(pending) == 1:
                    sent = self._socket.send(pending[0])
                else:
                    sent = self._socket.sendmsg(pending[:_BUFFERS_MAX])
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
                continue
            except OSError as error:
                raise self._map(error) from error
            while pending and sent >= len(pending[0]):
                sent -= len(pending.pop(0))
            if sent:
                pending[0] = memoryview(pending[0])[sent:]

    async def send_file(
        self,
        file: File,
        offset: int,
        count: int,
        run: Runner | None = None,
    ) -> None:
        """As in the contract. The disk is read in a worker thread; the waiting
        for the peer is done in the loop, so that a slow reader holds no thread."""
        if not isinstance(file, RealFile):
            raise TypeError("a real stream sends real files")
        held = file.held
        end = offset + count
        while offset < end:
            self._require_open()
            some = min(SENT_IN_ONE_CALL_BYTES, end - offset)
            offset += await (run or _run_blocking)(self._send_some, held, offset, some)
            if offset < end:
                await self._wait(trio.lowlevel.wait_writable)

    def _send_some(self, file: _Descriptor, offset: int, count: int) -> int:
        """In a thread. While it is here, the loop does not close the socket."""
        self._in_thread = True
        try:
            self._require_open()
            return _send_file_some(self._socket, file, offset, count)
        except ConnectionError:
            raise
        except OSError as error:
            if error.errno in _OF_SOCKETS:
                raise self._map(error) from error
            raise ReadFailed(error.errno, error.strerror) from error
        finally:
            self._in_thread = False
            if self._closed:
                self._socket.close()

    def ended(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def pending(self) -> int:
        count = array.array("i", [0])
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, count)
        return count[0]

    def close(self) -> None:
        self._closed = True
        if self._in_thread:
            # The descriptor's number must not be reused under the thread, or
            # the file would go out over somebody else's connection. Shut down,
            # the system call ends; the task that waits for it closes.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            _close(self._socket)


def _close(sock: socket.socket) -> None:
    """Close, and wake the tasks that wait on the socket."""
    if sock.fileno() >= 0:
        # Outside a running loop (after it ended) no task can be waiting.
        with contextlib.suppress(RuntimeError):
            trio.lowlevel.notify_closing(sock.fileno())
        sock.close()


def _send_file_some(sock: socket.socket, file: _Descriptor, offset: int, count: int) -> int:
    """Send until done or until the socket is full; returns the bytes sent."""
    sent = 0
    while sent < count:
        try:
            step = os.sendfile(sock.fileno(), file.number, offset + sent, count - sent)
        except BlockingIOError:
            break
        if step == 0:
            raise EOFError(f"the file ends at byte {offset + sent}")
        sent += step
    return sent


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer whose machine vanished is noticed even on an idle connection.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _widen(sock)


def _widen(sock: socket.socket) -> None:
    """Ask for large buffers where the kernel grants them; elsewhere its own
    autotuning reaches further than a capped request would."""
    if _kernel_grants("wmem_max"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    if _kernel_grants("rmem_max"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)


@functools.cache
def _kernel_grants(limit: str) -> bool:
    try:
        with open(f"/proc/sys/net/core/{limit}", encoding="ascii") as file:
            return int(file.read()) >= SOCKET_BUFFER_BYTES
    except (OSError, ValueError):
        return False


class BadAddress(ConnectionError, ValueError):
    """Not an address. A ConnectionError, because an address may be a peer's word."""


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``; BadAddress says what is wrong with others."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise BadAddress(f"{address!r} is not an address: write HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class RealListener:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        host, port = sock.getsockname()[:2]
        self.address = join_address(host, port)

    async def accept(self) -> Stream:
        while True:
            if self._socket.fileno() < 0:
                raise ConnectionAbortedError("the listener was closed here")
            try:
                await trio.lowlevel.wait_readable(self._socket.fileno())
                sock, name = self._socket.accept()
            except BlockingIOError:
                continue
            except trio.ClosedResourceError:
                raise ConnectionAbortedError("the listener was closed here") from None
            except OSError as error:
                if error.errno in _ACCEPT_RETRY:
                    await trio.sleep(0.1)
                    continue
                if error.errno == errno.EBADF:
                    raise ConnectionAbortedError("the listener was closed here") from None
                if isinstance(error, ConnectionError):
                    continue  # that client is gone already
                raise
            try:
                _tune(sock)
            except OSError:
                sock.close()
                continue  # gone before we looked at it
            return RealStream(sock, join_address(*name[:2]))

    def close(self) -> None:
        _close(self._socket)


class RealNetwork:
    async def connect(self, address: str) -> Stream:
        host, port = split_address(address)
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise ConnectionError(f"{address}: {error.strerror}") from None
        except UnicodeError:
            raise BadAddress(f"{address!r} is not an address: {host!r} is no host name") from None
        last: OSError = ConnectionError(f"{address} has no address")
        for family, kind, protocol, _, name in found:
            try:
                return RealStream(await _connect(family, kind, protocol, name), address)
            except OSError as error:
                last = error
        raise ConnectionError(f"{address}: {last.strerror or last}") from last

    async def listen(self, address: str) -> Listener:
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            # Accepted sockets inherit these; the window is negotiated at accept.
            _widen(sock)
            sock.bind((host, port))
            sock.listen(ACCEPT_BACKLOG)
        except BaseException:
            sock.close()
            raise
        await trio.lowlevel.checkpoint()
        return RealListener(sock)


async def _connect(family: int, kind: int, protocol: int, name: object) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        _tune(sock)
        try:
            sock.connect(name)  # type: ignore[arg-type]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _elapsed_clock() -> int:
    """The kernel's clock that goes on while the machine is suspended, if there is one."""
    with contextlib.suppress(AttributeError, OSError):
        time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.CLOCK_BOOTTIME
    return time.CLOCK_MONOTONIC


_ELAPSED = _elapsed_clock()


class RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def elapsed(self) -> float:
        return time.clock_gettime(_ELAPSED)

    def time_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Job:
    """One blocking call on its way through a worker thread."""

    __slots__ = ("arguments", "borrower", "function", "limiter", "result", "task")

    def __init__(
        self,
        function: Callable[..., object],
        arguments: tuple[object, ...],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.limiter = limiter
        self.borrower = object()
        #: Who waits for it; nobody any more if it was abandoned.
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self.result: outcome.Outcome[object] | None = None

    def abandon(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def end(self) -> None:
        """In the loop: nothing of it goes on any more."""
        self.limiter.release_on_behalf_of(self.borrower)


class _Workers:
    """Threads for the blocking calls of one Trio run.

    As ``trio.to_thread.run_sync`` in its contract, at less than half its cost,
    which a small write pays three times (once per replica): no thread names, no
    context, no hand-over locks, and calls that end together wake the loop once.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.default_limiter = trio.to_thread.current_default_thread_limiter()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._done: deque[_Job] = deque()
        self._waking = False  # the loop has been told of what is in _done
        self._idle = 0  # threads waiting, less the jobs on their way to them
        self._lock = threading.Lock()

    async def run(
        self,
        function: Callable[..., T],
        args: tuple[object, ...],
        limiter: trio.CapacityLimiter | None,
        abandon_on_cancel: bool,
    ) -> T:
        job = _Job(function, args, limiter or self.default_limiter)
        try:
            job.limiter.acquire_on_behalf_of_nowait(job.borrower)
        except trio.WouldBlock:
            await job.limiter.acquire_on_behalf_of(job.borrower)
        try:
            self._submit(job)
        except BaseException:  # no thread could be started
            job.end()
            raise
        return await trio.lowlevel.wait_task_rescheduled(  # type: ignore[no-any-return]
            job.abandon if abandon_on_cancel else _never_abandon
        )

    def _submit(self, job: _Job) -> None:
        with self._lock:
            start = self._idle == 0
            if not start:
                self._idle -= 1
        if start:
            threading.Thread(target=self._work, name="gfs worker", daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=WORKER_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return
                continue  # a job is on its way
            job.result = outcome.capture(job.function, *job.arguments)
            self._done.append(job)
            del job
            with self._lock:
                self._idle += 1
            if not self._waking:
                self._waking = True
                # Fails only when the loop has crashed: then nobody waits.
                with contextlib.suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._finish)

    def _finish(self) -> None:
        # Cleared first: what is put in after this is told of again.
        self._waking = False
        while self._done:
            job = self._done.popleft()
            assert job.result is not None
            job.end()
            if job.task is not None:
                trio.lowlevel.reschedule(job.task, job.result)


_run_workers: trio.lowlevel.RunVar[_Workers] = trio.lowlevel.RunVar("gfs_workers")


def _workers() -> _Workers:
    try:
        return _run_workers.get()
    except LookupError:
        workers = _Workers()
        _run_workers.set(workers)
        return workers


async def _run_blocking(
    function: Callable[..., T],
    *args: object,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    await trio.lowlevel.checkpoint_if_cancelled()
    return await _workers().run(function, args, limiter, abandon_on_cancel)


def _never_abandon(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def real_world() -> World:
    """This machine. Randomness comes from the kernel."""
    return World(
        network=RealNetwork(),
        files=RealFileSystem(),
        clock=RealClock(),
        random=random.SystemRandom(),
        run_blocking=_run_blocking,
        boot=_boot(),
    )


def _boot() -> str:
    """The kernel's word. Where there is none to be had, each process is in a boot of its
    own: what may be lost with the power may be lost with the process, as far as it knows."""
    try:
        with open(BOOT_PATH, encoding="ascii") as file:
            boot = file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        boot = ""
    return boot or os.urandom(16).hex()

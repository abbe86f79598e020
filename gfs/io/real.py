"""This machine: non-blocking sockets under Trio, plain files, real clocks.

Streams try the system call first and wait only when it would block: at full
speed a megabyte costs a handful of Python steps. Since such a call may never
wait, every so many calls yield to the other tasks (``TURNS_PER_YIELD``).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import queue
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import outcome
import trio

from gfs.io.world import Buffer, DiskSpace, File, Listener, Stream, World

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
_SENDFILE_BYTES_MAX = 0x7FFF_F000
BOOT_PATH = "/proc/sys/kernel/random/boot_id"
#: Buffers of one sendmsg (Linux: UIO_MAXIOV).
_BUFFERS_MAX = 1024


#: sync_file_range(2), which Python does not have, nor every system.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2


class RealFile:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read_into(self, buffer: memoryview, offset: int) -> int:
        done = 0
        while done < len(buffer):
            count = os.preadv(self.descriptor, [buffer[done:] if done else buffer], offset + done)
            if not count:
                break
            done += count
        return done

    def write(self, data: Buffer, offset: int) -> None:
        done = os.pwrite(self.descriptor, data, offset)
        if done < len(data):
            view = memoryview(data)
            while done < len(view):
                done += os.pwrite(self.descriptor, view[done:], offset + done)

    def copy_from(self, source: File, offset: int, count: int) -> None:
        if not isinstance(source, RealFile):
            raise TypeError("a real file is copied from a real file")
        end = offset + count
        while offset < end:
            try:
                done = os.copy_file_range(
                    source.descriptor, self.descriptor, end - offset, offset, offset
                )
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                done = self._copy_some(source, offset, min(COPY_BYTES, end - offset))
            if not done:
                raise OSError(errno.EIO, "the file to be copied ended early")
            offset += done

    def _copy_some(self, source: RealFile, offset: int, count: int) -> int:
        data = os.pread(source.descriptor, count, offset)
        self.write(data, offset)
        return len(data)

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self.descriptor, size)

    def start_sync(self, offset: int, count: int) -> None:
        if _sync_file_range is not None:
            # An error shows at the next fdatasync.
            _sync_file_range(self.descriptor, offset, count, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


_OPEN_FLAGS = {
    "r": os.O_RDONLY,
    "rw": os.O_RDWR,
    "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "replace": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
}


class RealFileSystem:
    def open(self, path: str, mode: str) -> RealFile:
        return RealFile(os.open(path, _OPEN_FLAGS[mode] | os.O_CLOEXEC, 0o600))

    def lock(self, path: str) -> RealFile:
        file = RealFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            file.close()
            raise
        return file

    def list(self, path: str) -> list[str]:
        return os.listdir(path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def file_size(self, path: str) -> int:
        return os.stat(path).st_size

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def make_directories(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def space(self, path: str) -> DiskSpace:
        stat = os.statvfs(path)
        return DiskSpace(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


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

    async def send_file(self, file: File, offset: int, count: int) -> None:
        """As in the contract. The disk is read in a worker thread; the waiting
        for the peer is done in the loop, so that a slow reader holds no thread."""
        if not isinstance(file, RealFile):
            raise TypeError("a real stream sends real files")
        end = offset + count
        while offset < end:
            self._require_open()
            self._in_thread = True
            try:
                sent = await _run_blocking(
                    _send_file_some, self._socket, file.descriptor, offset, end - offset
                )
            except OSError as error:
                if error.errno == errno.EIO:
                    raise
                raise self._map(error) from error
            finally:
                self._in_thread = False
                if self._closed:
                    _close(self._socket)
            offset += sent
            if offset < end:
                await self._wait(trio.lowlevel.wait_writable)

    def ended(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

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


def _send_file_some(sock: socket.socket, descriptor: int, offset: int, count: int) -> int:
    """Send until done or until the socket is full; returns the bytes sent."""
    sent = 0
    while sent < count:
        try:
            step = os.sendfile(
                sock.fileno(), descriptor, offset + sent, min(count - sent, _SENDFILE_BYTES_MAX)
            )
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

    __slots__ = ("arguments", "function", "result", "task")

    def __init__(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.task = trio.lowlevel.current_task()
        self.result: outcome.Outcome[object] | None = None


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
        self, function: Callable[..., T], args: tuple[object, ...], limiter: trio.CapacityLimiter
    ) -> T:
        borrower = object()
        try:
            limiter.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            await limiter.acquire_on_behalf_of(borrower)
        try:
            self._submit(_Job(function, args))
            return await trio.lowlevel.wait_task_rescheduled(_never_abandon)  # type: ignore[no-any-return]
        finally:
            limiter.release_on_behalf_of(borrower)

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
            trio.lowlevel.reschedule(job.task, job.result)


_workers: trio.lowlevel.RunVar[_Workers] = trio.lowlevel.RunVar("gfs_workers")


async def _run_blocking(
    function: Callable[..., T], *args: object, limiter: trio.CapacityLimiter | None = None
) -> T:
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        workers = _workers.get()
    except LookupError:
        workers = _Workers()
        _workers.set(workers)
    return await workers.run(function, args, limiter or workers.default_limiter)


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

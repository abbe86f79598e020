"""This machine: non-blocking sockets under Trio, plain files, real clocks.

Streams try the system call first and wait only when it would block: at full speed a
megabyte costs a few Python steps. Since calls may never have to wait, one in
``TURNS_PER_YIELD`` yields to the other tasks.
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
from collections.abc import Awaitable, Callable, Iterator, Sequence
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

#: The size of the socket buffers that is requested; the kernel caps it at its own maximum. With
#: 64 KiB one loopback stream reaches less than half its rate.
SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
#: Of a large body so much is waited for before it is looked at; less is not worth a system call
#: that says so.
WAKE_BYTES_MAX, WAKE_BYTES_MIN = 256 * 1024, 8 * 1024
#: Consecutive calls on one stream that did not have to wait, before it yields.
TURNS_PER_YIELD = 16
ACCEPT_BACKLOG = 512
#: Accept errors that pass by themselves: a bound of the process was reached.
_ACCEPT_RETRY = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: A worker thread with nothing to do ends after this long.
WORKER_IDLE_SECONDS = 10.0
#: The errors of copy_file_range where the kernel cannot do it: then the bytes are read
#: and written here.
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
COPY_BYTES = 1024 * 1024
#: The errors of sendfile that concern the socket; all others concern the file.
_OF_SOCKETS = {
    errno.EPIPE, errno.ESHUTDOWN, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN,
    errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENOBUFS,
}  # fmt: skip
#: Most bytes of a file in one blocking call, so that the call returns in time from a
#: slow disk with many readers.
SENT_IN_ONE_CALL_BYTES = 8 * 1024 * 1024
#: The file systems that are to be mounted, and those that are.
FSTAB, MOUNTED = "/etc/fstab", "/proc/self/mountinfo"
BOOT_PATH = "/proc/sys/kernel/random/boot_id"
#: Buffers of one sendmsg (Linux: UIO_MAXIOV).
_BUFFERS_MAX = 1024


#: sync_file_range(2), which Python lacks, as do some systems.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2
#: fallocate(2) with its modes; Python has only posix_fallocate, which cannot punch holes.
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2


#: Calls of preadv2 that a file system cannot serve from memory alone.
_CANNOT_SAY = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_RWF_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
#: Reads do not update the access time; only a file's owner may ask for this.
_O_NOATIME: int = getattr(os, "O_NOATIME", 0)


class _Descriptor:
    """An open descriptor, which is closed when its owner has closed it and no call uses it any
    more.

    A call enters it for its number. So that cannot become the number of another file under a
    thread that hangs or continues after a hang; and what refers to a call that has ended, as
    the frames of its error do, keeps nothing open: a disk that failed can be unmounted.
    """

    __slots__ = ("_is_closed", "_lock", "_number", "_users")

    def __init__(self, number: int) -> None:
        self._number = number
        self._users = 1  # its owner
        self._is_closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> int:
        with self._lock:
            if self._is_closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        return self._number

    def __exit__(self, *_: object) -> None:
        self._leave()

    def close(self) -> None:
        with self._lock:
            is_closed, self._is_closed = self._is_closed, True
        if not is_closed:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = not self._users
        if is_last:
            # Without the lock, which the loop's thread may want: this may wait for the disk.
            # Linux closes it in any case, and an error says nothing of what was synced.
            with contextlib.suppress(OSError):
                os.close(self._number)

    def __del__(self) -> None:
        """What an abandoned call has opened nobody gets."""
        self.close()


class RealFile:
    def __init__(self, number: int) -> None:
        self.held = _Descriptor(number)
        #: Whether the file system supports reads that fail rather than wait.
        self._reads_cached = bool(_RWF_NOWAIT)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        done = 0
        with self.held as number:
            while done < len(buffer):
                try:
                    count = os.preadv(number, [buffer[done:] if done else buffer], offset + done)
                except OSError as error:
                    raise _read_failed(error, number, offset) from error
                if not count:
                    break
                done += count
        return done

    def read_cached(self, buffer: memoryview, offset: int) -> bool:
        if not self._reads_cached:
            return False
        try:
            with self.held as number:
                return os.preadv(number, [buffer], offset, _RWF_NOWAIT) == len(buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _CANNOT_SAY:
                raise
            self._reads_cached = False
            return False

    def write(self, data: Buffer, offset: int) -> None:
        with self.held as number:
            done = os.pwrite(number, data, offset)
            if done < len(data):
                view = memoryview(data)
                while done < len(view):
                    done += os.pwrite(number, view[done:], offset + done)

    def copy_from(self, source: File, offset: int, count: int) -> None:
        if not isinstance(source, RealFile):
            raise TypeError("a real file is copied from a real file")
        end = offset + count
        with self.held as here, source.held as there:
            while offset < end:
                try:
                    done = os.copy_file_range(there, here, end - offset, offset, offset)
                except OSError as error:
                    if error.errno == errno.EIO:
                        # Taken for a read error: errors of writes appear at the sync.
                        raise _read_failed(error, there, offset) from error
                    if error.errno not in _CANNOT_COPY:
                        raise
                    done = _copy_some(there, here, offset, min(COPY_BYTES, end - offset))
                if not done:
                    raise ReadFailed(errno.EIO, "the file to be copied ended early")
                offset += done

    def size(self) -> int:
        with self.held as number:
            return os.fstat(number).st_size

    def truncate(self, size: int) -> None:
        with self.held as number:
            os.ftruncate(number, size)

    def punch(self, offset: int, count: int) -> None:
        code = errno.EOPNOTSUPP
        mode = _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE
        with self.held as number:
            while _fallocate is not None:
                if not _fallocate(number, mode, offset, count):
                    return
                code = ctypes.get_errno()
                if code != errno.EINTR:
                    break
        if code == errno.ENOSYS:
            code = errno.EOPNOTSUPP
        raise OSError(code, os.strerror(code))

    def start_sync(self, offset: int, count: int) -> None:
        # The next fdatasync reports an error.
        with contextlib.suppress(OSError), self.held as number:
            if _sync_file_range is not None:
                _sync_file_range(number, offset, count, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        with self.held as number:
            os.fdatasync(number)

    def drop_cached(self) -> None:
        with self.held as number:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self.held.close()


def _read_failed(error: OSError, number: int, offset: int) -> ReadFailed:
    """A read of an open file has ended with this error."""
    return ReadFailed(error.errno, error.strerror).at(os.fstat(number).st_ino, offset)


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    data = os.pread(source, count, offset)
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], offset + done)
    return done


_OPEN_FLAGS = {
    "r": os.O_RDONLY,
    "rw": os.O_RDWR,
    "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "replace": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
}
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Place(NamedTuple):
    """A resolved path: a name, and the open directory that it is relative to, if there is one."""

    name: str
    at: int | None

    def open(self, flags: int) -> int:
        return os.open(self.name, flags | os.O_CLOEXEC, 0o600, dir_fd=self.at)


class RealFileSystem:
    """``directory`` is absolute, or the prefix of the paths that are below it."""

    def __init__(self, directory: str = "", held: _Descriptor | None = None) -> None:
        self._directory = directory
        self._held = held

    def within(self, directory: str) -> RealFileSystem:
        directory = directory.rstrip("/") or "/"
        with self._place(directory) as place:
            return RealFileSystem(directory, _Descriptor(place.open(_OPEN_DIRECTORY)))

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    @contextlib.contextmanager
    def _place(self, path: str) -> Iterator[_Place]:
        """Where ``path`` is, for a call in this block."""
        held = self._held
        if held is not None and path.startswith(self._directory):
            name = path[len(self._directory) :]
            if not name or name[0] == "/" or self._directory == "/":
                with held as number:
                    yield _Place(name.lstrip("/") or ".", number)
                return
        yield _Place(path, None)

    @contextlib.contextmanager
    def _open_directory(self, path: str) -> Iterator[int]:
        with self._place(path) as place:
            number = place.open(_OPEN_DIRECTORY)
        try:
            yield number
        finally:
            os.close(number)

    def open(self, path: str, mode: str) -> RealFile:
        flags = _OPEN_FLAGS[mode]
        with self._place(path) as place:
            try:
                return RealFile(place.open(flags | _O_NOATIME))
            except PermissionError:
                return RealFile(place.open(flags))  # another user's file
            except OSError as error:
                if error.errno == errno.EIO and mode in ("r", "rw"):
                    raise ReadFailed(error.errno, error.strerror, path) from error
                raise

    def lock(self, path: str) -> RealFile:
        with self._place(path) as place:
            file = RealFile(place.open(os.O_RDWR | os.O_CREAT))
        try:
            with file.held as number:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(number).st_nlink:
                    # Its holder has deleted it meanwhile, and another may have made a new one.
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        except BaseException:
            file.close()
            raise
        return file

    def list(self, path: str) -> list[str]:
        with self._open_directory(path) as number:
            return os.listdir(number)

    def exists(self, path: str) -> bool:
        try:
            self._stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def file_size(self, path: str) -> int:
        return self._stat(path).st_size

    def _stat(self, path: str) -> os.stat_result:
        with self._place(path) as place:
            try:
                return os.stat(place.name, dir_fd=place.at)
            except OSError as error:
                if error.errno == errno.EIO:
                    raise ReadFailed(error.errno, error.strerror, path) from error
                raise

    def unlink(self, path: str) -> None:
        with self._place(path) as place:
            os.unlink(place.name, dir_fd=place.at)

    def rename(self, source: str, target: str) -> None:
        with self._place(source) as old, self._place(target) as new:
            os.replace(old.name, new.name, src_dir_fd=old.at, dst_dir_fd=new.at)

    def make_directories(self, path: str) -> None:
        with self._place(path) as place:
            if place.at is None:
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

    def remove_directory(self, path: str) -> None:
        with self._place(path) as place:
            os.rmdir(place.name, dir_fd=place.at)

    def sync_directory(self, path: str) -> None:
        with self._open_directory(path) as number:
            os.fsync(number)

    def sync_all(self, files: Sequence[File]) -> None:
        ended: queue.SimpleQueue[outcome.Outcome[None]] = queue.SimpleQueue()
        for file in files[1:]:
            trio.lowlevel.start_thread_soon(file.sync, ended.put)
        results = [outcome.capture(file.sync) for file in files[:1]]
        for result in results + [ended.get() for _ in files[1:]]:
            result.unwrap()

    def space(self, path: str) -> DiskSpace:
        with self._open_directory(path) as number:
            found = os.statvfs(number)
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

    def mount_point(self, path: str) -> str:
        point = os.path.realpath(path)
        while not os.path.ismount(point):
            point = os.path.dirname(point)
        return point

    def device(self, path: str) -> int:
        return os.stat(path).st_dev


def _mount_points(table: str, column: int) -> list[str]:
    """The mount points in a table of file systems, which has spaces in names as octal numbers."""
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
        #: How many bytes the kernel waits for before it wakes this process (SO_RCVLOWAT).
        self._wakes_at = 1
        #: Whether a worker thread is inside a system call on the socket.
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

    async def receive_into(self, buffer: memoryview, least: int = 1) -> int:
        await self._turn()
        while True:
            try:
                return self._socket.recv_into(buffer)
            except BlockingIOError:
                self._wake_at(least)
                await self._wait(trio.lowlevel.wait_readable)
            except OSError as error:
                raise self._map(error) from error

    def _wake_at(self, least: int) -> None:
        """A link brings a few kilobytes at a time, for each of which this process would be woken.
        The kernel does it sooner than asked where its buffer is full, or nothing more comes."""
        count = min(least, WAKE_BYTES_MAX) if least >= WAKE_BYTES_MIN else 1
        if count != self._wakes_at:
            self._wakes_at = count
            with contextlib.suppress(OSError):  # closed, as the wait will say
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

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

    def send_now(self, data: Buffer) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._map(error) from error

    async def send_file(
        self,
        file: File,
        offset: int,
        count: int,
        run: Runner | None = None,
    ) -> None:
        """As :meth:`gfs.io.Stream.send_file`. The disk is read in a worker thread; the
        wait for the peer is in the loop, so that a slow reader occupies no thread."""
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
        """Runs in a thread. Meanwhile the loop does not close the socket."""
        self._in_thread = True
        try:
            self._require_open()
            with file as number:
                return _send_file_some(self._socket, number, offset, count)
        except ConnectionError:
            raise
        except OSError as error:
            if error.errno in _OF_SOCKETS:
                raise self._map(error) from error
            raise _read_failed(error, number, offset) from error
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
            # the file would be sent over another connection. The shutdown ends the
            # system call; the task that waits for it closes the socket.
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


def _send_file_some(sock: socket.socket, file: int, offset: int, count: int) -> int:
    """Send until done or until the socket is full; returns the bytes sent."""
    sent = 0
    while sent < count:
        try:
            step = os.sendfile(sock.fileno(), file, offset + sent, count - sent)
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
    """Request large buffers where the kernel grants them; elsewhere its own autotuning
    allows more than a capped request."""
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
    """Not an address. A ConnectionError, because an address may come from a peer."""


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``. Raises BadAddress, which says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise BadAddress(f"{address!r} is not an address: write HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class RealListener:
    def __init__(self, sock: socket.socket, host: str) -> None:
        self._socket = sock
        # The name that was given stays the server's address: what it leads to may change with
        # each start (a pod's does), and a certificate is for the name.
        self.address = join_address(host, sock.getsockname()[1])

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
                continue  # gone before it was accepted
            return RealStream(sock, join_address(*name[:2]))

    def close(self) -> None:
        _close(self._socket)


class RealNetwork:
    async def connect(self, address: str) -> Stream:
        host, port = split_address(address)
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise ConnectionRefusedError(f"{address}: {error.strerror}") from None
        except UnicodeError:
            raise BadAddress(
                f"{address!r} is not an address: {host!r} is not a host name"
            ) from None
        last: OSError = ConnectionError(f"{address} has no address")
        for family, kind, protocol, _, name in found:
            try:
                return RealStream(await _connect(family, kind, protocol, name), address)
            except OSError as error:
                last = error
        is_refused = isinstance(last, ConnectionRefusedError)
        error_class = ConnectionRefusedError if is_refused else ConnectionError
        raise error_class(f"{address}: {last.strerror or last}") from last

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
        return RealListener(sock, host)


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
    """The kernel's clock that continues while the machine is suspended, if there is one."""
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
    """One blocking call of a worker thread."""

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
        #: The task that waits for it; None if the call was abandoned.
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self.result: outcome.Outcome[object] | None = None

    def abandon(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def end(self) -> None:
        """Called in the loop when nothing of the call runs any more."""
        self.limiter.release_on_behalf_of(self.borrower)


class _Worker:
    """A thread: its next job, and what it sleeps on until there is one."""

    __slots__ = ("job", "wake")

    def __init__(self, job: _Job) -> None:
        self.job: _Job | None = job
        self.wake = threading.Lock()
        self.wake.acquire()


class _Workers:
    """Threads for the blocking calls of one Trio run.

    With the contract of ``trio.to_thread.run_sync`` at less than half its cost,
    which a small write pays three times (once per replica): no thread names, no
    context, and calls that end together wake the loop once. Each thread sleeps by itself: one that
    takes a job from a ``queue.SimpleQueue`` wakes another one that waits there, for nothing.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.default_limiter = trio.to_thread.current_default_thread_limiter()
        #: The one that had work last is the next to get some, and others end in time. ``append``,
        #: ``pop`` and ``remove`` are each one step for threads.
        self._idle: list[_Worker] = []
        self._done: deque[_Job] = deque()
        self._waking = False  # the loop has been woken for what is in _done

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
        try:
            worker = self._idle.pop()
        except IndexError:
            of_new = (_Worker(job),)
            threading.Thread(target=self._work, args=of_new, name="gfs worker", daemon=True).start()
        else:
            worker.job = job
            worker.wake.release()

    def _work(self, worker: _Worker) -> None:
        while (job := worker.job) is not None:
            worker.job = None
            job.result = outcome.capture(job.function, *job.arguments)
            self._done.append(job)
            del job
            self._idle.append(worker)
            if not self._waking:
                self._waking = True
                # Fails only when the loop has crashed: then no task waits.
                with contextlib.suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._finish)
            if not worker.wake.acquire(timeout=WORKER_IDLE_SECONDS):
                try:
                    self._idle.remove(worker)
                except ValueError:
                    worker.wake.acquire()  # a job is on its way

    def _finish(self) -> None:
        # Cleared first: for what is put in after this the loop is woken again.
        self._waking = False
        while self._done:
            job = self._done.popleft()
            job.end()
            # The frame of the task has the job: with its error the two would be a circle.
            result, job.result = job.result, None
            assert result is not None
            if job.task is not None:
                trio.lowlevel.reschedule(job.task, result)


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
    """The kernel's boot id. Where there is none, each process gets its own: then, as
    far as it knows, data that a power cut may lose may be lost when the process
    ends."""
    try:
        with open(BOOT_PATH, encoding="ascii") as file:
            boot = file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        boot = ""
    return boot or os.urandom(16).hex()

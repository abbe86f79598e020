"""The file of a backup, which only grows until another one replaces it: a head, then records.

The head names the end of the last backup that is complete; it is written, and synced,
after everything before that end is on the disk. What is after it is the rest of a backup
that did not end, and is overwritten by the next. So a record before it that does not
match its checksum is damage, and never taken for such a rest. Each checksum covers the
one before it: no record can be missing, or at another place. Byte by byte in
docs/formats.md. All of this blocks.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import msgspec

from gfs.blocks import row_sum
from gfs.errors import InvalidArgument
from gfs.io import sync_directory, try_flock

MAGIC = b"GFSBKUP1"
#: Magic, end, checksum of the last record before it, checksum of these.
_HEAD = struct.Struct(">8sQQQ")
#: Length of the body, kind, checksum.
_RECORD = struct.Struct(">IBQ")
#: More than the largest piece and the largest row.
BODY_BYTES_MAX = 128 * 1024 * 1024
#: A shorter log is no reason to copy everything.
LOG_BYTES_MIN = 1024 * 1024

#: Rows of a database: :class:`Piece`. Rows of the operation log with their answers: a
#: msgpack array of [row, answer]. :class:`Point`: all before it is a complete backup.
PIECE, ROWS, POINT = 1, 2, 3


class Piece(msgspec.Struct, array_like=True):
    """As in :mod:`gfs.master.shadows.store_copy`."""

    database: str
    body: bytes


class Point(msgspec.Struct, array_like=True):
    """A backup is complete with operation ``sequence``, whose row has the checksum ``chain``."""

    cluster: str
    sequence: int
    chain: int
    #: The counters of the store, msgpack.
    state: bytes
    #: The wall clock's time when it was taken.
    time_ns: int
    #: The checksum of all pieces; empty unless this point ends them.
    sums: bytes = b""


class Record(NamedTuple):
    kind: int
    body: bytes


class BackupFile:
    """An open backup, locked. ``records`` must be read to the end before one is added."""

    def __init__(self, file: BinaryIO, path: str, end: int, chain: int) -> None:
        self._file = file
        self._path = path
        self._end = end
        self._chain = chain
        #: Bytes of the records that were read or added, by kind.
        self._sizes: Counter[int] = Counter()

    @property
    def is_mostly_log(self) -> bool:
        """Whether a copy of the present metadata is probably shorter."""
        return self._sizes[ROWS] > max(self._sizes[PIECE], LOG_BYTES_MIN)

    @classmethod
    def create(cls, path: str) -> BackupFile:
        """An empty one, in place of any that is there. Raises OSError, InvalidArgument."""
        file = _locked(path, os.O_RDWR | os.O_CREAT)
        file.truncate(0)
        backup = cls(file, path, _HEAD.size, 0)
        backup._write_head()
        return backup

    @classmethod
    def open(cls, path: str, *, to_read: bool = False) -> BackupFile:
        """``to_read``: nothing is added, so it may be where nothing can be written.
        Raises OSError (FileNotFoundError), InvalidArgument."""
        file = _locked(path, os.O_RDONLY if to_read else os.O_RDWR)
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(MAGIC):
            file.close()
            raise _no_backup(path)
        _, end, chain, sums = _HEAD.unpack(head)
        if sums != row_sum(head[:-8]) or os.fstat(file.fileno()).st_size < end:
            file.close()
            raise _damaged(path, 0)
        return cls(file, path, end, chain)

    def records(self) -> Iterator[Record]:
        """All records of complete backups, each checked. Raises InvalidArgument if one is
        damaged."""
        self._file.seek(_HEAD.size)
        at, chain = _HEAD.size, 0
        while at < self._end:
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                raise _damaged(self._path, at)
            length, kind, sums = _RECORD.unpack(head)
            if length > min(BODY_BYTES_MAX, self._end - at):
                raise _damaged(self._path, at)
            body = self._file.read(length)
            chain = _sums(chain, kind, body)
            if len(body) < length or sums != chain:
                raise _damaged(self._path, at)
            at += _RECORD.size + length
            self._sizes[kind] += length
            yield Record(kind, body)
        if chain != self._chain:
            raise _damaged(self._path, at)

    def last_point(self) -> Point | None:
        """Reads and checks the whole file."""
        last = None
        for record in self.records():
            if record.kind == POINT:
                last = msgspec.msgpack.decode(record.body, type=Point)
        return last

    def begin(self) -> None:
        """Forget the rest of a backup that did not end, and let records be added."""
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def add(self, kind: int, body: bytes) -> None:
        self._chain = _sums(self._chain, kind, body)
        self._sizes[kind] += len(body)
        self._file.write(_RECORD.pack(len(body), kind, self._chain))
        self._file.write(body)

    def complete(self, point: Point) -> None:
        """Add the point; durable when this returns. Raises OSError; then what was added is
        not part of the backup."""
        self.add(POINT, msgspec.msgpack.encode(point))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._end = self._file.tell()
        self._write_head()

    def replace(self, path: str) -> None:
        """Give it the name of an older one, durably."""
        os.replace(self._path, path)
        self._path = path
        sync_directory(os.path.dirname(path) or ".")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a rest that is not part of the backup
            self._file.close()

    def _write_head(self) -> None:
        head = _HEAD.pack(MAGIC, self._end, self._chain, 0)[:-8]
        self._file.seek(0)
        self._file.write(head + row_sum(head).to_bytes(8, "big"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(self._end)


def _sums(chain: int, kind: int, body: bytes) -> int:
    return row_sum(b"%s%c%s" % (chain.to_bytes(8, "big"), kind, body))


def _locked(path: str, flags: int) -> BinaryIO:
    # Without O_NONBLOCK a pipe would be waited for.
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _no_backup(path)
        # Another process may have given this file another name before it released the lock:
        # a new backup the name of the old one.
        if not try_flock(descriptor, shared=flags == os.O_RDONLY) or not _is_at(descriptor, path):
            raise InvalidArgument(f"{path} is in use by another gfs backup or gfs restore")
        return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b")
    except BaseException:
        os.close(descriptor)
        raise


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _no_backup(path: str) -> InvalidArgument:
    return InvalidArgument(f"{path} is not a backup made by gfs backup")


def _damaged(path: str, at: int) -> InvalidArgument:
    return InvalidArgument(
        f"{path} is damaged at byte {at}: use another copy of it; gfs backup makes a new one "
        "under another name"
    )

"""File objects, as fsspec and ``io`` have them.

A new file appears under its name when it is closed, whole, or not at all: a ``with`` block
that raises leaves what was there before, and so does a file that nobody closed. ``io``'s
classes close what the garbage collector finds, and also after a flush that failed: both times the
file may be half written, since a Ctrl-C can come between any two steps.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from fsspec.caching import BaseCache
from fsspec.caching import caches as fsspec_caches
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.transaction import Transaction

from gfs.blocks import BLOCK_BYTES, KIB, MIB, Buffer
from gfs.client.sync import SyncFile
from gfs.errors import GfsError, NotFound

#: Read ahead at most, of what is read in order.
AHEAD_BYTES_MAX = 4 * MIB
#: A read that is longer than so many times that is what it is.
LONG_READS = 4
#: Read at once in the search for the end of a line.
LINE_BYTES = 16 * KIB
#: Small writes are collected: each call of the client costs a change of threads.
WRITE_BUFFER_BYTES = 1 * MIB
UPDATE_BUFFER_BYTES = 64 * KIB
#: What closes its files the same way whether or not its block raised.
SILENT = {
    ("fsspec.core", "OpenFile.__exit__"),
    ("pandas.io.common", "IOHandles.__exit__"),
    ("pyarrow.parquet.core", "ParquetWriter.__exit__"),
}
#: From a file's ``close`` over theirs to their ``__exit__``.
SILENT_FRAMES = 2


class Ahead(BaseCache):
    """Reads ahead the more, the longer a file is read in order; little where it is not: what
    reads the end of a Parquet file wants a few KiB."""

    name = "gfs"

    def __init__(self, blocksize: int, fetcher: Any, size: int) -> None:
        super().__init__(blocksize, fetcher, size)
        #: The last bytes that were read, and where they begin; in one, since some use a file
        #: from several threads.
        self._held = (0, b"")
        self._ahead = BLOCK_BYTES

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        begin = 0 if start is None else start
        end = self.size if stop is None else min(stop, self.size)
        if begin >= end:
            return b""
        at, data = self._held
        known_end = at + len(data)
        have = b""
        if at <= begin < known_end:
            have = data[begin - at : end - at]
            if len(have) == end - begin:
                return have
        at = begin
        begin += len(have)
        in_order = begin == known_end
        self._ahead = min(2 * self._ahead, self.blocksize) if in_order else BLOCK_BYTES
        if end - begin > LONG_READS * self.blocksize:
            # Neither copied nor kept: memory is for what is read next.
            rest: bytes = self.fetcher(begin, end)
            self._held = (end, b"")
            return have + rest
        more: bytes = self.fetcher(begin, min(end + self._ahead, self.size))
        # From where it was asked for: who looks for the end of a line goes back to it.
        data = have + more
        self._held = (at, data)
        return data[: end - at]


class Reader(AbstractBufferedFile):
    """A file as it was when it was opened, read through one of fsspec's caches."""

    def __init__(
        self,
        fs: AbstractFileSystem,
        file: SyncFile,
        info: dict[str, Any],
        block_size: int | None,
        cache_type: str | None,
        cache_options: dict[str, Any] | None,
    ) -> None:
        self._file = file
        known = cache_type not in (None, Ahead.name)
        super().__init__(
            fs,
            file.path,
            "rb",
            block_size or AHEAD_BYTES_MAX,
            cache_type=cache_type if known else "none",
            cache_options=cache_options,
            size=file.length,
        )
        if not known:
            self.cache = Ahead(self.blocksize, self._fetch_range, file.length)
        self.details = info

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """As fsspec's, which for each line reads a block, here of some MiB, and goes back."""
        found: bytes = super().readuntil(char, blocks or LINE_BYTES)
        return found

    def _fetch_range(self, start: int, end: int) -> bytes:
        # Some caches ask from a thread of their own, which only this call allows. And it leaves
        # nothing to be closed: the collector may come by in the client's own thread.
        return self._file.pread(start, end - start)


class _Raw(io.RawIOBase):
    """What ``io``'s buffers write to, and read from."""

    def __init__(self, file: SyncFile, mode: str, position: int, *, publish: bool) -> None:
        self.file = file
        self.name = file.path
        self.mode = mode
        self._position = position
        self._publish = publish
        self._is_new = not file.seekable()
        self._appends = "a" in mode
        #: Whether bytes were written in place of others, of which the master does not know yet.
        self._changed = False
        self._given_up = False
        #: Whether all that was written has come here.
        self.whole = False
        #: Why nothing more is stored; "" as long as all is well.
        self.failure = ""

    def readable(self) -> bool:
        return self.file.readable()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def readinto(self, target: Any) -> int:
        data = self.file.pread(self._position, len(target))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        count = memoryview(data).nbytes
        if self._given_up:
            return count  # what a buffer still has is nobody's any more
        self.check()
        try:
            if self.file.seekable():
                if self._appends:
                    self._position = self.file.length  # wherever it was sought to, as everywhere
                else:
                    self._changed = True
                self.file.pwrite(self._position, data)
            else:
                self.file.write(data)
            self._position += count
            return count
        except BaseException as error:
            self.failure = f"{self.name}: lost, since a write failed: {error!r}"
            self.file.abort()
            raise

    def check(self) -> None:
        """Raise OSError if a write has failed: for who goes on all the same, nothing is stored
        any more."""
        if self.failure and not self._given_up:
            raise OSError(self.failure)

    def note_change(self) -> None:
        """After the bytes: who looked at the file before they were all there looks again."""
        if self._changed:
            self._changed = False
            with suppress(NotFound):  # it was deleted or replaced
                self.file.touch()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if not self.file.seekable():
            raise io.UnsupportedOperation(f"{self.file.path}: cannot seek in a new file")
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.file.length}[whence]
        if base + offset < 0:
            # As of every file: who looks for what the end of an archive has expects it.
            raise OSError(errno.EINVAL, f"seek to {base + offset}", self.name)
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Only to what the file has, which some do when all is written, or to more."""
        wanted = self._position if size is None else size
        length = self.file.length
        if wanted < length or (wanted > length and self._is_new):
            raise io.UnsupportedOperation(
                f"{self.name}: cannot be cut or filled to {wanted} bytes: it has {length}"
            )
        if wanted > length:
            self.check()
            self.file.pwrite(wanted - 1, b"\0")
        return wanted

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self._given_up:
                pass
            elif self._is_new and not self.whole:
                self.failure = self.failure or f"{self.name}: lost, since it was not closed in full"
                self.file.abort()
            elif self._publish:
                with suppress(GfsError):  # a write has failed, and that is said
                    self.note_change()
                self.file.close()
            elif not self.file.closed:
                self.file.flush()
        finally:
            super().close()

    def discard(self) -> None:
        self._given_up = True
        self.file.abort()
        with suppress(GfsError):  # nor is that which the block has raised to be lost
            self.note_change()

    def forget(self, *, warn: bool) -> bool:
        """Discard a new file, from the garbage collector. That comes by in any thread, also in
        the client's own, which must not wait for itself; so nobody waits. False of one that is
        changed in place: to be closed, as Python closes its own."""
        if not self._is_new and not self.failure:
            return False
        if not self._given_up:
            self._given_up = True
            if not self.file.closed:
                # No Thread: this one may hold the lock that the start of one takes.
                with suppress(RuntimeError):  # no more threads: the interpreter ends
                    start_new_thread(_abort, (self.file,))
                if warn:
                    lost = f"{self.name} was not closed: what was written is discarded"
                    warnings.warn(lost, ResourceWarning, stacklevel=4)
        return True

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was interrupted while it was made
            self.forget(warn=False)


def _abort(file: SyncFile) -> None:
    # The client may be closed, or be that of the process which this one was forked from.
    with suppress(GfsError, OSError, RuntimeError, ValueError):
        file.abort()


class _Block:
    """A ``with`` block that raises leaves the path as it was."""

    def __exit__(
        self: Any,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def __del__(self: Any) -> None:
        with suppress(AttributeError, ValueError):  # as above
            if not self.closed and not self.forget():
                super().__del__()  # type: ignore[misc]


class _Written(_Block):
    """What both kinds of written file have besides ``io``'s methods."""

    fs: AbstractFileSystem
    raw: Any

    @property
    def path(self) -> str:
        return str(self.raw.name)

    @property
    def size(self) -> int:
        return int(self.raw.file.length)

    def flush(self) -> None:
        super().flush()  # type: ignore[misc]
        self.raw.note_change()

    def commit(self) -> None:
        """Publish a file of a transaction, which need not be closed."""
        self.close()
        self.raw.check()
        self.raw.file.close()

    def discard(self) -> None:
        """Leave the path as it was before the file was opened."""
        self.raw.discard()
        self.close()

    def close(self) -> None:
        if self.raw.closed:
            return
        self._discard_if_left_by_an_error()
        failed = bool(self.raw.failure)
        if self.raw.whole:  # and was interrupted then: io's buffer is gone
            self.raw.close()
            return
        try:
            self.flush()
            self.raw.whole = True
        except BaseException:
            with suppress(OSError):  # which says the same again
                super().close()  # type: ignore[misc]
            raise
        super().close()  # type: ignore[misc]
        if failed:
            self.raw.check()

    def forget(self) -> bool:
        return bool(self.raw.forget(warn=True))

    def _discard_if_left_by_an_error(self) -> None:
        """Some close their files when their block raises, and do not say that it did: only
        their own frame knows. Who else closes a file is taken at their word, also where an
        exception is handled."""
        error = sys.exception()
        if error is None:
            return
        frame: FrameType | None = sys._getframe(1)
        for _ in range(SILENT_FRAMES):
            frame = frame and frame.f_back
        if frame is None:
            return
        if (frame.f_globals.get("__name__"), frame.f_code.co_qualname) in SILENT:
            given = frame.f_locals.values()
            if any(error in each if type(each) is tuple else error is each for each in given):
                self.raw.discard()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}, mode {self.raw.mode!r}>"


class Writer(_Written, io.BufferedWriter):
    """A new file, or what is added at the end of one."""

    def __init__(self, fs: AbstractFileSystem, file: SyncFile, mode: str, *, publish: bool) -> None:
        self.fs = fs
        raw: io.RawIOBase = _Raw(file, mode, file.length, publish=publish)
        io.BufferedWriter.__init__(self, raw, WRITE_BUFFER_BYTES)


class Updater(_Written, io.BufferedRandom):
    """A file that is changed in place."""

    def __init__(self, fs: AbstractFileSystem, file: SyncFile, mode: str) -> None:
        self.fs = fs
        raw: io.RawIOBase = _Raw(file, mode, 0, publish=True)
        io.BufferedRandom.__init__(self, raw, UPDATE_BUFFER_BYTES)


class Compressed(_Block, io.BufferedIOBase):
    """What is written through one of fsspec's compressions, none of which closes the file that it
    writes to, or knows whether its block has raised."""

    def __init__(self, file: Writer, compress: Callable[..., Any]) -> None:
        self._file = file
        self._ended = True  # if there is no such compressor, there is nothing to close
        self._compressor = compress(file, mode="w")
        self._ended = False

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        return int(self._compressor.write(data))

    def tell(self) -> int:
        return int(self._compressor.tell())

    def flush(self) -> None:
        if not self._ended:
            self._compressor.flush()

    def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            self._compressor.close()
        except BaseException:
            self._file.discard()
            raise
        finally:
            super().close()
            self._file.close()

    def commit(self) -> None:
        self.close()
        self._file.commit()

    def discard(self) -> None:
        self._file.raw.discard()
        self.close()

    def forget(self) -> bool:
        return self._file.forget()


class Text(_Block, io.TextIOWrapper):
    """Text in one of these files."""

    def __enter__(self) -> Self:
        return self

    def commit(self) -> None:
        self.close()
        self.buffer.commit()  # type: ignore[attr-defined]

    def discard(self) -> None:
        getattr(self.buffer, "discard", self.close)()

    def forget(self) -> bool:
        return bool(getattr(self.buffer, "forget", bool)())


class Delayed(Transaction):
    """Ends also when a commit fails, in every version of fsspec: or all that is written after it
    would be delayed, too, and never published."""

    fs: Any

    def complete(self, commit: bool = True) -> None:
        self.fs._intrans, self.fs._transaction = False, None
        self.fs = None
        try:
            while self.files:
                if commit:
                    self.files[0].commit()
                else:
                    self.files[0].discard()
                self.files.popleft()
        finally:
            while self.files:
                with suppress(Exception):  # the first error is the one to know of
                    self.files.popleft().discard()


def known_cache(name: str | None) -> bool:
    return name is None or name == Ahead.name or name in fsspec_caches

"""File objects: reading, writing a new file, updating one in place.

All are async context managers. A new file is published when the block ends without an
exception, and discarded otherwise.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import trio

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, Buffer
from gfs.client.core import ClientCore, one_request
from gfs.client.mutate import write_in_place
from gfs.client.publish import PublishOptions
from gfs.client.read import (
    PIECE_BYTES_MAX,
    SMALL_BYTES,
    STEP_BYTES,
    BlockStream,
    FileMap,
    memory_of,
    read_pieces,
)
from gfs.client.transfer import stream
from gfs.client.upload import Upload
from gfs.errors import InvalidArgument
from gfs.protocol.messages import Entry

MODES = ("r", "w", "x", "r+")


def normal_mode(mode: str) -> str:
    """``rb``, ``r+b`` … without the ``b``. Raises InvalidArgument for other modes."""
    plain = mode.replace("b", "")
    if plain not in MODES:
        raise InvalidArgument(
            f"mode {mode!r} is unknown: r reads, w writes a new file and replaces "
            "an old one on close, x refuses to replace, r+ updates in place"
        )
    return plain


class File:
    """The common part of all file objects. Calls that the mode does not allow raise
    ``io.UnsupportedOperation``. One task at a time, except for ``pread``."""

    def __init__(self, core: ClientCore, path: str, mode: str) -> None:
        self._core = core
        self.path = path
        self.mode = mode
        self.closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
        else:
            await self.abort()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.path}: the file is closed")

    def _refuse(self, what: str) -> io.UnsupportedOperation:
        return io.UnsupportedOperation(f"{self.path}: {what} with mode {self.mode!r}")

    @property
    def length(self) -> int:
        """Length of the file as this object knows it."""
        raise NotImplementedError

    async def read(self, count: int = -1) -> bytes:
        """Up to ``count`` bytes from the position, all the rest if it is negative; fewer
        only at the end. Verified. The position advances."""
        raise self._refuse("cannot read")

    async def readinto(self, target: Buffer) -> int:
        """As ``read``, into the caller's memory: without a copy where the position
        is at a block boundary. Returns the count, 0 at the end."""
        raise self._refuse("cannot read")

    async def pread(self, offset: int, count: int) -> bytes:
        """``count`` bytes at ``offset``, fewer at the end. The position does not change."""
        raise self._refuse("cannot read")

    async def write(self, data: Buffer) -> int:
        """Write all of ``data`` at the position, which advances."""
        raise self._refuse("cannot write")

    async def pwrite(self, offset: int, data: Buffer) -> int:
        """Write all of ``data`` at ``offset``; it is on all replicas on return.

        Past the end, the bytes in between read as zeros and take no space. Concurrent
        writers of separate ranges all keep what they wrote.
        """
        raise self._refuse("cannot write at an offset (use mode r+)")

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        raise self._refuse("cannot seek")

    def tell(self) -> int:
        raise NotImplementedError

    async def flush(self) -> None:
        """Send all written bytes; on return they are on all replicas."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Close the file. A new file is published; see :class:`NewFile`."""
        raise NotImplementedError

    async def abort(self) -> None:
        """Close the file without publishing anything."""
        await self.close()


class ExistingFile(File):
    """A published file, read, and in mode ``r+`` also written in place."""

    def __init__(self, core: ClientCore, map_: FileMap, mode: str) -> None:
        super().__init__(core, map_.path, mode)
        self._map = map_
        self._length = map_.entry.length
        self._position = 0
        self._stream: BlockStream | None = None
        # Unread bytes of the stream's last step, from _ahead_at on, and until when they may
        # be used.
        self._ahead = memoryview(b"")
        self._ahead_at = 0
        self._ahead_until = 0.0

    @property
    def entry(self) -> Entry:
        return self._map.entry

    @property
    def length(self) -> int:
        return self._length

    def tell(self) -> int:
        return self._position

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}.get(whence)
        if base is None or base + offset < 0:
            raise InvalidArgument(f"{self.path}: seek to {offset}, whence {whence}")
        if base + offset != self._position:
            self._drop_stream()
            self._position = base + offset
        await trio.lowlevel.checkpoint()
        return self._position

    @one_request
    async def read(self, count: int = -1) -> bytes:
        self._check_open()
        left = max(0, self._length - self._position)
        want = left if count < 0 else min(count, left)
        memory = memory_of(want)
        with memory.getbuffer() as view:
            got = await self.readinto(view)
        return memory.getvalue()[:got]

    @one_request
    async def readinto(self, target: Buffer) -> int:
        self._check_open()
        with memoryview(target).cast("B") as view:
            want = min(len(view), max(0, self._length - self._position))
            done = 0
            while done < want:
                with view[done:want] as rest:
                    count = await self._read_some(rest)
                if not count:
                    break
                done += count
                self._position += count
            return done

    async def _read_some(self, target: memoryview) -> int:
        """Read from what was read ahead, else from the stream: straight into
        ``target`` where blocks fit, through a buffer where they do not."""
        if self._ahead and self._core.world.clock.monotonic() > self._ahead_until:
            self._drop_stream()
        if self._ahead_at < len(self._ahead):
            count = min(len(target), len(self._ahead) - self._ahead_at)
            target[:count] = self._ahead[self._ahead_at : self._ahead_at + count]
            self._ahead_at += count
            return count
        rest = self._position + len(target) == self._length
        if rest and self._stream is None and len(target) <= SMALL_BYTES:
            await read_pieces(self._core, self._map, self._position, target)
            return len(target)
        stream = self._open_stream()
        skip = self._position - stream.position
        whole = len(target) - len(target) % BLOCK_BYTES
        if self._position + len(target) == stream.end:
            whole = len(target)
        if not skip and whole:
            return await stream.read_into(target[:whole])
        return await self._read_ahead(stream, skip, target)

    async def _read_ahead(self, stream: BlockStream, skip: int, target: memoryview) -> int:
        step = bytearray(min(STEP_BYTES, stream.end - stream.position))
        got = await stream.read_into(memoryview(step))
        self._ahead, self._ahead_until = memoryview(step)[:got], stream.until
        count = min(len(target), got - skip)
        target[:count] = self._ahead[skip : skip + count]
        self._ahead_at = skip + count
        return count

    def _open_stream(self) -> BlockStream:
        start = self._position - self._position % BLOCK_BYTES
        if self._stream is None or self._stream.position != start:
            self._drop_stream()
            self._stream = BlockStream(self._core, self._map, start, self._length)
        return self._stream

    def _drop_stream(self) -> None:
        self._ahead, self._ahead_at = memoryview(b""), 0
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    @one_request
    async def pread(self, offset: int, count: int) -> bytes:
        self._check_open()
        if offset < 0 or count < 0:
            raise InvalidArgument(f"{self.path}: pread of {count} bytes at {offset}")
        count = min(count, max(0, self._length - offset))
        memory = memory_of(count)
        with memory.getbuffer() as view:
            if count > PIECE_BYTES_MAX:
                await self._pread_long(offset, view)
            else:
                await read_pieces(self._core, self._map, offset, view)
        return memory.getvalue()

    def stream(
        self, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """As ``Client.stream``, of the file as it was opened: the path is not looked up
        again. The position does not change.

        Raises FileChanged when the file is deleted or replaced meanwhile and its
        chunks have to be asked for again.
        """
        self._check_open()
        return stream(self._core, self._map, offset, length)

    def blocks(self, offset: int) -> BlockStream:
        """The file as it was opened, from ``offset``, a multiple of ``BLOCK_BYTES``, forwards into
        the caller's memory. The position does not change; others may read and write meanwhile.

        Reading raises what :meth:`stream` raises.
        """
        self._check_open()
        return BlockStream(self._core, self._map, offset, self._length)

    async def _pread_long(self, offset: int, view: memoryview) -> None:
        head = -offset % BLOCK_BYTES
        if head:
            await read_pieces(self._core, self._map, offset, view[:head])
        end = offset + len(view)
        # The file may have grown since it was opened: then its last block was shorter than
        # it is now.
        whole_end = end if end == self._map.entry.length else end - end % BLOCK_BYTES
        stream = BlockStream(self._core, self._map, offset + head, whole_end)
        try:
            done = head
            while stream.position < stream.end:
                done += await stream.read_into(view[done : whole_end - offset])
        finally:
            stream.close()
        if done < len(view):
            await read_pieces(self._core, self._map, offset + done, view[done:])

    @one_request
    async def write(self, data: Buffer) -> int:
        count = await self.pwrite(self._position, data)
        self._drop_stream()
        self._position += count
        return count

    @one_request
    async def pwrite(self, offset: int, data: Buffer) -> int:
        self._check_open()
        if self.mode != "r+":
            raise self._refuse("cannot write")
        if offset < 0:
            raise InvalidArgument(f"{self.path}: pwrite at {offset}")
        with memoryview(data).cast("B") as view:
            if not len(view):
                return 0
            self._drop_stream()
            if offset // CHUNK_BYTES > self._length // CHUNK_BYTES:
                # Make the chunks in between, unless others have made them.
                await self._map.refresh(offset // CHUNK_BYTES)
                self._length = max(self._length, self._map.entry.length)
            self._length = await write_in_place(
                self._core, self._map.entry.inode, self._length, offset, view
            )
            await self._map.refresh(offset // CHUNK_BYTES)
            return len(view)

    @one_request
    async def close(self) -> None:
        self._drop_stream()
        self.closed = True
        await trio.lowlevel.checkpoint()


class NewFile(File):
    """A file being written. ``close`` publishes it: until then, and if it is
    aborted, the path is unchanged."""

    def __init__(
        self, core: ClientCore, path: str, replication: int, options: PublishOptions
    ) -> None:
        super().__init__(core, path, "w" if options.replace else "x")
        self._options = options
        self._upload = Upload(core, replication)
        self.entry: Entry | None = None
        #: The file that this one replaced, once it is published.
        self.replaced: Entry | None = None
        self._joined: tuple[Entry, ...] = ()

    def join(self, files: Sequence[Entry]) -> None:
        """Give the new file the chunks that these files have, one's after the other's, instead of
        bytes: they keep them, and no byte moves. A chunk that several files have is copied before
        one of them is written in place.

        All but the last must be of whole chunks (64 MiB), and all must be as they were published.
        The goal of the new file counts for its chunks, too. ``close`` raises FileChanged if one was
        deleted, replaced or written in place since. At most 10,000. Raises InvalidArgument.
        """
        self._check_open()
        if self._upload.length:
            raise InvalidArgument(f"{self.path}: bytes were written already")
        if any(each.kind != "file" for each in files):
            raise InvalidArgument(f"{self.path}: only files can be joined")
        if any(each.length % CHUNK_BYTES for each in files[:-1]):
            raise InvalidArgument(f"{self.path}: only the last may end in a chunk")
        self._joined = tuple(files)

    def expect(self, inode: int) -> None:
        """Set the condition on the path at publication, instead of the ``expect`` given to
        :meth:`Client.create`."""
        self._check_open()
        self._options = replace(self._options, expect=inode)

    def keep_for_readers(self, inode: int) -> None:
        """Of the files that this one may replace, keep only the one with this inode for those who
        read it, for a while: any other is deleted at once, and reads of it fail. 0: keep none."""
        self._check_open()
        self._options = replace(self._options, keeps=inode)

    def describe(self, attributes: Mapping[str, str], modified_ns: int = 0) -> None:
        """Set the attributes, instead of those given to :meth:`Client.create`, and the time of
        change that the file is published with (0: the present time)."""
        self._check_open()
        self._options = replace(self._options, attributes=attributes, modified_ns=modified_ns)

    @property
    def length(self) -> int:
        return self._upload.length + sum(each.length for each in self._joined)

    def tell(self) -> int:
        return self.length

    @one_request
    async def write(self, data: Buffer) -> int:
        self._check_open()
        if self._joined:
            raise InvalidArgument(f"{self.path}: it has the bytes of other files")
        with memoryview(data) as view:
            count = view.nbytes
        try:
            await self._upload.write(data)
        except BaseException:
            await self.abort()
            raise
        return count

    @one_request
    async def flush(self) -> None:
        self._check_open()
        try:
            await self._upload.flush()
        except BaseException:
            await self.abort()
            raise

    @one_request
    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._joined:
            reply = await self._upload.join(self.path, self._options, self._joined)
        else:
            reply = await self._upload.publish(self.path, self._options)
        self.entry, self.replaced = reply.entry, next(iter(reply.replaced), None)

    async def abort(self) -> None:
        self.closed = True
        await self._upload.abort()

"""put and get: whole files between local programs and the cluster.

A source that can be read again (a local path, bytes, a seekable file object) is
uploaded from the start if all servers with a part of it are lost; with other sources
the call raises.
"""

from __future__ import annotations

import contextlib
import inspect
import mmap
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from typing import BinaryIO, Protocol, runtime_checkable

from msgspec.structs import replace

from gfs.blocks import BLOCK_BYTES, Buffer
from gfs.client.core import ClientCore
from gfs.client.items import bytes_in
from gfs.client.publish import PublishOptions
from gfs.client.read import (
    SMALL_BYTES,
    STEP_BYTES,
    BlockStream,
    FileMap,
    Patience,
    check_path,
    memory_of,
    read_pieces,
)
from gfs.client.small import WRITTEN_AGAIN, get_small, put_small
from gfs.client.upload import OWN_BUFFER_BYTES, Upload
from gfs.diagnostics import asked_for
from gfs.errors import AlreadyExists, FileChanged, InvalidArgument
from gfs.protocol.buffers import BufferPool
from gfs.protocol.messages import SMALL_BYTES_MAX, Entry, LocateReply

Progress = Callable[[int], object]
Source = str | os.PathLike[str] | Buffer | BinaryIO | AsyncIterable[bytes]
Target = str | os.PathLike[str] | BinaryIO

#: Attempts of a whole upload or download before the error is raised.
TRIES_MAX = 3


def _no_progress(_: int) -> None:
    pass


@runtime_checkable
class Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...


async def put(
    core: ClientCore,
    source: Source,
    path: str,
    *,
    options: PublishOptions,
    replication: int,
    progress: Progress | None,
    small: bool = True,
) -> Entry:
    """``small``: it may go with other small ones."""
    check_path(path)
    report = progress or _no_progress
    if isinstance(source, (bytes, bytearray, memoryview)):
        size = bytes_in(source)
        if small and size <= SMALL_BYTES_MAX:
            # A caller that gives up may change a mutable buffer.
            reply = await put_small(core, path, bytes(source), options, replication)
            if reply is not None:
                report(size)
                return reply.entry
            small = False
    feed = _feeder(core, source)
    for attempt in range(1, TRIES_MAX + 1):
        upload = Upload(core, replication, small, again=feed.can_rewind())
        try:
            await feed.fill(upload, report)
            return (await upload.publish(path, options)).entry
        # Servers that filled up: the master finds others, or makes room, or refuses.
        except WRITTEN_AGAIN:
            again = attempt < TRIES_MAX and feed.can_rewind()
            if not again:
                raise
            report(-upload.length)
        finally:
            await upload.abort()
    raise AssertionError("the loop above returns or raises")


class _Feed:
    """Where the bytes come from."""

    async def fill(self, upload: Upload, progress: Progress) -> None:
        raise NotImplementedError

    def can_rewind(self) -> bool:
        return True


class _BytesFeed(_Feed):
    def __init__(self, data: Buffer) -> None:
        self._data = data

    async def fill(self, upload: Upload, progress: Progress) -> None:
        await upload.write(self._data)
        progress(upload.length)


class _FileFeed(_Feed):
    """A blocking file object, read in worker threads straight into packets."""

    def __init__(self, core: ClientCore, file: BinaryIO) -> None:
        self._core = core
        self._file = file
        try:
            self._start: int | None = file.tell() if file.seekable() else None
        except (OSError, AttributeError):
            self._start = None

    def can_rewind(self) -> bool:
        return self._start is not None

    async def fill(self, upload: Upload, progress: Progress) -> None:
        run = self._core.world.run_blocking
        if self._start is not None and self._file.tell() != self._start:
            await run(self._file.seek, self._start)
        while True:
            with await upload.buffer() as free:
                count = await run(self._read, free)
            if not count:
                return
            upload.advance(count)
            progress(count)

    def _read(self, free: memoryview) -> int:
        readinto = getattr(self._file, "readinto", None)
        if readinto is not None:
            return int(readinto(free) or 0)
        data = self._file.read(len(free))
        free[: len(data)] = data
        return len(data)


class _PathFeed(_Feed):
    def __init__(self, core: ClientCore, path: str) -> None:
        self._core = core
        self._path = path

    async def fill(self, upload: Upload, progress: Progress) -> None:
        run = self._core.world.run_blocking
        file = await run(_open_regular, self._path)
        try:
            await _FileFeed(self._core, file).fill(upload, progress)
        finally:
            file.close()


def _open_regular(path: str) -> BinaryIO:
    file = open(path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    kind = os.fstat(file.fileno()).st_mode
    if stat.S_ISDIR(kind):
        file.close()
        raise IsADirectoryError(21, "is a directory", path)
    return file


class _IteratorFeed(_Feed):
    def __init__(self, source: AsyncIterable[bytes]) -> None:
        self._source = source

    def can_rewind(self) -> bool:
        return False

    async def fill(self, upload: Upload, progress: Progress) -> None:
        async for piece in self._source:
            await upload.write(piece)
            progress(len(piece))


def _feeder(core: ClientCore, source: Source) -> _Feed:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _BytesFeed(source)
    if isinstance(source, (str, os.PathLike)):
        return _PathFeed(core, os.fspath(source))
    if isinstance(source, AsyncIterable):
        return _IteratorFeed(source)
    if isinstance(source, Readable) and not inspect.iscoroutinefunction(source.read):
        return _FileFeed(core, source)
    raise InvalidArgument(
        f"cannot put a {type(source).__name__}: give a path, bytes, a binary file object "
        "or an async iterator of bytes"
    )


async def stream(
    core: ClientCore,
    source: FileMap | str,
    offset: int = 0,
    length: int | None = None,
    *,
    request: int = 0,
) -> AsyncGenerator[memoryview, None]:
    """The bytes of a file, or of the one at a path, in verified pieces of up to
    1 MiB; each view is valid until the next step. All messages carry one request id: the
    one given, else that of the first step."""
    asked = asked_for(request or core.present_request())
    with asked:
        file = source if isinstance(source, FileMap) else await FileMap.open(core, source)
    if offset < 0 or (length is not None and length < 0):
        raise InvalidArgument(f"{file.path}: {length} bytes at {offset}")
    end = file.entry.length if length is None else min(file.entry.length, offset + length)
    if end - offset <= SMALL_BYTES:
        if end > offset:
            with memoryview(bytearray(end - offset)) as piece:
                with asked:
                    await read_pieces(core, file, offset, piece)
                yield piece
        return
    position = offset
    blocks = BlockStream(core, file, offset - offset % BLOCK_BYTES, end)
    steps = _StepBuffer(core.buffers)
    try:
        while position < end:
            start = blocks.position
            with steps.view(blocks.end - start) as step:
                with asked:
                    got = await blocks.read_into(step)
                with step[position - start : min(got, end - start)] as view:
                    position = start + got
                    yield view
    finally:
        blocks.close()
        steps.close()


class _StepBuffer:
    """Memory for a download's steps: a buffer of the client's pool, or, while the pool
    is empty, a small one of its own. A consumer may hold a step for any time, so no task
    waits for a buffer of another."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._pooled: mmap.mmap | None = None
        self._own = bytearray()

    def view(self, left: int) -> memoryview:
        """Memory for the next step: whole blocks, or all the ``left`` bytes."""
        if self._pooled is None:
            self._pooled = self._pool.acquire_now()
        if self._pooled is not None:
            return memoryview(self._pooled)[: min(STEP_BYTES, left)]
        if not self._own:
            self._own = bytearray(min(OWN_BUFFER_BYTES, left))
        return memoryview(self._own)[:left]

    def close(self) -> None:
        if self._pooled is not None:
            self._pool.release(self._pooled)
            self._pooled = None


async def get_bytes(core: ClientCore, path: str, progress: Progress | None) -> bytes:
    one = await get_small(core, path)
    if one.data is None:
        return await read_bytes(core, path, one.located, progress)
    if progress is not None:
        progress(len(one.data))
    return one.data


async def read_bytes(
    core: ClientCore,
    path: str,
    located: LocateReply | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> bytes:
    """A file of any size. ``located`` is what the master has just answered; ``patience`` is shared
    with other files."""
    report = progress or _no_progress
    for attempt in range(1, TRIES_MAX + 1):
        if located is None:
            file = await FileMap.open(core, path, patience=patience)
        else:
            file, located = await FileMap.of(core, path, located, patience=patience), None
        memory = memory_of(file.entry.length)
        blocks = BlockStream(core, file, 0, file.entry.length)
        try:
            with memory.getbuffer() as view:
                if len(view) <= SMALL_BYTES:
                    await read_pieces(core, file, 0, view)
                    report(len(view))
                else:
                    while blocks.position < blocks.end:
                        with view[blocks.position :][:STEP_BYTES] as step:
                            report(await blocks.read_into(step))
            return memory.getvalue()
        except FileChanged:
            if attempt == TRIES_MAX:
                raise
            report(-blocks.position)
        finally:
            blocks.close()
    raise AssertionError("the loop above returns or raises")


async def get_to_file(
    core: ClientCore, path: str, target: BinaryIO, progress: Progress | None
) -> Entry:
    """Write the file's bytes to ``target`` as they arrive. Not atomic: it is a stream."""
    report = progress or _no_progress
    file = await FileMap.open(core, path)
    entry = replace(file.entry)  # more may be known while it is read
    async with aclosing(stream(core, file, 0, entry.length)) as pieces:
        async for view in pieces:
            await core.world.run_blocking(_write_all, target, view)
            report(len(view))
    return entry


def _write_all(target: BinaryIO, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = target.write(view[done:])
        if count is None:
            raise BlockingIOError("the target is not ready: give a blocking file")
        done += count


async def get_to_path(
    core: ClientCore, path: str, target: str, *, overwrite: bool, progress: Progress | None
) -> Entry:
    """Fetch into a local file, which gets its name only when it is complete."""
    run = core.world.run_blocking
    report = progress or _no_progress
    await run(check_free, target, overwrite)
    for attempt in range(1, TRIES_MAX + 1):
        file = await FileMap.open(core, path)
        entry = replace(file.entry)
        part = LocalPart(target)
        moved = 0
        try:
            await run(part.open)
            async with aclosing(stream(core, file, 0, entry.length)) as pieces:
                async for view in pieces:
                    await run(part.write, view)
                    moved += len(view)
                    report(len(view))
            await run(part.commit, overwrite)
            return entry
        except FileChanged:
            if attempt == TRIES_MAX:
                raise
            report(-moved)
        finally:
            part.discard()
    raise AssertionError("the loop above returns or raises")


def check_free(target: str, overwrite: bool) -> None:
    """Blocks. Raises AlreadyExists."""
    if not overwrite and os.path.lexists(target):
        raise _taken(target, "exists: overwrite it explicitly, or name another file")


def _taken(target: str, why: str) -> AlreadyExists:
    error = AlreadyExists(f"{target}: {why}")
    error.filename = target  # or that of a blocking call would be the path in the cluster
    return error


class LocalPart:
    """A local file that gets its name when it is complete. Methods block."""

    def __init__(self, target: str) -> None:
        self._target = target
        name = f".gfs-{os.getpid()}-{id(self):x}.part"
        self._part = os.path.join(os.path.dirname(target), name)
        self._file: BinaryIO | None = None

    def open(self) -> None:
        folder = os.path.dirname(self._target)
        if folder:
            os.makedirs(folder, exist_ok=True)
        self._file = open(self._part, "xb", buffering=0)  # noqa: SIM115

    def write(self, view: memoryview) -> None:
        assert self._file is not None
        _write_all(self._file, view)

    def skip(self, count: int) -> None:
        """Leave a hole."""
        assert self._file is not None
        self._file.truncate(self._file.seek(count, os.SEEK_CUR))

    def commit(self, overwrite: bool) -> None:
        assert self._file is not None
        self._file.close()
        if overwrite:
            os.replace(self._part, self._target)
        else:
            self._commit_new()
        self._file = None

    def _commit_new(self) -> None:
        """Take the name unless someone took it in the meantime."""
        taken = _taken(self._target, "was created meanwhile: it was not replaced")
        try:
            os.link(self._part, self._target)  # refuses an existing name
        except FileExistsError:
            raise taken from None
        except OSError:
            # This file system has no links: a check before the rename is the best possible.
            if os.path.lexists(self._target):
                raise taken from None
            os.rename(self._part, self._target)
        else:
            os.unlink(self._part)

    def discard(self) -> None:
        """Remove what was not committed."""
        if self._file is not None:
            self._file.close()
            self._file = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._part)

"""The bytes of a file that is open here: which of them are where.

At any time the file is in one of three states:

- *whole*: all of it is in memory; it is stored whole, in one go. New and emptied files are, up to
  ``WHOLE_BYTES_MAX``.
- *streamed*: it is being uploaded, in order, and appears as a whole when that ends.
- *stored*: it is in the cluster, and ``extents`` are what is to be written into it.

What is written next decides whether a file stays in its state. To read what only a stream has, or
to write elsewhere, ends the stream. Storing a file whole gives it a new inode, which takes the name
from the old one and nothing else: if another client has replaced the file meanwhile, the one that
is closed last remains; if it was deleted, there is ESTALE.
"""

from __future__ import annotations

import logging
from contextlib import aclosing

import trio

from gfs.blocks import MIB, Buffer
from gfs.client import Client, Entry, ExistingFile, NewFile
from gfs.errors import ChunkUnavailable, DeadlineExceeded, FileChanged, GfsError, NotFound
from gfs.mount.extents import Extents
from gfs.mount.forward import Forward
from gfs.mount.nodes import Node, Nodes
from gfs.mount.posix import POSIX, Posix
from gfs.mount.space import storing

log = logging.getLogger(__name__)

WHOLE_BYTES_MAX = 4 * MIB
#: What is to be written in place is written when it is so much, or so many ranges.
EXTENTS_BYTES_MAX = 4 * MIB
EXTENTS_MAX = 256
#: A stream has so many writes waiting, of up to 1 MiB each, while others are sent.
WRITES_WAITING = 4
#: Of all files that are open, in memory and not stored, or stored and still in memory.
MEMORY_BYTES_MAX = 256 * MIB
#: What was written is stored after so long even if nobody closes or syncs the file.
DIRTY_SECONDS = 5.0
#: How often a file is stored under a name that others replace meanwhile.
TRIES = 4


class Open:
    """All files that are open here, and what they have in common."""

    def __init__(self, client: Client, nodes: Nodes, nursery: trio.Nursery) -> None:
        self.client = client
        self.nodes = nodes
        self.nursery = nursery
        self._files: dict[Node, Contents] = {}
        #: Held where a name must stay what it is.
        self.renaming = trio.Lock()

    def get(self, node: Node) -> Contents | None:
        return self._files.get(node)

    def add(self, node: Node, file: ExistingFile | None) -> Contents:
        """``file`` is None for one that was made just now."""
        node.is_open = True
        self._files[node] = made = Contents(self, node, file)
        return made

    async def remove(self, node: Node) -> None:
        """Nobody has it open any more."""
        node.is_open = False
        await self._files.pop(node).discard()

    def all(self) -> list[Contents]:
        return list(self._files.values())

    async def make_room(self, asking: Contents) -> None:
        """Until what is in memory is within its bound again. Raises what storing raises, but not
        for what is amiss with one other file as long as the rest can make room."""
        failed: dict[Contents, ChunkUnavailable] = {}
        while sum(each.memory for each in self.all()) > MEMORY_BYTES_MAX:
            rest = [each for each in self.all() if each.memory and each not in failed]
            if not rest:
                raise next(iter(failed.values()))
            largest = max(rest, key=lambda each: each.memory)
            try:
                await largest.leave_memory()
            except ChunkUnavailable as error:
                if largest is asking:
                    raise
                failed[largest] = error

    async def upkeep(self) -> None:
        while True:
            await trio.sleep(DIRTY_SECONDS / 5)
            for each in self.all():
                each.stored.rest()
                if each.dirty_since + DIRTY_SECONDS < trio.current_time() and each.stream is None:
                    await each.try_to_store()

    async def store_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for each in self.all():
                nursery.start_soon(each.try_to_store)


class Stream:
    """A new file that is sent while the next bytes are written: in turn, two processes would
    wait for one another at each MiB."""

    def __init__(self, nursery: trio.Nursery, file: NewFile) -> None:
        self.file = file
        self._error: GfsError | None = None
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        self._give, self._take = trio.open_memory_channel[bytes | bytearray](WRITES_WAITING)
        nursery.start_soon(self._send)

    async def _send(self) -> None:
        try:
            with self._scope:
                async with self._take:
                    async for data in self._take:
                        await self.file.write(data)
        except GfsError as error:
            self._error = error
        except Exception as error:
            log.exception("a stream failed because of a bug")
            self._error = GfsError(f"the stream failed: {error!r}")
        finally:
            self._ended.set()

    async def write(self, data: bytes | bytearray) -> None:
        """Raises what an earlier write failed with."""
        try:
            await self._give.send(data)
        except trio.BrokenResourceError:
            await self.sent()

    async def sent(self) -> None:
        """All of it is on its way, and no more comes."""
        await self._give.aclose()
        await self._ended.wait()
        if self._error is not None:
            raise self._error

    async def abort(self) -> None:
        self._scope.cancel()
        await self._ended.wait()
        await self.file.abort()


class Stored:
    """The file in the cluster, opened when it is needed."""

    def __init__(self, shared: Open, node: Node, file: ExistingFile | None) -> None:
        self._shared = shared
        self._node = node
        self._file = file
        self._forward: Forward | None = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    async def open(self) -> ExistingFile:
        """Raises FileChanged if another has its name."""
        if self._file is None:
            path = self._shared.nodes.path(self._node)
            file = await self._shared.client.open(path, "r+")
            assert isinstance(file, ExistingFile)
            if file.entry.inode != self._node.entry.inode:
                raise FileChanged(f"{path} was replaced")
            self._file = file
        return self._file

    async def read(self, offset: int, count: int) -> Buffer:
        """It must be open. A view is valid until the next checkpoint."""
        assert self._file is not None
        if self._forward is None:
            self._forward = Forward(self._file)
        return await self._forward.read(offset, count)

    def forget(self) -> None:
        """The file has another inode, or other bytes."""
        self._file = None
        self.stop_reading()

    def stop_reading(self) -> None:
        if self._forward is not None:
            self._forward.stop()
            self._forward = None

    def rest(self) -> None:
        """Called now and then."""
        if self._forward is not None:
            self._forward.rest()


class Contents:
    def __init__(self, shared: Open, node: Node, file: ExistingFile | None) -> None:
        self._shared = shared
        self._client = shared.client
        self._node = node
        self.handles = 0
        #: Held by who changes bytes or stores them.
        self.lock = trio.Lock()
        self._whole: bytearray | None = bytearray() if file is None else None
        self.stream: Stream | None = None
        self.stored = Stored(shared, node, file)
        self._extents = Extents()
        self.length = 0 if file is None else file.length
        #: When the oldest byte was written that is not stored; infinite: all are.
        self.dirty_since = float("inf")
        #: Bytes are lost, which is an error until the file is closed.
        self._lost: GfsError | None = None

    @property
    def memory(self) -> int:
        return len(self._whole or b"") + self._extents.bytes

    @property
    def is_dirty(self) -> bool:
        return self.dirty_since != float("inf")

    @property
    def is_busy(self) -> bool:
        """What is known here is newer than what the master says."""
        return self.is_dirty or self.stream is not None

    def _is_dirty_now(self) -> None:
        if not self.is_dirty:
            self.dirty_since = trio.current_time()

    # --- reading -------------------------------------------------------------------------

    async def read(self, offset: int, count: int) -> Buffer:
        """A view is valid until the next checkpoint."""
        self._check()
        end = min(offset + count, self.length)
        if end <= offset:
            return b""
        if self._whole is not None:
            return self._whole[offset:end]
        if self.stream is not None:
            await self.store()
            return await self.read(offset, count)
        if self._extents.overlaps(offset, end):
            inside = self._extents.inside(offset, end)
            if inside is not None:
                return inside
            await self.store()
        if not self.stored.is_open:
            async with self.lock:
                await self.stored.open()
        data = await self.stored.read(offset, end - offset)
        return data if len(data) == end - offset else bytes(data).ljust(end - offset, b"\0")

    def refresh(self, entry: Entry) -> None:
        """Another client may have changed the stored file."""
        if self.is_dirty or self.lock.locked():
            return
        self._whole = None
        self.stored.forget()
        self.length = entry.length

    # --- writing -------------------------------------------------------------------------

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    async def write(self, offset: int, data: bytes) -> None:
        await self._shared.make_room(self)
        async with self.lock:
            self._check()
            self._is_dirty_now()
            end = offset + len(data)
            if self._whole is not None:
                if end <= WHOLE_BYTES_MAX:
                    self._write_whole(offset, data)
                    return
                await self._leave_whole(offset)
            if self.stream is not None and offset == self.length:
                await self._write_stream(data)
                return
            if self.stream is not None:
                await self._end_stream()
                self._is_dirty_now()
            self._extents.add(offset, data)
            self.length = max(self.length, end)
            if self._extents.bytes >= EXTENTS_BYTES_MAX or len(self._extents) >= EXTENTS_MAX:
                await self._write_extents()

    def _write_whole(self, offset: int, data: bytes) -> None:
        assert self._whole is not None
        if offset > len(self._whole):
            self._whole += bytes(offset - len(self._whole))
        self._whole[offset : offset + len(data)] = data
        self.length = len(self._whole)

    async def _leave_whole(self, offset: int) -> None:
        """It becomes too large: who goes on at its end streams it."""
        assert self._whole is not None
        if offset != len(self._whole):
            await self._put_whole()
            self._whole = None
            self._is_dirty_now()
            return
        whole, self._whole = self._whole, None
        self.stream = self._new_stream()
        self.length = 0
        await self._write_stream(whole)

    def _new_stream(self) -> Stream:
        path, inode = self._shared.nodes.path(self._node), self._node.entry.inode
        file = self._client.create(path, parents=False, expect=inode)
        return Stream(self._shared.nursery, file)

    async def _write_stream(self, data: bytes | bytearray) -> None:
        assert self.stream is not None
        try:
            async with storing(self._client):
                await self.stream.write(data)
        except GfsError as error:
            self.stream, self._lost = None, error
            raise
        self.length += len(data)

    async def truncate(self, size: int) -> None:
        async with self.lock:
            self._check()
            if size == self.length:
                return
            self._is_dirty_now()
            if self._whole is not None and size <= WHOLE_BYTES_MAX:
                del self._whole[size:]
                self._whole += bytes(size - len(self._whole))
            elif size == 0:
                await self._abandon()
                self._whole = bytearray()
            else:
                await self._store_bytes()
                self._is_dirty_now()
                await self._resize_stored(size)
            self.length = size

    async def _abandon(self) -> None:
        """None of the bytes matter any more."""
        if self.stream is not None:
            stream, self.stream = self.stream, None
            await stream.abort()
        while self._extents:
            self._extents.drop_first()
        self.stored.forget()

    async def _resize_stored(self, size: int) -> None:
        self._whole = None
        file = await self.stored.open()
        if size > self.length:
            async with storing(self._client):
                await file.pwrite(size - 1, b"\0")
            self._shared.nodes.stored(self._node)
            self.stored.stop_reading()
        elif size <= WHOLE_BYTES_MAX:
            self._whole = bytearray(await file.pread(0, size))
            self.stored.forget()
        else:
            # The file system cannot cut a chunk: what stays is copied.
            stream = self._new_stream()
            try:
                async with aclosing(file.stream(0, size)) as pieces:
                    async for piece in pieces:
                        async with storing(self._client):
                            await stream.write(bytes(piece))
            except BaseException:
                await stream.abort()
                raise
            self.stream = stream
            await self._end_stream()

    # --- storing -------------------------------------------------------------------------

    async def store(self) -> None:
        """All that was written, and the attributes, are in the cluster when this returns."""
        async with self.lock:
            self._check()
            await self._store_bytes()
            if self._node.changed:
                await store_attributes(self._shared, self._node)

    async def try_to_store(self) -> None:
        """Raises nothing: the mount, with what is written of other files, goes on."""
        try:
            await self.store()
        except GfsError as error:
            log.warning("inode %d cannot be stored: %s", self._node.number, error)
        except Exception:
            log.exception("inode %d cannot be stored because of a bug", self._node.number)

    async def leave_memory(self) -> None:
        """Raises what storing raises. But a file that was deleted or replaced elsewhere is lost,
        and of one whose bytes are lost nothing is kept: its own users have the error, and those
        who write others need the room."""
        async with self.lock:
            if self._lost is None:
                try:
                    await self._store_bytes()
                except (FileChanged, NotFound) as error:
                    self._lost = FileChanged(str(error))
            if self._lost is not None:
                while self._extents:
                    self._extents.drop_first()
            self._whole = None

    async def _store_bytes(self) -> None:
        if self.stream is not None:
            await self._end_stream()
        elif self._whole is not None and self.is_dirty:
            await self._put_whole()
        else:
            await self._write_extents()
        self.dirty_since = float("inf")

    async def _write_extents(self) -> None:
        if not self._extents:
            return
        file = await self.stored.open()
        try:
            while (first := self._extents.first()) is not None:
                async with storing(self._client):
                    await file.pwrite(*first)
                self.stored.stop_reading()
                self._extents.drop_first()
        except NotFound as error:
            self._lost = FileChanged(f"inode {self._node.number} was deleted or replaced")
            raise self._lost from error
        finally:
            # The kernel reads ahead, too, and so may have begun to read here meanwhile.
            self.stored.stop_reading()
            self._shared.nodes.stored(self._node)
        self._node.cached = None
        self.dirty_since = float("inf")

    def _described(self) -> dict[str, str]:
        return self._node.entry.attributes | {POSIX: self._node.posix.text()}

    async def _put_whole(self) -> None:
        assert self._whole is not None
        node, nodes = self._node, self._shared.nodes
        for last in (*[False] * (TRIES - 1), True):
            path, posix = nodes.path(node), node.posix
            try:
                async with storing(self._client):
                    entry = await self._client.put(
                        bytes(self._whole),
                        path,
                        parents=False,
                        attributes=self._described(),
                        expect=node.entry.inode,
                        modified_ns=node.mtime_ns,
                    )
            except (FileChanged, NotFound):
                if last:
                    raise
                if nodes.path(node) == path:
                    await self._take_inode(path)
            else:
                self._is_stored(entry, posix)
                return

    async def _take_inode(self, path: str) -> None:
        """Another client replaced the file: who closes it last remains."""
        try:
            entry = await self._client.stat(path)
        except NotFound:
            raise FileChanged(f"{path} was deleted") from None
        if entry.kind != "file":
            raise FileChanged(f"{path} was replaced")
        self._shared.nodes.stored_as(self._node, entry)

    async def _end_stream(self) -> None:
        assert self.stream is not None
        stream, self.stream = self.stream, None
        file = stream.file
        try:
            async with storing(self._client):
                await stream.sent()
                await file.flush()
            async with self._shared.renaming:
                file.path = self._shared.nodes.path(self._node)
                await self._take_inode(file.path)
                file.expect(self._node.entry.inode)
                posix = self._node.posix
                file.describe(self._described(), self._node.mtime_ns)
                await file.close()
        except BaseException as error:
            late = DeadlineExceeded(f"inode {self._node.number} was not stored in time")
            self._lost = error if isinstance(error, GfsError) else late
            with trio.CancelScope(shield=True):
                await stream.abort()
            raise
        assert file.entry is not None
        self._is_stored(file.entry, posix)

    def _is_stored(self, entry: Entry, posix: Posix) -> None:
        node = self._node
        self._shared.nodes.stored_as(node, entry)
        node.stored_with(posix)
        # The kernel has the same bytes: it wrote them.
        node.cached = (entry.inode, entry.digest) if entry.digest else None
        self.stored.forget()
        self.dirty_since = float("inf")

    # --- the end -------------------------------------------------------------------------

    async def close(self) -> None:
        """Nobody has it open any more: store what is not stored yet, which is what could not be
        when it was closed: who closed it got the error."""
        if self.is_dirty or self.stream is not None or self._node.changed:
            await self.try_to_store()

    async def discard(self) -> None:
        """Nothing more of it is stored. Who stores it just now is waited for."""
        async with self.lock:
            await self._abandon()
            self._whole = None
            self.dirty_since = float("inf")


async def store_attributes(shared: Open, node: Node, *, with_time: bool = True) -> None:
    posix = node.posix
    entry = await shared.client.set_attributes(
        shared.nodes.path(node),
        {POSIX: posix.text()},
        modified_ns=node.mtime_ns if with_time else 0,
        expect=node.entry.inode,
    )
    node.entry = entry
    shared.nodes.stored(node)
    node.stored_with(posix)
    if not node.changed:
        node.mtime_ns = entry.modified_ns

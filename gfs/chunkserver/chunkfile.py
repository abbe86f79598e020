"""One replica: a chunk file and what is known of it in memory.

All methods that touch the file block; the service runs them in worker threads,
never two mutations of one replica at once. The invariants are those of
:mod:`gfs.chunkserver.format`; this module keeps the order of the writes:

* *append* (every packet of an upload): data; at the end of the exchange the
  sums, then the slot. In between, the file holds bytes that no slot covers.
* *overwrite*: redo record; data; sums; slot; redo record dropped.

Only blocks that a packet covers partly are read, and they are verified before
anything is built on them (the paper, 5.2).
"""

from __future__ import annotations

import contextlib

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, SUM_BYTES, Buffer, block_count, block_sum
from gfs.chunkserver import format as layout
from gfs.chunkserver.format import HEAD_BYTES, NO_SUM, SUMS_OFFSET, Redo, State
from gfs.errors import CorruptReplica, InvalidArgument, StaleVersion, invariant
from gfs.io import File, FileSystem

#: Verification reads this much at a time.
VERIFY_BYTES = 1024 * 1024


class ChunkFile:
    """An open replica. ``version`` and ``length`` are what reads may rely on;
    after an append they run ahead of the slots until :meth:`commit`."""

    def __init__(
        self, files: FileSystem, path: str, handle: int, file: File | None, state: State
    ) -> None:
        self.files = files
        self.path = path
        self.handle = handle
        self._file = file
        self.version = state.version
        self.length = state.length
        self._sequence = state.sequence
        self._tail_sum = state.tail_sum
        self._sums = bytearray()
        self._dirty_from: int | None = None  # first block whose sum is not in the file
        self._redo_left = False  # an overwrite failed: its redo record may be there

    # --- making and opening ---------------------------------------------------

    @classmethod
    def create(cls, files: FileSystem, path: str, handle: int, version: int) -> ChunkFile:
        """A new, empty replica. Does not block: the file is made by the first write.

        Its head is written by the first :meth:`commit`; a file without one was
        never acknowledged to anybody. A file that is in the way is one of those,
        or one that could not be read, and is dropped: the caller knows of none.
        """
        return cls(files, path, handle, None, State(0, version, 0, NO_SUM))

    @property
    def file(self) -> File:
        """The file, made now if it was not. Blocks then."""
        if self._file is None:
            self._file = self._make()
        return self._file

    @property
    def made(self) -> bool:
        """Whether there is a file at all."""
        return self._file is not None

    def _make(self) -> File:
        for _ in range(3):
            try:
                return self.files.open(self.path, "create")
            except FileNotFoundError:
                self.files.make_directories(self.path.rpartition("/")[0])
            except FileExistsError:
                self.files.unlink(self.path)
        return self.files.open(self.path, "create")

    @classmethod
    def open(cls, files: FileSystem, path: str, handle: int) -> ChunkFile:
        """Open and recover. Raises CorruptReplica or ``OSError``."""
        file = files.open(path, "rw")
        try:
            head = bytearray(HEAD_BYTES)
            got = file.read_into(memoryview(head), 0)
            state = layout.recover_state(head[:got], handle, file.size())
            chunk = cls(files, path, handle, file, state)
            whole = layout.whole_blocks(state.length) * SUM_BYTES
            chunk._sums = head[SUMS_OFFSET : SUMS_OFFSET + whole]
            chunk._replay_redo()
        except BaseException:
            file.close()
            raise
        return chunk

    @classmethod
    def probe(cls, files: FileSystem, path: str, handle: int) -> State | None:
        """The replica's state alone, for the inventory at start.

        None for a file that was never committed. Raises CorruptReplica.
        """
        file = files.open(path, "r")
        try:
            head = bytearray(layout.PROBE_BYTES)
            got = file.read_into(memoryview(head), 0)
            if not any(head):
                return None
            return layout.recover_state(head[:got], handle, file.size())
        finally:
            file.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def uncommitted(self) -> bool:
        """Whether a crash now would leave less than what is known here."""
        return self._dirty_from is not None

    # --- reading --------------------------------------------------------------

    #: Where byte 0 of the chunk is in its file.
    data_offset = HEAD_BYTES

    def read_at(self, target: memoryview, offset: int) -> int:
        """Fill ``target`` with bytes that nobody verified; returns how many there were."""
        return self.file.read_into(target, HEAD_BYTES + offset)

    def sums(self, first: int, count: int) -> bytes:
        """The stored sums of ``count`` blocks from block ``first``."""
        whole = layout.whole_blocks(self.length)
        end = first + count
        sums = bytes(self._sums[first * SUM_BYTES : min(end, whole) * SUM_BYTES])
        if end > whole:
            sums += self._tail_sum
        if len(sums) != count * SUM_BYTES:
            # A thread cuts the replica just now: the writer starts over from there.
            raise StaleVersion(f"chunk {self.handle:016x} became shorter meanwhile")
        return sums

    def read_verified(self, offset: int, length: int) -> bytes:
        """Exactly these bytes, every block they touch verified first.

        Raises CorruptReplica, StaleVersion if the replica does not reach that far;
        ``length`` 0 is the caller's bug.
        """
        invariant(0 <= offset < offset + length, "a range has a length")
        if offset + length > self.length:
            raise StaleVersion(f"chunk {self.handle:016x} has {self.length} bytes here")
        first = offset // BLOCK_BYTES
        end = min(-(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES, self.length)
        start = first * BLOCK_BYTES
        data = bytearray(end - start)
        self._read_blocks(first, memoryview(data))
        return bytes(memoryview(data)[offset - start : offset - start + length])

    def _read_blocks(self, first: int, target: memoryview) -> None:
        """Fill ``target`` from block ``first``, to a block's or the replica's end."""
        start = first * BLOCK_BYTES
        got = self.file.read_into(target, HEAD_BYTES + start)
        if got < len(target):
            raise CorruptReplica(f"chunk {self.handle:016x}: the file was cut short")
        for index in range(block_count(len(target))):
            at = index * BLOCK_BYTES
            if block_sum(target[at : at + BLOCK_BYTES]) != self.sums(first + index, 1):
                raise CorruptReplica(
                    f"chunk {self.handle:016x}: block {first + index} fails its checksum"
                )

    def bad_blocks(self, first: int = 0, count: int | None = None) -> list[int]:
        """Blocks whose bytes on the disk do not fit their sums.

        ``count`` blocks from ``first``, or all. What the file's own head says
        on the disk is checked too (with block 0), so that damage there is found
        before a restart needs it.
        """
        total = block_count(self.length)
        end = total if count is None else min(first + count, total)
        bad: set[int] = set()
        if first == 0 and not self._head_is_good():
            bad.add(0)
        buffer = memoryview(bytearray(min(VERIFY_BYTES, max(1, (end - first)) * BLOCK_BYTES)))
        step = len(buffer) // BLOCK_BYTES
        for at in range(first, end, step):
            start = at * BLOCK_BYTES
            want = min(len(buffer), self.length - start, (end - at) * BLOCK_BYTES)
            got = self.file.read_into(buffer[:want], HEAD_BYTES + start)
            for index in range(block_count(want)):
                begin = index * BLOCK_BYTES
                block = buffer[begin : min(begin + BLOCK_BYTES, want)]
                if begin + len(block) > got or block_sum(block) != self.sums(at + index, 1):
                    bad.add(at + index)
        return sorted(bad)

    def _head_is_good(self) -> bool:
        head = bytearray(HEAD_BYTES)
        got = self.file.read_into(memoryview(head), 0)
        try:
            state = layout.recover_state(head[:got], self.handle, self.file.size())
        except CorruptReplica:
            return False
        committed = len(self._sums) if self._dirty_from is None else self._dirty_from * SUM_BYTES
        on_disk = head[SUMS_OFFSET : SUMS_OFFSET + committed]
        return state.sequence == self._sequence and on_disk == self._sums[:committed]

    # --- mutations ------------------------------------------------------------

    def set_version(self, version: int, sync: bool = False) -> None:
        """Raise the version, as durably as :meth:`commit` says. Never lowers it;
        when it fails, it is what it was."""
        if version < self.version:
            raise StaleVersion(
                f"chunk {self.handle:016x} has version {self.version} here, not {version}"
            )
        if version > self.version:
            before, self.version = self.version, version
            try:
                self.commit(sync)
            except BaseException:
                # A version that the caller was not told of must not be believed.
                self.version = before
                raise

    def cut(self, length: int) -> None:
        """Drop the bytes past ``length``: nobody was told that they are stored."""
        invariant(0 <= length <= self.length, "a cut never extends")
        if length == self.length:
            return
        partial = length % BLOCK_BYTES
        tail_sum = NO_SUM
        if partial:
            tail_sum = block_sum(self.read_verified(length - partial, partial))
        del self._sums[layout.whole_blocks(length) * SUM_BYTES :]
        if self._dirty_from is not None:
            self._dirty_from = min(self._dirty_from, layout.whole_blocks(length))
        self.length, self._tail_sum = length, tail_sum
        self.commit()

    def write(self, offset: int, data: Buffer, sums: bytes) -> None:
        """Write one verified packet; ``sums`` as in :class:`messages.Packet`.

        At the end of the replica this is an append, in force for readers at
        once and for a crash at :meth:`commit`. Anywhere below it is an
        overwrite, in force for both when this returns.
        """
        end = offset + len(data)
        if offset > self.length:
            raise InvalidArgument(
                f"chunk {self.handle:016x}: a write at {offset} would leave a hole "
                f"after byte {self.length}"
            )
        if end > CHUNK_BYTES:
            raise InvalidArgument(f"chunk {self.handle:016x}: a write past the chunk's end")
        if not len(data):
            return
        new_sums = self._sums_after(offset, memoryview(data), sums)
        length = max(self.length, end)
        if self._redo_left:
            # Replayed by a restart, it would undo what follows it.
            self._drop_redo()
        if offset == self.length:
            self.file.write(data, HEAD_BYTES + offset)
            self._adopt(offset, new_sums, length)
            return
        # A write that is not yet in the slots must not be redone over.
        if self._dirty_from is not None:
            self.commit()
        redo = Redo(self.handle, self.version, offset, length, new_sums, bytes(data))
        self._write_redo(redo)
        self._apply(redo)

    def _sums_after(self, offset: int, data: memoryview, sums: bytes) -> bytes:
        """Sums of all blocks that ``data`` touches, as they are after the write."""
        first = offset // BLOCK_BYTES
        head = offset % BLOCK_BYTES
        end = offset + len(data)
        last = (end - 1) // BLOCK_BYTES
        tail = end % BLOCK_BYTES if end < self.length else 0
        if not head and not tail:
            return sums
        out = bytearray(sums)
        if head:
            out[:SUM_BYTES] = self._merged_sum(first, offset, data)
        if tail and (last > first or not head):
            out[-SUM_BYTES:] = self._merged_sum(last, offset, data)
        return bytes(out)

    def _merged_sum(self, block: int, offset: int, data: memoryview) -> bytes:
        """The sum of ``block`` with ``data`` laid over its verified old bytes."""
        start = block * BLOCK_BYTES
        old_end = min(start + BLOCK_BYTES, self.length)
        new_end = min(start + BLOCK_BYTES, max(self.length, offset + len(data)))
        merged = bytearray(new_end - start)
        if old_end > start:
            self._read_blocks(block, memoryview(merged)[: old_end - start])
        begin, end = max(start, offset), min(new_end, offset + len(data))
        merged[begin - start : end - start] = data[begin - offset : end - offset]
        return block_sum(merged)

    def _adopt(self, offset: int, new_sums: bytes, length: int) -> None:
        """Take the sums of the blocks from ``offset`` on into the memory's table."""
        first = offset // BLOCK_BYTES
        if length % BLOCK_BYTES and (first + len(new_sums) // SUM_BYTES) * BLOCK_BYTES > length:
            new_sums, self._tail_sum = new_sums[:-SUM_BYTES], new_sums[-SUM_BYTES:]
        elif not length % BLOCK_BYTES:
            self._tail_sum = NO_SUM
        at = first * SUM_BYTES
        self._sums[at : at + len(new_sums)] = new_sums
        self.length = length
        if self._dirty_from is None or first < self._dirty_from:
            self._dirty_from = first
        invariant(
            len(self._sums) == layout.whole_blocks(length) * SUM_BYTES,
            "there is one sum per whole block",
        )

    def commit(self, sync: bool = False) -> None:
        """Make everything written so far what a crash leaves.

        With ``sync`` it is also what a power cut leaves: the slot must not reach
        the disk before the data and the sums that it covers.
        """
        if self._dirty_from is not None:
            dirty = self._sums[self._dirty_from * SUM_BYTES :]
            if dirty:
                self.file.write(dirty, SUMS_OFFSET + self._dirty_from * SUM_BYTES)
        if sync:
            self.file.sync()
        state = State(self._sequence + 1, self.version, self.length, self._tail_sum)
        if state.sequence == 1:
            self.file.write(layout.encode_first_page(self.handle, state), 0)
        else:
            self.file.write(layout.encode_slot(state), layout.slot_offset(state.sequence))
        self._sequence = state.sequence
        self._dirty_from = None
        if sync:
            self.file.sync()
            if state.sequence == 1:
                self._sync_name()

    def _sync_name(self) -> None:
        """A new file's name, and that of the folder it may be the first in, are on
        the disk: a synced file without a name is lost all the same."""
        folder = self.path.rpartition("/")[0]
        self.files.sync_directory(folder)
        self.files.sync_directory(folder.rpartition("/")[0])

    # --- redo -----------------------------------------------------------------

    @property
    def _redo_path(self) -> str:
        return layout.redo_path(self.path)

    def _write_redo(self, redo: Redo) -> None:
        self._redo_left = True
        file = self.files.open(self._redo_path, "replace")
        try:
            file.write(layout.encode_redo(redo), 0)
        finally:
            file.close()

    def _apply(self, redo: Redo) -> None:
        self.file.write(redo.data, HEAD_BYTES + redo.offset)
        self._adopt(redo.offset, redo.sums, redo.length)
        self.commit()
        self._drop_redo()

    def _drop_redo(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.unlink(self._redo_path)
        self._redo_left = False

    def _replay_redo(self) -> None:
        """Finish an overwrite that a crash interrupted."""
        if not self.files.exists(self._redo_path):
            return
        file = self.files.open(self._redo_path, "r")
        try:
            record = bytearray(file.size())
            file.read_into(memoryview(record), 0)
        finally:
            file.close()
        redo = layout.decode_redo(bytes(record), self.handle)
        if redo is not None and redo.version == self.version and redo.offset <= self.length:
            self._apply(redo)
        else:
            self._drop_redo()

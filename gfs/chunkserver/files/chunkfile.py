"""One replica: a chunk file and its state in memory.

All methods that touch the file block; the service runs them in worker threads,
never two mutations of one replica at once; only :meth:`save` may run beside them.
The invariants are those of :mod:`gfs.chunkserver.files.layout`; this module keeps the
order of the writes:

* *append* (every packet of an upload): data; at the end of the exchange the
  sums, then the slot. In between, the file holds bytes that no slot covers.
* *overwrite*: record in the journal; data; sums; slot.
* *pad* (the end of an appended chunk): as append, of zeros that are a hole.

With ``durability = "fsync"`` no slot is written at first: small appends go through the
journal as well; the end of an exchange with large ones syncs the data and leaves the
sums and the new state in the journal, as a new version does. Sums and slot are written
when the replica is *saved*.

An append changes no byte and no sum of the existing data, and readers read the length
and the sum of the tail as one value: so they need not wait for it.

Only blocks that a packet covers partly are read, and they are verified before
anything is built on them (the paper, 5.2).

*A failed sync is never repeated.* Linux reports a failed write-back once, and counts
the pages as clean from then on: they are read as they were written until they leave the
page cache, then as they were before; a second sync succeeds, as does one after the file
was opened again. It is not known which pages failed, nor what is on the disk. So the
replica is unsound from then on, whatever the sync was for: it is not written or saved
any more, its redo records are kept, nothing about it is acknowledged, and it is
replaced by a copy of another server's. Repeating the sync, as many databases did until
2018 (fsyncgate), loses acknowledged bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from gfs.blocks import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    MIB,
    PAGE_BYTES,
    SUM_BYTES,
    ZERO_BLOCK_SUM,
    Buffer,
    block_count,
    block_sum,
)
from gfs.chunkserver.files import layout
from gfs.chunkserver.files.journal import Journal
from gfs.chunkserver.files.layout import HEAD_BYTES, NO_SUM, SUMS_OFFSET, Redo, State
from gfs.chunkserver.files.recovery import state_of
from gfs.chunkserver.files.sums import blocks_around, first_bad, read_blocks, sums_after, sums_of
from gfs.errors import CorruptReplica, InvalidArgument, StaleVersion, invariant
from gfs.io import File, FileSystem

#: With "fsync", an append up to this size is written twice, to save two syncs.
JOURNALED_BYTES_MAX = MIB // 4

#: So many bytes are sent to the disk at once before a sync.
START_SYNC_BYTES = 4 * MIB


class ChunkFile:
    """An open replica. ``version`` and ``length`` are what reads may rely on;
    after an append they run ahead of what a crash leaves until :meth:`commit`."""

    def __init__(
        self,
        files: FileSystem,
        path: str,
        handle: int,
        file: File | None,
        state: State,
        journal: Journal,
    ) -> None:
        self.files = files
        self.path = path
        self.handle = handle
        self._file = file
        self._journal = journal
        #: Held by the task that writes: a mutation, or a save.
        self._lock = files.make_lock()
        self.version = state.version
        #: Numbers of the newest state (0: it was never committed), and of the one in the newest
        #: slot.
        self.sequence = state.sequence
        self._slot = state.sequence
        #: The length, and the last block's sum if that is partial. Replaced as one by
        #: the thread that writes, and read as one by the others.
        self._tail = (state.length, state.tail_sum)
        self._sums = bytearray()
        #: First block whose sum is not in the file; not in the journal either.
        self._dirty_from: int | None = None
        self._unlogged_from: int | None = None
        #: The write that is in the journal, and perhaps not, or only in part, in the file; and up
        #: to where the journal must have been synced before that may be written to the file.
        self.unfinished: tuple[Redo, int] | None = None
        #: Whether a sync of it has failed: see above.
        self.is_unsound = False
        self._name_synced = state.sequence > 0
        self._retired = False
        self._closed = False
        self._copied = False
        #: Pages of the sums that are allocated on the disk.
        self._sums_pages = layout.sums_pages(state.length) if self._slot else 0

    # --- making and opening ---------------------------------------------------

    @classmethod
    def create(
        cls,
        files: FileSystem,
        path: str,
        handle: int,
        version: int,
        journal: Journal,
        copied: bool = False,
    ) -> ChunkFile:
        """A new, empty replica. Does not block: the file is made by the first write.

        A file without a state, in its head or in the journal, was never acknowledged.
        An existing file at the path is one of those, or one that could not be read, and
        is dropped: the caller knows of no replica. A ``copied`` one leaves nothing in
        the journal, since its path is temporary.
        """
        chunk = cls(files, path, handle, None, State(0, version, 0, NO_SUM), journal)
        chunk._copied = copied
        return chunk

    @property
    def file(self) -> File:
        """The file, made now if it was not. Blocks then."""
        if self._file is None:
            self._file = _make(self.files, self.path, self._journal.sync and not self._copied)
            if self._closed:
                self._file.close()
        return self._file

    @property
    def made(self) -> bool:
        """Whether the file exists."""
        return self._file is not None

    @classmethod
    def open(
        cls,
        files: FileSystem,
        path: str,
        handle: int,
        journal: Journal,
        records: Sequence[Redo] = (),
    ) -> ChunkFile:
        """Open and recover; ``records`` are its records in the journal, which are
        replayed and then have to be saved. Raises CorruptReplica or ``OSError``."""
        file = files.open(path, "rw")
        try:
            head = bytearray(HEAD_BYTES)
            got = file.read_into(memoryview(head), 0)
            state = state_of(head[:got], handle, file.size(), records)
            if state is None:
                if not records:
                    raise CorruptReplica(f"chunk {handle:016x}: the file's head is empty")
                state = State(0, 0, 0, NO_SUM)
            chunk = cls(files, path, handle, file, state, journal)
            whole = layout.whole_blocks(state.length) * SUM_BYTES
            chunk._sums = head[SUMS_OFFSET : SUMS_OFFSET + whole]
            _replay(chunk, records, journal.sync)
            chunk._name_synced = chunk._name_synced and chunk.sequence == state.sequence
        except BaseException:
            file.close()
            raise
        return chunk

    def close(self) -> None:
        # Of a failed disk a thread may be making the file meanwhile: then it closes it.
        self._closed = True
        if self._file is not None:
            self._file.close()

    @property
    def length(self) -> int:
        return self._tail[0]

    @property
    def uncommitted(self) -> bool:
        """Whether a crash now would lose a part of the state in memory."""
        if not self._journal.sync:
            return self._dirty_from is not None
        return self._unlogged_from is not None

    def retire(self) -> None:
        """Mark the replica as deleted or replaced: nothing is written to it any more.
        Blocks until a save under way has ended."""
        with self._lock:
            self._retired = True
            self._journal.saved(self)

    # --- reading --------------------------------------------------------------

    #: Where byte 0 of the chunk is in its file.
    data_offset = HEAD_BYTES

    def read_at(self, target: memoryview, offset: int) -> int:
        """Fill ``target`` with unverified bytes; returns how many there were."""
        return self.file.read_into(target, HEAD_BYTES + offset)

    def read_at_cached(self, target: memoryview, offset: int) -> bool:
        """As :meth:`read_at`, all of it and only from memory; False if that is
        impossible. Does not block."""
        return self._file is not None and self._file.read_cached(target, HEAD_BYTES + offset)

    def read_verified_cached(self, offset: int, length: int) -> bytes | None:
        """As :meth:`read_verified`, only from memory; None if that is impossible, or if
        a block fails its checksum. Does not block."""
        first, data, part, tail = blocks_around(self.handle, self._tail, offset, length)
        with memoryview(data) as target:
            if not self.read_at_cached(target, first * BLOCK_BYTES):
                return None
            is_good = first_bad(self.handle, self._sums, tail, first, target) is None
        return bytes(memoryview(data)[part]) if is_good else None

    def sums(self, first: int, count: int) -> bytes:
        """The stored sums of ``count`` blocks from block ``first``."""
        return sums_of(self.handle, self._sums, self._tail, first, count)

    def stored_sums(self, first: int, end: int) -> bytes | None:
        """The stored sums of the blocks from ``first`` up to byte ``end``; None if the
        replica has more bytes of the last one."""
        tail = self._tail
        if end % BLOCK_BYTES and end != tail[0]:
            return None
        return sums_of(self.handle, self._sums, tail, first, block_count(end) - first)

    def read_verified(self, offset: int, length: int) -> bytes:
        """Exactly these bytes, every block they touch verified first.

        Raises CorruptReplica, or StaleVersion if the replica is shorter; ``length`` 0
        is a bug of the caller.
        """
        first, data, part, tail = blocks_around(self.handle, self._tail, offset, length)
        read_blocks(self.file, self.handle, self._sums, tail, first, memoryview(data))
        return bytes(memoryview(data)[part])

    def head_is_good(self) -> bool:
        """Whether what the file's own head says on the disk is what it is to say."""
        with self._lock:
            head = bytearray(HEAD_BYTES)
            got = self.file.read_into(memoryview(head), 0)
            if not self._slot:  # nothing was saved yet
                return not any(head[: layout.PROBE_BYTES])
            try:
                state = layout.recover_state(head[:got], self.handle, self.file.size())
            except CorruptReplica:
                return False
            first = self._dirty_from
            committed = len(self._sums) if first is None else first * SUM_BYTES
            on_disk = head[SUMS_OFFSET : SUMS_OFFSET + committed]
            return state.sequence == self._slot and on_disk == self._sums[:committed]

    # --- mutations ------------------------------------------------------------

    def set_version(self, version: int) -> None:
        """Raise the version, as durably as :meth:`commit`. Never lowers it; if it
        fails, the version is unchanged."""
        with self._lock:
            self._finish()
            if version < self.version:
                raise StaleVersion(
                    f"chunk {self.handle:016x} has version {self.version} here, not {version}"
                )
            if version > self.version:
                before, self.version = self.version, version
                try:
                    self._promise()
                except BaseException:
                    # A version whose write failed must not count.
                    self.version = before
                    raise

    def cut(self, length: int) -> None:
        """Drop the bytes past ``length``, which were never acknowledged.

        With ``"fsync"`` that is on the disk when this returns: no state may cover the
        new bytes in their place, and no record may have the old ones.
        """
        with self._lock:
            self._finish()
            invariant(0 <= length <= self.length, "a cut never extends")
            if length == self.length:
                return
            partial = length % BLOCK_BYTES
            tail_sum = NO_SUM
            if partial:
                tail_sum = block_sum(self.read_verified(length - partial, partial))
            before = (self._tail, bytes(self._sums), self._dirty_from, self._unlogged_from)
            whole = layout.whole_blocks(length)
            del self._sums[whole * SUM_BYTES :]
            if self._dirty_from is not None:
                self._dirty_from = min(self._dirty_from, whole)
            self._tail = (length, tail_sum)
            try:
                # Not with a record: the existing records must not be replayed.
                self._save(self._journal.sync)
            except BaseException:
                self._tail, sums, self._dirty_from, self._unlogged_from = before
                self._sums[:] = sums
                raise

    def take_sums(self, source: ChunkFile) -> None:
        """Take those of ``source``, whose bytes this new replica has."""
        invariant(not self.length and not self.sequence, "a copy is made into a new replica")
        with self._lock:
            if source.length:
                self._adopt(0, source.sums(0, block_count(source.length)), source.length)

    def write(self, offset: int, data: Buffer, sums: bytes) -> None:
        """Write one verified packet; ``sums`` as in :class:`messages.Packet`.

        At the end of the replica this is an append, in force for readers at
        once and for a crash at :meth:`commit`. Anywhere below it is an
        overwrite, in force for both when this returns; or, with ``"fsync"``, after
        :meth:`finish`: the disk must not have a part of it before it has the record. Until
        then it is ``unfinished``.
        """
        with self._lock:
            self._finish()
            before, end = self._tail[0], offset + len(data)
            if offset > before:
                raise InvalidArgument(
                    f"chunk {self.handle:016x}: a write at {offset} would leave a hole "
                    f"after byte {before}"
                )
            if end > CHUNK_BYTES:
                raise InvalidArgument(f"chunk {self.handle:016x}: a write past the chunk's end")
            if not len(data):
                return
            new_sums = sums_after(
                self._file, self.handle, self._sums, self._tail, offset, memoryview(data), sums
            )
            length, sync = max(before, end), self._journal.sync
            if sync:
                self._sums_pages = _reserve(self, self._sums_pages, length)
            small = sync and len(data) <= JOURNALED_BYTES_MAX and not self._copied
            if offset == before and (self.uncommitted or not small):
                self.file.write(data, HEAD_BYTES + offset)
                self._adopt(offset, new_sums, length, unlogged=True)
                if sync or self._copied:
                    _start_sync(self.file, offset, end)
                return
            # A record follows a state, which must include everything that was written before.
            if self.uncommitted:
                self._promise()
            self._log(offset, length, new_sums, bytes(data))
            if not sync:
                self._save(sync=False)

    def finish(self) -> None:
        """Complete the overwrite that waited for the journal's sync."""
        with self._lock:
            self._finish()

    def pad(self, length: int) -> None:
        """Extend the replica to ``length`` by zeros that take no space on the disk;
        in force as an append is."""
        with self._lock:
            self._finish()
            before = self._tail[0]
            invariant(before < length <= CHUNK_BYTES, "padding extends a chunk")
            partial = before % BLOCK_BYTES
            zeros = bytes(min(length - before, BLOCK_BYTES - partial) if partial else 0)
            new_sums, table = b"", (self._file, self.handle, self._sums, self._tail)
            if zeros:
                new_sums = sums_after(*table, before, memoryview(zeros), NO_SUM)
            whole = layout.whole_blocks(length) - block_count(before)
            new_sums += ZERO_BLOCK_SUM * max(0, whole)
            rest = length % BLOCK_BYTES if length > before + len(zeros) else 0
            if rest:
                new_sums += block_sum(bytes(rest))
            if self._journal.sync:
                self._sums_pages = _reserve(self, self._sums_pages, length)
            # Bytes that a failed append may have left there do not belong to it.
            self.file.truncate(HEAD_BYTES + before)
            self.file.truncate(HEAD_BYTES + length)
            self._adopt(before, new_sums, length, unlogged=True)

    def _adopt(self, offset: int, new_sums: bytes, length: int, unlogged: bool = False) -> None:
        """Take the sums of the blocks from ``offset`` on into the memory's table. ``unlogged``:
        the journal does not have them."""
        first = offset // BLOCK_BYTES
        tail_sum = self._tail[1]
        if length % BLOCK_BYTES and (first + len(new_sums) // SUM_BYTES) * BLOCK_BYTES > length:
            new_sums, tail_sum = new_sums[:-SUM_BYTES], new_sums[-SUM_BYTES:]
        elif not length % BLOCK_BYTES:
            tail_sum = NO_SUM
        at = first * SUM_BYTES
        self._sums[at : at + len(new_sums)] = new_sums
        self._tail = (length, tail_sum)
        if self._dirty_from is None or first < self._dirty_from:
            self._dirty_from = first
        if unlogged and (self._unlogged_from is None or first < self._unlogged_from):
            self._unlogged_from = first
        invariant(
            len(self._sums) == layout.whole_blocks(length) * SUM_BYTES,
            "there is one sum per whole block",
        )

    def commit(self) -> None:
        """Make everything written so far survive a crash of the process; with
        ``"fsync"``, and once the journal is synced, also a power cut."""
        with self._lock:
            self._finish()
            if self.uncommitted or not self.sequence:
                self._promise()

    def save(self) -> None:
        """Write the newest state into the file and sync it, so that the journal is not
        needed for it."""
        with self._lock:
            if self._retired:
                self._journal.saved(self)
                return
            self._finish()
            if self.sequence > self._slot or self.uncommitted or not self.sequence:
                self._save(sync=True)
            else:
                self._journal.saved(self)

    def sync(self) -> None:
        """Sync everything written so far, and the file's name. Writers wait only for the commit."""
        with self._lock:
            self._finish()
            if self.uncommitted:
                self._promise()
            file = self.file
        _sync(self, file.sync)
        # Also for a file from before the start: it is not known what of it was synced.
        self._name_synced = False
        _sync_name(self)

    def _promise(self) -> None:
        if not self._journal.sync or self._copied:
            self._save(sync=False)
            return
        if self.uncommitted:
            # The bytes are not in the journal: they must be on the disk before their sums.
            _sync(self, self.file.sync)
            _sync_name(self)
        whole = layout.whole_blocks(self.length)
        first = whole if self._unlogged_from is None else self._unlogged_from
        sums, offset = b"", self.length
        if self.uncommitted:
            offset = first * BLOCK_BYTES
            sums = self.sums(first, block_count(self.length) - first)
        self._log(offset, self.length, sums, b"")
        self._unlogged_from = None

    def _save(self, sync: bool) -> None:
        """Write sums and slot. With ``sync`` the slot does not reach the disk before
        the data and the sums that it covers, and is there when this returns."""
        if self._dirty_from is not None:
            dirty = self._sums[self._dirty_from * SUM_BYTES :]
            if dirty:
                self.file.write(dirty, SUMS_OFFSET + self._dirty_from * SUM_BYTES)
                self._sums_pages = max(self._sums_pages, layout.sums_pages(self.length))
        if sync:
            _sync(self, self.file.sync)
        sequence = self.sequence
        if sequence == self._slot:
            sequence = self._journal.draw(self._slot)
        state = State(sequence, self.version, *self._tail)
        if not self._slot:
            self.file.write(layout.encode_first_page(self.handle, state), 0)
        else:
            self.file.write(layout.encode_slot(state), layout.slot_offset(sequence))
        if sync:
            _sync(self, self.file.sync)
            _sync_name(self)
        self.sequence = self._slot = sequence
        self._dirty_from = self._unlogged_from = None
        if sync or not self._journal.sync:
            self._journal.saved(self)

    # --- redo -----------------------------------------------------------------

    def _log(self, offset: int, length: int, sums: bytes, data: bytes) -> None:
        """Record the state after a write in the journal, then write."""
        if self._retired:
            raise StaleVersion(f"chunk {self.handle:016x} was deleted or replaced meanwhile")
        self.file  # noqa: B018 - made before there is a record of it
        redo = Redo(self.handle, self.sequence, 0, self.version, offset, length, sums, data)
        is_overwrite = bool(data) and offset < self.length
        self.sequence = self._journal.append(redo, self._slot, self)
        self.unfinished = redo, self._journal.written if is_overwrite else 0
        if not is_overwrite or not self._journal.sync:
            self._finish()

    def _finish(self) -> None:
        """Carry out the write in the journal: a restart would, and later records follow it."""
        if self.is_unsound:
            raise _unsound(self.handle)
        if self.unfinished is not None:
            redo, target = self.unfinished
            if self._journal.sync:
                self._journal.flush(target)
            if redo.data:
                self.file.write(redo.data, HEAD_BYTES + redo.offset)
            self._adopt(redo.offset, redo.sums, redo.length)
            self.unfinished = None


def _replay(chunk: ChunkFile, records: Sequence[Redo], is_synced: bool) -> None:
    for redo in records:
        if redo.sequence <= chunk.sequence:
            continue
        if redo.base != chunk.sequence or not redo.offset <= chunk.length <= redo.length:
            if is_synced:
                raise CorruptReplica(
                    f"chunk {chunk.handle:016x}: the state that the redo journal continues "
                    "from is lost"
                )
            return  # it was never synced before a power cut
        chunk.version, chunk.sequence = redo.version, redo.sequence
        chunk.unfinished = redo, 0
        chunk.finish()
    if chunk.length and chunk.file.size() < HEAD_BYTES + chunk.length:
        raise CorruptReplica(f"chunk {chunk.handle:016x}: the file was cut short")


def _make(files: FileSystem, path: str, is_synced: bool) -> File:
    file = _make_empty(files, path)
    if is_synced:
        try:
            # A full disk must not keep a state from being saved.
            file.write(bytes(PAGE_BYTES), 0)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                files.unlink(path)
            raise
    return file


def _make_empty(files: FileSystem, path: str) -> File:
    for _ in range(3):
        try:
            return files.open(path, "create")
        except FileNotFoundError:
            files.make_directories(path.rpartition("/")[0])
        except FileExistsError:
            files.unlink(path)
    return files.open(path, "create")


def _reserve(chunk: ChunkFile, pages: int, length: int) -> int:
    """Allocate the sums of a state that goes to the journal first, so that a full disk cannot
    prevent its save; so many pages are. Returns how many are now."""
    while pages < layout.sums_pages(length):
        chunk.file.write(bytes(PAGE_BYTES), SUMS_OFFSET + pages * PAGE_BYTES)
        pages += 1
    return pages


def _start_sync(file: File, start: int, end: int) -> None:
    """After an append up to ``end`` that will be synced: start the write-back from
    time to time, so that the sync does not have to wait for a whole chunk."""
    begun = start // START_SYNC_BYTES * START_SYNC_BYTES
    whole = end // START_SYNC_BYTES * START_SYNC_BYTES
    if whole > begun:
        file.start_sync(HEAD_BYTES + begun, whole - begun)


def _sync_name(chunk: ChunkFile) -> None:
    """Sync a new file's name, and that of its folder, in which it may be the first:
    a synced file without a name is lost."""
    if chunk._name_synced:
        return
    folder, folders = chunk.path.rpartition("/")[0], chunk._journal.folders
    _sync(chunk, chunk.files.sync_directory, folder)
    if folder not in folders:
        _sync(chunk, chunk.files.sync_directory, folder.rpartition("/")[0])
        folders.add(folder)
    chunk._name_synced = True


def _sync(chunk: ChunkFile, sync: Callable[..., None], *arguments: str) -> None:
    """Sync its file or the directory of its name, unless a sync has failed before."""
    if chunk.is_unsound:
        raise _unsound(chunk.handle)
    try:
        sync(*arguments)
    except BaseException:
        chunk.is_unsound = True
        raise


def _unsound(handle: int) -> CorruptReplica:
    return CorruptReplica(
        f"chunk {handle:016x}: a sync of it failed, so its state on the disk is unknown"
    )

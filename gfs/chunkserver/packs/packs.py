"""The packed replicas of one disk: see :mod:`gfs.chunkserver.packs`."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gfs.blocks import KIB, MIB, PAGE_BYTES, slot_bytes
from gfs.chunkserver.files import report_progress
from gfs.chunkserver.packs import layout
from gfs.chunkserver.packs.layout import FREE, RECORD_BYTES, Record
from gfs.chunkserver.packs.reading import NO_SPACE, IndexReader, is_whole, unusable
from gfs.chunkserver.packs.slots import Slots
from gfs.errors import DiskFailed
from gfs.io import File, FileSystem, ReadFailed

log = logging.getLogger(__name__)

#: The index grows by this much at a time, written as zeros: a record never needs space.
GROWTH_BYTES = 16 * KIB
#: Slots that lie one after the other are written in one call, up to so many bytes.
JOINED_BYTES_MAX = 1 * MIB
#: The head is written after so many new records, which are what a start verifies at most, and
#: those of the last seconds (:meth:`Packs.confirm`).
CLAIM_RECORDS = 1024


class Made(NamedTuple):
    """A complete, verified replica in memory."""

    handle: int
    version: int
    data: memoryview
    sums: bytes


class _Written:
    """One of the two files, and whether a write to it has ended since its last sync began."""

    def __init__(self, files: FileSystem, file: File) -> None:
        self.file = file
        self.is_dirty = False
        #: Held by the thread that writes pages of it from memory.
        self.lock = files.make_lock()
        self.can_punch = True

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self.file.write(data, offset)
        self.is_dirty = True


class Packs:
    """All methods block, except those that say otherwise."""

    def __init__(
        self, files: FileSystem, directory: str, disk_id: str = "", former_id: str = ""
    ) -> None:
        """``former_id`` is the one under which the disk's identity file was found."""
        self.files = files
        self.directory = directory
        self.index_path = f"{directory}/{layout.INDEX_NAME}"
        self.data_path = f"{directory}/{layout.DATA_NAME}"
        self._lock = files.make_lock()
        self._syncing = files.make_lock()
        self._giving = files.make_lock()
        self._index: _Written | None = None
        self._data: _Written | None = None
        #: Whether a sync has failed: the disk has.
        self.failed = False
        #: The number of the newest record; up to which the bytes are on the disk; and up to which
        #: the index's head says so.
        self._number = self._confirmed = self._claimed = 0
        #: The first numbers of the batches whose bytes are being written.
        self._under_way: set[int] = set()
        #: By handle: the number of its record.
        self._places: dict[int, int] = {}
        #: All records, as the index is to have them.
        self._image = bytearray()
        #: Numbers of free records.
        self._free: list[int] = []
        self._slots = Slots()
        self._disk_id, self._former_id = disk_id, former_id

    # --- start and end ----------------------------------------------------------------

    def open(self) -> None:
        """Read the index, if there is one. Raises ``OSError`` if the disk cannot be used."""
        with contextlib.suppress(FileNotFoundError):
            self.files.unlink(self.index_path + ".new")
        has_data = self.files.exists(self.data_path)
        data_bytes = self.files.file_size(self.data_path) if has_data else 0
        has_index = self.files.exists(self.index_path)
        if not has_index or self.files.file_size(self.index_path) < layout.HEAD_BYTES:
            if data_bytes:
                raise unusable(layout.INDEX_NAME, "empty" if has_index else "gone")
            return
        index = self.files.open(self.index_path, "rw")
        self._index = _Written(self.files, index)
        data = self.files.open(self.data_path, "rw") if has_data else None
        self._data = None if data is None else _Written(self.files, data)
        found = IndexReader(self.files, self.directory, index, data)
        found.read((self._disk_id, self._former_id), data_bytes)
        self._places, self._image, self._free = found.places, found.image, found.free
        self._slots, self._number = found.slots, found.number
        self._claimed = self._confirmed = found.confirmed
        if self._data is not None:
            self._data.is_dirty = self._number > self._confirmed
        self._clear(found.wrong)
        self._free += found.wrong
        # A record that was cleared before the process died may still be on the disk.
        index.sync()
        if found.disk_id != self._disk_id:
            try:
                index.write(layout.encode_head(self._disk_id, self._confirmed), 0)
                index.sync()
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
        # And what is behind the last frame that a record has.
        rest = -(-(data_bytes - self._slots.end) // PAGE_BYTES) * PAGE_BYTES
        behind = [(self._slots.end, rest)] if rest > 0 else []
        self._punch(self._slots.claimed() + behind)

    def is_whole(self, record: Record) -> bool:
        """Whether the bytes of this record are in its slot."""
        return is_whole(None if self._data is None else self._data.file, record)

    def close(self) -> None:
        for written in (self._index, self._data):
            if written is not None:
                written.file.close()

    def cut_short(self, handles: Iterable[int]) -> list[int]:
        """Those of the replicas that the files are too short for. Raises ``OSError`` if one of the
        files is gone from the disk, which then has failed."""
        records = [record for record in map(self.get, handles) if record is not None]
        if not records:
            return []
        for path in (self.index_path, self.data_path):
            if not self.files.exists(path):
                raise unusable(path.rpartition("/")[2], "gone")
        size = self.files.file_size(self.data_path)
        return [record.handle for record in records if record.offset + record.length > size]

    # --- what there is; nothing here blocks -------------------------------------------

    def __contains__(self, handle: object) -> bool:
        return handle in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def used_bytes(self) -> int:
        """Bytes of the slots that replicas have."""
        return self._slots.used_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes that both files take on the disk, if it punches holes."""
        return self._slots.allocated_bytes + len(self._image)

    def all(self) -> Iterator[Record]:
        """All replicas; none may be added or removed meanwhile."""
        return map(self._entry, self._places.values())

    def get(self, handle: int) -> Record | None:
        place = self._places.get(handle)
        if place is None:
            return None
        record = layout.unpack_record(self._image, place * RECORD_BYTES)
        # Another thread may have given the place away meanwhile.
        return record if record.handle == handle else None

    def has(self, record: Record) -> bool:
        """Whether this is still the replica's record."""
        place = self._places.get(record.handle)
        return place is not None and layout.is_record(record, self._image, place * RECORD_BYTES)

    def read_cached(self, target: memoryview, offset: int) -> bool:
        return self._data is not None and self._data.file.read_cached(target, offset)

    def _entry(self, place: int) -> Record:
        return layout.unpack_record(self._image, place * RECORD_BYTES)

    def _set(self, place: int, record: Record) -> None:
        at = place * RECORD_BYTES
        self._image[at : at + RECORD_BYTES] = layout.encode_record(record)

    # --- reading ----------------------------------------------------------------------

    def read_into(self, target: memoryview, offset: int) -> int:
        return 0 if self._data is None else self._data.file.read_into(target, offset)

    def has_on_disk(self, record: Record) -> bool:
        """Whether the index has this record. A page of it that cannot be read is written again
        from memory, which gives it another sector."""
        place = self._places.get(record.handle)
        if place is None or self._index is None:
            return False
        content = bytearray(RECORD_BYTES)
        at = layout.HEAD_BYTES + place * RECORD_BYTES
        try:
            self._index.file.read_into(memoryview(content), at)
        except ReadFailed:
            log.warning("%s: a page cannot be read, and is written again", self.index_path)
            self._write_records(self._index, [place])
            self.sync()
            self._index.file.read_into(memoryview(content), at)
        return content == layout.encode_record(record)

    # --- new replicas -----------------------------------------------------------------

    def put(self, made: list[Made], sync: bool) -> dict[int, OSError]:
        """Write new replicas; with ``sync`` they are on the disk when this returns. A replica of
        the chunk that is packed already is replaced. Returns the errors of those that were
        not written. Raises ``OSError`` if none was."""
        with self._lock:
            index, data = self._opened()
            self._grow(index, len(made))
            first = self._number + 1
            self._number += len(made)
            records = [
                Record(m.handle, m.version, self._slots.take(len(m.data)), len(m.data), m.sums, n)
                for n, m in enumerate(made, first)
            ]
            places = [self._free.pop() for _ in made]
            self._under_way.add(first)
        failed: dict[int, OSError] = {}
        written: list[tuple[int, Record]] = []
        try:
            try:
                _write_data(data, list(zip(records, made, strict=True)), failed)
            finally:
                with self._lock:
                    self._under_way.discard(first)
            written = [
                (place, record)
                for place, record in zip(places, records, strict=True)
                if record.handle not in failed
            ]
            for place, record in written:
                self._set(place, record)
            self._write_records(index, [place for place, _ in written])
            if sync and written:
                self.sync()
        except BaseException:
            self._take_back(written)
            if not self.failed:
                self._give(places, records)
            raise
        with self._lock:
            replaced = []
            for place, record in written:
                old = self._places.get(record.handle)
                if old is not None:
                    replaced.append((old, self._entry(old)))
                self._places[record.handle] = place
        unused = [
            (place, record)
            for place, record in zip(places, records, strict=True)
            if record.handle in failed
        ]
        self._give([place for place, _ in unused], [record for _, record in unused])
        # The table does not have the old ones any more.
        self._clear([place for place, _ in replaced])
        self._give([place for place, _ in replaced], [record for _, record in replaced])
        return failed

    def _opened(self) -> tuple[_Written, _Written]:
        """Both files, made now if there are none. The index has its name on the disk before
        the other one has: see :meth:`open`."""
        if self._index is None or self._data is None:
            if self._index is None:
                index = _new_index(self.files, self.index_path, self._disk_id)
                self._index = _Written(self.files, index)
            file = self.files.open(self.data_path, "replace")
            try:
                self.files.sync_directory(self.directory)
            except BaseException:
                file.close()
                raise
            self._data = _Written(self.files, file)
        if self.failed:
            raise DiskFailed(f"{self.directory}: packed replicas could not be synced")
        return self._index, self._data

    def _grow(self, index: _Written, count: int) -> None:
        while len(self._free) < count:
            index.write(bytes(GROWTH_BYTES), layout.HEAD_BYTES + len(self._image))
            first = len(self._image) // RECORD_BYTES
            self._image += bytes(GROWTH_BYTES)
            last = len(self._image) // RECORD_BYTES
            self._free[:0] = range(last - 1, first - 1, -1)

    def _write_records(self, index: _Written, places: list[int]) -> None:
        """Write the pages of these records as they are in memory, neighbours in one call. Whole
        pages: one that cannot be read could not be changed in part, nor would be read by
        a start with the record in it."""
        pages = sorted({place * RECORD_BYTES // PAGE_BYTES for place in places})
        at = 0
        while at < len(pages):
            first, end = pages[at], at + 1
            while end < len(pages) and pages[end] == first + end - at:
                end += 1
            start, stop = first * PAGE_BYTES, (first + end - at) * PAGE_BYTES
            # Held, lest a page of before another thread's record be written after that.
            with index.lock:
                index.write(bytes(self._image[start:stop]), layout.HEAD_BYTES + start)
            at = end

    def _take_back(self, written: list[tuple[int, Record]]) -> None:
        """After an error: no record may be left that the disk does not have for certain. If that
        fails, the disk has failed."""
        if written and not self.failed:
            try:
                self._clear([place for place, _ in written])
            except BaseException:
                self.failed = True
                raise

    # --- deleting ---------------------------------------------------------------------

    def remove(self, handles: Iterable[int]) -> None:
        """Delete those of the replicas that are packed. It is on the disk when this returns.
        Raises ``OSError``; then they stay."""
        with self._lock:
            gone = []
            for handle in handles:
                place = self._places.pop(handle, None)
                if place is not None and self._entry(place).handle == handle:
                    gone.append((place, self._entry(place)))
        try:
            self._clear([place for place, _ in gone])
        except BaseException:
            with self._lock:
                for place, record in gone:
                    self._set(place, record)
                    self._places.setdefault(record.handle, place)
            if self._index is not None and not self.failed:
                # Some of them may be cleared on the disk.
                with contextlib.suppress(OSError):
                    self._write_records(self._index, [place for place, _ in gone])
            raise
        self._give([place for place, _ in gone], [record for _, record in gone])

    def _clear(self, places: list[int]) -> None:
        """Overwrite these records; that is on the disk when this returns."""
        index = self._index
        if index is None or not places:
            return
        for place in places:
            self._image[place * RECORD_BYTES : (place + 1) * RECORD_BYTES] = FREE
        self._write_records(index, places)
        self.sync()

    def _give(self, places: list[int], records: list[Record]) -> None:
        """Free places and slots that no record on the disk has."""
        if not records:
            return
        with self._giving:
            with self._lock:
                unused = self._slots.give(record.offset for record in records)
            # Before another thread can use them.
            try:
                self._punch(unused)
            finally:
                with self._lock:
                    self._slots.release()
                    self._free += places

    def _punch(self, ranges: list[tuple[int, int]]) -> None:
        """Give these bytes back to the disk, if it takes them. It may refuse: nothing depends on
        it, and the replicas are deleted already; the next start punches them again."""
        data = self._data
        if data is None or not data.can_punch:
            return
        for offset, count in ranges:
            report_progress()
            try:
                data.file.punch(offset, count)
            except OSError as error:
                data.can_punch = error.errno != errno.EOPNOTSUPP
                log.warning(
                    "%s: the file system has punched no hole (%s): the space of deleted small "
                    "replicas is used again, but not given back before the next start",
                    self.data_path,
                    error,
                )
                return

    # --- syncing ----------------------------------------------------------------------

    def sync(self) -> None:
        """Sync everything whose writing has ended: threads that wait at the same time share one
        sync of both files. A failed one is not repeated: see
        :mod:`gfs.chunkserver.files.journal`."""
        with self._syncing:
            if self.failed:
                raise DiskFailed("packed replicas could not be synced")
            with self._lock:
                number = min(self._under_way, default=self._number + 1) - 1
            if self._confirmed >= self._claimed + CLAIM_RECORDS:
                self._claim()
            dirty = [each for each in (self._index, self._data) if each and each.is_dirty]
            for each in dirty:
                each.is_dirty = False
            try:
                if dirty:
                    self.files.sync_all([each.file for each in dirty])
            except BaseException:
                self.failed = True
                raise
            self._confirmed = number

    @property
    def to_confirm(self) -> bool:
        """Whether a start would verify records. Does not block."""
        return self._number > self._claimed and not self.failed

    def confirm(self) -> None:
        """Sync everything, and have a start know."""
        self.sync()
        with self._syncing:
            self._claim()

    def _claim(self) -> None:
        """Write into the head up to which record all bytes are on the disk. It is there itself
        after the next sync, or not: then a start verifies more."""
        if self._index is not None:
            try:
                self._index.write(layout.encode_head(self._disk_id, self._confirmed), 0)
                self._claimed = self._confirmed
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise


def _new_index(files: FileSystem, index_path: str, disk_id: str) -> File:
    """It has its name when it has its head: a full disk leaves none without."""
    path = index_path + ".new"
    file = files.open(path, "replace")
    try:
        file.write(layout.encode_head(disk_id), 0)
        file.sync()
        files.rename(path, index_path)
        files.sync_directory(index_path.rpartition("/")[0])
    except BaseException:
        with contextlib.suppress(OSError):
            files.unlink(path)
        raise
    finally:
        file.close()
    return files.open(index_path, "rw")


def _write_data(data: _Written, new: list[tuple[Record, Made]], failed: dict[int, OSError]) -> None:
    """Write the bytes, those of neighbours in one call. What is left of a slot smaller
    than a page is filled with zeros then, and of a larger one left a hole."""
    new.sort(key=lambda each: each[0].offset)
    at = 0
    while at < len(new):
        report_progress()
        start = end = new[at][0].offset
        group: list[tuple[Record, Made]] = []
        parts: list[bytes | memoryview] = []
        while at < len(new):
            record, made = new[at]
            if group and (record.offset != end or end - start >= JOINED_BYTES_MAX):
                break
            group.append(new[at])
            parts.append(made.data)
            at += 1
            end = record.offset + slot_bytes(record.length)
            rest = end - record.offset - record.length
            if rest >= PAGE_BYTES:
                break
            if rest:
                parts.append(bytes(rest))
        try:
            data.write(b"".join(parts) if len(parts) > 1 else parts[0], start)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            error.__traceback__ = error.__context__ = None
            failed.update((record.handle, error) for record, _ in group)

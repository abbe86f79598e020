"""How a start reads the index of the packed replicas, and which of its records hold."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator

from gfs.blocks import MIB, PAGE_BYTES, block_sum, slot_bytes
from gfs.chunkserver.files import report_progress
from gfs.chunkserver.packs import layout
from gfs.chunkserver.packs.layout import FREE, RECORD_BYTES, Record
from gfs.chunkserver.packs.slots import Slots
from gfs.diagnostics import event
from gfs.errors import CorruptReplica
from gfs.io import File, FileSystem, ReadFailed

log = logging.getLogger(__name__)

#: How much of the index is read at a time.
READ_BYTES = 1 * MIB
#: With more damaged records, and more than one in a hundred, the index as a whole is to blame:
#: nothing is cleared, so that somebody may look at it.
DAMAGED_MAX = 64
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def unusable(name: str, what: str) -> OSError:
    return OSError(
        errno.ENODATA,
        f"{name} is {what}, without which no packed replica can be read: put it back; or, if "
        f"the other servers are to make all small replicas of this disk again, delete "
        f"{layout.INDEX_NAME} and {layout.DATA_NAME}",
    )


class IndexReader:
    """All methods block. What was read is in the attributes, which :class:`Packs` takes over."""

    def __init__(self, files: FileSystem, directory: str, index: File, data: File | None) -> None:
        self._files = files
        self._directory = directory
        self._path = f"{directory}/{layout.INDEX_NAME}"
        self._index = index
        self._data = data
        #: What the head says: None if that is damaged, and up to which number of a record the
        #: bytes are on the disk.
        self.disk_id: str | None = None
        self.confirmed = 0
        #: The number of the newest record.
        self.number = 0
        #: All records, as they are in the index; by handle, the number of its record; numbers of
        #: free ones.
        self.image = bytearray()
        self.places: dict[int, int] = {}
        self.free: list[int] = []
        self.slots = Slots()
        #: Numbers of the records that others have replaced; and of all that are to be cleared.
        self._replaced: list[int] = []
        self.wrong: list[int] = []

    def read(self, disk_ids: tuple[str, str], data_bytes: int) -> None:
        """Read the head and all records. Clears none. Raises ``OSError`` if the files are not those
        of a disk of these ids, or one of them is not what it was."""
        is_blank = self._read_head(disk_ids)
        damaged: list[int] = []
        lost: list[int] = []
        taken: list[tuple[int, Record]] = []
        for at, content in self._contents(max(0, self._index.size() - layout.HEAD_BYTES)):
            self.image += content
            for inside in range(0, len(content), RECORD_BYTES):
                report_progress()
                record = content[inside : inside + RECORD_BYTES]
                number = (at + inside) // RECORD_BYTES
                if record == FREE:
                    self.free.append(number)
                    continue
                found = layout.decode_record(record)
                if found is None:
                    damaged.append(number)
                    continue
                self.number = max(self.number, found.number)
                if found.number > self.confirmed and self._is_lost(found):
                    lost.append(number)
                elif not self._take(number, found):
                    taken.append((number, found))
        self.free.reverse()
        good = len(self.places)
        if good and self._data is None:
            raise unusable(layout.DATA_NAME, "gone")
        # Without a record, an index whose head alone is bad may be one whose replicas were all
        # deleted; one of zeros throughout is no index.
        is_all = self.disk_id is None and not good and data_bytes and (damaged or is_blank)
        if is_all or len(damaged) > max(DAMAGED_MAX, good // 100):
            raise unusable(layout.INDEX_NAME, f"damaged ({len(damaged)} records)")
        damaged += self._settle(taken)
        self._log(damaged, lost)
        self.wrong = damaged + lost + self._replaced

    def _read_head(self, disk_ids: tuple[str, str]) -> bool:
        """Whether it is of zeros."""
        head = bytearray(layout.HEAD_BYTES)
        is_blank = False
        with contextlib.suppress(ReadFailed):
            self._index.read_into(memoryview(head), 0)
            is_blank = not any(head)
        try:
            self.disk_id, self.confirmed = layout.decode_head(head)
        except CorruptReplica as error:
            raise OSError(errno.ENOTSUP, str(error)) from error
        if self.disk_id not in (None, *disk_ids):
            raise unusable(layout.INDEX_NAME, f"that of disk {self.disk_id}, not {disk_ids[0]}")
        self.number = self.confirmed
        return is_blank

    def _log(self, damaged: list[int], lost: list[int]) -> None:
        if damaged:
            log.error(
                "%s: %d records are damaged: these replicas are gone",
                self._path,
                len(damaged),
                extra=event("records_damaged", disk=self._directory, replicas=len(damaged)),
            )
        if self._replaced:
            log.info("%s: %d records were replaced", self._path, len(self._replaced))
        if lost:
            log.warning(
                "%s/%s: the bytes of %d small replicas that were written shortly before had not "
                "reached the disk: these replicas are gone",
                self._directory,
                layout.DATA_NAME,
                len(lost),
                extra=event("records_dropped", disk=self._directory, replicas=len(lost)),
            )

    def _contents(self, size: int) -> Iterator[tuple[int, bytes]]:
        """The records, piece by piece; those in a page that cannot be read are written as free,
        which gives the page another sector."""
        for at in range(0, size, READ_BYTES):
            report_progress()
            count = min(READ_BYTES, size - at) // RECORD_BYTES * RECORD_BYTES
            content = bytearray(count)
            try:
                self._index.read_into(memoryview(content), layout.HEAD_BYTES + at)
            except ReadFailed:
                self._read_pages(content, at)
            yield at, bytes(content)

    def _read_pages(self, content: bytearray, at: int) -> None:
        # The whole disk may be to blame: then nothing is overwritten.
        try:
            self._probe()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
        for start in range(0, len(content), PAGE_BYTES):
            with memoryview(content) as view:
                page = view[start : start + PAGE_BYTES]
                try:
                    self._index.read_into(page, layout.HEAD_BYTES + at + start)
                except ReadFailed:
                    page[:] = bytes(len(page))
                    log.error(
                        "%s: a page cannot be read: its replicas are gone",
                        self._path,
                        extra=event("records_damaged", disk=self._directory, replicas=0),
                    )
                    self._index.write(bytes(len(page)), layout.HEAD_BYTES + at + start)
                    self._index.sync()

    def _probe(self) -> None:
        probe = f"{self._directory}/probe"
        file = self._files.open(probe, "replace")
        try:
            file.write(b"probe", 0)
            file.sync()
        finally:
            file.close()
        self._files.unlink(probe)

    def _take(self, number: int, record: Record) -> bool:
        """Note what the record says. False if another one has its slot."""
        if not self.slots.claim(record.offset, record.length):
            return False
        twin = self.places.get(record.handle)
        if twin is not None:
            # A replacement that was cut short has left both.
            other = self._record(twin)
            if self._rank(record) <= self._rank(other):
                self._lose(number, record)
                return True
            self._lose(twin, other)
        self.places[record.handle] = number
        return True

    def _lose(self, number: int, record: Record) -> None:
        """Another record has replaced this one, which has its slot."""
        self.slots.give([record.offset])
        self.slots.release()
        self._replaced.append(number)

    def _settle(self, taken: list[tuple[int, Record]]) -> list[int]:
        """Records whose slots were taken: one of the two was cleared, and the disk has lost that
        (a failed sync is reported only once). That one holds whose bytes are there. Returns the
        numbers of those that are neither kept nor replaced."""
        by_frame: dict[int, list[Record]] = {r.offset // layout.FRAME_BYTES: [] for _, r in taken}
        for record in map(self._record, self.places.values()) if taken else ():
            if record.offset // layout.FRAME_BYTES in by_frame:
                by_frame[record.offset // layout.FRAME_BYTES].append(record)
        lost = []
        for number, record in taken:
            rivals = by_frame[record.offset // layout.FRAME_BYTES]
            size = slot_bytes(record.length)
            others = [
                other
                for other in rivals
                if self._holds(other)
                and (other.offset == record.offset or slot_bytes(other.length) != size)
            ]
            is_there = is_whole(self._data, record)
            if is_there and not any(is_whole(self._data, other) for other in others):
                for other in others:
                    self._lose(self.places.pop(other.handle), other)
            if self._take(number, record):
                rivals.append(record)
            elif is_there:
                lost.append(number)
            else:
                self._replaced.append(number)
        return lost

    def _rank(self, record: Record) -> tuple[int, bool]:
        return record.version, is_whole(self._data, record)

    def _is_lost(self, record: Record) -> bool:
        """Whether its bytes can be read, and are not there."""
        with contextlib.suppress(ReadFailed):
            return self._data is not None and not _has_bytes(self._data, record)
        return False

    def _record(self, place: int) -> Record:
        return layout.unpack_record(self.image, place * RECORD_BYTES)

    def _holds(self, record: Record) -> bool:
        place = self.places.get(record.handle)
        return place is not None and layout.is_record(record, self.image, place * RECORD_BYTES)


def is_whole(data: File | None, record: Record) -> bool:
    """Whether the bytes of this record are in its slot."""
    with contextlib.suppress(ReadFailed):
        return data is not None and _has_bytes(data, record)
    return False


def _has_bytes(data: File, record: Record) -> bool:
    content = bytearray(record.length)
    got = data.read_into(memoryview(content), record.offset)
    return got == record.length and block_sum(content) == record.sum

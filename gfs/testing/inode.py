"""One file on a simulated disk: its bytes, those that are on the platter, and those
that a power cut leaves.

What was written and not synced is in the page cache. A power cut loses it: all
of it, or, with a source of chance, any part of it in units of sectors, as of a disk
that was writing pages back when it lost power. A sector is written whole or not at all;
a page, eight of them, may be torn.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterable
from typing import NamedTuple

from gfs.blocks import PAGE_BYTES
from gfs.io import Buffer, ReadFailed

SECTOR_BYTES = 512


def disk_error(code: int, path: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), path)


def _pages(size: int) -> int:
    return -(-size // PAGE_BYTES)


class Hang(NamedTuple):
    """How a disk hangs from time to time."""

    #: The share of the calls of these kinds that hang, and for how long.
    share: float
    seconds: tuple[float, float]
    #: Empty: calls of all kinds.
    kinds: tuple[str, ...] = ()


class Volume:
    """One file system, mounted somewhere or not."""

    def __init__(self, number: int, capacity_bytes: int) -> None:
        #: As ``st_dev``: unique.
        self.number = number
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.top = Directory(self)
        #: The error of every call, if the device was removed; the error of every call
        #: that would change something, if it was mounted as read-only.
        self.gone = self.read_only = 0
        #: How it hangs, if it does.
        self.hang: Hang | None = None
        #: Whether nothing on the platter can be read; the page cache has what was written since.
        self.is_unreadable = False

    def check(self, what: str) -> None:
        """Raise the error of a "read", "write" or "sync" here, if there is one."""
        if self.gone:
            raise disk_error(self.gone)
        if self.read_only and what == "write":
            raise disk_error(self.read_only)

    def take_over(self, other: Volume) -> None:
        """Take over all contents of another volume."""
        self.top = other.top
        stack: list[Inode | Directory] = [self.top]
        while stack:
            node = stack.pop()
            node.volume = self
            if isinstance(node, Directory):
                stack += node.entries.values()
            else:
                self.used_bytes += node.stored_bytes

    def lose_unsynced(self, chance: random.Random | None) -> None:
        """See :meth:`gfs.testing.files.SimDisk.power_cut`."""
        self.top.lose_unsynced(chance)
        self.used_bytes = self.top.stored_bytes

    def take(self, count: int) -> None:
        if count > 0 and self.used_bytes + count > self.capacity_bytes:
            raise disk_error(errno.ENOSPC)
        self.used_bytes += count


class Inode:
    """A file's bytes, and their synced state as far as it differs."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.data = bytearray()
        #: Pages that were never written: they take no space.
        self._holes: set[int] = set()
        self.names = 0
        self.opened = 0
        #: The open file that has the lock.
        self.locked_by: object = None
        #: The size at the last sync, and the pages below it that changed since,
        #: as they were then.
        self.synced_bytes = 0
        self._before: dict[int, bytes] = {}
        #: Pages whose write-back failed: clean in the page cache, for as long as it has
        #: them; and what is on the platter in their place.
        self._lost: dict[int, bytes] = {}
        #: What was in those that ever failed, for tests that count possible losses.
        self.refused: dict[int, bytes] = {}
        #: Failures of the write-back; and whether the last one was reported.
        self.failures = 0
        self.is_reported = True
        #: Sectors that cannot be read until they are written again.
        self.unreadable: set[int] = set()
        #: Sectors that are in the page cache, of a volume of which nothing else can be read.
        self._cached: set[int] = set()
        #: Whether the disk lost or damaged bytes of it, for tests that count possible losses.
        self.harmed = False
        #: Whether stored bytes of it were damaged, which is noticed only when they are read.
        self.damaged = False

    @property
    def stored_bytes(self) -> int:
        """The space that it takes on its disk."""
        return PAGE_BYTES * (_pages(len(self.data)) - len(self._holes))

    @property
    def unsynced(self) -> bool:
        """Whether a power cut now could change anything."""
        return bool(self._before or self._lost) or len(self.data) != self.synced_bytes

    # --- reading and writing -------------------------------------------------------

    def read(self, buffer: memoryview, offset: int) -> int:
        count = max(min(len(buffer), len(self.data) - offset), 0)
        sectors = range(offset // SECTOR_BYTES, -(-(offset + count) // SECTOR_BYTES))
        if count and (
            not self.unreadable.isdisjoint(sectors)
            or (self.volume.is_unreadable and any(map(self._is_on_platter, sectors)))
        ):
            raise ReadFailed(errno.EIO, os.strerror(errno.EIO)).at(id(self), offset)
        with memoryview(self.data) as view:
            buffer[:count] = view[offset : offset + count]
        return count

    def _is_on_platter(self, sector: int) -> bool:
        """Whether the disk has to read it: it is not in the page cache, nor stored as a hole, as
        file systems that compress store zeros."""
        start = sector * SECTOR_BYTES
        return sector not in self._cached and any(self.data[start : start + SECTOR_BYTES])

    def write(self, data: Buffer, offset: int) -> None:
        end = offset + len(data)
        size = len(self.data)
        first, last, present = offset // PAGE_BYTES, _pages(end), _pages(size)
        filled = self._holes.intersection(range(first, last)) if self._holes else set[int]()
        self.volume.take(PAGE_BYTES * (len(filled) + max(0, last - max(first, present))))
        self._holes -= filled
        self._holes.update(range(present, first))
        self._remember(offset, end)
        if offset > size:
            self.data.extend(bytes(offset - size))
        self.data[offset:end] = data
        if self.volume.is_unreadable:
            self._cached.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))
        if self.unreadable:
            # The disk puts another sector in the place of one that is written whole.
            whole = range(-(-offset // SECTOR_BYTES), end // SECTOR_BYTES)
            self.unreadable.difference_update(whole)

    def resize(self, size: int) -> None:
        present = len(self.data)
        before = self.stored_bytes
        self._holes.update(range(_pages(present), _pages(size)))
        self._holes = {page for page in self._holes if page < _pages(size)}
        self._remember(size, present)
        if size < present:
            del self.data[size:]
            self.unreadable = {each for each in self.unreadable if each * SECTOR_BYTES < size}
        else:
            self.data.extend(bytes(size - present))
        self.volume.take(self.stored_bytes - before)

    def punch(self, offset: int, count: int) -> None:
        """Make whole pages a hole. Until a sync a power cut may bring their bytes back."""
        end = min(offset + count, len(self.data))
        if offset >= end:
            return
        before = self.stored_bytes
        self._remember(offset, end)
        self.data[offset:end] = bytes(end - offset)
        self._holes.update(range(offset // PAGE_BYTES, _pages(end)))
        sectors = range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES))
        self.unreadable.difference_update(sectors)
        self.volume.take(self.stored_bytes - before)

    def _remember(self, start: int, end: int) -> None:
        for page in range(start // PAGE_BYTES, -(-min(end, self.synced_bytes) // PAGE_BYTES)):
            if page not in self._before:
                at = page * PAGE_BYTES
                end = min(at + PAGE_BYTES, self.synced_bytes)
                there = self._lost.pop(page, None)
                self._before[page] = (
                    bytes(self.data[at:end]) if there is None else there[: end - at]
                )

    def sync(self) -> None:
        """Write all dirty pages back."""
        self.synced_bytes = len(self.data)
        self._before.clear()

    def fail_to_sync(self, chance: random.Random) -> None:
        """Let the write-back fail, of all dirty pages or a part of them. As in Linux,
        the pages are clean from then on, and are not written again."""
        pages = self._new_pages()
        if not pages:
            return
        refused = [page for page in pages if chance.random() < 0.7] or pages
        lost = {page: self._on_platter(page) for page in refused}
        self._before.clear()
        self._lost.update(lost)
        for page in refused:
            self.refused[page] = bytes(self.data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
        self.synced_bytes = len(self.data)
        self.failures += 1
        self.is_reported = False
        self.harmed = True

    def _new_pages(self) -> list[int]:
        """The pages that are not on the platter and would be written back."""
        grown = range(self.synced_bytes // PAGE_BYTES, -(-len(self.data) // PAGE_BYTES))
        return sorted({*self._before, *(grown if len(self.data) > self.synced_bytes else ())})

    def may_lose(self, offset: int, count: int) -> bool:
        """Whether bytes of this range are in the page cache only, and will never be written."""
        end = _pages(offset + count)
        return any(page in self._lost for page in range(offset // PAGE_BYTES, end))

    def evict(self) -> None:
        """Drop the clean pages from the cache: those that were not written back and count as
        clean have the platter's contents again."""
        if not self._before and len(self.data) == self.synced_bytes:
            self._cached.clear()
        for page, content in self._lost.items():
            start = page * PAGE_BYTES
            end = min(start + PAGE_BYTES, len(self.data))
            if start < end:
                self.data[start:end] = content[: end - start]
        self._lost.clear()

    def on_platter(self) -> bytes:
        """The bytes that remain after a power cut that loses all it can."""
        pages = range(-(-self.synced_bytes // PAGE_BYTES))
        return b"".join(map(self._on_platter, pages))[: self.synced_bytes]

    # --- losing --------------------------------------------------------------------

    def lose_unsynced(self, chance: random.Random | None) -> None:
        """Go back to the last sync; with ``chance``, any part of what was written
        since is kept, sector by sector."""
        self.evict()
        if not self.unsynced:
            return
        self.harmed = True
        if chance is None:
            self._go_back()
        else:
            self._tear(chance)
        self._holes = {
            page
            for page in self._holes
            if page < _pages(len(self.data)) and not self._has_bytes(page)
        }
        self.sync()

    def _has_bytes(self, page: int) -> bool:
        """Whether a page is not all zeros: a hole that came back is none."""
        return any(self.data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])

    def _go_back(self) -> None:
        del self.data[self.synced_bytes :]
        self.data.extend(bytes(self.synced_bytes - len(self.data)))
        for page, content in self._before.items():
            self.data[page * PAGE_BYTES : page * PAGE_BYTES + len(content)] = content

    def _tear(self, chance: random.Random) -> None:
        """Leave each changed page on the platter, or not, or some of its sectors."""
        synced, present = self.synced_bytes, len(self.data)
        if present < synced and chance.random() < 0.5:
            self._go_back()  # the truncation was not written back
            return
        size = present
        if present > synced:
            size = chance.choice([synced, present, chance.randint(synced, present)])
        changed = set(self._before)
        # A file that grew shows zeros where its new pages are not on the platter.
        changed.update(range(synced // PAGE_BYTES, -(-size // PAGE_BYTES)))
        platter = {page: self._on_platter(page) for page in changed}
        del self.data[size:]
        for page in sorted(changed):
            fate = chance.random()
            if fate < 0.4:
                continue  # it was written back
            start = page * PAGE_BYTES
            for at in range(start, min(start + PAGE_BYTES, size), SECTOR_BYTES):
                if fate > 0.8 or chance.random() < 0.5:
                    end = min(at + SECTOR_BYTES, size)
                    self.data[at:end] = platter[page][at - start : end - start]

    def _on_platter(self, page: int) -> bytes:
        """A page as it was synced, zeros where it was not."""
        start = page * PAGE_BYTES
        known = self._before.get(page, self._lost.get(page))
        if known is None:
            known = bytes(self.data[start : min(start + PAGE_BYTES, self.synced_bytes)])
        return known + bytes(PAGE_BYTES - len(known))

    def used(self) -> bool:
        return bool(self.names or self.opened)


class Directory:
    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.entries: dict[str, Inode | Directory] = {}
        self.synced: dict[str, Inode | Directory] = {}
        #: Whether it was deleted: then nothing can be made in it, also by those who have it open.
        self.deleted = False
        #: Names whose change could not be written, as they were then: as with pages,
        #: they are written again only after another change.
        self._lost: dict[str, Inode | Directory | None] = {}

    def sync(self) -> None:
        self.write_back(self._names())

    def _names(self) -> list[str]:
        """In an order that is the same in every process, which no set of names has."""
        return [*self.entries, *(name for name in self.synced if name not in self.entries)]

    def write_back(self, names: Iterable[str]) -> None:
        for name in names:
            node = self.entries.get(name)
            if name in self._lost and self._lost[name] is node:
                continue
            self._lost.pop(name, None)
            if node is None:
                self.synced.pop(name, None)
            else:
                self.synced[name] = node

    def fail_to_sync(self) -> None:
        for name in self._names():
            node = self.entries.get(name)
            if node is not self.synced.get(name):
                self._lost[name] = node

    @property
    def stored_bytes(self) -> int:
        return sum(each.stored_bytes for each in self.entries.values())

    def lose_unsynced(self, chance: random.Random | None) -> None:
        if chance is not None and chance.random() < 0.5:
            # The names had been written back already.
            self.synced = dict(self.entries)
        for name, node in self.synced.items():
            if isinstance(node, Inode) and self.entries.get(name) is not node:
                node.harmed = True  # an old file has its name back
        self.entries = dict(self.synced)
        for node in self.entries.values():
            if isinstance(node, Directory):
                node.deleted = False
            else:
                node.names = 1
            node.lose_unsynced(chance)

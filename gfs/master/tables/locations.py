"""Where the replicas are.

Locations are not on disk. The chunkservers' reports determine them (the paper, 2.6.2):
chunkservers report all replicas when they register, and a part of them with every
heartbeat, and the master compares.

*Locations* are the good replicas of the chunk's current version on servers that are not
dead. The table has that version, too: before a replica is deleted it is compared with
the chunk's row, so that replicas of an older version are never taken for the remaining
ones. The comparison of one reported replica with the row:

==========================================  ==================================
reported                                    it is
==========================================  ==================================
version equal, long enough                  a location
version equal, too short                    suspect: the server is asked to
                                            verify it
possibly stale, version not lower           no location: garbage, unless there is
                                            nothing else (:mod:`gfs.master.rules.election`)
version lower, and it was no location       stale
version lower, but it was a location        suspect: the report may be older
                                            than the grant it contradicts
version higher                              the master failed while granting:
                                            the higher version is taken
chunk unknown, but reserved                 being written (:mod:`.reservations`): nothing
chunk unknown                               orphaned (:mod:`gfs.master.tables.garbage`)
==========================================  ==================================

Sketch: handles are allocated one after the other, so the table is a dict of *pages*, each
an array of 4 bytes for each of 64 handles: the number of the chunk's version and servers
in a list that has each combination once. That is 7 bytes a chunk (70 MB for 10,000,000)
where many chunks share each combination, which takes 270 bytes: at random among 30 servers,
300,000 chunks take 11 bytes each; among 100 servers 125, since most of the 161,700
combinations are used, and each once or twice. What the interpreter's garbage collector passes
over is a page and not a chunk; a dict of chunks took 110 bytes, and the collector a second.
Where only one chunk of a page is left it takes 460 bytes. There is no index by server: the
loss of one costs a pass over the pages, in slices (0.6 s for 10,000,000 chunks).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

PAGE_BITS = 6
PAGE = 1 << PAGE_BITS
#: How many ways of adding a location are remembered.
ADDED_MAX = 10_000
_EMPTY = bytes(array("I").itemsize * PAGE)

Holders = tuple[int, ...]


class Located(NamedTuple):
    version: int
    holders: Holders


_NOWHERE = Located(0, ())


class LocationTable:
    def __init__(self) -> None:
        #: Handle >> PAGE_BITS -> for each handle its number in ``_located``.
        self._pages: dict[int, array[int]] = {}
        #: The combinations that chunks have, the first for those without a location; how
        #: many chunks have each; and the numbers that are free.
        self._located: list[Located] = [_NOWHERE]
        self._uses: list[int] = [0]
        self._free: list[int] = []
        self._numbers: dict[Located, int] = {}
        #: (number, server, version) -> what had that number, and what a chunk of it has when
        #: that location is added: nearly all chunks go the same ways, and this spares most of
        #: what adding one costs.
        self._added: dict[tuple[int, int, int], tuple[Located, Located]] = {}
        self._count = 0
        #: Locations per server index.
        self.counts: dict[int, int] = {}
        #: Each set collects the handles that change, for one shadow master.
        self.watchers: list[dict[int, None]] = []

    def unwatch(self, watcher: dict[int, None]) -> None:
        """That one and no other: two that have collected the same are equal."""
        self.watchers = [each for each in self.watchers if each is not watcher]

    def _at(self, handle: int) -> Located:
        page = self._pages.get(handle >> PAGE_BITS)
        return _NOWHERE if page is None else self._located[page[handle & PAGE - 1]]

    def get(self, handle: int) -> Holders:
        """Server indexes, in no particular order."""
        page = self._pages.get(handle >> PAGE_BITS)
        return () if page is None else self._located[page[handle & PAGE - 1]].holders

    def version(self, handle: int) -> int:
        """The version of all its locations; 0 if there are none."""
        return self._at(handle).version

    def add(self, handle: int, server: int, version: int) -> bool:
        """Add a location; True if it is new. It replaces all locations of a lower
        version; one of a lower version than the present ones is refused."""
        page = self._pages.get(handle >> PAGE_BITS)
        before = 0 if page is None else page[handle & PAGE - 1]
        known = self._located[before]
        added = self._added.get((before, server, version))
        if added is not None and added[0] is known:
            located = added[1]
        else:
            if version < known.version:
                return False
            if version > known.version:
                for other in known.holders:
                    self.counts[other] -= 1
                known = _NOWHERE
            if server in known.holders:
                return False
            located = Located(version, tuple(sorted((*known.holders, server))))
            if known is self._located[before]:
                if len(self._added) >= ADDED_MAX:
                    self._added.clear()
                self._added[before, server, version] = known, located
        self._put(handle, located)
        self.counts[server] = self.counts.get(server, 0) + 1
        return True

    def add_all(self, handle: int, servers: Iterable[int], version: int) -> Holders:
        """As :meth:`add` of each; returns those that are new. A chunk without locations, as a new
        one is, gets them in one step."""
        wanted = tuple(sorted({*servers}))
        if not wanted or self.get(handle):
            return tuple(server for server in wanted if self.add(handle, server, version))
        self._put(handle, Located(version, wanted))
        for server in wanted:
            self.counts[server] = self.counts.get(server, 0) + 1
        return wanted

    def remove(self, handle: int, server: int) -> bool:
        """Remove a location; True if there was one."""
        version, holders = self._at(handle)
        if server not in holders:
            return False
        self._put(handle, Located(version, tuple(s for s in holders if s != server)))
        self.counts[server] -= 1
        return True

    def replace(self, handle: int, servers: Iterable[int], version: int) -> Holders:
        """Set the locations; returns the former ones that are not among them."""
        before = self.pop(handle)
        after = self.add_all(handle, servers, version)
        return tuple(server for server in before if server not in after)

    def pop(self, handle: int) -> Holders:
        """Remove a deleted chunk."""
        holders = self.get(handle)
        self._put(handle, _NOWHERE)
        for server in holders:
            self.counts[server] -= 1
        return holders

    def slices(self, length: int, server: int | None = None) -> Iterator[list[int]]:
        """The handles in slices of about ``length``; with ``server``, in each slice only
        those that it has. The table may change between slices: chunks that are new then
        may be missing."""
        found: list[int] = []
        looked = 0
        located = self._located
        for number in list(self._pages):
            page = self._pages.get(number)
            if page is None:
                continue
            first = number << PAGE_BITS
            looked += PAGE
            if server is None:
                found += [first + at for at, known in enumerate(page) if known]
            else:
                found += [
                    first + at for at, known in enumerate(page) if server in located[known].holders
                ]
            if looked >= length:
                yield found
                found, looked = [], 0
        yield found

    def _put(self, handle: int, located: Located) -> None:
        for watcher in self.watchers:
            watcher[handle] = None
        page = self._pages.get(handle >> PAGE_BITS)
        if page is None:
            if not located.holders:
                return
            page = self._pages[handle >> PAGE_BITS] = array("I", _EMPTY)
        before = page[handle & PAGE - 1]
        number = self._take_number(located) if located.holders else 0
        page[handle & PAGE - 1] = number
        self._count += bool(number) - bool(before)
        if before:
            self._give_back(before)
            if not number and page.count(0) == PAGE:
                del self._pages[handle >> PAGE_BITS]

    def _take_number(self, located: Located) -> int:
        number = self._numbers.get(located)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._located[number] = located
            else:
                number = len(self._located)
                self._located.append(located)
                self._uses.append(0)
            self._numbers[located] = number
        self._uses[number] += 1
        return number

    def _give_back(self, number: int) -> None:
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._numbers[self._located[number]]
            self._located[number] = _NOWHERE
            self._free.append(number)

    def __len__(self) -> int:
        return self._count

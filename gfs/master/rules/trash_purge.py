"""When the trash is purged early, and which part of it.

Deleted files stay in the trash for their time, unless a write would otherwise fail for
want of space in the whole cluster: fewer chunkservers than a new chunk needs
(``replicas_min``) have room for one. One full disk, or one full server, is no reason
while others have room; nor is an absent server, which may come back with room, until an
operator forgets it.

Then those rows of the trash are purged whose replicas are on servers that lack room,
the oldest first, until as many servers as are needed have room again. A chunk that
another file has frees nothing, unless that file is in the trash, too, and is purged
with it. If the whole trash is less than that, all goes that frees space; but nothing
if it frees none on so many servers, since no write would succeed.

Room is that of all disks of a server together: the master does not know on which of them
a replica is, and a chunkserver uses any disk that has space above its reserve. Disks on
which a chunk might not fit do not count. So one purge may make room on disks where it does
not count yet, or that are being drained; then another follows. Each file system counts once,
however many disks and servers are on it (``gfs up`` has all of them on one).

Plain data and passes in slices; :mod:`gfs.master.upkeep.trash` carries the purge out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gfs.blocks import CHUNK_BYTES, MIB
from gfs.master.metadata import Store
from gfs.master.metadata.trash import chunks_of, rows_from
from gfs.master.tables import LIVE, Server

#: A server whose disks have less than this above their reserves together, or than this
#: share of the largest, has no room: the data that is written during the seconds that a
#: purge takes must fit there.
ROOM_BYTES = 1024 * MIB
ROOM_SHARE = 20
#: A purge frees so many times that space.
MADE = 2
#: With less than this share of the disks free ``gfs status`` warns that the trash may be purged.
WARN_SHARE = 10

#: The states of disks that take new replicas, or will when they have space.
_USED = frozenset(("ok", "slow", "full"))


class _Space:
    """What the used disks of a server have, each file system once."""

    def __init__(self, server: Server) -> None:
        machine = server.address.rpartition(":")[0]
        disks = {
            (machine, disk.device or (server.index, disk.path)): disk
            for disk in server.disks
            if disk.state in _USED
        }
        sizes = [disk.total_bytes for disk in disks.values()]
        self._free = [disk.free_bytes for disk in disks.values() if disk.state != "full"]
        self.file_systems = list(disks)
        self.total_bytes = sum(sizes)
        self.room_bytes = max(1, min(ROOM_BYTES, max(sizes, default=0) // ROOM_SHARE))
        #: A chunk might not fit on a disk that has less.
        self._least = min(CHUNK_BYTES, self.room_bytes)
        counted = sum(free for free in self._free if free >= self._least)
        self.free_bytes = max(counted, *self._free, 0)

    def has_room(self, share: int = 0) -> bool:
        """Whether there is room; if ``share`` is not 0, that share of the disks must be free."""
        least = max(self.room_bytes, self.total_bytes // share if share else 0)
        return self.free_bytes >= least

    @property
    def sure_bytes(self) -> int:
        """So much can be written before there is no room, on whichever disks it goes."""
        fit = sum(free - self._least for free in self._free if free >= self._least)
        return max(0, fit - (self.room_bytes - self._least))


def _sharing(spaces: Iterable[_Space]) -> Counter[object]:
    """How many of the servers are on each file system."""
    return Counter(each for space in spaces for each in space.file_systems)


class Shortage(NamedTuple):
    """The bytes to be freed on servers without room, by server index, and on how many
    of these servers."""

    missing: dict[int, int]
    wanted: int

    def without(self, leaving: dict[int, int]) -> Shortage:
        """The shortage that remains after so many bytes, by server, are deleted."""
        missing = {index: lacks - leaving[index] for index, lacks in self.missing.items()}
        still = {index: lacks for index, lacks in missing.items() if lacks > 0}
        return Shortage(still, self.wanted - len(missing) + len(still))


def shortage(servers: Iterable[Server], needed: int, share: int = 0) -> Shortage | None:
    """The shortage if fewer than ``needed`` servers have room for new chunks
    (``share``: so much of the disks must be free), or will have when they are back. None if
    there is none, or if its cause is not want of space, so that freeing space would not end
    it."""
    having = 0
    lacking: dict[int, _Space] = {}
    for server in servers:
        if server.draining:
            continue
        is_away, space = server.state != LIVE, _Space(server)
        if (is_away and not server.disks) or space.has_room(0 if is_away else share):
            having += 1
        elif not is_away and space.file_systems:
            lacking[server.index] = space
    wanted = needed - having
    if not 0 < wanted <= len(lacking):
        return None
    sharing = _sharing(lacking.values())
    missing = {}
    for index, space in lacking.items():
        # What goes from other servers on the same file systems frees space here, too.
        shared = min(wanted, *(sharing[each] for each in space.file_systems))
        missing[index] = max(1, (MADE * space.room_bytes - space.free_bytes) // shared)
    return Shortage(missing, wanted)


def room_bytes(servers: Iterable[Server], needed: int) -> int:
    """The least number of bytes that can be written before the trash is purged early."""
    live = [each for each in servers if each.state == LIVE and not each.draining]
    spaces = [_Space(server) for server in live]
    sharing = _sharing(spaces)
    room = [
        space.sure_bytes // max((sharing[each] for each in space.file_systems), default=1)
        for space in spaces
    ]
    room.sort(reverse=True)
    return room[needed - 1] if len(room) >= needed else 0


class Row(NamedTuple):
    """A row of the trash, which can only be purged as a whole."""

    due_ns: int
    inode: int
    path: str
    #: It cannot be undeleted anyway: it is kept for its readers, or being reclaimed.
    is_gone: bool


class _Gain(NamedTuple):
    """The bytes that are freed, by server, when all of these rows are purged."""

    rows: tuple[Row, ...]
    bytes: dict[int, int]
    handles: list[int]


class Search:
    """Finds the rows of the trash, from ``after_ns`` on, that make room where it is missing."""

    def __init__(
        self,
        store: Store,
        holders: Callable[[int], Iterable[int]],
        short: Shortage,
        after_ns: int,
    ) -> None:
        self._store = store
        self._holders = holders
        self._missing = short.missing
        self._wanted = short.wanted
        self._after_ns = after_ns
        self._gains: list[_Gain] = []
        self._freed = dict.fromkeys(short.missing, 0)
        #: Shared chunk -> the rows of the trash that have it.
        self._shared: dict[int, list[Row]] = {}
        #: Inode of a row -> bytes of its files.
        self.bytes: dict[int, int] = {}
        #: The chunks of the chosen rows that are deleted where room is missing.
        self.handles: list[int] = []

    def run(self) -> Iterator[None]:
        """Search in slices, until the rows are enough or all were considered."""
        for due_ns, inode, trash in rows_from(self._store, self._after_ns):
            row = Row(due_ns, inode, trash.path, not trash.deleted_ns)
            self.bytes[inode] = 0
            own = _Gain((row,), {}, [])
            for chunks in chunks_of(self._store, inode):
                for handle, references, held in chunks:
                    self.bytes[inode] += held
                    self._met(row, handle, references, held, own)
                yield
            if own.handles:
                self._gains.append(own)
            if len(self._enough()) >= self._wanted:
                return

    def _met(self, row: Row, handle: int, references: int, held: int, own: _Gain) -> None:
        gain = own
        if references > 1:
            rows = self._shared.setdefault(handle, [])
            rows.append(row)
            if len(rows) < references:
                return
            gain = _Gain(tuple(dict.fromkeys(rows)), {}, [])
        there = [index for index in self._holders(handle) if index in self._missing]
        if not there or not held:
            return
        gain.handles.append(handle)
        for index in there:
            self._freed[index] += held
            gain.bytes[index] = gain.bytes.get(index, 0) + held
        if gain is not own:
            self._gains.append(gain)

    def _enough(self) -> list[int]:
        return [index for index, lacks in self._missing.items() if self._freed[index] >= lacks]

    def chosen(self) -> list[Row]:
        """The oldest rows that are enough, or all that free space if none are; no rows if they
        free space on too few servers."""
        enough = self._enough()
        partly = [i for i, freed in self._freed.items() if freed and i not in enough]
        partly.sort(key=lambda index: self._missing[index] - self._freed[index])
        servers = [*enough, *partly][: self._wanted]
        if len(servers) < self._wanted:
            return []
        left = {index: self._missing[index] for index in servers}
        taken: dict[Row, None] = {}
        for gain in self._gains:
            helps = any(left.get(index, 0) > 0 for index in gain.bytes)
            if helps or all(row in taken for row in gain.rows):
                taken.update(dict.fromkeys(gain.rows))
                self.handles += gain.handles
                for index in left.keys() & gain.bytes.keys():
                    left[index] -= gain.bytes[index]
        return sorted(taken)

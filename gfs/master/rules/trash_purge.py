"""When the trash is purged early, and which part of it.

Deleted files stay in the trash for their time, unless a write would otherwise fail for
want of space in the whole cluster: fewer chunkservers than a new chunk needs
(``replicas_min``) have room for one. One full disk, or one full server, is no reason
while others have room; nor is an absent server, which may come back with room.

Then those rows of the trash are purged whose replicas are on servers that lack room,
the oldest first, until as many servers as are needed have room again. A chunk that
another file has frees nothing, unless that file is in the trash, too, and is purged
with it. If the whole trash is not enough to let a write succeed, nothing is purged.

Plain data and passes in slices; :mod:`gfs.master.upkeep.trash` carries the purge out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gfs.blocks import MIB
from gfs.master.metadata import Store
from gfs.master.metadata.trash import chunks_of, rows_from
from gfs.master.tables import LIVE, SILENT, Server
from gfs.protocol.messages import Disk

#: A disk with less than this above its reserve, or than this share of it, has no room:
#: the data that is written during the seconds that a purge takes must fit there.
ROOM_BYTES = 1024 * MIB
ROOM_SHARE = 20
#: A purge frees so many times that space.
MADE = 2
#: With less than this share of the disks free ``gfs status`` warns that the trash may be purged.
WARN_SHARE = 10


def _room_bytes(disk: Disk) -> int:
    return max(1, min(ROOM_BYTES, disk.total_bytes // ROOM_SHARE))


def _has_room(server: Server, share: int = 0) -> bool:
    """Whether one of its disks has room; if ``share`` is not 0, that share of it must be free."""
    return any(
        disk.state in ("ok", "slow")
        and disk.free_bytes >= max(_room_bytes(disk), disk.total_bytes // share if share else 0)
        for disk in server.disks
    )


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
    (``share``: as in :func:`_has_room`), or will have when they are back. None if there
    is none, or if its cause is not want of space, so that freeing space would not end
    it."""
    having = 0
    missing: dict[int, int] = {}
    for server in servers:
        if server.draining or server.state not in (LIVE, SILENT):
            continue
        if server.state == SILENT or _has_room(server, share):
            having += 1
            continue
        disks = [disk for disk in server.disks if disk.state in ("ok", "slow", "full")]
        if disks:
            lacks = min(MADE * _room_bytes(disk) - disk.free_bytes for disk in disks)
            missing[server.index] = max(1, lacks)
    wanted = needed - having
    return Shortage(missing, wanted) if 0 < wanted <= len(missing) else None


def room_bytes(servers: Iterable[Server], needed: int) -> int:
    """The least number of bytes that can be written before the trash is purged early."""
    free = [
        sum(
            max(0, disk.free_bytes - _room_bytes(disk))
            for disk in server.disks
            if disk.state in ("ok", "slow")
        )
        for server in servers
        if server.state == LIVE and not server.draining
    ]
    free.sort(reverse=True)
    return free[needed - 1] if len(free) >= needed else 0


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
        """The oldest rows that are enough; none if all are not."""
        enough = self._enough()
        if len(enough) < self._wanted:
            return []
        left = {index: self._missing[index] for index in enough[: self._wanted]}
        taken: dict[Row, None] = {}
        for gain in self._gains:
            helps = any(left.get(index, 0) > 0 for index in gain.bytes)
            if helps or all(row in taken for row in gain.rows):
                taken.update(dict.fromkeys(gain.rows))
                self.handles += gain.handles
                for index in left.keys() & gain.bytes.keys():
                    left[index] -= gain.bytes[index]
        return sorted(taken)

"""Garbage: replicas on chunkservers that must be deleted now or later.

=========  =================================================  ===================
kind       what it is                                         deleted
=========  =================================================  ===================
orphaned   of a chunk no file has: given up, deleted, or the  after a grace, or
           file was never published                           at once if it was
                                                              given up or deleted
stale      missed a grant: an older version than the chunk's  once enough current
                                                              ones are confirmed
forgetful  may lack what was last written: its machine lost   once enough good
           its power (gfs.master.rules.election)              ones are confirmed
corrupt    stored bytes fail their checksum                   once enough good
                                                              ones are confirmed
=========  =================================================  ===================

Orders to delete name many replicas, a bounded number, each with its exact version, so
that an order that arrives late deletes nothing newer. A server has one at a time. Until
it answers, reports of the ordered replicas are ignored (``is_ordered``), so that a
replica that is to be deleted does not count as good. An order is dropped from this
table with its answer, or when none came for ``ORDERED_SECONDS``; replicas that are
still there are reported again and ordered again.

The *backlog* is the replicas that are to be deleted and are not confirmed as deleted:
orphaned ones, and all that were ordered and not answered. Garbage that is kept because
good replicas are missing is not included.

Grace: the client of an upload may lose its master and reconnect to publish chunks that
the new master does not know (the paper leaves them to the collector).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from typing import NamedTuple

from gfs.blocks import stored_bytes

#: Replicas in one order: some 30 KiB, and 0.1 to 1 s of work for a disk.
ORDERS_MAX = 2_000
#: How long an order that is not answered is assumed to be under way.
ORDERED_SECONDS = 90.0
#: How many chunks that were scheduled for deletion are remembered, so that late reports
#: of them get no grace.
SCHEDULED_SECONDS = 600.0
SCHEDULED_MAX = 200_000

ORPHANED, STALE, CORRUPT, FORGETFUL = "orphaned", "stale", "corrupt", "forgetful"


class Unwanted(NamedTuple):
    version: int
    kind: str
    since: float
    #: Whether a corrupt replica is possibly stale besides.
    forgot: bool = False
    #: The length of an orphaned replica, as far as is known.
    length: int = 0

    @property
    def orphaned_bytes(self) -> int:
        return stored_bytes(self.length) if self.kind == ORPHANED else 0


class _Ordered(NamedTuple):
    version: int
    length: int
    #: Reports of it are ignored until then.
    until: float


class _Pile:
    """The garbage of one server."""

    __slots__ = ("ordered", "ordered_bytes", "ready", "waiting")

    def __init__(self) -> None:
        #: Handles to order next, oldest first.
        self.ready: dict[int, None] = {}
        #: (when ready, handle, version), in order.
        self.waiting: deque[tuple[float, int, int]] = deque()
        #: The replicas that were ordered and not answered, the oldest first; and their bytes.
        self.ordered: dict[int, _Ordered] = {}
        self.ordered_bytes = 0

    def order(self, handle: int, ordered: _Ordered) -> None:
        self.forget_order(handle)  # of another version
        self.ordered[handle] = ordered
        self.ordered_bytes += stored_bytes(ordered.length)

    def forget_order(self, handle: int) -> None:
        ordered = self.ordered.pop(handle, None)
        if ordered is not None:
            self.ordered_bytes -= stored_bytes(ordered.length)

    def expire(self, now: float) -> None:
        while self.ordered:
            handle = next(iter(self.ordered))
            if self.ordered[handle].until > now:
                return
            self.forget_order(handle)


class GarbageTable:
    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        #: Handle -> server index -> what it is.
        self.replicas: dict[int, dict[int, Unwanted]] = {}
        self.counts = {ORPHANED: 0, STALE: 0, CORRUPT: 0, FORGETFUL: 0}
        self._orphaned_bytes = 0
        self._piles: dict[int, _Pile] = {}
        self._scheduled: dict[int, float] = {}
        #: The handles as they were when the last pages were begun.
        self._sorted: array[int] = array("Q")

    # --- knowing ---------------------------------------------------------------------

    def orphan(self, server: int, handle: int, version: int, now: float, length: int = 0) -> None:
        """Add a reported replica of an unknown chunk: it may be deleted after the grace."""
        if self._same(server, handle, version):
            return
        self._put(server, handle, Unwanted(version, ORPHANED, now, length=length))
        pile = self._pile(server)
        if handle in self._scheduled:
            pile.ready[handle] = None
        else:
            pile.waiting.append((now + self._grace_seconds, handle, version))

    def hold(
        self, server: int, handle: int, version: int, kind: str, now: float, forgot: bool = False
    ) -> None:
        """Add a stale, possibly stale or corrupt replica, which is kept until :meth:`release`."""
        known = self.at(server, handle)
        if known is None or known[:2] != (version, kind) or (forgot and not known.forgot):
            self._put(server, handle, Unwanted(version, kind, now, forgot))

    def give_up(self, server: int, handle: int, version: int, now: float, length: int = 0) -> None:
        """Add a replica that is not needed any more: it may be deleted at once."""
        self._put(server, handle, Unwanted(version, ORPHANED, now, length=length))
        self._pile(server).ready[handle] = None

    def schedule(self, handle: int, now: float) -> None:
        """Schedule all replicas of a deleted chunk: the known ones may be deleted at
        once, as may those that are reported later."""
        self._scheduled[handle] = now + SCHEDULED_SECONDS
        while len(self._scheduled) > SCHEDULED_MAX:
            del self._scheduled[next(iter(self._scheduled))]
        for server in self.replicas.get(handle, ()):
            self._pile(server).ready[handle] = None

    def is_scheduled(self, handle: int) -> bool:
        return handle in self._scheduled

    def release(self, handle: int, kind: str) -> None:
        """Let held replicas of this kind be deleted."""
        for server, known in self.replicas.get(handle, {}).items():
            if known.kind == kind:
                self._pile(server).ready[handle] = None

    def of_kind(self, handle: int, kind: str) -> dict[int, int]:
        """Server index -> version of a chunk's garbage of this kind."""
        return {
            server: known.version
            for server, known in self.replicas.get(handle, {}).items()
            if known.kind == kind
        }

    def among(self, handles: Set[int]) -> Iterator[int]:
        """Those of ``handles`` of which there is garbage. Linear in the smaller of both."""
        if len(handles) < len(self.replicas):
            return (handle for handle in handles if handle in self.replicas)
        return (handle for handle in self.replicas if handle in handles)

    def is_kept(self, server: int, handle: int) -> bool:
        """Whether the replica is held and not released yet."""
        known, pile = self.at(server, handle), self._piles.get(server)
        if known is None or known.kind == ORPHANED:
            return False
        return pile is None or handle not in pile.ready

    def drop(self, server: int, handle: int) -> None:
        """Remove a replica that is needed again, or gone."""
        of_chunk = self.replicas.get(handle)
        if of_chunk is None:
            return
        known = of_chunk.pop(server, None)
        if known is not None:
            self.counts[known.kind] -= 1
            self._orphaned_bytes -= known.orphaned_bytes
            self._pile(server).ready.pop(handle, None)
        if not of_chunk:
            del self.replicas[handle]

    def at(self, server: int, handle: int) -> Unwanted | None:
        of_chunk = self.replicas.get(handle)
        return None if of_chunk is None else of_chunk.get(server)

    def _same(self, server: int, handle: int, version: int) -> bool:
        known = self.at(server, handle)
        return known is not None and known.version == version

    def _put(self, server: int, handle: int, unwanted: Unwanted) -> None:
        self.drop(server, handle)
        self.replicas.setdefault(handle, {})[server] = unwanted
        self.counts[unwanted.kind] += 1
        self._orphaned_bytes += unwanted.orphaned_bytes

    def _pile(self, server: int) -> _Pile:
        pile = self._piles.get(server)
        if pile is None:
            pile = self._piles[server] = _Pile()
        return pile

    # --- ordering --------------------------------------------------------------------

    def orders(
        self, server: int, now: float, refused: Callable[[int, int], bool]
    ) -> list[tuple[int, int]]:
        """(handle, version) of the replicas that ``server`` must delete now.

        ``refused`` is called once more for each. A stale, possibly stale or corrupt one
        that it refuses is held again; an orphaned one is removed from the garbage.
        """
        pile = self._piles.get(server)
        if pile is None:
            return []
        self._ripen(server, pile, now)
        orders = []
        for handle in list(_first(pile.ready, ORDERS_MAX)):
            del pile.ready[handle]
            known = self.at(server, handle)
            if known is None:
                continue
            if refused(handle, known.version):
                if known.kind == ORPHANED:
                    self.drop(server, handle)
                elif handle in self._scheduled:
                    # Refused only because of something under way: it will not be needed again.
                    pile.ready[handle] = None
                continue
            self.drop(server, handle)
            orders.append((handle, known.version))
            pile.order(handle, _Ordered(known.version, known.length, now + ORDERED_SECONDS))
        return orders

    def _ripen(self, server: int, pile: _Pile, now: float) -> None:
        waiting = pile.waiting
        while waiting and waiting[0][0] <= now and len(pile.ready) < ORDERS_MAX:
            _, handle, version = waiting.popleft()
            known = self.at(server, handle)
            if known is not None and known.kind == ORPHANED and known.version == version:
                pile.ready[handle] = None

    def leaving_bytes(self, server: int) -> int:
        """The bytes that are freed on the server when all its due garbage is deleted,
        as far as is known."""
        pile = self._piles.get(server)
        if pile is None:
            return 0
        found = [
            stored_bytes(known.length)
            for handle in pile.ready
            if (known := self.at(server, handle))
        ]
        return sum(found) + pile.ordered_bytes

    def is_ordered(self, server: int, handle: int, version: int, now: float) -> bool:
        """Whether this replica, of this version, was ordered deleted and not answered."""
        pile = self._piles.get(server)
        if pile is None:
            return False
        ordered = pile.ordered.get(handle)
        return ordered is not None and ordered.version == version and now < ordered.until

    def was_ordered(self, server: int, handle: int, now: float) -> bool:
        """Whether any version of it was ordered deleted there and not answered."""
        pile = self._piles.get(server)
        ordered = None if pile is None else pile.ordered.get(handle)
        return ordered is not None and now < ordered.until

    def has_due(self, server: int, now: float) -> bool:
        """Whether there may be something for :meth:`orders`."""
        pile = self._piles.get(server)
        return pile is not None and bool(pile.ready or (pile.waiting and pile.waiting[0][0] <= now))

    def answered(self, server: int) -> None:
        """The server has answered the order: it reports replicas that are left."""
        pile = self._piles.get(server)
        if pile is not None:
            pile.ordered.clear()
            pile.ordered_bytes = 0

    @property
    def backlog(self) -> tuple[int, int]:
        """The number of replicas in the backlog, and their bytes on disks."""
        count, size = self.counts[ORPHANED], self._orphaned_bytes
        for pile in self._piles.values():
            count += len(pile.ordered)
            size += pile.ordered_bytes
        return count, size

    # --- forgetting ------------------------------------------------------------------

    def slices(self, length: int) -> Iterator[list[int]]:
        """The handles of which there is garbage, in slices. The table may change between
        slices."""
        handles = array("Q", self.replicas)
        for start in range(0, len(handles), length):
            yield list(handles[start : start + length])

    def forgetting(self, server: int, length: int) -> Iterator[None]:
        """Drop the garbage of a server that is dead. In slices of the whole garbage."""
        for handles in self.slices(length):
            for handle in handles:
                self.drop(server, handle)
            yield
        self._piles.pop(server, None)

    def forget_server(self, server: int) -> None:
        """As :meth:`forgetting`, at once."""
        for _ in self.forgetting(server, max(1, len(self.replicas))):
            pass

    def expire(self, now: float) -> None:
        """Drop expired entries; to be called regularly."""
        for pile in self._piles.values():
            pile.expire(now)
        while self._scheduled:
            handle, until = next(iter(self._scheduled.items()))
            if until > now:
                break
            del self._scheduled[handle]

    def page(self, after: int, limit: int) -> tuple[list[tuple[int, int, Unwanted]], bool]:
        """(handle, server, entry) of the chunks after ``after``, all entries of each,
        about ``limit`` in all; and whether there are more. Chunks that have garbage
        since the first page may be missing."""
        if not (after and self._sorted):
            self._sorted = array("Q", sorted(self.replicas))
        found: list[tuple[int, int, Unwanted]] = []
        for at in range(bisect_right(self._sorted, after), len(self._sorted)):
            if len(found) >= limit:
                return found, True
            handle = self._sorted[at]
            of_chunk = self.replicas.get(handle, {})
            found += [(handle, server, known) for server, known in of_chunk.items()]
        self._sorted = array("Q")
        return found, False


def _first(items: Mapping[int, object], count: int) -> Iterator[int]:
    for at, handle in enumerate(items):
        if at >= count:
            return
        yield handle

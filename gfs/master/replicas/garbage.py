"""Replicas on chunkservers that the namespace does not want.

=========  =================================================  ===================
kind       what it is                                         deleted
=========  =================================================  ===================
orphaned   of a chunk no file has: given up, deleted, or the  after a grace, or
           file was never published                           at once if it was
                                                              given up or deleted
stale      missed a grant: an older version than the chunk's  once enough current
                                                              ones are confirmed
forgetful  may lack what was last written: its machine lost   once enough good
           its power (:mod:`.election`)                       ones are confirmed
corrupt    stored bytes fail their checksum                   once enough good
                                                              ones are confirmed
=========  =================================================  ===================

Orders to delete name many replicas, a bounded number, each with its exact version, so
that an order that arrives late hits nothing new. A server has one at a time. Until it
answers, reports of what was ordered are old news (``is_ordered``), so that a replica about
to go is not counted as a good one. An order is dropped from this table with its answer, or
when none came for ``ORDERED_SECONDS``; what is still there afterwards is reported again and
starts over.

The *backlog* is what is to be deleted and is not known to be: orphaned replicas, and all
that was ordered and not answered. What is kept for want of good replicas is no part of it.

Grace: the client of an upload may lose its master and come back to publish
chunks the new master knows nothing of (the paper leaves them to the collector).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from gfs.blocks import stored_bytes

#: Replicas in one order: some 30 KiB, and 0.1 to 1 s of work for a disk.
ORDERS_MAX = 2_000
#: An order that is not answered is assumed to be on its way for this long.
ORDERED_SECONDS = 90.0
#: Chunks given up on purpose are remembered, so that late reports of them get
#: no grace.
SCHEDULED_SECONDS = 600.0
SCHEDULED_MAX = 200_000

ORPHANED, STALE, CORRUPT, FORGETFUL = "orphaned", "stale", "corrupt", "forgetful"


class Unwanted(NamedTuple):
    version: int
    kind: str
    since: float
    #: A corrupt one that is possibly stale besides.
    forgot: bool = False
    #: Of an orphaned one, as far as is known.
    length: int = 0

    @property
    def orphaned_bytes(self) -> int:
        return stored_bytes(self.length) if self.kind == ORPHANED else 0


class _Ordered(NamedTuple):
    version: int
    length: int
    #: Reports of it are old news until then.
    until: float


class _Pile:
    """What one server is to delete."""

    __slots__ = ("ordered", "ordered_bytes", "ready", "waiting")

    def __init__(self) -> None:
        #: Handles to order next, oldest first.
        self.ready: dict[int, None] = {}
        #: (when ready, handle, version), in order.
        self.waiting: deque[tuple[float, int, int]] = deque()
        #: What was ordered and not answered, the oldest first; and how long that is.
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

    # --- knowing ---------------------------------------------------------------------

    def orphan(self, server: int, handle: int, version: int, now: float, length: int = 0) -> None:
        """A replica of an unknown chunk was reported: ready after the grace."""
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
        """A stale, possibly stale or corrupt replica: kept until :meth:`release`."""
        known = self.at(server, handle)
        if known is None or known[:2] != (version, kind) or (forgot and not known.forgot):
            self._put(server, handle, Unwanted(version, kind, now, forgot))

    def give_up(self, server: int, handle: int, version: int, now: float, length: int = 0) -> None:
        """A replica of no use any more: to be deleted at once."""
        self._put(server, handle, Unwanted(version, ORPHANED, now, length=length))
        self._pile(server).ready[handle] = None

    def schedule(self, handle: int, now: float) -> None:
        """The chunk is gone for good: what is known of it is ready at once, and
        so is what will be reported."""
        self._scheduled[handle] = now + SCHEDULED_SECONDS
        while len(self._scheduled) > SCHEDULED_MAX:
            del self._scheduled[next(iter(self._scheduled))]
        for server in self.replicas.get(handle, ()):
            self._pile(server).ready[handle] = None

    def is_scheduled(self, handle: int) -> bool:
        return handle in self._scheduled

    def release(self, handle: int, kind: str) -> None:
        """Replicas of this kind that were held may go now."""
        for server, known in self.replicas.get(handle, {}).items():
            if known.kind == kind:
                self._pile(server).ready[handle] = None

    def of_kind(self, handle: int, kind: str) -> dict[int, int]:
        """Server index -> version of what there is of a chunk of this kind."""
        return {
            server: known.version
            for server, known in self.replicas.get(handle, {}).items()
            if known.kind == kind
        }

    def is_kept(self, server: int, handle: int) -> bool:
        """Whether it was not released yet."""
        known, pile = self.at(server, handle), self._piles.get(server)
        if known is None or known.kind == ORPHANED:
            return False
        return pile is None or handle not in pile.ready

    def drop(self, server: int, handle: int) -> None:
        """The replica is wanted again, or gone."""
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
        """(handle, version) of what ``server`` is to delete now.

        ``refused`` is asked a last time about each. A stale, possibly stale or corrupt one
        it refuses is held again, an orphaned one is none any more.
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
                    # Refused only for what is under way: it will not be of use again.
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
        """What is freed there when all that may be deleted now is, as far as is known."""
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
        """Was this very replica ordered deleted a moment ago?"""
        pile = self._piles.get(server)
        if pile is None:
            return False
        ordered = pile.ordered.get(handle)
        return ordered is not None and ordered.version == version and now < ordered.until

    def was_ordered(self, server: int, handle: int, now: float) -> bool:
        """Was any version of it ordered deleted there a moment ago?"""
        pile = self._piles.get(server)
        ordered = None if pile is None else pile.ordered.get(handle)
        return ordered is not None and now < ordered.until

    def has_due(self, server: int, now: float) -> bool:
        """Whether there may be something for :meth:`orders`."""
        pile = self._piles.get(server)
        return pile is not None and bool(pile.ready or (pile.waiting and pile.waiting[0][0] <= now))

    def answered(self, server: int) -> None:
        """The server has done what it was ordered, or will not: it reports what is left."""
        pile = self._piles.get(server)
        if pile is not None:
            pile.ordered.clear()
            pile.ordered_bytes = 0

    @property
    def backlog(self) -> tuple[int, int]:
        """Replicas, and bytes of them on disks."""
        count, size = self.counts[ORPHANED], self._orphaned_bytes
        for pile in self._piles.values():
            count += len(pile.ordered)
            size += pile.ordered_bytes
        return count, size

    # --- forgetting ------------------------------------------------------------------

    def forget_server(self, server: int) -> None:
        """The server is dead, or begins to register: it will report anew."""
        for handle in [h for h, of_chunk in self.replicas.items() if server in of_chunk]:
            self.drop(server, handle)
        self._piles.pop(server, None)

    def expire(self, now: float) -> None:
        """Forget what is over by now; to be called all the time."""
        for pile in self._piles.values():
            pile.expire(now)
        for handle in list(self._scheduled):
            if self._scheduled[handle] > now:
                break
            del self._scheduled[handle]

    def page(self, after: int, limit: int) -> tuple[list[tuple[int, int, Unwanted]], bool]:
        """(handle, server, what) of the chunks after ``after``, whole chunks
        only, about ``limit`` of them; and whether there are more."""
        found: list[tuple[int, int, Unwanted]] = []
        for handle in sorted(h for h in self.replicas if h > after):
            if len(found) >= limit:
                return found, True
            found += [(handle, server, known) for server, known in self.replicas[handle].items()]
        return found, False


def _first(items: Mapping[int, object], count: int) -> Iterator[int]:
    for at, handle in enumerate(items):
        if at >= count:
            return
        yield handle

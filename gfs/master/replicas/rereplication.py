"""Which chunks to copy next, and from where to where: the paper, section 4.3.

A chunk with fewer locations than its goal is *endangered*. The queue holds all
of them, and nothing but a small key each: (locations, goal). What is taken
first has the smallest share of its goal left (1 of 3 before 2 of 3, 1 of 2
before 3 of 5); among equals, chunks of live files before those of deleted ones,
and then chunks a reader just failed at. A chunk with no
location at all cannot be copied; it counts as *lost* until a server brings one.

*Orders.* A large replica is copied by itself, small ones many at a time from one server
to another: that is one order, and takes one slot. A chunk joins an order of the round that
goes from one of its servers to one that a copy of it may go to.

Limits, so that a dead server does not flood the others: so many orders at once
into one server, out of one server, and in all. What has to wait for one of these
(:class:`Slots`) goes to the end of its rank and is looked at as soon as a copy ends;
what cannot start for another reason rests for a moment, and what failed longer each
time (one that could not be moved for balance, always as long as one that failed often). One
round looks at a bounded number of chunks, so its cost does not grow with the queue.

A chunk under lease is not copied: the copy would miss what is written while it
is made, and bear the same version. Its lease is revoked first (:class:`Revoke`);
the client's next write asks for a new one, which raises the version, and with
it makes a copy that was not finished by then worthless instead of wrong.

Nothing here waits or sends: :class:`Clone` and :class:`Revoke` are orders for
whoever does.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from gfs.master.replicas import placement
from gfs.master.replicas.servers import LIVE, Server
from gfs.protocol.messages import CLONES_MAX

#: Chunks looked at in one round: some 30 ms.
ROUND_MAX = 2_048
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 10.0
FAILURES_KEPT = 8
RATE_SECONDS = 10.0
#: What cannot start, not for lack of a slot, is not looked at again for this long.
DEFER_SECONDS = 0.5


class Danger(NamedTuple):
    """``have`` may be the goal: some of these are on servers that are drained."""

    have: int
    goal: int
    blocked: bool
    trashed: bool = False

    def is_due(self, spared: int) -> bool:
        """Whether it is to be copied though so many servers under maintenance may each have
        a replica that is not known."""
        return self.have >= self.goal or self.have < max(1, self.goal - spared)

    @property
    def rank(self) -> tuple[int, bool, bool, int]:
        """Lower is more urgent."""
        return (self.have * 1000 // self.goal, self.trashed, not self.blocked, self.have)


class Clone(NamedTuple):
    handle: int
    version: int
    target: Server
    #: Best first; the first one's slot is taken.
    sources: tuple[Server, ...]
    #: None of the sources is good: see :mod:`gfs.master.replicas.salvage`.
    salvage: bool = False
    length: int = 0
    #: It is copied with another, whose slots these are.
    joined: bool = False
    #: For fuller balance, and not because the chunk needs it.
    moves: bool = False


class Limits(NamedTuple):
    per_server: int
    total: int


class Slots(NamedTuple):
    """Indexes of the servers that one more copy may be read from, and made at."""

    sources: frozenset[int]
    targets: frozenset[int]

    @property
    def can_pair(self) -> bool:
        """Whether any chunk could be copied at all."""
        return bool(self.sources and self.targets) and len(self.sources | self.targets) > 1

    def may_fit(self, holders: Collection[int]) -> bool:
        """Whether a chunk with these locations may be copied; far cheaper than to plan it."""
        return not self.sources.isdisjoint(holders) and not self.targets.issubset(holders)


class Rate:
    """Replicas and bytes a second, over the last ``RATE_SECONDS``."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, int, int]] = deque()

    def add(self, now: float, replicas: int, count: int) -> None:
        self._expire(now)
        self._ended.append((now, replicas, count))

    def per_second(self, now: float) -> tuple[float, float]:
        self._expire(now)
        if not self._ended:
            return 0.0, 0.0
        seconds = max(1.0, now - self._ended[0][0])
        return (
            sum(replicas for _, replicas, _ in self._ended) / seconds,
            sum(count for _, _, count in self._ended) / seconds,
        )

    def _expire(self, now: float) -> None:
        while self._ended and self._ended[0][0] < now - RATE_SECONDS:
            self._ended.popleft()


class RepairQueue:
    def __init__(self) -> None:
        #: Ordered, since a plain dict takes ever longer to find its first key when those
        #: before it are gone.
        self._ranks: dict[Danger, OrderedDict[int, None]] = {}
        self._dangers: dict[int, Danger] = {}
        self._blocked: set[int] = set()
        #: Of those that are endangered: chunks that only files in the trash have.
        self._trashed: set[int] = set()
        #: Where copies failed, in order; a target that failed is tried last.
        self._failures: dict[int, list[int]] = {}
        self._not_before: dict[int, float] = {}
        #: Chunks that could not be moved -> until when they rest, the earliest first.
        self._unmoved: dict[int, float] = {}
        self.lost: set[int] = set()
        self.active: dict[int, Clone] = {}
        #: Under way: many small ones are one.
        self.orders = 0
        self.rate = Rate()

    # --- what is endangered ------------------------------------------------------------

    def update(self, handle: int, have: int, goal: int, staying: int | None = None) -> None:
        """This is how the chunk stands now. ``staying`` of its replicas are on servers
        that are not drained (default: all); only when these are enough it is whole."""
        if (have if staying is None else staying) >= goal:
            self.forget(handle)
            return
        if not have:
            self._take_out(handle)
            self.lost.add(handle)
            return
        self.lost.discard(handle)
        danger = Danger(min(have, goal), goal, handle in self._blocked, handle in self._trashed)
        if self._dangers.get(handle) == danger:
            return
        self._take_out(handle)
        self._dangers[handle] = danger
        self._ranks.setdefault(danger, OrderedDict())[handle] = None

    def block(self, handle: int) -> None:
        """A reader failed at this chunk just now."""
        self._blocked.add(handle)
        danger = self._dangers.get(handle)
        if danger is not None:
            self._again(handle, danger)

    def unblock(self, handle: int) -> None:
        """There is nothing wrong with it."""
        self._blocked.discard(handle)

    def set_trashed(self, handles: set[int]) -> None:
        """Only files in the trash have these chunks, and no others."""
        before, self._trashed = self._trashed, handles
        for handle in before ^ handles:
            danger = self._dangers.get(handle)
            if danger is not None:
                self._again(handle, danger)

    def _again(self, handle: int, danger: Danger) -> None:
        self.update(handle, danger.have, danger.goal, min(danger.have, danger.goal - 1))

    def forget(self, handle: int) -> None:
        """The chunk is whole again, or no more."""
        self._take_out(handle)
        self._trashed.discard(handle)
        self.lost.discard(handle)
        self._blocked.discard(handle)
        self._failures.pop(handle, None)
        self._not_before.pop(handle, None)

    def _take_out(self, handle: int) -> None:
        danger = self._dangers.pop(handle, None)
        if danger is not None:
            rank = self._ranks[danger]
            del rank[handle]
            if not rank:
                del self._ranks[danger]

    def is_known(self, handle: int) -> bool:
        return handle in self._dangers or handle in self.lost

    def is_queued(self, handle: int) -> bool:
        return handle in self._dangers

    @property
    def endangered(self) -> int:
        """Chunks below their goal."""
        return len(self._dangers) - self.leaving

    @property
    def missing(self) -> int:
        """Replicas to be made until all of them are at their goal."""
        return sum((rank.goal - rank.have) * len(at) for rank, at in self._ranks.items())

    @property
    def leaving(self) -> int:
        """Chunks at their goal with replicas on servers that are drained."""
        return sum(len(rank) for danger, rank in self._ranks.items() if danger.have >= danger.goal)

    @property
    def goal_unmet(self) -> int:
        """The highest goal of a chunk that is below it; 0: none is."""
        goals = [danger.goal for danger in self._ranks if danger.have < danger.goal]
        return max(goals, default=0)

    def is_endangered(self, handle: int) -> bool:
        danger = self._dangers.get(handle)
        return danger is not None and danger.have < danger.goal

    @property
    def repairing(self) -> int:
        """Copies under way of chunks that are below their goal."""
        return sum(map(self.is_endangered, self.active))

    @property
    def salvaging(self) -> int:
        """Chunks that are being put together from damaged replicas."""
        return sum(clone.salvage for clone in self.active.values())

    @property
    def queued(self) -> int:
        return self.endangered - self.repairing

    @property
    def leaving_queued(self) -> int:
        active = sum(handle in self._dangers for handle in self.active) - self.repairing
        return self.leaving - active

    # --- what to do next -----------------------------------------------------------------

    def ranks(self) -> list[tuple[Danger, list[int]]]:
        """All that is to be copied, the most urgent first."""
        ranked = sorted(self._ranks, key=lambda danger: danger.rank)
        return [(danger, list(self._ranks[danger])) for danger in ranked]

    def due(self, now: float, is_possible: Callable[[Danger], bool]) -> Iterator[int]:
        """Chunks to try now, most urgent first, at most ``ROUND_MAX``.

        ``is_possible``: may chunks that stand like that be copied at all now? A chunk
        yielded is yielded again in the next round if it is neither started nor deferred.
        """
        looked = 0
        for danger in sorted(self._ranks, key=lambda danger: danger.rank):
            if not is_possible(danger):
                continue
            # One pass: all go to the end of what is passed through.
            for _ in range(len(self._ranks.get(danger, ()))):
                rank = self._ranks.get(danger)
                if rank is None:
                    break
                if looked >= ROUND_MAX:
                    return
                looked += 1
                handle = next(iter(rank))
                rank.move_to_end(handle)
                if handle in self.active or self._not_before.get(handle, 0.0) > now:
                    continue
                yield handle

    def failed_at(self, handle: int) -> list[int]:
        """Indexes of the servers that failed to take it."""
        return self._failures.get(handle, [])

    def rests(self, handle: int, now: float) -> bool:
        """Whether moving it for balance failed within the last ``BACKOFF_SECONDS_MAX``."""
        while self._unmoved:
            first, until = next(iter(self._unmoved.items()))
            if until > now:
                break
            del self._unmoved[first]
        return handle in self._unmoved

    def retry_all(self) -> None:
        """There is a new server: what waits may be possible now."""
        self._not_before.clear()
        self._failures.clear()
        self._unmoved.clear()

    def defer(self, handle: int, now: float) -> None:
        """It could not be started, and no server is to blame."""
        self._not_before[handle] = now + DEFER_SECONDS

    def started(self, clone: Clone) -> None:
        self.active[clone.handle] = clone
        if not clone.joined:
            self.orders += 1
            clone.target.clones_in += 1
            clone.sources[0].clones_out += 1

    def ended(self, clone: Clone, now: float, failed: bool) -> None:
        del self.active[clone.handle]
        if not clone.joined:
            self.orders -= 1
            clone.target.clones_in -= 1
            clone.sources[0].clones_out -= 1
        if failed:
            failures = self._failures.setdefault(clone.handle, [])
            failures.append(clone.target.index)
            del failures[:-FAILURES_KEPT]
            wait = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** (len(failures) - 1))
            self._not_before[clone.handle] = now + wait
            if clone.handle not in self._dangers:
                self.forget(clone.handle)
            if clone.moves:
                self._unmoved.pop(clone.handle, None)
                self._unmoved[clone.handle] = now + BACKOFF_SECONDS_MAX
        else:
            self._failures.pop(clone.handle, None)


def free_slots(servers: Iterable[Server], placeable: Iterable[Server], limits: Limits) -> Slots:
    return Slots(
        frozenset(s.index for s in servers if can_give(s) and s.clones_out < limits.per_server),
        frozenset(s.index for s in placeable if s.clones_in < limits.per_server),
    )


def can_give(server: Server) -> bool:
    """Whether it may be asked for its replicas now."""
    return server.state == LIVE and server.registered


def plan_clone(
    handle: int,
    version: int,
    holders: Sequence[Server],
    placeable: Sequence[Server],
    refused: Callable[[Server], bool],
    failed: Sequence[int],
    limits: Limits,
    rng: random.Random,
) -> Clone | None:
    """A clone of the chunk that can start now, or None.

    ``holders`` have a good replica. ``refused(server)``: it must not be the
    target (a deletion of this chunk is on its way there). Servers in ``failed``
    are targets only if there is no other.
    """
    sources = [server for server in holders if can_give(server)]
    rng.shuffle(sources)
    sources.sort(key=lambda server: server.clones_out)
    if not sources or sources[0].clones_out >= limits.per_server:
        return None
    targets = [
        server
        for server in placeable
        if server.clones_in < limits.per_server and server not in holders and not refused(server)
    ]
    if not targets:
        return None
    targets = [server for server in targets if server.index not in failed] or targets
    racks = [server.rack for server in holders if not server.draining]
    target = placement.choose(targets, 1, rng, racks)[0]
    return Clone(handle, version, target, tuple(sources))


def join(
    clone: Clone,
    holders: Sequence[Server],
    orders: Iterable[list[Clone]],
    placeable: Sequence[Server],
    refused: Callable[[Server], bool],
) -> bool:
    """Have a small chunk copied with others, if one of the ``orders`` goes from one of its
    ``holders`` to a server that is as good a target as any. Of ``clone`` only the chunk
    counts."""
    racks = Counter(server.rack for server in holders if not server.draining)
    fewest = -1
    for order in orders:
        source, target = order[0].sources[0], order[0].target
        if len(order) >= CLONES_MAX or source not in holders or target in holders:
            continue
        if fewest < 0:
            fewest = min(racks[server.rack] for server in placeable if server not in holders)
        if racks[target.rack] == fewest and not refused(target):
            order.append(clone._replace(target=target, sources=(source,), joined=True))
            return True
    return False


def pick_surplus(holders: Sequence[Server], moved: int | None = None) -> Server:
    """Which of too many good replicas to give up: one on a server that is drained,
    else the one that was to be ``moved`` (an index), else one in a rack that has
    another, on the fullest disk."""
    racks = [server.rack for server in holders if not server.draining]

    def order(server: Server) -> tuple[bool, bool, int, float, int]:
        return (
            bool(server.draining),
            server.index == moved,
            racks.count(server.rack),
            server.used,
            server.index,
        )

    return max(holders, key=order)

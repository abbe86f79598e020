"""Chunks to be re-replicated, the most urgent first, and the copies under way.

A chunk with fewer locations than its goal is *endangered*. The queue has all of them,
with a small key each: (locations, goal). The first to be taken has the smallest share
of its goal left (1 of 3 before 2 of 3, 1 of 2 before 3 of 5); among equals, chunks of
live files before those of deleted ones, and then chunks that a client has just failed
to read. A chunk without a location cannot be copied; it counts as *lost* until a server
reports a replica.

A chunk that has to wait for a slot goes to the end of its rank and is tried as soon as
a copy ends; one that cannot start for another reason is put off for a moment, and one
that failed for longer each time (a failed move for balance, always for the longest
time). One round tries a bounded number of chunks, so its cost does not grow with the
queue.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gfs.master.tables.servers import Server

#: Chunks tried in one round: some 30 ms.
ROUND_MAX = 2_048
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 10.0
FAILURES_KEPT = 8
RATE_SECONDS = 10.0
#: How long a chunk is put off that cannot start for another reason than a missing slot.
DEFER_SECONDS = 0.5


class Danger(NamedTuple):
    """``have`` may be the goal: some of these are on servers that are drained."""

    have: int
    goal: int
    blocked: bool
    trashed: bool = False

    def is_due(self, spared: int) -> bool:
        """Whether it must be copied although so many servers under maintenance may each
        have an unknown replica."""
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
    #: None of the sources is good: see :mod:`gfs.master.rules.salvage`.
    salvage: bool = False
    length: int = 0
    #: Whether it is copied with another, whose slots it shares.
    joined: bool = False
    #: Whether it is a move for balance, which the chunk does not need.
    moves: bool = False


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
        #: Ordered dicts, since a plain dict becomes slow at finding its first key after
        #: many deletions.
        self._ranks: dict[Danger, OrderedDict[int, None]] = {}
        self._dangers: dict[int, Danger] = {}
        #: One object for all that are equal: there are few kinds, and a million chunks.
        self._kinds: dict[Danger, Danger] = {}
        self._blocked: set[int] = set()
        #: The endangered chunks that only files in the trash have.
        self._trashed: set[int] = set()
        #: Where copies failed, in order; a target that failed is tried last.
        self._failures: dict[int, list[int]] = {}
        self._not_before: dict[int, float] = {}
        #: Chunks that could not be moved -> until when they are put off, the earliest first.
        self._unmoved: dict[int, float] = {}
        self.lost: set[int] = set()
        self.active: dict[int, Clone] = {}
        #: Chunks of these of which the target has said meanwhile that its replica is gone.
        self.gone: set[int] = set()
        #: Copies under way; many small ones in one order count as one.
        self.orders = 0
        self.rate = Rate()

    # --- what is endangered ------------------------------------------------------------

    def update(self, handle: int, have: int, goal: int, staying: int | None = None) -> None:
        """Set the state of a chunk. ``staying`` of its replicas are on servers that are
        not drained (default: all); it is at its goal only if these are enough."""
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
        danger = self._kinds.setdefault(danger, danger)
        self._take_out(handle)
        self._dangers[handle] = danger
        self._ranks.setdefault(danger, OrderedDict())[handle] = None

    def block(self, handle: int) -> None:
        """Note that a client just failed to read this chunk."""
        self._blocked.add(handle)
        danger = self._dangers.get(handle)
        if danger is not None:
            self._again(handle, danger)

    def unblock(self, handle: int) -> None:
        """Undo :meth:`block`: the chunk can be read."""
        self._blocked.discard(handle)

    def set_trashed(self, handles: set[int]) -> None:
        """Set the chunks that only files in the trash have."""
        before, self._trashed = self._trashed, handles
        for handle in before ^ handles:
            danger = self._dangers.get(handle)
            if danger is not None:
                self._again(handle, danger)

    def _again(self, handle: int, danger: Danger) -> None:
        self.update(handle, danger.have, danger.goal, min(danger.have, danger.goal - 1))

    def forget(self, handle: int) -> None:
        """Remove a chunk that is at its goal again, or deleted."""
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
        """The number of replicas that they lack."""
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
        """Chunks that are being salvaged."""
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
        """The chunks to be copied by rank, the most urgent first."""
        ranked = sorted(self._ranks, key=lambda danger: danger.rank)
        return [(danger, list(self._ranks[danger])) for danger in ranked]

    def due(self, now: float, is_possible: Callable[[Danger], bool]) -> Iterator[int]:
        """Chunks to try now, most urgent first, at most ``ROUND_MAX``.

        ``is_possible``: whether chunks in that state can be copied now. A chunk that is
        neither started nor deferred is yielded again in the next round.
        """
        looked = 0
        for danger in sorted(self._ranks, key=lambda danger: danger.rank):
            if not is_possible(danger):
                continue
            # One pass: each goes to the end of the queue.
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
        """Indexes of the servers to which copying it failed."""
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
        """Try all chunks that are put off, because there is a new server."""
        self._not_before.clear()
        self._failures.clear()
        self._unmoved.clear()

    def defer(self, handle: int, now: float) -> None:
        """Put off a chunk that could not be started, without blaming a server."""
        self._not_before[handle] = now + DEFER_SECONDS

    def started(self, clone: Clone) -> None:
        self.active[clone.handle] = clone
        if not clone.joined:
            self.orders += 1
            clone.target.transfers.clones_in += 1
            clone.sources[0].transfers.clones_out += 1

    def note_gone(self, handle: int, server: int) -> None:
        """A replica is gone: perhaps the copy that is under way, whose reply was sent before."""
        clone = self.active.get(handle)
        if clone is not None and clone.target.index == server:
            self.gone.add(handle)

    def ended(self, clone: Clone, now: float, failed: bool) -> None:
        del self.active[clone.handle]
        self.gone.discard(clone.handle)
        if not clone.joined:
            self.orders -= 1
            clone.target.transfers.clones_in -= 1
            clone.sources[0].transfers.clones_out -= 1
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

"""Whether a chunkserver can be drained (``gfs drain``), so that it can be removed.

A server that is *draining* gets no new replicas, and its replicas do not count towards
the goals: their chunks are copied like those of a lost server, after all chunks that
are really below their goal, and the server is a source of these copies. Once a chunk is
at its goal without it, its replica there is one too many and is deleted. So a drain
never reduces the replicas of a chunk.

The drain is stored in a row, so it survives the master. Its progress is not: the rest
of the work is the replicas that the server still has, by the master's tables and by the
server's own reports. When there are none, and everything that was under way when the
drain began has ended, it is *drained*: it can be stopped. This is stored, so that a
restarted master does not wait for it.

:func:`why_not` decides whether the drain can complete: otherwise the server would
remain half empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gfs.failures import plural

#: The disk space of a chunk besides its bytes, rounded up.
OVERHEAD_BYTES = 64 * 1024


class Remaining(NamedTuple):
    """A server that remains."""

    server: int
    rack: str
    free_bytes: int


class Needs:
    """The requirements of all chunks of the cluster on the remaining servers."""

    def __init__(self, remaining: Iterable[int]) -> None:
        self._remaining = frozenset(remaining)
        self.goal_max = 0
        #: Chunks whose goal is above the number of remaining servers.
        self.too_high = 0
        #: (remaining servers that have it, how many more are needed) -> bytes of such chunks.
        self.copies: dict[tuple[frozenset[int], int], int] = {}

    def add(self, goal: int, length: int, holders: Iterable[int]) -> None:
        """Add one chunk, of which ``holders`` have good replicas."""
        self.goal_max = max(self.goal_max, goal)
        if goal > len(self._remaining):
            self.too_high += 1
            return
        held = frozenset(holders)
        staying = held & self._remaining
        missing = goal - len(staying)
        if missing > 0 and held:
            key = (staying, missing)
            self.copies[key] = self.copies.get(key, 0) + length + OVERHEAD_BYTES


def why_not(
    needs: Needs, remaining: list[Remaining], rack: str, new_goal: int, *, fewer_racks: bool
) -> str:
    """Why a server in ``rack`` cannot be drained if the ``remaining`` servers are left
    and new files have ``new_goal``; "" if it can."""
    left = plural(len(remaining), "live chunkserver")
    if needs.too_high:
        return (
            f"the goal of {plural(needs.too_high, 'chunk')} is above the {left} "
            "that would be left: add a chunkserver, or lower the goal of their files (gfs setrep)"
        )
    if new_goal > len(remaining):
        return (
            f"new files have a goal of {new_goal}, above the {left} "
            "that would be left: add a chunkserver, or lower the master's setting replication"
        )
    racks = {each.rack for each in remaining}
    wanted = min(needs.goal_max, len(racks | {rack}))
    if len(racks) < wanted and not fewer_racks:
        return (
            f"replicas that are in {wanted} racks now would be in {len(racks)}: add a chunkserver "
            f"in rack {rack}, or accept that (--fewer-racks)"
        )
    short = shortage(needs.copies, {each.server: each.free_bytes for each in remaining})
    if short:
        return (
            f"the other chunkservers are {-(-short // 2**20)} MiB short of space for its "
            "replicas: add a chunkserver or a disk, or delete files for good (gfs rm --now)"
        )
    return ""


def shortage(copies: Mapping[tuple[frozenset[int], int], int], free: Mapping[int, int]) -> int:
    """How many bytes of the copies do not fit; 0 if all do.

    No server gets two copies of a chunk, or one of a chunk that it has. Exact, except
    for the last chunk on each server: a maximum flow from groups of chunks to servers,
    filled greedily first, which is enough unless space is scarce.
    """
    left = dict(free)
    placed: dict[tuple[frozenset[int], int], dict[int, int]] = {}
    short = 0
    for group, size in copies.items():
        holders, missing = group
        flow = placed[group] = {}
        todo = missing * size
        for server in sorted(left, key=lambda index: -left[index]):
            if server not in holders and todo:
                moved = min(todo, size, left[server])
                if moved > 0:
                    flow[server] = moved
                    left[server] -= moved
                    todo -= moved
        while todo:
            pushed = _make_room(group, size, copies, placed, left, todo)
            if not pushed:
                break
            todo -= pushed
        short += todo
    return short


def _make_room(
    group: tuple[frozenset[int], int],
    size: int,
    copies: Mapping[tuple[frozenset[int], int], int],
    placed: dict[tuple[frozenset[int], int], dict[int, int]],
    left: dict[int, int],
    todo: int,
) -> int:
    """Place up to ``todo`` more bytes of ``group`` by moving others; returns how many."""
    #: Server -> (the group that would put bytes there, the server they come from).
    reached: dict[int, tuple[tuple[frozenset[int], int], int]] = {}
    queue: deque[int] = deque()
    for server in left:
        if server not in group[0] and placed[group].get(server, 0) < size:
            reached[server] = (group, -1)
            queue.append(server)
    while queue:
        server = queue.popleft()
        if left[server] > 0:
            return _push(server, reached, copies, placed, left, todo)
        for other, flow in placed.items():
            if flow.get(server, 0) > 0:
                for target in left:
                    fits = target not in other[0] and flow.get(target, 0) < copies[other]
                    if fits and target not in reached:
                        reached[target] = (other, server)
                        queue.append(target)
    return 0


def _push(
    end: int,
    reached: dict[int, tuple[tuple[frozenset[int], int], int]],
    copies: Mapping[tuple[frozenset[int], int], int],
    placed: dict[tuple[frozenset[int], int], dict[int, int]],
    left: dict[int, int],
    todo: int,
) -> int:
    """Move bytes along the path that :func:`_make_room` found."""
    steps = []
    amount = min(todo, left[end])
    server = end
    while server >= 0:
        group, source = reached[server]
        amount = min(amount, copies[group] - placed[group].get(server, 0))
        if source >= 0:
            amount = min(amount, placed[group][source])
        steps.append((group, source, server))
        server = source
    for group, source, target in steps:
        flow = placed[group]
        flow[target] = flow.get(target, 0) + amount
        if source >= 0:
            flow[source] -= amount
    left[end] -= amount
    return amount

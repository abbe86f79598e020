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
    """How many bytes of the copies find no place; 0: all fit.

    No server gets two copies of a chunk, or one of a chunk that it has. Chunks with the least
    choice of servers are placed first, each on those with the most room, and none is moved
    again. So it may find some short where another placement would fit, of servers that would
    be left nearly full: of random clusters of five 1 in 150 with 20 % to spare, 1 in 30 with 5 %.
    """
    left = dict(free)
    short = 0
    least_choice = sorted(
        copies.items(), key=lambda group: (len(group[0][0]) + group[0][1], group[1])
    )
    for (holders, missing), size in reversed(least_choice):
        todo = missing * size
        for server in sorted(left, key=lambda index: -left[index]):
            if server not in holders:
                placed = max(0, min(todo, size, left[server]))
                left[server] -= placed
                todo -= placed
        short += todo
    return short

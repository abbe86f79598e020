"""Which replicas would be better elsewhere: the paper, section 4.3.

Two reasons, in this order:

* *Racks*: two or more of a chunk's replicas in one rack while another, with a
  server that could take one, has at least two fewer. So it is after a rack was
  added, came back, or a server was moved.
* *Disk use*: a server that is fuller than another by more than ``difference``
  (as a share of its disks) gives replicas to it, as long as the racks are no
  worse for it. A new server fills up over time.

A move is a copy and then a surplus: the chunk gets one replica more, and only
when that is there one is given up. Moves wait while chunks below their goal are
copied, there are few at a time, and one at most into and out of a server; a chunk
that somebody writes to is let alone.

Both reasons end: a move for racks makes the counts of two racks more equal, one
for disk use those of two disks, and no move for disk use makes the racks worse. For
that the least counts that may be on the fuller one, and the most on the emptier one, and
not what they last said of their disks: replicas on their way to one, or not yet deleted
there, may be in that or not, and whole chunks or less, until a report surely tells of
them. And no replica goes to a disk that would then be the fuller one,
which on a disk of a few chunks is sooner than ``difference`` says.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from gfs.blocks import CHUNK_BYTES, REPLICA_HEAD_BYTES
from gfs.master import placement
from gfs.master.servers import Server

#: A full chunk and the head of its file.
REPLICA_BYTES_MAX = CHUNK_BYTES + REPLICA_HEAD_BYTES


class Move(NamedTuple):
    victim: Server
    target: Server


def least_used(server: Server) -> float:
    """The share of its disks that is used, at least, when all moves under way have ended."""
    return server.used + _on_their_way(server, -1)


def most_used(server: Server) -> float:
    """The share of its disks that is used, at most, when all moves under way have ended."""
    return server.used + _on_their_way(server, +1)


def _on_their_way(server: Server, delta: int) -> float:
    if not server.shifts:
        return 0.0
    count = sum([shift.delta for shift in server.shifts.values() if shift.delta == delta])
    return count * REPLICA_BYTES_MAX / max(1, server.total_bytes)


def is_possible(servers: Sequence[Server], difference: float) -> bool:
    """Whether any chunk could be better elsewhere: a quick look."""
    if len({server.rack for server in servers}) > 1:
        return True
    if not servers:
        return False
    return max(map(least_used, servers)) - min(map(most_used, servers)) > difference


def plan_move(
    holders: Sequence[Server], placeable: Sequence[Server], difference: float, rng: random.Random
) -> Move | None:
    """The best move for a chunk that is at its goal on ``holders``, if there is one."""
    targets = [server for server in placeable if server not in holders]
    if not targets or not holders:
        return None
    racks = Counter(server.rack for server in holders)
    return _for_racks(holders, targets, racks, rng) or _for_use(holders, targets, racks, difference)


def _for_racks(
    holders: Sequence[Server], targets: list[Server], racks: Counter[str], rng: random.Random
) -> Move | None:
    fewest = min(racks[server.rack] for server in targets)
    most = max(racks.values())
    if most - fewest < 2:
        return None
    victim = max(
        (server for server in holders if racks[server.rack] == most),
        key=lambda server: (server.used, server.index),
    )
    better = [server for server in targets if racks[server.rack] == fewest]
    return Move(victim, placement.choose(better, 1, rng)[0])


def _for_use(
    holders: Sequence[Server], targets: list[Server], racks: Counter[str], difference: float
) -> Move | None:
    emptiest = sorted((most_used(server), server.index, server) for server in targets)
    fullest = sorted(((least_used(each), each.index, each) for each in holders), reverse=True)
    for most, _, victim in fullest:
        for least, _, target in emptiest:
            gap = most - least
            if gap <= difference:
                break
            same = victim.rack == target.rack
            if (same or racks[target.rack] < racks[victim.rack]) and gap >= _change(victim, target):
                return Move(victim, target)
    return None


def _change(victim: Server, target: Server) -> float:
    """By how much a replica of the victim, as they are on average, lessens the gap."""
    size = min(REPLICA_BYTES_MAX, victim.used * victim.total_bytes / max(1, victim.chunks))
    return size / max(1, victim.total_bytes) + size / max(1, target.total_bytes)

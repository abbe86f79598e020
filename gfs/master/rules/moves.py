"""Which replicas should be moved to other servers (the paper, 4.3).

Two reasons, in this order:

* *Racks*: two or more of a chunk's replicas in one rack while another, with a
  server that could take one, has at least two fewer. This happens after a rack was
  added or came back, or a server was moved.
* *Disk use*: servers that are fuller than the mean give replicas to those that are
  emptier, as long as the distribution over racks does not become worse. It begins when
  two servers differ by more than ``balance_share``, and continues until none is above
  the mean: so a new server is filled to the mean.

A move is a copy and then a surplus: the chunk gets one replica more, and only when that
is complete is one deleted. Moves wait while chunks below their goal are copied, and a
chunk under lease is not moved. Small replicas move many at a time, as they are copied
for repair (:mod:`gfs.master.rules.source_and_target`).

For disk use no replica goes to a server that is fuller than the one that gives it, or would
be afterwards: the source stays at or above the mean and the target at or below it. So a
replica that was moved to a server for disk use is not moved away again, and balancing
ends. For racks the fullest server is the source, and the emptiest in the better rack
the target; that may be fuller than the source if its whole rack is: the loss of a rack
is worse than a fuller disk. But no move fills the fuller one of two beyond
``FILLED_SHARE``: once its disks are full, every write to a replica there fails.

If a replica can change racks, the mean is that of all servers; otherwise that of the
rack: a rack with few servers is fuller than others, and that cannot be changed.

The master does not know what a replica takes on its disk, only the chunk's length by
the last report, and whether servers pack new replicas of that: a writer that died may
have left more. So a chunk that was moved for
disk use is not moved for it again before balancing has ended, however wrong the size was.

The means are taken when no move is under way, and are used for one pass over all
chunks: moves do not change them. Nor would it do to wait until the reports of the disks
certainly include a move, some seconds: a thousand a second would have to. So a server's
use is what it was when the means were taken, and the moves since then. That leaves out
what clients write meanwhile, and lengths that the master does not know; so it is held
between bounds by the last reports: as if these included none, or all, of the moves that
have ended, at the target the former as the most, at the source the latter as the least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gfs.blocks import CHUNK_BYTES, stored_bytes
from gfs.master.tables import Calm, Server

#: So full, as a share of its disks, a move between racks may make a server that is fuller than
#: the one that gives.
FILLED_SHARE = 0.9
#: A full chunk.
REPLICA_BYTES_MAX = stored_bytes(CHUNK_BYTES)


class Move(NamedTuple):
    victim: Server
    target: Server


class Mean(NamedTuple):
    """The mean of the shares in use, at least and at most: a replica that is moved
    exists twice for a while."""

    least: float
    most: float


class Means(NamedTuple):
    """The means of all of these servers, and of those of each rack; and what each server, by
    index, had then."""

    whole: Mean
    racks: dict[str, Mean]
    servers: dict[int, Calm]


class Plan:
    """Plans moves between ``servers``; the moves that it has planned count as under way.

    ``difference``: the least difference, as a share of disks, for moves for disk use.
    ``means`` were taken before the moves under way, and are used if they are of the
    same servers, since present ones are uncertain while replicas move. In no case does
    a replica move to a fuller server for disk use.
    """

    def __init__(
        self, servers: Sequence[Server], difference: float, means: Means | None = None
    ) -> None:
        self._servers = [server for server in servers if server.total_bytes]
        #: Bytes used, at least and at most, when all moves under way have ended.
        self._least = {server.index: server.least_used_bytes for server in self._servers}
        self._most = {server.index: server.most_used_bytes for server in self._servers}
        if means is None or means.servers.keys() != self._least.keys():
            means = means_of(self._servers)
        else:
            for server in self._servers:
                calm = means.servers[server.index]
                self._least[server.index] = server.least_used_since(calm)
                self._most[server.index] = server.most_used_since(calm)
        self._mean, self._rack_means, _ = means
        least = [self._share(self._least, server) for server in self._servers]
        most = [self._share(self._most, server) for server in self._servers]
        self.was_held_up = False
        self._can_begin: Callable[[Move], bool] = lambda move: True
        self.is_uneven = bool(least) and max(least) - min(most) > difference

    @property
    def is_possible(self) -> bool:
        """Whether any chunk could be moved: a quick check."""
        return self.is_uneven or len(self._rack_means) > 1

    def move(
        self,
        holders: Sequence[Server],
        size: int,
        can_begin: Callable[[Move], bool] = lambda move: True,
        for_racks_alone: bool = False,
    ) -> Move | None:
        """The best move for a chunk that is at its goal on ``holders``, of a replica of
        ``size`` bytes on its disk, if there is one that ``can_begin`` now.
        ``was_held_up`` says whether there was one that could not. ``for_racks_alone``: it was
        moved for disk use already."""
        self.was_held_up = False
        self._can_begin = can_begin
        if any(server.index not in self._least for server in holders):
            return None
        targets = [server for server in self._servers if server not in holders]
        if not targets or not holders:
            return None
        racks = Counter(server.rack for server in holders)
        move = self._for_racks(holders, targets, racks, size)
        if move is None and self.is_uneven and not (self.was_held_up or for_racks_alone):
            move = self._for_use(holders, targets, racks, size)
        return move

    def begin(self, move: Move, size: int) -> None:
        """Count a move as under way."""
        self._least[move.victim.index] -= size
        self._most[move.target.index] += size

    def _begins(self, move: Move) -> bool:
        begins = self._can_begin(move)
        self.was_held_up = self.was_held_up or not begins
        return begins

    def _share(self, used: dict[int, int], server: Server, more: int = 0) -> float:
        return (used[server.index] + more) / server.total_bytes

    def _for_racks(
        self, holders: Sequence[Server], targets: list[Server], racks: Counter[str], size: int
    ) -> Move | None:
        fewest = min(racks[server.rack] for server in targets)
        most = max(racks.values())
        if most - fewest < 2:
            return None
        victim = max(
            (server for server in holders if racks[server.rack] == most),
            key=lambda server: (self._share(self._least, server), server.index),
        )
        target = min(
            (server for server in targets if racks[server.rack] == fewest),
            key=lambda server: (self._share(self._most, server), server.index),
        )
        filled = max(self._share(self._least, victim), FILLED_SHARE)
        if self._share(self._most, target, size) > filled:
            return None
        move = Move(victim, target)
        return move if self._begins(move) else None

    def _for_use(
        self, holders: Sequence[Server], targets: list[Server], racks: Counter[str], size: int
    ) -> Move | None:
        givers = sorted(holders, key=lambda each: self._share(self._least, each), reverse=True)
        takers = sorted(targets, key=lambda each: self._share(self._most, each))
        for victim in givers:
            here = racks[victim.rack]
            others = [target for target in takers if racks[target.rack] < here]
            mean = self._mean if others else self._rack_means[victim.rack]
            if self._share(self._least, victim, -size) < mean.most:
                continue
            for target in takers:
                is_no_worse = target.rack == victim.rack or racks[target.rack] < here
                move = Move(victim, target)
                is_even = self._share(self._most, target, size) <= mean.least
                if is_no_worse and is_even and self._begins(move):
                    return move
        return None


def means_of(servers: Sequence[Server]) -> Means:
    racks: dict[str, list[Server]] = {}
    for server in servers:
        racks.setdefault(server.rack, []).append(server)
    return Means(
        _mean(servers),
        {rack: _mean(each) for rack, each in racks.items()},
        {server.index: server.calm for server in servers},
    )


def _mean(servers: Sequence[Server]) -> Mean:
    total = max(1, sum(server.total_bytes for server in servers))
    return Mean(
        sum(server.least_used_bytes for server in servers) / total,
        sum(server.most_used_bytes for server in servers) / total,
    )

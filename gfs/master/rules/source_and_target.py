"""The source and target of the copy of a chunk (the paper, 4.3).

*Orders.* A large replica is copied by itself, small ones many at a time from one server
to another: each of these is one order and takes one slot. A small chunk joins an order
of the same round whose source has a replica and whose target may get one.

Limits, so that a dead server does not flood the others: so many orders at once
into one server, out of one server, and in all (:class:`Slots`).

A chunk under lease is not copied: the copy would miss concurrent writes and have the
same version. Its lease is revoked first; the client's next write asks for a new one,
which raises the version, so that a copy that is not complete by then is stale instead
of wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from gfs.master.rules import placement
from gfs.master.tables import LIVE, Clone, Server
from gfs.protocol.messages import CLONES_MAX


class Limits(NamedTuple):
    per_server: int
    total: int


class Slots(NamedTuple):
    """Indexes of the servers that one more copy may be read from, and made at."""

    sources: frozenset[int]
    targets: frozenset[int]

    @property
    def can_pair(self) -> bool:
        """Whether any chunk could be copied."""
        return bool(self.sources and self.targets) and len(self.sources | self.targets) > 1

    def may_fit(self, holders: Collection[int]) -> bool:
        """Whether a chunk with these locations may be copied; far cheaper than to plan it."""
        return not self.sources.isdisjoint(holders) and not self.targets.issubset(holders)


def free_slots(servers: Iterable[Server], placeable: Iterable[Server], limits: Limits) -> Slots:
    return Slots(
        frozenset(
            s.index for s in servers if can_give(s) and s.transfers.clones_out < limits.per_server
        ),
        frozenset(s.index for s in placeable if s.transfers.clones_in < limits.per_server),
    )


def can_give(server: Server) -> bool:
    """Whether the server may be a source now."""
    return server.state == LIVE and server.registration.is_complete


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

    ``holders`` have a good replica. ``refused(server)``: it must not be the target (a
    deletion of this chunk is under way there). Servers in ``failed`` are targets only
    if there is no other.
    """
    sources = [server for server in holders if can_give(server)]
    rng.shuffle(sources)
    sources.sort(key=lambda server: server.transfers.clones_out)
    if not sources or sources[0].transfers.clones_out >= limits.per_server:
        return None
    targets = [
        server
        for server in placeable
        if server.transfers.clones_in < limits.per_server
        and server not in holders
        and not refused(server)
    ]
    if not targets:
        return None
    targets = [server for server in targets if server.index not in failed] or targets
    racks = [server.rack for server in holders if not server.draining]
    target = placement.choose(targets, 1, rng, racks)[0]
    return Clone(handle, version, target, tuple(sources))


def join(
    handle: int,
    version: int,
    length: int,
    holders: Sequence[Server],
    orders: Iterable[list[Clone]],
    placeable: Sequence[Server],
    refused: Callable[[Server], bool],
) -> Clone | None:
    """Add a small chunk to one of the ``orders`` whose source is one of its ``holders``
    and whose target is as good as any other, and return that copy; None: there is none."""
    # Of a list of three, not a Counter: making one is half of what all of this takes.
    racks = [server.rack for server in holders if not server.draining]
    fewest = -1
    for order in orders:
        source, target = order[0].sources[0], order[0].target
        if len(order) >= CLONES_MAX or source not in holders or target in holders:
            continue
        if fewest < 0:
            fewest = min(
                [racks.count(server.rack) for server in placeable if server not in holders]
            )
        if racks.count(target.rack) == fewest and not refused(target):
            clone = Clone(handle, version, target, (source,), length=length, joined=True)
            order.append(clone)
            return clone
    return None


def pick_surplus(holders: Sequence[Server], moved: int | None = None) -> Server:
    """Which of too many good replicas to delete: one on a server that is drained,
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

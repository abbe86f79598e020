"""Which servers get the replicas of a new chunk (the paper, 4.2).

Three preferences, as one score per server (lower is better):

* below-average disk use, so that disks fill evenly over time;
* few recent creations, since a creation predicts heavy writing soon: this prevents that
  a new, empty server gets every new chunk. An empty server beside others at 80 % gets
  at most about three times its share;
* a small random part, so that choices differ.

Racks come before the score: replicas go to as many racks as there are.

With many servers only a random sample is considered, which costs the same for a
thousand servers as for sixteen and balances nearly as well (the power of several
choices).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from gfs.errors import NotEnoughChunkservers
from gfs.failures import plural

SAMPLE = 16
SAMPLE_PER_REPLICA = 4
RECENT_WEIGHT = 0.5
RECENT_RATIO_MAX = 4.0
CHANCE_WEIGHT = 0.2


class Candidate(Protocol):
    """A server that may get a replica."""

    index: int
    rack: str
    #: Share of its disks in use, 0 to 1.
    used: float
    #: Chunks created on it lately; decays.
    recent: float


CandidateT = TypeVar("CandidateT", bound=Candidate)


def choose(
    candidates: Sequence[CandidateT],
    count: int,
    rng: random.Random,
    racks: Collection[str] = (),
) -> list[CandidateT]:
    """Choose up to ``count`` of the candidates, the best first, those of one rack adjacent.

    ``racks`` are those that have a replica already. Fewer are returned only if there
    are fewer candidates.
    """
    sample: Sequence[CandidateT] = candidates
    size = max(SAMPLE, SAMPLE_PER_REPLICA * count)
    if len(candidates) > size:
        sample = rng.sample(candidates, size)
    ranked = _ranked(sample, rng)
    return _rack_by_rack(_spread(ranked, count, racks))


def _ranked(candidates: Sequence[CandidateT], rng: random.Random) -> list[CandidateT]:
    mean = sum([server.recent for server in candidates]) / (len(candidates) or 1)
    scored = []
    for server in candidates:
        ratio = min(RECENT_RATIO_MAX, server.recent / (1.0 + mean))
        score = server.used + RECENT_WEIGHT * ratio + CHANCE_WEIGHT * rng.random()
        scored.append((score, server.index, server))
    scored.sort()
    return [server for _, _, server in scored]


def _spread(ranked: list[CandidateT], count: int, racks: Collection[str]) -> list[CandidateT]:
    """The best of each rack first, then the second best of each, and so on."""
    uses: dict[str, int] = {}
    for rack in racks:
        uses[rack] = uses.get(rack, 0) + 1
    placed: list[tuple[int, int, CandidateT]] = []
    for rank, server in enumerate(ranked):
        turn = uses.get(server.rack, 0)
        uses[server.rack] = turn + 1
        placed.append((turn, rank, server))
    placed.sort(key=lambda item: item[:2])
    return [server for _, _, server in placed[:count]]


def _rack_by_rack(chosen: list[CandidateT]) -> list[CandidateT]:
    """The same servers, those of one rack adjacent: so that data in the chain crosses
    between racks as seldom as possible."""
    if len(chosen) < 3:
        return chosen
    order: dict[str, int] = {}
    for server in chosen:
        order.setdefault(server.rack, len(order))
    if len(order) in (1, len(chosen)):
        return chosen
    return sorted(chosen, key=lambda server: order[server.rack])


def require(found: int, replication: int, replicas_min: int, live: int, what: str) -> None:
    """Raises NotEnoughChunkservers unless ``found`` servers are enough for a new chunk."""
    needed = min(replication, replicas_min)
    if found < needed:
        raise NotEnoughChunkservers(
            f"{what} needs {plural(needed, 'chunkserver')} with free space, {found} can take it "
            f"({live} live): start more, free some space, or try again"
        )

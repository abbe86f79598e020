"""Where replicas go, as a pure function."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from gfs.errors import NotEnoughChunkservers
from gfs.master.rules.placement import choose, require


@dataclass(eq=False)
class Disk:
    index: int
    rack: str = "r"
    used: float = 0.5
    recent: float = 0.0


def place(servers: list[Disk], rounds: int, count: int = 3, seed: int = 1) -> Counter[int]:
    """Creations as the master makes them, some decay in between."""
    rng = random.Random(seed)
    created: Counter[int] = Counter()
    for _ in range(rounds):
        for server in choose(servers, count, rng):
            server.recent += 1
            created[server.index] += 1
        for server in servers:
            server.recent *= 0.99
    return created


def test_equal_servers_share_alike() -> None:
    created = place([Disk(i) for i in range(10)], 1000)
    assert all(240 < created[i] < 360 for i in range(10)), created


def test_never_the_same_server_twice_and_never_more_than_there_are() -> None:
    rng = random.Random(2)
    for servers in range(8):
        chosen = choose([Disk(i) for i in range(servers)], 3, rng)
        assert len({s.index for s in chosen}) == len(chosen) == min(3, servers)


def test_fuller_servers_get_less() -> None:
    created = place([Disk(0, used=0.9), *[Disk(i, used=0.3) for i in range(1, 6)]], 1000)
    assert created[0] < min(created[i] for i in range(1, 6)) / 2


def test_a_new_empty_server_is_preferred_and_not_flooded() -> None:
    servers = [*[Disk(i, used=0.8) for i in range(9)], Disk(9, used=0.0)]
    created = place(servers, 1000)
    share = 3000 / 10
    assert 1.5 * share < created[9] <= 3.4 * share, created


def test_racks_come_first() -> None:
    rng = random.Random(3)
    servers = [Disk(i, rack="full" if i < 6 else f"r{i % 2}", used=0.1) for i in range(8)]
    servers[6].used = servers[7].used = 0.99
    for _ in range(50):
        chosen = choose(servers, 3, rng)
        assert len({s.rack for s in chosen}) == 3


def test_racks_that_hold_one_already_come_last() -> None:
    rng = random.Random(4)
    servers = [Disk(0, "a", 0.1), Disk(1, "b", 0.9)]
    assert choose(servers, 1, rng, ["a", "a"])[0].index == 1


def test_same_racks_are_adjacent_in_the_chain() -> None:
    rng = random.Random(5)
    servers = [Disk(i, rack="ab"[i % 2], used=rng.random()) for i in range(6)]
    for _ in range(50):
        racks = [s.rack for s in choose(servers, 4, rng)]
        assert racks in ([*"aabb"], [*"bbaa"])


def test_many_servers_are_sampled() -> None:
    created = place([Disk(i) for i in range(500)], 2000)
    assert len(created) == 500
    assert max(created.values()) < 40


def test_too_few_servers_say_what_is_needed() -> None:
    require(2, 3, 2, 2, "a new chunk")
    require(1, 1, 2, 1, "a new chunk")
    with pytest.raises(
        NotEnoughChunkservers, match=r"needs 2 chunkservers .* 1 can take it \(4 live"
    ):
        require(1, 3, 2, 4, "a new chunk")

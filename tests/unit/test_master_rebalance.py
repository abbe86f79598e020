"""Which replicas are moved: it ends, and what it ends with is balanced."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs.master.rebalance import (
    REPLICA_BYTES_MAX,
    is_possible,
    least_used,
    most_used,
    plan_move,
)
from gfs.master.repair import pick_surplus
from gfs.master.servers import LIVE, Server, Shift
from gfs.protocol.messages import Disk

SHARE = 0.1
#: Of a disk: what one chunk takes.
CHUNK = 0.01


def server(index: int, rack: str, used: float, chunk: float = CHUNK) -> Server:
    made = Server(index, f"s{index}", f"h:{index}", rack, 0.0, state=LIVE, registered=True)
    total = int(REPLICA_BYTES_MAX / chunk)
    made.set_disks([Disk("/d", total, int(total * (1 - used)), 0)])
    made.chunks = round(used / chunk)
    return made


Cluster = tuple[list[Server], list[list[Server]]]


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Servers, and the replicas of some chunks, which are all that is on their disks."""
    sizes = [draw(st.sampled_from([0.02, 0.1, 0.2])) for _ in range(draw(st.integers(1, 6)))]
    racks = draw(st.sampled_from(["a", "abc"]))
    counts = [0] * len(sizes)
    places = []
    for _ in range(draw(st.integers(1, 12))):
        goal = draw(st.integers(1, min(3, len(sizes))))
        places.append(draw(st.permutations(range(len(sizes))))[:goal])
        for place in places[-1]:
            counts[place] += 1
    servers = [
        server(index, draw(st.sampled_from(racks)), counts[index] * size, size)
        for index, size in enumerate(sizes)
    ]
    return servers, [[servers[place] for place in each] for each in places]


def unevenness(holders: list[Server], servers: list[Server]) -> int:
    """By how many replicas the racks differ that could be more equal."""
    racks = Counter(each.rack for each in holders)
    free = [racks[each.rack] for each in servers if each not in holders]
    return max(racks.values()) - min(free) if free else 0


def report(reporter: Server, chunks: list[list[Server]], size: float) -> None:
    """It says how full its disks are now."""
    reporter.chunks = sum(reporter in holders for holders in chunks)
    free = reporter.total_bytes - round(reporter.chunks * size * REPLICA_BYTES_MAX)
    reporter.set_disks([Disk("/d", reporter.total_bytes, max(0, free), 0)])
    reporter.shifts.clear()


@given(clusters(), st.integers(), st.sampled_from([1.0, 0.3, 0.05]), st.sampled_from([1.0, 0.3]))
def test_moves_end_in_balance(cluster: Cluster, seed: int, speed: float, size: float) -> None:
    """However late servers report what a move took and brought, and however large the
    replicas are."""
    servers, chunks = cluster
    rng = random.Random(seed)
    for each in servers:
        report(each, chunks, size)
    moves = 0
    reported: set[int] = set()
    while len(reported) < len(servers):  # without a move in between
        for number, holders in enumerate(chunks):
            move = plan_move(holders, servers, SHARE, rng)
            if move is None:
                continue
            before = Counter(each.rack for each in holders)
            assert move.victim in holders
            assert move.target not in holders
            # As the master does it: one more, and then one less.
            holders.append(move.target)
            gone = pick_surplus(holders, move.victim.index)
            assert gone is move.victim
            holders.remove(gone)
            assert len(set(holders)) == len(holders)
            after = Counter(each.rack for each in holders)
            assert len(after) >= len(before)
            assert max(after.values()) <= max(before.values())
            move.target.shifts[number], move.victim.shifts[number] = Shift(+1), Shift(-1)
            moves += 1
            assert moves < 200, "replicas move for ever"
            reported.clear()
        for each in servers:
            if rng.random() < speed:
                report(each, chunks, size)
                reported.add(each.index)
    for holders in chunks:
        assert unevenness(holders, servers) < 2


def test_a_fuller_disk_gives_to_an_emptier_one_in_no_worse_rack() -> None:
    full, other, empty = server(0, "a", 0.8), server(1, "b", 0.4), server(2, "b", 0.1)
    # Both replicas would be in rack b.
    assert plan_move([full, other], [full, other, empty], SHARE, random.Random(1)) == (other, empty)
    assert plan_move([full], [full, other, empty], SHARE, random.Random(1)) == (full, empty)
    same = server(3, "a", 0.1)
    assert plan_move([full, other], [full, other, same], SHARE, random.Random(1)) == (full, same)
    near = server(4, "a", 0.75)
    assert plan_move([full], [full, near], SHARE, random.Random(1)) is None


def test_what_is_on_its_way_counts() -> None:
    full, empty = server(0, "a", 0.5), server(1, "a", 0.35)
    assert plan_move([full], [full, empty], SHARE, random.Random(1)) == (full, empty)
    for handle in range(3):
        full.shifts[handle], empty.shifts[handle] = Shift(-1), Shift(+1)
    assert (least_used(full), most_used(full)) == (pytest.approx(0.47), 0.5)
    assert (least_used(empty), most_used(empty)) == (0.35, pytest.approx(0.38))
    assert plan_move([full], [full, empty], SHARE, random.Random(1)) is None
    assert not is_possible([full, empty], SHARE)


def test_a_disk_of_a_few_chunks_does_not_become_the_fuller_one() -> None:
    one, none = server(0, "a", 0.25, chunk=0.25), server(1, "a", 0.0, chunk=0.25)
    assert plan_move([one], [one, none], SHARE, random.Random(1)) is None
    two = server(2, "a", 0.5, chunk=0.25)
    assert plan_move([two], [two, none], SHARE, random.Random(1)) == (two, none)


@pytest.mark.parametrize(
    ("servers", "possible"),
    [
        ([], False),
        ([server(0, "a", 0.5), server(1, "a", 0.55)], False),
        ([server(0, "a", 0.5), server(1, "a", 0.65)], True),
        ([server(0, "a", 0.5), server(1, "b", 0.5)], True),
    ],
)
def test_a_quick_look_spares_the_long_one(servers: list[Server], possible: bool) -> None:
    assert is_possible(servers, SHARE) == possible

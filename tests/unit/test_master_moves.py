"""Which replicas are moved: it ends, and what it ends with is balanced."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfs.master.rules.moves import FILLED_SHARE, REPLICA_BYTES_MAX, Move, Plan, means_of
from gfs.master.rules.source_and_target import pick_surplus
from gfs.master.tables.servers import LIVE, Server
from gfs.protocol.messages import Disk

SHARE = 0.1
#: Of a disk: what one chunk takes.
CHUNK = 0.01


def server(index: int, rack: str, used: float, chunk: float = CHUNK) -> Server:
    made = Server(index, f"s{index}", f"h:{index}", rack, 0.0, state=LIVE)
    made.registration.is_complete = True
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
        # No disk has more than it can hold: its server could not report that.
        room = [index for index, size in enumerate(sizes) if (counts[index] + 1) * size <= 1]
        if not room:
            break
        goal = draw(st.integers(1, min(3, len(room))))
        places.append(draw(st.permutations(room))[:goal])
        for place in places[-1]:
            counts[place] += 1
    servers = [
        server(index, draw(st.sampled_from(racks)), counts[index] * size, size)
        for index, size in enumerate(sizes)
    ]
    return servers, [[servers[place] for place in each] for each in places]


def move_for_racks(
    holders: list[Server], servers: list[Server], share: Callable[[Server], float]
) -> Move | None:
    """That of the fullest to the emptiest server by which racks that differ by two or more
    replicas, and could be more equal, would be."""
    racks = Counter(each.rack for each in holders)
    free = [each for each in servers if each not in holders]
    most = max(racks.values())
    fewest = min((racks[each.rack] for each in free), default=most)
    if most - fewest < 2:
        return None
    return Move(
        max((each for each in holders if racks[each.rack] == most), key=share),
        min((each for each in free if racks[each.rack] == fewest), key=share),
    )


def report(reporter: Server, chunks: list[list[Server]], size: float) -> None:
    """It says how full its disks are now."""
    reporter.chunks = sum(reporter in holders for holders in chunks)
    free = reporter.total_bytes - round(reporter.chunks * size * REPLICA_BYTES_MAX)
    reporter.set_disks([Disk("/d", reporter.total_bytes, max(0, free), 0)])
    for handle in list(reporter.transfers.shifts):
        reporter.transfers.end(handle)


@settings(deadline=None)
@given(clusters(), st.integers(), st.sampled_from([1.0, 0.3, 0.05]), st.sampled_from([1.0, 0.3]))
def test_moves_end_in_balance(cluster: Cluster, seed: int, speed: float, size: float) -> None:
    """However late servers report what a move took and brought, and however large the
    replicas are. No move for disk use goes to the fuller of two, or makes it that; and what was
    moved for that alone is not moved again."""
    servers, chunks = cluster
    rng = random.Random(seed)
    size_bytes = round(size * REPLICA_BYTES_MAX)
    for each in servers:
        report(each, chunks, size)
    moves = 0
    came: set[tuple[int, int]] = set()
    has_racks = len({each.rack for each in servers}) > 1
    reported: set[int] = set()
    begun = False
    means = means_of(servers)
    while True:
        done, is_known = moves, len(reported) == len(servers)
        if not any(each.transfers.shifts for each in servers):
            means = means_of(servers)
        plan = Plan(servers, 0.0 if begun else SHARE, means)
        begun = begun or plan.is_uneven
        for number, holders in enumerate(chunks):
            move = plan.move(holders, size_bytes)
            if move is None:
                continue
            plan.begin(move, size_bytes)
            before = Counter(each.rack for each in holders)
            assert move.victim in holders
            assert move.target not in holders
            assert has_racks or (number, move.victim.index) not in came
            came.add((number, move.target.index))
            # As the master does it: one more, and then one less.
            holders.append(move.target)
            gone = pick_surplus(holders, move.victim.index)
            assert gone is move.victim
            holders.remove(gone)
            assert len(set(holders)) == len(holders)
            after = Counter(each.rack for each in holders)
            assert len(after) >= len(before)
            assert max(after.values()) <= max(before.values())
            if after == before or move.target.rack == move.victim.rack:
                assert used(move.target, chunks, size) <= used(move.victim, chunks, size) + 1e-6
            move.target.transfers.begin(number, size_bytes)
            move.victim.transfers.begin(number, -size_bytes)
            moves += 1
            assert moves < 200, "replicas move for ever"
            reported.clear()
        for each in servers:
            if rng.random() < speed:
                report(each, chunks, size)
                reported.add(each.index)
        if is_known and moves == done:  # none, though all had reported since the last one
            break
    for holders in chunks:
        left = move_for_racks(holders, servers, lambda each: used(each, chunks, size))
        if left is not None:  # it would fill a disk
            more = size_bytes / left.target.total_bytes
            filled = max(used(left.victim, chunks, size), FILLED_SHARE)
            assert used(left.target, chunks, size) + more > filled - 1e-6


def used(server: Server, chunks: list[list[Server]], size: float) -> float:
    """The truth about its disk."""
    count = sum(server in holders for holders in chunks)
    return count * size * REPLICA_BYTES_MAX / server.total_bytes


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(20, 200), st.integers(1, 3), st.booleans())
def test_an_empty_server_comes_to_the_mean(
    others: int, chunks: int, goal: int, is_late: bool
) -> None:
    """With whoever else was below it; and each replica that comes is moved once."""
    servers = [server(index, "a", 0.0, chunk=0.001) for index in range(others + 1)]
    goal = min(goal, others)
    places = [[servers[(n + k) % others] for k in range(goal)] for n in range(chunks)]
    for each in servers:
        report(each, places, 1.0)
    before = [set(map(id, each)) for each in places]
    mean = chunks * goal / len(servers)
    below = {each.index: each.chunks for each in servers if each.chunks < mean}
    means, moves = means_of(servers), 0
    for turn in range(50):
        plan = Plan(servers, 0.0, means)
        for number, holders in enumerate(places):
            move = plan.move(holders, REPLICA_BYTES_MAX)
            if move is not None:
                plan.begin(move, REPLICA_BYTES_MAX)
                assert move.target.index in below
                moves += 1
                holders[holders.index(move.victim)] = move.target
                move.target.transfers.begin(number, REPLICA_BYTES_MAX)
                move.victim.transfers.begin(number, -REPLICA_BYTES_MAX)
        for each in servers:
            if not is_late or (turn + each.index) % 3 == 0:
                report(each, places, 1.0)
    # Each of the others keeps up to one replica above the mean.
    assert mean - others <= servers[-1].chunks <= mean
    came = sum(len(set(map(id, each)) - was) for each, was in zip(places, before, strict=True))
    assert moves == came == sum(servers[index].chunks - was for index, was in below.items())
    assert all(servers[index].chunks <= mean for index in below)


def test_by_the_means_of_before_one_look_is_enough() -> None:
    """What is on its way is there twice, and does not change the mean."""
    others, chunks = 4, 400
    servers = [server(index, "a", 0.0, chunk=0.001) for index in range(others + 1)]
    places = [[servers[n % others]] for n in range(chunks)]
    for each in servers:
        report(each, places, 1.0)
    means, came = means_of(servers), 0
    plan = Plan(servers, 0.0, means)
    for number, holders in enumerate(places):
        move = plan.move(holders, REPLICA_BYTES_MAX)
        if move is not None:
            plan.begin(move, REPLICA_BYTES_MAX)
            move.target.transfers.begin(number, REPLICA_BYTES_MAX)
            move.victim.transfers.begin(number, -REPLICA_BYTES_MAX)
            came += 1
            # Another slice of the same look: planned with what is under way.
            plan = Plan(servers, 0.0, means)
    # Each of the others keeps up to one replica above the mean.
    assert chunks // (others + 1) - others <= came <= chunks // (others + 1)


def planned(holders: list[Server], servers: list[Server]) -> Move | None:
    return Plan(servers, SHARE).move(holders, round(CHUNK * holders[0].total_bytes))


def test_a_fuller_disk_gives_to_an_emptier_one_in_no_worse_rack() -> None:
    full, other, empty = server(0, "a", 0.8), server(1, "b", 0.4), server(2, "b", 0.1)
    # Both replicas would be in rack b.
    assert planned([full, other], [full, other, empty]) == (other, empty)
    assert planned([full], [full, other, empty]) == (full, empty)
    same = server(3, "a", 0.1)
    assert planned([full, other], [full, other, same]) == (full, same)
    near = server(4, "a", 0.75)
    assert planned([full], [full, near]) is None


def test_of_a_better_rack_the_emptiest_takes() -> None:
    a, b, full, empty = (
        server(0, "a", 0.4), server(1, "a", 0.5), server(2, "b", 0.6), server(3, "b", 0.1)
    )  # fmt: skip
    assert planned([a, b], [a, b, full, empty]) == (b, empty)
    assert planned([a, b], [a, b, full]) == (b, full), "racks go first"


def test_what_is_on_its_way_counts() -> None:
    full, empty = server(0, "a", 0.5), server(1, "a", 0.35)
    assert planned([full], [full, empty]) == (full, empty)
    for handle in range(3):
        full.transfers.begin(handle, -REPLICA_BYTES_MAX)
        empty.transfers.begin(handle, REPLICA_BYTES_MAX)
    assert planned([full], [full, empty]) is None
    assert not Plan([full, empty], SHARE).is_possible
    for handle in range(3):
        full.transfers.end(handle)
        empty.transfers.end(handle)
    assert (full.transfers.leaving_bytes, empty.transfers.arriving_bytes) == (0, 0)


def test_what_has_moved_counts_once_before_reports_cover_it_and_after() -> None:
    def used(each: Server, bytes_used: int) -> None:
        each.set_disks([Disk("/d", each.total_bytes, each.total_bytes - bytes_used, 0)])

    source, target = server(0, "a", 0.5), server(1, "a", 0.1)
    before = source.used_bytes, target.used_bytes
    calm = source.calm, target.calm

    def known() -> tuple[int, int]:
        return source.least_used_since(calm[0]), target.most_used_since(calm[1])

    for handle in range(10):
        source.transfers.begin(handle, -REPLICA_BYTES_MAX)
        target.transfers.begin(handle, REPLICA_BYTES_MAX)
    moved = 10 * REPLICA_BYTES_MAX
    after = before[0] - moved, before[1] + moved
    assert known() == after
    for each in (source, target):
        for handle in range(10):
            each.transfers.set_ended(handle, 1.0)
    assert known() == after
    # The reports come, and cover a part, or all.
    used(source, after[0] + moved // 2)
    used(target, after[1] - moved // 2)
    assert known() == after
    used(source, after[0])
    used(target, after[1])
    assert known() == after
    # What clients write meanwhile, and delete, is in the reports alone.
    used(source, after[0] - moved)
    used(target, after[1] + moved)
    assert known() == (after[0] - moved, after[1] + moved)
    for each in (source, target):
        for handle in range(10):
            each.transfers.end(handle)
    used(source, after[0] + 2 * moved)
    used(target, after[1] - 2 * moved)
    assert known() == (after[0] + 2 * moved, after[1] - 2 * moved)
    assert not any(
        (each.transfers.arrived_bytes, each.transfers.left_bytes) != (0, 0)
        for each in (source, target)
    )


def test_between_racks_the_fuller_one_is_not_filled() -> None:
    a, b = server(0, "a", 0.4), server(1, "a", 0.5)
    small = server(2, "b", 0.8)
    assert planned([a, b], [a, b, small]) == (b, small)
    small = server(2, "b", 0.895)
    assert planned([a, b], [a, b, small]) is None
    fuller = server(1, "a", 0.95)
    assert planned([a, fuller], [a, fuller, small]) == (fuller, small)


def test_a_disk_of_a_few_chunks_does_not_become_the_fuller_one() -> None:
    one, none = server(0, "a", 0.25, chunk=0.25), server(1, "a", 0.0, chunk=0.25)
    assert Plan([one, none], SHARE).move([one], REPLICA_BYTES_MAX) is None
    two = server(2, "a", 0.5, chunk=0.25)
    assert Plan([two, none], SHARE).move([two], REPLICA_BYTES_MAX) == (two, none)


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
    assert Plan(servers, SHARE).is_possible == possible

"""Whether a server can be drained: exactly when all goals can be met without it, and there is
room for the copies."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gfs.master.rules.drain_admission import OVERHEAD_BYTES, Needs, Remaining, shortage, why_not

SERVERS = range(5)
Copies = dict[tuple[frozenset[int], int], int]


@st.composite
def copies_to_make(draw: st.DrawFn) -> Copies:
    copies: Copies = {}
    for _ in range(draw(st.integers(0, 5))):
        holders = draw(st.frozensets(st.sampled_from(SERVERS), max_size=4))
        missing = draw(st.integers(1, len(SERVERS) - len(holders)))
        copies[holders, missing] = draw(st.integers(1, 20))
    return copies


def cut(copies: Copies, free: dict[int, int]) -> int:
    """What a maximum flow leaves over, from the smallest cut: all are looked at."""
    wanted = sum(missing * size for (_, missing), size in copies.items())
    flow = wanted
    for count in range(len(free) + 1):
        for full in itertools.combinations(free, count):
            through = sum(free[server] for server in full)
            for (holders, missing), size in copies.items():
                others = [s for s in free if s not in full and s not in holders]
                through += min(missing, len(others)) * size
            flow = min(flow, through)
    return wanted - flow


@given(copies_to_make(), st.fixed_dictionaries({s: st.integers(0, 40) for s in SERVERS}))
def test_no_drain_is_allowed_for_which_no_placement_fits(
    copies: Copies, free: dict[int, int]
) -> None:
    assert shortage(copies, free) >= cut(copies, free)


@given(copies_to_make())
def test_space_that_is_not_short_is_enough(copies: Copies) -> None:
    assert shortage(copies, dict.fromkeys(SERVERS, sum(copies.values()))) == 0


def test_chunks_with_less_choice_are_placed_first() -> None:
    # The first one would go to server 0, which has more room, and is all that the other one has.
    copies = {(frozenset[int](), 1): 10, (frozenset({1}), 1): 10}
    assert shortage(copies, {0: 11, 1: 10}) == 0
    assert shortage(copies, {0: 9, 1: 10}) == 1


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Remaining], str, list[tuple[int, set[int]]]]:
    """Those that stay, the rack of server 9 which does not, and chunks (goal, holders)."""
    racks = st.sampled_from("abc")
    remaining = [Remaining(n, draw(racks), 1 << 40) for n in range(draw(st.integers(0, 5)))]
    ids = [each.server for each in remaining] + [9]
    chunks = draw(st.lists(st.tuples(st.integers(1, 5), st.sets(st.sampled_from(ids))), max_size=6))
    return remaining, draw(racks), chunks


@given(clusters(), st.integers(1, 4), st.booleans())
def test_refused_exactly_when_goals_or_racks_cannot_be_kept(
    cluster: tuple[list[Remaining], str, list[tuple[int, set[int]]]],
    new_goal: int,
    fewer_racks: bool,
) -> None:
    remaining, rack, chunks = cluster
    needs = Needs(each.server for each in remaining)
    for goal, holders in chunks:
        needs.add(goal, 1000, holders)
    reason = why_not(needs, remaining, rack, new_goal, fewer_racks=fewer_racks)
    goals = [goal for goal, _ in chunks]
    racks = {each.rack for each in remaining}
    spread = min(max(goals), len(racks | {rack})) if goals else 0
    too_few = any(goal > len(remaining) for goal in [*goals, new_goal])
    fewer = len(racks) < spread and not fewer_racks
    assert bool(reason) == (too_few or fewer)
    if reason:
        assert ("would be left" if too_few else "racks") in reason


def test_what_is_needed_counts_replicas_that_stay() -> None:
    needs = Needs([0, 1, 2])
    needs.add(2, 1000, [0, 9])
    needs.add(2, 1000, [0, 1, 9])
    needs.add(3, 500, [9])
    needs.add(3, 500, [])  # lost: there is nothing to copy
    assert needs.copies == {
        (frozenset({0}), 1): 1000 + OVERHEAD_BYTES,
        (frozenset(), 3): 500 + OVERHEAD_BYTES,
    }
    remaining = [Remaining(0, "a", 10), Remaining(1, "a", 10), Remaining(2, "a", 10)]
    assert "1 MiB short of space" in why_not(needs, remaining, "a", 2, fewer_racks=False)

"""What is copied next, and from where to where."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs.master.rules.source_and_target import Limits, free_slots, join, pick_surplus, plan_clone
from gfs.master.tables.repair_queue import RATE_SECONDS, ROUND_MAX, Clone, Rate, RepairQueue
from gfs.master.tables.servers import LIVE, SILENT, Server
from gfs.protocol.messages import CLONES_MAX, Disk

LIMITS = Limits(per_server=2, total=64)


def server(index: int, rack: str = "r", state: str = LIVE, used: float = 0.5) -> Server:
    made = Server(index, f"s{index}", f"host:{index}", rack, 0.0, state=state)
    made.registration.is_complete = True
    made.set_disks([Disk("/d", 1000, int(1000 * (1 - used)), 0)])
    return made


def drain(queue: RepairQueue, now: float = 0.0) -> list[int]:
    """What would be looked at in one round."""
    order = []
    for handle in queue.due(now, lambda have: True):
        order.append(handle)
        queue.defer(handle, now)
    return order


def plan(holders: list[Server], placeable: list[Server], **more: object) -> Clone | None:
    return plan_clone(1, 1, holders, placeable, lambda s: False, (), LIMITS, random.Random(1))


def test_most_endangered_first() -> None:
    queue = RepairQueue()
    queue.update(1, 2, 3)
    queue.update(2, 1, 3)
    queue.update(3, 3, 5)
    queue.update(4, 1, 2)
    queue.update(5, 2, 3)
    queue.block(5)
    assert queue.missing == 1 + 2 + 2 + 1 + 1
    assert drain(queue) == [2, 4, 3, 5, 1]


def test_live_files_before_deleted_ones_that_are_as_endangered() -> None:
    queue = RepairQueue()
    for handle in (1, 2, 3):
        queue.update(handle, 2, 3)
    queue.update(4, 1, 3)
    queue.block(2)
    queue.set_trashed({2, 4, 99})
    assert drain(queue) == [4, 1, 3, 2]
    queue.set_trashed({1})
    assert drain(queue, 1.0) == [4, 2, 3, 1]
    queue.forget(1)
    queue.update(1, 2, 3)
    assert drain(queue, 2.0)[-1] != 2


def test_whole_and_lost_chunks_are_not_queued() -> None:
    queue = RepairQueue()
    queue.update(1, 2, 3)
    queue.update(1, 3, 3)
    queue.update(2, 0, 3)
    assert (queue.endangered, queue.lost, drain(queue)) == (0, {2}, [])
    queue.update(2, 1, 3)
    assert (queue.endangered, queue.lost, drain(queue)) == (1, set(), [2])
    queue.forget(2)
    assert (queue.endangered, queue.lost) == (0, set())


def test_the_highest_goal_that_is_not_met() -> None:
    queue = RepairQueue()
    assert queue.goal_unmet == 0
    queue.update(1, 2, 3)
    queue.update(2, 4, 5)
    queue.update(3, 7, 7, staying=6)  # it has them; one is on a server that is drained
    assert queue.goal_unmet == 5
    queue.forget(2)
    assert queue.goal_unmet == 3


def test_what_cannot_start_waits_a_little_and_lets_others_by() -> None:
    queue = RepairQueue()
    for handle in range(3000):
        queue.update(handle, 1, 3)
    first = drain(queue)
    assert first == list(range(ROUND_MAX))
    assert drain(queue) == list(range(ROUND_MAX, 3000))
    assert drain(queue) == []
    assert len(drain(queue, 1.0)) == ROUND_MAX


def test_what_no_server_could_take_is_not_even_looked_at() -> None:
    queue = RepairQueue()
    queue.update(1, 2, 3)
    queue.update(2, 1, 3)
    assert list(queue.due(0.0, lambda danger: danger.have < 2)) == [2]


def test_a_copy_is_gone_if_its_target_says_so() -> None:
    """Not if another server has lost its replica, nor when the next copy is made."""
    queue = RepairQueue()
    queue.update(1, 1, 3)
    clone = Clone(1, 1, server(0), (server(1),))
    queue.started(clone)
    queue.note_gone(2, 0)
    queue.note_gone(1, 1)
    assert not queue.gone
    queue.note_gone(1, 0)
    assert queue.gone == {1}
    queue.ended(clone, 0.0, failed=True)
    assert not queue.gone


def test_failures_wait_longer_each_time() -> None:
    queue = RepairQueue()
    queue.update(1, 1, 3)
    now, waits = 0.0, []
    for _ in range(7):
        clone = Clone(1, 1, server(0), (server(1),))
        queue.started(clone)
        assert drain(queue, now) == []
        queue.ended(clone, now, failed=True)
        begun = now
        while not drain(queue, now):
            now += 0.25
        waits.append(now - begun)
        now += 0.5
    assert waits == sorted(waits)
    assert waits[0] <= 1.0
    assert 10 <= waits[-1] <= 10.5


def test_a_chunk_deleted_while_it_is_copied_leaves_nothing() -> None:
    queue = RepairQueue()
    queue.update(1, 1, 3)
    clone = Clone(1, 1, server(0), (server(1),))
    queue.started(clone)
    queue.forget(1)
    queue.ended(clone, 0.0, failed=True)
    assert not queue._failures
    assert not queue._not_before


def test_a_target_holds_no_replica_and_is_in_another_rack() -> None:
    a, b, c, d = server(0, "x"), server(1, "x"), server(2, "x", used=0.1), server(3, "y")
    clone = plan([a, b], [a, b, c, d])
    assert clone.target is d
    assert set(clone.sources) == {a, b}


def test_silent_servers_are_no_sources() -> None:
    silent, live, free = server(0, state=SILENT), server(1), server(2)
    clone = plan([silent, live], [live, free])
    assert clone.sources == (live,)
    assert plan([silent], [live, free]) is None


def test_busy_servers_are_passed_over() -> None:
    source, other, full, free = server(0), server(1), server(2), server(3)
    source.transfers.clones_out = 2
    full.transfers.clones_in = 2
    clone = plan([source, other], [full, free])
    assert (clone.sources[0], clone.target) == (other, free)
    other.transfers.clones_out = 2
    assert plan([source, other], [full, free]) is None
    other.transfers.clones_out = 0
    free.transfers.clones_in = 2
    assert plan([source, other], [full, free]) is None


def test_a_server_about_to_delete_it_is_no_target() -> None:
    a, b, c = server(0), server(1), server(2)
    clone = plan_clone(1, 1, [a], [b, c], lambda s: s is b, (), LIMITS, random.Random(1))
    assert clone.target is c


@pytest.mark.parametrize("order", range(3))
def test_surplus_goes_from_a_doubled_rack_and_the_fullest_disk(order: int) -> None:
    holders = [server(0, "x", used=0.9), server(1, "y", used=0.2), server(2, "y", used=0.4)]
    assert pick_surplus(holders[order:] + holders[:order]).index == 2


def test_a_target_that_failed_is_tried_last() -> None:
    a, b, c = server(0), server(1, used=0.1), server(2, used=0.9)
    for failed, target in (((), b), ((1,), c), ((1, 2), b)):
        clone = plan_clone(1, 1, [a], [a, b, c], lambda s: False, failed, LIMITS, random.Random(1))
        assert clone.target is target


def test_a_new_server_ends_the_waiting() -> None:
    queue = RepairQueue()
    queue.update(1, 1, 3)
    clone = Clone(1, 1, server(0), (server(1),))
    queue.started(clone)
    queue.ended(clone, 0.0, failed=True)
    assert queue.failed_at(1) == [0]
    assert drain(queue, 0.0) == []
    queue.retry_all()
    assert drain(queue, 0.0) == [1]
    assert queue.failed_at(1) == []


def test_what_waits_for_a_slot_does_not_rest() -> None:
    queue = RepairQueue()
    for handle in range(3):
        queue.update(handle, 2, 3)
    for _ in range(2):
        assert list(queue.due(0.0, lambda have: True)) == [0, 1, 2]
    looked = queue.due(0.0, lambda have: True)
    assert [next(looked), next(looked)] == [0, 1]
    assert list(queue.due(0.0, lambda have: True)) == [2, 0, 1]


states = st.tuples(st.sampled_from([LIVE, SILENT]), st.integers(0, 2), st.integers(0, 2))


@given(st.lists(states, min_size=1, max_size=6))
def test_the_cheap_look_at_a_chunk_says_what_a_plan_says(
    servers: list[tuple[str, int, int]],
) -> None:
    made = []
    for index, (state, clones_in, clones_out) in enumerate(servers):
        made.append(server(index, state=state))
        made[-1].transfers.clones_in, made[-1].transfers.clones_out = clones_in, clones_out
    placeable = [each for each in made if each.state == LIVE]
    slots = free_slots(made, placeable, LIMITS)
    fits = []
    for bits in range(1 << len(made)):
        holders = [each for each in made if bits >> each.index & 1]
        fit = slots.may_fit([each.index for each in holders])
        assert fit == (plan(holders, placeable) is not None)
        fits.append(fit)
    assert slots.can_pair == any(fits)


def test_small_chunks_join_an_order_between_two_servers() -> None:
    a, b, c, d = server(0, "x"), server(1, "x"), server(2, "x"), server(3, "y")
    placeable, nobody = [a, b, c, d], (lambda each: False)
    order = [Clone(1, 1, d, (a, b))]
    chunk = (2, 7, 1_000)
    assert join(*chunk, [a, b], [order], placeable, nobody) is order[1]
    assert order[1] == Clone(2, 7, d, (a,), length=1_000, joined=True)
    assert not join(*chunk, [b], [order], placeable, nobody), "its source has none"
    assert not join(*chunk, [a, d], [order], placeable, nobody), "its target has one"
    assert not join(*chunk, [a, b], [order], placeable, lambda each: each is d)
    same_rack = [Clone(1, 1, c, (a,))]
    assert not join(*chunk, [a], [same_rack], placeable, nobody), "another rack is better"
    assert join(*chunk, [a], [same_rack], [a, b, c], nobody), "there is none"
    full = order * CLONES_MAX
    assert not join(*chunk, [a, b], [full], placeable, nobody)


def test_an_order_of_many_takes_one_slot() -> None:
    queue = RepairQueue()
    target, source = server(0), server(1)
    order = [Clone(n, 1, target, (source,), joined=n > 0) for n in range(5)]
    for clone in order:
        queue.update(clone.handle, 1, 3)
        queue.started(clone)
    assert (target.transfers.clones_in, source.transfers.clones_out, queue.orders) == (1, 1, 1)
    assert (len(queue.active), queue.queued) == (5, 0)
    for clone in order:
        queue.ended(clone, 0.0, failed=clone.handle == 3)
    assert (target.transfers.clones_in, source.transfers.clones_out, queue.orders) == (0, 0, 0)
    assert sorted(drain(queue)) == [0, 1, 2, 4]


def test_a_rate_is_of_what_ended_lately() -> None:
    rate = Rate()
    assert rate.per_second(0.0) == (0.0, 0.0)
    rate.add(0.0, 4, 100)
    rate.add(2.0, 4, 100)
    assert rate.per_second(4.0) == (2.0, 50.0)
    assert rate.per_second(1.0 + RATE_SECONDS) == (4 / (RATE_SECONDS - 1), 100 / (RATE_SECONDS - 1))
    assert rate.per_second(3.0 + RATE_SECONDS) == (0.0, 0.0)

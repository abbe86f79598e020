"""When damaged replicas are put together, where, and when that is tried again."""

from __future__ import annotations

import random

import pytest

from gfs.master.metadata.rows import Chunk
from gfs.master.rules.salvage import plan_salvage
from gfs.master.rules.source_and_target import Limits
from gfs.master.tables.repair_queue import Clone
from gfs.master.tables.salvage_queue import (
    BACKOFF_SECONDS,
    BACKOFF_SECONDS_MAX,
    HOPELESS_SECONDS,
    ROUND_MAX,
    SalvageQueue,
)
from gfs.master.tables.servers import LIVE, Server
from gfs.protocol.messages import Disk

THREE = frozenset({1, 2, 3})


def server(index: int) -> Server:
    made = Server(index, f"s{index}", f"host:{index}", "r", 0.0, state=LIVE)
    made.registration.is_complete = True
    made.set_disks([Disk("/d", 1000, 500, 0)])
    return made


def plan(sources: list[Server], placeable: list[Server]) -> Clone | None:
    row = Chunk(7, 7, 1234, 1, 3)
    return plan_salvage(5, row, sources, placeable, Limits(2, 64), random.Random(1))


def test_what_is_damaged_stays_where_it_is_if_there_is_another_server() -> None:
    damaged, other = [server(1), server(2)], server(3)
    clone = plan(damaged, [*damaged, other])
    assert (clone.handle, clone.version, clone.length, clone.salvage) == (5, 7, 1234, True)
    assert clone.target is other
    assert set(clone.sources) == set(damaged)
    in_place = plan(damaged, damaged)
    assert in_place.target in damaged


@pytest.mark.parametrize("busy", ["clones_in", "clones_out"])
def test_busy_servers_are_spared(busy: str) -> None:
    damaged = [server(1), server(2)]
    for each in damaged:
        setattr(each.transfers, busy, 2)
    assert plan(damaged, damaged) is None
    setattr(damaged[1].transfers, busy, 1)
    clone = plan(damaged, damaged)
    assert damaged[1] in (clone.target, clone.sources[0])


def test_a_verdict_holds_until_another_server_has_something_of_it() -> None:
    queue = SalvageQueue()
    queue.add(1)
    assert queue.is_due(1, THREE, 0.0)
    assert queue.is_pending(1)
    queue.failed(1, THREE, 0.0, hopeless=True)
    assert not queue.is_due(1, THREE, HOPELESS_SECONDS - 1)
    assert (queue.hopeless, queue.is_pending(1)) == (1, False)
    assert queue.is_due(1, THREE, HOPELESS_SECONDS)
    assert queue.is_due(1, THREE | {4}, 1.0)
    queue.forget(1)
    assert (queue.hopeless, queue.is_pending(1)) == (0, False)
    assert queue.is_due(1, THREE, 1.0)


def test_what_was_no_verdict_is_tried_again_soon_and_ever_later() -> None:
    queue = SalvageQueue()
    queue.add(1)
    wait = BACKOFF_SECONDS
    for _ in range(20):
        queue.failed(1, THREE, 100.0, hopeless=False)
        assert queue.is_pending(1)
        assert not queue.is_due(1, THREE, 100.0 + wait - 0.1)
        assert queue.is_due(1, THREE, 100.0 + wait)
        wait = min(2 * wait, BACKOFF_SECONDS_MAX)


def test_all_have_their_turn() -> None:
    queue = SalvageQueue()
    for handle in range(ROUND_MAX + 50):
        queue.add(handle)
    for _ in range(2):  # and again
        assert {*queue.round(), *queue.round()} == set(range(ROUND_MAX + 50))

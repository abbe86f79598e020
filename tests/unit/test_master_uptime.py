"""The time that masters lived through, over their deaths, promotions and upgrades."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gfs.master.metadata import operation_log
from gfs.master.metadata.operations import (
    Deleted,
    DirectoriesMade,
    FilePublished,
    Operation,
    TimePassed,
)
from gfs.master.metadata.rows import ROOT_INODE
from gfs.master.metadata.store import Store, Txn, open_store
from gfs.master.metadata.trash import deleted_at, oldest
from gfs.master.metadata.uptime import NOTE_NS, SECOND_NS, Uptime

DAY_NS = 86_400 * SECOND_NS
#: When all of this begins, by a clock that is right.
T = 20_000 * DAY_NS


def clock_at(seconds: float) -> Any:
    made = SimpleNamespace(seconds=seconds, wall_ns=T)
    made.monotonic = made.elapsed = lambda: made.seconds
    made.time_ns = lambda: made.wall_ns
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(str(tmp_path), 1 << 24, False, "feed", 7)
    yield made
    made.close()


def carry_out(
    store: Store, operation: Operation, time_ns: int, lived: Uptime | None = None
) -> None:
    """As a committer does; without ``lived`` as one did that did not count."""

    def work(txn: Txn) -> None:
        if lived is not None:
            txn.lived_ns = lived.now_ns()
        operation_log.carry_out(txn, time_ns, "", 0, operation, operation_log.chain(txn))

    store.commit(work)


def test_each_master_goes_on_from_what_is_in_the_log(store: Store) -> None:
    clock = clock_at(5.0)
    first = Uptime(clock, store)
    assert first.now_ns() == T
    clock.seconds += 100
    carry_out(store, DirectoriesMade(0, []), 0, first)
    clock.seconds += 7  # of this nothing is known, when it dies
    for jump_days in (30, -60, 0):
        clock.wall_ns += jump_days * DAY_NS
        clock.seconds = 1_000.0 + jump_days  # another machine's, or boot's
        later = Uptime(clock, store)
        assert later.now_ns() == T + 100 * SECOND_NS
    clock.seconds += 5
    assert later.now_ns() == T + 105 * SECOND_NS
    assert later.wall_ns(T + 110 * SECOND_NS) == clock.wall_ns + 5 * SECOND_NS


def test_what_was_deleted_before_it_was_counted_keeps_its_time(store: Store) -> None:
    """Also where the first master that counts starts with a clock that is days off."""
    clock = clock_at(5.0)
    published = FilePublished(T - 9, [], ROOT_INODE, b"f", 2, 0, 3, 0, "/f", [])
    carry_out(store, published, T - 9)
    carry_out(store, Deleted(T, ROOT_INODE, b"f", 2, "/f", T + 3 * DAY_NS), T)
    clock.wall_ns = T + 10 * DAY_NS
    lived = Uptime(clock, store)
    assert lived.now_ns() == T
    with store.read() as txn:
        assert oldest(txn, lived.now_ns()) == (T, T + 3 * DAY_NS)
        assert [found.due_ns for found in deleted_at(txn, "/f")] == [T + 3 * DAY_NS]
    assert lived.wall_ns(T + 3 * DAY_NS) == T + 13 * DAY_NS


def test_a_master_that_has_nothing_to_log_notes_the_time(store: Store) -> None:
    """At most half of its life, and a minute, is not counted when it dies; and an idle one
    writes once a minute."""
    clock = clock_at(5.0)
    lived = Uptime(clock, store)
    carry_out(store, DirectoriesMade(0, []), 0, lived)
    notes = []
    for half_seconds in range(2 * 3600):
        with store.read() as txn:
            txn.lived_ns = lived.now_ns()
            if lived.to_be_noted(txn) is not None:
                notes.append(half_seconds / 2)
                carry_out(store, TimePassed(), 0, lived)
            lost = lived.now_ns() - store.state.lived_ns
            assert lost <= min(NOTE_NS, max(SECOND_NS, half_seconds * SECOND_NS // 4))
        clock.seconds += 0.5
    assert notes[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert len(notes) <= 66

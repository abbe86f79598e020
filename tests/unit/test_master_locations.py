"""Locations, reservations and garbage, without a master around them."""

from __future__ import annotations

import pytest

from gfs.errors import Busy, InvalidArgument
from gfs.master.replicas import garbage as garbage_module
from gfs.master.replicas.garbage import CORRUPT, FORGETFUL, ORPHANED, STALE, GarbageTable
from gfs.master.replicas.locations import LocationTable, Reservation, ReservationTable


def anything(handle: int, version: int) -> bool:
    return False


def test_locations_are_counted_and_shared() -> None:
    table = LocationTable()
    assert table.add(1, 5, 1)
    assert not table.add(1, 5, 1)
    table.add(1, 3, 1)
    table.add(2, 3, 1)
    table.add(2, 5, 1)
    assert table.get(1) == (3, 5)
    assert table.get(1) is table.get(2)
    assert table.counts == {3: 2, 5: 2}
    assert table.replace(1, [5, 7], 1) == (3,)
    assert table.get(1) == (5, 7)
    assert table.remove(1, 5)
    assert not table.remove(1, 5)
    assert table.pop(1) == (7,)
    assert table.remove(2, 3)
    assert table.remove(2, 5)
    assert (len(table), table.handles(), table.get(9)) == (0, [], ())
    assert set(table.counts.values()) == {0}


def test_all_locations_of_a_chunk_are_of_one_version() -> None:
    table = LocationTable()
    assert (table.version(1), table.get(1)) == (0, ())
    table.replace(1, [3, 5], 2)
    assert table.add(1, 7, 3)
    assert (table.version(1), table.get(1)) == (3, (7,))
    assert not table.add(1, 3, 2)
    assert table.replace(1, [3], 2) == (7,)
    assert (table.version(1), table.get(1)) == (2, (3,))
    assert table.counts == {3: 1, 5: 0, 7: 0}


def test_handles_are_handed_out_once_and_within_the_range() -> None:
    table = ReservationTable(100, 102)
    assert [table.new_handle(), table.new_handle()] == [100, 101]
    with pytest.raises(Busy):
        table.new_handle()
    table.handle_end = 103
    assert table.new_handle() == 102
    table.check_handle(5)
    for never in (0, -1, 103, 2**70):
        with pytest.raises(InvalidArgument):
            table.check_handle(never)


def test_reservations_live_while_their_client_does() -> None:
    table = ReservationTable(1, 100)
    table.put(1, Reservation(1, (0,), "a", 3), now=0.0)
    table.put(2, Reservation(1, (0,), "a", 3), now=0.0)
    table.put(3, Reservation(1, (0,), "b", 3), now=0.0)
    table.heard("b", 50.0)
    table.heard("nobody", 50.0)
    assert sorted(table.expired(60.0, 60.0)) == [1, 2]
    table.forgive(5.0)
    assert table.expired(60.0, 60.0) == []
    for handle in (1, 2, 3):
        assert table.pop(handle) is not None
    assert table.pop(3) is None
    assert table.expired(10**6, 60.0) == []


def test_orphans_get_a_grace_and_given_up_ones_do_not() -> None:
    table = GarbageTable(60.0)
    table.orphan(0, 1, 1, now=0.0)
    table.orphan(0, 1, 1, now=50.0)
    table.give_up(0, 2, 4, now=50.0)
    assert table.orders(0, 59.0, anything) == [(2, 4)]
    assert table.orders(0, 60.0, anything) == [(1, 1)]
    assert table.orders(0, 61.0, anything) == []
    assert table.orders(1, 61.0, anything) == []
    assert set(table.counts.values()) == {0}
    assert not table.replicas


def test_what_was_ordered_is_old_news_until_the_answer() -> None:
    table = GarbageTable(60.0)
    table.give_up(0, 1, 4, now=0.0)
    assert table.orders(0, 0.0, anything) == [(1, 4)]
    assert table.is_ordered(0, 1, 4, 1.0)
    assert not table.is_ordered(0, 1, 5, 1.0)
    assert not table.is_ordered(1, 1, 4, 1.0)
    assert table.was_ordered(0, 1, 1.0)
    table.answered(0)
    assert not table.was_ordered(0, 1, 1.0)


def test_a_new_version_starts_the_grace_anew() -> None:
    table = GarbageTable(60.0)
    table.orphan(0, 1, 1, now=0.0)
    table.orphan(0, 1, 2, now=30.0)
    assert table.orders(0, 60.0, anything) == []
    assert table.orders(0, 90.0, anything) == [(1, 2)]


def test_held_replicas_wait_for_their_release() -> None:
    table = GarbageTable(60.0)
    table.hold(0, 1, 1, STALE, now=0.0)
    table.hold(1, 1, 2, CORRUPT, now=0.0)
    assert table.counts == {ORPHANED: 0, STALE: 1, CORRUPT: 1, FORGETFUL: 0}
    assert table.orders(0, 1000.0, anything) == []
    table.release(1, STALE)
    assert table.orders(1, 1000.0, anything) == []
    assert table.orders(0, 1000.0, anything) == [(1, 1)]
    table.release(1, CORRUPT)
    assert table.orders(1, 1000.0, lambda handle, version: True) == []
    assert table.at(1, 1) is not None, "refused: it is held again"
    table.release(1, CORRUPT)
    assert table.orders(1, 1000.0, anything) == [(1, 2)]


def test_a_refused_orphan_is_none() -> None:
    table = GarbageTable(0.0)
    table.orphan(0, 1, 1, now=0.0)
    assert table.orders(0, 1.0, lambda handle, version: True) == []
    assert not table.replicas


def test_doomed_chunks_get_no_grace_wherever_they_turn_up() -> None:
    table = GarbageTable(60.0)
    table.orphan(0, 1, 1, now=0.0)
    table.schedule(1, now=0.0)
    table.orphan(1, 1, 1, now=1.0)
    assert table.orders(0, 1.0, anything) == [(1, 1)]
    assert table.orders(1, 1.0, anything) == [(1, 1)]
    table.expire(10**6)
    assert not table.is_scheduled(1)


def test_orders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage_module, "ORDERS_MAX", 10)
    table = GarbageTable(1.0)
    for handle in range(25):
        table.orphan(0, handle, 1, now=0.0)
    counts = [len(table.orders(0, 2.0, anything)) for _ in range(4)]
    assert counts == [10, 10, 5, 0]


def test_an_order_that_is_never_answered_is_no_backlog_for_ever() -> None:
    table = GarbageTable(1.0)
    for version, now in ((1, 0.0), (2, 60.0)):
        table.give_up(0, 1, version, now, length=5000 * version)
        assert table.orders(0, now, anything) == [(1, version)]
    for now, count in ((149.0, 1), (150.0, 0)):
        table.expire(now)
        assert table.leaving_bytes(0) == 16_384 * count  # three pages, and the head's
        assert table.backlog == (count, 16_384 * count)
        assert table.is_ordered(0, 1, 2, now) == bool(count)


def test_a_dead_server_s_garbage_is_forgotten() -> None:
    table = GarbageTable(1.0)
    table.orphan(0, 1, 1, now=0.0)
    table.orphan(1, 1, 1, now=0.0)
    table.forget_server(0)
    assert table.counts[ORPHANED] == 1
    assert table.orders(0, 2.0, anything) == []
    assert table.orders(1, 2.0, anything) == [(1, 1)]


def test_pages_of_garbage_hold_whole_chunks() -> None:
    table = GarbageTable(1.0)
    for handle in range(1, 8):
        for server in range(3):
            table.orphan(server, handle, 1, now=0.0)
    seen, after, more = [], 0, True
    while more:
        page, more = table.page(after, 4)
        seen += [(handle, server) for handle, server, _ in page]
        after = page[-1][0]
    assert seen == [(handle, server) for handle in range(1, 8) for server in range(3)]

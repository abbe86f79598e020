"""Locations, reservations and garbage, without a master around them."""

from __future__ import annotations

import random
import tracemalloc
from itertools import chain

import pytest

from gfs.errors import Busy, InvalidArgument
from gfs.master.metadata.number_set import NumberSet
from gfs.master.tables import garbage as garbage_module
from gfs.master.tables import locations
from gfs.master.tables.garbage import CORRUPT, FORGETFUL, ORPHANED, STALE, GarbageTable
from gfs.master.tables.locations import PAGE, Located, LocationTable
from gfs.master.tables.reservations import Reservation, ReservationTable


def anything(handle: int, version: int) -> bool:
    return False


def handles(table: LocationTable, server: int | None = None) -> set[int]:
    return set(chain.from_iterable(table.slices(100, server)))


def test_who_ends_watching_takes_no_other_along() -> None:
    table = LocationTable()
    one: dict[int, None] = {}
    other: dict[int, None] = {}
    table.watchers += [one, other]
    table.unwatch(other)
    table.add(1, 5, 1)
    assert (one, other) == ({1: None}, {})
    table.unwatch(one)
    table.add(2, 5, 1)
    assert one == {1: None}


def test_the_tables_of_handles_are_like_dicts_and_sets_of_them() -> None:
    table, reported = LocationTable(), NumberSet()
    model: dict[int, tuple[int, set[int]]] = {}
    members: set[int] = set()
    chance = random.Random(7)
    for _ in range(20_000):
        handle = chance.choice((chance.randrange(300), 2**40 + chance.randrange(10)))
        server, version = chance.randrange(4), chance.randrange(1, 3)
        known = model.get(handle, (0, set()))
        action = chance.randrange(6)
        if action == 0:
            is_new = version > known[0] or (version == known[0] and server not in known[1])
            assert table.add(handle, server, version) == is_new
            if is_new:
                kept = known[1] if version == known[0] else set()
                model[handle] = version, kept | {server}
            reported.add(handle)
            members.add(handle)
        elif action == 4:
            some = {chance.randrange(4) for _ in range(chance.randrange(4))}
            before = known[1] if version == known[0] else set()
            news = some - before if version >= known[0] else set()
            assert set(table.add_all(handle, some, version)) == news
            if news:
                model[handle] = version, before | some
        elif action == 1:
            assert table.remove(handle, server) == (server in known[1])
            known[1].discard(server)
            if not known[1]:
                model.pop(handle, None)
        elif action == 2:
            assert set(table.pop(handle)) == known[1]
            model.pop(handle, None)
        elif action == 3:
            holders = sorted(chance.sample(range(4), chance.randrange(1, 4)))
            assert set(table.replace(handle, holders, version)) == known[1] - {*holders}
            model[handle] = version, {*holders}
        else:
            reported.discard(handle)
            members.discard(handle)
        assert (handle in reported) == (handle in members)
        known = model.get(handle, (0, set()))
        assert (table.version(handle), set(table.get(handle))) == known
    assert (len(table), len(reported)) == (len(model), len(members))
    assert handles(table) == set(model)
    for server in range(4):
        at = {handle for handle, (_, holders) in model.items() if server in holders}
        assert handles(table, server) == at
        assert table.counts[server] == len(at)


def test_a_chunk_takes_little_memory_and_gives_it_back() -> None:
    many = range(1_000_000, 1_050_000)
    tracemalloc.start()
    try:
        table, reported = LocationTable(), NumberSet()
        for handle in many:
            for server in range(3):
                table.add(handle, server, 1)
            reported.add(handle)
        taken, _ = tracemalloc.get_traced_memory()
        assert taken < 16 * len(many)
        for handle in many:
            table.pop(handle)
            reported.discard(handle)
        left, _ = tracemalloc.get_traced_memory()
        assert left < taken / 4
    finally:
        tracemalloc.stop()


def test_combinations_of_servers_that_no_chunk_has_are_forgotten() -> None:
    table = LocationTable()
    for version in range(1, 1_000):
        table.add(1, 0, version)
    assert len(table._located) < 5


def test_single_files_go_the_remembered_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no chunk has a part of its servers for long."""
    made = []

    def noted(version: int, holders: tuple[int, ...]) -> Located:
        made.append(holders)
        return Located(version, holders)

    monkeypatch.setattr(locations, "Located", noted)
    table = LocationTable()
    for handle in range(1, 1_000):
        for server in (5, 3, 7):
            table.add(handle, server, 1)
        assert table.get(handle) == (3, 5, 7)
    assert len(made) < 10


def test_no_slice_looks_at_more_than_a_bounded_number_of_chunks() -> None:
    table = LocationTable()
    for handle in range(10_000):
        table.add(handle, handle >= 9_000, 1)
    assert max(map(len, table.slices(500))) < 500 + PAGE
    slices = list(table.slices(500, 1))
    assert len(slices) >= 10_000 // (500 + PAGE)
    assert sum(map(len, slices)) == 1_000


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


def test_a_replica_that_was_lost_does_not_count_for_its_reservation() -> None:
    table = ReservationTable(1, 100)
    table.put(1, Reservation(1, (0, 1, 2), "a", 3), now=0.0)
    table.doubt(1, NumberSet())
    for server in (1, 2, 7):
        table.lost(1, server)
    table.lost(2, 1)
    found = table.get(1)
    assert (found.doubted, found.absent) == (frozenset(), {1, 2})


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


def test_an_ordered_deletion_counts_as_ordered_until_the_answer() -> None:
    table = GarbageTable(60.0)
    table.give_up(0, 1, 4, now=0.0)
    assert table.orders(0, 0.0, anything) == [(1, 4)]
    assert table.is_ordered(0, 1, 4, 1.0)
    assert not table.is_ordered(0, 1, 5, 1.0)
    assert not table.is_ordered(1, 1, 4, 1.0)
    assert table.was_ordered(0, 1, 1.0)
    table.answered(0)
    assert not table.was_ordered(0, 1, 1.0)


def test_a_new_version_starts_the_grace_again() -> None:
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


def test_a_refused_orphan_is_kept() -> None:
    table = GarbageTable(0.0)
    table.orphan(0, 1, 1, now=0.0)
    assert table.orders(0, 1.0, lambda handle, version: True) == []
    assert not table.replicas


def test_chunks_scheduled_for_deletion_get_no_grace_wherever_they_appear() -> None:
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


def test_an_order_that_is_never_answered_leaves_the_backlog_in_the_end() -> None:
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

"""The chain of the operation log, copies of a store, and what must be noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from descriptors import none_left
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gfs.master.metadata import operation_log, terms
from gfs.master.metadata.operation_log import Diverged
from gfs.master.metadata.operations import (
    CorruptionFound,
    DirectoriesMade,
    HandlesReserved,
    NewDirectory,
    Operation,
    ServerForgotten,
    ServerRemembered,
    TermBegun,
)
from gfs.master.metadata.rows import answer_key, pack_u64
from gfs.master.metadata.store import Standing, Store, Txn, open_only, open_store
from gfs.master.shadows import store_copy
from gfs.master.shadows.log_receiver import check_counters
from gfs.master.shadows.store_copy import Ending

MAP_BYTES = 1 << 26


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "one"), MAP_BYTES, False, "feed", 7)
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "other"), MAP_BYTES, False, "feed", 7)
    yield opened
    opened.close()


def directory(inode: int) -> DirectoriesMade:
    return DirectoriesMade(5, [NewDirectory(1, f"d{inode}".encode(), inode)])


def log(store: Store, *operations: Operation, client: str = "") -> None:
    def work(txn: Txn) -> None:
        chain = operation_log.chain(txn)
        for operation in operations:
            chain = operation_log.carry_out(txn, 9, client, txn.state.sequence, operation, chain)
            if client:
                key = answer_key(client, txn.state.sequence - 1)
                txn.put(key, b"answer", txn.db.answers)

    store.commit(work)


def follow(follower: Store, leader: Store) -> None:
    def work(txn: Txn) -> None:
        chain = operation_log.chain(txn)
        with leader.snapshot() as source:
            for row, answer in operation_log.read(source, txn.state.sequence + 1, 1 << 20):
                chain = operation_log.replay(txn, row, answer, chain)

    follower.commit(work)


def rows(store: Store) -> list[tuple[str, bytes, bytes]]:
    with store.read() as txn:
        return [
            (name, key, value)
            for name in store_copy.COPIED
            for key, value in txn.scan(b"", getattr(txn.db, name))
        ]


MIXED: tuple[Operation, ...] = (
    directory(2),
    ServerRemembered("s1", "a:1", "r"),
    CorruptionFound(7, 1),
    ServerRemembered("s2", "a:2", "r"),
    HandlesReserved(30_001),
    ServerForgotten("s1"),
    directory(3),
    TermBegun(8, terms.next_term(0, 5)),
)


def test_all_of_the_store_comes_from_the_log(store: Store, other: Store) -> None:
    log(store, *MIXED, client="c")
    follow(other, store)
    assert rows(other) == rows(store)
    check_counters(other.state, msgspec.msgpack.encode(store.state))
    with store.snapshot() as ours, other.snapshot() as theirs:
        assert operation_log.chain(ours) == operation_log.chain(theirs) != 0
    assert set(other.known_servers()) == {"s2"}
    assert other.state.corruptions == 1


def test_a_row_of_another_history_is_refused(store: Store, other: Store) -> None:
    log(store, directory(2), directory(3))
    log(other, directory(2), CorruptionFound(1, 1))
    log(store, directory(4))
    before = rows(other)
    with pytest.raises(Diverged, match="belongs to another history"):
        follow(other, store)
    assert rows(other) == before


def test_counters_that_differ_are_noticed(store: Store, other: Store) -> None:
    """The log is the same, and what it was applied to is not."""
    log(store, directory(2))
    follow(other, store)

    def spoil(txn: Txn) -> None:
        txn.state.files += 1

    other.commit(spoil)
    with pytest.raises(Diverged, match="counters"):
        check_counters(other.state, msgspec.msgpack.encode(store.state))


def test_an_operation_that_does_not_fit_is_refused(store: Store, other: Store) -> None:
    log(store, directory(2))
    follow(other, store)

    def spoil(txn: Txn) -> None:
        txn.state.next_inode = 100

    other.commit(spoil)
    log(store, directory(3))
    with pytest.raises(Diverged, match="cannot be applied"):
        follow(other, store)


@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_row_is_refused(store: Store, other: Store, data: st.DataObject) -> None:
    """A flipped bit in any row but the last breaks the chain."""
    if not store.state.sequence:
        log(store, *MIXED)
    with store.read() as txn:
        sent = operation_log.read(txn, 1, 1 << 20)
    at = data.draw(st.integers(0, len(sent) - 2))
    row = bytearray(sent[at][0])
    bit = data.draw(st.integers(0, 8 * len(row) - 1))
    row[bit // 8] ^= 1 << bit % 8

    def work(txn: Txn) -> None:
        chain = operation_log.chain(txn)
        for number, (good, answer) in enumerate(sent):
            chain = operation_log.replay(txn, bytes(row) if number == at else good, answer, chain)

    with pytest.raises(Diverged):
        other.commit(work)
    assert not other.state.sequence


def test_the_log_is_read_in_pages(store: Store) -> None:
    log(store, *[directory(inode) for inode in range(2, 102)])
    with store.read() as txn:
        pages = []
        at = 1
        while page := operation_log.read(txn, at, 200):
            pages.append(page)
            at += len(page)
    assert at == 101
    assert all(sum(len(row) for row, _ in page[:-1]) < 200 for page in pages)
    assert 1 < len(pages) < 100


def copy_to(path: Path, leader: Store, spoil: bool = False) -> Store:
    copy = open_only(str(path), MAP_BYTES, False)
    with leader.snapshot() as txn:
        state = msgspec.msgpack.encode(txn.state)
        for piece in store_copy.pieces(txn):
            if isinstance(piece, Ending):
                store_copy.finish(copy, piece.sums, leader.cluster, state)
            else:
                body = piece.body.replace(b"d50", b"d5!") if spoil else piece.body
                store_copy.write(copy, piece.database, [body])
    return copy


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_a_copy_is_the_same_in_every_row(store: Store, tmp_path: Path, count: int) -> None:
    for start in range(2, count + 2, 500):
        log(store, *[directory(n) for n in range(start, min(start + 500, count + 2))], client="c")
    copy = copy_to(tmp_path / "copy", store)
    assert rows(copy) == rows(store)
    assert (copy.state, copy.cluster) == (store.state, "feed")
    log(store, CorruptionFound(1, 1))
    follow(copy, store)
    assert rows(copy) == rows(store)
    copy.close()


def test_a_copy_with_a_wrong_row_is_refused(store: Store, tmp_path: Path) -> None:
    log(store, *[directory(inode) for inode in range(2, 100)])
    with pytest.raises(ValueError, match="differs from what was sent"):
        copy_to(tmp_path / "copy", store, spoil=True)


def test_rows_that_no_master_sends_are_refused(tmp_path: Path) -> None:
    copy = open_only(str(tmp_path / "copy"), MAP_BYTES, False)
    encode = msgspec.msgpack.encode
    with pytest.raises(ValueError, match="no database"):
        store_copy.write(copy, "meta", [encode([b"a", b"b"])])
    with pytest.raises(ValueError, match="out of order"):
        store_copy.write(copy, "inodes", [encode([b"b", b"1", b"a", b"2"])])
    with pytest.raises(ValueError, match="without a value"):
        store_copy.write(copy, "inodes", [encode([b"b"])])
    copy.close()


def test_a_copy_takes_the_place_of_a_store(store: Store, tmp_path: Path) -> None:
    """What was there is kept beside it, if it was a master's."""
    log(store, directory(2))
    directory_path = tmp_path / "shadow"
    with none_left():
        old = open_store(str(directory_path), MAP_BYTES, False, "feed", 7)
        log(old, directory(2), directory(3))
        copy = copy_to(directory_path / "incoming", store)
        copy.set_standing(Standing(follows=["a:1"]))
        copy.close()
        old.swap_in(str(directory_path / "incoming"), "data.mdb.kept")
        assert rows(old) == rows(store)
        assert old.standing.follows == ["a:1"]
        old.close()
    again = open_only(str(directory_path), MAP_BYTES, False)
    assert again.standing.follows == ["a:1"]
    assert again.state.sequence == 1
    again.close()
    (tmp_path / "kept").mkdir()
    (directory_path / "data.mdb.kept").rename(tmp_path / "kept" / "data.mdb")
    kept = open_only(str(tmp_path / "kept"), MAP_BYTES, False)
    assert kept.state.sequence == 2
    with kept.read() as txn:
        assert txn.get(pack_u64(3), None, txn.db.inodes) is not None
    kept.close()

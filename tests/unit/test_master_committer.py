"""Group commit: answers, retries, bugs, a full disk; and the store beneath."""

from __future__ import annotations

import errno
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest
import trio
from limits import HANG_SECONDS

from gfs.errors import AlreadyExists, Busy, DiskFailed, DiskFull, GfsError, StartupError
from gfs.io import World, real_world
from gfs.master.metadata import committer as committer_module
from gfs.master.metadata import lookups
from gfs.master.metadata import store as store_module
from gfs.master.metadata.committer import Committer, Outcome, Plan, trim
from gfs.master.metadata.namespace import Planned, plan_delete, plan_make_directory, plan_publish
from gfs.master.metadata.operations import NewChunk, Reclaimed
from gfs.master.metadata.rows import unpack_u64
from gfs.master.metadata.store import HANDLE_RANGE, Store, Txn, open_store
from gfs.protocol.messages import Delete, Done, MakeDirectory, Publish, PublishReply, StatReply

WORLD = real_world()
MAP_BYTES = 1 << 28


def open_at(path: Path, map_bytes: int = MAP_BYTES) -> Store:
    return open_store(str(path / "metadata"), map_bytes, False, "feed", 7)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_at(tmp_path)
    yield opened
    opened.close()


@asynccontextmanager
async def running(
    store: Store, world: World = WORLD
) -> AsyncIterator[tuple[Committer, list[tuple[int, int]]]]:
    freed: list[tuple[int, int]] = []
    made = Committer(world, store, 120.0, lambda effects: freed.extend(effects.freed))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made, freed
        nursery.cancel_scope.cancel()


def mkdir(path: str) -> Plan:
    return lambda txn: plan_make_directory(
        txn, MakeDirectory(0, "", 0, path, False, False), time_ns=5
    )


def publish(path: str, handle: int) -> Plan:
    request = Publish(0, "c", 0, path, 1, 3, False, True, [])
    return lambda txn: plan_publish(txn, request, [NewChunk(handle, 1, 1)], 3, 5)


class Answers:
    def __init__(self, count: int) -> None:
        self.count = count
        self.got: list[Outcome] = []
        self.all = trio.Event()

    def __call__(self, outcome: Outcome) -> None:
        self.got.append(outcome)
        if len(self.got) == self.count:
            self.all.set()

    async def wait(self) -> list[Outcome]:
        with trio.fail_after(HANG_SECONDS):
            await self.all.wait()
        return self.got


async def test_what_waits_is_committed_together(store: Store) -> None:
    commits = []
    commit = store.commit
    store.commit = lambda work: (commits.append(1), commit(work))[1]  # type: ignore[method-assign]
    async with running(store) as (committer, _):
        answers = Answers(500)
        for number in range(500):
            committer.submit("c", number, mkdir(f"/d{number}"), answers)
        assert all(isinstance(outcome, StatReply) for outcome in await answers.wait())
    assert len(commits) <= 2
    assert store.state.directories == 500
    assert committer.sequence == 500


async def test_a_refused_mutation_leaves_the_others_alone(store: Store) -> None:
    async with running(store) as (committer, _):
        answers = Answers(3)
        for number, path in enumerate(["/a", "/a", "/b"]):
            committer.submit("c", number, mkdir(path), answers)
        got = await answers.wait()
    assert [type(outcome) for outcome in got] == [StatReply, AlreadyExists, StatReply]
    assert store.state.sequence == 2


async def test_a_retry_joins_the_first_while_that_waits(store: Store) -> None:
    async with running(store) as (committer, _):
        answers = Answers(3)
        for _ in range(3):
            committer.submit("c", 1, mkdir("/a"), answers)
        assert [type(outcome) for outcome in await answers.wait()] == [StatReply] * 3
    assert store.state.sequence == 1


async def test_a_retry_gets_the_same_answer_later_and_after_a_restart(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    async with running(store) as (committer, _):
        first = await committer.ask("c", 1, publish("/f", 1))
        again = await committer.ask("c", 1, publish("/f", 1))
        assert isinstance(first, PublishReply)
        assert again == first
        assert isinstance(await committer.ask("c", 2, publish("/f", 2)), AlreadyExists)
        assert isinstance(await committer.ask("d", 1, publish("/g", 3)), PublishReply)
        with store.read() as txn:
            assert not committer.join(txn, "c", 7, lambda _: None)
    store.close()
    store = open_at(tmp_path)
    async with running(store) as (committer, _):
        answers = Answers(1)
        with store.read() as txn:
            assert committer.join(txn, "c", 1, answers)
        assert await answers.wait() == [first]
        # Errors are not remembered: the retry finds the name free by now.
        delete = Delete(0, "c", 3, "/f", False)
        await committer.ask("c", 3, lambda txn: plan_delete(txn, delete, 6))
        assert isinstance(await committer.ask("c", 2, publish("/f", 2)), PublishReply)
    store.close()


async def test_a_bug_costs_only_its_own_request(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(txn: Txn) -> Planned:
        txn.put(b"half a mutation", b"", txn.db.entries)
        raise KeyError("a bug")

    async with running(store) as (committer, _):
        answers = Answers(3)
        committer.submit("c", 1, mkdir("/a"), answers)
        committer.submit("c", 2, buggy, answers)
        committer.submit("c", 3, mkdir("/b"), answers)
        got = await answers.wait()
        assert [getattr(outcome, "code", "fine") for outcome in got] == ["fine", "internal", "fine"]
    with store.read() as txn:
        assert txn.get(b"half a mutation", None, txn.db.entries) is None
        assert lookups.stat(txn, "/b").kind == "directory"
    assert "a mutation failed because of a bug" in caplog.text


async def test_a_full_disk_is_a_state_that_passes(tmp_path: Path) -> None:
    store = open_at(tmp_path, map_bytes=512 * 1024)
    numbers = itertools.count(1)
    async with running(store) as (committer, freed):
        paths = []
        outcome: Outcome = Done(id=0)
        while not isinstance(outcome, GfsError):
            number = next(numbers)
            outcome = await committer.ask("c", number, publish(f"/f{number}", number))
            paths.append(f"/f{number}")
        assert isinstance(outcome, DiskFull)
        with store.read() as txn:
            assert lookups.stat(txn, paths[0]).length == 1
            with pytest.raises(GfsError, match="no such file"):
                lookups.stat(txn, paths[-1])
        store._environment.set_mapsize(1024 * 1024)  # somebody made room
        number = next(numbers)
        outcome = await committer.ask("c", number, publish("/again", number))
        assert isinstance(outcome, PublishReply)
        assert freed == []
    store.close()


async def test_freed_chunks_are_announced_after_the_commit(store: Store) -> None:
    async with running(store) as (committer, freed):
        await committer.ask("c", 1, publish("/f", 9))
        delete = Delete(0, "c", 2, "/f", False)
        await committer.ask("c", 2, lambda txn: plan_delete(txn, delete, 6))
        with store.read() as txn:
            ((key, _),) = txn.scan(b"", txn.db.trash)
        assert freed == []
        reclaimed = Reclaimed(unpack_u64(key[:8]), unpack_u64(key[8:]), 10)
        made = await committer.perform(lambda txn: (reclaimed, Done(id=0)))
        assert made[0] == reclaimed
        assert freed == [(9, 1, 1)]


async def test_more_than_the_bound_is_busy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "QUEUE_WEIGHT_MAX", 10)
    async with running(store) as (committer, _):
        answers = Answers(20)
        for number in range(20):
            committer.submit("c", number, mkdir(f"/{number}"), answers)
        kinds = [type(outcome) for outcome in await answers.wait()]
        assert kinds.count(Busy) == 10
        assert kinds.count(StatReply) == 10
        assert isinstance(await committer.ask("c", 21, mkdir("/later")), StatReply)


async def test_a_broken_store_ends_the_committer(store: Store) -> None:
    class Broken:
        def begin(self, write: bool = False) -> None:
            raise lmdb.PanicError("mdb_txn_begin")

        def close(self) -> None:
            environment.close()

    environment = store._environment
    committer = Committer(WORLD, store, 120.0, lambda _: None)
    store._environment = Broken()  # type: ignore[assignment]
    committer.submit("c", 1, mkdir("/a"), lambda _: None)
    with pytest.raises(DiskFailed, match="start it again"), trio.fail_after(HANG_SECONDS):
        await committer.run()


async def test_old_answers_are_trimmed_in_pieces(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "LOG_ROWS_MIN", 10)
    seconds = itertools.count(0)

    class Clock:
        time_ns = WORLD.clock.time_ns

        def monotonic(self) -> float:
            return next(seconds)

        sleep = WORLD.clock.sleep

    async with running(store, replace(WORLD, clock=Clock())) as (committer, _):
        for number in range(300):
            await committer.ask("c", number, mkdir(f"/{number}"))
    with store.read() as txn:
        log, answers = txn.count(txn.db.operation_log), txn.count(txn.db.answers)
        first, _ = next(txn.scan(b"", txn.db.operation_log))
    # A reading of the clock per commit.
    assert 120 <= log <= 125
    assert log == answers
    assert unpack_u64(first) == 301 - log
    assert store.commit(lambda txn: trim(txn, 2**63, 5)) is None
    with store.read() as txn:
        assert txn.count(txn.db.operation_log) == log - 5
        assert txn.count(txn.db.answers) == log - 5


def test_a_store_keeps_its_cluster_and_counts_its_starts(tmp_path: Path) -> None:
    first = open_at(tmp_path)
    assert (first.cluster, first.epoch, first.state.handle_end) == ("feed", 1, 1 + HANDLE_RANGE)
    first.close()
    again = open_store(str(tmp_path / "metadata"), MAP_BYTES, True, "another", 8)
    assert (again.cluster, again.epoch) == ("feed", 2)
    assert again.state.handle_end == 1 + 2 * HANDLE_RANGE
    again.close()


def test_two_masters_do_not_share_a_store(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    with pytest.raises(StartupError, match="another master is running"):
        open_at(tmp_path)
    store.close()
    open_at(tmp_path).close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "metadata").write_text("a file")
    with pytest.raises(StartupError, match="cannot keep its metadata"):
        open_at(tmp_path)


@pytest.mark.parametrize("content", [b"x" * 8192, b"short"])
def test_files_that_are_no_store(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "data.mdb").write_bytes(content)
    with pytest.raises(StartupError, match="cannot be opened"):
        open_at(tmp_path)


def test_a_store_of_a_newer_release(tmp_path: Path) -> None:
    store = open_at(tmp_path)
    store.commit(lambda txn: txn.put(b"schema", (99).to_bytes(8, "big"), txn.db.meta))
    store.close()
    with pytest.raises(StartupError, match="format 99"):
        open_at(tmp_path)


def of_the_system(number: int) -> lmdb.Error:
    error = lmdb.Error("the call")
    error.code = number
    return error


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Failing:
    """An LMDB environment of which every call fails."""

    def __init__(self, error: lmdb.Error) -> None:
        self._error = error

    def begin(self, *_: object, **__: object) -> Any:
        raise self._error

    sync = cursor = begin


FAILURES = [
    (lmdb.MapFullError("no page"), DiskFull, "larger map_bytes"),
    (lmdb.DiskError("no room"), DiskFull, "free some space"),
    (of_the_system(errno.ENOSPC), DiskFull, "free some space"),
    (of_the_system(errno.EDQUOT), DiskFull, "free some space"),
    (of_the_system(errno.EIO), DiskFailed, "look at its disk"),
    (lmdb.PanicError("it is broken"), DiskFailed, "look at its disk"),
    (lmdb.CorruptedError("a page"), DiskFailed, "look at its disk"),
]


@pytest.mark.parametrize(("error", "kind", "advice"), FAILURES)
def test_errors_of_lmdb_are_ours_and_say_what_to_do(
    store: Store, error: lmdb.Error, kind: type[GfsError], advice: str
) -> None:
    with pytest.raises(DiskFailed, match=r"cannot be read .*look at its disk"), store.read():
        raise error
    txn = store.snapshot()
    raw, txn.raw = txn.raw, Failing(error)
    with pytest.raises(DiskFailed, match=r"cannot be read .*look at its disk"):
        next(txn.scan(b"", txn.db.meta))
    txn.raw = raw
    txn.close()
    whole, store._environment = store._environment, Failing(error)
    try:
        for call in (store.sync, lambda: store.commit(lambda txn: None)):
            with pytest.raises(kind, match=advice):
                call()
        for look in (store.read, store.snapshot, store.known_servers):
            with pytest.raises(DiskFailed, match=r"cannot be read .*look at its disk"):
                look()
    finally:
        store._environment = whole
    assert store.commit(lambda txn: 7) == 7


def test_a_write_that_found_room_for_a_part_found_a_full_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB says EIO then."""
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: Usage(1000, 999, 1))
    monkeypatch.setattr(store, "_environment", Failing(of_the_system(errno.EIO)))
    with pytest.raises(DiskFull, match="free some space"):
        store.commit(lambda txn: None)
    monkeypatch.undo()


def test_a_copy_that_cannot_be_put_in_its_place_leaves_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = tmp_path / "metadata" / "incoming"
    open_store(str(incoming), MAP_BYTES, False, "another", 8).close()

    def link(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "link", link)
    place = f"^{tmp_path}/metadata: .*No space left on device: free some space there$"
    with pytest.raises(StartupError, match=place):
        store.swap_in(str(incoming), "kept")
    monkeypatch.undo()
    store.close()
    again = open_at(tmp_path)
    assert (again.cluster, again.epoch) == ("feed", 2)
    again.close()

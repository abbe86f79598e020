"""What the master does at once does not grow with what the cluster has: steps are counted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gfs.config import MasterSettings
from gfs.errors import GfsError
from gfs.io import real_world
from gfs.master.master import Master
from gfs.master.metadata import Plan, trash
from gfs.master.metadata.namespace import Planned, plan_delete, plan_prune, plan_publish
from gfs.master.metadata.number_set import NumberSet
from gfs.master.metadata.operations import Reclaimed, directory_row
from gfs.master.metadata.rows import (
    DRAINED,
    KIND_FILE,
    Chunk,
    Inode,
    entry_key,
    pack_entry,
    pack_u64,
)
from gfs.master.metadata.store import Txn, open_store
from gfs.master.metadata.trash import SMALL
from gfs.master.replicas import SLICE
from gfs.master.replicas.garbage_collector import SURPLUS_ROUND
from gfs.master.service import drain_command
from gfs.master.service.status import cluster_totals
from gfs.master.tables import (
    CORRUPT,
    DEAD,
    LIVE,
    SILENT,
    GarbageTable,
    LocationTable,
    RepairQueue,
    Server,
)
from gfs.master.tables.garbage import ORPHANED, STALE
from gfs.master.tables.locations import PAGE
from gfs.master.upkeep import Upkeep
from gfs.master.upkeep.trash import BACKLOG_CALM, Reclaim
from gfs.protocol.messages import Delete, Done, Prune, Publish

MANY = 5 * SLICE


class Counter:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.calls = 0

    def count(self, kind: type, name: str) -> None:
        method: Callable[..., Any] = getattr(kind, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            return method(*arguments, **named)

        self._patch.setattr(kind, name, counted)

    def most_in_a_slice(self, slices: Iterator[None]) -> int:
        most, self.calls = 0, 0
        for _ in slices:
            most, self.calls = max(most, self.calls), 0
        return max(most, self.calls)


class Passed(dict[int, Any]):
    """Counts how often it was passed over, and the keys that were looked at."""

    times = looked = 0

    def __iter__(self) -> Iterator[int]:
        self.times += 1
        for key in super().__iter__():
            self.looked += 1
            yield key

    def items(self) -> Any:
        self.times += 1
        return super().items()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    store = open_store(str(tmp_path), 2**24, False, "growth", 1)
    yield Master(real_world(), MasterSettings(), store)
    store.close()


def server_with_many(master: Master) -> Server:
    """Of the replicas on it half are garbage, and other servers have as many."""
    servers = [master.servers._add(f"server-{n}", f"10.0.0.{n}:1", "", 0.0) for n in range(2)]
    for handle in range(1, MANY):
        for server in servers:
            master.replica_map.locations.add(handle, server.index, 1)
            master.replica_map.garbage.hold(server.index, MANY + handle, 1, STALE, 0.0)
    return servers[0]


@pytest.mark.parametrize("how", ["dies", "registers again"])
def test_what_a_server_does_not_have_any_more_is_taken_off_it_in_slices(
    master: Master, counter: Counter, how: str
) -> None:
    server = server_with_many(master)
    if how == "dies":
        server.state, taken = DEAD, master.membership.server_died
    else:
        server.registration.reported, taken = NumberSet(), master.membership.finish_registration
    for kind, name in ((GarbageTable, "drop"), (LocationTable, "remove")):
        counter.count(kind, name)
    assert counter.most_in_a_slice(taken(server)) < SLICE + PAGE
    assert server.registration.is_complete or how == "dies"
    assert master.replica_map.locations.counts == {0: 0, 1: MANY - 1}
    assert master.replica_map.garbage.counts[STALE] == MANY - 1


def test_a_drain_looks_at_every_chunk(master: Master) -> None:
    """In slices; the first of them is as large as a slice may be."""

    def work(txn: Txn) -> None:
        for handle in range(1, 2 * SLICE + 1):
            txn.put(pack_u64(handle), Chunk(1, 1, 5, 0, 3).pack(), txn.db.chunks)

    master.store.commit(work)
    found = [handle for part in drain_command._all_chunks(master) for handle, _, _ in part]
    assert found == list(range(1, 2 * SLICE + 1))


def test_what_is_forgotten_does_not_drain(master: Master) -> None:
    server = server_with_many(master)
    master.servers.set_draining(server, DRAINED)
    master.servers.forget(server)
    assert not master.servers.draining


@pytest.mark.parametrize("how", ["heard again", "registered"])
def test_garbage_is_evaluated_in_slices_when_a_server_is_back(
    master: Master, counter: Counter, how: str
) -> None:
    server = server_with_many(master)
    for handle in range(1, MANY):
        master.replica_map.garbage.hold(1, handle, 1, STALE, 0.0)
    server.rpc, server.state = object(), SILENT  # type: ignore[assignment]
    if how == "registered":
        master.servers.registration_complete(server)
    else:
        master.servers.heard(server, 1.0)
        assert server.state == LIVE
    counter.count(LocationTable, "get")
    assert counter.most_in_a_slice(master.goals.look_at_revived()) <= SLICE
    assert set(master.goals.to_evaluate) == set(range(1, MANY))


def test_totals_cost_the_same_with_many_lost_chunks(master: Master, counter: Counter) -> None:
    master.goals.repair.lost.update(range(1, MANY))
    for handle in (5, MANY + 5):
        master.replica_map.garbage.hold(0, handle, 1, CORRUPT, 0.0)
    counter.count(GarbageTable, "of_kind")
    assert cluster_totals(master, 0).corrupt_kept == 1
    assert counter.calls == 1
    master.goals.repair.lost.clear()
    assert cluster_totals(master, 0).corrupt_kept == 0


def test_a_round_looks_at_a_bounded_number_of_chunks_with_too_many_replicas(master: Master) -> None:
    master.replica_map.in_safe_mode = False
    master.goals.surplus = surplus = Passed(dict.fromkeys(range(1, MANY)))
    master.collector.trim_surplus()
    assert surplus.looked <= SURPLUS_ROUND
    assert len(surplus) == MANY - 1 - SURPLUS_ROUND, "they have no replica at all"


class Started:
    """A nursery that keeps what it is to start."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def start_soon(self, task: Any, *arguments: Any) -> None:
        self.tasks.append((task, arguments))


def test_searches_of_a_large_trash_neither_overlap_nor_follow_each_other_at_once(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def search() -> Iterator[None]:
        begun.append(None)
        yield

    nursery = Started()
    upkeep = Upkeep(master, "", nursery, None)  # type: ignore[arg-type]
    monkeypatch.setattr(master.goals, "mark_trashed", search)
    monkeypatch.setattr(upkeep, "_act", lambda: None)
    master.replica_map.in_safe_mode = False
    master.goals.repair.update(1, 1, 3)
    now = master.now
    upkeep._tick(now - 300.0, 0.5)
    ((_, (first,)),) = nursery.tasks
    next(first)
    upkeep._tick(now, 0.5)  # it has run for 300 s
    assert len(nursery.tasks) == 1
    assert list(first) == []
    upkeep._tick(now + 2_900.0, 0.5)
    assert len(nursery.tasks) == 1
    upkeep._tick(now + 3_400.0, 0.5)
    assert len(nursery.tasks) == 2
    assert len(begun) == 1


def test_the_trash_is_searched_once_for_servers_that_die_together(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = 0

    def search() -> Iterator[None]:
        nonlocal searched
        searched += 1
        yield

    nursery = Started()
    upkeep = Upkeep(master, "", nursery, None)  # type: ignore[arg-type]
    monkeypatch.setattr(upkeep, "_act", lambda: None)
    monkeypatch.setattr(master.goals, "mark_trashed", search)
    server_with_many(master)
    upkeep._tick(master.now, 0.5)
    for _, arguments in nursery.tasks:
        for slices in arguments:
            assert set(slices) == {None}
    assert (set(master.replica_map.locations.counts.values()), searched) == ({0}, 1)


@pytest.mark.parametrize("name", ["look_at_revived", "evaluate_changed"])
def test_a_pass_that_takes_long_is_not_begun_again_meanwhile(
    master: Master, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    nursery = Started()
    upkeep = Upkeep(master, "", nursery, None)  # type: ignore[arg-type]
    monkeypatch.setattr(upkeep, "_act", lambda: None)
    monkeypatch.setattr(master.servers, "tick", lambda *_: [])  # none is dead
    master.replica_map.in_safe_mode = False
    server = server_with_many(master)

    def begun(after: float) -> list[Iterator[None]]:
        if name == "look_at_revived":
            master.servers.revived.add(server.index)
        else:
            master.goals.to_evaluate.update(dict.fromkeys(range(MANY)))
        upkeep._tick(master.now + after, 0.5)
        return [slices for _, (slices,) in nursery.tasks]

    (first,) = begun(0.0)
    next(first)
    assert begun(0.5) == [first]
    assert set(first) == {None}
    assert len(begun(1.0)) == 2


def made_and_deleted(master: Master, files: int) -> int:
    """A deleted directory; returns its inode. Its files have odd inodes, in no order."""
    inodes = list(range(101, 101 + 2 * files, 2))
    random.Random(1).shuffle(inodes)

    def work(txn: Txn) -> None:
        txn.put(pack_u64(7), directory_row(1, {}).pack(), txn.db.inodes)
        for name, inode in enumerate(inodes):
            row = Inode(KIND_FILE, 0, 3, 1, 100, 1, 1)
            txn.put(pack_u64(inode), row.pack(), txn.db.inodes)
            txn.put(entry_key(7, b"%08d" % name), pack_entry(inode, KIND_FILE), txn.db.entries)

    master.store.commit(work)
    master.trash.changed(7, True)
    return 7


@pytest.mark.parametrize("files", [0, 5, SMALL, 3 * trash.SLICE, 3 * trash.SLICE + 1])
def test_a_large_deleted_directory_is_counted_in_slices(
    master: Master, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, book = made_and_deleted(master, files), master.trash
    assert (book.usage(directory) is None) == (files >= SMALL)
    longest: list[int] = []
    sort = sorted
    monkeypatch.setitem(
        trash.__dict__, "sorted", lambda files: longest.append(len(files)) or sort(files)
    )
    for number, _ in enumerate(book.count()):
        if number == 1 and book.waiting:
            book.grown(103, 300)
            book.grown(104, 300)
    assert max(longest, default=0) <= trash.SLICE
    more = 200 if files >= 3 * trash.SLICE else 0
    assert book.usage(directory) == (files, 0, 100 * files + more)
    if files:
        book.grown(101, 500)
        assert book.bytes == 100 * files + more + 400
    book.changed(directory, False)
    book.grown(101, 900)
    assert (book.files, book.bytes, len(book._inside)) == (0, 0, 0)


def test_a_file_that_grows_is_not_searched_for_in_each_deleted_directory(master: Master) -> None:
    book = master.trash
    made_and_deleted(master, 5)
    book._lengths = lengths = Passed(book._lengths)
    book.grown(1, 500)
    assert lengths.times == 0
    book.grown(101, 500)
    assert (book.bytes, lengths.times) == (900, 1)


@pytest.mark.parametrize(
    ("backlog", "least", "most"), [(0, 1_000, 1_000), (BACKLOG_CALM, 19, 21), (10**6, 5, 7)]
)
async def test_what_waits_to_be_deleted_waits_in_the_trash(
    master: Master,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    backlog: int,
    least: int,
    most: int,
) -> None:
    count = 0

    async def perform_all(plans: object) -> list[Planned]:
        nonlocal count
        count += 1
        if count == 1_000:
            reclaiming.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()
        return [(Reclaimed(1, 1, 1), Done(id=0))]

    monkeypatch.setattr(master.committer, "perform_all", perform_all)
    master.replica_map.garbage.counts[ORPHANED] = backlog
    with trio.move_on_after(10.0):
        async with trio.open_nursery() as reclaiming:
            reclaiming.start_soon(Reclaim(master).run)
    assert least <= count <= most


async def test_files_in_deep_folders_are_deleted_by_few_and_short_rows(master: Master) -> None:
    """Each row of the log once named a thousand directories and reclaimed one: 0.6 MiB a file."""
    files, depth, number = 20, 62, itertools.count(1)
    commits = 0

    async def ask(plan: Plan) -> None:
        outcome = await master.committer.ask("client", next(number), plan)
        assert not isinstance(outcome, GfsError), outcome

    reclaimed = trio.Event()

    def committed() -> None:
        nonlocal commits
        commits += 1
        with master.store.read() as txn:
            # The space, the files in the trash, and nothing else.
            if txn.count(txn.db.entries) == 1 and txn.count(txn.db.trash) == files:
                reclaimed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(master.committer.run)
        for file in range(files):
            path = "/space/" + f"{file}/" + "folder/" * (depth - 1) + "file"
            made = Publish(0, "", 0, path, 0, 1, True, True, [])
            await ask(partial(plan_publish, request=made, chunks=[], replication=1, time_ns=1))
        master.committer.committed = committed
        for file in range(files):
            path = "/space/" + f"{file}/" + "folder/" * (depth - 1) + "file"
            gone = Delete(0, "", 0, path, False)
            await ask(partial(plan_delete, request=gone, time_ns=1, trash_ns=10**18))
            empty = Prune(0, "", 0, path.rpartition("/")[0], "/space")
            await ask(partial(plan_prune, request=empty, time_ns=1))
        assert commits == 2 * files
        nursery.start_soon(Reclaim(master).run)
        await reclaimed.wait()
        assert commits <= 2 * files + files * depth // 10
        with master.store.read() as txn:
            rows = [row for _, row in txn.scan(b"", txn.db.operation_log)]
        # The paths of the deletions, and some bytes for each directory.
        assert sum(map(len, rows)) <= 3 * files * len(path) + 100 * files * (depth + 3)
        nursery.cancel_scope.cancel()


def test_endangered_chunks_share_what_is_equal() -> None:
    queue = RepairQueue()
    for handle in range(1_000):
        queue.update(handle, 2, 3)
    assert len(set(map(id, queue._dangers.values()))) == 1


def test_the_pages_of_garbage_pass_over_it_once() -> None:
    table = GarbageTable(1.0)
    table.replicas = Passed()
    for handle in range(1, 1_000):
        table.orphan(0, handle, 1, now=0.0)
    seen, after, more = [], 0, True
    while more:
        page, more = table.page(after, 10)
        seen += [handle for handle, _, _ in page]
        after = page[-1][0]
    assert seen == list(range(1, 1_000))
    assert table.replicas.times == 1

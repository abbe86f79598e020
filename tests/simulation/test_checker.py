"""The checker of histories itself: what it must not call wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
import trio

from gfs.blocks import BLOCK_BYTES, packet_sums
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.journal import Journal
from gfs.chunkserver.files.layout import Redo
from gfs.client import Client
from gfs.config import MasterSettings
from gfs.errors import ChunkUnavailable, GfsError, NotFound
from gfs.protocol.messages import StatusReply
from gfs.testing import SimCluster, run_simulated
from gfs.testing.files import SimDisk, SimFileSystem
from gfs.testing.life import Life
from gfs.testing.trace import Trace

from .ancestry import Ancestry
from .everywhere import Everywhere
from .files_model import FileModel
from .linear import Event, find_order
from .log_model import Append, LogModel
from .losses import Losses, hangs_on_a_record
from .metadata import read_metadata
from .names_model import DIRECTORY, OK, Delete, Look, MakeDirectory, Snapshot, split
from .plan import Plan, make_plan
from .record import LOG, MADE_BY, Record, Violation
from .truth import COUNTED, CURRENT_SECONDS, Truth
from .workload import Actor


def test_a_call_that_changes_nothing_yet_may_come_later() -> None:
    """A mkdir with exist_ok began at the very instant at which a delete ended."""
    directory = split("/b")
    history = [
        Event("one", MakeDirectory(1, directory), 0.0, 1.0, OK),
        Event("one", Delete(2, directory), 2.0, 3.0, OK),
        Event("one", MakeDirectory(3, directory, exist_ok=True), 3.0, 4.0, OK),
        Event("one", Look(4, directory), 5.0, 6.0, OK, DIRECTORY),
    ]
    assert find_order(history) is not None
    # The same of a call nobody knows of.
    history[1] = Event("one", Delete(2, directory), 2.0)
    assert find_order(history) is not None
    unseen = Event("one", Look(4, directory), 5.0, 6.0, "not_found")
    assert find_order([*history[:2], unseen]) is not None
    wrong = [history[0], unseen]
    assert find_order(wrong) is None


def test_a_snapshot_is_seen_whole_or_not_at_all() -> None:
    source, target = split("/a"), split("/b")
    history = [
        Event("one", MakeDirectory(1, (*source, "c"), parents=True), 0.0, 1.0, OK),
        Event("one", Snapshot(2, source, target), 2.0, 5.0, OK),
        Event("two", Look(3, (*target, "c")), 2.5, 2.6, "not_found"),
        Event("two", Look(4, target), 3.0, 3.1, OK, DIRECTORY),
        Event("two", Look(5, (*target, "c")), 3.5, 3.6, OK, DIRECTORY),
    ]
    assert find_order(history) is not None
    half = Event("two", Look(5, (*target, "c")), 3.5, 3.6, "not_found")
    assert find_order([*history[:4], half]) is None


def test_a_part_of_a_log_need_not_have_all_records() -> None:
    append = Append(b"record", "one", began=2.0, acknowledged=3.0, offset=0)
    log = LogModel({append.data: append}, [append])
    model = FileModel(1, b"", 0.0, log=log)
    # Opened when it was empty, read afterwards; or only a part of it is asked for.
    assert not model.objection(0, b"", since=1.0, until=9.0)
    assert not model.objection(0, b"", since=4.0, until=9.0, part=True)
    assert model.objection(0, b"", since=4.0, until=9.0)


def test_bytes_from_before_an_acknowledged_write_are_no_file_s() -> None:
    async def main() -> None:
        record = Record(Trace())
        model = record.new_file(1, b"old!", {MADE_BY: "1"})
        await trio.sleep(1)
        writes = record.begin_write(model, 0, b"new!", "one")
        assert record.candidates(b"old!", 0.5) == record.candidates(b"new!", 0.5) == {1}
        await trio.sleep(1)
        record.acknowledge(model, writes)
        assert record.candidates(b"old!", 1.5) == {1}  # it was asked for before
        assert not record.candidates(b"old!", 2.0)
        assert record.candidates(b"new!", 2.0) == {1}

    run_simulated(0, main)


def test_a_zero_past_the_published_end_is_a_hole_and_hides_nothing() -> None:
    model = FileModel(1, b"ab", 0.0)
    far = model.write(6, b"zz", 1.0, "one")
    near = model.write(2, b"yy", 1.0, "two")

    def allowed(data: bytes, since: float, start: int = 0) -> bool:
        return not model.objection(start, data, since, since)

    assert all(allowed(data, 2.0) for data in (b"ab", b"abyy", b"ab\0\0\0\0z", b"aby\0\0\0\0z"))
    assert not allowed(b"\0b", 2.0)
    assert not allowed(b"ab\0\0zz", 2.0)
    far.acknowledged = 3.0  # and whoever fills the gap below it, erases nothing
    near.acknowledged = 3.0
    assert allowed(b"abyy\0\0zz", 4.0)
    for wrong in (b"ab\0\0\0\0zz", b"aby\0\0\0zz", b"abyy\0\0z\0", b"abyyyyzz"):
        assert not allowed(wrong, 4.0)
        assert not allowed(wrong[2:], 4.0, start=2)
    assert allowed(b"ab\0\0\0\0zz", 2.0)  # asked for when neither had been acknowledged
    model.shaken = True
    assert allowed(b"ab\0\0\0\0\0\0", 4.0)


def test_a_copy_has_what_was_acknowledged_before_it_was_made_and_nothing_of_later() -> None:
    """The calls are real, but for the writes: what is looked at is what they allow."""

    async def main() -> None:
        async with SimCluster(0, chunkservers=3) as cluster, cluster.client() as fs:
            record = Record(cluster.trace, Ancestry(lambda: read_metadata(cluster.directory)))
            model = record.new_file(1, b"....", {MADE_BY: "1"})
            entry = await fs.put(b"....", "/a/x", attributes={MADE_BY: "1"})
            record.named(1, entry.inode)
            await trio.sleep(1)
            record.acknowledge(model, record.begin_write(model, 0, b"1", "one"))
            on_its_way = record.begin_write(model, 1, b"2", "one")
            await trio.sleep(1)

            await _snapshot(record, fs, 2, "/a", "/s")
            await trio.sleep(1)
            record.acknowledge(model, on_its_way)
            record.acknowledge(model, record.begin_write(model, 2, b"3", "one"))
            await trio.sleep(1)
            # Seen much later than it was made; and a copy of it, later still.
            await _snapshot(record, fs, 3, "/s/x", "/t")
            for path in ("/s/x", "/t"):
                copy = record.model(await fs.stat(path))
                assert copy is not None
                assert copy.number == -1
                now = record.now
                for possible in (b"1...", b"12.."):
                    assert not copy.objection(0, possible, now, now)
                for impossible in (b"....", b"1.3.", b"123."):
                    assert copy.objection(0, impossible, now, now)
            assert record.candidates(b"123.", record.now) == {1}
            assert record.candidates(b"12..", record.now) == {-1}
            assert not record.candidates(b"1.3.", record.now)

    run_simulated(0, main)


async def _snapshot(record: Record, fs: Client, number: int, source: str, target: str) -> None:
    event = record.begin("one", Snapshot(number, split(source), split(target)))
    await fs.snapshot(source, target)
    record.end(event, OK)


def test_a_copy_of_a_log_has_the_records_of_before_and_none_of_later() -> None:
    async def main() -> None:
        async with SimCluster(0, chunkservers=3) as cluster, cluster.client() as fs:
            record = Record(cluster.trace, Ancestry(lambda: read_metadata(cluster.directory)))
            record.new_file(1, b"", {MADE_BY: "1", LOG: "1"})
            entry = await fs.put(b"", "/log", attributes={MADE_BY: "1", LOG: "1"})
            record.named(1, entry.inode)
            for data in (b"one", b"two"):
                append = record.begin_append(data, "one")
                offset = await fs.append("/log", data)
                record.end_append(append, offset, entry.inode)
                if data == b"one":
                    before = await fs.get("/log")
                    await _snapshot(record, fs, 2, "/log", "/s")
                    await trio.sleep(1)
            copy = record.model(await fs.stat("/s"))
            assert copy is not None
            record.check_read(copy, 0, before, record.now)
            for wrong in (b"", await fs.get("/log")):
                with pytest.raises(Violation):
                    record.check_read(copy, 0, wrong, record.now)
            # One who appends to the copy makes it another file.
            append = record.begin_append(b"three", "one")
            offset = await fs.append("/s", b"three")
            record.end_append(append, offset, copy.inode)
            record.check_read(copy, 0, await fs.get("/s"), record.now)

    run_simulated(0, main)


def test_what_is_acknowledged_is_on_as_many_servers_as_the_goal_unless_something_is_wrong() -> None:
    async def main() -> None:
        plan = make_plan(0, kinds=[])
        plan.chunkservers, plan.master = 3, MasterSettings(replication=2)
        async with SimCluster(0, chunkservers=3) as cluster, cluster.client() as fs:
            record = Record(cluster.trace)
            Everywhere(cluster, record, plan, Losses(cluster, record, plan))
            model = record.new_file(1, b"bytes", {}, goal=3)
            entry = await fs.put(b"bytes", "/x", replication=3)
            record.published(1, entry.inode)
            (path,) = cluster.chunk_files("chunkserver0")
            cluster.machine("chunkserver0").disk.unlink(path)
            with pytest.raises(Violation, match="instead of 3"):
                record.published(1, entry.inode)
            # Two are enough once that may have been the goal,
            record.begin_goal(2)
            record.published(1, entry.inode)
            (path,) = cluster.chunk_files("chunkserver1")
            cluster.machine("chunkserver1").disk.unlink(path)
            with pytest.raises(Violation, match="instead of 2"):
                record.published(1, entry.inode)
            # and one is when something may be wrong; but no less.
            record.begin_strike()
            record.look_everywhere(model, 0, 5)
            (path,) = cluster.chunk_files("chunkserver2")
            cluster.machine("chunkserver2").disk.unlink(path)
            with pytest.raises(Violation, match="no server"):
                record.look_everywhere(model, 0, 5)

    run_simulated(0, main)


def test_every_figure_of_status_is_held_against_what_is_so() -> None:
    async def main() -> None:
        plan = make_plan(0, kinds=[])
        cluster = SimCluster(0, chunkservers=3, chunkserver=plan.chunkserver)
        async with cluster, cluster.client() as fs:
            for name in ("x", "y", "d/z"):
                await fs.put(b"bytes", f"/{name}")
            await fs.delete("/d", recursive=True)
            await trio.sleep(CURRENT_SECONDS)
            losses = Losses(cluster, Record(cluster.trace), plan)
            truth = Truth(cluster, plan.chunkserver, losses)

            async def told(change: Callable[[StatusReply], object] = id) -> list[str]:
                status, metadata = await fs.status(), read_metadata(cluster.directory)
                change(status)
                return truth.differences(metadata, status)

            assert not await told()

            def count(name: str) -> Callable[[StatusReply], object]:
                return lambda status: setattr(status.totals, name, getattr(status.totals, name) + 1)

            for name in COUNTED:
                assert any(found.startswith(name) for found in await told(count(name)))
            assert await told(lambda status: status.servers.pop())
            assert await told(lambda status: setattr(status.servers[0], "state", "dead"))
            assert await told(lambda status: status.servers[0].disks.clear())
            for changes in ({"chunks": 9}, {"state": "full"}, {"free_bytes": 9}):
                assert await told(
                    lambda status, changes=changes: status.servers[0].disks.append(
                        msgspec.structs.replace(status.servers[0].disks.pop(), **changes)
                    )
                )
            # And the other way round: the disks are not as everybody believes.
            (path,) = cluster.chunk_files("chunkserver0")[:1]
            cluster.machine("chunkserver0").disk.truncate(path, 0)
            assert len(await told()) == 1
            cluster.machine("chunkserver0").disk.unlink(path)
            assert len(await told()) == 3

    run_simulated(0, main)


def lone_actor(record: Record, plan: Plan) -> Actor:
    """One without a cluster that runs."""
    return Actor("one", record, random.Random(0), plan, SimCluster(0), "")


def test_a_call_without_an_end_is_told() -> None:
    async def hang(actor: Actor, fs: Client) -> None:
        await trio.sleep_forever()

    async def linger(actor: Actor, fs: Client) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10_000)

    async def pause(actor: Actor, fs: Client) -> None:
        await actor._rest(10_000)

    async def act(kind: object) -> None:
        actor = lone_actor(Record(Trace()), make_plan(0))
        actor._kinds, actor._weights = [kind], [1.0]  # type: ignore[list-item]
        for _ in range(100):  # some of which hang up
            await actor.act(None)  # type: ignore[arg-type]

    run_simulated(0, lambda: act(pause))
    for kind in (hang, linger):
        with pytest.raises(Violation):
            run_simulated(0, lambda kind=kind: act(kind))


def test_a_record_is_held_to_when_it_is_known_what_file_it_is_in() -> None:
    async def main() -> None:
        record = Record(Trace())
        model = record.new_file(1, b"", {MADE_BY: "1", LOG: "1"})
        append = record.begin_append(b"record", "one")
        await trio.sleep(1)
        record.end_append(append, 0, inode=7)
        record.check_read(model, 0, b"", record.now)  # of another file, for all that is known
        record.named(1, 7)
        with pytest.raises(Violation, match="not there"):
            record.check_read(model, 0, b"", record.now)
        record.new_file(2, b"", {MADE_BY: "2"})
        record.end_append(record.begin_append(b"another", "one"), 0, inode=8)
        with pytest.raises(Violation, match="is no log"):
            record.named(2, 8)

    run_simulated(0, main)


def test_a_refusal_must_have_a_reason_and_a_failure_too_where_nothing_is_wrong() -> None:
    async def act(error: GfsError, faults: dict[str, float], strikes: int, gone: bool) -> None:
        async def fail(actor: Actor, fs: Client) -> None:
            raise error

        plan = make_plan(0, kinds=[])
        plan.faults = faults
        record = Record(Trace())
        record.strikes = strikes
        if gone:
            record.begin("two", Delete(1, split("/x")))
        actor = lone_actor(record, plan)
        actor._kinds, actor._weights = [fail], [1.0]
        await actor.act(None)  # type: ignore[arg-type]

    refused, failed, cut = NotFound("x"), ChunkUnavailable("x"), {"cut": 1.0}
    good = [(refused, {}, 0, True), (failed, cut, 1, False), (failed, {"bit flip": 1.0}, 0, False)]
    wrong = [(refused, cut, 1, False), (failed, {}, 0, True), (failed, cut, 0, True)]
    for case in good:
        run_simulated(0, lambda case=case: act(*case))
    for case in wrong:
        with pytest.raises(Violation):
            run_simulated(0, lambda case=case: act(*case))


def test_only_a_write_that_was_cut_off_hangs_on_an_unsynced_record() -> None:
    """With the default durability neither the journal nor the chunk file is synced."""
    disk, path = SimDisk("disk"), "/d/chunks/00/0000000000000001.chunk"
    disk.make_directories("/d/chunks/00")
    files = SimFileSystem(disk, Life("a chunkserver"))
    for directory in ("/", "/d", "/d/chunks"):
        files.sync_directory(directory)
    journal = Journal(files, "/d", False, 1 << 20)
    journal.open()
    files.sync_directory("/d")
    chunk = ChunkFile.create(files, path, 1, 1, journal)

    def write(data: bytes) -> None:
        chunk.write(0, data, packet_sums(0, data))

    old, new = bytes(2 * BLOCK_BYTES), b"x" * BLOCK_BYTES
    write(old)
    chunk.save()
    write(new)
    chunk.commit()
    # Its record is in the journal for ever, but the chunk file has all of it.
    assert not disk.is_synced("/d/journal.0")
    assert not hangs_on_a_record(disk, path)
    chunk.sync()
    assert disk.is_synced(path)
    slot = chunk._sequence
    redo = Redo(1, slot, 0, 1, 0, len(old), packet_sums(0, old), old)
    journal.append(redo, slot, chunk)
    # Where a process dies that has not yet begun to write it in place.
    assert hangs_on_a_record(disk, path)
    # Nor is it known what a file says of itself whose head cannot be read.
    disk.spoil(path, 0)
    assert hangs_on_a_record(disk, path)
    disk.write_back(random.Random(0))
    assert not hangs_on_a_record(disk, path)

"""The checker of histories itself: what it must not call wrong."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
import trio

from gfs.blocks import BLOCK_BYTES, packet_sums
from gfs.chunkserver.disks.identity import NAME, encode_server, read_record
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.journal import Journal
from gfs.chunkserver.files.layout import HEAD_BYTES, Redo
from gfs.client import Client
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import ChunkUnavailable, GfsError, NotFound
from gfs.master.rules import election
from gfs.master.tables import Server
from gfs.protocol.messages import StatusReply, VerifyReply
from gfs.testing import SimCluster, run_simulated
from gfs.testing.files import SimDisk, SimFileSystem
from gfs.testing.life import Life, Onlooker
from gfs.testing.trace import Trace

from .ancestry import Ancestry
from .faults import Faults, mount_disks
from .files_model import FileModel
from .linear import Event, find_order
from .losses import Losses, hangs_on_a_record
from .metadata import read_metadata
from .names_model import DIRECTORY, OK, Delete, Look, MakeDirectory, Snapshot, split
from .plan import Plan, make_plan
from .promises import settled
from .record import LOG, MADE_BY, Record, Violation
from .run import told_of_elections
from .seeds import over_seeds
from .settle import Settling
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


async def _snapshot(record: Record, fs: Client, number: int, source: str, target: str) -> None:
    event = record.begin("one", Snapshot(number, split(source), split(target)))
    await fs.snapshot(source, target)
    record.end(event, OK)


@over_seeds([0], chunkservers=3)
async def test_a_copy_of_a_log_has_the_records_of_before_and_none_of_later(
    cluster: SimCluster, fs: Client
) -> None:
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


@pytest.mark.parametrize(
    ("lose_power", "whole", "away", "is_lost"),
    [
        # The first of those that lose power is elected.
        ("abc", "", "", True),
        ("abc", "bc", "", True),
        ("abc", "a", "", False),
        # One that is away has all of it, and here it is not waited for; or it has less.
        ("ab", "", "c", False),
        ("ab", "", "c missed the grant", True),
    ],
)
@over_seeds([0])
async def test_what_an_elected_replica_lacks_is_lost_unless_a_server_is_sure_of_having_it(
    lose_power: str, whole: str, away: str, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(found: list[tuple[Server, VerifyReply]]) -> Server | None:
        return min((server for server, _ in found), key=lambda server: server.address, default=None)

    async def write(fs: Client, data: bytes) -> None:
        async with await fs.open("/x", "r+") as file:
            await file.pwrite(0, data)

    monkeypatch.setattr(election, "best", first)
    monkeypatch.setattr(election, "awaited", lambda *_: False)
    plan = make_plan(0, kinds=[], durability="replicated")
    async with SimCluster(0, chunkservers=4) as cluster, cluster.client() as fs:
        record = Record(cluster.trace)
        losses = Losses(cluster, record, plan)
        await fs.put(b"old", "/x")
        await write(fs, b"o")
        (handle,) = read_metadata(cluster.directory).chunks
        holders = [name for name in cluster.chunkservers if cluster.chunk_files(name)]
        named = dict(zip("abc", holders, strict=True))
        for name in holders:
            cluster.machine(name).disk.write_back(Random(0))
        if away == "c missed the grant":
            await cluster.crash(named["c"])
        await write(fs, b"new")
        if away == "c":
            await cluster.crash(named["c"])
        for each in whole:
            cluster.machine(named[each]).disk.write_back(Random(0))
        victims = [named[each] for each in lose_power]
        for name in victims:
            cluster.kill(name)
        losses.power_goes(victims)
        for name in victims:
            cluster.machine(name).disk.power_cut()
        losses.power_is_gone()
        losses.lost_at.clear()  # what was so at that moment
        with told_of_elections(record) as elections:
            for name in victims:
                await cluster.restart(name)
            await cluster.wait_until(lambda: elections.count == 1, 200)
            await cluster.wait_until(lambda: settled(fs), 200)
        losses.count()  # there are sound copies now
        assert await fs.get("/x") == (b"new" if "a" in whole else b"old")
        assert losses.handles == ({handle} if is_lost else set())


@pytest.mark.parametrize(
    ("given_up", "used", "told"),
    [
        ("current", "", ""),
        ("current", "stale", ""),
        ("current", "damaged", ""),
        ("current", "torn", ""),
        ("", "", "has nothing"),
        ("stale", "", "has nothing"),
        ("stale", "stale", "has chunkserver0 v1"),
        ("current", "current stale", "has chunkserver0 v2, chunkserver0 v1"),
    ],
)
@over_seeds([0])
async def test_a_chunk_waits_for_a_disk_only_if_a_current_replica_is_on_that_alone(
    given_up: str, used: str, told: str
) -> None:
    plan = make_plan(0, kinds=[])
    plan.master = MasterSettings(replication=1, replicas_min=1)
    plan.chunkserver = ChunkserverSettings(packed_bytes_max=0)
    cluster = SimCluster(
        0, chunkservers=1, disks=3, master=plan.master, chunkserver=plan.chunkserver
    )
    async with cluster, cluster.client() as fs:
        disk = cluster.machine("chunkserver0").disk
        await fs.put(b"bytes", "/x")
        (path,) = cluster.chunk_files("chunkserver0")
        content = {"stale": disk.read(path)}
        async with await fs.open("/x", "r+") as file:
            await file.pwrite(0, b"y")
        metadata = read_metadata(cluster.directory)
        content["current"] = content["damaged"] = disk.read(path)
        content["torn"] = content["current"][:HEAD_BYTES] + bytes(5)
        disk.delete(path)
        free = iter(cluster.disks[1:])
        for state, directory in [
            *((each, cluster.disks[0]) for each in given_up.split()),
            *((each, next(free)) for each in used.split()),
        ]:
            copy = f"{directory}/chunks/{path.partition('/chunks/')[2]}"
            disk.make_directories(copy.rpartition("/")[0])
            disk.open_inode(copy, "create").write(content[state], 0)
            if state == "damaged":
                disk.spoil(copy, 0)
        record = Record(cluster.trace)
        settling = Settling(cluster, plan, record, Faults(cluster, plan, record, []))
        settling.down = {("chunkserver0", cluster.disks[0])}
        waits = given_up == "current" and "current" not in used
        assert settling._away(metadata) == (set(metadata.chunks) if waits else set())
        found, short = settling._replica_problems(metadata)
        assert [problem.partition(" v2 ")[2] for problem in found] == [told] * bool(told)
        assert bool(short) == (told in ("has nothing", "has chunkserver0 v1"))


@over_seeds([0])
async def test_every_figure_of_status_is_held_against_what_is_so() -> None:
    plan = make_plan(0, kinds=[])
    plan.chunkserver = msgspec.structs.replace(plan.chunkserver, packed_bytes_max=0)
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
        # And the other way round: the disks differ from what all records say.
        (path,) = cluster.chunk_files("chunkserver0")[:1]
        cluster.machine("chunkserver0").disk.truncate(path, 0)
        assert len(await told()) == 1
        cluster.machine("chunkserver0").disk.delete(path)
        assert len(await told()) == 3


def lone_actor(record: Record, plan: Plan) -> Actor:
    """One without a cluster that runs."""
    return Actor("one", record, Random(0), plan, SimCluster(0), "")


@over_seeds([0])
async def test_a_record_is_held_to_when_it_is_known_what_file_it_is_in() -> None:
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
    slot = chunk.sequence
    redo = Redo(1, slot, 0, 1, 0, len(old), packet_sums(0, old), old)
    journal.append(redo, slot, chunk)
    # Where a process dies that has not yet begun to write it in place.
    assert hangs_on_a_record(disk, path)
    # Nor is it known what a file says of itself whose head cannot be read.
    disk.spoil(path, 0)
    assert hangs_on_a_record(disk, path)
    disk.write_back(Random(0))
    assert not hangs_on_a_record(disk, path)


@over_seeds(1)
async def test_a_record_that_readers_are_given_twice_is_noticed_in_the_end(
    cluster: SimCluster, fs: Client
) -> None:
    plan, record, attributes = (
        make_plan(0, kinds=[]),
        Record(cluster.trace),
        {MADE_BY: "1", LOG: ""},
    )
    settling = Settling(cluster, plan, record, Faults(cluster, plan, record, []))
    record.new_file(1, b"", attributes)
    record.named(1, (await fs.put(b"", "/log", attributes=attributes)).inode)
    append = record.begin_append(b"a record", "one")
    offset = await fs.append("/log", append.data)
    record.end_append(append, offset, (await fs.stat("/log")).inode)
    await settling._check_files(fs)
    await fs.append("/log", append.data)  # with another number
    with pytest.raises(Violation, match="given again"):
        await settling._check_files(fs)


@pytest.mark.parametrize(
    "left", ["what a new server makes", "a replica", "a known server's record"]
)
def test_where_a_disk_was_not_mounted_there_is_no_more_than_a_new_server_makes(left: str) -> None:
    """And that only if something else was wrong: the master refuses it at once."""

    async def scenario() -> None:
        plan, name = make_plan(0, kinds=[]), "chunkserver0"
        plan.capacities = [1 << 30]
        async with SimCluster(0, chunkservers=1, start=False) as cluster:
            (path,) = cluster.disks
            mount_disks(cluster, plan)
            await cluster.start_all()
            disk = cluster.machine(name).disk
            files = SimFileSystem(disk, Onlooker())
            known = read_record(files, path)
            assert known is not None
            await cluster.crash("master")
            await cluster.crash(name)
            faults = Faults(cluster, plan, Record(cluster.trace), [])
            volume = disk.unmount(path)
            cluster.begin(name)
            await trio.sleep(1)
            assert disk.exists(f"{path}/{NAME}")
            if left != "what a new server makes":
                is_record = left.endswith("record")
                file = files.open(f"{path}/{NAME}" if is_record else f"{path}/x.chunk", "replace")
                file.write(encode_server(known) if is_record else b"bytes", 0)
                file.close()
            for alone in (True, False):
                faults._away[name, path] = volume
                if alone or left != "what a new server makes":
                    with pytest.raises(Violation, match="made files where"):
                        faults._return(name, path, alone)
                else:
                    faults._return(name, path)
                    assert read_record(files, path) == known

    run_simulated(0, scenario)

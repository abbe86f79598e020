"""Deleting hides: what is deleted can be read on, had back, and goes in the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import pytest
import trio
from msgspec.structs import replace

from gfs.blocks import KIB, MIB
from gfs.client import Client
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import AlreadyExists, FileChanged, NotFound
from gfs.master.metadata import trash
from gfs.master.rules import trash_purge
from gfs.protocol.messages import TrashEntry
from gfs.testing import SimCluster

from .packs import stored
from .promises import LARGE_BYTES, assert_sound, content
from .seeds import over_seeds
from .shadowed import ShadowedCluster

KEPT_SECONDS = 300.0
MASTER = MasterSettings(map_bytes=1 << 30, trash_seconds=KEPT_SECONDS)


async def told(cluster: SimCluster) -> list[TrashEntry]:
    async with cluster.client() as fs:
        return [entry async for entry in fs.trash()]


@over_seeds(1, master=MASTER)
async def test_all_that_is_deleted_below_goes_however_much_it_is(
    cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "ROWS_MAX", 3)
    for number in range(10):
        await fs.put(b"x", f"/d/{number}")
        await fs.delete(f"/d/{number}")
    assert len(await told(cluster)) == 10
    assert await fs.empty_trash("/d", recursive=True) == 10
    assert not await told(cluster)


@over_seeds(4, master=MASTER)
async def test_what_is_deleted_comes_back_whole_after_the_master_died(
    chance: Random, cluster: SimCluster
) -> None:
    files = {f"/d/{name}": content(chance, 100_000) for name in ("a", "b/c", "b/d")}
    async with cluster.client() as fs:
        for path, data in files.items():
            await fs.put(data, path, attributes={"of": path})
        before = await fs.stat("/d/b/c")
        await fs.delete("/d", recursive=True)
        assert not await fs.exists("/d")
        with pytest.raises(NotFound):
            await fs.get("/d/a")
    await trio.sleep(chance.uniform(0, KEPT_SECONDS / 2))
    await cluster.crash_all()
    await cluster.start_all()
    async with cluster.client() as fs:
        await cluster.wait_until(lambda: known(cluster))
        (entry,) = await told(cluster)
        assert (entry.path, entry.kind, entry.files) == ("/d", "directory", 3)
        assert entry.length == sum(map(len, files.values()))
        totals = (await fs.status()).totals
        assert (totals.files, totals.bytes, totals.directories) == (0, 0, 0)
        assert (totals.trash_rows, totals.trash_files) == (1, 3)
        await fs.undelete("/d")
        assert await fs.stat("/d/b/c") == before
        for path, data in files.items():
            assert await fs.get(path) == data
        assert not await told(cluster)
        await trio.sleep(KEPT_SECONDS)
        assert stored(cluster) == 3 * len(files)
        await assert_sound(fs)


@over_seeds(2, master=MASTER)
async def test_garbage_goes_as_fast_as_disks_delete(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Not at so many replicas for each heartbeat; and the backlog is told."""
    count, data = 600, content(chance, 1000)
    todo = iter(range(count))

    async def put() -> None:
        for number in todo:
            await fs.put(data, f"/d/{number}")

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(put)
    await fs.delete("/d", recursive=True, now=True)

    async def begun() -> bool:
        totals = (await fs.status()).totals
        return totals.orphaned_bytes == totals.orphaned * 8 * KIB > 0

    await cluster.wait_until(begun, every=0.01)
    began = trio.current_time()
    await cluster.wait_until(lambda: not stored(cluster), every=0.05)
    assert trio.current_time() - began < 3.0
    await trio.sleep(1.0)
    totals = (await fs.status()).totals
    assert (totals.orphaned, totals.orphaned_bytes) == (0, 0)


async def known(cluster: SimCluster) -> bool:
    """Whether the master has counted what the deleted directories hold."""
    return all(entry.files >= 0 for entry in await told(cluster))


@pytest.mark.costly
@over_seeds(2, master=MASTER)
async def test_who_reads_a_file_that_is_deleted_reads_it_to_its_end(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, LARGE_BYTES)
    await fs.put(data, "/file")
    file = await fs.open("/file")
    assert await file.read(100_000) == data[:100_000]
    await fs.delete("/file")
    # Its locations have to be asked for again.
    await trio.sleep(60)
    assert await file.read() == data[100_000:]
    await file.close()
    await cluster.wait_until(lambda: not stored(cluster), 2 * KEPT_SECONDS, every=5)
    assert not await told(cluster)
    with pytest.raises(NotFound):
        await fs.undelete("/file")


@pytest.mark.costly
@over_seeds(2, master=MASTER)
async def test_a_replaced_file_is_kept_for_ten_minutes_or_not_at_all(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, LARGE_BYTES)
    await fs.put(data, "/file")
    file = await fs.open("/file")
    assert await file.read(100_000) == data[:100_000]
    await fs.put(b"new", "/file", overwrite=True)
    await trio.sleep(60)

    async def replaced() -> tuple[int, int]:
        totals = (await fs.status()).totals
        assert not totals.trash_rows
        return totals.replaced_files, totals.replaced_bytes

    assert await replaced() == (1, LARGE_BYTES)
    await cluster.restart("master")
    await cluster.wait_until(lambda: _is(replaced, (1, LARGE_BYTES)), 5)
    assert await file.read() == data[100_000:]
    await file.close()
    await fs.put(data, "/file", overwrite=True)
    kept = await fs.stat("/file")
    new = fs.create("/file", overwrite=True)
    async with new:
        await new.write(b"newer")
        new.keep_for_readers(kept.inode + 1)
    # What no reader needs is off the disks at once, the other is kept for its time.
    await cluster.wait_until(lambda: stored(cluster) == 3 * 3, 15)
    assert await replaced() == (1, LARGE_BYTES)
    await trio.sleep(500)
    assert await replaced() == (1, LARGE_BYTES)
    await cluster.wait_until(lambda: stored(cluster) == 3, 60)
    assert await replaced() == (0, 0)


async def _is(look: Callable[[], Awaitable[object]], expected: object) -> bool:
    return await look() == expected


@over_seeds(2, master=MASTER)
async def test_now_is_now(cluster: SimCluster, fs: Client) -> None:
    await fs.put(b"1", "/d/now")
    await fs.put(b"2", "/d/later")
    await fs.put(b"3", "/other")
    await fs.delete("/d/now", now=True)
    assert not await told(cluster)
    await cluster.wait_until(lambda: stored(cluster) == 6, 30)
    await fs.delete("/d", recursive=True)
    await fs.delete("/other")
    assert await fs.empty_trash("/d/later") == 0  # it was not deleted by itself
    assert await fs.empty_trash("/d") == 1
    await cluster.wait_until(lambda: stored(cluster) == 3, 30)
    assert [entry.path for entry in await told(cluster)] == ["/other"]
    assert await fs.empty_trash("/", recursive=True) == 1
    await cluster.wait_until(lambda: not stored(cluster), 30)
    totals = (await fs.status()).totals
    assert (totals.trash_rows, totals.trash_bytes, totals.chunks) == (0, 0, 0)


@over_seeds(1, master=MASTER)
async def test_which_of_several_comes_back_and_where(fs: Client) -> None:
    inodes = []
    for text in (b"first", b"second", b"third"):
        inodes.append((await fs.put(text, "/d/file")).inode)
        await fs.delete("/d/file")
    await fs.delete("/d", recursive=True)
    assert [e.inode async for e in fs.trash("/d/file")] == inodes
    back = await fs.undelete("/d/file")
    assert (back.path, back.inode) == ("/d/file", inodes[2])
    assert await fs.get("/d/file") == b"third"
    with pytest.raises(AlreadyExists, match="/d/file exists already"):
        await fs.undelete("/d/file")
    assert (await fs.undelete("/d/file", target="/x/y", inode=inodes[0])).path == "/x/y"
    assert await fs.get("/x/y") == b"first"
    with pytest.raises(NotFound, match="is not in the trash"):
        await fs.undelete("/d/file", inode=inodes[0])
    with pytest.raises(NotFound, match="may be in /d: undelete that"):
        await fs.undelete("/d/never")


SMALL_DISKS = ChunkserverSettings(reserve_bytes=0)


#: The sizes of a server's disks.
Sizes = tuple[int, ...]
OF_100_MIB, OF_1_TIB = (100 * MIB,), (1 << 40,)


def mount(cluster: SimCluster, sizes: list[Sizes]) -> None:
    for name, mine in zip(cluster.chunkservers, sizes, strict=True):
        for disk, size in zip(cluster.disks, mine, strict=True):
            cluster.machine(name).disk.mount(disk, size)


def most_free(cluster: SimCluster, name: str) -> int:
    """The free bytes of the chunkserver's disk that has most."""
    disk = cluster.machine(name).disk
    return max(disk.space(path).free_bytes for path in cluster.disks)


def fill(cluster: SimCluster, name: str) -> None:
    """From now on the first disk of this chunkserver has no space."""
    disk = cluster.machine(name).disk
    space = disk.space("/disk0")
    disk.mount("/disk0", space.total_bytes - space.free_bytes)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("sizes", "files", "left_min"), [(OF_100_MIB, 60, 16), ((40 * MIB, 200 * MIB), 80, 41)]
)
@over_seeds(2)
async def test_without_space_anywhere_the_oldest_of_the_trash_goes(
    seed: int,
    chance: Random,
    caplog: pytest.LogCaptureFixture,
    sizes: Sizes,
    files: int,
    left_min: int,
) -> None:
    """No write is refused, no more goes than is needed, and people are told: before, and
    what went. Nothing goes while two servers have a disk with twice the room and a file."""
    least = max(sizes) // trash_purge.ROOM_SHARE
    async with SimCluster(
        seed, disks=len(sizes), chunkserver=SMALL_DISKS, master=MASTER
    ) as cluster:
        mount(cluster, [sizes] * 3)
        async with cluster.client() as fs:
            data = content(chance, 5 * MIB)
            warned, purged = False, 0
            for number in range(files):
                free = sorted(most_free(cluster, name) for name in cluster.chunkservers)
                await fs.put(data, f"/f{number:02}")
                await fs.delete(f"/f{number:02}")
                await trio.sleep(1)
                totals = (await fs.status()).totals
                warned = warned or totals.room_low
                assert warned or not totals.trash_purged
                assert free[-2] < 2 * least + len(data) or totals.trash_purged == purged
                purged = totals.trash_purged
                if not totals.trash_purged:
                    assert totals.trash_files == number + 1
            left = [entry.path async for entry in fs.trash()]
            assert left == [f"/f{number:02}" for number in range(files - len(left), files)]
            # Of those that fit; and twice the room is to be free when it was made.
            assert left_min <= len(left) < sum(sizes) // len(data)
            totals = (await fs.status()).totals
            went = [f"/f{number:02}" for number in range(files - len(left))]
            assert (totals.trash_purged, totals.trash_purged_bytes) == (
                len(went),
                len(went) * len(data),
            )
            (oldest, *_) = await told(cluster)
            assert totals.trash_oldest_ns == oldest.deleted_ns
            assert abs(totals.trash_until_ns - oldest.until_ns) < 1000
            await fs.undelete(left[-1])
            assert await fs.get(left[-1]) == data
    events = [r for r in caplog.records if getattr(r, "gfs_event", "") == "trash_purged"]
    assert [event.gfs_fields["path"] for event in events] == went  # type: ignore[attr-defined]
    for event in events:
        fields = event.gfs_fields  # type: ignore[attr-defined]
        assert (fields["bytes"], "have room" in fields["why"]) == (len(data), True)


# Nor is room made in another way.
@pytest.mark.costly
@over_seeds(3, chunkservers=4, chunkserver=SMALL_DISKS, master=replace(MASTER, moves_total=0))
async def test_nothing_goes_early_that_makes_no_room(chance: Random, cluster: SimCluster) -> None:
    """Half of the servers are full, while others have room; then all but one are, and what
    is oldest in the trash a snapshot has as well."""
    mount(cluster, [OF_100_MIB] * 3 + [OF_1_TIB])
    data = content(chance, 5 * MIB)
    async with cluster.client() as fs:
        for number in range(6):
            await fs.put(data, f"/shared/{number}")
        await fs.snapshot("/shared", "/copy")
        for number in range(3):
            await fs.delete(f"/shared/{number}")
        await fs.delete("/shared", recursive=True)
        await fs.put(data, "/single", replication=4)
        await fs.delete("/single")
        deleted = [entry.path for entry in await told(cluster)]

        fill(cluster, "chunkserver0")
        fill(cluster, "chunkserver1")
        await trio.sleep(30)
        await fs.put(data, "/fits", replication=2)
        assert [entry.path for entry in await told(cluster)] == deleted
        fill(cluster, "chunkserver2")
        await cluster.wait_until(lambda: gone_are(cluster, deleted, ["/single"]), 30)
        await fs.put(data, "/fits, too", replication=2)
        await trio.sleep(60)
        await cluster.crash("chunkserver3")
        await trio.sleep(60)
        assert await gone_are(cluster, deleted, ["/single"])


@over_seeds(3, chunkserver=SMALL_DISKS, master=MASTER)
async def test_all_of_the_trash_goes_before_a_write_is_refused(
    chance: Random, cluster: SimCluster
) -> None:
    mount(cluster, [OF_100_MIB] * 3)
    async with cluster.client() as fs:
        # Less than what is to be free when room was made.
        await fs.put(content(chance, 4 * MIB), "/file")
        await fs.delete("/file")
        await fs.put(bytes(85 * MIB), "/live")
        assert len(await told(cluster)) == 1
        for number in range(8):
            await fs.put(content(chance, MIB), f"/more{number}")
            await trio.sleep(15)
        assert not await told(cluster)


@pytest.mark.costly
@over_seeds(3, chunkserver=SMALL_DISKS, master=replace(MASTER, moves_total=0))
async def test_nothing_goes_because_a_server_is_away_until_it_is_forgotten(
    chance: Random, cluster: SimCluster
) -> None:
    mount(cluster, [OF_100_MIB, OF_1_TIB, OF_1_TIB])
    data = content(chance, MIB)
    async with cluster.client() as fs:
        for number in range(30):
            await fs.put(data, f"/{number}")
            await fs.delete(f"/{number}")
        fill(cluster, "chunkserver0")
        await cluster.crash("chunkserver1")
        await trio.sleep(60)
        (away,) = [s for s in (await fs.status()).servers if s.state == "dead"]
        assert len(await told(cluster)) == 30
        await cluster.restart("master")
        await trio.sleep(60)
        assert len(await told(cluster)) == 30
        await fs.forget_server(away.id)
        await trio.sleep(30)
        assert len(await told(cluster)) < 30


async def gone_are(cluster: SimCluster, deleted: list[str], gone: list[str]) -> bool:
    left = [entry.path for entry in await told(cluster)]
    return left == [path for path in deleted if path not in gone]


@over_seeds(1, master=MASTER)
async def test_a_deleted_file_is_not_written(fs: Client) -> None:
    await fs.put(b"before", "/file")
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(0, b"B")
        await fs.delete("/file")
        with pytest.raises((NotFound, FileChanged)):
            await file.pwrite(10, b"after")
    await fs.undelete("/file")
    assert (await fs.get("/file"))[:6] == b"Before"


DAY_SECONDS = 86_400.0


@pytest.mark.costly
@over_seeds(6, kind=ShadowedCluster, master={"trash_seconds": KEPT_SECONDS})
async def test_clocks_that_jump_by_days_change_nothing(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """Of masters that run, that start, and of a shadow that is promoted: nothing goes before
    its time, the rest goes when masters have lived so long, and what was deleted last
    comes back first."""
    master = "master"

    def jump() -> None:
        days = chance.choice([-400, -3, 3, 10, 400]) * chance.uniform(0.5, 1.5)
        for name in {master, chance.choice(cluster.masters)}:
            cluster.machine(name).time.wall_offset_seconds = days * DAY_SECONDS

    await cluster.level("shadow0")
    await fs.put(b"kept", "/kept")
    await fs.delete("/kept")
    began = trio.current_time()
    for number in range(3):
        await fs.put(b"%d" % number, "/again")
        await fs.delete("/again")
        jump()
    promoted = chance.randrange(8)
    for number in range(8):
        await trio.sleep(chance.uniform(5, 30))
        jump()
        if number == promoted:
            await cluster.crash(master)
            master = "shadow0"
            await cluster.promote(master, force=True)
        elif chance.random() < 0.5:
            await cluster.crash(master)
            jump()
            await cluster.start(master)
        entries = {entry.path: entry async for entry in fs.trash()}
        left = (entries["/kept"].until_ns - cluster.machine(master).time.time_ns()) / 1e9
        passed = trio.current_time() - began
        assert KEPT_SECONDS - passed - 1 <= left <= KEPT_SECONDS, (left, passed)
    assert trio.current_time() - began < KEPT_SECONDS
    await fs.undelete("/again")
    assert await fs.get("/again") == b"2"

    async def is_gone() -> bool:
        return "/kept" not in [entry.path async for entry in fs.trash()]

    await cluster.wait_until(is_gone, 2 * KEPT_SECONDS, every=1.0)
    assert trio.current_time() - began >= KEPT_SECONDS

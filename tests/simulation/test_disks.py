"""One disk of several fails, vanishes or hangs, and comes back, while files are written."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from functools import partial

import pytest
import trio

from gfs.blocks import MIB
from gfs.chunkserver.disks import Disk as ServedDisk
from gfs.chunkserver.disks.disk import PROBE
from gfs.chunkserver.disks.health import UNREAD_MAX
from gfs.chunkserver.disks.identity import NAMES
from gfs.chunkserver.files import ChunkFile
from gfs.chunkserver.files.layout import HEAD_BYTES
from gfs.chunkserver.packs import DATA_NAME, Made
from gfs.chunkserver.replicas.store import ChunkStore
from gfs.client import Client
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import DiskFailed, GfsError, InvalidArgument, NotFound, ReplicaUnavailable
from gfs.protocol.messages import Disk
from gfs.testing import SimCluster
from gfs.testing.files import SimDisk, SimFile
from gfs.testing.inode import Hang

from .packs import packed_on, replicas_on
from .promises import STALL_SECONDS, content
from .seeds import over_seeds

DISK = "/disk0"
FILES = 40
#: More disk calls than a new server makes that change something, until it has ended, refused.
START_CALLS = 45
#: The same as in faults.
NAMED_SECONDS = 10.0
Act = Callable[[SimDisk], object]


def failing(code: int, *what: str) -> Act:
    return lambda disk: disk.fail(DISK, code, what or ("write", "sync"))


def hanging(disk: SimDisk) -> None:
    disk.hang(DISK, Hang(share=1.0, seconds=(60.0, 60.0)))


def emptied(disk: SimDisk) -> None:
    for path in disk.paths(DISK):
        disk.delete(path)


#: How a disk goes away: the state that it is in then, and what is done to it.
WAYS: dict[str, tuple[str, Act]] = {
    "refuses writes": ("failed", failing(errno.EIO)),
    "refuses reads": ("failed", failing(errno.EIO, "read")),
    "cannot be read": ("failed", lambda disk: disk.lose_reads(DISK)),
    "refuses all": ("failed", failing(errno.EIO, "read", "write", "sync")),
    "becomes read-only": ("failed", failing(errno.EROFS, "write")),
    "cannot sync": ("failed", failing(errno.EIO, "sync")),
    "is pulled": ("failed", lambda disk: disk.pull(DISK)),
    "is unmounted": ("missing", lambda disk: disk.unmount(DISK)),
    "is replaced": ("missing", lambda disk: disk.replace(DISK)),
    "is emptied": ("missing", emptied),
    "hangs": ("failed", hanging),
}


async def disks_of(fs: Client, name: str) -> dict[str, Disk]:
    for server in (await fs.status()).servers:
        if server.address.startswith(name):
            return {disk.path: disk for disk in server.disks}
    return {}


async def write_files(fs: Client, chance: random.Random, of: str) -> dict[str, bytes]:
    files = {f"/{of}{n}": content(chance, 2000) for n in range(FILES)}
    for path, data in files.items():
        await fs.put(data, path)
    return files


async def check_files(fs: Client, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        assert await fs.get(path) == data


@pytest.mark.parametrize("way", WAYS)
@over_seeds(3)
async def test_one_disk_that_goes_away_is_named_and_made_up_for(
    seed: int, chance: random.Random, way: str
) -> None:
    """Within ``NAMED_SECONDS`` by the default settings, while it is in use, and without a restart;
    no other disk is blamed; no replica is taken for damaged."""
    state, harm = WAYS[way]
    async with SimCluster(seed, chunkservers=4, disks=2) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "before")
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk

        async def write() -> None:
            files.update(await write_files(fs, chance, "meanwhile"))

        async def is_named() -> bool:
            return (await disks_of(fs, victim))[DISK].state == state

        await trio.sleep(chance.uniform(0, 3))
        async with trio.open_nursery() as nursery:
            harm(machine)
            nursery.start_soon(write)
            waited = await cluster.wait_until(is_named, NAMED_SECONDS, every=0.1)
            assert waited <= NAMED_SECONDS
        others = [
            disk
            for name in cluster.chunkservers
            for path, disk in (await disks_of(fs, name)).items()
            if (name, path) != (victim, DISK)
        ]
        assert {disk.state for disk in others} == {"ok"}
        assert not sum(disk.errors for disk in others)

        async def is_whole() -> bool:
            report = await fs.fsck()
            return not (await fs.status()).totals.under_replicated and not report.problems

        await cluster.wait_until(is_whole, 120, every=1)
        assert not (await fs.status()).totals.corruptions
        await check_files(fs, files)
        if way == "is unmounted":
            assert not machine.paths(DISK), "something was made where nothing is mounted"


@pytest.mark.parametrize("after", [n / 5 for n in range(12)])
@over_seeds(1)
async def test_a_disk_that_nobody_uses_is_named_as_soon_when_it_hangs(
    seed: int, chance: random.Random, after: float
) -> None:
    """Whenever it was looked at last."""
    one = MasterSettings(map_bytes=1 << 28, replication=1)
    async with (
        SimCluster(seed, chunkservers=1, disks=2, master=one) as cluster,
        cluster.client() as fs,
    ):
        (server,) = cluster.chunkservers
        await trio.sleep(1 + after)
        hanging(cluster.machine(server).disk)

        async def is_named() -> bool:
            return (await disks_of(fs, server))[DISK].state == "failed"

        assert await cluster.wait_until(is_named, NAMED_SECONDS, every=0.05) <= NAMED_SECONDS


@over_seeds(2)
async def test_a_disk_that_was_full_at_the_start_is_used_as_soon_as_it_has_room(
    seed: int, chance: random.Random
) -> None:
    """Without an order: others may have filled it, and have gone. After a power cut its redo
    journal is carried out, which takes room."""
    safe = ChunkserverSettings(durability="fsync")
    async with (
        SimCluster(seed, chunkservers=3, disks=2, chunkserver=safe) as cluster,
        cluster.client() as fs,
    ):
        files = {f"/{number}": content(chance, 100_000) for number in range(FILES)}
        for path, data in files.items():
            await fs.put(data, path)
            async with await fs.open(path, "r+") as file:
                await file.pwrite(len(data), more := content(chance, 30_000))
            files[path] = data + more
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        space = machine.space(DISK)
        await cluster.crash(victim)
        machine.power_cut(chance)
        machine.mount(DISK, 1)
        await cluster.start(victim)

        async def is_in(state: str) -> bool:
            return (await disks_of(fs, victim))[DISK].state == state

        await cluster.wait_until(partial(is_in, "failed"), 10, every=0.1)
        await trio.sleep(chance.uniform(0, 20))
        assert await is_in("failed")
        machine.volume(DISK).capacity_bytes = space.total_bytes
        await cluster.wait_until(partial(is_in, "ok"), 10, every=0.1)
        await check_files(fs, files)


@over_seeds(1)
async def test_a_disk_that_works_again_is_used_again_when_it_is_retried(
    seed: int, chance: random.Random
) -> None:
    async with (
        SimCluster(seed, chunkservers=3, disks=2) as cluster,
        cluster.client() as fs,
    ):
        files = await write_files(fs, chance, "file")
        victim = cluster.chunkservers[0]
        machine = cluster.machine(victim).disk
        volume = machine.unmount(DISK)
        server = cluster.address(victim)

        async def is_missing() -> bool:
            return (await disks_of(fs, victim))[DISK].state == "missing"

        await cluster.wait_until(is_missing, 15)
        with pytest.raises(DiskFailed, match="nothing is mounted there"):
            await fs.order_disk(server, DISK, "retry")
        with pytest.raises(InvalidArgument):
            await fs.order_disk(server, cluster.disks[1], "drain")  # the only one
        machine.mount_again(DISK, volume)
        disks = {disk.path: disk for disk in await fs.order_disk(server, DISK, "retry")}
        assert disks[DISK].state == "ok"
        await check_files(fs, files)

        async def is_used() -> bool:
            return (await disks_of(fs, victim))[DISK].chunks > 0

        await write_files(fs, chance, "more")
        await cluster.wait_until(is_used, 60)


@over_seeds(1)
async def test_a_server_starts_with_the_disks_that_are_well(
    seed: int, chance: random.Random
) -> None:
    """It does not take the bare directory below a mount that is away for a new disk."""
    async with SimCluster(seed, disks=2) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "file")
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        await cluster.crash(victim)
        volume = machine.unmount(DISK)
        await cluster.start(victim)
        assert not machine.paths(DISK)

        async def is_there() -> bool:
            disks = await disks_of(fs, victim)
            return bool(disks) and disks[DISK].state == "missing"

        await cluster.wait_until(is_there, 15)
        await check_files(fs, files)
        machine.mount_again(DISK, volume)
        await fs.order_disk(cluster.address(victim), DISK, "retry")
        await cluster.crash(victim)
        await cluster.start(victim)
        assert (await disks_of(fs, victim))[DISK].state == "ok"


@over_seeds(1)
async def test_what_was_mounted_is_never_made_below_its_mount(
    seed: int, chance: random.Random
) -> None:
    """By no order, nor after the disk was removed, unless a person says so; and another disk that
    is mounted there is a new one."""
    async with SimCluster(seed, disks=2) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "file")
        victim = chance.choice(cluster.chunkservers)
        server, machine = cluster.address(victim), cluster.machine(victim).disk
        machine.unmount(DISK)

        async def is_missing() -> bool:
            return (await disks_of(fs, victim))[DISK].state == "missing"

        await cluster.wait_until(is_missing, 15)
        assert (await disks_of(fs, victim))[DISK].reason == f"it was unmounted: mount it at {DISK}"
        for before in ("", "restart", "remove", "restart"):
            if before == "restart":
                await cluster.crash(victim)
                await cluster.start(victim)
            elif before:
                await fs.order_disk(server, DISK, before)
            for action in ("add", "retry"):
                with pytest.raises((DiskFailed, NotFound)) as refused:
                    await fs.order_disk(server, DISK, action)
                if action == "add":
                    assert "nothing is mounted there: mount it. To fill" in str(refused.value)
                    assert "gfs disk add --force" in str(refused.value)
            assert not machine.paths(DISK)
        machine.mount(DISK, 1 << 40)
        disks = {disk.path: disk for disk in await fs.order_disk(server, DISK, "add")}
        assert (disks[DISK].state, disks[DISK].mount) == ("ok", DISK)
        machine.unmount(DISK)
        await cluster.wait_until(is_missing, 15)
        assert not machine.paths(DISK)
        disks = {disk.path: disk for disk in await fs.order_disk(server, DISK, "add-unmounted")}
        assert disks[DISK].state == "ok"
        assert machine.paths(DISK)
        await cluster.crash(victim)
        await cluster.start(victim)
        assert (await disks_of(fs, victim))[DISK].state == "ok"
        await check_files(fs, files)


@over_seeds(1)
async def test_a_server_that_lost_its_only_mount_does_not_begin_as_another(
    seed: int, chance: random.Random
) -> None:
    """It comes back with its replicas when that is mounted again; also if the master was
    restarted meanwhile. It makes a new one of another disk that is mounted there."""
    async with SimCluster(seed, supervised=True) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "file")
        before = {server.id for server in (await fs.status()).servers}
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        for is_another in (False, True):
            await cluster.crash(victim)
            volume = machine.unmount(DISK)
            cluster.begin(victim)
            await trio.sleep(20)
            await cluster.restart("master")
            await trio.sleep(20)
            assert {server.id for server in (await fs.status()).servers} == before
            assert not machine.paths(DISK)
            if is_another:
                machine.mount(DISK, 1 << 40)
            else:
                machine.mount_again(DISK, volume)

            async def is_whole() -> bool:
                report = await fs.fsck()
                return not (await fs.status()).totals.under_replicated and not report.problems

            await cluster.wait_until(is_whole, 120, every=1)
            after = {server.id for server in (await fs.status()).servers}
            assert len(after - before) == is_another
        await check_files(fs, files)


@over_seeds(1)
async def test_a_server_that_is_refused_leaves_nothing_below_its_mount(
    seed: int, chance: random.Random
) -> None:
    """Nor does one that was killed before that, once it is refused. But a replica that it has not
    made stays, and whatever is not a server's."""
    settings = ChunkserverSettings(packed_bytes_max=0)
    async with (
        SimCluster(seed, supervised=True, chunkserver=settings) as cluster,
        cluster.client() as fs,
    ):
        files = await write_files(fs, chance, "file")
        victim, other = chance.sample(cluster.chunkservers, 2)
        machine = cluster.machine(victim).disk
        await cluster.crash(victim)
        volume = machine.unmount(DISK)

        async def start(calls: int = 0) -> list[str]:
            """Killed at one of its disk calls, or refused. What is there then."""
            cluster.begin(victim)
            cluster.hold(victim)
            cluster.kill_in_call(victim, calls)
            await cluster.node(victim).ended.wait()
            return machine.paths(DISK)

        remains = set[str]()
        for calls in range(1, START_CALLS):
            remains.update(await start(calls))
            assert not await start()
            assert not machine.exists(f"{DISK}/chunks")
        names = {path.rpartition("/")[2] for path in remains}
        assert names >= {*NAMES, "server.json.new", "journal.0", "journal.1", "marks", "lock"}
        replica = cluster.chunk_files(other)[0]
        kept = {f"{DISK}/note": b"of a person", replica: cluster.machine(other).disk.read(replica)}
        machine.make_directories(replica.rpartition("/")[0])
        for path, data in kept.items():
            machine.open_inode(path, "create").write(data, 0)
        left = await start()
        assert {path: machine.read(path) for path in left if path in kept} == kept
        assert not {f"{DISK}/{name}" for name in NAMES} & set(left)
        machine.mount_again(DISK, volume)
        await cluster.start(victim)
        await check_files(fs, files)


@over_seeds(1)
async def test_a_server_may_begin_below_a_mount_once_the_former_one_is_forgotten(
    seed: int, chance: random.Random
) -> None:
    master = MasterSettings(map_bytes=1 << 28, dead_seconds=6.0)
    async with (
        SimCluster(seed, master=master, supervised=True, chunkservers=4) as cluster,
        cluster.client() as fs,
    ):
        files = await write_files(fs, chance, "file")
        victim = chance.choice(cluster.chunkservers)
        (former,) = (s.id for s in (await fs.status()).servers if s.address.startswith(victim))
        await cluster.crash(victim)
        cluster.machine(victim).disk.unmount(DISK)
        cluster.begin(victim)

        async def is_forgotten() -> bool:
            with contextlib.suppress(GfsError):
                await fs.forget_server(former)
                return True
            return False

        await cluster.wait_until(is_forgotten, 120, every=1)
        await cluster.ready(victim)
        await check_files(fs, files)


@over_seeds(1)
async def test_a_disk_of_the_table_of_file_systems_is_not_made_before_it_is_mounted(
    seed: int, chance: random.Random
) -> None:
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)
        server, machine = cluster.address(victim), cluster.machine(victim).disk
        machine.mount("/new", 1 << 30, in_table=True)
        volume = machine.unmount("/new")
        with pytest.raises(DiskFailed, match="/etc/fstab"):
            await fs.order_disk(server, "/new/below", "add")
        assert not machine.paths("/new")
        machine.mount_again("/new", volume)
        await fs.order_disk(server, "/new/below", "add")
        assert (await disks_of(fs, victim))["/new/below"].mount == "/new"


@over_seeds(1)
async def test_a_disk_gets_a_file_system_of_its_own_unless_that_is_forced(
    seed: int, chance: random.Random
) -> None:
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)
        server, machine = cluster.address(victim), cluster.machine(victim).disk
        machine.mount("/own", 1 << 30)
        used = (await disks_of(fs, victim))[DISK]
        shared = f"the file system mounted at {used.mount}"
        for path, where in (
            ("/root/disk", "the root file system (/)"),
            (f"{used.mount}/second", "the root file system (/)" if used.mount == "/" else shared),
        ):
            with pytest.raises(DiskFailed, match=r"free of .* .iB.*gfs disk add --force") as caught:
                await fs.order_disk(server, path, "add")
            assert f"{path} cannot be used: it would be on {where}" in str(caught.value)
            with pytest.raises(FileNotFoundError):
                machine.paths(path)
            assert path not in await disks_of(fs, victim)
        added = {each.path: each for each in await fs.order_disk(server, "/own/first", "add")}
        assert (added["/own/first"].mount, added["/own/first"].state) == ("/own", "ok")
        with pytest.raises(DiskFailed, match="mounted at /own, where another disk of this machine"):
            await fs.order_disk(server, "/own/second", "add")
        for path in ("/root/disk", "/own/second"):
            disks = {each.path: each for each in await fs.order_disk(server, path, "add-unmounted")}
            assert disks[path].state == "ok"
        await cluster.restart(victim)
        assert {"/root/disk", "/own/first", "/own/second"} <= {*await disks_of(fs, victim)}


@over_seeds(1)
async def test_an_order_to_a_disk_of_a_server_that_dies_may_have_been_carried_out(
    seed: int, chance: random.Random
) -> None:
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        machine.mount("/new", 1 << 30)
        machine.hang("/new", Hang(1.0, (60.0, 60.0)))

        async def order() -> None:
            with pytest.raises(ReplicaUnavailable, match="may have carried out"):
                await fs.order_disk(cluster.address(victim), "/new", "add")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(order)
            await trio.sleep(1)
            await cluster.crash(victim)


@pytest.mark.parametrize("name", NAMES)
@over_seeds(1)
async def test_a_record_that_cannot_be_read_is_made_again_from_its_copy(
    seed: int, chance: random.Random, name: str
) -> None:
    """While the server runs, and at a start; the disk is used all the time."""
    async with SimCluster(seed, disks=2) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        path = f"{DISK}/{name}"
        for spoils_at_start in (False, True):
            if spoils_at_start:
                await cluster.crash(victim)
            machine.spoil(path, 0)
            if spoils_at_start:
                await cluster.start(victim)
            else:
                await trio.sleep(10)  # it is looked at meanwhile
                await fs.put(b"what makes the server save its record", "/file")
            await cluster.wait_until(lambda: not machine.inode(path).unreadable, 120)
            disk = (await disks_of(fs, victim))[DISK]
            assert (disk.state, disk.errors) == ("ok", 0)


@over_seeds(1)
async def test_a_record_of_which_no_copy_can_be_read_is_made_again(
    seed: int, chance: random.Random
) -> None:
    """At once, or each look at the disk would be an error, and its next start would fail."""
    async with SimCluster(seed, disks=2) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        paths = [f"{DISK}/{name}" for name in NAMES]
        for path in paths:
            machine.spoil(path, 0)
        await trio.sleep(5)
        assert not any(machine.inode(path).unreadable for path in paths)
        disk = (await disks_of(fs, victim))[DISK]
        assert (disk.state, disk.errors) == ("ok", 1)
        await cluster.crash(victim)
        await cluster.start(victim)
        assert (await disks_of(fs, victim))[DISK].state == "ok"


@over_seeds(2)
async def test_a_disk_is_drained_removed_and_added_while_files_are_written(
    seed: int, chance: random.Random
) -> None:
    async with SimCluster(seed, disks=2) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "before")
        victim = chance.choice(cluster.chunkservers)
        server = cluster.address(victim)
        with pytest.raises(GfsError):
            await fs.order_disk(server, DISK, "remove")
        await fs.order_disk(server, DISK, "drain")
        files |= await write_files(fs, chance, "meanwhile")

        async def is_empty() -> bool:
            return not (await disks_of(fs, victim))[DISK].chunks

        await cluster.wait_until(is_empty, 60)
        assert not (await fs.status()).totals.under_replicated
        await fs.order_disk(server, DISK, "remove")
        assert DISK not in await disks_of(fs, victim)
        await cluster.crash(victim)
        await cluster.start(victim)
        await cluster.wait_until(lambda: disks_of(fs, victim), 15)
        assert DISK not in await disks_of(fs, victim), "it was removed"
        await fs.order_disk(server, DISK, "add")
        assert (await disks_of(fs, victim))[DISK].state == "ok"
        await check_files(fs, files)
        await trio.sleep(1)


@pytest.mark.usefixtures("slow_scrub")
@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("at", ["/disk0", "/disk1"])
@pytest.mark.parametrize("fails", ["/disk0", "/disk1"])
@pytest.mark.parametrize(
    "what",
    ["small", *(pytest.param(what, marks=pytest.mark.costly) for what in ("large", "changed"))],
)
@over_seeds(1)
async def test_a_disk_that_fails_while_a_replica_is_moved_loses_none(
    seed: int,
    chance: random.Random,
    what: str,
    fails: str,
    at: str,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At each call for the moved one to the disk that it comes from, or goes to. Of each file there
    is one replica, with all that was acknowledged."""
    left = step
    known: dict[str, ServedDisk] = {}

    async def run(disk: ServedDisk, function: Callable[..., object], *args: object) -> object:
        nonlocal left
        known[disk.path] = disk
        result = await make_call(disk, function, *args)
        if moving and disk.path == at and fails in known:
            left -= 1
            if left == -1:
                known[fails].fail("failed", "the test has said so")
                if fails == at:
                    raise disk.failure()
        return result

    async def install(
        store: ChunkStore, disk: ServedDisk, file: ChunkFile | Made, moved: int | None = None
    ) -> None:
        moving.add(file.handle)
        try:
            await install_it(store, disk, file, moved)
        finally:
            moving.discard(file.handle)

    moving: set[int] = set()
    make_call, install_it = ServedDisk.run, ChunkStore.install
    settings = ChunkserverSettings(durability="fsync" if what == "changed" else "replicated")
    async with (
        SimCluster(
            seed,
            chunkservers=1,
            disks=2,
            master=MasterSettings(replication=1),
            chunkserver=settings,
        ) as cluster,
        cluster.client() as fs,
    ):
        files = {f"/{n}": content(chance, 2000 if what == "small" else 200_000) for n in range(6)}
        for path, data in files.items():
            await fs.put(data, path)
            if what == "changed":
                async with await fs.open(path, "r+") as file:
                    await file.pwrite(1000, b"changed")
                files[path] = data[:1000] + b"changed" + data[1007:]
        (server,) = cluster.chunkservers
        here = replicas_on(cluster, server)
        monkeypatch.setattr(ServedDisk, "run", run)
        monkeypatch.setattr(ChunkStore, "install", install)
        await fs.order_disk(cluster.address(server), DISK, "drain")

        async def has_moved() -> bool:
            return left < 0 or not (await disks_of(fs, server))[DISK].chunks

        await cluster.wait_until(has_moved, 60)
        monkeypatch.undo()
        await trio.sleep(5)
        if left < 0:
            left_there = [each for each in replicas_on(cluster, server) if each[0] != fails]

            async def is_known() -> bool:
                """Each that is there, and no other."""
                return (await fs.status()).totals.lost == len(files) - len(left_there)

            await cluster.wait_until(is_known, 120)
            if step == 0 and at == DISK != fails:
                assert len(left_there) == len([each for each in here if each[0] == DISK])
            await fs.order_disk(cluster.address(server), fails, "retry")

        async def is_empty() -> bool:
            return not (await disks_of(fs, server))[DISK].chunks

        await cluster.wait_until(is_empty, 120)
        await check_files(fs, files)
        await trio.sleep(60)
        assert sorted(replicas_on(cluster, server)) == sorted(("/disk1", h) for _, h in here)


@over_seeds(2)
async def test_what_a_drained_disk_kept_does_not_come_back(
    seed: int, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed just when a replica had been moved, which was written since in the same version."""

    async def remove(store: ChunkStore, disk: ServedDisk, handle: int) -> None:
        disk.fail("failed", "the test has said so")

    async with (
        SimCluster(
            seed,
            chunkservers=1,
            disks=2,
            master=MasterSettings(replication=1),
            chunkserver=ChunkserverSettings(durability="fsync"),
        ) as cluster,
        cluster.client() as fs,
    ):
        (server,) = cluster.chunkservers
        paths = [f"/{number}" for number in range(4)]
        for path in paths:
            await fs.put(content(chance, 200_000), path)
        async with contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(await fs.open(p, "r+")) for p in paths]
            for file in opened:
                await file.pwrite(0, b"before")
            monkeypatch.setattr(ChunkStore, "_remove_duplicate", remove)
            await fs.order_disk(cluster.address(server), DISK, "drain")

            async def has_failed() -> bool:
                return (await disks_of(fs, server))[DISK].state == "failed"

            await cluster.wait_until(has_failed, 60)
            monkeypatch.undo()
            for file in opened:
                with contextlib.suppress(GfsError):  # of a file that was not moved
                    await file.pwrite(0, b"later!")
        changed = {}
        for path in paths:
            with contextlib.suppress(GfsError):
                changed[path] = await fs.get(path)
        assert changed
        await cluster.crash(server)
        await cluster.start(server)
        await trio.sleep(60)
        for path, data in changed.items():
            assert data[:6] == b"later!"
            assert await fs.get(path) == data


@over_seeds(2)
async def test_a_disk_with_a_bad_sector_is_drained_and_no_other_is_blamed(
    seed: int, chance: random.Random
) -> None:
    async with SimCluster(seed, chunkservers=4, disks=3) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "file")
        victim = cluster.chunkservers[0]
        machine = cluster.machine(victim).disk
        bad = [path for path in cluster.chunk_files(victim) if path.startswith(f"{DISK}/")]
        places = [(path, HEAD_BYTES) for path in bad]
        for packed in packed_on(cluster, victim, DISK):
            places.append((f"{DISK}/{DATA_NAME}", packed.record.offset))
        for path, offset in places[:2]:
            machine.inode(path).evict()
            machine.spoil(path, offset)
        await fs.order_disk(cluster.address(victim), DISK, "drain")

        async def is_empty() -> bool:
            return not (await disks_of(fs, victim))[DISK].chunks

        await cluster.wait_until(is_empty, 120)
        disks = await disks_of(fs, victim)
        assert {path: disk.state for path, disk in disks.items() if path != DISK} == dict.fromkeys(
            cluster.disks[1:], "ok"
        )
        assert [disk.errors > 0 for disk in disks.values()] == [True, False, False]
        await check_files(fs, files)


@pytest.mark.parametrize("size", [2000, 200_000])
@over_seeds(1)
async def test_a_disk_fails_by_many_bad_sectors_and_by_few_it_does_not(
    seed: int, chance: random.Random, size: int
) -> None:
    """However often one of them is read."""
    settings = ChunkserverSettings(packed_bytes_max=0)
    async with (
        SimCluster(seed, chunkservers=4, disks=2, chunkserver=settings) as cluster,
        cluster.client() as fs,
    ):
        files = {f"/{n}": content(chance, size) for n in range(4 * UNREAD_MAX)}
        for path, data in files.items():
            await fs.put(data, path)
        victim = cluster.chunkservers[0]
        machine = cluster.machine(victim).disk
        there = [path for path in cluster.chunk_files(victim) if path.startswith(f"{DISK}/")]
        assert len(there) >= UNREAD_MAX
        for count, state in ((UNREAD_MAX - 1, "ok"), (1, "failed")):
            for path in there[:count]:
                machine.inode(path).evict()
                machine.spoil(path, HEAD_BYTES)
            del there[:count]
            for _ in range(6):
                await fs.fsck(verify=True)
            await trio.sleep(10)
            disks = await disks_of(fs, victim)
            assert disks[DISK].errors >= count
            assert (disks[DISK].state, disks["/disk1"].state) == (state, "ok")
        assert f"{UNREAD_MAX} places on it could not be read" in disks[DISK].reason
        await check_files(fs, files)


@over_seeds(1)
async def test_a_disk_that_gives_back_other_bytes_than_it_was_given_has_failed(
    seed: int, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the probe finds after a failed read."""

    def read_zeros(file: SimFile, buffer: memoryview, offset: int) -> int:
        count = read_into(file, buffer, offset)
        if file._path.endswith(f"/{PROBE}"):
            buffer[:count] = bytes(count)
        return count

    read_into = SimFile.read_into
    settings = ChunkserverSettings(packed_bytes_max=0)
    async with (
        SimCluster(seed, chunkservers=4, disks=2, chunkserver=settings) as cluster,
        cluster.client() as fs,
    ):
        files = await write_files(fs, chance, "file")
        victim = cluster.chunkservers[0]
        machine = cluster.machine(victim).disk
        (path, *_) = (each for each in cluster.chunk_files(victim) if each.startswith(f"{DISK}/"))
        machine.inode(path).evict()
        machine.spoil(path, HEAD_BYTES)
        monkeypatch.setattr(SimFile, "read_into", read_zeros)
        await fs.fsck(verify=True)

        async def has_failed() -> bool:
            return (await disks_of(fs, victim))[DISK].state == "failed"

        await cluster.wait_until(has_failed, NAMED_SECONDS)
        assert "other bytes were read" in (await disks_of(fs, victim))[DISK].reason
        await check_files(fs, files)


@over_seeds(1)
async def test_disks_that_hung_together_come_back_together(
    seed: int, chance: random.Random
) -> None:
    """One of them may take longer to be read than an order waits for another."""
    settings = ChunkserverSettings(disk_hang_seconds=4)
    async with SimCluster(seed, disks=3, chunkserver=settings) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "file")
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        for path in cluster.disks[:2]:
            machine.hang(path, Hang(share=1.0, seconds=(20.0, 20.0)))
        await trio.sleep(10)
        for path in cluster.disks[:2]:
            machine.hang(path, Hang(share=1.0, seconds=(3.0, 3.0), kinds=("list",)))

        async def are_used() -> bool:
            disks = await disks_of(fs, victim)
            return bool(disks) and {disk.state for disk in disks.values()} == {"ok"}

        await cluster.wait_until(are_used, 600)
        await check_files(fs, files)


@over_seeds(1)
async def test_a_disk_that_is_slow_is_not_one_that_hangs(seed: int, chance: random.Random) -> None:
    """A replica is read for longer than a call may hang, a part at a time."""
    settings = ChunkserverSettings(disk_hang_seconds=4)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        await fs.put(content(chance, 12 * MIB), "/file")
        for name in cluster.chunkservers:
            machine = cluster.machine(name).disk
            for path in cluster.chunk_files(name):
                machine.inode(path).evict()
            machine.hang(DISK, Hang(share=1.0, seconds=(2.5, 2.5), kinds=("read",)))
        assert not (await fs.fsck()).problems
        for name in cluster.chunkservers:
            assert (await disks_of(fs, name))[DISK].errors == 0


@pytest.mark.parametrize(
    "meanwhile", ["all is well", "it is slow", "it fails", "files are written"]
)
@over_seeds(1)
async def test_a_disk_returns_when_another_one_has_its_replicas(
    seed: int, chance: random.Random, meanwhile: str
) -> None:
    """Both files of each chunk were read before the order to retry was answered: all other
    orders waited; and when the other disk failed by that, this one was blamed."""
    other = "/disk1"
    async with SimCluster(seed, chunkservers=3, disks=2) as cluster, cluster.client() as fs:
        files = await write_files(fs, chance, "file")
        victim = chance.choice(cluster.chunkservers)
        machine = cluster.machine(victim).disk
        volume = machine.unmount(DISK)

        async def is_made_anew() -> bool:
            state = (await disks_of(fs, victim))[DISK].state
            return state == "missing" and not (await fs.status()).totals.under_replicated

        await cluster.wait_until(is_made_anew, 120, every=1)
        machine.mount_again(DISK, volume)
        if meanwhile == "it is slow":
            machine.hang(other, Hang(share=1.0, seconds=(0.5, 0.5), kinds=("read",)))
        elif meanwhile == "it fails":
            machine.fail(other)
        with trio.fail_after(5):
            await fs.order_disk(cluster.address(victim), DISK, "retry")
        machine.hang(other, None)
        if meanwhile == "files are written":
            for path in files:
                files[path] = content(chance, 2000)
                async with await fs.open(path, "r+") as file:
                    await file.pwrite(0, files[path])
        states = {path: disk.state for path, disk in (await disks_of(fs, victim)).items()}
        assert states == {DISK: "ok", other: "failed" if meanwhile == "it fails" else "ok"}

        async def is_settled() -> bool:
            used = [each for each in replicas_on(cluster, victim) if states[each[0]] == "ok"]
            names = {handle for _, handle in used}
            report, totals = await fs.fsck(), (await fs.status()).totals
            is_whole = not report.problems and not totals.under_replicated
            return is_whole and len(used) == len(names) == FILES

        await cluster.wait_until(is_settled, 120, every=1)
        assert not (await fs.status()).totals.corruptions
        await check_files(fs, files)


@pytest.mark.parametrize(
    "before",
    [pytest.param(0.0, marks=pytest.mark.costly), 1.7, pytest.param(3.0, marks=pytest.mark.costly)],
)
@over_seeds(1)
async def test_no_call_takes_longer_than_promised_when_a_disk_hangs(
    seed: int, chance: random.Random, before: float
) -> None:
    """However slow the disk was just before. A call that has not hung yet is no sign that it
    makes progress."""
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        disk = cluster.machine("chunkserver1").disk

        async def call(name: str, size: int) -> None:
            for number in range(40):
                with trio.fail_after(STALL_SECONDS):
                    await fs.put(chance.randbytes(size), f"/{name}/{number}")
                with trio.fail_after(STALL_SECONDS):
                    await fs.append(f"/{name}.log", chance.randbytes(size))
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(call, f"small-{number}", 100)
                nursery.start_soon(call, f"large-{number}", 150_000)
            for seconds in (before, 60.0):
                await trio.sleep(2.0)
                disk.hang(cluster.disks[0], Hang(1.0, (seconds, seconds), ("write", "sync")))
                await trio.sleep(seconds if seconds == before else 0.0)
                if seconds == before:
                    disk.hang(cluster.disks[0], None)

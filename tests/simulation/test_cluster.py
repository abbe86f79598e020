"""What the file system promises, at many seeded moments of simulated time."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import trio

from gfs.blocks import MIB
from gfs.client import Client
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings
from gfs.errors import AlreadyExists, FileChanged, GfsError, NotFound
from gfs.testing import SimCluster, run_simulated

from .seeds import over_seeds

#: Two chunks, the second partly full.
LARGE_BYTES = 66 * MIB + 4321
#: The longest wait a client may see when one chunkserver dies.
STALL_SECONDS = 5.0
#: From a death to the file being whole again everywhere.
REPAIR_SECONDS = 30.0


@functools.cache
def noise() -> bytes:
    return random.Random(0).randbytes(80 * MIB)


def content(chance: random.Random, length: int) -> bytes:
    """Bytes without a period, different for each call."""
    start = chance.randrange(len(noise()) - length)
    return noise()[start : start + length]


async def later(seconds: float, action: Callable[..., Any], *args: object) -> None:
    await trio.sleep(seconds)
    result = action(*args)
    if inspect.isawaitable(result):
        await result


async def replicas(fs: Client, path: str, without: Iterable[str] = ()) -> int:
    """The fewest replicas a chunk of the file has on other machines than these."""
    report = await fs.locate(path)
    hosts = [[r.address.partition(":")[0] for r in c.replicas] for c in report.chunks]
    return min(sum(host not in without for host in each) for each in hosts)


async def wait_for_goal(
    cluster: SimCluster, fs: Client, path: str, goal: int, without: Iterable[str] = (),
    timeout: float = REPAIR_SECONDS,
) -> None:  # fmt: skip
    async def reached() -> bool:
        return await replicas(fs, path, without) >= goal

    await cluster.wait_until(reached, timeout, f"{path} at {goal} replicas")


async def sound(fs: Client) -> bool:
    """Whether every replica of everything verifies and all files are at their goal."""
    return not (await fs.fsck()).damaged


async def assert_sound(fs: Client) -> None:
    report = await fs.fsck()
    assert not report.damaged, report.problems


# --- 1: one chunkserver dies ------------------------------------------------------------


@over_seeds(12)
async def test_a_chunkserver_dies_while_a_file_is_put(seed: int, chance: random.Random) -> None:
    data = content(chance, LARGE_BYTES)
    async with SimCluster(seed, chunkservers=5) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)
        start = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, chance.uniform(0, 0.3), cluster.kill, victim)
            await fs.put(data, "/dir/file")
            taken = trio.current_time() - start
        assert taken < STALL_SECONDS + 1
        assert await fs.get("/dir/file") == data
        await wait_for_goal(cluster, fs, "/dir/file", 3, without=[victim])
        await assert_sound(fs)


@over_seeds(12)
async def test_a_chunkserver_dies_while_a_file_is_fetched(seed: int, chance: random.Random) -> None:
    data = content(chance, LARGE_BYTES)
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        located = await fs.locate("/file")
        victim = chance.choice(located.chunks[0].replicas).address.partition(":")[0]
        start = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, chance.uniform(0, 0.1), cluster.kill, victim)
            assert await fs.get("/file") == data
            taken = trio.current_time() - start
        assert taken < STALL_SECONDS + 1
        await wait_for_goal(cluster, fs, "/file", 3, without=[victim])
        await assert_sound(fs)


@over_seeds(8)
async def test_the_third_of_three_dies_and_comes_back(seed: int, chance: random.Random) -> None:
    """Two of three replicas are enough to write; the third is made when it can be."""
    data, other = content(chance, 3 * MIB), content(chance, 2 * MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(other, "/before")
        victim = chance.choice(cluster.chunkservers)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later, chance.uniform(0, 0.02), cluster.crash, victim)
            await fs.put(data, "/file")
        await fs.put(other, "/after")
        await trio.sleep(chance.choice([0, 10, 60]))
        await cluster.start(victim)
        for path in ("/before", "/file", "/after"):
            await wait_for_goal(cluster, fs, path, 3, timeout=REPAIR_SECONDS + 15)
        for path, wanted in (("/before", other), ("/file", data), ("/after", other)):
            assert await fs.get(path) == wanted
        await assert_sound(fs)


@over_seeds(6)
async def test_one_comes_back_with_an_empty_disk(seed: int, chance: random.Random) -> None:
    data = content(chance, 2 * MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        for number in range(5):
            await fs.put(data[number:], f"/{number}")
        victim = chance.choice(cluster.chunkservers)
        await cluster.crash(victim)
        cluster.machine(victim).disk.wipe()
        await cluster.start(victim)
        # Until the server that was there before counts as dead, it is counted.
        await cluster.wait_until(lambda: sound(fs), 60)
        for number in range(5):
            assert await fs.get(f"/{number}") == data[number:]


@over_seeds(6)
async def test_a_chunkserver_falls_silent(seed: int, chance: random.Random) -> None:
    """Cut off from everyone, it is taken for dead; back again, it is put to use."""
    data = content(chance, LARGE_BYTES)
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        victim = chance.choice(cluster.chunkservers)

        others = [*cluster.names, "client0"]
        async with trio.open_nursery() as nursery:
            silence = cluster.network.partition
            nursery.start_soon(later, chance.uniform(0, 0.3), silence, [victim], others)
            await fs.put(data, "/file")
            assert await fs.get("/file") == data
        await wait_for_goal(cluster, fs, "/file", 3, without=[victim], timeout=60)
        cluster.network.heal()
        await trio.sleep(30)
        status = await fs.status()
        assert [s.state for s in status.servers] == ["live"] * 4
        assert await fs.get("/file") == data
        await assert_sound(fs)


# --- 2 and 3: the master dies, everything dies ------------------------------------------


class Acknowledged:
    """Writers of many small files, and what they were told."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.sent: dict[str, bytes] = {}
        self.done: dict[str, bytes | None] = {}
        #: Names whose last operation has no answer: either state is right.
        self.unsure: set[str] = set()

    async def write(self, fs: Client, name: str) -> None:
        for number in range(1000):
            path = f"/{name}/{number % 7}/{number}"
            data = content(self.chance, self.chance.choice([0, 1, 5000, 70_000, 300_000]))
            self.sent[path] = data
            self.unsure.add(path)
            await fs.put(data, path)
            self.unsure.discard(path)
            self.done[path] = data
            if number % 5 == 4:
                await self._rename(fs, path)
            if number % 7 == 6:
                await self._delete(fs, path)

    async def _rename(self, fs: Client, path: str) -> None:
        target = f"{path}-moved"
        self.sent[target] = self.sent[path]
        self.unsure |= {path, target}
        await fs.rename(path, target)
        self.unsure -= {path, target}
        self.done[target] = self.done[path]
        self.done[path] = None

    async def _delete(self, fs: Client, path: str) -> None:
        if self.done[path] is None:
            return
        self.unsure.add(path)
        await fs.delete(path)
        self.unsure.discard(path)
        self.done[path] = None

    async def check(self, fs: Client) -> None:
        assert self.done
        for path, wanted in self.done.items():
            if path in self.unsure:
                continue
            if wanted is None:
                with pytest.raises(NotFound):
                    await fs.get(path)
            else:
                assert await fs.get(path) == wanted, path
        for path in sorted(self.unsure):
            try:
                assert await fs.get(path) == self.sent[path], path
            except NotFound:
                continue
        files = [entry.path async for entry in fs.walk("/") if entry.kind == "file"]
        known = {path for path, data in self.done.items() if data is not None} | self.unsure
        assert set(files) <= known
        assert {p for p, d in self.done.items() if d is not None and p not in self.unsure} <= set(
            files
        )


@over_seeds(15)
async def test_the_master_dies_and_comes_back(seed: int, chance: random.Random) -> None:
    """Clients carry on by themselves; nothing acknowledged is lost."""
    work = Acknowledged(chance)
    async with SimCluster(seed) as cluster, cluster.client() as one, cluster.client() as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.write, one, "one")
            nursery.start_soon(work.write, other, "other")
            for _ in range(3):
                await trio.sleep(chance.uniform(0, 0.2))
                await cluster.crash("master")
                await trio.sleep(chance.choice([0, 0.5, 5]))
                await cluster.start("master")
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        await work.check(one)
        await cluster.wait_until(lambda: settled(one), 90)
        await assert_sound(one)


async def settled(fs: Client) -> bool:
    totals = (await fs.status()).totals
    return not (totals.under_replicated or totals.lost or totals.corrupt)


@over_seeds(8)
async def test_the_master_dies_in_a_large_put(seed: int, chance: random.Random) -> None:
    data = content(chance, LARGE_BYTES)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        async with trio.open_nursery() as nursery:
            death, return_ = chance.uniform(0, 0.3), chance.choice([0, 1, 10])
            nursery.start_soon(later, death, cluster.crash, "master")
            nursery.start_soon(later, death + return_ + 0.1, cluster.start, "master")
            await fs.put(data, "/file")
        assert await fs.get("/file") == data
        await wait_for_goal(cluster, fs, "/file", 3)
        await assert_sound(fs)


@over_seeds(15)
async def test_everything_dies_at_once(seed: int, chance: random.Random) -> None:
    work = Acknowledged(chance)
    async with SimCluster(seed) as cluster:

        async def write(name: str) -> None:
            async with cluster.client(name) as fs:
                await work.write(fs, name)

        for turn in range(2):
            clients = [f"one{turn}", f"other{turn}"]
            async with trio.open_nursery() as nursery:
                for name in clients:
                    nursery.start_soon(write, name)
                await trio.sleep(chance.uniform(0.02, 0.4))
                for name in clients:
                    cluster.kill(name)
                await cluster.crash_all()
            await cluster.start_all()
            async with cluster.client() as fs:
                await work.check(fs)
        async with cluster.client() as fs:
            await cluster.wait_until(lambda: settled(fs), 90)
            await assert_sound(fs)
            wanted = (await fs.status()).totals.chunks

            def no_garbage() -> bool:
                return all(len(cluster.chunk_files(s)) == wanted for s in cluster.chunkservers)

            await cluster.wait_until(no_garbage, 300, f"{wanted} chunks each")


@over_seeds(4)
async def test_everything_dies_in_a_large_put_over_a_file(seed: int, chance: random.Random) -> None:
    """The old file or the new one, never a mixture and never none."""
    old, new = content(chance, MIB), content(chance, LARGE_BYTES)
    async with SimCluster(seed) as cluster:
        acknowledged = False

        async def put() -> None:
            nonlocal acknowledged
            async with cluster.client("writer") as fs:
                await fs.put(old, "/file")
                await fs.put(new, "/file", overwrite=True)
                acknowledged = True
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await trio.sleep(chance.uniform(0.1, 0.4))
            cluster.kill("writer")
            await cluster.crash_all()
        await cluster.start_all()
        async with cluster.client() as fs:
            found = await fs.get("/file")
            assert found == new or (found == old and not acknowledged)


# --- 4: damage on a disk ----------------------------------------------------------------


def harm(cluster: SimCluster, server: str, path: str, how: str, chance: random.Random) -> None:
    disk = cluster.machine(server).disk
    size = len(disk.read(path))
    if how == "flip":
        disk.flip_bit(path, chance.randrange(8 * size))
    elif how == "flip in the head":
        disk.flip_bit(path, chance.randrange(8 * min(size, 16 * 1024)))
    elif how == "truncate":
        disk.truncate(path, chance.randrange(size))
    else:
        disk.delete(path)


HARMS = ["flip", "flip in the head", "truncate", "delete"]


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("restarted", [False, True])
@over_seeds(4)
async def test_a_damaged_replica_is_never_served_and_is_repaired(
    seed: int, chance: random.Random, how: str, restarted: bool
) -> None:
    data = content(chance, chance.choice([100, 65_536, 300_000, 2 * MIB + 17]))
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        victim = chance.choice(cluster.chunkservers)
        if restarted:
            await cluster.crash(victim)
        (path,) = cluster.chunk_files(victim)
        harm(cluster, victim, path, how, chance)
        if restarted:
            await cluster.start(victim)

        async def read() -> None:
            assert await fs.get("/file") == data
            start = chance.randrange(len(data))
            length = chance.randint(1, 1000)
            async with await fs.open("/file") as file:
                assert await file.pread(start, length) == data[start : start + length]

        for _ in range(10):
            await read()
        await fs.fsck()

        async def repaired() -> bool:
            await read()
            return await sound(fs)

        await cluster.wait_until(repaired, REPAIR_SECONDS)
        await wait_for_goal(cluster, fs, "/file", 3)
        for server in cluster.chunkservers:
            await cluster.restart(server)
        assert await fs.get("/file") == data
        await assert_sound(fs)


@pytest.mark.parametrize("how", HARMS)
@over_seeds(2)
async def test_damage_is_found_and_repaired_without_a_reader(
    seed: int, chance: random.Random, how: str
) -> None:
    data = content(chance, 300_000)
    settings = ChunkserverSettings(scan_seconds=5, scrub_seconds=60)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        victim = chance.choice(cluster.chunkservers)
        disk = cluster.machine(victim).disk
        (path,) = cluster.chunk_files(victim)
        before = disk.read(path)
        harm(cluster, victim, path, how, chance)

        def whole() -> bool:
            files = cluster.chunk_files(victim)
            return bool(files) and disk.read(files[0])[-len(data) :] == before[-len(data) :]

        await cluster.wait_until(whole, 150, "repaired")
        await wait_for_goal(cluster, fs, "/file", 3)
        await assert_sound(fs)


@over_seeds(4)
async def test_one_good_replica_is_enough(seed: int, chance: random.Random) -> None:
    data = content(chance, MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        await fs.put(data, "/file")
        servers = cluster.chunkservers[:]
        chance.shuffle(servers)
        for server in servers[:2]:
            harm(cluster, server, cluster.chunk_files(server)[0], chance.choice(HARMS), chance)
        assert await fs.get("/file") == data

        async def repaired() -> bool:
            assert await fs.get("/file") == data
            return await sound(fs)

        await cluster.wait_until(repaired, 2 * REPAIR_SECONDS)


@over_seeds(4)
async def test_no_good_replica_is_an_error_and_never_wrong_bytes(
    seed: int, chance: random.Random
) -> None:
    data = content(chance, 200_000)
    settings = ClientSettings(retry_seconds=5)
    async with SimCluster(seed) as cluster, cluster.client(settings=settings) as fs:
        await fs.put(data, "/file")
        for server in cluster.chunkservers:
            (path,) = cluster.chunk_files(server)
            cluster.machine(server).disk.flip_bit(path, 8 * (16 * 1024 + 70_000))
        async with await fs.open("/file") as file:
            assert await file.pread(0, 1000) == data[:1000]
        with pytest.raises(GfsError) as caught:
            await fs.get("/file")
        assert caught.value.code in ("chunk_unavailable", "corrupt_replica")
        # Nobody threw the last copies away: most of the bytes are still there.
        await trio.sleep(200)
        assert [len(cluster.chunk_files(s)) for s in cluster.chunkservers] == [1, 1, 1]


@over_seeds(3)
async def test_a_full_disk_is_an_error_and_damages_nothing(
    seed: int, chance: random.Random
) -> None:
    data = content(chance, 3 * MIB)
    settings = ChunkserverSettings(reserve_bytes=0)
    hasty = ClientSettings(retry_seconds=3)
    cluster = SimCluster(seed, chunkserver=settings)
    async with cluster, cluster.client(settings=hasty) as fs:
        await fs.put(data, "/file")
        for server in cluster.chunkservers:
            disk = cluster.machine(server).disk
            used = disk.space("/disk0").total_bytes - disk.space("/disk0").free_bytes
            disk.mount("/", used + 2 * MIB)
        with pytest.raises(GfsError) as caught:
            await fs.put(data, "/second")
        assert caught.value.code in ("disk_full", "not_enough_chunkservers")
        assert not await fs.exists("/second")
        assert await fs.get("/file") == data
        for server in cluster.chunkservers:
            cluster.machine(server).disk.mount("/", 1 << 40)
        await trio.sleep(30)
        await fs.put(data, "/second")
        assert await fs.get("/second") == data
        await assert_sound(fs)


# --- 5: one name, many writers ----------------------------------------------------------


@over_seeds(6)
async def test_of_concurrent_writers_one_whole_file_wins(seed: int, chance: random.Random) -> None:
    versions = [content(chance, chance.randint(1, 2 * MIB)) for _ in range(8)]
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as reader:
        await reader.put(versions[0], "/file")
        done = trio.Event()

        async def write(data: bytes) -> None:
            await trio.sleep(chance.uniform(0, 0.02))
            async with cluster.client() as fs:
                await fs.put(data, "/file", overwrite=True)

        async def read() -> None:
            while not done.is_set():
                try:
                    assert await reader.get("/file") in versions
                except FileChanged:
                    continue

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async with trio.open_nursery() as writers:
                for data in versions[1:]:
                    writers.start_soon(write, data)
            done.set()
        assert await reader.get("/file") in versions[1:]
        await assert_sound(reader)

        def only_the_winner_is_stored() -> bool:
            stored = [len(cluster.chunk_files(s)) for s in cluster.chunkservers]
            return sorted(stored) == [0, 1, 1, 1]

        await cluster.wait_until(only_the_winner_is_stored, 300)


@over_seeds(4)
async def test_of_writers_that_must_not_replace_one_wins(seed: int, chance: random.Random) -> None:
    versions = [content(chance, 100_000 + n) for n in range(6)]
    winners: list[bytes] = []
    async with SimCluster(seed) as cluster, cluster.client() as fs:

        async def write(data: bytes) -> None:
            try:
                await fs.put(data, "/file")
            except AlreadyExists:
                return
            winners.append(data)

        async with trio.open_nursery() as nursery:
            for data in versions:
                nursery.start_soon(write, data)
        assert len(winners) == 1
        assert await fs.get("/file") == winners[0]


# --- 6: hostile peers -------------------------------------------------------------------


@over_seeds(3)
async def test_hostile_peers_cost_their_connection_only(seed: int, chance: random.Random) -> None:
    data = content(chance, MIB)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        evil = cluster.universe.machine("evil").start_process().world
        addresses = ["master:9400", *(f"{name}:9500" for name in cluster.chunkservers)]

        async def attack(address: str, garbage: bytes, stalls: bool) -> None:
            stream = await evil.network.connect(address)
            try:
                await stream.send_all(garbage)
                while not stalls and await stream.receive_into(memoryview(bytearray(4096))):
                    pass
                await trio.sleep(30)
            except ConnectionError:
                pass
            finally:
                stream.close()

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                address = chance.choice(addresses)
                garbage = chance.randbytes(chance.randint(0, 500))
                nursery.start_soon(attack, address, garbage, chance.random() < 0.3)
            start = trio.current_time()
            for number in range(5):
                await fs.put(data, f"/{number}")
                assert await fs.get(f"/{number}") == data
            assert trio.current_time() - start < 2
        await assert_sound(fs)


# --- the simulation itself --------------------------------------------------------------


async def eventful(seed: int) -> str:
    """Everything that could fall out differently, in one run; its trace's digest."""
    chance = random.Random(seed)
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        data = content(chance, 5 * MIB)
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(fs.put, data[: chance.randrange(len(data))], f"/{number}")
            await trio.sleep(0.05)
            await cluster.crash(chance.choice(cluster.chunkservers))
            await cluster.crash("master")
            await cluster.start("master")
        await trio.sleep(40)
        await fs.fsck()
        return cluster.trace.digest()


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    assert run_simulated(seed, eventful, seed) == run_simulated(seed, eventful, seed)


def test_a_process_that_fails_fails_the_cluster() -> None:
    async def scenario() -> None:
        async with SimCluster(1, master=MasterSettings(map_bytes=1)):
            await trio.sleep(100)

    with pytest.raises(BaseExceptionGroup):
        run_simulated(1, scenario)


def test_the_callers_own_error_comes_out_as_it_is() -> None:
    async def scenario() -> None:
        async with SimCluster(1), trio.open_nursery():
            raise LookupError

    with pytest.raises(ExceptionGroup) as caught:
        run_simulated(1, scenario)
    assert isinstance(caught.value.exceptions[0], LookupError)
    assert "the last of seed 1" in "".join(caught.value.__notes__)

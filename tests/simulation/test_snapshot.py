"""Snapshots: a file or a tree as it was at one instant, whatever happens meanwhile
and afterwards, to either side."""

from __future__ import annotations

import contextlib
from random import Random

import pytest
import trio

from gfs.blocks import CHUNK_BYTES, MIB
from gfs.client import Client
from gfs.errors import AlreadyExists, GfsError
from gfs.master.service import snapshots
from gfs.testing import SimCluster

from .metadata import problems, read_metadata
from .promises import content, replicas, settled, wait_settled
from .seeds import over_seeds
from .shadowed import MASTER, ShadowedCluster


async def tree(fs: Client, path: str) -> dict[str, bytes | None]:
    """All that is below a directory, by its path there."""
    found: dict[str, bytes | None] = {}
    async for entry in fs.walk(path):
        name = entry.path.removeprefix(path)
        found[name] = None if entry.kind == "directory" else await fs.get(entry.path)
    return found


def assert_right(cluster: SimCluster) -> None:
    assert not problems(read_metadata(cluster.directory))


@pytest.mark.costly
@over_seeds(3)
async def test_a_copy_has_what_was_there_and_goes_its_own_way(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = {
        "/a": content(chance, 100),
        "/d/b": content(chance, 3 * MIB + 5),
        "/d/e/c": content(chance, CHUNK_BYTES + 100_000),
        "/empty": b"",
    }
    for path, bytes_ in data.items():
        await fs.put(bytes_, "/src" + path, attributes={"x": path})
    await fs.mkdir("/src/none")
    reply = await fs.snapshot("/src", "/deep/dst", parents=True)
    assert (reply.files, reply.directories) == (4, 3)
    assert reply.bytes == sum(map(len, data.values()))
    before = await tree(fs, "/src")
    assert await tree(fs, "/deep/dst") == before
    entry = await fs.stat("/deep/dst/d/b")
    assert (entry.attributes, entry.replication) == ({"x": "/d/b"}, 3)
    assert entry.digest == (await fs.stat("/src/d/b")).digest != b""
    totals = (await fs.status()).totals
    assert (totals.shared_bytes, totals.chunks) == (reply.bytes, 4)
    usage = await fs.disk_usage("/deep")
    assert (usage.bytes, usage.shared_bytes) == (reply.bytes, reply.bytes)

    async with await fs.open("/src/d/b", "r+") as file:
        await file.pwrite(7, b"the source's")
    async with await fs.open("/deep/dst/d/e/c", "r+") as file:
        await file.pwrite(CHUNK_BYTES + 99_000, b"the copy's" * 1000)
    assert (await fs.stat("/src/d/b")).digest == b""
    assert (await fs.stat("/deep/dst/d/b")).digest == entry.digest
    assert (await fs.get("/src/d/b"))[7:19] == b"the source's"
    assert await fs.get("/deep/dst/d/b") == data["/d/b"]
    assert await fs.get("/src/d/e/c") == data["/d/e/c"]
    changed = await fs.get("/deep/dst/d/e/c")
    assert changed[: CHUNK_BYTES + 99_000] == data["/d/e/c"][: CHUNK_BYTES + 99_000]
    assert changed[CHUNK_BYTES + 99_000 :] == b"the copy's" * 1000
    assert (await fs.disk_usage("/deep")).shared_bytes == CHUNK_BYTES + 100
    assert_right(cluster)

    await fs.delete("/src", recursive=True, now=True)
    await cluster.restart("master")
    await trio.sleep(30)
    assert (await tree(fs, "/deep/dst"))["/d/b"] == data["/d/b"]
    assert (await fs.status()).totals.shared_bytes == 0
    await wait_settled(cluster, fs)
    assert_right(cluster)


#: Between two writes: they fall into snapshots, of which each takes longer, as often.
PAUSE_SECONDS = 0.02


class Counter:
    """A program that writes the same growing number to one file after the other."""

    SLOTS = 3

    def __init__(self, directory: str) -> None:
        self.paths = [f"{directory}/{n}" for n in range(self.SLOTS)]
        #: Of each file: the last number begun, and the last acknowledged.
        self.begun = [0] * self.SLOTS
        self.acknowledged = [0] * self.SLOTS

    async def prepare(self, fs: Client) -> None:
        for path in self.paths:
            await fs.put(bytes(8), path)

    async def run(self, fs: Client) -> None:
        number = 0
        while True:
            number += 1
            for slot, path in enumerate(self.paths):
                self.begun[slot] = number
                while True:
                    try:
                        async with await fs.open(path, "r+") as file:
                            await file.pwrite(0, number.to_bytes(8, "big"))
                        break
                    except GfsError:
                        await trio.sleep(0.5)
                self.acknowledged[slot] = number
            await trio.sleep(PAUSE_SECONDS)


async def numbers(fs: Client, directory: str) -> list[int]:
    return [int.from_bytes(await fs.get(f"{directory}/{n}"), "big") for n in range(Counter.SLOTS)]


def assert_within(seen: list[int], before: list[int], after: list[int]) -> None:
    for low, number, high in zip(before, seen, after, strict=True):
        assert low <= number <= high, (before, seen, after)


@over_seeds(6, chunkservers=4)
async def test_a_snapshot_is_of_one_instant(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """While it is written, and servers and the master die."""
    counter = Counter("/src")
    await counter.prepare(fs)
    taken: dict[str, tuple[list[int], list[int], list[int]]] = {}
    async with trio.open_nursery() as nursery, cluster.client() as writer:
        nursery.start_soon(counter.run, writer)
        nursery.start_soon(_harm, cluster, chance)
        for number in range(4):
            await trio.sleep(chance.expovariate(1))
            name = f"/copy{number}"
            before = list(counter.acknowledged)
            await _insist(fs, "/src", name)
            after = list(counter.begun)
            taken[name] = (before, after, await numbers(fs, name))
        nursery.cancel_scope.cancel()
    for name, (before, after, seen) in taken.items():
        assert_within(seen, before, after)
        # A later file never has a number that an earlier one does not.
        assert seen == sorted(seen, reverse=True), (name, seen)
        assert seen[0] - seen[-1] <= 1, (name, seen)
        # And nothing that was written afterwards shows in it. (What a write that was
        # cut off left is on some replicas: it may come and go.)
        assert_within(await numbers(fs, name), before, after)
    await cluster.wait_until(lambda: settled(fs), 120)
    for name, (before, after, _) in taken.items():
        assert_within(await numbers(fs, name), before, after)
    assert_right(cluster)


async def _insist(fs: Client, source: str, target: str) -> None:
    failed = False
    while True:
        try:
            await fs.snapshot(source, target)
            return
        except AlreadyExists:
            if failed:
                return  # it was carried out, and nobody was told
            raise
        except GfsError:
            failed = True
            await trio.sleep(1)


async def _harm(cluster: SimCluster, chance: Random) -> None:
    """One server after the other dies, for a moment."""
    while True:
        await trio.sleep(chance.expovariate(1 / 3))
        name = chance.choice(["master", *cluster.chunkservers])
        await cluster.crash(name)
        with trio.CancelScope(shield=True):
            await trio.sleep(chance.uniform(0, 3))
            cluster.begin(name)


@over_seeds(1)
async def test_a_lease_that_was_fenced_for_a_snapshot_is_not_revoked_as_well(
    cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new master cannot tell it from one of the former master, and ends both in one way."""
    await fs.put(b"12", "/file")
    for at, byte in enumerate((b"3", b"4")):
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(at, byte)
        if at == 0:
            await cluster.restart("master")
    monkeypatch.setattr(snapshots, "RevokeLease", None)
    await fs.snapshot("/file", "/copy")
    assert await fs.get("/copy") == b"34"


@over_seeds(3, chunkservers=5)
async def test_goals_of_shared_chunks(chance: Random, cluster: SimCluster, fs: Client) -> None:
    data = content(chance, 300_000)
    await fs.put(data, "/a")
    await fs.snapshot("/a", "/b")
    await fs.set_replication("/b", 5)

    async def have(path: str, count: int) -> bool:
        return await replicas(fs, path) == count

    await cluster.wait_until(lambda: have("/a", 5), 60)
    async with await fs.open("/b", "r+") as file:
        await file.pwrite(0, b"!")
    await cluster.wait_until(lambda: have("/a", 3), 60)
    await cluster.wait_until(lambda: have("/b", 5), 120)
    assert await fs.get("/a") == data
    assert await fs.get("/b") == b"!" + data[1:]
    assert_right(cluster)


@pytest.mark.parametrize("what", ["write", "append", "new chunk"])
@over_seeds(4)
async def test_a_client_that_is_cut_off_while_a_file_gets_a_chunk_loses_nothing(
    chance: Random, cluster: SimCluster, what: str
) -> None:
    """Nobody waits any more for the commit that gives the file its chunk, which is slow
    to come: until then nothing tells that the chunk is wanted."""
    data = content(chance, 200_000)
    async with cluster.client("stray") as stray, cluster.client() as fs:
        if what == "new chunk":
            data = content(chance, CHUNK_BYTES)  # the next record needs another one
        await fs.put(data, "/file")
        await fs.snapshot("/file", "/copy")
        master = cluster.machine("master")
        usual, master.blocking_seconds = master.blocking_seconds, (1.0, 2.5)
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                if what == "write":
                    async with await stray.open("/file", "r+") as file:
                        await file.pwrite(100, b"changed")
                else:
                    await stray.append("/file", b"a record", create=False)

            nursery.start_soon(change)
            for _ in range(3):
                await trio.sleep(chance.uniform(0, 4))
                cluster.network.cut("stray", "master")
            master.blocking_seconds = usual
        assert await fs.get("/copy") == data
        found = await fs.get("/file")
        if what == "write":
            assert found == data[:100] + b"changed" + data[107:]
        else:
            assert found[: len(data)] == data
            assert [record.data async for record in fs.records("/file")] == [b"a record"]
        await cluster.wait_until(lambda: settled(fs), 60)
        assert_right(cluster)


@over_seeds(4, kind=ShadowedCluster, replicas_before_ack=1)
async def test_a_snapshot_whose_beginning_is_not_safe_yet_is_given_up(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """The shadow master that must have it is away just then. What was to be copied does
    not stand still for ever."""
    await cluster.level("shadow0")
    await fs.put(b"1", "/a/file")
    await trio.sleep(2)
    cluster.network.partition(["shadow0"], [MASTER])
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            # It is asked for again, and carried out then or found to be there.
            with contextlib.suppress(GfsError):
                await fs.snapshot("/a", "/b")

        nursery.start_soon(ask)
        await trio.sleep(chance.uniform(6, 8))
        cluster.network.heal()
    await cluster.level("shadow0")
    await fs.mkdir("/a/directory")
    assert await fs.get("/a/file") == b"1"
    if "/b" not in [entry.path for entry in await fs.list("/")]:
        await fs.snapshot("/a", "/b")
    assert await fs.get("/b/file") == b"1"


@pytest.mark.costly
@pytest.mark.parametrize("asked_again", [True, False])
@over_seeds(3)
async def test_a_snapshot_ends_though_masters_die_all_the_time(
    chance: Random, cluster: SimCluster, fs: Client, asked_again: bool
) -> None:
    """Each lives for a part of what it takes. If its client is gone, nothing stands still
    for ever."""
    for number in range(1500):
        await fs.put(b"", f"/src/{number % 7}/{number}")
    for number in range(3):
        await fs.put(b"%d" % number, f"/src/written/{number}")
        async with await fs.open(f"/src/written/{number}", "r+") as file:
            await file.pwrite(0, b"!")
    wanted = await tree(fs, "/src")
    machine = cluster.machine("master")
    usual = machine.blocking_seconds
    ended = trio.Event()

    async def make() -> None:
        async with cluster.client("maker") as maker:
            await maker.snapshot("/src", "/dst")
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make)
        lives = 0
        # Of one that is not asked for any more not enough is there to end in its lives.
        machine.blocking_seconds = (0.4, 0.6) if asked_again else (1.0, 1.5)
        while not ended.is_set():
            lives += 1
            assert lives < 40
            with trio.move_on_after(chance.uniform(3, 5)):
                await ended.wait()
            if not ended.is_set():
                gone = not asked_again and lives == 3
                if gone:
                    await cluster.crash("maker")
                await cluster.restart("master")
                if gone:
                    break
    machine.blocking_seconds = usual
    assert lives > 2
    if asked_again:
        assert await tree(fs, "/dst") == wanted
        await fs.delete("/dst", recursive=True, now=True)
    await fs.put(b"new", "/src/new")
    async with await fs.open("/src/written/0", "r+") as file:
        await file.pwrite(0, b"?")
    await trio.sleep(60)
    assert not await fs.exists("/dst")
    totals = (await fs.status()).totals
    assert (totals.files, totals.shared_bytes) == (1504, 0)
    assert_right(cluster)

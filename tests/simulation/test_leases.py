"""A copy of a chunk never misses a write: not under a lease that is being ended,
and not under one that a restarted master knows nothing of."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import permutations
from random import Random

import pytest
import trio

from gfs.blocks import MIB
from gfs.client import Client
from gfs.errors import NotFound
from gfs.protocol import handshake
from gfs.protocol.messages import AcquireLease, Done, GrantLease, LeaseReply, Message, RegisterReply
from gfs.protocol.rpc import Rpc
from gfs.testing import SimCluster
from gfs.testing.cluster import MASTER, MASTER_ADDRESS
from gfs.testing.life import Crashed
from gfs.testing.network import LATENCY_SECONDS

from .packs import handles_on
from .promises import content, is_dead, later, replicas
from .seeds import over_seeds

LENGTH = 200_000


def machine_of(address: str) -> str:
    return address.partition(":")[0]


def on_lease(fs: Client, number: int, action: Callable[[list[str]], Awaitable[None]]) -> None:
    """Have ``action(chain)`` done between the grant of a lease, of that number, and its first
    use."""
    ask, leases = fs._core.master.ask, itertools.count(1)

    async def wrapped(request: object, kind: type, *rest: object) -> object:
        reply = await ask(request, kind, *rest)  # type: ignore[arg-type]
        if isinstance(request, AcquireLease):
            assert isinstance(reply, LeaseReply)
            servers = [reply.servers[n].address for n in reply.chunk.servers]
            if next(leases) == number:
                await action([machine_of(address) for address in servers])
        return reply

    fs._core.master.ask = wrapped  # type: ignore[method-assign,assignment]


async def assert_all_replicas_hold(
    cluster: SimCluster, fs: Client, data: bytes, path: str = "/file"
) -> None:
    """Those the master sends readers to, that is."""
    (chunk,) = (await fs.locate(path)).chunks
    for replica in chunk.replicas:
        name = machine_of(replica.address)
        (file,) = cluster.chunk_files(name)
        stored = cluster.machine(name).disk.read(file)[16384 : 16384 + len(data)]
        assert stored == data, f"{name} missed an acknowledged write"


@over_seeds(12, chunkservers=4)
async def test_a_copy_waits_for_the_write_that_a_lost_lease_cannot_stop(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The lease is revoked, for a copy, while a write that was let in under it still
    waits for its connection to the next server."""
    data = bytearray(content(chance, LENGTH))
    await fs.put(bytes(data), "/file")
    spare = next(name for name in cluster.chunkservers if not handles_on(cluster, name))

    async def heal_when_copied() -> None:
        """Or before the server ahead gives up connecting to the next."""
        with trio.move_on_after(1.9):
            await cluster.wait_until(lambda: bool(handles_on(cluster, spare)), every=0.01)
        cluster.network.heal()

    async def kill_last(chain: list[str]) -> None:
        cluster.kill(chain[-1])

    async def part(chain: list[str]) -> None:
        cluster.network.cut(chain[0], chain[1])
        cluster.network.partition([chain[0]], [chain[1]])
        nursery.start_soon(heal_when_copied)

    async with trio.open_nursery() as nursery:
        on_lease(fs, 1, kill_last)
        on_lease(fs, 2, part)
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(100_000, b"acknowledged")
    data[100_000:100_012] = b"acknowledged"
    await cluster.wait_until(lambda: at_goal(fs), 60)
    await assert_all_replicas_hold(cluster, fs, bytes(data))


async def assert_acknowledged(
    cluster: SimCluster, fs: Client, data: bytearray, *, begin: bytes = b""
) -> None:
    """A write is acknowledged, and is in all replicas as soon as there are enough."""
    async with await fs.open("/file", "r+") as file:
        if begin:
            await file.pwrite(0, begin)
        await file.pwrite(100_000, b"acknowledged")
    data[100_000:100_012] = b"acknowledged"
    await cluster.wait_until(lambda: at_goal(fs), 90)
    await assert_all_replicas_hold(cluster, fs, bytes(data))


async def at_goal(fs: Client) -> bool:
    return await replicas(fs, "/file") >= 3


@over_seeds(2, chunkservers=4)
async def test_a_lease_ends_while_its_primary_is_suspended(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """For longer than the lease: the chunk is copied elsewhere meanwhile, in the version
    that the primary's servers have as well."""
    data = bytearray(content(chance, LENGTH))
    await fs.put(bytes(data), "/file")

    async def suspend(chain: list[str]) -> None:
        others = [name for name in (MASTER, *cluster.chunkservers) if name != chain[0]]
        cluster.network.partition([chain[0]], others)
        time, seconds = cluster.machine(chain[0]).time, 100
        time.rate = 1e-6
        await trio.sleep(seconds)
        time.rate = 1.0
        time.suspended_seconds += seconds
        async with cluster.client() as other:
            assert await replicas(other, "/file", without=[chain[0]]) == 3
        cluster.network.heal()

    on_lease(fs, 1, suspend)
    await assert_acknowledged(cluster, fs, data)


@over_seeds(2, chunkservers=4)
async def test_a_restarted_master_fences_the_leases_it_does_not_know(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The primary is cut off from the new master, not from the client, and its lease
    is still running: its chunk is copied elsewhere only when that has ended."""
    data = bytearray(content(chance, LENGTH))
    await fs.put(bytes(data), "/file")

    async def between(chain: list[str]) -> None:
        await cluster.crash("master")
        cluster.network.partition([chain[0]], ["master"])
        await cluster.start("master")
        # The primary counts as dead long before its lease is over.
        await trio.sleep(40)
        async with cluster.client() as other:
            assert await replicas(other, "/file", without=[chain[0]]) == 2

    on_lease(fs, 1, between)
    await assert_acknowledged(cluster, fs, data)
    cluster.network.heal()
    await trio.sleep(20)
    await assert_all_replicas_hold(cluster, fs, bytes(data))


@over_seeds(4)
async def test_a_restarted_master_copies_no_chunk_under_the_lease_it_was_made_with(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """One that was added in place: it bore the version of those that an upload makes,
    which are under no lease. The copy missed a write, and was of the same version."""
    data = bytearray(content(chance, LENGTH))
    late = chance.choice(cluster.chunkservers)
    await cluster.crash(late)
    await cluster.wait_until(lambda: is_dead(fs, late), 60, every=1)
    await fs.put(b"", "/file")

    async def between(chain: list[str]) -> None:
        await cluster.restart("master")
        await cluster.start(late)
        with trio.move_on_after(40):  # The lease goes on for longer.
            await cluster.wait_until(lambda: bool(handles_on(cluster, late)), 60)
            await trio.sleep(1)

    on_lease(fs, 2, between)
    await assert_acknowledged(cluster, fs, data, begin=bytes(data))


@over_seeds(1, chunkservers=1, start=False)
async def test_an_order_waits_until_the_server_has_taken_its_master(cluster: SimCluster) -> None:
    """Only then is it written down which term the order is of."""
    world = cluster.machine(MASTER).start_process().world
    listener = await world.network.listen(MASTER_ADDRESS)
    cluster.begin("chunkserver0")
    identity = handshake.Identity("master", "m", cluster.key, "a cluster", term=7 << 32)
    connection = await handshake.accept(world, await listener.accept(), identity)
    said: list[Message] = []
    rpc = Rpc(connection, lambda _, batch: said.extend(message for message, _ in batch))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rpc.run)
        await cluster.wait_until(lambda: bool(said))
        grant = GrantLease(0, handle=1, version=0, new_version=1, lease_ms=0)
        with trio.move_on_after(5):
            answer = await rpc.call(grant)
            raise AssertionError(f"{answer} before it was taken")
        assert not handles_on(cluster, "chunkserver0")
        rpc.send(RegisterReply(said[0].id, "a cluster", sequence=0, heartbeat_ms=1000))
        answer, _ = await rpc.call(grant)
        assert isinstance(answer, Done)
        assert handles_on(cluster, "chunkserver0")
        nursery.cancel_scope.cancel()


class DelayedChain:
    """A chunk of which an exchange broke off, and where its bytes are: on their way from
    the ``hop``-th server of the chain to the next one."""

    SECONDS = 20.0

    def __init__(self, cluster: SimCluster, chain: list[str], hop: int) -> None:
        self.cluster = cluster
        self.chain = chain
        self._link = chain[hop], chain[hop + 1]

    async def break_off(self, write: Callable[[Client], Awaitable[object]]) -> None:
        """Begin a ``write``, which gets as far as that link, and whose client dies. When
        this returns, all links are as fast as ever."""
        self.cluster.network.slow(*self._link, (self.SECONDS, self.SECONDS), 1e9)

        async def dying() -> None:
            with contextlib.suppress(Crashed):
                async with self.cluster.client("dying") as fs:
                    on_lease(fs, 1, self._cut_off)
                    await write(fs)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dying)
            await trio.sleep(0.5)
            await self.cluster.crash("dying")
        self.cluster.network.restore(*self._link)

    async def _cut_off(self, chain: list[str]) -> None:
        """Who dies does not ask for another lease first."""
        self.cluster.network.partition(["dying"], [MASTER])

    async def is_given_up(self) -> None:
        """By all servers, when this returns."""
        await trio.sleep(10)

    async def all_have_arrived(self) -> None:
        """One after the other: the link takes a piece when the one before is there."""
        await trio.sleep(3 * self.SECONDS)


async def chain_of(fs: Client, write: Awaitable[object]) -> list[str]:
    """The servers under whose lease that is written, in order."""
    found: list[str] = []

    async def note(chain: list[str]) -> None:
        found[:] = chain

    ask = fs._core.master.ask
    on_lease(fs, 1, note)
    await write
    fs._core.master.ask = ask  # type: ignore[method-assign]
    return found


async def overwrite(fs: Client, offset: int, data: bytes) -> None:
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(offset, data)


@pytest.mark.parametrize("hop", [0, 1])
@over_seeds(4)
async def test_bytes_of_a_write_that_broke_off_never_come_after_those_of_the_next(
    chance: Random, cluster: SimCluster, fs: Client, hop: int
) -> None:
    """They arrive, over a connection that was given up, after a write that came later
    was acknowledged: at a secondary, which has no lease to judge them by."""
    data = bytearray(content(chance, LENGTH))
    await fs.put(bytes(data), "/file")
    chain = await chain_of(fs, overwrite(fs, 0, bytes(data[:10])))
    delayed = DelayedChain(cluster, chain, hop)
    await delayed.break_off(lambda dying: overwrite(dying, 50_000, b"X" * 500))
    await delayed.is_given_up()
    await overwrite(fs, 50_000, b"Y" * 500)
    data[50_000:50_500] = b"Y" * 500
    assert await replicas(fs, "/file") == 3
    await assert_all_replicas_hold(cluster, fs, bytes(data))
    await delayed.all_have_arrived()
    await assert_all_replicas_hold(cluster, fs, bytes(data))


@over_seeds(4)
async def test_a_record_that_the_primary_could_not_write_never_comes_after_the_next(
    cluster: SimCluster, fs: Client
) -> None:
    """It passed it on first. The next record has its place, on all servers."""
    chain = await chain_of(fs, fs.append("/log", b"first"))
    delayed = DelayedChain(cluster, chain, 0)
    disk = cluster.machine(chain[0]).disk
    (file,) = cluster.chunk_files(chain[0])
    disk.fail(file)
    await delayed.break_off(lambda dying: dying.append("/log", b"X" * 300))
    disk.fail(file, 0)
    await delayed.is_given_up()
    await fs.append("/log", b"Y" * 200)
    await delayed.all_have_arrived()
    (chunk,) = (await fs.locate("/log")).chunks
    stored = []
    for replica in chunk.replicas:
        name = machine_of(replica.address)
        (path,) = cluster.chunk_files(name)
        stored.append(cluster.machine(name).disk.read(path)[16384:])
    for each in stored:
        assert b"Y" * 200 in each


@over_seeds(2, chunkservers=4)
async def test_a_chunk_that_is_written_all_the_time_is_copied_soon_after_the_master_died(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Leases of the master before run out only after a minute. Who was granted the chunk
    since has made them void."""
    data = bytearray(content(chance, LENGTH))
    await fs.put(bytes(data), "/file")
    async with await fs.open("/file", "r+") as file:
        await file.pwrite(0, b"first")
        victim = (await fs.locate("/file")).chunks[0].replicas[0].address.partition(":")[0]
        await cluster.crash(victim)
        await cluster.restart("master")
        began = trio.current_time()
        while await replicas(fs, "/file", without=[victim]) < 3:
            text = b"%12.6f" % trio.current_time()
            await file.pwrite(100, text)
            data[100:112], data[:5] = text, b"first"
            assert trio.current_time() - began < 40
            await trio.sleep(0.05)
    await assert_all_replicas_hold(cluster, fs, bytes(data))


@over_seeds(2, chunkservers=4)
async def test_a_file_that_is_deleted_while_its_chunk_is_copied_is_not_found(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """A write waits for the copy. It is not said then that the chunk has no replicas."""
    async with cluster.client() as other:
        await fs.put(content(chance, 8 * MIB), "/file")
        victim = machine_of((await fs.locate("/file")).chunks[0].replicas[0].address)
        await cluster.crash(victim)
        for one, another in permutations(cluster.chunkservers, 2):
            cluster.network.slow(one, another, LATENCY_SECONDS, 4 * MIB)

        async def is_copied() -> bool:
            return bool((await fs.status()).totals.repairs_active)

        await cluster.wait_until(is_copied, 60, "a copy")
        async with await fs.open("/file", "r+") as file, trio.open_nursery() as nursery:
            nursery.start_soon(later, 0.5, partial(other.delete, "/file", now=True))
            with pytest.raises(NotFound):
                await file.pwrite(0, b"x")


@pytest.mark.parametrize(("replication", "lives"), [(3, 2.0), (2, 3.0)])
@over_seeds(3)
async def test_a_write_passes_beside_a_server_that_is_away_however_often_the_master_dies(
    chance: Random, cluster: SimCluster, fs: Client, replication: int, lives: float
) -> None:
    """Each master waits for the servers that the one before it knew."""
    await fs.put(content(chance, LENGTH), "/file", replication=replication)
    (chunk,) = (await fs.locate("/file")).chunks
    await cluster.crash(machine_of(chunk.replicas[0].address))
    async with trio.open_nursery() as nursery:

        async def kill_the_master() -> None:
            while True:
                await cluster.crash("master")
                await trio.sleep(0.5)
                await cluster.start("master")
                await trio.sleep(lives)

        nursery.start_soon(kill_the_master)
        for _ in range(3):
            began = trio.current_time()
            async with await fs.open("/file", "r+") as file:
                await file.pwrite(0, data := content(chance, 1000))
            assert trio.current_time() - began < 8
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    if not cluster.node("master").running:
        await cluster.start("master")
    assert (await fs.get("/file"))[:1000] == data

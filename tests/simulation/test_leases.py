"""A copy of a chunk never misses a write: not under a lease that is being ended,
and not under one that a restarted master knows nothing of."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from gfs.client import Client
from gfs.protocol.messages import AcquireLease, LeaseReply
from gfs.testing import SimCluster

from .promises import content, replicas
from .seeds import over_seeds

LENGTH = 200_000


def machine_of(address: str) -> str:
    return address.partition(":")[0]


def on_leases(fs: Client, action: Callable[[list[str]], Awaitable[None]]) -> None:
    """Have ``action(chain)`` done between a lease's grant and its first use."""
    ask = fs._core.master.ask

    async def wrapped(request: object, kind: type, *rest: object) -> object:
        reply = await ask(request, kind, *rest)  # type: ignore[arg-type]
        if isinstance(request, AcquireLease):
            assert isinstance(reply, LeaseReply)
            servers = [reply.servers[n].address for n in reply.chunk.servers]
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


@over_seeds(12)
async def test_a_copy_waits_for_the_write_that_a_lost_lease_cannot_stop(
    seed: int, chance: random.Random
) -> None:
    """The lease is revoked, for a copy, while a write that was let in under it still
    waits for its connection to the next server."""
    data = bytearray(content(chance, LENGTH))
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        await fs.put(bytes(data), "/file")
        spare = next(name for name in cluster.chunkservers if not cluster.chunk_files(name))
        grants = 0

        async def heal_when_copied() -> None:
            """Or before the server ahead gives up connecting to the next."""
            with trio.move_on_after(1.9):
                await cluster.wait_until(lambda: bool(cluster.chunk_files(spare)), every=0.01)
            cluster.network.heal()

        async def between(chain: list[str]) -> None:
            nonlocal grants
            grants += 1
            if grants == 1:
                cluster.kill(chain[-1])
            elif grants == 2:
                cluster.network.cut(chain[0], chain[1])
                cluster.network.partition([chain[0]], [chain[1]])
                nursery.start_soon(heal_when_copied)

        async with trio.open_nursery() as nursery:
            on_leases(fs, between)
            async with await fs.open("/file", "r+") as file:
                await file.pwrite(100_000, b"acknowledged")
        data[100_000:100_012] = b"acknowledged"
        await cluster.wait_until(lambda: at_goal(fs), 60)
        await assert_all_replicas_hold(cluster, fs, bytes(data))


async def at_goal(fs: Client) -> bool:
    return await replicas(fs, "/file") >= 3


@over_seeds(2)
async def test_a_restarted_master_fences_the_leases_it_does_not_know(
    seed: int, chance: random.Random
) -> None:
    """The primary is cut off from the new master, not from the client, and its lease
    is still running: its chunk is copied elsewhere only when that has ended."""
    data = bytearray(content(chance, LENGTH))
    async with SimCluster(seed, chunkservers=4) as cluster, cluster.client() as fs:
        await fs.put(bytes(data), "/file")
        grants = 0

        async def between(chain: list[str]) -> None:
            nonlocal grants
            grants += 1
            if grants > 1:
                return
            await cluster.crash("master")
            cluster.network.partition([chain[0]], ["master"])
            await cluster.start("master")
            # The primary counts as dead long before its lease is over.
            await trio.sleep(40)
            async with cluster.client() as other:
                assert await replicas(other, "/file", without=[chain[0]]) == 2

        on_leases(fs, between)
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(100_000, b"acknowledged")
        data[100_000:100_012] = b"acknowledged"
        await cluster.wait_until(lambda: at_goal(fs), 90)
        await assert_all_replicas_hold(cluster, fs, bytes(data))
        cluster.network.heal()
        await trio.sleep(20)
        await assert_all_replicas_hold(cluster, fs, bytes(data))

"""Moves of many small replicas take no longer than their copies, and those of larger ones cost few
looks; a small rack takes what it can, and one that is left alone is warned of."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from gfs.blocks import BLOCK_BYTES, MIB
from gfs.cli.health import advice
from gfs.client import Client
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.master.rules.moves import Move, Plan
from gfs.protocol.messages import SMALL_REPLICA_BYTES_MAX, ServerStatus
from gfs.testing import SimCluster

from .promises import content
from .seeds import over_seeds

MASTER = MasterSettings(map_bytes=1 << 28, sync=False, dead_seconds=6.0, balance_share=0.001)
CHUNKSERVER = ChunkserverSettings(reserve_bytes=16 * BLOCK_BYTES)
LARGE_BYTES, SMALL_BYTES = 1024 * MIB, 24 * MIB
FILES = 40
SMALL_FILES = 1_500
LARGE_FILES = 80


def cluster_of(
    seed: int, racks: list[str], chunkserver: ChunkserverSettings = CHUNKSERVER
) -> SimCluster:
    """Not started."""
    return SimCluster(
        seed, chunkservers=len(racks), disks=1, racks=racks, master=MASTER,
        chunkserver=chunkserver, start=False,
    )  # fmt: skip


async def begin(cluster: SimCluster, names: list[str]) -> None:
    for name in names:
        cluster.begin(name)
    for name in names:
        await cluster.ready(name)


@pytest.mark.costly
@pytest.mark.parametrize("packed_bytes_max", [0, BLOCK_BYTES])
@over_seeds([0])
async def test_small_replicas_move_as_fast_as_they_are_copied(
    seed: int, chance: Random, packed_bytes_max: int
) -> None:
    """What had been moved counted twice until the reports of the disks covered it, packed ones
    eight times: each part of what was left to be moved waited five seconds for the one before."""
    settings = replace(CHUNKSERVER, packed_bytes_max=packed_bytes_max)
    async with cluster_of(seed, ["a", "a", "a", "a"], settings) as cluster:
        *_, last = cluster.chunkservers
        for name in cluster.chunkservers:
            cluster.machine(name).disk.mount("/disk0", LARGE_BYTES)
        await begin(cluster, [name for name in cluster.names if name != last])
        async with cluster.client() as fs:
            data = content(chance, 1000)
            await fs.put_many([(f"/f{number}", data) for number in range(SMALL_FILES)])
            await cluster.start(last)

            async def count() -> int:
                servers = {each.address: each.chunks for each in (await fs.status()).servers}
                return servers[cluster.address(last)]

            async def has_any() -> bool:
                return await count() > 0

            async def has_its_share() -> bool:
                return await count() > 0.9 * 3 / 4 * SMALL_FILES

            await cluster.wait_until(has_any, 60)
            await cluster.wait_until(has_its_share, 5)
            await trio.sleep(30)
            assert await has_its_share(), "what came went back"
            # The space of packed ones that are moved away is free when all of their page are.
            assert packed_bytes_max or await count() <= 3 / 4 * SMALL_FILES


@over_seeds([0])
async def test_while_servers_are_busy_few_chunks_are_looked_at(
    seed: int, chance: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each order that ended had the master look at 64 chunks for which there was no slot: of
    replicas with an order each, that took longer than their copies."""
    looks = moves = 0
    look, begin_move = Plan.move, Plan.begin

    def counted_look(plan: Plan, *arguments: Any) -> Move | None:
        nonlocal looks
        looks += 1
        return look(plan, *arguments)

    def counted_move(plan: Plan, move: Move, size: int) -> None:
        nonlocal moves
        moves += 1
        begin_move(plan, move, size)

    monkeypatch.setattr(Plan, "move", counted_look)
    monkeypatch.setattr(Plan, "begin", counted_move)
    async with cluster_of(seed, ["a", "a", "a", "a"]) as cluster:
        *_, last = cluster.chunkservers
        for name in cluster.chunkservers:
            cluster.machine(name).disk.mount("/disk0", LARGE_BYTES)
        await begin(cluster, [name for name in cluster.names if name != last])
        async with cluster.client() as fs:
            data = content(chance, SMALL_REPLICA_BYTES_MAX + 1)
            await fs.put_many([(f"/f{number}", data) for number in range(LARGE_FILES)])
            await cluster.start(last)

            async def is_even() -> bool:
                chunks = sorted(each.chunks for each in (await fs.status()).servers)
                return len(chunks) == 4 and chunks[0] > 0.9 * chunks[-1]

            await cluster.wait_until(is_even, 120)
            assert moves > LARGE_FILES / 2
            assert looks < 4 * moves


async def status_of(fs: Client, rack: str) -> ServerStatus:
    [server] = [each for each in (await fs.status()).servers if each.rack == rack]
    return server


@over_seeds(2)
async def test_moves_to_a_rack_do_not_fill_its_only_server(seed: int, chance: Random) -> None:
    """It came with room for half of what is to be in its rack. They filled it to the last byte,
    and whoever wrote to what it had got an error."""
    async with cluster_of(seed, ["a", "a", "a", "b"]) as cluster:
        *_, last = cluster.chunkservers
        for name in cluster.chunkservers:
            size = SMALL_BYTES if name == last else LARGE_BYTES
            cluster.machine(name).disk.mount("/disk0", size)
        await begin(cluster, [name for name in cluster.names if name != last])
        async with cluster.client() as fs:
            for number in range(FILES):
                await fs.put(content(chance, MIB), f"/f{number}")
            await cluster.start(last)

            async def has_some() -> bool:
                [disk] = (await status_of(fs, "b")).disks
                return disk.free_bytes < disk.total_bytes / 4

            await cluster.wait_until(has_some, 120)
            for _ in range(60):
                [disk] = (await status_of(fs, "b")).disks
                # Nine tenths, and a replica that the report of its disk does not cover.
                assert disk.free_bytes > disk.total_bytes / 20, disk
                assert disk.state == "ok"
                await trio.sleep(1)
            assert not (await fs.status()).totals.moves_active


@over_seeds([0])
async def test_that_only_one_rack_is_left_is_told(seed: int, chance: Random) -> None:
    async with cluster_of(seed, ["a", "a", "b"]) as cluster:
        await begin(cluster, cluster.names)
        async with cluster.client() as fs:
            await fs.put(content(chance, 100), "/file")

            async def warnings() -> list[str]:
                return list(advice(await fs.status(), await fs.election(), 0))

            async def told() -> list[str]:
                return [each for each in await warnings() if "only rack" in each]

            async def is_told() -> bool:
                return bool(await told())

            async def is_over() -> bool:
                return not await told()

            assert await is_over()
            await cluster.crash(cluster.chunkservers[-1])
            await cluster.wait_until(is_told, MASTER.dead_seconds)
            [warning] = await told()
            assert "rack a is left" in warning
            assert "chunkservers of b again" in warning
            await cluster.start(cluster.chunkservers[-1])
            await cluster.wait_until(is_over, 30)

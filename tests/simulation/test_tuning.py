"""What an operator wants of repair and of servers, and that the master remembers it."""

from __future__ import annotations

from random import Random

import pytest
import trio

from gfs.blocks import CHUNK_BYTES, MIB
from gfs.client import Client
from gfs.errors import Busy, InvalidArgument, NotFound
from gfs.testing import SimCluster
from gfs.testing.cluster import MASTER

from .packs import handles_on, stored
from .promises import assert_sound, content, server_at, settled
from .seeds import over_seeds

FILES = 12
DEAD_SECONDS = 15.0


async def filled(fs: Client, chance: Random) -> None:
    for number in range(FILES):
        await fs.put(content(chance, 5000), f"/f{number}")


async def below_goal(fs: Client) -> int:
    return (await fs.status()).totals.under_replicated


@over_seeds(2, chunkservers=4)
async def test_repair_is_paused_until_it_is_resumed(chance: Random, cluster: SimCluster) -> None:
    async with cluster.client() as fs:
        await filled(fs, chance)
        assert (await fs.repair(paused=True)).paused
        victim = next(name for name in cluster.chunkservers if handles_on(cluster, name))
        cluster.kill(victim)
        await cluster.wait_until(lambda: below_goal(fs), 2 * DEAD_SECONDS)
    await cluster.restart(MASTER)
    async with cluster.client() as fs:
        await trio.sleep(3 * DEAD_SECONDS)
        reply = await fs.repair()
        assert reply.paused
        assert sum(rank.chunks for rank in reply.ranks) == await below_goal(fs) > 0
        assert all(rank.bytes >= rank.chunks * 5000 for rank in reply.ranks)
        assert (reply.orders, (await fs.status()).repair_paused) == (0, True)
        await fs.repair(paused=False)
        await cluster.wait_until(lambda: settled(fs), 30)
        assert not (await fs.repair()).ranks
        await assert_sound(fs)


@over_seeds(1)
async def test_limits_are_set_while_it_runs(cluster: SimCluster) -> None:
    async with cluster.client() as fs:
        before = (await fs.repair()).settings
        for name, value, says in (
            ("clones", 1, "is not a setting"),
            ("clones_total", 0, "must be 1 to 10000, not 0"),
            ("clones_total", 2**53, "must be 1 to 10000"),
            ("clones_per_server", 17, "must be 1 to 16, not 17"),
            ("bytes_per_second", -2, "must be 1048576 to"),
            ("bytes_per_second", 128, "must be 1048576 to"),
            ("bytes_per_second", 2**64, "cannot be sent"),
        ):
            with pytest.raises(InvalidArgument, match=says):
                await fs.repair(settings={name: value})
        wanted = {"clones_total": 7, "moves_total": 0, "bytes_per_second": MIB}
        assert (await fs.repair(settings=wanted)).settings == {**before, **wanted}
    await cluster.restart(MASTER)
    async with cluster.client() as fs:
        assert (await fs.repair()).settings == {**before, **wanted}
        assert (await fs.repair(settings=dict.fromkeys(wanted, -1))).settings == before


@pytest.mark.costly
@over_seeds(1, chunkservers=4)
async def test_a_low_limit_gives_copies_the_time_they_take(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """A whole chunk takes more than the minute that is usual, among clients at work."""
    await fs.put(content(chance, CHUNK_BYTES), "/file")
    await fs.repair(settings={"bytes_per_second": MIB})

    async def write_all_the_time(number: int) -> None:
        while True:  # at each server, as four of them have to
            await fs.put(b"busy", f"/busy{number}", overwrite=True)
            await trio.sleep(0.3)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(write_all_the_time, number)
        cluster.kill(next(name for name in cluster.chunkservers if handles_on(cluster, name)))
        await cluster.wait_until(lambda: below_goal(fs), 2 * DEAD_SECONDS)
        await cluster.wait_until(lambda: settled(fs), 900)
        nursery.cancel_scope.cancel()


@pytest.mark.costly
@over_seeds(2, chunkservers=4)
async def test_a_server_under_maintenance_is_waited_for(
    chance: Random, cluster: SimCluster
) -> None:
    """For as long as it was said, also by a master that was started meanwhile."""
    async with cluster.client() as fs:
        await filled(fs, chance)
        victim = next(name for name in cluster.chunkservers if handles_on(cluster, name))
        before = stored(cluster, victim)
        await fs.maintain((await server_at(fs, victim)).id, 240)
        cluster.kill(victim)
        await trio.sleep(4 * DEAD_SECONDS)
        server = await server_at(fs, victim)
        assert (server.state, server.maintenance_ms > 0) == ("silent", True)
        with pytest.raises(InvalidArgument, match=f"gfs maintenance {server.id} off"):
            await fs.forget_server(server.id)
        assert stored(cluster, victim) == before
    await cluster.restart(MASTER)
    async with cluster.client() as fs:
        await trio.sleep(4 * DEAD_SECONDS)
        assert stored(cluster, victim) == before
        assert (await fs.repair()).spared == 1
        # Of the first of the two a half was lived through at least, and all of the other.
        assert (await server_at(fs, victim)).maintenance_ms < (240 - 6 * DEAD_SECONDS + 1) * 1000
        await cluster.wait_until(lambda: stored(cluster, victim) == 3 * FILES, 300)
        assert (await server_at(fs, victim)).state == "dead"
        with pytest.raises(InvalidArgument, match="is dead"):
            await fs.maintain((await server_at(fs, victim)).id, 60)


@over_seeds(2, chunkservers=4)
async def test_a_server_that_is_gone_is_forgotten(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    await filled(fs, chance)
    victim, drained = chance.sample(cluster.chunkservers, 2)
    server = await server_at(fs, victim)
    with pytest.raises(InvalidArgument, match="is live"):
        await fs.forget_server(server.id)
    with pytest.raises(NotFound):
        await fs.forget_server("nobody")
    cluster.kill(victim)

    async def is_forgotten() -> bool:
        try:
            await fs.forget_server(server.id)
        except (Busy, InvalidArgument):
            return False
        return True

    await cluster.wait_until(is_forgotten, 120)
    assert server.id not in {one.id for one in (await fs.status()).servers}
    await cluster.wait_until(lambda: settled(fs), 30)
    # Should it come back all the same, it is a new one, with what it has.
    await cluster.start(victim)
    await cluster.wait_until(lambda: settled(fs), 30)
    await cluster.wait_until(lambda: stored(cluster) == 3 * FILES, 60)

    server = await server_at(fs, drained)
    await fs.drain(server.id)

    async def is_drained() -> bool:
        return (await server_at(fs, drained)).drain == "drained"

    await cluster.wait_until(is_drained, 60)
    await cluster.stop(drained)
    await trio.sleep(2 * DEAD_SECONDS)
    assert (await server_at(fs, drained)).state == "stopped"
    await cluster.wait_until(is_forgotten, 120)
    await assert_sound(fs)


@over_seeds(1)
async def test_nothing_is_lost_before_all_had_the_time_to_report(
    chance: Random, cluster: SimCluster
) -> None:
    async with cluster.client() as fs:
        await filled(fs, chance)
    await cluster.crash_all()
    await cluster.start(MASTER)
    async with cluster.client() as fs:
        began = trio.current_time()
        while trio.current_time() < began + 2 * DEAD_SECONDS - 1:
            totals = (await fs.status()).totals
            assert not totals.lost
            await trio.sleep(0.5)
        assert totals.unlocated == FILES
        await trio.sleep(2)
        totals = (await fs.status()).totals
        assert (totals.lost, totals.unlocated) == (FILES, 0)

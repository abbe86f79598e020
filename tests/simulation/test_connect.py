"""How long a client looks for its master, and what it says of an address that is not one's."""

from __future__ import annotations

import pytest
import trio

from gfs.cli.session import REFUSED_SECONDS
from gfs.client import Client
from gfs.errors import ForeignPeer, GfsError, MasterUnavailable
from gfs.testing import SimCluster

from .seeds import over_seeds

NOBODY, ALSO_NOBODY = "nobody:1", "nobody:2"


async def seconds_until(
    cluster: SimCluster,
    masters: list[str],
    refused_seconds: float = REFUSED_SECONDS,
    error: type[GfsError] = MasterUnavailable,
    said: str = "Connection refused",
) -> float:
    """How long a new client tries."""
    began = trio.current_time()
    with pytest.raises(error, match=said):
        async with cluster.client(masters=masters, refused_seconds=refused_seconds):
            pass
    return trio.current_time() - began


@over_seeds(2)
async def test_where_nobody_listens_a_command_ends_within_five_seconds(cluster: SimCluster) -> None:
    """With ``--wait`` it goes on for ``retry_seconds``, as other programs do, and as each call of
    a command that was connected does."""
    patience = cluster.client_settings.retry_seconds
    masters = cluster.master_addresses
    assert 3 < await seconds_until(cluster, [NOBODY]) < 5
    assert 3 < await seconds_until(cluster, [NOBODY, ALSO_NOBODY]) < 5
    async with cluster.client(masters=[NOBODY, *masters], refused_seconds=0) as fs:
        await cluster.crash("master")
        assert 3 < await seconds_until(cluster, masters) < 5
        assert patience - 1 < await seconds_until(cluster, masters, refused_seconds=100) < patience
        began = trio.current_time()
        with pytest.raises(MasterUnavailable):
            await fs.list("/")
        assert patience - 1 < trio.current_time() - began < patience


@over_seeds(2)
async def test_a_master_that_accepts_is_waited_for(cluster: SimCluster) -> None:
    """It may be starting, or stand still."""
    machine = cluster.universe.machine("late").start_process()
    listener = await machine.world.network.listen("late:1")

    async def refuse() -> None:
        while True:
            (await listener.accept()).close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        patience = cluster.client_settings.retry_seconds
        for masters in (["late:1"], [NOBODY, "late:1"]):
            assert patience - 1 < await seconds_until(cluster, masters, said="late") < patience
        nursery.cancel_scope.cancel()


@over_seeds(1)
async def test_a_chunkserver_is_not_taken_for_a_master(cluster: SimCluster, fs: Client) -> None:
    addresses = [server.address for server in (await fs.status()).servers]
    for masters in (addresses[:1], addresses, [NOBODY, *addresses]):
        began = trio.current_time()
        with pytest.raises(GfsError, match=r"r\d:\d+: it is a chunkserver, not a master"):
            async with cluster.client(masters=masters, refused_seconds=REFUSED_SECONDS):
                pass
        assert trio.current_time() - began < 5
    async with cluster.client(masters=[*addresses, *cluster.master_addresses]) as found:
        assert await found.list("/") == []
    with pytest.raises(ForeignPeer, match="it is a chunkserver"):
        async with cluster.client(masters=addresses):
            pass

"""A file's goal can be changed, and its replicas follow."""

from __future__ import annotations

from random import Random

import pytest

from gfs.client import Client
from gfs.errors import InvalidArgument, IsADirectory, NotFound
from gfs.testing import SimCluster

from .packs import stored
from .promises import assert_sound, content, replicas, wait_settled
from .seeds import over_seeds


@over_seeds(3, chunkservers=5)
async def test_replicas_follow_a_new_goal(chance: Random, cluster: SimCluster, fs: Client) -> None:
    data = content(chance, 300_000)
    for path in ("/d/a", "/d/e/b", "/other"):
        await fs.put(data, path)

    async def have(wanted: dict[str, int]) -> bool:
        return [await replicas(fs, path) for path in wanted] == list(wanted.values())

    assert await fs.set_replication("/d", 5, recursive=True) == 2
    wanted = {"/d/a": 5, "/d/e/b": 5, "/other": 3}
    await cluster.wait_until(lambda: have(wanted), 60)
    assert (await fs.stat("/d/a")).replication == 5
    await assert_sound(fs)

    assert await fs.set_replication("/d/a", 1) == 1
    await fs.set_replication("/d/e/b", 0)
    wanted = {"/d/a": 1, "/d/e/b": 3, "/other": 3}
    await cluster.restart("master")
    await cluster.wait_until(lambda: have(wanted), 60)
    await cluster.wait_until(lambda: stored(cluster) == 7, 60)
    for path in wanted:
        assert await fs.get(path) == data
    await wait_settled(cluster, fs)


@over_seeds(1)
async def test_bounds_of_a_goal(fs: Client) -> None:
    await fs.put(b"x", "/d/a")
    for goal in (-1, 65, 10**6):
        with pytest.raises(InvalidArgument):
            await fs.set_replication("/d/a", goal)
    with pytest.raises(IsADirectory):
        await fs.set_replication("/d", 2)
    with pytest.raises(NotFound):
        await fs.set_replication("/nowhere", 2)
    assert await fs.set_replication("/", 2, recursive=True) == 1
    assert (await fs.stat("/d/a")).replication == 2

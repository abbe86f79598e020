"""Scrubbing goes on where it was, gives way to clients, and has damage repaired."""

from __future__ import annotations

import errno
from random import Random

import pytest
import trio

from gfs.blocks import MIB
from gfs.chunkserver.node import throttle
from gfs.chunkserver.upkeep import scrub
from gfs.client import Client
from gfs.config import ChunkserverSettings
from gfs.testing import SimCluster
from gfs.testing.files import SimFile, SimFileSystem
from gfs.testing.inode import disk_error

from .packs import handles_on
from .promises import assert_sound, content, server_at, wait_settled
from .seeds import over_seeds

NAME = "chunkserver1"
#: So slow that a pass over some files takes minutes.
SETTINGS = ChunkserverSettings(scrub_seconds=3600, scan_seconds=3600)


#: One exchange counts for this long, so that few are enough.
LONG_BUSY_SECONDS = 120.0


async def keep_busy(fs: Client) -> None:
    """Clients at all servers, all the time: see LONG_BUSY_SECONDS."""
    while True:
        await fs.get("/f0")
        await trio.sleep(5)


@pytest.mark.costly
@over_seeds(2, chunkserver=SETTINGS)
async def test_a_pass_outlives_restarts(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is restarted more often than a pass takes comes to its end; also one of
    more replicas than are sorted at once."""
    monkeypatch.setattr(throttle, "BUSY_SECONDS", LONG_BUSY_SECONDS)
    monkeypatch.setattr(scrub, "SORTED_AT_ONCE", 7)
    for n in range(100):
        await fs.put(content(chance, 20_000), f"/f{n}")
    ended = began = -1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_busy, fs)
        # From here on a pass is as slow as the setting asks for.
        await trio.sleep(90)
        start = (await server_at(fs, NAME)).scrub
        shares = []
        while ended < 0 or began > ended:
            await trio.sleep(300)
            shares.append((await server_at(fs, NAME)).scrub.done_bytes)
            await cluster.restart(NAME)
            await trio.sleep(5)
            now = (await server_at(fs, NAME)).scrub
            # Less than two minutes of the pass is done again.
            assert now.done_bytes >= shares[-1] - 0.05 * now.total_bytes or now.began_ms < 9000
            ended, began = now.ended_ms, now.began_ms
            assert (now.whole_began_ms < 0) == (ended < 0)
            assert trio.current_time() < 3 * 3600, shares
        nursery.cancel_scope.cancel()
    assert start.total_bytes == 2_000_000
    assert shares == sorted(shares), shares
    assert len(shares) >= 2, shares
    assert now.whole_began_ms > ended  # both are ago


@pytest.mark.costly
@over_seeds(2, chunkserver=SETTINGS)
async def test_damage_in_a_quiet_file_is_repaired_within_a_period(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "BUSY_SECONDS", LONG_BUSY_SECONDS)
    data = content(chance, 3 * MIB)
    await fs.put(content(chance, 50_000), "/f0")
    await fs.put(data, "/quiet")
    [path] = [
        each
        for each in cluster.chunk_files(NAME)
        if cluster.machine(NAME).disk.file_size(each) > MIB
    ]
    disk = cluster.machine(NAME).disk
    disk.flip_bit(path, 8 * (disk.file_size(path) - 1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_busy, fs)

        async def found() -> bool:
            return (await fs.status()).totals.corruptions == 1

        await cluster.wait_until(found, SETTINGS.scrub_seconds * 1.1, every=10)
        nursery.cancel_scope.cancel()

    await wait_settled(cluster, fs, 30)


@over_seeds(2, chunkserver=ChunkserverSettings(scrub_seconds=5, scan_seconds=5))
async def test_a_server_that_is_short_of_descriptors_finds_no_damage(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scrub, and a verification, took good replicas for damaged ones."""
    opens, is_short, refused = SimFileSystem.open, False, 0

    def refusing(files: SimFileSystem, path: str, mode: str) -> SimFile:
        nonlocal refused
        if is_short and path.endswith(".chunk"):
            refused += 1
            raise disk_error(chance.choice([errno.EMFILE, errno.ENFILE, errno.ENOMEM]), path)
        return opens(files, path, mode)

    monkeypatch.setattr(SimFileSystem, "open", refusing)
    files = {f"/f{n}": content(chance, 100_000) for n in range(20)}
    await fs.put_many(files.items())
    for name in cluster.chunkservers:
        await cluster.restart(name)  # so that no file is open
    before = {name: handles_on(cluster, name) for name in cluster.chunkservers}
    is_short = True
    await fs.fsck()
    await trio.sleep(20)
    assert refused > len(files)
    is_short = False
    totals = (await fs.status()).totals
    assert (totals.corruptions, totals.under_replicated, totals.lost) == (0, 0, 0)
    await assert_sound(fs)
    assert await fs.get_many(files) == list(files.values())
    await trio.sleep(20)
    assert {name: handles_on(cluster, name) for name in cluster.chunkservers} == before

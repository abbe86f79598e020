"""Scrubbing goes on where it was, gives way to clients, and has damage repaired."""

from __future__ import annotations

import errno
import random
from unittest import mock

import pytest
import trio

from gfs.blocks import MIB
from gfs.chunkserver.node import throttle
from gfs.chunkserver.upkeep import scrub
from gfs.client import Client
from gfs.config import ChunkserverSettings
from gfs.protocol.messages import Scrub
from gfs.testing import SimCluster
from gfs.testing.files import SimFile, SimFileSystem
from gfs.testing.inode import disk_error

from .packs import handles_on
from .promises import assert_sound, content
from .seeds import over_seeds

NAME = "chunkserver1"
#: So slow that a pass over some files takes minutes.
SETTINGS = ChunkserverSettings(scrub_seconds=3600, scan_seconds=3600)


#: One exchange counts for this long, so that few are enough.
LONG_BUSY = mock.patch.object(throttle, "BUSY_SECONDS", 120.0)


async def progress(fs: Client) -> Scrub:
    [server] = [s for s in (await fs.status()).servers if s.address.startswith(NAME)]
    return server.scrub


async def keep_busy(fs: Client) -> None:
    """Clients at all servers, all the time: see LONG_BUSY."""
    while True:
        await fs.get("/f0")
        await trio.sleep(5)


@pytest.mark.costly
@over_seeds(2)
async def test_a_pass_outlives_restarts(seed: int, chance: random.Random) -> None:
    """A server that is restarted more often than a pass takes comes to its end; also one of
    more replicas than are sorted at once."""
    with LONG_BUSY, mock.patch.object(scrub, "SORTED_AT_ONCE", 7):
        await _restarts(seed, chance)


async def _restarts(seed: int, chance: random.Random) -> None:
    async with SimCluster(seed, chunkserver=SETTINGS) as cluster, cluster.client() as fs:
        for n in range(100):
            await fs.put(content(chance, 20_000), f"/f{n}")
        ended = began = -1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_busy, fs)
            # From here on a pass is as slow as the setting asks for.
            await trio.sleep(90)
            start = await progress(fs)
            shares = []
            while ended < 0 or began > ended:
                await trio.sleep(300)
                shares.append((await progress(fs)).done_bytes)
                await cluster.restart(NAME)
                await trio.sleep(5)
                now = await progress(fs)
                # Less than two minutes of the pass is done again.
                assert now.done_bytes >= shares[-1] - 0.05 * now.total_bytes or now.began_ms < 9000
                ended, began = now.ended_ms, now.began_ms
                assert trio.current_time() < 3 * 3600, shares
            nursery.cancel_scope.cancel()
        assert start.total_bytes == 2_000_000
        assert shares == sorted(shares), shares
        assert len(shares) >= 2, shares


@pytest.mark.costly
@over_seeds(2)
async def test_damage_in_a_quiet_file_is_repaired_within_a_period(
    seed: int, chance: random.Random
) -> None:
    with LONG_BUSY:
        await _damage(seed, chance)


async def _damage(seed: int, chance: random.Random) -> None:
    async with SimCluster(seed, chunkserver=SETTINGS) as cluster, cluster.client() as fs:
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

        async def whole() -> bool:
            totals = (await fs.status()).totals
            return not (totals.corrupt or totals.under_replicated)

        await cluster.wait_until(whole, 30)
        await assert_sound(fs)


@over_seeds(2)
async def test_a_server_that_is_short_of_descriptors_finds_no_damage(
    seed: int, chance: random.Random, monkeypatch: pytest.MonkeyPatch
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
    settings = ChunkserverSettings(scrub_seconds=5, scan_seconds=5)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
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

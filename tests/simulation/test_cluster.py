"""Many writers, hostile peers, and the simulated cluster itself."""

from __future__ import annotations

import gc
import os
import struct
from pathlib import Path
from random import Random

import pytest
import trio

from gfs.blocks import MIB
from gfs.chunkserver.disks.identity import NAMES
from gfs.client import Client
from gfs.config import MasterSettings
from gfs.errors import AlreadyExists, FileChanged, NotFound
from gfs.testing import SimCluster, run_simulated

from .packs import handles_on
from .promises import assert_sound, content, later
from .seeds import over_seeds


@over_seeds(4, chunkservers=4)
async def test_of_concurrent_writers_one_whole_file_wins(
    chance: Random, cluster: SimCluster
) -> None:
    versions = [content(chance, chance.randint(1, 2 * MIB)) for _ in range(8)]
    async with cluster.client() as reader:
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
            stored = [len(handles_on(cluster, s)) for s in cluster.chunkservers]
            return sorted(stored) == [0, 1, 1, 1]

        await cluster.wait_until(only_the_winner_is_stored, 300, every=5)


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


@over_seeds(1)
async def test_a_cluster_ends_whose_server_cannot_start(seed: int, chance: Random) -> None:
    """Whoever watches it tries for ever, but for the end."""
    with trio.fail_after(100):
        async with SimCluster(seed, supervised=True) as cluster:
            await cluster.crash("chunkserver0")
            for name in NAMES:
                cluster.machine("chunkserver0").disk.spoil(f"/disk0/{name}", 0)
            cluster.begin("chunkserver0")
            await trio.sleep(20)
            assert not cluster.node("chunkserver0").ready.is_set()


@over_seeds(1, supervised=True)
async def test_who_waits_for_a_start_waits_through_one_that_fails(cluster: SimCluster) -> None:
    """Its supervisor starts it again, and that one serves."""
    await cluster.crash("chunkserver0")
    disk = cluster.machine("chunkserver0").disk
    disk.fail("/disk0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later, 1, disk.fail, "/disk0", 0)
        await cluster.start("chunkserver0")


@over_seeds(1)
async def test_what_is_refused_keeps_no_reader_of_the_database(
    cluster: SimCluster, fs: Client
) -> None:
    """There are 1024 of them, and the collector comes by seldom in a process that serves."""
    await fs.put(b"here", "/here")
    gc.collect()
    gc.disable()
    try:
        for number in range(40):
            for call in (fs.stat, fs.get, fs.delete, fs.undelete):
                with pytest.raises(NotFound):
                    await call(f"/none/{number}")
            with pytest.raises(AlreadyExists):
                await fs.put(b"new", "/here")
            with pytest.raises(NotFound):
                await fs.rename(f"/none/{number}", "/there")
        assert open_readers(cluster.directory) < 10
    finally:
        gc.enable()


def open_readers(directory: str) -> int:
    """How many of the readers of a database here are taken by this process."""
    with open(Path(directory) / "lock.mdb", "rb") as file:
        return file.read().count(struct.pack("@i", os.getpid()))

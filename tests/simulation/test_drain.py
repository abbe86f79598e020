"""Emptying a chunkserver for removal, with files being written meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from random import Random
from typing import Any, cast

import msgspec
import pytest
import trio

from gfs.blocks import MIB
from gfs.client import Client, fsck
from gfs.client.core import RESERVED_SECONDS, ClientCore
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import DrainRefused, NotFound
from gfs.protocol.messages import FsckPageReply
from gfs.testing import SimCluster

from .packs import handles_on
from .promises import assert_sound, content, replicas, server_at
from .seeds import over_seeds

SETTINGS = MasterSettings(
    map_bytes=1 << 28, sync=False, dead_seconds=6.0, lease_seconds=12.0, lease_margin_seconds=1.0
)
DRAIN_SECONDS = 120.0
#: By then the master knows of damage that a chunkserver has found.
REPORT_SECONDS = 5.0


async def wait_drained(cluster: SimCluster, fs: Client, name: str) -> None:
    async def drained() -> bool:
        return (await server_at(fs, name)).drain == "drained"

    await cluster.wait_until(drained, DRAIN_SECONDS, f"{name} is drained")


@over_seeds(4, chunkservers=4, master=SETTINGS)
async def test_a_server_is_emptied_under_load_and_stopped(
    seed: int, cluster: SimCluster, fs: Client
) -> None:
    """At no instant is a chunk below its goal, and writers go on."""
    chance = Random(seed)
    files = {f"/f{n}": content(chance, 3 * MIB) for n in range(6)}
    for path, data in files.items():
        await fs.put(data, path)
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write_in_place, fs, files, done)
        nursery.start_soon(_watch, fs, list(files), done)
        status = await fs.drain((await server_at(fs, "chunkserver1")).id)
        assert status.drain == "draining"
        files["/late"] = content(chance, 2 * MIB)
        await fs.put(files["/late"], "/late")
        await wait_drained(cluster, fs, "chunkserver1")
        done.set()
    assert not handles_on(cluster, "chunkserver1")
    await cluster.crash("chunkserver1")
    await assert_sound(fs)
    for path, data in files.items():
        assert await fs.get(path) == data
    await trio.sleep(2 * SETTINGS.dead_seconds)
    assert (await server_at(fs, "chunkserver1")).drain == "drained"
    totals = (await fs.status()).totals
    assert not totals.under_replicated + totals.moves_queued + totals.lost


async def _write_in_place(fs: Client, files: dict[str, bytes], done: trio.Event) -> None:
    """Without a pause: whoever waits for leases to end waits for ever."""
    data = bytearray(files["/f0"])
    async with await fs.open("/f0", "r+") as file:
        number = 0
        while not done.is_set():
            piece = bytes([number % 256]) * 1000
            start = (number * 7919) % (len(data) - 1000)
            await file.pwrite(start, piece)
            data[start : start + 1000] = piece
            number += 1
            await trio.sleep(0.05)
    files["/f0"] = bytes(data)


async def _watch(fs: Client, paths: list[str], done: trio.Event) -> None:
    while not done.is_set():
        for path in paths:
            assert await replicas(fs, path) >= 3, path
        await trio.sleep(0.02)


#: A stat shows what a chunk file has lost.
IN_FILES = ChunkserverSettings(packed_bytes_max=0)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("server_only", [False, True])
@over_seeds([6], chunkservers=4, master=SETTINGS, chunkserver=IN_FILES)
async def test_what_changes_while_fsck_looks_is_no_damage(
    cluster: SimCluster,
    fs: Client,
    monkeypatch: pytest.MonkeyPatch,
    verify: bool,
    server_only: bool,
) -> None:
    """Between a page of the metadata and the questions to the servers, replicas move away, and
    files are renamed, replaced and deleted. Damage is told of even if the
    master has dropped the replica for it before the look ends."""
    walk, known_again = fsck.chunk_pages, cast(Any, fsck)._known_again

    for name in ("moved", "renamed", "replaced", "deleted"):
        await fs.put(name.encode() * 1000, f"/{name}")
    target = await server_at(fs, "chunkserver1")

    async def pages(core: ClientCore, path: str) -> AsyncIterator[FsckPageReply]:
        async for page in walk(core, path):
            await fs.rename("/renamed", "/other")
            await fs.put(b"new" * 10_000, "/replaced", overwrite=True)
            await fs.delete("/deleted", now=True)
            await fs.drain(target.id)
            await wait_drained(cluster, fs, "chunkserver1")
            assert not handles_on(cluster, "chunkserver1")
            yield page

    monkeypatch.setattr(fsck, "chunk_pages", pages)
    report = await fs.fsck(verify=verify, server=target.id * server_only)
    assert not report.damaged, report.problems
    if server_only:
        return
    assert (report.chunks, report.replicas) == (3, 9)

    async def later(*args: object) -> list[fsck.Known | None]:
        await trio.sleep(REPORT_SECONDS)
        return await known_again(*args)

    monkeypatch.setattr(fsck, "chunk_pages", walk)
    monkeypatch.setattr(fsck, "_known_again", later)
    await cluster.wait_until(partial(_is_calm, fs), DRAIN_SECONDS)
    await fs.repair(paused=True)
    damaged = await server_at(fs, "chunkserver2")
    path = cluster.chunk_files("chunkserver2")[0]
    cluster.machine("chunkserver2").disk.truncate(path, 20_000)
    report = await fs.fsck(verify=verify, server=damaged.id)
    assert report.counts == {"corrupt": 1}


async def _is_calm(fs: Client) -> bool:
    totals = (await fs.status()).totals
    return not totals.orphaned + totals.under_replicated


@over_seeds([5], chunkservers=4, master=SETTINGS)
async def test_it_outlives_the_master_and_can_be_cancelled(cluster: SimCluster, fs: Client) -> None:
    data = content(Random(5), 3 * MIB)
    for n in range(8):
        await fs.put(data, f"/f{n}")
    target = await server_at(fs, "chunkserver2")
    await fs.drain(target.address)
    await cluster.restart("master")
    await wait_drained(cluster, fs, "chunkserver2")
    for n in range(8):
        await fs.put(data, f"/g{n}")
    assert not handles_on(cluster, "chunkserver2")
    # A stopped one is not waited for, nor missed.
    await cluster.crash("chunkserver2")
    await cluster.restart("master")
    assert (await server_at(fs, "chunkserver2")).drain == "drained"
    await fs.put(data, "/h")
    await cluster.start("chunkserver2")
    assert (await fs.drain(target.id, cancel=True)).drain == ""
    assert (await server_at(fs, "chunkserver2")).drain == ""
    # Chunks that this client reserved before are on the other servers.
    await trio.sleep(RESERVED_SECONDS)
    for n in range(8):
        await fs.put(data, f"/i{n}")
    assert handles_on(cluster, "chunkserver2")
    await assert_sound(fs)


@over_seeds(
    [6],
    chunkservers=4,
    racks=["a", "a", "a", "b"],
    master=msgspec.structs.replace(SETTINGS, replication=2),
)
async def test_it_is_refused_when_goals_could_not_be_met(cluster: SimCluster, fs: Client) -> None:

    await fs.put(b"x", "/x", replication=3)
    ids = {name: (await server_at(fs, name)).id for name in cluster.chunkservers}
    with pytest.raises(NotFound, match="no chunkserver nobody"):
        await fs.drain("nobody")
    with pytest.raises(DrainRefused, match="in 2 racks now would be in 1"):
        await fs.drain(ids["chunkserver3"])
    await fs.drain(ids["chunkserver0"])
    with pytest.raises(DrainRefused, match="goal of 1 chunk is above the 2 live chunkservers"):
        await fs.drain(ids["chunkserver1"])
    await fs.set_replication("/x", 2)
    await fs.drain(ids["chunkserver1"])
    await fs.set_replication("/x", 1)
    with pytest.raises(DrainRefused, match="new files have a goal of 2"):
        await fs.drain(ids["chunkserver3"], fewer_racks=True)
    await fs.set_replication("/x", 2)
    with pytest.raises(
        DrainRefused, match="the goal of 1 chunk is above the 1 live chunkserver that"
    ):
        await fs.drain(ids["chunkserver3"], fewer_racks=True)
    await cluster.crash("chunkserver3")
    await trio.sleep(10)
    with pytest.raises(DrainRefused, match="is dead: start it first"):
        await fs.drain(ids["chunkserver3"])


@over_seeds([7], chunkservers=4, master=SETTINGS)
async def test_a_file_that_was_under_way_when_its_server_was_drained_moves_too(
    cluster: SimCluster, fs: Client
) -> None:
    """It was placed before and published afterwards, and nobody looked at it again."""

    file = fs.create("/file")
    await file.write(b"x" * 1000)
    await file.flush()
    held = [name for name in cluster.chunkservers if handles_on(cluster, name)]
    await fs.drain(f"{held[0]}:9500")
    await trio.sleep(10)
    await file.close()
    await wait_drained(cluster, fs, held[0])
    assert await replicas(fs, "/file", without=held[:1]) == 3

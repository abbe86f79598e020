"""What the file system promises, with real processes that are killed for real."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from harness import content
from processes import Processes, wait_live, wait_until, wait_whole
from test_shadow import Load

import gfs
from gfs.blocks import CHUNK_BYTES, MIB
from gfs.client import Client

#: A whole chunk, and a short one.
LARGE = CHUNK_BYTES + 5 * MIB + 12_345


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """A test does the same each time; ``make storm`` does others."""
    random.seed(request.node.name)


@pytest.fixture
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    # Death is declared sooner than by default, but where the default is promised.
    patient = request.node.get_closest_marker("default_settings")
    made = Processes(tmp_path, getattr(request, "param", 4), 15.0 if patient else 3.0)
    yield made
    made.stop()


def connected(processes: Processes) -> AbstractAsyncContextManager[Client]:
    return gfs.connect(processes.master_address, key=processes.key)


async def pieces(data: bytes, pace: Callable[[int], Awaitable[None]]) -> AsyncIterator[bytes]:
    for at in range(0, len(data), MIB):
        await pace(at)
        yield data[at : at + MIB]


@pytest.mark.parametrize(
    "at", [0.02, 0.3, pytest.param(0.55, marks=pytest.mark.default_settings), 0.97]
)
async def test_a_put_survives_the_death_of_any_chunkserver(processes: Processes, at: float) -> None:
    data = content(1, LARGE)
    died = False

    async def pace(offset: int) -> None:
        nonlocal died
        if offset >= at * LARGE and not died:
            # One of those that hold a part of the file by now.
            names = [f"chunkserver-{number}" for number in range(1, 5)]
            processes.kill(random.choice([n for n in names if chunk_files(processes, n)] or names))
            died = True
        await trio.lowlevel.checkpoint()

    async with connected(processes) as fs:
        await wait_live(fs, 4)
        await fs.put(pieces(data, pace), "/a/large")
        assert died
        assert await fs.get("/a/large") == data
        await wait_whole(fs)
        await wait_until(lambda: has_replicas(fs, "/a/large", [3, 3]), "three replicas of each")


async def has_replicas(fs: Client, path: str, counts: list[int]) -> bool:
    return [len(chunk.replicas) for chunk in (await fs.locate(path)).chunks] == counts


#: Small files, and now and then one of several megabytes.
SIZES = (0, 37, 1000, 5000, 70_000, 9 * MIB)


async def some(load: Load) -> None:
    """So that the kill hits anywhere."""
    await load.wait_for_more(random.randrange(5, 40))


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_a_master_killed_at_any_moment_loses_nothing(processes: Processes) -> None:
    """And no call fails: its restart shows as a delay."""
    load = Load(SIZES)
    async with connected(processes) as fs:
        await wait_live(fs, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.write, fs, "writer")
            for _ in range(4):
                await some(load)
                processes.kill("master")
                processes.start_master()
            await some(load)
            nursery.cancel_scope.cancel()
        await load.check(fs)
        await wait_whole(fs)


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_everything_killed_at_once_loses_nothing(processes: Processes) -> None:
    load = Load(SIZES)
    for turn in range(3):
        async with connected(processes) as fs:
            await wait_live(fs, 3)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.write, fs, f"writer{turn}")
                await some(load)
                processes.kill_all()
                nursery.cancel_scope.cancel()
        processes.start_master()
        for number in (1, 2, 3):
            processes.start_chunkserver(f"chunkserver-{number}")
    async with connected(processes) as fs:
        await wait_live(fs, 3)
        await load.check(fs)
        await wait_whole(fs)


def chunk_files(processes: Processes, name: str) -> list[Path]:
    return sorted((processes.state / name / "chunks").rglob("*.chunk"))

"""A chunkserver is emptied under load, and taken away, with real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import on_disk
import pytest
import trio
from limits import HANG_SECONDS
from processes import Processes, wait_live, wait_until, wait_whole

import gfs
from gfs.client import Client

MIB = 1 << 20
CONTENT = [bytes([n]) * (MIB + n) for n in range(20)]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    # Nobody is taken for dead who is only slow.
    made = Processes(tmp_path, 4, dead_seconds=HANG_SECONDS)
    yield made
    made.stop()


def replicas(processes: Processes, name: str) -> set[int]:
    return set(on_disk.replicas(processes.state / name))


async def write(fs: Client, written: list[int], done: trio.Event) -> None:
    """Until it is stopped; each file that is acknowledged is noted."""
    number = 0
    while not done.is_set():
        await fs.put(CONTENT[number % 20], f"/w{number}")
        written.append(number)
        number += 1


async def test_one_of_four_is_drained_under_load_and_stopped(processes: Processes) -> None:
    written: list[int] = []
    done = trio.Event()
    async with gfs.connect(processes.master_address, key=processes.key) as fs:
        await wait_live(fs, 4)
        for number, data in enumerate(CONTENT):
            await fs.put(data, f"/f{number}")
        server_file = processes.state / "chunkserver-2" / "server.json"
        server = json.loads(server_file.read_bytes())["id"]
        assert replicas(processes, "chunkserver-2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, fs, written, done)
            reported = await trio.to_thread.run_sync(processes.gfs, "drain", server)
            done.set()
        assert "is drained: no chunk needs it any more, it can be stopped" in reported

        async def is_empty() -> bool:
            return not replicas(processes, "chunkserver-2")

        await wait_until(is_empty, "empty chunkserver")
        processes.kill("chunkserver-2")

        # The other three are needed for the goal of three.
        other = next(s for s in (await fs.status()).servers if s.id != server)
        refused = await trio.to_thread.run_sync(
            partial(processes.gfs, "drain", other.address, code=1)
        )
        assert "cannot be drained" in refused
        assert "above the 2 live chunkservers" in refused

        for number, data in enumerate(CONTENT):
            assert await fs.get(f"/f{number}") == data
        for number in written:
            assert await fs.get(f"/w{number}") == CONTENT[number % 20]
        await wait_whole(fs)
        shown = await trio.to_thread.run_sync(processes.gfs, "status")
        assert "drained" in shown
        assert "start it again" not in shown
        back = await trio.to_thread.run_sync(processes.gfs, "drain", "--cancel", server)
        assert "is not being drained" in back

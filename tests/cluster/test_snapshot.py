"""Snapshots with real processes: of what is being written, and with servers that are
killed while they copy."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import forks
import pytest
import trio
from processes import Processes, wait_live, wait_until, wait_whole

import gfs
from gfs.blocks import CHUNK_BYTES, MIB
from gfs.client import Client

FILES = 5


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path, 4, 3.0)
    yield made
    made.stop()


def connected(processes: Processes) -> AbstractAsyncContextManager[Client]:
    return gfs.connect(processes.master_address, key=processes.key)


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


class Counter:
    """Writes the same growing number to one file after the other, and nobody else knows."""

    def __init__(self) -> None:
        self.begun = [0] * FILES
        self.acknowledged = [0] * FILES

    async def prepare(self, fs: Client) -> None:
        for n in range(FILES):
            await fs.put(bytes(MIB), f"/src/{n % 2}/{n}")

    async def run(self, fs: Client) -> None:
        number = 0
        while True:
            number += 1
            for n in range(FILES):
                self.begun[n] = number
                async with await fs.open(f"/src/{n % 2}/{n}", "r+") as file:
                    await file.pwrite(MIB - 4, number.to_bytes(8, "big"))
                self.acknowledged[n] = number

    async def go_on(self) -> None:
        """Wait until all files were written a few times more."""
        until = self.acknowledged[-1] + 3

        async def reached() -> bool:
            return self.acknowledged[-1] >= until

        await wait_until(reached, "progress")


async def numbers(fs: Client, path: str) -> list[int]:
    found = []
    for n in range(FILES):
        async with await fs.open(f"{path}/{n % 2}/{n}") as file:
            found.append(int.from_bytes(await file.pread(MIB - 4, 8), "big"))
    return found


def assert_within(seen: list[int], before: list[int], after: list[int]) -> None:
    for low, number, high in zip(before, seen, after, strict=True):
        assert low <= number <= high, (before, seen, after)


async def test_a_tree_that_is_being_written(processes: Processes) -> None:
    """Each snapshot is of one instant, with the master or a server killed meanwhile."""
    counter = Counter()
    async with connected(processes) as fs, connected(processes) as writer:
        await wait_live(fs, 4)
        await counter.prepare(fs)
        taken: list[tuple[list[int], list[int]]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(counter.run, writer)
            for number, victim in enumerate(("", "chunkserver-1", "master", "")):
                await counter.go_on()
                before = list(counter.acknowledged)
                async with trio.open_nursery() as at_once:
                    at_once.start_soon(fs.snapshot, "/src", f"/copy{number}")
                    if victim:
                        processes.kill(victim)
                    if victim == "master":
                        processes.start_master()
                after = list(counter.begun)
                seen = await numbers(fs, f"/copy{number}")
                assert_within(seen, before, after)
                assert seen == sorted(seen, reverse=True)
                assert seen[0] - seen[-1] <= 1
                taken.append((before, after))
            nursery.cancel_scope.cancel()
        processes.start_chunkserver("chunkserver-1")
        await wait_live(fs, 4)
        await wait_whole(fs)
        for number, (before, after) in enumerate(taken):
            # What a write that was cut off left is on some replicas: it may come and go.
            assert_within(await numbers(fs, f"/copy{number}"), before, after)


async def test_a_chunkserver_is_killed_in_the_copy(processes: Processes) -> None:
    data = content(1, CHUNK_BYTES)
    victim = "chunkserver-2"
    async with connected(processes) as fs:
        await wait_live(fs, 4)
        await fs.put(data, "/source", replication=4)
        hit = threading.Event()
        attempts = 0
        while not hit.is_set():
            attempts += 1
            assert attempts <= 10, "no copy was ever seen under way"
            await fs.snapshot("/source", f"/copy{attempts}")
            stop = threading.Event()
            watch = threading.Thread(target=_kill_copying, args=(processes, victim, hit, stop))
            watch.start()
            try:
                async with await fs.open(f"/copy{attempts}", "r+") as file:
                    await file.pwrite(CHUNK_BYTES // 2, b"written")
            finally:
                stop.set()
                watch.join()
        changed = bytearray(data)
        changed[CHUNK_BYTES // 2 : CHUNK_BYTES // 2 + 7] = b"written"
        assert await fs.get(f"/copy{attempts}") == changed
        assert await fs.get("/source") == data
        processes.start_chunkserver(victim)
        await wait_live(fs, 4)
        await wait_whole(fs)
        assert not list((processes.state / victim).rglob("*.clone*"))
        assert await fs.get("/source") == data
        assert await fs.get(f"/copy{attempts}") == changed


def _kill_copying(
    processes: Processes, victim: str, hit: threading.Event, stop: threading.Event
) -> None:
    chunks = processes.state / victim / "chunks"
    while not (stop.is_set() or hit.is_set()):
        if any(chunks.glob("*/*.clone*")):
            processes.kill(victim)
            hit.set()


@pytest.mark.thin
def test_the_command(processes: Processes, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = forks.run(
            [*arguments, "--master", processes.master_address],
            env={
                **processes.environment,
                "GFS_KEY_FILE": str(processes.state / "cluster.key"),
            },
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    async def prepare() -> None:
        async with connected(processes) as fs:
            await wait_live(fs, 4)
            for n in range(3):
                await fs.put(content(n, 100_000), f"/src/d/{n}")

    trio.run(prepare)
    assert run("snapshot", "/src", "/dst") == ""
    assert "exists already" in run("snapshot", "/src", "/dst", code=1)
    assert "is in /src" in run("snapshot", "/src", "/src/dst", code=1)
    reported = json.loads(run("snapshot", "--json", "-p", "/src/d/1", "/x/y"))
    assert reported == {
        "source": "/src/d/1", "target": "/x/y", "files": 1, "directories": 0, "bytes": 100_000
    }  # fmt: skip
    assert "; shared: 293 KiB" in run("du", "/dst")
    assert "391 KiB of it shared by snapshots" in run("status")
    usage = json.loads(run("du", "--json", "/x"))
    assert (usage["bytes"], usage["shared_bytes"]) == (100_000, 100_000)
    run("rm", "-r", "--now", "/src")
    assert run("ls", "-R", "/dst") == "/dst/d/\n/dst/d/0\n/dst/d/1\n/dst/d/2\n"
    got = tmp_path / "got"
    run("get", "/dst/d/2", str(got))
    assert got.read_bytes() == content(2, 100_000)

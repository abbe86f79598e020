"""Snapshots with real processes: of what is being written, and with servers that are
killed while they copy."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import forks
import pytest
import trio
from processes import Processes, wait_live

import gfs
from gfs.client import Client


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path, 4, 3.0)
    yield made
    made.stop()


def connected(processes: Processes) -> AbstractAsyncContextManager[Client]:
    return gfs.connect(processes.master_address, key=processes.key)


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.thin
def test_the_command(processes: Processes, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = forks.run(
            [*arguments, "--master", processes.master_address],
            env={**processes.environment, "GFS_KEY_FILE": str(processes.state / "cluster.key")},
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

"""``durability = "fsync"`` with real processes: what is synced before an answer, as the
kernel saw it, and what is there after everything was killed at once.

Nobody can cut the power here: what a cut leaves is shown by ``tests/unit/test_journal.py``
and ``tests/simulation``. That the calls are made which those rely on is shown here.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import HANG_SECONDS, wait_for
from processes import Processes, wait_live, wait_whole

import gfs
from gfs.blocks import MIB

SERVERS = ("chunkserver-1", "chunkserver-2", "chunkserver-3")


@pytest.fixture
def synced(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path, 0)
    made.environment["GFS_CHUNKSERVER_DURABILITY"] = "fsync"
    for name in SERVERS:
        made.start_chunkserver(name)
    yield made
    made.stop()


class Watched:
    """The disk calls of one process, by strace."""

    def __init__(self, pid: int, out: Path) -> None:
        self.out = out
        self._strace = subprocess.Popen(
            [
                "strace", "-f", "-y", "-q", "-p", str(pid), "-o", str(out),
                "-e", "trace=pwrite64,fdatasync,fsync,unlink",
            ],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def is_attached() -> bool:
            assert self._strace.poll() is None, "strace ended: may this user trace processes?"
            tasks = Path(f"/proc/{pid}/task").glob("*/status")
            return all("TracerPid:\t0" not in task.read_text() for task in tasks)

        wait_for(is_attached, "strace")

    def stop(self) -> list[tuple[str, str]]:
        """(call, the file's name) in the order in which they were begun."""
        self._strace.terminate()
        self._strace.wait(HANG_SECONDS)
        calls = re.findall(
            r"(pwrite64|fdatasync|fsync)\(\d+<([^>]*)>(?:, \"([^\"]*))?", self.out.read_text()
        )
        return [
            (call, path.rpartition("/")[2])
            for call, path, content in calls
            # Now and then the server saves what it knows of its master, and has the
            # journal say what of it is on the disk.
            if "server.json" not in path and not content.startswith("GFSJRNL")
        ]


@pytest.mark.extra("strace")
async def test_an_overwrite_is_in_the_synced_journal_before_it_is_in_its_place(
    synced: Processes, tmp_path: Path
) -> None:
    async with gfs.connect(synced.master_address, key=synced.key) as fs:
        await wait_live(fs, len(SERVERS))
        await fs.put(bytes(3 * MIB), "/file")
        await wait_whole(fs)
        async with await fs.open("/file", "r+") as file:
            await file.pwrite(0, b"the lease is granted")
            watched = [
                Watched(synced.processes[name].pid, tmp_path / f"{name}.strace") for name in SERVERS
            ]
            await file.pwrite(1_000_000, b"in place")
            calls = [each.stop() for each in watched]
    for name, made in zip(SERVERS, calls, strict=True):
        chunk = [path for _, path in made if path.endswith(".chunk")]
        assert len(set(chunk)) == 1, f"{name}: {made}"
        journal = [path for _, path in made if path.startswith("journal.")]
        record = made.index(("pwrite64", journal[0]))
        # What the journal says of itself is synced as well, at any time.
        written = [each for each in made if each != ("fdatasync", journal[0])]
        assert written == [("pwrite64", journal[0]), ("pwrite64", chunk[0])], name
        data = made.index(("pwrite64", chunk[0]))
        assert ("fdatasync", journal[0]) in made[record:data], f"{name}: {made}"


@pytest.mark.thin
async def test_all_killed_at_once_lose_nothing_that_only_the_journal_has(synced: Processes) -> None:
    chance = random.Random(1)
    model = bytearray(chance.randbytes(3 * MIB))
    async with gfs.connect(synced.master_address, key=synced.key) as fs:
        await wait_live(fs, len(SERVERS))
        await fs.put(bytes(model), "/file")
        for turn in range(3):
            async with await fs.open("/file", "r+") as file:
                for _ in range(20):
                    data = chance.randbytes(chance.choice([10, 70_000]))
                    at = chance.randrange(len(model))
                    await file.pwrite(at, data)
                    model[at : at + len(data)] = data
            await fs.put(b"small", f"/small-{turn}")
            synced.kill_all()
            synced.start_master()
            for name in SERVERS:
                synced.start_chunkserver(name)
            assert await fs.get("/file") == model
            assert await fs.get(f"/small-{turn}") == b"small"

"""Several disks for each chunkserver, and disks that are full.

Full ones are small tmpfs mounts, which need root; the rest runs anywhere.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import on_disk
import pytest
import trio
from harness import content, runs
from limits import HANG_SECONDS, wait_for
from processes import Processes
from small_disk import small_disk

import gfs
from gfs.blocks import MIB
from gfs.config import ClientSettings
from gfs.errors import ChunkUnavailable, DiskFull, NotEnoughChunkservers

DISK_BYTES = 48 * MIB
NAMES = [f"chunkserver-{number}" for number in (1, 2, 3)]


class Disks(Processes):
    """A master and three chunkservers with two disks each: ``disks/NAME/a`` and ``b``."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.disks = directory / "disks"
        super().__init__(directory, 0, **settings)
        for name in NAMES:
            self.start_chunkserver(name)

    def directories(self, name: str) -> list[Path]:
        return [self.disks / name / disk for disk in "ab"]

    def start_chunkserver(self, name: str) -> None:
        self._start(
            name, "chunkserver", "--master", self.master_address,
            "--key-file", str(self.state / "cluster.key"),
            *(f"--dir={directory}" for directory in self.directories(name)),
        )  # fmt: skip

    def replicas(self, directory: Path) -> set[int]:
        return set(on_disk.replicas(directory))

    def id(self, name: str) -> str:
        record: dict[str, Any] = json.loads(
            (self.directories(name)[0] / "server.json").read_bytes()
        )
        return str(record["id"])

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.gfs("status", "--json"))
        return found

    def wait_live(self) -> None:
        wait_for(
            lambda: [s["state"] for s in self.status()["servers"]].count("live") == len(NAMES),
            "live chunkservers",
        )

    def wait_well(self) -> None:
        """Wait until every replica of every file is there and good."""

        def is_well() -> bool:
            report = json.loads(self.gfs("fsck", "--json", code=None) or "{}")
            return bool(report) and report["chunks"] > 0 and not report["damaged"]

        wait_for(is_well, "repair")

    def all_run(self) -> bool:
        return all(runs(process.pid) for process in self.processes.values())

    def connect(self, retry_seconds: float = HANG_SECONDS) -> Any:
        settings = ClientSettings(retry_seconds=retry_seconds)
        return gfs.connect(self.master_address, key=self.key, settings=settings)

    def count(self, name: str) -> int:
        """Of the replicas that a server has."""
        return sum(len(self.replicas(directory)) for directory in self.directories(name))


@pytest.fixture
def make_disks(tmp_path: Path) -> Iterator[Callable[..., Disks]]:
    made: list[Disks] = []

    def make(**settings: str) -> Disks:
        made.append(Disks(tmp_path, **settings))
        made[-1].wait_live()
        return made[-1]

    yield make
    for disks in made:
        disks.stop()


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[Path]:
    """Where :class:`Disks` will keep its disks, each a small file system."""
    with contextlib.ExitStack() as mounts:
        for name in NAMES:
            for disk in "ab":
                mounts.enter_context(small_disk(tmp_path / "disks" / name / disk, DISK_BYTES))
        yield tmp_path


@pytest.fixture
def make_small_disks(small_disks: Path) -> Iterator[Callable[..., Disks]]:
    # After small_disks, so that the processes end before the disks go.
    made: list[Disks] = []

    def make(**settings: str) -> Disks:
        made.append(Disks(small_disks, **settings))
        made[-1].wait_live()
        return made[-1]

    yield make
    for disks in made:
        disks.stop()


@pytest.mark.thin
async def test_a_server_uses_all_its_disks_and_outlives_one_that_comes_back_empty(
    make_disks: Callable[..., Disks],
) -> None:
    disks = make_disks()
    files = {f"/f{number}": content(number, 3 * MIB + number) for number in range(12)}
    async with disks.connect() as fs:
        for path, data in files.items():
            await fs.put(data, path)
    disks.wait_well()
    reported = disks.status()["servers"]
    wait_for(lambda: {*map(disks.count, NAMES)} == {len(files)}, "replica of each on each")
    for name in NAMES:
        server = next(s for s in reported if s["id"] == disks.id(name))
        assert [d["path"] for d in server["disks"]] == [str(d) for d in disks.directories(name)]

    before = disks.id(NAMES[0])
    disks.stop_chunkserver(NAMES[0])
    lost = max(disks.directories(NAMES[0]), key=lambda d: len(disks.replicas(d)))
    for path in sorted(lost.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    disks.start_chunkserver(NAMES[0])
    disks.wait_live()
    disks.wait_well()
    assert not list(lost.iterdir()), "it may be where another file system is to be mounted"
    refused = disks.gfs("disk", "add", before, str(lost), code=1)
    assert "free of" in refused
    assert "gfs disk add --force" in refused
    assert not list(lost.iterdir())
    added = disks.gfs("disk", "add", before, str(lost), "--force")
    assert added.startswith(f"{lost} is on the ")
    assert json.loads((lost / "server.json").read_bytes())["id"] == before
    [kept] = {*disks.directories(NAMES[0])} - {lost}
    disks.gfs("disk", "drain", before, str(kept))
    wait_for(lambda: not disks.replicas(kept), "empty disk")
    async with disks.connect() as fs:
        for path, data in files.items():
            assert await fs.get(path) == data


#: How long a client tries again before it concludes that there is no room. Longer than a
#: server goes without writing what it remembers, or without being heard of.
RETRY_SECONDS = 6.0


def overfill(disks: Disks) -> None:
    """Something else takes all the space there is."""
    for name in NAMES:
        for directory in disks.directories(name):
            with (
                contextlib.suppress(OSError),
                open(directory / "somebody-elses", "wb", buffering=0) as file,
            ):
                while True:
                    file.write(bytes(4096))


@pytest.mark.extra("mount")
async def test_a_full_disk_is_an_error_to_the_writer_and_never_a_damaged_chunk(
    make_small_disks: Callable[..., Disks],
) -> None:
    disks = make_small_disks(
        GFS_CHUNKSERVER_RESERVE_BYTES="0",
        GFS_MASTER_GARBAGE_GRACE_SECONDS="2",
        GFS_MASTER_CLIENT_SILENCE_SECONDS="2",
    )
    kept = content(1, 20 * MIB)
    extended = content(2, 3 * MIB + 5)
    async with disks.connect() as fs, disks.connect(RETRY_SECONDS) as refused_one:
        await fs.put(kept, "/kept")
        await fs.put(extended, "/extended")
        with pytest.raises((DiskFull, NotEnoughChunkservers)):
            await refused_one.put(content(3, 3 * DISK_BYTES), "/toomuch")
        assert not await fs.exists("/toomuch")
        assert await fs.get("/kept") == kept

        # In place, too: what was acknowledged is there, and nothing is damaged.
        acknowledged = len(extended)
        overfill(disks)
        refused: Exception | None = None
        file = await refused_one.open("/extended", "r+")
        for _ in range(64):
            try:
                await file.pwrite(acknowledged, bytes(MIB))
            except (DiskFull, NotEnoughChunkservers, ChunkUnavailable) as error:
                refused = error
                break
            acknowledged += MIB
        assert refused is not None, "64 MiB were written to full disks"
        await file.close()
        found = await fs.get("/extended")
        assert found[: len(extended)] == extended
        assert len(found) >= acknowledged
        assert not any(found[len(extended) : acknowledged])
        assert await fs.get("/kept") == kept
    assert disks.all_run()


@pytest.mark.extra("mount")
async def test_servers_outlive_full_disks_and_write_again_when_there_is_room(
    make_small_disks: Callable[..., Disks],
) -> None:
    disks = make_small_disks(
        GFS_CHUNKSERVER_RESERVE_BYTES="0",
        GFS_MASTER_GARBAGE_GRACE_SECONDS="2",
        GFS_MASTER_CLIENT_SILENCE_SECONDS="2",
    )
    data = content(1, 20 * MIB)
    async with disks.connect() as fs, disks.connect(RETRY_SECONDS) as refused_one:
        await fs.put(data, "/old")
        overfill(disks)
        # Longer than a server goes without writing what it remembers.
        for number in range(2):
            await fs.mkdir(f"/d{number}")
            with pytest.raises((DiskFull, NotEnoughChunkservers)):
                await refused_one.put(content(number, 2 * MIB), f"/d{number}/new")
        assert disks.all_run(), "a full disk ended a chunkserver"
        assert await fs.get("/old") == data
    disks.gfs("fsck", "/old")

    # A server that is started on full disks serves what it has.
    for name in NAMES:
        disks.kill(name, signal.SIGKILL)
        disks.start_chunkserver(name)
    disks.wait_live()
    async with disks.connect() as fs:
        assert await fs.get("/old") == data

        await fs.delete("/old")
        wait_for(
            lambda: not any(disks.replicas(d) for name in NAMES for d in disks.directories(name)),
            "space of a deleted file",
        )
        await fs.put(data, "/again")
        assert await fs.get("/again") == data
    disks.wait_well()


@pytest.mark.extra("mount")
async def test_many_writers_at_once_do_not_use_up_the_reserve(
    make_small_disks: Callable[..., Disks],
) -> None:
    """A disk that had room for each of them by itself has no room for all."""
    reserve = 8 * MIB
    disks = make_small_disks(GFS_CHUNKSERVER_RESERVE_BYTES=str(reserve))
    async with disks.connect() as fs, disks.connect(RETRY_SECONDS) as refused_one:
        acknowledged: dict[str, bytes] = {}
        failures: list[Exception] = []

        async def write(number: int) -> None:
            data = content(number, 9 * MIB)
            try:
                await refused_one.put(data, f"/f{number}")
            except (DiskFull, NotEnoughChunkservers) as error:
                failures.append(error)
            else:
                acknowledged[f"/f{number}"] = data

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(write, number)
        assert failures, "144 MiB found room on two disks of 48 MiB"
        await trio.sleep(6.0)
        assert disks.all_run(), "full disks ended a chunkserver"
        for path, data in acknowledged.items():
            assert await fs.get(path) == data

"""What the file system promises, with real processes that are killed for real."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import pytest
import trio
from limits import HANG_SECONDS
from processes import Processes, wait_live, wait_until, wait_whole

import gfs
from gfs.blocks import CHUNK_BYTES, MIB
from gfs.client import Client
from gfs.errors import GfsError, NotFound

#: A whole chunk, and a short one.
LARGE = CHUNK_BYTES + 5 * MIB + 12_345


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


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


async def test_the_last_two_servers_are_enough_for_a_put(processes: Processes) -> None:
    data = content(2, CHUNK_BYTES + 3 * MIB)
    async with connected(processes) as fs:
        await wait_live(fs, 4)
        processes.kill("chunkserver-1")

        async def pace(offset: int) -> None:
            if offset == 20 * MIB:
                processes.kill("chunkserver-2")
            await trio.lowlevel.checkpoint()

        await fs.put(pieces(data, pace), "/two")
        assert await fs.get("/two") == data


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_get_survives_the_loss_of_any_chunkserver(
    processes: Processes, how: signal.Signals
) -> None:
    data = content(3, LARGE)
    async with connected(processes) as fs:
        await wait_live(fs, 4)
        await fs.put(data, "/large")
        for number, at in enumerate((0, CHUNK_BYTES // 2, LARGE - 1)):
            victim = f"chunkserver-{number + 1}"
            digest = hashlib.sha256()
            read, lost = 0, False
            async for view in fs.stream("/large"):
                digest.update(view)
                read += len(view)
                if read > at and not lost and number < 1 + (how == signal.SIGSTOP):
                    processes.kill(victim, how)
                    lost = True
            assert digest.digest() == hashlib.sha256(data).digest()


async def test_a_put_survives_a_chunkserver_that_hangs(processes: Processes) -> None:
    """Slower than a death, which the kernel reports at once: the deadline must pass."""
    data = content(4, 40 * MIB)
    async with connected(processes) as fs:
        await wait_live(fs, 4)

        async def pace(offset: int) -> None:
            if offset == 8 * MIB:
                processes.kill("chunkserver-2", signal.SIGSTOP)
            await trio.lowlevel.checkpoint()

        with trio.fail_after(HANG_SECONDS):
            await fs.put(pieces(data, pace), "/hang")
        processes.kill("chunkserver-2", signal.SIGCONT)
        assert await fs.get("/hang") == data
        await wait_whole(fs)


async def _write_until_killed(
    fs: Client, acknowledged: dict[str, bytes], started: set[str], stop: trio.Event
) -> None:
    """Small files and now and then one of 9 MiB, noting what was acknowledged."""
    number = 0
    while not stop.is_set():
        number += 1
        path = f"/w/{number % 7}/{number}"
        data = content(number, 9 * MIB if number % 10 == 0 else number * 37 % 5000)
        started.add(path)
        try:
            await fs.put(data, path)
        except GfsError:
            continue
        acknowledged[path] = data


async def _more(acknowledged: dict[str, bytes]) -> None:
    """Wait for a few more acknowledgements, so that the kill hits anywhere."""
    enough = len(acknowledged) + random.randrange(5, 40)

    async def reached() -> bool:
        return len(acknowledged) >= enough

    await wait_until(reached, "progress")


async def _check_acknowledged(
    fs: Client, acknowledged: dict[str, bytes], started: set[str]
) -> None:
    for path, data in acknowledged.items():
        assert await fs.get(path) == data, f"{path} was acknowledged"
    for path in started - set(acknowledged):
        number = int(path.rpartition("/")[2])
        whole = content(number, 9 * MIB if number % 10 == 0 else number * 37 % 5000)
        with suppress(NotFound):
            assert await fs.get(path) == whole, f"{path} is there in part"


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_a_master_killed_at_any_moment_loses_nothing(processes: Processes) -> None:
    acknowledged: dict[str, bytes] = {}
    started: set[str] = set()
    async with connected(processes) as fs:
        await wait_live(fs, 3)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write_until_killed, fs, acknowledged, started, stop)
            for _ in range(4):
                await _more(acknowledged)
                processes.kill("master")
                processes.start_master()
            stop.set()
        assert len(acknowledged) == len(started), "a restart of the master shows as a delay"
        await _check_acknowledged(fs, acknowledged, started)
        await wait_whole(fs)


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_everything_killed_at_once_loses_nothing(processes: Processes) -> None:
    acknowledged: dict[str, bytes] = {}
    started: set[str] = set()
    for _ in range(3):
        async with connected(processes) as fs:
            await wait_live(fs, 3)
            async with trio.open_nursery() as nursery:
                stop = trio.Event()
                nursery.start_soon(_write_until_killed, fs, acknowledged, started, stop)
                await _more(acknowledged)
                processes.kill_all()
                nursery.cancel_scope.cancel()
        processes.start_master()
        for number in (1, 2, 3):
            processes.start_chunkserver(f"chunkserver-{number}")
    async with connected(processes) as fs:
        await wait_live(fs, 3)
        await _check_acknowledged(fs, acknowledged, started)
        await wait_whole(fs)


def chunk_files(processes: Processes, name: str) -> list[Path]:
    return sorted((processes.state / name / "chunks").rglob("*.chunk"))


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_of_concurrent_writers_one_whole_file_wins(processes: Processes) -> None:
    candidates = [content(n, 2 * MIB + n) for n in range(6)]
    async with connected(processes) as fs, connected(processes) as other:
        await wait_live(fs, 3)
        async with trio.open_nursery() as nursery:
            for number, data in enumerate(candidates):
                client = fs if number % 2 else other
                nursery.start_soon(lambda c=client, d=data: c.put(d, "/one", overwrite=True))
            for _ in range(20):
                try:
                    assert await fs.get("/one") in candidates
                except NotFound:
                    await trio.sleep(0.01)
        assert await fs.get("/one") in candidates


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_hostile_peers_cost_nothing_but_their_connection(processes: Processes) -> None:
    async with connected(processes) as fs:
        await wait_live(fs, 3)
        addresses = [processes.master_address]
        addresses += [server.address for server in (await fs.status()).servers]
        peers = []
        for address in addresses:
            host, _, port = address.partition(":")
            for garbage in (
                b"GET / HTTP/1.1\r\n\r\n",
                random.randbytes(5000),
                b"\xff\xff\xff\xff\xff\xff\xff\xff",
                b"\x00\x00\x00\x40",  # and then silence in mid-frame
                b"",
            ):
                peer = socket.create_connection((host, int(port)))
                peer.sendall(garbage)
                peers.append(peer)
        try:
            await fs.put(b"still here", "/h")
            assert await fs.get("/h") == b"still here"
            with pytest.raises(GfsError, match="key"):
                async with gfs.connect(processes.master_address, key=bytes(32)):
                    pass
            with trio.fail_after(HANG_SECONDS):
                for peer in peers:
                    await trio.to_thread.run_sync(_wait_hung_up, peer)
        finally:
            for peer in peers:
                peer.close()
        assert await fs.get("/h") == b"still here"


def _wait_hung_up(peer: socket.socket) -> None:
    peer.settimeout(HANG_SECONDS)
    try:
        while peer.recv(4096):
            pass
    except ConnectionError:
        pass


@pytest.mark.parametrize("processes", [3], indirect=True)
async def test_in_place_writes_survive_a_death_and_a_restart(processes: Processes) -> None:
    model = bytearray(content(5, CHUNK_BYTES + 200_000))
    async with connected(processes) as fs:
        await wait_live(fs, 3)
        await fs.put(bytes(model), "/m")
        async with await fs.open("/m", "r+") as file:
            for number, (offset, length) in enumerate(
                [(10, 100), (65_530, 20), (CHUNK_BYTES - 70_000, 140_000), (len(model), 300_000)]
            ):
                if number == 2:
                    processes.kill("chunkserver-1")
                data = content(100 + number, length)
                await file.pwrite(offset, data)
                model[offset : offset + length] = data
                assert await file.pread(offset, length) == data
        assert await fs.get("/m") == model
        processes.start_chunkserver("chunkserver-1")
        await wait_live(fs, 3)
        processes.kill_all()
        processes.start_master()
        for number in (1, 2, 3):
            processes.start_chunkserver(f"chunkserver-{number}")
        await wait_live(fs, 3)
        assert await fs.get("/m") == model
        await wait_whole(fs)

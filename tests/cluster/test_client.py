"""The client library against real processes, and against plain bytes."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from harness import Cluster
from limits import HANG_SECONDS
from processes import wait_whole

import gfs
from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB
from gfs.client import sync
from gfs.config import ClientSettings
from gfs.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    MasterUnavailable,
    NotFound,
    SettingsError,
    WrongClusterKey,
)


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


async def halves(data: bytes) -> AsyncIterator[bytes]:
    yield data[: len(data) // 2]
    await trio.lowlevel.checkpoint()
    yield data[len(data) // 2 :]


EDGES = [
    0, 1, 1023, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, MIB - 1, MIB, MIB + 1,
    3 * MIB + 17,
]  # fmt: skip


@pytest.mark.parametrize("length", EDGES)
async def test_every_kind_of_source_and_target(
    cluster: Cluster, tmp_path: Path, length: int
) -> None:
    data = content(length, length)
    local = tmp_path / "source"
    local.write_bytes(data)
    async with gfs.connect(state=cluster.state) as fs:
        sources = {
            "bytes": data,
            "bytearray": bytearray(data),
            "path": local,
            "text": str(local),
            "file": io.BytesIO(data),
            "iterator": halves(data),
        }
        for name, source in sources.items():
            path = f"/kinds/{length}/{name}"
            entry = await fs.put(source, path)
            assert (entry.length, entry.kind, entry.path) == (length, "file", path)
            assert await fs.get(path) == data
        target = tmp_path / "target"
        await fs.get(f"/kinds/{length}/path", target)
        assert target.read_bytes() == data
        sink = io.BytesIO()
        found = await fs.get(f"/kinds/{length}/path", sink)
        assert sink.getvalue() == data
        assert found == await fs.stat(f"/kinds/{length}/path")
        assert sorted(os.listdir(tmp_path)) == ["source", "target"], "no parts are left"


async def test_a_file_of_several_chunks_is_read_at_any_place(cluster: Cluster) -> None:
    length = CHUNK_BYTES + 2 * MIB + 333
    data = content(1, length)
    rng = random.Random(2)
    async with gfs.connect(state=cluster.state) as fs:
        await fs.put(data, "/several")
        async with await fs.open("/several") as file:
            for _ in range(60):
                offset = rng.choice(
                    [rng.randrange(length), CHUNK_BYTES - rng.randrange(200_000), length - 5]
                )
                count = rng.choice([1, 100, BLOCK_BYTES, 200_000, 3 * MIB])
                assert await file.pread(offset, count) == data[offset : offset + count]
            assert await file.pread(length, 10) == b""
            assert await file.pread(length + 10, 10) == b""
            for _ in range(40):
                offset = rng.choice([rng.randrange(length), CHUNK_BYTES - 70_000])
                await file.seek(offset)
                for count in (rng.choice([1, 5000, 70_000, 2 * MIB]) for _ in range(3)):
                    assert await file.read(count) == data[offset : offset + count]
                    offset = min(offset + count, length)
                    assert file.tell() == offset
            await file.seek(-10, os.SEEK_END)
            assert await file.read() == data[-10:]
            await file.seek(0)
            out = bytearray(length)
            done = 0
            while count := await file.readinto(memoryview(out)[done : done + 700_001]):
                done += count
            assert out == data
        for offset, count in [(0, 10), (5, MIB), (CHUNK_BYTES - 3, 7), (length - 4, 100)]:
            got = b"".join([bytes(view) async for view in fs.stream("/several", offset, count)])
            assert got == data[offset : offset + count]
        async with aclosing(fs.stream("/several")) as stream:
            async for view in stream:
                assert bytes(view) == data[: len(view)]
                break  # leaving early costs the connection, no more
        assert await fs.get("/several") == data


async def test_a_new_file_shows_when_it_is_closed(cluster: Cluster) -> None:
    async with gfs.connect(state=cluster.state) as fs:
        async with await fs.open("/new/file", "w") as file:
            for piece in (b"", b"a" * 10, b"b" * 100_000, b"c" * (2 * MIB)):
                assert await file.write(piece) == len(piece)
            await file.flush()
            assert not await fs.exists("/new/file")
            assert file.tell() == 100_010 + 2 * MIB
        assert await fs.get("/new/file") == b"a" * 10 + b"b" * 100_000 + b"c" * (2 * MIB)
        with pytest.raises(RuntimeError, match="changed my mind"):  # noqa: PT012
            async with await fs.open("/new/file", "w") as file:
                await file.write(b"x" * MIB)
                raise RuntimeError("changed my mind")
        assert (await fs.stat("/new/file")).length == 100_010 + 2 * MIB
        with pytest.raises(AlreadyExists):
            await fs.open("/new/file", "x")
        with pytest.raises(IsADirectory):
            await fs.open("/new", "w")
        with pytest.raises(IsADirectory):
            await fs.open("/new")
        with pytest.raises(InvalidArgument, match="mode"):
            await fs.open("/new/file", "a")
        with pytest.raises(NotFound):
            await fs.open("/nothing")
        async with await fs.open("/new/file") as file:
            with pytest.raises(io.UnsupportedOperation):
                await file.write(b"x")
        new = await fs.open("/other", "w")
        async with new, await fs.open("/new/file", "r+") as there:
            pass
        calls: list[Callable[[], Any]] = [
            *(file.read, file.stream, new.flush),
            lambda: file.readinto(bytearray(1)),
            lambda: file.pread(0, 1),
            lambda: file.seek(0),
            lambda: there.pwrite(0, b"x"),
            lambda: new.write(b"x"),
            lambda: new.expect(0),
            lambda: new.describe({}),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="closed"):
                await call()


async def test_in_place_writes_match_a_plain_buffer(cluster: Cluster) -> None:
    rng = random.Random(3)
    model = bytearray(content(4, 150_000))
    async with gfs.connect(state=cluster.state) as fs:
        await fs.put(bytes(model), "/place")
        async with await fs.open("/place", "r+") as file:
            for number in range(40):
                offset = rng.choice([rng.randrange(len(model)), len(model), len(model) + 1000])
                data = content(number, rng.choice([1, 100, BLOCK_BYTES, 130_000]))
                await file.pwrite(offset, data)
                if offset > len(model):
                    model += bytes(offset - len(model))
                model[offset : offset + len(data)] = data
                assert file.length == len(model)
                at = rng.randrange(len(model))
                assert await file.pread(at, 70_000) == model[at : at + 70_000]
            await file.seek(5)
            await file.write(b"hello")
            model[5:10] = b"hello"
            assert file.tell() == 10
        assert await fs.get("/place") == model
        assert (await fs.stat("/place")).length == len(model)
        await wait_whole(fs)


async def test_four_hundred_writers_at_once(cluster: Cluster) -> None:
    settings = ClientSettings(memory_bytes=4 * MIB)
    async with gfs.connect(state=cluster.state, settings=settings) as fs:

        async def one(number: int) -> None:
            data = content(number, 200_000 + number)
            async with await fs.open(f"/many/{number}", "w") as file:
                for at in range(0, len(data), 50_000):
                    await file.write(data[at : at + 50_000])
                    await trio.lowlevel.checkpoint()

        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(400):
                    nursery.start_soon(one, number)
        assert len(await fs.list("/many")) == 400
        for number in (0, 17, 399):
            assert await fs.get(f"/many/{number}") == content(number, 200_000 + number)


async def test_names_and_trees(cluster: Cluster) -> None:
    async with gfs.connect(state=cluster.state) as fs:
        names = ["a", "b c", "ü", "日本", "x" * 255, "%2e%2e", "-rf", "a\nb"]
        for name in names:
            await fs.put(name.encode(), f"/tree/deep/{name}")
        listed = [entry.path.rpartition("/")[2] async for entry in fs.scan("/tree/deep")]
        assert listed == sorted(names, key=str.encode)
        for after in (*names, "", "b", "x" * 300, "~"):
            later = [entry.path async for entry in fs.scan("/tree/deep", after)]
            assert later == [
                f"/tree/deep/{name}" for name in listed if name.encode() > after.encode()
            ]
        with pytest.raises(InvalidName):
            await anext(fs.scan("/tree/deep", "\ud800"))
        walked = [entry.path async for entry in fs.walk("/tree")]
        assert walked[0] == "/tree/deep"
        assert len(walked) == 1 + len(names)
        await fs.rename("/tree/deep", "/tree/moved")
        assert await fs.get("/tree/moved/日本") == "日本".encode()
        usage = await fs.disk_usage("/tree")
        assert (usage.files, usage.directories) == (len(names), 1)
        await fs.delete("/tree", recursive=True)
        assert not await fs.exists("/tree")


async def test_an_absent_cluster_is_reported_at_once(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no cluster"):
        async with gfs.connect(state=tmp_path, key=bytes(32)):
            pass
    with pytest.raises(WrongClusterKey):
        async with gfs.connect(cluster.ready["master"]["address"], key=bytes(32)):
            pass
    quick = ClientSettings(retry_seconds=0.2)
    with pytest.raises(MasterUnavailable, match=r"127\.0\.0\.1:1"):
        async with gfs.connect("127.0.0.1:1", key=bytes(32), settings=quick):
            pass


def test_the_blocking_client_from_many_threads(cluster: Cluster, tmp_path: Path) -> None:
    with sync.connect(state=cluster.state) as fs:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                data = content(number, 300_000)
                fs.put(data, f"/threads/{number}")
                with fs.open(f"/threads/{number}") as file:
                    assert file.read(10) == data[:10]
                    assert file.seek(250_000) == 250_000
                    assert file.read() == data[250_000:]
                with fs.open(f"/threads/{number}", "w") as file:
                    file.write(data[::-1])
                assert fs.get(f"/threads/{number}") == data[::-1]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_SECONDS)
        assert not failures
        assert [e.path for e in fs.scan("/threads")] == [f"/threads/{n}" for n in range(8)]
        assert [e.path for e in fs.scan("/threads", after="5")] == ["/threads/6", "/threads/7"]
        assert sum(1 for _ in fs.walk("/threads")) == 8
        fs.get("/threads/1", tmp_path / "one")
        assert (tmp_path / "one").stat().st_size == 300_000
        with pytest.raises(NotFound):
            fs.stat("/threads/none")
        fs.rename("/threads/1", "/threads/uno")
        fs.delete("/threads", recursive=True)
        assert not fs.exists("/threads")
        assert fs.status().totals.lost == 0
    with pytest.raises(ValueError, match="closed"):
        fs.stat("/")


def test_a_file_whose_writer_failed_is_not_published(cluster: Cluster) -> None:
    with sync.connect(state=cluster.state) as fs:
        with suppress(ZeroDivisionError), fs.open("/half", "w") as file:
            file.write(b"half")
            raise ZeroDivisionError
        assert not fs.exists("/half")


FORK = """
import os, sys
from gfs.client import sync
fs = sync.connect(state=sys.argv[1])
fs.put(b"parent", "/fork", overwrite=True)
file = fs.open("/fork")
pid = os.fork()
if not pid:
    status = 1
    try:
        assert fs.get("/fork") == b"parent"
        fs.put(b"child", "/fork-child", overwrite=True)
        try:
            file.read()
        except ValueError as error:
            assert "forked" in str(error)
            status = 0
    finally:
        os._exit(status)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert file.read() == b"parent"
assert fs.get("/fork-child") == b"child"
fs.close()
"""


FORK_ALONE = """
import os, sys
from gfs.client import sync
fs = sync.connect(state=sys.argv[1])
fs.put(b"parent", "/fork", overwrite=True)
for uses_it in (True, False):
    pid = os.fork()
    if not pid:
        if uses_it:
            assert fs.get("/fork") == b"parent"
            assert fs.get("/fork") == b"parent"
        sys.exit()
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
assert fs.get("/fork") == b"parent"
"""


@pytest.mark.parametrize("script", [FORK, FORK_ALONE], ids=["with-a-file", "alone"])
def test_the_blocking_client_starts_again_after_a_fork(cluster: Cluster, script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(cluster.state)],
        capture_output=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_client_needs_no_server_extras() -> None:
    code = """
import sys
for name in ("lmdb", "click", "rich", "quart", "hypercorn", "cryptography"):
    sys.modules[name] = None
import gfs, gfs.client.sync, gfs.fsspec
assert gfs.connect and gfs.Client and gfs.fsspec.GfsFileSystem
assert not {"gfs.master", "gfs.chunkserver", "gfs.cluster", "control"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG_SECONDS)


async def test_paths_that_cannot_be_are_refused_at_once(cluster: Cluster) -> None:
    async with gfs.connect(state=cluster.state) as fs:
        for path in ("/\udcff", "/" + "x" * 80_000, b"/bytes", 7, None):
            for call in (fs.stat, fs.mkdir, fs.get, fs.delete, fs.disk_usage, fs.locate, fs.fsck):
                with pytest.raises(InvalidName):
                    await call(path)  # type: ignore[operator,arg-type]
            with pytest.raises(InvalidName):
                await fs.put(b"x", path)  # type: ignore[arg-type]
            with pytest.raises(InvalidName):
                await fs.rename("/a", path)  # type: ignore[arg-type]
        assert (await fs.stat("/")).kind == "directory"

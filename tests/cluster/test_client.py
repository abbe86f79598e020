"""The client library against real processes, and against plain bytes."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, content, python
from limits import HANG_SECONDS

import gfs
from gfs.blocks import MIB
from gfs.client import sync
from gfs.config import ClientSettings
from gfs.errors import (
    AlreadyExists,
    InvalidArgument,
    IsADirectory,
    MasterUnavailable,
    NotFound,
    SettingsError,
    WrongClusterKey,
)


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
for uses_it in (True, False):
    pid = os.fork()
    if not pid:
        if uses_it:
            assert fs.get("/fork") == b"parent"
            fs.put(b"child", "/fork-child", overwrite=True)
            try:
                file.read()
            except ValueError as error:
                assert "forked" in str(error)
            else:
                raise AssertionError
        sys.exit()
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
assert file.read() == b"parent"
assert fs.get("/fork-child") == b"child"
"""


def test_the_blocking_client_starts_again_after_a_fork(cluster: Cluster) -> None:
    python("-W", "ignore::DeprecationWarning", "-c", FORK, cluster.state)


def test_the_client_needs_no_server_extras() -> None:
    code = """
import sys
for name in ("awscrt", "lmdb", "click", "rich", "argon2", "cryptography", "h11", "httpx", "jwt",
             "quart", "quart_trio", "hypercorn", "kubernetes", "psycopg", "torch", "wsproto"):
    sys.modules[name] = None
import gfs, gfs.client.sync, gfs.data
assert gfs.connect and gfs.Client and gfs.data.Files
assert "fsspec" not in sys.modules
import gfs.fsspec
assert gfs.fsspec.GfsFileSystem
assert not {"gfs.master", "gfs.chunkserver", "gfs.cluster", "control"} & sys.modules.keys()
"""
    python("-c", code)

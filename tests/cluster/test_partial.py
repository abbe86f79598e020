"""``get --partial``: what is left of a file that is damaged on all servers."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster
from limits import wait_for

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB
from gfs.client import sync
from gfs.config import ClientSettings
from gfs.errors import InvalidArgument

#: A whole chunk, one that is lost, and a short one.
LENGTH = 2 * CHUNK_BYTES + 3 * MIB + 12_345
#: Blocks of the first chunk that are damaged on each server. Only what is damaged on all is
#: lost: the first, two in a row of which one is where two pieces meet, and the last.
DAMAGED = [{0, 15, 16, 1023, 7}, {0, 15, 16, 1023, 8, 500}, {0, 15, 16, 1023, 9, 700}]
HOLES = [
    (0, BLOCK_BYTES),
    (15 * BLOCK_BYTES, 2 * BLOCK_BYTES),
    (1023 * BLOCK_BYTES, BLOCK_BYTES + CHUNK_BYTES),
]
#: How long who is to find that a part is lost tries to read it.
RETRY_SECONDS = 3.0
HEDGE_SECONDS = 60.0


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(5).randbytes(LENGTH)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    # A busy server has not lost what it takes its time to send.
    cluster.environment["GFS_CLIENT_HEDGE_SECONDS"] = f"{HEDGE_SECONDS:g}"
    try:
        cluster.start()
        cluster.gfs("put", "-", "/file", input=data)
        cluster.gfs("put", "-", "/good", input=data[:100_000])
        with sync.connect(state=cluster.state) as fs:
            wait_for(lambda: not fs.fsck("/").damaged, "all replicas")
            first, second, _ = (chunk.handle for chunk in fs.locate("/file").chunks)
        for number, blocks in enumerate(DAMAGED, 1):
            flip(chunk_file(cluster, number, first), blocks)
            os.truncate(chunk_file(cluster, number, second), 0)
        yield cluster
    finally:
        cluster.stop()


def chunk_file(cluster: Cluster, number: int, handle: int) -> Path:
    chunks = cluster.state / f"chunkserver-{number}" / "chunks"
    (path,) = chunks.rglob(f"{handle:016x}.chunk")
    return path


def flip(path: Path, blocks: set[int]) -> None:
    with path.open("r+b") as file:
        for block in blocks:
            file.seek(16 * 1024 + block * BLOCK_BYTES + 777)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))


def with_holes(data: bytes) -> bytes:
    left = bytearray(data)
    for offset, count in HOLES:
        left[offset : offset + count] = bytes(count)
    return bytes(left)


def test_what_is_left_of_a_file_is_fetched_and_the_holes_are_reported(
    damaged: Cluster, data: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "file"
    damaged.gfs("get", "/file", target, code=1, retry_seconds=RETRY_SECONDS)
    assert not target.exists()
    done = damaged.gfs("get", "--partial", "/file", target, code=4, retry_seconds=RETRY_SECONDS)
    assert target.read_bytes() == with_holes(data)
    assert target.stat().st_blocks * 512 < LENGTH - CHUNK_BYTES + MIB, "holes take no space"
    reported = [line for line in done.stderr.decode().splitlines() if "lost" in line]
    assert reported == [
        f"gfs: /file: {count} bytes from {offset} on are lost: a hole" for offset, count in HOLES
    ]


def test_the_library_returns_the_holes(damaged: Cluster, data: bytes, tmp_path: Path) -> None:
    settings = ClientSettings(retry_seconds=RETRY_SECONDS, hedge_seconds=HEDGE_SECONDS)
    with sync.connect(state=damaged.state, settings=settings) as fs:
        rescued = fs.get("/file", tmp_path / "file", partial=True)
        assert (rescued.entry.length, rescued.holes) == (LENGTH, HOLES)
        with pytest.raises(InvalidArgument, match="local path"):
            fs.get("/file", partial=True)  # type: ignore[call-overload]


def test_the_holes_are_reported_as_json(damaged: Cluster, data: bytes, tmp_path: Path) -> None:
    arguments = ("get", "--partial", "--json", "/file", "/good", f"{tmp_path}/")
    done = damaged.gfs(*arguments, code=4, retry_seconds=RETRY_SECONDS)
    files = {each["path"]: each["holes"] for each in json.loads(done.stdout)["files"]}
    assert files == {
        "/file": [{"offset": offset, "bytes": count} for offset, count in HOLES],
        "/good": [],
    }
    assert (tmp_path / "good").read_bytes() == data[:100_000]
    damaged.gfs("get", "--partial", "/good", tmp_path / "again")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = damaged.gfs("get", "--partial", "-f", "/good", pipe, code=1)
    assert pipe.is_fifo()
    assert b"name a file" in done.stderr

"""Record append with real processes: many clients, one file, servers that die."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from harness import Cluster
from processes import wait_whole

import gfs
from gfs.blocks import CHUNK_BYTES, MIB


def test_records_of_the_greatest_size_fill_chunks(cluster: Cluster) -> None:
    size = CHUNK_BYTES // 4

    async def everything() -> None:
        async with gfs.connect(state=cluster.state) as fs:
            offsets = {}
            for number in range(6):
                data = number.to_bytes(8, "big") * (size // 8)
                offsets[await fs.append("/large", data)] = data
            assert {offset // CHUNK_BYTES for offset in offsets} == {0, 1}
            found = {record.offset: record.data async for record in fs.records("/large")}
            assert found == offsets
            last = max(offsets)
            assert [r.offset async for r in fs.records("/large", start=last)] == [last]
            assert [r.offset async for r in fs.records("/large", start=last + 1)] == []
            # What pads a chunk takes no space, and is read as zeros by whoever reads bytes.
            data = await fs.get("/large")
            end = max(o for o in offsets if o < CHUNK_BYTES) + 48 + size
            assert not any(data[end:CHUNK_BYTES])
            await wait_whole(fs)

    trio.run(everything)
    files = cluster.state.glob("chunkserver-*/chunks/*/*.chunk")
    padded = [stat for stat in map(Path.stat, files) if stat.st_size > CHUNK_BYTES]
    assert len(padded) >= 3
    assert all(stat.st_blocks * 512 < stat.st_size - 10 * MIB for stat in padded)


@pytest.mark.thin
def test_the_command_line(cluster: Cluster) -> None:
    lines = [b"one", b"", b"three " * 1000]
    reported = json.loads(cluster.gfs("append", "/lines", "--json", input=b"\n".join(lines)).stdout)
    assert [each["length"] for each in reported] == [3, 0, 6000]
    assert cluster.gfs("records", "/lines").stdout == b"".join(line + b"\n" for line in lines)
    found = json.loads(cluster.gfs("records", "/lines", "--json").stdout)
    assert [each["offset"] for each in found] == [each["offset"] for each in reported]
    path = cluster.directory / "whole"
    path.write_bytes(b"with\nnewlines\n")
    cluster.gfs("append", "/lines", path, "-", input=b"and stdin\n")
    only = cluster.gfs("records", "/lines", "-0", "--from", str(reported[-1]["offset"] + 1)).stdout
    assert only == b"with\nnewlines\n\0and stdin\n\0"
    assert cluster.json("stat", "/lines")["length"] > reported[-1]["offset"] + 6000
    refused = cluster.gfs("records", "/not-there", code=1)
    assert b"/not-there" in refused.stderr
    assert b"bytes" in cluster.gfs("append", "/lines", "/dev/zero", code=1).stderr


def test_a_file_without_records_is_reported(cluster: Cluster) -> None:
    cluster.gfs("put", "-", "/bytes", input=b"no record\n" * 1000)
    cluster.gfs("put", "-", "/empty")
    cluster.gfs("append", "/one", input=b"record\n")
    reported = cluster.gfs("records", "/bytes", code=1)
    assert reported.stdout == b""
    assert reported.stderr == b"gfs: /bytes contains no records: gfs cat writes its bytes\n"
    [only] = json.loads(cluster.gfs("records", "/one", "--json").stdout)
    for arguments in (("/empty",), ("/one",), ("/one", "--from", str(only["offset"] + 1))):
        assert cluster.gfs("records", *arguments).stderr == b""

"""Options, what goes to stdout, and how much of it is memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from gfs.cli.options import Cluster, base_name, join, remote_path
from gfs.cli.output import JsonArray, Output, human_bytes, human_seconds, plain, printable, table
from gfs.cli.progress import Progress, describe, shown
from gfs.cli.transfer import _Get, _Put, _relative
from gfs.client import Client
from gfs.errors import InvalidArgument, InvalidName, NotFound
from gfs.failures import plural
from gfs.protocol.messages import DiskUsageReply, Entry, ServerAddress


@pytest.mark.parametrize(
    ("text", "path"),
    [("/", "/"), ("//", "/"), ("/a/", "/a"), ("/a//b", "/a/b"), ("/ä/b c", "/ä/b c")],
)
def test_remote_path(text: str, path: str) -> None:
    assert remote_path(text) == path


@pytest.mark.parametrize("text", ["", "a", "./a", "/\udc80"])
def test_remote_path_refuses(text: str) -> None:
    with pytest.raises(InvalidName):
        remote_path(text)


def test_names() -> None:
    assert join("/", "a") == "/a"
    assert join("/a", "b") == "/a/b"
    assert base_name("/a/b/") == "b"
    assert base_name("/") == ""


def test_no_name_leads_out_of_the_target() -> None:
    assert _relative("/a/b..c/d", "/a/") == "b..c/d"
    with pytest.raises(InvalidArgument, match=r"/a/b/\.\./\.\./x"):
        _relative("/a/b/../../x", "/a")


def test_an_option_after_the_subcommand_wins() -> None:
    before = Cluster(master="a:1", state=Path("/s"))
    after = Cluster(master="b:2", config=Path("/c"))
    assert after.over(before) == Cluster("b:2", Path("/s"), config=Path("/c"))


@pytest.mark.parametrize(
    ("count", "reported"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (200 * 1024, "200 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3000 * 1024**5, "3000 PiB"),
    ],
)
def test_human_bytes(count: int, reported: str) -> None:
    assert human_bytes(count) == reported


@pytest.mark.parametrize(
    ("seconds", "reported"),
    [
        (0.04, "0.0 s"),
        (99.9, "99.9 s"),
        (119, "119 s"),
        (180, "3 min"),
        (8000, "2 h"),
        (1e6, "12 d"),
    ],
)
def test_human_seconds(seconds: float, reported: str) -> None:
    assert human_seconds(seconds) == reported


def test_plural() -> None:
    assert plural(1, "directory") == "1 directory"
    assert plural(2, "directory") == "2 directories"
    assert plural(0, "file") == "0 files"


async def test_without_a_terminal_progress_is_a_line_now_and_then(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with shown(Progress(4000, unit="chunks"), lines=True) as progress:
        await trio.sleep(0.5)
        for _ in range(25):
            await trio.sleep(1)
            progress.advance(100)
    assert capsys.readouterr().err == (
        "gfs: 900 chunks of 4000 chunks  90 chunks/s  34.4 s left\n"
        "gfs: 1900 chunks of 4000 chunks  95 chunks/s  22.1 s left\n"
    )


async def test_the_total_is_of_all_that_is_there(tmp_path: Path) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.write_bytes(b"12345")
    assert await _Put((f"{here}", f"{gone}", f"{here}"), "/", False, False, None)._total() == 10
    assert await _Put((f"{here}", f"{tmp_path}"), "/", True, False, None)._total() == 10

    class Remote:
        async def disk_usage(self, path: str) -> DiskUsageReply:
            if path == "/gone":
                raise NotFound(path)
            return DiskUsageReply(0, 1, 0, 5, 15)

    get = _Get(("/here", "/gone", "/here"), ".", False, False, False)
    assert await get._total(cast(Client, Remote())) == 10


def test_progress_is_described() -> None:
    mib = 1024 * 1024
    assert describe(10 * mib, 30 * mib, 2.0) == "10.0 MiB of 30.0 MiB  5.0 MiB/s  4.0 s left"
    assert describe(30 * mib, 30 * mib, 2.0) == "30.0 MiB of 30.0 MiB  15.0 MiB/s"
    assert describe(5, None, 0.0, "chunks") == "5 chunks  0 chunks/s"


def test_terminals_are_not_commanded_by_names() -> None:
    assert printable("plain ä") == "plain ä"
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"


def test_table() -> None:
    reported = table(["A", "LONG"], [["xyz", "1"], ["", "22"]], right=[1])
    assert reported == "A    LONG\nxyz     1\n       22"


@dataclass
class Report:
    servers: list[ServerAddress]
    count: int


def test_wire_structs_become_objects() -> None:
    report = Report([ServerAddress("s1", "h:1", "r")], 2)
    assert plain(report) == {"servers": [{"id": "s1", "address": "h:1", "rack": "r"}], "count": 2}
    # The id of a message pairs it with its request and means nothing here.
    assert "id" not in plain(DiskUsageReply(7, 1, 2, 3, 4))


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_an_array_is_written_as_it_grows(
    count: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async with Output() as output:
        array = JsonArray(output, '{"files": ', lambda: ', "done": true}')
        for number in range(count):
            await array.add(Entry(f"/{number}", number, "file", 1, 3, 0, 0))
        await array.end()
    document = json.loads(capfdbinary.readouterr().out)
    assert [entry["path"] for entry in document["files"]] == [f"/{n}" for n in range(count)]
    assert document["done"] is True

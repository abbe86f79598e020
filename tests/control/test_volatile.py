"""Shared facts: expiry, many processes, kill -9, files that are damaged or full."""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS
from share import share

from control import volatile as volatile_module
from control.volatile import Volatile
from gfs.errors import InvalidArgument, StartupError

NOW = 1_700_000_000.0


class Progress(msgspec.Struct, array_like=True):
    done: int
    total: int = 0


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[Volatile]:
    opened = Volatile.open(tmp_path / "shared")
    yield opened
    opened.close()


def test_a_fact_is_there_until_it_expires(facts: Volatile) -> None:
    facts.put("transfer", "a", Progress(1, 2), ttl_seconds=10, now=NOW)
    facts.put("transfer", "raw", b"\xc1raw", ttl_seconds=10, now=NOW)
    assert facts.get("transfer", "a", Progress, now=NOW + 9.9) == Progress(1, 2)
    assert facts.get("transfer", "raw", bytes, now=NOW) == b"\xc1raw"
    assert facts.get("transfer", "raw", Progress, now=NOW) is None
    assert facts.get("transfer", "b", Progress, now=NOW) is None
    assert facts.get("login", "a", Progress, now=NOW) is None
    assert facts.get("transfer", "a", Progress, now=NOW + 10) is None
    facts.put("transfer", "a", Progress(2, 2), ttl_seconds=20, now=NOW)
    assert facts.get("transfer", "a", Progress, now=NOW + 10) == Progress(2, 2)
    facts.delete("transfer", "a")
    facts.delete("transfer", "a")
    assert facts.get("transfer", "a", Progress, now=NOW) is None


def test_the_present_is_the_default(facts: Volatile) -> None:
    facts.put("transfer", "a", Progress(1), ttl_seconds=3600)
    facts.put("transfer", "b", Progress(1), ttl_seconds=0)
    assert facts.get("transfer", "a", Progress) == Progress(1)
    assert facts.get("transfer", "b", Progress) is None


@given(
    st.lists(st.text(max_size=3) | st.sampled_from(["x" * 600, "x" * 601, "\udc80"]), max_size=6)
)
@settings(max_examples=share(30), deadline=None)
def test_any_text_is_a_key(keys: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        facts = Volatile.open(Path(directory))
        for number, key in enumerate(keys):
            facts.put("k", key, Progress(number), ttl_seconds=1, now=NOW)
        last = {key: Progress(number) for number, key in enumerate(keys)}
        assert {key: facts.get("k", key, Progress, now=NOW) for key in keys} == last
        assert facts.sweep(NOW + 1) == len(last)
        facts.close()


def test_times_within_the_window(facts: Volatile) -> None:
    assert facts.add("login", "ada", NOW, 60) == [NOW]
    assert facts.add("login", "ada", NOW + 30, 60) == [NOW, NOW + 30]
    assert facts.add("login", "bob", NOW + 30, 60) == [NOW + 30]
    assert facts.add("login", "ada", NOW + 60, 60) == [NOW + 30, NOW + 60]
    assert facts.get("login", "ada", list[float], now=NOW + 100) == [NOW + 30, NOW + 60]
    assert facts.get("login", "ada", list[float], now=NOW + 120) is None
    # The clock was set back by a day.
    assert facts.add("login", "ada", NOW - 86400, 60) == [NOW - 86400]
    for number in range(250):
        times = facts.add("login", "eve", NOW + number, 1000)
    assert times == [NOW + number for number in range(149, 250)]


def test_a_sweep_removes_what_has_expired(facts: Volatile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volatile_module, "SWEPT_ROWS_MAX", 10)
    for number in range(25):
        facts.put("k", f"{number:02}", Progress(number), ttl_seconds=number % 2, now=NOW)
    assert [facts.sweep(NOW + 0.5) for _ in range(3)] == [5, 5, 3]
    left = [n for n in range(25) if facts.get("k", f"{n:02}", Progress, now=NOW + 0.5)]
    assert left == list(range(1, 25, 2))
    assert [facts.sweep(NOW + 1) for _ in range(3)] == [10, 2, 0]


async def test_all_that_has_expired_is_swept_at_once_and_in_pieces(
    facts: Volatile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volatile_module, "SWEPT_ROWS_MAX", 10)
    for number in range(95):
        facts.put("k", str(number), Progress(number), ttl_seconds=number % 2, now=NOW)
    facts.sweep(NOW - 1)
    with trio.testing.assert_checkpoints():
        await facts.sweep_all(NOW + 0.5)
    assert facts._environment.stat()["entries"] == 47


def test_a_fact_has_a_limit(facts: Volatile) -> None:
    with pytest.raises(InvalidArgument, match="too large"):
        facts.put("k", "k", b"x" * 2**20, ttl_seconds=1)


def test_only_the_owner_may_look(facts: Volatile, tmp_path: Path) -> None:
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "shared").iterdir()} == {0o600}


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be opened"):
        Volatile.open(tmp_path / "file")


# Many processes


class Other:
    """A process that has the directory open and does what it is asked, or fails."""

    def __init__(self, directory: Path, work: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(directory, theirs, *arguments))
        self.process.start()
        theirs.close()

    def hear(self) -> Any:
        assert self.pipe.poll(HANG_SECONDS)
        return self.pipe.recv()

    def end(self) -> None:
        self.process.join(HANG_SECONDS)
        assert self.process.exitcode == 0
        self.process.close()
        self.pipe.close()


def open_and_add(directory: Path, pipe: Connection, first: int, count: int) -> None:
    pipe.send("ready")
    pipe.recv()
    facts = Volatile.open(directory)
    for number in range(first, first + count):
        facts.add("login", "ada", NOW + number, 1000)
    pipe.send("done")
    # Nobody is alone with the file until all have opened it.
    pipe.recv()
    facts.close()


def add_together(directory: Path, processes: int, count: int) -> None:
    others = [Other(directory, open_and_add, n * count, count) for n in range(processes)]
    for expected in ("ready", "done"):
        for other in others:
            assert other.hear() == expected
        for other in others:
            other.pipe.send("go on")
    for other in others:
        other.end()
    facts = Volatile.open(directory)
    times = facts.get("login", "ada", list[float], now=NOW)
    facts.close()
    assert times is not None
    assert sorted(times) == [NOW + number for number in range(processes * count)]


@pytest.mark.real
def test_processes_add_to_one_list(tmp_path: Path) -> None:
    add_together(tmp_path, 2, 40)


def put_without_end(directory: Path, pipe: Connection, turn: int) -> None:
    facts = Volatile.open(directory)
    for number in range(10**7):
        facts.put("k", f"{turn}-{number % 500}", Progress(number), ttl_seconds=100, now=NOW)
        pipe.send(number)


@pytest.mark.real
def test_facts_outlive_a_killed_process(tmp_path: Path) -> None:
    chance = random.Random(5)
    for turn in range(4):
        other = Other(tmp_path, put_without_end, turn)
        for _ in range(chance.randrange(1, 2000)):
            number = other.hear()
        other.process.kill()
        other.process.join(HANG_SECONDS)
        while other.pipe.poll():
            try:
                number = other.pipe.recv()
            except (EOFError, OSError):
                break  # It was killed within a message.
        facts = Volatile.open(tmp_path)
        found = facts.get("k", f"{turn}-{number % 500}", Progress, now=NOW)
        # One more may have been put and not printed.
        assert found is not None
        assert found.done == number
        assert facts.get("k", "0-0", Progress, now=NOW) is not None
        facts.close()


# Files that are damaged or full


def filled(directory: Path) -> Path:
    facts = Volatile.open(directory)
    for number in range(300):
        facts.put("k", str(number), b"x" * 100, ttl_seconds=100, now=NOW)
    facts.close()
    return directory / "data.mdb"


def tear(path: Path, chance: random.Random) -> None:
    """What a power cut leaves of pages that were on their way to the disk."""
    pages = path.stat().st_size // 4096
    with open(path, "r+b") as file:
        for _ in range(chance.randrange(1, 4)):
            file.seek(4096 * chance.randrange(pages))
            file.write(chance.choice([bytes(4096), chance.randbytes(4096), chance.randbytes(8)]))
        if chance.random() < 0.5:
            file.truncate(chance.randrange(path.stat().st_size))


@pytest.mark.parametrize("seed", range(40))
def test_a_torn_file_never_hurts(tmp_path: Path, seed: int) -> None:
    tear(filled(tmp_path), random.Random(seed))
    facts = Volatile.open(tmp_path)
    found = [facts.get("k", str(number), bytes, now=NOW) for number in range(300)]
    facts.put("k", "new", b"new", ttl_seconds=1, now=NOW)
    assert facts.get("k", "new", bytes, now=NOW) == b"new"
    left = 300 - found.count(None)
    assert facts.sweep(NOW + 100) == left + 1
    facts.close()


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 8192, b"garbage!" * 4096])
def test_no_lmdb_file_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    (tmp_path / "lock.mdb").write_bytes(content)
    facts = Volatile.open(tmp_path)
    assert facts.add("k", "k", NOW, 1) == [NOW]
    facts.close()


def test_a_file_that_is_too_large_to_be_checked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volatile_module, "CHECKED_BYTES_MAX", 8192)
    filled(tmp_path)
    facts = Volatile.open(tmp_path)
    assert facts.get("k", "0", bytes, now=NOW) is None
    facts.close()


@pytest.mark.real
def test_processes_that_open_a_damaged_file_at_once_share_the_new_one(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.write_bytes(random.Random(5).randbytes(path.stat().st_size))
    add_together(tmp_path, 4, 10)


def fill_up(directory: Path, pipe: Connection) -> None:
    facts = Volatile.open(directory, map_bytes=2**20)
    before = os.stat(directory / "data.mdb").st_ino
    number = 0
    while os.stat(directory / "data.mdb").st_ino == before:
        facts.put("k", str(number), b"x" * 1000, ttl_seconds=100, now=NOW)
        number += 1
    pipe.send(str(number - 1))
    facts.close()


@pytest.mark.real
def test_a_full_file_is_begun_again_and_others_follow(tmp_path: Path) -> None:
    facts = Volatile.open(tmp_path, map_bytes=2**20)
    facts.put("k", "mine", b"mine", ttl_seconds=100, now=NOW)
    other = Other(tmp_path, fill_up)
    last = other.hear()
    other.end()
    assert int(last) > 100
    assert facts.sweep(NOW) == 0
    assert facts.get("k", last, bytes, now=NOW) == b"x" * 1000
    assert facts.get("k", "mine", bytes, now=NOW) is None
    facts.close()

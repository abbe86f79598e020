"""``gfs.data.checkpoint``: directories that appear whole or not at all, whatever dies."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness import Cluster, python
from limits import HANG_SECONDS, wait_for
from signals import send

import gfs.data
from gfs.client import sync
from gfs.data import checkpointing
from gfs.errors import MasterUnavailable
from gfs.fsspec import GfsFileSystem


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[sync.SyncClient]:
    with sync.connect(state=cluster.state) as connected:
        yield connected


@pytest.fixture
def runs(request: pytest.FixtureRequest, client: sync.SyncClient) -> str:
    """A directory of this test alone."""
    path = f"/{request.node.name}"
    client.mkdir(path)
    return path


def names(client: sync.SyncClient, path: str) -> list[str]:
    return [entry.path.rpartition("/")[2] for entry in client.list(path)]


def write(client: sync.SyncClient, path: str, **options: Any) -> None:
    """A checkpoint with two files."""
    with gfs.data.checkpoint(client, path, **options) as there:
        client.put(path.encode(), f"{there}/a")
        client.put(b"b" * 100_000, f"{there}/deep/b")


def test_it_appears_whole_when_the_block_ends(client: sync.SyncClient, runs: str) -> None:
    assert gfs.data.latest(client, runs) is None
    assert gfs.data.latest(client, f"{runs}/none") is None
    with gfs.data.checkpoint(client, f"{runs}/step-1/") as there:
        client.put(b"a", f"{there}/a")
        with client.open(f"{there}/deep/b", "w") as file:
            file.write(b"b" * 1_000_000)
        assert not client.exists(f"{runs}/step-1")
        assert gfs.data.checkpoints(client, runs) == []
    assert gfs.data.checkpoints(client, runs) == [f"{runs}/step-1"]
    assert names(client, runs) == ["step-1"]
    assert names(client, f"{runs}/step-1") == ["a", "deep"]
    assert client.stat(f"{runs}/step-1/deep/b").length == 1_000_000


def test_by_fsspec_and_in_a_directory_that_is_made(
    client: sync.SyncClient, cluster: Cluster
) -> None:
    fs = GfsFileSystem(state=cluster.state, skip_instance_cache=True)
    with gfs.data.checkpoint(fs, "/made/runs/x") as there:
        fs.pipe(f"{there}/a", b"a")
    assert gfs.data.latest(fs, "/made/runs") == "/made/runs/x"
    fs.close()


def test_a_block_that_raises_leaves_nothing(client: sync.SyncClient, runs: str) -> None:
    def raises(error: type[BaseException]) -> None:
        with gfs.data.checkpoint(client, f"{runs}/x") as there:
            client.put(b"a", f"{there}/a")
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            raises(error)
        assert client.list(runs) == []
    write(client, f"{runs}/x")
    assert gfs.data.latest(client, runs) == f"{runs}/x"


def test_a_name_is_taken_once(client: sync.SyncClient, runs: str) -> None:
    write(client, f"{runs}/x")
    with pytest.raises(FileExistsError, match="a checkpoint replaces nothing") as caught:
        write(client, f"{runs}/x")
    assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, f"{runs}/x")

    def late() -> None:
        with gfs.data.checkpoint(client, f"{runs}/y") as there:
            client.put(b"late", f"{there}/late")
            write(client, f"{runs}/y")

    # Two at the same time: the first that ends.
    said = f"{runs}/y: another one of this name was there"
    with pytest.raises(FileExistsError, match=said) as caught:
        late()
    assert caught.value.errno == errno.EEXIST
    assert names(client, f"{runs}/y") == ["a", "deep"]
    assert names(client, runs) == ["x", "y"]


@pytest.mark.parametrize("says", [0, 1])
def test_any_of_several_writers_says_how_many_are_kept(
    client: sync.SyncClient, runs: str, says: int
) -> None:
    def save(step: int, writer: int) -> None:
        part = {"writer": writer, "writers": 2, "attempt": "a"}
        path = f"{runs}/{step}"
        with gfs.data.checkpoint(client, path, keep=1 if writer == says else None, **part) as there:
            client.put(b"", f"{there}/{writer}")

    with ThreadPoolExecutor(2) as pool:
        for step in range(4):  # either may be the one that gives it its name
            list(pool.map(save, [step] * 2, range(2)))
            assert gfs.data.checkpoints(client, runs) == [f"{runs}/{step}"]


def test_retention_deletes_the_oldest_checkpoints_and_nothing_else(
    client: sync.SyncClient, runs: str
) -> None:
    client.mkdir(f"{runs}/mine")
    client.put(b"", f"{runs}/a-file")
    write(client, f"{runs}/9")
    client.snapshot(f"{runs}/9", f"{runs}/best")  # is no checkpoint
    with gfs.data.checkpoint(client, f"{runs}/8", keep=2):
        # Begun later, and there before.
        write(client, f"{runs}/7", keep=2)
        with client.open(f"{runs}/9/deep/b") as read:
            assert read.read(10) == b"b" * 10
            write(client, f"{runs}/6", keep=2)
            assert gfs.data.checkpoints(client, runs) == [f"{runs}/7", f"{runs}/6"]
            # What was open is read on; what was not says what has happened.
            assert read.read() == b"b" * 99_990
        with pytest.raises(FileNotFoundError, match=f"{runs}/9/a"):
            client.get(f"{runs}/9/a")
    # The one that has just been written stays, though others were begun later.
    assert gfs.data.checkpoints(client, runs) == [f"{runs}/{n}" for n in (8, 7, 6)]
    write(client, f"{runs}/5", keep=1)
    assert gfs.data.checkpoints(client, runs) == [f"{runs}/5"]
    assert names(client, runs) == ["5", "a-file", "best", "mine"]
    client.undelete(f"{runs}/6")
    assert gfs.data.latest(client, runs) == f"{runs}/5"
    assert gfs.data.checkpoints(client, runs) == [f"{runs}/6", f"{runs}/5"]


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("step", {}, "'step': give the path of a checkpoint"),
        ("/", {}, "'/': give the path of a checkpoint"),
        ("gfs:///runs/1", {}, "give the path of a checkpoint"),
        ("/a/../b", {}, r"\.\."),
        ("/x", {"keep": 0}, "keep=0"),
        ("/x", {"writer": 2, "writers": 2, "attempt": "a"}, "writer=2 of writers=2"),
        ("/x", {"writers": 2}, "several writers need attempt="),
        ("/x", {"writers": 2, "attempt": "a/b"}, "attempt='a/b'"),
    ],
)
def test_wrong_arguments(
    client: sync.SyncClient, path: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        write(client, path, **options)


def test_a_cluster_that_is_down_has_no_latest(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster().start()
    fs = GfsFileSystem(state=cluster.state, retry_seconds=3, skip_instance_cache=True)
    write(fs.client, "/runs/1")
    address = cluster.ready["master"]["address"]
    cluster.stop()
    with pytest.raises(MasterUnavailable, match=address):
        gfs.data.latest(fs, "/runs")
    fs.close()


WRITER = """
import os, signal, sys, time
import gfs.data
from gfs.client import sync
from gfs.data import checkpointing

state, path, writer, writers, attempt, silence, how = sys.argv[1:]
if how.startswith("die in "):
    def die(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(checkpointing._Try, how.removeprefix("die in "), die)
with sync.connect(state=state) as fs:
    with gfs.data.checkpoint(fs, path, writer=int(writer), writers=int(writers),
                             attempt=attempt, silence_seconds=float(silence)) as there:
        for n in range(20):
            fs.put(attempt.encode(), f"{there}/{writer}/{n}")
            if n == 10:
                print("half", flush=True)
                if how == "wait":
                    sys.stdin.readline()
                elif how == "raise":
                    raise ZeroDivisionError
    print("done", flush=True)
"""


class Writer:
    """A process with a part in a checkpoint."""

    def __init__(self, cluster: Cluster, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(cluster.state), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def half(self) -> Writer:
        assert self.process.stdout.readline() == "half\n"
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str]:
        """How it ended, after the line that it may be waiting for."""
        _, errors = self.process.communicate("\n", timeout=HANG_SECONDS)
        return self.process.returncode, errors


@pytest.fixture
def start(cluster: Cluster) -> Iterator[Callable[..., Writer]]:
    """Starts writers: path, writer, writers, attempt, seconds of silence, and how it goes."""
    made: list[Writer] = []

    def one(*arguments: object) -> Writer:
        made.append(Writer(cluster, *arguments))
        return made[-1]

    yield one
    for writer in made:
        writer.kill()


def whole(client: sync.SyncClient, path: str, writers: int) -> str:
    """The attempt that wrote all of a checkpoint."""
    files = [entry.path for entry in client.walk(path) if entry.kind == "file"]
    assert len(files) == 20 * writers, files
    contents = set(client.get_many(files))
    assert len(contents) == 1, contents
    found = contents.pop()
    assert isinstance(found, bytes)
    return found.decode()


def test_what_a_killed_writer_leaves_is_removed_later(
    client: sync.SyncClient, runs: str, start: Callable[..., Writer]
) -> None:
    slow = start(f"{runs}/1", 0, 1, "slow", 2, "wait").half()
    dead = start(f"{runs}/1", 0, 1, "dead", 8, "wait").half()
    dead.kill()
    write(client, f"{runs}/2", silence_seconds=HANG_SECONDS)
    assert names(client, f"{runs}/{checkpointing.ASIDE}") == ["1@dead", "1@slow"]
    time.sleep(9)  # the slow one renews its mark meanwhile
    assert gfs.data.checkpoints(client, runs) == [f"{runs}/2"]
    write(client, f"{runs}/3", silence_seconds=8)
    assert names(client, f"{runs}/{checkpointing.ASIDE}") == ["1@slow"]
    assert slow.end() == (0, "")
    assert whole(client, f"{runs}/1", 1) == "slow"
    assert names(client, runs) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("where", "is_there"),
    [("end", False), ("_publish", False), ("_clear", True), ("_delete_old", True)],
)
def test_a_writer_that_dies_at_the_end(
    client: sync.SyncClient, runs: str, start: Callable[..., Writer], where: str, is_there: bool
) -> None:
    code, _ = start(f"{runs}/1", 0, 1, "a", 1, f"die in {where}").end()
    assert code == -signal.SIGKILL or where == "_delete_old"
    assert gfs.data.latest(client, runs) == (f"{runs}/1" if is_there else None)
    time.sleep(1.5)
    write(client, f"{runs}/2", silence_seconds=1)
    assert names(client, runs) == ["1", "2"] if is_there else ["2"]
    if is_there:
        whole(client, f"{runs}/1", 1)


def test_a_writer_that_slept_too_long_publishes_nothing(
    client: sync.SyncClient, runs: str, start: Callable[..., Writer]
) -> None:
    writer = start(f"{runs}/1", 0, 1, "asleep", 1, "wait").half()
    send(writer.process.pid, signal.SIGSTOP)
    time.sleep(2)
    write(client, f"{runs}/2", silence_seconds=1)
    assert names(client, runs) == ["2"]
    send(writer.process.pid, signal.SIGCONT)
    # What it writes now makes the directory again, without its first half.
    code, errors = writer.end()
    assert code == 1
    assert "was removed before the checkpoint was whole" in errors
    assert names(client, runs) == ["2"]


def test_a_writer_is_not_taken_for_dead_before_its_own_limit(
    client: sync.SyncClient, runs: str
) -> None:
    """It renews its mark each minute, and those beside it judge after half a second."""
    with gfs.data.checkpoint(client, f"{runs}/1") as there:
        client.put(b"slow", f"{there}/slow")
        time.sleep(1)
        write(client, f"{runs}/2", silence_seconds=0.5)
    assert names(client, runs) == ["1", "2"]
    together = {"writers": 2, "attempt": "a"}
    with ThreadPoolExecutor(1) as pool:
        with gfs.data.checkpoint(client, f"{runs}/3", writer=1, **together):
            other = pool.submit(
                write, client, f"{runs}/3", writer=0, silence_seconds=0.5, **together
            )
            wait_for(
                lambda: client.exists(f"{runs}/{checkpointing.ASIDE}/3@a/done-0"), "other writer"
            )
            time.sleep(1)
        other.result(HANG_SECONDS)
    assert names(client, runs) == ["1", "2", "3"]


def test_several_writers(client: sync.SyncClient, runs: str, start: Callable[..., Writer]) -> None:
    others = [start(f"{runs}/1", n, 3, "a", HANG_SECONDS, "go") for n in (0, 2)]
    late = start(f"{runs}/1", 1, 3, "a", HANG_SECONDS, "wait").half()
    time.sleep(1)
    assert gfs.data.latest(client, runs) is None
    assert [writer.process.poll() for writer in others] == [None, None]
    again = start(f"{runs}/1", 1, 3, "a", HANG_SECONDS, "go").end()
    assert again[0] == 1
    assert "writer 1 of this attempt has begun already" in again[1]
    assert late.end() == (0, "")
    assert [writer.end() for writer in others] == [(0, "")] * 2
    assert whole(client, f"{runs}/1", 3) == "a"
    assert names(client, runs) == ["1"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "writer 1 of 3 has been silent for"),
        ("raise", "another writer gave up"),
        ("none", "writer 1 of 3 has been silent for"),
    ],
)
def test_one_of_several_writers_dies(
    client: sync.SyncClient, runs: str, start: Callable[..., Writer], how: str, said: str
) -> None:
    silence = HANG_SECONDS if how == "raise" else 10
    others = [start(f"{runs}/1", n, 3, "a", silence, "go") for n in (0, 2)]
    for writer in others:
        writer.half()  # it takes none of the others for silent
    if how == "kill":
        start(f"{runs}/1", 1, 3, "a", 10, "wait").half().kill()
    elif how == "raise":
        assert "ZeroDivisionError" in start(f"{runs}/1", 1, 3, "a", silence, "raise").end()[1]
    ended = [writer.end() for writer in others]
    assert [code for code, _ in ended] == [1, 1]
    assert any(said in errors for _, errors in ended), ended
    assert client.list(runs) == []
    # A later try with its own name for it has nothing of the first.
    again = [start(f"{runs}/1", n, 3, "b", HANG_SECONDS, "go") for n in range(3)]
    assert [writer.end() for writer in again] == [(0, "")] * 3
    assert whole(client, f"{runs}/1", 3) == "b"


def test_killed_at_any_moment_and_with_one_name(
    client: sync.SyncClient, runs: str, start: Callable[..., Writer]
) -> None:
    rng = random.Random(11)
    found = 0
    for number in range(3):
        path = f"{runs}/{number}"
        silence = 6 if number else HANG_SECONDS  # in the first round nobody is killed
        writers = [
            start(path, n, 2, f"{number}-{attempt}", silence, "go")
            for attempt in "ab"
            for n in range(2)
        ]
        time.sleep(rng.uniform(0.3, 1.5))
        for writer in rng.sample(writers, number % 3):
            writer.kill()
        codes = [writer.end()[0] for writer in writers if writer.process.poll() is None]
        assert len(set(codes)) <= 2
        if client.exists(path):
            found += 1
            assert whole(client, path, 2) in (f"{number}-a", f"{number}-b")
            assert path in gfs.data.checkpoints(client, runs)
    assert found
    time.sleep(7)
    write(client, f"{runs}/last", silence_seconds=6)
    assert checkpointing.ASIDE not in names(client, runs)


FORKS = """
import os, sys, warnings
import gfs.data
from gfs.client import sync

warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
state, runs = sys.argv[1:]
with sync.connect(state=state) as fs:
    with gfs.data.checkpoint(fs, f"{runs}/x") as there:
        children = [os.fork()]
        if not children[0]:
            fs.put(b"child", f"{there}/child")
            sys.exit(3)
        os.waitpid(children[0], 0)
        children.append(os.fork())
        if children[1]:
            os.waitpid(children[1], 0)
            assert not fs.exists(f"{runs}/x")
            assert fs.get(f"{there}/child") == b"child"
    if not children[1]:
        os._exit(0)
    assert gfs.data.latest(fs, runs) == f"{runs}/x"
"""


def test_a_forked_process_that_leaves_the_block_ends_nothing(
    client: sync.SyncClient, cluster: Cluster, runs: str
) -> None:
    assert not python("-c", FORKS, cluster.state, runs).stderr
    assert names(client, f"{runs}/x") == ["child"]

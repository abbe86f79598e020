"""``gfs.data.Files``: whole batches in one call, in forked and spawned processes, read ahead
within bounds."""

from __future__ import annotations

import gc
import os
import pickle
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, python
from limits import wait_for

import gfs.data
from gfs.client import sync
from gfs.errors import InvalidArgument, MasterUnavailable
from gfs.fsspec import GfsFileSystem

COUNT = 600


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[sync.SyncClient]:
    with sync.connect(state=cluster.state) as connected:
        yield connected


@pytest.fixture(scope="module")
def samples(client: sync.SyncClient) -> dict[str, bytes]:
    rng = random.Random(5)
    found = {f"/samples/{n:04}-ß": rng.randbytes(rng.randrange(0, 2000)) for n in range(COUNT)}
    found["/samples/large"] = rng.randbytes(300_000)
    client.put_many(found.items())
    return found


def calls_of(patch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    method = sync.SyncClient._method

    def counted(self: sync.SyncClient, name: str, *arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return method(self, name, *arguments, **options)

    patch.setattr(sync.SyncClient, "_method", counted)
    return calls


def test_a_sequence_of_files(
    client: sync.SyncClient, samples: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = gfs.data.Files(client, iter(samples))
    data = list(samples.values())
    assert (len(files), repr(files)) == (len(data), f"<Files, {len(data)} files>")
    assert [files.path(n) for n in range(len(files))] == list(samples)
    calls = calls_of(monkeypatch)
    assert (files[0], files[-1], files[7]) == (data[0], data[-1], data[7])
    calls.clear()
    order = random.Random(1).sample(range(len(files)), 256)
    assert files.__getitems__(order) == [data[n] for n in order]
    assert calls == ["get_many"]
    assert files.__getitems__([]) == []
    assert list(files) == data
    for wrong in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match=f"there are {len(data)}"):
            files[wrong]
    with pytest.raises(TypeError):
        files["0"]  # type: ignore[index]


def test_what_a_sample_is(cluster: Cluster, samples: dict[str, bytes]) -> None:
    fs = GfsFileSystem(state=cluster.state, skip_instance_cache=True)
    files = gfs.data.Files(fs, samples, lambda path, data: (path[-6:-2], len(data)))
    assert files[3] == ("0003", len(samples["/samples/0003-ß"]))
    assert files.__getitems__([3, 2]) == [files[3], files[2]]
    assert next(files.batches([[2, 3]])) == [files[2], files[3]]
    fs.close()


def test_batches_are_read_ahead_and_no_more(
    client: sync.SyncClient, samples: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = gfs.data.Files(client, samples)
    data = list(samples.values())
    batches = [list(range(at, at + 50)) for at in range(0, COUNT, 50)]
    calls = calls_of(monkeypatch)

    def read_when_quiet(expected: int) -> int:
        wait_for(lambda: calls.count("get_many") >= expected, f"{expected} batches")
        time.sleep(0.3)  # if more were read, it would be now
        return calls.count("get_many")

    for ahead, ahead_bytes, expected in ((2, 1 << 30, 3), (0, 1 << 30, 1), (5, 160_000, 2)):
        calls.clear()
        found = files.batches(iter(batches), ahead=ahead, ahead_bytes=ahead_bytes)
        assert next(found) == data[:50]
        # About 50,000 bytes each: that which the caller has counts.
        ahead_now = read_when_quiet(expected)
        assert ahead_now <= expected + (ahead == 5), (ahead, ahead_bytes)
        assert [*found] == [data[batch[0] : batch[-1] + 1] for batch in batches[1:]]
        assert calls.count("get_many") == len(batches)
    # One that is larger than all that may be held is read all the same, alone.
    found = files.batches([[COUNT], [COUNT], [1]], ahead_bytes=1000)
    assert [len(one) for (one,) in found] == [300_000, 300_000, len(data[1])]
    # One that is given up reads no more, and leaves no thread.
    calls.clear()
    found = files.batches(batches, ahead=1)
    next(found)
    del found
    gc.collect()
    wait_for(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("gfs read-ahead")],
        "end of the thread",
    )
    assert calls.count("get_many") <= 3
    with pytest.raises(InvalidArgument, match="neither is negative"):
        files.batches([], ahead=-1)


def test_an_error_stands_in_the_place_of_its_batch(
    client: sync.SyncClient, samples: dict[str, bytes]
) -> None:
    names = [*list(samples)[:4], "/samples/none", "/samples"]
    files = gfs.data.Files(client, names)
    with pytest.raises(FileNotFoundError, match="/samples/none"):
        files[4]
    with pytest.raises(FileNotFoundError, match="/samples/none"):
        files.__getitems__([0, 4, 1])
    with pytest.raises(IsADirectoryError, match="/samples"):
        files[5]
    found = files.batches([[0, 1], [2, 4], [3]])
    assert len(next(found)) == 2
    with pytest.raises(FileNotFoundError, match="/samples/none"):
        next(found)
    assert next(found, None) is None
    found = files.batches([[5]])
    with pytest.raises(IsADirectoryError, match="/samples"):
        next(found)


@pytest.mark.parametrize(
    ("fs", "paths", "said"),
    [
        (None, "/one", "a list of paths, not one"),
        (None, ["/one", 2], "a path is text, not int: 2"),
        ("gfs:///", ["/one"], "a str is no file system: give what gfs.client.sync.connect"),
    ],
)
def test_wrong_arguments(client: sync.SyncClient, fs: Any, paths: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        gfs.data.Files(fs or client, paths)


def test_paths_outside(client: sync.SyncClient) -> None:
    files = gfs.data.Files(client, ["/../outside", "gfs:///x", "x" * 10_000])
    for index in range(len(files)):
        with pytest.raises(ValueError, match=r"\.\.|gfs:|xxxx"):
            files[index]
        with pytest.raises(ValueError, match=r"\.\.|gfs:|xxxx"):
            next(files.batches([[index]]))


def test_a_cluster_that_is_down_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    fs = GfsFileSystem("127.0.0.1:1", key=key, retry_seconds=0.1, skip_instance_cache=True)
    with pytest.raises(MasterUnavailable, match=r"127\.0\.0\.1:1"):
        gfs.data.Files(fs, ["/x"])


def test_a_master_that_goes_away(make_cluster: Any) -> None:
    cluster = make_cluster().start()
    fs = GfsFileSystem(state=cluster.state, retry_seconds=3, skip_instance_cache=True)
    files = gfs.data.Files(fs, ["/x"])
    address = cluster.ready["master"]["address"]
    cluster.stop()
    with pytest.raises(MasterUnavailable, match=address):
        files[0]
    with pytest.raises(MasterUnavailable, match=address):
        next(files.batches([[0]]))
    fs.close()


def test_a_client_with_the_key_itself_is_not_pickled(
    cluster: Cluster, client: sync.SyncClient
) -> None:
    key = bytes.fromhex((cluster.state / "cluster.key").read_text())
    with (
        sync.connect(cluster.ready["master"]["address"], key=key) as other,
        pytest.raises(InvalidArgument, match="give the key's file"),
    ):
        pickle.dumps(other)
    pickled = pickle.dumps(client)
    again = pickle.loads(pickled)
    assert again is pickle.loads(pickled)
    assert again is not client
    assert again._running is None
    again.close()
    third = pickle.loads(pickled)
    assert third is not again
    third.close()


LOADER = """
import multiprocessing, os, pickle, sys, warnings
import gfs.data
from gfs.client import sync

warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads

def feed(files, asked, answers):
    # As torch's DataLoader does it.
    while (indices := asked.get()) is not None:
        answers.put((indices, files.__getitems__(indices), os.getpid()))

if __name__ == "__main__":
    with sync.connect(state=sys.argv[1]) as fs:
        names = sorted(entry.path for entry in fs.walk("/samples"))
        files = gfs.data.Files(fs, names)
        expected = list(files)
        begun = files.batches([[0], [1], [2], [3]])
        next(begun)
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            asked, answers = context.Queue(), context.Queue()
            workers = [context.Process(target=feed, args=(files, asked, answers))
                       for _ in range(3)]
            for worker in workers:
                worker.start()
            for at in range(0, 600, 50):
                asked.put(list(range(at, at + 50)))
            got = [answers.get() for _ in range(0, 600, 50)]
            for indices, data, pid in got:
                assert data == [expected[n] for n in indices]
                assert pid != os.getpid()
            for worker in workers:
                asked.put(None)
            for worker in workers:
                worker.join()
                assert worker.exitcode == 0
        child = os.fork()
        if not child:
            assert files[0] == expected[0]
            try:
                next(begun)
            except ValueError as error:
                assert "begin another" in str(error)
                assert next(files.batches([[1]])) == [expected[1]]
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert [one for (one,) in begun] == expected[1:4]
"""


def test_forked_and_spawned_processes(
    cluster: Cluster, samples: dict[str, bytes], tmp_path: Path
) -> None:
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    assert not python(script, cluster.state).stderr


PROGRAM = """
import sys
import gfs.data
from gfs.client import sync
from gfs.config import ClientSettings

ahead_bytes, error = int(sys.argv[2]), sys.argv[3]
fs = sync.connect(state=sys.argv[1], settings=ClientSettings(retry_seconds=600))
files = gfs.data.Files(fs, ["/samples/large"] * 8)
batches = files.batches([[n] for n in range(8)], ahead_bytes=ahead_bytes)
assert len(next(batches)[0]) == 300_000
if error:
    raise ValueError(error)
"""


@pytest.mark.parametrize(("ahead_bytes", "error"), [(1, ""), (1, "uncaught"), (1 << 30, "")])
def test_a_program_that_leaves_its_batches_ends(
    cluster: Cluster, samples: dict[str, bytes], ahead_bytes: int, error: str
) -> None:
    arguments = "-c", PROGRAM, cluster.state, str(ahead_bytes), error
    said = python(*arguments, code=int(bool(error))).stderr
    assert said.count("Error") == bool(error), said


def test_a_million_paths_are_shared_by_forked_processes(client: sync.SyncClient) -> None:
    files = gfs.data.Files(client, (f"/samples/{n}" for n in range(1_000_000)))
    assert files.path(999_999) == "/samples/999999"
    # No object with a count of references stands for a path.
    assert not [each for each in vars(files).values() if isinstance(each, (list, tuple))]
    assert os.path.basename(files.path(0)) == "0"

"""What ``gfs://`` promises beyond fsspec's own tests: whole files or none, listings and times
that are true, errors with paths, one connection for each process."""

from __future__ import annotations

import errno
import gc
import io
import os
import pickle
import re
import signal
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
import trio
from fsspec.callbacks import Callback
from fsspec.generic import GenericFileSystem
from fsspec.transaction import Transaction
from harness import Cluster, python
from interrupts import interrupted
from limits import HANG_SECONDS, wait_for

from gfs.client import Client, ExistingFile, NewFile, sync
from gfs.errors import DiskFull, FileChanged, GfsError
from gfs.fsspec import GfsFileSystem
from gfs.fsspec import connections as fsspec_connections
from gfs.fsspec import files as fsspec_files
from gfs.fsspec import system as fsspec_system


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[GfsFileSystem]:
    fs = GfsFileSystem(state=cluster.state, skip_instance_cache=True)
    yield fs
    fs.close()


@pytest.fixture
def here(request: pytest.FixtureRequest) -> str:
    """A directory of this test alone, whose name is no pattern."""
    return "/" + re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def fs(shared: GfsFileSystem, here: str) -> GfsFileSystem:
    shared.makedirs(here, exist_ok=True)
    return shared


@contextmanager
def raising() -> Iterator[None]:
    """As if the last line of the block raised."""
    yield
    raise ZeroDivisionError


def test_a_url_with_the_address_and_a_file_with_the_key(cluster: Cluster, here: str) -> None:
    address = cluster.ready["master"]["address"]
    options: dict[str, Any] = {"key": str(cluster.state / "cluster.key"), "replication": 1}
    url = f"gfs://{address},127.0.0.1:1{here}/x"
    with fsspec.open(url, "wb", **options) as file:
        file.write(b"there")
    with fsspec.open(url, "rb", **options) as file:
        assert file.read() == b"there"
    fs, path = fsspec.url_to_fs(url, **options)
    assert fs.info(path)["replication"] == 1
    assert fs.fsid == f"gfs_{fs.client.status().cluster}"
    # The key is in memory now, and in nothing that is printed, pickled or sent.
    text = (cluster.state / "cluster.key").read_text().strip()
    raw = bytes.fromhex(text)[:8]
    secrets = [text[:16], text[:16].upper(), raw.decode("latin1"), repr(raw)[2:-1]]
    with fs.open(path) as file:
        shown = [
            repr(fs),
            repr(fs.client),
            repr(file),
            fs.to_json(),
            str(fs.to_dict()),
            fs._fs_token,
        ]
    shown += [pickle.dumps(fs).decode("latin1"), str(vars(fs)), str(fs.storage_options)]
    assert not [each for each in shown for secret in secrets if secret in each]
    fs.close()


def test_all_threads_and_copies_of_a_process_share_a_connection(
    shared: GfsFileSystem, cluster: Cluster
) -> None:
    shared.exists("/")
    before = len(fsspec_connections._clients)
    found = []

    def connect() -> None:
        fs = GfsFileSystem(state=cluster.state)
        fs.exists("/")
        found.append(fs.client)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = pickle.loads(pickle.dumps(shared))
    assert {id(client) for client in [*found, again.client]} == {id(shared.client)}
    assert len(fsspec_connections._clients) == before
    shared.close()
    assert shared.client is not found[0]


PROCESSES = """
import multiprocessing, os, pickle, sys, warnings
from concurrent.futures import ProcessPoolExecutor
import fsspec

warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
fs = fsspec.filesystem("gfs", state=sys.argv[1])

def work(item):
    there, number = item
    there.pipe(f"/processes/{number}", str(number).encode())
    return fs.cat(f"/processes/{number}"), os.getpid()  # ours, inherited or imported

if __name__ == "__main__":
    fs.pipe("/processes/begin", b"")  # connected before it is forked
    file = fs.open("/processes/begin")
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            found = list(pool.map(work, [(fs, n) for n in range(20)]))
        assert [data for data, _ in found] == [str(n).encode() for n in range(20)], found
        assert os.getpid() not in {pid for _, pid in found}
    assert file.read() == b""
"""


def test_forked_and_spawned_processes(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    assert not python(script, cluster.state).stderr


FORK_WHILE_CONNECTING = """
import os, sys, threading, warnings
from gfs.fsspec import GfsFileSystem, connections

warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
connects, forked = threading.Event(), threading.Event()
connect = connections._connect

def late(place):
    connects.set()
    assert forked.wait(60)
    return connect(place)

connections._connect = late
fs = GfsFileSystem(state=sys.argv[1])
thread = threading.Thread(target=fs.exists, args=("/",))
thread.start()
assert connects.wait(60)
pid = os.fork()
if pid == 0:
    connections._connect = connect
    os._exit(not fs.exists("/"))
forked.set()
thread.join()
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_while_a_thread_connects(cluster: Cluster) -> None:
    """Its child, which has no such thread, waits for none."""
    python("-c", FORK_WHILE_CONNECTING, cluster.state)


def test_a_program_that_forgets_its_files_ends(cluster: Cluster) -> None:
    code = (
        "import fsspec, sys; fs = fsspec.filesystem('gfs', state=sys.argv[1]);"
        "fs.pipe('/forgotten', b'old'); keep = fs.open('/forgotten', 'wb'); keep.write(b'new');"
        "reader = fs.open('/forgotten'); reader.read(1)"
    )
    python("-c", code, cluster.state)
    assert sync.connect(state=cluster.state).get("/forgotten") in (b"old", b"new")


@pytest.mark.thin
def test_modes(fs: GfsFileSystem, here: str) -> None:
    path = f"{here}/x"
    with fs.open(path, "xb") as file:
        assert file.write(b"first") == 5
        assert file.tell() == 5
        assert not file.seekable()
        assert not fs.exists(path)
    with pytest.raises(FileExistsError, match=path):
        fs.open(path, "xb")
    with fs.open(path, "ab") as file:
        assert file.tell() == 5
        file.write(b" second")
        file.flush()
        assert fs.cat(path) == b"first second"
        file.write(b" third")
    with fs.open(f"{here}/new", "ab") as file:
        file.write(b"made")
    assert fs.cat(f"{here}/new") == b"made"
    with fs.open(path, "r+b") as file:
        assert (file.read(5), file.size) == (b"first", 18)
        assert file.seek(-5, os.SEEK_END) == 13
        file.write(b"THIRD and more")
        file.seek(0)
        file.write(b"FIRST")
        assert file.read() == b" second THIRD and more"
    assert fs.cat(path) == b"FIRST second THIRD and more"
    with fs.open(path, "r+b") as file:
        with pytest.raises(io.UnsupportedOperation, match=f"{path}: .* to 3 bytes: it has 27"):
            file.truncate(3)
        assert file.truncate(27) == 27
        file.seek(5)
        assert file.truncate(30) == 30
        assert (file.tell(), file.read()) == (5, b" second THIRD and more\0\0\0")
        file.seek(27)
        file.write(b"   ")
        assert file.truncate() == 30
    with fs.open(path, "ab") as file:  # as Python's own, wherever it is sought to
        file.write(b", then")
        assert file.seek(2) == 2
        file.write(b" the end")
        file.flush()
        assert file.tell() == fs.size(path) == 44
        assert file.truncate() == 44
    assert fs.cat(path) == b"FIRST second THIRD and more   , then the end"
    fs.pipe(f"{here}/zip", b"")
    for name in "ab":  # each time the archive is cut, at the end, to what it has
        with fs.open(f"{here}/zip", "r+b") as file, zipfile.ZipFile(file, "a") as archive:
            archive.writestr(name, b"x" * 100)
    with fs.open(f"{here}/zip") as file, zipfile.ZipFile(file) as archive:
        assert (archive.namelist(), archive.testzip()) == (["a", "b"], None)
    with fs.open(path, "wb") as file:
        file.write(b"whole")
    assert fs.cat(path) == b"whole"
    with fs.open(f"{here}/text", "w", encoding="latin-1", newline="\r\n") as text:
        text.write("Größe\n")
    assert fs.cat(f"{here}/text").decode("latin-1") == "Größe\r\n"
    with fs.open(f"{here}/text", "r", encoding="latin-1") as text:
        assert text.read() == "Größe\n"
    with fs.open(f"{here}/x.gz", "wb", compression="infer") as file:
        file.write(b"z" * 10_000)
    assert fs.size(f"{here}/x.gz") < 200
    with fs.open(f"{here}/x.gz", compression="infer") as file:
        assert file.read() == b"z" * 10_000
    for mode in ("w+b", "a+b", "x+b", "q"):
        with pytest.raises(ValueError, match="there are rb, wb"):
            fs.open(path, mode)
    with pytest.raises(FileNotFoundError, match="/none"):
        fs.open(f"{here}/none", "r+b")
    with pytest.raises(TypeError, match="open has no option 'replicas'"):
        fs.open(path, replicas=2)


@pytest.mark.parametrize("mode", ["wb", "w", "xb"])
def test_a_block_that_raises_leaves_the_path_as_it_was(
    fs: GfsFileSystem, here: str, mode: str
) -> None:
    path = f"{here}/x"
    if "x" not in mode:
        fs.pipe(path, b"old")
    with pytest.raises(ZeroDivisionError), fs.open(path, mode) as file, raising():
        file.write("new" if mode == "w" else b"new" * 1_000_000)
    assert fs.exists(path) == ("x" not in mode)
    assert "x" in mode or fs.cat(path) == b"old"
    file = fs.open(path, "wb")
    file.write(b"newer")
    file.discard()
    assert file.closed
    assert fs.exists(path) == ("x" not in mode)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_block_of_fsspec_s_own_open_that_raises_publishes_nothing(
    fs: GfsFileSystem, here: str, cluster: Cluster, mode: str, options: dict[str, Any]
) -> None:
    options = {**options, "state": str(cluster.state)}
    data: Any = "new" if mode == "w" else b"new"
    fs.pipe(f"{here}/old", b"old")
    for url in (f"gfs://{here}/old", f"gfs://{here}/new"):
        with pytest.raises(ZeroDivisionError), fsspec.open(url, mode, **options) as file, raising():
            file.write(data * 1_000_000)
    several = fsspec.open_files(f"gfs://{here}/*", mode, num=2, **options)
    with pytest.raises(ZeroDivisionError), several as files, raising():
        files[1].write(data)
    assert fs.cat(here, recursive=True) == {f"{here}/old": b"old"}
    # An exception that was there before, or that is handled, is no reason.
    try:
        raise KeyError
    except KeyError:
        with fsspec.open(f"gfs://{here}/new", mode, **options) as file:
            file.write(data)
        plain = fs.open(f"{here}/plain", "wb")
        plain.write(b"closed")
        plain.close()
        opened = fsspec.open(f"gfs://{here}/opened", mode, **options)
        opened.open().write(data)
        opened.close()
    with fsspec.open(f"gfs://{here}/new", mode.replace("w", "r"), **options) as file:
        assert file.read() == data
    assert fs.cat(f"{here}/plain") == b"closed"
    assert fs.exists(f"{here}/opened")


@pytest.mark.parametrize("compression", ["gzip", "bz2", "xz", "zip"])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_compressed_file_appears_whole_or_not_at_all(
    fs: GfsFileSystem, here: str, mode: str, compression: str
) -> None:
    path, data = f"{here}/x", "new" if mode == "w" else b"new"
    fs.pipe(path, b"old")

    def fails(change: Callable[[], object]) -> None:
        with fs.open(path, mode.replace("w", "x"), compression=compression) as file:
            file.write(data)
            change()

    opened = fs.open(path, mode, compression=compression)
    with pytest.raises(ZeroDivisionError), opened as file, raising():
        file.write(data)
    assert fs.cat(path) == b"old"
    fs.rm(path)
    # What goes wrong when it is closed is not lost either.
    with pytest.raises(FileExistsError, match=path):
        fails(lambda: fs.pipe(path, b"another's"))
    assert fs.cat(path) == b"another's"
    file = fs.open(path, mode, compression=compression)
    file.write(data)
    file.close()
    with fs.open(path, mode.replace("w", "r"), compression=compression) as read:
        assert read.read() == data


def test_bad_items_are_refused_before_any_is_stored(
    fs: GfsFileSystem, here: str, tmp_path: Path
) -> None:
    """By the blocking client, too; of two names of one path the later one remains."""
    for item in ((f"{here}/y", None), (7, b""), (f"{here}/x",), (f"{here}/x/", b"again")):
        with pytest.raises(ValueError, match=r"items? .*1"):
            fs.client.put_many([(f"{here}/x", b""), item])  # type: ignore[list-item]
        assert not fs.exists(f"{here}/x")
    fs.pipe({f"{here}/x": b"1", f"gfs://{here}/x": b"2"})
    assert fs.cat(f"{here}/x") == b"2"
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    fs.put([f"{tmp_path}/a", f"{tmp_path}/b"], [f"{here}/x", f"gfs://{here}/x"])
    assert fs.cat(f"{here}/x") == b"b"


def test_an_open_that_fails_leaves_the_path_as_it_was(fs: GfsFileSystem, here: str) -> None:
    fs.pipe(f"{here}/x", b"old")
    with pytest.raises(LookupError):
        fs.open(f"{here}/x", "w", encoding="no such one")
    with pytest.raises(ValueError, match="best"):
        fs.open(f"{here}/x", "wb", compression="best")
    gc.collect()
    assert fs.cat(f"{here}/x") == b"old"


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
def test_after_a_write_that_failed_nothing_is_said_to_be_stored(
    fs: GfsFileSystem, here: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, large = f"{here}/x", b"new" * 1_000_000
    fs.pipe(path, b"old")

    def no_room(*_: object) -> int:
        raise DiskFull("no space")

    def fails(file: Any) -> Any:
        with monkeypatch.context() as patch:
            for method in ("write", "pwrite"):
                patch.setattr(sync.SyncFile, method, no_room)
            with pytest.raises(DiskFull):
                file.write(large)
        return file

    with pytest.raises(OSError, match=f"{path}: lost, since a write failed: .*no space"):
        fails(fs.open(path, mode)).write(large)
    with pytest.raises(OSError, match=f"{path}: lost"), fs.open(path, mode) as file:
        fails(file)
    with pytest.raises(OSError, match=f"{path}: lost"):
        fails(fs.open(path, mode)).close()
    if mode == "wb":
        with pytest.raises(OSError, match=f"{path}: lost"), fs.transaction:
            fails(fs.open(path, mode))
    assert fs.cat(path) == b"old"


@pytest.mark.parametrize("when", ["before it is sent", "before its caller knows of it"])
def test_a_call_that_is_interrupted_as_it_begins_does_not_go_on(
    fs: GfsFileSystem, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = fs.client._current()
    start = running.portal.start_task_soon
    state = ["not begun"]
    begun = threading.Event()

    async def call() -> None:
        state[0] = "begun"
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            state[0] = "ended"

    def interrupt(task: Any) -> Any:
        monkeypatch.setattr(running.portal, "start_task_soon", start)
        if when == "before its caller knows of it":
            start(task)
            assert begun.wait(HANG_SECONDS)
        raise KeyboardInterrupt

    monkeypatch.setattr(running.portal, "start_task_soon", interrupt)
    with pytest.raises(KeyboardInterrupt):
        running.call(call)
    assert state[0] == ("ended" if begun.is_set() else "not begun")


def test_an_interrupted_call_has_ended_when_its_caller_goes_on(
    fs: GfsFileSystem, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be aborted while it goes on, and the servers be blamed for what fails then."""
    main = threading.main_thread().ident
    assert main is not None
    done: list[str] = []

    async def write(self: NewFile, data: bytes) -> int:
        await trio.sleep(0.5)  # by then the caller waits
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await trio.sleep_forever()
        finally:
            done.append("write")
        raise AssertionError

    async def abort(self: NewFile) -> None:
        self.closed = True
        done.append("abort")

    monkeypatch.setattr(NewFile, "write", write)
    monkeypatch.setattr(NewFile, "abort", abort)
    with pytest.raises(KeyboardInterrupt), fs.open(f"{here}/x", "wb") as file:
        file.write(b"x" * 2_000_000)
    assert done[:2] == ["write", "abort"]
    assert not fs.exists(f"{here}/x")


@pytest.mark.parametrize(("mode", "name"), [("wb", "x"), ("xb", "y"), ("w", "x"), ("wb", "x.gz")])
def test_a_file_that_nobody_closed_is_not_published(
    fs: GfsFileSystem, here: str, mode: str, name: str
) -> None:
    path = f"{here}/{name}"
    fs.pipe({f"{here}/x": b"old", f"{here}/x.gz": b"old"})
    before = {each: fs.cat(each) for each in fs.find(here)}

    def forgotten() -> sync.SyncFile:
        file = fs.open(path, mode, compression="infer")
        data = os.urandom(3_000_000)
        file.write(data.hex() if mode == "w" else data)
        raw = file if mode != "w" else file.buffer
        inner: sync.SyncFile = (raw if name != "x.gz" else raw._file).raw.file
        return inner

    def in_a_cycle() -> sync.SyncFile:
        cycle: list[Any] = []
        cycle += [cycle, file := fs.open(path, mode, compression="infer")]
        file.write("new" if mode == "w" else b"new")
        raw = file if mode != "w" else file.buffer
        inner: sync.SyncFile = (raw if name != "x.gz" else raw._file).raw.file
        return inner

    with pytest.warns(ResourceWarning, match=f"{path} was not closed"):
        inner = forgotten()
    gc.disable()
    try:
        others = [in_a_cycle(), in_a_cycle()]
        running = fs.client._running
        assert running is not None
        with pytest.warns(ResourceWarning, match=f"{path} was not closed"):
            running.portal.call(gc.collect)  # it may come by in any thread, the client's too
    finally:
        gc.enable()
    for each in [inner, *others]:
        wait_for(lambda each=each: each.closed, "end of the upload")  # type: ignore[misc]
    assert {each: fs.cat(each) for each in fs.find(here)} == before


def test_what_nobody_closed_of_a_file_that_is_changed_in_place_is_written(
    fs: GfsFileSystem, here: str
) -> None:
    fs.pipe(f"{here}/x", b"old")
    fs.open(f"{here}/x", "ab").write(b" and new")
    gc.collect()
    fs.open(f"{here}/x", "r+b").write(b"O")
    gc.collect()
    assert fs.cat(f"{here}/x") == b"Old and new"


@pytest.mark.parametrize("mode", ["ab", "r+b"])
def test_the_client_s_own_thread_does_not_wait_for_itself_for_what_nobody_closed(
    fs: GfsFileSystem, here: str, mode: str
) -> None:
    """What was not flushed is lost then."""
    path = f"{here}/x"
    fs.pipe(path, b"old")

    def in_a_cycle() -> sync.SyncFile:
        cycle: list[Any] = []
        cycle += [cycle, file := fs.open(path, mode)]
        file.write(b"new")
        inner: sync.SyncFile = file.raw.file
        return inner

    gc.disable()
    try:
        inner = in_a_cycle()
        running = fs.client._running
        assert running is not None
        running.portal.start_task_soon(gc.collect).result(HANG_SECONDS)
    finally:
        gc.enable()
    wait_for(lambda: inner.closed, "end of the file")
    assert fs.cat(path) == b"old"


@pytest.mark.parametrize("way", ["plain", "closed", "text", "packed", "transaction"])
def test_a_file_whose_writer_is_interrupted_anywhere_is_whole_or_as_it_was(
    fs: GfsFileSystem, here: str, way: str
) -> None:
    path, data = f"{here}/x", b"new" * 400_000
    # A program that catches the exception and calls close publishes what was written until then.
    fine = (data, b"") if way == "closed" else (data,)

    def write() -> None:
        if way == "transaction":
            with fs.transaction, fs.open(path, "wb") as file:
                file.write(data)
        elif way == "text":
            with fs.open(path, "w") as file:
                file.write(data.decode())
        elif way == "packed":
            with fs.open(path, "wb", compression="gzip") as file:
                file.write(data)
        elif way == "closed":
            file = fs.open(path, "wb")
            try:
                file.write(data)
            finally:
                file.close()
        else:
            with fs.open(path, "wb") as file:
                file.write(data[:9])
                file.write(data[9:])

    def read() -> bytes:
        with fs.open(path, compression="gzip" if way == "packed" else None) as file:
            return bytes(file.read())

    step = 0
    while True:
        fs.rm(path) if fs.exists(path) else None
        with (
            warnings.catch_warnings(),
            interrupted(step, fsspec_files, fsspec_system, sync) as where,
            suppress(KeyboardInterrupt, *([OSError] if way == "closed" else [])),
        ):
            warnings.simplefilter("ignore", ResourceWarning)
            write()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()
        if not where:
            break
        if fs.exists(path):
            assert read() in fine, f"step {step}: {where}"
        step += 1
    assert read() == data
    assert step > 20


def test_a_copy_that_is_interrupted_leaves_nothing_beside_it(
    fs: GfsFileSystem, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.pipe({f"{here}/x": b"x", f"{here}/y": b"y"})
    snapshot = sync.SyncClient.snapshot

    def interrupted_then(client: sync.SyncClient, *arguments: Any, **options: Any) -> None:
        snapshot(client, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(sync.SyncClient, "snapshot", interrupted_then)
    with pytest.raises(KeyboardInterrupt):
        fs.cp_file(f"{here}/x", f"{here}/y")
    monkeypatch.undo()
    assert fs.cat(here, recursive=True) == {f"{here}/x": b"x", f"{here}/y": b"y"}


#: fsspec does not close its local copies of blocks.
blocks_left_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@blocks_left_open
def test_large_files_in_order_and_out_of_it(fs: GfsFileSystem, here: str, tmp_path: Path) -> None:
    data = os.urandom(9_000_000)
    path = f"{here}/x"
    with fs.open(path, "wb") as file:
        for at in range(0, len(data), 700_001):
            file.write(data[at : at + 700_001])
    for cache in (None, "readahead", "bytes", "none", "background", "mmap"):
        with fs.open(path, cache_type=cache) as file:
            assert file.read(1_000_000) + file.read() == data
            file.seek(4_000_000)
            assert file.read(10) == data[4_000_000:4_000_010]
            again = pickle.loads(pickle.dumps(file))
            assert again.read(10) == data[4_000_010:4_000_020]
            again.close()
    with pytest.raises(ValueError, match="cache_type='best' is unknown"):
        fs.open(path, cache_type="best")
    slices = [(None, 5), (-5, None), (3, -3), (10, 5), (8_999_999, 99_999_999), (64 << 10, 1 << 20)]
    for start, end in slices:
        assert fs.cat_file(path, start, end) == data[start:end]
    found = fs.cat_ranges([path] * len(slices), *map(list, zip(*slices, strict=True)))
    assert found == [data[start:end] for start, end in slices]
    moved: list[int] = []
    callback = Callback(hooks={"sizes": lambda size, value, **_: moved.append(value)})
    fs.get_file(path, tmp_path / "deep" / "x", callback=callback)
    assert (tmp_path / "deep" / "x").read_bytes() == data
    assert (moved[-1], callback.size) == (len(data), len(data))
    fs.get_file(path, os.devnull)
    assert not os.path.isfile(os.devnull)
    fs.put_file(tmp_path / "deep" / "x", f"{here}/made/parents/x")
    assert fs.cat(f"{here}/made/parents/x") == data
    with pytest.raises(FileExistsError, match="parents/x"):
        fs.put_file(tmp_path / "deep" / "x", f"{here}/made/parents/x", mode="create")
    out = io.BytesIO()
    fs.get_file(path, out)
    assert out.getvalue() == data


def test_a_transaction_publishes_at_its_end(fs: GfsFileSystem, here: str) -> None:
    fs.pipe(f"{here}/a", b"old")
    with fs.transaction:
        for name in "ab":
            with fs.open(f"{here}/{name}", "wb") as file:
                file.write(name.encode() * 3_000_000)
        assert (fs.cat(f"{here}/a"), fs.exists(f"{here}/b")) == (b"old", False)
        with pytest.raises(ValueError, match="a transaction cannot delay"):
            fs.open(f"{here}/a", "ab")
    assert (fs.size(f"{here}/a"), fs.size(f"{here}/b")) == (3_000_000, 3_000_000)

    # What is still in a buffer is part of the file, also if nobody closes it.
    with fs.transaction:
        with fs.open(f"{here}/x.gz", "wb", compression="infer") as file:
            file.write(b"packed")
        kept = [
            fs.open(f"{here}/{name}", mode, compression="infer")
            for name, mode in (("plain", "wb"), ("text", "w"), ("text.gz", "wt"))
        ]
        for file in kept:
            file.write("kept" if isinstance(file, io.TextIOWrapper) else b"kept")
        assert fs.find(here) == [f"{here}/a", f"{here}/b"]
    for name in ("plain", "text", "text.gz", "x.gz"):
        with fs.open(f"{here}/{name}", compression="infer") as file:
            assert file.read() == (b"packed" if name == "x.gz" else b"kept")

    with (
        pytest.raises(ZeroDivisionError), fs.transaction,
        fs.open(f"{here}/c", "wb") as file, raising(),
    ):  # fmt: skip
        file.write(b"x")
    assert not fs.exists(f"{here}/c")
    fs.pipe(f"{here}/c", b"at once")
    assert fs.cat(f"{here}/c") == b"at once"


def as_in_fsspec_2025_2(transaction: Transaction, commit: bool = True) -> None:
    while transaction.files:
        file = transaction.files.popleft()
        if commit:
            file.commit()
        else:
            file.discard()
    transaction.fs._intrans = False
    transaction.fs._transaction = None
    transaction.fs = None


def test_a_transaction_whose_commit_fails_has_ended(
    fs: GfsFileSystem, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transaction, "complete", as_in_fsspec_2025_2)
    names = [f"{here}/{name}" for name in "abc"]

    def fails(write: Callable[[str, bytes], object]) -> None:
        for name in names:
            write(name, b"delayed")
        fs.client.put(b"another's", names[1])

    def create(name: str, data: bytes) -> None:
        fs.pipe(name, data, mode="create")

    def with_a_block() -> None:
        with fs.transaction:
            fails(create)

    def with_two_calls() -> None:
        fs.start_transaction()
        fails(create)
        fs.end_transaction()

    for way in (with_a_block, with_two_calls):
        with pytest.raises(FileExistsError, match=names[1]):
            way()
        assert fs.cat(here, recursive=True) == {names[0]: b"delayed", names[1]: b"another's"}
        fs.pipe(names[2], b"at once")
        assert fs.cat(names[2]) == b"at once"
        fs.rm(names)


def test_all_that_is_written_in_a_transaction_is_published_at_its_end(
    fs: GfsFileSystem, here: str, tmp_path: Path
) -> None:
    """Whichever way it is written."""
    (tmp_path / "d").mkdir()
    for name in ("one", "two"):
        (tmp_path / "d" / name).write_bytes(name.encode())
    fs.pipe(f"{here}/piped", b"old")

    def write() -> None:
        fs.pipe(f"{here}/piped", b"new")
        fs.pipe({f"{here}/many/{number}": b"%d" % number for number in range(100)})
        fs.put_file(tmp_path / "d" / "one", f"{here}/one")
        fs.put_file(io.BytesIO(b"two"), f"{here}/two")
        fs.put(f"{tmp_path}/d/", f"{here}/put", recursive=True)
        fs.touch(f"{here}/empty")

    with pytest.raises(ZeroDivisionError), fs.transaction, raising():
        write()
    assert fs.cat(here, recursive=True) == {f"{here}/piped": b"old"}
    with fs.transaction:
        write()
        assert fs.cat(here, recursive=True) == {f"{here}/piped": b"old"}
        with pytest.raises(FileExistsError, match="/piped"):
            fs.pipe(f"{here}/piped", b"", mode="create")
    found = fs.cat(here, recursive=True)
    assert found.pop(f"{here}/piped") == b"new"
    assert found.pop(f"{here}/empty") == b""
    for name in ("one", "two"):
        assert found.pop(f"{here}/{name}") == found.pop(f"{here}/put/{name}") == name.encode()
    assert found == {f"{here}/many/{number}": b"%d" % number for number in range(100)}


def test_listings_are_those_of_now(fs: GfsFileSystem, here: str, cluster: Cluster) -> None:
    with sync.connect(state=cluster.state) as other:
        for change, names in (
            (lambda: fs.pipe(f"{here}/a", b""), ["a"]),
            (lambda: other.put(b"", f"{here}/b"), ["a", "b"]),
            (lambda: other.rename(f"{here}/a", f"{here}/c"), ["b", "c"]),
            (lambda: fs.rm(f"{here}/b"), ["c"]),
            (lambda: other.delete(f"{here}/c"), []),
        ):
            change()
            expected = [f"{here}/{name}" for name in names]
            assert fs.ls(here, detail=False) == fs.find(here) == expected
            assert fs.glob(f"{here}/*") == expected
            assert [name for _, _, files in fs.walk(here) for name in files] == names
    assert fs.ls("/", detail=False) == [each["name"] for each in fs.ls("")]
    assert fs.find(f"{here}/none") == []


def test_times_and_sums_are_true(fs: GfsFileSystem, here: str) -> None:
    path = f"{here}/x"
    began = datetime.now(UTC)
    fs.pipe(path, b"one")
    seen = [(fs.ukey(path), fs.checksum(path))]
    created = fs.created(path)
    assert abs((created - began).total_seconds()) < HANG_SECONDS
    assert fs.modified(path) >= created
    assert fs.info(path)["mtime"] == pytest.approx(fs.modified(path).timestamp())
    with fs.open(path, "r+b") as file:
        file.write(b"two")
    seen.append((fs.ukey(path), fs.checksum(path)))
    with fs.open(path, "ab") as file:
        file.write(b"!")
    seen.append((fs.ukey(path), fs.checksum(path)))
    assert fs.created(path) == created
    fs.pipe(path, b"one")
    seen.append((fs.ukey(path), fs.checksum(path)))
    changed = fs.modified(path)
    fs.touch(path, truncate=False)
    assert fs.modified(path) >= changed
    assert fs.cat(path) == b"one"
    seen.append((fs.ukey(path), fs.checksum(path)))
    assert len(set(seen)) == 5
    assert created < fs.created(path) <= changed  # another file, since the last pipe
    fs.touch(f"{here}/touched", truncate=False)
    assert fs.cat(f"{here}/touched") == b""
    fs.mv(path, f"{here}/y")
    assert (fs.ukey(f"{here}/y"), fs.checksum(f"{here}/y")) == seen[-1]


def test_each_change_in_place_is_one_for_who_asks(
    fs: GfsFileSystem, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{here}/x"
    fs.pipe(path, b"nil" * 100_000)
    seen: list[Any] = []

    def differs() -> None:
        now = fs.ukey(path), fs.checksum(path), fs.modified(path)
        assert all(now[n] not in {each[n] for each in seen} for n in range(3))
        assert not seen or now[2] > seen[-1][2]
        seen.append(now)

    differs()
    for data in (b"one", b"two"):
        with fs.open(path, "r+b") as file:
            file.write(data)
        differs()
    with fs.open(path, "r+") as text:
        for line in ("six\n", "ten\n"):
            text.write(line)
            text.flush()
            differs()
        text.seek(0)
    assert fs.ukey(path) == seen[-1][0]

    def leave_by(error: Exception) -> None:
        with fs.open(path, "r+b") as file:
            file.write(b"more" * 50_000)  # than what is collected
            raise error

    with pytest.raises(ZeroDivisionError):
        leave_by(ZeroDivisionError())
    differs()

    def fails(file: sync.SyncFile, offset: int, data: bytes) -> int:
        write(file, offset, data)
        raise DiskFull("no space")

    write = sync.SyncFile.pwrite
    with monkeypatch.context() as patch, suppress(DiskFull), fs.open(path, "r+b") as file:
        patch.setattr(sync.SyncFile, "pwrite", fails)
        file.write(b"less" * 50_000)
    differs()
    # By another name, or none.
    with fs.open(path, "r+b") as file:
        file.write(b"new")
        fs.mv(path, f"{here}/y")
    path = f"{here}/y"
    differs()
    with fs.open(path, "r+b") as file:
        file.write(b"new")
        file.flush()
        file.write(b"lost")
        fs.client.delete(path, now=True)
        with suppress(FileNotFoundError):
            file.close()


def test_mv_is_a_rename(fs: GfsFileSystem, here: str) -> None:
    fs.pipe({f"{here}/d/{n}": b"%d" % n for n in range(3)})
    inode = fs.info(f"{here}/d")["ino"]
    fs.mv(f"{here}/d", f"{here}/e", recursive=True)
    assert fs.info(f"{here}/e")["ino"] == inode
    file = fs.info(f"{here}/e/0")["ino"]
    fs.mv(f"{here}/e/0", f"{here}/e/1")
    assert (fs.info(f"{here}/e/1")["ino"], fs.exists(f"{here}/e/0")) == (file, False)
    fs.mkdir(f"{here}/into")
    fs.mv(f"{here}/e/1", f"{here}/into")
    fs.mv(f"{here}/e/2", f"{here}/made/")
    assert fs.find(here) == [f"{here}/into/1", f"{here}/made/2"]
    fs.mv(f"{here}/into/*", f"{here}/glob")
    fs.mv([f"{here}/glob/1", f"{here}/made/2"], [f"{here}/p", f"{here}/q"])
    fs.mv(f"{here}/p", f"{here}/p")
    assert fs.find(here) == [f"{here}/p", f"{here}/q"]
    assert fs.cat(f"{here}/p") == b"0"


def test_many_files_at_once(fs: GfsFileSystem, here: str, tmp_path: Path) -> None:
    files = {f"{here}/many/{n:03}": os.urandom(n * 100) for n in range(300)}
    files[f"{here}/many/large"] = os.urandom(5_000_000)
    calls: list[str] = []
    method = sync.SyncClient._method

    def counted(self: sync.SyncClient, name: str, *arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return method(self, name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync.SyncClient, "_method", counted)
        fs.pipe(files)
        assert fs.cat(list(files)) == files
        assert fs.cat(f"{here}/many", recursive=True) == files
        fs.get(f"{here}/many", str(tmp_path / "got"), recursive=True)
        fs.put(str(tmp_path / "got"), f"{here}/back", recursive=True)
        fs.get(f"{here}/many/*", str(tmp_path / "some"))
        assert fs.du(f"{here}/many") == sum(map(len, files.values()))
        fs.rm(f"{here}/many", recursive=True)
    assert len(calls) < 45, calls
    assert not fs.exists(f"{here}/many")
    for name in ("got", "some"):
        got = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert got == {path.rpartition("/")[2]: data for path, data in files.items()}
    back = fs.cat(f"{here}/back", recursive=True)
    assert list(back.values()) == list(files.values())
    some = [f"{here}/back/001", f"{here}/none"]
    assert list(fs.cat(some, on_error="omit")) == some[:1]
    assert isinstance(fs.cat(some, on_error="return")[some[1]], FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="/none"):
        fs.cat(some)
    first, second = fs.cat_ranges(some, 5, 10)
    assert (first, type(second).__bases__[1]) == (back[some[0]][5:10], FileNotFoundError)
    with pytest.raises(FileExistsError, match="/back/001"):
        fs.pipe({some[0]: b"", f"{here}/back/new": b""}, mode="create")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync.SyncClient, "_method", counted)
        calls.clear()
        mixed = [f"{here}/back/large", f"{here}/back/003", f"{here}/back/large", f"{here}/none"]
        ranges = fs.cat_ranges(mixed, [0, 5, -10, 0], [100, None, None, 1])
        assert ranges[:3] == [
            files[f"{here}/many/large"][:100],
            files[f"{here}/many/003"][5:],
            files[f"{here}/many/large"][-10:],
        ]
        assert isinstance(ranges[3], FileNotFoundError)
        assert calls == ["get_ranges"]
        with pytest.raises(FileNotFoundError, match="/none"):
            fs.cat_ranges(mixed, 0, 1, on_error="raise")
        assert fs.cat_file(mixed[0], -7) == files[f"{here}/many/large"][-7:]
        calls.clear()
        fs.rm([f"{here}/back/{n:03}" for n in range(100, 200)])
        assert calls.count("delete_many") == 1
        assert "delete" not in calls
        assert len(calls) < 8, calls
        assert len(fs.find(f"{here}/back")) == 202
    with pytest.raises(IsADirectoryError, match=here):
        fs.rm([here, f"{here}/back/large"])
    assert not fs.exists(f"{here}/back/large")
    fs.rm([f"{here}/back/001", f"{here}/back/002"])
    fs.rm(f"{here}/back/01*")
    assert len(fs.find(f"{here}/back")) == 301 - 12 + 1 - 101
    with pytest.raises(FileNotFoundError, match="/back/001"):
        fs.rm(f"{here}/back/001")


def test_a_pattern_copies_files_and_no_directories(
    fs: GfsFileSystem, here: str, tmp_path: Path
) -> None:
    fs.pipe({f"{here}/a": b"a", f"{here}/b": b"bb", f"{here}/d/c": b"ccc"})
    fs.get(f"{here}/*", str(tmp_path / "got"))
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["a", "b"]
    assert fs.du(here) == 6
    assert fs.du(here, total=False, maxdepth=1) == {f"{here}/a": 1, f"{here}/b": 2}
    sizes = {here: 0, f"{here}/a": 1, f"{here}/b": 2, f"{here}/d": 0, f"{here}/d/c": 3}
    assert fs.du(here, total=False, withdirs=True) == sizes


def test_many_files_are_copied_in_few_steps(fs: GfsFileSystem, here: str) -> None:
    files = {f"{here}/a/{n:02}": b"%d" % n for n in range(40)}
    files[f"{here}/a/d/large"] = os.urandom(100_000)
    fs.pipe({**files, f"{here}/b/07": b"old"})
    described = f"{here}/a/described"
    fs.client.put(b"x", described, attributes={"a": "b"}, replication=2)
    files[described] = b"x"
    calls: list[str] = []
    method = sync.SyncClient._method

    def counted(client: sync.SyncClient, name: str, *arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return method(client, name, *arguments, **options)

    def copies(name: str, depth: int) -> dict[str, bytes]:
        return {
            path.replace("/a/", f"/{name}/"): data
            for path, data in files.items()
            if path.count("/") <= here.count("/") + depth
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync.SyncClient, "_method", counted)
        fs.cp(f"{here}/a/*", f"{here}/b/")
        assert (calls.count("put_many"), calls.count("snapshot")) == (1, 1), calls
        assert len(calls) < 15, calls
        calls.clear()
        fs.cp(f"{here}/a", f"{here}/c", recursive=True)
        assert (calls.count("put_many"), calls.count("snapshot")) == (0, 1), calls
        calls.clear()
        fs.cp(f"{here}/a", f"{here}/c", recursive=True)  # into it, since it is there
    assert fs.cat(f"{here}/b", recursive=True) == copies("b", 2)
    info = fs.info(f"{here}/b/described")
    assert (info["attributes"], info["replication"]) == ({"a": "b"}, 2)
    assert fs.cat(f"{here}/c", recursive=True) == {**copies("c", 3), **copies("c/a", 3)}
    fs.cp(f"{here}/a/", f"{here}/b", recursive=True)  # what is there is replaced or kept
    assert fs.cat(f"{here}/b", recursive=True) == copies("b", 3)
    some, there = [*files][:2], f"{here}/e/x"
    with pytest.raises(FileNotFoundError, match="/none"):
        fs.cp([some[0], f"{here}/none"], [there, f"{here}/e/y"])
    fs.cp([f"{here}/none", *some], [f"{here}/e/y", there, there], on_error="ignore")
    assert fs.cat(f"{here}/e", recursive=True) == {there: files[some[1]]}
    fs.cp(here, f"{here}/a/within", recursive=True)  # no end of copies
    assert fs.cat(f"{here}/a/within/e/x") == files[some[1]]
    assert not fs.exists(f"{here}/a/within/a/within")


def test_rsync(cluster: Cluster, here: str, tmp_path: Path) -> None:
    """fsspec's, from a local directory and within the cluster."""
    options = {"state": str(cluster.state)}
    generic = GenericFileSystem("options", storage_options={"gfs": options})
    fs = GfsFileSystem(**options)
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "a").write_bytes(b"a")
    (tmp_path / "from" / "deep" / "b").write_bytes(b"b" * 5_000_000)
    first, second = f"gfs://{here}/first", f"gfs://{here}/second"
    for source, target in ((f"file://{tmp_path}/from", first), (first, second)):
        generic.rsync(source, target)
    expected = {"a": b"a", "deep/b": b"b" * 5_000_000}
    for name in ("first", "second"):
        found = fs.cat(f"{here}/{name}", recursive=True)
        assert found == {f"{here}/{name}/{path}": data for path, data in expected.items()}
    inode = fs.info(f"{here}/second/deep/b")["ino"]
    fs.pipe({f"{here}/first/a": b"more", f"{here}/first/c": b"c"})
    fs.pipe(f"{here}/second/old", b"old")
    generic.rsync(first, second, delete_missing=True)
    assert fs.cat(f"{here}/second/a") == b"more"
    assert fs.find(f"{here}/second") == [f"{here}/second/{name}" for name in ("a", "c", "deep/b")]
    assert fs.info(f"{here}/second/deep/b")["ino"] == inode


def test_a_copy_shares_no_later_change(fs: GfsFileSystem, here: str) -> None:
    fs.pipe(f"{here}/a", b"one")
    fs.cp(f"{here}/a", f"{here}/b")
    with fs.open(f"{here}/b", "r+b") as file:
        file.write(b"two")
    assert (fs.cat(f"{here}/a"), fs.cat(f"{here}/b")) == (b"one", b"two")
    fs.cp(f"{here}/a", f"{here}/b")
    fs.cp(f"{here}/a", f"{here}/a")
    assert fs.cat([f"{here}/a", f"{here}/b"]) == {f"{here}/{n}": b"one" for n in "ab"}
    assert fs.ls(here, detail=False) == [f"{here}/a", f"{here}/b"]


ERRNOS: dict[type[Exception], int] = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    OSError: errno.ENOTEMPTY,
}


def test_what_is_no_built_in_error_is_caught_as_one(
    fs: GfsFileSystem, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"{here}/a", f"{here}/b"]
    fs.pipe(dict.fromkeys(paths, b"old"))

    async def changed(*_: object, **__: object) -> Any:
        raise FileChanged("it was replaced")

    async def changed_each(client: Client, asked: list[str]) -> list[GfsError]:
        return [FileChanged(f"{path}: replaced") for path in asked]

    with fs.open(paths[0]) as file:
        monkeypatch.setattr(ExistingFile, "pread", changed)
        monkeypatch.setattr(Client, "stat", changed)
        monkeypatch.setattr(Client, "list", changed)
        monkeypatch.setattr(Client, "get_many", changed_each)
        calls: list[Callable[[], object]] = [file.read, lambda: fs.info(here)]
        for call in (*calls, lambda: fs.cat(paths), lambda: list(fs.walk(here))):
            with pytest.raises(OSError, match="replaced") as caught:
                call()
            assert isinstance(caught.value, FileChanged)
            assert caught.value.errno == errno.ESTALE
        values = fs.cat(paths, on_error="return").values()
        assert all(isinstance(each, OSError) for each in values)


def test_errors_are_the_built_in_ones_with_the_path(fs: GfsFileSystem, here: str) -> None:
    fs.pipe(f"{here}/file", b"")
    fs.pipe(f"{here}/full/file", b"")

    def pipe(path: str) -> None:
        fs.pipe(path, b"")

    cases: dict[tuple[type[Exception], str], list[Callable[[str], object]]] = {
        (FileNotFoundError, "none"): [
            *(fs.open, fs.info, fs.ls, fs.cat, fs.rm, fs.rmdir, fs.modified, fs.ukey),
            lambda path: fs.mv(path, f"{path}-moved"),
            lambda path: fs.cp(path, f"{path}-copied"),
            lambda path: fs.get_file(path, "/nowhere"),
        ],
        (FileNotFoundError, "none/deep"): [lambda path: fs.mkdir(path, create_parents=False)],
        (IsADirectoryError, "full"): [
            *(fs.open, fs.cat, fs.rm, pipe),
            *(lambda path, mode=mode: fs.open(path, mode) for mode in ("wb", "ab")),
        ],
        (FileExistsError, "file"): [fs.mkdir, lambda path: fs.makedirs(path, exist_ok=True)],
        (FileExistsError, "full"): [fs.mkdir, fs.makedirs],
        (NotADirectoryError, "file/below"): [fs.ls, fs.touch, pipe],
        (NotADirectoryError, "file"): [fs.rmdir],
        (OSError, "full"): [fs.rmdir],
        (ValueError, "../outside"): [fs.open],
        (ValueError, "a/../../../outside"): [pipe],
    }
    for (kind, name), calls in cases.items():
        for call in calls:
            with pytest.raises(kind, match=name.partition("/")[0]) as caught:
                call(f"{here}/{name}")
            assert getattr(caught.value, "errno", 0) == ERRNOS.get(kind, 0), name
            if isinstance(caught.value, OSError):
                assert caught.value.filename == f"{here}/{name}"
    with pytest.raises(FileNotFoundError) as lost:
        fs.mv(f"{here}/none", f"{here}/moved")
    assert lost.value.filename2 == f"{here}/moved"
    with pytest.raises(FileExistsError) as taken:
        fs.client.get(f"{here}/file", __file__)
    assert taken.value.filename == __file__
    found = fs.cat([f"{here}/{name}" for name in ("a", "b")], on_error="return")
    assert [each.filename for each in found.values()] == list(found)
    assert not fs.exists(f"{here}/../outside")
    assert not fs.exists(f"{here}/file/below")
    assert fs.find(here) == [f"{here}/file", f"{here}/full/file"]


def test_a_mapper_is_a_dictionary_of_files(fs: GfsFileSystem, here: str) -> None:
    mapper = fs.get_mapper(f"{here}/map")
    wanted = {"a": b"1", "deep/b": b"22", "deep/er/c": b""}
    mapper["a"] = b"old"
    mapper.setitems(wanted)
    assert (dict(mapper), len(mapper), sorted(mapper)) == (wanted, 3, sorted(wanted))
    assert fs.find(here) == [f"{here}/map/{name}" for name in sorted(wanted)]
    assert ("deep/b" in mapper, "deep" in mapper, "none" in mapper) == (True, False, False)
    assert mapper.getitems(["deep/b", "none"], on_error="omit") == {"deep/b": b"22"}
    with pytest.raises(KeyError, match="none"):
        mapper["none"]
    with pytest.raises(KeyError):
        del mapper["none"]
    for key in ("none", "deep"):
        assert mapper.get(key, b"other") == b"other"
    with pytest.raises(ValueError, match="x//b"):
        mapper["x//b"] = b""
    assert mapper.pop("a") == b"1"
    del mapper["deep/b"]
    assert dict(mapper) == {"deep/er/c": b""}
    assert dict(fs.get_mapper(f"{here}/map/deep/er")) == {"c": b""}
    fs.client.put(b"another's", f"{here}/map/later")
    assert mapper["later"] == b"another's"
    mapper.clear()
    assert (dict(mapper), fs.find(here)) == ({}, [])
    with pytest.raises(ValueError, match="none"):
        fs.get_mapper(f"{here}/none", check=True)


@blocks_left_open
@pytest.mark.parametrize("protocol", ["simplecache", "filecache", "blockcache"])
def test_local_caches(
    fs: GfsFileSystem, here: str, protocol: str, tmp_path: Path, cluster: Cluster
) -> None:
    path = f"{here}/x"
    fs.pipe(path, b"one" * 100_000)
    options: dict[str, Any] = {
        "gfs": {"state": str(cluster.state)},
        protocol: {"cache_storage": str(tmp_path)},
    }
    if protocol != "simplecache":
        options[protocol]["check_files"] = True
    cached, _ = fsspec.url_to_fs(f"{protocol}::gfs://{path}", skip_instance_cache=True, **options)
    for _ in range(2):
        assert cached.cat_file(path) == b"one" * 100_000
        with cached.open(path) as file:
            file.seek(150_000)
            assert file.read(3) == b"one"
    fs.pipe(path, b"two" * 100_000)
    if protocol != "simplecache":
        with cached.open(path) as file:
            assert file.read(3) == b"two"

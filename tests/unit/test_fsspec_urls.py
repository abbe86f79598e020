"""URLs and options of ``gfs://``, without a cluster."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import pickle
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.core import split_protocol
from interrupts import interrupted
from limits import HANG_SECONDS

from gfs.client import client as client_module
from gfs.errors import (
    Busy,
    ForeignPeer,
    GfsError,
    InvalidArgument,
    MasterUnavailable,
    SettingsError,
    TlsRefused,
)
from gfs.fsspec import GfsFileSystem, connections
from gfs.fsspec.files import Ahead, Reader
from gfs.protocol import handshake


@pytest.fixture
def key(tmp_path: Path) -> Path:
    made = tmp_path / "key"
    made.write_text("ab" * 32)
    made.chmod(0o600)
    return made


def test_fsspec_finds_it_by_its_entry_point() -> None:
    (found,) = importlib.metadata.entry_points(group="fsspec.specs", name="gfs")
    assert found.load() is GfsFileSystem
    assert fsspec.get_filesystem_class("gfs") is GfsFileSystem


@pytest.mark.parametrize(
    ("url", "master", "path"),
    [
        ("gfs:///a/b", None, "/a/b"),
        ("gfs://", None, "/"),
        ("gfs:///", None, "/"),
        ("gfs://host:9400/a", ("host:9400",), "/a"),
        ("gfs://host:9400", ("host:9400",), "/"),
        ("gfs://a:1,b.example:2/x/", ("a:1", "b.example:2"), "/x"),
        ("gfs:///with ?&#*@:", None, "/with ?&#*@:"),
        ("/a/", None, "/a"),
        ("a", None, "/a"),
        ("", None, "/"),
    ],
)
def test_urls(url: str, master: tuple[str, ...] | None, path: str) -> None:
    fs, found = fsspec.url_to_fs(url) if split_protocol(url)[0] else (GfsFileSystem(), url)
    assert fs._place.master == master
    assert fs._strip_protocol(url) == fs._strip_protocol(found) == path
    whole = fs.unstrip_protocol(path)
    assert not whole.partition("://")[2].endswith("/")
    again, there = fsspec.url_to_fs(whole)
    assert (again._place, there) == (fs._place, path)


def test_an_address_of_version_6_is_an_option() -> None:
    """``::`` in a URL is fsspec's own, for file systems in file systems."""
    fs = GfsFileSystem("[::1]:9400")
    assert fs._place.master == ("[::1]:9400",)
    assert fs._strip_protocol("gfs://[::1]:9400/x") == "/x"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gfs://bucket/key", r"'bucket' is not HOST:PORT.*gfs:///path"),
        ("gfs://host:port/x", "'host:port' is not HOST:PORT"),
        ("gfs://a:65535,host:65536/x", "'host:65536' is not HOST:PORT"),
        ("gfs://host:0/x", "'host:0' is not HOST:PORT"),
        ("gfs://a:1,/x", "'' is not HOST:PORT"),
        ("gfs://user:secret@host:1/x", "names no user or key: say key=FILE"),
    ],
)
def test_a_wrong_url_says_what_is_right(url: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        fsspec.url_to_fs(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"key": b"k" * 32}, InvalidArgument, "the file with the cluster key"),
        ({"key": "5ec7e7" * 10 + "5ec7\n"}, InvalidArgument, "the file with the cluster key"),
        ({"retry_seconds": "5"}, InvalidArgument, "retry_seconds='5': give a number"),
        ({"retry_seconds": -1}, InvalidArgument, "retry_seconds=-1: give a number"),
        ({"master": "host"}, InvalidArgument, "'host': give HOST:PORT"),
        ({"master": ["a:1", "b"]}, InvalidArgument, "'b': give HOST:PORT"),
        ({"master": "a:65535,b:99999"}, InvalidArgument, "'b:99999': give HOST:PORT"),
        ({"replication": "two"}, InvalidArgument, "replication='two': give a number of"),
        ({"replication": 1.5}, InvalidArgument, "replication=1.5: give a number of"),
        ({"replication": -1}, InvalidArgument, "replication=-1: give a number of"),
        ({"replicaton": 1}, TypeError, "no option 'replicaton': there are"),
    ],
)
def test_a_wrong_option_is_refused(
    options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        GfsFileSystem(**options)
    assert "5ec7e7" not in str(caught.value)


def test_a_goal_from_the_environment_is_text() -> None:
    assert GfsFileSystem(replication="2").replication == 2


def test_the_key_is_nowhere_but_in_its_file(key: Path, tmp_path: Path) -> None:
    fs = GfsFileSystem("a:1", key=key, tls=tmp_path, replication=2)
    shown = [repr(fs), str(fs.storage_options), pickle.dumps(fs).decode("latin1"), fs.to_json()]
    shown += [fs._fs_token, fs.unstrip_protocol("/x"), json.dumps(fs.to_dict(), default=str)]
    assert not [text for text in shown if "ab" * 8 in text]
    for again in (pickle.loads(pickle.dumps(fs)), GfsFileSystem.from_json(fs.to_json())):
        assert (again._place, again.replication) == (fs._place, 2)


def test_a_cluster_that_is_down_is_named_within_the_deadline(key: Path) -> None:
    fs = GfsFileSystem("127.0.0.1:1", key=key, retry_seconds=0.1, skip_instance_cache=True)
    calls = (fs.exists, fs.isdir, fs.isfile, fs.find, fs.ls, fs.glob, fs.cat, fs.rm)
    for call in (*calls, lambda path: list(fs.walk(path))):
        with pytest.raises(MasterUnavailable, match=r"127\.0\.0\.1:1") as caught:
            call("/x")
        assert isinstance(caught.value, ConnectionError)
        assert caught.value.errno == errno.ETIMEDOUT


def test_what_a_first_call_fails_with_is_a_built_in_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.asynccontextmanager
    async def connect(**_: object) -> AsyncIterator[None]:
        raise Busy("too many connections")
        yield

    monkeypatch.setattr(client_module, "connect", connect)
    with pytest.raises(OSError, match="too many connections") as caught:
        GfsFileSystem("127.0.0.1:1", skip_instance_cache=True).exists("/x")
    assert isinstance(caught.value, Busy)
    assert caught.value.errno == errno.EBUSY


def test_all_threads_that_wait_for_a_connection_have_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each trying for itself, one after another, the last would wait for many deadlines."""
    tried: list[object] = []
    errors: list[Exception] = []
    begun, down = threading.Event(), threading.Event()

    def connect(place: connections.Place) -> Any:
        tried.append(place)
        begun.set()
        assert down.wait(HANG_SECONDS)
        raise MasterUnavailable("no answer from 127.0.0.1:1")

    def call() -> None:
        with pytest.raises(MasterUnavailable, match=r"127\.0\.0\.1:1") as caught:
            GfsFileSystem("127.0.0.1:1").exists("/x")
        errors.append(caught.value)

    waiting = threading.Semaphore(0)

    class Counted(connections._Try):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self._lock = self, self.lock  # type: ignore[assignment]

        def __enter__(self) -> None:
            waiting.release()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    monkeypatch.setattr(connections, "_connect", connect)
    monkeypatch.setattr(connections, "_Try", Counted)
    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(HANG_SECONDS)
    for _ in threads:
        assert waiting.acquire(timeout=HANG_SECONDS)
    down.set()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert (len(tried), len(errors)) == (1, 8)
    # The next call tries again.
    call()
    assert len(tried) == 2


def test_a_connection_that_is_interrupted_anywhere_keeps_no_other_thread_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def connect(place: connections.Place) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise MasterUnavailable("no answer from 127.0.0.1:1")
        return SimpleNamespace(closed=False)

    def call() -> None:
        found.append(connections.client_of(place))

    monkeypatch.setattr(connections, "_connect", connect)
    step = 0
    while True:
        place, found = connections.Place((f"127.0.0.1:{step + 1}",)), list[object]()
        with interrupted(step, connections) as was, suppress(MasterUnavailable, KeyboardInterrupt):
            connections.client_of(place)
        other = threading.Thread(target=call, daemon=True)
        other.start()
        other.join(HANG_SECONDS)
        assert found == [connections._clients.pop(place)], f"step {step}"
        if not was:
            break
        step += 1
    assert step > 3


def test_a_client_that_was_closed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_connect", lambda place: SimpleNamespace(closed=False))
    fs = GfsFileSystem("127.0.0.1:2")
    first: Any = fs.client
    assert fs.client is first
    first.closed = True
    assert not fs.client.closed
    assert fs.client is fs.client is not first
    connections._clients.pop(fs._place)


@pytest.mark.parametrize(
    ("answer", "seconds", "kind", "said"),
    [
        (b"", 0.1, MasterUnavailable, "the master at {address}: no hello from {address}"),
        (b"HTTP/1.1 400 No\r\n\r\n", HANG_SECONDS, ForeignPeer, "^{address}: it speaks HTTP, "),
        (b"SSH-2.0-OpenSSH_9.2\r\n", HANG_SECONDS, ForeignPeer, "^{address}: it speaks SSH, "),
        (b"220 mail\r\n", HANG_SECONDS, ForeignPeer, "^{address}: it speaks text .'220 mail' …"),
        (
            b"\xff" * 100,
            HANG_SECONDS,
            ForeignPeer,
            "^{address}: .*4294967295 bytes",
        ),
        (b"\x15\x03\x03\0\2\2\x32" * 9, HANG_SECONDS, TlsRefused, "^{address}: it speaks TLS"),
    ],
)
def test_a_service_that_is_no_master_is_named_within_the_deadline(
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    seconds: float,
    kind: type[Exception],
    said: str,
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", seconds)

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.sendall(answer)
                connection.recv(1 << 16)
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=serve)
        thread.start()
        fs = GfsFileSystem(address, key=key, retry_seconds=0.1, skip_instance_cache=True)
        with pytest.raises(kind, match=said.format(address=re.escape(address))):
            fs.exists("/x")
        server.shutdown(socket.SHUT_RDWR)
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    fs = GfsFileSystem("127.0.0.1:1", key=tmp_path / "none", skip_instance_cache=True)
    with pytest.raises(SettingsError, match=str(tmp_path / "none")):
        fs.exists("/x")
    fs = GfsFileSystem(state=tmp_path, skip_instance_cache=True)
    with pytest.raises(GfsError, match=f"no cluster runs in {tmp_path}"):
        fs.exists("/x")


def test_many_paths_are_removed_with_what_is_below_them_in_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def delete_many(paths: list[str], recursive: bool) -> list[None]:
        assert recursive
        asked.extend(paths)
        return []

    monkeypatch.setattr(GfsFileSystem, "client", SimpleNamespace(delete_many=delete_many))
    fs = GfsFileSystem("127.0.0.1:1")
    fs.rm(["/a/b/c", "/a/b", "/a/bc", "/d/", "/d/e"], recursive=True)
    assert asked == ["/a/b", "/a/bc", "/d"]
    asked.clear()
    fs.rm(["/", "/a"], recursive=True)
    assert asked == ["/"]
    asked.clear()
    paths = [f"/many/{number:04}" for number in range(1000)]
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        fs.rm(paths, recursive=True)
    finally:
        sys.setprofile(None)
    assert asked == paths
    assert steps < 300 * len(paths)


def test_what_is_read_in_order_is_read_ahead_and_nothing_else() -> None:
    data = bytes(range(256)) * 4096
    asked: list[int] = []

    def fetch(start: int, end: int) -> bytes:
        asked.append(end - start)
        return data[start:end]

    cache = Ahead(128 * 1024, fetch, len(data))
    for at in range(0, len(data), 1000):
        assert cache._fetch(at, at + 1000) == data[at : at + 1000]
    assert len(asked) < 15
    assert max(asked) <= 128 * 1024 + 1000
    asked.clear()
    for at in (900_000, 100, 500_000, 1_048_570):
        assert cache._fetch(at, at + 10) == data[at : at + 10]
    assert max(asked) <= 64 * 1024 + 10
    assert cache._fetch(len(data), len(data) + 5) == b""
    assert cache._fetch(None, None) == data
    # What was read as one long piece is not kept beside its reader's own copy.
    assert cache._fetch(10, 900_010) == data[10:900_010]
    assert sys.getsizeof(cache._held[1]) < 64 * 1024
    asked.clear()
    assert cache._fetch(900_010, 900_020) == data[900_010:900_020]
    assert max(asked) > 64 * 1024


def test_a_file_is_fetched_once_by_who_reads_its_lines() -> None:
    line = bytes(range(11, 256)) * 8 + b"\n"
    long = b"x" * 300_000 + b"\n"
    lines = [*[line] * 3000, long, *[line] * 1500, b"end"]
    data = b"".join(lines)
    asked = 0

    def fetch(start: int, count: int) -> bytes:
        nonlocal asked
        asked += count
        assert asked <= len(data)
        return data[start : start + count]

    fs, info = GfsFileSystem("127.0.0.1:1"), {"size": len(data)}
    source: Any = SimpleNamespace(path="/x", length=len(data), pread=fetch)
    with Reader(fs, source, info, None, None, None) as file:
        assert list(file) == lines
    assert asked == len(data)

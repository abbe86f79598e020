"""Encrypted clusters, and a cluster key that is changed under load: real processes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import Command
from harness import Cluster, environment
from limits import HANG_SECONDS, wait_for
from processes import Processes, free_port

from gfs.client import sync
from gfs.errors import TlsRefused, WrongClusterKey
from gfs.fsspec import GfsFileSystem
from gfs.state import make_key, read_keys, retire_keys, rotate_key

FILE_BYTES = 300_000


def test_a_master_has_the_key_that_the_environment_names(tmp_path: Path) -> None:
    """And makes none of its own, with which nobody could connect."""
    key, state, address = tmp_path / "key", tmp_path / "state", f"127.0.0.1:{free_port()}"
    made = make_key(key)
    with open(tmp_path / "log", "wb") as log:
        variables = environment(GFS_STATE=str(state), GFS_KEY_FILE=str(key))
        master = Command(
            ["master", "--address", address],
            stdout=log.fileno(),
            stderr=log.fileno(),
            env=variables,
        )
    try:
        wait_for((state / "master" / "data.mdb").exists, "metadata")
        with sync.connect(address, key=made) as fs:
            assert fs.status().role == "master"
        assert not (state / "cluster.key").exists()
    finally:
        master.terminate()
        assert master.wait(HANG_SECONDS) == 0


def test_a_cluster_with_tls(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = make_cluster("--tls").start()
    data = os.urandom(3 * 1024 * 1024 + 17)
    (tmp_path / "file").write_bytes(data)
    cluster.gfs("put", tmp_path / "file", "/file")
    assert cluster.gfs("get", "/file", "-").stdout == data
    with sync.connect(state=cluster.state) as fs, fs.open("/file", "r+") as file:
        file.pwrite(100_000, b"in place")
    address, key = cluster.ready["master"]["address"], cluster.state / "cluster.key"
    other_fs = GfsFileSystem(address, key=key, tls=cluster.state / "tls", skip_instance_cache=True)
    assert other_fs.cat_file("/file", 100_000, 100_008) == b"in place"
    other_fs.close()
    assert cluster.json("fsck", "/")["chunks"] == 1
    assert (cluster.state / "tls" / "key.pem").stat().st_mode & 0o77 == 0

    # Whoever has the key but no certificates gets an error that says so, by master and chunkserver.
    options = ("--state", tmp_path / "other", "--key-file", key)
    for at in (address, cluster.ready["chunkservers"][0]["address"]):
        plain = cluster.gfs("ls", *options, "--master", at, "/", code=TlsRefused.exit_code)
        assert plain.stderr.startswith(b"gfs: this server requires TLS")

    assert cluster.stop() == 0
    again = cluster.start()
    assert again.gfs("get", "/file", "-").stdout == data[:100_000] + b"in place" + data[100_008:]


def test_a_client_with_tls_at_a_cluster_without(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    shutil.copy(_authority(tmp_path), tmp_path / "tls" / "ca.pem")
    refused = cluster.gfs("ls", "--tls", tmp_path / "tls", "/", code=TlsRefused.exit_code)
    assert b"does not speak TLS" in refused.stderr
    missing = cluster.gfs("ls", "--tls", tmp_path / "nowhere", "/", code=2)
    assert b"ca.pem: No such file" in missing.stderr


def _authority(directory: Path) -> Path:
    from gfs.cluster.certificates import make_certificates

    make_certificates(directory / "made")
    return directory / "made" / "ca.pem"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Processes]:
    """A master and three chunkservers, each with a key file of its own."""
    made = Processes(tmp_path, 0)
    try:
        for name in ("chunkserver-1", "chunkserver-2", "chunkserver-3"):
            _start_apart(made, name)
        yield made
    finally:
        made.stop()


def _start_apart(made: Processes, name: str) -> None:
    shutil.copy(made.state / "cluster.key", made.state / f"{name}.key")
    made._start(
        name, "chunkserver", "--dir", str(made.state / name), "--master", made.master_address,
        "--key-file", str(made.state / f"{name}.key"),
    )  # fmt: skip


class Load:
    """Clients that put, get, and write in place, each file read back; one makes a new
    connection for every file. ``failure`` is the first that anything of it met."""

    def __init__(self, address: str, keys: list[Path]) -> None:
        self.done = [0] * len(keys)
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(n, address, key), daemon=True)
            for n, key in enumerate(keys)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, address: str, key: Path) -> None:
        try:
            while not self._stop.is_set():
                with sync.connect(address, key=key) as fs:
                    for _ in range(1 if number == 0 else 50):
                        self._one(fs, f"/{number}/{self.done[number]}")
                        self.done[number] += 1
                        if self._stop.is_set():
                            break
        except BaseException as error:
            self.failure = error

    @staticmethod
    def _one(fs: sync.SyncClient, path: str) -> None:
        data = os.urandom(FILE_BYTES)
        fs.put(data, path)
        assert fs.get(path) == data
        with fs.open(path, "r+") as file:
            file.pwrite(1000, b"again")
        assert fs.get(path) == data[:1000] + b"again" + data[1005:]
        fs.delete(path)

    def goes_on(self, rounds: int = 3) -> None:
        """Every client finishes so many more files."""
        before = list(self.done)

        def further() -> bool:
            if self.failure is not None:
                raise self.failure
            return all(now >= then + rounds for now, then in zip(self.done, before, strict=True))

        wait_for(further, f"progress: {self.done} after {before}")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS)
        if self.failure is not None:
            raise self.failure


def test_the_key_is_changed_under_load_and_nothing_fails(
    machines: Processes, tmp_path: Path
) -> None:
    clients = [tmp_path / f"client-{n}.key" for n in range(3)]
    for path in clients:
        shutil.copy(machines.state / "cluster.key", path)
    first = tmp_path / "first.key"
    shutil.copy(clients[0], first)
    load = Load(machines.master_address, clients)
    try:
        load.goes_on()
        master_key = machines.state / "cluster.key"
        rotate_key(master_key)
        load.goes_on()
        files = [*(machines.state / f"chunkserver-{n}.key" for n in (1, 2, 3)), *clients]
        for path in files:
            _distribute(master_key, path)
            load.goes_on(1)
        for path in [clients[0], *reversed(files[:3]), master_key, *clients[1:]]:
            assert retire_keys(path)
            load.goes_on(1)
        load.goes_on()
    finally:
        load.stop()
    # Everybody is there with the new key, who has only the old one is not let in.
    assert {read_keys(path) for path in files} == {read_keys(master_key)}
    with pytest.raises(WrongClusterKey):
        sync.connect(machines.master_address, key=first)


def _distribute(source: Path, target: Path) -> None:
    draft = target.with_suffix(".new")
    shutil.copy(source, draft)  # the mode comes along
    draft.replace(target)


def test_connections_made_with_a_retired_key_end(machines: Processes, tmp_path: Path) -> None:
    """A stolen key is worth nothing from then on, also to a thief who is connected."""
    stolen = tmp_path / "stolen.key"
    shutil.copy(machines.state / "cluster.key", stolen)
    key = read_keys(stolen)[0]
    with sync.connect(machines.master_address, key=key) as thief:
        thief.mkdir("/there")
        for name in ("cluster", "chunkserver-1", "chunkserver-2", "chunkserver-3"):
            path = machines.state / f"{name}.key"
            if name == "cluster":
                rotate_key(path)
            else:
                _distribute(machines.state / "cluster.key", path)
        thief.mkdir("/still")
        retire_keys(machines.state / "cluster.key")

        def is_refused() -> bool:
            try:
                thief.exists("/there")
            except WrongClusterKey:
                return True
            return False

        wait_for(is_refused, "end of the thief's connection")

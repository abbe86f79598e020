"""Processes of the release before this one beside ours, upgraded and brought back one by one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import forks
import pytest
import releases
from harness import PATIENT
from limits import HANG_SECONDS, wait_for
from processes import Processes, free_port

pytestmark = pytest.mark.extra("git")

LOAD = Path(__file__).with_name("mixed_load.py")
MASTERS = ("a", "b", "c")
CHUNKSERVERS = ("chunkserver-1", "chunkserver-2", "chunkserver-3", "chunkserver-4")
#: What ours must not do while release 0.1 is to read their directories again: see CHANGELOG.md.
UNPACKED = {"GFS_CHUNKSERVER_PACKED_BYTES_MAX": "0"}


class Mixed(Processes):
    """Three masters, of which two follow, and four chunkservers. Each process is of the release
    that ``of`` has for it; all start as the older one."""

    def __init__(self, directory: Path, older: Path, ours: Mapping[str, str]) -> None:
        #: What only processes of this release are given.
        self.ours = ours
        self.releases = {"old": older, "new": releases.REPOSITORY}
        self.of = dict.fromkeys((*MASTERS, *CHUNKSERVERS), "old")
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in (*MASTERS, *CHUNKSERVERS)}
        self.master = "a"
        self.directory = directory
        self.loads: dict[str, subprocess.Popen[bytes]] = {}
        settings = {"GFS_MASTER_REPLICAS_BEFORE_ACK": "1", **ours}
        super().__init__(directory, len(CHUNKSERVERS), 5.0, **settings)

    @property
    def old_environment(self) -> dict[str, str]:
        """Without settings that it may not know."""
        unknown = {*PATIENT, *self.ours}
        return {n: value for n, value in self.environment.items() if n not in unknown}

    @property
    def key_file(self) -> str:
        return str(self.state / "cluster.key")

    def start_master(self) -> None:
        self.master_address = ",".join(self.addresses[name] for name in MASTERS)
        for name in MASTERS:
            self.start_one(name)

    def start_one(self, name: str) -> None:
        if name in CHUNKSERVERS:
            self.start_chunkserver(name)
            return
        follow = () if name == self.master else ("--shadow-of", self.addresses[self.master])
        self._start(
            name, "master", "--state", str(self.directory / name), "--key-file", self.key_file,
            "--address", self.addresses[name], *follow,
        )  # fmt: skip

    def start_chunkserver(self, name: str) -> None:
        self._start(
            name, "chunkserver", "--dir", str(self.state / name), "--master", self.master_address,
            "--key-file", self.key_file, "--address", self.addresses[name],
        )  # fmt: skip

    def _start(self, name: str, *arguments: str) -> None:
        if self.of[name] == "new":
            super()._start(name, *arguments)
            return
        self.processes[name] = self._run("old", ["-m", "gfs.cli", *arguments], self.log)  # type: ignore[assignment]

    def _run(
        self, release: str, arguments: Sequence[str], log: BinaryIO
    ) -> subprocess.Popen[bytes]:
        directory = self.releases[release]
        return releases.start(directory, *arguments, log=log, environment=self.old_environment)

    def gfs_of(self, release: str, *arguments: str, code: int | None = 0) -> str:
        """What a command of that release prints."""
        words = [*arguments, "--key-file", self.key_file]
        where = {"GFS_MASTER": self.master_address}
        if release == "new":
            # Most of them ask again and again whether all is whole: new interpreters would take
            # from the cluster what it needs to become it.
            done = forks.run(words, env=self.environment | where, text=True)
        else:
            directory = self.releases[release]
            done = subprocess.run(
                [sys.executable, "-m", "gfs.cli", *words],
                capture_output=True,
                text=True,
                check=False,
                cwd=directory,
                env=self.old_environment | where | {"PYTHONPATH": str(directory)},
            )
        if code is not None:
            assert done.returncode == code, (release, arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def package(self, release: str) -> Path:
        """Where its processes have ``gfs`` from."""
        with open(self.directory / "package", "w+b") as file:
            self._run(release, ["-c", "import gfs; print(gfs.__file__)"], file).wait()
        return Path((self.directory / "package").read_text().strip())

    def replace(self, name: str, release: str, number: int = signal.SIGTERM) -> None:
        """End a process and start that release in its place; returns when all is whole."""
        self.processes[name].send_signal(number)
        self.processes[name].wait(HANG_SECONDS)
        self.of[name] = release
        began = time.monotonic()
        self.start_one(name)
        if name in CHUNKSERVERS:
            wait_for(lambda: self.is_heard_of(name, since=began), f"new {name}")
        self.wait_whole("--with", self.addresses[name])

    def promote(self, name: str) -> None:
        """The master is of the release of ``name`` from now on."""
        before, self.master = self.master, name
        self.gfs_of(self.of[name], "promote", self.addresses[name])
        assert before != name

    def is_heard_of(self, name: str, *, since: float) -> bool:
        """A server that has just been killed still counts as live."""
        status = json.loads(self.gfs_of("new", "status", "--json"))
        ages_ms = [
            each["heartbeat_age_ms"]
            for each in status["servers"]
            if each["address"] == self.addresses[name] and each["state"] == "live"
        ]
        return any(1000 * (time.monotonic() - since) > age_ms for age_ms in ages_ms)

    def wait_whole(self, *arguments: str) -> None:
        lacks = ""

        def whole() -> bool:
            nonlocal lacks
            self.check_loads()
            lacks = self.gfs_of("new", "status", "--whole", *arguments, code=None)
            return not lacks

        try:
            wait_for(whole, "whole cluster")
        except AssertionError as error:
            raise AssertionError(f"{error}: {lacks}") from None

    def start_load(self, release: str) -> None:
        with open(self.output(release), "ab") as log:
            arguments = [str(LOAD), self.master_address, self.key_file, release]
            self.loads[release] = self._run(release, arguments, log)
        wait_for(lambda: b"ready" in self.output(release).read_bytes(), "load")

    def output(self, release: str) -> Path:
        return self.directory / f"{release}.load"

    def check_loads(self) -> None:
        for release, load in self.loads.items():
            assert load.poll() is None, self.output(release).read_text()[-3000:]

    def end_loads(self) -> None:
        self.check_loads()
        for release, load in self.loads.items():
            load.terminate()
            assert load.wait(HANG_SECONDS) == 0, self.output(release).read_text()[-3000:]
            assert "done" in self.output(release).read_text()
        self.loads.clear()

    def stop(self) -> None:
        for load in self.loads.values():
            load.kill()
            load.wait()
        super().stop()


@pytest.fixture(params=releases.previous(), ids=lambda name: name[:7])
def mixed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mixed]:
    name = request.param
    if not releases.is_here(name):
        pytest.skip(f"{name} is not in this shallow clone")
    older = tmp_path / "older"
    releases.check_out(name, older)
    made = Mixed(tmp_path, older, UNPACKED if name == releases.RELEASE_0_1 else {})
    yield made
    made.stop()


def test_a_rolling_upgrade_and_the_way_back_fail_no_call(mixed: Mixed) -> None:
    """In the orders of docs/upgrade.md, with clients of both releases."""
    mixed.wait_whole()
    for release, directory in mixed.releases.items():
        assert directory in mixed.package(release).parents
    for release in ("old", "new"):
        mixed.start_load(release)
    for number, name in enumerate(CHUNKSERVERS):
        mixed.replace(name, "new", (signal.SIGTERM, signal.SIGKILL)[number % 2])
    for name in ("b", "c"):
        mixed.replace(name, "new")
    mixed.promote("b")
    mixed.replace("a", "new")
    assert set(mixed.of.values()) == {"new"}
    # And back: the servers with the names first, the chunkservers last.
    for name in ("a", "c"):
        mixed.replace(name, "old")
    mixed.promote("a")
    mixed.replace("b", "old")
    for number, name in enumerate(CHUNKSERVERS):
        mixed.replace(name, "old", (signal.SIGKILL, signal.SIGTERM)[number % 2])
    mixed.end_loads()
    for release in ("old", "new"):
        mixed.gfs_of(release, "fsck", "/")


def test_masters_of_either_release_have_chunkservers_of_the_other_copy(mixed: Mixed) -> None:
    """Large replicas, and small ones together."""
    mixed.replace("chunkserver-4", "new")
    files = {f"/{size}": os.urandom(size) for size in (0, 10, 70_000, 300_000, 1_000_000)}
    for name, data in files.items():
        (mixed.directory / "data").write_bytes(data)
        mixed.gfs_of("new", "put", str(mixed.directory / "data"), name)

    def servers() -> dict[str, dict[str, Any]]:
        shown = json.loads(mixed.gfs_of("new", "status", "--json"))["servers"]
        return {server["address"]: server for server in shown}

    def drain(name: str) -> None:
        address = mixed.addresses[name]
        mixed.gfs_of("new", "drain", "--no-wait", address)
        wait_for(lambda: servers()[address]["drain"] == "drained", f"drained {name}")
        mixed.gfs_of("new", "drain", "--cancel", address)

    def has_all(name: str) -> bool:
        # The empty file has no chunk.
        return bool(servers()[mixed.addresses[name]]["chunks"] == len(files) - 1)

    drain("chunkserver-4")
    drain("chunkserver-1")
    wait_for(lambda: has_all("chunkserver-4"), "replicas on the newer chunkserver")
    mixed.replace("b", "new")
    mixed.promote("b")
    drain("chunkserver-2")
    wait_for(lambda: has_all("chunkserver-1"), "replicas on the older chunkserver")
    for name, data in files.items():
        mixed.gfs_of("new", "get", name, str(mixed.directory / "read"))
        assert (mixed.directory / "read").read_bytes() == data
        (mixed.directory / "read").unlink()

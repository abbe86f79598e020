"""A cluster of real processes on disks that can be broken, and clients that use it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from disk_load import STANDING, standing
from limits import HANG_SECONDS, wait_for
from processes import Processes, free_port
from real_disks import CACHED, UNCACHED, RealDisk, real_disks

from gfs.blocks import MIB
from gfs.client.sync import SyncClient
from gfs.config import ClientSettings
from gfs.protocol.messages import Disk

LOADS = 2

SETTINGS = {
    "GFS_LOG_FORMAT": "json",
    "GFS_MASTER_TRASH_SECONDS": "0",
    "GFS_MASTER_GARBAGE_GRACE_SECONDS": "2",
    # More than is deleted from a full disk while it is looked at.
    "GFS_CHUNKSERVER_RESERVE_BYTES": str(48 * MIB),
    "GFS_CHUNKSERVER_SCAN_SECONDS": "2",
    "GFS_CHUNKSERVER_SCRUB_SECONDS": "20",
    # A busy machine keeps no call waiting for so long.
    "GFS_CHUNKSERVER_DISK_HANG_SECONDS": "15",
}


class DiskCluster(Processes):
    """A master and four chunkservers, each with two disks. One disk of each server is for
    each kind of failure; the other ones are plain mounts."""

    def __init__(self, directory: Path, make: Callable[..., RealDisk], **settings: str) -> None:
        self.directory, self.make_disk = directory, make
        self.disks = {
            "s1": [make("s1/a"), make("s1/b")],
            "s2": [make("s2/a"), make("s2/b", below="gfs")],
            "s3": [make("s3/a"), make("s3/b", fuse=CACHED)],
            "s4": [make("s4/a"), make("s4/b", fuse=UNCACHED)],
        }
        self.metrics = {name: f"127.0.0.1:{free_port()}" for name in self.disks}
        super().__init__(directory, 0, **(SETTINGS | settings))
        patient = ClientSettings(retry_seconds=HANG_SECONDS)
        self.client = SyncClient(self.master_address, key=self.key, settings=patient)

    def start(self) -> None:
        for name in self.disks:
            self.start_chunkserver(name)
        self.wait_live()
        for number in range(STANDING):
            path, data = standing(number)
            self.client.put(data, path)

    @classmethod
    @contextmanager
    def running(cls, directory: Path, **settings: str) -> Iterator[DiskCluster]:
        """With the standing files in it. Disks that hang go on before processes end, which
        wait for them."""
        with real_disks(directory) as make:
            made = cls(directory, make, **settings)
            try:
                made.start()
                yield made
            finally:
                for disks in made.disks.values():
                    for disk in disks:
                        disk.wake()
                made.client.close()
                made.stop()

    def by_kind(self, kind: str) -> tuple[str, RealDisk]:
        name = {"mount": "s1", "directory": "s2", "cached": "s3", "uncached": "s4"}[kind]
        return name, self.disks[name][1]

    def log_path(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.log_path(name), "ab") as log:
            self.processes[name] = self._command(arguments, log)

    def start_chunkserver(self, name: str) -> None:
        self._start(
            name, "chunkserver", "--master", self.master_address,
            "--key-file", str(self.state / "cluster.key"), "--metrics", self.metrics[name],
            *(f"--dir={disk.path}" for disk in self.disks[name]),
        )  # fmt: skip

    def is_obeyed(self, *order: str) -> bool:
        """Not always while a disk is just coming back."""
        with suppress(AssertionError):
            self.gfs(*order)
            return True
        return False

    def wait_live(self) -> None:
        def live() -> bool:
            states = [server.state for server in self.client.status().servers]
            return states.count("live") == len(self.disks)

        wait_for(live, "live chunkservers")

    # --- what is said of the disks ------------------------------------------------------

    def reported(self) -> dict[str, Disk]:
        """What the servers report of their disks, by path."""
        servers = self.client.status().servers
        return {disk.path: disk for server in servers for disk in server.disks}

    def heard(self) -> dict[str, dict[str, Any]]:
        """What ``gfs status --disks`` says, by path."""
        return {disk["path"]: disk for disk in json.loads(self.gfs("status", "--disks", "--json"))}

    def wait_reported(self, disk: RealDisk, state: str) -> dict[str, Any]:
        """Wait until ``disk`` is said to be in this state; every other disk is said to be
        well all the time."""
        seen: list[str] = []

        def is_reported() -> bool:
            states = {path: disk.state for path, disk in self.reported().items()}
            seen.append(states.pop(str(disk.path), "unknown"))
            assert set(states.values()) == {"ok"}, f"others are named: {states}"
            return seen[-1] == state

        try:
            wait_for(is_reported, f"{disk.path} that is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it was {list(dict.fromkeys(seen))}") from None
        return self.heard()[str(disk.path)]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log of a process that logs JSON, but for a line that is just being written."""
        lines = self.log_path(name).read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def metric(self, name: str, metric: str) -> dict[str, float]:
        """Of a chunkserver, by the labels as they are written."""
        with urllib.request.urlopen(
            f"http://{self.metrics[name]}/metrics", timeout=HANG_SECONDS
        ) as reply:
            text = reply.read().decode()
        found = re.findall(rf"^{metric}{{(.*)}} (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    # --- what is in the cluster ---------------------------------------------------------

    def wait_whole(self, path: str) -> None:
        """Until every replica at and below ``path`` has been read and is good."""
        wait_for(lambda: not self.client.fsck(path).damaged, f"repair of {path}")

    def check_totals(self) -> None:
        """``status`` says what ``fsck`` counts. Nothing may be written meanwhile."""

        def agree() -> bool:
            totals, counts = self.client.status().totals, self.client.fsck("/").counts
            return (totals.under_replicated, totals.corrupt, totals.lost, totals.orphaned) == tuple(
                counts.get(kind, 0) for kind in ("below_goal", "corrupt", "lost", "orphaned")
            )

        wait_for(agree, "agreement of status and fsck")

    # --- clients ------------------------------------------------------------------------

    @contextmanager
    def load(self, name: str) -> Iterator[None]:
        """Clients put and get while the block runs; then no call of theirs failed or brought a
        wrong byte, and their files are deleted."""
        clients = [
            subprocess.Popen(
                [
                    *(sys.executable, Path(__file__).with_name("disk_load.py")),
                    *(self.master_address, self.state / "cluster.key", f"{name}-{number}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
            )
            for number in range(LOADS)
        ]
        try:
            for client in clients:
                assert client.stdout is not None
                assert client.stdout.readline() == "busy\n"
            try:
                yield
            finally:
                for client in clients:
                    client.send_signal(signal.SIGTERM)
                reports = [
                    json.loads(client.communicate(timeout=HANG_SECONDS)[0]) for client in clients
                ]
                print(*map(json.dumps, reports), sep="\n")
        finally:
            for client in clients:
                client.kill()
                client.communicate()
        self.client.delete("/load", recursive=True)
        for report in reports:
            assert not report["wrong"], report
            assert not report["failures"], report


class Shared:
    """A cluster for all tests of a process that want the same settings, for as long as each
    leaves it whole."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._settings: dict[str, str] = {}
        self._stack = ExitStack()
        self._cluster: DiskCluster | None = None

    @contextmanager
    def cluster(self, **settings: str) -> Iterator[DiskCluster]:
        """The one there is; who fails in this block leaves none for others."""
        if settings != self._settings:
            self.close()
        if self._cluster is None:
            made = DiskCluster.running(self._factory.mktemp("disks"), **settings)
            self._cluster, self._settings = self._stack.enter_context(made), settings
        try:
            yield self._cluster
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._cluster = None
        self._stack.close()

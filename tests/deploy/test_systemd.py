"""The units: systemd takes them, they may do little, and what they start serves a cluster
under as many of their bounds as can be had without systemd."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from deployed import DEPLOY, run
from harness import GFS, environment
from limits import HANG_SECONDS, wait_for
from processes import free_port
from signals import send

from gfs.state import make_key

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
GFS_PROGRAM = Path(sys.executable).with_name("gfs")
#: Of ten; what systemd-analyze calls "OK" ends at 5.
EXPOSURE_MAX = 1.5

#: Takes on what a unit says, as far as a process can by itself, and becomes the server.
BOUNDED = """
import ctypes, os, resource, sys
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
prctl = ctypes.CDLL(None).prctl
assert prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # Linux 6.3 has it
files = min(int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
os.umask(0o077)
os.execv(sys.argv[2], sys.argv[2:])
"""


def settings(unit: Path) -> dict[str, list[str]]:
    """All lines of a unit by their names; an empty one takes back what was said before."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "[#":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_them_as_they_are(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/gfs/bin/gfs", str(GFS_PROGRAM)))
    reported = run("systemd-analyze", "verify", "--man=no", copy)
    # Other units of this machine are none of ours.
    assert "gfs" not in reported
    limit = f"--threshold={EXPOSURE_MAX * 10:.0f}"
    run("systemd-analyze", "security", "--offline=true", "--no-pager", limit, copy)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_they_come_back_and_never_give_up(unit: Path) -> None:
    said = settings(unit)
    assert said["Restart"] == ["always"]
    assert said["StartLimitIntervalSec"] == ["0"]
    assert said["User"] == ["gfs"]


def test_a_disk_that_is_not_mounted_keeps_no_chunkserver_from_starting() -> None:
    said = settings(DEPLOY / "systemd" / "gfs-chunkserver@.service")
    assert said["WantsMountsFor"] == ["/srv/gfs/%i"]
    assert "RequiresMountsFor" not in said


# --- what they start ----------------------------------------------------------------------


def allowed_calls(filters: list[str]) -> set[str]:
    """Of a unit's ``SystemCallFilter`` lines."""
    sets: dict[str, set[str]] = {}
    for line in run("systemd-analyze", "syscall-filter", "--no-pager").splitlines():
        if line.startswith("@"):
            name = line
            sets[name] = set()
        elif line.strip() and not line.strip().startswith("#") and line.startswith(" "):
            sets[name].add(line.strip())

    def calls(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return {call for inner in sets[name] for call in calls(inner)}

    allowed: set[str] = set()
    for line in filters:
        named = {call for name in line.lstrip("~").split() for call in calls(name)}
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


class Machine:
    """Starts what units start, on paths below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self.traces: dict[Path, list[str]] = {}
        make_key(self.path("/etc/gfs/cluster.key"))

    def path(self, path: str) -> Path:
        """Where a path of a unit is."""
        found = self.directory / path.lstrip("/")
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def start(self, unit: str, instance: str = "", **variables: str) -> None:
        file = DEPLOY / "systemd" / unit
        said = {
            name: [value.replace("%i", instance) for value in values]
            for name, values in settings(file).items()
        }
        given = {k: v for line in said.get("Environment", []) for k, _, v in [line.partition("=")]}
        given |= variables
        for name in ("StateDirectory",):
            for directory in said.get(name, []):
                self.path(f"/var/lib/{directory}/x")
        for directory in said.get("ReadWritePaths", []):
            self.path(f"{directory.lstrip('-')}/x")
        given = {name: self._moved(value) for name, value in given.items()}
        words = self._expand(self._moved(said["ExecStart"][0]), given)
        words[0] = words[0].replace(str(self.path("/opt/gfs/bin/gfs")), str(GFS_PROGRAM))
        trace = self.directory / f"{unit}{instance}.trace"
        self.traces[trace] = said["SystemCallFilter"]
        with open(self.directory / f"{unit}{instance}.log", "ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [
                        *("strace", "-f", "-qq", "-c", "-o", trace),
                        *(sys.executable, "-c", BOUNDED, said["LimitNOFILE"][0], *words),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment(**given),
                    start_new_session=True,
                )
            )

    def _moved(self, text: str) -> str:
        return re.sub(r"/(?:opt|etc|var/lib|srv)/[\w/.-]+", lambda m: str(self.path(m[0])), text)

    def _expand(self, line: str, given: dict[str, str]) -> list[str]:
        """``${NAME}`` is one word, ``$NAME`` as many as it has: systemd.service(5)."""
        words: list[str] = []
        for word in shlex.split(line):
            if name := re.fullmatch(r"\$(\w+)", word):
                words += given[name[1]].split()
            else:
                words.append(re.sub(r"\$\{(\w+)\}", lambda m: given[m[1]], word))
        return words

    def stop(self) -> None:
        for process in self.processes:
            # strace passes no signal on: the server gets it, as from systemd.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                send(int(child), signal.SIGTERM)
        for process in self.processes:
            assert process.wait(HANG_SECONDS) == 0, self.logs()

    def kill(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def logs(self) -> str:
        """The last lines of all."""
        return "\n".join(
            f"{log.name}: {line}"
            for log in sorted(self.directory.glob("*.log"))
            for line in log.read_text().splitlines()[-5:]
        )


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    made = Machine(directory)
    try:
        yield made
        made.stop()
    finally:
        made.kill()


def test_what_they_start_serves_a_cluster_within_its_bounds(tmp_path: Path) -> None:
    master, shadow = (f"127.0.0.1:{free_port()}" for _ in range(2))
    control = f"127.0.0.1:{free_port()}"
    elsewhere = tmp_path / "b"
    with machine(tmp_path / "a") as here, machine(elsewhere) as there:
        key = here.path("/etc/gfs/cluster.key").read_bytes()
        for copy in (
            here.path("/var/lib/gfs/cluster.key"),
            there.path("/var/lib/gfs/cluster.key"),
        ):
            copy.touch(mode=0o600)
            copy.write_bytes(key)
        here.start("gfs-master.service", GFS_MASTER_ADDRESS=master)
        there.start("gfs-shadow.service", GFS_MASTER_ADDRESS=shadow, GFS_MASTER_SHADOW_OF=master)
        for name in ("one", "two"):
            disks = f"--dir=/srv/gfs/{name}/a --dir=/srv/gfs/{name}/b"
            here.start("gfs-chunkserver@.service", name, DISKS=disks, GFS_MASTER=master)
        here.start(
            "gfs-control.service",
            GFS_MASTER=master,
            GFS_CONTROL_BIND=control,
            GFS_COMPUTE_BACKEND="none",
            GFS_ADMIN_PASSWORD="open sesame",
        )
        cluster = environment(
            GFS_MASTER=f"{master},{shadow}", GFS_KEY_FILE=str(here.path("/etc/gfs/cluster.key"))
        )

        def gfs(*arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                [*GFS, *arguments], input=input, capture_output=True, env=cluster, check=False
            )

        def serves() -> bool:
            for made in (here, there):
                assert all(one.poll() is None for one in made.processes), made.logs()
            reported = gfs("status").stdout.decode()
            return reported.count(" live ") == 2 and f"shadow {shadow}: following" in reported

        wait_for(serves, "cluster with a shadow master")
        data = os.urandom(3_000_000)
        assert gfs("put", "-", "/file", input=data).returncode == 0
        assert gfs("get", "/file", "-").stdout == data
        assert gfs("append", "/log", input=b"a record\n").returncode == 0

        def answers() -> bool:
            with suppress(OSError):
                url = f"http://{control}/readyz"
                return bool(urllib.request.urlopen(url, timeout=HANG_SECONDS).status == 200)
            return False

        wait_for(answers, "REST API")
        assert len(list(here.directory.glob("srv/gfs/*/*/chunks"))) == 4
    for made in (here, there):
        for trace, filters in made.traces.items():
            rows = [line.split() for line in trace.read_text().splitlines()[2:-2]]
            called = {row[-1] for row in rows}
            assert len(called) > 20
            assert called - allowed_calls(filters) == set(), trace

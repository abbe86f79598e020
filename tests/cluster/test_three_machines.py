"""The day with three machines on docs/operations.md, line by line.

A machine is a directory and an address of 127.0.0.0/8; ``systemctl`` runs what the units of
deploy/systemd say, without what only systemd can do. Nor does it change the user; but, if this is
root, everything that a unit's own user reads or writes must be that user's when the unit starts.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest
from elected import EtcdServer
from forks import Command
from harness import PATIENT, environment
from limits import HANG_SECONDS, wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
UNITS = ROOT / "deploy" / "systemd"
LOAD = Path(__file__).with_name("mixed_load.py")
#: The number of the user gfs here.
UNITS_USER = 10001
#: Directories of a machine.
OWN = re.compile(r"(?<![\w.])/(?=(?:etc/gfs|var/lib/gfs|srv/gfs|backup)\b)")
EACH = ("a", "b", "c")

pytestmark = pytest.mark.extra("etcd", "openssl")


def sections() -> dict[str, list[str]]:
    """Heading → the lines that are typed below it."""
    text = PAGE.read_text()
    day = text[text.index("## Three machines, step by step") :]
    found: dict[str, list[str]] = {}
    for part in day.split("\n### ")[1:]:
        heading, _, body = part.partition("\n")
        found[heading] = re.findall(r"^    (\w+\$ .+)$", body, re.M)
    return found


def give(path: Path, recursively: bool) -> None:
    if os.geteuid() == 0:
        for each in (path, *(path.rglob("*") if recursively else ())):
            os.chown(each, UNITS_USER, UNITS_USER, follow_symlinks=False)


def check_owner(path: Path) -> None:
    if os.geteuid() == 0:
        assert path.stat().st_uid == UNITS_USER, f"the user gfs may not write {path}"


class Machines:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        chance = random.SystemRandom()
        self._network = f"127.{chance.randrange(100, 250)}.{chance.randrange(1, 250)}"
        self._units: dict[tuple[str, str], Command] = {}
        self._exports: dict[str, str] = {}
        self.log = open(directory / "log", "ab")  # noqa: SIM115 - closed in stop
        for name in "abcd":
            self.make(name)
        self._peers = {n: f"http://{self._network}.{'abc'.index(n) + 1}:2380" for n in EACH}
        self._etcds = {name: self.etcd(name, "new") for name in EACH}
        for member in self._etcds.values():
            member.wait()

    def etcd(self, name: str, state: str) -> EtcdServer:
        """This machine's member."""
        url = self._peers[name].replace(":2380", ":2379")
        options = ("--initial-cluster-state", state)
        at = self.directory / name / "etcd"
        return EtcdServer(at, *options, name=name, peers=self._peers, url=url)

    def replace_etcd(self, name: str) -> None:
        """As etcd's documentation says of a member that is lost for good."""
        other = next(member for at, member in self._etcds.items() if at != name)
        other.wait()  # the lost one may have led the others
        (lost,) = (m for m in other.ask("cluster/member/list")["members"] if m["name"] == name)
        other.ask("cluster/member/remove", ID=lost["ID"])

        def is_added() -> bool:
            # Refused with 503 until all that are left have been connected for some seconds.
            with suppress(HTTPError):
                other.ask("cluster/member/add", peerURLs=[self._peers[name]])
                return True
            return False

        wait_for(is_added, "etcd's new member")
        self._etcds[name] = self.etcd(name, "existing")
        self._etcds[name].wait()

    def make(self, name: str) -> None:
        for path in ("srv/gfs/1/a", "srv/gfs/1/b", "backup"):
            (self.directory / name / path).mkdir(parents=True)

    def burn(self, name: str) -> None:
        for key in [each for each in self._units if each[0] == name]:
            process = self._units.pop(key)
            process.kill()
            process.wait()
        self._etcds[name].stop()
        shutil.rmtree(self.directory / name)
        self.make(name)

    def type(self, line: str) -> None:
        """A line of the page."""
        where, _, command = line.partition("$ ")
        for machine in EACH if where == "each" else where:
            for part in command.split(" && ") if "systemctl" in command else [command]:
                self._run(machine, part)

    def _run(self, machine: str, command: str) -> None:
        words = command.split()
        if words[0] == "systemctl":
            verb = {"enable": "start", "disable": "stop"}.get(words[1], words[1])
            for unit in [word for word in words[2:] if word != "--now"]:
                self._systemctl(machine, verb, unit)
            return
        if words[0] == "scp":
            to, _, path = words[2].partition(":")
            shutil.copy(self.at(machine, words[1]), self.at(to, path))
            return
        if words[0] == "export":
            self._exports[machine] = self.at(machine, command)
            return
        if words[0] == "chown":
            assert "gfs:gfs" in words
            for path in words[words.index("gfs:gfs") + 1 :]:
                give(Path(self.at(machine, path)), "-R" in words)
            return
        if command.startswith("gfs disk add"):
            self._check_disk(Path(self.at(machine, words[-1])))
            command += " --force"  # all machines of this test have one file system
        self.shell(machine, command)

    def shell(self, machine: str, command: str) -> str:
        address = f"{self._network}.{'abcd'.index(machine) + 1}"
        script = f"{self._exports.get(machine, ':')}\nME={address}\n{self.at(machine, command)}\n"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG_SECONDS,
            env={**environment(**PATIENT), "PATH": path},
            cwd=self.directory / machine,
        )
        assert done.returncode == 0, (machine, command, done.stdout, done.stderr)
        return done.stdout

    def at(self, machine: str, text: str) -> str:
        """What the page says, as it is in this test."""
        text = re.sub(r"\b10\.0\.0(?=\.\d)", self._network, text)
        return OWN.sub(f"{self.directory / machine}/", text)

    def _systemctl(self, machine: str, verb: str, unit: str) -> None:
        key = machine, unit
        if verb in ("stop", "restart"):
            process = self._units.pop(key)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_SECONDS) == 0
            # It would have written as its user.
            own = "srv/gfs" if "chunkserver" in unit else "var/lib/gfs"
            give(self.directory / machine / own, recursively=True)
        if verb in ("start", "restart"):
            arguments, variables = self._unit(machine, unit)
            check_owner(self.directory / machine / "etc/gfs/cluster.key")
            for word in arguments:
                if word.startswith("--dir="):
                    self._check_disk(Path(word.removeprefix("--dir=")))
            if "--state" in arguments:
                state = Path(arguments[arguments.index("--state") + 1])
                for path in (state, *state.rglob("*")):
                    check_owner(path)
            self._units[key] = Command(
                arguments,
                stdout=self.log.fileno(),
                stderr=self.log.fileno(),
                env=environment(**(PATIENT | variables)),
            )

    def _check_disk(self, path: Path) -> None:
        check_owner(path if path.exists() else path.parent)

    def _unit(self, machine: str, unit: str) -> tuple[list[str], dict[str, str]]:
        """The arguments of ``gfs``, and its variables, as the unit's file has them."""
        name, at, instance = unit.partition("@")
        text = (UNITS / f"{name}{at}.service").read_text().replace("%i", instance)
        variables: dict[str, str] = {}
        command: list[str] = []
        for line in self.at(machine, text).splitlines():
            kind, _, value = line.partition("=")
            if kind == "Environment":
                name, _, content = value.partition("=")
                variables.setdefault(name, content)  # those of files take precedence
            elif kind == "EnvironmentFile":
                path = Path(value.removeprefix("-"))
                if path.exists():
                    pairs = (line.partition("=") for line in path.read_text().splitlines())
                    variables |= {name: content for name, _, content in pairs}
            elif kind == "ExecStart":
                command = shlex.split(value)[1:]
        words = [
            word
            for each in command
            for word in (variables.pop(each[1:]).split() if each.startswith("$") else [each])
        ]
        return words, variables

    def stop(self) -> None:
        for process in self._units.values():
            process.terminate()
        for process in self._units.values():
            try:
                process.wait(HANG_SECONDS)
            finally:
                process.kill()
                process.wait()
        for member in self._etcds.values():
            member.stop()
        self.log.close()


class DayLoad:
    """Clients that write and read, as a program of their own."""

    def __init__(self, machines: Machines) -> None:
        self._output = machines.directory / "load"
        masters = machines.at("a", "10.0.0.1:9400,10.0.0.2:9400,10.0.0.3:9400")
        key = machines.at("a", "/etc/gfs/cluster.key")
        with open(self._output, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, LOAD, masters, key, "day"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(**PATIENT),
            )

    def check(self) -> None:
        assert self._process.poll() is None, self._output.read_text()[-3000:]

    def end(self) -> None:
        """All that was acknowledged is read again."""
        self.check()
        self._process.terminate()
        assert self._process.wait(HANG_SECONDS) == 0, self._output.read_text()[-3000:]
        assert "done" in self._output.read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    made.stop()


def test_the_day_is_as_the_page_has_it(machines: Machines) -> None:
    days = sections()
    load: DayLoad | None = None

    def run(heading: str) -> None:
        for line in days.pop(heading):
            machines.type(line)
            if load is not None:
                load.check()

    def at_work(count: int) -> bool:
        return machines.shell("a", "gfs status").count(" live ") == count

    def is_collected() -> bool:
        totals = json.loads(machines.shell("a", "gfs status --json"))["totals"]
        return bool(totals["orphaned"] == 0)

    for heading in ("Install", "Keys", "Start"):
        run(heading)
    load = DayLoad(machines)
    try:
        for heading in ("Add a disk", "Add a machine"):
            run(heading)
        wait_for(lambda: at_work(4), "fourth chunkserver")
        machines.burn("c")
        machines.replace_etcd("c")
        run("Lose a machine")
        wait_for(lambda: at_work(4), "fourth chunkserver")
        run("Drain")
        for heading in ("Upgrade", "Move the masters"):
            run(heading)
        load.end()
    finally:
        load.kill()
    load = None
    # The backup is of the very master that goes back to it: the others counted for that one.
    machines.shell("a", "gfs status | grep '10.0.0.1:9400 has the' || gfs failover 10.0.0.1:9400")
    # What the backup has, and what is done after it.
    machines.shell("a", "echo kept > file && gfs put file /kept && gfs put file /gone")
    before, after = (lines for lines in split(days.pop("Restore")))
    for line in before:
        machines.type(line)
    machines.shell("a", "gfs mv /kept /moved && echo later > file && gfs put file /later")
    machines.shell("a", "gfs rm --now /gone")
    wait_for(is_collected, "deletion of the replicas of /gone")
    for line in after:
        if line == "a$ gfs fsck /":
            line = "a$ ! gfs fsck / > report && grep -q /gone report"
        machines.type(line)
    assert machines.shell("a", "gfs cat /kept") == "kept\n"
    assert "later" not in machines.shell("a", "gfs ls /")
    assert not days, "sections that no test runs"


def split(lines: list[str]) -> tuple[list[str], list[str]]:
    """The backup, and what comes when it is needed."""
    return lines[:1], lines[1:]

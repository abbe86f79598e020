"""The containers of the manifests as processes of this machine, with what Kubernetes gives them.

Each has a root file system of its own, which it cannot write: the programs of this machine, the
Python of the tests with the project in it, and the volumes of its pod where the manifest mounts
them. It runs as the user of the manifest, without capabilities, with the variables of the
manifest and no others. The network is that of the machine: each pod has an address of its own
in 127.0.0.0/8, and the names of pods are in a file of hosts that all share.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from kube_api import Object
from lifeline import Lifeline
from limits import HANG_SECONDS
from signals import send

REPOSITORY = Path(__file__).parents[2]
#: What a container of the image has, and more: programs and Python.
PROGRAMS = ("/usr", sys.base_prefix, sys.prefix, str(REPOSITORY))

#: ``ROOT HOSTS USER`` and then pairs of a directory and where it is mounted.
ENTER = """
set -e
root=$1 hosts=$2 user=$3
shift 3
mount -t tmpfs -o mode=755 none $root
mkdir -p $root/dev $root/proc $root/etc $root/run $root/var
cp -d /bin /sbin /lib /lib64 $root/
cp -r /etc/passwd /etc/group /etc/ssl /etc/ld.so.cache $root/etc/
echo 'hosts: files' > $root/etc/nsswitch.conf
touch $root/etc/hosts
ln -s ../run $root/var/run
mount --bind $hosts $root/etc/hosts
mount --rbind /dev $root/dev
mount --bind /proc $root/proc
while [ "$1" != -- ]; do
    mkdir -p $root$2
    mount --bind $1 $root$2
    shift 2
done
shift
mount -o remount,ro,bind $root
exec chroot $root setpriv --reuid $user --regid $user --clear-groups --no-new-privs \\
    --inh-caps=-all --bounding-set=-all "$@"
"""


@dataclass
class Volume:
    source: Path
    path: str


@dataclass
class Image:
    """What every container has in common."""

    hosts: Path
    variables: dict[str, str] = field(default_factory=dict)


class Container:
    """One run of a container."""

    def __init__(
        self,
        image: Image,
        directory: Path,
        command: Sequence[str],
        variables: Mapping[str, str],
        volumes: Sequence[Volume],
        user: int,
    ) -> None:
        root = directory / "root"
        root.mkdir(parents=True, exist_ok=True)
        path = f"{sys.prefix}/bin:/usr/bin:/bin"
        self._variables = {"PATH": path, "HOME": "/tmp", **image.variables, **variables}
        self._user = user
        # The volumes first: the project may be below a place that one of them takes, as /tmp is.
        mounted = [word for each in volumes for word in (str(each.source), each.path)]
        mounted += [word for each in PROGRAMS for word in (each, each)]
        self.log = directory / "log"
        self._process = Lifeline(
            [
                *("unshare", "--mount", "--propagation", "slave", "sh", "-c", ENTER, "enter"),
                *(str(root), str(image.hosts), str(user), *mounted, "--"),
                *(*self._environment(), *command),
            ],
            log=self.log,
            directory=directory,
        )

    @property
    def ended(self) -> bool:
        return self._process.ended

    async def wait(self) -> None:
        """Until it has ended."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Run another command in it, as probes do: its exit code, and what it printed."""
        try:
            done = subprocess.run(
                [
                    *("nsenter", "--target", str(self._process.pid), "--mount", "--root"),
                    *("--wdns=/", "setpriv", "--reuid", str(self._user)),
                    *("--regid", str(self._user), "--clear-groups", "--no-new-privs"),
                    *("--inh-caps=-all", "--bounding-set=-all"),
                    *(*self._environment(), *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=HANG_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return -1, f"{shlex.join(command)}: no end"
        return done.returncode, done.stdout.decode()

    def stop(self) -> bool:
        """SIGTERM, and SIGKILL if it does not end; whether the first was enough."""
        self.terminate()
        until = time.monotonic() + HANG_SECONDS
        while not self.ended and time.monotonic() < until:
            time.sleep(0.02)
        in_time = self.ended
        self._process.kill()
        return in_time

    def terminate(self) -> None:
        if not self.ended:
            send(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def _environment(self) -> list[str]:
        return ["env", "-i", *(f"{name}={value}" for name, value in self._variables.items())]


def variables_of(
    container: Object,
    pod: Object,
    address: str,
    configs: Mapping[str, Object],
    secrets: Mapping[str, Object],
) -> dict[str, str]:
    """As a kubelet makes them of a manifest."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= configs[source["configMapRef"]["name"]]["data"]
    for each in container.get("env", ()):
        found[each["name"]] = _value(each, found, pod, address, secrets)
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda name: variables.get(name[1], name[0]), text)


def _value(
    each: Object,
    known: Mapping[str, str],
    pod: Object,
    address: str,
    secrets: Mapping[str, Object],
) -> str:
    source = each.get("valueFrom", {})
    if reference := source.get("secretKeyRef"):
        return base64.b64decode(secrets[reference["name"]]["data"][reference["key"]]).decode()
    if reference := source.get("fieldRef"):
        path, about = reference["fieldPath"], pod["metadata"]
        if label := re.fullmatch(r"metadata\.labels\['(.+)'\]", path):
            return str(about["labels"].get(label[1], ""))
        return {
            "metadata.name": about["name"],
            "metadata.namespace": about["namespace"],
            "status.podIP": address,
        }[path]
    return expanded(each.get("value", ""), known)


def write_secret(directory: Path, secret: Object, group: int, mode: int) -> None:
    """As a kubelet mounts it where the pod has an fsGroup: root's, readable by that group."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in secret["data"].items():
        path = directory / name
        path.write_bytes(base64.b64decode(value))
        os.chown(path, 0, group)
        path.chmod(mode)
    directory.chmod(0o755)


def give_to_group(directory: Path, group: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    os.chown(directory, 0, group)
    directory.chmod(0o2775)

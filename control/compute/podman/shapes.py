"""What Podman is asked to make of a container, and what it reports. Plain code: nothing
waits.

Of a container ``1f2e3d4c`` of the installation ``abcd…`` there are, all with the labels of
:mod:`control.compute.backend`::

    gfs-abcd…-1f2e3d4c             the container: one run, removed when it is stopped
    gfs-abcd…-1f2e3d4c             its network, where nobody else is

All that it writes is on its own disk (:mod:`control.compute.podman.store.disks`). An older version
of ours had volumes of Podman's, which are found and copied there.

A user's text (name, mount path, key) is never part of a name or of a command line.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from control.compute.backend import (
    LABEL_CLUSTER,
    LABEL_CONTAINER,
    LABEL_MANAGED,
    LABEL_USER,
    Sighting,
    Spec,
)
from control.compute.podman.store.disks import ETC, USERS, Disk

__all__ = [
    "Inspected",
    "Labelled",
    "Volume",
    "container_body",
    "interface_prefix",
    "labels",
    "network_body",
    "resource_name",
    "sighting",
    "volumes",
]

LABEL_GENERATION = "gfs.control/generation"

#: What the image promises; see image/Containerfile.
KEYS_PATH = "/etc/gfs/keys"
HOST_KEYS_PATH = "/etc/gfs/host_keys"

CPU_PERIOD_US = 100_000
#: A run that dies is started again so often, then it has failed.
RESTARTS = 5
#: Podman may need as long to start a run again that died.
RESTART_GRACE_SECONDS = 10.0
STOP_SECONDS = 10
#: sshd needs SETUID, SETGID and SYS_CHROOT for the process that speaks with strangers,
#: CHOWN for terminals, NET_BIND_SERVICE for port 22; dpkg and tar the rest. All of them are
#: rights over what is the container's own: its users, files and network.
CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]
#: Processes and threads of one container: what a fork bomb can take.
PIDS = 1024
#: What each of them can have open. All of a container's count as its memory, too.
DESCRIPTORS = 4096
#: Of what a run has written to its output, what is kept.
LOG_BYTES = 10 * 1024 * 1024


class Labelled(msgspec.Struct, rename="pascal"):
    """A container, volume or network in a list."""

    labels: dict[str, str] | None = None


class State(msgspec.Struct, rename="pascal"):
    status: str
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = msgspec.field(name="OOMKilled", default=False)
    error: str = ""
    stopped_by_user: bool = False
    finished_at: str = ""


class Attachment(msgspec.Struct):
    ip: str = msgspec.field(name="IPAddress", default="")


class NetworkSettings(msgspec.Struct, rename="pascal"):
    networks: dict[str, Attachment] | None = None


class Config(msgspec.Struct, rename="pascal"):
    labels: dict[str, str] | None = None


class GraphDriver(msgspec.Struct, rename="pascal"):
    data: dict[str, str] | None = None


class IdMappings(msgspec.Struct):
    users: list[str] | None = msgspec.field(name="UidMap", default=None)


class HostConfig(msgspec.Struct):
    mappings: IdMappings | None = msgspec.field(name="IDMappings", default=None)


class Volume(msgspec.Struct, rename="pascal"):
    mountpoint: str


class Inspected(msgspec.Struct, rename="pascal"):
    """A container, looked at closely."""

    id: str
    state: State
    config: Config
    network_settings: NetworkSettings
    restart_count: int = 0
    graph_driver: GraphDriver | None = None
    host_config: HostConfig | None = None

    @property
    def runs(self) -> bool:
        return self.state.status in ("running", "paused")

    @property
    def has_own_users(self) -> bool:
        """None of them is this machine's root: an older version did not see to that."""
        mappings = self.host_config and self.host_config.mappings
        return bool(mappings and mappings.users)

    @property
    def address(self) -> str:
        """Where its ports are, while it runs; "" when it is nowhere."""
        networks = self.network_settings.networks or {}
        return next((network.ip for network in networks.values() if network.ip), "")

    @property
    def written(self) -> Path | None:
        """Of this machine: the directory of what it writes, as Podman made it."""
        upper = ((self.graph_driver and self.graph_driver.data) or {}).get("UpperDir")
        return Path(upper) if upper else None

    @property
    def generation(self) -> int:
        text = (self.config.labels or {}).get(LABEL_GENERATION, "")
        return int(text) if text.isdecimal() and len(text) < 18 else 0


def resource_name(cluster: str, container_id: str) -> str:
    return f"gfs-{cluster[:12]}-{container_id}"


def interface_prefix(cluster: str) -> str:
    """Of this machine's end of each container's network. Linux takes 15 characters in all."""
    return f"gfs{cluster[:4]}"


def labels(cluster: str, container_id: str, user_id: str) -> dict[str, str]:
    return {
        LABEL_MANAGED: "true",
        LABEL_CLUSTER: cluster,
        LABEL_CONTAINER: container_id,
        LABEL_USER: user_id,
    }


def volumes(spec: Spec) -> dict[str, str]:
    """Name of a directory on its disk -> where it is mounted. The same path has the same."""
    mounted = {"host-keys": HOST_KEYS_PATH}
    for path in spec.mount_paths:
        mounted[hashlib.sha256(path.encode()).hexdigest()[:16]] = path
    return mounted


def network_body(cluster: str, spec: Spec, isolate: str = "strict") -> dict[str, Any]:
    return {
        "name": resource_name(cluster, spec.id),
        "driver": "bridge",
        "network_interface": f"{interface_prefix(cluster)}{spec.id}",
        # It asks the machine's own resolvers; there is nobody else to be named here.
        "dns_enabled": False,
        # From every other network of Podman's; "true" would be from those like it.
        "options": {"isolate": isolate},
        "labels": labels(cluster, spec.id, spec.user_id),
    }


def container_body(cluster: str, spec: Spec, disk: Disk, seccomp: Path) -> dict[str, Any]:
    """
    Args:
        seccomp: A file that says which calls of the kernel it may make.
    """
    name = resource_name(cluster, spec.id)
    memory = spec.memory_mb * 1024 * 1024
    users = [{"container_id": 0, "host_id": disk.uid, "size": USERS}]
    return {
        "name": name,
        "image": spec.image,
        "hostname": spec.id,
        "labels": {
            **labels(cluster, spec.id, spec.user_id),
            LABEL_GENERATION: str(spec.generation),
        },
        "netns": {"nsmode": "bridge"},
        "networks": {name: {}},
        # Its root is nobody outside of it.
        "userns": {"nsmode": "private"},
        "idmappings": {"UIDMap": users, "GIDMap": users},
        "mounts": [
            _bind(disk.keys, KEYS_PATH, "ro", "noexec"),
            # Podman's own are files of this machine that the container can write to.
            *(_bind(disk.etc(name), path, "rw", "noexec") for name, path in ETC.items()),
            *(_bind(disk.volume(name), path, "rw") for name, path in volumes(spec).items()),
        ],
        # A volume that the image asks for and nobody named is a part of the run.
        "image_volume_mode": "ignore",
        "resource_limits": {
            "cpu": {"period": CPU_PERIOD_US, "quota": round(spec.cpus * CPU_PERIOD_US)},
            # No swap on top.
            "memory": {"limit": memory, "swap": memory},
            "pids": {"limit": PIDS},
        },
        "r_limits": [
            {"type": "nofile", "hard": DESCRIPTORS, "soft": DESCRIPTORS},
            # A program of this machine may take them, and put them on its disk.
            {"type": "core", "hard": 0, "soft": 0},
        ],
        "restart_policy": "on-failure",
        "restart_tries": RESTARTS,
        "stop_timeout": STOP_SECONDS,
        "log_configuration": {"driver": "k8s-file", "size": LOG_BYTES},
        # Our own environment's proxies are no concern of a user's.
        "httpproxy": False,
        "systemd": "false",
        "cap_drop": ["ALL"],
        "cap_add": CAPABILITIES,
        "no_new_privileges": True,
        "seccomp_profile_path": str(seccomp),
    }


def _bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {
        "type": "bind",
        "source": str(source),
        "destination": destination,
        "options": ["bind", "rprivate", "nosuid", "nodev", *options],
    }


def sighting(
    container_id: str,
    user_id: str,
    seen: Inspected | None,
    *,
    answering: bool,
    unnoticed: bool,
    seconds_since_end: float,
    external_ip: str = "",
) -> Sighting:
    """What to say of a container.

    Args:
        seen: Its run; None when there is none: then only its volumes are left, and it is
            stopped.
        answering: Its SSH server was seen to answer, or is not waited for any longer.
        unnoticed: Its first process has ended, and Podman does not come to know.
        seconds_since_end: How long ago a run that ended did so.
    """

    def say(phase: Any, reason: str = "") -> Sighting:
        return Sighting(
            id=container_id,
            user_id=user_id,
            phase=phase,
            generation=seen.generation if seen else 0,
            reason=reason,
            external_ip=external_ip if phase == "running" else "",
        )

    if seen is None:
        return say("stopped")
    if unnoticed:
        return say("failed", "It ended, and what looked after it had ended before.")
    state = seen.state
    match state.status:
        case "running" | "paused":
            return say("running") if answering else say("initializing")
        case "created" | "configured" | "initialized":
            return say("initializing")
        case "stopping" | "removing":
            return say("stopped")
    if state.stopped_by_user:
        return say("stopped", "It was stopped outside of this API.")
    if state.exit_code == 0:
        return say("stopped", "It ended by itself.")
    if seen.restart_count < RESTARTS and seconds_since_end < RESTART_GRACE_SECONDS:
        return say("initializing", f"{_end(state)} It is started again.")
    return say("failed", _end(state))


def _end(state: State) -> str:
    if state.oom_killed:
        return "It ran out of memory."
    if state.error:
        return " ".join(state.error.split())[:300]
    return f"Its first process ended with code {state.exit_code}."

"""The objects of a container in Podman, and the meaning of its answers. Plain code that never
waits.

A container ``1f2e3d4c`` of the installation ``abcd…`` has these objects, all with the labels
of :mod:`control.compute.backend`::

    gfs-abcd…-1f2e3d4c             the container: one run, and its output until the next one
    gfs-abcd…-1f2e3d4c             its network, in which it is alone

All files that it writes are on its own disk (:mod:`control.compute.podman.store.disks`). An
older version used volumes of Podman, which are found and copied there.

A user's text (name, mount path, key) is never part of a name or of a command line.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from control.compute.backend import (
    LABEL_CLUSTER,
    LABEL_CONTAINER,
    LABEL_MANAGED,
    LABEL_USER,
    Sighting,
    Spec,
)
from control.compute.podman.engine import LABEL_GENERATION, Inspected, State
from control.compute.podman.store import ETC, USERS, Disk

#: The image reads the keys here; see image/Containerfile.
KEYS_PATH = "/etc/gfs/keys"
HOST_KEYS_PATH = "/etc/gfs/host_keys"

CPU_PERIOD_US = 100_000
#: How often a run that dies is started again before it has failed.
RESTARTS = 5
#: How long Podman may need to start a run again that died.
RESTART_GRACE_SECONDS = 10.0
STOP_SECONDS = 10
#: sshd needs SETUID, SETGID and SYS_CHROOT for its unprivileged process,
#: CHOWN for terminals, NET_BIND_SERVICE for port 22; dpkg and tar need the rest. All of them
#: apply only to the container's own users, files and network.
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
#: How many processes and threads one container has, which bounds a fork bomb.
PIDS = 1024
#: How much it reads from its disk, and how much it writes, in a second. With cgroups v1 the kernel
#: does not count what it writes by way of the page cache.
DISK_BYTES_PER_SECOND = 200 * 1024 * 1024
#: How many reads, and how many writes, that may be.
DISK_CALLS_PER_SECOND = 5000
#: How many PTYs it has: a terminal, a login or a window of tmux takes one.
PTYS = 128
DEVPTS = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
#: How many descriptors each of them has; they also count towards the container's memory.
DESCRIPTORS = 4096
#: How much of a run's output is kept.
LOG_BYTES = 10 * 1024 * 1024


def resource_name(cluster: str, container_id: str) -> str:
    return f"gfs-{cluster[:12]}-{container_id}"


def interface_prefix(cluster: str) -> str:
    """The prefix of the interfaces of containers' networks. Linux allows 15 characters in all."""
    return f"gfs{cluster[:4]}"


def labels(cluster: str, container_id: str, user_id: str) -> dict[str, str]:
    return {
        LABEL_MANAGED: "true",
        LABEL_CLUSTER: cluster,
        LABEL_CONTAINER: container_id,
        LABEL_USER: user_id,
    }


def volumes(spec: Spec) -> dict[str, str]:
    """Name of a directory on its disk -> mount path. The same path always has the same name."""
    mounted = {"host-keys": HOST_KEYS_PATH}
    for path in spec.mount_paths:
        mounted[hashlib.sha256(path.encode()).hexdigest()[:16]] = path
    return mounted


def network_body(cluster: str, spec: Spec, isolate: str = "strict") -> dict[str, Any]:
    return {
        "name": resource_name(cluster, spec.id),
        "driver": "bridge",
        "network_interface": f"{interface_prefix(cluster)}{spec.id}",
        # It uses the machine's own resolvers; the network has no other hosts to name.
        "dns_enabled": False,
        # From every other network of Podman; "true" is only from networks like it.
        "options": {"isolate": isolate},
        "labels": labels(cluster, spec.id, spec.user_id),
    }


def container_body(
    cluster: str, spec: Spec, disk: Disk, device: tuple[int, int], seccomp: Path
) -> dict[str, Any]:
    """The request that creates the run.

    Args:
        device: The numbers of the disk's device.
        seccomp: A file with the system calls that it may make.
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
        # Its root has no rights outside of it.
        "userns": {"nsmode": "private"},
        "idmappings": {"UIDMap": users, "GIDMap": users},
        "mounts": [
            _bind(disk.keys, KEYS_PATH, "ro", "noexec"),
            # Podman's own ones are files of this machine, and the container can write to them.
            *(_bind(disk.etc(name), path, "rw", "noexec") for name, path in ETC.items()),
            *(_bind(disk.volume(name), path, "rw") for name, path in volumes(spec).items()),
            # As Podman's own, whose number of PTYs is bounded by this machine's alone.
            {
                "type": "devpts",
                "source": "devpts",
                "destination": "/dev/pts",
                "options": [*DEVPTS, f"max={PTYS}"],
            },
        ],
        # A volume of the image that is not a mount path is a part of the run.
        "image_volume_mode": "ignore",
        "resource_limits": {
            "cpu": {"period": CPU_PERIOD_US, "quota": round(spec.cpus * CPU_PERIOD_US)},
            # No swap in addition.
            "memory": {"limit": memory, "swap": memory},
            "pids": {"limit": PIDS},
            "blockIO": _throttled(device),
        },
        "r_limits": [
            {"type": "nofile", "hard": DESCRIPTORS, "soft": DESCRIPTORS},
            # A program of this machine may collect core dumps on its own disk.
            {"type": "core", "hard": 0, "soft": 0},
        ],
        "restart_policy": "on-failure",
        "restart_tries": RESTARTS,
        "stop_timeout": STOP_SECONDS,
        "log_configuration": {"driver": "k8s-file", "size": LOG_BYTES},
        # The proxies of our own environment are not for users.
        "httpproxy": False,
        "systemd": "false",
        "cap_drop": ["ALL"],
        "cap_add": CAPABILITIES,
        "no_new_privileges": True,
        "seccomp_profile_path": str(seccomp),
    }


def _throttled(device: tuple[int, int]) -> dict[str, Any]:
    major, minor = device
    rates = {"Bps": DISK_BYTES_PER_SECOND, "IOPS": DISK_CALLS_PER_SECOND}
    return {
        f"throttle{way}{unit}Device": [{"major": major, "minor": minor, "rate": rate}]
        for unit, rate in rates.items()
        for way in ("Read", "Write")
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
    """The state of a container.

    Args:
        seen: Its run; None if there is none: then only its disk is left, and it is
            stopped.
        answering: Whether its SSH server has answered, or is not waited for any longer.
        unnoticed: Whether its first process has ended, and Podman does not notice that.
        seconds_since_end: How long ago a run that has ended did so.
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
        return say("failed", "It ended, and its conmon process had ended before.")
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


def has_ended_for_good(seen: Inspected) -> bool:
    """Whether the run has ended and Podman does not start it again."""
    state = seen.state
    if state.status not in ("exited", "stopped"):
        return False
    return state.stopped_by_user or state.exit_code == 0 or seen.restart_count >= RESTARTS


def _end(state: State) -> str:
    if state.oom_killed:
        return "It ran out of memory."
    if state.error:
        return " ".join(state.error.split())[:300]
    return f"Its first process ended with code {state.exit_code}."

"""What is shown, and where it comes from: ``/proc`` of this machine, and the master's status.

Of other machines only the disks are known, by the heartbeats of their chunkservers. A figure
that is not known is 0, since clients calculate with all of them.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from control.api import Workload
from gfs.client import space_of

if TYPE_CHECKING:
    from gfs.protocol.messages import ServerStatus, StatusReply

PROC = Path("/proc")
MIB = 1024 * 1024
NANO = 10**9
#: A machine whose chunkservers have less of their room free is short of it.
DISK_FREE_SHARE_MIN = 0.1
#: The same of its memory.
MEMORY_FREE_SHARE_MIN = 0.05


class Condition(msgspec.Struct):
    """As those of a node of Kubernetes: True is bad."""

    type: str
    status: str  # "True" | "False" | "Unknown"


class Node(msgspec.Struct, kw_only=True):
    """A machine with chunkservers."""

    name: str
    cpu_usage: str = "0"
    cpu_capacity: str = "0"
    cpu_percent: float = 0.0
    memory_usage: str = "0"
    memory_capacity: str = "0"
    memory_percent: float = 0.0
    disk_usage: int
    disk_capacity: int
    disk_percent: float
    conditions: list[Condition]


class Pod(msgspec.Struct, kw_only=True):
    """Something that runs: a container, or a process of the system. CPU is in billionths of a
    core."""

    name: str
    namespace: str
    node: str = ""
    cpu_usage: int = 0
    cpu_capacity: int = 0
    memory_usage: int = 0
    memory_capacity: int = 0
    disk_usage: int = 0
    disk_capacity: int = 0


class Load(msgspec.Struct, frozen=True):
    """The CPU and memory of a machine or a process, in cores and bytes."""

    cpu_used: float = 0.0
    cpu_total: float = 0.0
    memory_used: int = 0
    memory_total: int = 0


class Meter:
    """Reads the loads of this machine and of this process; CPU is the mean since the reading
    before, or since the meter was made."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._cpus = os.cpu_count() or 1
        self._last = self._ticks()

    def read(self) -> tuple[Load, Load]:
        """Of the machine, and of the process."""
        busy, passed, own = (now - then for now, then in zip(*self._step(), strict=True))
        # A tick of the machine is one of each core.
        cores = self._cpus / passed if passed > 0 else 0.0
        memory = memory_of((self._proc / "meminfo").read_text())
        pages = int((self._proc / "self" / "statm").read_text().split()[1])
        total = memory["MemTotal"]
        return (
            Load(busy * cores, self._cpus, total - memory["MemAvailable"], total),
            Load(own * cores, self._cpus, pages * os.sysconf("SC_PAGE_SIZE"), total),
        )

    def _step(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        then, self._last = self._last, self._ticks()
        return self._last, then

    def _ticks(self) -> tuple[int, int, int]:
        """Of all cores that were busy, of all cores, and of this process, since the start."""
        busy, passed = cpu_ticks((self._proc / "stat").read_text())
        return busy, passed, process_ticks((self._proc / "self" / "stat").read_text())


def cpu_ticks(stat: str) -> tuple[int, int]:
    """The ticks in which cores were busy, and all, of ``/proc/stat``."""
    # The last two are for guests, and in the first two already.
    ticks = [int(each) for each in stat.split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def process_ticks(stat: str) -> int:
    """The ticks that a process has used, of its ``/proc/PID/stat``."""
    fields = stat.rpartition(")")[2].split()  # its name may have spaces and brackets
    return int(fields[11]) + int(fields[12])


def memory_of(meminfo: str) -> dict[str, int]:
    """The bytes of ``/proc/meminfo``."""
    lines = (line.split() for line in meminfo.splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def cores_text(cores: float) -> str:
    """As Kubernetes has it: ``4``, ``500m``."""
    thousandths = round(cores * 1000)
    return f"{thousandths}m" if thousandths % 1000 else f"{thousandths // 1000}"


def bytes_text(count: int) -> str:
    """As Kubernetes has it: ``2Gi``, ``1536Mi``."""
    mebibytes = round(count / MIB)
    if mebibytes and mebibytes % 1024 == 0:
        return f"{mebibytes // 1024}Gi"
    return f"{mebibytes}Mi" if mebibytes else "0"


def percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1) if whole > 0 else 0.0


def host_of(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


@lru_cache(1024)
def is_here(host: str) -> bool:
    """Whether it is an address or the name of this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", socket.gethostname())
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def nodes_of(status: StatusReply | None, here: Load, *, is_fresh: bool) -> list[Node]:
    """The machines, by name. ``is_fresh``: the master has just answered with ``status``."""
    machines: dict[str, list[ServerStatus]] = {}
    for server in status.servers if status is not None else ():
        machines.setdefault(host_of(server.address), []).append(server)
    return [
        _node(name, servers, here if is_here(name) else Load(), is_fresh=is_fresh)
        for name, servers in sorted(machines.items())
    ]


def _node(name: str, servers: Sequence[ServerStatus], load: Load, *, is_fresh: bool) -> Node:
    disk_total, disk_free = space_of(servers)
    is_away = not any(server.state == "live" for server in servers)
    conditions = {
        "DiskPressure": _truth(disk_free < DISK_FREE_SHARE_MIN * disk_total),
        "NetworkUnavailable": _truth(is_away) if is_fresh else "Unknown",
    }
    if load.memory_total:
        free = load.memory_total - load.memory_used
        is_short = free < MEMORY_FREE_SHARE_MIN * load.memory_total
        conditions["MemoryPressure"] = _truth(is_short)
    return Node(
        name=name,
        cpu_usage=cores_text(load.cpu_used),
        cpu_capacity=cores_text(load.cpu_total),
        cpu_percent=percent(load.cpu_used, load.cpu_total),
        memory_usage=bytes_text(load.memory_used),
        memory_capacity=bytes_text(load.memory_total),
        memory_percent=percent(load.memory_used, load.memory_total),
        disk_usage=disk_total - disk_free,
        disk_capacity=disk_total,
        disk_percent=percent(disk_total - disk_free, disk_total),
        conditions=[Condition(kind, state) for kind, state in conditions.items()],
    )


def _truth(value: bool) -> str:
    return "True" if value else "False"


def pod_of(workload: Workload) -> Pod:
    return Pod(
        name=workload.name,
        namespace=workload.namespace,
        node=workload.node,
        cpu_usage=round(NANO * workload.cpu_used),
        cpu_capacity=round(NANO * workload.cpu_total),
        memory_usage=workload.memory_used,
        memory_capacity=workload.memory_total,
        disk_usage=workload.disk_used,
        disk_capacity=workload.disk_total,
    )


def pod_of_worker(pid: int, load: Load) -> Pod:
    """A worker of the control plane, on this machine."""
    return Pod(
        name=f"control-{pid}",
        namespace=SYSTEM,
        node=socket.gethostname(),
        cpu_usage=round(NANO * load.cpu_used),
        cpu_capacity=round(NANO * load.cpu_total),
        memory_usage=load.memory_used,
        memory_capacity=load.memory_total,
    )


SYSTEM = "gfs"


def pods_of(status: StatusReply | None) -> list[Pod]:
    """The master and the chunkservers."""
    if status is None:
        return []
    space = status.metadata
    disk_total = max(0, space.disk_total_bytes)
    disk_used = disk_total - min(disk_total, max(0, space.disk_free_bytes))
    found = [
        Pod(
            name="master",
            namespace=SYSTEM,
            node=host_of(status.master),
            disk_usage=disk_used,
            disk_capacity=disk_total,
        )
    ]
    for server in status.servers:
        total, free = space_of([server])
        found.append(
            Pod(
                name=f"chunkserver-{server.id}",
                namespace=SYSTEM,
                node=host_of(server.address),
                disk_usage=total - free,
                disk_capacity=total,
            )
        )
    return found

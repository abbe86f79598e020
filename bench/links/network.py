"""Machines of a network: namespaces, joined by bridges, each with a slow link."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from gfs.blocks import KIB

#: A link between the switches is as fast as so many of the machines'.
TRUNK_LINKS = 10
#: A full frame as tbf counts it, and what is in it: 20 bytes of IP, 32 of TCP are not.
FRAME_BYTES, PAYLOAD_BYTES = 1514, 1448
#: What tbf lets through at once, and queues; a switch drops what comes beyond it.
BURST_BYTES, QUEUE_BYTES = 32 * KIB, 512 * KIB
#: Congestion control: Linux' default, whatever is set where the bench runs.
CONTROL = "cubic"


class Network:
    """Namespaces named after this process; that of the switches has all bridges and ports."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        #: Bytes of payload that a link carries in a second.
        self.payload = rate * PAYLOAD_BYTES / FRAME_BYTES
        self.prefix = f"gfs{os.getpid()}"
        self.switches = f"{self.prefix}-switches"
        self._machines = 0

    def build(self) -> None:
        run("ip", "-batch", "-", text=f"netns add {self.switches}\n")
        self._switches("link add servers type bridge", "link add clients type bridge")
        self._switches("link add trunk1 type veth peer name trunk2")
        for port, bridge in (("trunk1", "servers"), ("trunk2", "clients")):
            self._switches(f"link set dev {port} master {bridge} up", f"link set dev {bridge} up")
            self._shape(self.switches, port, TRUNK_LINKS)

    def add(self, name: str, bridge: str) -> str:
        """A machine, plugged in. Returns its address."""
        self._machines += 1
        space, address = f"{self.prefix}-{name}", f"10.0.0.{self._machines}"
        run("ip", "netns", "add", space)
        self._switches(
            f"link add name {name} type veth peer name eth0 netns {space}",
            f"link set dev {name} master {bridge} up",
        )
        run("ip", "-n", space, "-batch", "-",
            text=f"link set lo up\nlink set eth0 up\naddr add {address}/32 dev eth0\n"
                 f"route add 10.0.0.0/24 dev eth0 src {address} congctl {CONTROL}\n")  # fmt: skip
        self._shape(self.switches, name, 1)
        self._shape(space, "eth0", 1)
        return address

    def _switches(self, *commands: str) -> None:
        run("ip", "-n", self.switches, "-batch", "-", text="\n".join(commands) + "\n")

    def _shape(self, space: str, device: str, links: int) -> None:
        run("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf",
            "rate", f"{8 * self._rate * links}bit", "burst", str(BURST_BYTES * links),
            "limit", str(QUEUE_BYTES * links))  # fmt: skip

    def command(self, name: str, *arguments: str) -> list[str]:
        """A command that runs in a machine, as the process that is started."""
        return ["ip", "netns", "exec", f"{self.prefix}-{name}", sys.executable, "-m", *arguments]

    def carried(self) -> dict[str, tuple[int, int]]:
        """Bytes so far from each machine and to it."""
        found = json.loads(run("ip", "-n", self.switches, "-s", "-j", "link"))
        stats = {link["ifname"]: link["stats64"] for link in found}
        return {name: (each["rx"]["bytes"], each["tx"]["bytes"]) for name, each in stats.items()}

    def remove(self) -> None:
        for space in json.loads(run("ip", "-j", "netns", "list") or "[]"):
            if space["name"].startswith(f"{self.prefix}-"):
                run("ip", "netns", "delete", space["name"])


def run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout

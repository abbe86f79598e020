"""Another host beside this machine: a network namespace at link-local addresses, as clouds have
one for their secrets."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from checks import unique
from limits import HANG_SECONDS
from neighbours import place


@dataclass
class Outside:
    """Another host, with several addresses, and this machine's address there."""

    namespace: str
    here: str
    addresses: Sequence[str]

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=HANG_SECONDS)


@contextmanager
def outside(count: int) -> Iterator[Outside]:
    namespace = unique("gfs-tests")
    third = 1 + place(250)
    found = Outside(
        namespace, f"169.254.{third}.1", [f"169.254.{third}.{2 + n}" for n in range(count)]
    )
    run("ip", "netns", "add", namespace)
    try:
        # The kernel takes a link away some time after its namespace: each has its own name.
        link = namespace.replace("gfs-tests", "gf").replace("-", "")[-15:]
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "address", "add", f"{found.here}/24", "dev", link)
        run("ip", "link", "set", link, "up")
        for address in found.addresses:
            run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        yield found
    finally:
        run("ip", "netns", "delete", namespace)

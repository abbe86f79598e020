"""The firewall: addresses that this machine reaches and its containers must not.

At link-local and some other addresses clouds give a machine its secrets, and whoever asks
from it is believed; in private networks services trust their neighbours; and this machine
has services that were not meant for tenants. So from a container's network a table of
nftables' of our own lets through what is for the internet, and drops the rest: everything
for this machine and the networks that it is in, and everything for addresses that are not the
internet's. Let through in
any case are DNS, for the resolvers that this machine uses, and what an operator has named in
``open_networks``. Connections from here into containers are not affected.

The table is called like the interfaces that it is for, and may stay when everything of ours
is gone: ``nft delete table inet gfs_<4 digits>``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio

from control.compute.backend import BackendUnavailable
from control.compute.backend.networks import INTERNET_6, REFUSED_4, REFUSED_6, Network
from control.compute.podman.engine.service import environment
from control.compute.podman.shapes import interface_prefix

__all__ = ["Fence", "resolvers", "table_name"]

log = logging.getLogger("control.compute")

#: How soon it is back where somebody has flushed all tables.
AGAIN_SECONDS = 60.0
COMMAND_SECONDS = 20.0
#: Of one container, at a time: this machine follows each, and all of them together have
#: room for some hundred thousands (``nf_conntrack_max``).
CONNECTIONS_MAX = 4096
#: What this machine asks for names. Podman gives containers the same ones: not those on
#: loopback, for which the second file has what is behind.
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
#: The kernel's, of IPv4.
ROUTES = Path("/proc/net/route")
#: A shorter one stands for the internet, which a VPN may say in halves.
NEIGHBOURS_PREFIX_MIN = 8


def rules(
    cluster: str,
    opened: Iterable[Network],
    resolvers: Iterable[str],
    neighbours: Iterable[Network],
) -> str:
    """For nft: in one transaction, so the table is never away, nor what was counted."""
    refused = "\n        ".join(f"{_to(network)} drop" for network in neighbours)
    table, interface = table_name(cluster), interface_prefix(cluster)
    through = [f"{_to(address)} meta l4proto {{ tcp, udp }} th dport 53" for address in resolvers]
    through += [_to(network) for network in opened]
    exceptions = "\n        ".join(f"{each} accept" for each in through)
    return f"""\
table inet {table} {{
    set connections {{
        type ifname
        size 65535
        flags dynamic
    }}
}}
flush table inet {table}
table inet {table} {{
    chain exceptions {{
        # Answers alone: what a container began while the table was away ends here.
        ct state established,related ct direction reply accept
        {exceptions}
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname "{interface}*" jump outwards
    }}
    chain outwards {{
        ct state new add @connections {{ iifname ct count over {CONNECTIONS_MAX} }} drop
        jump exceptions
        {refused}
        ip daddr {{ {", ".join(REFUSED_4)} }} drop
        ip6 daddr {{ {", ".join(REFUSED_6)} }} drop
        ip6 daddr != {INTERNET_6} drop
    }}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname "{interface}*" jump here
    }}
    chain here {{
        jump exceptions
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        drop
    }}
}}
# Of an older version, which kept less from containers, and DNS from none.
table inet gfs_containers
delete table inet gfs_containers
"""


def _to(network: Network | str) -> str:
    return f"{'ip6' if ':' in str(network) else 'ip'} daddr {network}"


def table_name(cluster: str) -> str:
    return f"gfs_{cluster[:4]}"


def neighbours() -> list[Network]:
    """The networks that this machine is in, by IPv4: their addresses may be the internet's.
    Containers have no other."""
    found: list[Network] = []
    with contextlib.suppress(OSError):
        for line in ROUTES.read_text().splitlines()[1:]:
            _, to, through, _, _, _, _, mask, *_ = line.split()
            network = ipaddress.IPv4Network((_address(to), _address(mask)))
            if int(through, 16) == 0 and network.prefixlen >= NEIGHBOURS_PREFIX_MIN:
                found.append(network)
    return found


def _address(text: str) -> str:
    """A word of the kernel's table, in the machine's byte order."""
    return str(ipaddress.IPv4Address(int(text, 16).to_bytes(4, sys.byteorder)))


def resolvers() -> list[str]:
    """Those of this machine that a container can ask; may be none."""
    found: list[str] = []
    for path in RESOLVERS:
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                words = line.split()
                with contextlib.suppress(ValueError):
                    if words[:1] == ["nameserver"] and len(words) > 1:
                        address = ipaddress.ip_address(words[1])
                        if not address.is_loopback and str(address) not in found:
                            found.append(str(address))
    return found


class Fence:
    """
    Args:
        cluster: Whose containers.
        opened: Networks that they reach although they are not the internet.
    """

    def __init__(self, cluster: str, opened: Sequence[Network]) -> None:
        self._cluster = cluster
        self._opened = opened
        self._lock = trio.Lock()

    async def ensure(self) -> None:
        """Return when it stands. Raises BackendUnavailable, in words that say what to do."""
        try:
            async with self._lock:
                with trio.fail_after(COMMAND_SECONDS):
                    done = await trio.run_process(
                        ["nft", "-f", "-"],
                        stdin=rules(
                            self._cluster, self._opened, resolvers(), neighbours()
                        ).encode(),
                        capture_stderr=True,
                        capture_stdout=True,
                        check=False,
                        env=environment({}),
                    )
        except OSError as error:
            raise _no_fence(f"nft cannot be run ({error.strerror or error})") from None
        except trio.TooSlowError:
            raise _no_fence("nft does not end") from None
        if done.returncode != 0:
            answer = done.stderr.decode("utf-8", "replace").split("\n")[0]
            raise _no_fence(f"nft says: {answer[:300]}")

    async def keep(self) -> None:
        while True:
            try:
                await self.ensure()
            except BackendUnavailable as error:
                log.warning("podman: %s", error)
            await trio.sleep(AGAIN_SECONDS)


def _no_fence(why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"Containers cannot be kept from this machine and its private networks, so none is "
        f"started: {why}. Install nftables."
    )

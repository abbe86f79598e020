"""The firewall: addresses that this machine reaches and its containers must not.

Clouds give a machine its secrets at link-local and some other addresses, and trust every
process on it; services in private networks trust their neighbours; and services of this
machine may not be meant for tenants. So a table of our own in nftables accepts packets
from a container's network to the internet and drops all others: those to this machine, to
the networks that it is in, and to addresses that are not the internet's. It also accepts
DNS to the resolvers that this machine uses, and packets to the networks in the setting
``open_networks``. Connections from this machine to containers are not affected.

The kernel counts the changes of all tables. Twice a second the count is looked at, and after a
change the table, so that after ``nft flush ruleset`` or a restart of another firewall it is
back within a second.

The table has the name of its interfaces. It may stay when everything of ours is removed:
``nft delete table inet gfs_<4 digits>`` deletes it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio

from control.compute.backend import INTERNET_6, REFUSED_4, REFUSED_6, BackendUnavailable, Network
from control.compute.podman.engine import environment
from control.compute.podman.shapes import interface_prefix

log = logging.getLogger("control.compute")

#: How often it is loaded again, for new resolvers and routes.
AGAIN_SECONDS = 60.0
#: How often the count of changes is looked at, which takes some microseconds.
LOOK_SECONDS = 0.5
#: How often a load is repeated that others' changes coincide with.
LOADS_MAX = 5
#: linux/netfilter/nfnetlink.h and nf_tables.h
NETLINK_NETFILTER = 12
NFT_MSG_NEWGEN, NFT_MSG_GETGEN = (10 << 8 | number for number in (15, 16))
NLM_F_REQUEST = 1
NFTA_GEN_ID = 1
#: struct nlmsghdr, struct nfgenmsg, struct nlattr: all lengths, and no padding here.
_HEAD, _GENERIC, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBH"), struct.Struct("=HH")
ANSWER_SECONDS = 1.0
COMMAND_SECONDS = 20.0
#: How many connections one container has at a time: this machine tracks each, and has room
#: for some hundred thousands in all (``nf_conntrack_max``).
CONNECTIONS_MAX = 4096
#: The files with this machine's resolvers. Podman gives containers the same ones, but not
#: those on loopback; the second file has the servers behind these.
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
#: The kernel's table of IPv4 routes.
ROUTES = Path("/proc/net/route")
#: A route with a shorter prefix is to the internet, of which a VPN may have two halves.
NEIGHBOURS_PREFIX_MIN = 8


def rules(
    cluster: str,
    opened: Iterable[Network],
    resolvers: Iterable[str],
    neighbours: Iterable[Network],
) -> str:
    """The input of nft. It is one transaction, so the table and its counts never vanish."""
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
        # Only replies: connections that a container began without the table are cut.
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
# The table of an older version, which dropped less, and no DNS.
table inet gfs_containers
delete table inet gfs_containers
"""


def _to(network: Network | str) -> str:
    return f"{'ip6' if ':' in str(network) else 'ip'} daddr {network}"


def table_name(cluster: str) -> str:
    return f"gfs_{cluster[:4]}"


def neighbours() -> list[Network]:
    """The IPv4 networks that this machine is in: their addresses may be public. Containers
    have no IPv6."""
    found: list[Network] = []
    with contextlib.suppress(OSError):
        for line in ROUTES.read_text().splitlines()[1:]:
            _, to, through, _, _, _, _, mask, *_ = line.split()
            network = ipaddress.IPv4Network((_address(to), _address(mask)))
            if int(through, 16) == 0 and network.prefixlen >= NEIGHBOURS_PREFIX_MIN:
                found.append(network)
    return found


def _address(text: str) -> str:
    """An address of the kernel's table: a word in the machine's byte order."""
    return str(ipaddress.IPv4Address(int(text, 16).to_bytes(4, sys.byteorder)))


def resolvers() -> list[str]:
    """The resolvers of this machine that a container can reach; there may be none."""
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


def changes() -> int | None:
    """How often the tables of this machine were changed: each transaction counts 1. None if the
    kernel does not say it."""
    length = _HEAD.size + _GENERIC.size
    asked = _HEAD.pack(length, NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0) + _GENERIC.pack(0, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
            kernel.settimeout(ANSWER_SECONDS)  # it answers before send() returns
            kernel.send(asked)
            answer = kernel.recv(4096)
    except OSError:
        return None
    _, kind, *_ = _HEAD.unpack_from(answer)
    at = length
    while kind == NFT_MSG_NEWGEN and at + _ATTRIBUTE.size <= len(answer):
        size, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == NFTA_GEN_ID:
            return int.from_bytes(answer[at + _ATTRIBUTE.size : at + size], "big")
        at += max(size + 3 & ~3, _ATTRIBUTE.size)
    return None


class Fence:
    """The firewall of one installation.

    Args:
        cluster: The id of the installation whose containers it is for.
        opened: Networks that they may reach besides the internet.
    """

    def __init__(self, cluster: str, opened: Sequence[Network]) -> None:
        self._cluster = cluster
        self._opened = opened
        self._lock = trio.Lock()
        #: The table as nft lists it after our last load; "": that is not known.
        self._whole = ""
        #: The count of changes when it was whole.
        self._seen: int | None = None

    async def ensure(self) -> None:
        """Load the table. Raises BackendUnavailable, which says what to do."""
        async with self._lock:
            await self._ensure()

    async def keep(self) -> None:
        """Load the table regularly, and within a second after others have changed it."""
        due = -math.inf
        failure = ""
        while True:
            try:
                async with self._lock:
                    if trio.current_time() >= due or not await self._is_whole():
                        due = trio.current_time() + AGAIN_SECONDS
                        await self._ensure()
                failure = ""
            except BackendUnavailable as error:
                if str(error) != failure:
                    failure = str(error)
                    log.warning("podman: %s", failure)
            await trio.sleep(LOOK_SECONDS)

    async def _ensure(self) -> None:
        self._whole = ""
        rules_now = rules(self._cluster, self._opened, resolvers(), neighbours())
        for _ in range(LOADS_MAX):
            before = changes()
            await _nft("-f", "-", input=rules_now)
            listed = await self._listed()
            after = changes()
            if before is None or after == before + 1:
                self._whole, self._seen = listed, after
                return

    async def _is_whole(self) -> bool:
        now = changes()
        if now == self._seen:
            return True
        if not self._whole or await self._listed() != self._whole:
            return False
        # The change was to a table of others. One that came after this is noticed next time.
        self._seen = now
        return True

    async def _listed(self) -> str:
        """The rules of the table; "" if there is none."""
        try:
            return await _nft("-s", "-t", "list", "table", "inet", table_name(self._cluster))
        except BackendUnavailable:
            return ""


async def _nft(*arguments: str, input: str = "") -> str:
    """Its output. Raises BackendUnavailable, which says what to do."""
    try:
        with trio.fail_after(COMMAND_SECONDS):
            done = await trio.run_process(
                ["nft", *arguments],
                stdin=input.encode(),
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
        raise _no_fence(f"nft failed: {answer[:300]}")
    return done.stdout.decode("utf-8", "replace")


def _no_fence(why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"The firewall between containers and private networks cannot be set up, so no container "
        f"is started: {why}. Install nftables."
    )

"""The client of a request that came through proxies.

Each proxy appends the address of its caller to ``X-Forwarded-For``. A caller of the
outermost proxy may have put anything there before. So the header is used only if the peer
itself is a trusted proxy, and is read from the right for as long as the entries are trusted
proxies, too: the first address that is not one is the client's.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Iterator, Sequence

HEADER = b"x-forwarded-for"
PROXIES_MAX = 16
"""How many entries of the header are read: no chain of proxies is longer."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The trusted proxies.

    Args:
        networks: Their addresses, or networks (``10.0.0.0/24``) of nothing but proxies.

    Raises:
        ValueError: One of these is neither an address nor a network.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: Sequence[Network] = [ipaddress.ip_network(text) for text in networks]
        self.has = functools.lru_cache(1024)(self._has)

    def _has(self, address: str) -> bool:
        """Whether *address* is a trusted proxy."""
        found = _parsed(address)
        return found is not None and any(
            found in network for network in self._networks if network.version == found.version
        )

    def client(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The address of the client whose request came from *peer* with these headers.

        An entry that is not an address ends the search at the proxy that wrote it.
        """
        client = peer
        if not self._networks or not self.has(peer):
            return client
        values = [value for name, value in headers if name == HEADER]
        for entry in _from_the_right(values):
            address = _address(entry)
            if address is None:
                return client
            client = address
            if not self.has(client):
                return client
        return client


def _from_the_right(values: Sequence[bytes]) -> Iterator[str]:
    count = 0
    for value in reversed(values):
        for entry in reversed(value.rsplit(b",", PROXIES_MAX)):
            if count == PROXIES_MAX:
                return
            count += 1
            yield entry.decode("latin-1").strip()


def network_of(address: str) -> str:
    """The network of one customer: an IPv4 address itself, for IPv6 its /64 network."""
    if ":" not in address:
        return address
    found = _parsed(address)
    if not isinstance(found, ipaddress.IPv6Address):
        return str(found or address)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def _address(entry: str) -> str | None:
    """The address in *entry*, which may have a port; None if there is none."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    found = _parsed(entry)
    return None if found is None else str(found)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # A zone after % names an interface of another machine, and can be any text.
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found

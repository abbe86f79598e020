"""Whose request it is when proxies stand in front.

Each proxy appends the address it was called from to ``X-Forwarded-For``. Whoever calls
the outermost one may have written there what he likes before. So the header is looked
at only when the peer itself is a proxy of ours, and is read from the right for as long
as what stands there is one, too: the first address that is none is the client's.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["HEADER", "Proxies", "network_of"]

HEADER = b"x-forwarded-for"
PROXIES_MAX = 16
"""Entries of the header that are looked at: more proxies than these are not in a row."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The proxies of one's own.

    Args:
        networks: Their addresses, or networks (``10.0.0.0/24``) that only they are in.

    Raises:
        ValueError: One of these is neither.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: Sequence[Network] = [ipaddress.ip_network(text) for text in networks]
        self.has = functools.lru_cache(1024)(self._has)

    def _has(self, address: str) -> bool:
        """Whether *address* is a proxy of ours."""
        found = _parsed(address)
        return found is not None and any(
            found in network for network in self._networks if network.version == found.version
        )

    def client(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The address of the client whose request came from *peer* with these headers.

        An entry that is no address ends the search at the proxy that wrote it.
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
    """What one customer has: the address itself, of IPv6 the network of 64 bits."""
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
        # A zone behind % is of somebody else's machine, and any text.
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found

"""Whose request it is when proxies stand in front.

Each proxy appends the address it was called from to ``X-Forwarded-For``. Whoever
calls the outermost one may have written there what he likes before, so only as
many entries count, from the right, as there are proxies of one's own: the last
of them is what the outermost one saw. Without a proxy the header is not looked at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

HEADER = "X-Forwarded-For"
PROXIES_MAX = 16


def client_address(peer: str, forwarded: Iterable[str], proxies: int) -> str:
    """The address of the client behind ``proxies`` proxies; ``peer`` if they do not tell.

    ``forwarded`` are the values of the header, in the order they came in. With fewer
    entries than proxies the request went past some of them: the leftmost is the client.
    """
    if not proxies:
        return peer
    entries = [entry.strip() for value in forwarded for entry in value.split(",")]
    told = _address(entries[-min(proxies, len(entries))]) if entries else None
    return peer if told is None else told


def _address(entry: str) -> str | None:
    """The address in ``entry``, which may have a port; None if there is none."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        # A zone behind % is of somebody else's machine, and any text.
        found = ipaddress.ip_address(entry.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)

"""Creating the sockets on which the server listens."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from gfs.errors import StartupError

BACKLOG = 4096
"""How many connections wait to be accepted; net.core.somaxconn (4096) bounds it, too."""


def listen(address: str) -> list[socket.socket]:
    """Listening sockets for ``HOST:PORT``; an IPv6 host in brackets, port 0 for any.

    A name with several addresses gives a socket for each, on the same port.

    Raises:
        StartupError: The address is malformed, unknown, taken or not allowed.
    """
    host, port = _split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, place in dict.fromkeys(found):
            chosen = sockets[0].getsockname()[1] if sockets else port
            sockets.append(_bind(family, (place[0], chosen, *place[2:])))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise StartupError(f"cannot listen on {address}: {advice(error)}") from error
    return sockets


def _split_address(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise StartupError(f"cannot listen on {address!r}; write HOST:PORT, an IPv6 host as [::1]")
    return host, int(port)


def _bind(family: int, place: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def advice(error: OSError) -> str:
    """Advice about *error* for the person who started the server."""
    if error.errno == errno.EADDRINUSE:
        return "the port is taken; stop what uses it or choose another"
    if error.errno == errno.EACCES:
        return "not allowed; ports below 1024 need a privilege"
    if error.errno == errno.EMFILE:
        return "too many open files; raise the limit (ulimit -n)"
    return os.strerror(error.errno or 0)

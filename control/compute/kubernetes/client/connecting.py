"""Connections to the API server, direct or through a proxy, with TLS if it is configured,
for :mod:`control.compute.kubernetes.client.streams`."""

from __future__ import annotations

import base64
import socket
import ssl
from urllib.parse import SplitResult, unquote, urlsplit

import h11
import trio

from control.compute.backend import BackendUnavailable
from control.compute.kubernetes.client.api import Endpoint

Connection = trio.SocketStream | trio.SSLStream[trio.abc.Stream]

#: The socket's receive buffer. With the one at the other end it is how much a command
#: prints ahead of its reader.
SYSTEM_BYTES = 128 * 1024
#: Seconds of silence, between probes, and how many probes.
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


async def connect(endpoint: Endpoint) -> Connection:
    """Raises BackendUnavailable. Has no deadline of its own."""
    connection: Connection
    if endpoint.proxy:
        connection = await _tunnel(urlsplit(endpoint.proxy), _authority(endpoint))
    else:
        connection = await _open(endpoint.host, endpoint.port)
    if endpoint.tls is None:
        return connection
    return await _secure(connection, endpoint.tls, endpoint.server_name)


async def _open(host: str, port: int) -> trio.SocketStream:
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise BackendUnavailable(f"{host} does not answer: {error}") from None
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not on every system
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        stream.setsockopt(socket.SOL_SOCKET, option, SYSTEM_BYTES)
    return stream


async def _secure(
    stream: Connection, context: ssl.SSLContext, name: str
) -> trio.SSLStream[trio.abc.Stream]:
    secured: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(
        stream, context, server_hostname=name, https_compatible=True
    )
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(secured)
        raise BackendUnavailable(f"{name}: no TLS: {error.__cause__ or error}") from None
    except BaseException:
        await trio.aclose_forcefully(secured)
        raise
    return secured


async def _tunnel(proxy: SplitResult, authority: str) -> Connection:
    """Connect through an HTTP proxy, with CONNECT."""
    host = proxy.hostname or ""
    if proxy.scheme not in ("http", "https"):
        raise BackendUnavailable(f"terminals cannot go through a proxy of type {proxy.scheme}")
    connection: Connection = await _open(
        host, proxy.port or (80 if proxy.scheme == "http" else 443)
    )
    if proxy.scheme == "https":
        connection = await _secure(connection, ssl.create_default_context(), host)
    try:
        status = await _ask_for(connection, authority, proxy)
    except BaseException:
        await trio.aclose_forcefully(connection)
        raise
    if not 200 <= status < 300:
        await trio.aclose_forcefully(connection)
        raise BackendUnavailable(f"the proxy {host} refused to connect: status {status}")
    return connection


async def _ask_for(connection: Connection, authority: str, proxy: SplitResult) -> int:
    headers = [("Host", authority)]
    if proxy.username:
        who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers.append(("Proxy-Authorization", f"Basic {base64.b64encode(who.encode()).decode()}"))
    http = h11.Connection(h11.CLIENT)
    asked = http.send(h11.Request(method="CONNECT", target=authority, headers=headers))
    try:
        await connection.send_all((asked or b"") + (http.send(h11.EndOfMessage()) or b""))
        while True:
            event = http.next_event()
            if isinstance(event, h11.Response):
                return event.status_code
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await connection.receive_some(4096)))
    except (trio.BrokenResourceError, h11.ProtocolError) as error:
        raise BackendUnavailable(f"the proxy {proxy.hostname} hung up: {error}") from None


def _authority(endpoint: Endpoint) -> str:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{host}:{endpoint.port}"

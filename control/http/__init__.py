"""The HTTP server of the control plane.

:func:`serve` runs one ASGI application on sockets made by :func:`listen`, within the
bounds of :class:`HttpLimits`: HTTP/1.1, and HTTP/2 over TLS. A Quart application uses it
to the full with ``app.asgi_http_class = HttpConnection`` and ``app.request_class =
StreamingRequest``. Other rooms use the names below, and the closing codes in ``socket``.
From the sockets inwards: ``server`` accepts, ``admission`` and ``slots`` decide who is
served, ``connection`` moves the bytes of one client, ``http1`` and ``http2`` speak the
protocols (with ``h11`` and ``h2``), ``exchange`` runs the application for one request and
``websocket`` for one WebSocket, ``asgi`` and ``socket`` are what a handler sees of them.

It is written for a store of large files, within a cluster whose users need not be
friends: bodies are pulled by the application instead of being pushed at it, every wait is
bounded, each address has only so many connections and the slowest make room, and every
refusal says why, in JSON. ``bench/http.py`` compares it with Hypercorn, which has none of
these; docs/design.md has the figures, and what else would have to be given up.

Requests are taken strictly: whatever two servers in a row might read differently (bare
line feeds, folded headers, two framings, methods not in capitals) is refused, though h11
accepts some of it. An answer that cannot be finished never ends like a whole one: it is
short of its length or of its last chunk, or ends with a reset, and over TLS without
``close_notify``.

One thing cannot be noticed: an HTTP/1.1 client that leaves while the kernel's buffers are
full of a body that the application does not read. Its end is queued behind those bytes, so
the application learns of it when it reads on, or never needs to.
"""

from control.http.access_log import Access, open_access_log
from control.http.asgi import (
    BodyCutShort,
    HttpConnection,
    PulledBody,
    Receive,
    Send,
    StreamingRequest,
)
from control.http.forwarded import Proxies, network_of
from control.http.limits import HttpLimits
from control.http.listening import listen
from control.http.server import serve
from control.http.socket import Socket, SocketClosed, SocketConnection

__all__ = [
    "Access",
    "BodyCutShort",
    "HttpConnection",
    "HttpLimits",
    "Proxies",
    "PulledBody",
    "Receive",
    "Send",
    "Socket",
    "SocketClosed",
    "SocketConnection",
    "StreamingRequest",
    "listen",
    "network_of",
    "open_access_log",
    "serve",
]

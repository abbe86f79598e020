"""The HTTP server of the control plane.

:func:`serve` runs one ASGI application on sockets made by :func:`listen`, within the
bounds of :class:`HttpLimits`: HTTP/1.1 and WebSockets, with or without TLS. A proxy in front
may speak HTTP/2 to its clients. A Quart application uses all
of it with ``app.asgi_http_class = HttpConnection`` and ``app.request_class =
StreamingRequest``. Other rooms use the names below, and the closing codes in ``socket``.
From the sockets inwards: ``server`` accepts, ``admission`` and ``slots`` decide who is
served, ``connection`` moves the bytes of one client, ``exchange`` runs the application for one
request after another and ``websocket`` for one WebSocket, ``http1`` speaks the protocol (with
``h11``), ``asgi`` and ``socket`` are the interface of handlers.

It is written for a store of large files whose users need not trust one another: the
application pulls bodies instead of having them pushed at it, every wait is bounded, the
number of connections of an address is limited and the slowest make room, and every
refusal gives its reason, in JSON or as a module's own port has it. ``bench/http.py`` compares
it with Hypercorn, which has none of these; docs/design.md has the figures, and what Hypercorn
would cost besides.

Requests are parsed strictly: anything that two servers in a row might read differently
(bare line feeds, folded headers, two framings, methods not in capitals) is refused, though
h11 accepts some of it. An answer that cannot be finished never ends like a whole one: it
lacks bytes of its length or its last chunk, or ends with a reset, and over TLS without
``close_notify``.

One case is not noticed: a client that leaves while the kernel's buffers are
full of a body that the application does not read. The end is queued behind those bytes, so
the application sees it only when it reads on.
"""

from control.http.access_log import open_access_log
from control.http.asgi import (
    BodyCutShort,
    HttpConnection,
    Receive,
    Send,
    StreamingRequest,
)
from control.http.forwarded import Proxies, network_of
from control.http.heads import Explained, Refusal
from control.http.limits import HttpLimits
from control.http.listening import listen
from control.http.server import serve
from control.http.slots import Slots
from control.http.socket import Socket, SocketClosed, SocketConnection
from control.http.texts import HeaderTexts, ParameterTexts

__all__ = [
    "BodyCutShort",
    "Explained",
    "HeaderTexts",
    "HttpConnection",
    "HttpLimits",
    "ParameterTexts",
    "Proxies",
    "Receive",
    "Refusal",
    "Send",
    "Slots",
    "Socket",
    "SocketClosed",
    "SocketConnection",
    "StreamingRequest",
    "listen",
    "network_of",
    "open_access_log",
    "serve",
    "socket",
]

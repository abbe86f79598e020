"""The HTTP server of the control plane.

:func:`serve` runs one ASGI application on sockets made by :func:`listen`, within the
bounds of :class:`HttpLimits`. A Quart application uses it to the full with
``app.asgi_http_class = HttpConnection`` and ``app.request_class = StreamingRequest``.

The server is Hypercorn's Trio worker with the parts exchanged that a store of large
files needs otherwise: bodies are pulled by the application instead of being pushed
at it, every wait is bounded, and every refusal says why, in JSON.

Measured with a Quart application on two busy cores, CPU of the server alone: an answer
of 1 KiB costs 231 µs where Hypercorn's own worker takes 551 µs; a core receives
3,100 MiB/s (900) and sends 4,300 MiB/s (3,400). A third of the 231 µs is the kernel's
``send``, a fifth h11, the rest Quart. Over TLS a core receives 500 MiB/s, in pieces of a
record (16 KiB), and sends 1,700. A client that sends slowly costs 20 KiB (100 with TLS)
and what the application keeps.

Requests are taken strictly: whatever two servers in a row might read differently (bare
line feeds, folded headers, two framings, methods not in capitals) is refused, h11 would
bear some of it. An answer that cannot be finished never ends like a whole one: it is
short of its length or of its last chunk, or ends with a reset, and over TLS without
``close_notify``.

One thing cannot be noticed: a client that leaves while the kernel's buffers are full
of a body that the application does not read. Its end is queued behind those bytes, so
the application learns of it when it reads on, or never needs to.
"""

from control.http.asgi import BodyCutShort, HttpConnection, PulledBody, StreamingRequest
from control.http.limits import HttpLimits
from control.http.listening import listen
from control.http.server import serve

__all__ = [
    "BodyCutShort",
    "HttpConnection",
    "HttpLimits",
    "PulledBody",
    "StreamingRequest",
    "listen",
    "serve",
]

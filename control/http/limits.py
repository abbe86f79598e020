"""Every bound of the HTTP server, in one place."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

BODY_PIECE_BYTES_MAX = 256 * KIB
"""How much of a body is read at once, and so how much is buffered per connection."""

HEADER_LINES_MAX = 256
"""How many headers a head has. h11 takes 3 µs for each, and 64 KiB can contain 16,000."""

PARAMETERS_MAX = 256
"""How many parameters a query has. Each takes 1 µs."""

TEXT_BYTES_MAX = 4 * KIB
"""The longest header or parameter that the application reads (``texts.py``). A key of S3 has
1 KiB; a longer one than this is nobody's."""

TEXT_BYTES = {
    **dict.fromkeys(("accept", "accept-encoding", "accept-language"), 1 * KIB),
    # An API token with 8 KiB of scopes has 12 KiB.
    **dict.fromkeys(("authorization", "token"), 16 * KIB),
    # Those of all programs of the host.
    "cookie": 16 * KIB,
}
"""The bounds that are others, by the name in lower case."""

OWN_BYTES_MAX = 1 * KIB
"""The longest header that the server itself takes apart, such as ``Connection``."""

PATH_BYTES_MAX = 4 * KIB
"""The longest path, decoded."""

DRAIN_BYTES_MAX = 64 * KIB
"""An unread body of at most this size is read and dropped to keep the connection.
If more is to come it is cheaper for both sides to open a new one."""


@dataclass(frozen=True)
class HttpLimits:
    """The bounds of one server process.

    Attributes:
        connections_max: Open connections. At the limit the one that has been idle the
            longest is closed for a new one, or else a slow one; if there is none, the new
            one waits.
        per_address_max: Open connections of one address (of IPv6 one network of 64
            bits). At the limit its slowest is closed for a new one, or the new one is
            refused; see ``slots.py``.
        slow_seconds: A connection that has moved less than 64 KiB in this time is slow.
        header_bytes_max: A request line with its headers; more is answered with 431.
        header_seconds: From the first byte of a request to the end of its headers;
            later is answered with 408. Also bounds the TLS handshake.
        keep_alive_seconds: How long a connection may be idle between requests.
        body_stall_seconds: How long the application may wait for the next byte of a
            body; then the request ends with 408.
        send_stall_seconds: How long the peer may read nothing of what is sent to it;
            then the connection is closed.
        linger_seconds: How long an unread body is read and dropped after the answer,
            so that the peer sees the answer instead of a reset; and again, if it has
            read a part of the answer meanwhile.
        linger_bytes: How much of it is read and dropped.
        graceful_seconds: How long requests under way may take to end when the server stops.
        websocket_message_bytes_max: The largest WebSocket message that is accepted.
        websocket_ping_seconds: How often a WebSocket peer is pinged, apart from pings
            between its messages. A peer that sends nothing for three times as long, not
            even pongs, is disconnected.
    """

    connections_max: int = 1024
    per_address_max: int = 256
    slow_seconds: float = 5.0
    header_bytes_max: int = 64 * KIB
    header_seconds: float = 10.0
    keep_alive_seconds: float = 60.0
    body_stall_seconds: float = 30.0
    send_stall_seconds: float = 60.0
    linger_seconds: float = 2.0
    linger_bytes: int = 32 * MIB
    graceful_seconds: float = 5.0
    websocket_message_bytes_max: int = 1 * MIB
    websocket_ping_seconds: float = 20.0

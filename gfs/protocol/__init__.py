"""The wire protocol: frames, messages, the handshake and the two kinds of connection.

Each of its modules is open to all: their names are the vocabulary of everything that speaks
on the wire, some hundreds, and the command line loads only those modules that it needs.
"""

__all__ = [
    "attributes",
    "buffers",
    "bulk",
    "credentials",
    "deadline",
    "frames",
    "handshake",
    "links",
    "messages",
    "patience",
    "pool",
    "records",
    "rpc",
    "server",
    "space",
]

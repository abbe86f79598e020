"""The exchanges with clients: reads, the writes and record appends that pass along a chain of
chunkservers, and small requests, many at a time."""

from gfs.chunkserver.exchanges.append import Appends
from gfs.chunkserver.exchanges.read import serve_read
from gfs.chunkserver.exchanges.small import SmallRequests, SmallWriter
from gfs.chunkserver.exchanges.write import FromConnection, WriteExchange

__all__ = [
    "Appends",
    "FromConnection",
    "SmallRequests",
    "SmallWriter",
    "WriteExchange",
    "serve_read",
]

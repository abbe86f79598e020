"""What clients ask for: reads, and the writes and record appends that pass along a chain of
chunkservers."""

from gfs.chunkserver.exchanges.append import Appends
from gfs.chunkserver.exchanges.read import serve_read
from gfs.chunkserver.exchanges.write import FromConnection, WriteExchange

__all__ = [
    "Appends",
    "FromConnection",
    "WriteExchange",
    "serve_read",
]

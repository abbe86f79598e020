"""Which replicas this server has, on which disk, open or not, and how durable they are."""

from gfs.chunkserver.replicas.inventory import Inventory, Replica
from gfs.chunkserver.replicas.open_chunks import OpenChunk
from gfs.chunkserver.replicas.store import ChunkStore

__all__ = [
    "ChunkStore",
    "Inventory",
    "OpenChunk",
    "Replica",
]

"""The replicas of this server: on which disks they are, which are open, and how durable
they are."""

from gfs.chunkserver.packs import Made
from gfs.chunkserver.replicas.duplicates import Duplicate
from gfs.chunkserver.replicas.inventory import Changes, Replica
from gfs.chunkserver.replicas.open_chunks import OpenChunk
from gfs.chunkserver.replicas.store import ChunkStore

__all__ = [
    "Changes",
    "ChunkStore",
    "Duplicate",
    "Made",
    "OpenChunk",
    "Replica",
]

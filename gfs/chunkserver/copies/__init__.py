"""How a replica is made from others, always in a new file and verified: cloned from
another server (many small ones at once), copied on write, or salvaged from damaged
ones."""

from gfs.chunkserver.copies.copy_on_write import copy
from gfs.chunkserver.copies.small_replicas import Batch, serve_replicas

__all__ = [
    "Batch",
    "clone",
    "copy",
    "new_replica",
    "serve_replicas",
]

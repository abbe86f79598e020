"""How a replica is made of others, always beside what is here and verified: cloned from
another server (many small ones at once), copied on write, or salvaged from damaged ones."""

from gfs.chunkserver.copies.clone import clone
from gfs.chunkserver.copies.copy_on_write import copy
from gfs.chunkserver.copies.new_replica import copy_bytes, mark_if_unfit, new_replica
from gfs.chunkserver.copies.small_replicas import Batch, serve_replicas

__all__ = [
    "Batch",
    "clone",
    "copy",
    "copy_bytes",
    "mark_if_unfit",
    "new_replica",
    "serve_replicas",
]

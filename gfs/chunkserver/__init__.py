"""The chunkserver: it stores replicas on disks, serves them, and verifies them.

Its rooms, each built on those above it: ``files`` (the formats on a disk, byte by
byte), ``disks`` (one disk, and the set), ``replicas`` (the inventory), ``node`` (common
parts), ``exchanges`` (reads, writes and appends of clients), ``copies`` (replicas made
from others), ``upkeep`` (background tasks) and ``service`` (start and stop, and the
connection to the master). From outside only :func:`run_chunkserver` is used."""

from gfs.chunkserver.service import ChunkserverStarted, run_chunkserver

__all__ = ["ChunkserverStarted", "run_chunkserver"]

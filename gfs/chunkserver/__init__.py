"""The chunkserver: it stores replicas on disks, serves them, and keeps them good.

Its rooms, each built on those above it: ``files`` (what lies on a disk, byte by byte),
``disks`` (each one, and the set), ``replicas`` (which there are), ``node`` (common parts),
``exchanges`` (what clients ask for), ``copies`` (replicas made of others), ``upkeep`` (what
nobody asks for) and ``service`` (start to stop, and the link to the master). From outside
only :func:`run_chunkserver` is used."""

from gfs.chunkserver.service.service import ChunkserverStarted, run_chunkserver

__all__ = ["ChunkserverStarted", "run_chunkserver"]

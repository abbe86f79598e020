"""The chunkserver: chunk files, the write chain, reads, heartbeats, scrubbing."""

from gfs.chunkserver.service import ChunkserverStarted, run_chunkserver

__all__ = ["ChunkserverStarted", "run_chunkserver"]

"""One chunkserver from start to stop: its tasks, its connections to the masters, its metrics."""

from gfs.chunkserver.service.service import ChunkserverStarted, run_chunkserver

__all__ = [
    "ChunkserverStarted",
    "run_chunkserver",
]

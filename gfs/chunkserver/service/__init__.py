"""One chunkserver from start to stop: its tasks, its link to the master, its metrics."""

from gfs.chunkserver.service.service import ChunkserverStarted, run_chunkserver

__all__ = [
    "ChunkserverStarted",
    "run_chunkserver",
]

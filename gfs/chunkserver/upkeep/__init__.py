"""What a chunkserver does without a client: scrubbing, scanning, deleting what the master
ordered, draining a disk, and choosing between two files of one chunk."""

from gfs.chunkserver.upkeep.compare import keep_comparing
from gfs.chunkserver.upkeep.delete import delete_all
from gfs.chunkserver.upkeep.drain import drain_disk
from gfs.chunkserver.upkeep.scrub import Scrubber

__all__ = [
    "Scrubber",
    "delete_all",
    "drain_disk",
    "keep_comparing",
]

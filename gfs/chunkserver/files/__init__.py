"""What lies on a disk, byte by byte, and the blocking code that reads and writes it: the
layout of a chunk file, an open chunk file, the redo journal, the write-intent records, and
how a long call reports its progress. No Trio, no network: it runs in a disk's threads."""

from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.intents import Intent, Intents
from gfs.chunkserver.files.journal import Journal, Records, read_records
from gfs.chunkserver.files.layout import Redo, State
from gfs.chunkserver.files.progress import report_progress

__all__ = [
    "ChunkFile",
    "Intent",
    "Intents",
    "Journal",
    "Records",
    "Redo",
    "State",
    "read_records",
    "report_progress",
]

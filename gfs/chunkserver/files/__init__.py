"""The formats on a disk, byte by byte, and the blocking code that reads and writes them: the
layout of a chunk file, an open chunk file, the redo journal, the write-intent records, and
how a long call reports its progress. No Trio, no network: it runs in a disk's threads."""

from gfs.chunkserver.files.chunkfile import COPY_BYTES, ChunkFile
from gfs.chunkserver.files.intents import NO_STATE, Intent, Intents, boot_number
from gfs.chunkserver.files.journal import NAMES, DirtyFile, Journal, Records, read_records
from gfs.chunkserver.files.layout import HEAD_BYTES, NO_SUM, Redo, State
from gfs.chunkserver.files.progress import Call, making, report_progress

__all__ = [
    "COPY_BYTES",
    "HEAD_BYTES",
    "NAMES",
    "NO_STATE",
    "NO_SUM",
    "Call",
    "ChunkFile",
    "DirtyFile",
    "Intent",
    "Intents",
    "Journal",
    "Records",
    "Redo",
    "State",
    "boot_number",
    "making",
    "read_records",
    "report_progress",
]

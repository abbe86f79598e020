"""The formats on a disk, byte by byte, and the blocking code that reads and writes them: the
layout of a chunk file, an open chunk file, the redo journal, the write-intent records, and
how a long call reports its progress. No Trio, no network: it runs in a disk's threads."""

from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.copying import (
    COPY_BYTES,
    bad_blocks,
    copy_from,
    finish_copy,
    has_all_of,
    put_unverified,
    read_unverified,
)
from gfs.chunkserver.files.intents import NO_STATE, Intent, Intents, boot_number
from gfs.chunkserver.files.journal import NAMES, DirtyFile, Journal, Records, read_records
from gfs.chunkserver.files.layout import HEAD_BYTES, NO_SUM, Redo, State
from gfs.chunkserver.files.progress import Call, making, report_progress
from gfs.chunkserver.files.recovery import read_state

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
    "bad_blocks",
    "boot_number",
    "copy_from",
    "finish_copy",
    "has_all_of",
    "making",
    "put_unverified",
    "read_records",
    "read_state",
    "read_unverified",
    "report_progress",
]

"""The state that a chunk file is in, with its records in the redo journal, after a restart."""

from __future__ import annotations

from collections.abc import Sequence

from gfs.chunkserver.files import layout
from gfs.chunkserver.files.layout import NO_SUM, Redo, State
from gfs.io import FileSystem


def state_of(
    head: bytes | bytearray, handle: int, file_bytes: int, records: Sequence[Redo]
) -> State | None:
    """The state in the file; None if there is none and none is required."""
    is_new = not any(head[: layout.PROBE_BYTES])
    if records and not records[0].base:
        is_new = is_new or layout.was_never_saved(head)
    return None if is_new else layout.recover_state(head, handle, file_bytes)


def read_state(
    files: FileSystem, path: str, handle: int, records: Sequence[Redo] = ()
) -> State | None:
    """Blocks. Only the replica's state, for the inventory at a start: that of the file, or
    of the last of the ``records`` that follow it.

    None for a file that was never committed. Raises CorruptReplica.
    """
    file = files.open(path, "r")
    try:
        head = bytearray(layout.PROBE_BYTES)
        got = file.read_into(memoryview(head), 0)
        state = state_of(head[:got], handle, file.size(), records)
    finally:
        file.close()
    for redo in records:
        if redo.base == (0 if state is None else state.sequence):
            state = State(redo.sequence, redo.version, redo.length, NO_SUM)
    return state

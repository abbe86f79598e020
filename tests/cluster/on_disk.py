"""The replicas in a chunkserver's directory as they lie there: each in a file, or packed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gfs.chunkserver.files import HEAD_BYTES
from gfs.chunkserver.packs import DATA_NAME, INDEX_NAME, layout


class Lies(NamedTuple):
    """Where a replica is: its head, or record, and its bytes."""

    handle: int
    head: Path
    head_at: int
    data: Path
    start: int
    length: int

    @property
    def is_packed(self) -> bool:
        return self.data.name == DATA_NAME


def replicas(directory: Path) -> dict[int, Lies]:
    """All replicas on one disk, by handle."""
    found = {}
    for path in directory.glob("chunks/*/*.chunk"):
        with suppress(FileNotFoundError):  # deleted, or moved, just now
            handle, length = int(path.stem, 16), path.stat().st_size - HEAD_BYTES
            found[handle] = Lies(handle, path, 512, path, HEAD_BYTES, length)
    index = directory / INDEX_NAME
    content = index.read_bytes() if index.exists() else b""
    for at in range(layout.HEAD_BYTES, len(content), layout.RECORD_BYTES):
        record = layout.decode_record(content[at : at + layout.RECORD_BYTES])
        if record is not None:
            where = directory / DATA_NAME, record.offset, record.length
            found[record.handle] = Lies(record.handle, index, at, *where)
    return found


def damage(replica: Lies, how: str = "flip") -> None:
    """Damage one replica: ``"flip"`` a bit of its bytes, or its head (``"flip
    head"``), ``"cut"`` off its end, or ``"delete"`` it."""
    if how == "flip":
        _flip(replica.data, replica.start + replica.length - 1)
    elif how == "flip head":
        _flip(replica.head, replica.head_at + 8)
    elif replica.is_packed:
        # Others are behind it.
        count = min(1000, replica.length) if how == "cut" else layout.RECORD_BYTES
        at = replica.start + replica.length - count if how == "cut" else replica.head_at
        with open(replica.data if how == "cut" else replica.head, "r+b") as file:
            file.seek(at)
            file.write(bytes(count))
    elif how == "cut":
        os.truncate(replica.data, replica.start + max(0, replica.length - 1000))
    else:
        replica.data.unlink()


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))

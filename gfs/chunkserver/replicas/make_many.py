"""Many small replicas made in one call to a disk, so that they share the price of a sync."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from gfs.chunkserver.disks.disk import Disk
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.progress import report_progress


class Made(NamedTuple):
    """A whole replica in memory, verified."""

    handle: int
    version: int
    data: memoryview
    sums: bytes


def make_all(disk: Disk, made: list[Made]) -> dict[int, OSError]:
    """Make the replicas. Blocks. Those that could not be made stay under another name;
    returned with the reason."""
    files: dict[int, ChunkFile] = {}
    failed: dict[int, OSError] = {}
    for step in (_write_new, _sync_new, _name_new):
        for one in made:
            report_progress()
            if one.handle not in failed:
                try:
                    step(disk, one, files)
                except OSError as error:
                    failed[one.handle] = error
    for folder in {disk.folder(one.handle) for one in made}:
        report_progress()
        try:
            disk.files.sync_directory(folder)
            if folder not in disk.journal.folders:
                disk.files.sync_directory(folder.rpartition("/")[0])
                disk.journal.folders.add(folder)
        except OSError as error:
            # It is unknown which names reached the disk: none of them counts.
            for one in made:
                if disk.folder(one.handle) == folder and one.handle not in failed:
                    failed[one.handle] = error
                    path = disk.chunk_path(one.handle)
                    with contextlib.suppress(OSError):
                        disk.files.rename(path, path + ".clone")
    for file in files.values():
        file.close()
    return failed


def _write_new(disk: Disk, one: Made, files: dict[int, ChunkFile]) -> None:
    path = disk.chunk_path(one.handle) + ".clone"
    file = files[one.handle] = ChunkFile.create(
        disk.files, path, one.handle, one.version, disk.journal, copied=True
    )
    file.write(0, one.data, one.sums)
    file.finish_copy()


def _sync_new(disk: Disk, one: Made, files: dict[int, ChunkFile]) -> None:
    files[one.handle].file.sync()


def _name_new(disk: Disk, one: Made, files: dict[int, ChunkFile]) -> None:
    path = disk.chunk_path(one.handle)
    disk.files.rename(path + ".clone", path)

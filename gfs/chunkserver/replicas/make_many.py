"""Making many small replicas in one call to a disk, so that they share the cost of a sync.

Errors are returned without their frames: those have the table of the errors, and all that was to
be written. It would be a circle, and stay until the garbage collector comes.
"""

from __future__ import annotations

import contextlib

from gfs.chunkserver.disks import Disk
from gfs.chunkserver.files import ChunkFile, finish_copy, report_progress
from gfs.chunkserver.packs import Made, PackedFile


def make_all(disk: Disk, made: list[Made], half: str) -> dict[int, OSError]:
    """Make the replicas. Blocks. Those that could not be made stay under their names with ``half``
    appended (:meth:`Disk.new_half`); returned with the reason."""
    files: dict[int, ChunkFile] = {}
    try:
        return _make_all(disk, made, half, files)
    finally:
        for file in files.values():
            file.close()


def _make_all(
    disk: Disk, made: list[Made], half: str, files: dict[int, ChunkFile]
) -> dict[int, OSError]:
    failed: dict[int, OSError] = {}
    for step in (_write_new, _sync_new, _name_new):
        for one in made:
            report_progress()
            if one.handle not in failed:
                try:
                    step(disk, one, half, files)
                except OSError as error:
                    failed[one.handle] = error.with_traceback(None)
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
                    failed[one.handle] = error.with_traceback(None)
                    path = disk.chunk_path(one.handle)
                    with contextlib.suppress(OSError):
                        disk.files.rename(path, path + half)
    return failed


def _write_new(disk: Disk, one: Made, half: str, files: dict[int, ChunkFile]) -> None:
    path = disk.chunk_path(one.handle) + half
    file = files[one.handle] = ChunkFile.create(
        disk.files, path, one.handle, one.version, disk.journal, copied=True
    )
    file.write(0, one.data, one.sums)
    finish_copy(file)


def _sync_new(disk: Disk, one: Made, half: str, files: dict[int, ChunkFile]) -> None:
    files[one.handle].file.sync()


def _name_new(disk: Disk, one: Made, half: str, files: dict[int, ChunkFile]) -> None:
    path = disk.chunk_path(one.handle)
    disk.files.rename(path + half, path)


def move_out(disk: Disk, file: PackedFile, half: str) -> ChunkFile:
    """Give a packed replica a chunk file, and open that. Blocks. The record is cleared when the
    file and its name are on the disk, and before the file is changed: a start that finds both
    keeps the record.

    Raises CorruptReplica, ``OSError``; then the replica stays packed.
    """
    handle, path = file.handle, disk.chunk_path(file.handle)
    data = memoryview(file.read_verified(0, file.length))
    made = Made(handle, file.version, data, file.sums(0, 1))
    for error in make_all(disk, [made], half).values():
        raise error
    moved = None
    try:
        moved = ChunkFile.open(disk.files, path, handle, disk.journal)
        disk.packs.remove([handle])
    except BaseException:
        if moved is not None:
            moved.close()
        if handle in disk.packs:
            with contextlib.suppress(OSError):
                disk.files.unlink(path)
        raise
    return moved


def write_all(made: list[tuple[ChunkFile, Made]]) -> dict[int, OSError]:
    """Write and commit new replicas. Blocks. Returns the errors of those that were not."""
    failed: dict[int, OSError] = {}
    for file, one in made:
        report_progress()
        try:
            file.write(0, one.data, one.sums)
            file.commit()
        except OSError as error:
            failed[one.handle] = error.with_traceback(None)
    return failed

"""The packed replicas on simulated disks, read without the chunkservers."""

from __future__ import annotations

from typing import NamedTuple

from gfs.blocks import PAGE_BYTES, block_sum
from gfs.chunkserver.packs import DATA_NAME, INDEX_NAME, layout
from gfs.chunkserver.packs.layout import RECORD_BYTES, Record
from gfs.testing import SimCluster
from gfs.testing.files import SimDisk
from gfs.testing.inode import SECTOR_BYTES, Inode


class Packed(NamedTuple):
    server: str
    directory: str
    record: Record
    #: Where the record is in the index.
    at: int
    #: Whether a start would find it, and its bytes are what its sum says.
    is_whole: bool

    @property
    def path(self) -> str:
        """To name it, as a chunk file."""
        return f"{self.directory}/{DATA_NAME}/{self.record.handle:016x}"


def packed_on(cluster: SimCluster, name: str, directory: str) -> list[Packed]:
    """Those on one disk of a server; none if the disk is away."""
    disk = cluster.machine(name).disk
    index, data = f"{directory}/{INDEX_NAME}", f"{directory}/{DATA_NAME}"
    if not disk.exists(index) or not disk.exists(data):
        return []
    found = []
    for at, record in records_in(disk.read(index)):
        is_whole = _is_whole(disk.inode(index), disk.inode(data), at, record)
        found.append(Packed(name, directory, record, at, is_whole))
    return found


def shared_slots(cluster: SimCluster, name: str, directory: str) -> list[str]:
    """Slots that two records have, which no crash may leave: a start cannot tell whose the
    bytes were when they were promised."""
    seen: dict[int, int] = {}
    found = []
    for packed in packed_on(cluster, name, directory):
        other = seen.setdefault(packed.record.offset, packed.record.handle)
        if other != packed.record.handle:
            found.append(f"{packed.path} of {name} has the slot of chunk {other:x}")
    return found


def refused_on(cluster: SimCluster, name: str, directory: str) -> set[int]:
    """The handles of packed replicas that the disk once refused to write back, with their bytes
    or their record, and does not have now."""
    disk = cluster.machine(name).disk
    index, data = f"{directory}/{INDEX_NAME}", f"{directory}/{DATA_NAME}"
    if not disk.exists(index) or not disk.exists(data):
        return set()
    refused, found = disk.inode(index).refused, set()
    for page, content in refused.items():
        if page:
            found |= {record.handle for _, record in _records(content)}
    there = packed_on(cluster, name, directory)
    for packed in there:
        if disk.inode(index).may_lose(packed.at, RECORD_BYTES) or disk.inode(data).may_lose(
            packed.record.offset, packed.record.length
        ):
            found.add(packed.record.handle)
        elif packed.is_whole:
            found.discard(packed.record.handle)
        elif disk.inode(data).refused:
            found.add(packed.record.handle)
    return found


def packed_of(cluster: SimCluster, name: str) -> list[Packed]:
    """Those on all disks of a server."""
    return [each for path in cluster.disks for each in packed_on(cluster, name, path)]


def stored(cluster: SimCluster, without: str = "") -> int:
    """How many replicas there are, on all servers or on the others."""
    names = [name for name in cluster.chunkservers if name != without]
    return sum(len(handles_on(cluster, name)) for name in names)


def handles_on(cluster: SimCluster, name: str) -> list[int]:
    """The handles of all replicas on a server's disks, in files or packed."""
    files = [int(p.rpartition("/")[2].partition(".")[0], 16) for p in cluster.chunk_files(name)]
    return files + [packed.record.handle for packed in packed_of(cluster, name)]


def replicas_on(cluster: SimCluster, name: str) -> list[tuple[str, int]]:
    """The directories and handles of all replicas on a server's disks."""
    files = [path.partition("/chunks/") for path in cluster.chunk_files(name)]
    found = [(at, int(rest.rpartition("/")[2].partition(".")[0], 16)) for at, _, rest in files]
    return found + [(each.directory, each.record.handle) for each in packed_of(cluster, name)]


def bytes_of(cluster: SimCluster, packed: Packed) -> bytes:
    data = cluster.machine(packed.server).disk.inode(f"{packed.directory}/{DATA_NAME}").data
    return bytes(data[packed.record.offset :][: packed.record.length])


def records_in(index: bytes) -> list[tuple[int, Record]]:
    return [(layout.HEAD_BYTES + at, each) for at, each in _records(index[layout.HEAD_BYTES :])]


def _records(content: bytes) -> list[tuple[int, Record]]:
    found = []
    for at in range(0, len(content) - RECORD_BYTES + 1, RECORD_BYTES):
        piece = content[at : at + RECORD_BYTES]
        record = layout.decode_record(piece) if any(piece) else None
        if record is not None:
            found.append((at, record))
    return found


def is_on_platter(disk: SimDisk, packed: Packed) -> bool:
    """Whether a power cut leaves it, whatever else it takes."""
    index, data = (disk.inode(f"{packed.directory}/{n}") for n in (INDEX_NAME, DATA_NAME))
    record, at = packed.record, packed.at
    if index.on_platter()[at : at + RECORD_BYTES] != layout.encode_record(record):
        return False
    return block_sum(data.on_platter()[record.offset :][: record.length]) == record.sum


def _is_whole(index: Inode, data: Inode, at: int, record: Record) -> bool:
    # What cannot be read of the index, cannot be read of all of its page.
    page = at // PAGE_BYTES * PAGE_BYTES
    if _is_unreadable(index, page, PAGE_BYTES):
        return False
    if _is_unreadable(data, record.offset, record.length):
        return False
    return block_sum(data.data[record.offset :][: record.length]) == record.sum


def _is_unreadable(inode: Inode, offset: int, count: int) -> bool:
    sectors = range(offset // SECTOR_BYTES, -(-(offset + count) // SECTOR_BYTES))
    return not inode.unreadable.isdisjoint(sectors)

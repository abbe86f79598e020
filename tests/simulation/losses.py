"""What faults have excused: as little as possible, and never a wrong byte.

A disk marks a file as *harmed* when it loses or damages bytes of it. A chunk's
bytes may be lost once every replica of its current version is harmed; one good
replica anywhere, on a machine that is dead or cut off as well, and nothing is
excused. A file with such a chunk is *shaken*: reading it may fail, or give bytes
that a later write had replaced; still nothing that was never written there.

Under ``durability = "fsync"`` a power cut excuses only chunks that are of no file yet.
With ``"replicated"`` it excuses what was not on the platters yet, of chunks that every
machine with a current replica lost so; not that a machine that comes back shows older
bytes than others have.
"""

from __future__ import annotations

from contextlib import suppress

from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.journal import NAMES, Journal, read_records
from gfs.chunkserver.files.layout import Redo
from gfs.errors import CorruptReplica, GfsError
from gfs.testing import SimCluster
from gfs.testing.files import SimDisk, SimFileSystem
from gfs.testing.inode import Inode
from gfs.testing.life import Onlooker

from .metadata import Metadata, read_metadata
from .plan import Plan
from .record import Record


def handle_of(path: str) -> int:
    return int(path.rpartition("/")[2].partition(".")[0], 16)


def copy_of(disk: SimDisk, path: str) -> SimFileSystem:
    """A chunk file on a disk that nobody else has; an empty one, as a start makes it, if
    its name did not survive."""
    scratch = SimDisk("scratch")
    scratch.make_directories(path.rpartition("/")[0])
    scratch.open_inode(path, "create").write(disk.read(path) if disk.exists(path) else b"", 0)
    return SimFileSystem(scratch, Onlooker())


def unsound_after_kill(cluster: SimCluster, name: str) -> list[str]:
    """Chunk files of a process that was just killed which recovery, tried on a copy of
    them, does not make sound. None may be: the page cache outlives the process."""
    disk = cluster.machine(name).disk
    found = []
    for path in cluster.chunk_files(name):
        if disk.inode(path).harmed:
            continue
        files, handle = copy_of(disk, path), handle_of(path)
        records = records_of(SimFileSystem(disk, Onlooker()), path)
        try:
            if ChunkFile.probe(files, path, handle, records) is None:
                continue  # never committed
            chunk = ChunkFile.open(files, path, handle, journal_of(files, path), records)
            bad = chunk.bad_blocks()
            chunk.close()
        except GfsError as error:
            found.append(f"{path} of {name}: {error}")
            continue
        if bad:
            found.append(f"{path} of {name}: blocks {bad} fail their checksums")
    return found


def unnamed(disk: SimDisk, directories: list[str], handle: int) -> list[str]:
    """Where a start would make the file of a chunk anew, that a power cut took with its
    name, but not its first records in the redo journal."""
    files = SimFileSystem(disk, Onlooker())
    found = []
    for directory in directories:
        path = f"{directory}/chunks/{handle & 0xFF:02x}/{handle:016x}.chunk"
        records = records_of(files, path)
        if records and not records[0].base and not disk.exists(path):
            found.append(path)
    return found


def records_of(files: SimFileSystem, path: str) -> list[Redo]:
    """What the redo journal of its disk has of a chunk file."""
    directory = path.rpartition("/chunks/")[0]
    return read_records(files, directory).take(handle_of(path))


def journal_of(files: SimFileSystem, path: str) -> Journal:
    """One that nothing is written to, for who opens a chunk file to look."""
    return Journal(files, path.rpartition("/chunks/")[0], False, 0)


def hangs_on_a_record(disk: SimDisk, path: str) -> bool:
    """Whether a write over old bytes was cut off in the middle, and what it takes to do
    it again is in a redo journal that is not on the platters."""
    directory = path.rpartition("/chunks/")[0]
    journals = [f"{directory}/{name}" for name in NAMES]
    if all(disk.is_synced(each) for each in journals if disk.exists(each)):
        return False
    files = SimFileSystem(disk, Onlooker())
    records = records_of(files, path)
    try:
        saved = ChunkFile.probe(files, path, handle_of(path))
    except (CorruptReplica, OSError):
        return bool(records)
    return any(redo.sequence > (0 if saved is None else saved.sequence) for redo in records)


class Losses:
    def __init__(self, cluster: SimCluster, record: Record, plan: Plan) -> None:
        self._cluster = cluster
        self._record = record
        self._synced_writes = plan.chunkserver.durability == "fsync"
        #: Chunks that have no good replica left, or had none for a while.
        self.handles: set[int] = set()
        self._promised: list[Inode] = []
        #: (Machine, directory) of redo journals that were damaged while a server was running.
        self._gone: set[tuple[str, str]] = set()
        #: Chunks whose first records were in one of those: a power cut that takes the name
        #: of such a file, takes it for good.
        self._unnamed: dict[int, tuple[str, str]] = {}
        record.look_for_losses = self.count

    def power_goes(self, machines: list[str], directory: str = "") -> None:
        """Called just before the power cut, or before one disk of a machine loses it: what
        is not on the platters is harmed."""
        metadata = read_metadata(self._cluster.directory)
        for name in machines:
            disk = self._cluster.machine(name).disk
            for path in self._cluster.chunk_files(name):
                if not path.startswith(f"{directory}/"):
                    continue
                inode, handle = disk.inode(path), handle_of(path)
                if self._synced_writes and not inode.harmed and self._is_known(handle, metadata):
                    self._promised.append(inode)
                elif not disk.is_synced(path) or hangs_on_a_record(disk, path):
                    inode.harmed = True
        self.count()

    def power_is_gone(self) -> None:
        """Called just after it: what was promised to be there is to be there."""
        for inode in self._promised:
            inode.harmed = False
        self._promised.clear()

    def journal_goes(self, name: str, directory: str) -> None:
        """Called just before a redo journal is damaged, by which nothing is lost that is in
        its server's memory."""
        disk = self._cluster.machine(name).disk
        records = read_records(SimFileSystem(disk, Onlooker()), directory).by_handle
        for handle, redos in records.items():
            if not redos[0].base:
                self._unnamed[handle] = name, directory
        self._gone.add((name, directory))

    def is_torn(self, name: str, path: str) -> bool:
        """Whether the redo journal of a chunk file's disk has a hole: what its server knows
        cannot be seen from outside."""
        directory = path.rpartition("/chunks/")[0]
        if (name, directory) not in self._gone:
            return False
        files = SimFileSystem(self._cluster.machine(name).disk, Onlooker())
        with suppress(OSError):  # a disk that is away
            if read_records(files, directory).is_whole:
                self._gone.remove((name, directory))
                return False
        return True

    def torn(self) -> list[tuple[str, str]]:
        """Which redo journals have holes: (machine, directory)."""
        return [
            (name, directory)
            for name, directory in sorted(self._gone)
            if self.is_torn(name, f"{directory}/chunks/")
        ]

    def is_emptied(self, name: str, directory: str) -> None:
        """Nothing is lost with a damaged redo journal any more."""
        self._gone.discard((name, directory))

    def server_is_gone(self, name: str) -> None:
        """Called when one died: what only a damaged journal has, may be any replica's."""
        disk = self._cluster.machine(name).disk
        paths = [path for path in self._cluster.chunk_files(name) if self.is_torn(name, path)]
        for path in paths:
            disk.inode(path).harmed = True
        self._gone = {each for each in self._gone if each[0] != name}
        if paths:
            self.count()

    def _is_known(self, handle: int, metadata: Metadata) -> bool:
        """Whether the chunk is of a file: all of what is in it was acknowledged, or is of
        writes that the model knows to be under way."""
        models = [self._record.of_inode(inode) for inode in metadata.owners(handle)]
        return bool(models) and None not in models

    def count(self) -> None:
        """See which chunks have no good replica, but harmed ones. Called after every
        harm; and later, since a grant makes a good replica stale that it does not reach,
        and goes by a harmed one for as long as nobody has noticed the harm."""
        with self._record.all_shown():
            self._count()

    def _count(self) -> None:
        metadata = read_metadata(self._cluster.directory)
        good: set[int] = set()
        self._unnamed = {
            handle: where for handle, where in self._unnamed.items() if self._hangs(handle, *where)
        }
        harmed = set(self._unnamed)
        for name in self._cluster.chunkservers:
            disk = self._cluster.machine(name).disk
            for path in self._cluster.chunk_files(name):
                if disk.inode(path).harmed:
                    harmed.add(handle_of(path))
                elif self._is_good(name, path, metadata):
                    good.add(handle_of(path))
        self.handles.update(harmed - good)
        self._shake(metadata)

    def _is_good(self, name: str, path: str, metadata: Metadata) -> bool:
        disk = self._cluster.machine(name).disk
        row = metadata.chunks.get(handle_of(path))
        if row is None:
            return True
        files = SimFileSystem(disk, Onlooker())
        try:
            state = ChunkFile.probe(files, path, handle_of(path), records_of(files, path))
        except (GfsError, OSError):
            return False
        return state is not None and state.version >= row.version

    def _hangs(self, handle: int, name: str, directory: str) -> bool:
        """Whether a new chunk is nowhere as a whole but in a redo journal."""
        disk = self._cluster.machine(name).disk
        path = f"{directory}/chunks/{handle & 0xFF:02x}/{handle:016x}.chunk"
        if not disk.exists(path) or not disk.is_synced(path):
            return True
        try:
            return ChunkFile.probe(SimFileSystem(disk, Onlooker()), path, handle) is None
        except (CorruptReplica, OSError):
            return True

    def _shake(self, metadata: Metadata) -> None:
        for handle in self.handles:
            for inode in metadata.owners(handle):
                model = self._record.of_inode(inode)
                if model is not None:
                    model.shaken = True

    def may_be_lost(self, inode: int) -> bool:
        """Whether a file may be unreadable."""
        self.count()
        handles = read_metadata(self._cluster.directory).handles(inode)
        return not self.handles.isdisjoint(handles)

"""What faults have excused: as little as possible, and never a wrong byte.

A disk marks a file as *harmed* when it loses or damages bytes of it. A chunk's
bytes may be lost once every replica of its current version is harmed; one good
replica anywhere, on a machine that is dead or cut off as well, and nothing is
excused. (But where the master had to elect one of several that may all lack something,
nobody can tell which of them by luck lacks nothing.) A file with such a chunk is
*shaken*: reading it may fail, or give bytes that a later write had replaced; still
nothing that was never written there.

Under ``durability = "fsync"`` a power cut excuses only chunks that are of no file yet.
With ``"replicated"`` it excuses what was not on the platters yet, of chunks that every
machine with a current replica lost so; not that a machine that comes back shows older
bytes than others have.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from weakref import WeakKeyDictionary

from gfs.chunkserver.files import bad_blocks as files_bad_blocks
from gfs.chunkserver.files import read_state
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.journal import NAMES, Journal, Records, read_records
from gfs.chunkserver.files.layout import Redo
from gfs.chunkserver.packs import INDEX_NAME
from gfs.chunkserver.packs.layout import RECORD_BYTES
from gfs.errors import CorruptReplica, GfsError
from gfs.testing import SimCluster
from gfs.testing.files import SimDisk, SimFileSystem
from gfs.testing.inode import Inode
from gfs.testing.life import Onlooker

from .metadata import Metadata, read_metadata
from .packs import Packed, is_on_platter, packed_of, packed_on, refused_on, shared_slots
from .plan import Plan
from .record import Record, Violation


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
        try:
            bad = bad_blocks(disk, path)
        except GfsError as error:
            found.append(f"{path} of {name}: {error}")
            continue
        if bad:
            found.append(f"{path} of {name}: blocks {bad} fail their checksums")
    return found


def bad_blocks(disk: SimDisk, path: str) -> list[int]:
    """The blocks that recovery, tried on a copy of a chunk file, does not make sound; none of one
    that was never committed. Raises CorruptReplica."""
    files, handle = copy_of(disk, path), handle_of(path)
    records = records_of(disk, path)
    if read_state(files, path, handle, records) is None:
        return []
    chunk = ChunkFile.open(files, path, handle, journal_of(files, path), records)
    try:
        return files_bad_blocks(chunk)
    finally:
        chunk.close()


def unnamed(disk: SimDisk, directories: list[str], handle: int) -> list[str]:
    """Where a start would make the file of a chunk anew, that a power cut took with its
    name, but not its first records in the redo journal."""
    found = []
    for directory in directories:
        path = f"{directory}/chunks/{handle & 0xFF:02x}/{handle:016x}.chunk"
        records = records_of(disk, path)
        if records and not records[0].base and not disk.exists(path):
            found.append(path)
    return found


def records_of(disk: SimDisk, path: str) -> list[Redo]:
    """What the redo journal of its disk has of a chunk file."""
    return records_on(disk, path.rpartition("/chunks/")[0]).by_handle.get(handle_of(path), [])


#: By the first file of a redo journal, what was in both when they were last read, and the records.
_read: WeakKeyDictionary[Inode, tuple[list[bytes], Records]] = WeakKeyDictionary()


def records_on(disk: SimDisk, directory: str) -> Records:
    """What the redo journal in ``directory`` has, not to be changed. It is asked for each chunk
    file, and decoded only when it has changed since."""
    files = SimFileSystem(disk, Onlooker())
    paths = [f"{directory}/{name}" for name in NAMES]
    if not all(map(disk.exists, paths)):
        return read_records(files, directory)
    inodes = [disk.inode(path) for path in paths]
    if any(inode.unreadable or inode.volume.is_unreadable for inode in inodes):
        return read_records(files, directory)
    known = _read.get(inodes[0])
    if known is None or known[0] != [inode.data for inode in inodes]:
        content = [bytes(inode.data) for inode in inodes]
        known = _read[inodes[0]] = content, read_records(files, directory)
    return known[1]


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
    records = records_of(disk, path)
    try:
        saved = read_state(SimFileSystem(disk, Onlooker()), path, handle_of(path))
    except (CorruptReplica, OSError):
        return bool(records)
    return any(redo.sequence > (0 if saved is None else saved.sequence) for redo in records)


class Losses:
    def __init__(self, cluster: SimCluster, record: Record, plan: Plan) -> None:
        self._cluster = cluster
        self._record = record
        self._synced_writes = plan.chunkserver.durability == "fsync"
        #: Chunks that have no good replica left, or had none for a while, and since when.
        self.lost_at: dict[int, float] = {}
        self._promised: list[Inode] = []
        #: (Machine, directory) of redo journals that were damaged while a server was running.
        self._gone: set[tuple[str, str]] = set()
        #: Chunks whose first records were in one of those: a power cut that takes the name
        #: of such a file, takes it for good.
        self._unnamed: dict[int, tuple[str, str]] = {}
        #: Packed replicas that are damaged on their disk, by (machine, directory, handle): where
        #: their record is, and its bytes. One whose record's bytes have changed is gone.
        self._damaged: dict[tuple[str, str, int], tuple[int, bytes]] = {}
        #: Those that the power cut that is about to happen may take.
        self._going: set[tuple[str, str, int]] = set()
        #: Servers that ever lost power, or a disk or notes on one: they may not know of some of
        #: their replicas that nothing is missing.
        self.unsure: set[str] = set()
        record.look_for_losses = self.count
        record.elected = self.elected

    def power_goes(self, machines: list[str], directory: str = "") -> None:
        """Called just before the power cut, or before one disk of a machine loses it: what
        is not on the platters is harmed."""
        self.unsure.update(machines)
        with self._record.all_shown():  # a volume that is not mounted loses as much
            self._note_what_goes(machines, directory)
        self.count()

    def _note_what_goes(self, machines: list[str], directory: str) -> None:
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
            for packed in packed_of(self._cluster, name):
                handle = packed.record.handle
                if directory not in ("", packed.directory) or is_on_platter(disk, packed):
                    continue
                if not (self._synced_writes and self._is_known(handle, metadata)):
                    self._going.add((name, packed.directory, handle))

    def power_is_gone(self) -> None:
        """Called just after it: what was promised to be there is to be there."""
        for inode in self._promised:
            inode.harmed = False
        self._promised.clear()
        with self._record.all_shown():
            self._note_what_is_gone()
        self._going.clear()

    def _note_what_is_gone(self) -> None:
        shared = [
            each
            for name in self._cluster.chunkservers
            for directory in self._cluster.disks
            for each in shared_slots(self._cluster, name, directory)
        ]
        if shared:
            raise Violation("a power cut left " + "; ".join(shared))
        for name, directory, handle in self._going:
            for packed in packed_on(self._cluster, name, directory):
                if packed.record.handle == handle and not packed.is_whole:
                    self._note_damage(packed)

    def packs_go(self, name: str, directory: str, before: list[Packed]) -> None:
        """Called after damage to packed replicas, of which there were these ``before``."""
        now = {each.at: each for each in packed_on(self._cluster, name, directory)}
        for packed in before:
            # One that was damaged in its bytes may have a record now that is damaged, too.
            was = packed.is_whole or (name, directory, packed.record.handle) in self._damaged
            if was and not (packed.at in now and now[packed.at].is_whole):
                self._note_damage(packed)

    def _note_damage(self, packed: Packed) -> None:
        key = packed.server, packed.directory, packed.record.handle
        self._damaged[key] = packed.at, self._record_bytes(*key[:2], packed.at)

    def _record_bytes(self, name: str, directory: str, at: int) -> bytes:
        disk, path = self._cluster.machine(name).disk, f"{directory}/{INDEX_NAME}"
        return disk.read(path)[at : at + RECORD_BYTES] if disk.exists(path) else b""

    def damaged_packs(self, name: str, directory: str) -> set[int]:
        """Packed replicas of a disk that are damaged, and were not replaced or deleted yet."""
        whole = {p.at for p in packed_on(self._cluster, name, directory) if p.is_whole}
        for key, (at, content) in list(self._damaged.items()):
            if key[:2] == (name, directory) and (
                at in whole or self._record_bytes(name, directory, at) != content
            ):
                del self._damaged[key]
        return {key[2] for key in self._damaged if key[:2] == (name, directory)}

    def unsound_packs(self, name: str) -> list[str]:
        """Packed replicas that a kill has left without their bytes."""
        return [
            f"{packed.path} of {name} fails its checksum"
            for packed in packed_of(self._cluster, name)
            if not packed.is_whole
            and packed.record.handle not in self.damaged_packs(name, packed.directory)
            and packed.record.handle not in refused_on(self._cluster, name, packed.directory)
        ]

    def journal_goes(self, name: str, directory: str) -> None:
        """Called just before a redo journal is damaged, by which nothing is lost that is in
        its server's memory."""
        disk = self._cluster.machine(name).disk
        for handle, redos in records_on(disk, directory).by_handle.items():
            if not redos[0].base:
                self._unnamed[handle] = name, directory
        self._gone.add((name, directory))

    def is_torn(self, name: str, path: str) -> bool:
        """Whether the redo journal of a chunk file's disk has a hole: what its server knows
        cannot be seen from outside."""
        directory = path.rpartition("/chunks/")[0]
        if (name, directory) not in self._gone:
            return False
        with suppress(OSError):  # a disk that is away
            if records_on(self._cluster.machine(name).disk, directory).is_whole:
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
            for directory in self._cluster.disks:
                refused = refused_on(self._cluster, name, directory)
                harmed |= self.damaged_packs(name, directory) | refused
                for packed in packed_on(self._cluster, name, directory):
                    handle, row = packed.record.handle, metadata.chunks.get(packed.record.handle)
                    if (name, directory, handle) in self._going:
                        harmed.add(handle)
                    elif handle in refused:
                        continue
                    elif packed.is_whole and (row is None or packed.record.version >= row.version):
                        good.add(handle)
        for handle in harmed - good:
            self.lost_at.setdefault(handle, self._record.now)
        self._shake(metadata)

    def elected(self, handle: int) -> None:
        """Called when a possibly stale replica has become the only current one of a chunk: what
        it lacks is lost from then on, though there are sound copies of it soon. But nothing
        is excused if a server had all that is sure of what it has: it should be preferred."""
        with self._record.all_shown():
            metadata = read_metadata(self._cluster.directory)
            row = metadata.chunks.get(handle)
            if row is None:
                return
            before = max(1, metadata.version_before(handle))
            for name, version in self._unharmed(handle):
                if version >= (row.version if name in self.unsure else before):
                    return
            self.lost_at.setdefault(handle, self._record.now)
            self._shake(metadata)

    def _unharmed(self, handle: int) -> Iterator[tuple[str, int]]:
        """The servers and versions of a chunk's replicas that lost nothing; version 0 if it
        cannot be read."""
        for name in self._cluster.chunkservers:
            disk = self._cluster.machine(name).disk
            for path in self._cluster.chunk_files(name):
                if handle_of(path) == handle and not disk.inode(path).harmed:
                    yield name, self._version(name, path)
            for packed in packed_of(self._cluster, name):
                if packed.record.handle == handle and packed.is_whole:
                    yield name, packed.record.version

    def _is_good(self, name: str, path: str, metadata: Metadata) -> bool:
        row = metadata.chunks.get(handle_of(path))
        return row is None or self._version(name, path) >= row.version

    def _version(self, name: str, path: str) -> int:
        """0 of a chunk file that is not whole."""
        disk = self._cluster.machine(name).disk
        files = SimFileSystem(disk, Onlooker())
        try:
            state = read_state(files, path, handle_of(path), records_of(disk, path))
        except (GfsError, OSError):
            return 0
        return 0 if state is None else state.version

    def _hangs(self, handle: int, name: str, directory: str) -> bool:
        """Whether a new chunk is nowhere as a whole but in a redo journal."""
        disk = self._cluster.machine(name).disk
        path = f"{directory}/chunks/{handle & 0xFF:02x}/{handle:016x}.chunk"
        if not disk.exists(path) or not disk.is_synced(path):
            return True
        try:
            return read_state(SimFileSystem(disk, Onlooker()), path, handle) is None
        except (CorruptReplica, OSError):
            return True

    def _shake(self, metadata: Metadata) -> None:
        for handle in self.lost_at:
            for inode in metadata.owners(handle):
                model = self._record.of_inode(inode)
                if model is not None:
                    model.shaken = True

    @property
    def handles(self) -> Set[int]:
        return self.lost_at.keys()

    def may_be_lost(self, inode: int) -> bool:
        """Whether a file may be unreadable."""
        self.count()
        handles = read_metadata(self._cluster.directory).handles(inode)
        return not self.handles.isdisjoint(handles)

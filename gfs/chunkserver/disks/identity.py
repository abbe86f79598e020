"""The record of this chunkserver on each of its disks: its identity, and other data
that must survive a restart.

``server.json`` has the server's id, its cluster, how often it was started (its
incarnation), the highest term of a master that it registered with, and the highest
operation-log sequence that a master of that term sent: a master behind that sequence
lacks operations that this server knows of, and its deletion orders are refused (see
``Orders``); a master of a lower term is deposed. It also has the addresses of the
master's shadow masters, one of which may be the next master; the progress of the scrub;
and the replicas that were found damaged and are not replaced yet.

It also names its own disk and lists all disks of the server: so a disk that is not
mounted is noticed, also at a start, and the bare directory of its mount point is not
taken for a new disk. Where each was mounted is remembered, here and by the master: so nothing
is put on the file system above that, neither for a new disk at that path nor by a server whose
only disk it was, and which would begin as a new one.

There are two copies, since the record is the only proof of the server's identity: a
copy that is damaged, or cannot be read, is rewritten from the other one.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Mapping

import msgspec

from gfs.blocks import block_sum
from gfs.chunkserver.disks.disk import PROBE, Disk
from gfs.chunkserver.disks.health import describe
from gfs.chunkserver.files import NAMES as JOURNAL_NAMES
from gfs.errors import StartupError
from gfs.failures import human_bytes
from gfs.io import FileSystem, ReadFailed, World, lost_mount

log = logging.getLogger(__name__)

NAME = "server.json"
NAMES = (NAME, f"{NAME}.copy")
LOCK = "lock"
#: A record is far smaller.
RECORD_BYTES_MAX = 1024 * 1024
#: The most damaged replicas that are recorded over a restart.
DAMAGED_MAX = 1000

REMOVED = "removed"
DRAINING = "draining"


class DiskRecord(msgspec.Struct):
    """A disk of the server. ``state``: "" | "draining" | "removed"."""

    id: str
    path: str
    state: str = ""
    #: Whether it failed, or was away, since it was last read.
    doubted: bool = False
    #: Where its file system was mounted when it was last used.
    mount: str = ""


class ServerRecord(msgspec.Struct):
    id: str
    cluster: str = ""
    incarnation: int = 0
    #: Raised with every save: a disk that missed a save has a lower number.
    revision: int = 0
    sequence: int = 0
    term: int = 0
    masters: list[str] = []
    #: The scrubber's present pass has read all replicas up to this handle, and began
    #: then; when the last whole pass ended, and began. Wall clock.
    scrubbed: int = 0
    scrub_began_ns: int = 0
    scrub_ended_ns: int = 0
    scrub_whole_began_ns: int = 0
    #: The disk that this copy is on, and all disks of the server.
    disk: str = ""
    disks: list[DiskRecord] = []
    #: (Handle, version) of replicas that were found damaged.
    damaged: list[tuple[int, int]] = []


class DamagedRecord(ValueError):
    """No copy of the record can be used."""


class MissingDisk(Exception):
    """The directory at a disk's path is not that disk."""


#: The last field of the file: the checksum of everything before it.
_SUM = b',"sum":"%s"}'
_SUM_BYTES = len(_SUM % bytes(16))


def encode_server(record: ServerRecord) -> bytes:
    fields = msgspec.json.encode(record)[:-1]
    return fields + _SUM % block_sum(fields).hex().encode()


def decode_server(data: bytes) -> ServerRecord:
    """Raises ``ValueError`` unless :meth:`encode_server` made ``data``."""
    fields = data[:-_SUM_BYTES]
    if data[len(fields) :] != _SUM % block_sum(fields).hex().encode():
        raise ValueError("it fails its checksum")
    return msgspec.json.decode(fields + b"}", type=ServerRecord)


# --- one disk: all of it blocks --------------------------------------------------------


def read_record(files: FileSystem, directory: str) -> ServerRecord | None:
    """The newer copy of the record in a directory; None if there is none, or no directory.
    Changes nothing. If there are copies and none is valid, raises ReadFailed when one cannot
    be read, else DamagedRecord. Also raises ``OSError``."""
    found: list[ServerRecord] = []
    wrong: list[str] = []
    refused: ReadFailed | None = None
    for name in NAMES:
        path = f"{directory}/{name}"
        try:
            found.append(_read_one(files, path))
        except FileNotFoundError:
            continue
        except ReadFailed as error:
            refused = error
            wrong.append(f"{path}: it cannot be read ({describe(error)})")
        except ValueError as error:
            wrong.append(f"{path}: damaged ({error})")
    if wrong and not found:
        raise refused or DamagedRecord("; ".join(wrong))
    for each in wrong:
        log.error("%s: using the other copy", each)
    return max(found, key=_age, default=None)


def _read_any(files: FileSystem, directory: str) -> ServerRecord | None:
    """As :func:`read_record`, but possibly the older copy: both name the disk's owner."""
    try:
        return _read_one(files, f"{directory}/{NAME}")
    except (FileNotFoundError, ReadFailed, ValueError):
        return read_record(files, directory)


def _age(record: ServerRecord) -> tuple[int, int, int, int]:
    return record.incarnation, record.term, record.sequence, record.revision


def _read_one(files: FileSystem, path: str) -> ServerRecord:
    file = files.open(path, "r")
    try:
        data = bytearray(min(file.size(), RECORD_BYTES_MAX))
        file.read_into(memoryview(data), 0)
        return decode_server(bytes(data))
    finally:
        file.close()


def save_record(disk: Disk, record: ServerRecord) -> None:
    """Write and sync the record. Raises ``OSError``, and MissingDisk if there was a
    record and is none now: an emptied directory must not be taken for the disk. One that is
    there and cannot be read is replaced."""
    with contextlib.suppress(ReadFailed):
        reason = check_disk(disk, record.id) if disk.mount.is_recorded else ""
        if reason:
            raise MissingDisk(reason)
    data = encode_server(msgspec.structs.replace(record, disk=disk.id))
    for name in NAMES:
        path = f"{disk.path}/{name}"
        file = disk.files.open(path + ".new", "replace")
        try:
            file.write(data, 0)
            file.sync()
        finally:
            file.close()
        disk.files.rename(path + ".new", path)
    disk.files.sync_directory(disk.path)
    disk.mount.is_recorded = True


def leave_disk(disk: Disk) -> None:
    """Delete the record, which is not written again, and everything else that a start makes in
    a directory, if there is no replica in it. All is gone for good when this returns. Raises
    ``OSError``, ENOTEMPTY if there is anything among the replicas, which stays with the rest."""
    files, at = disk.files, disk.path
    _unlink(files, *(f"{at}/{name}" for name in NAMES))
    if not files.exists(disk.packs.index_path) and not files.exists(disk.packs.data_path):
        files.remove_directory(disk.chunks_path)
        _unlink(files, *(f"{at}/{name}.new" for name in NAMES), f"{at}/{PROBE}")
        _unlink(files, *(f"{at}/{name}" for name in JOURNAL_NAMES), disk.intents.path)
        # The last one: a server that gets the lock finds nothing that is about to be deleted.
        _unlink(files, f"{at}/{LOCK}")
    files.sync_directory(at)


def _unlink(files: FileSystem, *paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            files.unlink(path)


def look_at(disk: Disk) -> ServerRecord | None:
    """Where the disk is mounted, and the record in its directory, as :func:`read_record`."""
    disk.mount.point = disk.world.files.mount_point(disk.path)
    return read_record(disk.world.files, disk.path)


def take_disk(
    disk: Disk,
    found: ServerRecord | None,
    is_forced: bool = False,
    taken: Collection[int] | None = None,
) -> None:
    """Open and lock the directory in which :func:`look_at` has ``found`` this; if that is None,
    make it if it does not exist. Raises MissingDisk if it has changed since, or if another
    chunkserver uses it; unless ``is_forced``, if it would be made where another file system is to
    be mounted, or, with ``taken``, on one of these or on the root file system; ``OSError``."""
    files = disk.world.files
    if not is_forced:
        if found is None and files.awaits_mount(disk.path):
            raise MissingDisk(
                "/etc/fstab has a file system for this path, which is not mounted: mount it first"
            )
        if taken is not None:
            _check_file_system(disk, taken)
    if found is None:
        files.make_directories(disk.path)
        files.sync_directory(disk.path.rstrip("/").rpartition("/")[0] or "/")
    try:
        disk.open("" if found is None else found.disk)
    except FileNotFoundError:
        raise MissingDisk("the directory does not exist any more") from None
    was = _owner(found), disk.mount.point
    if (_owner(_read_any(disk.files, disk.path)), files.mount_point(disk.path)) != was:
        raise MissingDisk("a file system was mounted or unmounted there just now: try again")
    try:
        disk.mount.lock = disk.files.lock(f"{disk.path}/{LOCK}")
    except BlockingIOError:
        raise MissingDisk(
            "another chunkserver uses this directory: stop it, or name another"
        ) from None


def _check_file_system(disk: Disk, taken: Collection[int]) -> None:
    """A disk that shares its file system fills it for others, and fails with them: an operator who
    adds one where nothing is mounted has mostly forgotten to mount it. Raises MissingDisk."""
    files, point = disk.world.files, disk.mount.point
    device = files.device(point)
    if device == files.device("/"):
        what = f"the root file system ({point})"
    elif device in taken:
        what = f"the file system mounted at {point}, where another disk of this machine is"
    else:
        return
    space = files.space(point)
    raise MissingDisk(
        f"it would be on {what}, with {human_bytes(space.free_bytes)} free of "
        f"{human_bytes(space.total_bytes)}: mount a file system of its own there first; to add it "
        "nevertheless: gfs disk add --force"
    )


def _owner(record: ServerRecord | None) -> tuple[str, str] | None:
    """The server and the disk that the record names."""
    return None if record is None else (record.id, record.disk)


def check_disk(disk: Disk, server: str = "") -> str:
    """Blocks. The reason why the directory that is visible at the disk's path now is not this
    disk, of this ``server`` if it is given; empty if it is. Raises ``OSError`` if the disk is
    there and fails."""
    files = disk.world.files
    try:
        if files.device(disk.path) != disk.mount.device:
            if lost_mount(disk.mount.point, files.mount_point(disk.path)):
                return f"it was unmounted: mount it at {disk.mount.point}"
            return "another file system is mounted there, or it was unmounted"
        record = _read_any(files, disk.path)
    except (FileNotFoundError, NotADirectoryError):
        return "the directory does not exist any more"
    except DamagedRecord:
        return ""  # it is rewritten with the next change; no other disk has its id
    if record is None:
        return f"its {NAME} is gone: it was unmounted, or emptied"
    if record.id != (server or record.id) or record.disk not in ("", disk.id):
        return f"it belongs to chunkserver {record.id}, as disk {record.disk}"
    return ""


# --- the server: decided over plain data -----------------------------------------------


class Identity:
    """The present record, for all disks."""

    def __init__(self) -> None:
        self.record = ServerRecord(id="")
        #: Cluster and term of the last record that was saved on a disk.
        self._saved = ("", 0)

    @property
    def remembers(self) -> bool:
        """Whether the next start will find the present cluster and term. A disk on
        which they could not be saved is full, or has failed."""
        return self._saved == (self.record.cluster, self.record.term)

    def saved(self, record: ServerRecord) -> None:
        """Note that the record was saved on a disk."""
        self._saved = (record.cluster, record.term)

    def begin(self, world: World, found: Mapping[str, ServerRecord]) -> None:
        """Take the newest of this server's records ``found``, by directory; or make one.
        Raises StartupError if the server's identity is ambiguous."""
        if found:
            server = which_server(found)
            own = [record for record in found.values() if record.id == server]
            self.record = msgspec.structs.replace(max(own, key=_age), disk="")
            for disk in self.record.disks:  # an older release kept --dir as it was given
                disk.path = os.path.abspath(disk.path)
            self.saved(self.record)
        else:
            self.record = ServerRecord(id=world.random_bytes(6).hex())
        # From the clock, so that it grows even if it cannot be saved; but never lower than before.
        now = world.clock.time_ns() // 1_000_000
        self.record.incarnation = max(self.record.incarnation + 1, now)

    def at(self, path: str) -> DiskRecord | None:
        """The record of the disk at a path."""
        return next((disk for disk in self.record.disks if disk.path == path), None)

    def put(self, disk: Disk, state: str = "") -> None:
        """Record the disk as one of the server's, at its path and at no other."""
        others = [
            each
            for each in self.record.disks
            if each.path != disk.path and (each.id != disk.id or not disk.id)
        ]
        self.record.disks = [*others, DiskRecord(disk.id, disk.path, state, mount=disk.mount.point)]

    def suspect(self, path: str) -> None:
        """Record that the disk at ``path`` failed, until it is read again, and :meth:`put`."""
        for disk in self.record.disks:
            disk.doubted = disk.doubted or disk.path == path


def which_server(found: Mapping[str, ServerRecord]) -> str:
    """The server that these directories belong to: the one that has most of its disks where
    its record says they are, or, of several, the one with most disks here. Raises StartupError
    if two servers have the same number."""
    claims: dict[str, tuple[int, int]] = {}
    for record in found.values():
        own = {path: each for path, each in found.items() if each.id == record.id}
        known = {disk.path: disk.id for disk in max(own.values(), key=_age).disks}
        in_place = sum(known.get(path) == each.disk for path, each in own.items())
        claims[record.id] = in_place, len(own)
    best = max(claims.values())
    servers = [server for server, claim in claims.items() if claim == best]
    if len(servers) > 1:
        raise StartupError(
            "these directories belong to different chunkservers: "
            + ", ".join(f"{path} to {record.id}" for path, record in found.items())
            + ": name only the directories of one server with --dir"
        )
    return servers[0]


def check_mount(disk: Disk, known: DiskRecord | None, found: ServerRecord | None) -> None:
    """Raises MissingDisk if the file system on which the ``known`` disk at this path was is not
    mounted, unless the disk itself was ``found``."""
    if known is None or (found is not None and found.disk == known.id):
        return
    now = disk.mount.point
    if lost_mount(known.mount, now):
        disk.mount.point = known.mount
        raise MissingDisk(
            f"it was mounted at {known.mount}, and nothing is mounted there: mount it. To fill the "
            f"file system of {now} instead, if that is what you want: gfs disk add --force"
        )


def name_disk(
    world: World,
    server: str,
    known: DiskRecord | None,
    found: ServerRecord | None,
    taken: Mapping[str, Disk],
) -> str:
    """The id of a disk of ``server``: at its path ``known`` is expected and ``found`` was
    read; ``taken`` are the other disks, by id. Raises MissingDisk if it is another disk."""
    if found is None:
        if known is not None:
            raise MissingDisk(f"its {NAME} is gone: it was emptied, or another disk is mounted")
        return world.random_bytes(6).hex()
    if found.id != server:
        raise MissingDisk(
            f"it belongs to chunkserver {found.id}: mount this server's own disk there. If this "
            f"server has no other disk, restart it: it goes on as {found.id}, with the replicas "
            "that are there"
        )
    if not found.disk or found.disk in taken:  # of an older format, or a copy of another's
        return world.random_bytes(6).hex()
    return found.disk

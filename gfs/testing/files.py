"""A simulated machine's disks: real directory semantics, in memory.

:class:`SimDisk` is what remains when a process is killed: the page cache and the
platters. :class:`SimFileSystem` is one process's view of it, and stops working at that
process's death. The disk remembers what was synced, so that
:meth:`SimDisk.power_cut` can lose the rest: of a file, the pages written and
not synced; of a directory, the names made, moved or removed since its last
``sync_directory``.

Tests can damage the disk of a running cluster: :meth:`flip_bit`,
:meth:`truncate`, :meth:`delete`, :meth:`fail`, :meth:`mount` with a capacity.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xxhash import xxh3_64_hexdigest

from gfs.io import Buffer, DiskSpace, File, ReadFailed
from gfs.testing.inode import SECTOR_BYTES, Directory, Hang, Inode, Volume, disk_error
from gfs.testing.life import Life
from gfs.testing.mounts import Mounts, Place, segments
from gfs.testing.threads import SimLock, blocking
from gfs.testing.trace import Trace

CAPACITY_BYTES = 1 << 40
CACHED_SHARE = 0.9
#: The share of all files that leave the page cache when a kernel writes back.
EVICTED_SHARE = 0.1


class SimDisk:
    """All the directories and files of one simulated machine."""

    def __init__(
        self, name: str, trace: Trace | None = None, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        self.name = name
        self.trace = trace
        self.mounts = Mounts(capacity_bytes)
        #: By path, the error of these calls to files at and below it.
        self.failing: dict[str, tuple[int, frozenset[str]]] = {}
        #: How often the power was cut.
        self.power_cuts = 0
        #: The share of reads that the page cache serves, and the generator that decides.
        self.cached_share = CACHED_SHARE
        self.chance = random.Random(name)

    # --- for tests: set up, inspect, damage ------------------------------------

    def mount(self, path: str, capacity_bytes: int, in_table: bool = False) -> None:
        """Make ``path`` a disk of its own; again: change its capacity. ``in_table``: the
        machine's table of file systems names it, so that a loss of the mount is visible there."""
        self.mounts.mount(path, capacity_bytes, in_table)

    def unmount(self, path: str) -> Volume:
        """As ``umount -l``: open files and directories of it go on working; ``path``
        then shows the bare directory that it was mounted on. Returns the volume, for
        :meth:`mount_again`."""
        self.note(f"unmount {path}")
        return self.mounts.unmount(path)

    def mount_again(self, path: str, volume: Volume) -> None:
        self.note(f"mount {path} again")
        self.mounts.put(path, volume)

    def pull(self, path: str, chance: random.Random | None = None) -> Volume:
        """Remove the device. Every call to its open files, and to its paths, fails;
        data that was not synced is lost, as in a power cut."""
        self.note(f"pull {path}")
        volume = self.volume(path)
        volume.gone = errno.EIO
        volume.lose_unsynced(chance)
        return volume

    def plug(self, path: str, volume: Volume) -> None:
        """Plug the device in again and mount it. Files that were open stay broken."""
        self.note(f"plug {path}")
        self.mounts.new_volume(path, volume.capacity_bytes).take_over(volume)

    def replace(self, path: str) -> None:
        """Mount another, empty disk there."""
        self.note(f"replace {path}")
        self.mounts.new_volume(path, self.volume(path).capacity_bytes)

    def hang(self, path: str, hang: Hang | None) -> None:
        """Make the disk at ``path`` sometimes not answer; None ends this. Calls that
        hang go on hanging."""
        self.note(f"{path}: {hang}")
        self.volume(path).hang = hang

    def volume(self, path: str) -> Volume:
        """The volume that is mounted at ``path``."""
        return self.mounts.volume(path)

    def fail(
        self, path: str, code: int = errno.EIO, what: Iterable[str] = ("read", "write", "sync")
    ) -> None:
        """Make every read, write or sync, or ``what`` of these, of files at and below
        ``path`` fail with ``code``; 0 ends this."""
        prefix = "/" + "/".join(segments(path))
        if code:
            self.failing[prefix] = code, frozenset(what)
        else:
            self.failing.pop(prefix, None)

    def lose_reads(self, path: str) -> None:
        """From now on nothing that is on the platter of the disk at ``path`` can be read, and
        everything can be written; what is written is in the page cache until that is dropped."""
        self.note(f"{path} cannot be read any more")
        self.volume(path).is_unreadable = True

    def paths(self, below: str = "/") -> list[str]:
        """The paths of all files at and below a directory, sorted."""
        return sorted(path for path, _ in self.mounts.walk(below))

    def read(self, path: str) -> bytes:
        return bytes(self.inode(path).data)

    def flip_bit(self, path: str, bit: int) -> None:
        """Flip one bit of a file, counted from its start, as a bad disk would."""
        self.note(f"flip bit {bit} of {path}")
        inode = self.inode(path)
        inode.data[bit // 8] ^= 1 << (bit % 8)
        inode.harmed = inode.damaged = True

    def spoil(self, path: str, offset: int) -> None:
        """Make the sector at ``offset`` of a file unreadable until it is written again."""
        self.note(f"spoil {path} at {offset}")
        inode = self.inode(path)
        inode.unreadable.add(offset // SECTOR_BYTES)
        inode.harmed = inode.damaged = True

    def truncate(self, path: str, size: int) -> None:
        self.note(f"truncate {path} to {size}")
        self.inode(path).resize(size)

    def delete(self, path: str) -> None:
        self.note(f"delete {path}")
        self.mounts.place(path).unlink()

    def inode(self, path: str) -> Inode:
        """The file at a path, for inspection."""
        return self.mounts.place(path).inode()

    def is_synced(self, path: str) -> bool:
        """Whether a file, with its bytes, its name and those of the directories above it,
        would survive a power cut as it is."""
        at = self.mounts.place(path)
        node: Inode | Directory = at.top
        for part in at.parts:
            if not isinstance(node, Directory) or part not in node.entries:
                raise disk_error(errno.ENOENT, path)
            if node.synced.get(part) is not node.entries[part]:
                return False
            node = node.entries[part]
        return isinstance(node, Inode) and not node.unsynced

    def write_back(self, chance: random.Random, share: float = 1.0) -> None:
        """Write files and names to the platter, as a kernel does in the background."""
        for path, inode in sorted(self.mounts.walk("/")):
            if chance.random() < EVICTED_SHARE:
                inode.evict()
            if chance.random() < share:
                try:
                    self.check_healthy(path, "sync")
                    inode.volume.check("sync")
                except OSError:
                    inode.fail_to_sync(chance)  # which the next sync reports
                    continue
                inode.sync()
                place = self.mounts.place(path)
                place.parent().write_back([place.parts[-1]])
        for directory in self.mounts.directories():
            gone = [n for n in directory.synced if n not in directory.entries]
            directory.write_back([name for name in gone if chance.random() < share])
            # A file's name is of use only if the directories above it exist.
            directory.write_back(
                [name for name, node in directory.entries.items() if isinstance(node, Directory)]
            )

    def wipe(self) -> None:
        """Replace all disks by new, empty ones."""
        self.note("wipe")
        self.mounts.wipe()

    def power_cut(self, chance: random.Random | None = None) -> None:
        """Lose the data that was not synced: all of it, or what ``chance`` decides,
        sector by sector.

        The machine's processes must be dead.
        """
        self.note("power cut")
        self.power_cuts += 1
        for volume in self.mounts.volumes:
            volume.lose_unsynced(chance)

    def note(self, event: str) -> None:
        if self.trace is not None:
            self.trace.add(f"{self.name} disk: {event}")

    # --- the tree ------------------------------------------------------------

    def is_cached(self) -> bool:
        """Whether the next read is served from the page cache."""
        return self.chance.random() < self.cached_share

    def check_healthy(self, path: str, what: str) -> None:
        for prefix, (code, failing) in self.failing.items():
            is_at = path == prefix or path.startswith(prefix.rstrip("/") + "/")
            if is_at and what in failing:
                if what == "read" and code == errno.EIO:
                    raise ReadFailed(code, os.strerror(code), path)
                raise disk_error(code, path)

    # --- the system calls, for tests that inspect a disk --------------------

    def open_inode(self, path: str, mode: str) -> Inode:
        return self.mounts.place(path).open(mode)

    def exists(self, path: str) -> bool:
        return self.mounts.place(path).exists()

    def file_size(self, path: str) -> int:
        return self.mounts.place(path).size()

    def make_directories(self, path: str) -> None:
        self.mounts.place(path).make_directories()

    def space(self, path: str) -> DiskSpace:
        return self.mounts.place(path).space()


#: What a call does to a disk: a fault may affect only reads, writes or syncs.
_CLASSES = {
    "write": "write", "truncate": "write", "create": "write", "unlink": "write",
    "rename": "write", "mkdir": "write", "rmdir": "write", "sync": "sync",
}  # fmt: skip


class SimFile:
    """An open file of one process."""

    def __init__(self, disk: SimDisk, path: str, inode: Inode, life: Life, mode: str) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._volume = inode.volume
        self._life = life
        self._writable = mode != "r"
        self._open = True
        #: The last failure of the write-back that this file's sync has reported. As in
        #: Linux, a failure that was not reported yet is also reported to those who open
        #: the file later.
        self._reported = inode.failures - (not inode.is_reported)
        inode.opened += 1
        life.hold(self, weakly=True)  # as a descriptor

    def _begin(self, kind: str) -> None:
        """The common beginning of every call."""
        what = _CLASSES.get(kind)
        if what is not None:
            self._life.burn()
        self._life.check()
        if not self._open or (what == "write" and not self._writable):
            raise disk_error(errno.EBADF, self._path)
        meet(self._life, self._volume, kind, self._disk.chance)

    def _require(self, what: str) -> None:
        if self._life.meets_failures:
            self._volume.check(what)
            self._disk.check_healthy(self._path, what)

    def _check(self, kind: str) -> Inode:
        self._begin(kind)
        self._require(_CLASSES.get(kind, "read"))
        return self._inode

    @blocking
    def read_into(self, buffer: memoryview, offset: int) -> int:
        return self._check("read").read(buffer, offset)

    def read_cached(self, buffer: memoryview, offset: int) -> bool:
        self._life.check()
        if not self._open:
            raise disk_error(errno.EBADF, self._path)
        if self._volume.hang is not None or not self._disk.is_cached():
            return False
        try:
            self._require("read")
            return self._inode.read(buffer, offset) == len(buffer)
        except OSError:
            return False  # a real read raises that

    @blocking
    def write(self, data: Buffer, offset: int) -> None:
        self._check("write").write(data, offset)
        self._disk.note(f"{self._path} {offset} +{len(data)} {xxh3_64_hexdigest(data)}")

    def copy_from(self, source: File, offset: int, count: int) -> None:
        data = bytearray(count)
        if source.read_into(memoryview(data), offset) < count:
            raise ReadFailed(errno.EIO, "the file to be copied ended early")
        self.write(data, offset)

    @blocking
    def size(self) -> int:
        return len(self._check("stat").data)

    @blocking
    def truncate(self, size: int) -> None:
        self._check("truncate").resize(size)
        self._disk.note(f"{self._path} cut to {size}")

    @blocking
    def punch(self, offset: int, count: int) -> None:
        self._check("truncate").punch(offset, count)
        self._disk.note(f"{self._path} {offset} -{count}")

    def start_sync(self, offset: int, count: int) -> None:
        """Nothing to do: a power cut may keep any part of what was not synced in any case."""

    @blocking
    def sync(self) -> None:
        inode = self._inode
        self._begin("sync")
        failure: OSError | None = None
        try:
            self._require("sync")
            if inode.unsynced:
                self._require("write")
            inode.sync()
        except OSError as error:
            failure = error
            inode.fail_to_sync(self._disk.chance)
        if self._reported != inode.failures:
            self._reported, inode.is_reported = inode.failures, True
            failure = failure or disk_error(errno.EIO, self._path)
        if failure is not None:
            raise failure

    @blocking
    def drop_cached(self) -> None:
        self._check("stat").evict()

    @blocking
    def close(self) -> None:
        if self._open:
            meet(self._life, self._volume, "close", self._disk.chance)
            self._let_go()

    def _let_go(self) -> None:
        if self._open:
            self._life.let_go(self)
            self.die()

    def die(self) -> None:
        """Close the file, as the kernel does when the process ends."""
        if not self._open:
            return  # by a thread of the process that ended a moment ago
        self._open = False
        if self._inode.locked_by is self:
            self._inode.locked_by = None
        self._inode.opened -= 1
        if not self._inode.used():
            self._inode.volume.used_bytes -= self._inode.stored_bytes

    def __del__(self) -> None:
        self._let_go()


def meet(life: Life, volume: Volume, kind: str, chance: random.Random) -> None:
    """Let the disk hang during this call, if it is to."""
    if volume.hang is not None and life.call is not None:
        life.call.meets(volume.hang, kind, chance)


class SimFileSystem:
    """One process's access to its machine's disk, as :class:`gfs.io.FileSystem`."""

    def __init__(self, disk: SimDisk, life: Life, held: Held | None = None) -> None:
        self._disk = disk
        self._life = life
        #: What :meth:`within` has open.
        self._held = held

    def sync_all(self, files: Sequence[File]) -> None:
        failed: list[OSError] = []
        for file in self._disk.chance.sample(files, len(files)):
            try:
                file.sync()
            except OSError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def make_lock(self) -> SimLock:
        return SimLock(self._life)

    @blocking
    def within(self, directory: str) -> SimFileSystem:
        top = self._place(directory, "open").directory()
        held = Held(segments(directory), top, top.volume)
        return SimFileSystem(self._disk, self._life, held)

    def close(self) -> None:
        if self._held is not None:
            self._held = self._held._replace(top=None)

    def _place(self, path: str, kind: str) -> Place:
        parts, what = segments(path), _CLASSES.get(kind)
        if what is not None:
            self._life.burn()
        self._life.check()
        place = self._lead(path, parts)
        volume = place.top.volume if self._held is None else self._held.volume
        meet(self._life, volume, kind, self._disk.chance)
        if self._life.meets_failures:
            volume.check(what or "read")
            if self._disk.failing:
                self._disk.check_healthy("/" + "/".join(parts), what or "read")
        return place

    def _lead(self, path: str, parts: tuple[str, ...]) -> Place:
        held = self._held
        if held is None or parts[: len(held.parts)] != held.parts:
            return self._disk.mounts.place(path)
        if held.top is None:
            raise disk_error(errno.EBADF, path)
        return Place(held.top, parts[len(held.parts) :], path)

    @blocking
    def open(self, path: str, mode: str) -> SimFile:
        place = self._place(path, "create" if mode in ("create", "replace") else "open")
        if mode == "rw" and self._life.meets_failures:
            place.top.volume.check("write")
        full = "/" + "/".join(segments(path))
        return SimFile(self._disk, full, place.open(mode), self._life, mode)

    @blocking
    def lock(self, path: str) -> SimFile:
        place = self._place(path, "open")
        inode = place.open("rw" if place.exists() else "create")
        if inode.locked_by is not None:
            raise disk_error(errno.EAGAIN, path)
        file = SimFile(self._disk, path, inode, self._life, "rw")
        inode.locked_by = file
        return file

    @blocking
    def list(self, path: str) -> list[str]:
        return list(self._place(path, "list").directory().entries)

    @blocking
    def exists(self, path: str) -> bool:
        return self._place(path, "stat").exists()

    @blocking
    def file_size(self, path: str) -> int:
        return self._place(path, "stat").size()

    @blocking
    def unlink(self, path: str) -> None:
        self._place(path, "unlink").unlink()
        self._disk.note(f"{path} unlinked")

    @blocking
    def rename(self, source: str, target: str) -> None:
        place = self._place(source, "rename")
        place.rename(self._lead(target, segments(target)))
        self._disk.note(f"{source} renamed {target}")

    @blocking
    def make_directories(self, path: str) -> None:
        self._place(path, "mkdir").make_directories()

    @blocking
    def remove_directory(self, path: str) -> None:
        self._place(path, "rmdir").remove_directory()

    @blocking
    def sync_directory(self, path: str) -> None:
        try:
            place = self._place(path, "sync")
        except OSError:
            if self._life.alive:
                with contextlib.suppress(OSError):
                    self._lead(path, segments(path)).directory().fail_to_sync()
            raise
        place.directory().sync()

    @blocking
    def space(self, path: str) -> DiskSpace:
        return self._place(path, "space").space()

    @blocking
    def awaits_mount(self, path: str) -> bool:
        self._life.check()
        return self._disk.mounts.awaits(path)

    @blocking
    def mount_point(self, path: str) -> str:
        self._life.check()
        meet(self._life, self._disk.mounts.place(path).top.volume, "stat", self._disk.chance)
        return self._disk.mounts.point(path)

    @blocking
    def device(self, path: str) -> int:
        self._life.check()
        place = self._disk.mounts.place(path)
        meet(self._life, place.top.volume, "stat", self._disk.chance)
        return place.directory_or_parent().volume.number


class Held(NamedTuple):
    """A directory that is open, and its path; None after its close."""

    parts: tuple[str, ...]
    top: Directory | None
    #: Its volume: a device that was removed stays removed for those who have this open.
    volume: Volume

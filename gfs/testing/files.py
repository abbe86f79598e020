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
import functools
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from xxhash import xxh3_64_hexdigest

from gfs.blocks import PAGE_BYTES
from gfs.io import Buffer, DiskSpace, File, ReadFailed
from gfs.testing.inode import (
    SECTOR_BYTES,
    Directory,
    Hang,
    Inode,
    Volume,
    disk_error,
)
from gfs.testing.life import Life
from gfs.testing.threads import SimLock, blocking
from gfs.testing.trace import Trace

CAPACITY_BYTES = 1 << 40
CACHED_SHARE = 0.9
#: The share of all files that leave the page cache when a kernel writes back.
EVICTED_SHARE = 0.1


@functools.lru_cache(maxsize=1 << 14)
def _segments(path: str) -> tuple[str, ...]:
    return tuple(part for part in os.fspath(path).split("/") if part not in ("", "."))


class SimDisk:
    """All the directories and files of one simulated machine."""

    def __init__(
        self, name: str, trace: Trace | None = None, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        self.name = name
        self.trace = trace
        #: Every volume there ever was, and which one is mounted where.
        self._volumes: list[Volume] = []
        self._mounts: dict[tuple[str, ...], Volume] = {(): self._new_volume(capacity_bytes)}
        #: How many names the longest path of a mount has.
        self._deepest = 0
        #: The mount points in the machine's table of file systems (``/etc/fstab``).
        self._in_table: set[tuple[str, ...]] = set()
        self._failing: dict[str, tuple[int, frozenset[str]]] = {}
        #: How often the power was cut.
        self.power_cuts = 0
        #: The share of reads that the page cache serves, and the generator that decides.
        self.cached_share = CACHED_SHARE
        self.chance = random.Random(name)

    # --- for tests: set up, inspect, damage ------------------------------------

    def mount(self, path: str, capacity_bytes: int, in_table: bool = False) -> None:
        """Make ``path`` a disk of its own; again: change its capacity. ``in_table``: the
        machine's table of file systems names it, so that a loss of the mount is visible there."""
        parts = _segments(path)
        volume = self._mounts.get(parts)
        if in_table:
            self._in_table.add(parts)
        if volume is None:
            self.make_directories(path)
            self._mounts[parts] = self._new_volume(capacity_bytes)
            self._deepest = max(self._deepest, len(parts))
        else:
            volume.capacity_bytes = capacity_bytes

    def unmount(self, path: str) -> Volume:
        """As ``umount -l``: open files and directories of it go on working; ``path``
        then shows the bare directory that it was mounted on. Returns the volume, for
        :meth:`mount_again`."""
        self.note(f"unmount {path}")
        return self._mounts.pop(_segments(path))

    def mount_again(self, path: str, volume: Volume) -> None:
        self.note(f"mount {path} again")
        self._mounts[_segments(path)] = volume

    def pull(self, path: str, chance: random.Random | None = None) -> Volume:
        """Remove the device. Every call to its open files, and to its paths, fails;
        data that was not synced is lost, as in a power cut."""
        self.note(f"pull {path}")
        volume = self.volume(path)
        volume.gone = errno.EIO
        self._lose_all(volume, chance)
        return volume

    def plug(self, path: str, volume: Volume) -> None:
        """Plug the device in again and mount it. Files that were open stay broken."""
        self.note(f"plug {path}")
        again = self._new_volume(volume.capacity_bytes)
        again.take_over(volume)
        self._mounts[_segments(path)] = again

    def replace(self, path: str) -> None:
        """Mount another, empty disk there."""
        self.note(f"replace {path}")
        self._mounts[_segments(path)] = self._new_volume(self.volume(path).capacity_bytes)

    def hang(self, path: str, hang: Hang | None) -> None:
        """Make the disk at ``path`` sometimes not answer; None ends this. Calls that
        hang go on hanging."""
        self.note(f"{path}: {hang}")
        self.volume(path).hang = hang

    @property
    def may_hang(self) -> bool:
        return any(volume.hang is not None for volume in self._volumes)

    def volume(self, path: str) -> Volume:
        """The volume that is mounted at ``path``."""
        return self._mounts[_segments(path)]

    def _new_volume(self, capacity_bytes: int) -> Volume:
        volume = Volume(len(self._volumes) + 1, capacity_bytes)
        self._volumes.append(volume)
        return volume

    def fail(
        self, path: str, code: int = errno.EIO, what: Iterable[str] = ("read", "write", "sync")
    ) -> None:
        """Make every read, write or sync, or ``what`` of these, of files at and below
        ``path`` fail with ``code``; 0 ends this."""
        prefix = "/" + "/".join(_segments(path))
        if code:
            self._failing[prefix] = code, frozenset(what)
        else:
            self._failing.pop(prefix, None)

    def lose_reads(self, path: str) -> None:
        """From now on nothing that is on the platter of the disk at ``path`` can be read, and
        everything can be written; what is written is in the page cache until that is dropped."""
        self.note(f"{path} cannot be read any more")
        self.volume(path).is_unreadable = True

    def paths(self, below: str = "/") -> list[str]:
        """The paths of all files at and below a directory, sorted."""
        return sorted(path for path, _ in self._walk(below))

    def read(self, path: str) -> bytes:
        return bytes(self._inode(path).data)

    def flip_bit(self, path: str, bit: int) -> None:
        """Flip one bit of a file, counted from its start, as a bad disk would."""
        self.note(f"flip bit {bit} of {path}")
        inode = self._inode(path)
        inode.data[bit // 8] ^= 1 << (bit % 8)
        inode.harmed = inode.damaged = True

    def spoil(self, path: str, offset: int) -> None:
        """Make the sector at ``offset`` of a file unreadable until it is written again."""
        self.note(f"spoil {path} at {offset}")
        inode = self._inode(path)
        inode.unreadable.add(offset // SECTOR_BYTES)
        inode.harmed = inode.damaged = True

    def truncate(self, path: str, size: int) -> None:
        self.note(f"truncate {path} to {size}")
        self._inode(path).resize(size)

    def delete(self, path: str) -> None:
        self.note(f"delete {path}")
        self.unlink(path)

    def inode(self, path: str) -> Inode:
        """The file at a path, for inspection."""
        return self._inode(path)

    def is_synced(self, path: str) -> bool:
        """Whether a file, with its bytes, its name and those of the directories above it,
        would survive a power cut as it is."""
        at = self._visible(path)
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
        for path, inode in sorted(self._walk("/")):
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
                place = self._visible(path)
                place.parent().write_back([place.parts[-1]])
        for directory in self._directories():
            gone = [n for n in directory.synced if n not in directory.entries]
            directory.write_back([name for name in gone if chance.random() < share])
            # A file's name is of use only if the directories above it exist.
            directory.write_back(
                [name for name, node in directory.entries.items() if isinstance(node, Directory)]
            )

    def _directories(self) -> Iterator[Directory]:
        stack = [volume.top for volume in self._mounts.values()]
        while stack:
            directory = stack.pop()
            yield directory
            stack += [each for each in directory.entries.values() if isinstance(each, Directory)]

    def wipe(self) -> None:
        """Replace all disks by new, empty ones."""
        self.note("wipe")
        (_, first), *others = sorted(self._mounts.items())
        self._mounts = {(): self._new_volume(first.capacity_bytes)}
        for parts, volume in others:
            self.mount("/".join(parts), volume.capacity_bytes)

    def power_cut(self, chance: random.Random | None = None) -> None:
        """Lose the data that was not synced: all of it, or what ``chance`` decides,
        sector by sector.

        The machine's processes must be dead.
        """
        self.note("power cut")
        self.power_cuts += 1
        for volume in self._volumes:
            self._lose_all(volume, chance)

    def _lose_all(self, volume: Volume, chance: random.Random | None) -> None:
        self._lose_unsynced(volume.top, chance)
        volume.used_bytes = sum(inode.stored_bytes for _, inode in _walk("", volume.top))

    def _lose_unsynced(self, directory: Directory, chance: random.Random | None) -> None:
        if chance is not None and chance.random() < 0.5:
            # The names had been written back already.
            directory.synced = dict(directory.entries)
        for name, node in directory.synced.items():
            if isinstance(node, Inode) and directory.entries.get(name) is not node:
                node.harmed = True  # an old file has its name back
        directory.entries = dict(directory.synced)
        for node in directory.entries.values():
            if isinstance(node, Directory):
                node.deleted = False
                self._lose_unsynced(node, chance)
            else:
                node.names = 1
                node.lose_unsynced(chance)

    def note(self, event: str) -> None:
        if self.trace is not None:
            self.trace.add(f"{self.name} disk: {event}")

    # --- the tree ------------------------------------------------------------

    def _visible(self, path: str) -> Place:
        """The file or directory that is visible at ``path`` now."""
        parts = _segments(path)
        for count in range(min(len(parts), self._deepest), 0, -1):
            volume = self._mounts.get(parts[:count])
            if volume is not None:
                return Place(volume.top, parts[count:], path)
        return Place(self._mounts[()].top, parts, path)

    def _node(self, path: str) -> Inode | Directory:
        return self._visible(path).node()

    def _inode(self, path: str) -> Inode:
        return self._visible(path).inode()

    def _walk(self, below: str) -> Iterator[tuple[str, Inode]]:
        """All that is visible at and below a directory."""
        parts = _segments(below)
        yield from _walk("/" + "/".join(parts), self._node(below))
        for at, volume in list(self._mounts.items()):
            if at[: len(parts)] == parts and at != parts and at:
                yield from _walk("/" + "/".join(at), volume.top)

    def is_cached(self) -> bool:
        """Whether the next read is served from the page cache."""
        return self.chance.random() < self.cached_share

    @property
    def may_fail(self) -> bool:
        """Whether :meth:`check_healthy` may raise."""
        return bool(self._failing)

    def check_healthy(self, path: str, what: str) -> None:
        for prefix, (code, failing) in self._failing.items():
            is_at = path == prefix or path.startswith(prefix.rstrip("/") + "/")
            if is_at and what in failing:
                if what == "read" and code == errno.EIO:
                    raise ReadFailed(code, os.strerror(code), path)
                raise disk_error(code, path)

    # --- the system calls, for tests that inspect a disk --------------------

    def open_inode(self, path: str, mode: str) -> Inode:
        return self._visible(path).open(mode)

    def exists(self, path: str) -> bool:
        return self._visible(path).exists()

    def file_size(self, path: str) -> int:
        return self._visible(path).size()

    def unlink(self, path: str) -> None:
        self._visible(path).unlink()

    def make_directories(self, path: str) -> None:
        self._visible(path).make_directories()

    def space(self, path: str) -> DiskSpace:
        return self._visible(path).space()

    def awaits_mount(self, path: str) -> bool:
        parts = _segments(path)
        return any(
            parts[: len(point)] == point and point not in self._mounts for point in self._in_table
        )

    def mount_point(self, path: str) -> str:
        parts = _segments(path)
        while parts not in self._mounts:
            parts = parts[:-1]
        return "/" + "/".join(parts)


def _walk(path: str, node: Inode | Directory) -> Iterator[tuple[str, Inode]]:
    stack = [(path, node)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, Inode):
            yield path, node
        else:
            stack += [(f"{path.rstrip('/')}/{name}", each) for name, each in node.entries.items()]


class Place(NamedTuple):
    """A path as a kernel resolves it: names to follow from a directory."""

    top: Directory
    parts: tuple[str, ...]
    #: As it was given, for error messages.
    path: str

    def _follow(self, parts: tuple[str, ...]) -> Inode | Directory:
        node: Inode | Directory = self.top
        for part in parts:
            if not isinstance(node, Directory):
                raise disk_error(errno.ENOTDIR, self.path)
            found = node.entries.get(part)
            if found is None:
                raise disk_error(errno.ENOENT, self.path)
            node = found
        return node

    def node(self) -> Inode | Directory:
        return self._follow(self.parts)

    def inode(self) -> Inode:
        node = self.node()
        if isinstance(node, Directory):
            raise disk_error(errno.EISDIR, self.path)
        return node

    def directory(self) -> Directory:
        node = self.node()
        if not isinstance(node, Directory):
            raise disk_error(errno.ENOTDIR, self.path)
        return node

    def directory_or_parent(self) -> Directory:
        node = self.node()
        return node if isinstance(node, Directory) else self.parent()

    def parent(self) -> Directory:
        if not self.parts:
            raise disk_error(errno.EISDIR, self.path)
        node = self._follow(self.parts[:-1])
        if not isinstance(node, Directory):
            raise disk_error(errno.ENOTDIR, self.path)
        return node

    def open(self, mode: str) -> Inode:
        if mode in ("r", "rw"):
            return self.inode()
        if mode not in ("create", "replace"):
            raise ValueError(f"mode {mode!r}")
        parent = self.parent()
        node = parent.entries.get(self.parts[-1])
        if node is None:
            self._require_kept(parent)
            node = parent.entries[self.parts[-1]] = Inode(parent.volume)
            node.names = 1
        elif mode == "create":
            raise disk_error(errno.EEXIST, self.path)
        elif isinstance(node, Directory):
            raise disk_error(errno.EISDIR, self.path)
        else:
            node.resize(0)
        return node

    def _require_kept(self, directory: Directory) -> None:
        if directory.deleted:
            raise disk_error(errno.ENOENT, self.path)

    def exists(self) -> bool:
        try:
            self.node()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size(self) -> int:
        node = self.node()
        return PAGE_BYTES if isinstance(node, Directory) else len(node.data)

    def unlink(self) -> None:
        inode = self.inode()
        del self.parent().entries[self.parts[-1]]
        _drop_name(inode)

    def rename(self, target: Place) -> None:
        node, parent, name = self.node(), self.parent(), self.parts[-1]
        target_parent, target_name = target.parent(), target.parts[-1]
        if parent.volume is not target_parent.volume:
            raise disk_error(errno.EXDEV, self.path)
        replaced = target_parent.entries.get(target_name)
        if replaced is node:
            return
        if isinstance(replaced, Directory):
            if not isinstance(node, Directory):
                raise disk_error(errno.EISDIR, target.path)
            if replaced.entries:
                raise disk_error(errno.ENOTEMPTY, target.path)
        elif replaced is not None:
            if isinstance(node, Directory):
                raise disk_error(errno.ENOTDIR, target.path)
            _drop_name(replaced)
        self._require_kept(target_parent)
        del parent.entries[name]
        target_parent.entries[target_name] = node

    def make_directories(self) -> None:
        directory = self.top
        for part in self.parts:
            node = directory.entries.get(part)
            if node is None:
                self._require_kept(directory)
                node = directory.entries[part] = Directory(directory.volume)
            elif isinstance(node, Inode):
                raise disk_error(errno.EEXIST, self.path)
            directory = node

    def remove_directory(self) -> None:
        directory = self.directory()
        if directory.entries:
            raise disk_error(errno.ENOTEMPTY, self.path)
        directory.deleted = True
        del self.parent().entries[self.parts[-1]]

    def space(self) -> DiskSpace:
        volume = self.directory_or_parent().volume
        free = max(volume.capacity_bytes - volume.used_bytes, 0)
        return DiskSpace(volume.capacity_bytes, free, bool(volume.read_only))


def _drop_name(inode: Inode) -> None:
    # The bytes are kept: a name whose removal was not synced comes back in a power cut.
    inode.names -= 1
    if not inode.used():
        inode.volume.used_bytes -= inode.stored_bytes


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
        held = Held(_segments(directory), top, top.volume)
        return SimFileSystem(self._disk, self._life, held)

    def close(self) -> None:
        if self._held is not None:
            self._held = self._held._replace(top=None)

    def _place(self, path: str, kind: str) -> Place:
        parts, what = _segments(path), _CLASSES.get(kind)
        if what is not None:
            self._life.burn()
        self._life.check()
        place = self._lead(path, parts)
        volume = place.top.volume if self._held is None else self._held.volume
        meet(self._life, volume, kind, self._disk.chance)
        if self._life.meets_failures:
            volume.check(what or "read")
            if self._disk.may_fail:
                self._disk.check_healthy("/" + "/".join(parts), what or "read")
        return place

    def _lead(self, path: str, parts: tuple[str, ...]) -> Place:
        held = self._held
        if held is None or parts[: len(held.parts)] != held.parts:
            return self._disk._visible(path)
        if held.top is None:
            raise disk_error(errno.EBADF, path)
        return Place(held.top, parts[len(held.parts) :], path)

    @blocking
    def open(self, path: str, mode: str) -> SimFile:
        place = self._place(path, "create" if mode in ("create", "replace") else "open")
        if mode == "rw" and self._life.meets_failures:
            place.top.volume.check("write")
        full = "/" + "/".join(_segments(path))
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
        place.rename(self._lead(target, _segments(target)))
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
                    self._lead(path, _segments(path)).directory().fail_to_sync()
            raise
        place.directory().sync()

    @blocking
    def space(self, path: str) -> DiskSpace:
        return self._place(path, "space").space()

    @blocking
    def awaits_mount(self, path: str) -> bool:
        self._life.check()
        return self._disk.awaits_mount(path)

    @blocking
    def mount_point(self, path: str) -> str:
        self._life.check()
        meet(self._life, self._disk._visible(path).top.volume, "stat", self._disk.chance)
        return self._disk.mount_point(path)

    @blocking
    def device(self, path: str) -> int:
        self._life.check()
        place = self._disk._visible(path)
        meet(self._life, place.top.volume, "stat", self._disk.chance)
        return place.directory_or_parent().volume.number


class Held(NamedTuple):
    """A directory that is open, and its path; None after its close."""

    parts: tuple[str, ...]
    top: Directory | None
    #: Its volume: a device that was removed stays removed for those who have this open.
    volume: Volume

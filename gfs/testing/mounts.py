"""Which file or directory a path of a simulated machine leads to."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

from gfs.blocks import PAGE_BYTES
from gfs.io import DiskSpace
from gfs.testing.inode import Directory, Inode, Volume, disk_error


@functools.lru_cache(maxsize=1 << 14)
def segments(path: str) -> tuple[str, ...]:
    return tuple(part for part in os.fspath(path).split("/") if part not in ("", "."))


class Mounts:
    """Every volume there ever was on a machine, and which one is mounted where."""

    def __init__(self, capacity_bytes: int) -> None:
        self.volumes: list[Volume] = []
        self._mounted: dict[tuple[str, ...], Volume] = {}
        #: How many names the longest path of a mount has.
        self._deepest = 0
        #: The mount points in the machine's table of file systems (``/etc/fstab``).
        self._in_table: set[tuple[str, ...]] = set()
        self.new_volume("/", capacity_bytes)

    def new_volume(self, path: str, capacity_bytes: int) -> Volume:
        """Mount an empty one there."""
        volume = Volume(len(self.volumes) + 1, capacity_bytes)
        self.volumes.append(volume)
        self.put(path, volume)
        return volume

    def put(self, path: str, volume: Volume) -> None:
        self._mounted[segments(path)] = volume

    def unmount(self, path: str) -> Volume:
        return self._mounted.pop(segments(path))

    def volume(self, path: str) -> Volume:
        return self._mounted[segments(path)]

    def mount(self, path: str, capacity_bytes: int, in_table: bool) -> None:
        """See :meth:`gfs.testing.files.SimDisk.mount`."""
        parts = segments(path)
        volume = self._mounted.get(parts)
        if in_table:
            self._in_table.add(parts)
        if volume is None:
            self.place(path).make_directories()
            self.new_volume(path, capacity_bytes)
            self._deepest = max(self._deepest, len(parts))
        else:
            volume.capacity_bytes = capacity_bytes

    @property
    def may_hang(self) -> bool:
        return any(volume.hang is not None for volume in self.volumes)

    def wipe(self) -> None:
        (_, first), *others = sorted(self._mounted.items())
        self._mounted.clear()
        self.new_volume("/", first.capacity_bytes)
        for parts, volume in others:
            self.mount("/".join(parts), volume.capacity_bytes, in_table=False)

    def place(self, path: str) -> Place:
        """The file or directory that is visible at ``path`` now."""
        parts = segments(path)
        for count in range(min(len(parts), self._deepest), 0, -1):
            volume = self._mounted.get(parts[:count])
            if volume is not None:
                return Place(volume.top, parts[count:], path)
        return Place(self._mounted[()].top, parts, path)

    def walk(self, below: str) -> Iterator[tuple[str, Inode]]:
        """All that is visible at and below a directory."""
        parts = segments(below)
        yield from walk("/" + "/".join(parts), self.place(below).node())
        for at, volume in list(self._mounted.items()):
            if at[: len(parts)] == parts and at != parts and at:
                yield from walk("/" + "/".join(at), volume.top)

    def directories(self) -> Iterator[Directory]:
        stack = [volume.top for volume in self._mounted.values()]
        while stack:
            directory = stack.pop()
            yield directory
            stack += [each for each in directory.entries.values() if isinstance(each, Directory)]

    def awaits(self, path: str) -> bool:
        """Whether a mount that is in the machine's table, at or above the path, is missing."""
        parts = segments(path)
        return any(
            parts[: len(point)] == point and point not in self._mounted for point in self._in_table
        )

    def point(self, path: str) -> str:
        """The mount point of what is at the path."""
        parts = segments(path)
        while parts not in self._mounted:
            parts = parts[:-1]
        return "/" + "/".join(parts)


def walk(path: str, node: Inode | Directory) -> Iterator[tuple[str, Inode]]:
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

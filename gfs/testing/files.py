"""A simulated machine's disks: real directory semantics, in memory.

:class:`SimDisk` is what stays when a process is killed: the page cache and the
platters. :class:`SimFileSystem` is one process's view of it, and stops working
at that process's death. The disk remembers what was synced, so that
:meth:`SimDisk.power_cut` can lose the rest: of a file, the pages written and
not synced; of a directory, the names made, moved or removed since its last
``sync_directory``.

For tests, the disk can be harmed under the running cluster: :meth:`flip_bit`,
:meth:`truncate`, :meth:`delete`, :meth:`fail`, :meth:`mount` with a capacity.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterable, Iterator

from xxhash import xxh3_64_hexdigest

from gfs.io.world import Buffer, DiskSpace, File
from gfs.testing.inode import PAGE_BYTES, SECTOR_BYTES, Directory, Inode, Volume, disk_error
from gfs.testing.life import Life
from gfs.testing.trace import Trace

CAPACITY_BYTES = 1 << 40


def _segments(path: str) -> list[str]:
    return [part for part in os.fspath(path).split("/") if part not in ("", ".")]


class SimDisk:
    """All the directories and files of one simulated machine."""

    def __init__(
        self, name: str, trace: Trace | None = None, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        self.name = name
        self.trace = trace
        self._root = Directory()
        self._volumes: dict[tuple[str, ...], Volume] = {(): Volume(capacity_bytes)}
        self._failing: dict[str, tuple[int, frozenset[str]]] = {}
        #: How often the power was cut.
        self.power_cuts = 0

    # --- for tests: set up, look, harm ------------------------------------

    def mount(self, path: str, capacity_bytes: int) -> None:
        """``path`` is a disk of its own from now on; again: change its capacity."""
        parts = tuple(_segments(path))
        volume = self._volumes.get(parts)
        if volume is None:
            self._volumes[parts] = Volume(capacity_bytes)
        else:
            volume.capacity_bytes = capacity_bytes
        self.make_directories(path)

    def fail(
        self, path: str, code: int = errno.EIO, what: Iterable[str] = ("read", "write", "sync")
    ) -> None:
        """Every read, write or sync, or ``what`` of these, of a file at or below ``path``
        fails with ``code``; 0 heals it."""
        prefix = "/" + "/".join(_segments(path))
        if code:
            self._failing[prefix] = code, frozenset(what)
        else:
            self._failing.pop(prefix, None)

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
        """The sector at ``offset`` of a file cannot be read until it is written again."""
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
        """The file at a path, to be looked at."""
        return self._inode(path)

    def is_synced(self, path: str) -> bool:
        """Whether a file, with its bytes, its name and those of the directories above it,
        would survive a power cut as it is."""
        node: Inode | Directory = self._root
        for part in _segments(path):
            if not isinstance(node, Directory) or part not in node.entries:
                raise disk_error(errno.ENOENT, path)
            if node.synced.get(part) is not node.entries[part]:
                return False
            node = node.entries[part]
        return isinstance(node, Inode) and not node.unsynced

    def write_back(self, chance: random.Random, share: float = 1.0) -> None:
        """What a kernel does in the background: files and names reach the platter."""
        for path, inode in sorted(self._walk("/")):
            if chance.random() < share:
                inode.sync()
                parent, name = self._parent(path)
                parent.synced[name] = inode
        for directory in self._directories(self._root):
            for name in [n for n in directory.synced if n not in directory.entries]:
                if chance.random() < share:
                    del directory.synced[name]
            # A file's name is of use only if those above it are there.
            directory.synced.update(
                (n, node) for n, node in directory.entries.items() if isinstance(node, Directory)
            )

    def _directories(self, root: Directory) -> Iterator[Directory]:
        yield root
        for node in root.entries.values():
            if isinstance(node, Directory):
                yield from self._directories(node)

    def wipe(self) -> None:
        """A new, empty disk in its place."""
        self.note("wipe")
        self._root = Directory()
        for parts, volume in self._volumes.items():
            volume.used_bytes = 0
            self.make_directories("/".join(parts))

    def power_cut(self, chance: random.Random | None = None) -> None:
        """Lose what was not synced: all of it, or what ``chance`` decides, sector by
        sector.

        The machine's processes must be dead.
        """
        self.note("power cut")
        self.power_cuts += 1
        self._lose_unsynced(self._root, chance)
        for volume in self._volumes.values():
            volume.used_bytes = 0
        for _, inode in self._walk("/"):
            inode.volume.used_bytes += len(inode.data)

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
                self._lose_unsynced(node, chance)
            else:
                node.names = 1
                node.lose_unsynced(chance)

    def note(self, event: str) -> None:
        if self.trace is not None:
            self.trace.add(f"{self.name} disk: {event}")

    # --- the tree ------------------------------------------------------------

    def _node(self, path: str) -> Inode | Directory:
        node: Inode | Directory = self._root
        for part in _segments(path):
            if not isinstance(node, Directory):
                raise disk_error(errno.ENOTDIR, path)
            found = node.entries.get(part)
            if found is None:
                raise disk_error(errno.ENOENT, path)
            node = found
        return node

    def _inode(self, path: str) -> Inode:
        node = self._node(path)
        if isinstance(node, Directory):
            raise disk_error(errno.EISDIR, path)
        return node

    def _directory(self, path: str) -> Directory:
        node = self._node(path)
        if not isinstance(node, Directory):
            raise disk_error(errno.ENOTDIR, path)
        return node

    def _parent(self, path: str) -> tuple[Directory, str]:
        parts = _segments(path)
        if not parts:
            raise disk_error(errno.EISDIR, path)
        return self._directory("/".join(parts[:-1])), parts[-1]

    def _walk(self, below: str) -> Iterator[tuple[str, Inode]]:
        stack = [("/" + "/".join(_segments(below)), self._node(below))]
        while stack:
            path, node = stack.pop()
            if isinstance(node, Inode):
                yield path, node
            else:
                stack += [(f"{path.rstrip('/')}/{n}", child) for n, child in node.entries.items()]

    def _volume(self, path: str) -> Volume:
        parts = tuple(_segments(path))
        while parts not in self._volumes:
            parts = parts[:-1]
        return self._volumes[parts]

    def check_healthy(self, path: str, what: str) -> None:
        for prefix, (code, failing) in self._failing.items():
            is_at = path == prefix or path.startswith(prefix.rstrip("/") + "/")
            if is_at and what in failing:
                raise disk_error(code, path)

    # --- the system calls ------------------------------------------------------

    def open_inode(self, path: str, mode: str) -> Inode:
        if mode in ("r", "rw"):
            return self._inode(path)
        if mode not in ("create", "replace"):
            raise ValueError(f"mode {mode!r}")
        parent, name = self._parent(path)
        node = parent.entries.get(name)
        if node is None:
            node = parent.entries[name] = Inode(self._volume(path))
            node.names = 1
        elif mode == "create":
            raise disk_error(errno.EEXIST, path)
        elif isinstance(node, Directory):
            raise disk_error(errno.EISDIR, path)
        else:
            node.resize(0)
        return node

    def list(self, path: str) -> list[str]:
        return list(self._directory(path).entries)

    def exists(self, path: str) -> bool:
        try:
            self._node(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def file_size(self, path: str) -> int:
        node = self._node(path)
        return PAGE_BYTES if isinstance(node, Directory) else len(node.data)

    def unlink(self, path: str) -> None:
        inode = self._inode(path)
        parent, name = self._parent(path)
        del parent.entries[name]
        self._drop_name(inode)

    def rename(self, source: str, target: str) -> None:
        node = self._node(source)
        parent, name = self._parent(source)
        target_parent, target_name = self._parent(target)
        if self._volume(source) is not self._volume(target):
            raise disk_error(errno.EXDEV, source)
        replaced = target_parent.entries.get(target_name)
        if replaced is node:
            return
        if isinstance(replaced, Directory):
            if not isinstance(node, Directory):
                raise disk_error(errno.EISDIR, target)
            if replaced.entries:
                raise disk_error(errno.ENOTEMPTY, target)
        elif replaced is not None:
            if isinstance(node, Directory):
                raise disk_error(errno.ENOTDIR, target)
            self._drop_name(replaced)
        del parent.entries[name]
        target_parent.entries[target_name] = node

    @staticmethod
    def _drop_name(inode: Inode) -> None:
        # Its bytes stay with it: a name whose removal was not synced comes back
        # in a power cut.
        inode.names -= 1
        if not inode.used():
            inode.volume.used_bytes -= len(inode.data)

    def make_directories(self, path: str) -> None:
        directory = self._root
        for part in _segments(path):
            node = directory.entries.get(part)
            if node is None:
                node = directory.entries[part] = Directory()
            elif isinstance(node, Inode):
                raise disk_error(errno.EEXIST, path)
            directory = node

    def sync_directory(self, path: str) -> None:
        directory = self._directory(path)
        directory.synced = dict(directory.entries)

    def space(self, path: str) -> DiskSpace:
        self._node(path)
        volume = self._volume(path)
        return DiskSpace(volume.capacity_bytes, max(volume.capacity_bytes - volume.used_bytes, 0))


class SimFile:
    """An open file of one process. Blocking calls that never block."""

    def __init__(self, disk: SimDisk, path: str, inode: Inode, life: Life, mode: str) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._life = life
        self._writable = mode != "r"
        self._open = True
        inode.opened += 1
        life.hold(self)

    def _check(self, what: str = "read") -> Inode:
        if what != "read":
            self._life.burn()
        self._life.check()
        if not self._open or (what == "write" and not self._writable):
            raise disk_error(errno.EBADF, self._path)
        if self._life.meets_failures:
            self._disk.check_healthy(self._path, what)
        return self._inode

    def read_into(self, buffer: memoryview, offset: int) -> int:
        return self._check().read(buffer, offset)

    def write(self, data: Buffer, offset: int) -> None:
        self._check("write").write(data, offset)
        self._disk.note(f"{self._path} {offset} +{len(data)} {xxh3_64_hexdigest(data)}")

    def copy_from(self, source: File, offset: int, count: int) -> None:
        data = bytearray(count)
        if source.read_into(memoryview(data), offset) < count:
            raise disk_error(errno.EIO, self._path)
        self.write(data, offset)

    def size(self) -> int:
        return len(self._check().data)

    def truncate(self, size: int) -> None:
        self._check("write").resize(size)
        self._disk.note(f"{self._path} cut to {size}")

    def start_sync(self, offset: int, count: int) -> None:
        """Nothing: a power cut keeps any part of what was not synced in any case."""

    def sync(self) -> None:
        self._check("sync").sync()

    def close(self) -> None:
        if self._open:
            self._life.let_go(self)
            self.die()

    def die(self) -> None:
        """Let go of the file, as the kernel does when the process ends."""
        self._open = False
        if self._inode.locked_by is self:
            self._inode.locked_by = None
        self._inode.opened -= 1
        if not self._inode.used():
            self._inode.volume.used_bytes -= len(self._inode.data)

    def __del__(self) -> None:
        self.close()


class SimFileSystem:
    """One process's access to its machine's disk, as :class:`gfs.io.FileSystem`."""

    def __init__(self, disk: SimDisk, life: Life) -> None:
        self._disk = disk
        self._life = life

    def _ready(self, path: str, what: str = "read") -> SimDisk:
        if what != "read":
            self._life.burn()
        self._life.check()
        if self._life.meets_failures:
            self._disk.check_healthy("/" + "/".join(_segments(path)), what)
        return self._disk

    def open(self, path: str, mode: str) -> SimFile:
        disk = self._ready(path, "write" if mode in ("create", "replace") else "read")
        full = "/" + "/".join(_segments(path))
        return SimFile(disk, full, disk.open_inode(path, mode), self._life, mode)

    def lock(self, path: str) -> SimFile:
        disk = self._ready(path)
        inode = disk.open_inode(path, "rw" if disk.exists(path) else "create")
        if inode.locked_by is not None:
            raise disk_error(errno.EAGAIN, path)
        file = SimFile(disk, path, inode, self._life, "rw")
        inode.locked_by = file
        return file

    def list(self, path: str) -> list[str]:
        return self._ready(path).list(path)

    def exists(self, path: str) -> bool:
        return self._ready(path).exists(path)

    def file_size(self, path: str) -> int:
        return self._ready(path).file_size(path)

    def unlink(self, path: str) -> None:
        self._ready(path, "write").unlink(path)
        self._disk.note(f"{path} unlinked")

    def rename(self, source: str, target: str) -> None:
        self._ready(source, "write").rename(source, target)
        self._disk.note(f"{source} renamed {target}")

    def make_directories(self, path: str) -> None:
        self._ready(path, "write").make_directories(path)

    def sync_directory(self, path: str) -> None:
        self._ready(path, "sync").sync_directory(path)

    def space(self, path: str) -> DiskSpace:
        return self._ready(path).space(path)

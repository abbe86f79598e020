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
from collections.abc import Iterator

from xxhash import xxh3_64_hexdigest

from gfs.io.world import Buffer, DiskSpace
from gfs.testing.life import Life
from gfs.testing.trace import Trace

PAGE_BYTES = 4096
CAPACITY_BYTES = 1 << 40


class _Volume:
    """What one mount point can hold."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0

    def take(self, count: int) -> None:
        if count > 0 and self.used_bytes + count > self.capacity_bytes:
            raise _error(errno.ENOSPC)
        self.used_bytes += count


class _Inode:
    """A file's bytes, and enough of their past to undo what was not synced."""

    def __init__(self, volume: _Volume) -> None:
        self.volume = volume
        self.data = bytearray()
        self.names = 0
        self.opened = 0
        self.locked_by: SimFile | None = None
        #: The size at the last sync, and the pages below it that changed since,
        #: as they were then.
        self.synced_bytes = 0
        self._before: dict[int, bytes] = {}

    def write(self, data: Buffer, offset: int) -> None:
        end = offset + len(data)
        size = len(self.data)
        self.volume.take(max(end - size, 0))
        self._remember(offset, end)
        if offset > size:
            self.data.extend(bytes(offset - size))
        self.data[offset:end] = data

    def resize(self, size: int) -> None:
        present = len(self.data)
        self.volume.take(size - present)
        self._remember(size, present)
        if size < present:
            del self.data[size:]
        else:
            self.data.extend(bytes(size - present))

    def _remember(self, start: int, end: int) -> None:
        for page in range(start // PAGE_BYTES, -(-min(end, self.synced_bytes) // PAGE_BYTES)):
            if page not in self._before:
                at = page * PAGE_BYTES
                self._before[page] = bytes(self.data[at : min(at + PAGE_BYTES, self.synced_bytes)])

    def sync(self) -> None:
        self.synced_bytes = len(self.data)
        self._before.clear()

    def lose_unsynced(self, chance: random.Random | None) -> None:
        """Go back to the last sync; with ``chance``, any subset of the pages
        written since is kept, as a disk that wrote some of them back would."""
        size = self.synced_bytes
        if chance is not None and len(self.data) > size:
            size = chance.randint(size, len(self.data))
        before = {p: b for p, b in self._before.items() if chance is None or chance.random() < 0.5}
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))
        for page, content in before.items():
            self.data[page * PAGE_BYTES : page * PAGE_BYTES + len(content)] = content
        self.sync()

    def used(self) -> bool:
        return bool(self.names or self.opened)


class _Directory:
    def __init__(self) -> None:
        self.entries: dict[str, _Inode | _Directory] = {}
        self.synced: dict[str, _Inode | _Directory] = {}


def _error(code: int, path: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), path)


def _segments(path: str) -> list[str]:
    return [part for part in os.fspath(path).split("/") if part not in ("", ".")]


class SimDisk:
    """All the directories and files of one simulated machine."""

    def __init__(
        self, name: str, trace: Trace | None = None, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        self.name = name
        self.trace = trace
        self._root = _Directory()
        self._volumes: dict[tuple[str, ...], _Volume] = {(): _Volume(capacity_bytes)}
        self._failing: dict[str, int] = {}

    # --- for tests: set up, look, harm ------------------------------------

    def mount(self, path: str, capacity_bytes: int) -> None:
        """``path`` is a disk of its own from now on; again: change its capacity."""
        parts = tuple(_segments(path))
        volume = self._volumes.get(parts)
        if volume is None:
            self._volumes[parts] = _Volume(capacity_bytes)
        else:
            volume.capacity_bytes = capacity_bytes
        self.make_directories(path)

    def fail(self, path: str, code: int = errno.EIO) -> None:
        """Every read and write of a file at or below ``path`` fails with ``code``;
        0 heals it."""
        prefix = "/" + "/".join(_segments(path))
        if code:
            self._failing[prefix] = code
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
        self._inode(path).data[bit // 8] ^= 1 << (bit % 8)

    def truncate(self, path: str, size: int) -> None:
        self.note(f"truncate {path} to {size}")
        self._inode(path).resize(size)

    def delete(self, path: str) -> None:
        self.note(f"delete {path}")
        self.unlink(path)

    def wipe(self) -> None:
        """A new, empty disk in its place."""
        self.note("wipe")
        self._root = _Directory()
        for parts, volume in self._volumes.items():
            volume.used_bytes = 0
            self.make_directories("/".join(parts))

    def power_cut(self, chance: random.Random | None = None) -> None:
        """Lose what was not synced: all of it, or what ``chance`` decides.

        The machine's processes must be dead.
        """
        self.note("power cut")
        self._lose_unsynced(self._root, chance)
        for volume in self._volumes.values():
            volume.used_bytes = 0
        for _, inode in self._walk("/"):
            inode.volume.used_bytes += len(inode.data)

    def _lose_unsynced(self, directory: _Directory, chance: random.Random | None) -> None:
        directory.entries = dict(directory.synced)
        for node in directory.entries.values():
            if isinstance(node, _Directory):
                self._lose_unsynced(node, chance)
            else:
                node.names = 1
                node.lose_unsynced(chance)

    def note(self, event: str) -> None:
        if self.trace is not None:
            self.trace.add(f"{self.name} disk: {event}")

    # --- the tree ------------------------------------------------------------

    def _node(self, path: str) -> _Inode | _Directory:
        node: _Inode | _Directory = self._root
        for part in _segments(path):
            if not isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, path)
            found = node.entries.get(part)
            if found is None:
                raise _error(errno.ENOENT, path)
            node = found
        return node

    def _inode(self, path: str) -> _Inode:
        node = self._node(path)
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        return node

    def _directory(self, path: str) -> _Directory:
        node = self._node(path)
        if not isinstance(node, _Directory):
            raise _error(errno.ENOTDIR, path)
        return node

    def _parent(self, path: str) -> tuple[_Directory, str]:
        parts = _segments(path)
        if not parts:
            raise _error(errno.EISDIR, path)
        return self._directory("/".join(parts[:-1])), parts[-1]

    def _walk(self, below: str) -> Iterator[tuple[str, _Inode]]:
        stack = [("/" + "/".join(_segments(below)), self._node(below))]
        while stack:
            path, node = stack.pop()
            if isinstance(node, _Inode):
                yield path, node
            else:
                stack += [(f"{path.rstrip('/')}/{n}", child) for n, child in node.entries.items()]

    def _volume(self, path: str) -> _Volume:
        parts = tuple(_segments(path))
        while parts not in self._volumes:
            parts = parts[:-1]
        return self._volumes[parts]

    def check_healthy(self, path: str) -> None:
        for prefix, code in self._failing.items():
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                raise _error(code, path)

    # --- the system calls ------------------------------------------------------

    def open_inode(self, path: str, mode: str) -> _Inode:
        if mode in ("r", "rw"):
            return self._inode(path)
        if mode not in ("create", "replace"):
            raise ValueError(f"mode {mode!r}")
        parent, name = self._parent(path)
        node = parent.entries.get(name)
        if node is None:
            node = parent.entries[name] = _Inode(self._volume(path))
            node.names = 1
        elif mode == "create":
            raise _error(errno.EEXIST, path)
        elif isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
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
        return PAGE_BYTES if isinstance(node, _Directory) else len(node.data)

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
            raise _error(errno.EXDEV, source)
        replaced = target_parent.entries.get(target_name)
        if replaced is node:
            return
        if isinstance(replaced, _Directory):
            if not isinstance(node, _Directory):
                raise _error(errno.EISDIR, target)
            if replaced.entries:
                raise _error(errno.ENOTEMPTY, target)
        elif replaced is not None:
            if isinstance(node, _Directory):
                raise _error(errno.ENOTDIR, target)
            self._drop_name(replaced)
        del parent.entries[name]
        target_parent.entries[target_name] = node

    @staticmethod
    def _drop_name(inode: _Inode) -> None:
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
                node = directory.entries[part] = _Directory()
            elif isinstance(node, _Inode):
                raise _error(errno.EEXIST, path)
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

    def __init__(self, disk: SimDisk, path: str, inode: _Inode, life: Life, mode: str) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._life = life
        self._writable = mode != "r"
        self._open = True
        inode.opened += 1
        life.hold(self)

    def _check(self, writing: bool = False) -> _Inode:
        self._life.check()
        if not self._open or (writing and not self._writable):
            raise _error(errno.EBADF, self._path)
        self._disk.check_healthy(self._path)
        return self._inode

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self._check().data
        count = max(min(len(buffer), len(data) - offset), 0)
        with memoryview(data) as view:
            buffer[:count] = view[offset : offset + count]
        return count

    def write(self, data: Buffer, offset: int) -> None:
        self._check(writing=True).write(data, offset)
        self._disk.note(f"{self._path} {offset} +{len(data)} {xxh3_64_hexdigest(data)}")

    def size(self) -> int:
        return len(self._check().data)

    def truncate(self, size: int) -> None:
        self._check(writing=True).resize(size)
        self._disk.note(f"{self._path} cut to {size}")

    def sync(self) -> None:
        self._check().sync()

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

    def _ready(self, path: str) -> SimDisk:
        self._life.check()
        self._disk.check_healthy("/" + "/".join(_segments(path)))
        return self._disk

    def open(self, path: str, mode: str) -> SimFile:
        disk = self._ready(path)
        full = "/" + "/".join(_segments(path))
        return SimFile(disk, full, disk.open_inode(path, mode), self._life, mode)

    def lock(self, path: str) -> SimFile:
        disk = self._ready(path)
        inode = disk.open_inode(path, "rw" if disk.exists(path) else "create")
        if inode.locked_by is not None:
            raise _error(errno.EAGAIN, path)
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
        self._ready(path).unlink(path)
        self._disk.note(f"{path} unlinked")

    def rename(self, source: str, target: str) -> None:
        self._ready(source).rename(source, target)
        self._disk.note(f"{source} renamed {target}")

    def make_directories(self, path: str) -> None:
        self._ready(path).make_directories(path)

    def sync_directory(self, path: str) -> None:
        self._ready(path).sync_directory(path)

    def space(self, path: str) -> DiskSpace:
        return self._ready(path).space(path)

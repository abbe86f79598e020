"""The mounted directory as it is known here: what the master says, and what is newer."""

from __future__ import annotations

import errno
import os
import stat

import trio
from pyfuse3 import EntryAttributes, FUSEError

from gfs.blocks import MIB
from gfs.client import Client, Entry, ExistingFile
from gfs.errors import FileChanged, NotFound
from gfs.mount.contents import Contents, Open
from gfs.mount.nodes import ROOT, Node, Nodes
from gfs.mount.posix import LINK, Posix, kind_bits, posix_of

CACHE_SECONDS = 1.0
PATH_BYTES_MAX = 4096
#: What was deleted or replaced while it is open has such a name in the mounted directory, which
#: nobody sees here, until it is closed.
UNLINKED = ".gfs-unlinked-"


class Tree:
    def __init__(self, client: Client, path: str, root: Entry, nursery: trio.Nursery) -> None:
        self._client = client
        # What other clients made belongs to who mounts it.
        self._uid, self._gid = os.getuid(), os.getgid()
        self.nodes = Nodes(Node(ROOT, root, posix_of(root, self._uid, self._gid)), path)
        self.nodes.root.lookups = 1
        self.open_files = Open(client, self.nodes, nursery)

    def shown(self, node: Node) -> EntryAttributes:
        """What the kernel gets."""
        shown = EntryAttributes()
        contents = self.open_files.get(node)
        length = node.entry.length if contents is None else contents.length
        kind = kind_bits(node.entry)
        if kind == stat.S_IFLNK:
            length = len(node.entry.attributes[LINK].encode())
        shown.st_ino = node.number
        shown.entry_timeout = CACHE_SECONDS
        shown.attr_timeout = 0 if node.entry.appended else CACHE_SECONDS
        shown.st_mode = kind | (0o777 if kind == stat.S_IFLNK else node.posix.mode)
        shown.st_nlink = 0 if node.unlinked else 2 if node.is_directory else 1
        shown.st_uid, shown.st_gid = node.posix.uid, node.posix.gid
        shown.st_size = length
        shown.st_blocks = -(-length // 512)
        shown.st_blksize = MIB
        shown.st_mtime_ns = node.mtime_ns
        shown.st_atime_ns = node.posix.atime_ns or node.mtime_ns
        changed_ns = node.mtime_ns if node.is_directory else node.entry.modified_ns
        shown.st_ctime_ns = max(node.posix.ctime_ns, changed_ns)
        node.shown = (length, node.mtime_ns)
        return shown

    def posix(self, entry: Entry) -> Posix:
        return posix_of(entry, self._uid, self._gid)

    def take(self, node: Node, entry: Entry, asked_at: float = float("-inf")) -> None:
        """What the master says of it now, or at ``asked_at``, unless something here is newer."""
        node.asked_at = max(node.asked_at, asked_at)
        contents = self.open_files.get(node)
        if node.changed or (contents is not None and contents.is_busy):
            return
        before, node.entry = node.entry, entry
        node.posix, node.mtime_ns = self.posix(entry), entry.modified_ns
        if contents is not None and changed(before, entry):
            contents.refresh(entry)

    async def find(self, parent: Node, name: str) -> Node:
        """What is there now. Raises NotFound and others."""
        path = self.child(parent, name)
        if parent is self.nodes.root and name.startswith(UNLINKED):
            raise NotFound(f"{path}: it was deleted")
        node = parent.children.get(name)
        contents = None if node is None else self.open_files.get(node)
        if node is not None and contents is not None and contents.is_busy:
            return node
        stores = 0 if node is None else node.stores
        asked_at = trio.current_time()
        entry = await self._client.stat(path)
        if contents is not None and node is not None and entry.inode != node.entry.inode:
            async with contents.lock:  # it may be stored again just now
                stores = node.stores
                entry = await self._client.stat(path)
        if node is not None and node.stores != stores and node.is_open:
            return node
        node = self.nodes.found(parent, name, entry, self.posix(entry))
        self.take(node, entry, asked_at)
        return node

    def child(self, parent: Node, name: str) -> str:
        path = self.nodes.path(parent, name)
        if len(path.encode()) > PATH_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        return path

    def made(self, parent: Node, name: str, entry: Entry) -> Node:
        node = self.nodes.found(parent, name, entry, self.posix(entry))
        self.take(node, entry)
        parent.named(name, entry.created_ns)
        return node

    def give_up(self, node: Node) -> None:
        """What of its attributes could not be stored: what the master says counts again."""
        if node.changed:
            node.changed = False
            node.posix, node.mtime_ns = self.posix(node.entry), node.entry.modified_ns

    async def open(self, node: Node) -> Contents:
        """Open the file as it is now. Raises FileChanged if another has its name."""
        path = self.nodes.path(node)
        file = await self._client.open(path, "r+")
        assert isinstance(file, ExistingFile)
        if file.entry.inode != node.entry.inode:
            raise FileChanged(f"{path} was replaced")
        self.take(node, file.entry)
        return self.open_files.get(node) or self.open_files.add(node, file)


def changed(before: Entry, now: Entry) -> bool:
    """Whether its bytes may be others. What is written in place has no digest, and may have
    changed in any case."""
    return not now.digest or (before.inode, before.digest) != (now.inode, now.digest)

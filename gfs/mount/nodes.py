"""Which number the kernel knows a file or directory by, and where that is now.

A node is what the kernel calls an inode. Its number is that of the file system's inode when it was
first seen, and stays for as long as the kernel remembers it, though a file that is stored again
here gets another inode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from gfs.client import Entry
from gfs.errors import FileChanged
from gfs.mount.posix import Posix

ROOT = 1
#: Numbers of nodes whose inode's number is taken. No master comes that far.
FIRST_OWN_NUMBER = 1 << 62
#: A listing during which more names are changed goes on with a new one.
TOUCHED_MAX = 10_000


def name_of(entry: Entry) -> str:
    return entry.path.rpartition("/")[2]


class Node:
    def __init__(self, number: int, entry: Entry, posix: Posix) -> None:
        self.number = number
        self.entry = entry
        self.parent: Node | None = None
        self.name = ""
        self.children: dict[str, Node] = {}
        #: How often the kernel got it.
        self.lookups = 0
        #: See gfs.mount.contents.
        self.is_open = False
        self.posix = posix
        self.mtime_ns = entry.modified_ns
        #: Counts what was stored here: what the master said before is out of date.
        self.stores = 0
        #: ``posix`` and ``mtime_ns`` are newer than what is stored.
        self.changed = False
        #: Of each open listing of this directory, the names that were changed here since it began:
        #: what it has of them may be older.
        self.listings: dict[int, set[str]] = {}
        #: Nobody can open it any more; who has it open goes on with it.
        self.unlinked = False
        #: What the kernel's page cache has: the inode and its digest.
        self.cached: tuple[int, bytes] | None = None
        #: What is known here of it is what the master said at this time, or later.
        self.asked_at = float("-inf")
        #: The length and time of change that the kernel had last.
        self.shown = (-1, -1)

    @property
    def is_directory(self) -> bool:
        return self.entry.kind == "directory"

    def written(self) -> None:
        self.mtime_ns = now = time.time_ns()
        self.posix = replace(self.posix.without_privileges(), ctime_ns=now)
        self.changed = True

    def stored_with(self, posix: Posix) -> None:
        """The master has these attributes: what was changed here since they were sent is newer."""
        self.changed = self.posix is not posix

    def named(self, name: str, at_ns: int = 0) -> None:
        """This name in the directory was made, or is gone: the directory was changed then, or now,
        until the master is asked the next time."""
        self.mtime_ns = at_ns or time.time_ns()
        self.touched(name)

    def touched(self, name: str) -> None:
        """What has this name in the directory was changed here, or has it no more."""
        for names in self.listings.values():
            if len(names) <= TOUCHED_MAX:
                names.add(name)


class Nodes:
    def __init__(self, root: Node, path: str) -> None:
        self.root = root
        self._path = path.rstrip("/")
        self._by_number = {ROOT: root}
        self._by_inode = {root.entry.inode: root}
        self._next_number = FIRST_OWN_NUMBER

    def __getitem__(self, number: int) -> Node:
        """Raises FileChanged for one that was forgotten."""
        try:
            return self._by_number[number]
        except KeyError:
            raise FileChanged(f"inode {number} is not known any more") from None

    def all(self) -> list[Node]:
        return list(self._by_number.values())

    def path(self, node: Node, name: str = "") -> str:
        """Raises FileChanged if it is nowhere any more."""
        names = [name] if name else []
        at = node
        while at.parent is not None:
            names.append(at.name)
            at = at.parent
        if at is not self.root:
            raise FileChanged(f"inode {node.number} was deleted or replaced")
        return f"{self._path}/{'/'.join(reversed(names))}" if names else self._path or "/"

    def found(self, parent: Node, name: str, entry: Entry, posix: Posix) -> Node:
        """The node of what is there now."""
        there = parent.children.get(name)
        node = self._by_inode.get(entry.inode)
        if node is None or node.entry.kind != entry.kind:
            number = entry.inode
            if number in self._by_number:
                number = self._next_number
                self._next_number += 1
            node = Node(number, entry, posix)
            self._by_number[number] = self._by_inode[entry.inode] = node
        if there is not node:
            self.move(node, parent, name)
        return node

    def move(self, node: Node, parent: Node, name: str) -> None:
        """What had that name is nowhere any more."""
        self.detach(node)
        there = parent.children.get(name)
        if there is not None:
            self.detach(there)
        node.parent, node.name = parent, name
        parent.children[name] = node

    def detach(self, node: Node) -> None:
        parent, node.parent = node.parent, None
        if parent is not None:
            del parent.children[node.name]

    def stored_as(self, node: Node, entry: Entry) -> None:
        """The same file has another inode, since it was stored again."""
        if self._by_inode.get(node.entry.inode) is node:
            del self._by_inode[node.entry.inode]
        node.entry = entry
        self._by_inode[entry.inode] = node
        self.stored(node)

    def stored(self, node: Node) -> None:
        """What the master said of it before is out of date."""
        node.stores += 1
        if node.parent is not None:
            node.parent.touched(node.name)

    def forget(self, counts: Sequence[tuple[int, int]]) -> None:
        for number, count in counts:
            node = self._by_number.get(number)
            if node is not None:
                node.lookups -= count
                self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        """And its parents that were kept for it."""
        at: Node | None = node
        while (
            at is not None
            and at is not self.root
            and at.lookups <= 0
            and not at.is_open
            and not at.children
        ):
            parent = at.parent
            self.detach(at)
            self._by_number.pop(at.number, None)
            if self._by_inode.get(at.entry.inode) is at:
                del self._by_inode[at.entry.inode]
            at = parent

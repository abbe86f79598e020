"""Deleting and renaming. What is open here goes on for those who have it open, under a hidden name,
until it is closed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import trio

from gfs.client import Client, Entry
from gfs.errors import FileChanged, GfsError, IsADirectory, NotFound
from gfs.mount.nodes import Node, name_of
from gfs.mount.tree import UNLINKED, Tree

#: What a request that failed has done in part is undone within this.
UNDO_SECONDS = 10.0


class Unlinking:
    def __init__(self, client: Client, tree: Tree) -> None:
        self._client = client
        self._tree = tree
        self._nodes = tree.nodes

    async def delete(self, parent: Node, name: str, node: Node) -> None:
        await self._client.delete(self._tree.child(parent, name), expect=node.entry.inode)
        node.unlinked = True
        self._nodes.detach(node)
        parent.named(name)

    async def delete_known(self, parent: Node, name: str, is_directory: bool) -> bool:
        """Delete what the kernel has just looked up, if it is of that kind, not open here, and
        still what the master has there."""
        node = parent.children.get(name)
        if node is None or node.is_directory != is_directory or node.is_open:
            return False
        try:
            await self.delete(parent, name, node)
        except FileChanged:
            return False
        return True

    async def unlink_open(self, parent: Node, name: str, node: Node) -> None:
        async with self._held(node):
            hidden = UNLINKED + secrets.token_hex(8)
            await self._client.rename(
                self._tree.child(parent, name), self._tree.child(self._nodes.root, hidden)
            )
            self._hide(node, hidden)
        parent.named(name)
        await self.delete_hidden(node)

    async def rename(
        self, node: Node, old_parent: Node, old: str, parent: Node, new: str, *, replacing: bool
    ) -> None:
        there = parent.children.get(new)
        if there is node:
            there = None
        source, target = self._tree.child(old_parent, old), self._tree.child(parent, new)
        async with self._held(node, there):
            kept = None
            if there is not None and there.is_open and replacing:
                kept = await self._kept(there, target)
            try:
                await self._rename(node, source, target, replacing)
            except BaseException:
                if kept is not None:
                    await self._undone(kept.path)
                raise
            if there is not None:
                there.unlinked = True
                if kept is not None:
                    self._hide_kept(there, kept)
            self._nodes.move(node, parent, new)
        old_parent.named(old)
        parent.named(new)
        if there is not None:
            await self.delete_hidden(there)

    @asynccontextmanager
    async def _held(self, *nodes: Node | None) -> AsyncGenerator[None, None]:
        """Their names and bytes stay what they are, and are not stored meanwhile."""
        async with AsyncExitStack() as held:
            for node in sorted(filter(None, set(nodes)), key=lambda node: node.number):
                contents = self._tree.open_files.get(node)
                if contents is not None:
                    await held.enter_async_context(contents.lock)
            await held.enter_async_context(self._tree.open_files.renaming)
            yield

    def _hide(self, node: Node, hidden: str) -> None:
        self._nodes.move(node, self._nodes.root, hidden)
        node.unlinked = True

    def is_hidden(self, node: Node) -> bool:
        return node.unlinked and node.parent is self._nodes.root

    async def delete_hidden(self, node: Node) -> None:
        """What was deleted or replaced here, once nobody has it open. It may have been closed while
        it got its hidden name."""
        if self.is_hidden(node) and not node.is_open:
            path = self._nodes.path(node)
            self._nodes.detach(node)
            self._nodes.drop_unused(node)
            await self._client.delete(path, now=True)

    async def _kept(self, node: Node, path: str) -> Entry | None:
        """A copy, which shares its chunks, of a file that is replaced while it is open here: the
        master keeps a replaced file for some seconds only, and nobody can write into it. The name
        has the old file or the new one at any time."""
        try:
            entry = await self._client.stat(path)
        except NotFound:
            return None
        if entry.inode != node.entry.inode:
            return None  # what is open here was replaced by another client before
        hidden = self._tree.child(self._nodes.root, UNLINKED + secrets.token_hex(8))
        try:
            await self._client.snapshot(path, hidden)
            return await self._client.stat(hidden)
        except BaseException:
            await self._undone(hidden)
            raise

    async def _undone(self, hidden: str) -> None:
        with trio.move_on_after(UNDO_SECONDS, shield=True), suppress(GfsError):
            await self._client.delete(hidden, now=True)

    def _hide_kept(self, node: Node, kept: Entry) -> None:
        self._hide(node, name_of(kept))
        self._nodes.stored_as(node, kept)
        contents = self._tree.open_files.get(node)
        if contents is not None:
            contents.stored.forget()

    async def _rename(self, node: Node, source: str, target: str, replacing: bool) -> None:
        try:
            await self._client.rename(source, target, replace=replacing)
        except IsADirectory:
            if not node.is_directory or not replacing:
                raise
            # The file system has no directory replace another: two steps.
            await self._client.delete(target)
            await self._client.rename(source, target)

"""The kernel's requests, one method each: what pyfuse3 calls.

The kernel caches names and attributes for ``CACHE_SECONDS``. Opening a file always asks the
master: if the name has another inode by now, ``ESTALE`` makes the kernel look every name of the
path up again, and so an open never trusts its cache. Permissions are checked by the kernel
(``default_permissions``), from the modes and owners that it gets from here.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import secrets
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError

from gfs.blocks import MIB
from gfs.client import Client, Entry, ExistingFile, cluster_space
from gfs.errors import (
    AlreadyExists,
    FileChanged,
    GfsError,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from gfs.mount.contents import Contents, Open, store_attributes
from gfs.mount.errnos import errno_of
from gfs.mount.nodes import ROOT, TOUCHED_MAX, Node, Nodes
from gfs.mount.posix import LINK, LINK_BYTES_MAX, PERMISSIONS, POSIX, Posix, kind_bits, posix_of

log = logging.getLogger(__name__)

CACHE_SECONDS = 1.0
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 4096
#: A file may have holes, but the master has a row for each chunk of it.
FILE_BYTES_MAX = 4 * 1024 * 1024 * MIB
#: No request of the kernel takes longer, and one that moves bytes no longer than the second;
#: most end by the client's ``retry_seconds``.
CALL_SECONDS = 60.0
BYTES_SECONDS = 300.0
#: What was deleted or replaced while it is open has such a name in the mounted directory, which
#: nobody sees here, until it is closed.
UNLINKED = ".gfs-unlinked-"
STATUS_SECONDS = 5.0
#: What a request that failed has done in part is undone within this.
UNDO_SECONDS = 10.0
#: Entries of an open directory that can be gone back to without listing it again.
ENTRIES_KEPT = 2000

MethodT = TypeVar("MethodT", bound=Callable[..., Awaitable[Any]])


def answered(seconds: float = CALL_SECONDS) -> Callable[[MethodT], MethodT]:
    """Every failure becomes an errno, and every wait ends."""

    def decorate(method: MethodT) -> MethodT:
        @functools.wraps(method)
        async def wrapped(*args: Any) -> Any:
            try:
                with trio.fail_after(seconds):
                    return await method(*args)
            except FUSEError:
                raise
            except (GfsError, OSError, trio.TooSlowError) as error:
                log.info("%s: %s", method.__name__, error)
                raise FUSEError(errno_of(error)) from None
            except Exception:
                log.exception("%s failed because of a bug", method.__name__)
                raise FUSEError(errno.EIO) from None

        return wrapped  # type: ignore[return-value]

    return decorate


def text_of(name: bytes) -> str:
    if len(name) > NAME_BYTES_MAX:
        raise FUSEError(errno.ENAMETOOLONG)
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise FUSEError(errno.EILSEQ) from None


def name_of(entry: Entry) -> str:
    return entry.path.rpartition("/")[2]


class Listing:
    """An open directory: pages are fetched as they are read."""

    def __init__(self, client: Client, path: str, node: Node) -> None:
        self._client = client
        self._path = path
        self.node = node
        #: See :attr:`Node.listings`.
        self.touched: set[str] = set()
        self._source: AsyncGenerator[Entry, None] | None = None
        self._entries: list[Entry] = []
        self._first = 0

    async def _list(self, after: str, number: int) -> AsyncGenerator[Entry, None]:
        """Again, from the entry of that number, which comes ``after`` this name."""
        await self.close()
        self.touched.clear()
        self._entries, self._first = [], number
        self._source = self._client.scan(self._path, after)
        return self._source

    async def get(self, number: int) -> Entry | None:
        """The entry of that number, None after the last."""
        source, at = self._source, number - self._first
        if source is None or at < 0:
            source = await self._list("", 0)
        elif len(self.touched) > TOUCHED_MAX:
            before = self._entries[at - 1 : at] if at else []
            source = await self._list(name_of(before[0]) if before else "", number if before else 0)
        while number >= self._first + len(self._entries):
            entry = await anext(source, None)
            if entry is None:
                return None
            self._entries.append(entry)
            if len(self._entries) > ENTRIES_KEPT:
                del self._entries[: ENTRIES_KEPT // 2]
                self._first += ENTRIES_KEPT // 2
        return self._entries[number - self._first]

    async def close(self) -> None:
        if self._source is not None:
            await self._source.aclose()
            self._source = None


class Operations(pyfuse3.Operations):
    supports_dot_lookup = False

    def __init__(self, client: Client, path: str, root: Entry, nursery: trio.Nursery) -> None:
        super().__init__()
        self._client = client
        # What other clients made belongs to who mounts it.
        self._uid, self._gid = os.getuid(), os.getgid()
        self.nodes = Nodes(Node(ROOT, root, posix_of(root, self._uid, self._gid)), path)
        self.nodes.root.lookups = 1
        self.open_files = Open(client, self.nodes, nursery)
        self._handles: dict[int, tuple[Node, Contents]] = {}
        self._listings: dict[int, Listing] = {}
        self._next_handle = 1
        self._totals: tuple[float, pyfuse3.StatvfsData] | None = None

    # --- what the kernel gets ------------------------------------------------------------

    def _shown(self, node: Node) -> EntryAttributes:
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
        shown.st_ctime_ns = max(node.posix.ctime_ns, node.entry.modified_ns)
        node.shown = (length, node.mtime_ns)
        return shown

    def _posix(self, entry: Entry) -> Posix:
        return posix_of(entry, self._uid, self._gid)

    def _take(self, node: Node, entry: Entry, asked_at: float = float("-inf")) -> None:
        """What the master says of it now, or at ``asked_at``, unless something here is newer."""
        node.asked_at = max(node.asked_at, asked_at)
        contents = self.open_files.get(node)
        if node.changed or (contents is not None and contents.is_busy):
            return
        before, node.entry = node.entry, entry
        node.posix, node.mtime_ns = self._posix(entry), entry.modified_ns
        if contents is not None and changed(before, entry):
            contents.refresh(None, entry)

    async def _find(self, parent: Node, name: str) -> Node:
        """What is there now. Raises NotFound and others."""
        path = self._child(parent, name)
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
        node = self.nodes.found(parent, name, entry, self._posix(entry))
        self._take(node, entry, asked_at)
        return node

    def _child(self, parent: Node, name: str) -> str:
        path = self.nodes.path(parent, name)
        if len(path.encode()) > PATH_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        return path

    def _made(self, parent: Node, name: str, entry: Entry) -> Node:
        node = self.nodes.found(parent, name, entry, self._posix(entry))
        self._take(node, entry)
        parent.touched(name)
        return node

    def _new(self, parent: Node, mode: int, context: pyfuse3.RequestContext) -> Posix:
        group = parent.posix.gid if parent.posix.mode & stat.S_ISGID else context.gid
        return Posix(mode & PERMISSIONS & ~context.umask, context.uid, group, time.time_ns())

    # --- names and attributes ---------------------------------------------------------------

    @answered()
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        node = await self._find(self.nodes[parent_inode], text_of(name))
        node.lookups += 1
        return self._shown(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.nodes.forget(inode_list)

    @answered()
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        node = self.nodes[inode]
        contents = self.open_files.get(node)
        asked_at = trio.current_time()
        # The kernel asks for a directory's after each change in it, which changes none.
        age = asked_at - node.asked_at if node.is_directory else CACHE_SECONDS
        if age < CACHE_SECONDS:
            shown = self._shown(node)
            shown.attr_timeout = CACHE_SECONDS - age
            return shown
        if not node.unlinked and not (contents and contents.is_busy):
            stores = node.stores
            try:
                entry = await self._client.stat(self.nodes.path(node))
                if node.stores != stores:
                    pass  # what is known here is newer
                elif entry.inode == node.entry.inode:
                    self._take(node, entry, asked_at)
                elif contents is None:
                    raise FileChanged(f"inode {inode} was replaced")
            except (NotFound, NotADirectory, FileChanged):
                # Who has it open goes on with it; others look it up again.
                if contents is None:
                    raise FUSEError(errno.ESTALE) from None
        return self._shown(node)

    @answered(BYTES_SECONDS)
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        node = self.nodes[inode]
        if fields.update_size:
            await self._truncate(node, attr.st_size)
        posix, now = node.posix, time.time_ns()
        if fields.update_mode:
            posix = replace(posix, mode=attr.st_mode & PERMISSIONS)
        if fields.update_uid:
            posix = replace(posix, uid=attr.st_uid)
        if fields.update_gid:
            posix = replace(posix, gid=attr.st_gid)
        if (fields.update_uid or fields.update_gid) and not (
            node.is_directory or fields.update_mode
        ):
            posix = posix.without_privileges()
        if fields.update_atime:
            posix = replace(posix, atime_ns=max(1, attr.st_atime_ns))
        if fields.update_mtime:
            node.mtime_ns = max(1, attr.st_mtime_ns)
        node.posix, node.changed = replace(posix, ctime_ns=now), True
        contents = self.open_files.get(node)
        if contents is None:
            try:
                await store_attributes(self.open_files, node)
            finally:
                if not node.is_open:
                    self._give_up(node)
        elif not contents.is_busy:
            await contents.store()
        return self._shown(node)

    def _give_up(self, node: Node) -> None:
        """What of its attributes could not be stored: what the master says counts again."""
        if node.changed:
            node.changed = False
            node.posix, node.mtime_ns = self._posix(node.entry), node.entry.modified_ns

    async def _truncate(self, node: Node, size: int) -> None:
        if size > FILE_BYTES_MAX:
            raise FUSEError(errno.EFBIG)
        contents = self.open_files.get(node)
        if contents is None:
            contents = await self._contents(node)
            contents.handles += 1
            try:
                await self._truncate(node, size)
                await contents.store()
            finally:
                await self._close(node, contents)
            return
        before = contents.length
        await contents.truncate(size)
        if contents.length != before or size == 0:
            self._written(node)

    def _written(self, node: Node) -> None:
        node.mtime_ns = now = time.time_ns()
        node.posix = replace(node.posix.without_privileges(), ctime_ns=now)
        node.changed = True

    @answered()
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self.nodes[inode].entry.attributes[LINK].encode()

    @answered()
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        if self._totals is None or self._totals[0] < trio.current_time():
            status = await self._client.status()
            goal = status.replication or 1
            total, free = cluster_space(status.servers)
            shown = pyfuse3.StatvfsData()
            shown.f_bsize = shown.f_frsize = 4096
            shown.f_blocks = total // goal // 4096
            shown.f_bfree = shown.f_bavail = free // goal // 4096
            shown.f_files = status.totals.files + status.totals.directories
            shown.f_ffree = shown.f_favail = (1 << 40) - shown.f_files
            shown.f_namemax = NAME_BYTES_MAX
            self._totals = (trio.current_time() + STATUS_SECONDS, shown)
        return self._totals[1]

    # --- directories ------------------------------------------------------------------------

    @answered()
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        node = self.nodes[inode]
        handle = self._handle()
        self._listings[handle] = made = Listing(self._client, self.nodes.path(node), node)
        node.listings[handle] = made.touched
        return handle

    @answered()
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        parent = listing.node
        number = start_id
        if number == 0:
            await listing.close()  # who begins again sees what is there by now
        while True:
            if number < 2:
                node = parent if number == 0 else parent.parent or parent
                if not pyfuse3.readdir_reply(
                    token, b".." if number else b".", self._shown(node), number + 1
                ):
                    return
                number += 1
                continue
            entry = await listing.get(number - 2)
            if entry is None:
                return
            number += 1
            name = name_of(entry)
            if parent is self.nodes.root and name.startswith(UNLINKED):
                continue
            there = parent.children.get(name)
            if there is not None and there.is_open:
                node = there  # what is known here is newer than the listing
            elif name in listing.touched:
                try:
                    node = await self._find(parent, name)
                except (NotFound, NotADirectory, FileChanged):
                    continue  # it was deleted or renamed here after it was listed
            else:
                node = self.nodes.found(parent, name, entry, self._posix(entry))
                self._take(node, entry)
            if not pyfuse3.readdir_reply(token, name.encode(), self._shown(node), number):
                self.nodes.drop_unused(node)
                return
            node.lookups += 1

    @answered()
    async def releasedir(self, fh: int) -> None:
        listing = self._listings.pop(fh)
        del listing.node.listings[fh]
        await listing.close()

    @answered()
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names are durable when the call that changes them returns."""

    @answered()
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        parent, as_text = self.nodes[parent_inode], text_of(name)
        posix = self._new(parent, mode, ctx)
        posix = replace(posix, mode=posix.mode | (parent.posix.mode & stat.S_ISGID))
        entry = await self._client.mkdir(
            self._child(parent, as_text), attributes={POSIX: posix.text()}
        )
        node = self._made(parent, as_text, entry)
        node.lookups += 1
        return self._shown(node)

    @answered()
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent, as_text = self.nodes[parent_inode], text_of(name)
        if await self._delete_known(parent, as_text, is_directory=True):
            return
        node = await self._find(parent, as_text)
        if not node.is_directory:
            raise FUSEError(errno.ENOTDIR)
        await self._delete(parent, as_text, node)

    async def _delete(self, parent: Node, name: str, node: Node) -> None:
        await self._client.delete(self._child(parent, name), expect=node.entry.inode)
        node.unlinked = True
        self.nodes.detach(node)
        parent.touched(name)

    async def _delete_known(self, parent: Node, name: str, is_directory: bool) -> bool:
        """Delete what the kernel has just looked up, if it is of that kind, not open here, and
        still what the master has there."""
        node = parent.children.get(name)
        if node is None or node.is_directory != is_directory or node.is_open:
            return False
        try:
            await self._delete(parent, name, node)
        except FileChanged:
            return False
        return True

    # --- names of files ---------------------------------------------------------------------

    async def _create(
        self,
        parent_inode: int,
        name: bytes,
        mode: int,
        ctx: pyfuse3.RequestContext,
        attributes: dict[str, str],
    ) -> Node:
        parent, as_text = self.nodes[parent_inode], text_of(name)
        posix = self._new(parent, mode, ctx)
        entry = await self._client.put(
            b"",
            self._child(parent, as_text),
            parents=False,
            attributes={POSIX: posix.text(), **attributes},
            expect=0,
            modified_ns=posix.ctime_ns,
        )
        return self._made(parent, as_text, entry)

    @answered()
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, EntryAttributes]:
        try:
            node = await self._create(parent_inode, name, mode, ctx, {})
        except AlreadyExists:
            if flags & os.O_EXCL:
                raise
            # Another client has made it since the kernel looked.
            node = await self._find(self.nodes[parent_inode], text_of(name))
            contents = self.open_files.get(node) or await self._contents(node)
        else:
            contents = self.open_files.add(node, None)
        info = await self._info(node, contents, flags, False)
        node.lookups += 1
        return info, self._shown(node)

    @answered()
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            raise FUSEError(errno.EPERM)
        node = await self._create(parent_inode, name, mode, ctx, {})
        node.lookups += 1
        return self._shown(node)

    @answered()
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        if len(target) > LINK_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        try:
            link = {LINK: target.decode()}
        except UnicodeDecodeError:
            raise FUSEError(errno.EILSEQ) from None
        node = await self._create(parent_inode, name, 0o777, ctx, link)
        node.lookups += 1
        return self._shown(node)

    @answered()
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)  # as Linux says of a file system without hard links

    @answered()
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent, as_text = self.nodes[parent_inode], text_of(name)
        if await self._delete_known(parent, as_text, is_directory=False):
            return
        node = await self._find(parent, as_text)
        if node.is_directory:
            raise FUSEError(errno.EISDIR)
        contents = self.open_files.get(node)
        if contents is None:
            await self._delete(parent, as_text, node)
            return
        async with self._held(node):
            hidden = UNLINKED + secrets.token_hex(8)
            await self._client.rename(
                self._child(parent, as_text), self._child(self.nodes.root, hidden)
            )
            self._hide(node, hidden)
        parent.touched(as_text)
        await self._delete_hidden(node)

    @asynccontextmanager
    async def _held(self, *nodes: Node | None) -> AsyncGenerator[None, None]:
        """Their names and bytes stay what they are, and are not stored meanwhile."""
        async with AsyncExitStack() as held:
            for node in sorted(filter(None, set(nodes)), key=lambda node: node.number):
                contents = self.open_files.get(node)
                if contents is not None:
                    await held.enter_async_context(contents.lock)
            await held.enter_async_context(self.open_files.renaming)
            yield

    def _hide(self, node: Node, hidden: str) -> None:
        self.nodes.move(node, self.nodes.root, hidden)
        node.unlinked = True

    def _is_hidden(self, node: Node) -> bool:
        return node.unlinked and node.parent is self.nodes.root

    async def _delete_hidden(self, node: Node) -> None:
        """What was deleted or replaced here, once nobody has it open. It may have been closed while
        it got its hidden name."""
        if self._is_hidden(node) and not node.is_open:
            path = self.nodes.path(node)
            self.nodes.detach(node)
            self.nodes.drop_unused(node)
            await self._client.delete(path, now=True)

    @answered()
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        old_parent, old = self.nodes[parent_inode_old], text_of(name_old)
        parent, new = self.nodes[parent_inode_new], text_of(name_new)
        node = await self._find(old_parent, old)
        there = parent.children.get(new)
        if there is node:
            there = None
        source, target = self._child(old_parent, old), self._child(parent, new)
        async with self._held(node, there):
            kept = None
            if there is not None and there.is_open and not flags:
                kept = await self._kept(there, target)
            try:
                await self._rename(node, source, target, not flags)
            except BaseException:
                if kept is not None:
                    await self._undone(kept.path)
                raise
            if there is not None:
                there.unlinked = True
                if kept is not None:
                    self._hide_kept(there, kept)
            self.nodes.move(node, parent, new)
        old_parent.touched(old)
        parent.touched(new)
        if there is not None:
            await self._delete_hidden(there)

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
        hidden = self._child(self.nodes.root, UNLINKED + secrets.token_hex(8))
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
        self.nodes.stored_as(node, kept)
        contents = self.open_files.get(node)
        if contents is not None:
            contents.forget_stored()

    async def _rename(self, node: Node, source: str, target: str, replacing: bool) -> None:
        try:
            await self._client.rename(source, target, replace=replacing)
        except IsADirectory:
            if not node.is_directory or not replacing:
                raise
            # The file system has no directory replace another: two steps.
            await self._client.delete(target)
            await self._client.rename(source, target)

    # --- bytes ------------------------------------------------------------------------------

    def _handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    async def _info(
        self, node: Node, contents: Contents, flags: int, keep: bool
    ) -> pyfuse3.FileInfo:
        handle = self._handle()
        contents.handles += 1
        self._handles[handle] = (node, contents)
        if flags & os.O_TRUNC and contents.length:
            try:
                await contents.truncate(0)
            except BaseException:
                # The kernel releases nothing that was not opened.
                del self._handles[handle]
                with trio.move_on_after(UNDO_SECONDS, shield=True):
                    await self._close(node, contents)
                raise
            self._written(node)
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep)

    async def _contents(self, node: Node) -> Contents:
        """Open the file as it is now. Raises FileChanged if another has its name."""
        path = self.nodes.path(node)
        file = await self._client.open(path, "r+")
        assert isinstance(file, ExistingFile)
        if file.entry.inode != node.entry.inode:
            raise FileChanged(f"{path} was replaced")
        self._take(node, file.entry)
        return self.open_files.get(node) or self.open_files.add(node, file)

    @answered()
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self.nodes[inode]
        contents = self.open_files.get(node)
        if contents is None or not (contents.is_busy or node.unlinked):
            try:
                contents = await self._contents(node)
            except (NotFound, NotADirectory, FileChanged):
                raise FUSEError(errno.ESTALE) from None  # the kernel looks again
        digest = (node.entry.inode, node.entry.digest) if node.entry.digest else None
        keep = digest is not None and node.cached == digest
        node.cached = digest
        info = await self._info(node, contents, flags, keep)
        if node.shown != (contents.length, node.mtime_ns):
            with suppress(OSError):
                pyfuse3.invalidate_inode(inode, attr_only=True)
        return info

    @answered(BYTES_SECONDS)
    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, and copies it before another task goes on.
        return cast(bytes, await self._handles[fh][1].read(off, size))

    @answered(BYTES_SECONDS)
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node, contents = self._handles[fh]
        if off + len(buf) > FILE_BYTES_MAX:
            raise FUSEError(errno.EFBIG)
        self._written(node)
        await contents.write(off, buf)
        return len(buf)

    @answered(BYTES_SECONDS)
    async def flush(self, fh: int) -> None:
        node, contents = self._handles[fh]
        if contents.is_busy or node.changed:
            await contents.store()

    @answered(BYTES_SECONDS)
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._handles[fh][1].store()

    @answered(BYTES_SECONDS)
    async def release(self, fh: int) -> None:
        node, contents = self._handles.pop(fh)
        await self._close(node, contents)

    async def _close(self, node: Node, contents: Contents) -> None:
        contents.handles -= 1
        if contents.handles:
            return
        if not self._is_hidden(node):
            await contents.close()
        if contents.handles or self.open_files.get(node) is not contents:
            return  # it was opened again meanwhile, and perhaps closed
        self._give_up(node)
        await self.open_files.remove(node)
        await self._delete_hidden(node)
        self.nodes.drop_unused(node)

    async def close(self) -> None:
        """Nobody can reach the files any more: store what is not stored."""
        await self.open_files.store_all()
        for node, contents in set(self._handles.values()):
            contents.handles = 1
            with suppress(GfsError, FUSEError):
                await self._close(node, contents)
        self._handles.clear()


def changed(before: Entry, now: Entry) -> bool:
    """Whether its bytes may be others. What is written in place has no digest, and may have
    changed in any case."""
    return not now.digest or (before.inode, before.digest) != (now.inode, now.digest)

"""The kernel's requests, one method each: what pyfuse3 calls.

The kernel caches names and attributes for ``CACHE_SECONDS``. Opening a file always asks the
master: if the name has another inode by now, ``ESTALE`` makes the kernel look every name of the
path up again, and so an open never trusts its cache. Permissions are checked by the kernel
(``default_permissions``), from the modes and owners that it gets from here.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError

from gfs.blocks import MIB
from gfs.client import Client, Entry, cluster_space
from gfs.errors import (
    AlreadyExists,
    FileChanged,
    GfsError,
    NotADirectory,
    NotFound,
)
from gfs.mount.contents import Contents, store_attributes
from gfs.mount.errnos import errno_of
from gfs.mount.nodes import TOUCHED_MAX, Node, name_of
from gfs.mount.posix import LINK, LINK_BYTES_MAX, PERMISSIONS, POSIX, Posix
from gfs.mount.tree import CACHE_SECONDS, UNLINKED, Tree
from gfs.mount.unlinking import UNDO_SECONDS, Unlinking

log = logging.getLogger(__name__)

NAME_BYTES_MAX = 255
#: A file may have holes, but the master has a row for each chunk of it.
FILE_BYTES_MAX = 4 * 1024 * 1024 * MIB
#: No request of the kernel takes longer, and one that moves bytes no longer than the second;
#: most end by the client's ``retry_seconds``.
CALL_SECONDS = 60.0
BYTES_SECONDS = 300.0
STATUS_SECONDS = 5.0
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


def posix_of_new(parent: Node, mode: int, context: pyfuse3.RequestContext) -> Posix:
    group = parent.posix.gid if parent.posix.mode & stat.S_ISGID else context.gid
    return Posix(mode & PERMISSIONS & ~context.umask, context.uid, group, time.time_ns())


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
        self._tree = Tree(client, path, root, nursery)
        self.nodes, self.open_files = self._tree.nodes, self._tree.open_files
        self._unlinking = Unlinking(client, self._tree)
        self._handles: dict[int, tuple[Node, Contents]] = {}
        self._listings: dict[int, Listing] = {}
        #: Of handles.
        self._numbers = itertools.count(2)
        self._totals: tuple[float, pyfuse3.StatvfsData] | None = None

    # --- names and attributes ---------------------------------------------------------------

    @answered()
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        node = await self._tree.find(self.nodes[parent_inode], text_of(name))
        node.lookups += 1
        return self._tree.shown(node)

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
            shown = self._tree.shown(node)
            shown.attr_timeout = CACHE_SECONDS - age
            return shown
        if not node.unlinked and not (contents and contents.is_busy):
            stores = node.stores
            try:
                entry = await self._client.stat(self.nodes.path(node))
                if node.stores != stores:
                    pass  # what is known here is newer
                elif entry.inode == node.entry.inode:
                    self._tree.take(node, entry, asked_at)
                elif contents is None:
                    raise FileChanged(f"inode {inode} was replaced")
            except (NotFound, NotADirectory, FileChanged):
                # Who has it open goes on with it; others look it up again.
                if contents is None:
                    raise FUSEError(errno.ESTALE) from None
        return self._tree.shown(node)

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
                # A directory's is the master's, which may know of later changes in it.
                with_time = fields.update_mtime or not node.is_directory
                await store_attributes(self.open_files, node, with_time=with_time)
            finally:
                if not node.is_open:
                    self._tree.give_up(node)
        elif not contents.is_busy:
            await contents.store()
        return self._tree.shown(node)

    async def _truncate(self, node: Node, size: int) -> None:
        if size > FILE_BYTES_MAX:
            raise FUSEError(errno.EFBIG)
        contents = self.open_files.get(node)
        if contents is None:
            contents = await self._tree.open(node)
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
            node.written()

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
        handle = next(self._numbers)
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
                    token, b".." if number else b".", self._tree.shown(node), number + 1
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
                    node = await self._tree.find(parent, name)
                except (NotFound, NotADirectory, FileChanged):
                    continue  # it was deleted or renamed here after it was listed
            else:
                node = self.nodes.found(parent, name, entry, self._tree.posix(entry))
                self._tree.take(node, entry)
            if not pyfuse3.readdir_reply(token, name.encode(), self._tree.shown(node), number):
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
        posix = posix_of_new(parent, mode, ctx)
        posix = replace(posix, mode=posix.mode | (parent.posix.mode & stat.S_ISGID))
        entry = await self._client.mkdir(
            self._tree.child(parent, as_text), attributes={POSIX: posix.text()}
        )
        node = self._tree.made(parent, as_text, entry)
        node.lookups += 1
        return self._tree.shown(node)

    @answered()
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent, as_text = self.nodes[parent_inode], text_of(name)
        if await self._unlinking.delete_known(parent, as_text, is_directory=True):
            return
        node = await self._tree.find(parent, as_text)
        if not node.is_directory:
            raise FUSEError(errno.ENOTDIR)
        await self._unlinking.delete(parent, as_text, node)

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
        posix = posix_of_new(parent, mode, ctx)
        entry = await self._client.put(
            b"",
            self._tree.child(parent, as_text),
            parents=False,
            attributes={POSIX: posix.text(), **attributes},
            expect=0,
            modified_ns=posix.ctime_ns,
        )
        return self._tree.made(parent, as_text, entry)

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
            node = await self._tree.find(self.nodes[parent_inode], text_of(name))
            contents = self.open_files.get(node) or await self._tree.open(node)
        else:
            contents = self.open_files.add(node, None)
        info = await self._info(node, contents, flags, False)
        node.lookups += 1
        return info, self._tree.shown(node)

    @answered()
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        if not stat.S_ISREG(mode):
            raise FUSEError(errno.EPERM)
        node = await self._create(parent_inode, name, mode, ctx, {})
        node.lookups += 1
        return self._tree.shown(node)

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
        return self._tree.shown(node)

    @answered()
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)  # as Linux says of a file system without hard links

    @answered()
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent, as_text = self.nodes[parent_inode], text_of(name)
        if await self._unlinking.delete_known(parent, as_text, is_directory=False):
            return
        node = await self._tree.find(parent, as_text)
        if node.is_directory:
            raise FUSEError(errno.EISDIR)
        contents = self.open_files.get(node)
        if contents is None:
            await self._unlinking.delete(parent, as_text, node)
            return
        await self._unlinking.unlink_open(parent, as_text, node)

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
        node = await self._tree.find(old_parent, old)
        await self._unlinking.rename(node, old_parent, old, parent, new, replacing=not flags)

    # --- bytes ------------------------------------------------------------------------------

    async def _info(
        self, node: Node, contents: Contents, flags: int, keep: bool
    ) -> pyfuse3.FileInfo:
        handle = next(self._numbers)
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
            node.written()
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep)

    @answered()
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self.nodes[inode]
        contents = self.open_files.get(node)
        if contents is None or not (contents.is_busy or node.unlinked):
            try:
                contents = await self._tree.open(node)
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
        node.written()
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
        if not self._unlinking.is_hidden(node):
            await contents.close()
        if contents.handles or self.open_files.get(node) is not contents:
            return  # it was opened again meanwhile, and perhaps closed
        self._tree.give_up(node)
        await self.open_files.remove(node)
        await self._unlinking.delete_hidden(node)
        self.nodes.drop_unused(node)

    async def close(self) -> None:
        """Nobody can reach the files any more: store what is not stored."""
        await self.open_files.store_all()
        for node, contents in set(self._handles.values()):
            contents.handles = 1
            with suppress(GfsError, FUSEError):
                await self._close(node, contents)
        self._handles.clear()

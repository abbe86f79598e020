"""The local side of put and get: trees, special files, stdin."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import trio

from gfs.cli.options import check_directory, check_local_name, check_parent
from gfs.errors import GfsError, InvalidArgument

#: Directory entries read in one call to a worker thread.
BATCH_ENTRIES = 256
READ_BYTES = 1024 * 1024


@dataclass
class Item:
    """Something in a tree. ``error`` says why it cannot be copied."""

    path: str
    #: Below the tree's root, with "/" between; "" is the root itself.
    relative: str
    is_directory: bool = False
    length: int = 0
    error: GfsError | OSError | None = None
    #: Set to False by the caller of the walk, to leave out what is below a directory.
    descend: bool = True


@dataclass
class _Directory:
    """A directory being walked: ``pending`` is read from ``entries`` in batches."""

    item: Item
    identity: tuple[int, int]
    entries: os._ScandirIterator[str]
    pending: list[Item] = field(default_factory=list)


async def walk(root: str) -> AsyncGenerator[Item, None]:
    """``root`` (a directory) and everything below it, parents first.

    Symbolic links are followed. An entry that cannot be copied (a dangling or
    circular link, a socket, an unreadable directory) is yielded with an error:
    nothing is left out silently. Memory grows with the depth only.
    """
    top = Item(root, "", is_directory=True)
    stack = [await trio.to_thread.run_sync(_open_directory, top)]
    try:
        yield top
        while stack:
            here = stack[-1]
            if not here.pending:
                above = {directory.identity for directory in stack}
                here.pending = await trio.to_thread.run_sync(_next_items, here, above)
                if not here.pending:
                    stack.pop().entries.close()
                    continue
            item = here.pending.pop()
            opened: _Directory | None = None
            if item.is_directory and item.error is None:
                try:
                    opened = await trio.to_thread.run_sync(_open_directory, item)
                except OSError as error:
                    item.error = error
            if opened is not None:
                stack.append(opened)
            yield item
            if opened is not None and not item.descend:
                stack.pop().entries.close()
    finally:
        for directory in stack:
            directory.entries.close()


def _open_directory(item: Item) -> _Directory:
    found = os.stat(item.path)
    return _Directory(item, (found.st_dev, found.st_ino), os.scandir(item.path))


def _next_items(here: _Directory, above: set[tuple[int, int]]) -> list[Item]:
    """The next entries, the last one first (they are taken from the end)."""
    batch = itertools.islice(here.entries, BATCH_ENTRIES)
    return [_look(here.item, entry, above) for entry in batch][::-1]


def _look(parent: Item, entry: os.DirEntry[str], above: set[tuple[int, int]]) -> Item:
    relative = f"{parent.relative}/{entry.name}" if parent.relative else entry.name
    item = Item(entry.path, relative)
    try:
        check_local_name(entry.name)
        found = entry.stat()
        item.is_directory = stat.S_ISDIR(found.st_mode)
        item.length = found.st_size
        if item.is_directory and (found.st_dev, found.st_ino) in above:
            raise InvalidArgument(f"{entry.path}: left out: the symbolic link leads in a circle")
        if not item.is_directory:
            _check_regular(entry.path, found.st_mode)
    except (GfsError, OSError) as error:
        item.error = error
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            item.error = InvalidArgument(f"{entry.path}: left out: a circle of symbolic links")
    return item


_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _check_regular(path: str, mode: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise InvalidArgument(f"{path}: left out: it is {kind}, not a file")


async def tree_bytes(root: str) -> int:
    """The sum of the lengths of the files below ``root``."""
    total = 0
    async for item in walk(root):
        if not item.is_directory and item.error is None:
            total += item.length
    return total


# --- streams ----------------------------------------------------------------------


async def read_stream(descriptor: int) -> AsyncGenerator[bytes, None]:
    """The bytes of stdin or a pipe, until its end.

    Waits in the loop where the kernel lets it, so that Ctrl-C works at once;
    the descriptor, which others may share, is not made non-blocking.
    """
    with contextlib.suppress(OSError, AttributeError):  # not a pipe, not Linux
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, READ_BYTES)
    while True:
        try:
            await trio.lowlevel.wait_readable(descriptor)
            data = os.read(descriptor, READ_BYTES)
        except PermissionError:  # epoll: a regular file, never waited for
            data = await trio.to_thread.run_sync(os.read, descriptor, READ_BYTES)
        if not data:
            return
        yield data


async def open_pipe(path: str) -> int:
    """Open a named pipe for reading; waits for its writer, cancellably."""
    return await trio.to_thread.run_sync(
        os.open, path, os.O_RDONLY | os.O_CLOEXEC, abandon_on_cancel=True
    )


def is_pipe(path: str) -> bool:
    """Whether ``path`` can be read only once, to its end (a pipe)."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def is_special(path: str) -> bool:
    """Whether ``path`` exists and cannot be replaced by a file: ``/dev/null``."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_directory(path: str, *, wanted: bool) -> bool:
    """Whether to copy into ``path``. Raises NotFound if that is ``wanted`` and there is none."""
    if wanted:
        check_directory(path)
    return os.path.isdir(path)


def prepare_target(path: str) -> str:
    """The file to write for ``path``: a link stays a link, and its target is written. Raises
    NotFound if its directory does not exist."""
    target = os.path.realpath(path) if os.path.islink(path) else path
    check_parent(target)
    return target


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

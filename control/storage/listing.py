"""All files of a storage namespace, sorted by path, in constant memory.

The master reads the tree (:mod:`gfs.master.metadata.subtree`), so a listing costs it one question
for a page, however deep the files are. The listing is not a snapshot: it shows some of the files
that are created or deleted while it runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, suppress

from gfs.client import Client, Entry
from gfs.errors import NotADirectory, NotFound

#: Files asked for in one question.
PAGE = 1000


async def files(
    fs: Client,
    directory: str,
    *,
    prefix: str = "",
    after: str = "",
    folders: bool = False,
    without: frozenset[str] = frozenset(),
    page: int = PAGE,
    turn: AbstractAsyncContextManager[object] | None = None,
) -> AsyncGenerator[tuple[str, Entry], None]:
    """(path, entry) of all files below ``directory``, by the bytes of the path.

    Args:
        directory: where to begin; paths are relative to it.
        prefix: list only paths that begin with it; other directories are not read.
        after: list only paths that sort after it.
        folders: list a folder whose path begins with ``prefix`` as its path with a slash,
            and nothing in it.
        without: paths of folders, with a slash, that are not listed.
        page: how many to ask the master for at once.
        turn: entered for each question.

    A directory that does not exist, or not any more, counts as empty.
    """
    found = fs.files(
        directory,
        prefix=prefix,
        after=after,
        folders=folders,
        without=without,
        page=page,
        turn=turn,
    )
    with suppress(NotFound, NotADirectory):
        async with aclosing(found) as entries:
            async for entry in entries:
                path = entry.path.removeprefix(f"{directory}/")
                yield (f"{path}/" if entry.kind == "directory" else path), entry

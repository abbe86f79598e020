"""Files that get their path, in one step, when they are complete."""

from __future__ import annotations

from gfs.client import Client
from gfs.errors import NotFound

#: Where they are until then: outside all storage namespaces.
STAGING = "/storage-copies"
#: Another deletion may remove the folders again that were made for a file.
TRIES_MAX = 5


async def place(fs: Client, staged: str, directory: str, path: str, within: str) -> None:
    """Give the copy its path. Folders of the path are made, but never ``within``, nor the
    directory of the storage namespace: they may be gone."""
    for _ in range(TRIES_MAX):
        try:
            return await fs.rename(staged, f"{directory}/{path}")
        except NotFound:
            made = f"{directory}/{within}".rstrip("/")
            for name in path[len(within) :].strip("/").split("/")[:-1]:
                made += f"/{name}"
                await fs.mkdir(made, exist_ok=True)
    raise NotFound(f"{path}: its folders are deleted again and again")

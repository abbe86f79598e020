"""A distributed file system after the Google File System paper, on Trio.

::

    async with gfs.connect() as fs:
        await fs.put(b"bytes", "/a/file")
        print(await fs.get("/a/file"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gfs.client import Client, connect

__version__ = "0.2.0"

__all__ = ["Client", "__version__", "connect"]


def __getattr__(name: str) -> object:
    # The servers import this package too and need no client.
    if name in ("Client", "connect"):
        import gfs.client

        return getattr(gfs.client, name)
    raise AttributeError(f"module 'gfs' has no attribute {name!r}")

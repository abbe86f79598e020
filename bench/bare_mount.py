"""What FUSE itself costs: one file that is answered from memory, by pyfuse3 and nothing else.

    python -m bench.bare_mount DIRECTORY MIB

Prints a line when it is mounted; SIGTERM unmounts it. What a mount of the file system reads lies
below what this reads on the same machine, since its bytes pass a socket and a check besides.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

from gfs.mount.process import read_ahead

NAME = b"large"
INODE = 2


class OneFile(pyfuse3.Operations):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._bytes = memoryview(os.urandom(1 << 20))

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        shown = pyfuse3.EntryAttributes()
        shown.st_ino = inode
        is_file = inode == INODE
        shown.st_mode = stat.S_IFREG | 0o644 if is_file else stat.S_IFDIR | 0o755
        shown.st_size = self._size if is_file else 0
        return shown

    async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(INODE)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: int, offset: int, size: int) -> memoryview:
        return self._bytes[:size]


async def main(directory: Path, mib: int) -> None:
    pyfuse3.init(OneFile(mib << 20), str(directory), {"fsname=bare"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_ahead, directory)
            nursery.start_soon(pyfuse3.main)
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                print("mounted", flush=True)
                await anext(signals)
            pyfuse3.terminate()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))

"""Whether what cannot be stored finds no room."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from gfs.client import Client
from gfs.errors import ChunkUnavailable, DiskFull, GfsError, NotEnoughChunkservers


@asynccontextmanager
async def storing(client: Client) -> AsyncGenerator[None, None]:
    """Raises DiskFull where the cluster is full. The master places nothing on a full server, and
    so says that there are not enough, or that nobody can write a chunk."""
    try:
        yield
    except (NotEnoughChunkservers, ChunkUnavailable) as error:
        if await is_full(client):
            raise DiskFull(f"the disks of the cluster are full: {error}") from error
        raise


async def is_full(client: Client) -> bool:
    """Whether servers run that have no room, and too few that have some for a new file."""
    try:
        status = await client.status()
    except GfsError:
        return False  # nobody knows: what failed first is the error
    live = [server for server in status.servers if server.state == "live" and not server.drain]
    roomy = [
        server
        for server in live
        if any(disk.state in ("ok", "slow") and disk.free_bytes > 0 for disk in server.disks)
    ]
    return len(roomy) < min(len(live), status.replication or 1)

"""What stands for the cluster: the blocking client, or something that has one."""

from __future__ import annotations

from typing import Protocol

from gfs.client import sync
from gfs.errors import InvalidArgument


class HasClient(Protocol):
    """As fsspec's file system for ``gfs://``, which this room does not need."""

    @property
    def client(self) -> sync.SyncClient: ...


FileSystem = sync.SyncClient | HasClient


def client_of(fs: FileSystem) -> sync.SyncClient:
    """The client of this process. Raises InvalidArgument."""
    client = fs if isinstance(fs, sync.SyncClient) else getattr(fs, "client", None)
    if not isinstance(client, sync.SyncClient):
        raise InvalidArgument(
            f"a {type(fs).__name__} is no file system: give what gfs.client.sync.connect() "
            'returns, or fsspec.filesystem("gfs")'
        )
    return client

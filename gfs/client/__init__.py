"""The client library: ``async with gfs.connect() as fs: …``.

:mod:`gfs.client.sync` has the same names, blocking.
"""

from gfs.client.client import Client, LocateReport, connect
from gfs.client.files import File
from gfs.client.fsck import ChunkReport, FsckProblem, FsckReport
from gfs.protocol.messages import Entry

__all__ = [
    "ChunkReport",
    "Client",
    "Entry",
    "File",
    "FsckProblem",
    "FsckReport",
    "LocateReport",
    "connect",
]

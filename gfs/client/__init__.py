"""The client library: ``async with gfs.connect() as fs: …``.

:mod:`gfs.client.sync` has the same names, blocking.
"""

from gfs.client.append import Record
from gfs.client.client import Client, LocateReport, connect
from gfs.client.files import ExistingFile, File, NewFile
from gfs.client.fsck import ChunkReport, FsckProblem, FsckReport
from gfs.client.rescue import Rescued
from gfs.protocol.messages import Entry, TrashEntry

__all__ = [
    "ChunkReport",
    "Client",
    "Entry",
    "ExistingFile",
    "File",
    "FsckProblem",
    "FsckReport",
    "LocateReport",
    "NewFile",
    "Record",
    "Rescued",
    "TrashEntry",
    "connect",
]

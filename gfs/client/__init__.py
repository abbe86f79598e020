"""The client library: ``async with gfs.connect() as fs: …``.

:mod:`gfs.client.sync` has the same names, blocking.
"""

from gfs.client.append import Record
from gfs.client.client import Client, connect, find_credentials, find_masters
from gfs.client.errnos import as_built_in, errno_of
from gfs.client.files import ExistingFile, File, NewFile
from gfs.client.fsck import MENDING, ChunkReport, FsckProblem, FsckReport
from gfs.client.operator import LocateReport
from gfs.client.read import BlockStream
from gfs.client.rescue import Rescued
from gfs.client.transfer import LocalPart, check_free
from gfs.protocol.messages import Entry, TrashEntry, readers_seconds
from gfs.protocol.space import cluster_space, space_of

__all__ = [
    "MENDING",
    "BlockStream",
    "ChunkReport",
    "Client",
    "Entry",
    "ExistingFile",
    "File",
    "FsckProblem",
    "FsckReport",
    "LocalPart",
    "LocateReport",
    "NewFile",
    "Record",
    "Rescued",
    "TrashEntry",
    "as_built_in",
    "check_free",
    "cluster_space",
    "connect",
    "errno_of",
    "find_credentials",
    "find_masters",
    "readers_seconds",
    "space_of",
    "sync",
]

"""The interface to the outside: network, disk, clock and randomness.

All of ``gfs`` uses the outside only through a :class:`World`. :func:`real_world` is
this machine; the simulator (:mod:`gfs.testing`) has its own. This package imports
nothing else of ``gfs``. :mod:`.tls` encrypts streams.
"""

from gfs.io.filelock import sync_directory, try_flock, try_lock_byte
from gfs.io.private import others_can_read
from gfs.io.real import BadAddress, join_address, real_world, split_address
from gfs.io.world import (
    Buffer,
    Clock,
    DiskSpace,
    File,
    FileSystem,
    Listener,
    Lock,
    Network,
    ReadFailed,
    Runner,
    Stream,
    World,
    lost_mount,
)

__all__ = [
    "BadAddress",
    "Buffer",
    "Clock",
    "DiskSpace",
    "File",
    "FileSystem",
    "Listener",
    "Lock",
    "Network",
    "ReadFailed",
    "Runner",
    "Stream",
    "World",
    "join_address",
    "lost_mount",
    "others_can_read",
    "real_world",
    "split_address",
    "sync_directory",
    "tls",
    "try_flock",
    "try_lock_byte",
]

"""The seam to the world: network, disk, clock and randomness.

Everything in ``gfs`` that touches the outside goes through a :class:`World`.
:func:`real_world` is this machine; the simulator in the tests has its own. No
code may reach around it, and it imports nothing of ours.
"""

from gfs.io.real import real_world
from gfs.io.world import Clock, DiskSpace, File, FileSystem, Listener, Network, Stream, World

__all__ = [
    "Clock",
    "DiskSpace",
    "File",
    "FileSystem",
    "Listener",
    "Network",
    "Stream",
    "World",
    "real_world",
]

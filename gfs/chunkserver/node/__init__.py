"""What all tasks of one chunkserver share: its parts, its leases, the pace of background
work, the pulse it sends while a disk works, and the manager of its disks."""

from gfs.chunkserver.node.leases import Leases
from gfs.chunkserver.node.node import Node
from gfs.chunkserver.node.pulse import Answering, Pulse
from gfs.chunkserver.node.throttle import Throttle

__all__ = [
    "Answering",
    "Leases",
    "Node",
    "Pulse",
    "Throttle",
]

"""The parts that all tasks of one chunkserver share: its leases, the pace of background
work, the pulses that it sends while a disk works, and its disks: :mod:`.disk_opening` opens
them, :mod:`.disk_watch` watches and closes them, :mod:`.disk_orders` carries out orders."""

from gfs.chunkserver.node.node import Node
from gfs.chunkserver.node.pulse import Answering

__all__ = [
    "Answering",
    "Node",
]

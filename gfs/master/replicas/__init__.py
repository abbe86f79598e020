"""Replicas: which are missing, which are too many, and what is done about it now.

Each of these classes changes the tables (:mod:`gfs.master.tables`) for one reason, by the
rules (:mod:`gfs.master.rules`):

============================================  ====================================================
:class:`.goals.Goals` compares each chunk with its goal: the one place that decides
whether it is below, at or above it
:class:`.reports.Reports`                     what chunkservers report of their replicas
:class:`.membership.Membership`               chunkservers and disks that come and go
:class:`.drains.Drains`                       chunkservers that give up their replicas
:class:`.new_chunks.NewChunks`                handles and servers for new chunks
:class:`.repair_planner.RepairPlanner`        which copies are made now
:class:`.balancer.Balancer`                   which replicas are moved now
:class:`.garbage_collector.GarbageCollector`  which replicas are deleted now
============================================  ====================================================

All of it is synchronous code without files or sockets of its own.
:class:`gfs.master.master.Master` puts the parts together and others reach them there; the
tasks of :mod:`gfs.master.upkeep` send the orders.
"""

from gfs.master.replicas.balancer import Balancer
from gfs.master.replicas.drains import DRAIN_NAMES, Drains
from gfs.master.replicas.garbage_collector import GarbageCollector
from gfs.master.replicas.goals import SLICE, Goals
from gfs.master.replicas.membership import Membership
from gfs.master.replicas.new_chunks import NewChunks
from gfs.master.replicas.repair_planner import RepairPlanner
from gfs.master.replicas.reports import Reports, reported_replicas

__all__ = [
    "DRAIN_NAMES",
    "SLICE",
    "Balancer",
    "Drains",
    "GarbageCollector",
    "Goals",
    "Membership",
    "NewChunks",
    "RepairPlanner",
    "Reports",
    "reported_replicas",
]

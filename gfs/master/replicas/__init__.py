"""Replicas: where they are, where they should be, and which ones must go.

Everything here is in memory only: chunkservers report what they hold, and have the last
word. Tables are plain data: :mod:`.servers` (chunkservers, racks, disks), :mod:`.locations`
(which server has which chunk, and which chunks are being written), :mod:`.suspects`
(replicas to be verified) and :mod:`.garbage` (replicas to be deleted).

Each of these classes changes them for one reason:

====================================  ============================================================
:class:`.replica_map.ReplicaMap`      what is known, and what is known for sure; safe mode
:class:`.goals.Goals`                 compares each chunk with its goal: the one place that decides
                                      whether it is endangered, whole, or more than whole
:class:`.reports.Reports`             what chunkservers report of their replicas
:class:`.registration.Registration`   chunkservers and disks that come and go
:class:`.new_chunks.NewChunks`        handles and servers for new chunks
:class:`.planner.RepairPlanner`       which copies are made now
:class:`.balancer.Balancer`           which replicas are moved now
:class:`.collector.GarbageCollector`  which replicas are deleted now
====================================  ============================================================

The rules they apply are functions of their own: :mod:`.placement`, :mod:`.rereplication`,
:mod:`.rebalancing`, :mod:`.salvage`, :mod:`.drain`, :mod:`.election` of a surviving replica
after all machines lost power, and :mod:`.trash_purge` when disks are full.

All of it is synchronous code without files or sockets of its own.
:class:`gfs.master.master.Master` puts the parts together and others reach them there; the
background tasks (:mod:`gfs.master.service.background`) send the orders.
"""

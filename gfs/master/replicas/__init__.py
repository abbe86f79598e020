"""Replicas: where they are, where they should be, and which ones must go.

Everything here is in memory only: chunkservers report what they hold, and have the last
word. The tables are :mod:`.servers` (chunkservers, racks, disks), :mod:`.locations`
(which server has which chunk) and :mod:`.garbage` (replicas to be deleted). The decisions
are :mod:`.placement` of new chunks, :mod:`.rereplication` of chunks below their goal,
:mod:`.rebalancing`, :mod:`.drain` of a server that is to be taken away, :mod:`.salvage` of
chunks of which all replicas are damaged, :mod:`.election` of a surviving replica after all
machines lost power, and :mod:`.trash_purge` when disks are full.

All of it is plain synchronous code over plain data, without clocks, files or sockets of
its own. :class:`gfs.master.master.Master` puts the tables together; the background tasks
(:mod:`gfs.master.service.background`) send the orders.
"""

"""The master: all metadata of the cluster, and the decisions about replicas.

Rooms, each of which imports only those below it (but for the table of leases, which is
part of what a master has in memory):

==================  ====================================================================
:mod:`.process`     the process: opens the store, listens, and runs as the master or as a
                    shadow master
:mod:`.replication` shadow masters: the operation log is sent to them, and one of them is
                    promoted
:mod:`.service`     what clients, chunkservers and operators ask for, and the background
                    tasks
:mod:`.leases`      who may order the mutations of a chunk; copy on write
:mod:`.master`      what a running master has in memory, put together
:mod:`.replicas`    where replicas are, should be, and must not stay
:mod:`.metadata`    what is on disk: files, chunks, the operation log
==================  ====================================================================

Others use :func:`run_master` alone.
"""

from gfs.master.process import MasterStarted, run_master

__all__ = ["MasterStarted", "run_master"]

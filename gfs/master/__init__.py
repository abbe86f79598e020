"""The master: all metadata of the cluster, and the decisions about replicas.

Rooms, each of which imports only those below it:

==================  ====================================================================
:mod:`.process`     the process: opens the store, listens, and runs as the master or as a
                    shadow master
:mod:`.backup`      a file with all metadata, and a master's directory made of one
:mod:`.replication` shadow masters: the operation log is sent to them, and one of them is
                    promoted
:mod:`.election`    who tries to be the master, if an engine decides that
:mod:`.upkeep`      background tasks of the master: they send the orders that
                    :mod:`.replicas` decided on
:mod:`.service`     what clients, chunkservers and operators ask for
:mod:`.leases`      who may order the mutations of a chunk; copy on write
:mod:`.master`      what a running master has in memory, put together
:mod:`.replicas`    decisions: where replicas are missing, too many, or better elsewhere
:mod:`.rules`       how to choose: functions over tables, without state
:mod:`.tables`      what is known: plain data in memory
:mod:`.metadata`    what is on disk: files, chunks, the operation log
==================  ====================================================================

So each matter has a table, a rule, a decision and an order, each in its room: garbage is
listed in ``tables.garbage``, ``replicas.garbage_collector`` decides what of it is deleted
now, and ``upkeep.deletions`` has it deleted.

Others use :func:`run_master`, with an engine by :func:`election_engine`, and
:func:`take_backup` and :func:`restore_backup`; what a room offers to the others is in its
``__all__``.
"""

from gfs.master.backup import restore_backup, take_backup
from gfs.master.process import MasterStarted, election_engine, run_master

__all__ = ["MasterStarted", "election_engine", "restore_backup", "run_master", "take_backup"]

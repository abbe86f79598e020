"""Rules: how the master chooses, as functions over tables that have no state and change nothing.

:mod:`.placement` of new replicas, :mod:`.source_and_target` of those that are missing,
:mod:`.moves` of those that would be better elsewhere, :mod:`.salvage` of a chunk of
damaged ones, :mod:`.election` of a surviving one after all machines lost power,
:mod:`.drain_admission` of a chunkserver that is to be emptied, and :mod:`.trash_purge` when
disks are full. Others call the functions of each module; most are applied
by the classes of :mod:`gfs.master.replicas`.
"""

__all__ = [
    "drain_admission",
    "election",
    "moves",
    "placement",
    "salvage",
    "source_and_target",
    "trash_purge",
]

"""Upkeep: the background tasks of the master. Loops and orders that wait for clocks,
disks and chunkservers; decisions are made in :mod:`gfs.master.replicas`.

:mod:`.upkeep` is the clock, and starts everything else: passes over all chunks
(:mod:`.passes`), and the orders to chunkservers, a module for each kind: :mod:`.copies`,
:mod:`.balancing` (copies too), :mod:`.deletions`, :mod:`.verifications` and
:mod:`.elections`. :mod:`.trash` reclaims deleted files, :mod:`.metadata_disk` watches the
master's own disk. A master's process runs :class:`Upkeep`; a shadow master, which orders
nothing, uses the parts.
"""

from gfs.master.upkeep.metadata_disk import watch_space
from gfs.master.upkeep.passes import Passes, guarded
from gfs.master.upkeep.trash import TrashCounts
from gfs.master.upkeep.upkeep import Upkeep

__all__ = ["Passes", "TrashCounts", "Upkeep", "guarded", "watch_space"]

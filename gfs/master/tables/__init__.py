"""Tables: the master's knowledge that is only in memory, as plain data without decisions.

Chunkservers report their replicas, and their reports take precedence: :mod:`.servers`
(chunkservers, racks, disks), :mod:`.locations` (which server has which chunk),
:mod:`.reservations` (which chunks are being written), :mod:`.leases`, :mod:`.suspects`
(replicas to be verified) and
:mod:`.garbage` (replicas to be deleted). :mod:`.replica_map` joins the tables about
replicas, and decides which replicas are confirmed, and whether the master is in safe
mode. Chunks below their goal wait in :mod:`.repair_queue` and :mod:`.salvage_queue`.
"""

from gfs.master.tables.garbage import CORRUPT, FORGETFUL, ORPHANED, STALE, GarbageTable
from gfs.master.tables.leases import (
    FIRST_LEASED_VERSION,
    FIRST_VERSION,
    Lease,
    LeaseTable,
    wants_new_grant,
)
from gfs.master.tables.locations import LocationTable
from gfs.master.tables.repair_queue import Clone, Danger, RepairQueue
from gfs.master.tables.replica_map import ReplicaMap
from gfs.master.tables.reservations import Reservation, ReservationTable
from gfs.master.tables.salvage_queue import SalvageQueue
from gfs.master.tables.servers import (
    DEAD,
    DISK_DOWN,
    LIVE,
    SILENT,
    STOPPED,
    AddressBook,
    Calm,
    Server,
    ServerTable,
)

__all__ = [
    "CORRUPT",
    "DEAD",
    "DISK_DOWN",
    "FIRST_LEASED_VERSION",
    "FIRST_VERSION",
    "FORGETFUL",
    "LIVE",
    "ORPHANED",
    "SILENT",
    "STALE",
    "STOPPED",
    "AddressBook",
    "Calm",
    "Clone",
    "Danger",
    "GarbageTable",
    "Lease",
    "LeaseTable",
    "LocationTable",
    "RepairQueue",
    "ReplicaMap",
    "Reservation",
    "ReservationTable",
    "SalvageQueue",
    "Server",
    "ServerTable",
    "wants_new_grant",
]

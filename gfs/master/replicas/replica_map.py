"""Where the replicas are, as far as is known; and for sure.

*Safe mode.* A master that was just started does not know where anything is. Until
every chunkserver it knows has registered, or was silent for ``dead_seconds``,
it concludes nothing from not knowing a replica: no copies, no verdict of loss,
no deletion (lizardfs#416: never delete on a younger memory).
"""

from __future__ import annotations

from gfs.errors import NotFound
from gfs.io import Clock
from gfs.master.metadata.namespace import chunk_row
from gfs.master.metadata.store import Store
from gfs.master.replicas.garbage import CORRUPT, GarbageTable
from gfs.master.replicas.locations import LocationTable
from gfs.master.replicas.servers import LIVE, Server, ServerTable
from gfs.master.replicas.suspects import Suspects


class ReplicaMap:
    """Facts, and no consequences: those are drawn by :class:`~.goals.Goals`."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        servers: ServerTable,
        locations: LocationTable,
        garbage: GarbageTable,
    ) -> None:
        self._clock = clock
        self._store = store
        self.servers = servers
        self.locations = locations
        self.garbage = garbage
        self.suspects = Suspects()
        #: Chunks whose replicas are being raised to a new version right now -> servers that
        #: lost theirs since that began.
        self.raising: dict[int, set[int]] = {}
        #: Reported versions above the master's, on their way into the store -> their servers.
        self.ahead: dict[int, tuple[int, set[int]]] = {}
        #: Until every known server has reported, or is dead.
        self.in_safe_mode = True

    @property
    def now(self) -> float:
        return self._clock.monotonic()

    def find_server(self, name: str) -> Server:
        """A chunkserver by its id or its address. Raises NotFound."""
        for server in self.servers.all():
            if name in (server.id, server.address):
                return server
        raise NotFound(f"there is no chunkserver {name}: gfs status shows their ids and addresses")

    def is_raising(self, handle: int) -> bool:
        """Its version goes up just now: which replicas are current is not known. A copy
        of the present one may even be made over the only one of the next."""
        return handle in self.raising or handle in self.ahead

    def damaged_holders(self, handle: int, version: int) -> list[Server]:
        """Who has a damaged replica of the current version, that lacks nothing else."""
        return [
            self.servers.get(index)
            for index, known in self.garbage.replicas.get(handle, {}).items()
            if (known.version, known.kind, known.forgot) == (version, CORRUPT, False)
        ]

    def are_enough(self, handle: int, version: int, goal: int) -> bool:
        """Whether a replica that is no location of the chunk, whose version is this, may
        be deleted."""
        confirmed = len(self.confirmed(handle, version))
        return confirmed >= max(1, min(goal, self.servers.live_count))

    def confirmed(self, handle: int, version: int) -> list[Server]:
        """Those that have a good replica of ``version`` for sure, as far as can be known.
        Whatever deletes a replica asks here what stays.

        A server that just came back is assumed to hold what it held before, and may
        have lost it; and a suspect counts as good until it is verified. For reading and
        copying that is enough, for deleting others it is not.
        """
        found: list[Server] = []
        if self.locations.version(handle) != version:
            return found
        for index in self.locations.get(handle):
            server, key = self.servers.get(index), (index, handle)
            known = server.registered or (server.reported is not None and handle in server.reported)
            if server.state == LIVE and known and key not in self.suspects:
                found.append(server)
        return found

    def length_min(self, handle: int) -> int:
        """What a good replica holds at least, 0 of no chunk."""
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        return 0 if row is None else row.length

    def suspect(self, server: Server, handle: int, *, blocks: bool = False) -> bool:
        """Have the server look at the replica, and read it all if ``blocks``.
        It counts until then. False if that was done a moment ago."""
        return self.suspects.add((server.index, handle), blocks, self.now)

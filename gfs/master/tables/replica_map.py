"""The known and the confirmed replicas, and safe mode.

*Safe mode.* A master that was just started knows no locations. Until every known
chunkserver has registered, or was silent for ``dead_seconds``, it draws no conclusion
from missing replicas: no copies, no deletions, no chunk is declared lost (lizardfs#416:
never delete because of old metadata).
"""

from __future__ import annotations

from gfs.errors import NotFound
from gfs.io import Clock
from gfs.master.metadata import Store
from gfs.master.metadata.namespace import chunk_row
from gfs.master.tables.garbage import CORRUPT, GarbageTable
from gfs.master.tables.locations import LocationTable
from gfs.master.tables.servers import LIVE, Server, ServerTable
from gfs.master.tables.suspects import Suspects


class ReplicaMap:
    """Knowledge without decisions: those are made by :class:`gfs.master.replicas.goals.Goals`."""

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
        #: Chunks whose replicas are being raised to a new version now -> servers that
        #: have lost theirs since that began.
        self.raising: dict[int, set[int]] = {}
        #: Reported versions above the master's that are being committed -> their servers.
        self.ahead: dict[int, tuple[int, set[int]]] = {}
        #: True until every known server has registered, or is dead.
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
        """Whether its version is being raised: then it is not known which replicas are
        current. A copy of the present version might even replace the only replica of
        the next one."""
        return handle in self.raising or handle in self.ahead

    def damaged_holders(self, handle: int, version: int) -> list[Server]:
        """The servers with a corrupt replica of the current version that is not possibly stale."""
        return [
            self.servers.get(index)
            for index, known in self.garbage.replicas.get(handle, {}).items()
            if (known.version, known.kind, known.forgot) == (version, CORRUPT, False)
        ]

    def are_enough(self, handle: int, version: int, goal: int) -> bool:
        """Whether a replica that is not a location of the chunk, whose version is this,
        may be deleted."""
        confirmed = len(self.confirmed(handle, version))
        return confirmed >= max(1, min(goal, self.servers.live_count))

    def confirmed(self, handle: int, version: int) -> list[Server]:
        """The servers that are confirmed to have a good replica of ``version``. Each
        deletion of a replica is decided by these.

        A server that just came back is assumed to have its former replicas, but may
        have lost them; and a suspect counts as good until it is verified. That is
        enough for reading and copying, but not for deleting others.
        """
        found: list[Server] = []
        if self.locations.version(handle) != version:
            return found
        for index in self.locations.get(handle):
            server, key = self.servers.get(index), (index, handle)
            at = server.registration
            known = at.is_complete or (at.reported is not None and handle in at.reported)
            if server.state == LIVE and known and key not in self.suspects:
                found.append(server)
        return found

    def length_min(self, handle: int) -> int:
        """The least length of a good replica; 0 for an unknown chunk."""
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        return 0 if row is None else row.length

    def suspect(self, server: Server, handle: int, *, blocks: bool = False) -> bool:
        """Have the server verify the replica, with all blocks if ``blocks``. It counts
        until then. False if that was done a moment ago."""
        return self.suspects.add((server.index, handle), blocks, self.now)

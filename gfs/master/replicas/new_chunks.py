"""New chunks: their handles, and the servers that make their replicas."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from gfs.config import MasterSettings
from gfs.errors import GfsError
from gfs.master.metadata import HANDLE_RANGE, Committer, Outcome, Store, Txn
from gfs.master.metadata.namespace import Planned, chunk_row
from gfs.master.metadata.operations import HandlesReserved
from gfs.master.rules import placement
from gfs.master.tables import ReplicaMap, ReservationTable, Server
from gfs.protocol.messages import Done


class NewChunks:
    def __init__(
        self,
        rng: random.Random,
        settings: MasterSettings,
        store: Store,
        committer: Committer,
        replica_map: ReplicaMap,
        reservations: ReservationTable,
    ) -> None:
        self._rng = rng
        self._settings = settings
        self._store = store
        self._committer = committer
        self._map = replica_map
        self._servers = replica_map.servers
        self._garbage = replica_map.garbage
        self._reservations = reservations
        self._range_asked = False

    def place(self, replication: int, avoid: frozenset[str], what: str) -> list[Server]:
        """Choose servers for one new chunk, the primary first. It counts as a creation for each.

        Servers in ``avoid`` are never chosen; those whose chain broke a moment ago only
        if there are not enough others. Raises NotEnoughChunkservers.
        """
        now, replicas_min = self._map.now, self._settings.replicas_min
        placeable = self._servers.open_to_new(now)
        if avoid:
            placeable = [server for server in placeable if server.id not in avoid]
        trusted = [s for s in placeable if not self._servers.is_suspect(s, now)]
        if len(trusted) >= min(replication, replicas_min):
            placeable = trusted
        chosen = placement.choose(placeable, replication, self._rng)
        placement.require(len(chosen), replication, replicas_min, self._servers.live_count, what)
        self.place_beside(chosen)
        return chosen

    def place_beside(self, chosen: list[Server]) -> None:
        """One more new chunk, on servers that were just chosen for another."""
        for server in chosen:
            server.recent += 1.0

    @contextmanager
    def in_the_making(self) -> Iterator[tuple[int, set[int]]]:
        """A new handle for a chunk that servers make before a commit gives it to a
        file, and the set of servers that lose their replica meanwhile.

        Until then no file refers to it. If the block fails and no file got the chunk,
        its replicas are garbage.
        """
        handle = self._reservations.new_handle()
        self.prefetch_handles()
        gone = self._map.raising[handle] = set()
        try:
            yield handle, gone
        except BaseException:
            # If it was cancelled, because its client disconnected, its commit may be
            # queued or under way: the outcome is known after a later commit.
            look = partial(self._given_up, handle)
            self._committer.submit("", 0, lambda _: (None, Done(id=0)), look)
            raise
        self._map.raising.pop(handle, None)

    def _given_up(self, handle: int, outcome: Outcome) -> None:
        self._map.raising.pop(handle, None)
        if isinstance(outcome, GfsError):
            return  # perhaps it was never queued: then it is garbage like any other
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None:
            self._garbage.schedule(handle, self._map.now)

    def prefetch_handles(self) -> None:
        """Reserve the next range durably, long before this one is used up."""
        if self._range_asked or self._reservations.handles_left > HANDLE_RANGE // 2:
            return
        self._range_asked = True

        def plan(txn: Txn) -> Planned:
            return HandlesReserved(txn.state.handle_end + HANDLE_RANGE), Done(id=0)

        def done(_: Outcome) -> None:
            self._range_asked = False
            self._reservations.handle_end = self._store.state.handle_end

        self._committer.submit("", 0, plan, done)

"""Compares the replicas of each chunk with its goal: below, at, or above it.

All changes of a chunk's locations go through here, so that its state is evaluated in
one place, :meth:`Goals.evaluate`. The results are left in queues: chunks to
re-replicate, to salvage, with too many replicas, or of which only possibly stale
replicas are left. Passes over all chunks are generators that stop after each slice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from gfs.master.metadata import Store, Txn
from gfs.master.metadata.namespace import chunk_row
from gfs.master.metadata.rows import unpack_chunk, unpack_u64
from gfs.master.metadata.trash import trashed_chunks
from gfs.master.rules import election
from gfs.master.tables import (
    CORRUPT,
    DEAD,
    FORGETFUL,
    ORPHANED,
    STALE,
    RepairQueue,
    ReplicaMap,
    SalvageQueue,
    Server,
)

#: Chunks per slice of a pass over all of them: some 5 ms.
SLICE = 2_000


class Goals:
    def __init__(self, replica_map: ReplicaMap, store: Store, forgetful_seconds: float) -> None:
        self._map = replica_map
        self._servers = replica_map.servers
        self._locations = replica_map.locations
        self._garbage = replica_map.garbage
        self._store = store
        self._forgetful_seconds = forgetful_seconds
        self.repair = RepairQueue()
        self.salvage = SalvageQueue()
        #: Chunks with more replicas than their goal.
        self.surplus: dict[int, None] = {}
        #: Chunk that is moved -> the server that has to delete its replica.
        self.moves: dict[int, int] = {}
        #: Chunks that have only possibly stale replicas.
        self.possibly_stale: dict[int, None] = {}
        #: Chunks whose goal may have changed.
        self.to_evaluate: dict[int, None] = {}

    def add_location(self, server: Server, handle: int, version: int, goal: int) -> None:
        if self._locations.add(handle, server.index, version):
            reported = server.registration.reported
            if reported is not None:
                reported.add(handle)
            self.evaluate(handle, version, goal)

    def set_locations(
        self,
        handle: int,
        version: int,
        servers: Iterable[int],
        old_version: int,
        gone: Collection[int] = (),
    ) -> None:
        """Replace the locations of a chunk by ``holders``, which have ``version``,
        except those that lost the replica since they were asked (``gone``). All other
        locations known until now are stale, at ``old_version`` as far as the master
        knows."""
        now = self._map.now
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None or row.version != version:
            return  # deleted, or raised again, in the same commit
        # A server that is dead by now will report its replicas if it comes back.
        known = [self._servers.by_index[index] for index in servers if index not in gone]
        servers = {server.index for server in known if server and server.state != DEAD}
        for index in self._locations.replace(handle, servers, version):
            if self._servers.get(index).state != DEAD:
                self._garbage.hold(index, handle, old_version, STALE, now)
        for index in servers:
            self._garbage.drop(index, handle)
            reported = self._servers.get(index).registration.reported
            if reported is not None:
                reported.add(handle)
        self.evaluate(handle, version, row.replication)

    def drop_location(self, server: Server, handle: int) -> bool:
        """Remove a replica that is missing or not good; True if it was a location."""
        if not self._locations.remove(handle, server.index):
            return False
        with self._store.read() as txn:
            self.evaluate_row(txn, handle)
        return True

    def reported_bad(self, server: Server, handle: int) -> None:
        """Have a replica verified that a client could not read."""
        if self._map.suspect(server, handle, blocks=True):
            self.repair.block(handle)

    def evaluate(self, handle: int, version: int, goal: int) -> None:
        """Decide, after any change of a chunk, whether it is below, at or above its
        goal. The only place that decides this."""
        if self._map.in_safe_mode:
            return
        holders = self._locations.get(handle)
        known = self._garbage.replicas.get(handle)
        if known is not None and len(holders) < goal and self._readopt(handle, version):
            holders = self._locations.get(handle)
        if known is not None:
            self._release_garbage(handle, version, goal)
        if known is not None and not holders and self._garbage.of_kind(handle, FORGETFUL):
            self.possibly_stale[handle] = None
        else:
            self.possibly_stale.pop(handle, None)
        if known is not None and not holders and self._map.damaged_holders(handle, version):
            self.salvage.add(handle)
        else:
            self.salvage.forget(handle)
        if len(holders) > goal:
            self.surplus[handle] = None
        else:
            self.surplus.pop(handle, None)
            if handle not in self.repair.active:
                self.moves.pop(handle, None)
        staying = len(holders)
        if self._servers.draining:
            staying -= sum([index in self._servers.draining for index in holders])
        if staying < goal or self.repair.is_known(handle):
            self.repair.update(handle, len(holders), goal, staying)

    def _readopt(self, handle: int, version: int) -> bool:
        """Count good replicas again that were to be deleted as too many."""
        found = [
            index
            for index, unwanted in self._garbage.replicas[handle].items()
            if unwanted.kind == ORPHANED and unwanted.version == version
        ]
        for index in found:
            self._garbage.drop(index, handle)
            self._locations.add(handle, index, version)
        return bool(found)

    def _release_garbage(self, handle: int, version: int, goal: int) -> None:
        # An old or damaged replica is better than none: it is deleted when enough good
        # ones are confirmed, not when there is one.
        if self._map.are_enough(handle, version, goal):
            for kind in (STALE, FORGETFUL, CORRUPT):
                self._garbage.release(handle, kind)

    def evaluate_row(self, txn: Txn, handle: int) -> None:
        row = chunk_row(txn, handle)
        if row is not None:
            self.evaluate(handle, row.version, row.replication)

    def look_at_revived(self) -> Iterator[None]:
        """After servers became live again, or have registered: garbage that was kept
        because live replicas were missing may be deleted now. In slices."""
        revived, self._servers.revived = self._servers.revived, set()
        for handles in self._garbage.slices(SLICE):
            for handle in handles:
                if not revived.isdisjoint(self._locations.get(handle)):
                    self.to_evaluate[handle] = None
            yield

    def may_elect(self, handle: int) -> bool:
        """Whether a possibly stale replica of the chunk may be elected now: no live or
        silent server has a better one, and no absent server might bring one."""
        return (
            not self._map.in_safe_mode
            and handle in self.possibly_stale
            and bool(self._garbage.of_kind(handle, FORGETFUL))
            and not self.salvage.is_pending(handle)
            and not self._map.is_raising(handle)
            and handle not in self.repair.active
            and not self._map.suspects.is_verified_soon(handle)
            and not self.awaits_any()
        )

    def awaits_any(self) -> bool:
        """Whether an absent server might bring better replicas than possibly stale ones."""
        return election.awaited(self._servers.all(), self._map.now, self._forgetful_seconds)

    def evaluate_changed(self) -> Iterator[None]:
        """Evaluate the chunks whose goal may have changed. In slices."""
        while self.to_evaluate:
            with self._store.read() as txn:
                for _ in range(min(SLICE, len(self.to_evaluate))):
                    handle = next(iter(self.to_evaluate))
                    del self.to_evaluate[handle]
                    self.evaluate_row(txn, handle)
            yield

    def mark_trashed(self) -> Iterator[None]:
        """Have chunks of deleted files copied after those of live ones. In slices."""
        trashed: set[int] = set()
        for handles in trashed_chunks(self._store):
            trashed.update(filter(self.repair.is_known, handles))
            yield
        self.repair.set_trashed(trashed)

    def scan_all(self) -> Iterator[None]:
        """Evaluate every chunk once. In slices."""
        at = b""
        draining = self._servers.draining
        while True:
            count = 0
            with self._store.read() as txn:
                for key, row in txn.scan(at, txn.db.chunks):
                    if count >= SLICE:
                        break
                    count += 1
                    at = key + b"\0"
                    version, _, _, _, goal = unpack_chunk(row)
                    handle = unpack_u64(key)
                    holders = self._locations.get(handle)
                    if (
                        len(holders) != goal
                        or not draining.isdisjoint(holders)
                        or self.repair.is_known(handle)
                        or handle in self._garbage.replicas
                    ):
                        self.evaluate(handle, version, goal)
                    if not holders:
                        self._look_again(handle)
            yield
            if count < SLICE:
                return

    def _look_again(self, handle: int) -> None:
        """Have corrupt replicas that are possibly stale besides verified again, since
        they are of no use: the cause may have been the disk, which was away."""
        for index, known in self._garbage.replicas.get(handle, {}).items():
            if known.kind == CORRUPT and known.forgot:
                self._map.suspect(self._servers.get(index), handle, blocks=True)

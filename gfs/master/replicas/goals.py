"""What each chunk has, compared with its goal: endangered, whole, or more than whole.

Whatever changes the locations of a chunk goes through here, so that its state is judged
anew in one place, :meth:`Goals.evaluate`. What follows from that is left in queues: chunks
to re-replicate, to salvage, with too many replicas, or of which only possibly stale replicas
are left. Passes over all chunks are generators that stop after each slice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from gfs.master.metadata.namespace import chunk_row
from gfs.master.metadata.rows import unpack_chunk, unpack_u64
from gfs.master.metadata.store import Store, Txn
from gfs.master.metadata.trash import trashed_chunks
from gfs.master.replicas import election
from gfs.master.replicas.garbage import CORRUPT, FORGETFUL, ORPHANED, STALE
from gfs.master.replicas.replica_map import ReplicaMap
from gfs.master.replicas.rereplication import RepairQueue
from gfs.master.replicas.salvage import SalvageQueue
from gfs.master.replicas.servers import DEAD, Server

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
        #: Chunks that are moved -> the server that is to give its replica up.
        self.moves: dict[int, int] = {}
        #: Chunks of which there are possibly stale replicas and no others.
        self.possibly_stale: dict[int, None] = {}
        #: Chunks whose goal may be another one now.
        self.to_evaluate: dict[int, None] = {}

    def add_location(self, server: Server, handle: int, version: int, goal: int) -> None:
        if self._locations.add(handle, server.index, version):
            if server.reported is not None:
                server.reported.add(handle)
            self.evaluate(handle, version, goal)

    def set_locations(
        self,
        handle: int,
        version: int,
        servers: Iterable[int],
        old_version: int,
        gone: Collection[int] = (),
    ) -> None:
        """These hold ``version``, and the chunk is of that, but for those that lost it since
        they were asked (``gone``); all others known until now are stale, at ``old_version``
        as far as the master knows."""
        now = self._map.now
        with self._store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None or row.version != version:
            return  # deleted, or raised again, in the same commit
        # One that is dead by now will report what it has if it comes back.
        known = [self._servers.by_index[index] for index in servers if index not in gone]
        servers = {server.index for server in known if server and server.state != DEAD}
        for index in self._locations.replace(handle, servers, version):
            if self._servers.get(index).state != DEAD:
                self._garbage.hold(index, handle, old_version, STALE, now)
        for index in servers:
            self._garbage.drop(index, handle)
            reported = self._servers.get(index).reported
            if reported is not None:
                reported.add(handle)
        self.evaluate(handle, version, row.replication)

    def drop_location(self, server: Server, handle: int) -> bool:
        """The replica is not there, or not fit; True if that is news."""
        if not self._locations.remove(handle, server.index):
            return False
        with self._store.read() as txn:
            self.evaluate_row(txn, handle)
        return True

    def evaluate(self, handle: int, version: int, goal: int) -> None:
        """Something changed about this chunk: is it endangered, whole, or more
        than whole? The one place that decides."""
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
        """Take back good replicas that were about to be deleted as too many."""
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
        # An old or damaged copy is better than none: it goes when enough good ones
        # are there for sure, not when there is one.
        if self._map.are_enough(handle, version, goal):
            for kind in (STALE, FORGETFUL, CORRUPT):
                self._garbage.release(handle, kind)

    def evaluate_row(self, txn: Txn, handle: int) -> None:
        row = chunk_row(txn, handle)
        if row is not None:
            self.evaluate(handle, row.version, row.replication)

    def look_at_revived(self) -> None:
        """Servers are live again, or fully registered: what was kept for want of live
        replicas may go now."""
        revived, self._servers.revived = self._servers.revived, set()
        for handle in self._garbage.replicas:
            if not revived.isdisjoint(self._locations.get(handle)):
                self.to_evaluate[handle] = None

    def may_elect(self, handle: int) -> bool:
        """Whether a possibly stale replica of the chunk may be elected now: there is no other
        on any server that is there, and no server is away that might bring one."""
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
        """Whether a server is away that might bring better replicas than possibly stale ones."""
        return election.awaited(self._servers.all(), self._map.now, self._forgetful_seconds)

    def evaluate_changed(self) -> Iterator[None]:
        """Look at the chunks whose goal may have changed. In slices."""
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
        """Look at every chunk once. In slices."""
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
        """At what is damaged, and may lack something besides, so that nothing is made of
        it: it may have been the disk that was away."""
        for index, known in self._garbage.replicas.get(handle, {}).items():
            if known.kind == CORRUPT and known.forgot:
                self._map.suspect(self._servers.get(index), handle, blocks=True)

"""The master's parts, and the decisions that touch several of them.

Plain synchronous code, called from the loop's thread. Whatever has to wait is
left behind as work for :mod:`gfs.master.upkeep`: replicas to verify, leases to
revoke, and passes over all chunks, which are generators that stop after each
slice.

*Settled.* A master that was just started does not know where anything is. Until
every chunkserver it knows has registered, or was silent for ``dead_seconds``,
it concludes nothing from not knowing a replica: no copies, no verdict of loss,
no deletion (lizardfs#416: never delete on a younger memory).
"""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Iterable, Iterator
from functools import partial

from gfs.config import MasterSettings
from gfs.errors import GfsError, ProtocolError
from gfs.io import World
from gfs.master.chunktable import LocationTable, ReservationTable
from gfs.master.committer import Committer, Outcome
from gfs.master.garbage import CORRUPT, ORPHANED, STALE, GarbageTable
from gfs.master.leases import LeaseTable
from gfs.master.namespace import Planned, chunk_row, plan_confirm_version
from gfs.master.operations import HandlesReserved
from gfs.master.repair import Clone, Limits, RepairQueue, pick_surplus, plan_clone
from gfs.master.rows import pack_u64, unpack_chunk, unpack_u64
from gfs.master.servers import DEAD, LIVE, Server, ServerTable
from gfs.master.store import HANDLE_RANGE, Store, Txn
from gfs.protocol.messages import BadReplica, Done, ReplicaName, VerifyReply

log = logging.getLogger(__name__)

#: Chunks per slice of a pass over all of them: some 5 ms.
SLICE = 2_000
#: Replicas waiting to be verified; more are left to the next reader's report.
VERIFY_MAX = 10_000
#: A replica that was just verified is not verified again for this long.
VERIFIED_SECONDS = 5.0
#: Chunks with too many replicas looked at in one round.
SURPLUS_ROUND = 200

_records = struct.Struct(">QII")


class Master:
    """All state of a running master."""

    def __init__(self, world: World, settings: MasterSettings, store: Store) -> None:
        self.world = world
        self.settings = settings
        self.store = store
        self.clock = world.clock
        # The world's own may cost a system call for each number.
        self.rng = random.Random(world.random.getrandbits(64))
        now = world.clock.monotonic()
        self.committer = Committer(world, store, settings.answers_seconds, self._chunks_freed)
        self.servers = ServerTable(
            store.known_servers(), settings.heartbeat_seconds, settings.dead_seconds, now
        )
        self.locations = LocationTable()
        end = store.state.handle_end
        self.reservations = ReservationTable(end - HANDLE_RANGE, end)
        self.garbage = GarbageTable(settings.garbage_grace_seconds)
        self.leases = LeaseTable(settings.lease_seconds, settings.lease_margin_seconds)
        #: Until then a lease of the master before this one may still be running.
        self._old_leases_until = now + settings.lease_seconds if store.epoch > 1 else now
        self.repair = RepairQueue()
        self.limits = Limits(settings.clones_per_server, settings.clones_total)
        #: Chunks whose replicas are being raised right now.
        self.granting: set[int] = set()
        #: Chunks of files that are being committed.
        self.publishing: set[int] = set()
        #: Chunks with more replicas than their goal.
        self.surplus: dict[int, None] = {}
        #: (server index, handle) -> must its blocks be read: replicas to verify.
        self.to_verify: dict[tuple[int, int], bool] = {}
        #: Those that are being verified.
        self.verifying: set[tuple[int, int]] = set()
        self._verified: dict[tuple[int, int], float] = {}
        #: Leases to be revoked, so that an endangered chunk can be copied.
        self.to_revoke: dict[int, None] = {}
        #: Reported versions above the master's, on their way into the store.
        self._ahead: dict[int, tuple[int, set[int]]] = {}
        #: Servers with replicas of chunks that were never handed out.
        self._strange: set[int] = set()
        self.settled = False
        self.disk_low = False
        self._range_asked = False

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    # --- handles ---------------------------------------------------------------------

    def prefetch_handles(self) -> None:
        """Have the next range made durable long before this one is used up."""
        if self._range_asked or self.reservations.handles_left > HANDLE_RANGE // 2:
            return
        self._range_asked = True

        def plan(txn: Txn) -> Planned:
            return HandlesReserved(txn.state.handle_end + HANDLE_RANGE), Done(id=0)

        def done(_: Outcome) -> None:
            self._range_asked = False
            self.reservations.handle_end = self.store.state.handle_end

        self.committer.submit("", 0, plan, done)

    # --- replicas --------------------------------------------------------------------

    def take_report(self, server: Server, body: bytes) -> None:
        """Compare reported replicas with what they should be; see
        :mod:`gfs.master.chunktable`."""
        if len(body) % _records.size:
            raise ProtocolError(f"a replica report of {len(body)} bytes")
        now = self.now
        index = server.index
        holders = self.locations.get
        reported = server.reported
        with self.store.read() as txn:
            get, chunks = txn.get, txn.db.chunks
            for handle, version, length in _records.iter_unpack(body):
                if reported is not None:
                    reported.add(handle)
                row = get(pack_u64(handle), None, chunks)
                if row is None:
                    self._unknown(server, handle, version, now)
                    continue
                current, _, length_min, _, goal = unpack_chunk(row)
                if version == current:
                    if length < length_min:
                        self.suspect(server, handle)
                    elif index not in holders(handle):
                        self._good(server, handle, version, goal, now)
                elif version < current:
                    self._behind(server, handle, version, current, goal, now)
                else:
                    self._ahead_of_us(server, handle, version, current)

    def _unknown(self, server: Server, handle: int, version: int, now: float) -> None:
        if handle >= self.reservations.next_handle:
            if server.index not in self._strange:
                self._strange.add(server.index)
                log.warning(
                    "chunkserver %s holds chunks this master never handed out (%x): left alone",
                    server.id,
                    handle,
                )
            return
        reservation = self.reservations.get(handle)
        if reservation is not None and (
            server.index in reservation.servers or version >= reservation.version
        ):
            return
        if not self.garbage.is_ordered(server.index, handle, version, now):
            self.garbage.orphan(server.index, handle, version, now)

    def _good(self, server: Server, handle: int, version: int, goal: int, now: float) -> None:
        """A whole replica of the current version that was not known yet."""
        known = self.garbage.at(server.index, handle)
        if known is not None:
            if known.version == version and known.kind != STALE:
                return  # found corrupt, or one too many: it is to go
            self.garbage.drop(server.index, handle)
        elif self.garbage.is_ordered(server.index, handle, version, now):
            return
        self.add_location(server, handle, version, goal)

    def _behind(
        self, server: Server, handle: int, version: int, current: int, goal: int, now: float
    ) -> None:
        if handle in self.granting:
            return
        if server.index in self.locations.get(handle):
            self.suspect(server, handle)
        elif not self.garbage.is_ordered(server.index, handle, version, now):
            self.garbage.hold(server.index, handle, version, STALE, now)
            self.evaluate(handle, current, goal)

    def _ahead_of_us(self, server: Server, handle: int, version: int, current: int) -> None:
        """The master failed while it granted this version: take it, durably."""
        if handle in self.granting:
            return
        known = self._ahead.get(handle)
        if known is not None and known[0] >= version:
            if known[0] == version:
                known[1].add(server.index)
            return
        log.info("chunk %x: chunkserver %s has version %d", handle, server.id, version)
        self._ahead[handle] = (version, {server.index})
        self.committer.submit(
            "",
            0,
            partial(plan_confirm_version, handle=handle, version=version),
            partial(self._taken_ahead, handle, version, current),
        )

    def _taken_ahead(self, handle: int, version: int, before: int, outcome: Outcome) -> None:
        known = self._ahead.get(handle)
        if known is None or known[0] != version:
            return
        del self._ahead[handle]
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if isinstance(outcome, GfsError) or row is None or row.version != version:
            return
        self.set_locations(handle, version, row.replication, known[1], before)

    def add_location(self, server: Server, handle: int, version: int, goal: int) -> None:
        if self.locations.add(handle, server.index):
            if server.reported is not None:
                server.reported.add(handle)
            self.evaluate(handle, version, goal)

    def set_locations(
        self, handle: int, version: int, goal: int, servers: Iterable[int], old_version: int
    ) -> None:
        """These hold ``version``; all others known until now are stale, at
        ``old_version`` as far as the master knows."""
        now = self.now
        servers = set(servers)
        for index in self.locations.replace(handle, servers):
            if self.servers.get(index).state != DEAD:
                self.garbage.hold(index, handle, old_version, STALE, now)
        for index in servers:
            self.garbage.drop(index, handle)
            reported = self.servers.get(index).reported
            if reported is not None:
                reported.add(handle)
        self.evaluate(handle, version, goal)

    def drop_location(self, server: Server, handle: int) -> bool:
        """The replica is not there, or not fit; True if that is news."""
        if not self.locations.remove(handle, server.index):
            return False
        with self.store.read() as txn:
            self._evaluate_row(txn, handle)
        return True

    def evaluate(self, handle: int, version: int, goal: int) -> None:
        """Something changed about this chunk: is it endangered, whole, or more
        than whole? The one place that decides."""
        if not self.settled:
            return
        holders = self.locations.get(handle)
        known = self.garbage.replicas.get(handle)
        if known is not None and len(holders) < goal and self._readopt(handle, version):
            holders = self.locations.get(handle)
        if known is not None:
            self._release_garbage(handle, goal, holders)
        if len(holders) > goal:
            self.surplus[handle] = None
        else:
            self.surplus.pop(handle, None)
        if len(holders) < goal or self.repair.is_known(handle):
            self.repair.update(handle, len(holders), goal)

    def _readopt(self, handle: int, version: int) -> bool:
        """Take back good replicas that were about to be deleted as too many."""
        found = [
            index
            for index, unwanted in self.garbage.replicas[handle].items()
            if unwanted.kind == ORPHANED and unwanted.version == version
        ]
        for index in found:
            self.garbage.drop(index, handle)
            self.locations.add(handle, index)
        return bool(found)

    def _release_garbage(self, handle: int, goal: int, holders: tuple[int, ...]) -> None:
        live = sum(index not in self.servers.not_live for index in holders)
        # An old or damaged copy is better than none: it goes when enough good ones
        # are there for sure, not when there is one.
        if live and live >= min(goal, self.servers.live_count):
            self.garbage.release(handle, STALE)
            self.garbage.release(handle, CORRUPT)

    def trim_surplus(self) -> None:
        """Give up replicas beyond the goal, once enough are live for sure."""
        if not self.settled:
            return
        now = self.now
        with self.store.read() as txn:
            for handle in list(self.surplus)[:SURPLUS_ROUND]:
                row = chunk_row(txn, handle)
                holders = [self.servers.get(i) for i in self.locations.get(handle)]
                if row is None or len(holders) <= row.replication:
                    del self.surplus[handle]
                    continue
                # What cannot be decided now is looked at again after the others.
                del self.surplus[handle]
                self.surplus[handle] = None
                live = [s for s in holders if s.state == LIVE and s.registered]
                if len(live) <= row.replication or self.leases.current(handle, now):
                    continue
                victim = pick_surplus(live)
                self.locations.remove(handle, victim.index)
                self.garbage.give_up(victim.index, handle, row.version, now)

    # --- replicas found bad --------------------------------------------------------------

    def take_bad(self, server: Server, bad: list[BadReplica]) -> None:
        """What a chunkserver found out about its own replicas."""
        for replica in bad:
            with self.store.read() as txn:
                row = chunk_row(txn, replica.handle)
            if row is None:
                if replica.kind == "corrupt":
                    self._unknown(server, replica.handle, replica.version, self.now)
            elif replica.kind == "corrupt":
                # Version 0: not even its head can be read, nothing is known of it.
                if 0 < replica.version < row.version:
                    self._behind(
                        server,
                        replica.handle,
                        replica.version,
                        row.version,
                        row.replication,
                        self.now,
                    )
                else:
                    self.corrupt(server, replica.handle, replica.version)
            elif replica.version >= row.version:
                self.garbage.drop(server.index, replica.handle)
                if self.drop_location(server, replica.handle):
                    log.warning("chunkserver %s lost its replica of %x", server.id, replica.handle)

    def corrupt(self, server: Server, handle: int, version: int) -> None:
        """A replica's bytes fail their checksum, for sure."""
        known = self.garbage.at(server.index, handle)
        if known is not None and known.kind == CORRUPT and known.version == version:
            return
        if self.garbage.is_ordered(server.index, handle, version, self.now):
            return
        log.warning(
            "corrupt replica: chunk %x version %d on chunkserver %s", handle, version, server.id
        )
        self.committer.submit("", 0, _count_corruption, _ignore)
        self.garbage.hold(server.index, handle, version, CORRUPT, self.now)
        self.locations.remove(handle, server.index)
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if row is not None:
            self.evaluate(handle, row.version, row.replication)

    def reported_bad(self, server: Server, handle: int) -> None:
        """A reader failed at this replica."""
        if self.suspect(server, handle, blocks=True):
            self.repair.block(handle)

    def suspect(self, server: Server, handle: int, *, blocks: bool = False) -> bool:
        """Have the server look at the replica, and read it all if ``blocks``.
        It is believed until then. False if that was done a moment ago."""
        key = (server.index, handle)
        if self.now - self._verified.get(key, float("-inf")) < VERIFIED_SECONDS:
            return False
        if key in self.verifying:
            return False
        if key not in self.to_verify and len(self.to_verify) >= VERIFY_MAX:
            return False
        self.to_verify[key] = blocks or self.to_verify.get(key, False)
        return True

    def verified(self, server: Server, handle: int, reply: VerifyReply, blocks: bool) -> None:
        """The truth about a suspect; about all of its bytes if ``blocks``."""
        now = self.now
        self._verified[server.index, handle] = now
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None:
            there = reply.state in ("good", "stale")
            self.reservations.resolve(handle, server.index, reply.version if there else None)
        if row is None or handle in self.granting:
            self.repair.unblock(handle)
        elif reply.state == "missing":
            self.garbage.drop(server.index, handle)
            self.drop_location(server, handle)
        elif reply.state == "corrupt" and not reply.version:
            self.corrupt(server, handle, row.version)  # not even its head can be read
        elif reply.version < row.version:
            self.garbage.hold(server.index, handle, reply.version, STALE, now)
            self.locations.remove(handle, server.index)
            self.evaluate(handle, row.version, row.replication)
        elif reply.version > row.version:
            self._ahead_of_us(server, handle, reply.version, row.version)
        elif reply.state == "corrupt" or reply.length < row.length:
            self.corrupt(server, handle, reply.version)
        else:
            known = self.garbage.at(server.index, handle)
            if known is not None and known.kind == CORRUPT and blocks:
                self.garbage.drop(server.index, handle)
            if server.index in self.locations.get(handle):
                self.repair.unblock(handle)
                return
            self._good(server, handle, reply.version, row.replication, now)

    def expire_verified(self, now: float) -> None:
        for key, when in list(self._verified.items()):
            if now - when < VERIFIED_SECONDS:
                break
            del self._verified[key]

    # --- deletion ------------------------------------------------------------------------

    def _chunks_freed(self, freed: list[tuple[int, int]]) -> None:
        """Nothing refers to these chunks any more, and that is durable."""
        now = self.now
        for handle, version in freed:
            self.garbage.doom(handle, now)
            for index in self.locations.pop(handle):
                self.garbage.give_up(index, handle, version, now)
            self.repair.forget(handle)
            self.leases.drop(handle)
            self.surplus.pop(handle, None)

    def give_up_reservation(self, handle: int, *, at_once: bool) -> None:
        """An upload ended without a file: its replicas are garbage, after the
        grace if its client might still come back."""
        reservation = self.reservations.pop(handle)
        if reservation is None:
            return
        now = self.now
        if at_once:
            self.garbage.doom(handle, now)
        for index in reservation.servers:
            if at_once:
                self.garbage.give_up(index, handle, reservation.version, now)
            else:
                self.garbage.orphan(index, handle, reservation.version, now)

    def deletion_orders(self, server: Server) -> list[ReplicaName]:
        """What ``server`` is to delete, checked once more against all that is
        known now."""
        if not self.settled or not server.registered:
            return []
        with self.store.read() as txn:

            def refused(handle: int, version: int) -> bool:
                return self._is_wanted(txn, server, handle, version)

            orders = self.garbage.orders(server.index, self.now, refused)
        return [ReplicaName(handle, version) for handle, version in orders]

    def _is_wanted(self, txn: Txn, server: Server, handle: int, version: int) -> bool:
        if handle in self.granting or handle in self.publishing:
            return True
        clone = self.repair.active.get(handle)
        if clone is not None and clone.target is server:
            return True
        reservation = self.reservations.get(handle)
        if reservation is not None:
            return server.index in reservation.servers or version >= reservation.version
        row = chunk_row(txn, handle)
        if row is None:
            return False
        holders = self.locations.get(handle)
        live = [index for index in holders if index not in self.servers.not_live]
        if version > row.version or (version == row.version and server.index in holders):
            return True
        return len(live) < max(1, min(row.replication, self.servers.live_count))

    # --- passes over all chunks ------------------------------------------------------------

    def server_died(self, server: Server) -> Iterator[None]:
        """Its replicas do not count any more. In slices."""
        index = server.index
        self.garbage.forget_server(index)
        handles = self.locations.handles()
        for start in range(0, len(handles), SLICE):
            with self.store.read() as txn:
                for handle in handles[start : start + SLICE]:
                    if server.state == LIVE:
                        return  # it came back meanwhile, and reports
                    if index in self.locations.get(handle):
                        self.locations.remove(handle, index)
                        self._evaluate_row(txn, handle)
            yield

    def finish_registration(self, server: Server) -> Iterator[None]:
        """Everything the server holds was reported: what it was believed to
        hold and did not report is not there. In slices."""
        index, reported, rpc = server.index, server.reported, server.rpc
        if reported is None:
            return
        handles = self.locations.handles()
        for start in range(0, len(handles), SLICE):
            with self.store.read() as txn:
                for handle in handles[start : start + SLICE]:
                    if index in self.locations.get(handle) and handle not in reported:
                        self.locations.remove(handle, index)
                        self._evaluate_row(txn, handle)
            yield
            if server.rpc is not rpc:
                return
        for handle, of_chunk in list(self.garbage.replicas.items()):
            if index in of_chunk and handle not in reported:
                self.garbage.drop(index, handle)
        self.servers.registration_complete(server)
        self.repair.retry_all()
        log.info(
            "chunkserver %s (%s, rack %s) registered with %d replicas",
            server.id,
            server.address,
            server.rack,
            len(reported),
        )

    def scan_all(self) -> Iterator[None]:
        """Look at every chunk once. In slices."""
        at = b""
        while True:
            count = 0
            with self.store.read() as txn:
                for key, row in txn.scan(at, txn.db.chunks):
                    if count >= SLICE:
                        break
                    count += 1
                    at = key + b"\0"
                    version, _, _, _, goal = unpack_chunk(row)
                    handle = unpack_u64(key)
                    if (
                        len(self.locations.get(handle)) != goal
                        or self.repair.is_known(handle)
                        or handle in self.garbage.replicas
                    ):
                        self.evaluate(handle, version, goal)
            yield
            if count < SLICE:
                return

    def _evaluate_row(self, txn: Txn, handle: int) -> None:
        row = chunk_row(txn, handle)
        if row is not None:
            self.evaluate(handle, row.version, row.replication)

    # --- copies --------------------------------------------------------------------------

    def plan_clones(self) -> list[Clone]:
        """Copies to start now. They count as started."""
        if not self.settled:
            return []
        now = self.now
        placeable = self.servers.placeable(now)
        servers = self.servers.all()
        silent = len(servers) - len(placeable)
        started: list[Clone] = []
        slots = sum(max(0, self.limits.per_server - s.clones_in) for s in placeable)
        slots = min(slots, self.limits.total - len(self.repair.active))
        for handle in self.repair.due(now, lambda have: len(placeable) > have - silent):
            if len(started) >= slots:
                break
            clone = self._plan_clone(handle, placeable, now)
            if clone is None:
                self.repair.defer(handle, now)
            else:
                self.repair.started(clone)
                started.append(clone)
        return started

    def _plan_clone(self, handle: int, placeable: list[Server], now: float) -> Clone | None:
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None:
            self.repair.forget(handle)
            return None
        if handle in self.granting:
            return None
        if self.leases.current(handle, now) is not None:
            self.to_revoke[handle] = None
            return None
        if row.attempted > 1 and now < self._old_leases_until:
            # It was under lease once, and may be now: a copy could miss a write
            # that this master's predecessor let in.
            return None
        holders = [self.servers.get(index) for index in self.locations.get(handle)]

        def refused(server: Server) -> bool:
            return self.garbage.was_ordered(server.index, handle, now)

        return plan_clone(
            handle,
            row.version,
            holders,
            placeable,
            refused,
            self.repair.failed_at(handle),
            self.limits,
            self.rng,
        )

    def clone_ended(self, clone: Clone, error: Exception | None) -> None:
        now = self.now
        self.repair.ended(clone, now, failed=error is not None)
        with self.store.read() as txn:
            row = chunk_row(txn, clone.handle)
        if error is not None:
            log.info(
                "copying chunk %x to chunkserver %s failed: %s",
                clone.handle,
                clone.target.id,
                error,
            )
        elif row is not None and row.version == clone.version and clone.target.rpc is not None:
            self.garbage.drop(clone.target.index, clone.handle)
            self.add_location(clone.target, clone.handle, clone.version, row.replication)
        elif row is None:
            self.garbage.give_up(clone.target.index, clone.handle, clone.version, now)
        else:
            self.garbage.hold(clone.target.index, clone.handle, clone.version, STALE, now)
        if row is not None:
            self.evaluate(clone.handle, row.version, row.replication)


def _count_corruption(txn: Txn) -> Planned:
    txn.state.corruptions += 1
    return None, Done(id=0)


def _ignore(_: Outcome) -> None:
    pass

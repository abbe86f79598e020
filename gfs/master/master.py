"""The master's parts, and the decisions that touch several of them.

Plain synchronous code, called from the loop's thread. Whatever has to wait is
left behind as work for :mod:`gfs.master.service.background`: replicas to verify, leases to
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
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from gfs.blocks import stored_bytes
from gfs.config import MasterSettings
from gfs.diagnostics import event
from gfs.errors import CorruptReplica, GfsError, NotFound, ProtocolError
from gfs.io import DiskSpace, World
from gfs.master.leases.table import FIRST_LEASED_VERSION, LeaseTable
from gfs.master.metadata.committer import Committer, Outcome
from gfs.master.metadata.namespace import Planned, chunk_row, plan_confirm_version
from gfs.master.metadata.operations import CorruptionFound, HandlesReserved
from gfs.master.metadata.rows import Chunk, pack_u64, unpack_chunk, unpack_u64
from gfs.master.metadata.store import HANDLE_RANGE, Effects, Freed, Store, Txn
from gfs.master.metadata.trash import TrashBook, trashed_chunks
from gfs.master.metadata.watermark import Gate
from gfs.master.replicas import drain, election, placement, rebalancing, trash_purge
from gfs.master.replicas.garbage import CORRUPT, FORGETFUL, ORPHANED, STALE, GarbageTable
from gfs.master.replicas.locations import LocationTable, ReservationTable
from gfs.master.replicas.rereplication import (
    Clone,
    Danger,
    Limits,
    RepairQueue,
    free_slots,
    join,
    pick_surplus,
    plan_clone,
)
from gfs.master.replicas.salvage import SalvageQueue, plan_salvage
from gfs.master.replicas.servers import DEAD, DISK_DOWN, LIVE, STOPPED, Server, ServerTable
from gfs.metrics import Operations
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import (
    CLONES_MAX,
    SMALL_REPLICA_BYTES_MAX,
    BadReplica,
    Disk,
    Done,
    ForgetShadow,
    ReplicaName,
    ServerStatus,
    ShadowStatus,
    VerifyReply,
)
from gfs.protocol.messages import FORGETFUL as FORGETFUL_BIT

log = logging.getLogger(__name__)

#: Chunks per slice of a pass over all of them: some 5 ms.
SLICE = 2_000
#: Replicas waiting to be verified; more are left to the next reader's report.
VERIFY_MAX = 10_000
#: A replica that was just verified is not verified again for this long.
VERIFIED_SECONDS = 5.0
#: What a server says of its disks is not older than this: it looks every 2 s.
SPACE_AGE_SECONDS = 4.0
#: So often ``dead_seconds`` passes before a chunk that no chunkserver told of is lost.
LOST_PERIODS = 2
#: Chunks with too many replicas looked at in one round.
SURPLUS_ROUND = 1_000

_records = struct.Struct(">QII")


async def _without_shadows(request: ForgetShadow) -> Done:
    raise NotFound(f"there is no shadow master {request.address}")


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
        gate = Gate(world.clock, settings.shadow_wait_seconds)
        self.committer = Committer(world, store, settings.answers_seconds, self._applied, gate)
        self.lived = self.committer.lived
        #: Of the shadow masters: see :mod:`gfs.master.replication.log_sender`.
        self.shadow_status: Callable[[], list[ShadowStatus]] = list
        self.forget_shadow: Callable[[ForgetShadow], Awaitable[Done]] = _without_shadows
        self.servers = ServerTable(
            store.known_servers(), settings.heartbeat_seconds, settings.dead_seconds, now
        )
        self.locations = LocationTable()
        end = store.state.handle_end
        self.reservations = ReservationTable(end - HANDLE_RANGE, end)
        self.garbage = GarbageTable(settings.garbage_grace_seconds)
        self.leases = LeaseTable(settings.lease_seconds, settings.lease_margin_seconds)
        #: Until then a lease of the master before this one may still be running.
        self.old_leases_until = now
        if store.epoch > 1 or store.state.term:
            self.old_leases_until += settings.lease_seconds
        self.repair = RepairQueue()
        self.salvage = SalvageQueue()
        self.trash = TrashBook(store)
        self.operations = Operations(settings.slow_seconds)
        #: Connections served now, for metrics.
        self.connections: set[BulkConnection] = set()
        #: Chunks whose replicas are being raised right now -> servers that lost theirs since
        #: that began.
        self.granting: dict[int, set[int]] = {}
        #: Files that stand still, for a snapshot: nothing of them is granted.
        self.held: set[int] = set()
        #: Which of them a snapshot of a master before this one has is being looked for.
        self.holds_all = False
        #: Chunks whose lease is being revoked for one: it is not extended.
        self.revoking: set[int] = set()
        #: Chunks of files that are being committed.
        self.publishing: set[int] = set()
        #: Chunks that are moved -> the server that is to give its replica up.
        self.moves: dict[int, int] = {}
        #: Orders under way for that; and whether disks are being made even.
        self.move_orders = 0
        self.balancing = False
        self._means: rebalancing.Means | None = None
        #: Chunks with more replicas than their goal.
        self.surplus: dict[int, None] = {}
        #: (server index, handle) -> must its blocks be read: replicas to verify.
        self.to_verify: dict[tuple[int, int], bool] = {}
        #: Those that are being verified.
        self.verifying: set[tuple[int, int]] = set()
        #: Those that could not be verified, and did not look better since.
        self.unverified: set[tuple[int, int]] = set()
        self._verified: dict[tuple[int, int], float] = {}
        #: Chunks of which there are forgetful replicas and no others.
        self.forgotten: dict[int, None] = {}
        #: Chunks whose goal may be another one now.
        self.to_evaluate: dict[int, None] = {}
        #: Leases to be revoked, so that an endangered chunk can be copied.
        self.to_revoke: dict[int, None] = {}
        #: Reported versions above the master's, on their way into the store.
        self._ahead: dict[int, tuple[int, set[int]]] = {}
        #: Servers with replicas of chunks that were never handed out.
        self._strange: set[int] = set()
        #: Whether a server can be drained is being found out, for one at a time.
        self.drain_checked = False
        self.settled = False
        self.began_at = now
        #: All chunks are to be looked at: servers are drained, or not any more.
        self.rescan_wanted = False
        self.disk_low = False
        self.metadata_disk: DiskSpace | None = None
        #: When this server's certificate ends; 0: it has none.
        self.certificate_until_ns: Callable[[], int] = int
        self._range_asked = False

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    @property
    def limits(self) -> Limits:
        """Of orders to copy, as they are set now."""
        set_now, settings = self.store.state.repair, self.settings
        per_server, total = set_now.clones_per_server, set_now.clones_total
        return Limits(
            settings.clones_per_server if per_server < 0 else per_server,
            settings.clones_total if total < 0 else total,
        )

    @property
    def moves_total(self) -> int:
        """Of these for balance alone."""
        set_now = self.store.state.repair.moves_total
        return self.settings.moves_total if set_now < 0 else set_now

    @property
    def tells_lost(self) -> bool:
        """Whether chunkservers had the time to report what they have, replicas that were
        being written or verified when this master began included."""
        return self.now >= self.began_at + LOST_PERIODS * self.settings.dead_seconds

    @property
    def may_copy(self) -> bool:
        return self.settled and not self.store.state.repair.paused

    @property
    def is_maintained(self) -> bool:
        """Whether a chunkserver is under maintenance, for a time that has to pass."""
        now_ns = self.lived.now_ns()
        return any(server.maintenance_until_ns > now_ns for server in self.servers.all())

    def find_server(self, name: str) -> Server:
        """A chunkserver by its id or its address. Raises NotFound."""
        for server in self.servers.all():
            if name in (server.id, server.address):
                return server
        raise NotFound(f"there is no chunkserver {name}: gfs status shows their ids and addresses")

    def is_held(self, inode: int) -> bool:
        """Whether the file stands still, for a snapshot."""
        return self.holds_all or inode in self.held

    def place(self, replication: int, avoid: frozenset[str], what: str) -> list[Server]:
        """Servers for one new chunk, the primary first; counted as a creation.

        Servers in ``avoid`` are never chosen; those where a chain broke a moment
        ago only if there are not enough others. Raises NotEnoughChunkservers.
        """
        now, replicas_min = self.now, self.settings.replicas_min
        placeable = self.servers.open_to_new(now)
        if avoid:
            placeable = [server for server in placeable if server.id not in avoid]
        trusted = [s for s in placeable if not self.servers.is_suspect(s, now)]
        if len(trusted) >= min(replication, replicas_min):
            placeable = trusted
        chosen = placement.choose(placeable, replication, self.rng)
        placement.require(len(chosen), replication, replicas_min, self.servers.live_count, what)
        for server in chosen:
            server.recent += 1.0
        return chosen

    # --- handles ---------------------------------------------------------------------

    @contextmanager
    def chunk_in_the_making(self) -> Iterator[tuple[int, set[int]]]:
        """A new handle, for a chunk that servers make before a commit gives it to a file;
        and the servers that lose their replica meanwhile.

        Until then nobody knows of it; what was made is garbage if the block fails and
        no file got it all the same.
        """
        handle = self.reservations.new_handle()
        self.prefetch_handles()
        gone = self.granting[handle] = set()
        try:
            yield handle, gone
        except BaseException:
            # Cancelled, because its client hung up, it leaves a commit behind that may be
            # queued or under way: what came of it shows when a later one was carried out.
            look = partial(self._given_up, handle)
            self.committer.submit("", 0, lambda _: (None, Done(id=0)), look)
            raise
        self.granting.pop(handle, None)

    def _given_up(self, handle: int, outcome: Outcome) -> None:
        self.granting.pop(handle, None)
        if isinstance(outcome, GfsError):
            return  # perhaps never queued: it is garbage like any that nobody knows of
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None:
            self.garbage.doom(handle, self.now)

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
        :mod:`gfs.master.replicas.locations`."""
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
                    self._unknown(server, handle, version, length & ~FORGETFUL_BIT)
                    continue
                current, _, length_min, _, goal = unpack_chunk(row)
                if length & FORGETFUL_BIT:
                    # A server that starts has forgotten what it found damaged.
                    is_new = reported is not None
                    self._forgetful(server, handle, version, current, goal, is_new)
                elif version == current:
                    if length < length_min:
                        self.suspect(server, handle)
                        continue
                    if self.unverified and (index, handle) in self.unverified:
                        self.unverified.discard((index, handle))
                        self.to_evaluate[handle] = None
                    if index not in holders(handle):
                        self._good(server, handle, version, goal, now)
                elif version < current:
                    self._behind(server, handle, version, current, goal, now)
                else:
                    self._ahead_of_us(server, handle, version, current)

    def _unknown(self, server: Server, handle: int, version: int, length: int) -> None:
        now = self.now
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
            self.garbage.orphan(server.index, handle, version, now, length)

    def _good(self, server: Server, handle: int, version: int, goal: int, now: float) -> None:
        """A whole replica of the current version that was not known yet."""
        known = self.garbage.at(server.index, handle)
        if known is not None:
            if known.version == version and known.kind not in (STALE, FORGETFUL):
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
            # Also if it was verified a moment ago: until a later report contradicts this
            # one, nothing else is deleted on the strength of this replica.
            self.unverified.add((server.index, handle))
            self.suspect(server, handle)
        elif not self.garbage.is_ordered(server.index, handle, version, now):
            self.garbage.hold(server.index, handle, version, STALE, now)
            self.evaluate(handle, current, goal)

    def _forgetful(
        self, server: Server, handle: int, version: int, current: int, goal: int, is_whole: bool
    ) -> None:
        """It may lack something, so it is no location; nor does its version mean anything
        if it is above ours: what others have is all that was ever acknowledged.

        One that was found damaged stays so, unless ``is_whole``, as far as its server
        knows: whoever believes it, reads it first."""
        now = self.now
        self.locations.remove(handle, server.index)
        known = self.garbage.at(server.index, handle)
        was_damaged = known is not None and (known.version, known.kind) == (version, CORRUPT)
        if was_damaged and not is_whole:
            self.garbage.hold(server.index, handle, version, CORRUPT, now, forgot=True)
            self.evaluate(handle, current, goal)
            return
        if not self.garbage.is_ordered(server.index, handle, version, now):
            kind = STALE if version < current else FORGETFUL
            self.garbage.hold(server.index, handle, version, kind, now)
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

    def _is_rising(self, handle: int) -> bool:
        """Its version goes up just now: which replicas are current is not known. A copy
        of the present one may even be made over the only one of the next."""
        return handle in self.granting or handle in self._ahead

    def _taken_ahead(self, handle: int, version: int, before: int, outcome: Outcome) -> None:
        known = self._ahead.get(handle)
        if known is None or known[0] != version:
            return
        del self._ahead[handle]
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if isinstance(outcome, GfsError) or row is None or row.version != version:
            return
        self.set_locations(handle, version, known[1], before)

    def add_location(self, server: Server, handle: int, version: int, goal: int) -> None:
        if self.locations.add(handle, server.index, version):
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
        now = self.now
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None or row.version != version:
            return  # deleted, or raised again, in the same commit
        # One that is dead by now will report what it has if it comes back.
        known = [self.servers.by_index[index] for index in servers if index not in gone]
        servers = {server.index for server in known if server and server.state != DEAD}
        for index in self.locations.replace(handle, servers, version):
            if self.servers.get(index).state != DEAD:
                self.garbage.hold(index, handle, old_version, STALE, now)
        for index in servers:
            self.garbage.drop(index, handle)
            reported = self.servers.get(index).reported
            if reported is not None:
                reported.add(handle)
        self.evaluate(handle, version, row.replication)

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
            self._release_garbage(handle, version, goal)
        if known is not None and not holders and self.garbage.of_kind(handle, FORGETFUL):
            self.forgotten[handle] = None
        else:
            self.forgotten.pop(handle, None)
        if known is not None and not holders and self.damaged_holders(handle, version):
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
        if self.servers.draining:
            staying -= sum([index in self.servers.draining for index in holders])
        if staying < goal or self.repair.is_known(handle):
            self.repair.update(handle, len(holders), goal, staying)

    def _readopt(self, handle: int, version: int) -> bool:
        """Take back good replicas that were about to be deleted as too many."""
        found = [
            index
            for index, unwanted in self.garbage.replicas[handle].items()
            if unwanted.kind == ORPHANED and unwanted.version == version
        ]
        for index in found:
            self.garbage.drop(index, handle)
            self.locations.add(handle, index, version)
        return bool(found)

    def _release_garbage(self, handle: int, version: int, goal: int) -> None:
        # An old or damaged copy is better than none: it goes when enough good ones
        # are there for sure, not when there is one.
        if self._are_enough(handle, version, goal):
            for kind in (STALE, FORGETFUL, CORRUPT):
                self.garbage.release(handle, kind)

    def _are_enough(self, handle: int, version: int, goal: int) -> bool:
        """Whether a replica that is no location of the chunk, whose version is this, may
        be deleted."""
        confirmed = len(self._confirmed(handle, version))
        return confirmed >= max(1, min(goal, self.servers.live_count))

    def _confirmed(self, handle: int, version: int) -> list[Server]:
        """Those that have a good replica of ``version`` for sure, as far as can be known.
        Whatever deletes a replica asks here what stays.

        A server that just came back is believed to hold what it held before, and may
        have lost it; and a suspect is believed until it is verified. For reading and
        copying that is enough, for deleting others it is not.
        """
        found: list[Server] = []
        if self.locations.version(handle) != version:
            return found
        for index in self.locations.get(handle):
            server, key = self.servers.get(index), (index, handle)
            told = server.registered or (server.reported is not None and handle in server.reported)
            suspected = key in self.to_verify or key in self.verifying or key in self.unverified
            if server.state == LIVE and told and not suspected:
                found.append(server)
        return found

    def look_at_revived(self) -> None:
        """Servers are live again, or have told all: what was kept for want of live
        replicas may go now."""
        revived, self.servers.revived = self.servers.revived, set()
        for handle in self.garbage.replicas:
            if not revived.isdisjoint(self.locations.get(handle)):
                self.to_evaluate[handle] = None

    def trim_surplus(self) -> None:
        """Give up replicas beyond the goal, once there are enough for sure."""
        if not self.settled:
            return
        now = self.now
        with self.store.read() as txn:
            for handle in list(self.surplus)[:SURPLUS_ROUND]:
                row = chunk_row(txn, handle)
                holders = self.locations.get(handle)
                if row is None or len(holders) <= row.replication:
                    del self.surplus[handle]
                    self.moves.pop(handle, None)
                    continue
                # What cannot be decided now is looked at again after the others.
                del self.surplus[handle]
                self.surplus[handle] = None
                confirmed = self._confirmed(handle, row.version)
                if len(confirmed) <= row.replication or self._is_rising(handle):
                    continue
                if self.leases.current(handle, now) is not None:
                    continue
                moved = self.moves.pop(handle, None)
                victim = pick_surplus(confirmed, moved)
                if victim.index == moved:
                    log.info(
                        "chunk %x is moved away from chunkserver %s",
                        handle,
                        victim.id,
                        extra=event("replica_moved", server=victim.id, chunk=f"{handle:x}"),
                    )
                self.locations.remove(handle, victim.index)
                self.garbage.give_up(victim.index, handle, row.version, now, row.length)

    # --- replicas found bad --------------------------------------------------------------

    def take_bad(self, server: Server, bad: list[BadReplica]) -> None:
        """What a chunkserver found out about its own replicas."""
        for replica in bad:
            with self.store.read() as txn:
                row = chunk_row(txn, replica.handle)
            if row is None:
                self._unknown(server, replica.handle, replica.version, 0)
            elif 0 < replica.version < row.version:
                self._behind(
                    server,
                    replica.handle,
                    replica.version,
                    row.version,
                    row.replication,
                    self.now,
                )
            else:  # version 0: not even its head can be read, nothing is known of it
                self.corrupt(server, replica.handle, replica.version)

    def take_gone(self, server: Server, body: bytes) -> None:
        """These replicas are not there any more: a disk has failed, or files were deleted."""
        if len(body) % _records.size:
            raise ProtocolError(f"a replica report of {len(body)} bytes")
        index, count = server.index, 0
        for handle, version, _ in _records.iter_unpack(body):
            if server.reported is not None:
                server.reported.discard(handle)
            self.reservations.lost(handle, index)
            if handle in self.granting:
                # It may be about to be given a new version there: see set_locations.
                self.granting[handle].add(index)
            known = self.garbage.at(index, handle)
            if known is not None and known.version <= version:
                self.garbage.drop(index, handle)
            count += self.drop_location(server, handle)
        if count:
            log.warning(
                "chunkserver %s lost %d replicas: they are re-replicated",
                server.id,
                count,
                extra=event("replicas_lost", server=server.id, replicas=count),
            )

    def set_disks(self, server: Server, disks: list[Disk]) -> None:
        """What a chunkserver reports of its disks."""
        before = {disk.path: disk.state for disk in server.disks}
        had_space = server.has_space
        server.set_disks(disks)
        if server.has_space != had_space:
            self.servers.placement_changed()
        for disk in disks:
            if disk.state in DISK_DOWN and before.get(disk.path) not in DISK_DOWN:
                log.error(
                    "disk %s of chunkserver %s is %s: %s. When it works again: gfs disk retry "
                    "%s %s; if it is gone for good: gfs disk remove %s %s",
                    *(disk.path, server.id, disk.state, disk.reason),
                    *(server.id, disk.path, server.id, disk.path),
                    extra=event(
                        "disk_failed",
                        server=server.id,
                        disk=disk.path,
                        state=disk.state,
                        reason=disk.reason,
                    ),
                )
            elif before.get(disk.path) in DISK_DOWN and disk.state not in DISK_DOWN:
                log.warning(
                    "disk %s of chunkserver %s works again",
                    disk.path,
                    server.id,
                    extra=event("disk_used", server=server.id, disk=disk.path),
                )

    def corrupt(self, server: Server, handle: int, version: int) -> None:
        """A replica's bytes fail their checksum, for sure."""
        known = self.garbage.at(server.index, handle)
        if known is not None and known.kind == CORRUPT and known.version == version:
            return
        if self.garbage.is_ordered(server.index, handle, version, self.now):
            return
        log.warning(
            "corrupt replica: chunk %x version %d on chunkserver %s",
            handle,
            version,
            server.id,
            extra=event("corruption_found", server=server.id, chunk=f"{handle:x}", version=version),
        )
        count = partial(_count_corruption, handle=handle, version=version)
        self.committer.submit("", 0, count, _ignore)
        forgot = known is not None and (known.kind == FORGETFUL or known.forgot)
        self.garbage.hold(server.index, handle, version, CORRUPT, self.now, forgot)
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
            self.unverified.add(key)
            return False
        self.to_verify[key] = blocks or self.to_verify.get(key, False)
        return True

    def length_min(self, handle: int) -> int:
        """What a good replica holds at least, 0 of no chunk."""
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        return 0 if row is None else row.length

    def verified(
        self, server: Server, handle: int, reply: VerifyReply, blocks: bool, length_min: int
    ) -> None:
        """The truth about a suspect; about all of its bytes if ``blocks``. It was to
        hold ``length_min`` when it was asked."""
        now = self.now
        self._verified[server.index, handle] = now
        self.unverified.discard((server.index, handle))
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
        elif reply.state == "forgetful":
            self._forgetful(server, handle, reply.version, row.version, row.replication, blocks)
        elif reply.version < row.version:
            self.garbage.hold(server.index, handle, reply.version, STALE, now)
            self.locations.remove(handle, server.index)
            self.evaluate(handle, row.version, row.replication)
        elif reply.version > row.version and reply.state == "good":
            self._ahead_of_us(server, handle, reply.version, row.version)
        elif reply.state == "corrupt" or reply.length < length_min:
            self.corrupt(server, handle, reply.version)
        else:
            known = self.garbage.at(server.index, handle)
            if known is not None and known.kind == CORRUPT and blocks:
                self.garbage.drop(server.index, handle)
            if server.index in self.locations.get(handle):
                self.repair.unblock(handle)
                if handle in self.garbage.replicas:
                    self.to_evaluate[handle] = None  # others may have been kept for want of it
                return
            self._good(server, handle, reply.version, row.replication, now)

    def expire_verified(self, now: float) -> None:
        for key, when in list(self._verified.items()):
            if now - when < VERIFIED_SECONDS:
                break
            del self._verified[key]

    def may_believe(self, handle: int) -> bool:
        """Whether a forgetful replica of the chunk may be believed now: there is no other
        on any server that is there, and no server is away that might bring one."""
        return (
            self.settled
            and handle in self.forgotten
            and bool(self.garbage.of_kind(handle, FORGETFUL))
            and not self.salvage.is_pending(handle)
            and not self._is_rising(handle)
            and handle not in self.repair.active
            and not any(handle == known for _, known in (*self.to_verify, *self.verifying))
            and not self.awaits_any()
        )

    def awaits_any(self) -> bool:
        """Whether a server is away that might bring better replicas than forgetful ones."""
        return election.awaited(self.servers.all(), self.now, self.settings.forgetful_seconds)

    # --- deletion ------------------------------------------------------------------------

    def _applied(self, effects: Effects) -> None:
        """What else changes with a commit."""
        self._chunks_freed(effects.freed)
        for inode, trashed in effects.trashed:
            self.trash.changed(inode, trashed)
        for inode, length in effects.grown:
            self.trash.grown(inode, length)
        self.to_evaluate.update(dict.fromkeys(effects.goals))
        for server_id, draining in effects.drains:
            self.set_draining(server_id, draining)
        for server_id, until_ns in effects.maintenance:
            self.servers.maintain(server_id, until_ns)
        for deed in effects.then:
            deed()

    def _chunks_freed(self, freed: list[Freed]) -> None:
        """Nothing refers to these chunks any more, and that is durable."""
        now = self.now
        for handle, version, length in freed:
            self.garbage.doom(handle, now)
            for index in self.locations.pop(handle):
                self.unverified.discard((index, handle))
                self.garbage.give_up(index, handle, version, now, length)
            self.repair.forget(handle)
            self.leases.drop(handle)
            self.surplus.pop(handle, None)
            self.moves.pop(handle, None)
            self.forgotten.pop(handle, None)
            self.salvage.forget(handle)

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

    def to_collect(self) -> list[Server]:
        """Servers that may have something to delete."""
        if not self.settled:
            return []
        now = self.now
        return [s for s in self.servers.all() if self.garbage.has_due(s.index, now)]

    def deletion_orders(self, server: Server) -> list[ReplicaName]:
        """What ``server`` is to delete, checked once more against all that is
        known now."""
        if not self.settled or not server.registered:
            return []
        with self.store.read() as txn:

            def refused(handle: int, version: int) -> bool:
                if self._is_wanted(txn, server, handle, version):
                    return True
                known = self.garbage.at(server.index, handle)
                if known is not None and known.kind == CORRUPT:
                    _tell_repaired(server, handle, version, "deleted")
                return False

            orders = self.garbage.orders(server.index, self.now, refused)
        return [ReplicaName(handle, version) for handle, version in orders]

    def _is_wanted(self, txn: Txn, server: Server, handle: int, version: int) -> bool:
        if self._is_rising(handle) or handle in self.publishing:
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
        if version == row.version and server.index in holders:
            return True
        known = self.garbage.at(server.index, handle)
        if version > row.version and (known is None or known.kind not in (CORRUPT, FORGETFUL)):
            return True  # while one of these, of a version that was only attempted, is useless
        return not self._are_enough(handle, row.version, row.replication)

    # --- room --------------------------------------------------------------------------------

    @property
    def servers_needed(self) -> int:
        """So many must have room, or new chunks are refused."""
        return min(self.settings.replication, self.settings.replicas_min)

    def shortage(self) -> trash_purge.Shortage | None:
        return (
            trash_purge.shortage(self.servers.all(), self.servers_needed) if self.settled else None
        )

    # --- draining ------------------------------------------------------------------------

    def set_draining(self, server_id: str, draining: int) -> None:
        """It is to be emptied, is empty, or is as all others; that is durable."""
        server = self.servers.by_id.get(server_id)
        if server is None or server.draining == draining:
            return
        if not server.draining:
            server.granting_then = frozenset(self.granting)
        told = drain.NAMES[draining] or "not drained any more"
        log.info(
            "chunkserver %s: %s",
            server_id,
            told,
            extra=event("drain", server=server_id, state=told),
        )
        self.servers.set_draining(server, draining)
        self.rescan_wanted = True

    def is_empty(self, server: Server) -> bool:
        """Nothing is on a draining server, and nothing can come to be there."""
        index = server.index
        return (
            self.settled
            and server.state == LIVE
            and server.registered
            and not server.chunks
            and not self.locations.counts.get(index)
            and not server.clones_in
            and not self.reservations.at(index)
            and server.granting_then.isdisjoint(self.granting)
            and not any(self.garbage.at(index, handle) for handle in self.repair.lost)
        )

    def server_status(self, server: Server) -> ServerStatus:
        draining = server.draining
        known = self.locations.counts.get(server.index, 0)
        if draining == drain.DRAINED and server.state == LIVE and (known or server.chunks):
            draining = drain.DRAINING  # it came back with something
        status = ServerStatus(
            server.id,
            server.address,
            server.rack,
            server.state,
            max(0, int((self.now - server.last_heard) * 1000)),
            server.chunks,
            server.disks,
            drain.NAMES[draining],
            scrub=server.scrub,
            certificate_until_ns=server.certificate_until_ns,
            maintenance_ms=max(0, server.maintenance_until_ns - self.lived.now_ns()) // 1_000_000,
        )
        if draining == drain.DRAINED and server.state != LIVE:
            status.state = STOPPED  # as it should be: nobody misses it
        if draining == drain.DRAINING:
            status.drain_chunks = max(known, server.chunks)
            status.drain_uploads = self.reservations.at(server.index)
            status.drain_lost = sum(
                self.garbage.at(server.index, handle) is not None
                and not self.salvage.is_pending(handle)
                for handle in self.repair.lost
            )
        return status

    # --- passes over all chunks ------------------------------------------------------------

    def server_died(self, server: Server) -> Iterator[None]:
        """Its replicas do not count any more. In slices."""
        index = server.index
        self.garbage.forget_server(index)
        self.unverified = {key for key in self.unverified if key[0] != index}
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

    def evaluate_changed(self) -> Iterator[None]:
        """Look at the chunks whose goal may have changed. In slices."""
        while self.to_evaluate:
            with self.store.read() as txn:
                for _ in range(min(SLICE, len(self.to_evaluate))):
                    handle = next(iter(self.to_evaluate))
                    del self.to_evaluate[handle]
                    self._evaluate_row(txn, handle)
            yield

    def mark_trashed(self) -> Iterator[None]:
        """Have chunks of deleted files copied after those of live ones. In slices."""
        trashed: set[int] = set()
        for handles in trashed_chunks(self.store):
            trashed.update(filter(self.repair.is_known, handles))
            yield
        self.repair.set_trashed(trashed)

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
        self.reservations.doubt(index, reported)
        server.chunks = len(reported)
        self.servers.registration_complete(server)
        self.repair.retry_all()
        log.info(
            "chunkserver %s (%s, rack %s) registered with %d replicas",
            server.id,
            server.address,
            server.rack,
            len(reported),
            extra=event("chunkserver_up", server=server.id, replicas=len(reported)),
        )

    def scan_all(self) -> Iterator[None]:
        """Look at every chunk once. In slices."""
        at = b""
        draining = self.servers.draining
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
                    holders = self.locations.get(handle)
                    if (
                        len(holders) != goal
                        or not draining.isdisjoint(holders)
                        or self.repair.is_known(handle)
                        or handle in self.garbage.replicas
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
        for index, known in self.garbage.replicas.get(handle, {}).items():
            if known.kind == CORRUPT and known.forgot:
                self.suspect(self.servers.get(index), handle, blocks=True)

    def _evaluate_row(self, txn: Txn, handle: int) -> None:
        row = chunk_row(txn, handle)
        if row is not None:
            self.evaluate(handle, row.version, row.replication)

    # --- copies --------------------------------------------------------------------------

    def plan_clones(self) -> list[list[Clone]]:
        """Copies to start now, those of one order together. They count as started."""
        if not self.may_copy:
            return []
        now = self.now
        placeable = self.servers.placeable(now)
        servers = self.servers.all()
        silent = len(servers) - len(placeable)
        started: list[list[Clone]] = []
        #: Those that small chunks may join.
        open_orders: list[list[Clone]] = []
        limits, spared = self.limits, self.servers.spared
        slots = free_slots(servers, placeable, limits)

        def is_possible(danger: Danger) -> bool:
            return len(placeable) > danger.have - silent and danger.is_due(spared)

        for handle in self.repair.due(now, is_possible):
            is_room = slots.can_pair and self.repair.orders < limits.total
            if not is_room and not open_orders:
                break
            if open_orders and self._join(handle, open_orders, placeable, now):
                open_orders = [order for order in open_orders if len(order) < CLONES_MAX]
                continue
            if not is_room or not slots.may_fit(self.locations.get(handle)):
                continue  # whatever slot becomes free may be for it: it does not rest
            clone = self._plan_clone(handle, placeable, now, limits)
            if clone is None:
                self.repair.defer(handle, now)
                continue
            self.repair.started(clone)
            started.append([clone])
            if self._is_small(clone):
                open_orders.append(started[-1])
            slots = free_slots(servers, placeable, limits)
        return started

    def _is_small(self, clone: Clone) -> bool:
        """Whether it may be copied with others; one that failed before goes by itself."""
        return (
            clone.length <= SMALL_REPLICA_BYTES_MAX
            and not clone.salvage
            and not self.repair.failed_at(clone.handle)
        )

    def _join(
        self, handle: int, orders: list[list[Clone]], placeable: list[Server], now: float
    ) -> bool:
        """Have the chunk copied with others, if it can be now."""
        if self._is_rising(handle) or self.leases.current(handle, now) is not None:
            return False
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None or self._may_be_leased(handle, row, now):
            return False
        clone = Clone(handle, row.version, orders[0][0].target, (), length=row.length)
        if not self._is_small(clone):
            return False
        holders = [self.servers.get(index) for index in self.locations.get(handle)]

        def refused(server: Server) -> bool:
            return self.garbage.was_ordered(server.index, handle, now)

        if not join(clone, holders, orders, placeable, refused):
            return False
        joined = next(order[-1] for order in orders if order[-1].handle == handle)
        self.repair.started(joined)
        return True

    def plan_released(self, handle: int) -> Clone | None:
        """The copy for which this chunk's lease was revoked, if it can start now: before
        its writer has the next one. It counts as started.

        Its slots may have been given away meanwhile: it may have one more, or its writer
        would be held up for nothing, time and again."""
        queue = self.repair
        is_full = queue.orders >= self.limits.total
        if not self.may_copy or is_full or handle in queue.active or not queue.is_queued(handle):
            return None
        limits = self.limits._replace(per_server=self.limits.per_server + 1)
        clone = self._plan_clone(handle, self.servers.placeable(self.now), self.now, limits)
        if clone is not None:
            queue.started(clone)
        return clone

    def _plan_clone(
        self, handle: int, placeable: list[Server], now: float, limits: Limits
    ) -> Clone | None:
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        if row is None:
            self.repair.forget(handle)
            return None
        if self._is_rising(handle):
            return None
        if self.leases.current(handle, now) is not None:
            self.to_revoke[handle] = None
            return None
        if self._may_be_leased(handle, row, now):
            return None
        holders = [self.servers.get(index) for index in self.locations.get(handle)]

        def refused(server: Server) -> bool:
            return self.garbage.was_ordered(server.index, handle, now)

        clone = plan_clone(
            handle,
            row.version,
            holders,
            placeable,
            refused,
            self.repair.failed_at(handle),
            limits,
            self.rng,
        )
        return None if clone is None else clone._replace(length=row.length)

    def _may_be_leased(self, handle: int, row: Chunk, now: float) -> bool:
        """Whether this master's predecessor may have given a lease of the chunk that still
        runs: a copy could miss a write that is let in under it. None is, once this master
        has granted the chunk: one that is written all the time can be copied then."""
        return (
            row.attempted >= FIRST_LEASED_VERSION
            and now < self.old_leases_until
            and not self.leases.has_granted(handle)
        )

    # --- putting together from damaged replicas ------------------------------------------

    def damaged_holders(self, handle: int, version: int) -> list[Server]:
        """Who has a damaged replica of the current version, that lacks nothing else."""
        return [
            self.servers.get(index)
            for index, known in self.garbage.replicas.get(handle, {}).items()
            if (known.version, known.kind, known.forgot) == (version, CORRUPT, False)
        ]

    def plan_salvages(self, *, repeated: bool) -> list[Clone]:
        """Chunks to put together now; those, or those not, for which all was tried before.
        They count as started."""
        started: list[Clone] = []
        if not self.may_copy or not self.salvage.handles:
            return started
        now = self.now
        placeable = self.servers.placeable(now)
        with self.store.read() as txn:
            for handle in self.salvage.round():
                if self.repair.orders >= self.limits.total:
                    break
                row = chunk_row(txn, handle)
                clone = self._plan_salvage(row, handle, placeable, now, repeated)
                if clone is not None:
                    self.repair.started(clone)
                    started.append(clone)
        return started

    def _plan_salvage(
        self, row: Chunk | None, handle: int, placeable: list[Server], now: float, repeated: bool
    ) -> Clone | None:
        damaged = [] if row is None else self.damaged_holders(handle, row.version)
        if row is None or not damaged or self.locations.get(handle):
            self.salvage.forget(handle)
            return None
        sources = self._remains(handle)
        servers = frozenset(server.index for server in sources)
        if self.salvage.is_repeated(handle, servers) != repeated:
            return None
        if handle in self.repair.active or not self.salvage.is_due(handle, servers, now):
            return None
        if self._is_rising(handle) or self._may_be_leased(handle, row, now):
            return None
        if self.leases.current(handle, now) is not None:
            self.to_revoke[handle] = None
            return None
        targets = [s for s in placeable if not self.garbage.was_ordered(s.index, handle, now)]
        return plan_salvage(handle, row, sources, targets, self.limits, self.rng)

    def _remains(self, handle: int) -> list[Server]:
        """Who is there and has a damaged or old replica: of use for single blocks."""
        of_chunk = self.garbage.replicas.get(handle, {})
        kinds = (CORRUPT, STALE)
        found = [self.servers.get(i) for i, known in of_chunk.items() if known.kind in kinds]
        return [server for server in found if server.state == LIVE and server.registered]

    def _salvage_ended(self, clone: Clone, error: Exception | None) -> None:
        if error is None:
            self.salvage.forget(clone.handle)
        elif clone.handle in self.salvage.handles:
            servers = frozenset(server.index for server in clone.sources)
            is_hopeless = isinstance(error, CorruptReplica)
            if is_hopeless and not self.salvage.is_hopeless(clone.handle):
                log.error("chunk %x is lost, as far as is known now: %s", clone.handle, error)
            self.salvage.failed(clone.handle, servers, self.now, is_hopeless)

    # --- moves ---------------------------------------------------------------------------

    def may_move(self) -> bool:
        """Whether replicas may be moved for fuller balance now."""
        return (
            self.may_copy
            and not self.repair.repairing
            and self.moves_total > 0
            and self._move_plan().is_possible
        )

    def _move_plan(self) -> rebalancing.Plan:
        # What has begun goes on until nothing is left to give.
        difference = 0.0 if self.balancing else self.settings.balance_share
        return rebalancing.Plan(self.servers.placeable(self.now), difference, self._means)

    def begin_balancing(self) -> None:
        """All chunks are looked at from now on: by the means of the last moment in which
        nothing moved."""
        servers = [server for server in self.servers.placeable(self.now) if server.total_bytes]
        if not any(server.shifts for server in servers):
            self._means = rebalancing.means_of(servers)

    def plan_moves(self, handles: list[int]) -> tuple[list[list[Clone]], list[int]]:
        """Copies to start now, of those of these chunks that would be better elsewhere, each
        order together; they count as started. And those for which there is no slot now."""
        plan, rest = self._move_plan(), []
        orders: list[list[Clone]] = []
        open_orders: dict[rebalancing.Move, list[Clone]] = {}
        now = self.now
        for handle in handles:
            row = self._movable(handle)
            if row is None:
                continue
            size = stored_bytes(row.length)
            is_small = row.length <= SMALL_REPLICA_BYTES_MAX

            def can_begin(
                move: rebalancing.Move, handle: int = handle, is_small: bool = is_small
            ) -> bool:
                is_refused = self.garbage.was_ordered(move.target.index, handle, now)
                is_open = is_small and len(open_orders.get(move, ())) % CLONES_MAX > 0
                return not is_refused and (is_open or self._has_move_slot(move))

            holders = [self.servers.get(index) for index in self.locations.get(handle)]
            move = plan.move(holders, size, can_begin)
            if move is None:
                if plan.was_held_up:
                    rest.append(handle)
                continue
            victim, target = move
            clone = Clone(handle, row.version, target, (victim,), length=row.length, moves=True)
            order = open_orders.get(move, []) if is_small else []
            if len(order) % CLONES_MAX:
                order.append(clone._replace(joined=True))
            else:
                order = [clone]
                orders.append(order)
                self.move_orders += 1
                if is_small:
                    open_orders[move] = order
            plan.begin(move, size)
            self.moves[handle] = victim.index
            self.repair.started(order[-1])
            target.begin_shift(handle, size)
            victim.begin_shift(handle, -size)
        return orders, rest

    def _has_move_slot(self, move: rebalancing.Move) -> bool:
        per_server = self.limits.per_server
        return (
            self.move_orders < self.moves_total
            and move.victim.clones_out < per_server
            and move.target.clones_in < per_server
        )

    def _movable(self, handle: int) -> Chunk | None:
        """The chunk's row, if a replica of it may be moved now."""
        busy = (self.publishing, self.moves, self.surplus, self.repair.active)
        if any(handle in each for each in busy) or self._is_rising(handle):
            return None
        if self.repair.is_known(handle) or self.repair.rests(handle, self.now):
            return None
        holders = self.locations.get(handle)
        servers = [self.servers.get(index) for index in holders]
        if any(s.state != LIVE or not s.registered or s.draining for s in servers):
            return None  # they are others soon
        with self.store.read() as txn:
            row = chunk_row(txn, handle)
        now = self.now
        if row is None or len(holders) < row.replication:
            return None
        if self.leases.current(handle, now) is not None or self._may_be_leased(handle, row, now):
            return None
        return row

    def end_shifts(self, server: Server) -> None:
        """A heartbeat came: forget moves to and from the server that ended so long ago
        that its report of its disks is newer."""
        now = self.now
        for handle, shift in list(server.shifts.items()):
            if self._is_shifting(server, handle, now):
                shift.ended_at = None
            elif shift.ended_at is None:
                shift.ended_at = now
            elif now >= shift.ended_at + SPACE_AGE_SECONDS:
                server.end_shift(handle)

    def _is_shifting(self, server: Server, handle: int, now: float) -> bool:
        return (
            handle in self.moves
            or handle in self.repair.active
            or self.garbage.at(server.index, handle) is not None
            or self.garbage.was_ordered(server.index, handle, now)
        )

    def order_ended(self, order: list[Clone], failed: dict[int, Exception]) -> None:
        """Copies were made, but for those that failed."""
        self.move_orders -= order[0].moves
        for clone in order:
            self._clone_ended(clone, failed.get(clone.handle))
        copied = [clone for clone in order if clone.handle not in failed]
        if copied:
            self.repair.rate.add(self.now, len(copied), sum(clone.length for clone in copied))
            log.info(
                "%d replicas copied to chunkserver %s: chunk %x version %d%s",
                len(copied),
                copied[0].target.id,
                copied[0].handle,
                copied[0].version,
                " and others" * (len(copied) > 1),
                extra=event(
                    "replica_copied",
                    server=copied[0].target.id,
                    chunk=f"{copied[0].handle:x}",
                    version=copied[0].version,
                    replicas=len(copied),
                ),
            )

    def _clone_ended(self, clone: Clone, error: Exception | None) -> None:
        now = self.now
        self.repair.ended(clone, now, failed=error is not None)
        if clone.salvage:
            self._salvage_ended(clone, error)
        with self.store.read() as txn:
            row = chunk_row(txn, clone.handle)
        if error is not None:
            log.info(
                "copying chunk %x to chunkserver %s failed: %s",
                clone.handle,
                clone.target.id,
                error,
                extra=event("copy_failed", server=clone.target.id, chunk=f"{clone.handle:x}"),
            )
        elif row is not None and row.version == clone.version and clone.target.rpc is not None:
            known = self.garbage.at(clone.target.index, clone.handle)
            if known is not None and known.kind == CORRUPT:
                _tell_repaired(clone.target, clone.handle, known.version, "replaced")
            self.garbage.drop(clone.target.index, clone.handle)
            self.add_location(clone.target, clone.handle, clone.version, row.replication)
        elif row is None:
            self.garbage.give_up(clone.target.index, clone.handle, clone.version, now)
        else:
            self.garbage.hold(clone.target.index, clone.handle, clone.version, STALE, now)
        if row is not None:
            self.evaluate(clone.handle, row.version, row.replication)


def _tell_repaired(server: Server, handle: int, version: int, how: str) -> None:
    """A corrupt replica is "replaced" by a good one, or to be "deleted" since there are
    enough elsewhere."""
    log.info(
        "the corrupt replica of chunk %x version %d on chunkserver %s is %s",
        handle,
        version,
        server.id,
        how,
        extra=event(
            "corruption_repaired",
            server=server.id,
            chunk=f"{handle:x}",
            version=version,
            how=how,
        ),
    )


def _count_corruption(txn: Txn, handle: int, version: int) -> Planned:
    return CorruptionFound(handle, version), Done(id=0)


def _ignore(_: Outcome) -> None:
    pass

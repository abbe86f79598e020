"""What the master does on its own: each a loop that decides in
:mod:`gfs.master.replicas` and waits here.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import trio

from gfs.blocks import CHUNK_BYTES, MIB
from gfs.diagnostics import event
from gfs.errors import (
    CorruptReplica,
    DeadlineExceeded,
    DiskFailed,
    GfsError,
    NotFound,
    ProtocolError,
    StaleVersion,
    from_wire,
)
from gfs.master.leases.granting import Grants
from gfs.master.master import Master
from gfs.master.metadata.namespace import Planned, chunk_row
from gfs.master.metadata.operations import Reclaimed, TrashEmptied
from gfs.master.metadata.store import Txn
from gfs.master.metadata.trash import ROWS_MAX, plan_empty_early
from gfs.master.metadata.uptime import Uptime
from gfs.master.replicas import election, trash_purge
from gfs.master.replicas.drain import DRAINED
from gfs.master.replicas.garbage import FORGETFUL
from gfs.master.replicas.goals import SLICE
from gfs.master.replicas.rereplication import Clone
from gfs.master.replicas.servers import LIVE, Server
from gfs.master.service.chunkserver_session import forget
from gfs.master.service.drain_command import drained, plan_drain
from gfs.protocol.messages import (
    CloneChunk,
    CloneChunks,
    CloneChunksReply,
    DeleteReplicas,
    Done,
    ReplicaName,
    RevokeLease,
    VerifyChunk,
    VerifyReply,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A copy of 64 MiB takes far less unless its servers serve clients meanwhile.
CLONE_SECONDS = 60
VERIFY_SECONDS = 60.0
#: For an order to delete: a server answers far sooner.
DELETE_SECONDS = 60.0
VERIFIES_TOTAL = 32
VERIFIES_PER_SERVER = 2
REVOKE_SECONDS = 2.0
#: Elections that run at once; after one that failed its chunk rests.
ELECTIONS_TOTAL = 8
ELECTION_REST_SECONDS = 2.0
#: All chunks are looked at once in this time, for what was overlooked.
RESCAN_SECONDS = 600.0
#: The rescan rests this long between slices.
RESCAN_REST_SECONDS = 0.05
#: Between two looks at all chunks for those that would be better elsewhere: after
#: one that found some, and after one that found none.
REBALANCE_SECONDS = 1.0
REBALANCE_IDLE_SECONDS = 15.0
#: An order to move small replicas takes about so long.
MOVE_SECONDS = 0.1
#: Rows of the trash reclaimed in one transaction.
RECLAIM_ROWS = 1000
RECLAIM_REST_SECONDS = 0.5
#: After room was made of the trash the disks are looked at again when the replicas are
#: deleted and their servers have reported it, at last after this.
ROOM_SECONDS = 60.0
ROOM_REST_HEARTBEATS = 2.5
#: When nothing in the trash was enough, it is looked at again after this.
ROOM_FRUITLESS_SECONDS = 15.0
#: While chunks are endangered: which of them only deleted files have.
MARK_SECONDS = 60.0
#: Below this much free space, what makes the metadata grow is refused.
METADATA_RESERVE_BYTES = 32 * MIB
SPACE_SECONDS = 2.0
#: How often ``dead_seconds`` a restarted master waits for a server that is there
#: and does not come to the end of its registration.
REGISTRATION_PERIODS_MAX = 4
#: A tick that comes this much late means that the master did not run.
LATE_SECONDS = 2.0


class Upkeep:
    def __init__(
        self, master: Master, directory: str, nursery: trio.Nursery, grants: Grants
    ) -> None:
        self._master = master
        self._grants = grants
        self._directory = directory
        self._nursery = nursery
        self._started = master.now
        self._verifying: dict[int, int] = {}
        #: Indexes of the servers that are deleting replicas.
        self._collecting: set[int] = set()
        self._revoking: set[int] = set()
        #: Elections that run; when each chunk may have its next one.
        self._choosing = 0
        self._elect_after: dict[int, float] = {}
        self._mark_after = float("-inf")
        self._room_after = float("-inf")
        #: Chunks that were given up to make room, and until when they are waited for.
        self._leaving: list[int] = []
        self._leaving_until = float("-inf")
        self._counting = False

    def start(self) -> None:
        for loop in (self._tick_forever, self._reclaim_forever, self.watch_space):
            self._nursery.start_soon(loop)
        self.start_pass(self._master.trash.load())
        if not self._master.servers.awaited:
            self._leave_safe_mode()

    def start_pass(self, slices: Iterator[None]) -> None:
        self._nursery.start_soon(self._run_pass, slices, 0.0)

    async def _run_pass(self, slices: Iterator[None], rest_seconds: float) -> None:
        done = object()
        while guarded(partial(next, slices, done), done) is not done:
            if rest_seconds:
                await self._master.clock.sleep(rest_seconds)
            else:
                await trio.lowlevel.checkpoint()
        self._act()

    # --- the tick ----------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        master = self._master
        interval = min(0.5, master.settings.heartbeat_seconds / 2)
        before = master.now
        while True:
            await master.clock.sleep(interval)
            now = master.now
            late = now - before - interval
            if late > LATE_SECONDS:
                log.warning(
                    "the master did not run for %.1f s: its machine was suspended or overloaded",
                    late,
                )
                master.servers.forgive(late)
                master.reservations.forgive(late)
            guarded(partial(self._tick, now, now - before), None)
            before = now

    def _tick(self, now: float, passed: float) -> None:
        master = self._master
        for server in master.servers.tick(now, master.uptime.now_ns()):
            log.warning(
                "chunkserver %s (%s) is dead",
                server.id,
                server.address,
                extra=event("chunkserver_dead", server=server.id),
            )
            if server.rpc is not None:
                server.rpc.close()
            self.start_pass(
                itertools.chain(
                    master.registration.server_died(server), master.goals.mark_trashed()
                )
            )
        master.servers.decay(passed)
        for handle in master.reservations.expired(now, master.settings.client_silence_seconds):
            if handle not in master.reservations.publishing:
                master.collector.give_up_reservation(handle, at_once=False)
        master.leases.expire(now)
        master.garbage.expire(now)
        master.replica_map.suspects.expire(now)
        for server in master.servers.forgettable(now, master.locations.counts):
            if master.reservations.at(server.index):
                continue  # an upload goes on that once had a replica there
            master.garbage.forget_server(server.index)
            master.servers.forget(server)
            master.committer.submit("", 0, partial(forget, server_id=server.id), lambda _: None)
        if now - self._started >= REGISTRATION_PERIODS_MAX * master.settings.dead_seconds:
            master.servers.awaited.clear()  # connected, but never done with registering
        if master.replica_map.in_safe_mode and not master.servers.awaited:
            self._leave_safe_mode()
        if master.repair.endangered and now >= self._mark_after:
            self._mark_after = now + MARK_SECONDS
            self.start_pass(master.goals.mark_trashed())
        self.start_counting()
        if master.servers.revived:
            master.goals.look_at_revived()
        if master.goals.to_evaluate:
            self.start_pass(master.goals.evaluate_changed())
        if master.rescan_wanted and not master.replica_map.in_safe_mode:
            master.rescan_wanted = False
            self.start_pass(master.goals.scan_all())
        for server in drained(master):
            plan = partial(plan_drain, server_id=server.id, draining=DRAINED)
            master.committer.submit("", 0, plan, lambda _: None)
        self._act()

    def start_counting(self) -> None:
        """Of what is below deleted directories."""
        if self._master.trash.waiting and not self._counting:
            self._counting = True
            self.start_pass(self._count_trash())

    def _count_trash(self) -> Iterator[None]:
        try:
            yield from self._master.trash.count()
        finally:
            self._counting = False

    def _leave_safe_mode(self) -> None:
        log.info("all known chunkservers have reported or are dead: the master leaves safe mode")
        self._master.replica_map.in_safe_mode = False
        self.start_pass(self._master.goals.scan_all())
        self._nursery.start_soon(self._rescan_forever)
        self._nursery.start_soon(self._rebalance_forever)

    async def _rescan_forever(self) -> None:
        while True:
            await self._master.clock.sleep(RESCAN_SECONDS)
            await self._run_pass(self._master.goals.scan_all(), RESCAN_REST_SECONDS)

    async def _rebalance_forever(self) -> None:
        master, rest = self._master, REBALANCE_SECONDS
        while True:
            await master.clock.sleep(rest)
            if guarded(master.balancer.may_move, False):
                master.balancer.balancing = await self._rebalance()
            else:
                master.balancer.balancing = master.balancer.balancing and self._is_moving()
            rest = REBALANCE_SECONDS if master.balancer.balancing else REBALANCE_IDLE_SECONDS

    async def _rebalance(self) -> bool:
        """Look at all chunks once, and move what would be better elsewhere; whether
        anything was."""
        master = self._master
        has_moved = False
        guarded(master.balancer.begin_balancing, None)
        handles = master.locations.handles()
        for start in range(0, len(handles), SLICE):
            todo = handles[start : start + SLICE]
            while len(todo) and guarded(master.balancer.may_move, False):
                planned = guarded(partial(master.balancer.plan_moves, todo), None)
                if planned is None:
                    break
                orders, todo = planned
                for order in orders:
                    has_moved = True
                    self._nursery.start_soon(self._copy, order)
                if todo:
                    await master.clock.sleep(MOVE_SECONDS)  # for slots
            await master.clock.sleep(RESCAN_REST_SECONDS)
        # What is on its way may have hidden that there is more to give.
        return has_moved or self._is_moving()

    def _is_moving(self) -> bool:
        return any(server.shifts for server in self._master.servers.all())

    def _copy_seconds(self) -> int:
        """For an order to copy: more if all that one server makes must share a limit."""
        limit = self._master.store.state.repair.bytes_per_second
        most = self._master.planner.limits.per_server * CHUNK_BYTES
        return CLONE_SECONDS + (most // limit if limit > 0 else 0)

    def _act(self) -> None:
        """Start whatever can be started now."""
        guarded(self._start_all, None)

    def _start_all(self) -> None:
        master = self._master
        master.collector.trim_surplus()
        # Copies take all slots that are left: what may save a chunk goes before them, and
        # what did not once goes after them.
        for order in (
            *[[clone] for clone in master.planner.plan_salvages(repeated=False)],
            *master.planner.plan_clones(),
            *[[clone] for clone in master.planner.plan_salvages(repeated=True)],
        ):
            self._nursery.start_soon(self._copy, order)
        for handle in list(master.leases.to_revoke):
            if handle not in self._revoking:
                self._revoking.add(handle)
                self._nursery.start_soon(self._revoke, handle)
        self._start_verifying()
        self._start_elections()
        for server in master.collector.to_collect():
            if server.index not in self._collecting:
                self._collecting.add(server.index)
                self._nursery.start_soon(self._collect, server)

    # --- garbage -----------------------------------------------------------------------------

    async def _collect(self, server: Server) -> None:
        """Have one server delete what it is to delete, one order after another."""
        master = self._master
        try:
            while orders := master.collector.deletion_orders(server):
                order = DeleteReplicas(0, master.committer.sequence, orders)
                try:
                    if server.rpc is None:
                        raise ConnectionResetError("its connection ended")
                    await server.rpc.call(order, seconds=DELETE_SECONDS)
                except DeadlineExceeded as error:
                    log.warning(
                        "chunkserver %s did not answer an order to delete replicas: %s",
                        server.id,
                        error,
                    )
                    return  # it may yet: what it says of these is old news for a while
                except (GfsError, ConnectionError) as error:
                    log.warning("chunkserver %s did not delete replicas: %s", server.id, error)
                master.garbage.answered(server.index)
        finally:
            self._collecting.discard(server.index)

    # --- copies ------------------------------------------------------------------------------

    async def _copy(self, order: list[Clone]) -> None:
        """Have the copies of one order made."""
        rpc = order[0].target.rpc
        failed: dict[int, Exception] = {}
        try:
            if rpc is None:
                raise ConnectionResetError("its connection ended")
            if len(order) > 1:
                failed = await _copy_many(rpc, order, self._copy_seconds())
            else:
                await _copy_one(rpc, order[0], self._copy_seconds())
        except (GfsError, ConnectionError) as caught:
            failed = {clone.handle: caught for clone in order}
        for clone in order:
            error = failed.get(clone.handle)
            is_to_blame = isinstance(error, (CorruptReplica, StaleVersion, NotFound))
            if is_to_blame and not clone.salvage:
                self._suspect_source(clone, getattr(error, "server", ""))
        self._master.balancer.order_ended(order)
        self._master.planner.order_ended(order, failed)
        self._act()

    def _suspect_source(self, clone: Clone, server_id: str) -> None:
        """The copy failed because of what it was made from, unless a client writes to
        the chunk by now."""
        with self._master.store.read() as txn:
            row = chunk_row(txn, clone.handle)
        if row is None or row.version != clone.version:
            return
        for server in clone.sources:
            if not server_id or server.id == server_id:
                self._master.replica_map.suspect(server, clone.handle, blocks=True)

    async def _revoke(self, handle: int) -> None:
        """End a lease, so that its chunk can be copied. If the primary does not
        answer, the lease has to run out."""
        master = self._master
        try:
            lease = master.leases.current(handle, master.now)
            primary = None if lease is None else master.servers.get(lease.primary)
            if lease is None or primary is None or primary.rpc is None:
                return
            await primary.rpc.call(RevokeLease(id=0, handle=handle), seconds=REVOKE_SECONDS)
            now = master.leases.current(handle, master.now)
            if now is not None and now.version == lease.version:
                master.leases.drop(handle)
            log.info(
                "the lease of chunk %x is revoked",
                handle,
                extra=event("lease_revoked", chunk=f"{handle:x}", version=lease.version),
            )
        except (GfsError, ConnectionError) as error:
            log.info("the lease of chunk %x could not be revoked: %s", handle, error)
        finally:
            self._revoking.discard(handle)
            master.leases.to_revoke.pop(handle, None)
        clone = guarded(partial(master.planner.plan_released, handle), None)
        if clone is not None:
            self._nursery.start_soon(self._copy, [clone])

    # --- possibly stale replicas ---------------------------------------------------------------

    def _start_elections(self) -> None:
        """Of some chunks only possibly stale replicas are left, and no server is away that
        might have a better one."""
        master, now = self._master, self._master.now
        if not master.goals.possibly_stale:
            self._elect_after.clear()
            return
        if master.replica_map.in_safe_mode or master.goals.awaits_any():
            return
        for handle in master.goals.possibly_stale:
            if self._choosing >= ELECTIONS_TOTAL:
                return
            if now >= self._elect_after.get(handle, now) and master.goals.may_elect(handle):
                self._choosing += 1
                self._elect_after[handle] = math.inf  # until that ended
                self._nursery.start_soon(self._elect, handle)

    async def _elect(self, handle: int) -> None:
        master = self._master
        try:
            await self._elect_best(handle)
        except GfsError as error:
            log.info("no surviving replica of chunk %x is elected: %s", handle, error)
        finally:
            self._choosing -= 1
            self._elect_after[handle] = master.now + ELECTION_REST_SECONDS
        self._act()

    async def _elect_best(self, handle: int) -> None:
        master = self._master
        found: list[tuple[Server, VerifyReply]] = []
        asked = master.garbage.of_kind(handle, FORGETFUL)
        async with trio.open_nursery() as nursery:
            for index in asked:
                nursery.start_soon(self._look_at, master.servers.get(index), handle, found)
        chosen = election.best(found)
        if chosen is None or len(found) < len(asked) or not master.goals.may_elect(handle):
            return
        await self._grants.elect(handle, chosen)
        log.warning(
            "chunk %x: every surviving replica is possibly stale, as its machine lost power: the "
            "replica on chunkserver %s is elected; the last writes may be lost",
            handle,
            chosen.id,
            extra=event("replica_believed", server=chosen.id, chunk=f"{handle:x}"),
        )

    async def _look_at(
        self, server: Server, handle: int, found: list[tuple[Server, VerifyReply]]
    ) -> None:
        reply = await self._ask(server, handle, blocks=True)
        if reply is not None:
            found.append((server, reply))

    # --- verifying ---------------------------------------------------------------------------

    def _start_verifying(self) -> None:
        master = self._master
        for key, blocks in list(master.replica_map.suspects.to_verify.items()):
            if len(master.replica_map.suspects.verifying) >= VERIFIES_TOTAL:
                return
            server = master.servers.by_index[key[0]]
            if server is None or server.state != LIVE or server.rpc is None:
                del master.replica_map.suspects.to_verify[key]
                master.repair.unblock(key[1])
            elif self._verifying.get(server.index, 0) < VERIFIES_PER_SERVER:
                del master.replica_map.suspects.to_verify[key]
                master.replica_map.suspects.verifying.add(key)
                self._verifying[server.index] = self._verifying.get(server.index, 0) + 1
                self._nursery.start_soon(self._verify, server, key[1], blocks)

    async def _verify(self, server: Server, handle: int, blocks: bool) -> None:
        try:
            await self._ask(server, handle, blocks)
        finally:
            self._master.replica_map.suspects.verifying.discard((server.index, handle))
            self._verifying[server.index] -= 1
        self._act()

    async def _ask(self, server: Server, handle: int, blocks: bool) -> VerifyReply | None:
        """What a server says of its replica, which the master knows by then as well."""
        master = self._master
        try:
            if server.rpc is None:
                return None
            # Version 0: whatever is there. What it should be is compared here.
            request = VerifyChunk(id=0, handle=handle, version=0, blocks=blocks)
            # Not what it should hold when the answer comes: it may be appended to.
            length_min = master.replica_map.length_min(handle)
            reply, _ = await server.rpc.call(request, seconds=VERIFY_SECONDS)
            if isinstance(reply, VerifyReply):
                master.reports.verified(server, handle, reply, blocks, length_min)
                return reply
        except DiskFailed as error:
            log.warning("chunkserver %s cannot read chunk %x: %s", server.id, handle, error)
            master.goals.drop_location(server, handle)
        except (GfsError, ConnectionError) as error:
            log.info("chunkserver %s did not verify chunk %x: %s", server.id, handle, error)
            master.replica_map.suspects.unverified.add((server.index, handle))
        return None

    # --- the trash -----------------------------------------------------------------------------

    async def _reclaim_forever(self) -> None:
        """Give the rows of what was deleted up, a piece per transaction: a
        directory of a million files delays no other mutation (hadoop PR#3065)."""
        master = self._master
        while True:
            if master.committer.watermark.refusal() is not None:
                await master.clock.sleep(RECLAIM_REST_SECONDS)  # shadow masters are missing
                continue
            try:
                done = await master.committer.perform(
                    partial(_plan_reclaim, master.uptime, master.is_maintained)
                )
                if not isinstance(done[0], Reclaimed):
                    await self._make_room()
            except GfsError as error:
                log.warning("deleted files could not be reclaimed: %s", error)
                done = (None, Done(id=0))
            if not isinstance(done[0], Reclaimed):
                await master.clock.sleep(RECLAIM_REST_SECONDS)

    async def _make_room(self) -> None:
        """If a write would fail otherwise: see :mod:`gfs.master.replicas.trash_purge`."""
        master = self._master
        now, short = master.now, master.shortage()
        if short is None:
            return
        if self._is_leaving(now) or now < self._room_after:
            return
        short = short.without({i: master.garbage.leaving_bytes(i) for i in short.missing})
        if short.wanted <= 0:
            self._room_after = now + ROOM_REST_HEARTBEATS * master.settings.heartbeat_seconds
            return
        search = trash_purge.Search(
            master.store, master.locations.get, short, master.uptime.now_ns()
        )
        for _ in search.run():
            await trio.lowlevel.checkpoint()
        rows = search.chosen()
        if not rows:
            self._room_after = master.now + ROOM_FRUITLESS_SECONDS
        for start in range(0, len(rows), ROWS_MAX):
            part = rows[start : start + ROWS_MAX]
            wanted = [(row.due_ns, row.inode) for row in part]
            plan = partial(plan_empty_early, time_ns=master.clock.time_ns(), wanted=wanted)
            operation, _ = await master.committer.perform(plan)
            if isinstance(operation, TrashEmptied):
                self._purged(part, search.bytes, set(operation.rows))
        if rows:
            self._leaving, self._leaving_until = search.handles, master.now + ROOM_SECONDS

    def _purged(
        self, rows: list[trash_purge.Row], lengths: dict[int, int], gone: set[tuple[int, int]]
    ) -> None:
        needed = self._master.servers_needed
        why = f"fewer than {needed} chunkservers have room for new chunks"
        for row in rows:
            if row.is_gone or (row.due_ns, row.inode) not in gone:
                continue
            length = lengths[row.inode]
            self._master.trash.purged += 1
            self._master.trash.purged_bytes += length
            log.warning(
                "%s, deleted and %d bytes long, is purged from the trash early: %s",
                row.path,
                length,
                why,
                extra=event("trash_purged", path=row.path, bytes=length, why=why),
            )

    def _is_leaving(self, now: float) -> bool:
        """Whether replicas that were given up to make room are still on the disks, or in
        what their servers last reported of them."""
        master = self._master
        if now >= self._leaving_until:
            self._leaving.clear()
        with master.store.read() as txn:
            while self._leaving:
                handle = self._leaving[-1]
                if handle in master.garbage.replicas or chunk_row(txn, handle) is not None:
                    rest = ROOM_REST_HEARTBEATS * master.settings.heartbeat_seconds
                    self._room_after = now + rest
                    return True
                self._leaving.pop()
        return False

    # --- the disk ------------------------------------------------------------------------------

    async def watch_space(self) -> None:
        """Keep what is known of the metadata's disk current."""
        master = self._master
        while True:
            low = False
            try:
                space = await master.world.run_blocking(master.world.files.space, self._directory)
                low = space.free_bytes < METADATA_RESERVE_BYTES
                master.metadata_disk = space
            except OSError as error:
                log.debug("the free space of %s cannot be read: %s", self._directory, error)
            if low != master.disk_low:
                master.disk_low = low
                log.warning("the metadata's disk is %s", "nearly full" if low else "fine again")
            await master.clock.sleep(SPACE_SECONDS)


async def _copy_one(rpc: Rpc, clone: Clone, seconds: int) -> None:
    order = CloneChunk(
        id=0,
        handle=clone.handle,
        version=clone.version,
        # It knows itself what it has.
        sources=[s.address for s in clone.sources if s is not clone.target],
        salvage=clone.salvage,
        length=clone.length if clone.salvage else 0,
        seconds=seconds,
    )
    await rpc.call(order, seconds=seconds)


async def _copy_many(rpc: Rpc, order: list[Clone], seconds: int) -> dict[int, Exception]:
    """Returns what failed, by handle."""
    names = [ReplicaName(clone.handle, clone.version) for clone in order]
    request = CloneChunks(0, order[0].sources[0].address, names, seconds)
    reply, _ = await rpc.call(request, seconds=seconds)
    if not isinstance(reply, CloneChunksReply):
        raise ProtocolError(f"{type(reply).__name__} as the answer to an order to copy")
    return {each.handle: from_wire(each.code, each.message, each.server) for each in reply.failures}


def guarded(work: Callable[[], T], otherwise: T) -> T:
    """A bug in what the master does on its own is logged; it serves on."""
    try:
        return work()
    except ConnectionError:
        raise  # the world is gone: a simulated process was killed
    except Exception:
        log.exception("a background task of the master met a bug")
        return otherwise


def _plan_reclaim(lived: Uptime, counts_time: bool, txn: Txn) -> Planned:
    """The next of what may go by now; the trash is in this order. Or the time alone, if
    there is something in the trash or ``counts_time``."""
    due: list[tuple[int, int]] = []
    for key, _ in txn.scan(b"", txn.db.trash):
        counts_time = True
        due_ns, inode = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
        if due_ns > txn.lived_ns or len(due) >= RECLAIM_ROWS:
            break
        due.append((due_ns, inode))
    if not due:
        return lived.to_be_noted(txn) if counts_time else None, Done(id=0)
    return Reclaimed(*due[0], RECLAIM_ROWS, due[1:]), Done(id=0)

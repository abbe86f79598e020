"""What the master does on its own: each a loop that decides in
:mod:`gfs.master.core` and waits here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import trio

from gfs.blocks import MIB
from gfs.errors import CorruptReplica, DiskFailed, GfsError, NotFound, StaleVersion
from gfs.master.chunkservers import forget
from gfs.master.core import Master
from gfs.master.namespace import Planned
from gfs.master.operations import Reclaimed
from gfs.master.repair import Clone
from gfs.master.servers import LIVE, Server
from gfs.master.store import Txn
from gfs.protocol.messages import (
    CloneChunk,
    Done,
    RevokeLease,
    VerifyChunk,
    VerifyReply,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A copy of 64 MiB takes far less unless its servers serve clients meanwhile.
CLONE_SECONDS = 60.0
VERIFY_SECONDS = 60.0
VERIFIES_TOTAL = 32
VERIFIES_PER_SERVER = 2
REVOKE_SECONDS = 2.0
#: All chunks are looked at once in this time, for what was overlooked.
RESCAN_SECONDS = 600.0
#: The rescan rests this long between slices.
RESCAN_REST_SECONDS = 0.05
#: Rows of the trash reclaimed in one transaction.
RECLAIM_ROWS = 1000
RECLAIM_REST_SECONDS = 0.5
#: Below this much free space, what makes the metadata grow is refused.
METADATA_RESERVE_BYTES = 32 * MIB
SPACE_SECONDS = 2.0
#: How often ``dead_seconds`` a restarted master waits for a server that is there
#: and does not come to the end of its registration.
REGISTRATION_PERIODS_MAX = 4
#: A tick that comes this much late means that the master did not run.
LATE_SECONDS = 2.0


class Upkeep:
    def __init__(self, master: Master, directory: str, nursery: trio.Nursery) -> None:
        self._master = master
        self._directory = directory
        self._nursery = nursery
        self._started = master.now
        self._verifying: dict[int, int] = {}
        self._revoking: set[int] = set()

    def start(self) -> None:
        for loop in (self._tick_forever, self._reclaim_forever, self._watch_space):
            self._nursery.start_soon(loop)
        if not self._master.servers.awaited:
            self._settle()

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
                log.warning("the master did not run for %.1f s", late)
                master.servers.forgive(late)
                master.reservations.forgive(late)
            guarded(partial(self._tick, now, now - before), None)
            before = now

    def _tick(self, now: float, passed: float) -> None:
        master = self._master
        for server in master.servers.tick(now):
            log.warning("chunkserver %s (%s) is dead", server.id, server.address)
            if server.rpc is not None:
                server.rpc.close()
            self.start_pass(master.server_died(server))
        master.servers.decay(passed)
        for handle in master.reservations.expired(now, master.settings.client_silence_seconds):
            if handle not in master.publishing:
                master.give_up_reservation(handle, at_once=False)
        master.leases.expire(now)
        master.garbage.expire(now)
        master.expire_verified(now)
        for server in master.servers.forgettable(now, master.locations.counts):
            master.servers.forget(server)
            master.committer.submit("", 0, partial(forget, server_id=server.id), lambda _: None)
        if now - self._started >= REGISTRATION_PERIODS_MAX * master.settings.dead_seconds:
            master.servers.awaited.clear()  # connected, but never done with registering
        if not master.settled and not master.servers.awaited:
            self._settle()
        self._act()

    def _settle(self) -> None:
        log.info("all known chunkservers have reported or are dead: the master is settled")
        self._master.settled = True
        self.start_pass(self._master.scan_all())
        self._nursery.start_soon(self._rescan_forever)

    async def _rescan_forever(self) -> None:
        while True:
            await self._master.clock.sleep(RESCAN_SECONDS)
            await self._run_pass(self._master.scan_all(), RESCAN_REST_SECONDS)

    def _act(self) -> None:
        """Start whatever can be started now."""
        guarded(self._start_all, None)

    def _start_all(self) -> None:
        master = self._master
        master.trim_surplus()
        for clone in master.plan_clones():
            self._nursery.start_soon(self._clone, clone)
        for handle in list(master.to_revoke):
            if handle not in self._revoking:
                self._revoking.add(handle)
                self._nursery.start_soon(self._revoke, handle)
        self._start_verifying()

    # --- copies ------------------------------------------------------------------------------

    async def _clone(self, clone: Clone) -> None:
        rpc = clone.target.rpc
        error: Exception | None = None
        try:
            if rpc is None:
                raise ConnectionResetError("its connection ended")
            order = CloneChunk(
                id=0,
                handle=clone.handle,
                version=clone.version,
                sources=[server.address for server in clone.sources],
            )
            await rpc.call(order, seconds=CLONE_SECONDS)
        except (GfsError, ConnectionError) as caught:
            error = caught
            if isinstance(caught, (CorruptReplica, StaleVersion, NotFound)):
                self._suspect_source(clone, getattr(caught, "server", ""))
        self._master.clone_ended(clone, error)
        self._act()

    def _suspect_source(self, clone: Clone, server_id: str) -> None:
        """The copy failed because of what it was made from."""
        for server in clone.sources:
            if not server_id or server.id == server_id:
                self._master.suspect(server, clone.handle, blocks=True)

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
        except (GfsError, ConnectionError) as error:
            log.info("the lease of chunk %x could not be revoked: %s", handle, error)
        finally:
            self._revoking.discard(handle)
            master.to_revoke.pop(handle, None)

    # --- verifying ---------------------------------------------------------------------------

    def _start_verifying(self) -> None:
        master = self._master
        for key, blocks in list(master.to_verify.items()):
            if len(master.verifying) >= VERIFIES_TOTAL:
                return
            server = master.servers.by_index[key[0]]
            if server is None or server.state != LIVE or server.rpc is None:
                del master.to_verify[key]
                master.repair.unblock(key[1])
            elif self._verifying.get(server.index, 0) < VERIFIES_PER_SERVER:
                del master.to_verify[key]
                master.verifying.add(key)
                self._verifying[server.index] = self._verifying.get(server.index, 0) + 1
                self._nursery.start_soon(self._verify, server, key[1], blocks)

    async def _verify(self, server: Server, handle: int, blocks: bool) -> None:
        master = self._master
        try:
            if server.rpc is None:
                return
            # Version 0: whatever is there. What it should be is compared here.
            request = VerifyChunk(id=0, handle=handle, version=0, blocks=blocks)
            reply, _ = await server.rpc.call(request, seconds=VERIFY_SECONDS)
            if isinstance(reply, VerifyReply):
                master.verified(server, handle, reply, blocks)
        except DiskFailed as error:
            log.warning("chunkserver %s cannot read chunk %x: %s", server.id, handle, error)
            master.drop_location(server, handle)
        except (GfsError, ConnectionError) as error:
            log.info("chunkserver %s did not verify chunk %x: %s", server.id, handle, error)
        finally:
            master.verifying.discard((server.index, handle))
            self._verifying[server.index] -= 1
        self._act()

    # --- the trash -----------------------------------------------------------------------------

    async def _reclaim_forever(self) -> None:
        """Give the rows of what was deleted up, a piece per transaction: a
        directory of a million files holds nobody up (hadoop PR#3065)."""
        master = self._master
        while True:
            try:
                done = await master.committer.perform(_plan_reclaim)
            except GfsError as error:
                log.warning("deleted files could not be reclaimed: %s", error)
                done = (None, Done(id=0))
            if done[0] is None:
                await master.clock.sleep(RECLAIM_REST_SECONDS)

    # --- the disk ------------------------------------------------------------------------------

    async def _watch_space(self) -> None:
        master = self._master
        while True:
            low = False
            try:
                space = await master.world.run_blocking(master.world.files.space, self._directory)
                low = space.free_bytes < METADATA_RESERVE_BYTES
            except OSError as error:
                log.debug("the space of %s is not known: %s", self._directory, error)
            if low != master.disk_low:
                master.disk_low = low
                log.warning("the metadata's disk is %s", "nearly full" if low else "fine again")
            await master.clock.sleep(SPACE_SECONDS)


def guarded(work: Callable[[], T], otherwise: T) -> T:
    """A bug in what the master does on its own is logged; it serves on."""
    try:
        return work()
    except ConnectionError:
        raise  # the world is gone: a simulated process was killed
    except Exception:
        log.exception("the master met a bug in its upkeep")
        return otherwise


def _plan_reclaim(txn: Txn) -> Planned:
    for key, _ in txn.scan(b"", txn.db.trash):
        deleted_ns, inode = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
        return Reclaimed(deleted_ns, inode, RECLAIM_ROWS), Done(id=0)
    return None, Done(id=0)

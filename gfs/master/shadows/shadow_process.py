"""A shadow master's process: fetch a copy if it needs one, follow, serve reads, and
become the master when an operator promotes it (the paper, 5.1.3).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial

import msgspec
import trio

from gfs.blocks import block_sum
from gfs.config import MasterSettings, split_addresses
from gfs.errors import Busy, DiskFailed, GfsError, ProtocolError, StartupError, innermost
from gfs.io import Listener, World
from gfs.master.election import Candidate, EngineAway
from gfs.master.leases import Grants
from gfs.master.metadata import Standing, Store, Txn, open_only, operation_log, terms
from gfs.master.metadata.operation_log import Diverged
from gfs.master.metadata.operations import TermBegun
from gfs.master.service import ChunkserverSession, ClientSession, families, send_failure
from gfs.master.shadows import store_copy
from gfs.master.shadows.log_receiver import Following, connect_master, log_failure
from gfs.master.shadows.promises import Promises
from gfs.master.shadows.promotion import Promotion
from gfs.master.shadows.read_only_master import ShadowAnswers, ShadowMaster
from gfs.master.upkeep import Passes, TrashCounts, guarded, watch_space
from gfs.metrics import Source
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.credentials import Credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import (
    Bind,
    CopyPiece,
    Message,
    Position,
    PositionReply,
    Promote,
    ReadCopy,
)
from gfs.protocol.rpc import Rpc, refuse_all
from gfs.protocol.server import serve

log = logging.getLogger(__name__)

RETRY_SECONDS_MIN = 0.5
RETRY_SECONDS_MAX = 5.0
PIECE_SECONDS = 20.0
#: Rows of a copy written in one transaction.
WRITE_BYTES = 8 * 1024 * 1024
TICK_SECONDS = 0.5
LEAVE_SECONDS = 0.2
#: Mutations wait until a new master is followed, and which one it is is known.
RECONNECT_SECONDS_ELECTED = 0.2
#: How long a promotion waits for the hold, which another process may have to give up first.
HOLD_SECONDS = 5.0
#: After a refusal it leaves the hold to others for so long, as shares of ``hold_seconds``.
REFUSED_SHARES = (0.2, 0.6)
INCOMING = "incoming"
#: The name of a former master's store that a copy has replaced.
KEPT_NAME = "data.mdb.before-term-{}"


class Shadow:
    """``started`` is called once it serves for the first time."""

    def __init__(
        self,
        world: World,
        settings: MasterSettings,
        directory: str,
        key: bytes | Credentials,
        store: Store,
        listener: Listener,
        metrics: Source,
        started: Callable[[], None],
        candidate: Candidate | None = None,
    ) -> None:
        self._world = world
        self._settings = settings
        self._directory = directory
        self._store = store
        self._listener = listener
        self._metrics = metrics
        self._started = started
        self._candidate = candidate
        self._address = listener.address
        self._identity = Identity("shadow", "shadow", key, store.cluster, store.state.term)
        self._peers: list[str] = list(store.standing.follows)
        self._promises = Promises(world, store, self._identity)

    async def run(self) -> None:
        """Run until promoted; the store then records that this is the master."""
        while True:
            if not self._store.cluster or self._store.standing.diverged:
                if self._candidate is not None:
                    await self._candidate.release()  # whom it is to copy may be waiting for it
                await self._fetch_until_done()
            try:
                await self._serve()
            except* Diverged as group:
                error = innermost(group)
                log.warning("%s: a copy of the master's metadata is fetched", error)
                standing = msgspec.structs.replace(self._store.standing, diverged=True)
                await self._world.run_blocking(self._store.take_standing, standing)
            else:
                return

    def _candidates(self) -> list[str]:
        """The addresses at which the master may be."""
        named = split_addresses(self._settings.shadow_of)
        promised_to = [promise.address for promise in self._promises.outstanding]
        claim = None if self._candidate is None else self._candidate.view.claim
        holder = [] if claim is None else [claim.address]
        found = dict.fromkeys([*named, *holder, *promised_to, *self._peers])
        found.pop(self._address, None)
        return list(found)

    def _peers_changed(self, peers: list[str]) -> None:
        """Store the addresses of the other shadow masters that the master has sent: one
        may be the next master."""
        known = list(dict.fromkeys([*peers, *self._peers]))[:32]
        if set(known) != set(self._peers):
            self._peers = known

    # --- serving ---------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Follow and answer. Returns when promoted; raises Diverged (in a group)."""
        shadow = ShadowMaster(self._world, self._settings, self._store)
        shadow.tables.process.certificate_until_ns = lambda: self._identity.certificate_until_ns
        if self._candidate is not None:
            shadow.tables.process.election = self._candidate.status
        self._metrics.collect = partial(
            families, shadow.tables, lambda: (shadow.behind_operations, shadow.behind_seconds)
        )
        following = Following(
            self._world,
            shadow,
            self._identity,
            self._promises,
            self._address,
            self._candidates,
            self._peers_changed,
            *([] if self._candidate is None else [RECONNECT_SECONDS_ELECTED]),
        )
        async with trio.open_nursery() as nursery:
            follow = trio.CancelScope()
            gone = trio.Event()

            diverged = False

            async def follow_on() -> None:
                nonlocal follow, gone, diverged
                follow, gone = trio.CancelScope(), trio.Event()
                try:
                    with follow:
                        await following.run()
                except Diverged:
                    diverged = True
                    raise
                finally:
                    gone.set()

            async def begin(term: int, before: str) -> None:
                # First: it was found to have everything, and what it acknowledged from now on
                # could make that untrue, for example who counts.
                follow.cancel()
                await gone.wait()
                if diverged:
                    raise Busy("this shadow master is about to fetch a copy of the metadata")
                try:
                    if self._candidate is not None:
                        await _wait_for_hold(self._candidate)
                    await self._begin_term(term, before)
                except GfsError:
                    nursery.start_soon(follow_on)
                    raise

            promotion = Promotion(
                self._world,
                shadow,
                following,
                self._promises,
                self._identity,
                self._address,
                self._candidates,
                begin,
                None if self._candidate is None else self._candidate.check,
            )
            passes = Passes(self._world.clock, nursery)
            nursery.start_soon(follow_on)
            if self._candidate is not None:
                nursery.start_soon(self._campaign, self._candidate, promotion)
            nursery.start_soon(self._promises.watch)
            nursery.start_soon(self._tick, shadow, passes)
            nursery.start_soon(watch_space, shadow.tables, self._directory)
            connection = partial(self._connection, shadow, promotion, passes)
            nursery.start_soon(
                serve,
                self._world,
                self._listener,
                self._identity,
                connection,
                shadow.tables.process.connections,
            )
            log.info("shadow master of cluster %s at %s", self._store.cluster, self._address)
            self._started()
            await promotion.done.wait()
            if not promotion.elected:
                await self._world.clock.sleep(LEAVE_SECONDS)  # so that the answer is sent
            nursery.cancel_scope.cancel()

    async def _tick(self, shadow: ShadowMaster, passes: Passes) -> None:
        tables = shadow.tables
        counts = TrashCounts(tables.trash, passes)
        counts.load()
        while True:
            await self._world.clock.sleep(TICK_SECONDS)
            counts.start()
            for server in tables.servers.tick(tables.now, tables.committer.uptime.now_ns()):
                if server.rpc is not None:
                    server.rpc.close()
                died = partial(tables.membership.server_died, server)
                passes.start(guarded(died, iter(())))
            guarded(shadow.forget_servers, None)

    async def _connection(
        self,
        shadow: ShadowMaster,
        promotion: Promotion,
        passes: Passes,
        connection: BulkConnection,
    ) -> None:
        async with trio.open_nursery() as nursery:
            if connection.peer_role == "chunkserver":
                session = ChunkserverSession(
                    shadow.tables, passes.start, shadow.reports, lambda: shadow.heartbeat_ms
                )
                rpc = Rpc(connection, session.handle)
                try:
                    await rpc.run()
                finally:
                    session.ended(rpc)
            elif connection.peer_role == "client":
                answers = ShadowAnswers(shadow, promotion.promote, nursery)
                reader = ClientSession(
                    shadow.tables,
                    Grants(shadow.tables),
                    nursery,
                    connection.peer_id,
                    answers=answers.by_type,
                    refusal=lambda message: shadow.refusal(),
                )
                await Rpc(connection, reader.handle).run()
            elif connection.peer_role == "shadow":
                answer = partial(self._answer_shadow, promotion, nursery)
                await Rpc(connection, answer).run()
            nursery.cancel_scope.cancel()

    def _answer_shadow(
        self,
        promotion: Promotion,
        nursery: trio.Nursery,
        rpc: Rpc,
        batch: list[tuple[Message, bytes]],
    ) -> None:
        for message, _ in batch:
            if isinstance(message, Position):
                reply = promotion.position()
                reply.id = message.id
                rpc.send(reply)
            elif isinstance(message, Bind):
                nursery.start_soon(self._bind, promotion, rpc, message)
            else:
                rpc.send_error(message.id, ProtocolError("this is a shadow master as well"))

    async def _bind(self, promotion: Promotion, rpc: Rpc, message: Bind) -> None:
        try:
            reply = await promotion.bind(message)
        except DiskFailed:
            raise
        except Exception as error:
            send_failure(rpc, message.id, error)
        else:
            reply.id = message.id
            rpc.send(reply)

    # --- elected -------------------------------------------------------------------------------

    async def _campaign(self, candidate: Candidate, promotion: Promotion) -> None:
        """Try to become the master whenever this process has the hold."""
        while not promotion.done.is_set():
            await candidate.acquire()
            if promotion.is_running:
                await self._world.clock.sleep(TICK_SECONDS / 10)  # it wants the hold itself
                continue
            try:
                await self._check_cluster(candidate)
                await promotion.promote(Promote(id=0, force=False), elected=True)
            except GfsError as error:
                if isinstance(error, DiskFailed | StartupError):
                    raise
                log.warning("this shadow master has the hold, and is not promoted: %s", error)
                await candidate.release()
                await self._world.clock.sleep(
                    self._world.random.uniform(*REFUSED_SHARES) * self._settings.hold_seconds
                )

    async def _check_cluster(self, candidate: Candidate) -> None:
        """Raises StartupError if the engine elects the masters of another cluster."""
        try:
            recorded = await candidate.record(self._store.cluster)
        except EngineAway as error:
            raise Busy(f"{candidate.engine_name} does not answer: {error}") from None
        if recorded != self._store.cluster:
            await candidate.release()
            raise StartupError(
                f"{candidate.engine_name} elects the masters of cluster {recorded}, and this "
                f"directory has the metadata of cluster {self._store.cluster}: give this cluster "
                "another NAME (--elect), or this master an empty state directory"
            )

    # --- the beginning of a term ----------------------------------------------------------------

    async def _begin_term(self, term: int, before: str) -> None:
        """Begin the term, durably: from now on this store is a master's. Raises Busy if
        a higher term was promised or followed meanwhile."""
        async with self._promises.lock:
            if term <= max(self._store.state.term, self._promises.highest):
                raise Busy("another shadow master is being promoted, or was: try again")
            operation = TermBegun(self._world.clock.time_ns(), term, self._address, before)
            standing = Standing(peers=self._candidates()[:16])
            await self._world.run_blocking(begin_term, self._store, operation, standing)

    # --- copies --------------------------------------------------------------------------------

    async def _fetch_until_done(self) -> None:
        """Fetch a copy; until it is there, requests are answered with Busy."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._promises.watch)
            nursery.start_soon(
                serve, self._world, self._listener, self._identity, self._refuse_for_now
            )
            pause = RETRY_SECONDS_MIN
            while not await self._fetch_from_any():
                await self._world.clock.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS_MAX)
            nursery.cancel_scope.cancel()

    async def _refuse_for_now(self, connection: BulkConnection) -> None:
        def refuse(rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
            for message, _ in batch:
                if isinstance(message, Position):
                    rpc.send(PositionReply(message.id, "copying", self._identity.term, 0, 0))
                    continue
                error = Busy("this shadow master fetches a copy of the metadata: try again")
                send_failure(rpc, message.id, error)

        await Rpc(connection, refuse).run()

    async def _fetch_from_any(self) -> bool:
        for address in self._candidates():
            try:
                promised = self._promises.highest
                rpc = await connect_master(
                    self._world, address, self._identity, promised, refuse_all
                )
            except (ConnectionError, GfsError) as error:
                log_failure(address, error)
                continue
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(rpc.run)
                    async with self._promises.lock:  # the promises are kept
                        done = await self._fetch(rpc, address)
                    rpc.close()
                    nursery.cancel_scope.cancel()
            finally:
                rpc.close()
            if done:
                return True
        return False

    async def _fetch(self, rpc: Rpc, address: str) -> bool:
        """Fetch a copy and replace the present store by it."""
        incoming = os.path.join(self._directory, INCOMING)
        started = self._world.clock.monotonic()
        copy: Store | None = None
        try:
            await self._world.run_blocking(shutil.rmtree, incoming, True)
            copy = await self._world.run_blocking(
                open_only, incoming, self._settings.map_bytes, False
            )
            ending = await self._receive(rpc, copy)
            await self._world.run_blocking(
                store_copy.finish, copy, ending.sums, ending.cluster, ending.state
            )
            # Never empty, whatever is known by now: it is a shadow master after a restart, too.
            follows = list(dict.fromkeys([address, *self._candidates()]))
            standing = Standing(follows=follows, promises=self._store.standing.promises)
            await self._world.run_blocking(copy.set_standing, standing)
            await self._world.run_blocking(copy.sync)
        except (ConnectionError, GfsError, ValueError, msgspec.DecodeError) as error:
            log.warning("a copy of the metadata from %s to %s failed: %s", address, incoming, error)
            # Its room may be all that is missing to the present store, or to others.
            await self._world.run_blocking(shutil.rmtree, incoming, True)
            return False
        finally:
            if copy is not None:
                copy.close()
        keep = KEPT_NAME.format(terms.count(self._identity.term))
        await self._world.run_blocking(
            self._store.swap_in, incoming, keep if self._store.standing.keep else ""
        )
        self._identity.cluster = self._store.cluster
        seconds = self._world.clock.monotonic() - started
        log.info(
            "copied the metadata of %s up to operation %d in %.1f s",
            address,
            self._store.state.sequence,
            seconds,
        )
        return True

    async def _receive(self, rpc: Rpc, copy: Store) -> CopyPiece:
        number = held = 0
        database = ""
        bodies: list[bytes] = []
        while True:
            piece, body = await rpc.call(ReadCopy(id=0, number=number), seconds=PIECE_SECONDS)
            if not isinstance(piece, CopyPiece):
                raise ProtocolError(f"{type(piece).__name__} as a piece of a copy")
            if bodies and (piece.last or piece.database != database or held >= WRITE_BYTES):
                await self._world.run_blocking(store_copy.write, copy, database, bodies)
                bodies, held = [], 0
            if piece.last:
                return piece
            if block_sum(body) != piece.sums:
                raise ValueError(f"piece {number} was damaged in transit")
            database = piece.database
            bodies.append(body)
            held += len(body)
            number += 1


async def _wait_for_hold(candidate: Candidate) -> None:
    """Raises Busy if it does not come."""
    with trio.move_on_after(HOLD_SECONDS):
        await candidate.acquire(soon=True)
    if not candidate.holds:
        claim = candidate.view.claim
        whose = f"{claim.address} has it" if claim else candidate.status().reason
        raise Busy(
            f"this shadow master did not get the hold of {candidate.engine_name} within "
            f"{HOLD_SECONDS:g} s: {whose or 'nobody has it'}"
        )


def begin_term(store: Store, operation: TermBegun, standing: Standing) -> None:
    """Record, in one commit, that the term begins and that the store is a master's."""

    def work(txn: Txn) -> None:
        operation_log.carry_out(txn, operation.time_ns, "", 0, operation, operation_log.chain(txn))
        store.put_standing(txn, standing)

    store.commit(work)
    store.standing = standing

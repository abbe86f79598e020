"""Following a master: a shadow master's side of the operation log.

The master sends the rows of its log as it commits them. All rows that have arrived are
applied in one commit, with :func:`gfs.master.metadata.operation_log.replay`, and
acknowledged when that is on the disk. The chain of checksums shows that the master's
log continues ours; the counters, which are sent with the newest row, show that the rows
had the same effect. Otherwise Diverged is raised and nothing of the batch is kept: then
a copy is fetched before this shadow master serves again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import msgspec
import trio

from gfs.errors import (
    Busy,
    DiskFailed,
    DiskFull,
    GfsError,
    ProtocolError,
    StaleVersion,
    TlsRefused,
    WrongCluster,
    WrongClusterKey,
)
from gfs.io import World
from gfs.master.metadata import (
    TRIM_MIN,
    TRIM_PER_MUTATION,
    Effects,
    State,
    Txn,
    operation_log,
    trim,
)
from gfs.master.metadata.operation_log import Diverged
from gfs.master.shadows.promises import Promises
from gfs.master.shadows.read_only_master import ShadowMaster
from gfs.protocol import handshake
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    Bind,
    Follow,
    FollowReply,
    LogAck,
    LogRows,
    Message,
    PositionReply,
    Retire,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

RECONNECT_SECONDS_MIN = 0.1
RECONNECT_SECONDS_MAX = 1.0
#: A master that sends nothing for so long is taken to be gone; it sends a message each second.
SILENT_SECONDS = 5.0
RETIRE_SECONDS = 15.0

Rows = list[tuple[bytes, bytes]]
_body = msgspec.msgpack.Decoder(tuple[Rows, list[tuple[int, list[str]]]])


class Following:
    """Lets ``shadow`` follow the present master while ``run`` runs.

    ``peers_changed`` is called with the addresses of the other shadow masters when they change.
    """

    def __init__(
        self,
        world: World,
        shadow: ShadowMaster,
        identity: handshake.Identity,
        promises: Promises,
        address: str,
        candidates: Callable[[], list[str]],
        peers_changed: Callable[[list[str]], None],
        pause_max: float = RECONNECT_SECONDS_MAX,
    ) -> None:
        self._world = world
        self._shadow = shadow
        self._store = shadow.tables.store
        self._identity = identity
        self._address = address
        self._candidates = candidates
        self._peers_changed = peers_changed
        self._pause_max = pause_max
        self._promises = promises
        self._pending: list[tuple[LogRows, bytes]] = []
        self._wake = trio.Event()
        self._heard = 0.0
        #: The connection to the master, while this shadow follows it.
        self.rpc: Rpc | None = None
        #: When the last message of the master arrived.
        self.heard_at: float | None = None

    async def run(self) -> None:
        """Follow until cancelled. Raises Diverged when a copy is needed, and DiskFailed."""
        pause, turn = RECONNECT_SECONDS_MIN, handshake.TURN_SECONDS_MIN
        while True:
            for address in self._candidates():
                started = self._world.clock.monotonic()
                try:
                    await self._session(address, turn)
                except DiskFailed:
                    raise
                except (ConnectionError, GfsError) as error:
                    log_failure(address, error)
                finally:
                    self.rpc = None
                if self._world.clock.monotonic() - started > SILENT_SECONDS:
                    pause, turn = RECONNECT_SECONDS_MIN, handshake.TURN_SECONDS_MIN
            await self._world.clock.sleep(pause)
            pause = min(2 * pause, self._pause_max)
            turn = min(2 * turn, handshake.TURN_SECONDS_MAX)

    async def _session(self, address: str, turn: float) -> None:
        promised = self._promises.highest
        with deadline(turn, f"answer from {address}"):
            rpc = await connect_master(self._world, address, self._identity, promised, self._take)
        self._pending = []
        self._heard = self._world.clock.monotonic()
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:

            async def move() -> None:
                await rpc.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(move)
            try:
                await self._follow(rpc, address)
            except (ConnectionError, GfsError, Diverged) as error:
                failure = error
            rpc.close()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _follow(self, rpc: Rpc, address: str) -> None:
        shadow, store = self._shadow, self._store
        with store.snapshot() as txn:
            sequence, chain, term = txn.state.sequence, operation_log.chain(txn), txn.state.term
        request = Follow(id=0, address=self._address, term=term, sequence=sequence, chain=chain)
        reply, _ = await rpc.call(request)
        if not isinstance(reply, FollowReply):
            raise ProtocolError(f"{type(reply).__name__} as the answer to Follow")
        if reply.copy:
            if reply.term == term and reply.sequence < sequence:
                raise StaleVersion(
                    f"its metadata ends at operation {reply.sequence}, this shadow's at "
                    f"{sequence}: was old metadata restored? Promote this shadow, or empty its "
                    "directory"
                )
            raise Diverged(
                f"the operation log of the master at {address} differs from this shadow's"
            )
        self._promises.check(rpc)
        shadow.master_address = address
        shadow.tables.committer.closed = shadow.refusal()
        shadow.heartbeat_ms = reply.chunkservers_ms
        shadow.known_sequence = reply.sequence
        self.rpc = rpc
        log.info("following the master at %s from operation %d", address, sequence)
        await self._apply_batches(rpc)

    def _take(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        for message, body in batch:
            if not isinstance(message, LogRows):
                rpc.send_error(message.id, ProtocolError("a shadow master accepts log rows only"))
                continue
            self._heard = self.heard_at = self._world.clock.monotonic()
            self._shadow.known_sequence = message.sequence
            self._pending.append((message, body))
            self._wake.set()

    async def _apply_batches(self, rpc: Rpc) -> None:
        clock = self._world.clock
        while not rpc.closed:
            with trio.move_on_after(SILENT_SECONDS):
                await self._wake.wait()
            if clock.monotonic() - self._heard > SILENT_SECONDS:
                raise ConnectionResetError("it sends nothing")
            if self._identity.term > rpc.peer_term:
                raise ConnectionResetError("another master took over from it")
            self._wake = trio.Event()
            batch, self._pending = self._pending, []
            if batch:
                await self._apply(rpc, batch)

    async def _apply(self, rpc: Rpc, batch: list[tuple[LogRows, bytes]]) -> None:
        try:
            decoded = [(message, *_body.decode(body)) for message, body in batch]
        except msgspec.DecodeError as error:
            raise ProtocolError(f"rows that cannot be decoded: {error}") from None
        rows = [(message, of_message) for message, of_message, _ in decoded]
        try:
            effects = await self._world.run_blocking(
                self._store.commit, partial(self._replay, rows), limiter=self._promises.limiter
            )
        except DiskFull as error:
            await self._world.clock.sleep(RECONNECT_SECONDS_MAX)
            raise ConnectionResetError(str(error)) from error
        self._shadow.applied(effects)
        last = decoded[-1][0]
        for _, _, locations in decoded:
            self._shadow.relocated(locations)
        self._shadow.master_totals = last.totals
        if self._store.state.sequence >= last.sequence:
            self._shadow.level_at = self._world.clock.monotonic()
        self._shadow.tables.committer.sequence = self._store.state.sequence
        self._peers_changed(last.peers)
        self._promises.check(rpc)
        for message, _ in batch:
            until_ns = self._identity.certificate_until_ns
            rpc.send(LogAck(message.id, self._store.state.sequence, until_ns))

    def _replay(self, batch: list[tuple[LogRows, Rows]], txn: Txn) -> Effects:
        """Apply the rows, in the worker thread. Raises Diverged; then nothing is kept."""
        chain = operation_log.chain(txn)
        count = 0
        for message, rows in batch:
            if rows and message.first != txn.state.sequence + 1:
                raise Diverged(f"row {message.first} after {txn.state.sequence}")
            for row, answer in rows:
                chain = operation_log.replay(txn, row, answer, chain)
            count += len(rows)
            if message.state:
                check_counters(txn.state, message.state)
        if count:
            oldest_ns = txn.lived_ns - int(self._shadow.tables.settings.answers_seconds * 1e9)
            trim(txn, oldest_ns, TRIM_MIN + TRIM_PER_MUTATION * count)
        return txn.effects

    # --- promotion ---------------------------------------------------------------------------

    async def bind(self, request: Bind) -> PositionReply:
        """Carry out Bind. Raises Busy, StaleVersion or DiskFull."""
        rpc = self.rpc
        if rpc is None:
            return await self._promises.make(request)
        if not request.leave:
            raise Busy(f"it follows the master at {self._shadow.master_address}, which is alive")
        # From here on nothing is acknowledged to it, also rows that are being applied.
        rpc.close()
        return await self._promises.make(request)

    def position(self) -> PositionReply:
        reply = self._promises.position(self._promises.outstanding)
        reply.follows = self._shadow.master_address if self.rpc is not None else ""
        return reply

    async def hand_over(self, term: int) -> None:
        """Have the master hand over, and apply all its operations. Raises the error
        that prevents this."""
        rpc = self.rpc
        if rpc is None:
            raise ConnectionResetError("the master cannot be reached")
        request = Retire(id=0, term=term, address=self._address)
        reply, _ = await rpc.call(request, seconds=RETIRE_SECONDS)
        if not isinstance(reply, PositionReply):
            raise ProtocolError(f"{type(reply).__name__} as the answer to Retire")
        with self._store.snapshot() as txn:
            ours = (txn.state.sequence, operation_log.chain(txn))
        if ours != (reply.sequence, reply.chain):
            raise StaleVersion(
                "the master handed over, but this shadow master lacks some of its operations"
            )


def check_counters(ours: State, theirs: bytes) -> None:
    """Raises Diverged if the counters differ, except for the range of handles, which is
    each store's own."""
    counted = msgspec.structs.replace(ours, handle_end=0)
    expected = msgspec.structs.replace(msgspec.msgpack.decode(theirs, type=State), handle_end=0)
    if counted != expected:
        raise Diverged(f"the counters differ: {counted} here, {expected} at the master")


def log_failure(address: str, error: Exception) -> None:
    """Log that a master cannot be followed now; as a warning if waiting does not help."""
    hopeless = isinstance(error, TlsRefused | WrongCluster | WrongClusterKey)
    log.log(logging.ERROR if hopeless else logging.INFO, "master %s: %s", address, error)


async def connect_master(
    world: World,
    address: str,
    identity: handshake.Identity,
    promised: int,
    handler: Callable[[Rpc, list[tuple[Message, bytes]]], None],
) -> Rpc:
    """Connect to a master whose term is not over, as far as is known, and not below the
    ``promised`` one.

    Raises ConnectionError or GfsError.
    """
    connection = await handshake.connect(world, address, identity)
    if connection.peer_role != "master":
        connection.close()
        raise ConnectionResetError(f"{address} is a {connection.peer_role}")
    if connection.peer_term < identity.term:
        connection.close()
        raise ConnectionResetError(f"{address} is a master whose term is over")
    if connection.peer_term < promised:
        connection.close()
        raise ConnectionResetError(f"another shadow master may have taken over from {address}")
    return Rpc(connection, handler)

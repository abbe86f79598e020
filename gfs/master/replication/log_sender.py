"""The shadow masters of this master: what they are sent, and what they have.

Each follower has a task that sends it what was committed, as soon as it is, in
batches of whatever gathered meanwhile: rows of the operation log with their
answers, and what changed about locations. It reads them from the store, so a
shadow that was away is served in the same way as one that is level, and nothing
is queued for anybody. Of what is sent and not acknowledged there are
``IN_FLIGHT_MAX`` batches of about ``BATCH_BYTES`` at most.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import trio

from gfs.config import split_addresses
from gfs.diagnostics import event
from gfs.errors import Busy, GfsError, InvalidArgument, NotFound, ProtocolError
from gfs.master.master import Master
from gfs.master.metadata import operation_log
from gfs.master.metadata.committer import Outcome
from gfs.master.metadata.namespace import Planned
from gfs.master.metadata.operations import ShadowForgotten, ShadowsChanged, ShadowsChanging
from gfs.master.metadata.store import Counted, Promise, Standing, State, Txn
from gfs.master.replication import quorum
from gfs.master.replication.store_copy import Ending, Piece, pieces
from gfs.master.service.client_session import send_failure
from gfs.master.service.status import cluster_totals
from gfs.protocol.messages import (
    Bind,
    CopyPiece,
    Done,
    Follow,
    FollowReply,
    ForgetShadow,
    LogAck,
    LogRows,
    Message,
    Ping,
    Position,
    PositionReply,
    ReadCopy,
    Retire,
    ShadowStatus,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
IN_FLIGHT_MAX = 8
#: A shadow hears from its master at least this often.
BEAT_SECONDS = 1.0
#: A shadow that does not acknowledge within this is let go.
ACK_SECONDS = 10.0
SWEEP_SECONDS = 0.25
COPIES_MAX = 2
#: A copy whose next piece is not asked for in this time is given up.
COPY_SECONDS = 30.0
PEERS_MAX = 16
#: Changes of locations that wait for one shadow; beyond it, it learns of them from
#: the chunkservers' own reports.
LOCATIONS_MAX = 100_000
LOCATIONS_PER_BATCH = 5_000
RETIRE_SECONDS = 10.0
#: The log is kept for a shadow that went away for so long.
AWAY_SECONDS = 3600.0
ADDRESS_BYTES_MAX = 300

_encode = msgspec.msgpack.Encoder().encode


class Follower:
    def __init__(self, address: str, rpc: Rpc, sequence: int) -> None:
        self.address = address
        self.rpc = rpc
        #: Sent up to here, and known to be on its disk.
        self.sent = sequence
        self.acked = sequence
        #: Handles whose locations changed.
        self.changed: dict[int, None] = {}
        self.wake = trio.Event()
        self.in_flight = 0
        self.sent_at = -math.inf
        self.certificate_until_ns = 0


class Shadows:
    """``run`` must be running."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._watermark = master.committer.watermark
        self.followers: dict[str, Follower] = {}
        #: Address → (position, when it went away).
        self._away: dict[str, tuple[int, float]] = {}
        #: Address → when all it has was all there was.
        self._level_at: dict[str, float] = {}
        self._snapshots = trio.CapacityLimiter(COPIES_MAX)
        self._retiring = False
        #: Operations from before this master was started wait for no shadow.
        self._at_start = master.store.state.sequence
        #: An operation about who counts is on its way.
        self._changing = False
        #: The master has handed over; its term is ended.
        self.retired = trio.Event()
        master.committer.committed = self._committed
        master.committer.log_rows_max = master.settings.log_rows_max
        self._advance_watermark()

    # --- for the others ------------------------------------------------------------------

    @property
    def addresses(self) -> list[str]:
        """Of all shadows that are known, following now or not."""
        return self._master.store.standing.peers

    def absent(self, named: str) -> list[str]:
        """Of all that may think that they are the master, or follow another."""
        known = dict.fromkeys([*self.addresses, *split_addresses(named)])
        return [address for address in known if address not in self.followers]

    def status(self) -> list[ShadowStatus]:
        now, sequence = self._master.now, self._master.committer.sequence
        found = []
        for address in self.addresses:
            follower = self.followers.get(address)
            # This master may never have seen it follow: another did, or it was this one's.
            at = follower.acked if follower else self._away.get(address, (-1, 0.0))[0]
            level_at = self._level_at.get(address)
            behind_ms = -1 if level_at is None else int((now - level_at) * 1000)
            state = "away"
            if follower:
                state = "following" if self._counts(address) else "not counted"
            behind_ms = 0 if at >= sequence else behind_ms
            until_ns = follower.certificate_until_ns if follower else 0
            found.append(ShadowStatus(address, state, at, behind_ms, until_ns))
        return found

    async def run(self) -> None:
        """Let time pass."""
        while True:
            self._advance_watermark()
            self._see_who_counts()
            await self._master.clock.sleep(SWEEP_SECONDS)
            self._watermark.expire()
            now = self._master.now
            for address, (_, since) in list(self._away.items()):
                if now - since > AWAY_SECONDS:
                    del self._away[address]
            self._keep_log()

    # --- followers -----------------------------------------------------------------------

    def _committed(self) -> None:
        self._advance_watermark()
        for follower in self.followers.values():
            follower.wake.set()

    def _keep_log(self) -> None:
        positions = [follower.acked for follower in self.followers.values()]
        positions += [sequence for sequence, _ in self._away.values()]
        self._master.committer.needed_from = min(positions) + 1 if positions else None

    def _acked(self, follower: Follower, sequence: int) -> None:
        follower.acked = max(follower.acked, sequence)
        if follower.acked >= self._master.committer.sequence:
            self._level_at[follower.address] = self._master.now
        self._advance_watermark()
        self._see_who_counts()

    # --- who counts ------------------------------------------------------------------------

    @property
    def _on_disk(self) -> dict[str, int]:
        return {address: follower.acked for address, follower in self.followers.items()}

    def _counts(self, address: str) -> bool:
        in_force = quorum.in_force(self._master.store.state)
        return all(not each.wanted or address in each.addresses for each in in_force)

    def _advance_watermark(self) -> None:
        state = self._master.store.state
        sequence = quorum.acknowledged_up_to(state, self._on_disk)
        if quorum.in_force(state)[-1].wanted < self._master.settings.replicas_before_ack:
            sequence = min(sequence, self._at_start)  # the operation that says so comes first
        self._watermark.advance(sequence, self._refusal(state))

    def _refusal(self, state: State) -> str:
        """Why nothing can be changed; empty if it can."""
        wanted, in_force = self._master.settings.replicas_before_ack, quorum.in_force(state)
        if in_force[-1].wanted < wanted:
            in_force.append(Counted([], wanted))
        for counted in in_force:
            there = sum(each in self.followers for each in counted.addresses)
            if there < counted.wanted:
                away = [each for each in counted.addresses if each not in self.followers]
                lost = (
                    f". Away: {', '.join(away)}; one that is lost for good is not waited for "
                    "any more after gfs forget ADDRESS"
                )
                return (
                    f"nothing can be changed: {counted.wanted} shadow masters must follow this "
                    f"master (replicas_before_ack), {there} of those that count do: start what "
                    f"is missing (gfs master --shadow-of); see gfs status{lost * bool(away)}"
                )
        return ""

    def _see_who_counts(self) -> None:
        """Shadows that follow and do not count are to, once those that count agree."""
        if self._changing:
            return
        state = self._master.store.state
        if state.counted_next is not None:
            if quorum.is_agreed(state, self._on_disk):
                self._change(_plan_changed)
            return
        wanted = self._master.settings.replicas_before_ack
        proposed = quorum.proposed(state.counted, wanted, self.followers)
        if proposed != state.counted:
            self._change(partial(_plan_changing, to=proposed))

    def _change(self, plan: Callable[[Txn], Planned]) -> None:
        def done(outcome: Outcome) -> None:
            self._changing = False
            if not isinstance(outcome, GfsError):
                self._advance_watermark()
                self._see_who_counts()

        self._changing = True
        self._master.committer.submit("", 0, plan, done)

    async def forget(self, request: ForgetShadow) -> Done:
        """As the message says. Raises NotFound, or Busy if it follows."""
        master, address = self._master, request.address
        in_force = quorum.in_force(master.store.state)
        if address not in {*self.addresses, *[a for each in in_force for a in each.addresses]}:
            raise NotFound(f"there is no shadow master {address}: gfs status shows them")
        if address in self.followers:
            raise Busy(f"the shadow master {address} still follows this master: stop it first")
        # It cannot wait for shadow masters: they may be what is lost.
        plan = partial(_plan_forget, address=address)
        outcome = await master.committer.ask("", 0, plan)
        if isinstance(outcome, GfsError):
            raise outcome
        peers = [each for each in self.addresses if each != address]
        store_standing(master, msgspec.structs.replace(master.store.standing, peers=peers))
        self._away.pop(address, None)
        self._level_at.pop(address, None)
        self._advance_watermark()
        self._see_who_counts()
        log.warning("shadow master %s is removed from those that count", address)
        return Done(id=0)

    # --- sending ---------------------------------------------------------------------------

    async def follow(self, follower: Follower) -> None:
        """Send what is committed, for as long as the connection lasts."""
        master = self._master
        before = self.followers.get(follower.address)
        if before is not None:
            before.rpc.close()
        self.followers[follower.address] = follower
        master.locations.watchers.append(follower.changed)
        self._level_at.setdefault(follower.address, master.now)
        self._acked(follower, follower.acked)
        self._remember(follower.address)
        log.info(
            "shadow master %s follows, from operation %d on",
            follower.address,
            follower.acked,
            extra=event("shadow_up", address=follower.address, operation=follower.acked),
        )
        try:
            async with trio.open_nursery() as nursery:
                while not follower.rpc.closed:
                    await self._send_next(follower, nursery)
        finally:
            master.locations.watchers.remove(follower.changed)
            if self.followers.get(follower.address) is follower:
                del self.followers[follower.address]
                self._away[follower.address] = (follower.acked, master.now)
                log.warning(
                    "shadow master %s does not follow any more",
                    follower.address,
                    extra=event("shadow_away", address=follower.address),
                )
            self._advance_watermark()

    async def _send_next(self, follower: Follower, nursery: trio.Nursery) -> None:
        beat = follower.sent_at + BEAT_SECONDS
        while True:
            room = follower.in_flight < IN_FLIGHT_MAX
            news = follower.sent < self._master.store.state.sequence or follower.changed
            if room and (news or trio.current_time() >= beat):
                break
            follower.wake = trio.Event()
            with trio.move_on_at(beat if room else math.inf):
                await follower.wake.wait()
            if follower.rpc.closed:
                return
        follower.sent_at = trio.current_time()
        message, body = self._batch(follower)
        follower.in_flight += 1
        nursery.start_soon(self._deliver, follower, message, body)
        await trio.lowlevel.checkpoint()

    def _batch(self, follower: Follower) -> tuple[LogRows, bytes]:
        master = self._master
        with master.store.snapshot() as txn:
            first = follower.sent + 1
            rows = operation_log.read(txn, first, BATCH_BYTES)
            state = txn.state
        follower.sent += len(rows)
        if not rows and follower.sent < state.sequence:
            follower.rpc.close()  # trimmed away under it: it needs a copy
        body = _encode((rows, self._locations(follower)))
        message = LogRows(
            id=0,
            first=first,
            sequence=state.sequence,
            state=_encode(state) if follower.sent == state.sequence else b"",
            peers=[address for address in self.addresses if address != follower.address],
            totals=cluster_totals(master, 0),
        )
        return message, body

    def _locations(self, follower: Follower) -> list[tuple[int, list[str]]]:
        master, changed = self._master, follower.changed
        if len(changed) > LOCATIONS_MAX:
            changed.clear()
        taken: list[tuple[int, list[str]]] = []
        while changed and len(taken) < LOCATIONS_PER_BATCH:
            handle = next(iter(changed))
            del changed[handle]
            holders = master.locations.get(handle)
            taken.append((handle, [master.servers.get(index).id for index in holders]))
        return taken

    async def _deliver(self, follower: Follower, message: LogRows, body: bytes) -> None:
        try:
            reply, _ = await follower.rpc.call(message, body, seconds=ACK_SECONDS)
            if not isinstance(reply, LogAck):
                raise ProtocolError(f"{type(reply).__name__} as the answer to LogRows")
            follower.certificate_until_ns = reply.certificate_until_ns
            self._acked(follower, reply.sequence)
        except (GfsError, ConnectionError) as error:
            if not follower.rpc.closed:
                log.warning("shadow master %s: %s", follower.address, error)
            follower.rpc.close()
        finally:
            follower.in_flight -= 1
            follower.wake.set()

    def _remember(self, address: str) -> None:
        """Where it is, durably: a chunkserver, a client or this master, started again,
        looks there for a master of a higher term."""
        peers = self._master.store.standing.peers
        if address in peers:
            return
        standing = msgspec.structs.replace(
            self._master.store.standing, peers=[*peers, address][-PEERS_MAX:]
        )
        store_standing(self._master, standing)

    # --- handing over ------------------------------------------------------------------------

    async def retire(self, follower: Follower, request: Retire) -> PositionReply:
        """As the message says. Raises Busy, and goes on serving, if it cannot be done.
        When it returns there is no way back: ``retired`` is to be set, whatever happens."""
        master = self._master
        if self._retiring:
            raise Busy("this master is being handed over already")
        if request.term <= master.store.state.term:
            raise InvalidArgument("the requested term is not above the present one")
        self._retiring = True
        log.warning("handing over to %s", request.address)
        master.committer.closed = Busy("the master is being handed over to another: try again")
        try:
            with trio.move_on_after(RETIRE_SECONDS) as scope:
                while not master.committer.is_idle:
                    await master.clock.sleep(0.01)
                while follower.acked < master.committer.sequence:
                    if follower.rpc.closed:
                        raise Busy("the connection of the shadow ended")
                    await master.clock.sleep(0.01)
            if scope.cancelled_caught:
                raise Busy(f"{request.address} did not catch up within {RETIRE_SECONDS:g} s")
            others = [peer for peer in self.addresses if peer != request.address]
            standing = Standing(
                follows=[request.address, *others],
                promises=[Promise(request.term, request.address)],
                ended=master.store.state.term,
                heir=request.address,
            )
            # Once it is written there is no way back, whatever becomes of the connection.
            with trio.CancelScope(shield=True):
                await master.world.run_blocking(master.store.set_standing, standing)
        except BaseException:
            master.committer.closed = None
            self._retiring = False
            raise
        with master.store.snapshot() as txn:
            return position(txn, "shadow", heir=request.address)


def _plan_changing(txn: Txn, to: Counted) -> Planned:
    if txn.state.counted_next is not None or txn.state.counted == to:
        return None, Done(id=0)
    return ShadowsChanging(to.addresses, to.wanted), Done(id=0)


def _plan_changed(txn: Txn) -> Planned:
    if txn.state.counted_next is None:
        return None, Done(id=0)
    return ShadowsChanged(), Done(id=0)


def _plan_forget(txn: Txn, address: str) -> Planned:
    if all(address not in each.addresses for each in quorum.in_force(txn.state)):
        return None, Done(id=0)
    return ShadowForgotten(address), Done(id=0)


def store_standing(master: Master, standing: Standing) -> None:
    """Have it written with the next commit."""

    def plan(txn: Txn) -> Planned:
        master.store.put_standing(txn, standing)
        return None, Done(id=0)

    master.store.standing = standing
    master.committer.submit("", 0, plan, lambda _: None)


def position(txn: Txn, role: str, heir: str = "") -> PositionReply:
    state = txn.state
    return PositionReply(0, role, state.term, state.sequence, operation_log.chain(txn), heir=heir)


class ShadowSession:
    """One shadow master's connection to its master."""

    def __init__(self, master: Master, shadows: Shadows, nursery: trio.Nursery) -> None:
        self._master = master
        self._shadows = shadows
        self._nursery = nursery
        self._follower: Follower | None = None
        self._snapshot: Txn | None = None
        self._pieces: Iterator[Piece | Ending] = iter(())
        self._next_piece = 0
        self._asked_at = 0.0
        self._slot = object()

    def handle(self, rpc: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        """Answer a batch. Never raises."""
        for message, _ in batch:
            try:
                answer = self._answer(rpc, message)
            except Exception as error:
                send_failure(rpc, message.id, error)
            else:
                if answer is not None:
                    answer[0].id = message.id
                    rpc.send(*answer)

    def _answer(self, rpc: Rpc, message: Message) -> tuple[Message, bytes] | None:
        match message:
            case Follow():
                return self._follow(rpc, message), b""
            case ReadCopy():
                return self._read_copy(message)
            case Position() | Bind():
                with self._master.store.snapshot() as txn:
                    return position(txn, "master"), b""
            case Retire():
                if self._follower is None:
                    raise ProtocolError("Retire before Follow")
                self._nursery.start_soon(self._retire, rpc, message, self._follower)
                return None
            case Ping():
                return Done(id=0), b""
        raise ProtocolError(f"{type(message).__name__} is not for the master from a shadow")

    def _follow(self, rpc: Rpc, message: Follow) -> Message:
        if self._follower is not None:
            raise ProtocolError("Follow twice")
        if not 0 < len(message.address.encode()) <= ADDRESS_BYTES_MAX:
            raise InvalidArgument("a shadow master without an address")
        with self._master.store.snapshot() as txn:
            state = txn.state
            known = operation_log.chain_at(txn, message.sequence)
            reaches = message.sequence == state.sequence or (
                operation_log.chain_at(txn, message.sequence + 1) is not None
            )
        copy = not (message.sequence and reaches and known == message.chain)
        if not copy:
            self._follower = Follower(message.address, rpc, message.sequence)
            self._nursery.start_soon(self._shadows.follow, self._follower)
        return FollowReply(
            id=0,
            copy=copy,
            term=state.term,
            sequence=state.sequence,
            chunkservers_ms=int(self._master.settings.heartbeat_seconds * 1000),
        )

    # --- copies --------------------------------------------------------------------------

    def _read_copy(self, message: ReadCopy) -> tuple[Message, bytes]:
        self._asked_at = self._master.now
        if message.number == 0:
            self._begin_copy()
        if message.number != self._next_piece or self._snapshot is None:
            raise InvalidArgument(f"piece {message.number} of a copy is not the next one")
        self._next_piece += 1
        piece = next(self._pieces)
        if isinstance(piece, Piece):
            return CopyPiece(0, piece.database, False, piece.sums), piece.body
        state = self._snapshot.state
        self.end_copy()
        ending = CopyPiece(0, "", True, piece.sums, _encode(state), self._master.store.cluster)
        return ending, b""

    def _begin_copy(self) -> None:
        if self._snapshot is not None:
            raise ProtocolError("a second copy was requested before the end of the first")
        if self._master.disk_low:
            raise Busy("the master's metadata disk is nearly full: no copy is made now")
        try:
            self._shadows._snapshots.acquire_on_behalf_of_nowait(self._slot)
        except trio.WouldBlock:
            raise Busy(f"{COPIES_MAX} copies are being made: try again") from None
        self._snapshot = self._master.store.snapshot()
        self._pieces = pieces(self._snapshot)
        self._next_piece = 0
        self._nursery.start_soon(self._watch_copy)

    async def _watch_copy(self) -> None:
        """A snapshot that is not read must not hold its pages for ever."""
        while self._snapshot is not None:
            await self._master.clock.sleep(1.0)
            late = self._master.now - self._asked_at > COPY_SECONDS
            if self._snapshot is not None and (late or self._master.disk_low):
                log.warning(
                    "a copy for a shadow master was given up: no piece was requested in time, "
                    "or the disk is nearly full"
                )
                self.end_copy()

    def end_copy(self) -> None:
        if self._snapshot is not None:
            self._pieces = iter(())
            self._snapshot.close()
            self._snapshot = None
            self._shadows._snapshots.release_on_behalf_of(self._slot)

    async def _retire(self, rpc: Rpc, message: Retire, follower: Follower) -> None:
        try:
            reply = await self._shadows.retire(follower, message)
        except Exception as error:
            send_failure(rpc, message.id, error)
            return
        try:
            reply.id = message.id
            rpc.send(reply)
            await self._master.clock.sleep(0.1)  # let it leave before the connection ends
        finally:
            self._shadows.retired.set()

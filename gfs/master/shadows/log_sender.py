"""Sending the operation log to this master's shadow masters, and tracking their progress.

Each follower has a task that sends it what was committed, at once and in batches of
everything that has gathered: rows of the operation log with their answers, and changes
of locations. It reads them from the store, so a shadow master that was away is served
in the same way as one that is up to date, and there are no queues. At most
``IN_FLIGHT_MAX`` batches of about ``BATCH_BYTES`` are sent and not acknowledged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import msgspec
import trio

from gfs.config import split_addresses
from gfs.diagnostics import event
from gfs.errors import Busy, GfsError, InvalidArgument, NotFound, ProtocolError
from gfs.master.master import Master
from gfs.master.metadata import Counted, Outcome, Promise, Standing, State, Txn, operation_log
from gfs.master.metadata.namespace import Planned
from gfs.master.metadata.operations import ShadowForgotten, ShadowsChanged, ShadowsChanging
from gfs.master.service import cluster_totals, send_failure
from gfs.master.shadows import quorum
from gfs.master.shadows.store_copy import Ending, Piece, pieces
from gfs.protocol.messages import (
    Bind,
    CopyPiece,
    Done,
    Follow,
    FollowReply,
    ForgetShadow,
    LogAck,
    LogPage,
    LogRows,
    Message,
    Ping,
    Position,
    PositionReply,
    ReadCopy,
    ReadLog,
    Retire,
    ShadowStatus,
)
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
IN_FLIGHT_MAX = 8
#: A master sends its shadow masters a message at least this often.
BEAT_SECONDS = 1.0
#: The connection of a shadow master that does not acknowledge within this is closed.
ACK_SECONDS = 10.0
SWEEP_SECONDS = 0.25
COPIES_MAX = 2
#: A copy whose next piece is not requested within this time is given up.
COPY_SECONDS = 30.0
PEERS_MAX = 16
#: The most changes of locations that wait for one shadow master; it gets others from
#: the chunkservers' own reports.
LOCATIONS_MAX = 100_000
LOCATIONS_PER_BATCH = 5_000
RETIRE_SECONDS = 10.0
#: How long the log is kept for a shadow master that is away.
AWAY_SECONDS = 3600.0
#: How long the log is kept for the next backup of a file, and for how many files.
BACKUP_SECONDS = 26 * 3600.0
BACKUPS_MAX = 16
BACKUP_NAME_BYTES_MAX = 4200
ADDRESS_BYTES_MAX = 300

_encode = msgspec.msgpack.Encoder().encode


class Follower:
    def __init__(self, address: str, rpc: Rpc, sequence: int) -> None:
        self.address = address
        self.rpc = rpc
        #: The last row that was sent, and the last that is known to be on its disk.
        self.sent = sequence
        self.acked = sequence
        #: Handles whose locations changed.
        self.changed: dict[int, None] = {}
        self.wake = trio.Event()
        self.in_flight = 0
        self.sent_at = -math.inf
        self.certificate_until_ns = 0


class Shadows:
    """The shadow masters of this master. ``run`` must be running."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._watermark = master.committer.watermark
        self.followers: dict[str, Follower] = {}
        #: Address → (position, when it went away).
        self._away: dict[str, tuple[int, float]] = {}
        #: A backup's name → (position, when it was taken).
        self._backups: dict[str, tuple[int, float]] = {}
        #: Address → when it last had everything that was committed.
        self._level_at: dict[str, float] = {}
        self._snapshots = trio.CapacityLimiter(COPIES_MAX)
        self._retiring = False
        #: Operations from before this master was started do not wait for shadow masters.
        self._at_start = master.store.state.sequence
        #: Whether an operation that changes the set of those that count is under way.
        self._changing = False
        #: Whether the master has handed over; its term has ended.
        self.retired = trio.Event()
        #: Raises the reason for which nobody could succeed this master now.
        self.check: Callable[[], Awaitable[None]] | None = None
        master.committer.committed = self._committed
        master.committer.log_rows_max = master.settings.log_rows_max
        self._advance_watermark()

    # --- for the others ------------------------------------------------------------------

    @property
    def addresses(self) -> list[str]:
        """The addresses of all known shadow masters, following now or not."""
        return self._master.store.standing.peers

    def absent(self, named: str) -> list[str]:
        """The addresses of all processes that may act as the master, or follow another one."""
        known = dict.fromkeys([*self.addresses, *split_addresses(named)])
        return [address for address in known if address not in self.followers]

    def status(self) -> list[ShadowStatus]:
        now, sequence = self._master.now, self._master.committer.sequence
        found = []
        for address in self.addresses:
            follower = self.followers.get(address)
            # This master may never have been followed by it, only a master before this one.
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
        """Check time limits, until cancelled."""
        while True:
            self._advance_watermark()
            self._update_counted()
            await self._master.world.clock.sleep(SWEEP_SECONDS)
            self._watermark.expire()
            now = self._master.now
            for known, seconds in ((self._away, AWAY_SECONDS), (self._backups, BACKUP_SECONDS)):
                for name, (_, since) in list(known.items()):
                    if now - since > seconds:
                        del known[name]
            self._keep_log()

    # --- followers -----------------------------------------------------------------------

    def _committed(self) -> None:
        self._advance_watermark()
        for follower in self.followers.values():
            follower.wake.set()

    def _keep_log(self) -> None:
        positions = [follower.acked for follower in self.followers.values()]
        positions += [at for at, _ in (*self._away.values(), *self._backups.values())]
        # With the row that each ended with: by its checksum the histories are compared.
        self._master.committer.needed_from = min(positions, default=None)

    def backed_up(self, name: str, sequence: int) -> None:
        """Keep the log after ``sequence`` for the next backup of this name."""
        self._backups.pop(name, None)
        self._backups[name] = (sequence, self._master.now)
        if len(self._backups) > BACKUPS_MAX:
            del self._backups[next(iter(self._backups))]
        self._keep_log()

    def _acked(self, follower: Follower, sequence: int) -> None:
        follower.acked = max(follower.acked, sequence)
        if follower.acked >= self._master.committer.sequence:
            self._level_at[follower.address] = self._master.now
        self._advance_watermark()
        self._update_counted()

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
            sequence = min(sequence, self._at_start)  # after the operation that records this
        self._watermark.advance(sequence, self._refusal(state))

    def _refusal(self, state: State) -> str:
        """Why mutations are refused; empty if they are not."""
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

    def _update_counted(self) -> None:
        """Begin to count the shadow masters that follow and do not count, once those
        that count agree."""
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
                self._update_counted()

        self._changing = True
        self._master.committer.submit("", 0, plan, done)

    async def forget(self, request: ForgetShadow) -> Done:
        """Carry out ForgetShadow. Raises NotFound, or Busy if it follows."""
        master, address = self._master, request.address
        in_force = quorum.in_force(master.store.state)
        if address not in {*self.addresses, *[a for each in in_force for a in each.addresses]}:
            raise NotFound(f"there is no shadow master {address}: gfs status shows them")
        if address in self.followers:
            raise Busy(f"the shadow master {address} still follows this master: stop it first")
        # This cannot wait for shadow masters: they may be the ones that are lost.
        plan = partial(_plan_forget, address=address)
        outcome = await master.committer.ask("", 0, plan)
        if isinstance(outcome, GfsError):
            raise outcome
        peers = [each for each in self.addresses if each != address]
        store_standing(master, msgspec.structs.replace(master.store.standing, peers=peers))
        self._away.pop(address, None)
        self._level_at.pop(address, None)
        self._advance_watermark()
        self._update_counted()
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
        master.replica_map.locations.watchers.append(follower.changed)
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
            master.replica_map.locations.unwatch(follower.changed)
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
            follower.rpc.close()  # the log was trimmed meanwhile: it needs a copy
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
            holders = master.replica_map.locations.get(handle)
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
        """Store its address durably: after a restart this master asks it for a master
        of a higher term."""
        peers = self._master.store.standing.peers
        if address in peers:
            return
        standing = msgspec.structs.replace(
            self._master.store.standing, peers=[*peers, address][-PEERS_MAX:]
        )
        store_standing(self._master, standing)

    # --- handing over ------------------------------------------------------------------------

    async def retire(self, follower: Follower, request: Retire) -> PositionReply:
        """Carry out Retire. Raises Busy, and the master goes on serving, if that is
        impossible. When it returns the term has ended for good: the caller must set
        ``retired`` in any case."""
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
                    await master.world.clock.sleep(0.01)
                while follower.acked < master.committer.sequence:
                    if follower.rpc.closed:
                        raise Busy("the connection of the shadow master ended")
                    await master.world.clock.sleep(0.01)
            if scope.cancelled_caught:
                raise Busy(f"{request.address} did not catch up within {RETIRE_SECONDS:g} s")
            if self.check is not None:
                # As late as it can be: what is written then cannot be taken back.
                await self.check()
            others = [peer for peer in self.addresses if peer != request.address]
            standing = Standing(
                follows=[request.address, *others],
                promises=[Promise(request.term, request.address)],
                ended=master.store.state.term,
                successor=request.address,
            )
            # Once this is written the term has ended for good, even if the connection breaks.
            with trio.CancelScope(shield=True):
                await master.world.run_blocking(master.store.set_standing, standing)
        except BaseException:
            master.committer.closed = None
            self._retiring = False
            raise
        with master.store.snapshot() as txn:
            return position(txn, "shadow", successor=request.address)


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
    """Write the standing in a commit."""

    def plan(txn: Txn) -> Planned:
        master.store.put_standing(txn, standing)
        return None, Done(id=0)

    master.store.standing = standing
    master.committer.submit("", 0, plan, lambda _: None)


def position(txn: Txn, role: str, successor: str = "") -> PositionReply:
    state = txn.state
    return PositionReply(
        0, role, state.term, state.sequence, operation_log.chain(txn), successor=successor
    )


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
            case ReadLog():
                return self._read_log(message)
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

    def _read_log(self, message: ReadLog) -> tuple[Message, bytes]:
        """Rows for a backup, which is no follower: nothing waits for it."""
        cluster = self._master.store.cluster
        if not 0 < len(message.name.encode()) <= BACKUP_NAME_BYTES_MAX:
            raise InvalidArgument(f"a backup's name has 1 to {BACKUP_NAME_BYTES_MAX} bytes")
        with self._master.store.snapshot() as txn:
            newest = txn.state.sequence
            known = operation_log.chain_at(txn, message.sequence)
            if message.sequence > newest or known not in (None, message.chain):
                return LogPage(0, cluster, other_history=True), b""
            rows = operation_log.read(txn, message.sequence + 1, BATCH_BYTES)
            if known is None or (not rows and message.sequence < newest):
                return LogPage(0, cluster, trimmed=True), b""
            self._shadows.backed_up(message.name, message.sequence)
            reached = message.sequence + len(rows) == newest
            return LogPage(0, cluster, _encode(txn.state) if reached else b""), _encode(rows)

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
        if self._master.metadata_disk.is_low:
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
        """End a snapshot that is not read, which would keep its pages from reuse."""
        while self._snapshot is not None:
            await self._master.world.clock.sleep(1.0)
            late = self._master.now - self._asked_at > COPY_SECONDS
            if self._snapshot is not None and (late or self._master.metadata_disk.is_low):
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
            await self._master.world.clock.sleep(0.1)  # let it be sent before the connection ends
        finally:
            self._shadows.retired.set()

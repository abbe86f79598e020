"""The promises of a shadow master to another one that is to be promoted.

It promises, durably, to follow no master of a lower term from then on, so it
acknowledges nothing any more that the other one does not know of
(:mod:`gfs.master.shadows.quorum`). Until it is known whether the term begins, the
master may lack a shadow master that it waits for; so a promise ends as early as
possible: when that term is in this shadow master's own log, or when the one that it was
made to answers that it did not begin that term and is not about to.
"""

from __future__ import annotations

import logging

import msgspec
import trio

from gfs.errors import Busy, DiskFull, GfsError, ProtocolError, StaleVersion
from gfs.io import World
from gfs.master.metadata import Promise, Store, terms
from gfs.master.shadows.log_sender import position
from gfs.protocol import handshake
from gfs.protocol.messages import Bind, Position, PositionReply
from gfs.protocol.rpc import Rpc

log = logging.getLogger(__name__)

#: How often the others are asked whether a promise has ended.
WATCH_SECONDS = 0.5
ASK_SECONDS = 3.0
#: The most promises to shadow masters that do not answer.
PROMISES_MAX = 16


class Promises:
    """The promises of one shadow master. ``watch`` must be running."""

    def __init__(self, world: World, store: Store, identity: handshake.Identity) -> None:
        self._world = world
        self._store = store
        self._identity = identity
        #: Held while the store's standing is written, and during its commits.
        self.lock = trio.Lock()
        self.limiter = trio.CapacityLimiter(1)
        self._highest = 0
        self._warned_of: set[Promise] = set()

    @property
    def outstanding(self) -> list[Promise]:
        """The promises that were made and have not ended."""
        store = self._store
        return [each for each in store.standing.promises if each.term > store.state.term]

    @property
    def highest(self) -> int:
        """The term below which no master may be followed. It includes promises that are
        still being written."""
        return max(self._highest, *(each.term for each in self.outstanding), 0)

    def check(self, rpc: Rpc) -> None:
        """Raises ConnectionResetError if this master must not be followed."""
        if rpc.peer_term < self.highest:
            raise ConnectionResetError("another shadow master may have taken over from it")

    async def make(self, request: Bind) -> PositionReply:
        """Carry out Bind for a shadow master that follows no lower term now. Raises
        Busy, StaleVersion or DiskFull; then nothing is promised.

        The position in the reply is read after the promise is on the disk, and after
        all rows that were being applied.
        """
        async with self.lock:
            before = self.outstanding
            if len(before) >= PROMISES_MAX:
                raise Busy("it has made too many promises to shadow masters that do not answer")
            known = max(self.highest, self._store.state.term)
            if request.term <= known:
                raise StaleVersion(f"it knows of a term {terms.count(known)} already: try again")
            self._highest = request.term
            try:
                await self._write([*before, Promise(request.term, request.address)])
            finally:
                self._highest = 0
            log.info("term %d is promised to %s", terms.count(request.term), request.address)
            return self.position(before)

    def position(self, promises: list[Promise]) -> PositionReply:
        """The position of this shadow master, and its promises."""
        store = self._store
        with store.snapshot() as txn:
            reply = position(txn, "shadow")
        if store.standing.ended == reply.term:
            reply.successor = store.standing.successor
        reply.promised = max((each.term for each in promises), default=0)
        reply.promised_to = [each.address for each in promises]
        return reply

    async def _write(self, promises: list[Promise]) -> None:
        standing = msgspec.structs.replace(self._store.standing, promises=promises)
        await self._world.run_blocking(self._store.set_standing, standing, limiter=self.limiter)

    async def watch(self) -> None:
        """Remove promises that have ended, until cancelled."""
        while True:
            await self._world.clock.sleep(WATCH_SECONDS)
            for promise in self.outstanding:
                if await self._is_over(promise):
                    await self._release(promise)

    async def _is_over(self, promise: Promise) -> bool:
        try:
            reply = await ask(self._world, promise.address, self._identity, Position(id=0))
        except (ConnectionError, GfsError) as error:
            if promise not in self._warned_of:
                self._warned_of.add(promise)
                log.warning(
                    "this shadow master follows no master until the one at %s answers whether it "
                    "was promoted (%s). If it is lost for good: gfs promote --force another one",
                    promise.address,
                    error,
                )
            return False
        # One that fetches a copy may have begun the term and lost it.
        began = reply.role == "copying" or reply.term >= promise.term
        return not began and reply.beginning != promise.term

    async def _release(self, promise: Promise) -> None:
        async with self.lock:
            try:
                await self._write([each for each in self.outstanding if each != promise])
            except DiskFull as error:
                log.warning("a promise cannot be removed yet: %s", error)
                return
        log.info("the shadow master at %s was not promoted", promise.address)


async def ask(
    world: World, address: str, identity: handshake.Identity, request: Position | Bind
) -> PositionReply:
    """Send a request to another shadow master or a master. Raises ConnectionError or GfsError."""
    rpc = Rpc(await handshake.connect(world, address, identity))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rpc.run)
        try:
            reply, _ = await rpc.call(msgspec.structs.replace(request), seconds=ASK_SECONDS)
        except (ConnectionError, GfsError) as error:
            failure = error
        rpc.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not isinstance(reply, PositionReply):
        raise ProtocolError(f"{type(reply).__name__} as the answer to {type(request).__name__}")
    return reply

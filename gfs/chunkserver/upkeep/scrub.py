"""Reading everything again and again, so that no damage goes unnoticed: the paper, 5.2.

One *pass* reads every block of every replica, in the order of the handles, within
``scrub_seconds``. While clients are served it goes just as fast as that takes, and
within the pace of all background traffic; else at 8 MiB/s or more, so that a small
server is done in minutes. How far the pass has come, and when it began, is kept
(in ``server.json``, once a minute): a server that is often restarted gets to the
end of it all the same. A replica that comes meanwhile with a lower handle was
verified while it was copied, and is read in the next pass.

What fails is told to the master, which has it made anew from a good replica, or, if
there is none, from what is good in several (:mod:`gfs.chunkserver.copies.salvage`).
"""

from __future__ import annotations

import logging

from gfs.blocks import BLOCK_BYTES, KIB, MIB
from gfs.chunkserver.node.node import Node
from gfs.errors import DiskFailed, GfsError
from gfs.protocol.messages import Scrub

log = logging.getLogger(__name__)

STEP_BYTES = 1 * MIB
#: A chunk costs at least as much of the pace as this many bytes: opening it is
#: what costs, and there may be a million small ones.
CHUNK_BYTES_MIN = 512 * KIB
#: While no client is served.
IDLE_BYTES_PER_SECOND_MIN = 8 * MIB
#: Whether clients are being served is looked at so often.
LOOK_SECONDS = 1.0
#: Between two passes, and while there is nothing to read.
REST_SECONDS = 1.0
#: How far it is is noted this often, to be kept.
NOTE_SECONDS = 60.0


def bytes_per_second(left_bytes: float, left_seconds: float, busy: bool) -> float:
    """The pace at which what is left of a pass is read in the time that is left."""
    needed = left_bytes / max(1.0, left_seconds)
    return needed if busy else max(needed, IDLE_BYTES_PER_SECOND_MIN)


class Scrubber:
    def __init__(self, node: Node) -> None:
        self._node = node
        #: Read and verified since the server was started: bytes, and all of them.
        self.bytes = self.passes = 0
        self._noted = node.world.clock.monotonic()
        #: Of the present pass: all up to this handle are done.
        self._after = 0
        #: Of the present pass: what it has read, and has yet to read as the pace counts.
        self._done_bytes = 0
        self._left_bytes = 0

    @property
    def share(self) -> float:
        """How much of the present pass is done."""
        progress = self.progress()
        return progress.done_bytes / max(1, progress.total_bytes)

    def progress(self) -> Scrub:
        """For the heartbeat."""
        record = self._node.server.record
        return Scrub(
            self._done_bytes,
            max(self._done_bytes, self._node.store.inventory.bytes),
            self._ago_ms(record.scrub_began_ns),
            self._ago_ms(record.scrub_ended_ns),
        )

    def _ago_ms(self, time_ns: int) -> int:
        if not time_ns:
            return -1
        return max(0, (self._node.world.clock.time_ns() - time_ns) // 1_000_000)

    async def run(self) -> None:
        """Scrub, pass after pass."""
        clock, record = self._node.world.clock, self._node.server.record
        self._after = record.scrubbed
        while True:
            if not self._after:
                record.scrub_began_ns = clock.time_ns()
            await self._pass(self._after)
            self._after = 0
            if self._node.store.inventory:
                self.passes += 1
                record.scrub_ended_ns = clock.time_ns()
            await clock.sleep(REST_SECONDS)

    async def _pass(self, after: int) -> None:
        """All replicas with a handle above ``after``; those before it are done."""
        store = self._node.store
        handles = sorted(store.inventory)
        lengths = {handle: store.inventory[handle].length for handle in handles}
        self._done_bytes = sum(lengths[h] for h in handles if h <= after)
        todo = [handle for handle in handles if handle > after]
        self._left_bytes = sum(max(lengths[h], CHUNK_BYTES_MIN) for h in todo)
        for handle in todo:
            before = self._done_bytes
            try:
                await self._chunk(handle)
            except DiskFailed:
                # A sector that cannot be read: the replica is to be made anew. If the whole
                # disk has failed, it is not there any more.
                if handle in store.inventory:
                    store.inventory.mark_bad(handle)
            except (GfsError, OSError) as error:
                log.info("scrub of %016x: %s", handle, error)
            self._done_bytes = before + lengths[handle]
            self._left_bytes -= max(lengths[handle], CHUNK_BYTES_MIN)
            self._after = handle

    def note(self) -> None:
        """Put how far it is into the server's record, if that is due again."""
        now = self._node.world.clock.monotonic()
        if now - self._noted >= NOTE_SECONDS:
            self._noted = now
            self._node.server.record.scrubbed = self._after

    async def _chunk(self, handle: int) -> None:
        node, store = self._node, self._node.store
        blocks = STEP_BYTES // BLOCK_BYTES
        first = 0
        while True:
            replica = store.inventory.get(handle)
            if replica is None or handle in store.inventory.bad:
                return
            if first and first * BLOCK_BYTES >= replica.length:
                return
            step = min(STEP_BYTES, replica.length - first * BLOCK_BYTES)
            await self._wait(max(step, CHUNK_BYTES_MIN))
            await node.throttle.take(step)
            async with store.open_chunks.using(handle) as chunk:
                if await node.bad_blocks(chunk, first, blocks):
                    store.open_chunks.mark_unfit(chunk)
                    return
            first += blocks
            self._done_bytes += step
            self.bytes += step

    async def _wait(self, count: int) -> None:
        """Until ``count`` more bytes are due."""
        node, clock = self._node, self._node.world.clock
        due = 0.0
        while due < count:
            pace = bytes_per_second(self._left_bytes, self._seconds_left(), node.throttle.busy)
            seconds = min(LOOK_SECONDS, (count - due) / max(1.0, pace))
            await clock.sleep(seconds)
            due += max(1.0, pace) * seconds + 1e-6

    def _seconds_left(self) -> float:
        """Of this pass. The wall clock may jump: never more than a whole one."""
        period = self._node.settings.scrub_seconds
        record, now_ns = self._node.server.record, self._node.world.clock.time_ns()
        # From a beginning that is yet to come the pass would be as slow until it has.
        record.scrub_began_ns = min(record.scrub_began_ns, now_ns)
        return period - min((now_ns - record.scrub_began_ns) / 1e9, period)

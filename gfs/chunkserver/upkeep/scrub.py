"""The scrub: reading and verifying all replicas again and again (the paper, 5.2).

One *pass* reads every block of every replica, in the order of the handles, within
``scrub_seconds``. While clients are served it runs just as fast as necessary, and
within the limit of all background traffic; otherwise at 8 MiB/s or more, so that a
small server is read in minutes. The progress of the pass, and when it began, is stored
(in ``server.json``, once a minute): so a server that is often restarted also completes
it. A replica with a lower handle that is added meanwhile was verified while it was
copied, and is read in the next pass.

Corrupt replicas are reported to the master, which has them replaced by copies of a good
one, or, if there is none, salvaged (:mod:`gfs.chunkserver.copies.salvage`).
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator

import trio

from gfs.blocks import BLOCK_BYTES, KIB, MIB
from gfs.chunkserver.node import Node
from gfs.errors import CorruptReplica, GfsError
from gfs.protocol.messages import Scrub

log = logging.getLogger(__name__)

STEP_BYTES = 1 * MIB
#: How many handles are sorted before others are served: some 5 ms.
SORTED_AT_ONCE = 10_000
#: A chunk counts as at least this many bytes for the pace, because of the cost of
#: opening it: there may be a million small ones.
CHUNK_BYTES_MIN = 512 * KIB
#: The pace while no client is served.
IDLE_BYTES_PER_SECOND_MIN = 8 * MIB
#: How often it is checked whether clients are served.
LOOK_SECONDS = 1.0
#: The pause between two passes, and while there is nothing to read.
REST_SECONDS = 1.0
#: How often the progress is recorded.
NOTE_SECONDS = 60.0


def bytes_per_second(left_bytes: float, left_seconds: float, busy: bool) -> float:
    """The pace at which the rest of a pass is read in the rest of its time."""
    needed = left_bytes / max(1.0, left_seconds)
    return needed if busy else max(needed, IDLE_BYTES_PER_SECOND_MIN)


class Scrubber:
    def __init__(self, node: Node) -> None:
        self._node = node
        #: Bytes that were verified since the server was started, and completed passes.
        self.bytes = self.passes = 0
        self._noted = node.world.clock.monotonic()
        #: The present pass has verified the replicas up to this handle.
        self._after = 0
        #: The bytes that the present pass has read, and those that are left, as the
        #: pace counts them.
        self._done_bytes = 0
        self._left_bytes = 0

    @property
    def share(self) -> float:
        """The share of the present pass that is done."""
        progress = self.progress()
        return progress.done_bytes / max(1, progress.total_bytes)

    def progress(self) -> Scrub:
        """The progress, for the heartbeat."""
        record = self._node.server.record
        return Scrub(
            self._done_bytes,
            max(self._done_bytes, self._node.store.inventory.bytes),
            self._ago_ms(record.scrub_began_ns),
            self._ago_ms(record.scrub_ended_ns),
            self._ago_ms(record.scrub_whole_began_ns),
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
                record.scrub_whole_began_ns = record.scrub_began_ns
            await clock.sleep(REST_SECONDS)

    async def _pass(self, after: int) -> None:
        """Verify all replicas with a handle above ``after``; those before it are done."""
        store = self._node.store
        for handle in await self._in_order(after):
            # It may be gone since; the pass is none the shorter for it.
            replica = store.inventory.get(handle)
            length = replica.length if replica is not None else 0
            before = self._done_bytes
            try:
                await self._chunk(handle)
            except (GfsError, OSError) as error:
                log.info("scrub of %016x: %s", handle, error)
            self._done_bytes = before + length
            self._left_bytes -= max(length, CHUNK_BYTES_MIN)
            self._after = handle

    async def _in_order(self, after: int) -> Iterator[int]:
        """The handles above ``after`` in their order, and what they and the others amount to.
        A server may have millions, which are sorted while others are served."""
        inventory = self._node.store.inventory
        handles = list(inventory)
        self._done_bytes = self._left_bytes = 0
        slices = []
        for at in range(0, len(handles), SORTED_AT_ONCE):
            todo = []
            for handle in handles[at : at + SORTED_AT_ONCE]:
                replica = inventory.get(handle)
                if replica is None:
                    continue
                if handle <= after:
                    self._done_bytes += replica.length
                else:
                    self._left_bytes += max(replica.length, CHUNK_BYTES_MIN)
                    todo.append(handle)
            slices.append(sorted(todo))
            await trio.lowlevel.checkpoint()
        return heapq.merge(*slices)

    def note(self) -> None:
        """Write the progress into the server's record, if that is due again."""
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
            if not await self._is_good(handle, first, blocks):
                return
            first += blocks
            self._done_bytes += step
            self.bytes += step

    async def _is_good(self, handle: int, first: int, blocks: int) -> bool:
        """Read some blocks. A replica of which a sector cannot be read must be replaced, too."""
        node, store = self._node, self._node.store
        async with store.open_chunks.using(handle) as chunk:
            try:
                is_good = not await node.bad_blocks(chunk, first, blocks)
            except CorruptReplica:
                is_good = False
            if not is_good:
                store.open_chunks.mark_unfit(chunk)
            return is_good

    async def _wait(self, count: int) -> None:
        """Wait until ``count`` more bytes are due."""
        node, clock = self._node, self._node.world.clock
        due = 0.0
        while due < count:
            pace = bytes_per_second(self._left_bytes, self._seconds_left(), node.throttle.busy)
            seconds = min(LOOK_SECONDS, (count - due) / max(1.0, pace))
            await clock.sleep(seconds)
            due += max(1.0, pace) * seconds + 1e-6

    def _seconds_left(self) -> float:
        """The seconds left of this pass; at most those of a whole pass, since the wall
        clock may jump."""
        period = self._node.settings.scrub_seconds
        record, now_ns = self._node.server.record, self._node.world.clock.time_ns()
        # With a start in the future the pass would be too slow until then.
        record.scrub_began_ns = min(record.scrub_began_ns, now_ns)
        return period - min((now_ns - record.scrub_began_ns) / 1e9, period)

"""Sums of the bytes of an object: MD5 for its ETag, SHA-256 of a signed payload, and the
checksum that the client chose, which is verified before the object is published."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Protocol
from weakref import WeakSet

import trio
from awscrt import checksums as crt

from control.s3.errors import S3Error
from gfs.blocks import KIB, MIB

PREFIX = "x-amz-checksum-"
#: What the checksum of an object of several parts is of: its bytes, or the sums of its parts.
FULL, COMPOSITE = "FULL_OBJECT", "COMPOSITE"
#: Headers with this prefix that are no checksum.
OTHERS = frozenset({"x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-checksum-mode"})
#: Smaller pieces are summed at once: a thread would cost as much as a third of a millisecond.
INLINE_BYTES_MAX = 64 * KIB
#: So much waits for the thread that sums what came before: with a piece alone each waited for the
#: other's next turn at the processor.
AHEAD_BYTES_MAX = 512 * KIB
#: A few payloads at a time give a thread so much at once, since for 256 KiB each, as they come, the
#: hops cost a third of the MD5. No others keep so much: a thousand may pause.
BATCH_BYTES = 1 * MIB
BATCHING_MAX = 8


class _Shared:
    """What all payloads of a loop share."""

    def __init__(self) -> None:
        #: More threads than processors would gain nothing.
        self.slots = trio.CapacityLimiter(2 * (os.cpu_count() or 1))
        self.batching: WeakSet[Sums] = WeakSet()


_of_loop: trio.lowlevel.RunVar[_Shared] = trio.lowlevel.RunVar("sums")


def _shared() -> _Shared:
    try:
        return _of_loop.get()
    except LookupError:
        _of_loop.set(_Shared())
        return _of_loop.get()


class Sum(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    def __init__(self, function: Callable[[bytes, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


#: By the name in headers: what sums, and its length in bytes.
ALGORITHMS: Mapping[str, tuple[Callable[[], Sum], int]] = {
    "crc32": (lambda: _Crc(zlib.crc32, 4), 4),
    "crc32c": (lambda: _Crc(crt.crc32c, 4), 4),
    "crc64nvme": (lambda: _Crc(crt.crc64nvme, 8), 8),
    "sha1": (hashlib.sha1, 20),
    "sha256": (hashlib.sha256, 32),
}


#: Those whose value for bytes that are joined follows from the values for both: the first's, the
#: second's, and how long the second are.
_COMBINED: Mapping[str, Callable[[int, int, int], int]] = {
    "crc32": crt.combine_crc32,
    "crc32c": crt.combine_crc32c,
    "crc64nvme": crt.combine_crc64nvme,
}


def combined(algorithm: str, parts: Iterable[tuple[bytes, int]]) -> bytes:
    """The checksum of the bytes of parts, one after the other: (checksum, length) of each. The
    algorithm is a CRC; of nothing it is 0."""
    value = 0
    for checksum, length in parts:
        value = _COMBINED[algorithm](value, int.from_bytes(checksum, "big"), length)
    return value.to_bytes(ALGORITHMS[algorithm][1], "big")


def algorithm_of(header: str) -> str:
    """The algorithm of ``x-amz-checksum-…``. Raises S3Error."""
    name = header.lower().removeprefix(PREFIX)
    if name not in ALGORITHMS:
        raise S3Error("InvalidRequest", f"checksums are {', '.join(ALGORITHMS)}, not {name:.40}")
    return name


def decode(name: str, text: str) -> bytes:
    """Raises S3Error for a value that no checksum of this kind has."""
    try:
        value = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        value = b""
    if len(value) != ALGORITHMS[name][1]:
        raise S3Error("BadDigest", f"{PREFIX}{name}: {text:.80} is no such checksum in Base64")
    return value


def text_of(value: bytes) -> str:
    return base64.b64encode(value).decode()


class Sums:
    """All sums of one payload. Long ones are computed in a thread, beside what the loop does with
    the same bytes and the next: receiving and sending take about as long."""

    def __init__(self, *, signed: bool, checksum: str = "") -> None:
        """``signed``: its SHA-256 is needed. ``checksum``: the algorithm of the client's choice."""
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sha256 = hashlib.sha256() if signed else None
        self.checksum = ALGORITHMS[checksum][0]() if checksum else None
        self._all: list[Sum] = [self.md5]
        self._all += [each for each in (self.sha256, self.checksum) if each is not None]
        #: How much a thread gets at least, and how much waits for it at most.
        self._batch, self._ahead = INLINE_BYTES_MAX, AHEAD_BYTES_MAX
        #: What no thread has yet, and how many bytes that are.
        self._queue: list[bytes] = []
        self._queued = 0
        #: Set while no thread is at work.
        self._idle = trio.Event()
        self._idle.set()

    def _sum(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            for each in self._all:
                each.update(piece)

    async def update(self, data: bytes) -> None:
        """Add ``data``, which must not change any more. Besides what a thread sums, no more than
        ``AHEAD_BYTES_MAX`` and this piece are kept; of ``BATCHING_MAX`` payloads twice
        ``BATCH_BYTES``."""
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > self._ahead and not self._idle.is_set():
            await self._idle.wait()
        if self._queued > self._batch and self._idle.is_set() and not self._may_batch():
            await self._begin()

    def _may_batch(self) -> bool:
        """Whether more may wait, from now on."""
        batching = _shared().batching
        if self._batch == BATCH_BYTES or len(batching) >= BATCHING_MAX:
            return False
        batching.add(self)
        self._batch, self._ahead = BATCH_BYTES, 2 * BATCH_BYTES
        return True

    async def _begin(self) -> None:
        """Give all that waits to a thread."""
        await _shared().slots.acquire_on_behalf_of(self)
        self._idle = trio.Event()
        deliver = partial(self._deliver, trio.lowlevel.current_trio_token())
        trio.lowlevel.start_thread_soon(partial(self._sum, self._take()), deliver)

    def _take(self) -> list[bytes]:
        pieces, self._queue, self._queued = self._queue, [], 0
        return pieces

    def _deliver(self, token: trio.lowlevel.TrioToken, outcome: object) -> None:
        """In the thread, when it has summed."""
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(self._done)

    def _done(self) -> None:
        _shared().slots.release_on_behalf_of(self)
        self._idle.set()

    async def finish(self) -> None:
        """Afterwards the sums are those of all that was added."""
        _shared().batching.discard(self)
        if not self._idle.is_set():
            await self._idle.wait()
        if self._queued > INLINE_BYTES_MAX:
            await self._begin()
            await self._idle.wait()
        self._sum(self._take())

"""The good parts of a damaged or partly lost file (``get`` with ``partial``).

Each piece of 1 MiB is read from the first replica that has all of it; if none has, it is
read block by block, since replicas may lack different blocks. A block that no replica has
becomes a hole of the local file. Servers that do not answer are waited for, for
``retry_seconds``; after the first wait without an answer, the rest of the file is read
without waiting: a file may have lost hundreds of chunks. Every byte that is written was
verified.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES
from gfs.client.core import ClientCore
from gfs.client.read import PIECE_BYTES_MAX, Attempts, FileMap, is_answer, read_piece, read_piece_at
from gfs.client.transfer import LocalPart, Progress, check_free
from gfs.errors import ChunkUnavailable, GfsError
from gfs.protocol.messages import Entry


@dataclass(frozen=True)
class Rescued:
    """A fetched file of the original length, with zeros in its ``holes``, (offset, bytes)
    each, in order. Without holes the file is complete."""

    entry: Entry
    holes: list[tuple[int, int]]


async def rescue(
    core: ClientCore, path: str, target: str, *, overwrite: bool, progress: Progress
) -> Rescued:
    """See :meth:`gfs.client.Client.get`."""
    run = core.world.run_blocking
    await run(check_free, target, overwrite)
    file = await FileMap.open_as_known(core, path)
    entry = replace(file.entry)
    part = LocalPart(target)
    holes: list[tuple[int, int]] = []
    may_wait = True
    try:
        await run(part.open)
        for start in range(0, entry.length, CHUNK_BYTES):
            end = min(entry.length, start + CHUNK_BYTES)
            chunk = _Chunk(core, file, start, end, may_wait)
            while chunk.at < end:
                at, piece = chunk.at, await chunk.next_piece()
                if piece is not None:
                    await run(part.write, piece)
                else:
                    await run(part.skip, chunk.at - at)
                    _add(holes, at, chunk.at - at)
                progress(chunk.at - at)
            may_wait = chunk.may_wait
        await run(part.commit, overwrite)
    finally:
        part.discard()
    return Rescued(entry, holes)


def _add(holes: list[tuple[int, int]], offset: int, count: int) -> None:
    if holes and sum(holes[-1]) == offset:
        offset, count = holes[-1][0], holes.pop()[1] + count
    holes.append((offset, count))


class _Chunk:
    """One chunk of the file, from ``at`` on."""

    def __init__(
        self, core: ClientCore, file: FileMap, start: int, end: int, may_wait: bool
    ) -> None:
        self._core = core
        self._file = file
        self.at = start
        self._end = end
        #: Up to this offset no replica has all of a piece: it is read in blocks.
        self._narrow_until = start
        #: Whether to wait for servers that do not answer: only until the first wait has failed.
        self.may_wait = may_wait
        self._was_refreshed = False

    async def next_piece(self) -> memoryview | None:
        """The next bytes, or None for a hole; ``at`` moves on."""
        while True:
            step = BLOCK_BYTES if self.at < self._narrow_until else PIECE_BYTES_MAX
            piece = memoryview(bytearray(min(step, self._end - self.at)))
            heard, silent = await self._ask_all(piece)
            if silent and not self._was_refreshed:
                self._was_refreshed = True
                try:
                    if not self.may_wait:
                        await self._file.refresh(self.at // CHUNK_BYTES)
                        continue
                    await read_piece(self._core, self._file, self.at, piece)
                    heard, silent = 0, 0
                except ChunkUnavailable:
                    self.may_wait = False
            if not heard and not silent:
                self.at += len(piece)
                return piece
            if not heard:
                self.at = self._end
                return None
            if step == BLOCK_BYTES:
                self.at += len(piece)
                return None
            self._narrow_until = self.at + len(piece)

    async def _ask_all(self, piece: memoryview) -> tuple[int, int]:
        """Fill ``piece`` from the first replica that has it: (0, 0); else the numbers of
        replicas that lack it and of those that did not answer; no replica counts as one of
        the latter."""
        attempts = Attempts(self._core, self._file, self.at // CHUNK_BYTES, rounds=1)
        heard = silent = 0
        offset = self.at % CHUNK_BYTES
        while True:
            try:
                chunk, server = await attempts.next()
            except ChunkUnavailable:
                return heard, silent or int(not heard)
            try:
                await read_piece_at(self._core, chunk, server, attempts.patience, offset, piece)
                return 0, 0
            except (ConnectionError, GfsError) as error:
                heard, silent = heard + is_answer(error), silent + (not is_answer(error))
                await attempts.failed(chunk, server, error)

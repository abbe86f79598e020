"""Reading chunks: every byte verified before the caller sees it.

:class:`BlockStream` reads a file forwards in whole blocks. One request covers
the rest of a chunk; the server's ``sendfile`` keeps the socket full while this
side receives into the caller's memory and hashes, so the kernel's buffers are
the read-ahead. :func:`read_pieces` is for small files and small random reads.

A replica that fails in any way (refuses, hangs up, stalls, sends a block that
fails its checksum) is abandoned, and the read continues at the next one after the last
good block. When all have failed, the client asks the master for the locations again,
until ``retry_seconds`` have passed. Damage is reported to the master.

Per MiB: one or two ``recv_into``, 16 digests, one comparison.
"""

from __future__ import annotations

import io
import logging
from typing import TypeVar

import trio

from gfs.blocks import (
    BLOCK_BYTES,
    CHUNK_BYTES,
    MIB,
    SUM_BYTES,
    Buffer,
    block_count,
    block_sum,
    block_sums,
)
from gfs.client.core import ClientCore
from gfs.errors import (
    ChunkUnavailable,
    CorruptReplica,
    DeadlineExceeded,
    FileChanged,
    GfsError,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NotFound,
    OlderRelease,
    ProtocolError,
)
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    LOCATE_CHUNKS_MAX,
    PATH_BYTES_MAX,
    SMALL_BYTES_MAX,
    ChunkLocation,
    Done,
    Entry,
    Locate,
    LocateReply,
    Message,
    ReadChunk,
    ReadReply,
    ReportReplica,
    ServerAddress,
    VerifyChunk,
    VerifyReply,
)

log = logging.getLogger(__name__)

ReplyT = TypeVar("ReplyT", bound=Message)

#: Bytes of a step: received, verified, then returned to the caller.
STEP_BYTES = 1 * MIB
#: Up to this size a range is cheaper as one piece than as a stream of blocks.
SMALL_BYTES = BLOCK_BYTES
#: A connection that took longer to get was newly made: that has a deadline of its own.
CONNECTED_SECONDS = 0.01
#: Largest piece that chunkservers verify and send exactly (see serve_read).
PIECE_BYTES_MAX = 1 * MIB
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 1.0
#: Deadline of a step, however many replicas are asked.
PATIENCE_SECONDS_MAX = 8.0
#: The wait before a length that only a minority of the replicas reports is used.
ALONE_SECONDS = 6.0
#: For so long a reader waits for the master to take a report.
REPORT_SECONDS = 2.0
#: What a server says, or sends, of a replica that is to be reported.
OF_BAD_REPLICAS = (CorruptReplica, NotFound)
#: Chunks located ahead in one request to the master (the paper, 2.4).
LOCATE_AHEAD = 64


def memory_of(count: int) -> io.BytesIO:
    """Memory to read ``count`` bytes into, by ``getbuffer``; ``getvalue`` then is these, as
    ``bytes``, without a copy. That of a bytearray costs more than the reading: for each page of its
    memory, which is new, the kernel is entered."""
    return io.BytesIO(bytes(count))


def check_path(path: object) -> None:
    """Refuse paths that no master accepts, before anything is sent or written.

    The master checks the other rules. Raises InvalidName.
    """
    if not isinstance(path, str):
        raise InvalidName(f"a path is text, not {type(path).__name__}: {path!r:.100}")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"{path!r:.200} is not UTF-8") from None
    if length > PATH_BYTES_MAX:
        raise InvalidName(f"{path[:50]}…: {length} bytes, a path has at most {PATH_BYTES_MAX}")


def is_path(path: object) -> bool:
    """Whether :func:`check_path` accepts it."""
    try:
        check_path(path)
    except InvalidName:
        return False
    return True


class Patience:
    """What files that are read in one call share: they wait for chunkservers once.

    After the first of them that had no good replica for ``retry_seconds``, each replica of the
    others is asked once.
    """

    def __init__(self) -> None:
        self.is_over = False


class FileMap:
    """One file as opened: its length and the locations of its chunks."""

    def __init__(
        self, core: ClientCore, path: str, reply: LocateReply, patience: Patience | None = None
    ) -> None:
        self._core = core
        self.path = path
        self.patience = patience
        self.entry: Entry = reply.entry
        self._chunks: dict[int, tuple[float, ChunkLocation, list[ServerAddress]]] = {}
        self._is_as_known = False
        self._take(0, reply)

    @classmethod
    async def open(
        cls,
        core: ClientCore,
        path: str,
        *,
        patient: bool = True,
        patience: Patience | None = None,
    ) -> FileMap:
        """Look ``path`` up. Raises NotFound, IsADirectory …; for a file with appended
        records ChunkUnavailable if no replica reports its length, at once unless ``patient``.
        ``patience`` is shared with other files."""
        check_path(path)
        request = Locate(id=0, path=path, inode=0, first=0, count=LOCATE_AHEAD)
        reply = await core.master.ask(request, LocateReply)
        return await cls.of(core, path, reply, patient=patient, patience=patience)

    @classmethod
    async def of(
        cls,
        core: ClientCore,
        path: str,
        reply: LocateReply,
        *,
        patient: bool = True,
        patience: Patience | None = None,
    ) -> FileMap:
        """As :meth:`open`, of what the master has just answered."""
        if reply.entry.kind == "directory":
            raise IsADirectory(f"{path}: is a directory")
        file = cls(core, path, reply, patience)
        await file._ask_length(patient)
        return file

    @classmethod
    async def open_as_known(cls, core: ClientCore, path: str) -> FileMap:
        """As ``open``; if no replica reports the length of a file with appended records, the
        master's length is used."""
        try:
            return await cls.open(core, path)
        except ChunkUnavailable:
            request = Locate(id=0, path=path, inode=0, first=0, count=LOCATE_AHEAD)
            file = cls(core, path, await core.master.ask(request, LocateReply))
            file._is_as_known = True
            return file

    def _take(self, first: int, reply: LocateReply) -> None:
        until = self._core.world.clock.monotonic() + self._core.settings.location_seconds
        for index, chunk in enumerate(reply.chunks, first):
            servers = [reply.servers[n] for n in chunk.servers]
            self._chunks[index] = (until, chunk, servers)
        while len(self._chunks) > 4 * LOCATE_CHUNKS_MAX:
            del self._chunks[next(iter(self._chunks))]

    async def locate(
        self, index: int, fresh: bool = False
    ) -> tuple[ChunkLocation, list[ServerAddress]]:
        """Chunk ``index`` and its replicas, in the order to try them.

        Raises FileChanged when the file was deleted or replaced meanwhile.
        """
        known = self._chunks.get(index)
        if fresh or known is None or known[0] < self._core.world.clock.monotonic():
            await self.refresh(index)
            known = self._chunks.get(index)
        if known is None:
            raise FileChanged(f"{self.path}: became shorter while it was read")
        return known[1], self._core.in_order(known[2])

    def cached_until(self, index: int) -> float:
        """Until when the cached location of chunk ``index`` is used, on the monotonic clock."""
        known = self._chunks.get(index)
        return float("-inf") if known is None else known[0]

    async def _locate(self, index: int) -> LocateReply:
        request = Locate(
            id=0, path=self.path, inode=self.entry.inode, first=index, count=LOCATE_AHEAD
        )
        try:
            return await self._core.master.ask(request, LocateReply)
        except NotFound as error:
            raise FileChanged(f"{self.path}: deleted or replaced while it was open") from error

    async def refresh(self, index: int = 0) -> None:
        reply = await self._locate(index)
        self.entry = reply.entry
        self._take(index, reply)
        await self._ask_length()

    async def _ask_length(self, patient: bool = True) -> None:
        """The length of a file with appended records, as the replicas of its last chunk report it.

        All are asked, and the longest counts: it has all acknowledged records, even if
        another machine came back without its last writes. So a minority's answer is
        used only after the others had ``ALONE_SECONDS`` to answer.
        """
        if not self.entry.appended or self._is_as_known:
            return
        attempts = Attempts(self._core, self, 0)
        clock = self._core.world.clock
        wanted = self.entry.replication // 2 + 1
        content_with_less = clock.monotonic() + ALONE_SECONDS
        while self.entry.length // CHUNK_BYTES < self.entry.chunks:
            index = self.entry.length // CHUNK_BYTES
            chunk, servers = await self._located(index)
            lengths = await lengths_of(self._core, chunk, servers)
            enough = len(lengths) >= wanted or clock.monotonic() >= content_with_less
            if not lengths or (patient and not enough):
                attempts.last = ChunkUnavailable(f"no replica reports the length of chunk {index}")
                if not patient:
                    raise attempts.last
                await attempts.wait()
                self._chunks.pop(index, None)
                continue
            length = max(lengths)
            self.entry.length = max(self.entry.length, index * CHUNK_BYTES + length)
            if length < CHUNK_BYTES:
                return

    async def _located(self, index: int) -> tuple[ChunkLocation, list[ServerAddress]]:
        known = self._chunks.get(index)
        if known is None:
            reply = await self._locate(index)
            self.entry.chunks = reply.entry.chunks
            self._take(index, reply)
            known = self._chunks.get(index)
        if known is None:
            raise FileChanged(f"{self.path}: became shorter while it was read")
        return known[1], known[2]


class Attempts:
    """The replicas of one chunk in turn, in repeated rounds."""

    def __init__(
        self, core: ClientCore, file: FileMap, index: int, rounds: int | None = None
    ) -> None:
        self._core = core
        self._file = file
        self._index = index
        self._rounds_max = rounds
        self._shared = file.patience
        self._left: list[ServerAddress] = []
        self._rounds = 0
        self._pause = BACKOFF_SECONDS_MIN
        self._give_up = core.world.clock.monotonic() + core.settings.retry_seconds
        self.last: Exception = ChunkUnavailable("no replica is known")

    async def next(self) -> tuple[ChunkLocation, ServerAddress]:
        """The next replica to try. Raises ChunkUnavailable after the last."""
        while not self._left:
            if self._rounds:
                await self.wait()
            self._chunk, self._left = await self._file.locate(self._index, self._rounds > 0)
            self._rounds += 1
        return self._chunk, self._left.pop(0)

    async def wait(self) -> None:
        """Pause before the next round. Raises ChunkUnavailable when the time is over."""
        clock = self._core.world.clock
        is_enough = self._rounds_max is not None and self._rounds >= self._rounds_max
        if self._shared and self._shared.is_over:
            is_enough = True
        if is_enough or clock.monotonic() + self._pause > self._give_up:
            if self._shared:
                self._shared.is_over = True
            raise ChunkUnavailable(
                f"{self._file.path}: chunk {self._index}: no good replica can be reached: "
                f"{self.last}. See `gfs fsck {self._file.path}`"
            ) from self.last
        await clock.sleep(self._pause)
        self._pause = min(2 * self._pause, BACKOFF_SECONDS_MAX)

    @property
    def patience(self) -> float:
        """Seconds for the next bytes before another replica is asked instead, doubled in each
        round: so that a loaded cluster or a slow network gets the time to answer."""
        settings = self._core.settings
        seconds = settings.hedge_seconds * (1 << (self._rounds - 1))
        if not self._left:
            seconds = max(seconds, settings.stall_seconds)
        return min(seconds, PATIENCE_SECONDS_MAX)

    async def failed(self, chunk: ChunkLocation, server: ServerAddress, error: Exception) -> None:
        log.warning("chunk %016x at %s: %s", chunk.handle, server.address, error)
        self.last = error
        if isinstance(error, OF_BAD_REPLICAS):
            await report(self._core, chunk, server, error)
        elif isinstance(error, (ConnectionError, DeadlineExceeded)):
            self._core.suspect(server.id)

    def progress(self) -> None:
        """Bytes arrived: the time limit starts again."""
        self._give_up = self._core.world.clock.monotonic() + self._core.settings.retry_seconds


async def report(
    core: ClientCore, chunk: ChunkLocation, server: ServerAddress, error: Exception
) -> None:
    """Report a bad replica to the master, which has it checked."""
    kind = "corrupt" if isinstance(error, CorruptReplica) else "missing"
    request = ReportReplica(
        id=0, handle=chunk.handle, version=chunk.version, server=server.id, kind=kind
    )
    with trio.move_on_after(REPORT_SECONDS):
        try:
            await core.master.ask(request, Done)
        except GfsError as failure:
            log.info("report: %s", failure)


async def ask_state(
    core: ClientCore, server: ServerAddress, question: VerifyChunk, seconds: float
) -> VerifyReply:
    """A chunkserver's state of its replica. Raises ConnectionError or GfsError."""
    return await ask_server(core, server, question, VerifyReply, seconds)


async def ask_server(
    core: ClientCore,
    server: ServerAddress,
    question: Message,
    kind: type[ReplyT],
    seconds: float,
) -> ReplyT:
    """A chunkserver's answer. Raises ConnectionError or GfsError."""
    connection = await core.pool.acquire(server.address)
    try:
        with deadline(seconds, f"answer from {server.address}"):
            await connection.send(question)
            reply = await connection.receive_reply()
        if not isinstance(reply, kind):
            raise ProtocolError(f"{type(reply).__name__} instead of {kind.__name__}")
    except BaseException:
        connection.close()
        raise
    core.pool.release(connection, server.address)
    return reply


async def _known_state(
    core: ClientCore, server: ServerAddress, question: VerifyChunk, seconds: float
) -> VerifyReply:
    """As :func:`ask_state`, without an exchange, since no block is to be read."""
    try:
        reply, _ = await core.links.call(server.address, question, b"", seconds)
    except ProtocolError:  # its release answers that in exchanges only
        return await ask_state(core, server, question, seconds)
    if not isinstance(reply, VerifyReply):
        raise ProtocolError(f"{type(reply).__name__} instead of VerifyReply")
    return reply


async def lengths_of(
    core: ClientCore, chunk: ChunkLocation, servers: list[ServerAddress]
) -> list[int]:
    """The lengths of all replicas that answer soon."""
    question = VerifyChunk(
        id=core.message_id(), handle=chunk.handle, version=chunk.version, blocks=False
    )
    lengths: list[int] = []

    async def ask(server: ServerAddress) -> None:
        try:
            reply = await _known_state(core, server, question, core.settings.hedge_seconds)
        except (ConnectionError, GfsError) as error:
            log.info("chunk %016x at %s: %s", chunk.handle, server.address, error)
            return
        if reply.state == "good":
            lengths.append(reply.length)

    with trio.move_on_after(core.settings.hedge_seconds):
        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(ask, server)
    return lengths


class BlockStream:
    """A file read forwards from a block boundary, up to ``end``.

    Used by one task; ``close`` it. ``position`` is the offset of the next byte. After
    ``until`` a slow reader sees what others wrote meanwhile.
    """

    def __init__(self, core: ClientCore, file: FileMap, position: int, end: int) -> None:
        self._core = core
        self._file = file
        self.position = position
        # Requests cover whole blocks, so that they can be verified here.
        self._end = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, file.entry.length)
        self._attempts: Attempts | None = None
        self._connection: BulkConnection | None = None
        self._server: ServerAddress | None = None
        self._chunk: ChunkLocation | None = None
        self._sums = b""
        self._sums_at = 0
        #: Until then the last bytes read, and their replica, are used.
        self.until = float("-inf")

    @property
    def end(self) -> int:
        """The end of the stream: a block boundary or the file's end."""
        return self._end

    async def read_into(self, target: memoryview) -> int:
        """Fill ``target`` with the next verified bytes; 0 at the end.

        ``target`` holds a whole number of blocks, or reaches to the end. Fewer
        bytes than asked for come only before a chunk's end.
        """
        if self.position >= self._end:
            return 0
        if self._connection is not None and self._core.world.clock.monotonic() > self.until:
            self._hang_up()
        if self._connection is None:
            self._attempts = Attempts(self._core, self._file, self.position // CHUNK_BYTES)
        chunk_left = CHUNK_BYTES - self.position % CHUNK_BYTES
        count = min(len(target), chunk_left, self._end - self.position)
        done = 0
        while done < count:
            step = min(STEP_BYTES, count - done)
            await self._step(target[done : done + step])
            done += step
        return count

    async def _step(self, view: memoryview) -> None:
        assert self._attempts is not None
        while True:
            if self._connection is None:
                await self._open()
            assert self._connection is not None
            try:
                await self._receive(self._connection, view, self._attempts.patience)
                self._verify(view)
            except (ConnectionError, GfsError) as error:
                await self._failed(error)
                continue
            break
        self._attempts.progress()
        self.position += len(view)
        if not self._connection.body_bytes:
            self._release()

    async def _receive(self, connection: BulkConnection, view: memoryview, patience: float) -> None:
        """Fill ``view``. A server is waited for as long as blocks arrive, however slowly."""
        done = 0
        while done < len(view):
            with deadline(patience, "bytes of the chunk"):
                least = min(BLOCK_BYTES, len(view) - done)
                done += await connection.receive_some(view[done:], least)

    def _verify(self, view: memoryview) -> None:
        sums = block_sums(view)
        expected = self._sums[self._sums_at : self._sums_at + len(sums)]
        if sums != expected:
            assert self._chunk is not None
            raise CorruptReplica(
                f"chunk {self._chunk.handle:016x}: blocks at {self.position % CHUNK_BYTES} "
                "fail their checksums"
            )
        self._sums_at += len(sums)

    async def _open(self) -> None:
        """Start an exchange for the rest of the chunk with the next replica."""
        assert self._attempts is not None
        while True:
            self._chunk, self._server = await self._attempts.next()
            self.until = self._file.cached_until(self.position // CHUNK_BYTES)
            try:
                await self._request(self._chunk, self._server)
                return
            except (ConnectionError, GfsError) as error:
                await self._failed(error)

    async def _request(self, chunk: ChunkLocation, server: ServerAddress) -> None:
        assert self._attempts is not None
        offset = self.position % CHUNK_BYTES
        chunk_start = self.position - offset
        length = min(CHUNK_BYTES, self._end - chunk_start) - offset
        with deadline(self._attempts.patience, f"answer from {server.address}"):
            self._connection = await self._core.pool.acquire(server.address)
            await self._connection.send(
                ReadChunk(
                    id=self._core.message_id(),
                    handle=chunk.handle,
                    version=chunk.version,
                    offset=offset,
                    length=length,
                )
            )
            reply = await self._connection.receive_reply()
        if (
            not isinstance(reply, ReadReply)
            # For a part of one block the single digest is also its sum.
            or not (reply.whole or length <= BLOCK_BYTES)
            or reply.length != length
            or self._connection.body_bytes != length
            or len(reply.sums) != block_count(length) * SUM_BYTES
        ):
            raise ProtocolError(f"{type(reply).__name__} does not answer the read")
        self._sums, self._sums_at = reply.sums, 0

    async def _failed(self, error: Exception) -> None:
        assert self._attempts is not None
        self._hang_up(keep=is_answer(error))
        if self._chunk is not None and self._server is not None:
            await self._attempts.failed(self._chunk, self._server, error)

    def _hang_up(self, keep: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if keep and self._server is not None and not connection.body_bytes:
            self._core.pool.release(connection, self._server.address)
        else:
            connection.close()

    def _release(self) -> None:
        self._hang_up(keep=True)

    def close(self) -> None:
        self._hang_up()


def is_answer(error: Exception) -> bool:
    """Whether the server answered with this error, so that the connection can be used again."""
    return isinstance(error, GfsError) and not isinstance(
        error, (ProtocolError, DeadlineExceeded, ConnectionError)
    )


async def read_pieces(core: ClientCore, file: FileMap, offset: int, target: memoryview) -> None:
    """Fill ``target`` with the file's bytes from ``offset``, verified: for ranges too small
    for a :class:`BlockStream`.

    Raises ChunkUnavailable, FileChanged, InvalidArgument.
    """
    done, total = 0, len(target)
    while done < total:
        at = offset + done
        count = min(total - done, CHUNK_BYTES - at % CHUNK_BYTES)
        await read_piece(core, file, at, target if count == total else target[done : done + count])
        done += count


async def read_piece(core: ClientCore, file: FileMap, offset: int, target: memoryview) -> None:
    """Fill ``target`` with a small range inside one chunk, verified.

    Raises ChunkUnavailable, FileChanged.
    """
    if len(target) > PIECE_BYTES_MAX:
        raise InvalidArgument(f"a piece of {len(target)} bytes")
    attempts = Attempts(core, file, offset // CHUNK_BYTES)
    while True:
        chunk, server = await attempts.next()
        try:
            await read_piece_at(
                core, chunk, server, attempts.patience, offset % CHUNK_BYTES, target
            )
            return
        except (ConnectionError, GfsError) as error:
            await attempts.failed(chunk, server, error)


async def read_piece_at(
    core: ClientCore,
    chunk: ChunkLocation,
    server: ServerAddress,
    patience: float,
    offset: int,
    target: memoryview,
) -> None:
    """One attempt, at one replica."""
    length = len(target)
    question = ReadChunk(core.message_id(), chunk.handle, chunk.version, offset, length)
    if length > SMALL_BYTES_MAX:
        await _read_by_exchange(core, server, patience, question, target)
        return
    try:
        reply, data = await core.links.call(server.address, question, b"", patience)
    except OlderRelease:
        await _read_by_exchange(core, server, patience, question, target)
        return
    check_answer(question, reply, data)
    target[:] = data


def check_answer(question: ReadChunk, reply: Message, data: Buffer) -> None:
    """Raises CorruptReplica, ProtocolError."""
    if not isinstance(reply, ReadReply) or len(data) != question.length:
        raise ProtocolError(f"{type(reply).__name__} does not answer the read")
    _check_sums(question, reply, data)


async def _read_by_exchange(
    core: ClientCore,
    server: ServerAddress,
    patience: float,
    question: ReadChunk,
    target: memoryview,
) -> None:
    connection: BulkConnection | None = None
    clean = False
    try:
        with deadline(patience, f"answer from {server.address}") as scope:
            started = trio.current_time()
            connection = await core.pool.acquire(server.address)
            now = trio.current_time()
            if now - started > CONNECTED_SECONDS:
                scope.deadline = now + patience
            await connection.send(question)
            reply = await connection.receive_reply()
            if not isinstance(reply, ReadReply) or connection.body_bytes != len(target):
                raise ProtocolError(f"{type(reply).__name__} does not answer the read")
            await connection.receive_body(target)
            _check_sums(question, reply, target)
            clean = True
    except (ConnectionError, GfsError) as error:
        clean = is_answer(error)
        raise
    finally:
        if connection is not None:
            if clean:
                core.pool.release(connection, server.address)
            else:
                connection.close()


def _check_sums(question: ReadChunk, reply: ReadReply, data: Buffer) -> None:
    actual = block_sums(data) if reply.whole else block_sum(data)
    if actual != reply.sums:
        raise CorruptReplica(
            f"chunk {question.handle:016x}: bytes at {question.offset} fail their checksum"
        )

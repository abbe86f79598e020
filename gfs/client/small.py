"""Small files: what one round does with those that are asked for at the same time.

A *put*: chunks are reserved together (mostly they are already), on the same servers, which get
all bytes in one send; what all servers of its chain hold is published together. A *get*: one
look-up of all at the master, then as few servers as can be are asked for all that they have.

Sketch of a round of 16 puts of 1 KiB, 3 replicas: 3 sends of the client (a quarter of one for the
chunks), 2 for each server that passes on, 16 acknowledgements in one or a few sends; 3 hops to
threads of the servers and one of the master; one commit. Measured with 13 processes waiting for 2
cores, packed replicas on ext4: 263 µs of all processors for a put (client 49, master 82, three
servers 132), 65 µs for a get (29, 19, 17); one at a time 3,900 and 530.

What is not small, or fails in any way, is given back to its caller, which goes on by itself:
then it has the errors, and the deadlines, of a call of its own.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import trio

from gfs.blocks import BLOCK_BYTES, KIB, FileDigest, block_sum
from gfs.client.core import RELEASE_SECONDS, ClientCore
from gfs.client.publish import PublishOptions, publish_request
from gfs.client.read import (
    LOCATE_AHEAD,
    OF_BAD_REPLICAS,
    check_answer,
    check_path,
    report,
)
from gfs.client.rounds import BYTES_MAX, ITEMS_MAX, LATE_SECONDS, Item, Rounds
from gfs.diagnostics import CALL_BITS, request_of, working_for
from gfs.errors import (
    ChunkUnavailable,
    DeadlineExceeded,
    DiskFull,
    GfsError,
    IsADirectory,
    MasterUnavailable,
    NotEnoughChunkservers,
)
from gfs.protocol.messages import (
    ChunkLocation,
    Done,
    Locate,
    LocateReply,
    Publish,
    PublishReply,
    ReadChunk,
    ServerAddress,
    WriteSmall,
)
from gfs.protocol.patience import BYTES_PER_SECOND_MIN, small_write_seconds
from gfs.protocol.rpc import Reply

#: Refusals of a publication after which the bytes are written to another chunk: it was given up
#: by a master that restarted, or that took this client for dead.
WRITTEN_AGAIN = (ChunkUnavailable, DiskFull)

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Files of a few blocks are read in rounds, too, each block as a small file is: of 100 KiB that
#: costs all processors 210 µs, an exchange 370; of 256 KiB 490 and 600.
FEW_BYTES_MAX = 4 * BLOCK_BYTES
#: A round reads as much from one server before it asks the next.
SHARE_BYTES = 256 * KIB


def start(core: ClientCore, nursery: trio.Nursery) -> None:
    core.puts = Rounds(nursery, partial(_put_round, core))
    core.gets = Rounds(nursery, partial(_get_round, core))


def close(core: ClientCore) -> None:
    """End all calls, whatever it takes to release what they had reserved."""
    core.puts.close()
    core.gets.close()


async def closed(core: ClientCore) -> None:
    """Return when that is released."""
    await core.puts.ended()
    await core.gets.ended()


# --- writing -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Chunk:
    """The only chunk of a small file."""

    handle: int
    version: int
    length: int
    chain: list[ServerAddress]


class Put(Item):
    """A file of at most ``SMALL_BYTES_MAX`` that is to be stored. The bytes do not change."""

    __slots__ = (
        "chunk",
        "data",
        "goal",
        "options",
        "path",
        "publication",
        "reply",
        "request",
        "sum",
    )

    def __init__(
        self, path: str, data: bytes, options: PublishOptions, goal: int, request: int
    ) -> None:
        super().__init__(len(data))
        self.path = path
        self.data = data
        self.options = options
        self.goal = goal
        self.request = request << CALL_BITS
        self.sum = b""
        #: What is reserved for it and not published, as far as is known.
        self.chunk: _Chunk | None = None
        #: The message that publishes it, once that was sent.
        self.publication: tuple[Publish, bytes] | None = None
        self.reply: PublishReply | None = None


async def put_small(
    core: ClientCore, path: str, data: bytes, options: PublishOptions, replication: int
) -> PublishReply | None:
    """Store one file, together with those that are stored at the same time. None if it was not
    stored: it has to go by an exchange."""
    if not data:
        # Nothing is written: in a round it would wait for the bytes of others.
        request, body = publish_request(core, path, options, replication, [], FileDigest().digest())
        return await core.master.ask(request, PublishReply, body)
    one = Put(path, data, options, replication, core.present_request())
    await put_all(core, [one])
    if one.error is not None:
        raise one.error
    return one.reply


async def put_all(core: ClientCore, puts: Sequence[Put]) -> None:
    """Each has a reply then, or an error; or neither: it has to go by an exchange."""
    try:
        await core.puts.ask(puts)
        unclear = [put for put in puts if not put.reply and not put.error and put.publication]
        await _together(_publish_again, [(core, put) for put in unclear])
    finally:
        # The round releases the others.
        left = [put.chunk.handle for put in puts if put.ended and put.chunk is not None]
        await _release(core, left)


async def _publish_again(core: ClientCore, put: Put) -> None:
    """The master answers this as it has answered the first message, if it has had that."""
    assert put.publication is not None
    request, body = put.publication
    try:
        put.reply = await core.master.ask(request, PublishReply, body)
        _forget_chunk(core, put)
    except WRITTEN_AGAIN:
        pass
    except GfsError as error:
        put.error = error


def _forget_chunk(core: ClientCore, put: Put) -> None:
    """It is a file's now."""
    if put.chunk is not None:
        core.master.reservations.pop(put.chunk.handle, None)
        put.chunk = None


async def _release(core: ClientCore, handles: list[int]) -> None:
    """Whether a publication that was cancelled has happened is not known: then the master has
    no reservation of that chunk any more, and releases nothing."""
    if handles:
        with trio.move_on_after(RELEASE_SECONDS, shield=True):
            await core.release(handles)


async def _put_round(core: ClientCore, puts: list[Put]) -> None:
    await _PutRound(core, puts).run()


class _PutRound:
    """Puts that share messages. What is reserved, written and published at the same time shares
    that; for a goal, or a server, that lets wait, only its own files wait."""

    def __init__(self, core: ClientCore, puts: list[Put]) -> None:
        self._core = core
        self._puts = puts
        self._by_goal: dict[int, list[Put]] = {}
        for put in puts:
            if put.data:
                self._by_goal.setdefault(put.goal, []).append(put)
        #: Those on the same servers go along the same chain: then each of these servers has one
        #: batch to write, and not one for each order.
        self._chains: dict[frozenset[str], list[ServerAddress]] = {}
        #: What can be published.
        self._written = [put for put in puts if not put.data]
        #: Chunks that are released at the end.
        self._failed: list[int] = []
        #: Tasks that may have more written.
        self._tasks = len(self._by_goal)
        self._all_written = trio.Event()
        self._more = trio.Event()

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for goal, puts in self._by_goal.items():
                    nursery.start_soon(self._store, goal, puts)
                if self._tasks:
                    with trio.move_on_after(LATE_SECONDS):
                        await self._all_written.wait()
                await self._publish()
                while self._tasks or self._written:
                    await self._more.wait()
                    self._more = trio.Event()
                    await self._publish()
        finally:
            self._failed += [
                put.chunk.handle
                for put in self._puts
                if put.chunk is not None and (not put.ended or self._core.puts.is_closed)
            ]
            await _release(self._core, self._failed)

    def _fail(self, put: Put, error: GfsError | None = None) -> None:
        if put.chunk is not None:
            self._failed.append(put.chunk.handle)
            put.chunk = None
        put.end(error)

    async def _store(self, goal: int, puts: list[Put]) -> None:
        chosen = await self._reserve(goal, puts)
        longest = max((len(chunk.chain) for _, chunk in chosen), default=1)
        # The files of other goals may go over the same links.
        seconds = small_write_seconds(longest - 1, sum(put.size for put in self._puts))
        groups = _by_server(chosen, lambda each: each[1].chain[0])
        await _together(self._write, [(address, some, seconds) for address, some in groups.items()])
        self._tasks -= 1
        if not self._tasks:
            self._all_written.set()
            self._more.set()

    async def _reserve(self, goal: int, puts: list[Put]) -> list[tuple[Put, _Chunk]]:
        """Give each its chunk."""
        core = self._core
        try:
            # The master's log can name only one of their requests.
            with working_for(request_of(puts[0].request)):
                reserved, placed_for = await core.reserve_all(len(puts), goal)
        except (MasterUnavailable, NotEnoughChunkservers) as error:
            for put in puts:
                put.end(copy.copy(error))
            return []
        except (ConnectionError, GfsError):
            for put in puts:
                put.end()  # each has this error, or none, by itself
            return []
        for put, each in zip(puts, reserved, strict=True):
            if not put.is_wanted or core.suspects_any(each.chain):
                core.give_back(each, goal)
                put.end()
                continue
            servers = [server.id for server in each.chain]
            chain = self._chains.setdefault(frozenset(servers), each.chain)
            put.chunk = _Chunk(each.handle, each.version, len(put.data), chain)
            put.goal = placed_for
            put.sum = block_sum(put.data)
            core.master.reservations[each.handle] = each.version, 0, servers
        return [(put, put.chunk) for put in puts if put.chunk is not None]

    async def _write(self, address: str, some: list[tuple[Put, _Chunk]], seconds: float) -> None:
        """Have those on all servers of their chains that begin with this one."""
        requests = [
            (
                WriteSmall(put.request, chunk.handle, chunk.version, put.sum, chunk.chain[1:]),
                put.data,
            )
            for put, chunk in some
        ]

        def take(index: int, reply: Reply) -> None:
            put, chunk = some[index]
            if isinstance(reply, Exception):
                log.warning("chunk %016x: %s; writing another", chunk.handle, reply)
                self._core.suspect_after_small(reply, chunk.chain)
            elif isinstance(reply[0], Done):
                self._written.append(put)
                self._more.set()
                return
            self._fail(put)

        await self._core.links.ask(address, requests, seconds, take)

    async def _publish(self) -> None:
        """Those that are written so far. Of callers that have given up, nothing is sent."""
        core = self._core
        puts = [put for put in self._written if put.is_wanted]
        self._written.clear()
        requests = []
        for put in puts:
            digest = FileDigest()
            digest.update(put.sum)
            chunks = [put.chunk] if put.chunk is not None else []
            put.publication = publish_request(
                core, put.path, put.options, put.goal, chunks, digest.digest()
            )
            put.publication[0].id = put.request
            requests.append(put.publication)
        if not requests:
            return
        # No other task runs between the look at who waits still and the sending: a file that its
        # caller has given up never takes the place of one that the caller stored later.
        replies = await core.master.ask_now(requests, PublishReply)
        for put, reply in zip(puts, replies, strict=True):
            if isinstance(reply, WRITTEN_AGAIN):
                put.publication = None  # nor was it carried out
                self._fail(put)
            elif isinstance(reply, GfsError):
                self._fail(put, reply)
            elif reply is not None:
                _forget_chunk(core, put)
                put.reply = reply
                put.end()
            else:
                put.end()


# --- reading -----------------------------------------------------------------------------


class Get(Item):
    """A file that is to be read, if it is small, or of few blocks."""

    __slots__ = ("blocks", "data", "located", "path", "request")

    def __init__(self, path: str, request: int) -> None:
        super().__init__(0)
        self.path = path
        self.request = request << CALL_BITS
        self.data: bytes | None = None
        #: What has come so far, if there is more than one.
        self.blocks: dict[int, bytes] = {}
        #: Where it is, as far as that was asked.
        self.located: LocateReply | None = None


async def get_small(core: ClientCore, path: str) -> Get:
    """Read one file, together with those that are read at the same time. Without bytes then,
    it is not small, or has to be tried elsewhere."""
    check_path(path)
    one = Get(path, core.present_request())
    await core.gets.ask([one])
    if one.error is not None:
        raise one.error
    return one


async def _get_round(core: ClientCore, gets: list[Get]) -> None:
    requests = [
        (Locate(id=get.request, path=get.path, inode=0, first=0, count=LOCATE_AHEAD), b"")
        for get in gets
    ]
    small: list[_Read] = []
    asked: dict[str, int] = {}
    for get, reply in zip(gets, await core.master.ask_many(requests, LocateReply), strict=True):
        if isinstance(reply, GfsError):
            get.end(reply)
        elif reply.entry.kind == "directory":
            get.end(IsADirectory(f"{get.path}: is a directory"))
        else:
            get.located = reply
            if _is_small(reply):
                chunk = reply.chunks[0]
                server = _choose(core, [reply.servers[n] for n in chunk.servers], asked)
                asked[server.id] = asked.get(server.id, 0) + chunk.length
                small += [
                    _Read(get, chunk, server, at, min(BLOCK_BYTES, chunk.length - at))
                    for at in range(0, chunk.length, BLOCK_BYTES)
                ]
            else:
                get.end()
    parts = list(windows((read, read.length) for read in small))
    if len(parts) == 1:
        await _read_window(core, parts[0], sum(read.length for read in small))
    elif parts:
        await _read_windows(core, parts)


async def _read_windows(core: ClientCore, parts: list[list[_Read]]) -> None:
    """One after the other."""
    started: list[_Read] = []
    async with trio.open_nursery() as nursery:
        for reads in parts:
            started += reads
            to_come = sum(read.length for read in started if not read.get.ended)
            ended = trio.Event()
            nursery.start_soon(_read_window, core, reads, to_come, ended)
            # For a server that hangs the next files do not wait.
            with trio.move_on_after(LATE_SECONDS):
                await ended.wait()


async def _read_window(
    core: ClientCore, reads: list[_Read], to_come: int, ended: trio.Event | None = None
) -> None:
    """``to_come``: the bytes that the servers have to send for these and for what was asked
    before."""
    seconds = core.settings.hedge_seconds + to_come / BYTES_PER_SECOND_MIN
    groups = _by_server(reads, lambda read: read.server)
    await _together(_read, [(core, address, some, seconds) for address, some in groups.items()])
    if ended is not None:
        ended.set()


def _choose(core: ClientCore, holders: list[ServerAddress], asked: dict[str, int]) -> ServerAddress:
    """The first that is asked anyway, unless that is for much, else the first: what a server
    does for a batch it does for one as well."""
    order = core.in_order(holders)
    for server in order:
        if 0 < asked.get(server.id, 0) < SHARE_BYTES and not core.suspects_any([server]):
            return server
    return order[0]


class _Read(NamedTuple):
    """One block."""

    get: Get
    chunk: ChunkLocation
    server: ServerAddress
    offset: int
    length: int

    def take(self, data: bytes | None) -> None:
        """None: the file has to be read by itself."""
        get = self.get
        if get.ended:
            return
        if data is not None and self.length < self.chunk.length:
            get.blocks[self.offset] = data
            if len(get.blocks) * BLOCK_BYTES < self.chunk.length:
                return
            data = b"".join(get.blocks[at] for at in sorted(get.blocks))
        get.data = data
        get.end()


async def _read(core: ClientCore, address: str, reads: list[_Read], seconds: float) -> None:
    requests = [
        ReadChunk(get.request, chunk.handle, chunk.version, offset, length)
        for get, chunk, _, offset, length in reads
    ]
    bad: dict[int, tuple[_Read, GfsError]] = {}

    def take(index: int, reply: Reply) -> None:
        read = reads[index]
        try:
            if isinstance(reply, Exception):
                raise reply
            check_answer(requests[index], *reply)
        except (ConnectionError, GfsError) as error:
            if isinstance(error, (ConnectionError, DeadlineExceeded)):
                core.suspect(read.server.id)
            elif isinstance(error, OF_BAD_REPLICAS):
                log.warning("chunk %016x at %s: %s", read.chunk.handle, address, error)
                bad[read.chunk.handle] = read, error
            read.take(None)
        else:
            read.take(reply[1])

    await core.links.ask(address, [(each, b"") for each in requests], seconds, take)
    if bad:
        # A caller that reads its file by itself then may ask another server, and not meet it.
        reports = [(core, read.chunk, read.server, error) for read, error in bad.values()]
        await _together(report, reports)


def _is_small(reply: LocateReply) -> bool:
    entry, chunks = reply.entry, reply.chunks
    return (
        0 < entry.length <= FEW_BYTES_MAX
        and not entry.appended
        and len(chunks) == entry.chunks == 1
        and chunks[0].length == entry.length
        and bool(chunks[0].servers)
    )


# --- both --------------------------------------------------------------------------------


async def _together(work: Callable[..., Awaitable[object]], calls: list[tuple[Any, ...]]) -> None:
    """Calls of ``work`` with these arguments. A single one, as nearly always, is made in this
    task: another one would cost as much as four files do."""
    if len(calls) == 1:
        await work(*calls[0])
    elif calls:
        async with trio.open_nursery() as nursery:
            for arguments in calls:
                nursery.start_soon(work, *arguments)


def _by_server(asked: Iterable[T], server_of: Callable[[T], ServerAddress]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for each in asked:
        groups.setdefault(server_of(each).address, []).append(each)
    return groups


def windows(sized: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """Items in groups of what one round takes; with each comes its size."""
    window: list[T] = []
    total = 0
    for item, size in sized:
        if window and (len(window) >= ITEMS_MAX or total + size > BYTES_MAX):
            yield window
            window, total = [], 0
        window.append(item)
        total += size
    if window:
        yield window

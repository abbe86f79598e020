"""The truth about files and replicas: every replica is asked to read itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import trio

from gfs.client.core import ClientCore
from gfs.client.read import ask_server, ask_state, check_path
from gfs.errors import GfsError
from gfs.protocol.messages import (
    Done,
    FsckChunk,
    FsckPage,
    FsckPageReply,
    GarbageReplica,
    ListGarbage,
    ListGarbageReply,
    LookFor,
    LookForReply,
    ReplicaName,
    ReplicaState,
    ReportReplica,
    ServerAddress,
    VerifyChunk,
    VerifyReply,
)

PAGE_CHUNKS = 200
VERIFY_SECONDS = 60.0
#: Chunks at once whose replicas are read; each keeps one disk of one server busy.
VERIFY_AT_ONCE = 8

KEPT = "kept, for nothing better is there"
#: Of a lost chunk that is not lost for long.
MENDING = "no replica is good, but each block is in one: being put together from them"

DAMAGE = ("lost", "missing", "corrupt", "stale", "below_goal")


@dataclass(frozen=True)
class FsckProblem:
    """One finding. ``kind``: lost (no good replica left), missing, corrupt, stale
    (of one replica), below_goal (of a chunk), orphaned (of no file: no damage)."""

    kind: str
    path: str
    index: int
    handle: int
    version: int
    server: str
    detail: str


@dataclass
class FsckReport:
    files: int = 0
    chunks: int = 0
    replicas: int = 0
    bytes: int = 0
    problems: list[FsckProblem] = field(default_factory=list)

    @property
    def damaged(self) -> list[str]:
        """Paths of files with any damage, sorted."""
        return sorted({p.path for p in self.problems if p.kind in DAMAGE and p.path})

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(p.kind for p in self.problems))


@dataclass(frozen=True)
class ChunkReport:
    """One chunk of a file as the master knows it."""

    index: int
    handle: int
    version: int
    length: int
    goal: int
    replicas: list[ServerAddress]
    lease_ms: int
    primary: str


async def chunk_pages(core: ClientCore, path: str) -> AsyncIterator[FsckPageReply]:
    """All chunks of the files at and below ``path``, a page at a time."""
    check_path(path)
    cursor = b""
    while True:
        page = await core.master.ask(
            FsckPage(id=0, path=path, cursor=cursor, limit=PAGE_CHUNKS), FsckPageReply
        )
        yield page
        if not page.cursor:
            return
        cursor = page.cursor


@dataclass(frozen=True)
class Check:
    """What to check, and whom to tell of each chunk that is through."""

    core: ClientCore
    verify: bool = True
    #: Only what this chunkserver has, and only its replicas; empty: all.
    server: str = ""
    progress: Callable[[int], object] = lambda chunks: None

    def concerns(self, server: ServerAddress) -> bool:
        return self.server in ("", server.id)


async def fsck(check: Check, path: str) -> FsckReport:
    """Check everything at and below ``path``. With ``verify``, every replica reads
    all its blocks; without, only what is known is compared. Damage found is told
    to the master, which repairs it."""
    report = FsckReport()
    async for page in chunk_pages(check.core, path):
        report.files += page.files
        await _check_page(check, page, report)
    if path == "/" and not check.server:
        await _add_garbage(check.core, report)
    report.problems.sort(key=lambda p: (p.path, p.index, p.kind, p.server))
    return report


#: Of a server's replica of a chunk, by their id and handle.
States = dict[tuple[str, int], ReplicaState | Exception]


async def _check_page(check: Check, page: FsckPageReply, report: FsckReport) -> None:
    slots = trio.CapacityLimiter(VERIFY_AT_ONCE)
    known = {} if check.verify else await _looked_for(check, page)

    async def one(
        chunk: FsckChunk, servers: list[ServerAddress], damaged: list[ServerAddress]
    ) -> None:
        async with slots:
            report.chunks += 1
            report.bytes += chunk.length
            await _check_chunk(check, chunk, servers, damaged, report, known)
            check.progress(1)

    async with trio.open_nursery() as nursery:
        for chunk in page.chunks:
            servers, damaged = (
                [server for n in places if check.concerns(server := page.servers[n])]
                for places in (chunk.servers, chunk.damaged)
            )
            if servers or damaged or not check.server:
                nursery.start_soon(one, chunk, servers, damaged)
            else:
                check.progress(1)


async def _looked_for(check: Check, page: FsckPageReply) -> States:
    """Each server is asked once for all that it has of this page."""
    known: States = {}

    async def ask(server: ServerAddress, replicas: list[ReplicaName]) -> None:
        question = LookFor(check.core.message_id(), replicas)
        states: Sequence[ReplicaState | Exception]
        try:
            reply = await ask_server(check.core, server, question, LookForReply, VERIFY_SECONDS)
            states = reply.states
        except (ConnectionError, GfsError) as error:
            states = [error] * len(replicas)
        for name, state in zip(replicas, states, strict=True):
            known[server.id, name.handle] = state

    async with trio.open_nursery() as nursery:
        for number, server in enumerate(page.servers):
            replicas = [
                ReplicaName(chunk.handle, chunk.version)
                for chunk in page.chunks
                if number in chunk.servers and check.concerns(server)
            ]
            if replicas:
                nursery.start_soon(ask, server, replicas)
    return known


async def _check_chunk(
    check: Check,
    chunk: FsckChunk,
    servers: list[ServerAddress],
    damaged: list[ServerAddress],
    report: FsckReport,
    known: States,
) -> None:
    core, verify = check.core, check.verify
    good = 0
    #: Of each damaged replica: the blocks that are, None if that is not known.
    bad: list[set[int] | None] = []
    for server in (*servers, *damaged):
        report.replicas += 1
        if server in damaged and not verify:
            _add(report, chunk, "corrupt", server.id, KEPT)
            bad.append(None)
            continue
        kind, detail, blocks = await _state(core, chunk, server, known)
        if kind == "corrupt":
            bad.append(blocks)
        if server in damaged and kind == "corrupt":
            _add(report, chunk, kind, server.id, f"{detail}; {KEPT}")
            continue
        if kind == "good":
            good += 1
            continue
        _add(report, chunk, kind, server.id, detail)
        await core.master.ask(
            ReportReplica(
                id=0, handle=chunk.handle, version=chunk.version, server=server.id, kind=kind
            ),
            Done,
        )
    if check.server:
        return  # what others have is not known
    if not good and chunk.length:
        _add(report, chunk, "lost", "", _what_is_left(bad))
    elif good < chunk.goal:
        _add(report, chunk, "below_goal", "", f"{good} good replicas, the goal is {chunk.goal}")


def _what_is_left(bad: list[set[int] | None]) -> str:
    known = [blocks for blocks in bad if blocks is not None]
    if not bad or len(known) < len(bad):
        return "no good replica is left"
    nowhere = set.intersection(*known)
    if nowhere:
        return f"{_blocks(nowhere)}: damaged in every replica there is"
    return MENDING


def _blocks(blocks: set[int]) -> str:
    told = ", ".join(map(str, sorted(blocks)[:10]))
    return f"blocks {told}{' …' if len(blocks) > 10 else ''}"


def _add(report: FsckReport, chunk: FsckChunk, kind: str, server: str, detail: str) -> None:
    report.problems.append(
        FsckProblem(kind, chunk.path, chunk.index, chunk.handle, chunk.version, server, detail)
    )


async def _state(
    core: ClientCore, chunk: FsckChunk, server: ServerAddress, known: States
) -> tuple[str, str, set[int] | None]:
    """Its kind, why, and which blocks are damaged if that is known. Its server is asked
    to read it unless something is ``known``."""
    reply = known.get((server.id, chunk.handle)) or await _verified(core, chunk, server)
    if isinstance(reply, Exception):
        return "missing", f"{server.address} does not answer: {reply}", None
    if reply.state == "corrupt":
        bad = set(reply.bad_blocks) if isinstance(reply, VerifyReply) else None
        if not bad:
            return "corrupt", "its head is damaged, or a part of it cannot be read", None
        return "corrupt", _blocks(bad), bad
    if reply.state != "good":
        return reply.state, f"version {reply.version} there", None
    if reply.length < chunk.length:
        return "corrupt", f"{reply.length} bytes there, {chunk.length} in the file", None
    return "good", "", None


async def _verified(
    core: ClientCore, chunk: FsckChunk, server: ServerAddress
) -> VerifyReply | Exception:
    try:
        question = VerifyChunk(core.message_id(), chunk.handle, chunk.version)
        return await ask_state(core, server, question, VERIFY_SECONDS)
    except (ConnectionError, GfsError) as error:
        return error


async def _add_garbage(core: ClientCore, report: FsckReport) -> None:
    """Replicas that no file wants, on their way out; and what is kept until there are
    enough good ones, told with its file as well if that has nothing better."""
    after = -1
    while True:
        reply = await core.master.ask(ListGarbage(id=0, after=after, limit=1000), ListGarbageReply)
        for replica in reply.replicas:
            after = max(after, replica.handle)
            report.problems.append(_garbage(replica))
        if not reply.more or not reply.replicas:
            return


def _garbage(replica: GarbageReplica) -> FsckProblem:
    detail = "kept: its chunk has too few good replicas" if replica.kept else "to be collected"
    return FsckProblem(replica.kind, "", 0, replica.handle, replica.version, replica.server, detail)

"""``fsck``: compare files with their replicas, each read and verified by its server."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import trio

from gfs.client.core import ClientCore
from gfs.client.read import ask_server, ask_state, check_path
from gfs.errors import GfsError
from gfs.protocol.messages import (
    Done,
    FileChunkName,
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
#: Chunks that are checked concurrently; each keeps one disk of one server busy.
VERIFY_AT_ONCE = 8
#: A chunk that changes during each of these checks is reported as the last one found it.
LOOKS_MAX = 5
CHANGING = f"it changed during each of {LOOKS_MAX} checks: run gfs fsck again"
#: How long is waited for the master to have the damage verified that was reported to it, and in
#: how many replicas.
AGREE_SECONDS = 5.0
AGREE_POLL_SECONDS = 0.1
REPORTED_MAX = 200

KEPT = "kept, because nothing better is left"
#: Detail of a lost chunk that is being salvaged.
MENDING = "no replica is good, but each block is good in one: the chunk is being salvaged"


@dataclass(frozen=True)
class FsckProblem:
    """One finding. ``kind``: lost (no good replica left), missing, corrupt, stale, forgetful
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
        return sorted({p.path for p in self.problems if p.kind != "orphaned" and p.path})

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(p.kind for p in self.problems))


@dataclass(frozen=True)
class ChunkReport:
    """One chunk of a file, with the master's state of it."""

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
    """What to check, and the callback for each checked chunk."""

    core: ClientCore
    verify: bool = True
    #: Check only chunks and replicas on this chunkserver; empty: all.
    server: str = ""
    progress: Callable[[int], object] = lambda chunks: None
    #: Damaged replicas that were reported to the master, by their server.
    reported: list[tuple[FsckChunk, str]] = field(default_factory=list)

    def concerns(self, server: ServerAddress) -> bool:
        return self.server in ("", server.id)


async def fsck(check: Check, path: str) -> FsckReport:
    """Check everything at and below ``path``. With ``verify``, servers read all blocks of
    their replicas; without, only metadata is compared. Damage is reported to the
    master, which repairs it."""
    report = FsckReport()
    async for page in chunk_pages(check.core, path):
        report.files += page.files
        await _check_page(check, page, report)
    await _wait_for_master(check)
    if path == "/" and not check.server:
        await _add_garbage(check.core, report)
    report.problems.sort(key=lambda p: (p.path, p.index, p.kind, p.server))
    return report


@dataclass(frozen=True)
class Known:
    """A chunk with the master's state of it at one time."""

    chunk: FsckChunk
    servers: list[ServerAddress]
    damaged: list[ServerAddress]
    #: From earlier checks: damage, although the chunk has changed since.
    found: list[FsckProblem] = field(default_factory=list)

    def is_as(self, other: Known) -> bool:
        return self._compared() == other._compared()

    def _compared(self) -> tuple[object, ...]:
        chunk, servers = self.chunk, sorted(server.id for server in self.servers)
        damaged = sorted(server.id for server in self.damaged)
        return chunk.handle, chunk.version, chunk.length, chunk.goal, servers, damaged


class Finding:
    """The problems of a chunk, and the servers whose replicas are reported to the master."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.problems = known.found[:]
        self.unfit: list[tuple[ServerAddress, str]] = []

    def add(self, kind: str, server: str, detail: str) -> None:
        c = self.known.chunk
        # Replaces the result of an earlier check.
        self.problems = [p for p in self.problems if (p.kind, p.server) != (kind, server)]
        self.problems.append(
            FsckProblem(kind, c.path, c.index, c.handle, c.version, server, detail)
        )


#: The reply about each replica, by the server's id and the chunk's handle.
States = dict[tuple[str, int], ReplicaState | Exception]


def _known(check: Check, page: FsckPageReply, chunk: FsckChunk) -> Known:
    servers, damaged = (
        [server for n in places if check.concerns(server := page.servers[n])]
        for places in (chunk.servers, chunk.damaged)
    )
    return Known(chunk, servers, damaged)


async def _check_page(check: Check, page: FsckPageReply, report: FsckReport) -> None:
    """Check the chunks of a page. Damage counts if the chunk is unchanged when the check
    ends; otherwise the chunk is checked again: replicas move, and files are rewritten and
    deleted, at any time, and none of that is damage."""
    left = [_known(check, page, chunk) for chunk in page.chunks]
    for look in range(1, LOOKS_MAX + 1):
        findings = await _look(check, left, report)
        left = []
        known = await _known_again(check, [finding.known.chunk for finding in findings])
        for finding, now in zip(findings, known, strict=True):
            if now is not None and not now.is_as(finding.known):
                if look < LOOKS_MAX:
                    now.found.extend(_standing(check, finding, now))
                    left.append(now)
                    continue
                finding.problems = [
                    replace(problem, detail=f"{problem.detail}; {CHANGING}")
                    for problem in finding.problems
                ]
            if now is not None:
                await _count(check, finding, report)
            check.progress(1)
        if not left:
            return


def _standing(check: Check, finding: Finding, now: Known) -> list[FsckProblem]:
    """The problems that remain true of a chunk that has changed: a server that finds damage
    also reports it to the master, which then does not name this replica any more."""
    is_short = bool(check.server) and len(now.chunk.servers) < now.chunk.goal
    return [p for p in finding.problems if p.kind == "corrupt" or is_short]


async def _known_again(check: Check, chunks: list[FsckChunk]) -> list[Known | None]:
    """The master's present state of the same chunks; None: the chunk is gone."""
    found: list[Known | None] = []
    while left := chunks[len(found) :]:
        names = [FileChunkName(chunk.inode, chunk.index) for chunk in left]
        page = await check.core.master.ask(
            FsckPage(id=0, path="/", cursor=b"", limit=len(names), again=names), FsckPageReply
        )
        for before, chunk in zip(left, page.chunks, strict=False):
            chunk.path = before.path
            found.append(_known(check, page, chunk) if chunk.version else None)
    return found


async def _look(check: Check, chunks: list[Known], report: FsckReport) -> list[Finding]:
    """The chunks that seem damaged; good ones are counted."""
    slots = trio.CapacityLimiter(VERIFY_AT_ONCE)
    states = {} if check.verify else await _looked_for(check, chunks)
    suspects: list[Finding] = []

    async def one(known: Known) -> None:
        async with slots:
            finding = await _check_chunk(check, known, states)
        if finding.problems:
            suspects.append(finding)
        else:
            await _count(check, finding, report)
            check.progress(1)

    async with trio.open_nursery() as nursery:
        for known in chunks:
            if known.servers or known.damaged or known.found or not check.server:
                nursery.start_soon(one, known)
            else:
                check.progress(1)
    return suspects


async def _count(check: Check, finding: Finding, report: FsckReport) -> None:
    """Add a confirmed result to the report, and report damage to the master."""
    known = finding.known
    report.chunks += 1
    report.bytes += known.chunk.length
    report.replicas += len(known.servers) + len(known.damaged)
    report.problems += finding.problems
    for server, kind in finding.unfit:
        request = ReportReplica(
            id=0,
            handle=known.chunk.handle,
            version=known.chunk.version,
            server=server.id,
            kind=kind,
        )
        await check.core.master.ask(request, Done)
        if kind == "corrupt" and len(check.reported) < REPORTED_MAX:
            check.reported.append((known.chunk, server.id))


async def _wait_for_master(check: Check) -> None:
    """Wait until the master counts the damage that was reported to it, or for AGREE_SECONDS: it has
    it verified first, and its status right after this is to say the same."""
    left = check.reported
    with trio.move_on_after(AGREE_SECONDS):
        while left:
            known = await _known_again(check, [chunk for chunk, _ in left])
            left = [
                (chunk, server)
                for (chunk, server), now in zip(left, known, strict=True)
                if now is not None and any(each.id == server for each in now.servers)
            ]
            if left:
                await trio.sleep(AGREE_POLL_SECONDS)


async def _looked_for(check: Check, chunks: list[Known]) -> States:
    """Ask each server once for all of its replicas of these chunks."""
    states: States = {}
    wanted: dict[str, tuple[ServerAddress, list[ReplicaName]]] = {}
    for known in chunks:
        for server in known.servers:
            name = ReplicaName(known.chunk.handle, known.chunk.version)
            wanted.setdefault(server.id, (server, []))[1].append(name)

    async def ask(server: ServerAddress, replicas: list[ReplicaName]) -> None:
        question = LookFor(check.core.message_id(), replicas)
        said: Sequence[ReplicaState | Exception]
        try:
            reply = await ask_server(check.core, server, question, LookForReply, VERIFY_SECONDS)
            said = reply.states
        except (ConnectionError, GfsError) as error:
            said = [error] * len(replicas)
        for name, state in zip(replicas, said, strict=True):
            states[server.id, name.handle] = state

    async with trio.open_nursery() as nursery:
        for server, replicas in wanted.values():
            nursery.start_soon(ask, server, replicas)
    return states


async def _check_chunk(check: Check, known: Known, states: States) -> Finding:
    chunk, finding = known.chunk, Finding(known)
    good = 0
    #: The damaged blocks of each damaged replica, None if they are not known.
    bad: list[set[int] | None] = []
    for server in (*known.servers, *known.damaged):
        is_damaged = server in known.damaged
        if is_damaged and not check.verify:
            finding.add("corrupt", server.id, KEPT)
            bad.append(None)
            continue
        kind, detail, blocks = await _state(check.core, chunk, server, states)
        if kind == "corrupt":
            bad.append(blocks)
        if is_damaged and kind == "corrupt":
            finding.add(kind, server.id, f"{detail}; {KEPT}")
        elif kind == "good":
            good += 1
        else:
            finding.add(kind, server.id, detail)
            finding.unfit.append((server, kind))
    if check.server:
        return finding  # the other servers' replicas are not known
    if not good and chunk.length:
        finding.add("lost", "", _what_is_left(bad))
    elif good < chunk.goal:
        finding.add("below_goal", "", f"{good} good replicas, the goal is {chunk.goal}")
    return finding


def _what_is_left(bad: list[set[int] | None]) -> str:
    known = [blocks for blocks in bad if blocks is not None]
    if not bad or len(known) < len(bad):
        return "no good replica is left"
    nowhere = set.intersection(*known)
    if nowhere:
        return f"{_blocks(nowhere)}: damaged in every replica"
    return MENDING


def _blocks(blocks: set[int]) -> str:
    listed = ", ".join(map(str, sorted(blocks)[:10]))
    return f"blocks {listed}{' …' if len(blocks) > 10 else ''}"


async def _state(
    core: ClientCore, chunk: FsckChunk, server: ServerAddress, states: States
) -> tuple[str, str, set[int] | None]:
    """The replica's kind of problem, the reason, and the damaged blocks if they are known.
    Its server is asked to read it unless its state is known."""
    reply = states.get((server.id, chunk.handle)) or await _verified(core, chunk, server)
    if isinstance(reply, Exception):
        return "missing", f"{server.address} does not answer: {reply}", None
    if reply.state == "corrupt":
        bad = set(reply.bad_blocks) if isinstance(reply, VerifyReply) else None
        if not bad:
            return "corrupt", "its head is damaged, or a part of it cannot be read", None
        return "corrupt", _blocks(bad), bad
    if reply.state != "good":
        return reply.state, f"the replica has version {reply.version}", None
    if reply.length < chunk.length:
        return "corrupt", f"the replica has {reply.length} bytes, the chunk {chunk.length}", None
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
    """Replicas of chunks in no file, which are being deleted; and those kept until there
    are enough good ones, listed under their file as well if it has nothing better."""
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

"""The truth about files and replicas: every replica is asked to read itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import trio

from gfs.client.core import ClientCore
from gfs.client.read import check_path
from gfs.errors import GfsError, ProtocolError
from gfs.protocol.deadline import deadline
from gfs.protocol.messages import (
    Done,
    FsckChunk,
    FsckPage,
    FsckPageReply,
    GarbageReplica,
    ListGarbage,
    ListGarbageReply,
    ReportReplica,
    ServerAddress,
    VerifyChunk,
    VerifyReply,
)

PAGE_CHUNKS = 200
VERIFY_SECONDS = 60.0
#: Replicas being read at once; each keeps one disk of one server busy.
VERIFY_AT_ONCE = 8

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


async def fsck(
    core: ClientCore, path: str, *, verify: bool, progress: Callable[[int], object] | None
) -> FsckReport:
    """Check everything at and below ``path``. With ``verify``, every replica reads
    all its blocks; without, only what is known is compared. Damage found is told
    to the master, which repairs it."""
    report = FsckReport()
    async for page in chunk_pages(core, path):
        report.files += page.files
        await _check_page(core, page, report, verify)
        if progress is not None:
            progress(len(page.chunks))
    if path == "/":
        await _add_garbage(core, report)
    report.problems.sort(key=lambda p: (p.path, p.index, p.kind, p.server))
    return report


async def _check_page(
    core: ClientCore, page: FsckPageReply, report: FsckReport, verify: bool
) -> None:
    slots = trio.CapacityLimiter(VERIFY_AT_ONCE)

    async def one(chunk: FsckChunk) -> None:
        async with slots:
            servers = [page.servers[n] for n in chunk.servers]
            await _check_chunk(core, chunk, servers, report, verify)

    async with trio.open_nursery() as nursery:
        for chunk in page.chunks:
            report.chunks += 1
            report.bytes += chunk.length
            nursery.start_soon(one, chunk)


async def _check_chunk(
    core: ClientCore,
    chunk: FsckChunk,
    servers: list[ServerAddress],
    report: FsckReport,
    verify: bool,
) -> None:
    good = 0
    for server in servers:
        report.replicas += 1
        kind, detail = await _state(core, chunk, server, verify)
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
    if not good and chunk.length:
        _add(report, chunk, "lost", "", "no good replica is left")
    elif good < chunk.goal:
        _add(report, chunk, "below_goal", "", f"{good} good replicas, the goal is {chunk.goal}")


def _add(report: FsckReport, chunk: FsckChunk, kind: str, server: str, detail: str) -> None:
    report.problems.append(
        FsckProblem(kind, chunk.path, chunk.index, chunk.handle, chunk.version, server, detail)
    )


async def _state(
    core: ClientCore, chunk: FsckChunk, server: ServerAddress, verify: bool
) -> tuple[str, str]:
    try:
        reply = await _ask(core, chunk, server, verify)
    except (ConnectionError, GfsError) as error:
        return "missing", f"{server.address} does not answer: {error}"
    if reply.state == "corrupt":
        blocks = ", ".join(map(str, reply.bad_blocks[:10]))
        return "corrupt", f"blocks {blocks}" if blocks else "its head is damaged"
    if reply.state != "good":
        return reply.state, f"version {reply.version} there"
    if reply.length < chunk.length:
        return "corrupt", f"{reply.length} bytes there, {chunk.length} in the file"
    return "good", ""


async def _ask(
    core: ClientCore, chunk: FsckChunk, server: ServerAddress, verify: bool
) -> VerifyReply:
    connection = await core.pool.acquire(server.address)
    try:
        with deadline(VERIFY_SECONDS, f"answer from {server.address}"):
            await connection.send(
                VerifyChunk(id=0, handle=chunk.handle, version=chunk.version, blocks=verify)
            )
            reply = await connection.receive_reply()
        if not isinstance(reply, VerifyReply):
            raise ProtocolError(f"{type(reply).__name__} instead of a verification")
    except BaseException:
        connection.close()
        raise
    core.pool.release(connection, server.address)
    return reply


async def _add_garbage(core: ClientCore, report: FsckReport) -> None:
    """Replicas that no file wants. Stale and corrupt ones were told with their file
    if that still counts them; here they are only on their way out."""
    after = -1
    while True:
        reply = await core.master.ask(ListGarbage(id=0, after=after, limit=1000), ListGarbageReply)
        for replica in reply.replicas:
            after = max(after, replica.handle)
            report.problems.append(_garbage(replica))
        if not reply.more or not reply.replicas:
            return


def _garbage(replica: GarbageReplica) -> FsckProblem:
    return FsckProblem(
        replica.kind, "", 0, replica.handle, replica.version, replica.server, "to be collected"
    )

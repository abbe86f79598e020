"""``gfs status``, ``fsck`` and ``locate``: the state of the cluster and of its files.

Every warning names the next command to run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import click

from gfs.blocks import MIB
from gfs.cli import progress
from gfs.cli.disks import disk_table, disk_warnings, row
from gfs.cli.drain import drain_line
from gfs.cli.exits import Failed
from gfs.cli.options import Cluster, client_options, json_option, remote_path
from gfs.cli.output import (
    Output,
    human_bytes,
    human_seconds,
    human_time,
    plain,
    table,
    to_json,
)
from gfs.cli.progress import Progress
from gfs.cli.session import run_with_client
from gfs.client import (
    MENDING,
    ChunkReport,
    Client,
    FsckProblem,
    FsckReport,
    find_masters,
    space_of,
)
from gfs.failures import plural
from gfs.protocol.messages import (
    READERS_SECONDS_MAX,
    ClusterTotals,
    ElectionReply,
    Scrub,
    ServerStatus,
    ShadowStatus,
    StatusReply,
)

#: How long ``status`` waits for an answer by default.
STATUS_SECONDS = 10.0
#: Limits of warnings: certificates that expire, metadata that fills its disk or its map.
CERTIFICATE_DAYS = 30
DAY_NS = 24 * 3600 * 1_000_000_000
METADATA_FREE_BYTES_LOW = 1024 * MIB
METADATA_SHARE_HIGH = 0.8
#: Problems of one kind that are printed one by one; ``--json`` has all.
PRINTED_MAX = 100


@click.command()
@click.option("--disks", is_flag=True, help="Show each disk of each chunkserver instead.")
@click.option(
    "--whole",
    is_flag=True,
    help="Print only what keeps another machine from being stopped (a chunk below its goal, a "
    "server that is away), with exit code 1 if there is any.",
)
@click.option(
    "--with",
    "expected",
    metavar="HOST:PORT",
    help="With --whole: the chunkserver or master at this address must be there, too.",
)
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(min=0.1),
    default=STATUS_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Fail (exit code 3) if no master answers within this time.",
)
@json_option("all of it")
@client_options
def status(
    cluster: Cluster,
    disks: bool,
    whole: bool,
    expected: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Show the servers and the cluster's totals, and what to do about problems.

    Exit code 0 if a master answered, also with warnings; 3 if none did.
    """
    if expected and not whole:
        raise click.UsageError("--with is for --whole")

    async def work(client: Client) -> None:
        reply = await client.status()
        async with Output() as output:
            if whole:
                named = find_masters(cluster.master, cluster.state)
                missing = list(_missing(reply, await client.election(), expected, named))
                for line in [to_json(missing)] if as_json else missing:
                    await output.line(line)
                if missing:
                    raise Failed
                return
            if disks:
                found = [(server.id, each) for server in reply.servers for each in server.disks]
                if as_json:
                    await output.line(to_json([row(*each) for each in found]))
                    return
                await output.line(disk_table(found))
                for server in reply.servers:
                    for warning in disk_warnings(server):
                        await output.line(warning)
                return
            election = await client.election()
            if as_json:
                elected = {"election": plain(election)} if election.engine else {}
                await output.line(to_json({**plain(reply), **elected}))
                return
            now_ns = time.time_ns()
            parts = [_servers(reply), _totals(reply), *masters(reply), *elections(election, now_ns)]
            for part in (*parts, *advice(reply, election, now_ns)):
                await output.line(part)

    run_with_client(cluster, work, seconds=seconds)


def leaders(named: Sequence[str], reply: StatusReply) -> set[str]:
    """Who of these masters may be the one that answered: one that nobody elects does not name
    itself, but it is no shadow master."""
    return {*named}.difference(shadow.address for shadow in reply.shadows)


def _missing(
    reply: StatusReply,
    election: ElectionReply,
    expected: str | None = None,
    named: Sequence[str] = (),
) -> Iterator[str]:
    """Why another server must not be stopped now. ``named``: the addresses of masters."""
    if reply.role == "shadow":
        yield "no master answers, a shadow master does"
        return
    totals = reply.totals
    below = totals.under_replicated + totals.corrupt + totals.lost + totals.unlocated
    if below:
        yield f"{plural(below, 'chunk')} below the goal: gfs repair status"
    for server in reply.servers:
        if server.state == "silent":
            yield f"chunkserver {server.id} at {server.address} is silent"
    for shadow in reply.shadows:
        if shadow.state != "following":
            yield f"shadow master {shadow.address}: {shadow.state}"
    following = [shadow.address for shadow in reply.shadows if shadow.state == "following"]
    if len(following) < reply.replicas_before_ack:
        yield (
            f"{plural(len(following), 'shadow master')} of {reply.replicas_before_ack} that must "
            "follow"
        )
    live = {server.address for server in reply.servers if server.state == "live"}
    master = {election.holder} if election.engine else leaders(named, reply)
    there = live.union(following, master if len(master) == 1 else ())
    if expected and expected not in there:
        yield f"the server at {expected} is not there yet"


def _servers(reply: StatusReply) -> str:
    titles = [
        *("CHUNKSERVER", "ADDRESS", "RACK", "STATE", "USED", "FREE", "CHUNKS"),
        *("SCRUBBED", "HEARTBEAT"),
    ]
    rows = [_server_row(server) for server in reply.servers]
    return table(titles, rows, right=(4, 5, 6, 7, 8))


def _server_row(server: ServerStatus) -> list[str]:
    total, free = space_of([server])
    state = server.state
    unfit = sorted({disk.state for disk in server.disks if disk.state != "ok"})
    if server.drain:
        state = server.drain if server.state == "live" else f"{state}, {server.drain}"
    if unfit:
        state += f" (disk {', '.join(unfit)})"
    return [
        server.id,
        server.address,
        server.rack,
        state,
        human_bytes(total - free),
        human_bytes(free),
        str(server.chunks),
        _scrubbed(server.scrub),
        f"{human_seconds(server.heartbeat_age_ms / 1000)} ago",
    ]


def _scrubbed(scrub: Scrub) -> str:
    """The share of the server's bytes that it has verified in this pass."""
    return f"{100 * scrub.done_bytes // scrub.total_bytes} %" if scrub.total_bytes else "-"


def _totals(reply: StatusReply) -> str:
    totals = reply.totals
    return "\n".join(
        [
            "",
            f"cluster {reply.cluster}: {plural(totals.files, 'file')}, "
            f"{plural(totals.directories, 'directory')}, {human_bytes(totals.bytes)} "
            f"in {plural(totals.chunks, 'chunk')}{_shared(totals)}",
            f"chunks: {totals.under_replicated} under-replicated, {totals.corrupt} corrupt, "
            f"{totals.lost} lost; {totals.stale} stale",
            f"garbage: {plural(totals.orphaned, 'replica')}, "
            f"{human_bytes(totals.orphaned_bytes)} to be deleted",
            f"repairs: {totals.repairs_active} running, {totals.repairs_queued} waiting",
            *_moves(totals),
            *_trash(totals),
            *_machines(reply, time.time_ns()),
        ]
    )


def _shared(totals: ClusterTotals) -> str:
    if not totals.shared_bytes:
        return ""
    return f", {human_bytes(totals.shared_bytes)} of it shared by snapshots and stored once"


def _moves(totals: ClusterTotals) -> Iterator[str]:
    if totals.moves_active or totals.moves_queued:
        yield (
            f"moves (draining, rebalancing): {totals.moves_active} running, "
            f"{totals.moves_queued} waiting"
        )


def _trash(totals: ClusterTotals) -> Iterator[str]:
    if totals.trash_rows:
        oldest = "" if not totals.trash_oldest_ns else (
            f"; the oldest, deleted {human_time(totals.trash_oldest_ns)}, is purged "
            f"{human_time(totals.trash_until_ns)}"
        )  # fmt: skip
        yield (
            f"trash: {plural(totals.trash_files, 'file')}, {human_bytes(totals.trash_bytes)}"
            f"{oldest} (gfs ls --trash; gfs undelete; gfs rm --trash)"
        )
    if totals.replaced_files:
        yield (
            f"replaced: {plural(totals.replaced_files, 'file')}, "
            f"{human_bytes(totals.replaced_bytes)}, kept for readers for "
            f"{human_seconds(READERS_SECONDS_MAX)} at most"
        )
    if totals.trash_purged:
        yield (
            f"trash: {plural(totals.trash_purged, 'deletion')}, "
            f"{human_bytes(totals.trash_purged_bytes)}, purged early for want of space "
            "since the master was started (trash_purged in its log)"
        )


def _machines(reply: StatusReply, now_ns: int) -> Iterator[str]:
    """The space that the master's machine has for metadata, and the first certificate to expire."""
    metadata = reply.metadata
    if metadata.used_bytes >= 0:
        free = f", {human_bytes(metadata.disk_free_bytes)} free on its disk"
        yield (
            f"metadata: {human_bytes(metadata.used_bytes)} of at most "
            f"{human_bytes(metadata.map_bytes)}{free if metadata.disk_free_bytes >= 0 else ''}"
        )
    certificates = _certificates(reply)
    if certificates:
        until_ns, name = min(certificates)
        yield f"certificates: the first to end is that of {name}: it {_ends(until_ns, now_ns)}"


def _certificates(reply: StatusReply) -> list[tuple[int, str]]:
    """When the certificate of each server that has one ends."""
    found = [(reply.certificate_until_ns, f"this {reply.role}")]
    found += [(s.certificate_until_ns, f"the shadow {s.address}") for s in reply.shadows]
    found += [(s.certificate_until_ns, f"{s.id} ({s.address})") for s in reply.servers]
    return [(until_ns, name) for until_ns, name in found if until_ns]


def _ends(until_ns: int, now_ns: int) -> str:
    days = (until_ns - now_ns) / DAY_NS
    if days < 0:
        return f"has ended: {human_time(until_ns)}"
    return f"ends in {plural(int(days), 'day')}"


def advice(reply: StatusReply, election: ElectionReply, now_ns: int) -> Iterator[str]:
    """What asks for something to be done about the cluster, each with the next command. Nothing
    if all is well."""
    yield from _master_warnings(reply)
    yield from _election_warnings(election)
    yield from _warnings(reply)
    yield from machine_warnings(reply, now_ns)


def machine_warnings(reply: StatusReply, now_ns: int) -> Iterator[str]:
    """Warnings of what will expire or fill up."""
    metadata = reply.metadata
    if 0 <= metadata.disk_free_bytes < METADATA_FREE_BYTES_LOW:
        yield (
            f"WARNING: the metadata's disk has {human_bytes(metadata.disk_free_bytes)} free; with "
            "less than 32 MiB nothing new can be created: make room on the master's machine: df -h"
        )
    if metadata.used_bytes > METADATA_SHARE_HIGH * metadata.map_bytes:
        yield (
            f"WARNING: the metadata has grown to {human_bytes(metadata.used_bytes)} of at most "
            f"{human_bytes(metadata.map_bytes)}: give the master a larger map_bytes "
            "(GFS_MASTER_MAP_BYTES) and start it again: gfs master"
        )
    for until_ns, name in sorted(_certificates(reply)):
        if until_ns - now_ns < CERTIFICATE_DAYS * DAY_NS:
            yield (
                f"WARNING: the certificate of {name} {_ends(until_ns, now_ns)}: put a new one in "
                "place (docs/keys.md); no restart is needed; whether it is used: gfs status"
            )


def masters(reply: StatusReply) -> Iterator[str]:
    """The master that answered, and the progress of the shadow masters."""
    if reply.role == "shadow":
        yield (
            f"This is a shadow master; the master is at {reply.master or 'an unknown address'}. "
            f"At operation {reply.sequence}, {plural(reply.behind_operations, 'operation')} and "
            f"{human_seconds(reply.behind_ms / 1000)} behind it"
        )
        return
    if reply.term or reply.shadows or reply.replicas_before_ack:
        yield (
            f"master: term {reply.term >> 32}, at operation {reply.sequence}; "
            f"{plural(reply.replicas_before_ack, 'shadow')} must have it before it is acknowledged"
        )
    for shadow in reply.shadows:
        yield f"shadow {shadow.address}: {shadow.state}, {_behind(reply, shadow)}"


def _master_warnings(reply: StatusReply) -> Iterator[str]:
    """What the shadow masters lack. Of them only the master knows."""
    if reply.role == "shadow":
        return
    following = sum(shadow.state == "following" for shadow in reply.shadows)
    if following < reply.replicas_before_ack:
        yield (
            f"WARNING: mutations are refused: {reply.replicas_before_ack} shadow masters must "
            f"follow, {following} of those that count do: start the missing ones: gfs master "
            "--shadow-of ADDRESS; if one is lost for good: gfs forget ADDRESS"
        )
    elif any(shadow.state == "away" for shadow in reply.shadows):
        yield (
            "WARNING: a shadow master is away: see its log, start it again: "
            "gfs master --shadow-of ADDRESS"
        )


def elections(reply: ElectionReply, now_ns: int) -> Iterator[str]:
    """Who has the hold, and since when."""
    if not reply.engine:
        return
    since = f"since {human_time(reply.since_ns)}, for {_ago(now_ns - reply.since_ns)}"
    yield (
        f"elected by {reply.engine}: "
        + (f"{reply.holder} has the hold {since}" if reply.holder else "nobody has the hold")
    )


def _election_warnings(reply: ElectionReply) -> Iterator[str]:
    """Whether the hold can be given to another."""
    if reply.away_ms:
        yield (
            f"WARNING: {reply.engine} has not answered for {human_seconds(reply.away_ms / 1000)} "
            f"({reply.reason}): the master stops {human_seconds(reply.hold_ms / 1000)} after its "
            "last answer, and no other one is elected: start it again; whether it answers: "
            "gfs status"
        )


def _ago(nanoseconds: int) -> str:
    return human_seconds(max(0, nanoseconds) / 1e9)


def _behind(reply: StatusReply, shadow: ShadowStatus) -> str:
    known = []
    if shadow.sequence >= 0:
        known.append(plural(max(0, reply.sequence - shadow.sequence), "operation"))
    if shadow.behind_ms >= 0:
        known.append(human_seconds(shadow.behind_ms / 1000))
    return f"{' and '.join(known)} behind" if known else "its lag is not known"


def _warnings(reply: StatusReply) -> Iterator[str]:
    totals = reply.totals
    live = sum(server.state == "live" for server in reply.servers)
    if totals.lost:
        yield f"WARNING: {_lost(reply)}; which files: gfs fsck /"
    if totals.unlocated:
        yield (
            f"note: no chunkserver has reported a replica of {plural(totals.unlocated, 'chunk')} "
            "yet: the master was started or promoted a moment ago: gfs status again"
        )
    if totals.corrupt > totals.corrupt_kept:
        yield (
            f"WARNING: {plural(totals.corrupt - totals.corrupt_kept, 'corrupt replica')}, being "
            "repaired from good ones: which ones, and whether that is done: gfs fsck /"
        )
    if totals.corrupt_kept:
        yield (
            f"WARNING: {plural(totals.corrupt_kept, 'corrupt replica')} kept, because nothing "
            "better is left of their chunks: which ones: gfs fsck /"
        )
    if totals.under_replicated:
        yield (
            f"WARNING: {plural(totals.under_replicated, 'chunk')} below the replication goal: "
            + _repairs(reply)
        )
    if totals.room_low and totals.trash_rows:
        yield (
            f"WARNING: after {human_bytes(totals.room_bytes)} more are written the trash is purged "
            "early: add a chunkserver (gfs up --chunkservers N, gfs chunkserver), or "
            "choose what is purged: gfs ls --trash /, gfs rm --trash PATH"
        )
    if reply.restored:
        yield (
            "WARNING: a backup was restored: chunks that it does not know are kept, and take "
            "space; what it lacks: gfs fsck /; when nothing more is wanted of them: "
            "gfs restore --accept"
        )
    if reply.repair_paused:
        yield "WARNING: repair is paused: nothing is copied: gfs repair resume"
    yield from _racks(reply)
    for server in reply.servers:
        yield from _server_warnings(server)
    if not live:
        yield "WARNING: no chunkserver is live: start some: gfs up, or gfs chunkserver"


def _racks(reply: StatusReply) -> Iterator[str]:
    """If racks are named: warnings if there are too few for the replicas."""
    here = [server for server in reply.servers if server.state == "live" and not server.drain]
    racks = Counter(server.rack for server in here)
    away = sorted({server.rack for server in reply.servers} - racks.keys())
    if len(racks) == 1 and away and reply.replication > 1:
        yield (
            f"WARNING: only rack {here[0].rack} is left, and new replicas are all placed there: "
            f"with it all of them would be lost: start the chunkservers of {', '.join(away)} "
            "again, or others in another rack (gfs chunkserver --rack NAME); if none of these "
            "comes back: gfs forget SERVER"
        )
    if len(racks) < 2 or len(racks) > reply.replication:
        return
    if len(racks) < reply.replication:
        yield (
            f"WARNING: {plural(len(racks), 'rack')} for {reply.replication} replicas: one of them "
            "has two or more replicas of each chunk: add chunkservers in another rack "
            "(gfs chunkserver --rack NAME)"
        )
    for server in here:
        if racks[server.rack] == 1 and len(here) > len(racks):
            yield (
                f"note: {server.id} is the only chunkserver in rack {server.rack}, so it gets a "
                f"replica of every chunk with {len(racks)} replicas or more, however full it is: "
                f"add chunkservers there: gfs chunkserver --rack {server.rack}"
            )


def _lost(reply: StatusReply) -> str:
    totals = reply.totals
    parts = [f"{plural(totals.lost, 'chunk')} without any good replica"]
    if totals.salvages:
        parts.append(f"{totals.salvages} being put together from damaged replicas")
    if totals.beyond_repair:
        parts.append(
            f"{totals.beyond_repair} that cannot be put together from the damaged replicas "
            "there are"
        )
    if totals.lost > totals.salvages:
        parts.append(_bring_back(reply))
    return ": ".join((parts[0], ", ".join(parts[1:])))


def _bring_back(reply: StatusReply) -> str:
    """What to do about chunks that are lost."""
    away = [f"{s.id} ({s.address})" for s in reply.servers if s.state != "live"]
    if away:
        return f"start the chunkservers that are away ({', '.join(away)}): gfs chunkserver"
    return (
        "no known chunkserver is away, so unless you have others or old disks to connect, "
        "delete these files (gfs rm) and restore them from their source"
    )


def _repairs(reply: StatusReply) -> str:
    totals = reply.totals
    usable = sum(server.state == "live" and not server.drain for server in reply.servers)
    missing = totals.goal_unmet - usable
    if totals.repairs_active or missing <= 0:
        return (
            f"{plural(totals.repairs_active, 'repair')} running, {totals.repairs_queued} waiting; "
            "they start automatically where a live chunkserver has room: watch them: gfs status"
        )
    return (
        f"no repair is running. A goal of {plural(totals.goal_unmet, 'replica')} needs as many "
        f"live chunkservers, there are {usable}: start those that are away, or add {missing}: "
        f"gfs up --chunkservers {len(reply.servers) + missing}, or gfs chunkserver; or lower the "
        "goal: gfs setrep; which files: gfs fsck --no-verify"
    )


def _server_warnings(server: ServerStatus) -> Iterator[str]:
    if server.state == "stopped":
        yield (
            f"{server.id} ({server.address}) was drained and is stopped; if it never comes back: "
            f"gfs forget {server.id}; to use it again: start it, and gfs drain --cancel {server.id}"
        )
        return
    if server.maintenance_ms:
        yield (
            f"{server.id} ({server.address}) is under maintenance for another "
            f"{human_seconds(server.maintenance_ms / 1000)} ({server.state}): its replicas are not "
            f"re-replicated; to end it: gfs maintenance {server.id} off"
        )
        if server.state == "silent":
            return
    if server.drain == "drained":
        yield f"{drain_line(server)}; to use it again: gfs drain --cancel {server.id}"
        return
    if server.drain:
        yield drain_line(server)
    if server.state != "live":
        yield (
            f"WARNING: {server.id} ({server.address}) is {server.state}, without a heartbeat for "
            f"{human_seconds(server.heartbeat_age_ms / 1000)}: see its log, start it again: "
            "gfs chunkserver (gfs up does so by itself)"
            + (f"; if it never comes back: gfs forget {server.id}" * (server.state == "dead"))
        )
        return
    yield from disk_warnings(server)


@click.command()
@click.argument("path", default="/", metavar="[PATH]")
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Verify the checksums of every replica (default), or only compare metadata.",
)
@json_option("all problems")
@client_options
def fsck(cluster: Cluster, path: str, verify: bool, as_json: bool) -> None:
    """Check every replica of the files at and below PATH (default /).

    Exit code 1 if any file is damaged: chunks that are missing, below their
    goal, corrupt, stale or lost. Replicas of chunks in no file (orphaned) are
    shown, too; they are collected automatically.
    """
    name = remote_path(path)

    async def work(client: Client) -> None:
        async with Output() as output:
            report = await check(client, name, verify=verify)
            advice = _advice(report, await client.status()) if report.damaged else ""
            if as_json:
                await output.line(to_json(_fsck_document(name, report)))
            else:
                await output.line(_fsck_text(output, name, report, verify, advice))
        if report.damaged:
            raise Failed

    run_with_client(cluster, work)


async def check(client: Client, path: str, *, verify: bool = True, server: str = "") -> FsckReport:
    """``client.fsck``, with a display of its progress."""
    chunks = (await client.disk_usage(path)).chunks
    async with progress.shown(Progress(chunks, unit="chunks"), lines=True) as shown:
        return await client.fsck(path, verify=verify, server=server, progress=shown.advance)


def _fsck_document(path: str, report: FsckReport) -> dict[str, object]:
    return {
        "path": path,
        "files": report.files,
        "chunks": report.chunks,
        "counts": dict(Counter(problem.kind for problem in report.problems)),
        "damaged": report.damaged,
        "problems": report.problems,
    }


def problems(output: Output, report: FsckReport) -> tuple[list[str], str]:
    """One line per problem, up to PRINTED_MAX of a kind; and the number of each kind."""
    counts = Counter(problem.kind for problem in report.problems)
    printed: Counter[str] = Counter()
    lines = []
    for problem in report.problems:
        printed[problem.kind] += 1
        if printed[problem.kind] <= PRINTED_MAX:
            lines.append(_problem(output, problem))
    lines += [
        f"… and {count - PRINTED_MAX} more {kind} (--json has all)"
        for kind, count in counts.items()
        if count > PRINTED_MAX
    ]
    found = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(counts.items()))
    return lines, found or "all is well"


def _fsck_text(output: Output, path: str, report: FsckReport, verify: bool, advice: str) -> str:
    lines, found = problems(output, report)
    checked = "checked" if verify else "looked for"
    lines.append(
        f"{output.name(path)}: {checked} {plural(report.chunks, 'chunk')} of "
        f"{plural(report.files, 'file')}: {found}"
    )
    if report.damaged:
        lines.append(f"{plural(len(report.damaged), 'file')} damaged. {advice}")
    return "\n".join(lines)


def _problem(output: Output, problem: FsckProblem) -> str:
    where = f"{output.name(problem.path)} chunk {problem.index} " if problem.path else ""
    server = f" on {problem.server}" if problem.server else ""
    detail = f": {problem.detail}" if problem.detail else ""
    kind = problem.kind.replace("_", " ")
    return (
        f"{kind:<10} {where}(handle {problem.handle:x}, version {problem.version}){server}{detail}"
    )


def _advice(report: FsckReport, status: StatusReply) -> str:
    if any(p.kind == "lost" and p.detail != MENDING for p in report.problems):
        advice = _bring_back(status)
        return f"Lost chunks that are not being put together: {advice}; progress: gfs status"
    return "Repairs run automatically while chunkservers are live: gfs status; then gfs fsck again"


@click.command()
@click.argument("path", metavar="PATH")
@json_option("the entry and its chunks")
@client_options
def locate(cluster: Cluster, path: str, as_json: bool) -> None:
    """Show a file chunk by chunk: handle, version, length, replicas, lease."""
    name = remote_path(path)

    async def work(client: Client) -> None:
        report = await client.locate(name)
        entry, chunks = report.entry, report.chunks
        async with Output() as output:
            if as_json:
                await output.line(to_json({"entry": entry, "chunks": chunks}))
                return
            await output.line(
                f"{output.name(entry.path)}: {human_bytes(entry.length)}, "
                f"{plural(len(chunks), 'chunk')}, replication {entry.replication}"
            )
            if chunks:
                titles = ["INDEX", "HANDLE", "VERSION", "LENGTH", "REPLICAS", "LEASE"]
                rows = [_chunk_row(chunk) for chunk in chunks]
                await output.line(table(titles, rows, right=(0, 1, 2, 3)))

    run_with_client(cluster, work)


def _chunk_row(chunk: ChunkReport) -> list[str]:
    replicas = ", ".join(f"{server.id} ({server.address})" for server in chunk.replicas)
    count = f"{len(chunk.replicas)}/{chunk.goal}"
    lease = f"{chunk.primary}, {human_seconds(chunk.lease_ms / 1000)}" if chunk.lease_ms else "-"
    return [
        str(chunk.index),
        f"{chunk.handle:x}",
        str(chunk.version),
        human_bytes(chunk.length),
        f"{count}  {replicas}" if replicas else f"{count}  none: see gfs fsck",
        lease,
    ]

"""``gfs status``, ``fsck`` and ``locate``: is everything as it should be?

Every warning names the next command to run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import click

from gfs.cli import progress
from gfs.cli.exits import Failed
from gfs.cli.options import Cluster, client_options, json_option, remote_path
from gfs.cli.output import (
    Output,
    human_bytes,
    human_seconds,
    plural,
    table,
    to_json,
)
from gfs.cli.progress import Progress
from gfs.cli.session import run_with_client
from gfs.client import ChunkReport, Client, FsckProblem, FsckReport
from gfs.protocol.messages import ServerStatus, StatusReply

#: Problems of one kind that are told one by one; ``--json`` has them all.
TOLD_MAX = 100


@click.command()
@json_option("all of it")
@client_options
def status(cluster: Cluster, as_json: bool) -> None:
    """Show the servers and the cluster's totals, and what to do about problems."""

    async def work(client: Client) -> None:
        reply = await client.status()
        async with Output() as output:
            if as_json:
                await output.line(to_json(reply))
                return
            for part in (_servers(reply), _totals(reply), *_warnings(reply)):
                await output.line(part)

    run_with_client(cluster, work)


def _servers(reply: StatusReply) -> str:
    titles = ["CHUNKSERVER", "ADDRESS", "RACK", "STATE", "USED", "FREE", "CHUNKS", "HEARTBEAT"]
    rows = [_server_row(server) for server in reply.servers]
    return table(titles, rows, right=(4, 5, 6, 7))


def _server_row(server: ServerStatus) -> list[str]:
    total = sum(disk.total_bytes for disk in server.disks)
    free = sum(disk.free_bytes for disk in server.disks)
    state = server.state
    unfit = sorted({disk.state for disk in server.disks if disk.state != "ok"})
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
        f"{human_seconds(server.heartbeat_age_ms / 1000)} ago",
    ]


def _totals(reply: StatusReply) -> str:
    totals = reply.totals
    return "\n".join(
        [
            "",
            f"cluster {reply.cluster}: {plural(totals.files, 'file')}, "
            f"{plural(totals.directories, 'directory')}, {human_bytes(totals.bytes)} "
            f"in {plural(totals.chunks, 'chunk')}",
            f"chunks: {totals.under_replicated} under-replicated, {totals.corrupt} corrupt, "
            f"{totals.lost} lost; {totals.orphaned} orphaned, {totals.stale} stale",
            f"repairs: {totals.repairs_active} running, {totals.repairs_queued} waiting",
        ]
    )


def _warnings(reply: StatusReply) -> Iterator[str]:
    totals = reply.totals
    live = sum(server.state == "live" for server in reply.servers)
    if totals.lost:
        yield (
            f"WARNING: {plural(totals.lost, 'chunk')} without any good replica: bring back the "
            "chunkservers that are away (gfs chunkserver, gfs up); which files: gfs fsck /"
        )
    if totals.corrupt:
        yield (
            f"WARNING: {plural(totals.corrupt, 'corrupt replica')}, being repaired from good "
            "ones: see which and whether it is done: gfs fsck /"
        )
    if totals.under_replicated:
        yield (
            f"WARNING: {plural(totals.under_replicated, 'chunk')} below the replication goal: "
            + _repairs(reply, live)
        )
    for server in reply.servers:
        yield from _server_warnings(server)
    if not live:
        yield "WARNING: no chunkserver is live: start some: gfs up, or gfs chunkserver"


def _repairs(reply: StatusReply, live: int) -> str:
    totals = reply.totals
    if totals.repairs_active:
        return (
            f"{plural(totals.repairs_active, 'repair')} running, {totals.repairs_queued} waiting: "
            "watch them: gfs status"
        )
    return (
        f"no repair is running. A file needs as many live chunkservers as replicas, {live} are "
        "live: start those that are away, or add one: "
        f"gfs up --chunkservers {len(reply.servers) + 1}, or gfs chunkserver; "
        "which files: gfs fsck --no-verify"
    )


def _server_warnings(server: ServerStatus) -> Iterator[str]:
    if server.state != "live":
        yield (
            f"WARNING: {server.id} ({server.address}) is {server.state}, not heard from for "
            f"{human_seconds(server.heartbeat_age_ms / 1000)}: see its log, start it again: "
            "gfs chunkserver (gfs up does so by itself)"
        )
        return
    for disk in server.disks:
        if disk.state == "full":
            yield (
                f"WARNING: {server.id}: {disk.path} is full: make room, delete files (gfs rm), "
                "or add a chunkserver (gfs up --chunkservers N, gfs chunkserver)"
            )
        elif disk.state != "ok":
            yield (
                f"WARNING: {server.id}: {disk.path} is {disk.state}: see the kernel's log "
                "(dmesg), replace the disk; what it held is re-replicated: gfs status"
            )


@click.command()
@click.argument("path", default="/", metavar="[PATH]")
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Have every replica read against its checksums (default), or only look for them.",
)
@json_option("all problems")
@client_options
def fsck(cluster: Cluster, path: str, verify: bool, as_json: bool) -> None:
    """Check every replica of the files at and below PATH (default /).

    Exit code 1 if any file is damaged: chunks that are missing, below their
    goal, corrupt, stale or lost. Replicas that nothing refers to (orphaned)
    are told, too; they are collected by themselves.
    """
    name = remote_path(path)

    async def work(client: Client) -> None:
        async with Output() as output, progress.shown(Progress(unit="chunks")) as shown:
            report = await client.fsck(name, verify=verify, progress=shown.advance)
            if as_json:
                await output.line(to_json(_fsck_document(name, report)))
            else:
                await output.line(_fsck_text(output, name, report, verify))
        if report.damaged:
            raise Failed

    run_with_client(cluster, work)


def _fsck_document(path: str, report: FsckReport) -> dict[str, object]:
    return {
        "path": path,
        "files": report.files,
        "chunks": report.chunks,
        "counts": dict(Counter(problem.kind for problem in report.problems)),
        "damaged": report.damaged,
        "problems": report.problems,
    }


def _fsck_text(output: Output, path: str, report: FsckReport, verify: bool) -> str:
    counts = Counter(problem.kind for problem in report.problems)
    told: Counter[str] = Counter()
    lines = []
    for problem in report.problems:
        told[problem.kind] += 1
        if told[problem.kind] <= TOLD_MAX:
            lines.append(_problem(output, problem))
    lines += [
        f"… and {count - TOLD_MAX} more {kind} (gfs fsck --json has all)"
        for kind, count in counts.items()
        if count > TOLD_MAX
    ]
    found = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in sorted(counts.items()))
    checked = "checked" if verify else "looked for"
    lines.append(
        f"{output.name(path)}: {checked} {plural(report.chunks, 'chunk')} of "
        f"{plural(report.files, 'file')}: {found or 'all is well'}"
    )
    if report.damaged:
        lines.append(f"{plural(len(report.damaged), 'file')} damaged. {_advice(counts)}")
    return "\n".join(lines)


def _problem(output: Output, problem: FsckProblem) -> str:
    where = f"{output.name(problem.path)} chunk {problem.index} " if problem.path else ""
    server = f" on {problem.server}" if problem.server else ""
    detail = f": {problem.detail}" if problem.detail else ""
    kind = problem.kind.replace("_", " ")
    return (
        f"{kind:<10} {where}(handle {problem.handle:x}, version {problem.version}){server}{detail}"
    )


def _advice(counts: Counter[str]) -> str:
    if counts["lost"]:
        return "Bring back the chunkservers that are away; which those are: gfs status"
    return "Repairs run by themselves while chunkservers are live: gfs status; then gfs fsck again"


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

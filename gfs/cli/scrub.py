"""``gfs scrub``: read and verify replicas now, before their turn."""

from __future__ import annotations

import click

from gfs.cli.disks import find_server
from gfs.cli.exits import Failed
from gfs.cli.health import check, problems
from gfs.cli.options import Cluster, client_options, json_option, remote_path
from gfs.cli.output import Output, human_bytes, to_json
from gfs.cli.session import run_with_client
from gfs.client import Client, FsckReport
from gfs.errors import ReplicaUnavailable
from gfs.failures import plural


@click.command()
@click.argument("target", metavar="PATH|SERVER")
@json_option("what was read and found")
@client_options
def scrub(cluster: Cluster, target: str, as_json: bool) -> None:
    """Read and verify replicas now, without waiting for the pass that reads all within
    scrub_seconds: replicas of the files at and below PATH, or those on the chunkserver
    SERVER (its id or address) of files that are not deleted.

    Corrupt replicas are reported to the master, which repairs them. Exit code 1 if any
    was corrupt, or could not be read.
    """

    async def work(client: Client) -> None:
        report = await scrubbed(client, target)
        async with Output() as output:
            await output.line(
                _document(target, report) if as_json else _text(output, target, report)
            )
        if report.damaged:
            raise Failed

    run_with_client(cluster, work)


async def scrubbed(client: Client, target: str) -> FsckReport:
    if target.startswith("/"):
        return await check(client, remote_path(target))
    server = await _live(client, target)
    report = await check(client, "/", server=server)
    if not report.damaged:
        await _live(client, server)
    return report


async def _live(client: Client, name: str) -> str:
    """The id of a live server. The master knows no replicas of an absent one, so
    nothing would be read and everything would seem good."""
    server = await find_server(client, name)
    if server.state != "live":
        raise ReplicaUnavailable(
            f"chunkserver {server.id} ({server.address}) is {server.state}, so its replicas cannot "
            "be read: start it (gfs chunkserver; gfs up does so by itself), then scrub again",
            server.id,
        )
    return server.id


def _document(target: str, report: FsckReport) -> str:
    return to_json(
        {
            "target": target,
            "chunks": report.chunks,
            "replicas": report.replicas,
            "counts": report.counts,
            "damaged": report.damaged,
            "problems": report.problems,
        }
    )


def _text(output: Output, target: str, report: FsckReport) -> str:
    lines, found = problems(output, report)
    lines.append(
        f"{output.name(target)}: read {plural(report.replicas, 'replica')} of "
        f"{plural(report.chunks, 'chunk')} ({human_bytes(report.bytes)}): {found}"
    )
    if report.damaged:
        lines.append("Repairs run automatically while chunkservers are live: gfs status")
    return "\n".join(lines)

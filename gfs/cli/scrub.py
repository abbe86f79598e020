"""``gfs scrub``: have replicas read now, and not when their turn comes."""

from __future__ import annotations

import click

from gfs.cli.exits import Failed
from gfs.cli.health import check, problems
from gfs.cli.options import Cluster, client_options, json_option, remote_path
from gfs.cli.output import Output, human_bytes, plural, to_json
from gfs.cli.session import run_with_client
from gfs.client import Client, FsckReport
from gfs.errors import NotFound


@click.command()
@click.argument("target", metavar="PATH|SERVER")
@json_option("what was read and found")
@client_options
def scrub(cluster: Cluster, target: str, as_json: bool) -> None:
    """Have every block of replicas read and verified now, ahead of the pass that reads all
    within scrub_seconds: of the files at and below PATH, or those that the chunkserver
    SERVER (its id or address) has of files that are not deleted.

    What fails its checksums is told to the master, which repairs it. Exit code 1 if
    anything did, or could not be read.
    """
    path = remote_path(target) if target.startswith("/") else "/"

    async def work(client: Client) -> None:
        server = "" if target.startswith("/") else await _server_id(client, target)
        report = await check(client, path, server=server)
        async with Output() as output:
            await output.line(
                _document(target, report) if as_json else _text(output, target, report)
            )
        if report.damaged:
            raise Failed

    run_with_client(cluster, work)


async def _server_id(client: Client, name: str) -> str:
    for server in (await client.status()).servers:
        if name in (server.id, server.address):
            return server.id
    raise NotFound(f"there is no chunkserver {name} (and paths start with /): gfs status")


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
        lines.append("Repairs run by themselves while chunkservers are live: gfs status")
    return "\n".join(lines)

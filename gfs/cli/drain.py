"""``gfs drain``: move all replicas off a chunkserver before its removal."""

from __future__ import annotations

import click
import trio

from gfs.cli import progress
from gfs.cli.exits import Failed
from gfs.cli.options import Cluster, client_options, json_option
from gfs.cli.output import Output, to_json
from gfs.cli.progress import Progress
from gfs.cli.session import run_with_client
from gfs.client import Client
from gfs.errors import Busy, NotFound
from gfs.failures import plural
from gfs.protocol.messages import ServerStatus

LOOK_SECONDS = 0.5


@click.command()
@click.argument("server", metavar="SERVER")
@click.option(
    "--cancel", is_flag=True, help="Cancel the drain: the server takes new replicas again."
)
@click.option(
    "--fewer-racks",
    is_flag=True,
    help="Accept that replicas are in fewer racks afterwards.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    help="Wait until it can be stopped (default), or return at once; gfs status shows the "
    "progress.",
)
@json_option("the server")
@client_options
def drain(
    cluster: Cluster, server: str, cancel: bool, fewer_racks: bool, wait: bool, as_json: bool
) -> None:
    """Move all replicas off SERVER (its id or address, see gfs status).

    It gets no new replicas; its replicas are copied to others first and deleted then,
    so no file falls below its goal. It serves reads and copies meanwhile. The drain is
    stored: interrupting this command, or a restart of the master, does not end it;
    --cancel does.

    It is refused (exit code 1) if the other servers are too few for the goals of the
    files, or have too little space. Waiting also ends with exit code 1 when all chunks
    that are left have no good replica anywhere.
    """

    async def work(client: Client) -> None:
        status = await client.drain(server, cancel=cancel, fewer_racks=fewer_racks)
        if wait and not cancel:
            status = await _finished(client, status)
        async with Output() as output:
            await output.line(to_json(status) if as_json else drain_line(status))
        if wait and is_stuck(status):
            raise Failed

    run_with_client(cluster, work)


async def _finished(client: Client, status: ServerStatus) -> ServerStatus:
    """The server's status, once it can be stopped or waiting is useless."""
    left = status.drain_chunks
    async with progress.shown(Progress(total=left, unit="chunks")) as shown:
        while status.drain != "drained" and not is_stuck(status):
            await trio.sleep(LOOK_SECONDS)
            status = await _status(client, status.id)
            if status.drain_chunks < left:
                shown.advance(left - status.drain_chunks)
                left = status.drain_chunks
    return status


async def _status(client: Client, server_id: str) -> ServerStatus:
    for server in (await client.status()).servers:
        if server.id == server_id:
            if not server.drain:
                raise Busy(f"the drain of {server_id} was cancelled")
            return server
    raise NotFound(f"there is no chunkserver {server_id} any more")


def is_stuck(server: ServerStatus) -> bool:
    """Whether all chunks that still need the server have no good replica anywhere."""
    return server.drain == "draining" and 0 < server.drain_chunks <= server.drain_lost


def drain_line(server: ServerStatus) -> str:
    """One sentence: the progress, and what to do next."""
    name = f"{server.id} ({server.address})"
    if server.drain == "drained":
        return f"{name} is drained: no chunk needs it any more, it can be stopped"
    if server.drain == "draining":
        uploads = f" and {plural(server.drain_uploads, 'upload')}" if server.drain_uploads else ""
        state = "" if server.state == "live" else f" (it is {server.state}: start it again)"
        lost = ""
        if server.drain_lost:
            lost = (
                f", {server.drain_lost} of them with no other copy than its damaged replica "
                "(which files: gfs fsck "
                "/): the drain ends when these are repaired, or their files deleted for good"
            )
        return (
            f"{name} is being drained{state}: {plural(server.drain_chunks, 'chunk')}{uploads} "
            f"left{lost}; it must not be stopped yet: gfs status; gfs drain --cancel"
        )
    return f"{name} is not being drained"

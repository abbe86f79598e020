"""``gfs promote``: which machine is the master."""

from __future__ import annotations

from dataclasses import replace

import click

from gfs.cli.options import Cluster, check_address, client_options
from gfs.cli.output import Output
from gfs.cli.session import run_with_client
from gfs.client import Client


@click.command()
@click.argument("address", metavar="ADDRESS")
@click.option(
    "--force",
    is_flag=True,
    help="Promote it even if acknowledged operations may be lost; they are printed.",
)
@client_options
def promote(cluster: Cluster, address: str, force: bool) -> None:
    """Make the shadow master at ADDRESS (HOST:PORT) the master.

    If the old master lives, it hands over first: the new one has everything that it
    acknowledged, and it becomes a shadow master. If it does not answer, the promotion is
    refused unless the shadow master certainly has all acknowledged operations, which
    needs replicas_before_ack; the command prints what may be lost, and --force accepts
    that.

    Clients and chunkservers follow automatically. If the old master comes back, they
    refuse it, and it stops with a message.
    """
    check_address("ADDRESS", address)

    async def work(client: Client) -> None:
        reply = await client.promote(force=force)
        async with Output() as output:
            await output.line(
                f"{address} is the master, in term {reply.term >> 32}, from operation "
                f"{reply.sequence} on: {reply.message}"
            )

    run_with_client(replace(cluster, master=address), work)

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
    help="Also if operations that were acknowledged may be lost: what is lost is told.",
)
@client_options
def promote(cluster: Cluster, address: str, force: bool) -> None:
    """Make the shadow master at ADDRESS (HOST:PORT) the master.

    If the master before it lives, it ends first, with everything it acknowledged
    on the new one, and is its shadow from then on. If it does not answer, the
    promotion is refused unless all that was acknowledged is here for sure, which
    takes replicas_before_ack; what may be lost is told, and --force accepts it.

    Clients and chunkservers follow by themselves. The old master, should it come
    back, is not listened to any more, and says so.
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

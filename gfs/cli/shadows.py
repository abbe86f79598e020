"""``gfs promote`` and ``gfs failover``: choose which machine is the master."""

from __future__ import annotations

from dataclasses import replace

import click

from gfs.cli.options import Cluster, check_address, client_options
from gfs.cli.output import Output
from gfs.cli.session import run_with_client
from gfs.client import Client
from gfs.errors import InvalidArgument, NotFound
from gfs.protocol.messages import ShadowStatus


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

    If the old master lives, it hands over first: the new one has everything that the
    old one acknowledged, and the old one becomes a shadow master. If it does not
    answer, the promotion is refused unless the shadow master certainly has all
    acknowledged operations, which needs replicas_before_ack; the command prints what
    may be lost, and --force accepts that.

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


@click.command()
@click.argument("address", metavar="[ADDRESS]", required=False)
@client_options
def failover(cluster: Cluster, address: str | None) -> None:
    """Hand the work of the elected master over to another one, in an orderly way.

    The other one is at ADDRESS (HOST:PORT), else it is the one that is behind least.
    The master completes what is under way, and becomes a shadow master. No call of a
    client fails that knows the addresses of all masters: it waits for a second or two.
    """
    if address is not None:
        check_address("ADDRESS", address)
    chosen: list[str] = []

    async def choose(client: Client) -> None:
        if not (await client.election()).engine:
            raise InvalidArgument(
                "no engine elects the masters of this cluster (gfs master --elect): "
                "gfs promote ADDRESS moves its master"
            )
        chosen.append(_chosen((await client.status()).shadows, address))

    async def work(client: Client) -> None:
        await client.promote()

    async def report(client: Client) -> None:
        reply = await client.status()
        async with Output() as output:
            await output.line(f"{chosen[0]} is the master, in term {reply.term >> 32}")

    run_with_client(cluster, choose)
    run_with_client(replace(cluster, master=chosen[0]), work)
    run_with_client(cluster, report)


def _chosen(shadows: list[ShadowStatus], address: str | None) -> str:
    """The shadow master to hand over to. Raises NotFound."""
    fit = [each for each in shadows if each.state == "following"]
    if address is not None:
        fit = [each for each in fit if each.address == address]
    if not fit:
        which = "no shadow master" if address is None else f"no shadow master {address}"
        raise NotFound(f"{which} follows and counts: gfs status shows them all")
    return max(fit, key=lambda each: each.sequence).address

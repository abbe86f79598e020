"""``gfs repair``, ``gfs maintenance``, ``gfs forget``: commands of an operator to the master."""

from __future__ import annotations

import click

from gfs.cli.options import Cluster, client_options, json_option
from gfs.cli.output import Output, human_bytes, human_seconds, table, to_json
from gfs.cli.session import run_with_client
from gfs.client import Client
from gfs.errors import InvalidArgument, NotFound
from gfs.failures import plural
from gfs.protocol.messages import RepairReply

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
TIMES = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
DEFAULT = "default"


@click.group()
def repair() -> None:
    """Show, pause, resume and limit repair: copies for chunks below their goal, for
    draining servers and disks, and for rebalancing.

    The master stores the limits: they survive a restart and a promotion, and apply from
    the next heartbeat on.
    """


@repair.command()
@json_option("the progress of repair")
@client_options
def status(cluster: Cluster, as_json: bool) -> None:
    """Show the chunks that wait, the most urgent first, the speed, and the time left."""
    _ask(cluster, as_json=as_json)


@repair.command()
@client_options
def pause(cluster: Cluster) -> None:
    """Start no copies until gfs repair resume. Copies under way are completed.

    Chunks stay below their goal meanwhile, and draining servers stay as they are.
    """
    _ask(cluster, paused=True)


@repair.command()
@client_options
def resume(cluster: Cluster) -> None:
    """Resume repair after gfs repair pause."""
    _ask(cluster, paused=False)


@repair.command(name="set")
@click.argument("settings", metavar="NAME=VALUE...", nargs=-1, required=True)
@client_options
def set_limits(cluster: Cluster, settings: tuple[str, ...]) -> None:
    """Change limits of repair while the cluster runs.

    clones_per_server and clones_total (concurrent copy orders: one large replica or up
    to 256 small ones), moves_total (of these for rebalancing, 0: none), bytes_per_second
    (of each chunkserver while it serves clients; 64M is 64 MiB). NAME=default restores
    the value that the process was started with.
    """
    _ask(cluster, settings=dict(map(_setting, settings)))


def _setting(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    number, unit = value.rstrip("".join(UNITS)), value[-1:]
    if equals and value == DEFAULT:
        return name, -1
    if not equals or not number.isdecimal() or len(number) < len(value) - 1:
        raise click.UsageError(f"{text}: expected NAME=NUMBER, such as clones_total=16.")
    return name, int(number) * UNITS.get(unit, 1)


def _ask(
    cluster: Cluster,
    *,
    paused: bool | None = None,
    settings: dict[str, int] | None = None,
    as_json: bool = False,
) -> None:
    async def work(client: Client) -> None:
        reply = await client.repair(paused=paused, settings=settings)
        async with Output() as output:
            await output.line(to_json(reply) if as_json else summary(reply))

    run_with_client(cluster, work)


def summary(reply: RepairReply) -> str:
    """All of it as text."""
    left = sum(rank.bytes for rank in reply.ranks)
    copies = sum(rank.chunks * rank.missing for rank in reply.ranks)
    lines = [
        "repair is paused: gfs repair resume" if reply.paused else "repair is on",
        "  ".join(
            f"{name}={'default' if value < 0 else value}" for name, value in reply.settings.items()
        ),
        f"{plural(reply.orders, 'order')} under way, of {plural(reply.replicas, 'replica')}; "
        f"{reply.replicas_per_second:.0f} replicas/s, {human_bytes(reply.bytes_per_second)}/s",
    ]
    if reply.ranks:
        rows = [
            [
                f"{rank.have} of {rank.goal}" + (" (drained)" if rank.have >= rank.goal else ""),
                str(rank.chunks),
                human_bytes(rank.bytes),
            ]
            for rank in reply.ranks
        ]
        lines.append(table(["GOOD REPLICAS", "CHUNKS", "TO COPY"], rows, right=(1, 2)))
        lines.append(f"{plural(copies, 'copy')}, {human_bytes(left)} to go{_eta(reply)}")
    else:
        lines.append("nothing waits")
    if reply.lost:
        lines.append(
            f"{plural(reply.lost, 'chunk')} without any good replica to copy from: gfs status"
        )
    if reply.spared:
        lines.append(
            f"{plural(reply.spared, 'chunkserver')} under maintenance, without a heartbeat since "
            "the master was started: chunks whose missing replicas may be there are not copied"
        )
    return "\n".join(lines)


def _eta(reply: RepairReply) -> str:
    copies = sum(rank.chunks * rank.missing for rank in reply.ranks)
    left = sum(rank.bytes for rank in reply.ranks)
    if reply.paused or not reply.replicas_per_second:
        return ""
    seconds = max(copies / reply.replicas_per_second, left / max(1.0, reply.bytes_per_second))
    return f", done in about {human_seconds(seconds)} at this pace"


@click.command()
@click.argument("server", metavar="SERVER")
@click.argument("switch", metavar="on|off", type=click.Choice(["on", "off"]))
@click.option(
    "--for",
    "duration",
    metavar="TIME",
    default="1h",
    help="How long it may be away: 30m, 2h, 1d (default: 1h; at most 7d).",
)
@client_options
def maintenance(cluster: Cluster, server: str, switch: str, duration: str) -> None:
    """Announce an absence of the chunkserver SERVER (its id or address).

    During the maintenance the server is not declared dead and its chunks are not
    re-replicated, so they have one replica less until it is back. It ends after the
    time, or with off; if the server is still away then, its chunks are re-replicated. A
    restart of the master does not end it.
    """
    seconds = _seconds(duration) if switch == "on" else 0

    async def work(client: Client) -> None:
        await client.maintain(server, seconds)
        async with Output() as output:
            if seconds:
                await output.line(
                    f"{server} may be away for {human_seconds(seconds)}; to end this earlier: "
                    f"gfs maintenance {server} off"
                )
            else:
                await output.line(f"{server} is not under maintenance any more")

    run_with_client(cluster, work)


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in TIMES or not number.isdecimal() or not int(number):
        raise click.UsageError(f"--for {text}: expected a time such as 30m, 2h or 1d")
    return int(number) * TIMES[unit]


@click.command()
@click.argument("server", metavar="SERVER")
@client_options
def forget(cluster: Cluster, server: str) -> None:
    """Remove a chunkserver (its id or address), or a shadow master (its address), that is
    gone for good, from the master's list.

    A chunkserver must be dead, or drained and stopped; its replicas do not count any
    more. If it comes back nevertheless, it joins as a new one, with its replicas.

    With replicas_before_ack a shadow master that ever followed counts, even while it is
    away: it may have operations that no other has. This command declares that it never
    comes back, and the master stops waiting for it. If it comes back nevertheless, empty
    its directory before you start it: if it were promoted with its old data, operations
    acknowledged since would be lost.
    """

    async def work(client: Client) -> None:
        known = {name for one in (await client.status()).servers for name in (one.id, one.address)}
        async with Output() as output:
            if server in known:
                await client.forget_server(server)
                await output.line(f"{server} is forgotten")
                return
            try:
                await client.forget_shadow(server)
            except (NotFound, InvalidArgument) as error:
                raise NotFound(
                    f"no chunkserver or shadow master is called {server}: gfs status"
                ) from error
            await output.line(f"the master does not wait for {server} any more")

    run_with_client(cluster, work)

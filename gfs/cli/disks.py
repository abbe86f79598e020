"""``gfs disk``: add, drain, remove and retry single disks of a running chunkserver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click
import trio

from gfs.cli import progress
from gfs.cli.options import Cluster, client_options, json_option
from gfs.cli.output import Output, human_bytes, table, to_json
from gfs.cli.progress import Progress
from gfs.cli.session import run_with_client
from gfs.client import MENDING, Client
from gfs.errors import CorruptReplica, DiskFailed, NotFound, ReplicaUnavailable
from gfs.failures import plural
from gfs.protocol.messages import Disk, ServerStatus

LOOK_SECONDS = 0.5
#: When nothing but damaged replicas is left for so many looks, it is asked which are lost.
LOOKS_DAMAGED = 20
#: The most files that an error names.
NAMED_MAX = 10
#: After one or two heartbeats the master knows of a disk that was just added.
LOOKS_WITHOUT_MAX = 10
DOWN = ("failed", "missing")


@click.group()
def disk() -> None:
    """Add, drain, remove or retry a disk (a --dir) of a running chunkserver.

    gfs status --disks shows them. The change is stored on the server's disks: after a
    restart it uses the disks that were added, and not those that were removed.
    """


def _order(cluster: Cluster, server: str, path: str, action: str, as_json: bool) -> None:
    async def work(client: Client) -> None:
        disks = await client.order_disk(server, path, action)
        await _show(server, disks, as_json)

    run_with_client(cluster, work)


async def _show(server: str, disks: Iterable[Disk], as_json: bool) -> None:
    async with Output() as output:
        if as_json:
            await output.line(to_json([row(server, each) for each in disks]))
        else:
            await output.line(disk_table((server, each) for each in disks))


@disk.command()
@click.argument("server", metavar="SERVER")
@click.argument("path", metavar="DIR")
@click.option(
    "--force",
    is_flag=True,
    help="Also on the root file system, on one where another disk of this machine is, or where "
    "another disk was mounted.",
)
@json_option("the server's disks")
@client_options
def add(cluster: Cluster, server: str, path: str, force: bool, as_json: bool) -> None:
    """Add the directory DIR (absolute, on its machine) to SERVER as a disk.

    DIR is created if it does not exist. It may be new or empty, or a disk that was
    removed from this server. Its file system must be its own: mount it first, also a disk that
    replaces a failed one at the same path, or this is refused (exit code 1). It says on which
    file system DIR is, and how much room that has.
    """

    async def work(client: Client) -> None:
        disks = await client.order_disk(server, path, "add-unmounted" if force else "add")
        if not as_json:
            async with Output() as output:
                await output.line(_where(disks, path))
        await _show(server, disks, as_json)

    run_with_client(cluster, work)


def _where(disks: Iterable[Disk], path: str) -> str:
    for each in disks:
        if each.path == path.rstrip("/"):
            room = f"{human_bytes(each.free_bytes)} free of {human_bytes(each.total_bytes)}"
            if not each.mount:  # a chunkserver of an earlier release does not say
                return f"{each.path} has {room}"
            kind = "root file system" if each.mount == "/" else "file system mounted at"
            return f"{each.path} is on the {kind} {each.mount}, with {room}"
    raise NotFound(f"{path} is not a disk of this chunkserver: gfs status --disks")


@disk.command()
@click.argument("server", metavar="SERVER")
@click.argument("path", metavar="DIR")
@json_option("the server's disks")
@client_options
def retry(cluster: Cluster, server: str, path: str, as_json: bool) -> None:
    """Use a disk DIR of SERVER again that had failed or was missing.

    The disk is read completely, as at a start: replicas that are still current count
    again, the others are deleted. Exit code 1 if it cannot be used.
    """
    _order(cluster, server, path, "retry", as_json)


@disk.command()
@click.argument("server", metavar="SERVER")
@click.argument("path", metavar="DIR")
@click.option(
    "--give-up-damaged",
    is_flag=True,
    help="Also while damaged replicas are left on a drained disk: they are lost if there is no "
    "good one.",
)
@json_option("the server's disks")
@client_options
def remove(cluster: Cluster, server: str, path: str, give_up_damaged: bool, as_json: bool) -> None:
    """Remove a disk DIR that is drained or has failed from SERVER.

    It can be unmounted then. Refused (exit code 1) while replicas are on it.
    """
    _order(cluster, server, path, "remove-damaged" if give_up_damaged else "remove", as_json)


@disk.command()
@click.argument("server", metavar="SERVER")
@click.argument("path", metavar="DIR")
@click.option("--cancel", is_flag=True, help="Cancel the drain: the disk takes new replicas again.")
@click.option(
    "--wait/--no-wait",
    default=True,
    help="Wait until the disk is empty (default), or return at once; gfs status --disks shows the "
    "progress.",
)
@json_option("the server's disks")
@client_options
def drain(
    cluster: Cluster, server: str, path: str, cancel: bool, wait: bool, as_json: bool
) -> None:
    """Move all replicas on the disk DIR of SERVER to the server's other disks.

    No file is below its goal meanwhile. Then: gfs disk remove. Exit code 1 if
    the other disks have too little room (as many replicas as fit are moved), or
    if damaged replicas are left of which no good one is anywhere.
    """

    async def work(client: Client) -> None:
        disks = await client.order_disk(server, path, "undrain" if cancel else "drain")
        if wait and not cancel:
            async with progress.shown(Progress(unit="replicas"), lines=True) as shown:
                disks = await emptied(client, server, path, shown)
        await _show(server, disks, as_json)

    run_with_client(cluster, work)


async def emptied(client: Client, server: str, path: str, shown: Progress) -> list[Disk]:
    """The disks of the server, when the one at ``path`` is empty. Raises NotFound,
    ReplicaUnavailable, DiskFailed or CorruptReplica if waiting is useless."""
    looks_without = looks_damaged = 0
    left: int | None = None
    while True:
        status = await find_server(client, server)
        found = [each for each in status.disks if each.path == path.rstrip("/")]
        if found:
            if left is None:
                shown.total = left = found[0].chunks
            shown.advance(left - found[0].chunks)
            left = found[0].chunks
            only_damaged = found[0].state == "draining" and 0 < left <= found[0].damaged
            looks_damaged = looks_damaged + 1 if only_damaged else 0
            if only_damaged and not looks_damaged % LOOKS_DAMAGED:
                await _check_repairable(client, status, found[0])
        if status.state == "live":
            looks_without = 0 if found else looks_without + 1
            if looks_without == LOOKS_WITHOUT_MAX:
                raise NotFound(
                    f"{path} is not a disk of chunkserver {status.id} any more, it was removed: "
                    "gfs status --disks"
                )
            if found and not found[0].chunks:
                return status.disks
            if found and found[0].reason:
                raise DiskFailed(f"{path}: {found[0].reason}")
        elif status.state != "silent" or status.maintenance_ms:
            # A silent server, as after a restart of the master, soon becomes live or dead.
            raise ReplicaUnavailable(
                f"chunkserver {status.id} ({status.address}) is {status.state}: start it (gfs "
                "chunkserver; gfs up does so by itself), and the drain continues: "
                "gfs status --disks",
                status.id,
            )
        await trio.sleep(LOOK_SECONDS)


async def _check_repairable(client: Client, server: ServerStatus, disk: Disk) -> None:
    """Raises CorruptReplica if the damaged replicas that are left have no good one anywhere."""
    found = (await client.fsck(verify=False)).problems
    lost = {each.handle for each in found if each.kind == "lost" and each.detail != MENDING}
    here = [
        each
        for each in found
        if each.kind == "corrupt" and each.server == server.id and each.handle in lost
    ]
    totals = (await client.status()).totals
    if len(here) < disk.damaged and totals.repairs_active + totals.repairs_queued + totals.salvages:
        return
    names = [f"{each.path} chunk {each.index}" for each in here[:NAMED_MAX]]
    if disk.damaged > len(names):
        names.append(f"{disk.damaged - len(names)} others, maybe of deleted files (gfs fsck)")
    raise CorruptReplica(
        f"{disk.path}: the drain cannot end: {plural(disk.damaged, 'damaged replica')} left, and "
        f"no good one anywhere: {', '.join(names)}. Delete these files for good (gfs rm --now), or "
        f"remove the disk without them: gfs disk remove --give-up-damaged {server.id} {disk.path}"
    )


async def find_server(client: Client, name: str) -> ServerStatus:
    """The master's status of the server with this id or address. Raises NotFound."""
    for server in (await client.status()).servers:
        if name in (server.id, server.address):
            return server
    raise NotFound(f"there is no chunkserver {name}: gfs status shows their ids and addresses")


def row(server: str, each: Disk) -> dict[str, object]:
    """One disk, for ``--json``."""
    return {"server": server, **{name: getattr(each, name) for name in each.__struct_fields__}}


def disk_table(disks: Iterable[tuple[str, Disk]]) -> str:
    """A table of all disks with their servers."""
    titles = ["CHUNKSERVER", "DISK", "STATE", "USED", "FREE", "CHUNKS", "ERRORS", "REASON"]
    rows = [
        [
            server,
            each.path,
            each.state,
            human_bytes(each.total_bytes - each.free_bytes),
            human_bytes(each.free_bytes),
            str(each.chunks),
            str(each.errors),
            each.reason,
        ]
        for server, each in disks
    ]
    return table(titles, rows, right=(3, 4, 5, 6))


def disk_warnings(server: ServerStatus) -> Iterator[str]:
    """Warnings about its disks, each with the next command."""
    for each in server.disks:
        name = f"disk {each.path} of chunkserver {server.id} ({server.address})"
        order = f"{server.id} {each.path}"
        if each.state in DOWN:
            works = "is mounted again" if each.state == "missing" else "works again"
            yield (
                f"WARNING: {name} is {each.state}: {each.reason}; its replicas are re-replicated. "
                f"When it {works}: gfs disk retry {order}; with another disk mounted in its place: "
                f"gfs disk add {order}; gone for good: gfs disk remove {order}"
            )
        elif each.state == "slow":
            yield (
                f"WARNING: {name} is slow: a disk call has taken seconds: see the kernel's log; "
                f"to move its replicas to the server's other disks: gfs disk drain {order}"
            )
        elif each.state == "full":
            yield (
                f"WARNING: {name} is full: add a disk (gfs disk add {server.id} DIR) or a "
                "chunkserver (gfs chunkserver), or delete what is not needed (gfs rm)"
            )
        elif each.state == "draining" and not each.chunks:
            yield f"{name} is empty: gfs disk remove {order}"
        elif each.state == "draining":
            left = plural(each.chunks, "replica")
            damaged = f", {each.damaged} of them damaged (gfs fsck)" if each.damaged else ""
            reason = f": {each.reason}" if each.reason else ""
            yield f"{name} is draining, {left} left{damaged}{reason}; progress: gfs status --disks"

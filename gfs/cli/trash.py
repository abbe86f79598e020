"""``gfs undelete``, ``gfs ls --trash`` and ``gfs rm --trash``."""

from __future__ import annotations

from contextlib import aclosing

import click

from gfs.cli.options import Cluster, client_options, json_option, remote_path
from gfs.cli.output import JsonArray, Output, human_bytes, human_time, to_json
from gfs.cli.session import run_with_client
from gfs.client import Client
from gfs.errors import InvalidArgument, NotFound
from gfs.failures import plural
from gfs.protocol.messages import TrashEntry


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--as", "target", metavar="NEW", help="Restore it under this name instead of its old one."
)
@click.option(
    "--inode",
    type=click.IntRange(min=1),
    default=None,
    help="Inode of the deletion to restore, if there are several (gfs ls --trash); default: the "
    "last.",
)
@json_option("the entry (an array of entries, for several paths)")
@client_options
def undelete(
    cluster: Cluster,
    paths: tuple[str, ...],
    target: str | None,
    inode: int | None,
    as_json: bool,
) -> None:
    """Restore deleted files, and deleted directories with their contents.

    Missing parents are created. gfs ls --trash lists what can be undeleted.
    """
    if len(paths) > 1 and (target or inode):
        raise InvalidArgument("--as and --inode go with one PATH")
    names = [remote_path(path) for path in paths]
    goal = remote_path(target) if target else ""

    async def work(client: Client) -> None:
        back = [await client.undelete(name, target=goal, inode=inode or 0) for name in names]
        if as_json:
            async with Output() as output:
                await output.line(to_json(back[0] if len(back) == 1 else back))

    run_with_client(cluster, work)


async def list_trash(client: Client, output: Output, names: list[str], as_json: bool) -> None:
    """Print one line for each deletion at and below each of ``names``."""
    array = JsonArray(output)
    for name in names:
        async with aclosing(client.trash(name)) as entries:
            async for entry in entries:
                if as_json:
                    await array.add(entry)
                else:
                    await output.line(_line(output, entry))
    if as_json:
        await array.end()


def _line(output: Output, entry: TrashEntry) -> str:
    is_directory = entry.kind == "directory"
    size = "?" if entry.length < 0 else human_bytes(entry.length)
    name = output.name(entry.path) + ("/" if is_directory else "")
    if is_directory and entry.files >= 0:
        name += f"  ({plural(entry.files, 'file')})"
    return (
        f"{size:>9}  deleted {human_time(entry.deleted_ns)}  kept until "
        f"{human_time(entry.until_ns)}  inode {entry.inode}  {name}"
    )


async def empty_trash(client: Client, name: str, recursive: bool) -> None:
    """Purge what was deleted under ``name``. Raises NotFound if there is nothing."""
    if not await client.empty_trash(name, recursive=recursive):
        raise NotFound(f"{name} is not in the trash" + (" or below" if recursive else ""))

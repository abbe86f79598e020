"""``gfs ls``, ``stat``, ``mkdir``, ``rm``, ``mv``, ``snapshot``, ``du``: files and directories
by their names."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import click

from gfs.cli.batch import concerns_all
from gfs.cli.exits import Failed, complain
from gfs.cli.options import (
    Cluster,
    base_name,
    client_options,
    join,
    json_option,
    remote_path,
)
from gfs.cli.output import JsonArray, Output, human_bytes, human_time, to_json
from gfs.cli.session import run_with_client
from gfs.cli.trash import empty_trash, list_trash
from gfs.client import Client
from gfs.errors import GfsError, InvalidArgument, NotADirectory, NotFound
from gfs.failures import plural, sentence
from gfs.protocol.messages import DiskUsageReply, Entry


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("-l", "--long", is_flag=True, help="Show replication, size and time, too.")
@click.option(
    "-R", "--recursive", is_flag=True, help="List everything below, one full path per line."
)
@click.option(
    "--trash",
    "trashed",
    is_flag=True,
    help="List what was deleted there and below, and until when it can be undeleted.",
)
@json_option("one array of entries, an entry a line,")
@client_options
def ls(
    cluster: Cluster,
    paths: tuple[str, ...],
    long: bool,
    recursive: bool,
    trashed: bool,
    as_json: bool,
) -> None:
    """List directories (default /), by name; a directory's name ends with a slash.

    Entries are printed as they arrive, so a long listing takes no more memory than a
    short one. gfs undelete restores entries that --trash shows.
    """
    names = [remote_path(path) for path in paths or ("/",)]

    async def work(client: Client) -> None:
        async with Output() as output:
            if trashed:
                await list_trash(client, output, names, as_json)
                return
            if as_json:
                await _list_as_json(client, output, names, recursive)
                return
            for position, name in enumerate(names):
                if len(names) > 1:
                    await output.line(("\n" if position else "") + f"{output.name(name)}:")
                async with aclosing(_entries(client, name, recursive)) as entries:
                    async for entry in entries:
                        await output.line(_line(output, entry, name, long, recursive))

    run_with_client(cluster, work)


async def _entries(client: Client, path: str, recursive: bool) -> AsyncGenerator[Entry, None]:
    entry = await client.stat(path)
    if entry.kind != "directory":
        yield entry
        return
    async with aclosing(client.walk(path) if recursive else client.scan(path)) as entries:
        async for inner in entries:
            yield inner


async def _list_as_json(client: Client, output: Output, names: list[str], recursive: bool) -> None:
    array = JsonArray(output)
    for name in names:
        async with aclosing(_entries(client, name, recursive)) as entries:
            async for entry in entries:
                await array.add(entry)
    await array.end()


def _line(output: Output, entry: Entry, listed: str, long: bool, full: bool) -> str:
    is_directory = entry.kind == "directory"
    shown = entry.path if full or entry.path == listed else base_name(entry.path)
    name = output.name(shown) + ("/" if is_directory and shown != "/" else "")
    if not long:
        return name
    replication = "-" if is_directory else str(entry.replication)
    size = "-" if is_directory else human_bytes(entry.length)
    kind = "d" if is_directory else "f"
    return f"{kind} {replication:>2} {size:>9}  {human_time(entry.modified_ns)}  {name}"


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@json_option("the entry (an array of entries, for several paths)")
@client_options
def stat(cluster: Cluster, paths: tuple[str, ...], as_json: bool) -> None:
    """Show the attributes of files and directories."""
    names = [remote_path(path) for path in paths]

    async def work(client: Client) -> None:
        async with Output() as output:
            entries = [await client.stat(name) for name in names]
            if as_json:
                await output.line(_one_or_many(entries))
                return
            for entry in entries:
                await output.line(_description(output, entry))

    run_with_client(cluster, work)


def _one_or_many(values: list[Any]) -> str:
    return to_json(values[0] if len(values) == 1 else values)


def _description(output: Output, entry: Entry) -> str:
    lines = [output.name(entry.path), f"  kind         {entry.kind}"]
    if entry.kind == "file":
        lines += [
            f"  length       {entry.length} bytes ({human_bytes(entry.length)})",
            f"  replication  {entry.replication}",
            f"  chunks       {entry.chunks}",
        ]
    lines += [
        f"  inode        {entry.inode}",
        f"  created      {human_time(entry.created_ns)}",
        f"  modified     {human_time(entry.modified_ns)}",
    ]
    return "\n".join(lines)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "-p",
    "--parents",
    is_flag=True,
    help="Make missing parents, too; no error if the directory exists.",
)
@json_option("the entry (an array of entries, for several paths)")
@client_options
def mkdir(cluster: Cluster, paths: tuple[str, ...], parents: bool, as_json: bool) -> None:
    """Make directories."""
    names = [remote_path(path) for path in paths]

    async def work(client: Client) -> None:
        made = [await client.mkdir(name, parents=parents, exist_ok=parents) for name in names]
        if as_json:
            async with Output() as output:
                await output.line(_one_or_many(made))

    run_with_client(cluster, work)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-r", "--recursive", is_flag=True, help="Delete directories with their contents.")
@click.option("-f", "--force", is_flag=True, help="No error for a path that does not exist.")
@click.option("--now", is_flag=True, help="Delete for good: gfs undelete cannot restore it.")
@click.option(
    "--trash",
    "trashed",
    is_flag=True,
    help="Purge what was deleted at PATH before; with -r, everything below, too: gfs rm --trash "
    "-r /",
)
@json_option('{"deleted": [path, …]}')
@client_options
def rm(
    cluster: Cluster,
    paths: tuple[str, ...],
    recursive: bool,
    force: bool,
    now: bool,
    trashed: bool,
    as_json: bool,
) -> None:
    """Delete files and empty directories; with -r any directory.

    For some time (the master's trash_seconds) gfs undelete can restore them. Paths that
    cannot be deleted are reported, the others are deleted, and the exit code is 1.
    """
    names = [remote_path(path) for path in paths]
    if now and trashed:
        raise InvalidArgument("--trash purges earlier deletions: leave out --now")

    async def purge(client: Client, name: str) -> GfsError | None:
        try:
            await empty_trash(client, name, recursive)
        except GfsError as error:
            return error
        return None

    async def delete(client: Client) -> list[GfsError | None]:
        if trashed:
            return [await purge(client, name) for name in names]
        return await client.delete_many(names, recursive=recursive, now=now)

    async def work(client: Client) -> None:
        deleted, failures = [], 0
        for name, error in zip(names, await delete(client), strict=True):
            if error is None:
                deleted.append(name)
            elif concerns_all(error):
                raise error
            elif not (force and isinstance(error, NotFound)):
                failures += 1
                complain(sentence(error))
        if as_json and (deleted or not failures):
            async with Output() as output:
                await output.line(to_json({"deleted": deleted}))
        if failures:
            raise Failed

    run_with_client(cluster, work)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target", metavar="TARGET")
@click.option("-f", "--force", is_flag=True, help="Replace a file that has the new name.")
@click.option("-p", "--parents", is_flag=True, help="Make missing parents of TARGET.")
@json_option('{"moved": [{source, target}, …]}')
@client_options
def mv(
    cluster: Cluster,
    sources: tuple[str, ...],
    target: str,
    force: bool,
    parents: bool,
    as_json: bool,
) -> None:
    """Move or rename files and directories, each atomically.

    They move into TARGET if that is a directory; else the one SOURCE is renamed to TARGET.
    """
    names = [remote_path(source) for source in sources]
    wants_directory = target.endswith("/") or len(sources) > 1
    goal = remote_path(target)

    async def work(client: Client) -> None:
        into = await _is_directory(client, goal)
        if wants_directory and not into:
            raise NotADirectory(f"{goal}: is not a directory to move into")
        moved = []
        for name in names:
            final = join(goal, base_name(name)) if into else goal
            await client.rename(name, final, replace=force, parents=parents)
            moved.append({"source": name, "target": final})
        if as_json:
            async with Output() as output:
                await output.line(to_json({"moved": moved}))

    run_with_client(cluster, work)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("-p", "--parents", is_flag=True, help="Make missing parents of DST.")
@json_option('{"source", "target", "files", "directories", "bytes"}')
@client_options
def snapshot(cluster: Cluster, source: str, target: str, parents: bool, as_json: bool) -> None:
    """Make DST a copy of the file or directory SRC at one instant.

    No data is copied, so it takes no space, and large files take no longer than small
    ones: SRC and DST share chunks until one of them is written. DST appears whole, or
    not at all. Changes in SRC wait until then.
    """
    names = remote_path(source), remote_path(target)

    async def work(client: Client) -> None:
        reply = await client.snapshot(*names, parents=parents)
        if as_json:
            async with Output() as output:
                await output.line(
                    to_json(
                        {
                            "source": names[0],
                            "target": names[1],
                            "files": reply.files,
                            "directories": reply.directories,
                            "bytes": reply.bytes,
                        }
                    )
                )

    run_with_client(cluster, work)


async def _is_directory(client: Client, path: str) -> bool:
    try:
        return (await client.stat(path)).kind == "directory"
    except NotFound:
        return False


@click.command()
@click.argument("goal", type=click.IntRange(min=0), metavar="GOAL")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-R", "--recursive", is_flag=True, help="Change all files below a directory.")
@json_option('{"files": how many}')
@client_options
def setrep(
    cluster: Cluster, goal: int, paths: tuple[str, ...], recursive: bool, as_json: bool
) -> None:
    """Set the replication goal of each file (0: the cluster's default).

    The master then copies or deletes replicas in the background: gfs status shows the progress.
    """
    names = [remote_path(path) for path in paths]

    async def work(client: Client) -> None:
        files = 0
        for name in names:
            files += await client.set_replication(name, goal, recursive=recursive)
        if as_json:
            async with Output() as output:
                await output.line(to_json({"files": files}))

    run_with_client(cluster, work)


def _shared(usage: DiskUsageReply) -> str:
    if not usage.shared_bytes:
        return ""
    return f"; shared: {human_bytes(usage.shared_bytes)}"


def _in_trash(usage: DiskUsageReply) -> str:
    if not usage.trash_files:
        return ""
    return f"; deleted: {human_bytes(usage.trash_bytes)}, {plural(usage.trash_files, 'file')}"


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@json_option("the sums (an array of sums, for several paths)")
@client_options
def du(cluster: Cluster, paths: tuple[str, ...], as_json: bool) -> None:
    """Sum up the files at and below each PATH (default /).

    The sums are the bytes of the files, and of all their replicas. Bytes shared with other
    files (snapshots) are shown as well: deleting these files does not free them. Files
    that were deleted there and can be undeleted are shown separately (gfs ls --trash).
    """
    names = [remote_path(path) for path in paths or ("/",)]

    async def work(client: Client) -> None:
        sums = [(name, await client.disk_usage(name)) for name in names]
        async with Output() as output:
            if as_json:
                await output.line(
                    _one_or_many(
                        [
                            {
                                "path": name,
                                "files": usage.files,
                                "directories": usage.directories,
                                "bytes": usage.bytes,
                                "replicated_bytes": usage.replicated_bytes,
                                "shared_bytes": usage.shared_bytes,
                                "shared_replicated_bytes": usage.shared_replicated_bytes,
                                "trash_files": usage.trash_files,
                                "trash_bytes": usage.trash_bytes,
                            }
                            for name, usage in sums
                        ]
                    )
                )
                return
            for name, usage in sums:
                counts = plural(usage.files, "file")
                if usage.directories:
                    counts += ", " + plural(usage.directories, "directory")
                await output.line(
                    f"{human_bytes(usage.bytes):>9}  "
                    f"({human_bytes(usage.replicated_bytes)} with replicas)  "
                    f"{output.name(name)}  {counts}{_shared(usage)}{_in_trash(usage)}"
                )

    run_with_client(cluster, work)

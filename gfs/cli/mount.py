"""``gfs mount``."""

from __future__ import annotations

from pathlib import Path

import click

from gfs.cli.options import PATH, Cluster, client_options, remote_path
from gfs.cli.session import run_with_client
from gfs.client import Client


@click.command()
@click.argument("path")
@click.argument("directory", type=PATH, metavar="DIR")
@click.option(
    "--allow-other",
    is_flag=True,
    help="Let other users in, too (fuse.conf must have user_allow_other, unless root mounts).",
)
@client_options
def mount(cluster: Cluster, path: str, directory: Path, allow_other: bool) -> None:
    """Mount PATH of the file system at the directory DIR of this machine, until it is unmounted
    (fusermount3 -u DIR) or the command is stopped (Ctrl-C, SIGTERM), which stores what was
    written."""
    import gfs.mount

    gfs.mount.check(directory)
    source, target = remote_path(path), directory.absolute()

    async def work(client: Client) -> None:
        await gfs.mount.mount(
            client,
            source,
            target,
            allow_other=allow_other,
            ready=lambda: click.echo(f"{source} is mounted at {directory}"),
        )

    run_with_client(cluster, work)

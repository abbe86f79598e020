"""``gfs backup`` and ``gfs restore``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gfs.cli.options import PATH, Cluster, check_parent, client_options, state_directory
from gfs.cli.output import Output
from gfs.cli.session import (
    check_runs,
    client_settings,
    refused_seconds,
    run,
    run_with_client,
    saying_that_it_waits,
    with_advice,
)
from gfs.client import find_credentials, find_masters
from gfs.cluster.directory import StateDirectory, is_locked
from gfs.config import MasterSettings, load
from gfs.errors import GfsError, MasterUnavailable, SettingsError, StartupError
from gfs.failures import plural, sentence
from gfs.io import real_world

MASTER = "master"


@click.command()
@click.argument("file", type=PATH)
@client_options
def backup(cluster: Cluster, file: Path) -> None:
    """Copy all metadata of the master, which goes on serving, into FILE.

    If FILE is a backup of this cluster already, what was done since is added. The backup
    is durable when the command returns; if it fails, the last one in FILE is still there.
    FILE has the names, and not the chunks, which stay on the chunkservers.
    """
    from gfs.master import take_backup

    settings = client_settings(cluster)
    check_runs(cluster)
    # Not of a link: a new backup replaces the file that it names, where that is.
    path = os.path.realpath(file)
    check_parent(path)
    masters = find_masters(cluster.master, cluster.state)
    credentials = find_credentials(cluster.key_file, cluster.tls, cluster.state)

    async def work() -> None:
        seconds = settings.retry_seconds
        refused = refused_seconds(cluster)
        async with saying_that_it_waits(cluster, seconds) as waits:
            try:
                point = await take_backup(
                    real_world(), masters, credentials, path, seconds, waits, refused
                )
            except MasterUnavailable as error:
                raise with_advice(cluster, error) from error
            except GfsError:
                raise  # some are an OSError as well
            except OSError as error:
                raise StartupError(f"{file}: {sentence(error)}") from None
        async with Output() as output:
            await output.line(f"{file} has the metadata up to operation {point.sequence}")

    run(work)


@click.command()
@click.argument("file", type=PATH, required=False)
@click.option(
    "--accept",
    is_flag=True,
    help="After a restore: accept what is lost. Chunks that no file has are deleted.",
)
@client_options
def restore(cluster: Cluster, file: Path | None, accept: bool) -> None:
    """Make STATE/master, the directory of a master, from the backup FILE.

    No master may run there, and it must be empty. Start the master then, with the
    chunkservers as they are: it is the master in a new term, and every other one is over.
    gfs fsck / names the files whose chunks do not exist any more. What was made after the
    backup is not there; its chunks are kept until gfs restore --accept.
    """
    if accept == (file is not None):
        raise SettingsError("give either the FILE of a backup, or --accept")
    if file is None:
        run_with_client(cluster, lambda client: client.accept_restore())
        return
    from gfs.master import restore_backup

    state = state_directory(cluster)
    if is_locked(StateDirectory(state).lock):
        raise StartupError(f"{state}: gfs up runs there: stop it first (gfs down)")
    credentials = find_credentials(cluster.key_file, cluster.tls, cluster.state)
    settings = load(MasterSettings, "master", file=cluster.config)

    async def work() -> None:
        try:
            made = await restore_backup(
                real_world(), credentials, str(file), str(state / MASTER), settings.map_bytes
            )
        except GfsError:
            raise
        except OSError as error:
            raise StartupError(f"{state}: {sentence(error)}") from None
        async with Output() as output:
            for address, why in made.silent.items():
                await output.line(
                    f"WARNING: chunkserver {address} did not report its term ({why}): if it "
                    "refuses the new master, start it and restore again"
                )
            await output.line(
                f"{state / MASTER} has {plural(made.files, 'file')}, up to operation "
                f"{made.point.sequence}, in term {made.term >> 32}: start the master, then "
                "gfs fsck / names what is lost"
            )

    run(work)

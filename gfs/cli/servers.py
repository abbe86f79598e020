"""``gfs up``, ``down``, ``master`` and ``chunkserver``."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import trio

from gfs.cli.exits import silence_stdout
from gfs.cli.options import (
    PATH,
    Cluster,
    check_address,
    cluster_options,
    key_file,
    state_directory,
)
from gfs.cli.output import plural
from gfs.cluster import launch, process, supervisor
from gfs.cluster.failures import EXPECTED, sentence, the_one
from gfs.cluster.report import Reporter
from gfs.config import (
    DEFAULT_PORT,
    ChunkserverSettings,
    MasterSettings,
    default_state_directory,
    load,
)
from gfs.errors import GfsError, SettingsError, StartupError
from gfs.io import real_world
from gfs.state import KEY_NAME, make_key, read_key

#: Inherited descriptors, see :mod:`gfs.cluster`.
ready_fd_option = click.option("--ready-fd", type=int, hidden=True)
life_fd_option = click.option("--life-fd", type=int, hidden=True)
log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="GFS_LOG_LEVEL",
    help="What goes to stderr (GFS_LOG_LEVEL).",
)


@click.command()
@cluster_options("state", "config")
@click.option(
    "--chunkservers",
    type=click.IntRange(1, supervisor.CHUNKSERVERS_MAX),
    metavar="N",
    help=f"At least so many (default: those of the state, else {supervisor.CHUNKSERVERS_DEFAULT}). "
    "More than before: the new ones join. Those that hold data always run.",
)
@click.option(
    "--replication",
    type=click.IntRange(1, 64),
    metavar="R",
    help="Replicas of new files that do not ask for another number (default 3). Remembered.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    metavar="BASE",
    show_default=True,
    help="The master's port; the chunkservers get the next ones. 0: any that are free.",
)
@click.option(
    "--ready-file",
    type=PATH,
    metavar="FILE",
    help="Written when everything serves, kept true, removed at the end: addresses and pids.",
)
@click.option("--detach", is_flag=True, help="Return when everything serves; stop with gfs down.")
@ready_fd_option
def up(
    cluster: Cluster,
    chunkservers: int | None,
    replication: int | None,
    port: int,
    ready_file: Path | None,
    detach: bool,
    ready_fd: int | None,
) -> None:
    """Run a master and chunkservers on this machine, until stopped.

    They are processes of their own; one that dies is started again. Everything
    is kept in the state directory (--state, else GFS_STATE, else
    ~/.local/state/gfs), and found there by the next gfs up. SIGINT (Ctrl-C) or
    SIGTERM stops all of them, a second one at once.
    """
    wishes = supervisor.Wishes(
        state=state_directory(cluster).absolute(),
        chunkservers=chunkservers,
        replication=replication,
        port=port,
        ready_file=ready_file.absolute() if ready_file else None,
        config=cluster.config.absolute() if cluster.config else None,
    )
    if detach:
        _up_in_background(wishes)
    else:
        _up_here(wishes, Reporter(ready_fd))


def _up_here(wishes: supervisor.Wishes, reporter: Reporter) -> None:
    def on_ready(plan: supervisor.Plan, facts: dict[str, Any]) -> None:
        settled = {"replication": plan.replication, "replicas_min": plan.replicas_min}
        if reporter.is_awaited:
            reporter.serving({"facts": facts, **settled})
            return
        try:
            print(summary(facts, **settled), "Stop it with Ctrl-C.", sep="\n", flush=True)
        except (OSError, ValueError):
            silence_stdout()  # the cluster serves, whether somebody reads this or not

    try:
        trio.run(supervisor.up, wishes, on_ready)
    except BaseException as error:
        story = the_one(error)
        if isinstance(story, EXPECTED):
            code = story.exit_code if isinstance(story, GfsError) else StartupError.exit_code
            reporter.failed(sentence(story), code)
        raise


def _up_in_background(wishes: supervisor.Wishes) -> None:
    from gfs.cli.session import run

    arguments = [f"--state={wishes.state}", f"--port={wishes.port}"]
    for name in ("chunkservers", "replication", "ready_file", "config"):
        value = getattr(wishes, name)
        if value is not None:
            arguments.append(f"--{name.replace('_', '-')}={value}")
    report = run(lambda: launch.detach(wishes.state, arguments))
    print(summary(report["facts"], report["replication"], report["replicas_min"]))
    print(f"It runs in the background (pid {report['pid']}). Stop it with:")
    print(f"  {_command()} down{_state_option(wishes.state)}")


@click.command()
@cluster_options("state")
def down(cluster: Cluster) -> None:
    """Stop the cluster that gfs up runs on the state directory, wait for its end."""
    state = state_directory(cluster).absolute()
    print(f"{state}: stopped" if launch.down(state) else f"{state}: no cluster runs there")


def summary(facts: dict[str, Any], replication: int, replicas_min: int) -> str:
    """What somebody who just started a cluster wants to know."""
    state = Path(facts["state"])
    gfs, option = _command(), _state_option(state)
    count = len(facts["chunkservers"])
    lines = [
        f"The cluster serves: master {facts['master']['address']}, "
        f"{plural(count, 'chunkserver')}, replication {replication}.",
        f"State and logs: {state}",
    ]
    needed = min(replicas_min, replication)
    if count < needed:
        lines.append(
            f"Warning: no file can be written: a chunk needs {needed} live chunkservers. "
            f"Start again with --chunkservers {replication} or --replication {count}."
        )
    elif count < replication:
        lines.append(
            f"Warning: files will have {plural(count, 'replica')}, not {replication}, until "
            f"there are more chunkservers. Start again with --chunkservers {replication}, "
            f"or be content with --replication {count}."
        )
    lines += [
        "Try, in another shell:",
        f"  {gfs} put{option} /usr/lib/os-release /etc/os",
        f"  {gfs} ls{option} -l /etc",
        f"  {gfs} get{option} /etc/os -",
        f"  {gfs} status{option}",
    ]
    return "\n".join(lines)


def _command() -> str:
    """How the user can call this very `gfs` again."""
    called = sys.argv[0]
    if os.path.basename(called) != "gfs":  # python -m gfs.cli
        called = str(Path(sys.executable).with_name("gfs"))
    found = shutil.which("gfs")
    if found and os.path.exists(called) and os.path.samefile(found, called):
        return "gfs"
    return shlex.quote(called)


def _state_option(state: Path) -> str:
    """The option that finds ``state``, if it is needed."""
    return (
        ""
        if state == default_state_directory().absolute()
        else f" --state {shlex.quote(str(state))}"
    )


@click.command()
@cluster_options("state", "key_file", "config")
@click.option("--address", metavar="HOST:PORT", help="Listen here (GFS_MASTER_ADDRESS).")
@click.option("--replication", type=int, metavar="R", help="Replicas of new files.")
@log_level_option
@ready_fd_option
@life_fd_option
def master(
    cluster: Cluster,
    address: str | None,
    replication: int | None,
    log_level: str,
    ready_fd: int | None,
    life_fd: int | None,
) -> None:
    """Run a master in the foreground, with its metadata in STATE/master.

    The cluster key is STATE/cluster.key (or --key-file), made at the first
    start; chunkservers and clients on other machines need a copy of it.
    Settings: flags, else GFS_MASTER_* variables, else table [master] of the
    --config file.
    """
    from gfs.master import run_master

    process.start_logging(log_level)
    with reported(ready_fd):
        settings = load(
            MasterSettings,
            "master",
            file=cluster.config,
            flags={"address": address, "replication": replication},
        )
        check_address("--address", settings.address)
        state = state_directory(cluster)
        directory = state / "master"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = make_key(cluster.key_file or state / KEY_NAME)
        except OSError as error:
            raise StartupError(f"{state}: {sentence(error)}") from None

    async def role(*, task_status: trio.TaskStatus[dict[str, Any]]) -> None:
        async with trio.open_nursery() as nursery:
            started = await nursery.start(run_master, real_world(), settings, str(directory), key)
            task_status.started({"address": started.address})

    process.serve(role, report=ready_fd, lifeline=life_fd)


@click.command()
@cluster_options("master", "state", "key_file", "config")
@click.option(
    "--dir",
    "directories",
    multiple=True,
    required=True,
    metavar="DIR",
    help="Where chunks are kept; once for each disk.",
)
@click.option("--address", metavar="HOST:PORT", help="Listen here (GFS_CHUNKSERVER_ADDRESS).")
@click.option("--rack", metavar="NAME", help="Machines that fail together (GFS_CHUNKSERVER_RACK).")
@log_level_option
@ready_fd_option
@life_fd_option
def chunkserver(
    cluster: Cluster,
    directories: tuple[str, ...],
    address: str | None,
    rack: str | None,
    log_level: str,
    ready_fd: int | None,
    life_fd: int | None,
) -> None:
    """Run a chunkserver in the foreground. It waits for its master for ever.

    The cluster key is read from --key-file, else GFS_KEY_FILE, else the state
    directory. Settings: flags, else GFS_CHUNKSERVER_* variables, else table
    [chunkserver] of the --config file.
    """
    from gfs.chunkserver import run_chunkserver

    process.start_logging(log_level)
    with reported(ready_fd):
        settings = load(
            ChunkserverSettings,
            "chunkserver",
            file=cluster.config,
            flags={"address": address, "rack": rack, "master": cluster.master},
        )
        if len(set(map(os.path.realpath, directories))) < len(directories):
            raise SettingsError("--dir: each disk must be another directory")
        check_address("--master", settings.master)
        if check_address("--address", settings.address) in ("0.0.0.0", "::"):
            raise SettingsError(
                f"--address {settings.address}: clients and other chunkservers connect to this "
                "very address: give one of this machine that they can reach"
            )
        key = read_key(key_file(cluster))

    async def role(*, task_status: trio.TaskStatus[dict[str, Any]]) -> None:
        async with trio.open_nursery() as nursery:
            started = await nursery.start(
                run_chunkserver, real_world(), settings, list(directories), key
            )
            task_status.started({"id": started.id, "address": started.address})

    process.serve(role, report=ready_fd, lifeline=life_fd)


@contextlib.contextmanager
def reported(ready_fd: int | None) -> Iterator[None]:
    """Tell a supervisor what is wrong with the settings, before anything runs."""
    try:
        yield
    except GfsError as error:
        Reporter(ready_fd).failed(sentence(error), error.exit_code)
        raise

"""``gfs up``, ``down``, ``master`` and ``chunkserver``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from gfs.cli.exits import complain, silence_stdout
from gfs.cli.options import (
    PATH,
    Cluster,
    check_address,
    check_addresses,
    cluster_options,
    key_file,
    life_fd_option,
    log_options,
    ready_fd_option,
    state_directory,
)
from gfs.cli.output import control_summary
from gfs.cli.settings import ServerCommand
from gfs.cluster import launch, process, supervisor
from gfs.cluster.directory import StateDirectory
from gfs.cluster.report import Reporter, reported
from gfs.config import (
    DEFAULT_PORT,
    ChunkserverSettings,
    MasterSettings,
    default_state_directory,
    load,
)
from gfs.diagnostics import start_logging
from gfs.errors import GfsError, SettingsError, StartupError
from gfs.failures import EXPECTED, plural, sentence, the_one
from gfs.io import real_world
from gfs.metrics import Source
from gfs.protocol.credentials import load_credentials
from gfs.state import find_tls, make_key


@click.command(cls=ServerCommand, roles=("master", "chunkserver"))
@cluster_options("state", "config")
@click.option(
    "--chunkservers",
    type=click.IntRange(1, supervisor.CHUNKSERVERS_MAX),
    metavar="N",
    help="At least this many (default: as many as the state directory has, else "
    f"{supervisor.CHUNKSERVERS_DEFAULT}). If it is raised, new ones join. Chunkservers with data "
    "always run.",
)
@click.option(
    "--replication",
    type=click.IntRange(1, 64),
    metavar="R",
    help="Replication goal of new files that set no other (default 3). It is stored in the state "
    "directory.",
)
@click.option(
    "--masters",
    type=click.IntRange(1, supervisor.MASTERS_MAX),
    metavar="N",
    help=f"With --elect: how many masters run (default {supervisor.MASTERS_DEFAULT}).",
)
@click.option(
    "--elect",
    metavar="URL",
    help="Run several masters, of which this engine elects one: see gfs master --elect. It is "
    "stored in the state directory, as are their addresses.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    metavar="BASE",
    show_default=True,
    help="The master's port; the chunkservers get the next ones. 0: any that are free, also "
    "for the REST API.",
)
@click.option(
    "--control-bind",
    metavar="HOST:PORT",
    help="Where the REST API listens (GFS_CONTROL_BIND; default "
    f"{supervisor.CONTROL_DEFAULTS['bind']}). Port 0: any that is free.",
)
@click.option(
    "--control-workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Processes that serve the REST API (GFS_CONTROL_WORKERS; default 1).",
)
@click.option(
    "--s3-bind",
    metavar="HOST:PORT",
    help="Where S3 is served (GFS_CONTROL_S3_BIND; default: a free port of 127.0.0.1).",
)
@click.option("--no-control", is_flag=True, help="Run no REST API.")
@click.option(
    "--metrics",
    is_flag=True,
    help="Serve /metrics of each server for Prometheus, at a port of its own on loopback (see "
    "the ready file).",
)
@click.option(
    "--tls",
    is_flag=True,
    help="Encrypt all connections of the file system, with certificates that are made in "
    "STATE/tls the first time. It stays on as long as STATE/tls exists.",
)
@click.option(
    "--ready-file",
    type=PATH,
    metavar="FILE",
    help="File for addresses and pids: written when everything serves, kept up to date, "
    "removed at the end.",
)
@click.option("--detach", is_flag=True, help="Return when everything serves; gfs down stops it.")
@ready_fd_option
def up(
    cluster: Cluster,
    chunkservers: int | None,
    replication: int | None,
    masters: int | None,
    elect: str | None,
    port: int,
    control_bind: str | None,
    control_workers: int | None,
    s3_bind: str | None,
    no_control: bool,
    metrics: bool,
    tls: bool,
    ready_file: Path | None,
    detach: bool,
    ready_fd: int | None,
) -> None:
    """Run a master, chunkservers and the REST API on this machine, until stopped.

    Each is a process of its own; one that dies is restarted. Everything
    is kept in the state directory (--state, else GFS_STATE, else
    ~/.local/state/gfs), and found there by the next gfs up. SIGINT (Ctrl-C) or
    SIGTERM stops all of them, a second one at once.
    """
    if no_control and (control_bind or control_workers or s3_bind):
        raise SettingsError("--no-control runs no REST API: leave out the options for it")
    options = supervisor.UpOptions(
        state=state_directory(cluster).absolute(),
        chunkservers=chunkservers,
        replication=replication,
        masters=masters,
        elect=elect,
        port=port,
        ready_file=ready_file.absolute() if ready_file else None,
        config=cluster.config.absolute() if cluster.config else None,
        control=not no_control,
        control_bind=control_bind,
        control_workers=control_workers,
        s3_bind=s3_bind,
        tls=tls,
        metrics=metrics,
    )
    if detach:
        _up_in_background(options)
    else:
        _up_here(options, Reporter(ready_fd))


def _up_here(options: supervisor.UpOptions, reporter: Reporter) -> None:
    def on_ready(plan: supervisor.Plan, facts: dict[str, Any]) -> None:
        chosen: dict[str, Any] = {
            "replication": plan.replication,
            "replicas_min": plan.replicas_min,
            "admin": plan.admin,
        }
        if reporter.is_awaited:
            # Without the password: reports must not contain it.
            reporter.serving({"facts": facts, **chosen})
            return
        try:
            password = _first_password(facts, options)
            lines = summary(facts, **chosen, password=password)
            print(lines, "Stop it with Ctrl-C.", sep="\n", flush=True)
        except (OSError, ValueError):
            silence_stdout()  # the cluster serves, even if nobody reads this

    try:
        trio.run(supervisor.up, options, on_ready)
    except BaseException as error:
        failure = the_one(error)
        if isinstance(failure, EXPECTED):
            code = failure.exit_code if isinstance(failure, GfsError) else StartupError.exit_code
            reporter.failed(sentence(failure), code)
        raise


def _up_in_background(options: supervisor.UpOptions) -> None:
    from gfs.cli.session import run

    arguments = [f"--state={options.state}", f"--port={options.port}"]
    for name in (
        *("chunkservers", "replication", "masters", "elect", "ready_file", "config"),
        *("control_bind", "control_workers", "s3_bind"),
    ):
        value = getattr(options, name)
        if value is not None:
            arguments.append(f"--{name.replace('_', '-')}={value}")
    if not options.control:
        arguments.append("--no-control")
    for flag in ("tls", "metrics"):
        if getattr(options, flag):
            arguments.append(f"--{flag}")
    report = run(lambda: launch.detach(options.state, arguments))
    facts = report["facts"]
    chosen = {name: report[name] for name in ("replication", "replicas_min", "admin")}
    print(summary(facts, **chosen, password=_first_password(facts, options)))
    print(f"It runs in the background (pid {report['pid']}). Stop it with:")
    print(f"  {_command()} down{_state_option(options.state)}")


def _first_password(facts: dict[str, Any], options: supervisor.UpOptions) -> str | None:
    """The admin's password, if this start generated it or it was never printed."""
    if "control" not in facts:
        return None
    try:
        return StateDirectory(options.state).take_first_password()
    except GfsError as error:
        complain(str(error))
        return None


@click.command()
@cluster_options("state")
def down(cluster: Cluster) -> None:
    """Stop the cluster that gfs up runs on the state directory, and wait for its end."""
    state = state_directory(cluster).absolute()
    print(f"{state}: stopped" if launch.down(state) else f"{state}: no cluster runs there")


def _masters(facts: dict[str, Any]) -> str:
    if "masters" not in facts:
        return f"master {facts['master']['address']}"
    return "one of the masters " + ", ".join(each["address"] for each in facts["masters"])


def summary(
    facts: dict[str, Any],
    replication: int,
    replicas_min: int,
    admin: str = "",
    password: str | None = None,
) -> str:
    """The lines for a user who just started a cluster."""
    state = Path(facts["state"])
    gfs, option = _command(), _state_option(state)
    count = len(facts["chunkservers"])
    lines = [
        f"The cluster serves: {_masters(facts)}, "
        f"{plural(count, 'chunkserver')}, replication {replication}.",
        f"State and logs: {state}",
    ]
    if "control" in facts:
        lines += control_summary(facts["control"], admin, password)
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
            f"or with --replication {count}."
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
    """The command line of this `gfs`, for the user to repeat."""
    called = sys.argv[0]
    if os.path.basename(called) != "gfs":  # python -m gfs.cli
        called = str(Path(sys.executable).with_name("gfs"))
    found = shutil.which("gfs")
    if found and os.path.exists(called) and os.path.samefile(found, called):
        return "gfs"
    return shlex.quote(called)


def _state_option(state: Path) -> str:
    """The option for ``state``, if it is needed."""
    return (
        ""
        if state == default_state_directory().absolute()
        else f" --state {shlex.quote(str(state))}"
    )


@click.command(cls=ServerCommand, roles=("master",))
@cluster_options("state", "key_file", "tls", "config")
@click.option("--address", metavar="HOST:PORT", help="Listen here (GFS_MASTER_ADDRESS).")
@click.option(
    "--replication", type=int, metavar="R", help="Replication goal of new files that set no other."
)
@click.option(
    "--shadow-of",
    metavar="HOST:PORT[,…]",
    help="Run a shadow master of the master at this address (GFS_MASTER_SHADOW_OF).",
)
@click.option(
    "--elect",
    metavar="URL",
    help="Be the master when the engine chooses this process, and else a shadow master: "
    "etcd://HOST:PORT[,…]/NAME or kubernetes://NAMESPACE/LEASE, the same on "
    "all machines (GFS_MASTER_ELECT).",
)
@click.option(
    "--replicas-before-ack",
    type=int,
    metavar="N",
    help="Acknowledge a mutation when N shadow masters have it on disk "
    "(GFS_MASTER_REPLICAS_BEFORE_ACK; default 0, with --elect 1).",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics for Prometheus here (GFS_MASTER_METRICS). Port 0: any that is free.",
)
@log_options
@ready_fd_option
@life_fd_option
def master(
    cluster: Cluster,
    address: str | None,
    replication: int | None,
    shadow_of: str | None,
    elect: str | None,
    replicas_before_ack: int | None,
    metrics: str | None,
    log_level: str,
    log_format: str,
    ready_fd: int | None,
    life_fd: int | None,
) -> None:
    """Run a master in the foreground, with its metadata in STATE/master.

    With --shadow-of it is a shadow master: it copies the metadata of the master
    there, follows it within a second, serves look-ups, and can be made the master
    with gfs promote. It needs a state directory of its own and the same key.

    With --elect the same command runs on each of three machines: one of them is the
    master, the others are its shadow masters, and one of these takes over automatically
    when it is gone. gfs failover moves the master.

    The cluster key is STATE/cluster.key (or --key-file), made at a master's first
    start; shadow masters, chunkservers and clients on other machines need a copy of it.
    Settings: flags, else GFS_MASTER_* variables, else table [master] of the
    --config file.
    """
    from gfs.master import election_engine, run_master

    start_logging(log_level, log_format)
    with reported(ready_fd):
        settings = load(
            MasterSettings,
            "master",
            file=cluster.config,
            flags={
                "address": address,
                "replication": replication,
                "shadow_of": shadow_of,
                "elect": elect,
                "replicas_before_ack": replicas_before_ack,
                "metrics": metrics,
            },
        )
        host = check_address("--address", settings.address)
        engine = election_engine(settings)
        if settings.shadow_of:
            check_addresses("--shadow-of", settings.shadow_of)
        if (settings.shadow_of or settings.elect) and host in ("0.0.0.0", "::"):
            raise SettingsError(
                f"--address {settings.address}: chunkservers and other masters connect to this "
                "address: give one of this machine that they can reach"
            )
        state = state_directory(cluster)
        directory = state / "master"
        key_path = key_file(cluster)
        if settings.shadow_of and not key_path.exists():
            raise SettingsError(
                f"{key_path}: a shadow master needs the cluster's key: copy cluster.key from the "
                "state directory of its master there, or name a copy with --key-file"
            )
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_key(key_path)
        except OSError as error:
            raise StartupError(f"{state}: {sentence(error)}") from None
        tls = find_tls(cluster.tls, cluster.state)
        credentials = load_credentials(key_path, tls, server=True)

    async def role(*, task_status: trio.TaskStatus[dict[str, Any]]) -> None:
        async with trio.open_nursery() as nursery:
            facts, source = await scraped(nursery, settings.metrics)
            run = partial(run_master, metrics=source, engine=engine)
            started = await nursery.start(run, real_world(), settings, str(directory), credentials)
            task_status.started({"address": started.address, **facts})

    process.serve(role, report=ready_fd, lifeline=life_fd)


async def scraped(nursery: trio.Nursery, address: str) -> tuple[dict[str, str], Source]:
    """The metrics of this process, served at ``address`` if there is one, and their
    address for the report. Raises StartupError."""
    source = Source()
    if not address:
        return {}, source
    from gfs.cluster.scrape import listen, serve_metrics

    listener = await listen(real_world(), address)
    nursery.start_soon(serve_metrics, listener, source)
    return {"metrics": f"http://{listener.address}/metrics"}, source


def _master_of_all() -> str | None:
    """``GFS_MASTER``, which applies to every command, unless chunkservers have their own."""
    return None if "GFS_CHUNKSERVER_MASTER" in os.environ else os.environ.get("GFS_MASTER")


@click.command(cls=ServerCommand, roles=("chunkserver",))
@cluster_options("master", "state", "key_file", "tls", "config")
@click.option(
    "--dir",
    "directories",
    multiple=True,
    required=True,
    metavar="DIR",
    help="Directory for chunks; once for each disk.",
)
@click.option("--address", metavar="HOST:PORT", help="Listen here (GFS_CHUNKSERVER_ADDRESS).")
@click.option(
    "--rack", metavar="NAME", help="Name for servers that fail together (GFS_CHUNKSERVER_RACK)."
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics for Prometheus here (GFS_CHUNKSERVER_METRICS). Port 0: any that is free.",
)
@log_options
@ready_fd_option
@life_fd_option
def chunkserver(
    cluster: Cluster,
    directories: tuple[str, ...],
    address: str | None,
    rack: str | None,
    metrics: str | None,
    log_level: str,
    log_format: str,
    ready_fd: int | None,
    life_fd: int | None,
) -> None:
    """Run a chunkserver in the foreground. It waits for its master without a limit.

    The cluster key is read from --key-file, else GFS_KEY_FILE, else the state
    directory. Settings: flags, else GFS_CHUNKSERVER_* variables, else table
    [chunkserver] of the --config file.
    """
    from gfs.chunkserver import run_chunkserver

    start_logging(log_level, log_format)
    with reported(ready_fd):
        settings = load(
            ChunkserverSettings,
            "chunkserver",
            file=cluster.config,
            flags={
                "address": address,
                "rack": rack,
                "master": cluster.master or _master_of_all(),
                "metrics": metrics,
            },
        )
        paths = [os.path.abspath(directory) for directory in directories]
        if len(set(paths)) < len(paths):
            raise SettingsError("--dir: each disk needs a directory of its own")
        check_addresses("--master", settings.master)
        if check_address("--address", settings.address) in ("0.0.0.0", "::"):
            raise SettingsError(
                f"--address {settings.address}: clients and other chunkservers connect to this "
                "address: give one of this machine that they can reach"
            )
        tls = find_tls(cluster.tls, cluster.state)
        credentials = load_credentials(key_file(cluster), tls, server=True)

    async def role(*, task_status: trio.TaskStatus[dict[str, Any]]) -> None:
        async with trio.open_nursery() as nursery:
            facts, source = await scraped(nursery, settings.metrics)
            run = partial(run_chunkserver, metrics=source)
            started = await nursery.start(run, real_world(), settings, paths, credentials)
            task_status.started({"id": started.id, "address": started.address, **facts})

    process.serve(role, report=ready_fd, lifeline=life_fd)

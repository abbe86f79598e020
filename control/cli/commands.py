"""``gfs control``: the control plane as a process, and what is done to its state.

Loaded into the ``gfs`` command by the entry-point group ``gfs.commands``. Only
light things are imported at the top: ``gfs --help`` reads this file.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gfs.cli.exits import complain, silence_stdout
from gfs.cli.options import (
    PATH,
    Cluster,
    check_address,
    cluster_options,
    key_file,
    life_fd_option,
    log_options,
    ready_fd_option,
    state_directory,
)
from gfs.diagnostics import start_logging
from gfs.errors import GfsError, SettingsError, StartupError

if TYPE_CHECKING:
    import trio

    from control.settings import ControlSettings

PASSWORD_BYTES_MAX = 4096


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND]")
@cluster_options("master", "state", "key_file", "tls", "config")
@click.option(
    "--modules",
    metavar="NAME,…",
    help="Serve only these (GFS_CONTROL_MODULES; default: all that are installed).",
)
@click.option(
    "--bind",
    metavar="HOST:PORT",
    help="Listen here (GFS_CONTROL_BIND; default 127.0.0.1:8080). Port 0: any that is free.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Processes that share the port (GFS_CONTROL_WORKERS; default 1).",
)
@click.option("--certfile", type=PATH, metavar="FILE", help="Serve TLS: certificate chain, PEM.")
@click.option("--keyfile", type=PATH, metavar="FILE", help="The certificate's key, PEM.")
@click.option(
    "--origins",
    metavar="URL,…",
    help="Web sites whose pages may call it (GFS_CONTROL_ORIGINS; default: none).",
)
@click.option(
    "--public-url",
    metavar="URL",
    help="Where users reach it, if a proxy is in front (GFS_CONTROL_PUBLIC_URL).",
)
@log_options
@ready_fd_option
@life_fd_option
@click.option("--hold-fd", type=int, hidden=True, help="The lock of gfs up, for the workers.")
@click.option("--listen-fd", type=int, multiple=True, hidden=True, help="A worker's sockets.")
@click.pass_context
def control(
    ctx: click.Context,
    cluster: Cluster,
    modules: str | None,
    bind: str | None,
    workers: int | None,
    certfile: Path | None,
    keyfile: Path | None,
    origins: str | None,
    public_url: str | None,
    log_level: str,
    log_format: str,
    ready_fd: int | None,
    life_fd: int | None,
    hold_fd: int | None,
    listen_fd: tuple[int, ...],
) -> None:
    """Serve the REST API: users, tokens, files over HTTP.

    It runs in the foreground, beside a cluster that gfs up or gfs master runs.
    Users and namespaces are kept in STATE/control, shared by all that run on
    the same machine and state. At the first start it makes the user admin,
    with the password in GFS_ADMIN_PASSWORD or one that it prints.

    Settings: flags, else GFS_CONTROL_* variables, else table [control] of the
    --config file.
    """
    ctx.obj = cluster
    if ctx.invoked_subcommand is not None:
        return
    flags: dict[str, Any] = {
        "modules": modules,
        "bind": bind,
        "workers": workers,
        "certfile": str(certfile) if certfile else None,
        "keyfile": str(keyfile) if keyfile else None,
        "origins": origins,
        "public_url": public_url,
    }
    with _packages():
        from control.cli import serving
        from gfs.cluster import process
        from gfs.cluster.report import reported

        start_logging(log_level, log_format)
        with reported(ready_fd):
            settings = _settings(cluster, flags)
            process.allow_descriptors(2 * settings.connections_max)
            tls = serving.tls_context(settings)
            sockets = serving.adopt(listen_fd) if listen_fd else serving.listen(settings.bind)
            facts = serving.facts(settings, sockets)
            if settings.workers > 1 and not listen_fd:
                logs = [f"--log-level={log_level}", f"--log-format={log_format}"]
                command = ["control", *logs, *_arguments(cluster, flags)]
                held = [hold_fd] if hold_fd is not None else []
                directory = state_directory(cluster) / "control"
                role = serving.shared(command, settings.workers, sockets, held, directory)
            else:
                role = serving.alone(_app(cluster, settings), sockets, settings, tls, log_format)

    async def announced(*, task_status: trio.TaskStatus[dict[str, Any]]) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            await nursery.start(role)
            if ready_fd is None:
                _tell(cluster, settings, facts)
            task_status.started(facts)

    process.serve(announced, report=ready_fd, lifeline=life_fd)


@control.command("rotate-key")
@click.option("--now", is_flag=True, help="For a key that was stolen: end all sessions.")
@cluster_options("state", "config")
def rotate_key(cluster: Cluster, now: bool) -> None:
    """Sign new sessions with a new key.

    Sessions that the old key signed last until they end; with --now they end
    at once. API tokens stay. Processes that run notice by themselves.
    """
    with _packages():
        from control.identity.keys import rotate_keys
    kept_seconds = 0.0 if now else _settings(cluster, {}).session_seconds
    rotate_keys(_records_directory(cluster), kept_seconds)
    print("New sessions are signed with a new key.")


@control.command("set-password")
@click.argument("user")
@cluster_options("state", "config")
def set_password(cluster: Cluster, user: str) -> None:
    """Give USER a new password, read from stdin or asked for.

    It ends the user's sessions; API tokens stay. Works while the control
    plane runs. It is for everyone who may write in the state directory.
    """
    with _packages():
        import trio

        from control.cli.reset_password import replace_password
    directory, settings = _records_directory(cluster), _settings(cluster, {})
    trio.run(replace_password, directory, user, _read_password(), settings)
    print(f"{user} has a new password.")


class _Limit(click.ParamType[Any]):
    """A number, with K, M, G or T after it if it is large; or ``default``."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value).strip().upper()
        if text == "DEFAULT":
            return text
        digits = text.rstrip("KMGT")
        power = "KMGT".find(text[len(digits) :]) + 1 if text[len(digits) :] else 0
        if not (digits.isascii() and digits.isdecimal() and len(text) - len(digits) < 2):
            self.fail(f"{value!r}: write a number, as 5000 or 20G, or default", param, ctx)
        return int(digits) * 1024**power


_LIMIT = _Limit()


@control.command("quota")
@click.argument("user")
@click.option("--bytes", type=_LIMIT, help="In files: 20G, say.")
@click.option("--files", type=_LIMIT, help="How many files.")
@click.option("--namespaces", type=_LIMIT, help="Storage namespaces.")
@click.option("--containers", type=_LIMIT, help="Stopped ones count.")
@click.option("--memory-mb", type=_LIMIT, help="Of containers that are not stopped.")
@click.option("--storage-gb", type=_LIMIT, help="Of all containers.")
@cluster_options("state", "config")
def quota(cluster: Cluster, user: str, **limits: Any) -> None:
    """Show what USER may have and has, after changing what is named.

    The word default takes a change back. Works while the control plane runs; a
    limit below what the user has takes nothing away.
    """
    with _packages():
        import trio

        from control.cli import quotas as quota_commands
        from control.quota.limits import LIMIT_MAX
    changes = {
        name: None if limit == "DEFAULT" else limit
        for name, limit in limits.items()
        if limit is not None
    }
    for name, limit in changes.items():
        if limit is not None and limit > LIMIT_MAX:
            raise click.UsageError(f"--{name.replace('_', '-')}: at most {LIMIT_MAX}")
    _records_directory(cluster)
    for line in trio.run(quota_commands.change, _offline(cluster), user.strip(), changes):
        changed = "" if line.is_changed else "  (default)"
        print(f"{line.name:<10}  {line.used:>15} of {line.limit:>15}{changed}")


@control.command("recount")
@cluster_options("master", "state", "key_file", "tls", "config")
def recount(cluster: Cluster) -> None:
    """Count the files of all users again.

    That is done by itself when a process died or the machine was booted; by hand
    after files below /storage were changed by other means than the REST API.
    Works while everything runs.
    """
    with _packages():
        import trio

        from control.cli import quotas as quota_commands
    _records_directory(cluster)
    found = trio.run(quota_commands.recount, _offline(cluster))
    for name, (before, now) in sorted(found.items()):
        print(f"{name}: {now[0]} files, {now[1]} bytes (were {before[0]} and {before[1]})")
    print("All files are counted." if found else "All files are counted; nothing has changed.")


@contextlib.contextmanager
def _packages() -> Iterator[None]:
    """Raise StartupError if a package is missing that the client library does without."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("control", "gfs"):
            raise
        raise StartupError(
            f'gfs control needs {error.name}: pip install "gfs-control-plane[server]"'
        ) from None


def _settings(cluster: Cluster, flags: dict[str, Any]) -> ControlSettings:
    from control.settings import ControlSettings
    from gfs.config import load

    return load(ControlSettings, "control", file=cluster.config, flags=flags)


def _app(cluster: Cluster, settings: ControlSettings) -> Any:
    from control.app import build_app

    return build_app(settings.module_names, settings, **_whereabouts(cluster))


def _offline(cluster: Cluster) -> Any:
    """The server's state, for a command that does not serve."""
    from control.api import Control
    from control.api.installed import discover

    where = _whereabouts(cluster)
    return Control(_settings(cluster, {}), where.pop("state"), [*discover().values()], **where)


def _whereabouts(cluster: Cluster) -> dict[str, Any]:
    """Where the state and the file system are."""
    from gfs.state import read_keys

    named = cluster.state is None
    master = cluster.master or (os.environ.get("GFS_MASTER") if named else None)
    for address in master.split(",") if master else ():
        check_address("--master", address.strip())
    has_key = cluster.key_file or (named and os.environ.get("GFS_KEY_FILE"))
    if has_key:
        # A named file that is wrong is an error now, not one at each attempt to connect.
        read_keys(key_file(cluster))
    return {
        "state": state_directory(cluster),
        "master": master,
        "key": key_file(cluster) if has_key else None,
        "tls": cluster.tls,
        "config": cluster.config,
    }


def _arguments(cluster: Cluster, flags: dict[str, Any]) -> list[str]:
    """The command line of a worker."""
    said = {**vars(cluster), **flags}
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in said.items() if value is not None
    ]


def _tell(cluster: Cluster, settings: ControlSettings, facts: dict[str, str]) -> None:
    """Show a person at the terminal where it is, and once how to log in."""
    from control.auth import take_first_password
    from gfs.cli.servers import control_summary

    try:
        password = take_first_password(state_directory(cluster) / "control")
    except (GfsError, OSError) as error:
        complain(str(error))
        password = None
    url = next(iter(facts.values()))
    try:
        lines = control_summary(url, settings.admin_username, password)
        print(*lines, "Stop it with Ctrl-C.", sep="\n", flush=True)
    except (OSError, ValueError):
        silence_stdout()  # it serves, whether somebody reads this or not


def _records_directory(cluster: Cluster) -> Path:
    directory = state_directory(cluster) / "control"
    if not directory.is_dir():
        raise SettingsError(
            f"{directory}: no control plane was ever started here: name its state with --state"
        )
    return directory


def _read_password() -> str:
    if sys.stdin.isatty():
        password: str = click.prompt("New password", hide_input=True, confirmation_prompt=True)
        return password
    # One line, as `echo` and password managers write it.
    return sys.stdin.readline(PASSWORD_BYTES_MAX).rstrip("\r\n")

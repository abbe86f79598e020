"""``gfs control``: the control plane as a process, and commands that change its state.

Loaded into the ``gfs`` command by the entry-point group ``gfs.commands``. Only light
modules are imported at the top, because ``gfs --help`` imports this file.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gfs.cli.exits import complain, silence_stdout
from gfs.cli.options import (
    PATH,
    Cluster,
    check_address,
    check_parent,
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
#: What the gateway of containers has, where so many are permitted.
GATEWAY_DESCRIPTORS = 16 * 1024


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND]")
@cluster_options("master", "state", "key_file", "tls", "config")
@click.option(
    "--modules",
    metavar="NAME,…",
    help="Serve only these modules (GFS_CONTROL_MODULES; default: all that are installed).",
)
@click.option(
    "--bind",
    metavar="HOST:PORT",
    help="Listen here (GFS_CONTROL_BIND; default 127.0.0.1:8080). Port 0: any that is free.",
)
@click.option(
    "--s3-bind",
    metavar="HOST:PORT",
    help="Serve S3 here (GFS_CONTROL_S3_BIND; default: not). Port 0: any that is free.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Processes that share the port (GFS_CONTROL_WORKERS; default 1).",
)
@click.option(
    "--records",
    metavar="URL",
    help="Share users, tokens and namespaces with other machines in PostgreSQL: "
    "postgresql://[USER@]HOST/DATABASE (GFS_CONTROL_RECORDS; default: in STATE/control).",
)
@click.option("--certfile", type=PATH, metavar="FILE", help="Serve TLS: certificate chain, PEM.")
@click.option("--keyfile", type=PATH, metavar="FILE", help="The certificate's key, PEM.")
@click.option(
    "--origins",
    metavar="URL,…",
    help="Web sites whose pages may call the API (GFS_CONTROL_ORIGINS; default: none).",
)
@click.option(
    "--public-url",
    metavar="URL",
    help="The URL for users, if a proxy is in front (GFS_CONTROL_PUBLIC_URL).",
)
@log_options
@ready_fd_option
@life_fd_option
@click.option("--hold-fd", type=int, hidden=True, help="The lock of gfs up, for the workers.")
@click.option("--listen-fd", type=int, multiple=True, hidden=True, help="A worker's sockets.")
@click.option("--s3-listen-fd", type=int, multiple=True, hidden=True, help="Those for S3.")
@click.pass_context
def control(
    ctx: click.Context,
    cluster: Cluster,
    modules: str | None,
    bind: str | None,
    s3_bind: str | None,
    workers: int | None,
    records: str | None,
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
    s3_listen_fd: tuple[int, ...],
) -> None:
    """Serve the REST API: users, tokens, files over HTTP.

    It runs in the foreground, for a cluster that gfs up or gfs master runs. Users and
    namespaces are stored in STATE/control, which all control planes on the same machine
    and state share. The first start makes the user admin, with the password in
    GFS_ADMIN_PASSWORD or a generated one that it prints.

    Settings: flags, else GFS_CONTROL_* variables, else table [control] of the
    --config file.
    """
    ctx.obj = cluster
    if ctx.invoked_subcommand is not None:
        return
    flags: dict[str, Any] = {
        "modules": modules,
        "bind": bind,
        "s3_bind": s3_bind,
        "workers": workers,
        "records": records,
        "certfile": str(certfile) if certfile else None,
        "keyfile": str(keyfile) if keyfile else None,
        "origins": origins,
        "public_url": public_url,
    }
    with _packages():
        from control.cli import serving
        from gfs.cli.command import check_clashes
        from gfs.cluster import process
        from gfs.cluster.report import reported

        start_logging(log_level, log_format)
        with reported(ready_fd):
            check_clashes()
            settings = _settings(cluster, flags)
            process.allow_descriptors(
                settings.descriptors + GATEWAY_DESCRIPTORS,
                settings.descriptors,
                f"connections_max = {settings.connections_max}",
            )
            tls = serving.tls_context(settings)
            sockets = serving.adopt(listen_fd) if listen_fd else serving.listen(settings.bind)
            ports = serving.own_ports(settings, s3_listen_fd)
            facts = serving.facts(settings, sockets, ports)
            if settings.workers > 1 and not listen_fd:
                logs = [f"--log-level={log_level}", f"--log-format={log_format}"]
                command = ["control", *logs, *_arguments(cluster, flags)]
                held = [hold_fd] if hold_fd is not None else []
                directory = state_directory(cluster) / "control"
                role = serving.shared(command, settings.workers, sockets, held, directory, ports)
            else:
                app = _app(cluster, settings)
                app.control.ports = serving.numbers(ports)
                everything = [*sockets, *(sock for own in ports.values() for sock in own)]
                role = serving.alone(app, everything, settings, tls, log_format)

    async def announced(*, task_status: trio.TaskStatus[dict[str, Any]]) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            await nursery.start(role)
            if ready_fd is None:
                _print_access(cluster, settings, facts)
            task_status.started(facts)

    process.serve(announced, report=ready_fd, lifeline=life_fd)


@control.command("rotate-key")
@click.option("--now", is_flag=True, help="End all sessions (if the key was stolen).")
@cluster_options("state", "config")
def rotate_key(cluster: Cluster, now: bool) -> None:
    """Sign new sessions with a new key.

    Sessions that the old key signed last until they end; with --now they end
    at once. API tokens stay valid. Running processes notice the change by themselves.
    """
    with _packages():
        from control.identity.keys import SigningKeys, rotate_keys
        from control.identity.opening import open_records
    directory, settings = _records_directory(cluster), _settings(cluster, {})
    kept_seconds = 0.0 if now else settings.session_seconds
    if settings.records:
        with contextlib.closing(open_records(settings, directory, [])) as records:
            SigningKeys.open_shared(records).rotate(kept_seconds)
    else:
        rotate_keys(directory, kept_seconds)
    print("New sessions are signed with a new key.")


@control.command("set-password")
@click.argument("user")
@cluster_options("state", "config")
def set_password(cluster: Cluster, user: str) -> None:
    """Set a new password of USER, read from stdin or prompted for: at least 8 characters, 4 of
    them different, and not the username.

    It ends the user's sessions; API tokens stay valid. It works while the control plane
    runs. It needs write permission for the state directory and no other credential.
    """
    with _packages():
        import trio

        from control.cli.reset_password import replace_password
    directory, settings = _records_directory(cluster), _settings(cluster, {})
    trio.run(replace_password, directory, user, _read_password(), settings)
    print(f"{user} has a new password.")


@control.command("export")
@click.argument("file", type=PATH)
@cluster_options("state", "config")
def export_records(cluster: Cluster, file: Path) -> None:
    """Write users, tokens, namespaces, containers and signing keys to FILE.

    For gfs control import, with other records (GFS_CONTROL_RECORDS). Stop all control planes
    first: later changes are not in FILE. Keep FILE as secret as the keys.
    """
    with _packages():
        from control.cli import moving
    _records_directory(cluster)
    check_parent(file)
    print(f"{moving.export(_offline(cluster), file)} rows are in {file}.")


@control.command("import")
@click.argument("file", type=PATH)
@cluster_options("state", "config")
def import_records(cluster: Cluster, file: Path) -> None:
    """Put what gfs control export wrote to FILE into new records.

    They are those of GFS_CONTROL_RECORDS, or else in STATE/control. Files are counted again
    at the next start.
    """
    with _packages():
        from control.cli import moving
    print(f"{moving.load(_offline(cluster), file)} rows are imported.")


class _Limit(click.ParamType[Any]):
    """A number, optionally with the suffix K, M, G or T; or ``default``."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value).strip().upper()
        if text == "DEFAULT":
            return text
        digits = text.rstrip("KMGT")
        power = "KMGT".find(text[len(digits) :]) + 1 if text[len(digits) :] else 0
        if not (digits.isascii() and digits.isdecimal() and len(text) - len(digits) < 2):
            self.fail(f"{value!r}: expected a number such as 5000 or 20G, or default", param, ctx)
        return int(digits) * 1024**power


_LIMIT = _Limit()


@control.command("s3-key")
@click.argument("user")
@click.option("--name", default="command line", show_default=True, help="What it is for.")
@cluster_options("state", "config")
def s3_key(cluster: Cluster, user: str, name: str) -> None:
    """Make an access key of USER for S3, for all of the user's files.

    It does not expire; DELETE /api/s3-keys/ID revokes it. The secret is printed this once.
    It works while the control plane runs.
    """
    with _packages():
        import trio

        from control.cli.access_keys import make_key
    _records_directory(cluster)
    key = trio.run(make_key, _offline(cluster), user.strip(), name)
    print(f"access key: {key.access_key_id}\nsecret key: {key.secret_access_key}\nid: {key.id}")


@control.command("quota")
@click.argument("user")
@click.option("--bytes", type=_LIMIT, help="Bytes in files, such as 20G.")
@click.option("--files", type=_LIMIT, help="Number of files.")
@click.option("--namespaces", type=_LIMIT, help="Number of storage namespaces.")
@click.option("--containers", type=_LIMIT, help="Number of containers, including stopped ones.")
@click.option("--memory-mb", type=_LIMIT, help="Memory of containers that are not stopped, in MiB.")
@click.option("--storage-gb", type=_LIMIT, help="Storage of all containers, in GiB.")
@cluster_options("state", "config")
def quota(cluster: Cluster, user: str, **limits: Any) -> None:
    """Set the given limits of USER, and show all limits and the usage.

    The value default restores the default limit. It works while the control plane runs.
    A limit below the usage deletes nothing; it only refuses more.
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

    The control plane does this by itself after the death of a process and after a boot.
    Use this command if files below /storage were changed other than by the REST API. It
    works while everything runs.
    """
    with _packages():
        import trio

        from control.cli import quotas as quota_commands
        from gfs.failures import plural
    _records_directory(cluster)
    found = trio.run(quota_commands.recount, _offline(cluster))
    for name, (before, now) in sorted(found.items()):
        counted = f"{plural(now[0], 'file')}, {plural(now[1], 'byte')}"
        print(f"{name}: {counted} (were {before[0]} and {before[1]})")
    print("All files are counted." if found else "All files are counted; nothing has changed.")


@contextlib.contextmanager
def _packages() -> Iterator[None]:
    """Raise StartupError if a package is missing that the client library does not need."""
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
    from control.installed import discover

    where = _whereabouts(cluster)
    return Control(_settings(cluster, {}), where.pop("state"), [*discover().values()], **where)


def _whereabouts(cluster: Cluster) -> dict[str, Any]:
    """The locations of the state and the file system."""
    from gfs.state import read_keys

    named = cluster.state is None
    master = cluster.master or (os.environ.get("GFS_MASTER") if named else None)
    for address in master.split(",") if master else ():
        check_address("--master", address.strip())
    has_key = cluster.key_file or (named and os.environ.get("GFS_KEY_FILE"))
    if has_key:
        # An invalid file is an error now, rather than at each attempt to connect.
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
    said = {**vars(replace(cluster, wait=None)), **flags}
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in said.items() if value is not None
    ]


def _print_access(cluster: Cluster, settings: ControlSettings, facts: dict[str, str]) -> None:
    """Print the address, and once how to log in."""
    from control.auth import take_first_password
    from gfs.cli.output import control_summary

    try:
        password = take_first_password(state_directory(cluster) / "control")
    except (GfsError, OSError) as error:
        complain(str(error))
        password = None
    try:
        lines = control_summary(facts, settings.admin_username, password)
        print(*lines, "Stop it with Ctrl-C.", sep="\n", flush=True)
    except (OSError, ValueError):
        silence_stdout()  # it serves, even if nobody reads this


def _records_directory(cluster: Cluster) -> Path:
    directory = state_directory(cluster) / "control"
    if not directory.is_dir():
        raise SettingsError(
            f"{directory}: no control plane was ever started here: name its state directory with "
            "--state"
        )
    return directory


def _read_password() -> str:
    if sys.stdin.isatty():
        password: str = click.prompt("New password", hide_input=True, confirmation_prompt=True)
        return password
    # One line, as `echo` and password managers write it.
    return sys.stdin.readline(PASSWORD_BYTES_MAX).rstrip("\r\n")

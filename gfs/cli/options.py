"""Options that many subcommands share, and what they mean."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from gfs.errors import InvalidName, NotADirectory, NotFound, SettingsError

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Cluster:
    """Which cluster, as the command line says; None where it does not."""

    master: str | None = None
    state: Path | None = None
    key_file: Path | None = None
    tls: Path | None = None
    config: Path | None = None
    #: Only before the subcommand: some have an option of that name.
    wait: bool | None = None

    def over(self, other: Cluster) -> Cluster:
        """These options, completed by ``other``."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return replace(other, **said)


#: click's ``exists`` and the like are not used: our own errors say more.
PATH = click.Path(path_type=Path)

_CLUSTER_OPTIONS = {
    "master": click.option(
        "--master",
        metavar="HOST:PORT[,…]",
        help="The master's address (GFS_MASTER), or the addresses of all masters, separated by "
        "commas.",
    ),
    "state": click.option(
        "--state", type=PATH, metavar="DIR", help="State directory of gfs up (GFS_STATE)."
    ),
    "key_file": click.option(
        "--key-file",
        type=PATH,
        metavar="FILE",
        help="The cluster key (GFS_KEY_FILE); else the one in the state directory.",
    ),
    "tls": click.option(
        "--tls",
        type=PATH,
        metavar="DIR",
        help="Encrypt all connections: ca.pem, and a server's cert.pem and key.pem (GFS_TLS); "
        "else the directory tls in the state directory, if it exists.",
    ),
    "config": click.option(
        "--config",
        type=PATH,
        metavar="FILE",
        envvar="GFS_CONFIG",
        help="A TOML file with settings (GFS_CONFIG).",
    ),
    "wait": click.option(
        "--wait",
        is_flag=True,
        default=None,
        help="Wait for a master that is not there yet, too: for retry_seconds "
        "(GFS_CLIENT_RETRY_SECONDS), not 5 s, while all addresses refuse connections.",
    ),
}


def cluster_options(*names: str) -> Callable[[Command], Command]:
    """Options that choose the cluster, given to the function as ``cluster``.

    An option after the subcommand overrides one before it.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            said = Cluster(**{name: kwargs.pop(name) for name in names})
            outer = click.get_current_context().find_object(Cluster)
            return function(*args, cluster=said.over(outer) if outer else said, **kwargs)

        for name in reversed(names):
            _CLUSTER_OPTIONS[name](wrapped)
        return wrapped  # type: ignore[return-value]

    return decorate


_CLIENT_OPTIONS = ("master", "state", "key_file", "tls", "config")
client_options = cluster_options(*_CLIENT_OPTIONS)
root_options = cluster_options(*_CLIENT_OPTIONS, "wait")


#: Inherited descriptors, see :mod:`gfs.cluster`.
ready_fd_option = click.option("--ready-fd", type=int, hidden=True)
life_fd_option = click.option("--life-fd", type=int, hidden=True)
log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="GFS_LOG_LEVEL",
    help="Lowest level that is logged to stderr (GFS_LOG_LEVEL).",
)

log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="GFS_LOG_FORMAT",
    help="Write the log as text, or as one JSON object per line (GFS_LOG_FORMAT).",
)


def log_options(command: Command) -> Command:
    """``log_level`` and ``log_format``."""
    return log_level_option(log_format_option(command))


def json_option(what: str) -> Callable[[Command], Command]:
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def remote_path(text: str) -> str:
    """``text`` without doubled and trailing slashes.

    Raises InvalidName if it is not a path of the file system.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidName(f"{text!a}: not valid UTF-8, which names here must be") from None
    if not text.startswith("/"):
        raise InvalidName(f"{text!r}: paths in the file system start with /")
    return "/" + "/".join(part for part in text.split("/") if part)


def check_address(option: str, address: str) -> str:
    """The host of ``address``; SettingsError names ``option`` if it has none."""
    from gfs.io import split_address

    try:
        return split_address(address)[0]
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from None


def check_addresses(option: str, addresses: str) -> None:
    """The items of a list separated by commas."""
    for address in addresses.split(","):
        check_address(option, address.strip())


def check_directory(path: str) -> None:
    """Refuse to write into a directory that does not exist, as ``cp`` does: it may be a mistyped
    name. Raises NotFound or NotADirectory."""
    if os.path.isdir(path):
        return
    if os.path.exists(path.rstrip("/")):
        raise NotADirectory(f"{path}: is not a directory")
    raise NotFound(f"{path}: no such directory on this machine: make it first (mkdir -p)")


def check_parent(path: str | os.PathLike[str]) -> None:
    """:func:`check_directory` for the directory that a file at ``path`` will be in."""
    check_directory(os.path.dirname(path) or ".")


def join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


def base_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def state_directory(cluster: Cluster) -> Path:
    from gfs.config import default_state_directory

    return cluster.state or default_state_directory()


def key_file(cluster: Cluster) -> Path:
    """The file with the key that makes a process a member of the cluster."""
    from gfs.state import KEY_NAME

    if cluster.key_file is not None:
        return cluster.key_file
    # A named state directory brings its own key, as for the client.
    named = os.environ.get("GFS_KEY_FILE") if cluster.state is None else None
    return Path(named) if named else state_directory(cluster) / KEY_NAME


def check_local_name(name: str) -> str:
    """``name`` of a local file, if it can be a name in the file system too."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidName(f"{name!a}: the name is not valid UTF-8: rename the file first") from None
    return name

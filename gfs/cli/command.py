"""The root of the `gfs` command: its subcommands by section, its exit codes."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import gfs
from gfs.cli.exits import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STDOUT_CLOSED,
    Failed,
    Interrupted,
    StdoutClosed,
    complain,
    silence_stdout,
)
from gfs.cli.options import Cluster, root_options
from gfs.cli.settings import write_settings
from gfs.errors import GfsError, SettingsError, StartupError
from gfs.variables import hide_admin_password

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: section → subcommand → (module of gfs.cli, its help). A module is imported only
#: when its subcommand is used.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "A cluster on this machine": {
        "up": ("servers", "Run a master and chunkservers until stopped"),
        "down": ("servers", "Stop what gfs up runs"),
    },
    "Files": {
        "put": ("transfer", "Copy local files or directories into the file system"),
        "get": ("transfer", "Copy files or directories out of the file system"),
        "cat": ("transfer", "Write files to stdout"),
        "append": ("records", "Append records to a file that others append to as well"),
        "records": ("records", "Write a file's records to stdout"),
        "ls": ("files", "List directories"),
        "stat": ("files", "Show the attributes of files and directories"),
        "mkdir": ("files", "Make directories"),
        "rm": ("files", "Delete files and directories"),
        "undelete": ("trash", "Restore deleted files and directories"),
        "mv": ("files", "Move or rename files and directories"),
        "snapshot": ("files", "Copy a file or directory at once, without copying data"),
        "setrep": ("files", "Change how many replicas files have"),
        "du": ("files", "Sum up the files below a directory"),
        "mount": ("mount", "Mount a directory of the file system on this machine"),
    },
    "Health": {
        "status": ("health", "Show the servers and the cluster's totals"),
        "fsck": ("health", "Check every replica of the files; exit code 1 if any is damaged"),
        "scrub": ("scrub", "Read and verify replicas now; exit code 1 if any is damaged"),
        "locate": ("health", "Show a file's chunks and where their replicas are"),
        "disk": ("disks", "Add, drain, remove or retry a disk of a chunkserver"),
        "drain": ("drain", "Move all replicas off a chunkserver before its removal"),
        "key": ("keys", "Change the cluster key while the cluster runs"),
        "backup": ("backup", "Copy all metadata of a master that serves into a file"),
        "restore": ("backup", "Make a master's directory from a backup"),
        "promote": ("shadows", "Make a shadow master the master"),
        "failover": ("shadows", "Hand the work of an elected master over to another one"),
        "maintenance": ("tuning", "Announce the absence of a chunkserver: no repair meanwhile"),
        "repair": ("tuning", "Show, pause, resume and limit repair"),
        "forget": ("tuning", "Remove a chunkserver or shadow master that is gone for good"),
    },
    "Servers, one process each": {
        "master": ("servers", "Run a master or a shadow master in the foreground"),
        "chunkserver": ("servers", "Run a chunkserver in the foreground"),
    },
}


#: Subcommands of other packages: entry points, each a click command. They are
#: looked up only for the help and for names that this package does not have.
GROUP = "gfs.commands"
GROUP_TITLE = "On top of the file system"


class Sections(click.Group):
    """A group that lists its subcommands by section and imports them late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_ours(), *sorted(_entry_points().keys() - _ours())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for commands in SECTIONS.values():
            if cmd_name in commands:
                module = importlib.import_module(f"gfs.cli.{commands[cmd_name][0]}")
                command = getattr(module, cmd_name)
                assert isinstance(command, click.Command)
                return command
        points = _entry_points().get(cmd_name)
        return _load(points) if points else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, what) for name, (_, what) in commands.items()])
        others = [(name, _short_help(points)) for name, points in sorted(_entry_points().items())]
        if others:
            with formatter.section(GROUP_TITLE):
                formatter.write_dl(others)
        write_settings(formatter)


def _ours() -> dict[str, None]:
    """The names of our own subcommands, in their order."""
    return {name: None for commands in SECTIONS.values() for name in commands}


def _entry_points() -> dict[str, list[EntryPoint]]:
    """Those of other packages by name: more than one of a name clash."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def check_clashes() -> None:
    """Raise StartupError if two packages define one subcommand, or one defines one of ours.

    Such a name is an error where it is used, too; but one of ours runs all the same, without
    a look at other packages.
    """
    for points in _entry_points().values():
        _the_one(points)


def _the_one(points: Sequence[EntryPoint]) -> EntryPoint:
    """Of those of one name. Raises StartupError."""
    from gfs.packages import clash, describe

    defined_by = ["gfs itself"] * (points[0].name in _ours()) + [describe(each) for each in points]
    if len(defined_by) > 1:
        raise clash(f"the command {points[0].name!r}", *defined_by[:2])
    return points[0]


def _load(points: Sequence[EntryPoint]) -> click.Command:
    """Raises StartupError, in one line, if the package is broken, or another has the name."""
    from gfs.packages import describe

    point = _the_one(points)
    try:
        command = point.load()
    except (Exception, SystemExit) as error:
        raise StartupError(
            f"the command {point.name!r} of {describe(point)} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(command, click.Command):
        raise StartupError(f"{describe(point)} is not a click command")
    return command


def _short_help(points: Sequence[EntryPoint]) -> str:
    """The help of one; a broken package must not break the help of the others."""
    try:
        return _load(points).get_short_help_str(limit=80)
    except StartupError as error:
        return f"({error})"


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="The cluster is found by --master, else GFS_MASTER, else the state directory "
    "(--state, else GFS_STATE, else the one gfs up uses). See gfs COMMAND --help.",
)
@click.version_option(gfs.__version__, prog_name="gfs", message="%(prog)s %(version)s")
@root_options
@click.pass_context
def root(ctx: click.Context, cluster: Cluster) -> None:
    """A distributed file system: files in replicated chunks on many machines."""
    _check_environment()
    ctx.obj = cluster


def _check_environment() -> None:
    """As ``gfs.config.check_environment``; other packages are looked up only for a name
    that this package does not have."""
    from gfs.config import check_environment

    try:
        check_environment()
    except SettingsError:
        from importlib.metadata import entry_points

        points = entry_points()
        groups = [group for group in points.groups if group.startswith("gfs.")]
        check_environment(others=[p.name for group in groups for p in points.select(group=group)])


def run(arguments: Sequence[str]) -> int:
    """Run `gfs` with ``arguments``; returns its exit code, prints its failure.

    An exception other than a GfsError, a usage error or a signal is a bug, and is raised.
    """
    hide_admin_password()
    try:
        code = root.main(args=list(arguments), prog_name="gfs", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _explain_usage(error)
    except BaseException as error:
        return _explain(error)


def _explain_usage(error: click.ClickException) -> int:
    """One line, as for every failure; `gfs` alone gets its help."""
    context = getattr(error, "ctx", None)
    if context is None or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        complain(f"{' '.join(error.format_message().split())} See {context.command_path} --help.")
    return error.exit_code


def _explain(error: BaseException) -> int:
    from gfs.failures import EXPECTED, sentence, the_one

    if os.environ.get("GFS_DEBUG"):
        traceback.print_exception(error)
    failure = the_one(error)
    if isinstance(failure, Failed):
        return failure.exit_code
    if isinstance(failure, StdoutClosed):
        silence_stdout()
        return EXIT_STDOUT_CLOSED
    if isinstance(failure, Interrupted):
        complain("interrupted")
        return failure.exit_code
    if isinstance(failure, KeyboardInterrupt | click.Abort):
        complain("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(failure, EXPECTED):
        complain(sentence(failure))
        return failure.exit_code if isinstance(failure, GfsError) else EXIT_FAILED
    raise error

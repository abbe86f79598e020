"""What the `gfs` command does before it talks to anybody."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import gfs
from gfs.cli import command, session
from gfs.cli.exits import Failed, Interrupted
from gfs.cli.options import Cluster
from gfs.errors import MasterUnavailable, NotFound, StartupError
from gfs.state import make_key

CLIENT_COMMANDS = (
    *("put", "get", "cat", "ls", "stat", "mkdir", "rm", "mv", "du"),
    *("status", "fsck", "locate"),
)


def python(code: str) -> list[str]:
    """The lines that a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_help_lists_every_subcommand_without_importing_them() -> None:
    code = (
        "import sys; from gfs.cli.command import run; run(['--help']);"
        "heavy = ('trio', 'rich', 'lmdb', 'anyio', 'gfs.client', 'quart', 'control.app');"
        "print([module for module in heavy if module in sys.modules])"
    )
    *help_text, imported = python(code)
    assert imported == "[]"
    for commands in command.SECTIONS.values():
        for name, (_, what) in commands.items():
            assert any(line.split() == [name, *what.split()] for line in help_text)
    assert any(line.split()[:3] == ["control", "Serve", "the"] for line in help_text)


def test_a_server_that_serves_no_metrics_starts_without_what_makes_their_text() -> None:
    code = (
        "import sys, gfs.cli.servers, gfs.master.process, gfs.chunkserver;"
        "print([name for name in sys.modules if name.startswith('prometheus_client')])"
    )
    assert python(code) == ["[]"]


def test_other_packages_are_not_looked_for_by_our_own_subcommands() -> None:
    code = (
        "import sys; from gfs.cli.command import run; run(['ls', '--help']);"
        "print([m for m in sys.modules if m.partition('.')[0] == 'control'])"
    )
    assert python(code)[-1] == "[]"


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("broken", ["no_such_package:command"], ["no_such_package", "cannot be loaded"]),
        ("broken", ["os:getpid"], ["os:getpid", "is not a click command"]),
        ("broken", ["one:run", "other:run"], ["is defined by one:run and by other:run: "]),
        ("ls", ["other:ls"], ["is defined by gfs itself and by other:ls: "]),
    ],
)
def test_a_broken_package_breaks_only_its_own_subcommand(
    name: str,
    values: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    points = [EntryPoint(name, value, command.GROUP) for value in values]
    monkeypatch.setattr(command, "_entry_points", lambda: {name: points})
    assert command.run(["--help"]) == 0
    assert words[0] in " ".join(capsys.readouterr().out.split())
    if name == "ls":  # ours runs all the same
        assert command.run(["ls", "--help"]) == 0
    else:
        assert command.run([name]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for word in words:
            assert word in error
    if len(words) == 1:
        with pytest.raises(StartupError, match=re.escape(words[0])):
            command.check_clashes()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["--version"]) == 0
    assert capsys.readouterr().out == f"gfs {gfs.__version__}\n"


def test_every_subcommand_says_what_it_does() -> None:
    context = click.Context(command.root)
    for name in command.root.list_commands(context):
        found = command.root.get_command(context, name)
        assert found.name == name
        assert found.help


@pytest.mark.parametrize(
    ("arguments", "roles"),
    [
        ([], ["master", "chunkserver"]),
        (["up"], ["master", "chunkserver"]),
        (["master"], ["master"]),
        (["chunkserver"], ["chunkserver"]),
    ],
)
def test_help_lists_settings_that_have_no_flag(
    arguments: list[str], roles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "GFS_MASTER_TRASH_SECONDS": ("undeleted", "(default 3 days)"),
        "GFS_MASTER_MOVES_TOTAL": ("rebalance", "(default 4)"),
        "GFS_MASTER_BALANCE_SHARE": ("rebalanced", "(default 0.1)"),
        "GFS_CHUNKSERVER_SCRUB_SECONDS": ("verified", "(default 7 days)"),
        "GFS_CHUNKSERVER_DURABILITY": ("power cut", "(default replicated)"),
    }
    assert command.run([*arguments, "--help"]) == 0
    reported = " ".join(capsys.readouterr().out.split())
    for name, words in settings.items():
        _, found, rest = reported.partition(f" {name} ")
        assert bool(found) == (name.split("_")[1].lower() in roles), name
        for word in words:
            assert word in rest.partition(" GFS_")[0] or not found


@pytest.mark.parametrize("name", CLIENT_COMMANDS)
def test_client_subcommands_share_their_options(name: str) -> None:
    found = command.root.get_command(click.Context(command.root), name)
    options = {option for parameter in found.params for option in parameter.opts}
    assert options >= {"--json", "--master", "--state", "--key-file", "--config"}


@pytest.mark.parametrize(
    ("error", "code", "reported"),
    [
        (NotFound("/a: no such file"), 1, "gfs: /a: no such file\n"),
        (StartupError("port 1 is\ntaken"), 2, "gfs: port 1 is taken\n"),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "gfs: x: No such file"),
        (KeyboardInterrupt(), 130, "gfs: interrupted\n"),
        (Interrupted(15), 143, "gfs: interrupted\n"),
        (Failed(), 1, ""),
        (ExceptionGroup("", [ExceptionGroup("", [NotFound("gone")])]), 1, "gfs: gone\n"),
        (
            BaseExceptionGroup("", [KeyboardInterrupt(), MasterUnavailable("no master")]),
            3,
            "gfs: no master\n",
        ),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    error: BaseException, code: int, reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command._explain(error) == code
    found = capsys.readouterr().err
    assert found.startswith(reported)
    assert found.count("\n") == (1 if reported else 0)


def test_a_closed_stdout_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    code = "from gfs.cli.command import _explain, StdoutClosed; exit(_explain(StdoutClosed()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")


def test_a_bug_is_raised() -> None:
    with pytest.raises(ExceptionGroup):
        command._explain(ExceptionGroup("", [NotFound("gone"), TypeError("a bug")]))
    with pytest.raises(TypeError):
        command._explain(TypeError("a bug"))


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GFS_DEBUG", "1")
    command._explain(NotFound("gone"))
    assert "NotFound: gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, ["ls", "--state", "/nowhere/at/all"], ["/nowhere/at/all", "gfs up"]),
        (1, ["ls", "relative"], ["'relative'", "start with /"]),
        (1, ["ls", "/bad-\udcff"], ["UTF-8"]),
        (1, ["get", "-r", "/a", "-"], ["stdout"]),
        (2, ["down", "--state", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (2, ["up", "--no-control", "--control-workers", "2"], ["--no-control"]),
        (2, ["up", "--state", "/tmp/none", "--control-bind", "nonsense"], ["--control-bind"]),
        (2, ["chunkserver", "--dir", "/tmp", "--key-file", "/nowhere/key"], ["/nowhere/key"]),
        (2, ["master", "--state", "/dev/null/x"], ["/dev/null/x"]),
        (
            2,
            ["master", "--state", "/nowhere/at/all", "--shadow-of", "h:1", "--address", "h:2"],
            ["/nowhere/at/all/cluster.key", "copy cluster.key", "--key-file"],
        ),
        (2, ["chunkserver", "--dir", "/tmp", "--master", "nonsense"], ["--master", "nonsense"]),
        (2, ["chunkserver", "--dir", "/tmp", "--address", "0.0.0.0:0"], ["--address", "reach"]),
        (2, ["chunkserver", "--dir", "/tmp", "--dir", "/tmp/"], ["--dir"]),
        (2, ["master", "--address", "nonsense"], ["--address", "nonsense"]),
        (2, ["ls", "--master", "nonsense"], ["--master", "nonsense"]),
        (2, ["ls", "--master", ""], ["--master", "HOST:PORT"]),
        (2, ["ls", "--master", "http://h:1"], ["--master", "'http://h:1'", "HOST:PORT"]),
        (2, ["chunkserver", "--dir", "/tmp", "--master", "h:1/x"], ["--master", "HOST:PORT"]),
        (
            2,
            ["repair", "set", "clones_total=-1"],
            ["=-1", "clones_total=16.", "--help"],
        ),
        (2, ["ls", "--config", "/nowhere/gfs.toml"], ["/nowhere/gfs.toml"]),
        (2, ["put"], ["SOURCE", "gfs put --help"]),
        (2, ["frobnicate"], ["frobnicate", "gfs --help"]),
        (2, ["ls", "--frobnicate"], ["--frobnicate", "gfs ls --help"]),
        (2, ["up", "--chunkservers", "0"], ["--chunkservers", "gfs up --help"]),
        (2, ["up", "--control-workers", "0"], ["--control-workers", "gfs up --help"]),
        (2, ["control", "frobnicate"], ["frobnicate", "gfs control --help"]),
        (2, ["control", "set-password"], ["USER", "gfs control set-password --help"]),
    ],
)
def test_what_cannot_work_is_one_line(
    code: int, arguments: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.run(arguments) == code
    printed, reported = capfd.readouterr()
    assert printed == ""
    assert reported.startswith("gfs: ")
    assert reported.count("\n") == 1, reported
    for word in words:
        assert word in reported


def test_a_disk_is_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the orders of gfs disk name it."""
    (tmp_path / "key").write_text(bytes(32).hex())
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert command.run(
        ["chunkserver", "--dir", "file", "--key-file", "key", "--address", "127.0.0.1:0"]
    )
    assert f"{tmp_path}/file: " in capfd.readouterr().err


def test_a_setting_of_the_environment_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GFS_CLIENT_MEMORY_BYTES", "lots")
    assert command.run(["ls", "--master", "127.0.0.1:1"]) == 2
    assert "memory_bytes" in capsys.readouterr().err


def test_gfs_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run([]) in (0, 2)  # as click's version has it
    captured = capsys.readouterr()
    assert "Commands" not in captured.out
    assert "chunkserver" in captured.out + captured.err


def test_a_backup_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each time that it takes long, and only then, to somebody at a terminal."""
    make_key(tmp_path / "key")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(session, "SAY_AFTER_SECONDS", 0.0)

    async def take_backup(*arguments: Any) -> NoReturn:
        waits = arguments[5]
        for long in (True, False, True):
            waits(True)
            if long:
                await wait_all_tasks_blocked()
            waits(False)
        raise MasterUnavailable("no master gives a backup")

    monkeypatch.setattr("gfs.master.take_backup", take_backup)
    words = ["backup", "--master=127.0.0.1:1", f"--key-file={tmp_path}/key", f"{tmp_path}/file"]
    assert command.run(words) == MasterUnavailable.exit_code
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(", up to")[0] for line in said] == [
        *["gfs: waiting for the master at 127.0.0.1:1"] * 2,
        "gfs: no master gives a backup",
    ]


async def test_after_a_second_a_command_says_what_it_waits_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Cluster(master="127.0.0.1:1,[::1]:2")
    for is_terminal, said in (
        (True, "gfs: waiting for the master at 127.0.0.1:1, [::1]:2, up to 30 s (Ctrl-C ends)\n"),
        (False, ""),
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=is_terminal: answer)
        async with session.saying_that_it_waits(where, 30) as waits:
            waits(True)
            await trio.sleep(0.999)
            assert capsys.readouterr().err == ""
            await trio.sleep(0.002)
            assert capsys.readouterr().err == said
            waits(False)
            waits(True)
            await trio.sleep(0.9)
            waits(False)
            await trio.sleep(60)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wait", [[], ["--wait"]])
def test_a_refused_connection_ends_a_command_unless_it_is_to_wait(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wait: list[str],
) -> None:
    """With a backup as with all others."""
    make_key(tmp_path / "key")
    monkeypatch.setenv("GFS_CLIENT_RETRY_SECONDS", "0.3")
    monkeypatch.setattr(session, "REFUSED_SECONDS", 0.0)
    options = ["--master=127.0.0.1:1", f"--key-file={tmp_path}/key"]
    for words in (["ls", "/"], ["backup", f"{tmp_path}/file"]):
        assert command.run([*wait, *words, *options]) == MasterUnavailable.exit_code
        said = capsys.readouterr().err
        assert "127.0.0.1:1: Connection refused" in said
        assert ("--wait" in said) == (not wait)


def test_all_options_go_with_what_is_started_in_the_background(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    detached: list[list[str]] = []

    def detach(state: Path, arguments: list[str]) -> NoReturn:
        detached.append(arguments)
        raise StartupError("no more is needed")

    monkeypatch.setattr("gfs.cluster.launch.detach", detach)
    options = [
        *("--port=9600", "--chunkservers=5", "--replication=2", "--tls", "--metrics"),
        *("--no-control", f"--ready-file={tmp_path}/ready", f"--state={tmp_path}/state"),
    ]
    assert command.run(["up", "--detach", *options]) == StartupError.exit_code
    assert sorted(detached[0]) == sorted(options)

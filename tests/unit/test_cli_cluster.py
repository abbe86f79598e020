"""What the supervisor decides, and the state directory it decides on."""

from __future__ import annotations

import json
import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from control.auth.first_start import FILE_NAME
from control.settings import ControlSettings
from gfs.cli.servers import summary
from gfs.cluster import directory as directories
from gfs.cluster import supervisor
from gfs.cluster.children import (
    HEALTHY_SECONDS,
    RESTART_SECONDS_MAX,
    Backoff,
    Ending,
    how_it_ended,
)
from gfs.cluster.directory import (
    StateDirectory,
    bound_log,
    free_ports,
    is_locked,
    missing_directories,
    remove_empty,
    supervisor_pid,
    try_lock,
    write_atomically,
)
from gfs.cluster.report import Reporter, failure, receive_report
from gfs.cluster.supervisor import Plan, UpOptions, choose_numbers, make_plan
from gfs.errors import GfsError, SettingsError, StartupError


@pytest.fixture(autouse=True)
def whatever_others_listen_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "check_port", lambda *_: None)


@pytest.mark.parametrize(
    ("existing", "wanted", "chosen"),
    [
        ([], None, [1, 2, 3]),
        ([], 2, [1, 2]),
        ([1, 2], None, [1, 2]),
        ([1, 2], 4, [1, 2, 3, 4]),
        ([1, 2, 3, 4], 2, [1, 2, 3, 4]),
        ([1, 3], 3, [1, 2, 3]),
        ([7], 2, [1, 7]),
    ],
)
def test_those_that_hold_data_always_run(
    existing: list[int], wanted: int | None, chosen: list[int]
) -> None:
    assert choose_numbers(existing, wanted) == chosen


@pytest.mark.parametrize("returncode", [0, -signal.SIGKILL, -signal.SIGTERM])
def test_what_served_and_was_ended_from_outside_is_started_again_at_once(returncode: int) -> None:
    backoff = Backoff()
    assert [backoff.after(Ending(7, returncode, None), 0.5) for _ in range(9)] == [0.1] * 9


@pytest.mark.parametrize("served_seconds", [0.0, 2.0])
@pytest.mark.parametrize("returncode", [1, 3, -signal.SIGSEGV, -signal.SIGABRT])
def test_what_crashes_each_time_waits_longer_each_time(
    returncode: int, served_seconds: float
) -> None:
    backoff = Backoff()
    crash = Ending(7, returncode, None)
    delays = [backoff.after(crash, served_seconds) for _ in range(100)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == RESTART_SECONDS_MAX
    # It had served well before: this crash is the first one again.
    assert backoff.after(crash, HEALTHY_SECONDS) == 0.1


def test_ends_are_described() -> None:
    assert str(Ending(7, 2, StartupError("no"))) == "(pid 7) ended with exit code 2: no"
    assert str(Ending(None, None, "No memory")) == "cannot be started (No memory)"
    assert how_it_ended(3) == "ended with exit code 3"
    assert how_it_ended(-signal.SIGKILL) == "was ended by SIGKILL"


def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    plan = make_plan(
        UpOptions(tmp_path / "state", chunkservers=2, port=0), StateDirectory(tmp_path / "state")
    )
    assert [child.name for child in plan.chunkservers] == ["chunkserver-1", "chunkserver-2"]
    assert list(tmp_path.iterdir()) == []


def test_the_replication_is_remembered_and_can_be_changed(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    write_atomically(directory.stored, {"replication": 2})
    assert make_plan(UpOptions(tmp_path, port=0), directory).replication == 2
    assert make_plan(UpOptions(tmp_path, port=0, replication=5), directory).replication == 5


def test_a_damaged_memory_is_reported(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    directory.stored.write_text("{")
    with pytest.raises(StartupError, match=r"up\.json"):
        make_plan(UpOptions(tmp_path, port=0), directory)
    directory.stored.write_text('{"replication": 99}')
    with pytest.raises(SettingsError, match="replication"):
        make_plan(UpOptions(tmp_path, port=0), directory)


def control_bind(plan: Plan) -> str:
    [said] = [word for word in plan.control.arguments if word.startswith("--bind=")]
    return said.removeprefix("--bind=")


def test_it_runs_beside_the_cluster_unless_switched_off(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    plan = make_plan(UpOptions(tmp_path, port=0), directory)
    assert f"--state={directory.path}" in plan.control.arguments
    assert plan.admin == "admin"
    assert make_plan(UpOptions(tmp_path, port=0, control=False), directory).control is None


def test_the_masters_of_an_engine_keep_their_addresses(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    elect = "etcd://127.0.0.1:2379/try"
    first = make_plan(UpOptions(tmp_path, port=0, elect=elect), directory)
    assert len(first.masters) == 3
    write_atomically(directory.stored, first.stored)
    more = make_plan(UpOptions(tmp_path, port=0, masters=5), directory)
    assert more.stored["masters"][:3] == first.stored["masters"]
    assert len(set(more.stored["masters"])) == 5
    assert more.stored["elect"] == elect
    for child in more.chunkservers:
        assert f"--master={','.join(more.stored['masters'])}" in child.arguments
    with pytest.raises(SettingsError, match="gfs forget"):
        make_plan(UpOptions(tmp_path, masters=1), directory)


def test_any_free_port_is_another_one_than_the_servers(tmp_path: Path) -> None:
    for bind in (None, "127.0.0.1:0"):
        plan = make_plan(UpOptions(tmp_path, port=0, control_bind=bind), StateDirectory(tmp_path))
        host, _, port = control_bind(plan).rpartition(":")
        assert host == "127.0.0.1"
        assert port != "0"
        servers = [
            word for child in [*plan.masters, *plan.chunkservers] for word in child.arguments
        ]
        assert not [word for word in servers if word.endswith(f":{port}")]


def test_its_settings_are_found_where_its_own_process_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, config = tmp_path / "state", tmp_path / "gfs.toml"
    config.write_text('[control]\nbind = "127.0.0.1:79"\nadmin_username = "root"\n')
    options = UpOptions(state, config=config)
    monkeypatch.delenv("GFS_CONTROL_BIND", raising=False)
    plan = make_plan(options, StateDirectory(state))
    assert control_bind(plan) == "127.0.0.1:79"
    assert plan.admin == "root"
    monkeypatch.setenv("GFS_CONTROL_BIND", "127.0.0.1:80")
    assert control_bind(make_plan(options, StateDirectory(state))) == "127.0.0.1:80"
    said = replace(options, control_bind="127.0.0.1:81")
    assert control_bind(make_plan(said, StateDirectory(state))) == "127.0.0.1:81"


def test_its_defaults_are_those_of_its_own_settings() -> None:
    theirs = ControlSettings()
    assert {name: getattr(theirs, name) for name in supervisor.CONTROL_DEFAULTS} == (
        supervisor.CONTROL_DEFAULTS
    )


def test_a_port_for_two_is_refused(tmp_path: Path) -> None:
    options = UpOptions(tmp_path, chunkservers=1, port=9400, control_bind="127.0.0.1:9401")
    with pytest.raises(SettingsError, match="9401"):
        make_plan(options, StateDirectory(tmp_path))


def test_the_first_password_is_taken_once(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    assert directory.take_first_password() is None
    control = tmp_path / "control"
    control.mkdir()
    # As the control plane leaves it.
    (control / FILE_NAME).write_text("abcd-efgh\n")
    assert directory.take_first_password() == "abcd-efgh"
    assert directory.take_first_password() is None
    (control / FILE_NAME).mkdir()
    with pytest.raises(GfsError, match="first-password"):
        directory.take_first_password()


def test_the_lock_is_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    held = try_lock(path)
    assert is_locked(path)
    assert try_lock(path) is None
    assert supervisor_pid(path) == os.getpid()
    os.close(held)
    assert not is_locked(path)
    # The pid is still there, but its process has the lock open no more.
    assert supervisor_pid(path) is None


def test_an_inherited_lock_is_held_until_the_last_one_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = try_lock(path)
    inherited = os.dup(held)
    os.close(held)
    assert is_locked(path)
    os.close(inherited)
    assert not is_locked(path)


@pytest.mark.parametrize("content", ["", "nonsense", "999999999", str(os.getppid())])
def test_a_pid_counts_only_with_the_lock_open(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock"
    path.write_text(content)
    assert supervisor_pid(path) is None


def test_a_refused_start_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    missing = missing_directories(path)
    path.mkdir(parents=True)
    remove_empty(missing)
    assert list(tmp_path.iterdir()) == []
    path.mkdir(parents=True)
    (path / "kept").touch()
    remove_empty(missing)
    assert (path / "kept").exists()


def test_logs_are_bounded_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "LOG_BYTES_MAX", 10)
    path = tmp_path / "x.log"
    descriptor = directories.open_log(path)
    os.write(descriptor, b"0123456789")
    bound_log(path)
    assert path.stat().st_size == 10
    os.write(descriptor, b"a")
    bound_log(path)
    os.write(descriptor, b"b")
    os.close(descriptor)
    assert (tmp_path / "x.log.1").read_bytes() == b"0123456789a"
    assert path.read_bytes() == b"b"


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    write_atomically(path, {"a": 1})
    write_atomically(path, {"a": 2})
    assert json.loads(path.read_bytes()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_free_ports_are_different_and_no_outgoing_connection_gets_them() -> None:
    found = free_ports("127.0.0.1", 20)
    assert len(set(found)) == 20
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(found) < first


async def test_a_report_arrives_once() -> None:
    receive, send = os.pipe()
    reporter = Reporter(send)
    reporter.serving({"address": "h:1"})
    reporter.failed("too late", 2)
    report = await receive_report(receive)
    assert report == {"pid": os.getpid(), "address": "h:1"}
    assert failure(report) is None


async def test_a_failure_keeps_its_exit_code() -> None:
    for code, kind in ((2, StartupError), (1, GfsError)):
        receive, send = os.pipe()
        Reporter(send).failed("port taken", code)
        report = await receive_report(receive)
        reported = failure(report)
        assert type(reported) is kind
        assert str(reported) == "port taken"


@pytest.mark.parametrize("data", [b"", b"half a li", b"no json\n", b"[]\n"])
async def test_a_broken_report_is_none(data: bytes) -> None:
    receive, send = os.pipe()
    os.write(send, data)
    os.close(send)
    assert await receive_report(receive) is None


async def test_waiting_for_a_report_can_be_cancelled() -> None:
    receive, send = os.pipe()
    with trio.move_on_after(0.01) as scope:
        await receive_report(receive)
    assert scope.cancelled_caught
    os.close(send)


FACTS = {"master": {"address": "127.0.0.1:9400"}, "chunkservers": [{}, {}], "state": "/some where"}


@pytest.mark.parametrize(
    ("replication", "warnings"),
    [(1, []), (2, []), (3, ["2 replicas, not 3", "--chunkservers 3", "--replication 2"])],
)
def test_the_summary_warns_of_too_few_chunkservers(replication: int, warnings: list[str]) -> None:
    text = summary(FACTS, replication, 2)
    assert ("Warning" in text) == bool(warnings)
    for words in warnings:
        assert words in text
    assert "--state '/some where'" in text


def test_the_summary_warns_when_nothing_can_be_written() -> None:
    assert "no file can be written" in summary(FACTS, 3, 3)


def test_the_summary_says_what_there_is_of_the_rest_api() -> None:
    assert "REST API" not in summary(FACTS, 2, 2)
    facts = {**FACTS, "control": {"auth": "http://127.0.0.1:8080"}}
    text = summary(facts, 2, 2, "root")
    assert "Console" not in text
    with_console = {"control": {**facts["control"], "console": "http://127.0.0.1:8080"}}
    assert "Console: http://127.0.0.1:8080 " in summary({**facts, **with_console}, 2, 2, "root")
    assert "http://127.0.0.1:8080/docs" in text
    assert "password" not in text
    text = summary(facts, 2, 2, "root", "it's")
    assert "user root has the password it's" in text
    [line] = [line for line in text.splitlines() if "curl" in line]
    words = shlex.split(line)
    assert json.loads(words[words.index("-d") + 1]) == {"username": "root", "password": "it's"}

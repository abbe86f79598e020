"""``gfs up``: what it promises about the processes it runs."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import forks
import pytest
import trio
import trio.testing
from harness import Cluster, environment, runs
from limits import HANG_SECONDS, wait_for
from processes import free_port
from signals import send

from gfs.cluster import supervisor
from gfs.cluster.children import ChildRunner
from gfs.cluster.supervisor import pipe

MakeCluster = Callable[..., Cluster]


def run_up(state: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A ``gfs up`` that is expected to end by itself."""
    return forks.run(["up", "--state", state, *arguments], env=environment())


def assert_refused(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """Exit code 2, and a last line on stderr that says ``words``."""
    reported = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 2, reported
    assert reported.startswith("gfs: "), reported
    for word in words:
        assert word in reported
    assert done.stdout == b""


def processes_of(state: Path) -> list[str]:
    """Processes that have a file below ``state`` open: their log, if nothing else."""
    return [pid for pid in filter(str.isdecimal, os.listdir("/proc")) if _has_open(pid, state)]


def _has_open(pid: str, state: Path) -> bool:
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
        return any(os.readlink(link).startswith(f"{state}/") for link in links)
    except OSError:  # has ended, or may not be looked at
        return False


def free_base(count: int) -> int:
    """A port that is free, with the ``count - 1`` ports after it."""
    while True:
        base = free_port()
        with suppress(OSError), ExitStack() as probes:
            for port in range(base, base + count):
                probes.enter_context(socket.create_server(("127.0.0.1", port)))
            return base


def test_ready_file_is_true_and_the_cluster_serves(cluster: Cluster) -> None:
    ready = cluster.ready
    assert set(ready) == {"master", "chunkservers", "state"}
    assert set(ready["master"]) == {"address", "pid"}
    assert len(ready["chunkservers"]) == 3
    for server in ready["chunkservers"]:
        assert set(server) == {"id", "address", "pid", "dir"}
        assert Path(server["dir"]).is_dir()
    assert ready["state"] == str(cluster.state)
    assert json.loads((cluster.state / "cluster.json").read_bytes()) == ready
    pids = cluster.pids()
    assert len(set(pids)) == 4
    assert all(map(runs, pids))

    cluster.gfs("put", "/usr/lib/os-release", "/etc/os")
    assert b"os" in cluster.gfs("ls", "/etc").stdout.split()
    assert cluster.gfs("get", "/etc/os", "-").stdout == Path("/usr/lib/os-release").read_bytes()


@pytest.mark.parametrize("name", [pytest.param("chunkserver-2", marks=pytest.mark.thin), "master"])
def test_a_killed_process_is_started_again(cluster: Cluster, name: str) -> None:
    cluster.gfs("put", "-", f"/kept-{name}", input=b"kept")
    others = {pid for pid in cluster.pids() if pid != cluster.pid(name)}
    old = cluster.kill(name)
    new = cluster.wait_restarted(name, old)
    assert runs(new)
    assert not runs(old)
    assert set(cluster.pids()) == others | {new}
    assert cluster.gfs("cat", f"/kept-{name}").stdout == b"kept"


def test_a_second_one_on_the_same_state_is_refused(cluster: Cluster) -> None:
    before = cluster.ready
    assert_refused(run_up(cluster.state), str(cluster.state), "gfs down")
    assert_refused(run_up(cluster.state, "--detach"), str(cluster.state), "gfs down")
    assert cluster.ready == before


def small(make_cluster: MakeCluster) -> Cluster:
    """One chunkserver: enough to look at processes, and quick to start."""
    return make_cluster("--replication", "1", chunkservers=1)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.thin), signal.SIGINT, signal.SIGHUP]
)
def test_a_signal_stops_everything(make_cluster: MakeCluster, number: int) -> None:
    cluster = small(make_cluster).start()
    pids = cluster.pids()
    cluster.kill("supervisor", number)
    assert cluster.process.wait(HANG_SECONDS) == 0
    assert not any(map(runs, pids))
    assert not cluster.ready_file.exists()
    assert not (cluster.state / "cluster.json").exists()


def test_a_signal_during_the_start_stops_what_was_started(make_cluster: MakeCluster) -> None:
    cluster = small(make_cluster)
    cluster.launch()
    wait_for((cluster.state / "log" / "master.log").exists, "first process")
    cluster.kill("supervisor", signal.SIGTERM)
    assert cluster.process.wait(HANG_SECONDS) == 0
    assert processes_of(cluster.state) == []


@pytest.mark.thin
def test_after_kill_9_of_everything_it_starts_again(make_cluster: MakeCluster) -> None:
    cluster = make_cluster().start()
    cluster.gfs("put", "-", "/a/b", input=b"kept")
    cluster.kill_all()
    cluster.ready_file.unlink()  # nobody could
    cluster.start()
    assert cluster.gfs("cat", "/a/b").stdout == b"kept"
    assert b"stopped" in cluster.gfs("down").stdout
    assert cluster.process.wait(HANG_SECONDS) == 0


def test_a_cluster_that_does_not_run_is_not_waited_for(make_cluster: MakeCluster) -> None:
    cluster = small(make_cluster).start()
    cluster.kill_all()
    reported = cluster.gfs("ls", code=3).stderr.decode()
    assert "gfs up" in reported
    assert reported.count("\n") == 1


def test_children_do_not_outlive_a_killed_supervisor(make_cluster: MakeCluster) -> None:
    cluster = small(make_cluster).start()
    pids = cluster.pids()
    cluster.kill("supervisor")
    cluster.process.wait()
    # The next one waits for what is left of the last one, and then starts.
    cluster.ready_file.unlink()
    cluster.start()
    assert not any(map(runs, pids))


def test_a_child_that_hangs_is_killed_in_the_end(make_cluster: MakeCluster) -> None:
    cluster = small(make_cluster).start()
    cluster.kill("chunkserver-1", signal.SIGSTOP)
    cluster.kill("supervisor", signal.SIGTERM)
    pids = cluster.pids()
    wait_for(lambda: not runs(pids[0]), "end of the master")
    cluster.kill("supervisor", signal.SIGINT)  # hastens
    assert cluster.process.wait(HANG_SECONDS) == 0
    assert not any(map(runs, pids))


async def test_one_that_is_hastened_waits_for_no_child() -> None:
    with pipe() as (lifeline, _):
        runner = ChildRunner(lifeline, [], lambda *_: None, lambda *_: None, stop_seconds=math.inf)
        child = await trio.lowlevel.open_process(["sleep", "inf"])
        send(child.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{child.pid}/stat")
        wait_for(lambda: stat.read_text().split()[2] == "T", "stop of the child")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner._stop, child)
            await trio.testing.wait_all_tasks_blocked()
            assert child.poll() is None
            runner.hasten()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", [0, 2])
def test_a_taken_port_is_refused_and_nothing_is_left(tmp_path: Path, step: int) -> None:
    base = free_base(4)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + step))
        taken.listen(1)
        done = run_up(tmp_path / "deep" / "state", "--port", str(base))
    assert_refused(done, str(base + step), "taken")
    assert not (tmp_path / "deep").exists()


def test_ports_beyond_the_last_are_refused(tmp_path: Path) -> None:
    assert_refused(run_up(tmp_path / "state", "--port", "65534"), "--port 65534")


@pytest.mark.parametrize("where", ["", "/chunkserver-2", "/master", "/log"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, where: str) -> None:
    # Root may write anywhere, but not below a file.
    state = tmp_path / "state"
    blocked = Path(f"{state}{where}")
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("in the way")
    assert_refused(run_up(state, "--port", "0"), str(blocked))


def test_a_ready_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run_up(
        tmp_path / "state", "--port", "0", "--ready-file", str(tmp_path / "file" / "ready")
    )
    assert_refused(done, "file")


def test_the_ready_file_is_there_only_when_it_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it reads it at once: no trial and no last run stands in its place."""
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("of the last run")
    written: list[Path] = []
    replace = os.replace

    def noted(source: Any, target: Any) -> None:
        written.append(Path(target))
        replace(source, target)

    class Run:
        def __init__(self, *_: object) -> None:
            pass

        async def run(self) -> None:
            assert not ready_file.exists()

    monkeypatch.setattr(os, "replace", noted)
    monkeypatch.setattr(supervisor, "Supervisor", Run)
    options = supervisor.UpOptions(tmp_path / "state", port=0, ready_file=ready_file)
    trio.run(supervisor.up, options, lambda *_: None)
    assert written
    assert ready_file not in written
    assert list(tmp_path.glob(".ready.json*")) == []


def test_a_child_that_cannot_start_stops_the_others(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "cluster.key").write_text("nonsense")
    (state / "cluster.key").chmod(0o600)
    assert_refused(run_up(state, "--port", "0"), "cluster.key")
    # A configuration error of one role only shows in its process.
    (state / "cluster.key").unlink()
    config = tmp_path / "gfs.toml"
    config.write_text('[chunkserver]\ndurability = "hope"\n')
    done = run_up(state, "--port", "0", "--config", str(config))
    assert_refused(done, "chunkserver-", "durability")
    assert not (state / "cluster.json").exists()
    assert processes_of(state) == []


def test_chunkservers_join_and_are_never_left_out(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("--replication", "1", chunkservers=1).start()
    assert len(cluster.ready["chunkservers"]) == 1
    cluster.gfs("put", "-", "/a", input=b"kept")
    cluster.stop()

    more = make_cluster(chunkservers=2).start()
    assert len(more.ready["chunkservers"]) == 2
    # The replication of the first start is remembered.
    more.gfs("put", "-", "/b", input=b"kept")
    assert more.json("stat", "/b")["replication"] == 1
    more.stop()

    fewer = make_cluster(chunkservers=1).start()
    assert len(fewer.ready["chunkservers"]) == 2
    assert fewer.gfs("cat", "/a", "/b").stdout == b"keptkept"


def test_too_few_chunkservers_are_reported(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("--replication", "3", chunkservers=1).start()
    wait_for(lambda: "--replication 1" in cluster.output.read_text(), "advice")
    assert "Warning" in cluster.output.read_text()


def test_detach_and_down(tmp_path: Path) -> None:
    state = tmp_path / "state"
    ready_file = tmp_path / "ready.json"
    try:
        done = run_up(
            state, "--port", "0", "--chunkservers", "1", "--detach", "--ready-file", str(ready_file)
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
        assert b"down" in done.stdout
        ready = json.loads(ready_file.read_bytes())
        pids = [ready[name]["pid"] for name in ("master", "control")]
        pids.append(ready["chunkservers"][0]["pid"])
        assert all(map(runs, pids))
    finally:
        down = forks.run(["down", "--state", state], env=environment())
    assert down.returncode == 0, down.stderr
    assert not any(map(runs, pids))
    assert not ready_file.exists()
    again = forks.run(["down", "--state", state], env=environment())
    assert again.returncode == 0
    assert b"no cluster runs" in again.stdout


def test_detach_reports_why_it_failed(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert_refused(run_up(tmp_path / "state", "--port", str(port), "--detach"), str(port))


def test_down_of_nothing_is_refused(tmp_path: Path) -> None:
    done = forks.run(["down", "--state", tmp_path / "typo"], env=environment())
    assert_refused(done, "typo")

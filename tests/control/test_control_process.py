"""``gfs control`` and its place in ``gfs up``: what is promised about processes."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import httpx
import jwt
import pytest
from certificates import Authority
from checks import PLAIN, children, get, put
from cloud import PASSWORD, Cloud
from harness import environment, runs
from limits import HANG_SECONDS, wait_for
from signals import send

from control.cli.serving import CONSOLE

pytestmark = pytest.mark.real

MakeCloud = Callable[..., Cloud]
#: In /proc/net/tcp.
LISTENING = "0A"
SAID_PASSWORD = re.compile(r"user admin has the password (\S+) ")


class Server:
    """``gfs control`` in the foreground, of one module that needs no cluster."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.state = directory / "state"
        self.output = directory / "control.out"
        self.log = directory / "control.log"
        self.output.unlink(missing_ok=True)
        with open(self.output, "wb") as out, open(self.log, "ab") as log:
            self.process = forks.Command(
                command(self.state, *arguments),
                stdout=out.fileno(),
                stderr=log.fileno(),
                env=environment(**variables),
            )
        try:
            wait_for(self._is_up, "server")
        except BaseException:
            self.stop()
            raise

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "Stop it with" in self.said

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def url(self) -> str:
        found = re.search(r"REST API: (\S+) ", self.said)
        assert found is not None, self.said
        return found[1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, token: str = "", **options: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.get(
            self.url + path, headers=headers, timeout=HANG_SECONDS, **{**PLAIN, **options}
        )

    def login(self, password: str, username: str = "admin") -> httpx.Response:
        return httpx.post(
            f"{self.url}/api/login",
            json={"username": username, "password": password},
            timeout=HANG_SECONDS,
            **PLAIN,
        )

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(HANG_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()


def command(state: Path, *arguments: str) -> list[str]:
    served = ["--modules", "auth", "--bind", "127.0.0.1:0"]
    return ["control", "--state", str(state), *served, *arguments]


def run_control(*arguments: str, input: str = "", **variables: str) -> subprocess.CompletedProcess:
    return forks.run(
        ["control", *arguments], input=input.encode(), text=True, env=environment(**variables)
    )


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gfs: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(*arguments: str, **variables: str) -> Server:
        made.append(Server(tmp_path, *arguments, **variables))
        return made[-1]

    yield make
    for server in made:
        server.stop()


MakeServer = Callable[..., Server]


def test_the_first_password_is_printed_once_and_works(make_server: MakeServer) -> None:
    server = make_server()
    found = SAID_PASSWORD.search(server.said)
    assert found is not None, server.said
    answer = server.login(found[1])
    assert answer.status_code == 200
    assert answer.json()["is_admin"] is True
    assert server.login(found[1] + "x").status_code == 401
    # It is nowhere any more but at the terminal.
    assert found[1] not in server.log.read_text()
    assert not (server.state / "control" / "first-password").exists()
    assert server.stop() == 0

    again = make_server()
    assert SAID_PASSWORD.search(again.said) is None
    assert again.login(found[1]).status_code == 200


def test_a_given_password_is_not_printed(make_server: MakeServer) -> None:
    server = make_server(GFS_ADMIN_PASSWORD=PASSWORD)
    assert "password" not in server.said
    assert PASSWORD not in server.said + server.log.read_text()
    assert server.login(PASSWORD).status_code == 200


def test_the_printed_curl_line_logs_in(make_server: MakeServer) -> None:
    server = make_server(GFS_CONTROL_ADMIN_USERNAME="o'brien")
    [line] = [line for line in server.said.splitlines() if line.startswith("  curl ")]
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        env=environment(),
        timeout=HANG_SECONDS,
        check=True,
    )
    assert json.loads(done.stdout)["username"] == "o'brien"


def test_what_is_kept_is_for_its_owner_alone(make_server: MakeServer) -> None:
    directory = make_server().state / "control"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bind", "nonsense"], ["nonsense", "HOST:PORT"]),
        (["--modules", "auth,frobnicate"], ["frobnicate", "auth"]),
        (["--certfile", "/nowhere/cert"], ["certfile", "keyfile"]),
        (["--certfile", "/nowhere/cert", "--keyfile", "/nowhere/key"], ["/nowhere/cert"]),
        (["--certfile", "/dev/null", "--keyfile", "/dev/null"], ["/dev/null", "PEM"]),
        (["--master", "nonsense"], ["--master", "nonsense"]),
        (["--records", "mysql://h/gfs"], ["postgresql://"]),
        (["--records", "postgresql://gfs:secret@h/gfs"], ["password", ".pgpass"]),
        (["--records", "postgresql://h/gfs?password=secret"], ["password", "passfile"]),
        (["--records", "postgresql://nobody@127.0.0.1:1/gfs"], ["PostgreSQL", "127.0.0.1"]),
        (["--key-file", "/nowhere/key"], ["/nowhere/key"]),
        (["--state", "/dev/null/x"], ["/dev/null/x"]),
        (["rotate-key", "--state", "/nowhere/at/all"], ["/nowhere/at/all", "--state"]),
        (["set-password", "bob", "--state", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["export", "/nowhere/file", "--state", "/nowhere/at/all"], ["/nowhere/at/all"]),
    ],
)
def test_what_cannot_work_is_one_line(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    if arguments[0].startswith("--"):
        arguments = ["--state", str(tmp_path), "--bind", "127.0.0.1:0", *arguments]
    done = run_control(*arguments, GFS_ADMIN_PASSWORD=PASSWORD)
    assert_refused(done, *words)
    assert done.stdout == ""


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_control("--state", str(tmp_path), "--bind", address)
    assert_refused(done, address, "taken")


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['quart'] = None; from gfs.cli.command import run;"
        "sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG_SECONDS,
        check=False,
    )
    assert_refused(done, "quart", 'pip install "gfs-control-plane[server]"')


@pytest.mark.parametrize("workers", ["1", "2"])
def test_tls(make_server: MakeServer, tmp_path: Path, workers: str) -> None:
    made = Authority().write(tmp_path / "tls", "127.0.0.1")
    files = ("--certfile", str(made / "cert.pem"), "--keyfile", str(made / "key.pem"))
    server = make_server(*files, "--workers", workers)
    assert server.url.startswith("https://127.0.0.1:")
    trusted = ssl.create_default_context(cafile=str(made / "ca.pem"))
    assert server.get("/healthz", verify=trusted).json() == {"status": "ok"}
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{server.port}/healthz", **PLAIN).raise_for_status()


def test_workers_share_the_port_and_what_they_know(make_server: MakeServer) -> None:
    server = make_server("--workers", "3", GFS_ADMIN_PASSWORD=PASSWORD)
    assert len(server.workers()) == 3
    token = server.login(PASSWORD).json()["token"]
    # Each on a connection of its own, so that any worker may get it.
    for _ in range(20):
        assert server.get("/api/session", token).json()["username"] == "admin"
    pids = server.workers()
    assert server.stop() == 0
    assert not any(map(runs, pids))


def test_any_worker_reports_what_all_have_counted(make_server: MakeServer) -> None:
    server = make_server("--workers", "2")
    pids = set(map(str, server.workers()))

    def everybody_counted() -> bool:
        # Each on a connection of its own: sooner or later both have served some.
        text = server.get("/metrics").text
        return set(re.findall(r'requests_total\{.*worker="(\d+)"', text)) == pids

    wait_for(everybody_counted, "both workers in one answer")
    send(int(min(pids)), signal.SIGKILL)
    wait_for(lambda: not runs(int(min(pids))), "its end")
    wait_for(lambda: min(pids) not in server.get("/metrics").text, "end of its counts")
    assert server.stop() == 0
    assert not list(server.state.glob("control/metrics-*"))


def test_a_killed_worker_is_replaced_while_others_serve(make_server: MakeServer) -> None:
    server = make_server("--workers", "2")
    victim, other = server.workers()
    send(victim, signal.SIGKILL)
    wait_for(lambda: not runs(victim), "its end")

    def is_replaced() -> bool:
        # Somebody serves at any time, and nobody is refused.
        assert server.get("/healthz").status_code == 200
        now = server.workers()
        return len(now) == 2 and victim not in now and other in now

    wait_for(is_replaced, "new worker")


def test_workers_end_with_a_killed_parent_and_free_the_port(make_server: MakeServer) -> None:
    server = make_server("--workers", "2")
    pids, port = server.workers(), server.port
    assert len(pids) == 2
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(map(runs, pids)), "end of the workers")
    again = make_server("--workers", "2", "--bind", f"127.0.0.1:{port}")
    assert again.get("/healthz").status_code == 200


def key_id(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def test_a_rotated_key_is_noticed_and_ends_no_session(make_server: MakeServer) -> None:
    server = make_server("--workers", "2", GFS_ADMIN_PASSWORD=PASSWORD)
    old = server.login(PASSWORD).json()["token"]
    done = run_control("rotate-key", "--state", str(server.state))
    assert done.returncode == 0, done.stderr

    def is_noticed() -> str | None:
        new: str = server.login(PASSWORD).json()["token"]
        return new if key_id(new) != key_id(old) else None

    new = wait_for(is_noticed, "session of the new key")
    assert new is not None
    for token in (old, new):
        for _ in range(6):  # more than one connection, so more than one worker
            assert server.get("/api/session", token).status_code == 200

    # The key was stolen: what it signed is worth nothing any more.
    assert run_control("rotate-key", "--now", "--state", str(server.state)).returncode == 0
    wait_for(lambda: server.get("/api/session", new).status_code == 401, "end of sessions")
    wait_for(lambda: server.login(PASSWORD).status_code == 200, "new session")


def test_a_lost_password_is_replaced_and_ends_sessions(make_server: MakeServer) -> None:
    server = make_server()
    found = SAID_PASSWORD.search(server.said)
    assert found is not None
    token = server.login(found[1]).json()["token"]
    done = run_control("set-password", "admin", "--state", str(server.state), input="a new one\n")
    assert done.returncode == 0, done.stderr
    assert "a new one" not in done.stdout + done.stderr
    assert server.login(found[1]).status_code == 401
    assert server.login("a new one").status_code == 200
    wait_for(lambda: server.get("/api/session", token).status_code == 401, "end of session")


def test_a_password_for_nobody_or_none_is_refused(make_server: MakeServer) -> None:
    server = make_server(GFS_ADMIN_PASSWORD=PASSWORD)
    state = str(server.state)
    for user, password, word in (
        ("bob", "long enough", "bob"),
        ("admin", "", "password"),
        ("admin", "short", "password: at least 8"),
    ):
        done = run_control("set-password", user, "--state", state, input=f"{password}\n")
        assert_refused(done, word)
    assert server.login(PASSWORD).status_code == 200


def small(make_cloud: MakeCloud, *arguments: str, **variables: str) -> Cloud:
    """One chunkserver: enough to look at processes, and quick to start."""
    return make_cloud("--replication", "1", *arguments, chunkservers=1, environment=variables)


def test_the_ready_file_says_where_it_is(cloud: Cloud) -> None:
    ready = cloud.cluster.ready
    assert set(ready) == {"master", "control", "chunkservers", "state"}
    control = ready["control"]
    built = {"console"} if CONSOLE.is_file() else set()
    assert set(control) == {"auth", "storage", "compute", "s3", "pid"} | built
    assert control["s3"] != control["storage"]
    assert control["auth"] == control["storage"] == control["compute"]
    assert control["auth"].startswith("http://127.0.0.1:")
    assert runs(control["pid"])
    with cloud.client() as client:
        assert client.get("/readyz").json() == {"status": "ok"}
    assert (cloud.cluster.state / "log" / "control.log").exists()


@pytest.mark.thin
def test_a_killed_one_comes_back_where_it_was(make_cloud: MakeCloud) -> None:
    cloud = small(make_cloud, "--control-workers", "2").start()
    url = cloud.url
    admin = cloud.admin.get("/api/session").json()
    put(cloud.admin, "default", "acknowledged", b"kept")
    workers = children(cloud.cluster.pid("control"))
    assert len(workers) == 2
    old = cloud.cluster.kill("control")
    assert cloud.cluster.wait_restarted("control", old) != old
    wait_for(lambda: not any(map(runs, workers)), "end of the old workers")
    assert cloud.url == url
    # On a new connection, with the session of before.
    again = httpx.get(
        f"{url}/api/session", headers=cloud.admin.headers, timeout=HANG_SECONDS, **PLAIN
    )
    assert again.json() == admin
    assert get(cloud.login("admin"), "default", "acknowledged") == b"kept"


def test_nothing_outlives_a_killed_supervisor(make_cloud: MakeCloud) -> None:
    cloud = small(make_cloud, "--control-workers", "2").start()
    pids = [*cloud.cluster.pids(), *children(cloud.cluster.pid("control"))]
    assert len(pids) == 5
    cloud.cluster.kill("supervisor")
    wait_for(lambda: not any(map(runs, pids)), "end of all processes")


def test_its_port_is_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = forks.run(
            ["up", "--state", tmp_path / "state", "--port", "0", "--control-bind", address],
            text=True,
            env=environment(),
        )
    assert_refused(done, address.rpartition(":")[2], "taken", "--control-bind")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "state").exists()


def test_a_state_of_an_earlier_release_gets_one(make_cloud: MakeCloud) -> None:
    cloud = small(make_cloud, "--no-control")
    cloud.cluster.start()
    assert set(cloud.cluster.ready) == {"master", "chunkservers", "state"}
    cloud.cluster.gfs("put", "-", "/kept", input=b"kept")
    cloud.stop()
    assert not (cloud.cluster.state / "control").exists()

    later = small(make_cloud).start()
    assert later.admin.get("/api/session").json()["username"] == "admin"
    assert later.cluster.gfs("cat", "/kept").stdout == b"kept"


def test_the_first_password_is_printed_by_up_alone(make_cloud: MakeCloud) -> None:
    cloud = small(make_cloud)
    del cloud.cluster.environment["GFS_ADMIN_PASSWORD"]
    cloud.start()
    output = cloud.cluster.output
    wait_for(lambda: "Stop it" in output.read_text(), "summary")
    [password] = SAID_PASSWORD.findall(output.read_text())
    assert cloud.login("admin", password).get("/api/session").status_code == 200
    for path in (cloud.cluster.state / "log").iterdir():
        assert password not in path.read_text()
    assert not (cloud.cluster.state / "control" / "first-password").exists()
    cloud.stop()
    cloud.start()
    wait_for(lambda: output.read_text().count("Stop it") == 2, "summary")
    assert SAID_PASSWORD.findall(output.read_text()) == [password]


def test_in_the_background_it_is_printed_by_the_command_that_starts_it(tmp_path: Path) -> None:
    state, ready_file = tmp_path / "state", tmp_path / "ready.json"
    up = ["up", "--state", str(state), "--port", "0", "--replication", "1", "--chunkservers", "1"]
    reported = []
    try:
        for _ in range(2):
            done = forks.run(
                [*up, "--detach", "--ready-file", ready_file], text=True, env=environment()
            )
            assert done.returncode == 0, done.stderr
            reported += SAID_PASSWORD.findall(done.stdout)
            url = json.loads(ready_file.read_bytes())["control"]["auth"]
            answer = httpx.post(
                f"{url}/api/login",
                json={"username": "admin", "password": reported[0]},
                timeout=HANG_SECONDS,
                **PLAIN,
            )
            assert answer.status_code == 200
            forks.run(["down", "--state", state], env=environment()).check_returncode()
    finally:
        forks.run(["down", "--state", state], env=environment()).check_returncode()
    assert len(reported) == 1
    for path in (state / "log").iterdir():
        assert reported[0] not in path.read_text()


def shown(mark: str) -> dict[str, bytes]:
    """What each process with this variable shows of itself in /proc: its environment and its
    arguments, by the first arguments."""
    found = {}
    for place in Path("/proc").iterdir():
        try:
            environ = (place / "environ").read_bytes() if place.name.isdecimal() else b""
            if mark.encode() in environ:
                arguments = (place / "cmdline").read_bytes()
                name = " ".join(arguments.decode().split("\0")[4:6]) + f" ({place.name})"
                found[name] = environ + arguments
        except (OSError, ProcessLookupError):
            continue  # it has ended, or is another user's
    return found


@pytest.mark.parametrize("way", ["--detach", "--detach=off"])
def test_no_process_shows_the_first_password(tmp_path: Path, way: str) -> None:
    """Neither those of the cluster nor that which was started with it; the password of the
    records only the control plane's. The first is no child of this process's copy, since that
    would show the environment of the tests."""
    mark = f"GFS_TEST_MARK={tmp_path}"
    secret, database = "a first password 4711", "the password of the records 4712"
    state, ready_file = tmp_path / "state", tmp_path / "ready.json"
    variables = environment(GFS_ADMIN_PASSWORD=secret, PGPASSWORD=database)
    variables |= dict([mark.split("=")])
    arguments = ["up", "--state", str(state), "--port", "0", "--replication", "1"]
    arguments += ["--chunkservers", "1", "--control-workers", "2", "--ready-file", str(ready_file)]
    arguments += [way] * (way == "--detach")
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gfs.cli", *arguments], env=variables
        )
        wait_for(ready_file.exists, "ready file")
        if way == "--detach":
            assert process.wait(HANG_SECONDS) == 0
        seen = shown(mark)
        url = json.loads(ready_file.read_bytes())["control"]["auth"]
        login = {"username": "admin", "password": secret}
        answer = httpx.post(f"{url}/api/login", json=login, timeout=HANG_SECONDS, **PLAIN)
        assert answer.status_code == 200
    finally:
        forks.run(["down", "--state", state], env=environment()).check_returncode()
        process.wait(HANG_SECONDS)
    kinds = sorted(name.split()[0] for name in seen)
    assert kinds == ["chunkserver", "control", "control", "control", "master", "up"]
    assert {name for name, text in seen.items() if secret.encode() in text} == set()
    with_database = {name.split()[0] for name, text in seen.items() if database.encode() in text}
    assert with_database == {"control", "up"}


def test_nothing_listens_beyond_loopback(cloud: Cloud) -> None:
    processes = {cloud.cluster.pid("supervisor"), *cloud.cluster.pids()}
    processes |= {child for pid in processes for child in children(pid)}
    sockets = {
        os.readlink(link).partition("[")[2].rstrip("]")
        for pid in processes
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink() and os.readlink(link).startswith("socket:")
    }
    found = []
    for version in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{version}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in sockets:
                words = bytes.fromhex(fields[1].partition(":")[0])
                address = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                found.append(ipaddress.ip_address(address))
    assert len(found) >= 5  # the master's, three chunkservers', the control plane's
    assert all(address.is_loopback for address in found), found

"""What real processes report: events, and requests that can be followed through all."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
from harness import Cluster
from limits import HANG_SECONDS, wait_for
from signals import send

import gfs
from gfs.blocks import CHUNK_BYTES
from gfs.client import sync

Line = dict[str, Any]


READS = {"List", "Locate", "ReadChunk", "VerifyChunk"}
#: What is done is reported as it is, however slow the machine.
REPORTED = {
    "GFS_LOG_FORMAT": "json",
    "GFS_LOG_LEVEL": "debug",
    "GFS_MASTER_SLOW_SECONDS": "600",
    "GFS_CHUNKSERVER_SLOW_SECONDS": "600",
}


def events(cluster: Cluster, name: str, event: str, **more: str) -> list[Line]:
    """In the log of one process, which must be JSON throughout but for a last line that is just
    being written."""
    text = (cluster.state / "log" / f"{name}.log").read_text()
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in lines if {"event": event, **more}.items() <= line.items()]


def wait_reported(cluster: Cluster, name: str, event: str, count: int = 1, **more: str) -> Line:
    """The first event of this kind, when there are so many: it is logged once it is over, which is
    after the client knows."""

    def found() -> list[Line]:
        return events(cluster, name, event, **more)

    wait_for(lambda: len(found()) >= count, f"word of {event} {more} from {name}")
    return found()[0]


def test_a_request_is_followed_from_the_client_through_all_servers(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster()
    cluster.environment |= REPORTED
    cluster.start()
    servers = [f"chunkserver-{number}" for number in (1, 2, 3)]
    with sync.connect(state=cluster.state) as fs:
        fs.put(b"x" * 100_000, "/file")
        wait_for(lambda: not fs.fsck("/file").damaged, "three replicas")
        with fs.open("/file", "r+") as file:
            file.pwrite(10, b"in place")

    # The new file: reserved and published by the master, written by three servers.
    new = wait_reported(cluster, "master", "request", operation="Publish")["request"]
    wait_reported(cluster, "master", "request", operation="Reserve", request=new)
    for name in servers:
        wait_reported(cluster, name, "request", operation="WriteChunk", request=new)

    # The write in place: the master asks the servers in turn, for the same request.
    granted = wait_reported(cluster, "master", "lease_granted")
    request = granted["request"]
    assert request != new
    assert len(granted["chain"]) == 3
    wait_reported(cluster, "master", "request", operation="AcquireLease", request=request)
    for name in servers:
        for operation in ("GrantLease", "WriteChunk"):
            wait_reported(cluster, name, "request", operation=operation, request=request)


async def test_what_is_read_step_by_step_is_one_request(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("--replication", "1", chunkservers=1)
    cluster.environment |= REPORTED
    cluster.start()

    def requests() -> list[Line]:
        return [
            one for name in ("master", "chunkserver-1") for one in events(cluster, name, "request")
        ]

    async def followed(
        steps: Callable[[], AsyncGenerator[Any, None]], expected: dict[str, int]
    ) -> None:
        """Two at once, in turn, and something else in between."""
        before = {one["request"] for one in requests()}
        async with aclosing(steps()) as first, aclosing(steps()) as second:
            async for _ in first:
                await anext(second)
                await fs.exists("/d")
            assert await anext(second, None) is None

        def fresh() -> dict[str, Counter[str]]:
            found: dict[str, Counter[str]] = {}
            for one in requests():
                # What was written before may be logged just now.
                if one["request"] not in before and one["operation"] in READS:
                    found.setdefault(one["request"], Counter())[one["operation"]] += 1
            return found

        wait_for(
            lambda: sum(map(Counter.total, fresh().values())) >= 2 * sum(expected.values()),
            f"{expected} in {fresh()}",
        )
        assert list(fresh().values()) == [expected, expected]

    async with gfs.connect(state=cluster.state) as fs:
        await fs.put(bytes(CHUNK_BYTES + 100_000), "/d/two")
        await fs.append("/d/log", b"record")
        await followed(lambda: fs.stream("/d/two"), {"Locate": 1, "ReadChunk": 2})
        await followed(lambda: fs.stream("/d/two", 0, 10), {"Locate": 1, "ReadChunk": 1})
        async with await fs.open("/d/two") as file:
            await followed(file.stream, {"ReadChunk": 2})
        # Nobody but a replica knows how long a file is that is appended to.
        await followed(
            lambda: fs.records("/d/log"), {"Locate": 1, "VerifyChunk": 1, "ReadChunk": 1}
        )
        await followed(lambda: fs.walk("/"), {"List": 2})


def test_the_significant_events_are_reported(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(chunkservers=4)
    cluster.environment |= {
        "GFS_LOG_FORMAT": "json",
        "GFS_MASTER_DEAD_SECONDS": "3",
        "GFS_MASTER_SLOW_SECONDS": "0.0000001",
    }
    cluster.start()
    wait_reported(cluster, "master", "chunkserver_up", 4)
    cluster.gfs("put", "-", "/file", input=b"y" * 200_000)
    slow = wait_reported(cluster, "master", "request_slow", operation="Publish", level="warning")
    assert slow["request"]

    # A replica is spoiled where it lies: found, reported, replaced.
    [chunk] = cluster.json("locate", "/file")["chunks"]
    holder = chunk["replicas"][0]["id"]
    directory = _directory(cluster, holder)
    [path] = directory.glob("chunks/*/*.chunk")
    with open(path, "r+b") as file:
        file.seek(20_000)
        file.write(b"spoiled")
    cluster.gfs("fsck", "/", code=None)
    found = wait_reported(cluster, "master", "corruption_found", server=holder, level="warning")
    wait_reported(cluster, directory.name, "corruption_found")
    chunk = found["chunk"]
    wait_reported(cluster, "master", "replica_copied", chunk=chunk)
    repaired = wait_reported(cluster, "master", "corruption_repaired", server=holder, chunk=chunk)
    own = wait_reported(cluster, directory.name, "corruption_repaired", chunk=chunk)
    assert own["how"] == repaired["how"]

    def asked() -> list[Line]:
        names = [f"chunkserver-{number}" for number in range(1, 5)]
        return [one for name in names for one in events(cluster, name, "replica_copied")]

    assert wait_for(asked, "a copier's word of it")[0]["request"]

    # A process that is stopped is dead to the master, until it runs again.
    stopped = cluster.kill("chunkserver-2", signal.SIGSTOP)
    server = next(one["id"] for one in cluster.ready["chunkservers"] if one["pid"] == stopped)
    up, dead = (
        len(events(cluster, "master", event, server=server))
        for event in ("chunkserver_up", "chunkserver_dead")
    )
    try:
        wait_reported(cluster, "master", "chunkserver_dead", dead + 1, server=server)
    finally:
        send(stopped, signal.SIGCONT)
    wait_reported(cluster, "master", "chunkserver_up", up + 1, server=server)


def _directory(cluster: Cluster, server: str) -> Path:
    [found] = [one["dir"] for one in cluster.ready["chunkservers"] if one["id"] == server]
    return Path(found)


def wait_logged(cluster: Cluster, request: str, where: str = "*.log") -> None:
    def is_logged() -> bool:
        logs = [path.read_text() for path in (cluster.state / "log").glob(where)]
        return any(f"[{request}]" in log for log in logs)

    wait_for(is_logged, f"word of request {request}")


def test_errors_name_their_request(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("--replication", "3", chunkservers=1).start()
    done = cluster.gfs("put", "-", "/file", input=b"z", code=1, retry_seconds=3)
    refused = done.stderr.decode().strip()
    assert refused.startswith("gfs: ")
    request = refused.rpartition("(request ")[2].removesuffix(")")
    assert len(request) == 10
    wait_logged(cluster, request, "master.log")
    # What the user did wrong is said without it.
    assert b"request" not in cluster.gfs("cat", "/nothing", code=1).stderr


def test_errors_of_readers_name_their_request(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster("--replication", "1", chunkservers=1)
    cluster.environment["GFS_LOG_LEVEL"] = "debug"
    cluster.start()
    cluster.gfs("put", "-", "/file", input=b"z" * 200_000)
    cluster.gfs("append", "/log", input=b"record\n")
    for path in (cluster.state / "chunkserver-1").glob("chunks/*/*.chunk"):
        os.truncate(path, 10)
    for command in (
        ("cat", "/file"),
        ("get", "/file", "-"),
        ("get", "/file", tmp_path / "file"),
        ("records", "/log"),
    ):
        done = cluster.gfs(*command, code=1, retry_seconds=3)
        reported = done.stderr.decode().strip()
        assert reported.startswith("gfs: "), command
        request = reported.rpartition(" (request ")[2].removesuffix(")")
        assert len(request) == 10, reported
        wait_logged(cluster, request)


def test_a_request_to_the_rest_api_is_followed_into_the_cluster(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(control=True)
    cluster.environment |= {**REPORTED, "GFS_ADMIN_PASSWORD": "open sesame"}
    cluster.start()
    url = cluster.ready["control"]["storage"]
    with httpx.Client(base_url=url, timeout=HANG_SECONDS) as http:
        login = http.post("/api/login", json={"username": "admin", "password": "open sesame"})
        http.headers["Authorization"] = f"Bearer {login.json()['token']}"
        made = http.post("/storage/namespaces", json={"name": "plays"})
        stored = http.post(
            "/storage/upload?namespace=plays", files={"file": ("hamlet.txt", b"to be" * 20_000)}
        )
    assert stored.json()["status"] == "ok"
    request = stored.headers["X-Request-Id"]
    assert request not in (made.headers["X-Request-Id"], login.headers["X-Request-Id"])
    for operation in ("Reserve", "Publish"):
        wait_reported(cluster, "master", "request", operation=operation, request=request)

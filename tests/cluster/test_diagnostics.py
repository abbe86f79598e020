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

import gfs
from gfs.blocks import CHUNK_BYTES
from gfs.client import sync

Line = dict[str, Any]


def lines(cluster: Cluster, name: str) -> list[Line]:
    """The log of one process, which must be JSON throughout."""
    text = (cluster.state / "log" / f"{name}.log").read_text()
    return [json.loads(line) for line in text.splitlines()]


def events(cluster: Cluster, name: str, event: str) -> list[Line]:
    return [line for line in lines(cluster, name) if line.get("event") == event]


def test_a_request_is_followed_from_the_client_through_all_servers(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster()
    cluster.environment |= {"GFS_LOG_FORMAT": "json", "GFS_LOG_LEVEL": "debug"}
    cluster.start()
    servers = [f"chunkserver-{number}" for number in (1, 2, 3)]
    with sync.connect(state=cluster.state) as fs:
        fs.put(b"x" * 100_000, "/file")
        with fs.open("/file", "r+") as file:
            file.pwrite(10, b"in place")

    def of_kind(name: str, operation: str) -> list[Line]:
        return [one for one in events(cluster, name, "request") if one["operation"] == operation]

    def writes(name: str, request: str) -> None:
        """It is logged once it is over, which is after the client knows."""
        wait_for(
            lambda: request in {one["request"] for one in of_kind(name, "WriteChunk")},
            f"word of the write from {name}",
        )

    # The new file: reserved and published by the master, written by three servers.
    [publish] = of_kind("master", "Publish")
    assert publish["request"] in {one["request"] for one in of_kind("master", "Reserve")}
    for name in servers:
        writes(name, publish["request"])

    # The write in place: the master asks the servers in turn, for the same request.
    [asked] = of_kind("master", "AcquireLease")
    [granted] = events(cluster, "master", "lease_granted")
    assert asked["request"] == granted["request"] != publish["request"]
    assert len(granted["chain"]) == 3
    for name in servers:
        [order] = of_kind(name, "GrantLease")
        assert order["request"] == asked["request"]
        writes(name, asked["request"])


async def test_what_is_read_step_by_step_is_one_request(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("--replication", "1", chunkservers=1)
    cluster.environment |= {"GFS_LOG_FORMAT": "json", "GFS_LOG_LEVEL": "debug"}
    cluster.start()

    def requests() -> list[Line]:
        # What is there so far: the last line may be cut.
        names = ("master", "chunkserver-1")
        texts = [(cluster.state / "log" / f"{name}.log").read_text() for name in names]
        reported = [json.loads(line) for text in texts for line in text.split("\n")[:-1]]
        return [one for one in reported if one.get("event") == "request"]

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
                if one["request"] not in before and one["operation"] != "Stat":
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
    assert len(events(cluster, "master", "chunkserver_up")) == 4
    cluster.gfs("put", "-", "/file", input=b"y" * 200_000)
    slow = events(cluster, "master", "request_slow")
    assert "Publish" in {one["operation"] for one in slow}
    assert all(one["level"] == "warning" and one["request"] for one in slow)

    # A replica is spoiled where it lies: found, reported, replaced.
    [chunk] = cluster.json("locate", "/file")["chunks"]
    holder = chunk["replicas"][0]["id"]
    directory = _directory(cluster, holder)
    [path] = directory.glob("chunks/*/*.chunk")
    with open(path, "r+b") as file:
        file.seek(20_000)
        file.write(b"spoiled")
    cluster.gfs("fsck", "/", code=None)

    def seen(event: str) -> Line | None:
        return next(iter(events(cluster, "master", event)), None)

    found = wait_for(lambda: seen("corruption_found"), "word of the damage")
    assert found is not None
    assert (found["server"], found["level"]) == (holder, "warning")
    assert events(cluster, directory.name, "corruption_found")
    copied = wait_for(lambda: seen("replica_copied"), "word of the copy")
    assert copied is not None
    assert copied["chunk"] == found["chunk"]
    repaired = wait_for(lambda: seen("corruption_repaired"), "word of the repair")
    assert repaired is not None
    assert (repaired["server"], repaired["chunk"]) == (holder, found["chunk"])

    def reported() -> list[Line]:
        return events(cluster, directory.name, "corruption_repaired")

    [own] = wait_for(reported, "its server's word of it") or []
    assert (own["chunk"], own["how"]) == (found["chunk"], repaired["how"])
    asked = [
        one for n in range(1, 5) for one in events(cluster, f"chunkserver-{n}", "replica_copied")
    ]
    assert asked[0]["request"]

    # A process that is stopped is dead to the master, until it runs again.
    cluster.kill("chunkserver-2", signal.SIGSTOP)
    try:
        dead = wait_for(lambda: seen("chunkserver_dead"), "word of the death")
    finally:
        cluster.kill("chunkserver-2", signal.SIGCONT)
    assert dead is not None
    assert _directory(cluster, dead["server"]).name == "chunkserver-2"
    wait_for(lambda: len(events(cluster, "master", "chunkserver_up")) > 4, "word of the return")


def _directory(cluster: Cluster, server: str) -> Path:
    [found] = [one["dir"] for one in cluster.ready["chunkservers"] if one["id"] == server]
    return Path(found)


def test_errors_name_their_request(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("--replication", "3", chunkservers=1)
    cluster.environment |= {"GFS_CLIENT_RETRY_SECONDS": "1"}
    cluster.start()
    refused = cluster.gfs("put", "-", "/file", input=b"z", code=1).stderr.decode().strip()
    assert refused.startswith("gfs: ")
    request = refused.rpartition("(request ")[2].removesuffix(")")
    assert len(request) == 10
    reported = (cluster.state / "log" / "master.log").read_text()
    assert f"[{request}]" in reported
    # What the user did wrong is said without it.
    assert b"request" not in cluster.gfs("cat", "/nothing", code=1).stderr


def test_errors_of_readers_name_their_request(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster("--replication", "1", chunkservers=1)
    cluster.environment |= {"GFS_CLIENT_RETRY_SECONDS": "1", "GFS_LOG_LEVEL": "debug"}
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
        reported = cluster.gfs(*command, code=1).stderr.decode().strip()
        assert reported.startswith("gfs: "), command
        request = reported.rpartition(" (request ")[2].removesuffix(")")
        assert len(request) == 10, reported
        logs = [path.read_text() for path in (cluster.state / "log").iterdir()]
        assert any(f"[{request}]" in log for log in logs), reported


def test_a_request_to_the_rest_api_is_followed_into_the_cluster(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(control=True)
    cluster.environment |= {
        "GFS_LOG_FORMAT": "json",
        "GFS_LOG_LEVEL": "debug",
        "GFS_ADMIN_PASSWORD": "open sesame",
    }
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
    reported = [one for one in events(cluster, "master", "request") if one["request"] == request]
    assert {"Reserve", "Publish"} <= {one["operation"] for one in reported}

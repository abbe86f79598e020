"""The numbers that real servers report: all are documented, and they move."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cluster
from hypothesis import given
from hypothesis import strategies as st
from limits import HANG_SECONDS, wait_for
from prometheus_client.parser import text_string_to_metric_families

from gfs.cluster.scrape import answer
from gfs.metrics import Source, gauge

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring.md"

Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def fetch(url: str) -> tuple[dict[str, str], Numbers]:
    """The kind of each metric, and all samples by name and labels."""
    with urllib.request.urlopen(url, timeout=HANG_SECONDS) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(response.read().decode()))
    kinds = {one.name: one.type for one in families}
    return kinds, {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for one in families
        for sample in one.samples
    }


def documented() -> dict[str, str]:
    text = MONITORING.read_text(encoding="utf-8")
    found = re.search(r"<!-- metrics -->\n(.*?)<!-- end -->", text, re.S)
    return dict(re.findall(r"^\| `(\w+)` \| (\w+) \| \S.{10,} \|$", found[1], flags=re.M))


@pytest.mark.thin
def test_metrics_move_with_what_is_done(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("--metrics", "--tls")
    cluster.environment["GFS_CHUNKSERVER_SCRUB_SECONDS"] = "0.001"
    for name in ("GFS_CLIENT_STALL_SECONDS", "GFS_CLIENT_HEDGE_SECONDS"):
        cluster.environment[name] = f"{HANG_SECONDS:g}"  # all is written and read once
    cluster.start()
    master = cluster.ready["master"]["metrics"]
    servers = [one["metrics"] for one in cluster.ready["chunkservers"]]
    assert all(url.startswith("http://127.0.0.1:") for url in (master, *servers))
    kinds, before = fetch(master)
    server_kinds, _ = fetch(servers[0])

    cluster.gfs("put", "-", "/file", input=b"x" * 200_000)
    cluster.gfs("get", "/file", "-")
    cluster.gfs("mkdir", "/there")
    cluster.gfs("cat", "/nowhere", code=1)
    after: Numbers = {}

    def moved(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0.0) - before.get(key, 0.0)

    def is_counted() -> bool:
        """A request is counted once it is over, which is after the client knows."""
        nonlocal after
        after = fetch(master)[1]
        live = after["gfs_master_chunkservers", (("state", "live"),)]
        return live == 3 and moved("gfs_master_operation_failures_total", **failure) == 1

    failure = {"operation": "Locate", "code": "not_found"}
    wait_for(is_counted, "count of what was done last")
    assert moved("gfs_master_files") == 1
    assert moved("gfs_master_directories") == 1
    assert moved("gfs_master_file_bytes") == 200_000
    assert moved("gfs_master_chunks") == 1
    assert moved("gfs_master_log_sequence_total") >= 2
    assert moved("gfs_master_operation_seconds_count", operation="Publish") == 1
    assert moved("gfs_master_operation_seconds_sum", operation="Publish") > 0
    assert after["gfs_master_up", ()] == 1
    assert after["gfs_master_connections", (("role", "chunkserver"),)] == 3
    assert after["gfs_master_chunks_below_goal", ()] == 0
    assert after["gfs_master_metadata_bytes", ()] > 0
    assert after["gfs_master_metadata_disk_free_bytes", ()] > 0
    assert after["gfs_certificate_until_timestamp_seconds", ()] > time.time()
    assert after["process_resident_memory_bytes", ()] > 1_000_000
    for server in cluster.ready["chunkservers"]:
        disks = (("server", server["id"]), ("state", "ok"))
        assert after["gfs_master_chunkserver_disks", disks] == 1

    status = cluster.json("status")
    ends = [status["certificate_until_ns"], *(s["certificate_until_ns"] for s in status["servers"])]
    assert min(ends) > time.time_ns()
    assert 0 < status["metadata"]["used_bytes"] < status["metadata"]["map_bytes"]

    reported: list[Numbers] = []

    def total(name: str, **labels: str) -> float:
        return sum(one.get((name, tuple(sorted(labels.items()))), 0.0) for one in reported)

    def is_scrubbed() -> bool:
        """And the writes are counted, too."""
        nonlocal reported
        reported = [fetch(url)[1] for url in servers]
        writes = total("gfs_chunkserver_operation_seconds_count", operation="WriteChunk")
        return writes >= 3 and all(one["gfs_chunkserver_scrubs_total", ()] >= 1 for one in reported)

    wait_for(is_scrubbed, "scrub of all servers")
    assert total("gfs_chunkserver_chunks") == 3
    assert total("gfs_chunkserver_chunk_bytes") == 600_000
    assert total("gfs_chunkserver_bytes_total", direction="written") == 600_000
    assert total("gfs_chunkserver_bytes_total", direction="read") == 200_000
    assert total("gfs_chunkserver_operation_seconds_count", operation="WriteChunk") == 3
    assert total("gfs_chunkserver_bad_replicas_found_total") == 0
    assert total("gfs_chunkserver_scrubbed_bytes_total") >= 600_000

    # The three disks are directories of one file system, which the master counts once.
    sizes = {one[key] for one in reported for key in one if "disk_total_bytes" in key[0]}
    assert sizes == {after["gfs_master_disk_total_bytes", ()]}

    # A spoiled replica is counted where it lies, and by the master for ever.
    directory = Path(cluster.ready["chunkservers"][0]["dir"])
    [path] = directory.glob("chunks/*/*.chunk")
    with open(path, "r+b") as file:
        file.seek(20_000)
        file.write(b"spoiled")
    wait_for(
        lambda: fetch(servers[0])[1]["gfs_chunkserver_bad_replicas_found_total", ()] >= 1,
        "discovery of the damage",
    )
    wait_for(lambda: fetch(master)[1]["gfs_master_corruptions_total", ()] >= 1, "word of it")
    # Each is documented as what it is; of a shadow master there are two more.
    shadow = {"gfs_shadow_behind_operations": "gauge", "gfs_shadow_behind_seconds": "gauge"}
    names = {
        f"{name}_total" if kind == "counter" else name: kind
        for name, kind in (kinds | server_kinds | shadow).items()
    }
    assert documented() == names


def test_without_being_asked_to_nothing_more_listens(cluster: Cluster) -> None:
    assert "metrics" not in cluster.ready["master"]
    assert all("metrics" not in one for one in cluster.ready["chunkservers"])


def test_a_port_that_is_taken_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    taken = cluster.ready["master"]["address"]
    refused = cluster.gfs(
        "master", "--state", tmp_path, "--address", "127.0.0.1:0", "--metrics", taken, code=2
    )
    last = refused.stderr.decode().splitlines()[-1]
    assert last == f"gfs: metrics cannot be served at {taken}: Address already in use"


def source() -> Source:
    made = Source()
    made.collect = lambda: [gauge("gfs_x", "A number", 1)]
    return made


@given(st.binary(max_size=300) | st.binary(max_size=60).map(b"GET ".__add__))
async def test_whatever_is_asked_gets_one_answer(head: bytes) -> None:
    status, _, body = (await answer(head, source())).partition(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 4")
    length = re.search(rb"Content-Length: (\d+)", status)
    assert int(length[1]) == len(body)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics HTTP/1.1", 200),
        (b"GET /metrics?x=1 HTTP/1.0", 200),
        (b"HEAD /metrics HTTP/1.1", 200),
        (b"GET / HTTP/1.1", 404),
        (b"POST /metrics HTTP/1.1", 405),
        (b"GET /metrics", 400),
    ],
)
async def test_answers(request_line: bytes, status: int) -> None:
    answered = await answer(request_line + b"\r\nHost: x\r\n\r\n", source())
    head, _, body = answered.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    if status == 200:
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        if request_line.startswith(b"HEAD"):
            assert (body, int(length[1]) > 100) == (b"", True)
        else:
            assert body.startswith(b"# HELP gfs_x A number\n# TYPE gfs_x gauge\ngfs_x 1.0\n")
            assert int(length[1]) == len(body)


async def test_a_bug_is_no_end() -> None:
    made = Source()
    made.collect = lambda: [gauge("gfs_x", "A number", 1 / 0)]
    answered = await answer(b"GET /metrics HTTP/1.1\r\n\r\n", made)
    assert answered.startswith(b"HTTP/1.1 500")

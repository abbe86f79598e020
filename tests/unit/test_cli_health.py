"""Every warning names the next command to run."""

from __future__ import annotations

import pytest

from gfs.cli.health import _fsck_text, _warnings
from gfs.cli.output import Output
from gfs.client import FsckProblem, FsckReport
from gfs.protocol.messages import ClusterTotals, Disk, ServerStatus, StatusReply


def server(state: str = "live", disk: str = "ok", age_ms: int = 400) -> ServerStatus:
    disks = [Disk("/d", 1000, 500, 3, disk)]
    return ServerStatus("s1", "h:1", "default", state, age_ms, 3, disks)


def status(*servers: ServerStatus, **totals: int) -> StatusReply:
    names = ClusterTotals.__struct_fields__
    return StatusReply(
        0, "c", 1, list(servers), ClusterTotals(**{name: totals.get(name, 0) for name in names})
    )


def test_a_healthy_cluster_is_not_warned_of() -> None:
    assert list(_warnings(status(server(), files=3, chunks=3))) == []


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (status(server(), lost=1), ["1 chunk without any good replica", "gfs fsck"]),
        (status(server(), corrupt=2), ["2 corrupt replicas", "gfs fsck"]),
        (
            status(server(), under_replicated=5, repairs_active=1, repairs_queued=4),
            ["5 chunks", "1 repair running, 4 waiting", "gfs status"],
        ),
        (
            status(server(), under_replicated=5, repairs_queued=5),
            ["no repair is running", "gfs up --chunkservers 2"],
        ),
        (status(server(disk="full")), ["/d is full", "gfs rm"]),
        (status(server(disk="failed")), ["/d is failed", "dmesg"]),
        (status(server(), server("dead", age_ms=18_000)), ["is dead", "18.0 s", "gfs chunkserver"]),
        (status(), ["no chunkserver is live", "gfs up"]),
    ],
)
def test_a_warning_names_the_next_command(reply: StatusReply, words: list[str]) -> None:
    [warning] = _warnings(reply)
    assert warning.startswith("WARNING: ")
    for word in words:
        assert word in warning


def problem(kind: str, path: str = "/a") -> FsckProblem:
    return FsckProblem(kind, path, 0, 255, 2, "s1", "why")


def test_fsck_tells_what_is_damaged_and_what_to_do() -> None:
    report = FsckReport(files=2, chunks=2, problems=[problem("corrupt"), problem("below_goal")])
    text = _fsck_text(Output(), "/", report, verify=True)
    assert "corrupt    /a chunk 0 (handle ff, version 2) on s1: why" in text
    assert "checked 2 chunks of 2 files: 1 below goal, 1 corrupt" in text
    assert "1 file damaged" in text
    assert "gfs status" in text


def test_fsck_counts_what_is_too_much_to_tell() -> None:
    report = FsckReport(problems=[problem("orphaned", "") for _ in range(150)])
    text = _fsck_text(Output(), "/", report, verify=False)
    assert text.count("handle ff") == 100
    assert "and 50 more orphaned" in text
    assert "damaged" not in text

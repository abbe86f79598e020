"""Every warning names the next command to run."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import msgspec
import pytest
from trio.testing import MockClock

from gfs.blocks import KIB, MIB
from gfs.cli.disks import emptied, row
from gfs.cli.drain import drain_line, is_stuck
from gfs.cli.health import (
    DAY_NS,
    _advice,
    _fsck_text,
    _missing,
    _warnings,
    advice,
    elections,
    machine_warnings,
    masters,
)
from gfs.cli.output import Output
from gfs.cli.progress import Progress
from gfs.cli.scrub import scrubbed
from gfs.cli.tuning import summary
from gfs.client import Client, FsckProblem, FsckReport
from gfs.client.core import ClientCore
from gfs.client.fsck import MENDING, States, _state
from gfs.errors import GfsError, ReplicaUnavailable
from gfs.protocol.messages import (
    ClusterTotals,
    Disk,
    DiskUsageReply,
    ElectionReply,
    FsckChunk,
    MetadataSpace,
    RepairRank,
    RepairReply,
    ReplicaState,
    ServerAddress,
    ServerStatus,
    ShadowStatus,
    StatusReply,
)


def server(state: str = "live", disk: str = "ok", age_ms: int = 400) -> ServerStatus:
    disks = [Disk("/d", 1000, 500, 3, disk)]
    return ServerStatus("s1", "h:1", "default", state, age_ms, 3, disks)


def status(*servers: ServerStatus, **totals: int) -> StatusReply:
    names = ClusterTotals.__struct_fields__
    return StatusReply(
        0, "c", 1, list(servers), ClusterTotals(**{name: totals.get(name, 0) for name in names})
    )


def test_a_healthy_cluster_is_not_warned_of() -> None:
    assert list(_warnings(status(server(), files=3, chunks=3, room_low=1))) == []


def in_rack(rack: str, state: str = "live", drain: str = "") -> ServerStatus:
    return msgspec.structs.replace(server(state), id=rack, rack=rack, drain=drain)


@pytest.mark.parametrize(
    ("servers", "is_warned_of"),
    [
        ([in_rack("a"), in_rack("b", "dead"), in_rack("c", "silent")], True),
        ([in_rack("a"), in_rack("b", drain="draining")], True),
        ([in_rack("a"), in_rack("a", "dead")], False),
        ([in_rack("a"), in_rack("b"), in_rack("c", "dead")], False),
        ([in_rack("a", "dead"), in_rack("b", "dead")], False),
    ],
)
def test_one_rack_of_several_is_warned_of(servers: list[ServerStatus], is_warned_of: bool) -> None:
    reply = status(*servers)
    reply.replication = 2
    found = [each for each in _warnings(reply) if "only rack a is left" in each]
    assert len(found) == is_warned_of
    if found:
        assert "gfs chunkserver --rack NAME" in found[0]
        assert "gfs forget" in found[0]
    reply.replication = 1
    assert not [each for each in _warnings(reply) if "rack" in each.partition(":")[2]]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (status(server(), lost=1), ["1 chunk without any good replica", "gfs fsck"]),
        (status(server(), lost=1), ["no known chunkserver is away", "gfs rm"]),
        (
            status(server(), lost=2, salvages=2),
            ["2 chunks without any good replica: 2 being put together from damaged replicas;"],
        ),
        (
            status(server(), lost=2, salvages=1, beyond_repair=1),
            ["1 being put together", "1 that cannot be put together", "no known chunkserver is"],
        ),
        (status(server(), corrupt=2), ["2 corrupt replicas, being repaired from good", "gfs fsck"]),
        (
            status(server(), trash_rows=1, room_low=1, room_bytes=3 << 30),
            ["after 3.0 GiB more are written the trash is purged early", "gfs rm --trash"],
        ),
        (status(server(), corrupt=2, corrupt_kept=2), ["2 corrupt replicas kept", "gfs fsck"]),
        (
            status(server(), under_replicated=5, repairs_active=1, repairs_queued=4),
            ["5 chunks", "1 repair running, 4 waiting", "gfs status"],
        ),
        (
            status(server(), under_replicated=5, repairs_queued=5, goal_unmet=2),
            ["no repair is running", "2 replicas", "there are 1", "gfs up --chunkservers 2,"],
        ),
        (
            status(*[server()] * 4, under_replicated=1, repairs_queued=1, goal_unmet=7),
            ["no repair is running", "add 3", "gfs up --chunkservers 7,", "gfs setrep"],
        ),
        (
            # Enough are there: it has not begun yet, after a start or a promotion.
            status(*[server()] * 3, under_replicated=1, repairs_queued=1, goal_unmet=3),
            ["0 repairs running, 1 waiting", "automatically", "gfs status"],
        ),
        (status(server(disk="full")), ["is full", "gfs rm"]),
        (status(server(disk="failed")), ["is failed", "gfs disk retry s1 /d"]),
        (status(server(), server("dead", age_ms=18_000)), ["is dead", "18.0 s", "gfs chunkserver"]),
        (status(), ["no chunkserver is live", "gfs up"]),
    ],
)
def test_a_warning_names_the_next_command(reply: StatusReply, words: list[str]) -> None:
    [warning] = _warnings(reply)
    assert warning.startswith("WARNING: ")
    for word in words:
        assert word in warning


def followed(*states: str, needed: int = 1) -> StatusReply:
    reply = status(server())
    reply.shadows = [ShadowStatus(f"m:{n}", state, 7, 0) for n, state in enumerate(states)]
    reply.replicas_before_ack = needed
    return reply


@pytest.mark.parametrize(
    ("reply", "expected", "words"),
    [
        (status(server()), None, ""),
        (status(server()), "h:1", ""),
        (status(server(), server("dead")), "h:1", ""),
        (status(server("dead")), "h:1", "the server at h:1 is not there yet"),
        (status(server(), server("silent")), "h:1", "chunkserver s1 at h:1 is silent"),
        (status(server(), under_replicated=2), None, "2 chunks below the goal"),
        (status(server(), lost=1), None, "1 chunk below the goal"),
        (status(server(), corrupt=1), None, "1 chunk below the goal"),
        (status(server(), unlocated=3), None, "3 chunks below"),
        (status(server()), "m:9", ""),  # the holder
        (followed("following", "following"), "m:1", ""),
        (followed("following", "away"), "m:0", "shadow master m:1: away"),
        (followed("following", "not counted"), "m:0", "shadow master m:1: not counted"),
        (followed("following"), "m:1", "the server at m:1 is not there yet"),
        (followed(), "m:9", "0 shadow masters of 1"),
    ],
)
def test_what_keeps_another_machine_from_being_stopped(
    reply: StatusReply, expected: str | None, words: str
) -> None:
    said = "\n".join(_missing(reply, ElectionReply(0, "etcd", "m:9"), expected))
    assert words in said
    assert bool(words) is bool(said)


@pytest.mark.parametrize(
    ("reply", "named", "expected", "is_there"),
    [
        (status(server()), ["m:9"], "m:9", True),
        (followed("following"), ["m:0", "m:9"], "m:9", True),
        (followed("following"), ["m:0", "m:9"], "m:8", False),
        (status(server()), ["m:8", "m:9"], "m:9", False),  # either may be it
    ],
)
def test_a_master_that_nobody_elects_is_there_if_it_answers(
    reply: StatusReply, named: list[str], expected: str, is_there: bool
) -> None:
    assert bool(list(_missing(reply, ElectionReply(0), expected, named))) is not is_there


def test_that_masters_follow_and_are_elected_is_no_warning() -> None:
    reply, election = followed("following"), ElectionReply(0, "etcd://a", "m:9", NOW_NS)
    reply.term = 3 << 32
    assert len([*masters(reply), *elections(election, NOW_NS)]) == 3
    assert list(advice(reply, election, NOW_NS)) == []
    away = ElectionReply(0, "etcd://a", "m:9", NOW_NS, 9000, 4000, "no route")
    (warning,) = advice(reply, away, NOW_NS)
    assert warning.startswith("WARNING: etcd://a has not answered for 4.0 s (no route)")


def test_a_shadow_master_alone_is_not_whole() -> None:
    reply = status(server())
    reply.role = "shadow"
    assert list(_missing(reply, ElectionReply(0))) == ["no master answers, a shadow master does"]


NOW_NS = 1_795_602_030 * 10**9


@pytest.mark.parametrize(
    ("days", "free_mib", "used_mib", "words"),
    [
        (31.0, 2048, 700, []),
        (29.5, 2048, 700, ["certificate of s1 (h:1) ends in 29 days"]),
        (-1.0, 2048, 700, ["(h:1) has ended: 2026"]),
        (0.0, 500, 700, ["500 MiB free", "df -h"]),
        (0.0, 2048, 900, ["900 MiB of at most 1.0 GiB", "GFS_MASTER_MAP_BYTES"]),
    ],
)
def test_what_will_end_or_fill_up_is_warned_of_before(
    days: float, free_mib: int, used_mib: int, words: list[str]
) -> None:
    reply = status(server())
    reply.servers[0].certificate_until_ns = int(NOW_NS + days * DAY_NS) if days else 0
    reply.metadata = MetadataSpace(used_mib * MIB, 1024 * MIB, 4096 * MIB, free_mib * MIB)
    warnings = list(machine_warnings(reply, NOW_NS))
    assert len(warnings) == bool(words)
    for word in words:
        assert word in warnings[0]


@pytest.mark.parametrize(
    "kind", ["lost", "missing", "corrupt", "stale", "forgetful", "below_goal", "orphaned"]
)
def test_all_but_what_no_file_wants_is_damage(kind: str) -> None:
    """Of a server alone that is scrubbed, a chunk below its goal is not reported."""
    report = FsckReport(problems=[problem(kind), problem(kind, "")])
    assert report.damaged == ["/a"] * (kind != "orphaned")


@pytest.mark.parametrize(
    ("state", "length", "kind"),
    [("good", 10, "good"), ("good", 11, "good"), ("good", 9, "corrupt"), ("stale", 10, "stale")],
)
async def test_a_replica_is_good_if_it_has_all_that_the_file_has(
    state: str, length: int, kind: str
) -> None:
    chunk = FsckChunk("/a", 0, handle=5, version=1, length=10, goal=3, servers=[0])
    states: States = {("s1", 5): ReplicaState(5, state, 1, length)}
    known = await _state(cast(ClientCore, None), chunk, ServerAddress("s1", "h:1", "r"), states)
    assert known[0] == kind


class Knows:
    """A client of a master that knows one server: as it is at each look, the last for good."""

    def __init__(self, *known: ServerStatus) -> None:
        self._known = list(known)

    async def status(self) -> StatusReply:
        return status(self._known.pop(0) if len(self._known) > 1 else self._known[0])

    async def disk_usage(self, path: str) -> DiskUsageReply:
        return DiskUsageReply(0, 1, 1, 1, 1)

    async def fsck(self, path: str, **more: object) -> FsckReport:
        return FsckReport()


@pytest.mark.parametrize("states", [["silent"], ["dead"], ["stopped"], ["live", "dead"]])
async def test_the_scrub_of_a_server_that_is_away_fails(states: list[str]) -> None:
    client = cast(Client, Knows(*map(server, states)))
    with pytest.raises(ReplicaUnavailable, match=f"is {states[-1]}.*then scrub again"):
        await scrubbed(client, "s1")


async def test_a_live_server_is_scrubbed() -> None:
    assert not (await scrubbed(cast(Client, Knows(server(), server())), "s1")).damaged


@pytest.mark.parametrize(
    ("states", "path", "error"),
    [
        (["live", "dead"], "/d", "is dead: start it"),
        (["stopped"], "/d", "is stopped: start it"),
        (["live", "silent", "live"], "/other", "is not a disk of chunkserver s1 any more"),
    ],
)
async def test_nobody_waits_for_a_disk_that_cannot_be_emptied(
    autojump_clock: MockClock, states: list[str], path: str, error: str
) -> None:
    known = [server(state) for state in states]
    known[0].disks[0].path = path
    with pytest.raises(GfsError, match=error):
        await emptied(cast(Client, Knows(*known)), "s1", path, Progress())


def test_a_disk_is_an_object_with_its_server() -> None:
    assert row("s1", Disk("/d", 1000, 500, 3, "failed", "d1", "it broke", 2)) == {
        "server": "s1",
        "path": "/d",
        "total_bytes": 1000,
        "free_bytes": 500,
        "chunks": 3,
        "state": "failed",
        "id": "d1",
        "reason": "it broke",
        "errors": 2,
        "mount": "",
        "damaged": 0,
        "device": 0,
    }


def test_a_server_that_is_emptied_takes_no_replica() -> None:
    emptied = server()
    emptied.drain = "draining"
    reply = status(server(), server(), emptied, under_replicated=1, goal_unmet=3)
    assert "gfs up --chunkservers 4" in next(_warnings(reply))


@pytest.mark.parametrize(
    ("sequence", "behind_ms", "reported"),
    [
        (48, 1500, "away, 2 operations and 1.5 s behind"),
        (50, 0, "away, 0 operations and 0.0 s behind"),
        (-1, 90_000, "away, 90.0 s behind"),
        (-1, -1, "away, its lag is not known"),
    ],
)
def test_of_a_shadow_master_only_what_is_known_is_reported(
    sequence: int, behind_ms: int, reported: str
) -> None:
    reply = status(server())
    reply.sequence = 50
    reply.shadows = [ShadowStatus("h:2", "away", sequence, behind_ms)]
    assert f"shadow h:2: {reported}" in list(masters(reply))
    (warning,) = advice(reply, ElectionReply(0), NOW_NS)
    assert warning.startswith("WARNING: a shadow master is away")


def test_what_is_lost_may_be_on_servers_that_are_away() -> None:
    words = "start the chunkservers that are away (s1 (h:1))"
    reply = status(server(), server("dead"), lost=2, beyond_repair=1)
    lost, away = _warnings(reply)
    assert "is dead" in away
    assert words in lost
    assert words in _advice(FsckReport(problems=[problem("lost")]), reply)
    assert words not in _advice(FsckReport(problems=[problem("lost")]), status(server()))
    # Nobody is to delete what is about to be good again.
    mending = FsckReport(problems=[replace(problem("lost"), detail=MENDING)])
    assert "delete" not in _advice(mending, status(server()))


def test_a_drain_that_does_not_end_says_why() -> None:
    draining = server()
    draining.drain, draining.drain_chunks, draining.drain_lost = "draining", 2, 1
    line = drain_line(draining)
    assert "2 chunks left, 1 of them with no other copy than its damaged replica" in line
    assert not is_stuck(draining)
    draining.drain_chunks = 1
    assert is_stuck(draining)
    draining.drain_lost = 0
    assert not is_stuck(draining)
    assert "lost" not in drain_line(draining)


def problem(kind: str, path: str = "/a") -> FsckProblem:
    return FsckProblem(kind, path, 0, 255, 2, "s1", "why")


def test_fsck_reports_what_is_damaged_and_what_to_do() -> None:
    report = FsckReport(files=2, chunks=2, problems=[problem("corrupt"), problem("below_goal")])
    text = _fsck_text(Output(), "/", report, verify=True, advice="Do that")
    assert "corrupt    /a chunk 0 (handle ff, version 2) on s1: why" in text
    assert "checked 2 chunks of 2 files: 1 below goal, 1 corrupt" in text
    assert "1 file damaged" in text
    assert "1 file damaged. Do that" in text


def test_fsck_counts_what_is_too_much_to_print() -> None:
    report = FsckReport(problems=[problem("orphaned", "") for _ in range(150)])
    text = _fsck_text(Output(), "/", report, verify=False, advice="")
    assert text.count("handle ff") == 100
    assert "and 50 more orphaned" in text
    assert "damaged" not in text


@pytest.mark.parametrize(
    ("paused", "replicas_per_second", "bytes_per_second", "end"),
    [
        (False, 2.0, 1e9, "6 copies, 4.0 KiB to go, done in about 3.0 s at this pace"),
        (False, 2.0, 64.0, "6 copies, 4.0 KiB to go, done in about 64.0 s at this pace"),
        (True, 2.0, 64.0, "6 copies, 4.0 KiB to go"),
        (False, 0.0, 64.0, "6 copies, 4.0 KiB to go"),
    ],
)
def test_repair_says_when_it_ends_if_it_goes_on(
    paused: bool, replicas_per_second: float, bytes_per_second: float, end: str
) -> None:
    ranks = [RepairRank(1, 3, 2, 2, 3 * KIB), RepairRank(2, 3, 2, 1, KIB)]
    reply = RepairReply(0, paused, {}, ranks, 0, 0, replicas_per_second, bytes_per_second, 0)
    assert summary(reply).splitlines()[-1] == end

"""The cluster over REST: what administrators see of it, and what they order."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest
from checks import make_token, ok, put, refused, wait_for
from cloud import Cloud
from msgspec.structs import replace

from control.api import Call, Control, ControlSettings
from control.cluster import ClusterModule, series
from control.cluster.events import (
    EVENTS,
    EVENTS_MAX,
    LAST,
    Facts,
    Happened,
    Server,
    add,
    between,
    events,
)
from control.cluster.module import advice_of
from control.cluster.series import counters_of, of_master, rates
from control.cluster.shapes import Glance
from control.records import Records, Txn
from control.testing import make_app
from control.volatile import Volatile
from gfs.chunkserver.disks.disk import STATES
from gfs.cli.health import advice
from gfs.master.tables import DEAD, LIVE, SILENT, STOPPED
from gfs.protocol.messages import (
    ClusterTotals,
    Disk,
    ElectionReply,
    MetadataSpace,
    RepairReply,
    ServerStatus,
    ShadowStatus,
    StatusReply,
)

BASE = "/admin/cluster"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud that is drained and whose disks come and go."""
    with Cloud(tmp_path_factory.mktemp("cluster"), chunkservers=4) as made:
        made.start()
        wait_for(lambda: _is_watched(made), "the first look")
        yield made


def _is_watched(cloud: Cloud) -> bool:
    return 4.0 in ok(cloud.admin.get(f"{BASE}/series"))["values"]["servers_live"]


def servers(cloud: Cloud) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ok(cloud.admin.get(f"{BASE}/servers"))["servers"]
    return found


def commands(cloud: Cloud) -> list[str]:
    warnings = ok(cloud.admin.get(BASE))["warnings"]
    return [command for each in warnings for command in each["commands"]]


def kinds(cloud: Cloud) -> list[str]:
    return [each["kind"] for each in ok(cloud.admin.get(f"{BASE}/events"))["events"]]


def test_the_cluster_at_a_glance_is_what_gfs_status_shows(cloud: Cloud) -> None:
    put(cloud.admin, "default", "glance", b"x" * 5000)
    seen = ok(cloud.admin.get(BASE))
    status = cloud.cluster.json("status")
    assert seen["cluster"] == status["cluster"]
    assert (seen["files"], seen["bytes"]) == (
        status["totals"]["files"], status["totals"]["bytes"],
    )  # fmt: skip
    assert seen["servers"] == {"total": 4, "live": 4}
    assert seen["total_bytes"] == seen["used_bytes"] + seen["free_bytes"] > 0
    assert seen["total_bytes"] == max(each["total_bytes"] for each in servers(cloud)), (
        "the four servers are on one file system"
    )
    assert (seen["lost"], seen["corrupt"], seen["role"]) == (0, 0, "master")
    assert seen["trash"]["kept_seconds"] > 0
    assert seen["repair"]["bytes_left"] == 0 == seen["repair"]["seconds_left"]
    assert abs(seen["now"] - time.time()) < 600


def test_servers_have_racks_and_disks(cloud: Cloud) -> None:
    found = servers(cloud)
    assert len({each["id"] for each in found}) == 4
    for each in found:
        assert (each["state"], each["drain"], each["maintenance_seconds"]) == ("live", "", 0)
        assert each["rack"]
        assert each["heartbeat_seconds"] >= 0
        assert [disk["state"] for disk in each["disks"]] == ["ok"]


def test_repair_is_paused_and_resumed(cloud: Cloud) -> None:
    assert ok(cloud.admin.put(f"{BASE}/repair", json={"paused": True}))["paused"]
    assert "gfs repair resume" in commands(cloud)
    body = {"paused": False, "settings": {"clones_total": 3}}
    changed = ok(cloud.admin.put(f"{BASE}/repair", json=body))
    assert (changed["paused"], changed["settings"]["clones_total"]) == (False, 3)
    assert "gfs repair resume" not in commands(cloud)
    ok(cloud.admin.put(f"{BASE}/repair", json={"settings": {"clones_total": -1}}))
    refused(cloud.admin.put(f"{BASE}/repair", json={"settings": {"speed": 1}}), 400)
    refused(cloud.admin.put(f"{BASE}/repair", json={"paused": "yes"}), 400, "paused")


def test_a_server_is_drained_and_comes_back(cloud: Cloud) -> None:
    first, second, *_ = servers(cloud)
    drain = f"{BASE}/servers/{first['id']}/drain"
    assert ok(cloud.admin.post(drain, json={}))["drain"] in ("draining", "drained")
    wait_for(lambda: servers(cloud)[0]["drain"] == "drained", "the drain")
    text = refused(cloud.admin.post(f"{BASE}/servers/{second['address']}/drain", json={}), 409)
    assert "chunkserver" in text
    assert f"gfs drain --cancel {first['id']}" in commands(cloud)
    refused(cloud.admin.delete(f"{BASE}/servers/{first['id']}"), 409)
    wait_for(lambda: "drain" in kinds(cloud), "the event")
    before = len(kinds(cloud))
    assert ok(cloud.admin.post(drain, json={"cancel": True}))["drain"] == ""
    wait_for(lambda: len(kinds(cloud)) > before, "the event")
    for what in ("drain", "maintenance"):
        body: dict[str, Any] = {"seconds": 60} if what == "maintenance" else {}
        refused(cloud.admin.post(f"{BASE}/servers/nothing/{what}", json=body), 404, "nothing")
    refused(cloud.admin.delete(f"{BASE}/servers/nothing"), 404)


def test_maintenance_has_an_end(cloud: Cloud) -> None:
    name = servers(cloud)[0]["id"]
    path = f"{BASE}/servers/{name}/maintenance"
    assert 0 < ok(cloud.admin.post(path, json={"seconds": 600}))["maintenance_seconds"] <= 600
    assert f"gfs maintenance {name} off" in commands(cloud)
    assert ok(cloud.admin.post(path, json={"seconds": 0}))["maintenance_seconds"] == 0
    for wrong in ({}, {"seconds": -1}, {"seconds": 8 * 86400}):
        refused(cloud.admin.post(path, json=wrong), 400, "seconds")


def test_a_disk_comes_and_goes(cloud: Cloud, tmp_path: Path) -> None:
    name = servers(cloud)[0]["id"]
    path, disk = f"{BASE}/servers/{name}/disks", str(tmp_path / "disk")

    def order(action: str, **more: bool) -> httpx.Response:
        return cloud.admin.post(path, json={"path": disk, "action": action, **more})

    refused(order("add"), 409, "free of")  # the other servers are on this file system, too
    assert not Path(disk).exists()
    refused(order("drain", force=True), 400, "force")
    found = ok(order("add", force=True))["disks"]
    assert [os.path.ismount(each["mount"]) for each in found] == [True, True]
    refused(order("add", force=True), 409)
    found = ok(order("drain"))["disks"]
    assert [each["state"] for each in found if each["path"] == disk] == ["draining"]
    wait_for(lambda: order("remove").status_code == 200, "the removal")
    refused(order("remove"), (404, 409))
    refused(cloud.admin.post(path, json={"path": disk, "action": "format"}), 400, "action")
    refused(
        cloud.admin.post(f"{BASE}/servers/nothing/disks", json={"path": disk, "action": "add"}), 404
    )


def test_masters(cloud: Cloud) -> None:
    found = ok(cloud.admin.get(f"{BASE}/masters"))
    assert (found["role"], found["shadows"], found["election"]) == ("master", [], None)
    assert found["sequence"] > 0
    assert found["master"].startswith("127.0.0.1:")
    refused(cloud.admin.post(f"{BASE}/failover", json={}), 409, "gfs promote")
    refused(cloud.admin.delete(f"{BASE}/masters/127.0.0.1:1"), 404)


def test_numbers_of_the_last_hour(cloud: Cloud) -> None:
    def measured() -> bool:
        put(cloud.admin, "default", "series", b"x" * 100_000, overwrite="true")
        values = ok(cloud.admin.get(f"{BASE}/series"))["values"]
        assert set(values) == set(series.NAMES)
        return any(values["upload_bytes_per_second"]) and any(values["request_seconds_p99"])

    wait_for(measured, "two points")
    found = ok(cloud.admin.get(f"{BASE}/series"))
    assert len(found["at"]) == 360
    assert {b - a for a, b in zip(found["at"], found["at"][1:], strict=False)} == {10}
    assert {len(values) for values in found["values"].values()} == {360}
    assert 4 in found["values"]["servers_live"]
    assert all(each > 0 for each in found["values"]["master_seconds"] if each is not None)


def test_pages_of_events(cloud: Cloud) -> None:
    for number in (1, 2):
        ok(cloud.admin.put(f"{BASE}/repair", json={"paused": number == 1}))
        wait_for(lambda number=number: kinds(cloud).count("repair") >= number, "the event")
    everything = ok(cloud.admin.get(f"{BASE}/events"))["events"]
    page = ok(cloud.admin.get(f"{BASE}/events", params={"limit": 1}))
    rest = ok(cloud.admin.get(f"{BASE}/events", params={"before": page["next"], "limit": 1000}))
    assert [*page["events"], *rest["events"]][-len(everything) :] == everything
    assert rest["next"] is None
    refused(cloud.admin.get(f"{BASE}/events", params={"before": "x"}), 400, "before")


def test_a_script_has_an_administrators_token(cloud: Cloud) -> None:
    admin_id = ok(cloud.admin.get("/api/session"))["user_id"]

    def client(scope: str, *actions: str) -> httpx.Client:
        return cloud.client(make_token(cloud.admin, {scope: list(actions)})["token"])

    reader = client(f"cluster.{admin_id}", "read")
    operator = client(f"cluster.{admin_id}.servers", "update")
    for path in ("", "/servers", "/masters", "/events", "/series"):
        ok(reader.get(f"{BASE}{path}"))
        refused(operator.get(f"{BASE}{path}"), 403, "cluster")
    (server, *_) = ok(reader.get(f"{BASE}/servers"))["servers"]
    path = f"{BASE}/servers/{server['id']}/maintenance"
    refused(reader.post(path, json={"seconds": 60}), 403, "cluster")
    for seconds in (60, 0):
        ok(operator.post(path, json={"seconds": seconds}))
    refused(operator.delete(f"{BASE}/servers/{server['id']}"), 403, "cluster")
    refused(operator.put(f"{BASE}/repair", json={"paused": True}), 403, "cluster")
    # A user's token has them in vain.
    user, user_id = cloud.make_user()
    users = make_token(user, {f"cluster.{user_id}": ["read", "update", "delete"]})
    refused(cloud.client(users["token"]).get(BASE), 403)


def test_without_a_master_it_says_so(cloud: Cloud) -> None:
    (server, *_) = ok(cloud.admin.get(f"{BASE}/servers"))["servers"]
    path = f"{BASE}/servers/{server['id']}/maintenance"
    ok(cloud.admin.post(path, json={"seconds": 600}))
    wait_for(lambda: ok(cloud.admin.get(f"{BASE}/events"))["events"], "an event")
    ok(cloud.admin.post(path, json={"seconds": 0}))
    cloud.cluster.kill("master", signal.SIGSTOP)
    try:
        answers = [cloud.admin.get(path) for path in (BASE, "/storage/namespaces/default/entries")]
        assert ok(cloud.admin.get(f"{BASE}/events"))["events"]
    finally:
        cloud.cluster.kill("master", signal.SIGCONT)
    for answer in answers:
        refused(answer, 503)
        assert answer.headers["Retry-After"]
    ok(cloud.admin.get(BASE))


CALM = Facts(
    LAST,
    {"s1": Server("a:1", "live", "", False, {"/d": "ok"})},
    {"m2:1": "following"},
    term=1, lost=0, corrupt=0, below_goal=0, is_paused=False, purged=0,
)  # fmt: skip


def server(**changes: Any) -> dict[str, Server]:
    return {"s1": replace(CALM.servers["s1"], **changes)}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"servers": {}}, "info", "s1 (a:1) is forgotten"),
        ({"servers": server(state="dead")}, "warning", "s1 (a:1) is dead"),
        ({"servers": server(state="stopped")}, "info", "is stopped"),
        ({"servers": server(drain="draining")}, "info", "is being drained"),
        ({"servers": server(drain="drained")}, "info", "can be stopped"),
        ({"servers": server(is_maintained=True)}, "info", "is under maintenance"),
        ({"servers": server(disks={"/d": "failed"})}, "warning", "/d of chunkserver s1"),
        ({"servers": server(disks={})}, "info", "is removed"),
        ({"servers": server(disks={"/d": "ok", "/e": "ok"})}, "info", "/e of chunkserver"),
        ({"shadows": {"m2:1": "away"}}, "warning", "m2:1 is away"),
        ({"shadows": {}}, "info", "m2:1 is forgotten"),
        ({"term": 2}, "warning", "term 2"),
        ({"lost": 2}, "warning", "2 chunks without any good replica"),
        ({"corrupt": 1}, "warning", "1 chunk with a corrupt replica"),
        ({"below_goal": 5}, "warning", "5 chunks below the replication goal"),
        ({"is_paused": True}, "warning", "repair is paused"),
        ({"purged": 3}, "warning", "3 deletions purged early"),
    ],
)
def test_what_happened_between_two_looks(changes: dict[str, Any], level: str, words: str) -> None:
    after = replace(CALM, **changes)
    (event,) = between(CALM, after)
    assert event.level == level
    assert words in event.text
    assert list(between(after, after)) == []


def test_an_end_of_trouble_is_an_event() -> None:
    bad = replace(CALM, lost=2, below_goal=9, is_away=True, servers=server(state="dead"))
    texts = [event.text for event in between(bad, CALM)]
    assert len(texts) == 4
    assert all("lost" not in text for text in texts)
    assert list(between(replace(CALM, below_goal=3), replace(CALM, below_goal=7))) == []
    (more,) = between(replace(CALM, lost=1), replace(CALM, lost=2))
    assert more.level == "warning"


def test_the_console_has_a_text_for_each_state_and_each_kind_of_event() -> None:
    """So that a translation of its one file has all of them."""
    root = Path(__file__).parents[2]
    code = "".join(path.read_text() for path in (root / "control/cluster").glob("*.py"))
    kinds = set(re.findall(r'Happened\(\s*"(\w+)"', code)) | {"lost", "corrupt", "below_goal"}
    servers = {LIVE, SILENT, DEAD, STOPPED}
    assert "disk" in kinds
    _, *records = (root / "console/src/texts.ts").read_text().split(": {\n")
    known = [set(re.findall(r"^ +(\w+): \"", each, re.MULTILINE)) for each in records]
    assert any({*servers, *STATES} <= each for each in known)
    assert any({*kinds, *(f"server_{state}" for state in servers)} <= each for each in known)


async def test_what_happened_long_ago_is_not_shown(tmp_path: Path) -> None:
    """Also while nothing happens at which it would be forgotten."""
    now, week = time.time_ns(), 7 * 86400 * 10**9
    records = Records.open(tmp_path, [EVENTS], sync=False)
    for text, ago in (("old", week + 10**9), ("late", week - 60 * 10**9)):
        happened = [Happened("k", "info", text)]
        await records.write(partial(add, facts=CALM, happened=happened, now_ns=now - ago))
    module = ClusterModule(Control(ControlSettings(), tmp_path / "control", []))
    cast(Any, module).control = SimpleNamespace(records=records)
    page = await module.events(cast(Call, SimpleNamespace(query=lambda kind: kind())))
    assert [event.text for event in page.events] == ["late"]
    records.close()


async def test_events_are_kept_for_days_and_are_not_too_many(tmp_path: Path) -> None:
    records = Records.open(tmp_path, [EVENTS], sync=False)
    day = 86400 * 10**9

    def fill(txn: Txn) -> None:
        add(txn, CALM, [Happened("k", "info", "old")], 100 * day)
        add(txn, CALM, [Happened("k", "info", f"{n}") for n in range(EVENTS_MAX)], 106 * day)
        assert events.count(txn) == EVENTS_MAX
        add(txn, CALM, [Happened("k", "info", "new")], 114 * day)
        assert [row.text for row in events.scan(txn)] == ["new"]

    await records.write(fill)
    records.close()


METRICS = """\
# HELP gfs_control_requests_total Requests answered
gfs_control_requests_total{{method="GET",route="/a",status="200",worker="1"}} {n}.0
gfs_control_request_seconds_bucket{{le="0.1",route="/a",worker="1"}} {fast}.0
gfs_control_request_seconds_bucket{{le="1.0",route="/a",worker="1"}} {n}.0
gfs_control_request_seconds_bucket{{le="+Inf",route="/a",worker="1"}} {n}.0
gfs_control_request_seconds_count{{route="/a",worker="1"}} {n}.0
gfs_control_request_seconds_sum{{route="/a",worker="1"}} {seconds}
gfs_control_file_bytes_total{{direction="upload",worker="1"}} {upload}
gfs_control_file_bytes_total{{direction="upload",worker="2"}} 1e3
process_open_fds 7
"""


def test_rates_are_of_what_was_counted_meanwhile() -> None:
    before = counters_of(METRICS.format(n=10, fast=10, seconds=1.0, upload=5000))
    now = counters_of(METRICS.format(n=30, fast=29, seconds=5.0, upload=45000))
    assert rates(before, now, 10.0) == {
        "upload_bytes_per_second": 4000.0,
        "download_bytes_per_second": 0.0,
        "requests_per_second": 2.0,
        "request_seconds_mean": 0.2,
        "request_seconds_p99": 1.0,
    }
    assert rates(now, before, 10.0) == {}, "a process that ended took its counts along"
    assert "request_seconds_mean" not in rates(now, now, 10.0)


def test_a_series_is_an_hour_long(tmp_path: Path) -> None:
    volatile = Volatile.open(tmp_path)
    for number in range(400):
        series.add(volatile, {"lost": float(number)}, 1_000_000.0 + 10 * number)
    at, values = series.read(volatile, 1_000_000.0 + 3995)
    assert (len(at), at[-1]) == (360, 1_003_990)
    assert values["lost"] == [float(number) for number in range(40, 400)]
    assert set(values["files"]) == {None}
    volatile.close()


@pytest.mark.parametrize(
    ("line", "level", "commands"),
    [
        ("WARNING: repair is paused: nothing is copied: gfs repair resume", "warning",
         ["gfs repair resume"]),
        ("note: no chunkserver has: the master was promoted a moment ago: gfs status again", "note",
         ["gfs status"]),
        ("s1 (a:1) is being drained: 1 chunk left; it must not be stopped yet: gfs status; gfs "
         "drain --cancel", "info", ["gfs status", "gfs drain --cancel"]),
        ("WARNING: no chunkserver is live: start some: gfs up, or gfs chunkserver", "warning",
         ["gfs up", "gfs chunkserver"]),
        ("WARNING: the metadata's disk has 9 MiB free: make room on the machine: df -h", "warning",
         ["df -h"]),
        ("WARNING: s2 (h:9) is dead: start it: gfs chunkserver (gfs up does so by itself); if it "
         "never comes back: gfs forget s2", "warning",
         ["gfs chunkserver", "gfs forget s2"]),
        ("WARNING: one is away: gfs master --shadow-of 10.0.0.1:9400; if it is lost for good: "
         "gfs forget 10.0.0.2:9400", "warning",
         ["gfs master --shadow-of 10.0.0.1:9400", "gfs forget 10.0.0.2:9400"]),
        ("WARNING: the certificate of x ends in 3 days: put a new one in place (docs/keys.md)",
         "warning", []),
    ],
)  # fmt: skip
def test_advice_names_its_commands(line: str, level: str, commands: list[str]) -> None:
    found = advice_of(line)
    assert (found.level, found.commands) == (level, commands)
    assert not found.text.startswith(("WARNING", "note"))


def a_server(name: str = "s1", rack: str = "a", **changes: Any) -> ServerStatus:
    disks = [Disk("/d", 1000, 500, 3, changes.pop("disk", "ok"))]
    made = ServerStatus(name, f"{name}:1", rack, "live", 400, 3, disks)
    return msgspec.structs.replace(made, **changes)


def a_status(*servers: ServerStatus, **changes: Any) -> StatusReply:
    """Of a cluster that is well, but for ``changes`` to it or to its totals."""
    totals = ClusterTotals(
        **{
            name: changes.pop(name, 0)
            for name in ClusterTotals.__struct_fields__
            if name not in StatusReply.__struct_fields__
        }
    )
    made = StatusReply(0, "c", 1, list(servers or (a_server(),)), totals)
    return msgspec.structs.replace(made, **changes)


ILL = {
    "lost": a_status(lost=1),
    "not located": a_status(unlocated=1),
    "corrupt": a_status(corrupt=1),
    "nothing better": a_status(corrupt=1, corrupt_kept=1),
    "below goal": a_status(under_replicated=1),
    "too few servers": a_status(under_replicated=1, goal_unmet=3),
    "little room": a_status(room_low=1, trash_rows=1),
    "restored": a_status(restored=True),
    "paused": a_status(repair_paused=True),
    "a rack is left": a_status(a_server(), a_server("s2", "b", state="dead"), replication=2),
    "few racks": a_status(a_server(), a_server("s2", "b"), replication=3),
    "a small rack": a_status(
        a_server(), a_server("s2", "a"), a_server("s3", "b"), replication=2
    ),
    "silent": a_status(a_server(), a_server("s2", state="silent")),
    "dead": a_status(a_server(), a_server("s2", state="dead")),
    "none is live": a_status(a_server(state="dead")),
    "stopped": a_status(a_server(), a_server("s2", state="stopped")),
    "maintenance": a_status(a_server(maintenance_ms=5000)),
    "drained": a_status(a_server(drain="drained")),
    "draining": a_status(a_server(drain="draining", drain_chunks=2, drain_lost=1)),
    **{
        f"a disk is {state}": a_status(a_server(disk=state))
        for state in ("failed", "missing", "slow", "full", "draining")
    },
    "a shadow is away": a_status(shadows=[ShadowStatus("m:1", "away", 1, 0)]),
    "no shadow": a_status(replicas_before_ack=1),
    "the disk of the master": a_status(metadata=MetadataSpace(1, 100, 1 << 40, 1)),
    "the map of the master": a_status(metadata=MetadataSpace(99, 100, 1 << 40, 1 << 39)),
    "a certificate": a_status(certificate_until_ns=1),
}  # fmt: skip


@pytest.mark.parametrize("name", ILL)
def test_each_warning_names_a_command(name: str) -> None:
    found = [advice_of(line) for line in advice(ILL[name], ElectionReply(0), 10**18)]
    assert found
    assert [each.text for each in found if not each.commands] == []


class Seen:
    """Stands in for the connection and the client: a cluster in this state."""

    def __init__(self, status: StatusReply, election: ElectionReply) -> None:
        self._status, self._election = status, election

    @property
    def fs(self) -> Seen:
        return self

    async def status(self) -> StatusReply:
        return self._status

    async def election(self) -> ElectionReply:
        return self._election

    async def repair(self) -> RepairReply:
        return RepairReply(0, False, {}, [], 0, 0, 0.0, 0.0, 0)


async def glance_of(
    directory: Path, status: StatusReply, election: ElectionReply | None = None
) -> Glance:
    module = ClusterModule(Control(ControlSettings(), directory, []))
    cast(Any, module)._connection = Seen(status, election or ElectionReply(0))
    return await module.glance(cast(Call, None))


async def test_masters_that_follow_and_are_elected_are_no_warning(tmp_path: Path) -> None:
    well = a_status(
        term=3 << 32, sequence=42, replicas_before_ack=1,
        shadows=[ShadowStatus("m:1", "following", 42, 0)],
    )  # fmt: skip
    elected = ElectionReply(0, "etcd://e:1", "m:9", 10**18)
    assert (await glance_of(tmp_path, well, elected)).warnings == []
    away = ElectionReply(0, "etcd://e:1", "m:9", 10**18, 9000, 4000, "no route")
    (warning,) = (await glance_of(tmp_path, well, away)).warnings
    assert (warning.level, warning.commands) == ("warning", ["gfs status"])


async def test_that_a_shadow_master_answers_is_told(tmp_path: Path) -> None:
    shadow = a_status(role="shadow", master="m:1")
    (told,) = (await glance_of(tmp_path, shadow)).warnings
    assert told.text.startswith("This is a shadow master; the master is at m:1.")


async def test_a_file_system_counts_once(tmp_path: Path) -> None:
    """However many disks and servers are on it; and not those of servers that are dead."""

    def on(address: str, *disks: Disk, state: str = "live") -> ServerStatus:
        return a_server(address, address=address, disks=list(disks), state=state)

    status = a_status(
        on("h:1", Disk("/a", 1000, 400, 0, device=7), Disk("/b", 2000, 500, 0, device=8)),
        on("h:2", Disk("/c", 1000, 400, 0, device=7), Disk("/x", 0, 0, 0, "failed", device=7)),
        on("i:1", Disk("/a", 1000, 300, 0, device=7)),
        # Of a release that does not report the device.
        on("j:1", Disk("/m/a", 100, 10, 0, mount="/m"), Disk("/n", 200, 20, 0, mount="/n")),
        on("j:2", Disk("/m/b", 100, 10, 0, mount="/m"), Disk("/o", 200, 20, 0)),
        on("k:1", Disk("/a", 9000, 9000, 0, device=7), state="dead"),
        on("k:2", Disk("/b", 9000, 9000, 0, device=8), state="stopped"),
        on("l:1", Disk("/a", 50, 5, 0, device=7), state="silent"),
    )
    seen = await glance_of(tmp_path, status)
    total, free = 1000 + 2000 + 1000 + 100 + 200 + 200 + 50, 400 + 500 + 300 + 10 + 20 + 20 + 5
    assert (seen.total_bytes, seen.free_bytes) == (total, free)
    assert seen.used_bytes == total - free
    points = of_master(status, await Seen(status, ElectionReply(0)).repair(), 0.1)
    assert (points["used_bytes"], points["free_bytes"]) == (total - free, free)


def test_the_module_needs_nothing_else_and_is_for_administrators_alone(tmp_path: Path) -> None:
    routes = [
        route for module, route in make_app(tmp_path, ClusterModule).table if module == "cluster"
    ]
    assert [route.need.kind for route in routes] == ["admin"] * 12

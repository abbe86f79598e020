"""``GET /sse/health``: what it says, to whom, and what it costs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from checks import bearer, ok, refused
from cloud import Cloud
from computing import computing
from limits import HANG_SECONDS

import control.health.module as health_module
from control.api import Control, ControlSettings, TooManyRequests, Workload
from control.health import Health
from control.health.figures import (
    Load,
    Meter,
    bytes_text,
    cores_text,
    cpu_ticks,
    is_here,
    memory_of,
    nodes_of,
    process_ticks,
)
from control.health.module import LOOK_SECONDS, STEP_SECONDS, STREAM_SECONDS, STREAMS_MAX
from gfs.errors import MasterUnavailable
from gfs.protocol.messages import ClusterTotals, Disk, MetadataSpace, ServerStatus, StatusReply

GIB = 1024**3


def server(number: int, address: str, *disks: tuple[int, int], state: str = "live") -> ServerStatus:
    return ServerStatus(
        id=f"s{number}",
        address=address,
        rack="",
        state=state,
        heartbeat_age_ms=0,
        chunks=0,
        disks=[Disk(f"/{number}/{n}", total, free, 0) for n, (total, free) in enumerate(disks)],
    )


def status(*servers: ServerStatus) -> StatusReply:
    totals = ClusterTotals(**dict.fromkeys(required_of_totals(), 0))
    space = MetadataSpace(disk_total_bytes=10 * GIB, disk_free_bytes=4 * GIB)
    return StatusReply(
        id=0, cluster="c", epoch=1, servers=list(servers), totals=totals, metadata=space
    )


def required_of_totals() -> list[str]:
    defaults = len(ClusterTotals.__struct_defaults__)
    fields = ClusterTotals.__struct_fields__
    return list(fields[: len(fields) - defaults])


HERE, THERE = "127.0.0.1:1", "192.0.2.7:9"


class Master:
    """Stands in for the connection and the client."""

    def __init__(self) -> None:
        self.looks = 0
        self.hangs = self.is_away = False

    @property
    def fs(self) -> Master:
        return self

    async def status(self) -> StatusReply:
        self.looks += 1
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise MasterUnavailable("away")
        return status(
            server(1, HERE, (10 * GIB, 4 * GIB)),
            server(2, HERE, (10 * GIB, 4 * GIB), (0, 0)),
            server(3, THERE, (GIB, 0), state="dead"),
        )


class House:
    """The module without a server, in virtual time."""

    def __init__(self, control: Control) -> None:
        self.health = Health(control)
        self.master = Master()
        cast(Any, self.health)._connection = self.master
        self.asked: list[str] = []
        control.workloads.append(self.workloads_of)

    async def workloads_of(self, user_id: str) -> list[Workload]:
        self.asked.append(user_id)
        await trio.lowlevel.checkpoint()
        return [Workload(name=f"box of {user_id}", namespace="n", cpu_used=0.5, memory_total=GIB)]

    async def listen(self, user_id: str, seconds: float, *, is_admin: bool = False) -> list[Any]:
        """What comes within this time, and when."""
        found = []
        with trio.move_on_after(seconds):
            async with aclosing(self.events(user_id, is_admin=is_admin)) as events:
                async for event in events:
                    found.append((trio.current_time(), said(event)))
        return found

    def events(self, user_id: str, *, is_admin: bool = False) -> AsyncGenerator[bytes, None]:
        return self.health._events(user_id, is_admin=is_admin)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    control = Control(ControlSettings(sync=False), tmp_path, [])
    with control.opened():
        made = House(control)
        made.health._measure()
        yield made


def said(events: bytes) -> dict[str, Any]:
    """The payloads, by type."""
    found = {}
    for event in events.decode().split("\n\n")[:-1]:
        assert event.startswith("data: ")
        value = json.loads(event.removeprefix("data: "))
        assert set(value) == {"type", "payload"}
        assert value["payload"]["timestamp"].endswith("Z")
        found[value["type"]] = value["payload"]
    return found


async def test_all_who_listen_share_one_look(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    heard: list[list[Any]] = []

    async def listen(user_id: str, later: float) -> None:
        await trio.sleep(later)
        heard.append(await house.listen(user_id, 10 * STEP_SECONDS - 0.1))

    async with trio.open_nursery() as nursery:
        for number, user_id in enumerate(("ada", "ada", "bob")):
            nursery.start_soon(listen, user_id, 0.01 * number)
    assert [len(each) for each in heard] == [10] * 3
    for each in heard:
        times = [at for at, _ in each]
        assert [round(b - a, 6) for a, b in pairwise(times)] == [STEP_SECONDS] * 9
    assert house.master.looks == 10
    assert {who: house.asked.count(who) for who in ("ada", "bob")} == {"ada": 10, "bob": 10}
    assert not house.health._of_users, "nothing is kept of who has left"
    await trio.sleep(100)
    assert house.master.looks == 10


async def test_the_first_event_comes_at_once(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    ((at, first),) = await house.listen("ada", 1)
    assert at == began
    assert set(first) == {"cluster", "pods"}


async def test_who_sees_what(house: House, autojump_clock: trio.testing.MockClock) -> None:
    ((_, ada),) = await house.listen("ada", 1)
    ((_, admin),) = await house.listen("root", 1, is_admin=True)
    (box,) = ada["pods"]["pods"]
    assert box == {
        "name": "box of ada", "namespace": "n", "node": "", "cpu_usage": 500_000_000,
        "cpu_capacity": 0, "memory_usage": 0, "memory_capacity": GIB, "disk_usage": 0,
        "disk_capacity": 0,
    }  # fmt: skip
    names = [pod["name"] for pod in admin["pods"]["pods"]]
    servers = [f"chunkserver-s{number}" for number in (1, 2, 3)]
    assert names == ["master", *servers, f"control-{os.getpid()}", "box of root"]
    worker = admin["pods"]["pods"][4]
    assert worker["memory_usage"] > 0
    assert worker["node"] == socket.gethostname()
    assert admin["pods"]["pods"][0]["disk_usage"] == 6 * GIB
    assert ada["cluster"] == {**admin["cluster"], "timestamp": ada["cluster"]["timestamp"]}
    here, there = ada["cluster"]["nodes"]
    assert (here["name"], there["name"]) == ("127.0.0.1", "192.0.2.7")
    assert (here["disk_usage"], here["disk_capacity"], here["disk_percent"]) == (
        12 * GIB, 20 * GIB, 60.0,
    )  # fmt: skip
    assert here["memory_percent"] > 0
    assert here["cpu_capacity"] == str(os.cpu_count())
    states = {each["type"]: each["status"] for each in here["conditions"]}
    assert states.pop("MemoryPressure") in ("True", "False")
    assert states == {"DiskPressure": "False", "NetworkUnavailable": "False"}
    assert there["cpu_usage"] == there["cpu_capacity"] == there["memory_usage"] == "0"
    assert {each["type"]: each["status"] for each in there["conditions"]} == {
        "DiskPressure": "True",
        "NetworkUnavailable": "True",
    }


@pytest.mark.parametrize("how", ["hangs", "is_away"])
async def test_while_the_master_does_not_answer_what_it_said_last_is_shown(
    house: House, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    setattr(house.master, how, True)
    ((at, first),) = await house.listen("ada", LOOK_SECONDS + 1)
    assert first["cluster"]["nodes"] == []
    assert len(first["pods"]["pods"]) == 1
    setattr(house.master, how, False)
    await trio.sleep(STEP_SECONDS)
    ((_, second),) = await house.listen("ada", 1)
    setattr(house.master, how, True)
    await trio.sleep(STEP_SECONDS)
    began = trio.current_time()
    ((at, third),) = await house.listen("ada", LOOK_SECONDS + 1)
    assert at - began <= LOOK_SECONDS
    before, now = second["cluster"]["nodes"], third["cluster"]["nodes"]
    assert [each["disk_usage"] for each in now] == [each["disk_usage"] for each in before]
    assert {"type": "NetworkUnavailable", "status": "Unknown"} in now[0]["conditions"]


async def test_a_user_has_so_many_streams_at_most(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    open_ones = [house.events("ada") for _ in range(STREAMS_MAX)]
    for each in open_ones:
        await anext(each)
    with pytest.raises(TooManyRequests, match="close one"):
        await anext(house.events("ada"))
    await anext(other := house.events("bob"))
    await open_ones.pop().aclose()
    await anext(again := house.events("ada"))
    for each in (*open_ones, other, again):
        await each.aclose()
    assert not house.health._open


async def test_a_stream_ends_so_that_it_is_opened_with_other_rights(
    house: House, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    heard = await house.listen("ada", 2 * STREAM_SECONDS)
    assert trio.current_time() - began == STREAM_SECONDS
    assert len(heard) == STREAM_SECONDS / STEP_SECONDS


async def test_a_worker_that_is_gone_is_not_shown_any_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(health_module.os, "getpid", lambda: 1)
        house.health._measure()
    assert [pod.name for pod in house.health._workers()] == ["control-1", f"control-{os.getpid()}"]
    monkeypatch.setattr(health_module, "WORKER_SECONDS", 0)
    house.health._measure()
    monkeypatch.undo()
    house.health._measure()
    assert [pod.name for pod in house.health._workers()] == [f"control-{os.getpid()}"]


def test_loads_are_the_means_since_the_last_reading(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nHugePages_Total: 0\nMemAvailable: 2 kB\n")
    (tmp_path / "self" / "statm").write_text("900 3 0 0 0 0 0\n")

    def write(user: int, idle: int, own: int) -> None:
        # user nice system idle iowait irq softirq steal guest guest_nice
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 {user} 0\ncpu0 1 1\n")
        fields = ["S", *"0" * 10, str(own), "1", *"0" * 20]
        (tmp_path / "self" / "stat").write_text(f"7 (a) b) {' '.join(fields)}\n")

    cpus = os.cpu_count() or 1
    write(1000, 5000, 10)
    meter = Meter(tmp_path)
    write(1030, 5070, 20)
    machine, own = meter.read()
    assert machine == Load(pytest.approx(0.3 * cpus), cpus, 6 * 1024, 8 * 1024)
    pages = 3 * os.sysconf("SC_PAGE_SIZE")
    assert own == Load(pytest.approx(0.1 * cpus), cpus, pages, 8 * 1024)
    machine, _ = meter.read()
    assert machine.cpu_used == 0, "no tick has passed"


def test_the_figures_of_this_machine_can_be_read() -> None:
    stat = Path("/proc/stat").read_text()
    busy, passed = cpu_ticks(stat)
    assert 0 < busy < passed
    assert process_ticks(Path("/proc/self/stat").read_text()) > 0
    memory = memory_of(Path("/proc/meminfo").read_text())
    assert 0 < memory["MemAvailable"] < memory["MemTotal"]


@pytest.mark.parametrize(
    ("cores", "text"), [(0, "0"), (4, "4"), (0.5, "500m"), (1.25, "1250m"), (0.0004, "0")]
)
def test_cores_in_words(cores: float, text: str) -> None:
    assert cores_text(cores) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (2 * GIB, "2Gi"), (3 * GIB // 2, "1536Mi"), (1, "0"), (2 * GIB + 1, "2Gi")],
)
def test_bytes_in_words(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_which_machine_is_this_one() -> None:
    assert is_here("127.0.0.1")
    assert is_here(socket.gethostname())
    assert not is_here("192.0.2.7")
    assert not is_here("elsewhere.example.org")
    found = nodes_of(status(server(1, "[::1]:9", (2, 1))), Load(), is_fresh=True)
    assert [node.name for node in found] == ["::1"]
    assert nodes_of(None, Load(), is_fresh=False) == []


async def test_the_containers_of_a_user(tmp_path: Path) -> None:
    async with computing(tmp_path) as c:
        made = await c.running(c.ada, name="mine", memory_mb=512, storage_gb=5)
        stopped = await c.running(c.ada, name="stopped")
        await c.call("POST", f"/compute/containers/{stopped['id']}/stop", c.ada)
        await c.until(c.ada, stopped["id"], "stopped")
        await c.running(c.bob, name="another's")
        (found,) = await c.module.workloads_of(c.ada["user_id"])
        assert found == Workload(
            name="mine",
            namespace=f"compute-{made['id']}",
            cpu_total=found.cpu_total,
            memory_used=128 * 1024**2,
            memory_total=512 * 1024**2,
            disk_used=round(1.2 * GIB),
            disk_total=5 * GIB,
        )
        assert found.cpu_total > 0


@pytest.mark.thin
def test_the_stream_of_a_real_cloud(cloud: Cloud) -> None:
    user, user_id = cloud.make_user()
    with cloud.client() as nobody:
        refused(nobody.get("/sse/health"), 401)
        url = f"/sse/health?token={bearer(user)}"
        with nobody.stream("GET", url, timeout=HANG_SECONDS) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            first = said(b"".join(_two_events(answer.iter_raw())))
    (node,) = first["cluster"]["nodes"]
    assert node["name"] == "127.0.0.1"
    assert node["disk_capacity"] > node["disk_usage"] > 0
    assert node["memory_usage"] != "0"
    assert first["pods"]["pods"] == []
    with cloud.admin.stream("GET", "/sse/health", timeout=HANG_SECONDS) as answer:
        pods = said(b"".join(_two_events(answer.iter_raw())))["pods"]["pods"]
    kinds = {pod["name"].partition("-")[0] for pod in pods}
    assert {"master", "chunkserver", "control"} <= kinds
    body = {"name": "t", "scopes": {f"storage.{user_id}": ["read"]}}
    made = ok(user.post("/api/tokens", json=body))
    with cloud.client(made["token"]) as token:
        refused(token.get("/sse/health"), 403)


def _two_events(pieces: Iterator[bytes]) -> Iterator[bytes]:
    count = 0
    for piece in pieces:
        yield piece
        count += piece.count(b"\n\n")
        if count >= 2:
            return

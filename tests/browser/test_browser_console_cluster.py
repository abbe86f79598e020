"""What administrators see of the cluster, in a real browser."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from chromium import Chromium
from cloud import PASSWORD, Cloud
from console_page import Console, missing
from elected import EtcdServer
from limits import HANG_SECONDS
from needs import need
from signals import send

TILE = (
    "[...document.querySelectorAll('.tile')]"
    ".find((each) => each.querySelector('h2').innerText === {!r})"
    "?.querySelector('strong').innerText"
)
#: Of a chunkserver, and of a disk of it.
STATE = (
    "[...document.querySelectorAll('.server')].find((each) =>"
    " each.querySelector('h2').innerText === {!r})?.querySelector('header').innerText ?? ''"
)
DISK = (
    "[...document.querySelectorAll('.server tbody tr')].find((each) =>"
    " each.querySelector('code').innerText === {!r})?.querySelector('.badge').innerText"
)
WORKS = r"/^\d+ under way, \d+ waiting · [\d.]+ [KM]iB.s, [\d.]+ MiB left · about \d+ (s|min)$/"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A server more than replicas."""
    need(missing())
    with Cloud(tmp_path_factory.mktemp("cloud"), chunkservers=4) as made:
        yield made.start()


@pytest.fixture
def elected(tmp_path: Path) -> Iterator[tuple[Cloud, EtcdServer]]:
    need(missing())
    etcd = EtcdServer(tmp_path / "etcd")
    # So long is there a master while etcd does not answer.
    hold = {"GFS_MASTER_HOLD_SECONDS": "600"}
    masters = ("--masters", "3", "--elect", etcd.elect)
    try:
        with Cloud(tmp_path, *masters, chunkservers=1, environment=hold) as made:
            yield made.start(), etcd
    finally:
        etcd.stop()


def limit_repair(cloud: Cloud, **settings: int) -> None:
    """-1: as it was."""
    answer = cloud.admin.put("/admin/cluster/repair", json={"settings": settings})
    answer.raise_for_status()


def upload(cloud: Cloud, name: str, data: bytes) -> None:
    query = {"name": name, "namespace": "default", "overwrite": True}
    cloud.admin.post("/storage/upload", params=query, content=data).raise_for_status()


async def keep_busy(cloud: Cloud) -> None:
    """Repair is limited while clients are served."""
    while True:
        await trio.to_thread.run_sync(upload, cloud, "busy", b"x")
        await trio.sleep(0.05)


async def wait_for_event(cloud: Cloud, kind: str) -> None:
    """Between two looks at the cluster there are some seconds."""
    with trio.fail_after(HANG_SECONDS):
        while True:
            answer = await trio.to_thread.run_sync(cloud.admin.get, "/admin/cluster/events")
            if kind in [event["kind"] for event in answer.json()["events"]]:
                return
            await trio.sleep(0.2)


async def test_a_server_dies_and_the_repair_is_seen(browser: Chromium, cloud: Cloud) -> None:
    for number in range(12):
        upload(cloud, f"{number}.bin", os.urandom(8 << 20))
    console = await Console.open(browser, cloud.url, "#/cluster")
    await console.login("admin", PASSWORD)
    await console.until(f"({TILE.format('Chunkservers')}) === '4 of 4 live'")
    await console.until(f"({TILE.format('Files')}) === '12'")
    await console.until(f"({TILE.format('Below goal')}) === '0'")
    await console.until("document.querySelectorAll('.plots canvas').length === 4")
    await console.picture("cluster")
    place = "document.querySelector('.plots').getBoundingClientRect().y + scrollY"
    before = await console.evaluate(place)

    await console.press("Pause repair")
    await console.sees("Paused: nothing is repaired")
    victim = cloud.cluster.pid("chunkserver-1")
    send(victim, signal.SIGSTOP)
    try:
        await console.until(f"({TILE.format('Chunkservers')}) === '3 of 4 live'")
        # What to do next is named, with the command.
        await console.until("document.querySelector('.warnings .copyable code')")
        await console.until(f"Number({TILE.format('Below goal')}) > 0")
        assert await console.evaluate(place) == before, "what is below it has moved"
        await console.picture("cluster-repair")
        await wait_for_event(cloud, "below_goal")
        limit_repair(cloud, bytes_per_second=1 << 20, clones_total=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_busy, cloud)
            await console.press("Go on with repair")
            lines = "[...document.querySelectorAll('.part .about')]"
            await console.until(f"{lines}.some((each) => {WORKS}.test(each.innerText))")
            await console.picture("cluster-repair-rate")
            nursery.cancel_scope.cancel()
        limit_repair(cloud, bytes_per_second=-1, clones_total=-1)
        await console.until(f"({TILE.format('Below goal')}) === '0'")
        await console.sees("Every chunk has its replicas.")
        await console.go("#/servers")
        await console.until(
            "[...document.querySelectorAll('.server')].length === 4"
            " && document.querySelector('.server .badge.bad')?.innerText === 'dead'"
        )
        await console.picture("servers")
        await console.go("#/events")
        await console.until("document.querySelector('tbody tr')")
        await console.sees("no chunk is below the replication goal any more")
        await console.sees("chunks below the replication goal")
        shown = await console.evaluate("document.querySelector('tbody').innerText")
        places = [shown.index(told) for told in ("repair goes on", "is dead", "repair is paused")]
        assert places == sorted(places), shown
        await console.picture("events")
    finally:
        send(victim, signal.SIGCONT)

    await console.go("#/servers")
    live = "[...document.querySelectorAll('.server > header .good')]"
    await console.until(f"{live}.filter((each) => each.innerText === 'live').length === 4")
    first = await console.evaluate("document.querySelector('.server h2').innerText")
    await console.act(first, "Drain…")
    await console.picture("drain")
    await console.press("Drain", "dialog")
    await console.until("document.querySelector('.server').innerText.includes('drained')")
    await console.act(first, "Stop draining")
    await console.until("!document.querySelector('.server').innerText.includes('drain')")

    await console.go("#/masters")
    await console.sees("No shadow master follows")
    await console.picture("masters")
    console.check_manners()


async def test_a_server_is_maintained_has_other_disks_and_is_forgotten(
    browser: Chromium, cloud: Cloud, tmp_path: Path
) -> None:
    console = await Console.open(browser, cloud.url, "#/servers")
    await console.login("admin", PASSWORD)
    process = cloud.cluster.ready["chunkservers"][3]
    address = process["address"]
    found = (
        "[...document.querySelectorAll('.server')]"
        f".find((each) => each.innerText.includes('{address}'))"
    )
    await console.until(found)
    server = await console.evaluate(f"{found}.querySelector('h2').innerText")
    name = f"chunkserver {server} ({address})"
    state = STATE.format(server)

    async def act(of: str, action: str) -> None:
        await console.act(of, action)

    async def told(text: str) -> None:
        await console.go("#/events")
        await console.sees(text)
        await console.go("#/servers")

    await act(server, "Maintenance for an hour")
    await console.until(f"/maintenance for (60|5\\d) min/.test({state})")
    await told(f"{name} is under maintenance")
    await act(server, "End the maintenance")
    await console.until(f"!({state}).includes('maintenance')")

    path, away = tmp_path / "disk", tmp_path / "away"
    disk = DISK.format(str(path))
    await act(server, "Add a disk…")
    await console.fill("Directory", str(path), "dialog")
    await console.picture("add-disk")
    await console.press("Add a disk", "dialog")
    await console.sees("free of")  # of a file system with other disks
    console.page.complaints.clear()  # the browser's own of the 409
    await console.press("Also on the root file system, or on one with another disk", "dialog")
    await console.press("Add a disk", "dialog")
    await console.until(f"({disk}) === 'ok'")
    await told(f"disk {path} of {name} is added (ok)")
    await act(str(path), "Drain")
    await console.until(f"({disk}) === 'draining'")
    await act(str(path), "Stop draining")
    await console.until(f"({disk}) === 'ok'")
    path.rename(away)
    await console.until(f"['failed', 'missing'].includes({disk})")
    await console.picture("servers-disk-missing")
    await act(str(path), "Try again")
    await console.sees("cannot be used")
    console.page.complaints.clear()  # the browser's own of the 409
    away.rename(path)
    await act(str(path), "Try again")
    await console.until(f"({disk}) === 'ok'")
    await act(str(path), "Drain")
    await console.until(f"({disk}) === 'draining'")
    await act(str(path), "Remove…")
    await console.press("Remove", "dialog")
    await console.until(f"({disk}) === undefined")

    send(process["pid"], signal.SIGSTOP)
    try:
        await console.until(f"({state}).includes('dead')")
        await console.go("#/cluster")
        await console.until(f"({TILE.format('Below goal')}) === '0'")
        await console.go("#/servers")
        await act(server, "Forget…")
        await console.press("Forget", "dialog")
        await console.until(
            f"({state}) === '' && document.querySelectorAll('.server').length === 3"
        )
        await told(f"{name} is forgotten")
    finally:
        send(process["pid"], signal.SIGCONT)
    console.check_manners()


@pytest.mark.extra("etcd")
async def test_another_master_takes_over_from_the_page_and_a_shadow_is_forgotten(
    browser: Chromium, elected: tuple[Cloud, EtcdServer]
) -> None:
    cloud, etcd = elected
    processes = {each["address"]: each["pid"] for each in cloud.cluster.ready["masters"]}
    console = await Console.open(browser, cloud.url, "#/masters")
    await console.login("admin", PASSWORD)
    good = "[...document.querySelectorAll('tbody .badge.good')].map((each) => each.innerText)"
    await console.until(f"{good}.join() === 'following,following'")
    fact = (
        "[...document.querySelectorAll('dt')].find((each) => each.innerText === {!r})"
        "?.nextElementSibling.innerText.trim()"
    )
    term = int(await console.evaluate(fact.format("Term")))
    target = await console.evaluate("document.querySelector('tbody th').innerText")
    await console.picture("masters-elected")
    await console.press("Fail over to this one", "tbody tr:first-child")
    await console.sees("Let another master take over?")
    await console.picture("failover")
    await console.press("Fail over", "dialog")
    await console.sees(f"{target} is the master now")
    for name in ("Master", "Holds"):
        await console.until(f"({fact.format(name)}) === {target!r}")
    assert int(await console.evaluate(fact.format("Term"))) > term
    await console.until(f"{good}.join() === 'following,following'")
    await console.go("#/events")
    await console.sees("another master serves, in term")

    await console.go("#/masters")
    await console.until("document.querySelector('tbody th')")
    gone = await console.evaluate("document.querySelector('tbody th').innerText")
    send(processes[gone], signal.SIGSTOP)
    try:
        await console.until("document.querySelector('tbody .badge.bad')?.innerText === 'away'")
        await console.press("Forget…", "tbody tr:has(.badge.bad)")
        await console.press("Forget", "dialog")
        await console.until("document.querySelectorAll('tbody tr').length === 1")
        etcd.freeze()
        await console.sees("has not answered for")
        await console.picture("masters-engine-away")
    finally:
        etcd.thaw()
        send(processes[gone], signal.SIGCONT)
    await console.misses("has not answered for")
    console.page.complaints.clear()  # the browser's own of each 503

"""What users may have, on real processes: several workers, many clients, and kills."""

from __future__ import annotations

import contextlib
import json
import random
import re
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import trio
from checks import PLAIN, bearer, children, ok, refused, unique, wait_for
from cloud import Cloud
from limits import HANG_SECONDS
from raw import FORM_TYPE, Connection, head
from signals import send

import gfs
from control.storage.rows import ROOT

pytestmark = pytest.mark.real

KIB = 1024
MIB = 1024 * KIB
WORKERS = 3
KILLS = 10


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    made = Cloud(
        tmp_path_factory.mktemp("several"),
        chunkservers=2,
        environment={"GFS_CONTROL_WORKERS": str(WORKERS), "GFS_MASTER_REPLICATION": "2"},
    )
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
def user(several: Cloud) -> tuple[httpx.Client, str]:
    return several.make_user()


def space_of(client: httpx.Client) -> str:
    name = unique("quota")
    ok(client.post("/storage/namespaces", json={"name": name}))
    return name


def allow(cloud: Cloud, user_id: str, **limits: int | None) -> Any:
    return ok(cloud.admin.put("/admin/quotas", params={"id": user_id}, json=limits))


def used(client: httpx.Client) -> tuple[int, int]:
    quota = ok(client.get("/api/quota"))
    return quota["files"]["used"], quota["bytes"]["used"]


def stored(client: httpx.Client, space: str) -> tuple[int, int]:
    files = ok(client.get("/storage/files", params={"namespace": space}))
    return len(files), sum(file["size"] for file in files)


def put(client: httpx.Client, space: str, path: str, size: int, **query: str) -> httpx.Response:
    return client.put(f"/storage/{space}/{path}", content=bytes(size), params=query)


# --- many at once -----------------------------------------------------------------------


async def store(url: str, token: str, kind: str, space: str, size: int) -> httpx.Response:
    """An upload over a connection of its own, so that all workers get some."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 16 * KIB):
            yield bytes(min(16 * KIB, size - start))

    headers = {"Authorization": f"Bearer {token}"}
    path = unique("f")
    async with httpx.AsyncClient(
        base_url=url, timeout=HANG_SECONDS, headers=headers, **PLAIN
    ) as own:
        if kind == "form":
            files = {"file": (path, bytes(size))}
            return await own.post("/storage/upload", params={"namespace": space}, files=files)
        content = bytes(size) if kind == "raw" else pieces()
        return await own.put(f"/storage/{space}/{path}", content=content)


async def send_many(
    cloud: Cloud, client: httpx.Client, kinds: list[str], space: str, sizes: list[int]
) -> Counter[int]:
    statuses: Counter[int] = Counter()
    token, rng = bearer(client), random.Random(7)

    async def one(kind: str, size: int) -> None:
        answer = await store(cloud.url, token, kind, space, size)
        while answer.status_code == 429:
            await trio.sleep(float(answer.headers["Retry-After"]))
            answer = await store(cloud.url, token, kind, space, size)
        statuses[answer.status_code] += 1
        if answer.status_code != 200:
            refused(answer, 507, "quota")

    async with trio.open_nursery() as nursery:
        for size in sizes:
            nursery.start_soon(one, rng.choice(kinds), size)
    return statuses


@pytest.mark.parametrize("kinds", [["raw"], ["form"], ["raw", "form", "chunked"]], ids=len)
async def test_uploads_at_once_fill_the_quota_and_no_more(
    several: Cloud, user: tuple[httpx.Client, str], kinds: list[str]
) -> None:
    client, user_id = user
    space = space_of(client)
    limit = 4 * MIB
    allow(several, user_id, bytes=limit)
    rng = random.Random(3)
    statuses = await send_many(
        several, client, kinds, space, [rng.randrange(1, 96 * KIB) for _ in range(150)]
    )
    assert statuses[507] > 10
    # What was refused while others were under way may fit by now: one after the other.
    for size in [64 * KIB, 16 * KIB, 4 * KIB, KIB] * 8:
        (await trio.to_thread.run_sync(put, client, space, unique("rest"), size)).read()
    there = stored(client, space)
    assert used(client) == there
    assert limit * 0.99 <= there[1] <= limit
    answer = refused(put(client, space, "more", 96 * KIB), 507)
    assert str(limit) in answer
    assert str(there[1]) in answer


async def test_files_at_once_are_no_more_than_the_quota(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    space = space_of(client)
    allow(several, user_id, files=40)
    statuses = await send_many(several, client, ["raw", "chunked"], space, [10] * 100)
    assert statuses == {200: 40, 507: 60}
    assert used(client) == stored(client, space) == (40, 400)


async def test_storage_namespaces_at_once_are_no_more_than_the_quota(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    allow(several, user_id, namespaces=5)
    statuses: Counter[int] = Counter()
    headers = {"Authorization": f"Bearer {bearer(client)}"}

    async def make() -> None:
        async with httpx.AsyncClient(base_url=several.url, timeout=HANG_SECONDS, **PLAIN) as own:
            body = {"name": unique("quota")}
            answer = await own.post("/storage/namespaces", json=body, headers=headers)
        statuses[answer.status_code] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(make)
    assert statuses == {200: 5, 507: 25}
    assert ok(client.get("/api/quota"))["namespaces"] == {"used": 5, "limit": 5}


# --- one after the other ----------------------------------------------------------------


def test_room_comes_back(several: Cloud, user: tuple[httpx.Client, str]) -> None:
    client, user_id = user
    space, other = space_of(client), space_of(client)
    allow(several, user_id, bytes=100, files=3)
    for path, size in (("a", 60), ("b", 20)):
        ok(put(client, space, path, size))
    ok(put(client, other, "c", 20))
    refused(put(client, space, "d", 0), 507, "files")
    # Replaced, a file gives its room to the new one, even if both together have none.
    ok(put(client, space, "a", 55, overwrite="true"))
    assert used(client) == (3, 95)
    refused(put(client, space, "a", 61, overwrite="true"), 507, "bytes")
    ok(put(client, space, "a", 60, overwrite="true"))
    assert used(client) == (3, 100)
    refused(put(client, space, "a", 101, overwrite="true"), 413, "101", "100")
    # Sent in pieces of which nobody said how many there are.
    pieces = iter([bytes(30), bytes(30), bytes(1)])
    refused(client.put(f"/storage/{space}/a", content=pieces, params={"overwrite": "true"}), 507)
    ok(client.delete(f"/storage/{space}/b"))
    assert used(client) == (2, 80)
    ok(client.delete(f"/storage/namespaces/{space}"))
    assert used(client) == (1, 20)
    ok(put(client, other, "d", 80))
    assert used(client) == (2, 100)
    # A form that replaces all that there is may be as long as the quota.
    ok(client.delete(f"/storage/{other}/c"))
    form = {"file": ("d", bytes(100))}
    query = {"namespace": other, "overwrite": "true"}
    sizes = {"X-File-Size": "100"}
    ok(client.post("/storage/upload", params=query, files=form, headers=sizes))
    assert used(client) == (1, 100)


def test_only_one_upload_at_a_time_has_the_room_of_the_file_that_it_replaces(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    space = space_of(client)
    allow(several, user_id, bytes=80)
    ok(put(client, space, "f", 60))
    target = f"/storage/{space}/f?overwrite=true"
    headers = {"Authorization": f"Bearer {bearer(client)}", "Content-Length": "60"}
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(Connection(several.url)) for _ in range(8)]

        def all_but_one_were_refused() -> bool:
            return len(select.select([u.socket for u in uploads], [], [], 0.1)[0]) == 7

        for upload in uploads:
            upload.send(head("PUT", target, upload.host, headers) + bytes(50))
        wait_for(all_but_one_were_refused, "refusal of seven")
        answered = select.select([u.socket for u in uploads], [], [], 0)[0]
        [last] = [upload for upload in uploads if upload.socket not in answered]
        for upload in uploads:
            if upload is not last:
                refused(upload.answer(), 507, "replaces")
        # Its file deleted, what was sent instead has no room but that of its own.
        ok(client.delete(f"/storage/{space}/f"))
        refused(put(client, space, "g", 60), 507, "reserved")
        last.send(bytes(10))
        refused(last.answer(), 409)
    ok(put(client, space, "g", 60))
    assert used(client) == stored(client, space) == (1, 60)


def test_a_file_counts_for_who_uploaded_it(several: Cloud, user: tuple[httpx.Client, str]) -> None:
    client, user_id = user
    path = unique("mine")
    ok(put(client, "default", path, 70))
    assert used(client) == (1, 70)
    before = used(several.admin)
    # An administrator may replace it in default, and then it is his.
    ok(put(several.admin, "default", path, 50, overwrite="true"))
    assert used(client) == (0, 0)
    assert used(several.admin) == (before[0] + 1, before[1] + 50)
    ok(several.admin.delete(f"/storage/default/{path}"))
    assert used(several.admin) == before
    assert ok(several.admin.get("/admin/quotas", params={"id": user_id}))["bytes"]["used"] == 0


def test_what_is_too_long_is_refused_before_it_is_sent(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    space = space_of(client)
    allow(several, user_id, bytes=MIB)
    ok(put(client, space, "there", MIB // 2))

    headers = {"Authorization": f"Bearer {bearer(client)}"}
    form = {**headers, "Content-Type": FORM_TYPE}
    asked = f"/storage/upload?namespace={space}"
    for size, status in ((MIB // 2 + 1, 507), (2 * MIB, 413)):
        for target, lengths in (
            (f"{asked}&name=f", {**headers, "Content-Length": str(size)}),
            (asked, {**form, "Content-Length": str(size + 200), "X-File-Size": str(size)}),
            # Of a form without more, the file may be a little shorter than the body.
            (asked, {**form, "Content-Length": str(size + 64 * KIB)}),
        ):
            with Connection(several.url) as connection:
                connection.send(head("POST", target, connection.host, lengths))
                refused(connection.answer(), status, "bytes")
    assert used(client) == (1, MIB // 2)


def test_a_deleted_user_has_no_quota_and_his_files_count_for_nobody(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    path = unique("left")
    ok(put(client, "default", path, 70))
    allow(several, user_id, files=7)
    before = used(several.admin)
    ok(several.admin.delete("/admin/users", params={"id": user_id}))
    refused(several.admin.get("/admin/quotas", params={"id": user_id}), 404)
    assert used(several.admin) == before
    ok(several.admin.delete(f"/storage/default/{path}"))
    assert used(several.admin) == before


def test_lowered_limits_take_nothing_away(several: Cloud, user: tuple[httpx.Client, str]) -> None:
    client, user_id = user
    space = space_of(client)
    ok(put(client, space, "f", 1000))
    changed = allow(several, user_id, bytes=10, files=0)
    assert (changed["bytes"], changed["changed"]) == (
        {"used": 1000, "limit": 10},
        ["bytes", "files"],
    )
    assert stored(client, space) == (1, 1000)
    refused(put(client, space, "g", 1), 507)
    ok(put(client, space, "f", 10, overwrite="true"))
    allow(several, user_id, bytes=None)
    refused(put(client, space, "g", 1), (413, 507))
    ok(put(client, space, "f", 20, overwrite="true"))
    assert allow(several, user_id, bytes=None, files=None)["changed"] == []
    ok(put(client, space, "g", 1))


def test_the_trash_has_no_more_of_a_user_than_his_quota(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    space, other, third = (space_of(client) for _ in range(3))
    allow(several, user_id, bytes=100)

    async def trash() -> list[str]:
        async with gfs.connect(state=several.cluster.state) as fs:
            found = [e.path async for e in fs.trash(ROOT)]
        return sorted(re.sub(r"\.[0-9a-f]{8}", "", path.removeprefix(ROOT)) for path in found)

    for name in ("a", "b", "c"):
        ok(put(client, space, f"folder/{name}", 45))
        ok(client.delete(f"/storage/{space}/folder/{name}"))
    kept = {f"/{space}/folder/a", f"/{space}/folder/b"}
    # The third is gone for good, and so are folders, which nobody would undelete.
    assert {path for path in trio.run(trash) if f"/{space}/" in path} == kept
    for name, size in ((other, 11), (third, 10)):
        ok(put(client, name, "f", size))
        ok(client.delete(f"/storage/namespaces/{name}"))
    found = trio.run(trash)
    assert f"/{other}" not in found
    assert f"/{third}" in found


def test_what_is_replaced_takes_no_more_of_the_disks_than_the_quota(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    space, size = space_of(client), 65 * MIB  # of two chunks, which are kept for ten minutes
    allow(several, user_id, bytes=100 * MIB)
    for _ in range(4):
        ok(put(client, space, "f", size, overwrite="true"))
    assert used(client) == (1, size)

    async def replaced() -> int:
        async with gfs.connect(state=several.cluster.state) as fs:
            return int((await fs.status()).totals.replaced_bytes)

    wait_for(lambda: size <= trio.run(replaced) < 2 * size, "release of what was replaced since")


# --- the command line -------------------------------------------------------------------


def test_an_administrator_sets_limits_by_hand(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    name = ok(client.get("/api/session"))["username"]
    several.cluster.gfs("control", "quota", name, "--bytes", "2K", "--files", "7")
    shown = several.cluster.gfs("control", "quota", name, "--files", "default").stdout.decode()
    assert ["bytes", "0", "of", "2048"] in [line.split() for line in shown.splitlines()]
    assert ["files", "0", "of", "1000000", "(default)"] in [
        line.split() for line in shown.splitlines()
    ]
    assert ok(client.get("/api/quota"))["bytes"]["limit"] == 2048
    found = ok(several.admin.get("/admin/quotas", params={"id": user_id}))
    assert (found["changed"], found["username"]) == (["bytes"], name)
    refused(put(client, space_of(client), "f", 2049), 413, "2049", "2048")
    several.cluster.gfs("control", "quota", "nobody", code=2)
    several.cluster.gfs("control", "quota", name, "--bytes", "much", code=2)


def test_a_recount_by_hand_finds_what_others_did(
    several: Cloud, user: tuple[httpx.Client, str]
) -> None:
    client, user_id = user
    space = space_of(client)
    for path in ("a", "b"):
        ok(put(client, space, path, 10))

    async def behind_its_back() -> None:
        async with gfs.connect(state=several.cluster.state) as fs:
            [directory] = [e.path async for e in fs.scan(ROOT) if f"/{space}." in e.path]
            await fs.delete(f"{directory}/a")
            await fs.put(bytes(500), f"{directory}/c", attributes={"owner": user_id})
            await fs.put(bytes(700), f"{directory}/d")
            await fs.put(bytes(900), f"{directory}/e", attributes={"owner": "x" * 500})
            # As a process leaves them that is killed while it deletes.
            await fs.mkdir(f"{directory}/empty/in/here", parents=True)
            await fs.put(b"", f"{directory}/not/empty/f")

    trio.run(behind_its_back)
    assert used(client) == (2, 20)
    name = ok(client.get("/api/session"))["username"]
    reported = several.cluster.gfs("control", "recount").stdout.decode()
    assert f"{name}: 2 files, 510 bytes (were 2 and 20)" in reported
    assert used(client) == (2, 510)
    [count] = [s["count"] for s in ok(client.get("/storage/namespaces")) if s["name"] == space]
    assert count == 5

    async def folders() -> list[str]:
        async with gfs.connect(state=several.cluster.state) as fs:
            return [e.path async for e in fs.walk(ROOT) if e.kind == "directory"]

    below = [path.partition(f"/{space}.")[2].partition("/")[2] for path in trio.run(folders)]
    assert [path for path in below if path] == ["not", "not/empty"]
    assert "nothing has changed" in several.cluster.gfs("control", "recount").stdout.decode()


# --- kills ------------------------------------------------------------------------------


def truth(cloud: Cloud) -> dict[str, tuple[int, int]]:
    """By uploader, what a walk through the file system finds."""

    async def walk() -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        async with gfs.connect(state=cloud.cluster.state) as fs:
            async for entry in fs.walk(ROOT):
                if entry.kind == "file":
                    owner = entry.attributes.get("owner", "")
                    files, length = found.get(owner, (0, 0))
                    found[owner] = files + 1, length + entry.length
        return found

    return trio.run(walk)


class Storm:
    """Clients that upload, replace and delete, whatever happens to their requests."""

    def __init__(self, cloud: Cloud, client: httpx.Client, spaces: list[str], seed: int) -> None:
        self.cloud = cloud
        self.token = bearer(client)
        self.spaces = spaces
        self.name = unique("storm")
        self.rng = random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self._over = threading.Event()

    def run(self, clients: int, kill: Callable[[], object]) -> None:
        """``kill`` is called meanwhile."""
        with ThreadPoolExecutor(clients) as pool:
            tasks = [pool.submit(self._work) for _ in range(clients)]
            try:
                kill()
            finally:
                self._over.set()
            for task in tasks:
                task.result()

    def _work(self) -> None:
        while not self._over.is_set():
            with self.cloud.client(self.token) as own:
                try:
                    while not self._over.is_set():
                        self._act(own)
                except httpx.TransportError as error:
                    self.statuses[type(error).__name__] += 1
                    time.sleep(0.02)

    def _act(self, own: httpx.Client) -> None:
        path = f"/storage/{self.rng.choice(self.spaces)}/{self.name}-{self.rng.randrange(40)}"
        if self.rng.random() < 0.3:
            answer = own.delete(path)
        else:
            content = bytes(self.rng.randrange(4 * KIB))
            answer = own.put(path, content=content, params={"overwrite": "true"})
        assert answer.status_code in (200, 404, 409, 503, 507), answer.text
        self.statuses[str(answer.status_code)] += 1

    def wait_for_more(self, count: int) -> None:
        before = self.statuses["200"]
        wait_for(lambda: self.statuses["200"] >= before + count, "more that was done")

    def kill_workers(self) -> None:
        for _ in range(KILLS):
            self.wait_for_more(5)
            time.sleep(self.rng.uniform(0, 0.3))
            pids = wait_for(lambda: children(self.cloud.cluster.pid("control")), "worker")
            with contextlib.suppress(ProcessLookupError):
                send(self.rng.choice(pids), signal.SIGKILL)


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_storm_of_kills_all_is_counted_again(
    several: Cloud, user: tuple[httpx.Client, str], seed: int
) -> None:
    client, user_id = user
    spaces = ["default", space_of(client), space_of(client)]
    token = bearer(client)
    storm = Storm(several, client, spaces, seed)
    storm.run(16, storm.kill_workers)
    several.forget()

    def is_right() -> bool:
        with several.client(token) as own:
            try:
                return used(own) == truth(several).get(user_id, (0, 0))
            except httpx.TransportError:
                return False

    try:
        wait_for(is_right, "right count")
        # And nothing stays reserved: all of the rest can be had.
        with several.client(token) as own:
            files, length = used(own)
            allow(several, user_id, bytes=length + 1000, files=files + 1)
            wait_for(
                lambda: put(own, spaces[1], "rest", 1000).status_code == 200,
                "room for the rest",
            )
            assert used(own) == truth(several)[user_id] == (files + 1, length + 1000)
    except AssertionError as error:
        error.add_note(f"seed {seed}: {json.dumps(storm.statuses)}")
        raise


def test_what_a_killed_cluster_and_another_boot_leave_is_counted(
    make_cloud: Callable[..., Cloud],
) -> None:
    cloud = make_cloud(chunkservers=1).start()
    client, user_id = cloud.make_user("ada")
    space = space_of(client)
    storm = Storm(cloud, client, ["default", space], 3)

    def kill_all() -> None:
        storm.wait_for_more(40)
        cloud.cluster.kill_all()

    storm.run(4, kill_all)
    cloud.stop()
    cloud.cluster.ready_file.unlink()

    cloud.start()
    wait_for(lambda: used(cloud.login("ada")) == truth(cloud)[user_id], "right count")
    there = truth(cloud)[user_id]
    cloud.stop()
    # What a machine that is booted again finds.
    [boot] = (cloud.cluster.state / "control" / "usage").iterdir()
    boot.rename(boot.with_name("another-boot"))
    cloud.start()
    assert used(cloud.login("ada")) == there
    assert [boot] == list(boot.parent.iterdir())

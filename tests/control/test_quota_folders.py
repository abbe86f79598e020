"""Files in many folders count as several, so the quota of files bounds the folders as well."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from checks import bearer, make_namespace, ok, put, refused, wait_for
from cloud import Cloud
from storage_people import at, post, used
from test_storage_versions import Place
from test_storage_versions import place as place

import gfs
from control.quota import usage
from control.quota.usage import FOLDERS_PER_FILE, USAGE, Change, State, Tally, weight
from control.records import Records, Schema
from control.storage.accounting import weight_at, weight_in_trash
from control.storage.names import SEGMENTS_MAX
from control.storage.rows import ROOT
from control.storage.versions import version_weight

FILES = 20


def deep(name: str, folders: int) -> str:
    """The path of a file in folders that no other file of another name is in."""
    return "/".join([f"{name}{n}" for n in range(folders)] + ["f"])


def test_a_file_and_its_folders_are_at_most_so_many_rows() -> None:
    for folders in range(SEGMENTS_MAX):
        assert folders + 1 <= FOLDERS_PER_FILE * weight(folders)
        path = f"{ROOT}/space.01234567/{deep('d', folders)}"
        assert weight_at(path) == weight(folders)
        # The folder that is deleted is in the trash as well, what it was in is not.
        assert weight_in_trash(path, path.rpartition("/")[0]) == weight(1)
        assert weight_in_trash(path, path) == 1
    assert [weight(n) for n in (0, 7, 8, 15, 16, 63)] == [1, 1, 2, 2, 3, 8]


@pytest.mark.parametrize("came", [True, False])
async def test_a_recount_counts_what_comes_and_goes_meanwhile_by_its_folders(
    tmp_path: Path, came: bool
) -> None:
    records = Records.open(tmp_path, [USAGE], sync=False)

    def decide(txn: Any) -> None:
        usage.add_space(txn, "s", is_counted=True)
        usage.record(txn, "p.1", "s", [Change(1, "ada", 5, True, 8)], lambda: True)
        begun, tally = usage.begin_recount(txn, "s"), Tally()
        change = Change(2, "ada", 7, True, 3) if came else Change(1, "ada", 5, False, 8)
        tally.add(1, "ada", 5, 8)
        usage.record(txn, "p.2", "s", [change], lambda: True)
        for _ in range(2):  # what was recorded, and what was counted
            found = usage.used_by(txn, "ada")
            assert (found.files, found.bytes) == ((11, 12) if came else (0, 0))
            assert usage.count(txn, "s", "s").files == (2 if came else 0)
            usage.end_recount(txn, "s", begun, tally, lambda: True)
            tally = Tally()
            for inode, length, files in [(1, 5, 8), (2, 7, 3)] if came else []:
                tally.add(inode, "ada", length, files)
        usage.drop_space(txn, "s")
        assert list(usage.counts.scan(txn)) == []

    await records.write(decide)
    records.close()


async def test_counts_of_an_earlier_release_are_counted_again(tmp_path: Path) -> None:
    earlier = Schema("usage", 1, USAGE.tables)
    records = Records.open(tmp_path, [earlier], sync=False)
    await records.write(lambda txn: usage.states.put(txn, State("s", 0)))
    records.close()
    for due in (["s"], []):
        records = Records.open(tmp_path, [USAGE], sync=False)
        with records.read() as txn:
            assert usage.due(txn) == due
        await records.write(
            lambda txn: usage.end_recount(
                txn, "s", usage.begin_recount(txn, "s"), Tally(), lambda: True
            )
        )
        records.close()


# --- over REST ----------------------------------------------------------------------------


@pytest.fixture
def few(cloud: Cloud) -> tuple[httpx.Client, str]:
    """A user who may have FILES files, and a storage namespace."""
    client, user_id = cloud.make_user()
    ok(cloud.admin.put("/admin/quotas", params={"id": user_id}, json={"files": FILES}))
    return client, make_namespace(client, "folders")


def rows(cloud: Cloud, space: str) -> int:
    """What the master has of the storage namespace: files and folders."""

    async def ask() -> int:
        async with gfs.connect(state=cloud.cluster.state) as fs:
            [one] = [each async for each in fs.scan(ROOT) if f"/{space}." in each.path]
            found = await fs.disk_usage(one.path)
        return found.files + found.directories

    return trio.run(ask)


def test_the_quota_of_files_bounds_the_folders(cloud: Cloud, few: tuple[httpx.Client, str]) -> None:
    client, space = few
    for number in range(FILES):
        answer = client.put(f"/storage/{space}/{deep(f'{number}-', 63)}", content=b"")
        if answer.status_code != 200:
            refused(answer, 507, "your quota for files is 20, of which 16 are used", "8 more")
            break
    assert used(client) == (16, 0)
    assert rows(cloud, space) == 2 * 64
    # What is not as deep still fits.
    put(client, space, deep("x", 31), b"")
    refused(client.put(f"/storage/{space}/one", content=b""), 507, "quota")
    # A list shows as many files as there are.
    [info] = [each for each in ok(client.get("/storage/namespaces")) if each["name"] == space]
    assert info["count"] == 3


def test_it_counts_the_same_whatever_is_done_to_trees(
    cloud: Cloud, few: tuple[httpx.Client, str]
) -> None:
    client, space = few
    put(client, space, "a/b/f", b"1")
    put(client, space, "a/g", b"2")
    assert used(client) == (2, 2)
    post(client, space, "move", source="a", target=deep("d", 14))  # in 15 and in 16 folders
    assert used(client) == (2 + 3, 2)
    top = deep("d", 14)
    body = {"source": top, "target": deep("e", 62)}
    refused(client.post(at(space, "move"), json=body), 400, "too long")
    post(client, space, "copy", source=top, target=deep("e", 40))
    assert used(client) == (5 + 6 + 6, 4)
    # There is no room for it to count as any more.
    body = {"source": top, "target": deep("e", 50)}
    refused(client.post(at(space, "move"), json=body), 507, "quota")
    assert used(client) == (17, 4)
    ok(client.delete(at(space, "folder"), params={"path": "e0"}))
    assert used(client) == (5, 2)
    post(client, space, "undelete", path="e0")
    assert used(client) == (17, 4)
    ok(client.delete(at(space, "folder"), params={"path": "e0"}))
    ok(client.post(at(space, "snapshots"), json={"name": "s", "folder": "d0"}))
    before = used(client)
    assert before[0] > 5 + 4
    assert "nothing has changed" in cloud.cluster.gfs("control", "recount").stdout.decode()
    assert used(client) == before
    post(client, space, "move", source=top, target="a")
    assert used(client) == (before[0] - 3, 4)
    ok(client.delete(at(space, "folder"), params={"path": "a"}))
    [one] = ok(client.get(at(space, "snapshots")))["snapshots"]
    ok(client.delete(at(space, f"snapshots/{one['id']}")))
    assert used(client) == (0, 0)
    assert rows(cloud, space) == 0
    assert "nothing has changed" in cloud.cluster.gfs("control", "recount").stdout.decode()


def test_uploads_into_a_folder_that_moves_are_counted_where_they_are(
    cloud: Cloud, few: tuple[httpx.Client, str]
) -> None:
    client, space = few
    places = ["a", deep("d", 20)]
    put(client, space, "a/0", b"")
    with cloud.client(bearer(client)) as other:
        is_over = threading.Event()

        def upload() -> None:
            for number in range(1, 6):
                other.put(f"/storage/{space}/{places[number % 2]}/{number}", content=b"")
            is_over.set()

        thread = threading.Thread(target=upload)
        thread.start()
        while not is_over.is_set():
            source = "a" if "a" in _top(client, space) else deep("d", 20)
            target = places[source == "a"]
            client.post(at(space, "move"), json={"source": source, "target": target})
        thread.join()

    def is_right() -> bool:
        files = ok(client.get("/storage/files", params={"namespace": space}))
        expected = sum(weight(each["path"].count("/")) for each in files)
        return used(client)[0] == expected

    wait_for(is_right, "the right count")


async def test_versions_count_where_they_are(place: Place) -> None:
    server, ledger = place.server, place.storage.control.ledger

    def used_now() -> int:
        with ledger.read() as txn:
            return usage.used_by(txn, place.user_id).files

    async def check() -> None:
        walk = place.other.walk(place.space.directory)
        files = [each async for each in walk if each.kind == "file"]
        assert used_now() == sum(weight_at(each.path) for each in files)

    # In more folders than its versions, and in fewer.
    for key in (deep("d", 40), "/".join(["x" * 240] * 3)):
        for _ in range(2):
            answer = await place.put(f"{key}?overwrite=true", b"x")
            assert answer.status_code == 200, answer.text
            await check()
        await place.versions.delete(place.space, key, place.user_id, lambda _: None)
        await check()
        assert await place.versions.undelete(place.space, key) is not None
        await check()
        assert version_weight(place.space, key) != weight(key.count("/"))
        # A move that has no room for the marker changes nothing.
        about = {"source": key, "target": f"{key}-moved"}
        query = f"/admin/quotas?id={place.user_id}"
        before = used_now()
        for more, status in ((0, 507), (100, 200)):
            await server.call("PUT", query, server.admin, files=before + more)
            answer = await server.call("POST", at(place.space.name, "move"), place.who, **about)
            assert answer.status_code == status, answer.text
            await check()


def _top(client: httpx.Client, space: str) -> list[str]:
    return [each["name"] for each in ok(client.get(at(space, "entries")))["entries"]]

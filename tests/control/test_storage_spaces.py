"""Storage namespaces on a real cluster: what crashes and races leave."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from auth_server import CheapAuth, Server, running
from harness import Cluster
from msgspec.structs import replace

import control.storage.listing
import control.storage.module
import control.storage.spaces
import gfs
from control.quota.usage import count
from control.records import RecordsFailed
from control.storage import Storage
from control.storage.accounting import Recounts
from control.storage.rows import ROOT, Space, spaces
from control.storage.transfer.progress import State
from gfs.client import Client, Entry
from gfs.cluster.failures import leaves
from gfs.errors import DiskFailed

Login = dict[str, Any]
#: Another than the default.
TRASH_SECONDS = 7200


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.environment["GFS_MASTER_TRASH_SECONDS"] = str(TRASH_SECONDS)
    try:
        yield made.start()
    finally:
        made.stop()


@contextlib.asynccontextmanager
async def serving(cluster: Cluster) -> AsyncIterator[tuple[Server, Storage, Client]]:
    """The API in this process, its module, and a client of the file system beside it."""
    async with running(cluster.state, modules=(CheapAuth, Storage)) as server:
        storage = server.app.modules[1]
        assert isinstance(storage, Storage)
        async with gfs.connect(state=cluster.state) as fs:
            yield server, storage, fs


async def user_of(server: Server) -> Login:
    return await server.new_user(f"user-{secrets.token_hex(6)}")


async def make(server: Server, who: Login, visibility: int = 0) -> str:
    name = f"space-{secrets.token_hex(6)}"
    body = {"name": name, "visibility": visibility}
    ok(await server.call("POST", "/storage/namespaces", who, **body))
    return name


async def upload(
    server: Server, who: Login, path: str, data: bytes | AsyncIterator[bytes], **query: str
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {who['token']}"}
    return await server.http.put(f"/storage/{path}", params=query, content=data, headers=headers)


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}


def row_of(storage: Storage, name: str) -> Space | None:
    with storage.control.records.read() as txn:
        return spaces.get(txn, name)


async def exists(fs: Client, path: str) -> bool:
    return await fs.exists(path)


@contextlib.asynccontextmanager
async def halfway(
    server: Server, storage: Storage, who: Login, path: str, data: bytes, **query: str
) -> AsyncIterator[list[httpx.Response]]:
    """An upload that has passed all checks and waits for the end of the block, which
    gets its answer in the list."""
    go_on = trio.Event()
    transfer = secrets.token_hex(8)

    async def body() -> AsyncIterator[bytes]:
        yield data[:1]
        await go_on.wait()
        yield data[1:]

    async def send() -> None:
        answers.append(await upload(server, who, path, body(), id=transfer, **query))

    def taken() -> bool:
        state = storage.control.volatile.get("transfer", transfer, State)
        return state is not None and state.bytes > 0

    answers: list[httpx.Response] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while not taken():  # noqa: ASYNC110 - what is waited for tells nobody
            await trio.sleep(0.01)
        yield answers
        go_on.set()


# --- crashes ------------------------------------------------------------------------------


async def test_the_master_tells_how_long_the_trash_stays(cluster: Cluster) -> None:
    async with serving(cluster) as (_, storage, _fs):
        assert storage.cluster.trash_seconds == TRASH_SECONDS


async def test_no_folder_stays_when_the_client_leaves_during_a_deletion(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        ok(await upload(server, user, f"{name}/a/b/f", b"x"))
        space = row_of(storage, name)
        assert space is not None
        entry = await fs.stat(f"{space.directory}/a/b/f")
        real = Client.delete

        async def delete(self: Client, path: str, **options: Any) -> None:
            await real(self, path, **options)
            scope.cancel()

        monkeypatch.setattr(Client, "delete", delete)
        with trio.CancelScope() as scope:
            await storage._delete_file(space, "a/b/f", entry)
        assert await fs.list(space.directory) == []


async def test_what_cannot_be_counted_keeps_nothing_else_from_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        rows = [row_of(storage, await make(server, user)) for _ in range(3)]
        made = [row for row in rows if row is not None]
        for row in made:
            await fs.put(b"x", f"{row.directory}/f")
        real = Client.walk

        async def walk(self: Client, path: str = "/") -> AsyncGenerator[Entry, None]:
            if path == made[1].directory:
                raise DiskFailed("a disk failed")
            async for entry in real(self, path):
                yield entry

        monkeypatch.setattr(Client, "walk", walk)
        recounts = Recounts(storage.control.records, storage.control.ledger)
        assert not await recounts.count(fs, [row.id for row in made])
        with storage.control.ledger.read() as txn:
            assert [count(txn, "s", row.id).files for row in made] == [1, 0, 1]


async def test_a_row_without_its_directory_gets_one(cluster: Cluster) -> None:
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        name = f"space-{secrets.token_hex(6)}"
        row = Space(name, secrets.token_hex(4), user["user_id"], 0, False, 1)
        await storage.control.records.write(lambda txn: spaces.insert(txn, row))
        assert ok(await server.call("GET", f"/storage/files?namespace={name}", user)) == []
        refused(await upload(server, user, f"{name}/f", b"x"), 503)
        await storage.spaces.repair()
        ok(await upload(server, user, f"{name}/f", b"x"))


async def test_a_deletion_that_was_broken_off_is_finished(cluster: Cluster) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        ok(await upload(server, user, f"{name}/a/b", b"x"))
        row = row_of(storage, name)
        assert row is not None
        marked = replace(row, deleting=True)
        await storage.control.records.write(lambda txn: spaces.put(txn, marked))
        # Gone for everybody already, but the name is not free yet.
        refused(await server.call("GET", f"/storage/files?namespace={name}", user), 404)
        refused(await server.call("DELETE", f"/storage/namespaces/{name}", user), 404)
        listed = ok(await server.call("GET", "/storage/namespaces", user))
        assert name not in [space["name"] for space in listed]
        refused(await server.call("POST", "/storage/namespaces", user, name=name), 409)
    # A start is enough.
    async with serving(cluster) as (server, storage, fs):
        assert row_of(storage, name) is None
        assert not await exists(fs, row.directory)
        ok(await server.call("POST", "/storage/namespaces", user, name=name))
        assert ok(await server.call("GET", f"/storage/files?namespace={name}", user)) == []


async def test_a_directory_without_a_row_is_left_alone(cluster: Cluster) -> None:
    async with serving(cluster) as (_, storage, fs):
        stranger = f"{ROOT}/of-older-records.0123abcd"
        await fs.put(b"precious", f"{stranger}/f")
        for _ in range(3):
            await storage.spaces.repair()
        assert await fs.get(f"{stranger}/f") == b"precious"


async def test_a_directory_made_behind_a_deletion_is_taken_away(cluster: Cluster) -> None:
    """Another process looked at the row before the deletion, and acts after it."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        assert row is not None
        ok(await server.call("DELETE", f"/storage/namespaces/{name}", user))
        await storage.spaces._make_directory(row)
        assert not await exists(fs, row.directory)


async def test_an_empty_folder_is_no_folder(cluster: Cluster) -> None:
    """A deletion takes the last file first, and may end before its folder is gone."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        assert row is not None
        await fs.mkdir(f"{row.directory}/f")
        ok(await upload(server, user, f"{name}/f", b"x"))


@pytest.mark.parametrize("is_before", [True, False])
async def test_a_deletion_while_it_is_made_leaves_neither_row_nor_directory(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    """Another process sees the row of a new one and deletes it, before its directory is
    made or just after."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = f"space-{secrets.token_hex(6)}"
        inside = storage.cluster.fs
        do, made = inside.mkdir, []

        async def mkdir(path: str, **terms: bool) -> Entry:
            made.append(path)
            delete = server.call("DELETE", f"/storage/namespaces/{name}", user)
            if is_before:
                ok(await delete)
            entry: Entry = await do(path, **terms)
            if not is_before:
                ok(await delete)
            return entry

        monkeypatch.setattr(inside, "mkdir", mkdir)
        ok(await server.call("POST", "/storage/namespaces", user, name=name))
        assert row_of(storage, name) is None
        assert len(made) == 1
        assert not await exists(fs, made[0])


async def test_a_creation_that_failed_does_not_appear_later(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        name = f"space-{secrets.token_hex(6)}"

        async def failed(*path: object, **terms: object) -> None:
            raise DiskFailed("one of the file system")

        with monkeypatch.context() as patch:
            patch.setattr(storage.cluster.fs, "mkdir", failed)
            answer = await server.call("POST", "/storage/namespaces", user, name=name)
            assert answer.status_code >= 500
        await storage.spaces.repair()
        listed = ok(await server.call("GET", "/storage/namespaces", user))
        assert name not in [item["name"] for item in listed]
        assert row_of(storage, name) is None
        ok(await server.call("POST", "/storage/namespaces", user, name=name))


async def test_a_failed_disk_of_the_file_system_is_survived(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (_, storage, _):

        async def failed() -> None:
            raise DiskFailed("one of the file system")

        with monkeypatch.context() as patch:
            patch.setattr(storage.spaces, "repair", failed)
            await storage._repair()


async def test_the_process_ends_when_its_records_fail(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve_until_it_ends() -> None:
        async with serving(cluster) as (server, _, _):
            user = await user_of(server)
            name = await make(server, user)

            def failed(txn: object, space: Space) -> None:
                raise RecordsFailed("the disk under the records")

            monkeypatch.setattr(control.storage.spaces, "_remove", failed)
            with contextlib.suppress(httpx.HTTPError):
                await server.call("DELETE", f"/storage/namespaces/{name}", user)
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await serve_until_it_ends()
    assert {type(leaf) for leaf in leaves(caught.value)} == {RecordsFailed}


# --- races --------------------------------------------------------------------------------


async def test_an_upload_does_not_bring_a_deleted_namespace_back(cluster: Cluster) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        first = row_of(storage, name)
        assert first is not None
        async with halfway(server, storage, user, f"{name}/a/f", b"x" * 1000) as answers:
            ok(await server.call("DELETE", f"/storage/namespaces/{name}", user))
            # The same name again is another storage namespace.
            ok(await server.call("POST", "/storage/namespaces", user, name=name))
        refused(answers[0], 404)
        assert ok(await server.call("GET", f"/storage/files?namespace={name}", user)) == []
        assert not await exists(fs, first.directory)


async def test_in_default_exactly_the_file_that_was_checked_is_replaced(cluster: Cluster) -> None:
    """Between the check and the end another user may have put his own there."""
    async with serving(cluster) as (server, storage, _):
        alice, bob = await user_of(server), await user_of(server)
        path = f"default/{secrets.token_hex(6)}"
        ok(await upload(server, alice, path, b"alice's"))
        async with halfway(
            server, storage, alice, path, b"alice's new one", overwrite="true"
        ) as answers:
            ok(await server.call("DELETE", f"/storage/{path}", alice))
            ok(await upload(server, bob, path, b"bob's"))
        refused(answers[0], 409)
        found = await server.http.get(f"/storage/{path}")
        assert found.content == b"bob's"
        refused(await upload(server, alice, path, b"again", overwrite="true"), 403)
        deletion = await server.call("DELETE", f"/storage/{path}", alice)
        refused(deletion, 403)
        assert "another user" in deletion.json()["error"]
        ok(await upload(server, server.admin, path, b"admin's", overwrite="true"))


async def test_a_token_that_may_not_delete_replaces_nothing(cluster: Cluster) -> None:
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        name = await make(server, user)
        scope = f"storage.{user['user_id']}.files.{name}"
        made = ok(
            await server.call("POST", "/api/tokens", user, name="t", scopes={scope: ["create"]})
        )
        ok(await upload(server, made, f"{name}/f", b"1", overwrite="true"))
        refused(await upload(server, made, f"{name}/f", b"2", overwrite="true"), 403)
        async with halfway(
            server, storage, made, f"{name}/g", b"2" * 100, overwrite="true"
        ) as answers:
            ok(await upload(server, user, f"{name}/g", b"first"))
        refused(answers[0], 409)


async def test_only_the_folder_that_was_emptied_is_taken_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its place there may be a file by now, which somebody was told is stored."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        assert row is not None
        ok(await upload(server, user, f"{name}/a/b", b"x"))
        inside = storage.cluster.fs
        delete = inside.delete

        async def late(path: str, **terms: Any) -> None:
            if path == f"{row.directory}/a":
                await fs.delete(path)
                ok(await upload(server, user, f"{name}/a", b"kept"))
            await delete(path, **terms)

        monkeypatch.setattr(inside, "delete", late)
        ok(await server.call("DELETE", f"/storage/{name}/a/b", user))
        assert (await server.call("GET", f"/storage/{name}/a", user)).content == b"kept"


# --- written in place ---------------------------------------------------------------------


async def test_a_file_written_in_place_is_always_sent_anew(cluster: Cluster) -> None:
    """Two contents of the same length, in the same second or not: nothing that was said
    of the one may make the other count as unchanged."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user, visibility=2)
        ok(await upload(server, user, f"{name}/f", b"old bytes"))
        row = row_of(storage, name)
        assert row is not None
        url = f"/storage/{name}/f"
        before = await server.http.get(url)
        tag, date = before.headers["ETag"], before.headers["Last-Modified"]
        async with await fs.open(f"{row.directory}/f", "r+") as file:
            for content in (b"new bytes", b"NEW BYTES"):
                await file.pwrite(0, content)
                for headers in (
                    {},
                    {"If-None-Match": tag},
                    {"If-None-Match": "*"},
                    {"If-Modified-Since": date},
                    {"Range": "bytes=0-2", "If-Range": tag},
                    {"Range": "bytes=0-2", "If-Range": date},
                ):
                    answer = await server.http.get(url, headers=headers)
                    assert (answer.status_code, answer.content) == (200, content), headers
                    assert "ETag" not in answer.headers
                    assert "Last-Modified" not in answer.headers
                refused(await server.http.get(url, headers={"If-Match": tag}), 412)
                head = await server.http.head(url, headers={"If-None-Match": tag})
                assert head.status_code == 200
                part = await server.http.get(url, headers={"Range": "bytes=0-2"})
                assert (part.status_code, part.content) == (206, content[:3])


# --- whose --------------------------------------------------------------------------------


async def test_what_a_deleted_user_leaves_is_the_administrators(cluster: Cluster) -> None:
    async with serving(cluster) as (server, _, _):
        user, other = await user_of(server), await user_of(server)
        name = await make(server, user, visibility=2)
        ok(await upload(server, user, f"{name}/f", b"left behind"))
        ok(await server.call("DELETE", f"/admin/users?id={user['user_id']}", server.admin))
        found = [
            space
            for space in ok(await server.call("GET", "/admin/namespaces", server.admin))
            if space["name"] == name
        ]
        assert found == [
            {"name": name, "count": 1, "hidden": False, "visibility": 0, "owner_id": None}
        ]
        refused(await server.call("GET", f"/storage/{name}/f", other), 403)
        refused(await server.call("GET", f"/storage/{name}/f"), 401)
        reached = await server.call("GET", f"/storage/{name}/f", server.admin)
        assert reached.content == b"left behind"
        ok(await server.call("PUT", f"/storage/namespaces/{name}", server.admin, visibility=1))
        assert (await server.call("GET", f"/storage/{name}/f", other)).content == b"left behind"
        ok(await server.call("DELETE", f"/storage/namespaces/{name}", server.admin))


async def test_the_administrator_sees_all_files(cluster: Cluster) -> None:
    async with serving(cluster) as (server, _, _):
        user = await user_of(server)
        name = await make(server, user)
        for path in ("b", "a/c"):
            ok(await upload(server, user, f"{name}/{path}", b"xyz"))
        found = ok(await server.call("GET", f"/admin/files?namespace={name}", server.admin))
        assert [(f["path"], f["namespace"], f["size"], f["owner_id"]) for f in found] == [
            ("a/c", name, 3, user["user_id"]),
            ("b", name, 3, user["user_id"]),
        ]
        everything = ok(await server.call("GET", "/admin/files", server.admin))
        assert [f for f in everything if f["namespace"] == name] == found
        refused(await server.call("GET", "/admin/files", user), 403)
        refused(await server.call("GET", "/admin/namespaces", user), 403)


async def test_a_long_listing_is_sent_as_it_is_read(cluster: Cluster) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        assert row is not None
        paths = [f"{folder}/{number:03}-{'x' * 100}" for folder in "ab" for number in range(300)]
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(fs.put, b"", f"{row.directory}/{path}")
        answer = await server.call("GET", f"/storage/files?namespace={name}", user)
        assert [file["path"] for file in ok(answer)] == paths
        assert "Content-Length" not in answer.headers
        some = await server.call("GET", f"/storage/files?namespace={name}&limit=400", user)
        assert ok(some) == answer.json()[:400]
        short = await server.call("GET", f"/storage/files?namespace={name}&limit=1", user)
        # Who asks with ?token= tells no cache that the answer is for him alone.
        for one in (answer, some, short):
            assert one.headers["Cache-Control"] == "no-store"


async def test_strangers_list_a_page_at_a_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an anonymous request costs the master does not grow with what others have."""
    monkeypatch.setattr(control.storage.module, "ANONYMOUS_FILES_MAX", 5)
    async with serving(cluster) as (server, _, _):
        user = await user_of(server)
        name = await make(server, user, 2)
        paths = [f"{folder}/{number}" for folder in ("a", "b&c") for number in range(6)]
        for path in paths:
            ok(await upload(server, user, f"{name}/{path}", b"x"))
        read: list[str] = []
        files = control.storage.listing.files

        async def counted(*arguments: Any, **named: str) -> AsyncGenerator[Any, None]:
            async with contextlib.aclosing(files(*arguments, **named)) as entries:
                async for path, entry in entries:
                    read.append(path)
                    yield path, entry

        monkeypatch.setattr(control.storage.listing, "files", counted)
        found: list[str] = []
        url: str | None = f"/storage/files?namespace={name}&limit=100"
        while url is not None:
            answer = await server.call("GET", url)
            found += [file["path"] for file in ok(answer)]
            assert len(read) <= 6
            read.clear()
            url = answer.links.get("next", {}).get("url")
        assert found == paths
        # With a credential it is all of them, as ever.
        listed = await server.call("GET", f"/storage/files?namespace={name}", user)
        assert [file["path"] for file in ok(listed)] == paths
        assert "Link" not in listed.headers


async def test_storage_namespaces_are_listed_in_pages(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.storage.spaces, "PAGE_ROWS", 3)
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        made = [await make(server, user, number % 3) for number in range(10)]

        async def names(who: Login | None, query: str = "") -> list[str]:
            listed = ok(await server.call("GET", f"/storage/namespaces{query}", who))
            return [space["name"] for space in listed]

        everything = sorted(space.name for space in storage.spaces.all())
        public = {name for number, name in enumerate(made) if number % 3 == 2}
        own = await names(user)
        assert own == [name for name in everything if name in made or name in await names(None)]
        assert set(made) <= set(own)
        assert set(await names(None)) & set(made) == public
        assert await names(user, "?limit=4") == own[:4]
        assert await names(user, f"?after={own[3]}") == own[4:]
        admin = ok(await server.call("GET", "/admin/namespaces", server.admin))
        assert [space["name"] for space in admin] == everything
        monkeypatch.setattr(control.storage.spaces, "PAGE_ROWS", 1000)
        assert await names(user) == own


async def test_a_listing_that_nobody_reads_is_closed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        assert row is not None
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(fs.put, b"", f"{row.directory}/{number:03}-{'x' * 60}")
        inside = storage.cluster.fs
        scan, open_ = inside.scan, []

        async def counted(path: str = "/", after: str = "") -> AsyncGenerator[Entry, None]:
            open_.append(path)
            try:
                async with contextlib.aclosing(scan(path, after)) as entries:
                    async for entry in entries:
                        yield entry
            finally:
                open_.remove(path)

        monkeypatch.setattr(inside, "scan", counted)
        answer = await server.call("HEAD", f"/storage/files?namespace={name}", user)
        assert (answer.status_code, answer.content) == (200, b"")
        assert open_ == []


async def test_counts_follow_what_comes_and_goes(cluster: Cluster) -> None:
    async with serving(cluster) as (server, _, _):
        user = await user_of(server)
        name = await make(server, user, 2)

        async def count() -> int:
            listed = ok(await server.call("GET", "/storage/namespaces"))
            return next(space["count"] for space in listed if space["name"] == name)

        assert await count() == 0
        for path in ("a", "b", "a"):
            ok(await upload(server, user, f"{name}/{path}", b"x", overwrite="true"))
        assert await count() == 2
        ok(await server.call("DELETE", f"/storage/{name}/a", user))
        assert await count() == 1


# --- progress -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "status", "error"),
    [
        ("none", {}, 404, "none does not exist"),
        ("f", {"If-None-Match": "*"}, 304, ""),
        ("f", {"If-Match": '"x"'}, 412, ""),
        ("f", {"Range": "bytes=9-"}, 416, ""),
    ],
)
async def test_a_listener_hears_of_a_download_that_does_not_begin(
    cluster: Cluster, path: str, headers: dict[str, str], status: int, error: str
) -> None:
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        name = await make(server, user)
        ok(await upload(server, user, f"{name}/f", b"12345"))
        headers = {**headers, "Authorization": f"Bearer {user['token']}"}
        url, query = f"/storage/{name}/{path}", {"id": secrets.token_hex(8)}
        # Which transfers nothing, and so says nothing.
        await server.http.head(url, params=query, headers=headers)
        assert storage.control.volatile.get("transfer", query["id"], State) is None
        answer = await server.http.get(url, params=query, headers=headers)
        assert answer.status_code == status
        events = await server.http.get("/sse/progress", params=query, headers=headers)
        told = {"id": query["id"], "direction": "download", "bytes": 0, "total": 0, "done": True}
        if error:
            told["error"] = error
        comment, event, end = events.text.split("\n\n")
        assert comment.startswith(":")
        assert json.loads(event.removeprefix("data: ")) == told
        assert not end


async def test_bytes_pass_when_their_progress_cannot_be_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        name = await make(server, user)

        def failed(*_: object, **__: object) -> None:
            raise DiskFailed("the shared facts")

        with monkeypatch.context() as patch:
            patch.setattr(storage.control.volatile, "get", failed)
            patch.setattr(storage.control.volatile, "put", failed)
            ok(await upload(server, user, f"{name}/f", b"12345", id="some"))
        metrics = (await server.http.get("/metrics")).text
        active = [line for line in metrics.splitlines() if line.startswith("gfs_control_transfers")]
        assert active
        assert all(line.endswith(" 0.0") for line in active)


# --- routes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("POST", "/storage/files", 405, {"GET", "HEAD"}),
        ("GET", "/storage/upload", 405, {"POST"}),
        ("GET", "/storage/delete", 405, {"DELETE"}),
        ("PUT", "/storage/download", 405, {"GET", "HEAD"}),
        ("DELETE", "/storage/download/space/file", 405, {"GET", "HEAD"}),
        ("GET", "/storage/namespaces/x", 405, {"PUT", "DELETE"}),
        ("POST", "/storage/status", 405, {"GET", "HEAD"}),
        ("GET", "/storage/namespaces/x/y", 404, set()),
        ("GET", "/storage/files/x", 404, set()),
        ("GET", "/storage/upload/x", 404, set()),
        ("GET", "/storage/no-such-space/x", 404, set()),
        ("PUT", "/storage/statuses/x", 401, set()),
    ],
)
async def test_a_wrong_method_is_told_as_that(
    tmp_path: Path, method: str, path: str, status: int, allowed: set[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(control.storage.module, "CONNECT_SECONDS", 0.0)
    async with running(tmp_path, modules=(CheapAuth, Storage)) as server:
        answer = await server.call(method, path)
        refused(answer, status)
        given = {one.strip() for one in answer.headers.get("Allow", "").split(",") if one}
        assert given - {"OPTIONS"} == allowed


async def test_without_a_cluster_it_serves_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.storage.module, "CONNECT_SECONDS", 0.0)
    async with running(tmp_path, modules=(CheapAuth, Storage)) as server:
        # Anybody may ask for it, so it is not the master who is asked.
        [listed] = ok(await server.call("GET", "/storage/namespaces"))
        assert (listed["name"], listed["count"]) == ("default", 0)
        for path in ("/storage/status", "/storage/files", "/readyz"):
            refused(await server.call("GET", path), 503)
        refused(await server.call("POST", "/storage/namespaces", server.admin, name="x"), 503)
        refused(await upload(server, server.admin, "default/x", b"x"), 503)
        ok(await server.call("GET", "/healthz"))
        # Refused, it was not made either.
        with server.app.control.records.read() as txn:
            assert [space.name for space in spaces.scan(txn)] == ["default"]

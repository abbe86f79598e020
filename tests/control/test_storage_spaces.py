"""Storage namespaces on a real cluster: what crashes and races leave."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio
import trio.testing
from auth_server import CheapAuth, Server, running
from harness import Cluster
from limits import HANG_SECONDS
from msgspec.structs import replace

import control.storage.listing
import control.storage.module
import control.storage.spaces
import control.storage.unfinished
import gfs
from control.api import Call
from control.errors import Conflict, NoSuchThing
from control.identity.access import Principal, scoped
from control.quota import usage
from control.quota.usage import count, trash, used_by
from control.records import RecordsBusy, RecordsFailed
from control.storage import DELETE, Storage, Sweeper, accounting, delete_file
from control.storage.accounting import Recounts
from control.storage.purging import stage_purge
from control.storage.resuming import Progress, UploadRoutes
from control.storage.rows import ROOT, Space, spaces
from control.storage.staging import STAGING
from control.storage.transfer.progress import KEEP_SECONDS, Listening, State, Transfer, Transfers
from control.testing import make_app
from control.volatile import Volatile
from gfs.client import Client, Entry
from gfs.errors import DiskFailed, DiskFull
from gfs.failures import leaves

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
        while not taken():  # noqa: ASYNC110 - what is waited for sends no event
            await trio.sleep(0.01)
        yield answers
        go_on.set()


# --- crashes ------------------------------------------------------------------------------


async def test_the_master_reports_how_long_the_trash_stays(cluster: Cluster) -> None:
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
        who = Principal(
            user_id=user["user_id"], username="", display_name="", credential_id="of a session"
        )
        call = Call(storage.control, DELETE, "DELETE", None, {}, who)  # type: ignore[arg-type]
        real = Client.delete

        async def delete(self: Client, path: str, **options: Any) -> None:
            await real(self, path, **options)
            scope.cancel()

        monkeypatch.setattr(Client, "delete", delete)
        with trio.CancelScope() as scope:
            await delete_file(call, storage.cluster, storage.spaces, space, "a/b/f")
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
        real = Client.scan

        def scan(self: Client, path: str = "/", after: str = "") -> AsyncGenerator[Entry, None]:
            if path == made[1].directory:
                raise DiskFailed("a disk failed")
            return real(self, path, after)

        monkeypatch.setattr(Client, "scan", scan)
        recounts = Recounts(storage.control.records, storage.control.ledger)
        assert not await recounts.count(fs, [row.id for row in made])
        with storage.control.ledger.read() as txn:
            assert [count(txn, "s", row.id).files for row in made] == [1, 0, 1]


async def test_a_folder_that_goes_while_files_are_counted_hides_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (server, storage, fs):
        row = row_of(storage, await make(server, await user_of(server)))
        assert row is not None
        for name in "abc":
            await fs.put(b"x", f"{row.directory}/{name}/f")
        real = Client.scan

        async def scan(
            self: Client, path: str = "/", after: str = ""
        ) -> AsyncGenerator[Entry, None]:
            if path.endswith("/b"):
                await self.delete(path, recursive=True)
            async for entry in real(self, path, after):
                yield entry

        pruned: list[str] = []

        async def prune(fs: Client, directory: str, folder: str) -> None:
            pruned.append(folder)

        monkeypatch.setattr(Client, "scan", scan)
        monkeypatch.setattr(accounting, "prune", prune)
        assert await Recounts(storage.control.records, storage.control.ledger).count(fs, [row.id])
        with storage.control.ledger.read() as txn:
            assert count(txn, "s", row.id).files == 2
        assert pruned == ["b"], "nothing else was seen empty"


async def test_a_storage_namespace_that_gets_a_file_is_not_deleted_as_an_empty_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it gets it: when it was looked at, before its directory goes, or when a repair has
    made that again."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        who = Principal(
            user_id=user["user_id"], username="", display_name="", credential_id="of a session"
        )
        need = scoped("storage", "namespaces", "delete", parameter="name")
        real = Client.delete
        walk = Client.walk
        for moment in (0, 1, 2):
            name = await make(server, user)
            row = row_of(storage, name)
            assert row is not None
            call = Call(storage.control, need, "DELETE", None, {"name": name}, who)  # type: ignore[arg-type]
            deletions = 0

            async def delete(self: Client, path: str, **options: Any) -> None:
                nonlocal deletions
                deletions += path == row.directory  # noqa: B023
                if deletions == moment:  # noqa: B023
                    await fs.put(b"x", f"{row.directory}/a/f")  # noqa: B023
                await real(self, path, **options)

            async def walked(self: Client, path: str = "/") -> AsyncGenerator[Entry, None]:
                if moment == 0:  # noqa: B023
                    await fs.put(b"x", f"{row.directory}/a/f")  # noqa: B023
                async for entry in walk(self, path):
                    yield entry

            with monkeypatch.context() as patched:
                patched.setattr(Client, "delete", delete)
                patched.setattr(Client, "walk", walked)
                with pytest.raises(Conflict):
                    await storage.spaces.delete_empty(call)
            assert await fs.get(f"{row.directory}/a/f") == b"x"
            assert row_of(storage, name) == row
            await fs.delete(f"{row.directory}/a/f")
            await storage.spaces.delete_empty(call)
            assert row_of(storage, name) is None
            assert not await exists(fs, row.directory)


async def test_it_serves_once_all_is_counted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[bool] = []
    real = Recounts.count_due

    async def count(self: Recounts, fs: Client) -> None:
        await trio.sleep(0.2)
        await real(self, fs)
        counted.append(True)

    monkeypatch.setattr(Recounts, "count_due", count)
    async with serving(cluster):
        assert counted


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


async def test_what_is_unfinished_is_swept_without_s3(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload in parts that nobody goes on with, one whose end was broken off, and a copy that
    never got its path."""
    all_there, sweep = trio.Event(), Sweeper.sweep

    async def sweep_late(self: Sweeper, before_ns: int) -> None:
        await all_there.wait()
        await sweep(self, before_ns)

    monkeypatch.setattr(Sweeper, "sweep", sweep_late)
    monkeypatch.setenv("GFS_STORAGE_UPLOAD_SECONDS", "1")
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        await upload(server, user, f"{name}/stays", b"12345")
        space = row_of(storage, name)
        assert space is not None
        await begin(server, user, name)
        uploads = f"{space.directory}/.s3-uploads"
        broken_off = await begin(server, user, name)
        await fs.rename(f"{uploads}/{broken_off}", f"{uploads}/-{'0' * 16}")
        monkeypatch.setattr(control.storage.unfinished, "LEFT_SECONDS", 0.0)
        left = f"/storage-copies/{secrets.token_hex(16)}"
        await fs.put(b"x", left, parents=True)
        all_there.set()
        with trio.fail_after(HANG_SECONDS):
            for path in (uploads, left):
                while await fs.exists(path):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            while used(storage, user) != (1, 5):  # noqa: ASYNC110 - no event exists for it
                await trio.sleep(0.1)


async def test_a_part_more_does_not_list_those_before_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = 0
    scan = Client.scan

    async def counted(self: Client, path: str, after: str = "") -> AsyncGenerator[Entry, None]:
        nonlocal listed
        async with contextlib.aclosing(scan(self, path, after)) as found:
            async for entry in found:
                listed += ".s3-uploads/" in path
                yield entry

    monkeypatch.setattr(Client, "scan", counted)
    async with serving(cluster) as (server, _, _):
        user = await user_of(server)
        name = await make(server, user)
        headers = {"Authorization": f"Bearer {user['token']}"}
        at, size = f"/storage/namespaces/{name}/uploads", 30
        made = ok(await server.http.post(at, json={"path": "f", "size": size}, headers=headers))
        for offset in range(size):
            url = f"{at}/{made['id']}?offset={offset}"
            answer = ok(await server.http.put(url, content=bytes([offset]), headers=headers))
        assert answer["complete"]
        file = await server.http.get(f"/storage/{name}/f", headers=headers)
        assert file.content == bytes(range(size))
        # For each part the one before it and ``about``; at the end all, to join and to delete.
        assert listed <= 4 * (size + 1)


async def test_an_upload_whose_end_is_asked_for_again_is_put_together_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the last part is slow: the client asks again."""
    joined, seen, all_here = 0, 0, trio.Event()
    join, progress = UploadRoutes._join, UploadRoutes._progress

    async def counted(self: UploadRoutes, *given: Any) -> None:
        nonlocal joined
        joined += 1
        await all_here.wait()
        await join(self, *given)

    async def watched(self: UploadRoutes, *given: Any) -> Progress:
        nonlocal seen
        found = await progress(self, *given)
        seen += found.offset == 9
        if seen == 3:
            all_here.set()
        return found

    monkeypatch.setattr(UploadRoutes, "_join", counted)
    monkeypatch.setattr(UploadRoutes, "_progress", watched)
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        name = await make(server, user)
        url = f"/storage/namespaces/{name}/uploads/{await begin(server, user, name)}"
        headers = {"Authorization": f"Bearer {user['token']}"}

        async def ask(offset: int, content: bytes = b"") -> None:
            at = f"{url}?offset={offset}"
            answers.append(ok(await server.http.put(at, content=content, headers=headers)))

        answers: list[Any] = []
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, 4, b" last")
                while not joined:  # noqa: ASYNC110 - it is in another request
                    await trio.sleep(0.01)
                for _ in range(3):
                    nursery.start_soon(ask, 9)
        assert [answer["complete"] for answer in answers] == [True] * 4
        assert joined == 1
        assert used(storage, user) == (1, 9)


@pytest.mark.parametrize("what", ["copy", "move"])
@pytest.mark.parametrize("then", ["nothing", "a kill", "no master for a moment"])
async def test_what_could_not_be_replaced_comes_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, what: str, then: str
) -> None:
    """The trash has no room for it, and right after it was deleted the next step fails."""
    is_killed, is_left = then == "a kill", then != "nothing"
    rename, changes = Client.rename, ("rename", "delete", "snapshot", "set_attributes")

    async def refuse(self: Client, source: str, *rest: Any, **options: Any) -> None:
        if not is_killed:
            monkeypatch.setattr(Client, "rename", rename)
            raise DiskFull("no room")
        for name in changes:
            monkeypatch.setattr(Client, name, kill)
        await kill()

    async def kill(*_: Any, **__: Any) -> None:
        raise DiskFailed("the process was killed")

    if then == "no master for a moment":
        monkeypatch.setattr(control.storage.replacing, "put_back", kill)
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        ok(await upload(server, user, f"{name}/old", b"old"))
        ok(await upload(server, user, f"{name}/new", b"newer"))
        storage.cluster.trash_seconds = 0.0
        directory = storage.spaces.get(name).directory
        old = await fs.stat(f"{directory}/old")
        at = f"/storage/namespaces/{name}/{what}"
        body = {"source": "new", "target": "old", "overwrite": True}
        saved = {name: getattr(Client, name) for name in changes}
        monkeypatch.setattr(Client, "rename", refuse)
        answer = await server.call("POST", at, user, **body)
        assert answer.status_code >= 500
        if is_killed:
            for each, real in saved.items():
                monkeypatch.setattr(Client, each, real)
        if is_left:
            assert not await fs.exists(old.path)
            monkeypatch.setattr(control.storage.unfinished, "REPLACING_SECONDS", 0.0)
            await Sweeper(storage.control, storage.cluster, storage.spaces).sweep(0)
        back = await fs.stat(old.path)
        assert await fs.get(old.path) == b"old"
        assert (back.modified_ns, back.attributes) == (old.modified_ns, old.attributes)
        assert await fs.get(f"{directory}/new") == b"newer"
        assert used(storage, user) == (2, 8)
        ok(await server.call("POST", at, user, **body))
        assert await fs.get(old.path) == b"newer"
        left = [each.path async for each in fs.scan(STAGING) if "replaced" in each.path]
        assert left == []


async def test_a_purge_that_was_broken_off_is_finished(cluster: Cluster) -> None:
    """After it was killed, and a recount besides, there is room again in the trash."""
    async with serving(cluster) as (server, storage, fs):
        users = [await user_of(server) for _ in range(2)]
        folder = f"d-{secrets.token_hex(6)}"
        for number, user in enumerate(users):
            ok(await upload(server, user, f"default/{folder}/{number}", b"x" * (number + 5)))
        at = "/storage/namespaces/default"
        ok(await server.call("DELETE", f"{at}/folder?path={folder}", server.admin))
        assert [in_trash(storage, user) for user in users] == [(1, 5), (1, 6)]
        space = storage.spaces.get("default")
        [deleted] = [each async for each in fs.trash(f"{space.directory}/{folder}")]
        staged = await stage_purge(storage.cluster, deleted)  # and there it is killed
        recounts = Recounts(storage.control.records, storage.control.ledger)
        assert await recounts.count(fs, [space.id])
        assert [in_trash(storage, user) for user in users] == [(1, 5), (1, 6)]
        sweeper = Sweeper(storage.control, storage.cluster, storage.spaces)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(sweeper.sweep, 0)
        assert [in_trash(storage, user) for user in users] == [(0, 0), (0, 0)]
        assert not await fs.exists(staged)
        assert [each async for each in fs.trash(staged)] == []


async def test_a_purge_whose_records_fail_ends_the_process(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else fails, its files count as in the trash until their time there is over."""

    def fail(error: Exception) -> Callable[..., None]:
        def failing(*_: object) -> None:
            raise error

        return failing

    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        sweeper = Sweeper(storage.control, storage.cluster, storage.spaces)
        space = storage.spaces.get("default")
        for error in (RecordsBusy("another writes"), RecordsFailed("the disk under the records")):
            path = f"f-{secrets.token_hex(6)}"
            ok(await upload(server, user, f"default/{path}", b"x"))
            ok(await server.call("DELETE", f"/storage/default/{path}", user))
            [deleted] = [each async for each in fs.trash(f"{space.directory}/{path}")]
            staged = await stage_purge(storage.cluster, deleted)
            is_last = isinstance(error, RecordsFailed)
            with monkeypatch.context() as patch:
                patch.setattr(usage, "take_from_trash", fail(error))
                with pytest.raises(RecordsFailed) if is_last else contextlib.nullcontext():
                    await sweeper.sweep(0)
            assert not await fs.exists(staged)
        assert in_trash(storage, user) == (2, 2)


def in_trash(storage: Storage, user: Login) -> tuple[int, int]:
    with storage.control.ledger.read() as txn:
        rows = list(trash.scan(txn, prefix=f"{user['user_id']}/"))
    return sum(row.files for row in rows), sum(row.bytes for row in rows)


async def test_two_may_sweep_at_the_same_time(cluster: Cluster) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        for _ in range(8):
            await begin(server, user, name)
        assert used(storage, user)[0] == 16
        sweepers = [Sweeper(storage.control, storage.cluster, storage.spaces) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for each in sweepers:
                nursery.start_soon(each.sweep, time.time_ns())
        assert used(storage, user) == (0, 0)
        space = row_of(storage, name)
        assert space is not None
        assert not await fs.exists(f"{space.directory}/.s3-uploads")


async def test_of_the_processes_of_a_machine_one_sweeps(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hour; and one that starts sweeps at once, since another may have been killed."""
    swept: list[int] = []
    began_ns = time.time_ns()

    def time_ns() -> int:
        return began_ns + int(1e9 * trio.current_time())

    async def sweep(_: Sweeper, before_ns: int) -> None:
        swept.append(round(trio.current_time()))
        await trio.sleep(60)

    monkeypatch.setattr(control.storage.unfinished, "time", SimpleNamespace(time_ns=time_ns))
    monkeypatch.setattr(Sweeper, "sweep", sweep)
    connected = trio.Event()
    parts: Any = (
        SimpleNamespace(directory=tmp_path, config=None),
        SimpleNamespace(connected=connected),
        None,
    )
    with trio.move_on_after(5 * 3600):
        async with trio.open_nursery() as nursery:
            for pause in (1, 1, 1800):
                await trio.sleep(pause)
                nursery.start_soon(Sweeper(*parts).run)
                connected.set()
    hour = 3600 + 60
    assert swept == [1, 1802, *(1802 + n * hour for n in range(1, 5))]


async def begin(server: Server, user: Login, name: str) -> str:
    """The id of an upload with a part."""
    at, headers = (
        f"/storage/namespaces/{name}/uploads",
        {"Authorization": f"Bearer {user['token']}"},
    )
    made = ok(await server.http.post(at, json={"path": "f", "size": 9}, headers=headers))
    url = f"{at}/{made['id']}?offset=0"
    ok(await server.http.put(url, content=b"part", headers=headers))
    return str(made["id"])


def used(storage: Storage, user: Login) -> tuple[int, int]:
    with storage.control.ledger.read() as txn:
        found = used_by(txn, user["user_id"])
    return found.files, found.bytes


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


async def test_a_broken_off_deletion_of_an_empty_one_deletes_no_file(cluster: Cluster) -> None:
    """A repair finds it while the deletion is under way, too."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        for has_file in (True, False):
            name = await make(server, user)
            row = row_of(storage, name)
            assert row is not None
            if has_file:
                await fs.put(b"x", f"{row.directory}/f")
            marked = replace(row, deleting=True, if_empty=True)
            await storage.control.records.write(lambda txn: spaces.put(txn, marked))  # noqa: B023
            await storage.spaces.repair()
            assert row_of(storage, name) == (row if has_file else None)
            assert await exists(fs, row.directory) == has_file
            assert await exists(fs, f"{row.directory}/f") == has_file


async def test_of_two_deletions_at_once_the_second_finds_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster) as (server, storage, _):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        ok(await server.call("DELETE", f"/storage/namespaces/{name}", user))
        # Both have looked for it before either deletes it.
        monkeypatch.setattr(storage.spaces, "_changeable", lambda *_: row)
        refused(await server.call("DELETE", f"/storage/namespaces/{name}", user), 404)


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

            def failed(txn: object, space: Space, deletions: object) -> None:
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


async def test_the_room_of_a_file_is_for_what_replaces_this_very_file(cluster: Cluster) -> None:
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        assert row is not None
        ok(await server.call("PUT", f"/admin/quotas?id={user['user_id']}", server.admin, bytes=10))
        ok(await upload(server, user, f"{name}/f", bytes(8)))
        path = f"{name}/f"
        async with halfway(server, storage, user, path, bytes(9), overwrite="true") as answers:
            await fs.put(b"another", f"{row.directory}/f", overwrite=True)
        refused(answers[0], 409)
        assert await fs.get(f"{row.directory}/f") == b"another"


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
    """In its place there may be a file by now, which somebody was promised is stored."""
    async with serving(cluster) as (server, storage, fs):
        user = await user_of(server)
        name = await make(server, user)
        row = row_of(storage, name)
        assert row is not None
        ok(await upload(server, user, f"{name}/a/b", b"x"))
        inside = storage.cluster.fs
        prune = inside.prune

        async def late(path: str, *, below: str) -> None:
            assert path == f"{row.directory}/a"
            await fs.delete(path)
            ok(await upload(server, user, f"{name}/a", b"kept"))
            await prune(path, below=below)

        monkeypatch.setattr(inside, "prune", late)
        ok(await server.call("DELETE", f"/storage/{name}/a/b", user))
        assert (await server.call("GET", f"/storage/{name}/a", user)).content == b"kept"


# --- written in place ---------------------------------------------------------------------


async def test_a_file_written_in_place_is_always_sent_again(cluster: Cluster) -> None:
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
        shared = f"default/{secrets.token_hex(6)}"
        ok(await upload(server, user, shared, b"shared"))
        ok(await server.call("DELETE", f"/admin/users?id={user['user_id']}", server.admin))
        assert (await server.call("GET", f"/storage/{shared}", other)).content == b"shared"
        listed = ok(await server.call("GET", "/storage/namespaces", other))
        assert name not in [space["name"] for space in listed]
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


async def test_the_administrator_sees_all_files_page_by_page(cluster: Cluster) -> None:
    async with serving(cluster) as (server, _, _):
        user = await user_of(server)
        # Among the files of all others, found by what their paths begin with.
        folder = f"pages & {secrets.token_hex(6)}"
        names = sorted([await make(server, user), await make(server, user)])
        made = [(name, f"{folder}/{n}") for name in names for n in range(3)]
        for name, path in made:
            ok(await upload(server, user, f"{name}/{quote(path)}", b"x"))

        async def pages(address: str) -> AsyncIterator[list[tuple[str, str]]]:
            while address:
                answer = await server.call("GET", address, server.admin)
                yield [(each["namespace"], each["path"]) for each in ok(answer)]
                address = answer.links["next"]["url"] if answer.links else ""

        begins = f"prefix={quote(folder)}"
        for size in (1, 2, 3, 4, 6, 7):
            everywhere = [page async for page in pages(f"/admin/files?{begins}&limit={size}")]
            assert everywhere == [made[n : n + size] for n in range(0, 6, size)]
            asked = f"/admin/files?namespace={names[0]}&{begins}&limit={size}"
            assert [page async for page in pages(asked)] == [
                made[:3][n : n + size] for n in range(0, 3, size)
            ]
        # After a storage namespace that is gone, too; and without a page there is no other.
        after = f"/admin/files?{begins}&after={names[0]}/{quote(made[1][1])}"
        assert [page async for page in pages(after)] == [made[2:]]
        ok(await server.call("DELETE", f"/storage/namespaces/{names[0]}", user))
        assert [page async for page in pages(after)] == [made[3:]]
        assert [page async for page in pages(f"{after}&limit=1001")] == [made[3:]]


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
        # Who asks with ?token= lets no cache take the answer is for him alone.
        for one in (answer, some, short):
            assert one.headers["Cache-Control"] == "no-store"


async def test_strangers_list_all_files(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As who is logged in does, however many questions that takes."""
    monkeypatch.setattr(control.storage.listing, "PAGE", 5)
    async with serving(cluster) as (server, _, _):
        user = await user_of(server)
        name = await make(server, user, 2)
        paths = [f"{folder}/{number}" for folder in ("a", "b&c") for number in range(6)]
        for path in paths:
            ok(await upload(server, user, f"{name}/{path}", b"x"))
        url = f"/storage/files?namespace={name}"
        for who in (None, user):
            answer = await server.call("GET", url, who)
            assert [file["path"] for file in ok(answer)] == paths
            assert "Link" not in answer.headers
            some = await server.call("GET", f"{url}&limit=7&after=a/1", who)
            assert [file["path"] for file in ok(some)] == paths[2:9]


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

        everything = sorted(space.name for space in await storage.spaces.all())
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
        files, open_ = inside.files, []

        async def counted(path: str, **options: Any) -> AsyncGenerator[Entry, None]:
            open_.append(path)
            try:
                async with contextlib.aclosing(files(path, **options)) as entries:
                    async for entry in entries:
                        yield entry
            finally:
                open_.remove(path)

        monkeypatch.setattr(inside, "files", counted)
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


@contextlib.contextmanager
def transferring(state: Path) -> Iterator[tuple[Transfer, Transfers, Volatile]]:
    control = make_app(state).control
    with control.opened():
        transfers = Transfers(control)
        transfer = Transfer(transfers, control, "some", "ada", "upload", 0)
        yield transfer, transfers, control.volatile


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
        reported = {
            "id": query["id"],
            "direction": "download",
            "bytes": 0,
            "total": 0,
            "done": True,
        }
        if error:
            reported["error"] = error
        comment, event, end = events.text.split("\n\n")
        assert comment.startswith(":")
        assert json.loads(event.removeprefix("data: ")) == reported
        assert not end


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NoSuchThing("f does not exist"), "f does not exist"),
        (ConnectionResetError("of whom, is not said"), "the transfer was interrupted"),
        (LookupError("what was wrong is in the log"), "the transfer failed"),
    ],
)
async def test_a_listener_hears_of_failures_what_a_user_may(
    tmp_path: Path, error: Exception, text: str
) -> None:
    with transferring(tmp_path) as (transfer, _, volatile):
        with pytest.raises(type(error)), transfer:
            raise error
        state = volatile.get("transfer", "some", State)
    assert state is not None
    assert (state.done, state.error) == (True, text)


async def test_an_answer_waits_for_a_listener_of_long_standing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with transferring(tmp_path) as (transfer, transfers, volatile):
        events = Listening(volatile, transfers, "ada", "some").events()
        heard: list[bytes] = []

        async def listen() -> None:
            async for event in events:
                heard.append(event)

        async with trio.open_nursery() as nursery:
            with transfer:
                nursery.start_soon(listen)
                await trio.sleep(KEEP_SECONDS + 1)
            await transfer.wait_for_listeners()
            assert b'"done":true' in heard[-1]


async def test_bytes_pass_when_their_progress_cannot_be_reported(
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


async def test_without_a_cluster_it_serves_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.storage.module, "CONNECT_SECONDS", 0.0)
    async with running(tmp_path, modules=(CheapAuth, Storage)) as server:
        assert server.app.modules[1].cluster.trash_seconds > 0  # type: ignore[attr-defined]
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

"""Versions on a real cluster: at whatever step a change ends, no acknowledged version is lost."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
from auth_server import CheapAuth, Server, running
from harness import Cluster
from limits import HANG_SECONDS
from msgspec.structs import replace

import gfs
from control.errors import BadRequest
from control.quota import usage
from control.quota.usage import count
from control.s3.lifecycle import Lifecycle, Rule
from control.storage import Storage, UploadRequest, Version, Versions, id_of, is_marker, listing
from control.storage.accounting import Recounts
from control.storage.keys import VERSIONS
from control.storage.rows import Space, spaces
from control.storage.trees import Trees
from gfs.blocks import MIB
from gfs.client import Client, Entry
from gfs.client.files import NewFile
from gfs.errors import DiskFull

Login = dict[str, Any]
STEPS = ("snapshot", "set_attributes", "rename", "put", "delete", "delete_many")


class Killed(BaseException):
    """The process is dead: nothing that it asks for is done any more."""


class Place:
    """A storage namespace with versions, and what was acknowledged of its key ``f``. ``other`` is
    another client of the file system."""

    def __init__(
        self, server: Server, storage: Storage, other: Client, who: Login, space: Space
    ) -> None:
        self.server = server
        self.storage = storage
        self.other = other
        self.fs = storage.cluster.fs
        self.space = space
        self.who = who
        self.user_id: str = who["user_id"]
        self.versions = Versions(storage.control, storage.cluster, storage.spaces)
        #: Contents by version.
        self.kept: dict[str, bytes] = {}

    async def store(self, data: bytes) -> None:
        answer = await self.put("f?overwrite=true", data)
        assert answer.status_code == 200, answer.text
        current = await self.versions.current(self.space, "f")
        assert current is not None
        self.kept[id_of(current)] = data

    async def put(self, query: str, data: bytes) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.who['token']}"}
        path = f"/storage/{self.space.name}/{query}"
        return await self.server.http.put(path, content=data, headers=headers)

    async def switch(self, versioning: str) -> None:
        self.space = replace(self.space, versioning=versioning)
        await self.storage.control.records.write(lambda txn: spaces.put(txn, self.space))

    async def delete(self) -> None:
        await self.versions.delete(self.space, "f", self.who["user_id"], lambda _: None)

    async def drop(self, version_id: str) -> None:
        await self.versions.delete_version(self.space, "f", version_id, lambda _: None)

    async def listed(self) -> list[Entry]:
        async def none() -> AsyncIterator[Any]:
            current = await self.versions.current(self.space, "f")
            if current is not None:
                yield "f", current

        older = listing.files(self.fs, self.space.directory, prefix=f"{VERSIONS}/")
        return [each.entry async for each in self.versions.all(none(), older)]  # type: ignore[arg-type]

    async def check(self) -> None:
        """All that was acknowledged is there, once, and can be read by its id."""
        there = [id_of(each) for each in await self.listed() if not is_marker(each)]
        assert len(set(there)) == len(there)
        assert self.kept.keys() <= set(there)
        for version_id, data in self.kept.items():
            found = await self.versions.find(self.space, "f", version_id)
            assert found is not None
            assert await self.fs.get(found.path) == data


@pytest.fixture
async def place(cluster: Cluster) -> AsyncIterator[Place]:
    name = f"space-{secrets.token_hex(6)}"
    async with (
        running(cluster.state, modules=(CheapAuth, Storage)) as server,
        gfs.connect(state=cluster.state) as other,
    ):
        storage = server.app.modules[1]
        assert isinstance(storage, Storage)
        who = await server.new_user(f"user-{secrets.token_hex(6)}")
        answer = await server.call("POST", "/storage/namespaces", who, name=name, visibility=0)
        assert answer.status_code == 200
        made = Place(server, storage, other, who, storage.spaces.get(name))
        await made.switch("on")
        yield made


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[list[int]]:
    """The process is killed when it asks the file system for its nth change; its answer may be
    lost as well (odd steps)."""
    done = [0]
    with pytest.MonkeyPatch.context() as patch:

        def watched(real: Any) -> Any:
            async def change(self: Any, *arguments: Any, **options: Any) -> Any:
                if done[0] > step // 2:
                    raise Killed
                done[0] += 1
                if done[0] > step // 2:
                    if step % 2:
                        await real(self, *arguments, **options)
                    raise Killed
                return await real(self, *arguments, **options)

            return change

        for name in STEPS:
            patch.setattr(Client, name, watched(getattr(Client, name)))
        patch.setattr(NewFile, "close", watched(NewFile.close))
        yield done


CHANGES = ("store", "delete", "drop the latest", "drop the marker", "copy", "undelete")


@pytest.mark.parametrize("status", ["on", "suspended"])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_is_broken_off_loses_no_version(
    place: Place, change: str, status: str
) -> None:
    source = f"{place.space.directory}/source"
    await place.other.put(b"copied", source)
    step = -1
    is_whole = False
    while not is_whole:
        step += 1
        place.kept.clear()
        await place.store(b"one")
        await place.store(b"two")
        if change in ("drop the marker", "undelete"):
            await place.delete()
        await place.switch(status)
        latest = (await place.listed())[0]
        with killed_at(step) as done:
            try:
                if change == "store":
                    await upload(place)
                elif change == "delete":
                    await place.delete()
                elif change == "copy":
                    await copy(place)
                elif change == "undelete":
                    await place.versions.undelete(place.space, "f")
                else:
                    await place.drop(id_of(latest))
                is_whole = done[0] <= step // 2
            except* Killed:
                pass
        if change == "drop the latest":
            place.kept.pop(id_of(latest), None)
        await place.check()
        await place.switch("on")
        # The next who asks, and the next change, find all in order.
        await place.versions.latest(place.space, "f")
        await place.check()
        current = await place.versions.current(place.space, "f")
        first = (await place.listed())[0]
        assert is_marker(first) if current is None else first.inode == current.inode
        await place.store(b"three")
        await place.check()
        for each in await place.listed():
            await place.drop(id_of(each))
        assert await place.listed() == []
    assert step > 3
    await place.other.delete(source)
    control = place.storage.control
    assert await Recounts(control.records, control.ledger).count(place.other, [place.space.id])
    with control.ledger.read() as txn:
        assert count(txn, "s", place.space.id).files == 0


async def upload(place: Place) -> None:
    """What an upload does at its end."""
    space = place.space
    file = place.fs.create(f"{space.directory}/f", overwrite=True)
    async with place.versions.turn(space, "f") as turn, file:
        await file.write(b"new")
        file.expect(turn.inode)
        await turn.keep()
        file.describe(dict(turn.attributes), turn.modified_ns)
        await file.close()


async def copy(place: Place) -> None:
    """Over REST, onto a file that is there."""
    space, storage = place.space, place.storage
    source = await place.fs.stat(f"{space.directory}/source")
    there = await place.versions.current(space, "f")
    call: Any = SimpleNamespace(user=SimpleNamespace(user_id=place.user_id))
    trees = Trees(storage.control, storage.cluster, storage.spaces)
    await trees.copy_to(call, source, space, f"{space.directory}/f", "f", instead_of=there)


async def move(place: Place) -> httpx.Response:
    """From ``f`` to ``g``."""
    path = f"/storage/namespaces/{place.space.name}/move"
    return await place.server.call("POST", path, place.who, source="f", target="g")


async def test_a_move_without_room_for_its_marker_changes_nothing(place: Place) -> None:
    await place.store(b"one")
    for limit, status, there in ((2, 507, ["f"]), (3, 507, ["f"]), (4, 200, ["g"])):
        query = f"/admin/quotas?id={place.user_id}"
        answer = await place.server.call("PUT", query, place.server.admin, files=limit)
        assert answer.status_code == 200, answer.text
        answer = await move(place)
        assert answer.status_code == status, answer.text
        found = [Path(each.path).name async for each in place.other.scan(place.space.directory)]
        assert [name for name in found if name != VERSIONS] == there
    await place.check()


async def test_a_move_takes_nothing_but_what_it_deletes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.store(b"one")
    snapshot = Client.snapshot

    async def after_another(self: Client, source: str, *rest: Any, **options: Any) -> Any:
        monkeypatch.setattr(Client, "snapshot", snapshot)
        await place.store(b"another")
        return await snapshot(self, source, *rest, **options)

    monkeypatch.setattr(Client, "snapshot", after_another)
    assert (await move(place)).status_code == 409
    assert not await place.other.exists(f"{place.space.directory}/g")
    await place.check()
    assert (await move(place)).status_code == 200
    await place.check()


async def test_what_made_way_for_a_version_that_did_not_come_is_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.other.put(b"copied", f"{place.space.directory}/source")
    await place.store(b"one")
    rename = Client.rename
    refused = []

    async def refuse(self: Client, source: str, target: str, **options: Any) -> None:
        if target == f"{place.space.directory}/f" and not refused:
            refused.append(source)
            raise DiskFull(target)
        await rename(self, source, target, **options)

    monkeypatch.setattr(Client, "rename", refuse)
    with pytest.raises(DiskFull):
        await copy(place)
    assert await place.versions.current(place.space, "f") is not None
    await place.check()
    # Nor is it lost to REST if the process is killed then.
    for step in range(0, 40, 2):
        if await place.versions.current(place.space, "f") is None:
            break
        with killed_at(step), contextlib.suppress(Killed, BaseExceptionGroup):
            await copy(place)
    answer = await place.server.http.post(
        f"/storage/namespaces/{place.space.name}/undelete",
        json={"path": "f"},
        headers={"Authorization": f"Bearer {place.who['token']}"},
    )
    assert answer.status_code == 200, answer.text
    assert await place.other.get(f"{place.space.directory}/f") == b"one"
    await place.check()


async def test_who_changes_a_key_holds_up_no_other_key(place: Place) -> None:
    locked = place.versions.locked
    async with locked(place.space, "f"):
        with trio.fail_after(HANG_SECONDS):
            for number in range(500):
                async with locked(place.space, f"f{number}"):
                    pass
        with trio.move_on_after(0.2) as waited:
            async with locked(place.space, "f"):
                pass
        assert waited.cancelled_caught


async def test_markers_that_do_not_count_are_removed_together(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.store(b"one")
    for _ in range(20):
        await place.delete()
    monkeypatch.setattr("control.storage.versions.REMOVED_AT_ONCE", 8)
    monkeypatch.setattr(place.versions, "drop", None)
    back = await place.versions.undelete(place.space, "f")
    assert back is not None
    assert await place.listed() == [back]
    assert not await place.other.exists(f"{place.space.directory}/{VERSIONS}")
    with place.storage.control.ledger.read() as txn:
        assert count(txn, "s", place.space.id).files == 1


async def test_a_copy_that_is_broken_off_loses_no_version_without_an_id(place: Place) -> None:
    """The trash is off."""
    place.storage.cluster.trash_seconds = 0.0
    await place.switch("suspended")
    await place.other.put(b"copied", f"{place.space.directory}/source")
    step = -1
    is_whole = False
    while not is_whole:
        step += 1
        await place.store(b"old")
        with killed_at(step) as done:
            with contextlib.suppress(Killed):
                await copy(place)
            is_whole = done[0] <= step // 2
        latest = await place.versions.latest(place.space, "f")
        assert latest is not None
        assert await place.other.get(latest.path) in (b"old", b"copied")
    assert await place.other.get(latest.path) == b"copied"
    assert len(await place.listed()) == 1


async def test_a_snapshot_is_no_version(place: Place) -> None:
    await place.store(b"one")
    path = f"/storage/namespaces/{place.space.name}/snapshots"
    made = await place.server.call("POST", path, place.who, name="before")
    entry = await place.other.stat(f"{place.space.snapshots}/{made.json()['id']}")
    assert entry.attributes.keys() == {"name", "folder", "files", "size"}


async def test_a_rule_about_old_versions_spares_one_that_is_the_latest_again(place: Place) -> None:
    await place.store(b"one")
    await place.store(b"two")
    latest, old = await place.listed()
    rules = Lifecycle(place.storage.control, place.storage.cluster, place.storage.spaces, 1)
    await place.drop(id_of(latest))
    del place.kept[id_of(latest)]
    await rules._end(place.space, Version("f", old, False, 1))
    await place.check()
    assert len(await place.listed()) == 1
    await place.store(b"three")
    _, old = await place.listed()
    await rules._end(place.space, Version("f", old, False, 1))
    assert len(await place.listed()) == 1


@pytest.mark.parametrize("change", ["store", "copy"])
async def test_what_is_stored_by_a_clock_that_lags_hides_no_version(
    place: Place, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.other.put(b"copied" * MIB, f"{place.space.directory}/source")
    with monkeypatch.context() as patch:
        ahead = SimpleNamespace(time_ns=lambda: time.time_ns() + 60 * 10**9)
        patch.setattr("control.storage.versions.time", ahead)
        await place.store(b"one")
    await place.switch("suspended")
    for _ in range(2):  # what counts no longer would go with the second
        if change == "store":
            await place.store(b"two")
        else:
            await copy(place)
        latest = (await place.listed())[0]
        assert id_of(latest) == "null"
        await place.check()


@pytest.mark.parametrize("after", ["store", "delete", "sweep", "drop", "nothing"])
@pytest.mark.parametrize("other", ["stored", "moved"])
async def test_no_version_is_lost_to_a_file_of_an_earlier_time(
    place: Place, other: str, after: str
) -> None:
    """Which another client has put at the path: it stays the latest."""
    path = f"{place.space.directory}/f"
    await place.store(b"zero")
    if other == "moved":  # with its id
        await place.other.snapshot(path, f"{path}.old")
    await place.store(b"one")
    await place.delete()
    await place.store(b"two")
    await place.store(b"three")
    place.kept.popitem()
    if other == "moved":
        place.kept.pop(next(iter(place.kept)))
        await place.other.delete((await place.listed())[-1].path)
        await place.other.rename(f"{path}.old", path, replace=True)
    else:
        await place.other.put(b"zero", path, overwrite=True, modified_ns=1)
    for version_id, data in place.kept.items():
        found = await place.versions.find(place.space, "f", version_id)
        assert found is not None
        assert await place.other.get(found.path) == data
    foreign = await place.versions.current(place.space, "f")
    assert foreign is not None
    if after == "nothing":
        return
    count_before = len(place.kept) + 1
    if after == "store":
        await place.store(b"four")
    elif after == "delete":
        await place.delete()
    elif after == "sweep":
        await place.versions.repair(place.space)
    else:
        await place.drop(id_of(foreign))
    await place.check()
    there = [each for each in await place.listed() if not is_marker(each)]
    contents = [await place.other.get(each.path) for each in there]
    if after == "drop":
        assert contents[0] == b"two"
        return
    assert len(there) == count_before + (after == "store")
    assert contents[after == "store"] == b"zero"


async def recounted(
    storage: Storage, space: Space, meanwhile: Callable[[], Awaitable[None]]
) -> int:
    """How many files a storage namespace has, by a recount in which something is done when its
    directory was read, and what is in its folders was not."""
    control, scan = storage.control, Client.scan
    recounts = Recounts(control.records, control.ledger)
    is_done = []

    async def watched(self: Client, path: str, *rest: Any) -> AsyncIterator[Entry]:
        async with contextlib.aclosing(scan(self, path, *rest)) as found:
            async for entry in found:
                yield entry
        if path == space.directory and not is_done:
            is_done.append(path)
            await meanwhile()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "scan", watched)
        await recounts.count(storage.cluster.fs, [space.id])
    assert is_done
    with trio.fail_after(HANG_SECONDS):
        while True:
            with control.ledger.read() as txn:
                is_due = space.id in usage.due(txn)
                found = count(txn, "s", space.id).files
            if not is_due:
                return found
            await trio.sleep(0.05)  # it is counted again


async def test_a_version_that_moves_to_its_path_meanwhile_is_counted(place: Place) -> None:
    for data in (b"one", b"two", b"three"):
        await place.store(data)
    latest = (await place.listed())[0]
    assert await recounted(place.storage, place.space, lambda: place.drop(id_of(latest))) == 2


@pytest.mark.parametrize("reason", ["description", "turn", "copy", "another"])
async def test_an_upload_that_is_refused_at_its_end_leaves_nothing_to_be_counted(
    place: Place, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.store(b"one")
    lost: list[str] = []
    monkeypatch.setattr(usage, "mark_lost", lambda _, reservation_id: lost.append(reservation_id))

    def refuse() -> dict[str, str]:
        raise BadRequest("it is too long")

    async def fail(*_: Any, **__: Any) -> None:
        raise DiskFull("full")

    if reason == "description":
        described = partial(UploadRequest, describe=refuse)
        monkeypatch.setattr("control.storage.module.UploadRequest", described)
    elif reason == "turn":
        monkeypatch.setattr("control.storage.versions.LOCK_SECONDS", 0.1)
    elif reason == "copy":
        monkeypatch.setattr(Client, "snapshot", fail)

    async def put(query: str) -> int:
        return (await place.put(query, b"two")).status_code

    if reason == "turn":
        async with place.versions.locked(place.space, "f"):
            assert await put("f?overwrite=true") == 503
    elif reason == "another":
        turn = Versions.turn

        @contextlib.asynccontextmanager
        async def late(self: Versions, *where: Any) -> AsyncIterator[Any]:
            await place.other.put(b"another", f"{place.space.directory}/g")
            async with turn(self, *where) as found:
                yield found

        monkeypatch.setattr(Versions, "turn", late)
        assert await put("g") == 409
    else:
        assert await put("f?overwrite=true") == {"description": 400, "copy": 507}[reason]
    assert lost == []
    with place.storage.control.ledger.read() as txn:
        assert count(txn, "r", place.user_id).files == 0
    await place.check()


@pytest.mark.parametrize("versioning", ["", "on"])
async def test_what_was_renewed_since_it_was_listed_does_not_expire(
    place: Place, versioning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of an object to itself gives the same file another time."""
    space = replace(place.space, versioning=versioning)
    path = f"{space.directory}/f"
    old = await place.other.put(b"x", path, modified_ns=1)

    async def listed(*_: Any, **__: Any) -> AsyncIterator[tuple[str, Entry]]:
        yield "f", old

    monkeypatch.setattr("control.s3.lifecycle.listing", SimpleNamespace(files=listed))
    lifecycle = Lifecycle(place.storage.control, place.storage.cluster, place.storage.spaces, 1)
    rules = [Rule("rule", "", {}, -1, None, 1, 0, 0)]
    for modified_ns, is_there in ((time.time_ns() + 60 * 10**9, True), (1, False)):
        await place.other.set_attributes(path, modified_ns=modified_ns)
        await lifecycle._expire(space, rules)
        assert await place.other.exists(path) == is_there

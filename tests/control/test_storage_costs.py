"""What lists of others' files cost the master and this process: questions and rows are counted.
The master's part is real, in this process; the wire between is not there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from subtrees import deep, stored

from control.errors import Conflict, Unavailable
from control.identity.access import PUBLIC
from control.records import PAGE_ROWS, Records, Table
from control.storage import listing
from control.storage.cluster import STRANGERS_AT_ONCE, STRANGERS_WAITING_MAX, Cluster
from control.storage.keys import KEYS, all_keys
from control.storage.lists import json_array
from control.storage.rows import STORAGE, Space, spaces
from control.storage.shapes import FileInfo
from control.storage.spaces import Spaces
from control.storage.transfer import Upload
from gfs.client import Client
from gfs.errors import MasterUnavailable
from gfs.master.metadata import subtree
from gfs.master.metadata.store import Store
from gfs.protocol.messages import ListFiles, ListFilesReply, Message

#: For 1,000 files 63 folders deep: a row for each folder and file, and one for the end of each
#: folder; of a page's first file those once more.
QUESTIONS = 1000 * 128 // (subtree.ROWS_MAX - 64) + 1


class Asked(Client):
    """Asks the master's part at once."""

    def __init__(self, store: Store) -> None:
        self._core: Any = SimpleNamespace(present_request=lambda: 1)
        self._store = store
        self.questions = 0
        self.at_once = self.most_at_once = 0

    async def _ask(self, request: Message, kind: type[Any]) -> Any:
        assert isinstance(request, ListFiles)
        self.questions += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        self.at_once -= 1
        with self._store.read() as txn:
            return ListFilesReply(0, *subtree.page(txn, request))


async def listed(found: AsyncGenerator[tuple[str, Any], None], most: int = 10**6) -> list[str]:
    paths: list[str] = []
    async with aclosing(found) as files:
        async for path, _ in files:
            paths.append(path)
            if len(paths) == most:
                break
    return paths


@pytest.fixture(scope="module")
def deep_files() -> Iterator[Store]:
    """1,000 files, each 63 folders deep in folders of its own."""
    with stored(deep(number, 63) for number in range(1000)) as store:
        yield store


async def test_1000_files_63_folders_deep_cost_as_their_rows(deep_files: Store) -> None:
    """Each folder was a question once: 63,001 of them."""
    asked = Asked(deep_files)
    found = await listed(listing.files(asked, "/root"))
    assert found == [deep(number, 63) for number in range(1000)]
    assert asked.questions <= QUESTIONS


async def test_what_a_list_begins_after_costs_no_question(deep_files: Store) -> None:
    """Each beginning of a name that a hyphen follows was one: 255 in each folder."""
    asked = Asked(deep_files)
    for after in ("-" * 255, "/".join(["-" * 255] * 4), "0500/" + "d/" * 30 + "-" * 255):
        asked.questions = 0
        await listed(listing.files(asked, "/root", after=after), 1)
        assert asked.questions == 1, after


async def test_a_page_of_objects_costs_two_lists(deep_files: Store) -> None:
    asked = Asked(deep_files)
    assert len(await listed(all_keys(asked, "/root", page=1000), 1000)) == 1000
    assert asked.questions <= QUESTIONS + 1
    asked.questions = 0
    assert len(await listed(all_keys(asked, "/root", by_folder=True, page=1000), 1000)) == 1000
    # The folders of a folder are as many files: 1,000 of them do not fit into one reply.
    assert asked.questions <= 4


async def test_of_files_that_are_no_objects_few_are_read() -> None:
    """Whoever may upload over REST may put a million of them where keys are looked for."""
    with stored(f"{KEYS}/={number:04}" for number in range(5000)) as store:
        asked = Asked(store)
        with pytest.raises(Conflict, match="no objects"):
            await listed(all_keys(asked, "/root", vain_max=1000))
        assert asked.questions <= 3
        assert await listed(all_keys(asked, "/root")) == []


async def test_few_strangers_ask_at_once(deep_files: Store) -> None:
    """Of the others some wait, and more are answered that they shall come again."""
    asked, cluster = Asked(deep_files), Cluster(SimpleNamespace())  # type: ignore[arg-type]
    refused = 0

    async def ask(found: list[int]) -> None:
        nonlocal refused
        try:
            turn = cluster.turn(None)
        except Unavailable:
            refused += 1
            return
        found.append(len(await listed(listing.files(asked, "/root", turn=turn), 5)))

    found: list[int] = []
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(ask, found)
            await trio.lowlevel.checkpoint()
    assert asked.most_at_once == STRANGERS_AT_ONCE
    assert refused > 0
    assert found == [5] * (200 - refused)
    assert len(found) >= STRANGERS_WAITING_MAX


async def test_who_is_logged_in_waits_for_no_stranger(deep_files: Store) -> None:
    asked, cluster = Asked(deep_files), Cluster(SimpleNamespace())  # type: ignore[arg-type]
    strangers = cluster.turn(None)
    assert isinstance(strangers, trio.CapacityLimiter)
    for number in range(STRANGERS_AT_ONCE):
        await strangers.acquire_on_behalf_of(number)
    somebody: Any = object()
    found = listing.files(asked, "/root", turn=cluster.turn(somebody))
    assert len(await listed(found, 5)) == 5


def rows(count: int, then: type[Exception] | None = None) -> AsyncGenerator[FileInfo, None]:
    async def some() -> AsyncGenerator[FileInfo, None]:
        for number in range(count):
            await trio.lowlevel.checkpoint()
            yield FileInfo(f"{number}", "x" * 100, "space", 0, 0, 0)
        if then is not None:
            raise then("the master is away")

    return some()


async def test_a_failure_half_way_is_no_short_array() -> None:
    response = await json_array(rows(5000, MasterUnavailable))
    sent = b""
    with pytest.raises(MasterUnavailable):  # noqa: PT012 - what came before it counts
        async with response.response as pieces:
            async for piece in pieces:
                sent += piece
    assert len(sent) > 100_000
    assert not sent.endswith(b"]")
    with pytest.raises(MasterUnavailable):
        await json_array(rows(5, MasterUnavailable))  # before anything was sent: an error


async def test_the_answer_of_a_slow_list_begins(autojump_clock: trio.testing.MockClock) -> None:
    """From then on its connection can be ended for another: see control/http/slots.py."""

    async def slow() -> AsyncGenerator[FileInfo, None]:
        async with aclosing(rows(100)) as found:
            async for row in found:
                await trio.sleep(0.6)
                yield row

    began = trio.current_time()
    response = await json_array(slow())
    assert trio.current_time() - began < 3.0
    assert response.content_length is None
    async with response.response as pieces:
        assert b"".join([piece async for piece in pieces]).endswith(b"]")


async def test_100000_namespaces_of_others_cost_the_rows_of_the_public_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, public = 100_000, 1_000
    records = Records.open(tmp_path, [STORAGE], sync=False)

    def fill(txn: Any) -> None:
        for number in range(count):
            visibility = 2 if number % (count // public) == 0 else number % 2
            name = f"{number:06}"
            spaces.put(txn, Space(name, name, f"user-{number}", visibility, False, 1))

    await records.write(fill)
    read, steps = 0, [0]
    row_of = Table._row

    def counted(*arguments: Any) -> Any:
        nonlocal read
        read += 1
        steps[-1] += 1
        return row_of(*arguments)

    monkeypatch.setattr(Table, "_row", counted)
    known: Any = SimpleNamespace(records=records)
    found = Spaces(known, None)  # type: ignore[arg-type]
    monkeypatch.setattr(found, "infos", list)
    seen = 0
    async for _ in found.listed_for(None, PUBLIC):
        seen += 1
        if seen % PAGE_ROWS == 0:
            steps.append(0)
    assert (seen, read) == (public, public)
    assert max(steps) <= PAGE_ROWS
    records.close()


class Piece(bytes):
    """Of a body; counts those that are kept anywhere."""

    kept = 0

    def __new__(cls, data: bytes) -> Piece:
        cls.kept += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        Piece.kept -= 1


async def test_nothing_of_a_body_is_kept_while_its_client_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand paused uploads had a quarter of a gigabyte of pieces that were sent already."""
    seen = []

    async def body() -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            yield Piece(b"sent")
            seen.append(Piece.kept)  # the next one is waited for

    async def write(piece: bytes) -> None:
        assert Piece.kept == 1

    @asynccontextmanager
    async def publishing(_: Upload) -> AsyncGenerator[Any, None]:
        yield write

    monkeypatch.setattr(Upload, "_publishing", publishing)
    upload: Any = object.__new__(Upload)
    upload._call, upload._request = SimpleNamespace(body=body), SimpleNamespace(joined=())
    upload._path = "f"
    await upload._take_raw()
    assert seen == [0, 0, 0]

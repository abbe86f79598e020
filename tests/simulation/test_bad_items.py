"""Calls that take many items look at each before they send it: a wrong one is named, and nothing
of it is half-done; what is stored after a failure or a cancellation is as ``put_many`` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio

from gfs.client import Client, Entry
from gfs.client.rounds import ITEMS_MAX
from gfs.errors import InvalidArgument
from gfs.testing import SimCluster

from .seeds import over_seeds

GOOD_ITEMS: dict[str, list[Any]] = {
    "put_many": [("/a", b"a"), ("/b", b"b"), ["/c", bytearray(b"c")], ("/d", memoryview(b"d"))],
    "get_many": ["/a", "/b", "/c", "/d"],
    "stat_many": ["/a", "/b", "/c", "/d"],
    "delete_many": ["/a", "/b", "/c", "/d"],
    "get_ranges": [("/a", 0, 1), ("/b", None, None), ("/c", -1, None), ["/d", 0, 0]],
    "append_many": [b"a", bytearray(b"b"), memoryview(b"c"), b""],
}
RELEASED = memoryview(b"released")
RELEASED.release()
NO_PATHS: list[tuple[object, str]] = [
    (None, "text"),
    (7, "text"),
    (b"/bytes", "text"),
    (("/a",), "text"),
]
NO_BYTES: list[tuple[object, str]] = [
    (None, "bytes"),
    ("text", "bytes"),
    (7, "bytes"),
    ([1, 2], "bytes"),
    (memoryview(b"abcdef")[::2], "contiguous"),
    (RELEASED, "released"),
]
#: What is wrong, and a word of the error that says what is expected instead.
BAD_ITEMS: dict[str, list[tuple[object, str]]] = {
    "put_many": [
        *[((path, b""), word) for path, word in NO_PATHS],
        *[(("/x", data), word) for data, word in NO_BYTES],
        *[(item, r"\(path, bytes\)") for item in (None, 7, "/x", "ab", (), ("/x",), (1, 2, 3))],
        (("/b", b"again"), "items 1 and 4 are both '/b'"),
        (("/b/", b"again"), "items 1 and 4 are both '/b'"),
    ],
    "get_many": NO_PATHS,
    "stat_many": NO_PATHS,
    "delete_many": NO_PATHS,
    "get_ranges": [
        *[((path, 0, 1), word) for path, word in NO_PATHS],
        *[(item, r"\(path, start, end\)") for item in (None, 7, "abc", (), ("/a",), ("/a", 0))],
        *[(("/a", start, 1), "a number, or None") for start in ("0", 0.0, b"")],
    ],
    "append_many": NO_BYTES,
}
CASES = [(name, *bad) for name, some in BAD_ITEMS.items() for bad in some]


async def call(fs: Client, name: str, items: Any) -> Any:
    return await getattr(fs, name)(*["/log"] * (name == "append_many"), items)


@pytest.mark.parametrize("is_iterator", [False, True])
@over_seeds(1)
async def test_a_bad_item_is_named_and_nothing_is_sent(
    cluster: SimCluster, fs: Client, is_iterator: bool
) -> None:
    """Of an iterator, as long as one round takes all."""
    await fs.put(b"there", "/b")
    before = await fs.list()
    for name, bad, word in CASES:
        items = [*GOOD_ITEMS[name], bad]
        sentence = word if word.startswith("items") else rf"item {len(GOOD_ITEMS[name])}: .*{word}"
        with pytest.raises(InvalidArgument, match=sentence):
            await call(fs, name, iter(items) if is_iterator else items)
        assert await fs.list() == before, (name, bad)


@over_seeds(1)
async def test_what_is_no_list_is_refused(fs: Client) -> None:
    async def generate() -> Any:
        yield "/a"

    for name in GOOD_ITEMS:
        for items in (None, 7, "/a", b"/a", generate()):
            got = "None" if items is None else type(items).__name__
            with pytest.raises(InvalidArgument, match=f"got {got}.*: give a list"):
                await call(fs, name, items)
    assert await fs.list() == []


@over_seeds(1)
async def test_good_items_are_stored(fs: Client) -> None:
    for name, items in GOOD_ITEMS.items():
        found = await call(fs, name, items)
        assert len(found) == len(items)
    assert await fs.put_many({"/e": b"1", "/f": b"2"}.items())
    assert await fs.get_many({"/e": None, "/f": None}) == [b"1", b"2"]
    assert await fs.get_many(["/e", "/e"]) == [b"1", b"1"]


@over_seeds(1)
async def test_a_list_is_looked_at_as_a_whole_an_iterator_as_it_goes(fs: Client) -> None:
    good = [(f"/f/{n:04}", b"%d" % n) for n in range(2 * ITEMS_MAX + 10)]
    items: list[Any] = [*good, ("/f/0000", b"again"), ("/late", b"")]
    repeated = f"items 0 and {len(good)} are both '/f/0000'"
    with pytest.raises(InvalidArgument, match=repeated):
        await fs.put_many(items)
    assert await fs.list() == []
    taken = iter(items)
    with pytest.raises(
        InvalidArgument, match=f"{repeated}.*the first {2 * ITEMS_MAX} items were sent"
    ):
        await fs.put_many(taken)
    assert [entry.path for entry in await fs.list("/f")] == [p for p, _ in good[: 2 * ITEMS_MAX]]
    assert next(taken) == ("/late", b"")


@pytest.mark.parametrize("ends_by", ["cancellation", "an error of the iterator"])
@over_seeds(2)
async def test_what_is_stored_when_a_call_ends_in_the_middle(
    cluster: SimCluster, chance: Any, fs: Client, ends_by: str
) -> None:
    """What was taken before the last round is stored; of the last, each file or none of it; of
    what was not taken, nothing."""
    taken = 0
    scope = trio.CancelScope()
    last = chance.randrange(ITEMS_MAX + 1, 4 * ITEMS_MAX)

    def generate() -> Iterator[tuple[str, bytes]]:
        nonlocal taken
        while True:
            if taken == last:
                if ends_by != "cancellation":
                    raise ZeroDivisionError
                scope.deadline = trio.current_time() + chance.uniform(0, 0.05)
            yield f"/f/{taken:06}", b"%d" % taken
            taken += 1

    with scope:
        try:
            await fs.put_many(generate())
        except ZeroDivisionError:
            assert ends_by != "cancellation"
    assert scope.cancelled_caught == (ends_by == "cancellation")
    sure = (taken - 1) // ITEMS_MAX * ITEMS_MAX
    found = {entry.path for entry in await fs.list("/f")}
    names = [f"/f/{n:06}" for n in range(taken)]
    assert set(names[:sure]) <= found <= set(names)
    if ends_by != "cancellation":
        assert len(found) == sure
    for path, data in zip(names, await fs.get_many(names), strict=True):
        assert data == b"%d" % int(path[-6:]) if path in found else isinstance(data, Exception)
    again = await fs.put_many(((path, b"again") for path in names), overwrite=True)
    assert all(isinstance(each, Entry) for each in again)

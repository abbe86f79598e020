"""Common prefixes of a list: as many keys as one has, few of them are read."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.s3 import buckets
from control.s3.buckets import Buckets, Wanted, _Groups
from control.storage import Space

KEYS = st.sets(st.text("a-/\U0010ffff", min_size=1, max_size=6), max_size=40)


class Listed:
    """A bucket's keys, instead of the file system's, and how many were read."""

    def __init__(self, keys: set[str]) -> None:
        # In the order of UTF-8, which is that of the code points.
        self._keys = sorted(keys)
        self.read = 0
        self.buckets = Buckets.__new__(Buckets)
        self.buckets._cluster = cast(Any, SimpleNamespace(fs=None))
        self.buckets.versions = cast(Any, self)

    async def all_keys(
        self, fs: None, directory: str, prefix: str, *, after: str = "", **_: object
    ) -> AsyncGenerator[tuple[str, Any]]:
        for key in self._keys:
            if key > after and key.startswith(prefix):
                self.read += 1
                yield key, key

    async def files(self, *_: object, **__: object) -> AsyncGenerator[tuple[str, Any]]:
        for each in ():
            yield each

    async def all(
        self, currents: AsyncGenerator[tuple[str, Any]], older: object, before: str
    ) -> AsyncGenerator[Any]:
        async for key, _ in currents:
            for number in range(2):
                yield SimpleNamespace(key=key, number=number)

    def patch(self, monkeypatch: pytest.MonkeyPatch, skipped_max: int) -> None:
        monkeypatch.setattr(buckets, "all_keys", self.all_keys)
        monkeypatch.setattr(buckets.listing, "files", self.files)
        monkeypatch.setattr(buckets, "SKIPPED_MAX", skipped_max)


def expected(keys: set[str], prefix: str, delimiter: str, after: str) -> list[str]:
    found = set()
    for key in keys:
        if key > after and key.startswith(prefix):
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            group = key if cut < 0 else key[: cut + len(delimiter)]
            if cut < 0 or group > after:
                found.add(group)
    return sorted(found)


SPACE = cast(Space, SimpleNamespace(directory="/d"))


@given(
    KEYS,
    st.sampled_from(["", "a", "a-", "-"]),
    st.sampled_from(["", "-", "/", "a", "--"]),
    st.text("a-/", max_size=3),
    st.integers(0, 2),
)
async def test_a_list_is_the_same_however_much_is_skipped(
    keys: set[str], prefix: str, delimiter: str, after: str, skipped_max: int
) -> None:
    listed = Listed(keys)
    with pytest.MonkeyPatch.context() as monkeypatch:
        listed.patch(monkeypatch, skipped_max)
        wanted, turn = Wanted(prefix, delimiter, 1000, False), nullcontext()
        groups = _Groups(prefix, delimiter)
        found = [key async for key, _ in listed.buckets._found(SPACE, wanted, groups, after, turn)]
        groups = _Groups(prefix, delimiter)
        versions = [
            (key, each and each.number)
            async for key, each in listed.buckets._versions(SPACE, wanted, groups, "", "", turn)
        ]
    assert found == expected(keys, prefix, delimiter, after)
    each_twice = []
    for key in expected(keys, prefix, delimiter, ""):
        is_group = bool(delimiter) and key.find(delimiter, len(prefix)) >= 0
        each_twice += [(key, None)] if is_group else [(key, 0), (key, 1)]
    assert versions == each_twice


async def test_a_common_prefix_of_many_keys_is_read_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = Listed({f"a-{number}" for number in range(50_000)} | {"b"})
    listed.patch(monkeypatch, buckets.SKIPPED_MAX)
    wanted, groups = Wanted("", "-", 1000, False), _Groups("", "-")
    found = listed.buckets._found(SPACE, wanted, groups, "", nullcontext())
    assert [key async for key, _ in found] == ["a-", "b"]
    assert listed.read < 2000


@given(KEYS, st.integers(0, 2), st.integers(0, 9), st.integers(1, 5))
async def test_a_page_reads_a_bounded_number_of_keys_and_the_next_goes_on(
    keys: set[str], skipped_max: int, read_max: int, limit: int
) -> None:
    """It may have few, as S3 allows; and one at least."""
    listed, found, after = Listed(keys), list[str](), ""
    with pytest.MonkeyPatch.context() as monkeypatch:
        listed.patch(monkeypatch, skipped_max)
        monkeypatch.setattr(buckets, "READ_MAX", read_max)
        is_more = True
        while is_more:
            listed.read = 0
            wanted = Wanted("", "-", limit, False)
            objects, folders, after, is_more = await listed.buckets._page(
                SPACE, wanted, after, nullcontext()
            )
            assert not is_more or objects or folders
            found += sorted([*folders, *(key for key, _ in objects)])
            # Those of its last common prefix, one that begins a new list, and one that ends it.
            assert listed.read <= read_max + 2 * (skipped_max + 3)
    assert found == expected(keys, "", "-", "")


async def test_common_prefixes_of_many_keys_each_end_a_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None has enough to be skipped: a list read a million keys."""
    listed = Listed({f"{number // 500:04}-{number:06}" for number in range(100_000)})
    listed.patch(monkeypatch, buckets.SKIPPED_MAX)
    page = await listed.buckets._page(SPACE, Wanted("", "-", 1000, False), "", nullcontext())
    assert page.is_more
    assert page.folders == [f"{number:04}-" for number in range(len(page.folders))]
    assert listed.read <= buckets.READ_MAX + buckets.SKIPPED_MAX

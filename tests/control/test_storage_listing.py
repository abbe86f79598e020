"""The order of a listing against ``sorted``, whatever there is in whatever folders."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import trio
from hypothesis import example, given
from hypothesis import strategies as st

from control.storage import listing
from gfs.errors import NotFound


@dataclass(frozen=True)
class Thing:
    path: str
    kind: str


class Tree:
    """What the file system says of a directory: its entries by the bytes of their names."""

    def __init__(self, paths: set[str]) -> None:
        self.folders: dict[str, dict[str, Thing]] = {"/root": {}}
        for path in paths:
            self._add(path)
        self.scanned: list[str] = []
        #: Entries that were read, and asked for one by one.
        self.read = 0
        self.asked = 0

    def _add(self, path: str) -> None:
        here = "/root"
        *folders, name = path.split("/")
        for folder in folders:
            below = f"{here}/{folder}"
            self.folders[here][folder] = Thing(below, "directory")
            self.folders.setdefault(below, {})
            here = below
        self.folders[here][name] = Thing(f"{here}/{name}", "file")

    async def scan(self, path: str, after: str) -> AsyncGenerator[Thing, None]:
        self.scanned.append(path)
        await trio.lowlevel.checkpoint()
        if path not in self.folders:
            raise NotFound(path)
        for name in sorted(self.folders[path], key=str.encode):
            if name.encode() > after.encode():
                self.read += 1
                yield self.folders[path][name]

    async def stat(self, path: str) -> Thing:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        folder, _, name = path.rpartition("/")
        try:
            return self.folders[folder][name]
        except KeyError:
            raise NotFound(path) from None


def list_all(tree: Tree, prefix: str = "", after: str = "") -> list[str]:
    async def main() -> list[str]:
        found = listing.files(tree, "/root", prefix=prefix, after=after)
        return [path async for path, _ in found]

    return trio.run(main)


def without_conflicts(paths: list[str]) -> set[str]:
    """A file is no folder: what lies below another path is left out."""
    kept: set[str] = set()
    for path in paths:
        if not any(path.startswith(k + "/") or k.startswith(path + "/") for k in kept):
            kept.add(path)
    return kept


#: Around the slash in the order of bytes, and far from it.
segment = st.text(alphabet="a!.0-\u00fc\U0001f600", min_size=1, max_size=3).filter(
    lambda name: name not in (".", "..")
)
path = st.lists(segment, min_size=1, max_size=4).map("/".join)
paths = st.lists(path, max_size=30).map(without_conflicts)


@given(paths)
@example({"a/b", "a!", "a.txt", "a0", "a", "a!/c"} - {"a", "a!"})
def test_a_listing_is_sorted_by_the_bytes_of_the_path(paths: set[str]) -> None:
    assert list_all(Tree(paths)) == sorted(paths, key=str.encode)


#: Cut anywhere, with names that nothing can have, and not always UTF-8.
anything = st.text(alphabet="a!.0-/\0\u00fc\ud800\U0001f600", max_size=8)


@given(paths, st.text(alphabet="a!.0-/\u00fc", max_size=5), path | anything | st.just("a" * 300))
@example({"a/b", "a!", "a-b/c", "a-b-c"}, "", "a-b")
@example({"a/b", "a!", "a-b/c", "a-b-c"}, "a", "a!")
@example({"a-b", "a-b-c", "a0"}, "a-b", "")
@example({"\U0001f600/a", "z"}, "", "a\ud800\U0001f600")
@example({"a/b/c"}, "a/", "")
@example({"a/b/c"}, "a//", "")
@example({"a/b/c"}, "/a", "")
@example({"a/b/c"}, "../root/a", "")
def test_a_listing_is_cut_as_a_filter_would(paths: set[str], prefix: str, after: str) -> None:
    expected = [
        path
        for path in sorted(paths, key=str.encode)
        if path.startswith(prefix) and path.encode() > after.encode("utf-8", "surrogatepass")
    ]
    assert list_all(Tree(paths), prefix, after) == expected


def test_only_what_can_match_is_read() -> None:
    tree = Tree({f"{folder}/{name}" for folder in "abc" for name in "xyz"} | {"b/w/1"})
    assert list_all(tree, prefix="b/x") == ["b/x"]
    assert tree.scanned == ["/root/b"]
    tree.scanned.clear()
    assert list_all(tree, after="b/y") == ["b/z", "c/x", "c/y", "c/z"]
    assert tree.scanned == ["/root", "/root/b", "/root/c"]


def test_a_folder_deleted_meanwhile_is_empty() -> None:
    tree = Tree({"a/1", "b/1", "c"})
    del tree.folders["/root/a"]
    assert list_all(tree) == ["b/1", "c"]


async def test_a_listing_reads_no_further_than_it_is_asked() -> None:
    tree = Tree({f"{number:04}" for number in range(1000)})
    assert await first_of(tree, 3) == ["0000", "0001", "0002"]
    assert tree.read <= 4


@given(paths, st.integers(1, 4))
def test_pages_that_follow_each_other_are_the_whole(paths: set[str], size: int) -> None:
    tree = Tree(paths)
    found: list[str] = []
    while page := list_all(tree, after=found[-1] if found else "")[:size]:
        found += page
    assert found == sorted(paths, key=str.encode)


async def first_of(tree: Tree, count: int, **terms: str) -> list[str]:
    found = listing.files(tree, "/root", **terms)
    first = [(await anext(found))[0] for _ in range(count)]
    await found.aclose()
    return first


async def test_a_page_costs_itself_and_not_what_is_before_it() -> None:
    names = [f"{folder}/file-{number:04}.txt" for folder in "ab" for number in range(1000)]
    tree = Tree({*names, "b/file/x", "b/file-0900/x"})
    assert await first_of(tree, 3, after="b/file-0900.txt") == [
        "b/file-0900/x",
        *names[1901:1903],
    ]
    # Nothing of the folder a, and of b only the page; what sorts later one by one.
    assert tree.read <= 6
    assert tree.asked <= 4
    tree.read = tree.asked = 0
    assert await first_of(tree, 2, prefix="b/file-09") == ["b/file-0900.txt", "b/file-0900/x"]
    assert tree.read <= 4
    assert tree.asked <= 1


def test_nothing_is_read_where_all_is_before_it() -> None:
    tree = Tree({f"a/{number:04}" for number in range(1000)})
    assert list_all(tree, prefix="a/", after="b") == []
    assert tree.read == 0

"""Pages of the files below a directory, on real LMDB, against ``sorted``: whatever there is in
whatever folders, wherever a page begins, and however few rows it may read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from subtrees import deep, stored

from gfs.errors import InvalidArgument, NotADirectory, NotFound
from gfs.master.metadata import subtree
from gfs.master.metadata.namespace import plan_publish
from gfs.master.metadata.operations import apply
from gfs.master.metadata.store import Store, Txn
from gfs.protocol.frames import encode_frame
from gfs.protocol.messages import (
    HEAD_BYTES_MAX,
    Entry,
    ListFiles,
    ListFilesReply,
    Publish,
)


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class Asked:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.questions = 0

    def pages(
        self, prefix: str = "", after: str = "", limit: int = 1000, **more: object
    ) -> Iterator[list[Entry]]:
        cursor = raw(after)
        while True:
            question = ListFiles(0, "/root", raw(prefix), cursor, limit, **more)  # type: ignore[arg-type]
            with self.store.read() as txn:
                entries, later = subtree.page(txn, question)
            self.questions += 1
            assert not later or later > cursor
            assert len(entries) <= limit
            yield entries
            if not later:
                return
            cursor = later

    def all(self, *arguments: object, **more: object) -> list[str]:
        pages = self.pages(*arguments, **more)  # type: ignore[arg-type]
        return [relative(entry) for page in pages for entry in page]


def relative(entry: Entry) -> str:
    path = entry.path.removeprefix("/root/")
    return f"{path}/" if entry.kind == "directory" else path


def without_conflicts(paths: list[str]) -> set[str]:
    """A file is no folder: what lies below another path is left out."""
    kept: set[str] = set()
    for path in paths:
        if not any(path.startswith(k + "/") or k.startswith(path + "/") for k in kept):
            kept.add(path)
    return kept


#: Around the slash in the order of bytes, and far from it.
segment = st.text(alphabet="a!.0-ü\U0001f600", min_size=1, max_size=3).filter(
    lambda name: name not in (".", "..")
)
path = st.lists(segment, min_size=1, max_size=4).map("/".join)
paths = st.lists(path, max_size=30).map(without_conflicts)
#: Cut anywhere, with names that nothing can have, and not always UTF-8.
anything = st.text(alphabet="a!.0-/\0ü\ud800\U0001f600", max_size=8)
#: How many rows and files a page has. The rows of a chain of folders are more than two.
sizes = st.sampled_from([(2, 1), (2, 3), (3, 2), (1000, 1), (1000, 2), (1000, 1000)])


def wanted(paths: Iterable[str], prefix: str, after: str) -> list[str]:
    found = sorted(paths, key=str.encode)
    return [path for path in found if path.startswith(prefix) and path.encode() > raw(after)]


@given(paths, st.text(alphabet="a!.0-/ü", max_size=5), path | anything | st.just("a" * 300), sizes)
@example({"a/b", "a!", "a.txt", "a0", "a!!/c"}, "", "", (2, 1))
@example({"a/b", "a!", "a-b/c", "a-b-c"}, "", "a-b", (2, 1))
@example({"a/b", "a!", "a-b/c", "a-b-c"}, "a", "a!", (1000, 1000))
@example({"a-b", "a-b-c", "a0"}, "a-b", "", (1000, 1000))
@example({"a/b/c/d/e/f", "a/b/c/d/e/g", "a/b0"}, "", "", (2, 1))
@example({"\U0001f600/a", "z"}, "", "a\ud800\U0001f600", (1000, 1000))
@example({"a/b/c"}, "a/", "", (1000, 1000))
@example({"a/b/c"}, "a//", "", (1000, 1000))
@example({"a/b/c"}, "/a", "", (1000, 1000))
@example({"a/b/c"}, "../root/a", "", (1000, 1000))
@example({"a/b/c"}, "a" * 5000, "a" * 5000, (1000, 1000))
@example({"a/b", *(f"a!{number}" for number in range(9)), "c"}, "", "a/b", (2, 1))
def test_pages_are_the_whole_as_a_filter_would_cut_it(
    paths: set[str], prefix: str, after: str, sizes: tuple[int, int]
) -> None:
    with stored(paths) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(subtree, "ROWS_MAX", sizes[0])
        assert Asked(store).all(prefix, after, sizes[1]) == wanted(paths, prefix, after)


def folded(paths: Iterable[str], folders: Iterable[str], prefix: str) -> set[str]:
    """With each folder that is longer than the prefix in place of what is in it."""
    chains = {f"{folder}/" for folder in folders}
    for each in paths:
        parts = each.split("/")
        chains |= {"/".join(parts[:end]) + "/" for end in range(1, len(parts))}
    for folder in list(chains):
        parts = folder[:-1].split("/")
        chains |= {"/".join(parts[:end]) + "/" for end in range(1, len(parts))}
    shown = {each for each in chains if each.startswith(prefix) and each != prefix}
    everything = shown | {each for each in paths if each.startswith(prefix)}
    return {
        each
        for each in everything
        if not any(each.startswith(folder) and each != folder for folder in shown)
    }


@given(paths, st.lists(path, max_size=5), st.sampled_from(["", "a", "a/", "a/a"]), path, sizes)
def test_folders_are_listed_instead_of_what_is_in_them(
    paths: set[str], others: list[str], prefix: str, after: str, sizes: tuple[int, int]
) -> None:
    empty = [
        each
        for each in others
        if not any(f"{each}/".startswith(f"{p}/") or p.startswith(f"{each}/") for p in paths)
    ]
    with stored(paths, empty) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(subtree, "ROWS_MAX", sizes[0])
        found = Asked(store).all(prefix, after, sizes[1], folders=True)
        shown = folded(paths, empty, prefix)
        assert found == [
            each for each in sorted(shown, key=str.encode) if each.encode() > after.encode()
        ]


@given(paths, st.sampled_from([["a/"], ["a/a/", "!/"], ["a!/"]]), sizes)
def test_some_folders_are_passed_over(
    paths: set[str], left_out: list[str], sizes: tuple[int, int]
) -> None:
    with stored(paths) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(subtree, "ROWS_MAX", sizes[0])
        asked = Asked(store)
        kept = [path for path in paths if not path.startswith(tuple(left_out))]
        without = [each.encode() for each in left_out]
        assert asked.all(limit=sizes[1], without=without) == sorted(kept, key=str.encode)
        inside = [path for path in kept if path.startswith("a/")]
        assert asked.all("a/", without=without) == sorted(inside, key=str.encode)


def test_depth_costs_no_more_than_breadth() -> None:
    """By the rows that are read, and not by the folders."""
    with stored(deep(number, 63) for number in range(100)) as store:
        asked = Asked(store)
        assert len(asked.all()) == 100
        # Each row, and the end of each folder; those of a page's first file once more.
        most = 100 * 64 * 2 // (subtree.ROWS_MAX - 64) + 1
        assert asked.questions <= most
    with stored(f"{number:05}" for number in range(6400)) as store:
        asked = Asked(store)
        assert len(asked.all(limit=10_000)) == 6400
        assert asked.questions <= most


def read_by(store: Store, question: ListFiles) -> tuple[int, int]:
    """The rows that a page reads, and those that it looks up."""
    rows = asked = 0
    with store.read() as txn:
        get, scan = txn.get, Txn.scan

        def counted_get(*arguments: object) -> bytes:
            nonlocal asked
            asked += 1
            return get(*arguments)  # type: ignore[arg-type]

        def counted_scan(self: Txn, *arguments: object) -> Iterator[tuple[bytes, bytes]]:
            nonlocal rows
            for row in scan(self, *arguments):  # type: ignore[arg-type]
                rows += 1
                yield row

        txn.get = counted_get
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Txn, "scan", counted_scan)
            subtree.page(txn, question)
    return rows, asked


def test_a_page_reads_a_bounded_number_of_rows() -> None:
    """Whatever it is to begin after: here in a folder whose name is all hyphens, each beginning of
    which might be a folder that sorts later."""
    files = {f"{'-' * 200}/{'-' * 200}/{number:04}" for number in range(2000)}
    with stored(files, (f"e/{'f/' * 60}{number:04}" for number in range(3000))) as store:
        after = b"/".join([b"-" * 200] * 2)
        for begun in (b"", after, after + b"/0100", b"-" * 4000, b"e/" + b"f/" * 60, b"e/f"):
            rows, asked = read_by(store, ListFiles(0, "/root", b"", begun, 500))
            assert rows <= subtree.ROWS_MAX + len(begun.split(b"/")) + 1, begun
            assert asked <= 500 + len(begun) + 5, begun


def test_a_page_begins_where_it_is_to_and_not_before() -> None:
    names = [f"{folder}/file-{number:04}.txt" for folder in "ab" for number in range(1000)]
    with stored({*names, "b/file/x", "b/file-0900/x"}) as store:
        after = b"b/file-0900.txt"
        rows, asked = read_by(store, ListFiles(0, "/root", b"", after, 3))
        assert rows <= 6
        assert asked <= 12
        first = next(Asked(store).pages(after=after.decode(), limit=3))
        assert [relative(each) for each in first] == ["b/file-0900/x", *names[1901:1903]]
        rows, _ = read_by(store, ListFiles(0, "/root", b"b/file-09", b"", 2))
        assert rows <= 5
        rows, _ = read_by(store, ListFiles(0, "/root", b"a/", b"b", 10))
        assert rows == 0


def test_a_page_fits_into_a_reply() -> None:
    names = [f"{'x' * 200}/{'y' * 200}/{number:0200}" for number in range(300)]
    with stored(names) as store:
        found: list[str] = []
        for page in Asked(store).pages():
            encoded = encode_frame(ListFilesReply(1, page, b"x" * 4096))
            assert len(encoded) < HEAD_BYTES_MAX
            found += map(relative, page)
        assert found == names


def test_what_cannot_be_listed_is_refused() -> None:
    with stored(["a"]) as store, store.read() as txn:
        for path, error in (("/none", NotFound), ("/root/a", NotADirectory)):
            with pytest.raises(error):
                subtree.page(txn, ListFiles(0, path, b"", b"", 1))
        with pytest.raises(InvalidArgument):
            subtree.page(txn, ListFiles(0, "/root", b"", b"", 0))


def test_what_comes_and_goes_between_two_pages_costs_nothing_else() -> None:
    """All that was there all the time is listed once."""
    with stored(f"{number % 7}/{number:03}" for number in range(70)) as store:
        found: list[str] = []
        for number, page in zip(itertools.count(), Asked(store).pages(limit=3), strict=False):
            found += map(relative, page)

            def make(txn: Txn, at: int = number) -> None:
                for folder in ("0", "3", "6", "8"):
                    wanted = Publish(0, "", 0, f"/root/{folder}/new-{at}", 0, 1, True, True, [])
                    operation, _ = plan_publish(txn, wanted, [], 1, 1)
                    apply(txn, operation)

            if number < 20:
                store.commit(make)
        assert found == sorted(found)
        stayed = {f"{number % 7}/{number:03}" for number in range(70)}
        assert stayed <= set(found)
        assert len(found) == len(set(found))

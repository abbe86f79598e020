"""Many files in one call: the client's batches, in groups that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from gfs.blocks import MIB

T = TypeVar("T")

#: Larger files go one by one, in pieces.
BATCHED_BYTES_MAX = 4 * MIB
#: Of the files of one batch together, which are in memory.
BATCH_BYTES = 32 * MIB
BATCH_FILES = 1024


class Planned:
    """A file system that is asked to copy files, and only notes which it would: fsspec's rules
    for patterns, directories and slashes are not repeated here."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self._expanded: list[str] = []
        self._kinds: dict[str, str] = {}
        self.pairs: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def _note(self, source: str, target: str, **_: object) -> None:
        self.pairs.append((source, target))

    get_file = put_file = cp_file = _note

    def expand_path(self, *args: Any, **kwargs: Any) -> list[str]:
        self._expanded = self._fs.expand_path(*args, **kwargs)
        return self._expanded

    def isdir(self, path: str) -> bool:
        """Of what a pattern has found, each is asked about: all at once."""
        if path not in self._kinds:
            if path not in self._expanded:
                return bool(self._fs.isdir(path))
            kinds = self._fs.kinds(self._expanded)
            self._kinds = dict(zip(self._expanded, kinds, strict=True))
        return self._kinds[path] == "directory"


def batches(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Groups of items, none with more files, or bytes, than a batch has."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) >= BATCH_FILES or total + size > BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch

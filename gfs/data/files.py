"""Files as a data set: a sequence of samples, each of which is one file.

It has what loaders of data call (``__len__``, ``__getitem__``, and ``__getitems__`` for a whole
batch, which is one call of the client) and nothing that needs one of them. A process that was
forked, or that unpickles it, connects at its first call.

Loaders with processes read ahead by having more processes. A program without one uses
:meth:`Files.batches`: a thread reads the batches to come while this one is worked on. How much it
may hold is counted in bytes, since samples differ in size: the lengths are asked for first, 256
in a message, which is a twentieth of what the bytes cost.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, SupportsIndex, TypeVar, cast, overload

from gfs.blocks import MIB
from gfs.client import Entry, sync
from gfs.data.clients import FileSystem, client_of
from gfs.errors import GfsError, InvalidArgument

T = TypeVar("T")

#: Batches that are read ahead, and their bytes together with those of the present batch.
AHEAD = 2
AHEAD_BYTES = 256 * MIB
#: Files of a batch where a program goes through all.
BATCH_FILES = 256


class Files(Generic[T]):
    """A sequence of the contents of files. Safe for threads, fork, spawn and pickle.

    Args:
        fs: the blocking client, or fsspec's file system for ``gfs://``.
        paths: of the files, in the order of the samples. They are kept in one piece of memory,
            which forked processes share.
        decode: makes the sample of a path and its bytes; a function of a module, if the
            object is pickled. Default: the bytes are the sample.

    A file is looked up when it is read: one that was replaced is read as it is then. Raises
    what the client's ``get`` raises, with the path: FileNotFoundError, IsADirectoryError,
    ChunkUnavailable, and MasterUnavailable when no master answers within the deadline.
    """

    @overload
    def __init__(self: Files[bytes], fs: FileSystem, paths: Iterable[str]) -> None: ...

    @overload
    def __init__(
        self, fs: FileSystem, paths: Iterable[str], decode: Callable[[str, bytes], T]
    ) -> None: ...

    def __init__(
        self,
        fs: FileSystem,
        paths: Iterable[str],
        decode: Callable[[str, bytes], T] | None = None,
    ) -> None:
        client_of(fs)
        self._fs = fs
        self._decode = decode
        self._packed, self._ends = _pack(paths)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self)} files>"

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: SupportsIndex) -> str:
        """The path of a sample."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number}: there are {len(self)}")
        number %= len(self)
        begin = self._ends[number - 1] if number else 0
        return self._packed[begin : self._ends[number]].decode()

    def __getitem__(self, index: SupportsIndex) -> T:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[T]:
        """A batch, by one call for all of its files. All of it is in memory at once."""
        paths = [self.path(index) for index in indices]
        return self._decoded(paths, client_of(self._fs).get_many(paths))

    def _decoded(self, paths: list[str], found: Sequence[bytes | GfsError]) -> list[T]:
        for data in found:
            if isinstance(data, GfsError):
                raise data
        good = cast("Sequence[bytes]", found)
        if self._decode is None:
            return cast("list[T]", good)
        return [self._decode(path, data) for path, data in zip(paths, good, strict=True)]

    def __iter__(self) -> Iterator[T]:
        """All samples in order, read ahead."""
        order = range(len(self))
        some = (order[at : at + BATCH_FILES] for at in range(0, len(order), BATCH_FILES))
        for batch in self.batches(some):
            yield from batch

    def batches(
        self,
        batches: Iterable[Sequence[SupportsIndex]],
        *,
        ahead: int = AHEAD,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> Iterator[list[T]]:
        """The batches with these indices, in this order, while others are read ahead.

        Args:
            batches: lists of indices, as a sampler of batches gives them.
            ahead: how many batches are read, or being read, before they are asked for.
            ahead_bytes: of those and of the batch that the caller has, together; a batch that
                is larger by itself is read when it is asked for.

        An error is raised in the place of its batch, and ends the iteration.
        """
        if ahead < 0 or ahead_bytes < 0:
            raise InvalidArgument(f"ahead={ahead}, ahead_bytes={ahead_bytes}: neither is negative")
        return self._batches(iter(batches), ahead, ahead_bytes)

    def _batches(
        self, batches: Iterator[Sequence[SupportsIndex]], ahead: int, ahead_bytes: int
    ) -> Iterator[list[T]]:
        process = os.getpid()
        reader = _Reader(client_of(self._fs), ahead_bytes)
        pending: deque[tuple[list[str], Future[_Batch]]] = deque()
        try:
            while True:
                while len(pending) <= ahead and (indices := next(batches, None)) is not None:
                    paths = [self.path(index) for index in indices]
                    pending.append((paths, reader.submit(paths)))
                if not pending:
                    return
                paths, future = pending.popleft()
                size, found = future.result()
                yield self._decoded(paths, found)
                del found, future
                if os.getpid() != process:
                    raise ValueError(
                        "this iteration began before this process was forked: begin another"
                    )
                reader.leave(size)
        finally:
            # In a forked process there is no reader, and nobody to release its locks; nor is there
            # when the interpreter ends.
            if os.getpid() == process and not sys.is_finalizing():
                reader.close()


_Batch = tuple[int, list[bytes | GfsError]]


class _Reader:
    """A thread that reads batches one at a time, in order, each once there is room in memory for
    its bytes. It may wait for that as long as the caller does something else, also when the
    program ends: so Python does not wait for it then, as it would for an executor's."""

    def __init__(self, client: sync.SyncClient, limit: int) -> None:
        self._client = client
        self._limit = limit
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()
        self._wanted: SimpleQueue[tuple[list[str], Future[_Batch]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="gfs read-ahead", daemon=True).start()

    def submit(self, paths: list[str]) -> Future[_Batch]:
        future: Future[_Batch] = Future()
        self._wanted.put((paths, future))
        return future

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            paths, future = wanted
            try:
                future.set_result(self._read(paths))
            except BaseException as error:
                future.set_exception(error)
            del wanted, future  # and the batch, which is its caller's

    def _read(self, paths: list[str]) -> _Batch:
        if self._closed:
            return 0, []
        entries = self._client.stat_many(paths)
        failed = [entry for entry in entries if isinstance(entry, GfsError)]
        if failed:
            return 0, [*failed]  # after the deadline, perhaps: it is not waited for again
        size = sum(entry.length for entry in entries if isinstance(entry, Entry))
        # When this waits, there is nothing before it but what the caller is about to take.
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._held or self._held + size <= self._limit
            )
            if self._closed:
                return 0, []
            self._held += size
        return size, self._client.get_many(paths)

    def leave(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._wanted.put(None)


def _pack(paths: Iterable[str]) -> tuple[bytes, array[int]]:
    """All paths behind one another, and where each ends. As a list of strings, they would have
    counts of references, and each forked process would come to have a copy of them all."""
    if isinstance(paths, (str, bytes)):
        raise InvalidArgument(f"paths={paths!r:.100}: give a list of paths, not one")
    packed = bytearray()
    ends = array("Q")
    for path in paths:
        if not isinstance(path, str):
            raise InvalidArgument(f"a path is text, not {type(path).__name__}: {path!r:.100}")
        packed += path.encode()
        ends.append(len(packed))
    return bytes(packed), ends

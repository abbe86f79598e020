"""A namespace of many files, made through the real store and its committer.

Each file goes the way of a publication behind the network: it is planned, applied,
logged and answered, some thousand in a commit. Only the disk is not waited for until the
end.

Nine tenths of the files are in directories of a thousand, the others in one large one.
Each has one chunk, whose handle is its number plus the first one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from gfs.io import real_world
from gfs.master.metadata import Committer, Txn
from gfs.master.metadata.namespace import Planned, plan_publish
from gfs.master.metadata.operations import HandlesReserved, NewChunk, ServerRemembered
from gfs.master.metadata.store import open_store
from gfs.protocol.messages import Done, Publish

FILES_PER_DIRECTORY = 1_000
FLAT_SHARE = 10
#: Mutations that are submitted together.
PIECE = 8_192
#: So that a store of any size has the same number of log rows: LOG_ROWS_MIN.
ANSWERS_SECONDS = 0.001
LENGTH = 1_024
REPLICATION = 3
MAP_BYTES = 2**36
RACK = "default"


class Namespace(NamedTuple):
    files: int
    #: How many of them are in the large directory.
    flat: int
    first_handle: int

    def path(self, number: int) -> str:
        if number < self.flat:
            return f"/flat/{number:08}"
        return f"/tree/{number // FILES_PER_DIRECTORY:06}/{number % FILES_PER_DIRECTORY:03}"


def make(directory: Path, files: int) -> Namespace:
    """Fill the new store in ``directory``, a master's."""
    # A page of a listing has a thousand entries.
    flat = max(files // FLAT_SHARE, min(files, FILES_PER_DIRECTORY))
    flat -= flat % FILES_PER_DIRECTORY
    return trio.run(_make, directory, files, flat)


async def _make(directory: Path, files: int, flat: int) -> Namespace:
    world = real_world()
    store = open_store(str(directory), MAP_BYTES, False, "growth", world.clock.time_ns())
    try:
        found = Namespace(files, flat, store.state.handle_end)
        committer = Committer(world, store, ANSWERS_SECONDS, lambda _: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            await committer.ask("", 0, partial(_reserve, count=files))
            for index in range(REPLICATION):
                await committer.ask("", 0, partial(_remember, index=index))
            for start in range(0, files, PIECE):
                for number in range(start, min(start + PIECE, files) - 1):
                    committer.submit("growth", number + 1, _plan(found, number), lambda _: None)
                number = min(start + PIECE, files) - 1
                await committer.ask("growth", number + 1, _plan(found, number))
            nursery.cancel_scope.cancel()
        if store.state.files != files:
            raise RuntimeError(f"{store.state.files} files were made, not {files}")
        store.sync()
        return found
    finally:
        store.close()


def _reserve(txn: Txn, count: int) -> Planned:
    return HandlesReserved(txn.state.handle_end + count), Done(id=0)


def _remember(txn: Txn, index: int) -> Planned:
    """So that the master waits for the stand-ins, as a restarted one does for its servers."""
    return ServerRemembered(*stand_in(index), RACK), Done(id=0)


def stand_in(index: int) -> tuple[str, str]:
    """Its id and its address, where nothing is."""
    return f"stand-in-{index}", f"127.0.0.1:{index + 1}"


def _plan(namespace: Namespace, number: int) -> partial[Planned]:
    path = namespace.path(number)
    chunk = NewChunk(namespace.first_handle + number, 1, LENGTH)
    request = Publish(
        id=0, client="growth", sequence=number + 1, path=path, length=LENGTH,
        replication=REPLICATION, replace=False, parents=True, servers=[],
    )  # fmt: skip
    return partial(
        plan_publish, request=request, chunks=[chunk], replication=REPLICATION, time_ns=number + 1
    )

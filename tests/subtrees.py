"""Trees of files in a master's store, without a master."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gfs.master.metadata.namespace import plan_make_directory, plan_publish
from gfs.master.metadata.operations import apply
from gfs.master.metadata.store import Store, Txn, open_store
from gfs.protocol.messages import MakeDirectory, Publish

MIB = 1 << 20


@contextmanager
def stored(paths: Iterable[str], folders: Iterable[str] = ()) -> Iterator[Store]:
    """A store with these files, and empty folders, in ``/root``."""
    with tempfile.TemporaryDirectory() as directory:
        store = open_store(directory, 256 * MIB, False, "cluster", 1)

        def make(txn: Txn) -> None:
            for path in ["", *folders]:
                wanted = MakeDirectory(0, "", 0, f"/root/{path}", parents=True, exist_ok=True)
                apply(txn, plan_make_directory(txn, wanted, 1)[0])
            for path in paths:
                wanted = Publish(0, "", 0, f"/root/{path}", 0, 1, True, True, [])
                operation, _ = plan_publish(txn, wanted, [], 1, 1)
                apply(txn, operation)

        try:
            store.commit(make)
            yield store
        finally:
            store.close()


def deep(number: int, depth: int) -> str:
    return "/".join([f"{number:04}", *["d"] * (depth - 1), "file"])

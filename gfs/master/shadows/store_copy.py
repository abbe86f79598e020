"""A copy of a whole store, in pieces, with which a shadow master begins.

The sender reads it in one LMDB read transaction, which is the snapshot; the master
continues to serve and commit. Such a long reader keeps old pages from reuse, so the
file grows by the changes made meanwhile: a copy whose next piece is not requested in
time is given up, and the number of copies at once is small.

A piece is a msgpack array of keys and values in turn, in the order of the rows;
where it ends depends only on the rows. So both sides compute the same checksum over all
pieces, the receiver from what it reads back from its own files before it uses them.

Memory on both sides: one piece (some 256 KiB, or one row if that is larger), and those in transit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gfs.blocks import FileDigest, block_sum
from gfs.master.metadata import Databases, State, Store, Txn

PIECE_BYTES = 256 * 1024
#: The databases that are copied; ``meta`` is each store's own, apart from the parts in CopyPiece.
COPIED = tuple(name for name in Databases._fields if name != "meta")

_encode = msgspec.msgpack.Encoder().encode
_rows = msgspec.msgpack.Decoder(list[bytes])


class Piece(NamedTuple):
    database: str
    body: bytes
    sums: bytes


class Ending(NamedTuple):
    """After the last piece: the checksum of all of them."""

    sums: bytes


def pieces(txn: Txn) -> Iterator[Piece | Ending]:
    """All rows of a snapshot. ``txn`` must stay open meanwhile."""
    whole = FileDigest()
    for name in COPIED:
        for body in _bodies(txn, name):
            sums = block_sum(body)
            whole.update(name.encode() + sums)
            yield Piece(name, body, sums)
    yield Ending(whole.digest())


def _bodies(txn: Txn, name: str) -> Iterator[bytes]:
    rows: list[bytes] = []
    size = 0
    for key, value in txn.scan(b"", getattr(txn.db, name)):
        rows += (key, value)
        size += len(key) + len(value)
        if size >= PIECE_BYTES:
            yield _encode(rows)
            rows, size = [], 0
    if rows:
        yield _encode(rows)


def write(store: Store, database: str, bodies: list[bytes]) -> None:
    """Put pieces of one database into an empty store, in their order. Blocks.

    Raises ValueError for pieces that no master sends.
    """

    def work(txn: Txn) -> None:
        into = getattr(txn.db, database)
        for body in bodies:
            rows = _rows.decode(body)
            if len(rows) % 2:
                raise ValueError("a key without a value")
            for at in range(0, len(rows), 2):
                if not txn.raw.put(rows[at], rows[at + 1], append=True, db=into):
                    raise ValueError("rows out of order")

    if database not in COPIED:
        raise ValueError(f"no database {database!r}")
    store.commit(work)


def finish(store: Store, sums: bytes, cluster: str, state: bytes) -> None:
    """Read the copy back, compare its checksum, and complete the store. Blocks.

    Raises ValueError if it differs from what was sent.
    """
    found = b""
    with store.read() as txn:
        for piece in pieces(txn):
            if isinstance(piece, Ending):
                found = piece.sums
    if found != sums:
        raise ValueError("the data that was written differs from what was sent")
    store.put_copied(cluster, msgspec.msgpack.decode(state, type=State))
    store.sync()

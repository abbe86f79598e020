"""The operation log as a chain: each row holds the checksum of the row before it.

So the checksum of one row stands for the whole history up to it, and two
masters' logs are the same up to a sequence exactly when their rows of that
sequence are (up to chance, 1 in 2^64). So a shadow master whose history differs is
detected (:mod:`gfs.master.shadows.log_receiver`).

The log does not have the rows that belong to one store: ``epoch`` (how often the store
was started), ``standing`` (the role of its master), and the range of handles that each
start reserves, which the next HandlesReserved replaces. Everything else in the store
comes from the log and the answers that go with it.
"""

from __future__ import annotations

import msgspec

from gfs.blocks import row_sum
from gfs.master.metadata.operations import LogRecord, Operation, apply
from gfs.master.metadata.rows import answer_key, pack_u64, unpack_u64
from gfs.master.metadata.store import Txn

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LogRecord).decode


class LogHead(msgspec.Struct, array_like=True, gc=False):
    """A row of the log without its operation, which costs most to decode."""

    time_ns: int
    client: str
    number: int
    operation: msgspec.Raw
    previous: int = 0
    lived_ns: int = 0


head = msgspec.msgpack.Decoder(LogHead).decode


class Diverged(Exception):
    """This store's history differs from that of the master that it follows."""


def chain(txn: Txn) -> int:
    """The checksum of the log's last row; 0 if there is none."""
    return 0 if txn.state.sequence == 0 else chain_at(txn, txn.state.sequence) or 0


def chain_at(txn: Txn, sequence: int) -> int | None:
    """The checksum of the row at ``sequence``; None if there is none (any more)."""
    if sequence == 0:
        return 0
    row = txn.get(pack_u64(sequence), None, txn.db.operation_log)
    return None if row is None else row_sum(row)


def time_of(txn: Txn, sequence: int) -> int:
    """The wall clock's time in the row at ``sequence``; 0 if there is none."""
    row = txn.get(pack_u64(sequence), None, txn.db.operation_log)
    return 0 if row is None else head(row).time_ns


def carry_out(
    txn: Txn, time_ns: int, client: str, number: int, operation: Operation, previous: int
) -> int:
    """Apply an operation and log it; returns the checksum of its row. ``previous``
    is that of the row before it."""
    txn.state.sequence += 1
    txn.state.lived_ns = txn.lived_ns
    apply(txn, operation)
    record = LogRecord(time_ns, client, number, operation, previous, txn.lived_ns)  # type: ignore[arg-type]
    row = _encode(record)
    txn.raw.put(pack_u64(txn.state.sequence), row, append=True, db=txn.db.operation_log)
    return row_sum(row)


def replay(txn: Txn, row: bytes, answer: bytes, previous: int) -> int:
    """Carry out an operation that another master logged as ``row``, with its answer.

    Raises Diverged if the row does not follow our last one, or cannot be carried out here.
    """
    try:
        record = _decode(row)
        if record.previous != previous:
            raise Diverged(f"operation {txn.state.sequence + 1} belongs to another history")
        txn.state.sequence += 1
        txn.lived_ns = txn.state.lived_ns = max(txn.state.lived_ns, record.lived_ns)
        apply(txn, record.operation)
    except Diverged:
        raise
    except Exception as error:
        raise Diverged(f"operation {txn.state.sequence} cannot be applied: {error!r}") from error
    txn.raw.put(pack_u64(txn.state.sequence), row, append=True, db=txn.db.operation_log)
    if record.client:
        txn.put(answer_key(record.client, record.number), answer, txn.db.answers)
    return row_sum(row)


def read(txn: Txn, first: int, bytes_max: int) -> list[tuple[bytes, bytes]]:
    """Rows from ``first`` on, each with its answer (empty if it has none): at
    least one if there is one, and not many more bytes than ``bytes_max``."""
    rows: list[tuple[bytes, bytes]] = []
    size = 0
    expected = first
    for key, row in txn.scan(pack_u64(first), txn.db.operation_log):
        if unpack_u64(key) != expected or size >= bytes_max:
            break
        record = head(row)
        answer = b""
        if record.client:
            key = answer_key(record.client, record.number)
            answer = txn.get(key, b"", txn.db.answers)
        rows.append((row, answer))
        size += len(row) + len(answer)
        expected += 1
    return rows

"""Taking a backup from a master that serves.

The first is a copy of the store, as a shadow master's is, and what was done meanwhile;
the later ones add the rows of the operation log since the last one. If the master's log
does not reach back so far any more, or has become longer in the file than the copy, a whole
backup replaces the file, once it is complete.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
import trio

from gfs.blocks import block_sum, row_sum
from gfs.errors import GfsError, InvalidArgument, MasterUnavailable, ProtocolError, Retryable
from gfs.io import World
from gfs.master.backup.backup_file import PIECE, ROWS, BackupFile, Piece, Point
from gfs.master.metadata import State
from gfs.master.shadows import connect_master
from gfs.protocol.credentials import Credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import CopyPiece, LogPage, ReadCopy, ReadLog
from gfs.protocol.rpc import Rpc, refuse_all

log = logging.getLogger(__name__)

T = TypeVar("T")

PARTIAL = ".partial"
#: A master that does not answer a request within this time is taken to be gone.
ANSWER_SECONDS = 30.0
PAUSE_SECONDS = 0.25

_rows = msgspec.msgpack.Decoder(list[bytes])
_log_rows = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])
_state = msgspec.msgpack.Decoder(State)


async def take_backup(
    world: World,
    masters: list[str],
    credentials: Credentials,
    path: str,
    retry_seconds: float = 30.0,
    waits: Callable[[bool], None] = lambda begins: None,
    refused_seconds: float = math.inf,
) -> Point:
    """Make the backup at ``path``, or continue it: durable when this returns. Cancelled, or
    after an error, the last complete backup is there. ``waits`` is called with True when it begins
    to wait for a master, and with False when one serves.

    Raises MasterUnavailable if none of ``masters`` serves: after ``retry_seconds``, after
    ``refused_seconds`` in which all refused connections, or at once if none may serve by then.
    Raises InvalidArgument if the file is damaged, in use, or of another history, and OSError if it
    cannot be written.
    """
    identity = Identity("shadow", "backup", credentials)
    give_up = world.clock.monotonic() + retry_seconds
    refused_since = world.clock.monotonic()
    waits(True)
    while True:
        reasons, may_serve, is_refused = [], False, True
        last: Exception | None = None
        for address in masters:
            try:
                rpc = await connect_master(world, address, identity, 0, refuse_all)
            except (ConnectionError, GfsError) as error:
                reasons.append(str(error) if address in str(error) else f"{address}: {error}")
                last = error
                may_serve |= isinstance(error, ConnectionError | Retryable)
                is_refused &= isinstance(error, ConnectionRefusedError)
                continue
            waits(False)
            is_refused = False
            try:
                return await _with(rpc, partial(_take, world, rpc, path))
            except ConnectionError as error:
                waits(True)
                reasons.append(f"{address}: {error}")
                may_serve = True
        then = world.clock.monotonic() + PAUSE_SECONDS
        if not is_refused:
            refused_since = then
        if not may_serve or then > min(give_up, refused_since + refused_seconds):
            raise MasterUnavailable(f"no master gives a backup: {'; '.join(reasons)}") from last
        await world.clock.sleep(PAUSE_SECONDS)


async def _with(rpc: Rpc, work: Callable[[], Awaitable[T]]) -> T:
    """``work``, while the connection runs."""
    done: list[T] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rpc.run)
        try:
            done.append(await work())
        except Exception as error:  # out of the nursery's group
            failure = error
        rpc.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return done[0]


async def _take(world: World, rpc: Rpc, path: str) -> Point:
    try:
        backup = await world.run_blocking(BackupFile.open, path)
    except FileNotFoundError:
        return await _whole(world, rpc, path)
    try:
        last = await world.run_blocking(backup.last_point)
        point = None if last is None else await _continue(world, rpc, path, backup, last)
        # It stays locked, and in place, until the whole one replaces it.
        if point is None:
            return await _whole(world, rpc, path)
        if backup.is_mostly_log:
            try:
                return await _whole(world, rpc, path)
            except (GfsError, OSError) as error:
                log.warning("%s is complete, and cannot be made shorter now: %s", path, error)
        return point
    finally:
        backup.close()


async def _continue(
    world: World, rpc: Rpc, path: str, backup: BackupFile, last: Point
) -> Point | None:
    """Add what was done since; None if the master does not know that any more."""
    await world.run_blocking(backup.begin)
    sequence, chain = last.sequence, last.chain
    name = f"{socket.gethostname()}:{row_sum(os.fsencode(path)):016x}"
    while True:
        request = ReadLog(id=0, name=name, sequence=sequence, chain=chain)
        page, body = await rpc.call(request, seconds=ANSWER_SECONDS)
        if not isinstance(page, LogPage):
            raise ProtocolError(f"{type(page).__name__} as the answer to ReadLog")
        if page.cluster != last.cluster:
            raise InvalidArgument(
                f"{path} is a backup of cluster {last.cluster}, and this is cluster "
                f"{page.cluster}: name another file"
            )
        if page.other_history:
            raise InvalidArgument(
                f"{path} has operations that this master lacks: an older state was restored, or "
                "another shadow master promoted. Keep it, and name another file"
            )
        if page.trimmed:
            return None
        rows = _log_rows.decode(body)
        if rows:
            await world.run_blocking(backup.add, ROWS, body)
            sequence, chain = sequence + len(rows), row_sum(rows[-1][0])
        if page.state:
            break
        if not rows:
            raise ProtocolError("neither rows nor the end of the log")
    point = Point(last.cluster, sequence, chain, page.state, world.clock.time_ns())
    await world.run_blocking(backup.complete, point)
    return point


async def _whole(world: World, rpc: Rpc, path: str) -> Point:
    backup = await world.run_blocking(BackupFile.create, path + PARTIAL)
    try:
        await world.run_blocking(backup.begin)
        number = chain = 0
        while True:
            request = ReadCopy(id=0, number=number)
            piece, body = await rpc.call(request, seconds=ANSWER_SECONDS)
            if not isinstance(piece, CopyPiece):
                raise ProtocolError(f"{type(piece).__name__} as a piece of a copy")
            if piece.last:
                break
            if block_sum(body) != piece.sums:
                raise ProtocolError(f"piece {number} was damaged in transit")
            if piece.database == "operation_log":
                chain = row_sum(_rows.decode(body)[-1])
            record = msgspec.msgpack.encode(Piece(piece.database, body))
            await world.run_blocking(backup.add, PIECE, record)
            number += 1
        sequence = _state.decode(piece.state).sequence
        point = Point(
            piece.cluster, sequence, chain, piece.state, world.clock.time_ns(), piece.sums
        )
        await world.run_blocking(backup.complete, point)
        point = await _continue(world, rpc, path, backup, point) or point
        await world.run_blocking(backup.replace, path)
        return point
    finally:
        backup.close()

"""A master's directory from a backup, in a term above all that the cluster knows.

The term makes the chunkservers follow, and keeps every number that was allocated after
the backup from being allocated again. Chunks that the backup does not know may be all
that is left of newer files; so they are kept until the operator accepts the loss
(:class:`~gfs.master.metadata.operations.RestoreAccepted`).
"""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import msgspec
import trio

from gfs.errors import GfsError, InvalidArgument
from gfs.io import World, sync_directory
from gfs.lmdb_environment import DATA_NAME
from gfs.master.backup.backup_file import PIECE, POINT, ROWS, BackupFile, Piece, Point
from gfs.master.metadata import (
    LOCK_NAME,
    Standing,
    Store,
    Txn,
    open_only,
    operation_log,
    take_lock,
    terms,
)
from gfs.master.metadata.operation_log import Diverged
from gfs.master.metadata.operations import TermBegun
from gfs.master.shadows import begin_term, check_counters, store_copy
from gfs.protocol import handshake
from gfs.protocol.credentials import Credentials
from gfs.protocol.handshake import Identity

BUILDING = "restoring"
#: What an empty directory may have: a restore that was killed, and the top of a disk.
_NOTHING = frozenset({BUILDING, LOCK_NAME, "lost+found"})
#: Rows that are written in one commit: a commit costs a sync, and its pages are in memory.
WRITE_BYTES = 16 * 1024 * 1024
ANSWER_SECONDS = 5.0

_rows = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])


class Restored(NamedTuple):
    point: Point
    term: int
    files: int
    #: Servers that did not report their term, and why.
    silent: dict[str, str]


async def restore_backup(
    world: World, credentials: Credentials, path: str, directory: str, map_bytes: int
) -> Restored:
    """Make ``directory``, which must be empty or not there, that of a master with the
    metadata of the backup at ``path``. The metadata is there as a whole, durably, when
    this returns, and else not at all.

    Asks the backup's chunkservers for the highest term they know; those in ``silent`` did
    not answer, and refuse the master if they know a higher one.

    Raises InvalidArgument if the backup is damaged or the directory is in use, StartupError,
    DiskFull or OSError if it cannot be written.
    """
    # Inside: the directory may be another disk.
    built = os.path.join(directory, BUILDING)
    lock, backup = await world.run_blocking(_begin, path, directory)
    try:
        await world.run_blocking(shutil.rmtree, built, True)
        store = await world.run_blocking(open_only, built, map_bytes, False)
        try:
            point = await world.run_blocking(_fill, store, backup, path)
            highest, silent = await _highest_term(world, credentials, store)
            term = terms.next_term(max(highest, store.state.term), world.random.getrandbits(32))
            files = store.state.files
            operation = TermBegun(world.clock.time_ns(), term, keeps_unknown=True)
            await world.run_blocking(begin_term, store, operation, Standing())
            await world.run_blocking(store.sync)
        finally:
            with trio.CancelScope(shield=True):
                await world.run_blocking(store.close)
        await world.run_blocking(_put_in_place, built, directory)
    finally:
        with trio.CancelScope(shield=True):
            await world.run_blocking(shutil.rmtree, built, True)
        backup.close()
        os.close(lock)
    return Restored(point, term, files, silent)


def _begin(path: str, directory: str) -> tuple[int, BackupFile]:
    """The lock of the directory, which has no metadata, and the backup."""
    backup = BackupFile.open(path, to_read=True)
    try:
        _check_empty(directory)
        lock = take_lock(directory)
        try:
            _check_empty(directory)  # a master may have begun there meanwhile
        except BaseException:
            os.close(lock)
            raise
    except BaseException:
        backup.close()
        raise
    return lock, backup


def _check_empty(directory: str) -> None:
    if os.path.isdir(directory) and not _NOTHING.issuperset(os.listdir(directory)):
        raise InvalidArgument(f"{directory} is not empty: move it away, or name another --state")


def _put_in_place(built: str, directory: str) -> None:
    os.replace(os.path.join(built, DATA_NAME), os.path.join(directory, DATA_NAME))
    sync_directory(directory)
    sync_directory(os.path.dirname(os.path.realpath(directory)))


def _fill(store: Store, backup: BackupFile, path: str) -> Point:
    """Raises InvalidArgument if the backup is damaged."""
    point: Point | None = None
    database, bodies = "", [b""]
    bodies.clear()
    chain = 0
    try:
        for kind, body in backup.records():
            if kind == PIECE:
                piece = msgspec.msgpack.decode(body, type=Piece)
                if bodies and (piece.database != database or sum(map(len, bodies)) >= WRITE_BYTES):
                    store_copy.write(store, database, bodies)
                    bodies.clear()
                database = piece.database
                bodies.append(piece.body)
            elif kind == ROWS:
                chain = store.commit(lambda txn, c=chain, b=body: _replay(txn, b, c))  # type: ignore[misc]
            elif kind == POINT:
                point = msgspec.msgpack.decode(body, type=Point)
                if point.sums:
                    if bodies:
                        store_copy.write(store, database, bodies)
                        bodies.clear()
                    store_copy.finish(store, point.sums, point.cluster, point.state)
                else:
                    check_counters(store.state, point.state)
                chain = point.chain
    except (ValueError, Diverged) as error:
        raise InvalidArgument(f"{path} cannot be restored: {error}") from None
    if point is None:
        raise InvalidArgument(f"{path} has no complete backup")
    return point


def _replay(txn: Txn, body: bytes, chain: int) -> int:
    for row, answer in _rows.decode(body):
        chain = operation_log.replay(txn, row, answer, chain)
    return chain


async def _highest_term(
    world: World, credentials: Credentials, store: Store
) -> tuple[int, dict[str, str]]:
    identity = Identity("client", "restore", credentials, store.cluster)
    silent: dict[str, str] = {}

    async def ask(address: str) -> None:
        try:
            (await handshake.connect(world, address, identity, ANSWER_SECONDS)).close()
        except (ConnectionError, OSError, GfsError) as error:
            silent[address] = str(error)

    async with trio.open_nursery() as nursery:
        for server in store.known_servers().values():
            nursery.start_soon(ask, server.address)
    return identity.term, silent

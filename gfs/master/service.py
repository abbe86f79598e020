"""The master's process: opens the store, listens, and lets everything run."""

from __future__ import annotations

import logging
from functools import partial
from typing import NamedTuple

import trio

from gfs.config import MasterSettings
from gfs.errors import DiskFailed, ProtocolError, StartupError
from gfs.io import Listener, World
from gfs.master.chunkservers import ChunkserverSession
from gfs.master.clients import ClientSession
from gfs.master.core import Master
from gfs.master.granting import Grants
from gfs.master.store import Store, open_store
from gfs.master.upkeep import Upkeep
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.handshake import Identity
from gfs.protocol.rpc import Rpc
from gfs.protocol.server import serve

log = logging.getLogger(__name__)

CLUSTER_BYTES = 8


class MasterStarted(NamedTuple):
    """What a master says once it serves."""

    address: str
    cluster: str


async def run_master(
    world: World,
    settings: MasterSettings,
    directory: str,
    key: bytes,
    *,
    task_status: trio.TaskStatus[MasterStarted] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the metadata in ``directory`` at ``settings.address`` until cancelled.

    The directory is made if it is not there, and locked. ``key`` is the
    cluster's. Reports MasterStarted once it listens; everything that was
    acknowledged by then is durable, whatever happens to the process.

    Raises StartupError if it cannot start here, and DiskFailed when the
    metadata cannot be written any more: the process should end and be started
    again.
    """
    store = await _open(world, settings, directory)
    try:
        listener = await _listen(world, settings.address)
        try:
            await _serve(world, settings, directory, key, store, listener, task_status)
        except BaseExceptionGroup as group:
            # The nursery wraps what ended it; callers look for the error itself.
            broken = group.subgroup(DiskFailed)
            if broken is None:
                raise
            raise _first(broken) from group
        finally:
            listener.close()
    finally:
        store.close()


async def _open(world: World, settings: MasterSettings, directory: str) -> Store:
    opened: list[Store] = []

    def work() -> None:
        opened.append(
            open_store(
                directory,
                settings.map_bytes,
                settings.sync,
                world.random_bytes(CLUSTER_BYTES).hex(),
                world.clock.time_ns(),
            )
        )

    try:
        await world.run_blocking(work)
    except BaseException:
        # The call may have been carried out all the same.
        for store in opened:
            store.close()
        raise
    return opened[0]


async def _listen(world: World, address: str) -> Listener:
    try:
        return await world.network.listen(address)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"the master cannot listen at {address}: {reason}") from error


async def _serve(
    world: World,
    settings: MasterSettings,
    directory: str,
    key: bytes,
    store: Store,
    listener: Listener,
    task_status: trio.TaskStatus[MasterStarted],
) -> None:
    master = Master(world, settings, store)
    identity = Identity("master", "master", key, store.cluster)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(master.committer.run)
        upkeep = Upkeep(master, directory, nursery)
        upkeep.start()
        connection = partial(_connection, master, Grants(master), upkeep)
        nursery.start_soon(serve, world, listener, identity, connection)
        log.info("cluster %s, epoch %d, at %s", store.cluster, store.epoch, listener.address)
        task_status.started(MasterStarted(listener.address, store.cluster))


async def _connection(
    master: Master, grants: Grants, upkeep: Upkeep, connection: BulkConnection
) -> None:
    """One proven connection. A bug met here ends it and nothing else."""
    try:
        if connection.peer_role == "client":
            await _client(master, grants, connection)
        elif connection.peer_role == "chunkserver":
            await _chunkserver(master, upkeep, connection)
        else:
            raise ProtocolError(f"a master does not serve the role {connection.peer_role!r}")
    except ProtocolError:
        raise
    except Exception:
        log.exception("the connection from %s met a bug", connection.peer)


async def _client(master: Master, grants: Grants, connection: BulkConnection) -> None:
    async with trio.open_nursery() as nursery:
        session = ClientSession(master, grants, nursery, connection.peer_id)
        await Rpc(connection, session.handle).run()
        nursery.cancel_scope.cancel()


async def _chunkserver(master: Master, upkeep: Upkeep, connection: BulkConnection) -> None:
    session = ChunkserverSession(master, upkeep.start_pass)
    rpc = Rpc(connection, session.handle)
    try:
        await rpc.run()
    finally:
        session.ended(rpc)


def _first(group: BaseExceptionGroup[DiskFailed]) -> DiskFailed:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, DiskFailed):
        raise TypeError("a subgroup holds what it was filtered for")
    return error

"""One chunkserver, from start to stop."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import trio

from gfs.chunkserver.node import Node
from gfs.chunkserver.service.dispatch import Dispatcher
from gfs.chunkserver.service.master_link import MasterLinks
from gfs.chunkserver.service.metrics import families
from gfs.chunkserver.upkeep import (
    Scrubber,
    clear_intents,
    confirm_packs,
    drain_disk,
    keep_comparing,
    look_at_damaged,
    save_memory,
    scan,
    tend_journal,
)
from gfs.config import ChunkserverSettings
from gfs.errors import StartupError, innermost
from gfs.io import Listener, World
from gfs.metrics import Source
from gfs.protocol.credentials import Credentials
from gfs.protocol.server import serve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChunkserverStarted:
    id: str
    address: str


async def run_chunkserver(
    world: World,
    settings: ChunkserverSettings,
    directories: list[str],
    key: bytes | Credentials,
    *,
    metrics: Source | None = None,
    task_status: trio.TaskStatus[ChunkserverStarted] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the replicas in ``directories`` (one per disk) until cancelled.

    ``metrics`` then collects its metrics. Reports started once it listens and the
    master has taken its first registration; while the master is away it keeps trying.
    Raises StartupError: address taken, a directory that cannot be written or belongs to
    another server, a master of another cluster.

    Stopping is by cancellation or by killing: there is no other kind (the
    paper, 5.1.1).
    """
    node = Node(world, settings, directories, key)
    dispatcher, scrubber = Dispatcher(node), Scrubber(node)
    if metrics is not None:
        metrics.collect = partial(families, node, scrubber)
    try:
        await node.open()
        listener = await _listen(node)
        try:
            await _run(node, dispatcher, scrubber, listener, task_status)
        finally:
            listener.close()
    finally:
        await node.close()


async def _listen(node: Node) -> Listener:
    address = node.settings.address
    try:
        listener = await node.world.network.listen(address)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot listen at {address}: {reason}") from None
    node.address = listener.address
    return listener


async def _run(
    node: Node,
    dispatcher: Dispatcher,
    scrubber: Scrubber,
    listener: Listener,
    task_status: trio.TaskStatus[ChunkserverStarted],
) -> None:
    links = MasterLinks(node, dispatcher.appends, scrubber)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                serve, node.world, listener, node.identity, dispatcher.serve, node.connections.open
            )
            nursery.start_soon(node.connections.close_idle)
            nursery.start_soon(node.pulse.run)
            nursery.start_soon(node.patience.run)
            await nursery.start(node.links.run)
            await nursery.start(dispatcher.small_writer.run)
            nursery.start_soon(links.run)
            tasks = (
                node.store.durability.keep_saving,
                partial(tend_journal, node),
                partial(clear_intents, node),
                partial(confirm_packs, node),
                partial(drain_disk, node),
            )
            nursery.start_soon(node.disk_orders.run, tasks)
            nursery.start_soon(keep_comparing, node)
            nursery.start_soon(scan, node)
            nursery.start_soon(look_at_damaged, node)
            nursery.start_soon(scrubber.run)
            nursery.start_soon(save_memory, node, scrubber)
            await links.registered.wait()
            log.info("chunkserver %s serves at %s", node.id, node.address)
            task_status.started(ChunkserverStarted(id=node.id, address=node.address))
    except BaseExceptionGroup as group:
        refused = group.subgroup(StartupError)
        if refused is not None:
            raise StartupError(str(innermost(refused))) from None
        raise

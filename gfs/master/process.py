"""The master's process: opens the store, listens, and lets everything run.

It is the master or a shadow master, and may change from one to the other; the
listener and the store stay, all connections end, and what is in memory is made
anew, as after a restart: that is the way that is used and tested most.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from gfs.config import MasterSettings, split_addresses
from gfs.diagnostics import event
from gfs.errors import Deposed, DiskFailed, ProtocolError, StartupError, innermost
from gfs.io import Listener, World
from gfs.master.leases.granting import Grants
from gfs.master.master import Master
from gfs.master.metadata import terms
from gfs.master.metadata.store import Standing, Store, open_only
from gfs.master.replication.log_sender import Shadows, ShadowSession
from gfs.master.replication.shadow_process import Shadow
from gfs.master.replication.term_announcer import TermAnnouncer
from gfs.master.service.background import Upkeep
from gfs.master.service.chunkserver_session import ChunkserverSession
from gfs.master.service.client_session import ClientSession
from gfs.master.service.metrics import families
from gfs.master.service.snapshots import Snapshots
from gfs.metrics import Source
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.credentials import Credentials
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
    key: bytes | Credentials,
    *,
    metrics: Source | None = None,
    task_status: trio.TaskStatus[MasterStarted] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the metadata in ``directory`` at ``settings.address`` until cancelled:
    as the master, or as a shadow of another one that may become it.

    The directory is made if it is not there, and locked. ``key`` is the cluster's.
    ``metrics`` then collects the numbers of the master or shadow master. Reports MasterStarted once
    it serves (a shadow: once it has a copy); everything that was acknowledged by then
    is durable, whatever happens to the process.

    Raises StartupError if it cannot start here, Deposed when a master of a
    higher term took over, and DiskFailed when the metadata cannot be written any
    more: the process should end and be started again.
    """
    store = await _open(world, settings, directory)
    try:
        if store.standing.fenced and not settings.shadow_of:
            raise Deposed(_over(store.standing.fenced))
        listener = await _listen(world, settings.address)
        try:
            with _unwrapped():
                process = _Process(
                    world,
                    settings,
                    directory,
                    key,
                    store,
                    listener,
                    metrics or Source(),
                    task_status,
                )
                await process.run()
        finally:
            listener.close()
    finally:
        store.close()


@contextmanager
def _unwrapped() -> Iterator[None]:
    """A nursery wraps what ended it; callers look for the error itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        story = group.subgroup((DiskFailed, Deposed))
        if story is None:
            raise
        raise innermost(story) from group


def _over(term: int) -> str:
    return (
        f"a master of term {terms.count(term)} took over from this one, whose metadata is left "
        "as it is. To make it a shadow of the new one, which copies that one's metadata and "
        "keeps this beside it: gfs master --shadow-of ADDRESS"
    )


async def _open(world: World, settings: MasterSettings, directory: str) -> Store:
    opened: list[Store] = []

    def work() -> None:
        opened.append(open_only(directory, settings.map_bytes, settings.sync))

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


class _Process:
    """One master or shadow master; what it is may change while it runs."""

    def __init__(
        self,
        world: World,
        settings: MasterSettings,
        directory: str,
        key: bytes | Credentials,
        store: Store,
        listener: Listener,
        metrics: Source,
        task_status: trio.TaskStatus[MasterStarted],
    ) -> None:
        self._world = world
        self._settings = settings
        self._directory = directory
        self._key = key
        self._store = store
        self._listener = listener
        self._metrics = metrics
        self._task_status = task_status
        self._is_started = False

    def _started(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._task_status.started(MasterStarted(self._listener.address, self._store.cluster))

    async def run(self) -> None:
        is_shadow = await self._is_shadow()
        while True:
            if is_shadow:
                await Shadow(
                    self._world,
                    self._settings,
                    self._directory,
                    self._key,
                    self._store,
                    self._listener,
                    self._metrics,
                    self._started,
                ).run()
            else:
                await self._serve()
            is_shadow = bool(self._store.standing.follows)

    async def _is_shadow(self) -> bool:
        """What the store says goes before what the command line says: a shadow that was
        promoted is not made one again by the command it was once started with."""
        standing, named = self._store.standing, split_addresses(self._settings.shadow_of)
        if standing.follows:
            log.info("it starts as a shadow master: it was one before, or it has handed over")
            return True
        if not named:
            return False
        if self._store.state.term and not standing.fenced:
            log.warning(
                "this shadow master was promoted: it is the master (--shadow-of), unless "
                "another one took over since"
            )
            return False
        await self._follow()
        return True

    async def _follow(self) -> None:
        """Be a shadow from now on, durably. What is here is kept beside the copy."""
        named = split_addresses(self._settings.shadow_of)
        follows = list(dict.fromkeys([*named, *self._store.standing.peers]))
        keep = bool(self._store.cluster)
        as_shadow = Standing(follows=follows, keep=keep)
        await self._world.run_blocking(self._store.set_standing, as_shadow)

    async def _serve(self) -> None:
        """Be the master. Returns when it has handed over; raises Deposed."""
        world, store = self._world, self._store
        cluster = world.random_bytes(CLUSTER_BYTES).hex()
        await world.run_blocking(store.begin, cluster, world.clock.time_ns())
        identity = Identity(
            "master", "master", self._key, store.cluster, store.state.term, learns=False
        )
        announcer = TermAnnouncer(world, identity, self._listener.address)
        named = split_addresses(self._settings.shadow_of)
        await announcer.ask(dict.fromkeys([*named, *store.standing.peers]))
        if not announcer.higher:
            await self._serve_term(identity, announcer)
        elif named:
            # As the command says. What it has beyond the new master's log was given up when
            # that was promoted.
            log.warning(
                "this master was replaced: it becomes a shadow master of the new one (--shadow-of)"
            )
            await self._follow()
            return
        if announcer.higher and not store.standing.follows:
            standing = msgspec.structs.replace(store.standing, fenced=announcer.higher)
            await world.run_blocking(store.set_standing, standing)
            raise Deposed(_over(announcer.higher))

    async def _serve_term(self, identity: Identity, announcer: TermAnnouncer) -> None:
        master = Master(self._world, self._settings, self._store)
        shadows = Shadows(master)
        master.shadow_status, master.forget_shadow = shadows.status, shadows.forget
        master.certificate_until_ns = lambda: identity.certificate_until_ns
        self._metrics.collect = partial(families, master)
        async with trio.open_nursery() as nursery:

            async def end_when(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_when, shadows.retired)
            nursery.start_soon(end_when, announcer.deposed)
            nursery.start_soon(master.committer.run)
            nursery.start_soon(shadows.run)
            nursery.start_soon(announcer.announce, lambda: shadows.absent(self._settings.shadow_of))
            grants = Grants(master)
            upkeep = Upkeep(master, self._directory, nursery, grants)
            upkeep.start()
            snapshots = Snapshots(master, grants, nursery)
            connection = partial(_connection, master, grants, snapshots, upkeep, shadows, announcer)
            nursery.start_soon(
                serve, self._world, self._listener, identity, connection, master.connections
            )
            log.info(
                "cluster %s, epoch %d, term %d, at %s",
                self._store.cluster,
                self._store.epoch,
                terms.count(self._store.state.term),
                self._listener.address,
                extra=event("master_up", cluster=self._store.cluster, epoch=self._store.epoch),
            )
            self._started()


async def _connection(
    master: Master,
    grants: Grants,
    snapshots: Snapshots,
    upkeep: Upkeep,
    shadows: Shadows,
    announcer: TermAnnouncer,
    connection: BulkConnection,
) -> None:
    """One proven connection. A bug met here ends it and nothing else."""
    try:
        announcer.met(connection.peer_term, connection.peer)
        if connection.peer_role == "client":
            await _client(master, grants, snapshots, connection)
        elif connection.peer_role == "chunkserver":
            await _chunkserver(master, upkeep, connection)
        elif connection.peer_role == "shadow":
            await _shadow(master, shadows, connection)
        elif connection.peer_role != "master":
            raise ProtocolError(
                f"a master does not accept connections of the role {connection.peer_role!r}"
            )
    except (ProtocolError, ConnectionError):
        raise
    except Exception:
        log.exception(
            "the connection from %s ended because of a bug in the master", connection.peer
        )


async def _client(
    master: Master, grants: Grants, snapshots: Snapshots, connection: BulkConnection
) -> None:
    async with trio.open_nursery() as nursery:
        session = ClientSession(master, grants, nursery, connection.peer_id, snapshots)
        await Rpc(connection, session.handle).run()
        nursery.cancel_scope.cancel()


async def _chunkserver(master: Master, upkeep: Upkeep, connection: BulkConnection) -> None:
    session = ChunkserverSession(master, upkeep.start_pass)
    rpc = Rpc(connection, session.handle)
    try:
        await rpc.run()
    finally:
        session.ended(rpc)


async def _shadow(master: Master, shadows: Shadows, connection: BulkConnection) -> None:
    async with trio.open_nursery() as nursery:
        session = ShadowSession(master, shadows, nursery)
        try:
            await Rpc(connection, session.handle).run()
        finally:
            session.end_copy()
        nursery.cancel_scope.cancel()

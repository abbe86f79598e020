"""The master's process: opens the store, listens, and lets everything run.

It is the master or a shadow master, and may change from one to the other; the
listener and the store stay, all connections end, and the state in memory is built
again, as after a restart, which is the path that is used and tested most.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from gfs.config import MasterSettings, split_addresses
from gfs.diagnostics import event
from gfs.errors import Deposed, DiskFailed, DiskFull, ProtocolError, StartupError, innermost
from gfs.io import Listener, World, real_world
from gfs.master.election import Candidate, Engine, EngineAway, Guarded
from gfs.master.leases import Grants
from gfs.master.master import Master
from gfs.master.metadata import Standing, Store, open_only, terms
from gfs.master.service import ChunkserverSession, ClientSession, Snapshots, families
from gfs.master.shadows import Shadow, Shadows, ShadowSession, TermAnnouncer
from gfs.master.upkeep import Upkeep
from gfs.metrics import Source
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.credentials import Credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.rpc import Rpc
from gfs.protocol.server import serve

log = logging.getLogger(__name__)

CLUSTER_BYTES = 8
#: How often an empty store looks whether there is a cluster.
LOOK_SECONDS = 0.25


class MasterStarted(NamedTuple):
    """What a master reports once it serves."""

    address: str
    cluster: str


async def run_master(
    world: World,
    settings: MasterSettings,
    directory: str,
    key: bytes | Credentials,
    *,
    metrics: Source | None = None,
    engine: Engine | None = None,
    task_status: trio.TaskStatus[MasterStarted] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the metadata in ``directory`` at ``settings.address`` until cancelled:
    as the master, or as a shadow of another one that may become it.

    With an ``engine`` it is a shadow master until that lets it try to be the master.

    The directory is made if it does not exist, and locked. ``key`` is the cluster's.
    ``metrics`` then collects the metrics of the master or shadow master. Reports
    MasterStarted once it serves (a shadow master: once it has a copy).

    Raises StartupError if it cannot start here, Deposed when a master of a
    higher term took over, and DiskFailed when the metadata cannot be written any
    more: the process should end and be started again.
    """
    store = await _open(world, settings, directory)
    try:
        if store.standing.fenced and not (settings.shadow_of or engine):
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
                if engine is None:
                    await process.run()
                else:
                    await process.run_elected(engine)
        finally:
            listener.close()
    finally:
        store.close()


def election_engine(settings: MasterSettings) -> Engine | None:
    """The engine that ``settings.elect`` names, for :func:`run_master`; None: an operator
    decides. Raises SettingsError."""
    if not settings.elect:
        return None
    if settings.elect.startswith("kubernetes:"):
        from gfs.master.election import lease

        return lease.from_settings(settings, real_world().clock.elapsed)
    from gfs.master.election import etcd

    return etcd.from_settings(settings)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """The error that ended a nursery, out of its exception group."""
    try:
        yield
    except BaseExceptionGroup as group:
        failure = group.subgroup((DiskFailed, Deposed, StartupError))
        if failure is None:
            raise
        raise innermost(failure) from group


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
        # The call may have been carried out nevertheless.
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
    """One master or shadow master; its role may change while it runs."""

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
        self._candidate: Candidate | None = None

    def _started(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._task_status.started(MasterStarted(self._listener.address, self._store.cluster))

    async def run(self) -> None:
        is_shadow = await self._is_shadow()
        while True:
            if is_shadow:
                await self._shadow()
            else:
                await self._serve()
            is_shadow = bool(self._store.standing.follows)

    async def _shadow(self) -> None:
        """Serve as a shadow master. Returns when promoted."""
        await Shadow(
            self._world,
            self._settings,
            self._directory,
            self._key,
            self._store,
            self._listener,
            self._metrics,
            self._started,
            self._candidate,
        ).run()

    # --- elected ---------------------------------------------------------------------------

    async def run_elected(self, engine: Engine) -> None:
        """Be a shadow master; be the master for as long as this process has the hold of
        ``engine`` and was promoted; and so on."""
        async with trio.open_nursery() as nursery:
            self._candidate = candidate = Candidate(
                self._world.clock, engine, self._settings.hold_seconds, self._listener.address
            )
            nursery.start_soon(candidate.run)
            state = self._store.state
            if not (self._store.cluster and (state.sequence or state.term)):
                await self._found(candidate)
            if self._store.standing.fenced:
                await self._follow()
            elif self._store.cluster and not self._store.standing.follows:
                await self._resign()  # it was the master until it was stopped
            while True:
                await self._shadow()
                await self._serve_held(candidate)

    async def _found(self, candidate: Candidate) -> None:
        """Begin a cluster if the engine has none recorded and lets this process try. Only then
        can an empty store be that of a master: one that was lost has its cluster recorded.

        Nobody hears of the cluster before it is recorded. A process that dies in between goes on
        here with the same one, unless another one was recorded since, which it then copies."""
        store = self._store
        if not store.cluster:
            await self._begin_cluster(candidate)
        while store.cluster:
            with suppress(EngineAway):
                if (recorded := await candidate.record(store.cluster)) != store.cluster:
                    log.warning(
                        "cluster %s, in which nothing was done yet, is given up: the engine has "
                        "recorded %s, whose master's metadata is to be copied",
                        *(store.cluster, recorded),
                    )
                    with self._at_the_start():
                        await self._world.run_blocking(store.give_up)
                return
            await self._world.clock.sleep(LOOK_SECONDS)

    async def _begin_cluster(self, candidate: Candidate) -> None:
        while not await candidate.look():
            await self._world.clock.sleep(LOOK_SECONDS)
        if not candidate.view.cluster:
            async with trio.open_nursery() as nursery:

                async def until_there_is_one() -> None:
                    while not candidate.view.cluster:
                        await self._world.clock.sleep(LOOK_SECONDS)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_there_is_one)
                await candidate.acquire()
                nursery.cancel_scope.cancel()
        if candidate.view.cluster:
            log.info("cluster %s: its master's metadata is to be copied", candidate.view.cluster)
            return
        cluster = self._world.random_bytes(CLUSTER_BYTES).hex()
        await self._begin(cluster)
        log.warning("cluster %s begins with this master", cluster)

    async def _begin(self, fresh_cluster: str) -> None:
        world = self._world
        with self._at_the_start():
            await world.run_blocking(self._store.begin, fresh_cluster, world.clock.time_ns())

    @contextmanager
    def _at_the_start(self) -> Iterator[None]:
        try:
            yield
        except DiskFull as error:
            raise StartupError(
                f"{self._directory}: the master cannot begin here: {error}"
            ) from error

    async def _resign(self) -> None:
        """Become a shadow master that was the master of its term until now: it has everything
        that was acknowledged in it."""
        store = self._store
        standing = Standing(
            # Never empty, or it would take itself for the master of a later term as well.
            follows=store.standing.peers or [self._listener.address],
            peers=store.standing.peers,
            ended=store.state.term,
            successor=self._listener.address,
        )
        await self._world.run_blocking(store.take_standing, standing)

    async def _serve_held(self, candidate: Candidate) -> None:
        """Serve as the master until the hold is lost, or was handed over. Its operations that
        were not acknowledged are given up when another one is promoted."""
        store = self._store
        higher = 0
        if candidate.holds:
            higher = await self._serve_now(candidate)
        if store.standing.successor:
            await candidate.offer(store.standing.successor)
            return
        await candidate.release()
        if higher:
            log.warning("this master was replaced: it becomes a shadow master of the new one")
            await self._follow()
        else:
            log.warning("this master has no hold any more: it becomes a shadow master")
            await self._resign()

    async def _serve_now(self, candidate: Candidate) -> int:
        """Returns the term of a master that has replaced this one, or 0."""
        world, store = self._world, self._store
        try:
            await world.run_blocking(store.begin, store.cluster, world.clock.time_ns())
        except DiskFull as error:
            log.error("this master was promoted, and cannot serve: %s", error)
            return 0
        identity = self._identity()
        # Nobody is asked for a higher term: that this one could begin was just found out.
        announcer = TermAnnouncer(world, identity, self._listener.address)
        await self._serve_term(identity, announcer, candidate)
        return announcer.higher

    # --- by an operator's choice -------------------------------------------------------------

    async def _is_shadow(self) -> bool:
        """Whether it starts as a shadow master. The store takes precedence over the
        command line: a shadow master that was promoted does not become one again by the
        command it was once started with."""
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
        """Become a shadow master. The present store is kept beside the copy."""
        named = split_addresses(self._settings.shadow_of)
        follows = list(dict.fromkeys([*named, *self._store.standing.peers]))
        keep = bool(self._store.cluster)
        as_shadow = Standing(follows=follows or [self._listener.address], keep=keep)
        await self._world.run_blocking(self._store.take_standing, as_shadow)

    async def _serve(self) -> None:
        """Serve as the master. Returns when it has handed over; raises Deposed."""
        world, store = self._world, self._store
        cluster = world.random_bytes(CLUSTER_BYTES).hex()
        await self._begin(cluster)
        identity = self._identity()
        announcer = TermAnnouncer(world, identity, self._listener.address)
        named = split_addresses(self._settings.shadow_of)
        await announcer.ask(dict.fromkeys([*named, *store.standing.peers]))
        if not announcer.higher:
            await self._serve_term(identity, announcer)
        elif named:
            # As the command says. Its operations beyond the new master's log were given
            # up when that was promoted.
            log.warning(
                "this master was replaced: it becomes a shadow master of the new one (--shadow-of)"
            )
            await self._follow()
            return
        if announcer.higher and not store.standing.follows:
            standing = msgspec.structs.replace(store.standing, fenced=announcer.higher)
            await world.run_blocking(store.take_standing, standing)
            raise Deposed(_over(announcer.higher))

    def _identity(self) -> Identity:
        store = self._store
        return Identity(
            "master", "master", self._key, store.cluster, store.state.term, learns=False
        )

    async def _serve_term(
        self, identity: Identity, announcer: TermAnnouncer, candidate: Candidate | None = None
    ) -> None:
        master = Master(self._world, self._settings, self._store)
        shadows = Shadows(master)
        master.process.shadow_status, master.process.forget_shadow = shadows.status, shadows.forget
        master.process.certificate_until_ns = lambda: identity.certificate_until_ns
        if candidate is not None:
            master.process.election, shadows.check = candidate.status, candidate.check
        self._metrics.collect = partial(families, master)
        async with trio.open_nursery() as nursery:

            async def end_when(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_when, shadows.retired)
            nursery.start_soon(end_when, announcer.deposed)
            if candidate is not None:
                nursery.start_soon(end_when, candidate.lost)
            nursery.start_soon(master.committer.run)
            nursery.start_soon(shadows.run)
            nursery.start_soon(announcer.announce, lambda: shadows.absent(self._settings.shadow_of))
            grants = Grants(master)
            upkeep = Upkeep(master, self._directory, nursery, grants)
            upkeep.start()
            snapshots = Snapshots(master, grants, nursery)
            connection = partial(_connection, master, grants, snapshots, upkeep, shadows, announcer)
            if candidate is not None:
                connection = partial(_guarded, candidate, connection)
            nursery.start_soon(
                serve, self._world, self._listener, identity, connection, master.process.connections
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


async def _guarded(
    candidate: Candidate,
    serve_it: Callable[[BulkConnection], Awaitable[None]],
    connection: BulkConnection,
) -> None:
    connection.stream = Guarded(connection.stream, lambda: candidate.holds)
    await serve_it(connection)


async def _connection(
    master: Master,
    grants: Grants,
    snapshots: Snapshots,
    upkeep: Upkeep,
    shadows: Shadows,
    announcer: TermAnnouncer,
    connection: BulkConnection,
) -> None:
    """Serve one authenticated connection. A bug ends only this connection."""
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
    session = ChunkserverSession(master, upkeep.start_pass, upkeep.reports)
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

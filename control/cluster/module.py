"""The module: its routes, for administrators' sessions and tokens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import trio

import gfs
from control.api import (
    BadRequest,
    Call,
    Conflict,
    Connection,
    Control,
    Module,
    NoSuchThing,
    Route,
    Schema,
    admins,
    within,
)
from control.cluster import series
from control.cluster.events import EVENTS, events, oldest
from control.cluster.shapes import (
    Advice,
    DiskBody,
    DiskInfo,
    DiskList,
    Done,
    DrainBody,
    ElectionInfo,
    EventInfo,
    EventPage,
    EventQuery,
    FailoverBody,
    FailoverInfo,
    Glance,
    MaintenanceBody,
    MasterList,
    MetadataInfo,
    MovesInfo,
    Numbers,
    RepairBody,
    RepairInfo,
    ScrubInfo,
    SeriesInfo,
    ServerInfo,
    ServerList,
    ShadowInfo,
    TrashInfo,
)
from control.cluster.watch import Watch
from gfs.cli.health import advice, leaders, masters
from gfs.client import cluster_space, space_of
from gfs.config import ClientSettings, load, split_addresses
from gfs.errors import (
    AlreadyExists,
    Busy,
    DiskFailed,
    DrainRefused,
    InvalidArgument,
    NotFound,
    ReplicaUnavailable,
    StaleVersion,
)

if TYPE_CHECKING:
    from gfs.protocol.messages import (
        Disk,
        ElectionReply,
        RepairReply,
        Scrub,
        ServerStatus,
        StatusReply,
    )

LOOK_SECONDS = 10.0
#: A promotion waits for the old master and for other shadow masters.
FAILOVER_SECONDS = 60.0
#: A disk that is used again is read; the order goes on after that.
DISK_SECONDS = 120.0
#: Refusals of the master and of chunkservers, whose text says what to do.
_REFUSALS = (
    *(AlreadyExists, Busy, DiskFailed, DrainRefused, InvalidArgument),
    *(ReplicaUnavailable, StaleVersion),
)
_LEVELS: dict[str, Literal["warning", "note", "info"]] = {"WARNING": "warning", "note": "note"}
#: A command in a text: up to a sign, or a word that goes on with the sentence. One that does
#: something by itself is not for the reader.
_command = re.compile(
    r"\b(?:gfs|df) (?:(?! again\b| does\b| shows?\b| or\b| and\b| to\b)[^;,()\n:]|:(?! |$))++"
    r"(?! does\b)"
)


class ClusterModule(Module):
    """The state of the cluster, what to do about it, and its recent past."""

    name = "cluster"
    summary = "The cluster, for administrators"
    schemas: ClassVar[Sequence[Schema]] = (EVENTS,)

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self._connection = Connection(control)
        self._watch = Watch(control, self._connection)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._connection.hold)
            nursery.start_soon(self._watch.run)
            task_status.started()

    def routes(self) -> Sequence[Route]:
        base = "/admin/cluster"
        server = f"{base}/servers/{{server}}"
        may = partial(admins, "cluster")
        look = may("status", "read")
        looks, orders = (401, 403, 503), (401, 403, 404, 409, 503)
        return [
            Route(
                "GET", base, self.glance, look, "The cluster at a glance",
                answer=Glance, errors=looks,
                description="Each warning names what to do next, with the command of `gfs`.",
            ),
            Route(
                "GET", f"{base}/servers", self.servers, look, "All chunkservers and their disks",
                answer=ServerList, errors=looks,
            ),
            Route(
                "POST", f"{server}/drain", self.drain, may("servers", "update"),
                "Drain a chunkserver, so that it can be stopped",
                body=DrainBody, answer=ServerInfo, errors=orders,
                description=(
                    "Its replicas are copied elsewhere first. It is answered as soon as the drain "
                    "is stored; `drain` of the server is its progress. 409 says what to add."
                ),
            ),
            Route(
                "POST", f"{server}/maintenance", self.maintain, may("servers", "update"),
                "Begin or end maintenance of a chunkserver",
                body=MaintenanceBody, answer=ServerInfo, errors=orders,
                description="While it is away for so long, it is not declared dead.",
            ),
            Route(
                "POST", f"{server}/disks", self.order_disk, may("servers", "update"),
                "Add, drain, remove or retry a disk of a chunkserver",
                body=DiskBody, answer=DiskList, errors=orders,
            ),
            Route(
                "DELETE", server, self.forget, may("servers", "delete"),
                "Forget a chunkserver that is dead, or drained and stopped",
                answer=Done, errors=orders,
            ),
            Route(
                "GET", f"{base}/masters", self.masters, look,
                "The master, its shadow masters, and who has the hold",
                answer=MasterList, errors=looks,
            ),
            Route(
                "DELETE", f"{base}/masters/{{address}}", self.forget_shadow,
                may("masters", "delete"),
                "Forget a shadow master that is lost for good",
                answer=Done, errors=orders,
            ),
            Route(
                "POST", f"{base}/failover", self.failover, may("masters", "update"),
                "Hand the work of an elected master over to another one",
                body=FailoverBody, answer=FailoverInfo, errors=orders,
            ),
            Route(
                "PUT", f"{base}/repair", self.repair, may("repair", "update"),
                "Pause or resume repair, and set its limits",
                body=RepairBody, answer=RepairInfo, errors=looks,
            ),
            Route(
                "GET", f"{base}/events", self.events, look, "What happened in the last days",
                query=EventQuery, answer=EventPage, errors=[400, 401, 403],
            ),
            Route(
                "GET", f"{base}/series", self.series, look, "Numbers over the last hour",
                answer=SeriesInfo, errors=[401, 403],
                description=(
                    "Rates are of the REST API and S3, in all processes of the machine that "
                    "watches the cluster. They are kept in memory."
                ),
            ),
        ]  # fmt: skip

    # --- looking ------------------------------------------------------------------

    async def glance(self, call: Call) -> Glance:
        fs = self._connection.fs
        with within(LOOK_SECONDS):
            status = await fs.status()
            repair = await fs.repair()
            election = await fs.election()
        now_ns = time.time_ns()
        lines = list(advice(status, election, now_ns))
        if status.role == "shadow":  # it answers while the master does not
            lines = [*masters(status), *lines]
        totals = status.totals
        total, free = cluster_space(status.servers)
        metadata = status.metadata
        return Glance(
            cluster=status.cluster,
            now=now_ns // 10**9,
            role=_role(status),
            master=self._master(status, election),
            used_bytes=total - free,
            free_bytes=free,
            total_bytes=total,
            files=totals.files,
            directories=totals.directories,
            bytes=totals.bytes,
            shared_bytes=totals.shared_bytes,
            chunks=totals.chunks,
            below_goal=totals.under_replicated,
            corrupt=totals.corrupt,
            lost=totals.lost,
            stale=totals.stale,
            unlocated=totals.unlocated,
            garbage_replicas=totals.orphaned,
            garbage_bytes=totals.orphaned_bytes,
            replication=status.replication,
            trash=TrashInfo(
                totals.trash_rows,
                totals.trash_files,
                totals.trash_bytes,
                status.trash_ms // 1000,
                totals.trash_oldest_ns // 10**9,
                totals.trash_until_ns // 10**9,
            ),
            repair=_repair(repair, totals.repairs_active, totals.repairs_queued),
            moves=MovesInfo(totals.moves_active, totals.moves_queued),
            servers=Numbers(len(status.servers), sum(s.state == "live" for s in status.servers)),
            metadata=MetadataInfo(
                metadata.used_bytes,
                metadata.map_bytes,
                metadata.disk_free_bytes,
                metadata.disk_total_bytes,
            ),
            warnings=[advice_of(line) for line in lines],
        )

    async def servers(self, call: Call) -> ServerList:
        with within(LOOK_SECONDS):
            status = await self._connection.fs.status()
        return ServerList([_server(each) for each in status.servers])

    async def masters(self, call: Call) -> MasterList:
        with within(LOOK_SECONDS):
            status = await self._connection.fs.status()
            election = await self._connection.fs.election()
        return MasterList(
            _role(status),
            self._master(status, election),
            status.term >> 32,
            status.sequence,
            status.replicas_before_ack,
            [
                ShadowInfo(
                    each.address,
                    each.state,
                    max(0, status.sequence - each.sequence) if each.sequence >= 0 else None,
                    each.behind_ms / 1000 if each.behind_ms >= 0 else None,
                )
                for each in status.shadows
            ],
            ElectionInfo(
                election.engine,
                election.holder,
                election.since_ns // 10**9,
                election.hold_ms / 1000,
                election.away_ms / 1000,
                election.reason,
            )
            if election.engine
            else None,
        )

    def _master(self, status: StatusReply, election: ElectionReply) -> str:
        """Its address, or nothing if that is not known."""
        if status.role == "shadow" or election.engine:
            return status.master or election.holder
        found = leaders(split_addresses(self.control.master or ""), status)
        return found.pop() if len(found) == 1 else ""

    async def events(self, call: Call) -> EventPage:
        query = call.query(EventQuery)
        first = oldest(time.time_ns())
        with self.control.records.read() as txn:
            rows = [
                row
                for row in events.scan(txn)
                if first <= row.id and (not query.before or row.id < query.before)
            ]
        rows.reverse()
        page = [
            EventInfo(
                row.id,
                row.at,
                row.kind,
                "warning" if row.level == "warning" else "info",
                row.text,
                row.server,
            )
            for row in rows[: query.limit]
        ]
        return EventPage(page, page[-1].id if len(rows) > query.limit else None)

    async def series(self, call: Call) -> SeriesInfo:
        at, values = series.read(self.control.volatile, time.time())
        return SeriesInfo(series.STEP_SECONDS, at, values)

    # --- ordering -----------------------------------------------------------------

    async def drain(self, call: Call, body: DrainBody) -> ServerInfo:
        with _refusals(), within(LOOK_SECONDS):
            return _server(
                await self._connection.fs.drain(
                    call.params["server"], cancel=body.cancel, fewer_racks=body.fewer_racks
                )
            )

    async def maintain(self, call: Call, body: MaintenanceBody) -> ServerInfo:
        name = call.params["server"]
        with _refusals(), within(LOOK_SECONDS):
            await self._connection.fs.maintain(name, body.seconds)
            status = await self._connection.fs.status()
        for each in status.servers:
            if name in (each.id, each.address):
                return _server(each)
        raise NoSuchThing(f"there is no chunkserver {name[:100]}")

    async def forget(self, call: Call) -> Done:
        with _refusals(), within(LOOK_SECONDS):
            await self._connection.fs.forget_server(call.params["server"])
        return Done()

    async def order_disk(self, call: Call, body: DiskBody) -> DiskList:
        if body.force and body.action != "add":
            raise BadRequest("force: only with the action add")
        action = "add-unmounted" if body.force else body.action
        with _refusals(), within(DISK_SECONDS):
            disks = await self._connection.fs.order_disk(call.params["server"], body.path, action)
        return DiskList([_disk(each) for each in disks])

    async def forget_shadow(self, call: Call) -> Done:
        with _refusals(), within(LOOK_SECONDS):
            await self._connection.fs.forget_shadow(call.params["address"])
        return Done()

    async def repair(self, call: Call, body: RepairBody) -> RepairInfo:
        fs = self._connection.fs
        with within(LOOK_SECONDS):
            reply = await fs.repair(paused=body.paused, settings=body.settings)
            totals = (await fs.status()).totals
        return _repair(reply, totals.repairs_active, totals.repairs_queued)

    async def failover(self, call: Call, body: FailoverBody) -> FailoverInfo:
        control = self.control
        with _refusals(), within(LOOK_SECONDS):
            if not (await self._connection.fs.election()).engine:
                raise Conflict(
                    "no engine elects the masters of this cluster: gfs promote ADDRESS moves its "
                    "master"
                )
            shadows = (await self._connection.fs.status()).shadows
        fit = [each for each in shadows if each.state == "following"]
        if body.address:
            fit = [each for each in fit if each.address == body.address]
        if not fit:
            which = f"no shadow master {body.address[:100]}".rstrip()
            raise Conflict(f"{which} follows and counts")
        chosen = max(fit, key=lambda each: each.sequence).address
        settings = load(ClientSettings, "client", file=control.config)
        with _refusals(), within(FAILOVER_SECONDS):
            async with gfs.connect(
                chosen, state=control.state, key=control.key, tls=control.tls, settings=settings
            ) as shadow:
                reply = await shadow.promote()
        return FailoverInfo(chosen, reply.term >> 32)


@contextmanager
def _refusals() -> Iterator[None]:
    """Answer what the master or a chunkserver refuses with its own words."""
    try:
        yield
    except NotFound as error:
        raise NoSuchThing(str(error)) from None
    except _REFUSALS as error:
        raise Conflict(str(error)) from None


def advice_of(line: str) -> Advice:
    """``WARNING: …``, ``note: …`` or a plain text, with the commands that it names."""
    word, _, rest = line.partition(": ")
    level = _LEVELS.get(word, "info")
    text = rest if level != "info" else line
    commands = [found.strip().rstrip(".") for found in _command.findall(text)]
    return Advice(level, text, list(dict.fromkeys(commands)))


def _role(status: StatusReply) -> Literal["master", "shadow"]:
    return "shadow" if status.role == "shadow" else "master"


def _repair(reply: RepairReply, active: int, queued: int) -> RepairInfo:
    left = sum(rank.bytes for rank in reply.ranks)
    rate = reply.bytes_per_second
    return RepairInfo(
        reply.paused,
        active,
        queued,
        reply.replicas_per_second,
        rate,
        left,
        int(left / rate) if rate > 0 else None if left else 0,
        dict(reply.settings),
    )


def _server(each: ServerStatus) -> ServerInfo:
    total, free = space_of([each])
    return ServerInfo(
        each.id,
        each.address,
        each.rack,
        each.state,
        each.heartbeat_age_ms / 1000,
        each.chunks,
        total - free,
        free,
        total,
        each.drain,
        each.drain_chunks,
        each.drain_uploads,
        each.drain_lost,
        each.maintenance_ms // 1000,
        _scrub(each.scrub),
        [_disk(disk) for disk in each.disks],
    )


def _scrub(scrub: Scrub) -> ScrubInfo:
    now = time.time()
    began, ended = (
        int(now - ms / 1000) if ms >= 0 else None for ms in (scrub.began_ms, scrub.ended_ms)
    )
    return ScrubInfo(scrub.done_bytes, scrub.total_bytes, began, ended)


def _disk(disk: Disk) -> DiskInfo:
    return DiskInfo(
        disk.path,
        disk.id,
        disk.state,
        disk.reason,
        disk.total_bytes,
        disk.free_bytes,
        disk.chunks,
        disk.errors,
        disk.mount,
    )

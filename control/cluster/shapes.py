"""The JSON of requests and answers. Times are unix seconds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Advice(msgspec.Struct):
    level: Literal["warning", "note", "info"]
    text: str
    commands: Annotated[list[str], Meta(description="The commands that the text names")]


class TrashInfo(msgspec.Struct):
    rows: int
    files: int
    bytes: int
    kept_seconds: int
    oldest_at: Annotated[int, Meta(description="0: it is empty")]
    until: Annotated[int, Meta(description="When the oldest is purged")]


class RepairInfo(msgspec.Struct):
    paused: bool
    active: int
    queued: int
    replicas_per_second: float
    bytes_per_second: float
    bytes_left: int
    seconds_left: Annotated[
        int | None, Meta(description="At this rate; null: nothing is copied right now")
    ]
    settings: Annotated[
        dict[str, int], Meta(description="-1 for bytes_per_second: each chunkserver's own")
    ]


class MovesInfo(msgspec.Struct):
    active: int
    queued: int


class Numbers(msgspec.Struct):
    total: int
    live: int


class MetadataInfo(msgspec.Struct):
    """-1: not known."""

    used_bytes: int
    map_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int


class Glance(msgspec.Struct):
    cluster: str
    now: int
    role: Literal["master", "shadow"]
    master: Annotated[str, Meta(description="If a shadow master has answered: the master")]
    used_bytes: Annotated[
        int, Meta(description="Of the file systems of the chunkservers, by other programs as well")
    ]
    free_bytes: int
    total_bytes: Annotated[
        int, Meta(description="Of each file system once; without servers that are dead or stopped")
    ]
    files: int
    directories: int
    bytes: Annotated[int, Meta(description="The lengths of the files")]
    shared_bytes: Annotated[int, Meta(description="The part that snapshots and copies share")]
    chunks: int
    below_goal: int
    corrupt: int
    lost: int
    stale: int
    unlocated: Annotated[int, Meta(description="No chunkserver has reported them yet")]
    garbage_replicas: int
    garbage_bytes: int
    replication: Annotated[int, Meta(description="The goal of new files")]
    trash: TrashInfo
    repair: RepairInfo
    moves: Annotated[MovesInfo, Meta(description="Copies for draining and rebalancing")]
    servers: Numbers
    metadata: MetadataInfo
    warnings: list[Advice]


class DiskInfo(msgspec.Struct):
    path: str
    id: str
    state: str
    reason: str
    total_bytes: int
    free_bytes: int
    chunks: int
    errors: int
    mount: Annotated[str, Meta(description="Where its file system is mounted; empty: not known")]


class DiskList(msgspec.Struct):
    disks: list[DiskInfo]


class ScrubInfo(msgspec.Struct):
    done_bytes: int
    total_bytes: int
    began_at: Annotated[int | None, Meta(description="Of the present pass")]
    ended_at: Annotated[int | None, Meta(description="Of the last complete pass")]


class ServerInfo(msgspec.Struct):
    id: str
    address: str
    rack: str
    state: Annotated[str, Meta(description="live, silent, dead, or stopped (after a drain)")]
    heartbeat_seconds: float
    chunks: int
    used_bytes: int
    free_bytes: int
    total_bytes: int
    drain: Annotated[str, Meta(description='"", draining, drained: then it can be stopped')]
    drain_chunks: Annotated[int, Meta(description="That still need it")]
    drain_uploads: int
    drain_lost: Annotated[int, Meta(description="Of these chunks: without a good replica")]
    maintenance_seconds: int
    scrub: ScrubInfo
    disks: list[DiskInfo]


class ServerList(msgspec.Struct):
    servers: list[ServerInfo]


class DrainBody(msgspec.Struct):
    cancel: bool = False
    fewer_racks: Annotated[bool, Meta(description="Accept that replicas are in fewer racks")] = (
        False
    )


class MaintenanceBody(msgspec.Struct):
    seconds: Annotated[int, Meta(ge=0, le=7 * 86400, description="0 ends it")]


class DiskBody(msgspec.Struct):
    path: Annotated[str, Meta(min_length=1, description="The directory on the server's machine")]
    action: Literal["add", "drain", "undrain", "remove", "retry"]
    force: Annotated[
        bool,
        Meta(
            description="Add it on the root file system, on one where another disk of the machine "
            "is, or where another disk was mounted, too"
        ),
    ] = False


class ShadowInfo(msgspec.Struct):
    address: str
    state: str
    behind_operations: Annotated[int | None, Meta(description="null: not known")]
    behind_seconds: Annotated[float | None, Meta(description="null: not known")]


class ElectionInfo(msgspec.Struct):
    engine: str
    holder: Annotated[str, Meta(description="Empty: nobody has the hold")]
    since: int
    hold_seconds: float
    away_seconds: Annotated[float, Meta(description="For how long the engine has not answered")]
    reason: str


class MasterList(msgspec.Struct):
    role: Literal["master", "shadow"]
    master: str
    term: int
    sequence: int
    replicas_before_ack: int
    shadows: list[ShadowInfo]
    election: Annotated[ElectionInfo | None, Meta(description="null: no engine elects masters")]


class FailoverBody(msgspec.Struct):
    address: Annotated[
        str, Meta(description="Of a shadow master; empty: the one that is behind least")
    ] = ""


class FailoverInfo(msgspec.Struct):
    master: str
    term: int


class RepairBody(msgspec.Struct):
    paused: bool | None = None
    settings: Annotated[
        dict[str, int],
        Meta(
            max_length=4,
            description="clones_per_server, clones_total, moves_total, bytes_per_second; -1: "
            "as the master was started",
        ),
    ] = {}


class Done(msgspec.Struct):
    status: Literal["ok"] = "ok"


class EventInfo(msgspec.Struct):
    id: str
    at: int
    kind: str
    level: Literal["warning", "info"]
    text: str
    server: str


class EventQuery(msgspec.Struct):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200
    before: Annotated[str, Meta(pattern="^[0-9a-f]{0,16}$", description="`next` of a page")] = ""


class EventPage(msgspec.Struct):
    events: Annotated[list[EventInfo], Meta(description="The newest first")]
    next: Annotated[str | None, Meta(description="For `before`; null: this is the last page")]


class SeriesInfo(msgspec.Struct):
    step_seconds: int
    at: list[int]
    values: Annotated[
        dict[str, list[float | None]], Meta(description="For each of `at`; null: not known")
    ]

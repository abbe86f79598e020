"""Where the chunks of a file are, and whether they are good: for its owner and administrators."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import msgspec
from msgspec import Meta

from control.api import ADMIN, Call, Control, NoSuchThing, Route, TooManyRequests, within
from control.storage.cluster import Cluster
from control.storage.folders import LOOK_SECONDS, OWN
from control.storage.names import DEFAULT, check_own_path
from control.storage.rows import Space
from control.storage.shapes import FileName, SpaceParameter
from control.storage.spaces import Spaces
from gfs.client import Entry
from gfs.errors import NotADirectory, NotFound

#: A check reads every replica of a file: some 100 MB/s for each disk.
CHECK_SECONDS = 300.0
#: Checks at once, in one process, each for another user: they take disks from readers and writers.
CHECKS_MAX = 4


class ReplicaInfo(msgspec.Struct):
    server: str
    rack: str
    address: Annotated[str | None, Meta(description="For administrators")]
    state: Annotated[str, Meta(description="Of its server: live, silent, dead or stopped")]
    scrub_began_at: Annotated[
        int | None, Meta(description="The server's present pass of verifying all its replicas")
    ]
    scrub_ended_at: Annotated[int | None, Meta(description="The last complete pass")]
    scrub_whole_began_at: Annotated[
        int | None,
        Meta(description="When that one began: what was there by then was verified in it"),
    ]


class ChunkInfo(msgspec.Struct):
    index: int
    handle: str
    version: int
    size: int
    goal: int
    leased: Annotated[bool, Meta(description="It may be written now")]
    replicas: list[ReplicaInfo]


class LocateInfo(msgspec.Struct):
    path: str
    size: int
    goal: int
    chunks: list[ChunkInfo]


class ProblemInfo(msgspec.Struct):
    kind: Annotated[
        str, Meta(description="lost, missing, corrupt, stale, forgetful (replicas); below_goal")
    ]
    index: Annotated[int, Meta(description="Of the chunk")]
    server: str
    detail: str


class CheckInfo(msgspec.Struct):
    path: str
    checked_at: int
    chunks: int
    replicas: int
    bytes: int
    problems: Annotated[list[ProblemInfo], Meta(description="Empty: every replica is good")]


class PathQuery(msgspec.Struct):
    path: FileName


class PathBody(msgspec.Struct):
    path: FileName


class AdminPathQuery(msgspec.Struct):
    path: FileName
    namespace: SpaceParameter = DEFAULT


class AdminPathBody(msgspec.Struct):
    path: FileName
    namespace: SpaceParameter = DEFAULT


class InspectionRoutes:
    def __init__(self, control: Control, cluster: Cluster, spaces: Spaces) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        #: The users for whom a file is being checked.
        self._checking: set[str] = set()

    def routes(self) -> Sequence[Route]:
        base = "/storage/namespaces/{namespace}"
        errors = (400, 401, 403, 404, 503)
        bodies = (401, 403, 404, 429, 503)
        check = "Read and verify every replica of a file now"
        locate = "The chunks of a file, and where their replicas are"
        about = (
            f"One at a time for each user, {CHECKS_MAX} in all (429). Bad replicas are repaired as "
            "always."
        )
        return [
            Route(
                "GET",
                f"{base}/locate",
                self.locate,
                OWN,
                locate,
                query=PathQuery,
                answer=LocateInfo,
                errors=errors,
            ),
            Route(
                "POST",
                f"{base}/check",
                self.check,
                OWN,
                check,
                body=PathBody,
                answer=CheckInfo,
                errors=bodies,
                description=about,
            ),
            Route(
                "GET",
                "/admin/files/locate",
                self.locate_any,
                ADMIN,
                f"{locate}, in any storage namespace",
                query=AdminPathQuery,
                answer=LocateInfo,
                errors=errors,
            ),
            Route(
                "POST",
                "/admin/files/check",
                self.check_any,
                ADMIN,
                f"{check}, in any storage namespace",
                body=AdminPathBody,
                answer=CheckInfo,
                errors=bodies,
                description=about,
            ),
        ]

    async def locate(self, call: Call) -> LocateInfo:
        path = call.query(PathQuery).path
        return await self._locate(call, self._spaces.own(call, call.params["namespace"]), path)

    async def locate_any(self, call: Call) -> LocateInfo:
        query = call.query(AdminPathQuery)
        return await self._locate(call, self._spaces.get(query.namespace), query.path)

    async def check(self, call: Call, body: PathBody) -> CheckInfo:
        return await self._check(call, self._spaces.own(call, call.params["namespace"]), body.path)

    async def check_any(self, call: Call, body: AdminPathBody) -> CheckInfo:
        return await self._check(call, self._spaces.get(body.namespace), body.path)

    async def _locate(self, call: Call, space: Space, path: str) -> LocateInfo:
        is_admin = call.user.is_admin
        with within(LOOK_SECONDS):
            entry = await self._file(space, path)
            report = await self._cluster.fs.locate(entry.path)
            status = await self._cluster.fs.status()
        now = time.time()
        servers = {server.id: server for server in status.servers}

        def ago(milliseconds: int) -> int | None:
            return int(now - milliseconds / 1000) if milliseconds >= 0 else None

        def replica(id_: str, address: str, rack: str) -> ReplicaInfo:
            server = servers.get(id_)
            return ReplicaInfo(
                id_,
                rack,
                address if is_admin else None,
                server.state if server is not None else "dead",
                ago(server.scrub.began_ms) if server is not None else None,
                ago(server.scrub.ended_ms) if server is not None else None,
                ago(server.scrub.whole_began_ms) if server is not None else None,
            )

        chunks = [
            ChunkInfo(
                chunk.index,
                f"{chunk.handle:x}",
                chunk.version,
                chunk.length,
                chunk.goal,
                chunk.lease_ms > 0,
                [replica(each.id, each.address, each.rack) for each in chunk.replicas],
            )
            for chunk in report.chunks
        ]
        return LocateInfo(path, report.entry.length, report.entry.replication, chunks)

    async def _check(self, call: Call, space: Space, path: str) -> CheckInfo:
        with self._turn(call.user.user_id), within(CHECK_SECONDS):
            entry = await self._file(space, path)
            report = await self._cluster.fs.fsck(entry.path)
        problems = [
            ProblemInfo(each.kind, each.index, each.server, each.detail)
            for each in report.problems
            if each.path
        ]
        return CheckInfo(
            path, int(time.time()), report.chunks, report.replicas, report.bytes, problems
        )

    @contextmanager
    def _turn(self, user_id: str) -> Iterator[None]:
        if user_id in self._checking:
            raise TooManyRequests("another file of yours is being checked: try again", 5)
        if len(self._checking) >= CHECKS_MAX:
            raise TooManyRequests(f"{CHECKS_MAX} files are being checked: try again", 5)
        self._checking.add(user_id)
        try:
            yield
        finally:
            self._checking.remove(user_id)

    async def _file(self, space: Space, path: str) -> Entry:
        check_own_path(path)
        try:
            entry = await self._cluster.fs.stat(f"{space.directory}/{path}")
        except (NotFound, NotADirectory):
            raise NoSuchThing(f"{path} does not exist") from None
        if entry.kind != "file":
            raise NoSuchThing(f"{path} is a folder")
        return entry

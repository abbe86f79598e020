"""A module that uses every name of ``control.api``, and nothing else of this project."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import ClassVar

import msgspec
import trio

from control.api import (
    ADMIN,
    ANYBODY,
    JSON,
    LOGGED_IN,
    NO_STORE,
    PRIVATE,
    PUBLIC,
    PUBLIC_VISIBILITY,
    SERVICE,
    SESSION,
    VISIBLE,
    ApiError,
    BadRequest,
    BodyCutShort,
    Call,
    Conflict,
    Connection,
    Content,
    Control,
    ControlSettings,
    Forbidden,
    Limits,
    Module,
    Need,
    NoSuchThing,
    Principal,
    QuotaReached,
    QuotaUsage,
    Records,
    RecordsBusy,
    RecordsFailed,
    Response,
    Route,
    RowUnreadable,
    Schema,
    ScopeTable,
    Settings,
    SettingsError,
    Socket,
    SocketClosed,
    StartupError,
    StreamingRequest,
    Table,
    Taken,
    Target,
    TooLarge,
    TooManyRequests,
    TooSlow,
    Txn,
    Unauthorized,
    Unavailable,
    Upgrade,
    UserDeletion,
    Volatile,
    Workload,
    WorkloadsOf,
    admins,
    in_order,
    json_array,
    json_response,
    scoped,
    stream_response,
    upgrade_only,
    within,
)

OPEN: Mapping[str, Need] = {
    "anybody": ANYBODY,
    "logged-in": LOGGED_IN,
    "session": SESSION,
    "admin": ADMIN,
    "admin-with-a-scope": admins("board", "notices", "read"),
    "service": SERVICE,
}
FAILURES: Mapping[str, ApiError] = {
    "conflict": Conflict("there is one"),
    "forbidden": Forbidden("not yours"),
    "quota": QuotaReached("that is all"),
    "many": TooManyRequests("later", 5),
    "slow": TooSlow("too slow"),
    "login": Unauthorized(),
    "away": Unavailable("away"),
}


class Notice(msgspec.Struct, array_like=True, frozen=True):
    number: str
    user_id: str
    text: str
    visibility: int


class Seen(msgspec.Struct, frozen=True):
    times: int


class NoticeView(msgspec.Struct):
    number: int
    text: str


class OnePath(msgspec.Struct):
    number: int


class NewNotice(msgspec.Struct):
    text: str
    visibility: int = PRIVATE


class Query(msgspec.Struct):
    longest: int = 1000


class BoardSettings(Settings, frozen=True, kw_only=True):
    notices_max: int = 3

    def check(self) -> None:
        if self.notices_max < 1:
            raise SettingsError("notices_max must be at least 1")


notices = Table(
    "notices", Notice, key=lambda each: each.number, indexes={"user": lambda each: [each.user_id]}
)


def view(notice: Notice) -> NoticeView:
    return NoticeView(int(notice.number), notice.text)


def count(txn: Txn, user_id: str) -> Mapping[str, int]:
    return {"namespaces": notices.count(txn, "user", user_id)}


def remove(txn: Txn, user_id: str) -> None:
    for notice in list(notices.by(txn, "user", user_id)):
        notices.delete(txn, notice.number)


class Board(Module):
    name = "board"
    summary = "Notices"
    scopes: ClassVar[ScopeTable] = {"board": {"notices": frozenset({"read", "create"})}}
    schemas: ClassVar[Sequence[Schema]] = (Schema("board", 1, [notices]),)
    on_user_deleted: ClassVar[UserDeletion | None] = staticmethod(remove)
    usage: ClassVar[QuotaUsage | None] = QuotaUsage(["namespaces"], count)
    parameter_kinds: ClassVar[Mapping[str, str]] = {"failure": "|".join(FAILURES)}
    settings_kind: ClassVar[type[Settings]] = BoardSettings
    settings: BoardSettings

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self.files: Connection = Connection(control)
        general: ControlSettings = control.settings
        if general.json_bytes_max < 1000:
            raise StartupError("board: json_bytes_max must be at least 1000")
        ask: WorkloadsOf = self.pinned
        control.workloads.append(ask)

    async def pinned(self, user_id: str) -> Sequence[Workload]:
        with self.control.records.read() as txn:
            return [
                Workload(name=each.number, namespace="board", disk_used=len(each.text.encode()))
                for each in notices.by(txn, "user", user_id)
            ]

    def routes(self) -> Sequence[Route]:
        read = scoped("board", "notices", "read", parameter="number", is_open=True)
        create = scoped("board", "notices", "create")
        one = "/board/notices/{number:int}"
        every = [
            Route("GET", f"/board/{path}", self.who, need, f"For {path}", answer=str)
            for path, need in OPEN.items()
        ]
        return [
            *every,
            Route("GET", "/board/fail/{failure:failure}", self.fail, PUBLIC, "Fails", answer=str),
            Route(
                "POST", "/board/notices", self.post, create, "x", body=NewNotice, answer=NoticeView
            ),
            Route("GET", "/board/notices", self.list, LOGGED_IN, "All", answer=list[NoticeView]),
            Route("GET", one, self.get, read, "One", answer=NoticeView),
            Route(
                "PUT",
                "/board/lines",
                self.lines,
                SESSION,
                "Lines in capitals",
                query=Query,
                body=Content("text/plain"),
                answer=Content("text/plain"),
            ),
            Route(
                "GET",
                "/board/echo",
                upgrade_only,
                SESSION,
                "Echo",
                upgrade=Upgrade(self.echo, sends="what it gets", takes="text"),
            ),
        ]

    async def who(self, call: Call) -> str:
        principal: Principal | None = call.principal
        request: StreamingRequest = call.request
        return f"{principal.username if principal else 'nobody'} {request.path}"

    async def fail(self, call: Call) -> Response:
        with within(60.0):
            raise FAILURES[call.params["failure"]]

    async def post(self, call: Call, body: NewNotice) -> NoticeView:
        if body.visibility not in (PRIVATE, VISIBLE, PUBLIC_VISIBILITY):
            raise BadRequest("visibility: 0, 1 or 2")
        user_id = call.user.user_id
        limits: Limits = self.control.limits_of(user_id)
        most = min(self.settings.notices_max, limits.namespaces)

        def insert(txn: Txn) -> Notice:
            if notices.count(txn, "user", user_id) >= most:
                raise QuotaReached(f"you have {most} notices: delete one")
            notice = Notice(f"{notices.count(txn) + 1:08}", user_id, body.text, body.visibility)
            notices.insert(txn, notice)
            return notice

        try:
            return view(await call.write(insert))
        except Taken:
            raise Conflict("there is one") from None
        except RecordsFailed:
            raise
        except (RecordsBusy, RowUnreadable) as error:
            raise Unavailable(str(error)) from None

    async def list(self, call: Call) -> Response:
        records: Records = self.control.records
        with records.read() as txn:
            rows = list(notices.by(txn, "user", call.user.user_id))
        if len(rows) == 1:
            return json_response([view(rows[0])], headers=NO_STORE)
        return json_array(await in_order(rows, lambda row: row.text), view)

    async def get(self, call: Call) -> NoticeView:
        number = call.path(OnePath).number
        with self.control.records.read() as txn:
            notice = notices.get(txn, f"{number:08}")
        if notice is None:
            raise NoSuchThing("there is no such notice")
        target = Target(notice.user_id, str(number), notice.visibility, noun="the notice")
        call.allow(target, reading=True)
        facts: Volatile = self.control.volatile
        seen = facts.get("board", notice.number, Seen) or Seen(0)
        facts.put("board", notice.number, Seen(seen.times + 1), ttl_seconds=60)
        return view(notice)

    async def lines(self, call: Call) -> Response:
        longest = call.query(Query).longest
        assert (call.header("Content-Type") or "") != JSON

        async def capitals() -> AsyncGenerator[bytes, None]:
            size = 0
            try:
                async for piece in call.body():
                    size += len(piece)
                    if size > longest:
                        raise TooLarge(f"at most {longest} bytes")
                    yield piece.upper()
            except BodyCutShort:
                return

        return await stream_response(capitals(), "text/plain")

    async def echo(self, call: Call, socket: Socket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send(await socket.receive())
        except SocketClosed:
            return

    async def check_ready(self) -> None:
        await trio.lowlevel.checkpoint()

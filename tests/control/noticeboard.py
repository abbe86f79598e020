"""A module that uses every name of ``control.api``, and nothing else of this project."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import ClassVar

import msgspec
import trio

import control.api as api

OPEN: Mapping[str, api.Need] = {
    "anybody": api.ANYBODY,
    "logged-in": api.LOGGED_IN,
    "session": api.SESSION,
    "admin": api.ADMIN,
    "admin-with-a-scope": api.admins("board", "notices", "read"),
    "service": api.SERVICE,
}
FAILURES: Mapping[str, api.ApiError] = {
    "conflict": api.Conflict("there is one"),
    "forbidden": api.Forbidden("not yours"),
    "quota": api.QuotaReached("that is all"),
    "many": api.TooManyRequests("later", 5),
    "slow": api.TooSlow("too slow"),
    "login": api.Unauthorized(),
    "away": api.Unavailable("away"),
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
    visibility: int = api.PRIVATE


class Query(msgspec.Struct):
    longest: int = 1000


class BoardSettings(api.Settings, frozen=True, kw_only=True):
    notices_max: int = 3

    def check(self) -> None:
        if self.notices_max < 1:
            raise api.SettingsError("notices_max must be at least 1")


notices = api.Table(
    "notices", Notice, key=lambda each: each.number, indexes={"user": lambda each: [each.user_id]}
)


def view(notice: Notice) -> NoticeView:
    return NoticeView(int(notice.number), notice.text)


def count(txn: api.Txn, user_id: str) -> Mapping[str, int]:
    return {"namespaces": notices.count(txn, "user", user_id)}


def remove(txn: api.Txn, user_id: str) -> None:
    for notice in list(notices.by(txn, "user", user_id)):
        notices.delete(txn, notice.number)


class Board(api.Module):
    name = "board"
    summary = "Notices"
    scopes: ClassVar[api.ScopeTable] = {"board": {"notices": frozenset({"read", "create"})}}
    schemas: ClassVar[Sequence[api.Schema]] = (api.Schema("board", 1, [notices]),)
    on_user_deleted: ClassVar[api.UserDeletion | None] = staticmethod(remove)
    on_namespace_deleted: ClassVar[api.NamespaceDeletion | None] = staticmethod(remove)
    usage: ClassVar[api.QuotaUsage | None] = api.QuotaUsage(["namespaces"], count)
    parameter_kinds: ClassVar[Mapping[str, str]] = {"failure": "|".join(FAILURES)}
    settings_kind: ClassVar[type[api.Settings]] = BoardSettings
    settings: BoardSettings

    def __init__(self, control: api.Control) -> None:
        super().__init__(control)
        self.files: api.Connection = api.Connection(control)
        general: api.ControlSettings = control.settings
        if general.json_bytes_max < 1000:
            raise api.StartupError("board: json_bytes_max must be at least 1000")
        ask: api.WorkloadsOf = self.pinned
        control.workloads.append(ask)

    async def pinned(self, user_id: str) -> Sequence[api.Workload]:
        with self.control.records.read() as txn:
            return [
                api.Workload(name=each.number, namespace="board", disk_used=len(each.text.encode()))
                for each in notices.by(txn, "user", user_id)
            ]

    def routes(self) -> Sequence[api.Route]:
        read = api.scoped("board", "notices", "read", parameter="number", is_open=True)
        create = api.scoped("board", "notices", "create")
        one = "/board/notices/{number:int}"
        every = [
            api.Route("GET", f"/board/{path}", self.who, need, f"For {path}", answer=str)
            for path, need in OPEN.items()
        ]
        return [
            *every,
            api.Route(
                "GET", "/board/fail/{failure:failure}", self.fail, api.PUBLIC, "Fails", answer=str
            ),
            api.Route(
                "POST", "/board/notices", self.post, create, "x", body=NewNotice, answer=NoticeView
            ),
            api.Route(
                "GET", "/board/notices", self.list, api.LOGGED_IN, "All", answer=list[NoticeView]
            ),
            api.Route("GET", one, self.get, read, "One", answer=NoticeView),
            api.Route(
                "PUT",
                "/board/lines",
                self.lines,
                api.SESSION,
                "Lines in capitals",
                query=Query,
                body=api.Content("text/plain"),
                answer=api.Content("text/plain"),
            ),
            api.Route(
                "GET",
                "/board/echo",
                api.upgrade_only,
                api.SESSION,
                "Echo",
                upgrade=api.Upgrade(self.echo, sends="what it gets", takes="text"),
            ),
        ]

    async def who(self, call: api.Call) -> str:
        principal: api.Principal | None = call.principal
        request: api.StreamingRequest = call.request
        return f"{principal.username if principal else 'nobody'} {request.path}"

    async def fail(self, call: api.Call) -> api.Response:
        with api.within(60.0):
            raise FAILURES[call.params["failure"]]

    async def post(self, call: api.Call, body: NewNotice) -> NoticeView:
        if body.visibility not in (api.PRIVATE, api.VISIBLE, api.PUBLIC_VISIBILITY):
            raise api.BadRequest("visibility: 0, 1 or 2")
        user_id = call.user.user_id
        limits: api.Limits = self.control.limits_of(user_id)
        most = min(self.settings.notices_max, limits.namespaces)

        def insert(txn: api.Txn) -> Notice:
            if notices.count(txn, "user", user_id) >= most:
                raise api.QuotaReached(f"you have {most} notices: delete one")
            notice = Notice(f"{notices.count(txn) + 1:08}", user_id, body.text, body.visibility)
            notices.insert(txn, notice)
            return notice

        try:
            return view(await call.write(insert))
        except api.Taken:
            raise api.Conflict("there is one") from None
        except api.RecordsFailed:
            raise
        except (api.RecordsBusy, api.RowUnreadable) as error:
            raise api.Unavailable(str(error)) from None

    async def list(self, call: api.Call) -> api.Response:
        records: api.Records = self.control.records
        with records.read() as txn:
            rows = list(notices.by(txn, "user", call.user.user_id))
        if len(rows) == 1:
            return api.json_response([view(rows[0])], headers=api.NO_STORE)
        return api.json_array(await api.in_order(rows, lambda row: row.text), view)

    async def get(self, call: api.Call) -> NoticeView:
        number = call.path(OnePath).number
        with self.control.records.read() as txn:
            notice = notices.get(txn, f"{number:08}")
        if notice is None:
            raise api.NoSuchThing("there is no such notice")
        target = api.Target(notice.user_id, str(number), notice.visibility, noun="the notice")
        call.allow(target, reading=True)
        facts: api.Volatile = self.control.volatile
        seen = facts.get("board", notice.number, Seen) or Seen(0)
        facts.put("board", notice.number, Seen(seen.times + 1), ttl_seconds=60)
        return view(notice)

    async def lines(self, call: api.Call) -> api.Response:
        longest = call.query(Query).longest
        assert (call.header("Content-Type") or "") != api.JSON

        async def capitals() -> AsyncGenerator[bytes, None]:
            size = 0
            try:
                async for piece in call.body():
                    size += len(piece)
                    if size > longest:
                        raise api.TooLarge(f"at most {longest} bytes")
                    yield piece.upper()
            except api.BodyCutShort:
                return

        return await api.stream_response(capitals(), "text/plain")

    async def echo(self, call: api.Call, socket: api.Socket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send(await socket.receive())
        except api.SocketClosed:
            return

    async def check_ready(self) -> None:
        await trio.lowlevel.checkpoint()

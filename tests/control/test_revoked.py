"""What is open with a credential ends with it, in a process that got no message.

Two real workers. All streams are opened in one of them while the other is stopped; the
credential is ended through the other while the first is stopped. So nothing but what is
in the records can announce the first of it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import jwt
import pytest
import trio
import trio.testing
from checks import (
    anonymous,
    bearer,
    children,
    make_token,
    metric,
    ok,
    put,
    refused,
    unique,
    wait_for,
    with_token,
)
from cloud import PASSWORD
from compute_cloud import ComputeCloud
from limits import HANG_SECONDS
from signals import send
from sockets import Client, websocket

from control.app.watch import Watch
from control.errors import Unauthorized
from control.http.socket import CLOSE_SECONDS

MIB = 1024 * 1024
#: More than the buffers of both systems take, so that a slow reader's server waits.
FILE_BYTES = 32 * MIB
#: Within which what is open ends; see test_an_end_is_noticed_within_the_time_promised.
PROMISED_SECONDS = 5.0
#: After which somebody who waits for a lock of a process that is stopped waits in vain.
LOCKED_SECONDS = 3.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComputeCloud]:
    with ComputeCloud(
        tmp_path_factory.mktemp("pair"), chunkservers=3, environment={"GFS_CONTROL_WORKERS": "2"}
    ) as made:
        made.start()
        (made.world.directory / "logs").write_text("a line\n")
        yield made


@contextmanager
def stopped(cloud: ComputeCloud, pid: int) -> Iterator[None]:
    """``pid`` does nothing meanwhile: whoever connects gets another worker. It is not stopped in
    the middle of a commit, for which that other one would wait."""
    stat = Path(f"/proc/{pid}/stat")

    def is_outside_a_commit() -> bool:
        send(pid, signal.SIGSTOP)
        wait_for(lambda: stat.read_text().rpartition(") ")[2][0] == "T", "stop")
        try:
            # To the records, the usage, and the facts that may be lost.
            with anonymous(cloud.url) as client:
                client.timeout = httpx.Timeout(LOCKED_SECONDS)
                body = {"username": "admin", "password": PASSWORD}
                token = ok(client.post("/api/login", json=body))["token"]
                query = {"overwrite": "true", "id": "probe"}
                headers = {"Authorization": f"Bearer {token}"}
                ok(client.put("/storage/default/p", params=query, headers=headers, content=b"x"))
        except httpx.TimeoutException:
            send(pid, signal.SIGCONT)
            return False
        return True

    try:
        wait_for(is_outside_a_commit, "stop outside a commit")
        yield
    finally:
        send(pid, signal.SIGCONT)


class Person:
    """A user with a session, and another one that is not touched."""

    def __init__(self, cloud: ComputeCloud) -> None:
        self.cloud = cloud
        client, self.user_id = cloud.make_user()
        self.session = bearer(client)
        reported = ok(client.get("/api/session"))
        self.username = reported["username"]
        self.other = cloud.token(self.username)
        self.space = unique("revoked")
        ok(client.post("/storage/namespaces", json={"name": self.space}))
        put(client, self.space, "large", bytes(FILE_BYTES))
        self.container = str(cloud.running(client)["id"])
        self.admin = bearer(cloud.admin)
        self.scopes = {
            f"{root}.{self.user_id}": ["create", "read", "update", "delete"]
            for root in ("storage", "compute")
        }

    def call(self, method: str, path: str, token: str, **more: Any) -> Any:
        """A request on a connection of its own."""
        with with_token(self.cloud.url, token) as client:
            return ok(client.request(method, path, **more))

    def gfs(self, *arguments: str, said: str = "") -> None:
        """The command, on the state of the control plane."""
        self.cloud.cluster.gfs("control", *arguments, input=said.encode())


End = Callable[[], object]
Way = Callable[[Person], tuple[str, End]]


def logout(person: Person) -> tuple[str, End]:
    return person.session, lambda: person.call("POST", "/api/logout", person.session)


def ended_by_an_administrator(person: Person) -> tuple[str, End]:
    claims = jwt.decode(person.session, options={"verify_signature": False})
    path = f"/admin/sessions?id={claims['jti']}"
    return person.session, lambda: person.call("DELETE", path, person.admin)


def new_password(person: Person) -> tuple[str, End]:
    body = {"old": PASSWORD, "new": "another horse battery"}
    return person.session, lambda: person.call("PUT", "/api/password", person.other, json=body)


def new_password_by_command(person: Person) -> tuple[str, End]:
    return person.session, lambda: person.gfs("set-password", person.username, said=PASSWORD)


def rotated_key(person: Person) -> tuple[str, End]:
    return person.session, lambda: person.gfs("rotate-key", "--now")


def revoked_token(person: Person) -> tuple[str, End]:
    with with_token(person.cloud.url, person.session) as client:
        made = make_token(client, person.scopes)
    path = f"/api/tokens/{made['id']}"
    return made["token"], lambda: person.call("DELETE", path, person.session)


def account_token(person: Person) -> tuple[str, str]:
    """A service account's path, and a token of it."""
    body = {"name": "bot", "scopes": person.scopes}
    made = person.call("POST", "/api/service-accounts", person.session, json=body)
    path = f"/api/service-accounts/{made['id']}"
    token = person.call("POST", f"{path}/tokens", person.session, json={"name": "one"})
    return path, token["token"]


def deleted_account(person: Person) -> tuple[str, End]:
    path, token = account_token(person)
    return token, lambda: person.call("DELETE", path, person.session)


def narrowed_account(person: Person) -> tuple[str, End]:
    path, token = account_token(person)
    fewer = {f"compute.{person.user_id}.keys": ["read"]}
    return token, lambda: person.call(
        "PUT", f"{path}/scopes", person.session, json={"scopes": fewer}
    )


def deleted_user(person: Person) -> tuple[str, End]:
    path = f"/admin/users?id={person.user_id}"
    return person.session, lambda: person.call("DELETE", path, person.admin)


WAYS: list[Way] = [
    logout,
    ended_by_an_administrator,
    new_password,
    new_password_by_command,
    revoked_token,
    deleted_account,
    narrowed_account,
    deleted_user,
    rotated_key,  # the last: it ends the administrator's session, too
]


class Streams:
    """Everything that can be open with a credential."""

    def __init__(self, stack: AsyncExitStack, person: Person, token: str) -> None:
        self._stack = stack
        self._port = httpx.URL(person.cloud.url).port or 0
        self._person = person
        self._token = token
        self.sockets: dict[str, Client] = {}

    async def open(self) -> None:
        one = f"/compute/containers/{self._person.container}"
        for path in (f"{one}/terminal", f"{one}/logs", "/compute/ws"):
            client = await self._stack.enter_async_context(websocket(self._port, path, self._token))
            self.sockets[path] = client
        await self.sockets[f"{one}/terminal"].send("hello")
        for client in self.sockets.values():
            assert await client.receive() is not None
        space = self._person.space
        self.download = await self._http(f"GET /storage/{space}/large", b"\0" * 1000)
        with with_token(self._person.cloud.url, self._token) as client:
            made = ok(client.post(f"/storage/namespaces/{space}/tickets", json={"path": "large"}))
        film = f"GET /storage/{space}/large?ticket={made['ticket']}"
        self.film = await self._http(film, b"\0" * 1000, by_header=False)
        self.events = await self._http("GET /sse/progress?id=some", b": listening")
        self.upload = await self._http(
            f"PUT /storage/{space}/new", b"100 Continue", "Expect: 100-continue",
            "Content-Length: 1000000",
        )  # fmt: skip
        await self.upload.send_all(b"some of it")

    async def _http(
        self, target: str, until: bytes, *more: str, by_header: bool = True
    ) -> trio.SocketStream:
        sock = trio.socket.socket()
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 64 * 1024)
        await sock.connect(("127.0.0.1", self._port))
        stream = await self._stack.enter_async_context(trio.SocketStream(sock))
        header = [f"Authorization: Bearer {self._token}"] if by_header else []
        lines = [f"{target} HTTP/1.1", "Host: x", *header, *more]
        await stream.send_all("\r\n".join([*lines, "\r\n"]).encode())
        seen = b""
        while until not in seen:
            data = await stream.receive_some(4096)
            assert data, seen
            seen += data
        return stream

    async def end(self, statuses: tuple[int, ...]) -> None:
        """Until each has ended, as something that was cut off."""
        for path, client in self.sockets.items():
            while await client.receive() is not None:
                pass
            assert client.close_code in statuses, (path, client.close_code)
            assert client.close_reason or client.close_code == 1000
        rest = await _rest(self.upload)
        assert rest.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 403 ")), rest
        assert set(json.loads(rest.partition(b"\r\n\r\n")[2])) == {"error"}
        if 4403 not in statuses:  # these any credential of the user may listen to
            assert not (await _rest(self.events)).endswith(b"0\r\n\r\n"), "it looks whole"
        # Nothing was read of the downloads meanwhile: they ended without their reader.
        url = self._person.cloud.url
        await trio.to_thread.run_sync(_wait_for_no_transfer, url)
        for download in (self.download, self.film):
            assert len(await _rest(download)) < FILE_BYTES // 2


def _wait_for_no_transfer(url: str) -> None:
    name = "gfs_control_transfers_active"
    wait_for(lambda: metric(url, name) == 0, "end of the transfers")


async def _rest(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    try:
        async for piece in stream:
            data += piece
    except trio.BrokenResourceError:
        pass  # a reset is an end, too
    return bytes(data)


@asynccontextmanager
async def opened(person: Person, token: str) -> AsyncIterator[Streams]:
    async with AsyncExitStack() as stack:
        streams = Streams(stack, person, token)
        await streams.open()
        yield streams


async def test_an_end_is_noticed_within_the_time_promised(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """By a clock that a busy machine does not slow: requests that begin at any time, and whose
    credential ends at any time. (That the app asks all of them: the test below.)"""
    late: list[float] = []

    def ask(call: Any) -> Unauthorized | None:
        return Unauthorized() if call.ends_at <= trio.current_time() else None

    watch = Watch(ask)

    async def request(begins_after: float, lasts: float) -> None:
        await trio.sleep(begins_after)
        call = mock.Mock(ends_at=trio.current_time() + lasts)
        noticed = trio.Event()
        watch.begin(call, call, lambda refusal: noticed.set())
        await noticed.wait()
        late.append(trio.current_time() - call.ends_at)

    async with trio.open_nursery() as watching:
        watching.start_soon(watch.run)
        async with trio.open_nursery() as requests:
            for number in range(400):
                requests.start_soon(request, number % 20 / 8, number // 20 / 4)
        watching.cancel_scope.cancel()
    assert len(late) == 400
    # The close frame of a WebSocket is waited for.
    assert max(late) + CLOSE_SECONDS <= PROMISED_SECONDS


@pytest.mark.real
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_what_is_open_ends_with_its_credential(pair: ComputeCloud, way: Way) -> None:
    person = Person(pair)
    token, end = way(person)
    here, there = children(pair.cluster.pid("control"))
    with trio.fail_after(HANG_SECONDS):
        async with AsyncExitStack() as stack:
            with stopped(pair, here):
                # The first, so that it is looked at no later than the others.
                untouched = await stack.enter_async_context(
                    websocket(httpx.URL(pair.url).port or 0, "/compute/ws", person.other)
                )
                await untouched.receive()
                streams = await stack.enter_async_context(opened(person, token))
            with stopped(pair, there):
                await trio.to_thread.run_sync(end)
            codes = (4403,) if way is narrowed_account else (4401,)
            if way is deleted_user:
                codes = (4401, 1011, 1000)  # the container may end before it is noticed
            await streams.end(codes)
            if way not in (new_password_by_command, deleted_user, rotated_key):
                path = f"/compute/containers/{person.container}/stop"
                await trio.to_thread.run_sync(person.call, "POST", path, person.other)
                while (await untouched.json())["data"].get("status") != "stopped":
                    pass
    if way is not rotated_key:
        with with_token(pair.url, token) as client:
            status = 403 if way is narrowed_account else 401
            refused(client.get(f"/storage/{person.space}/new"), status)
        pair.admin.delete("/admin/users", params={"id": person.user_id})

"""Clients of this API that were there before it: a browser's dashboard and a command line.

Each test is a visit, request by request, with nothing but what such a client sends. Answers
are read into the types that it declares, as strictly as a typed language reads JSON: what is
missing, null or of another type is an error, and what it does not know is skipped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec
import pytest
import trio
from checks import PLAIN, bearer, ok, refused, unique, wait_for
from cloud import PASSWORD
from compute_cloud import ED25519, ComputeCloud
from limits import HANG_SECONDS
from raw import Connection
from sockets import websocket

T = TypeVar("T")

MIB = 1024 * 1024
#: Of the page that a dashboard is served from.
ORIGIN = "https://dashboard.test"

Seconds = Annotated[int, msgspec.Meta(ge=1_700_000_000)]


class Session(msgspec.Struct):
    username: str
    display_name: str
    user_id: str
    is_admin: bool


class Login(Session):
    token: str


class Claims(Session):
    """Of a session's token, which clients decode by themselves."""

    sub: str
    type: str
    iat: Seconds
    exp: Seconds


class Space(msgspec.Struct):
    name: str
    count: int
    hidden: bool
    visibility: Annotated[int, msgspec.Meta(ge=0, le=2)]
    owner_id: str | None


class File(msgspec.Struct):
    name: str
    path: str
    namespace: str
    size: int
    created_at: Seconds
    modified_at: Seconds


class Uploaded(msgspec.Struct):
    status: str
    name: str


class Status(msgspec.Struct):
    status: str


class Progress(msgspec.Struct):
    id: str
    direction: str
    bytes: int
    total: int
    done: bool


class Cluster(msgspec.Struct):
    chunkserver_count: int
    total_servers: int


class Container(msgspec.Struct):
    id: str
    name: str
    status: str
    hostname: str
    memory_mb: int
    storage_gb: int
    instance_type: str
    created_at: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    ssh_enabled: bool
    https_enabled: bool
    ssh_command: str = ""
    memory_used_mb: int = 0
    storage_used_gb: float = 0


class Containers(msgspec.Struct):
    containers: list[Container]


class Key(msgspec.Struct):
    id: int
    name: str
    public_key: str
    created_at: str
    fingerprint: str


class Keys(msgspec.Struct):
    ssh_keys: list[Key]


class Ssh(msgspec.Struct):
    ssh_enabled: bool


class Rule(msgspec.Struct):
    id: int
    port: int
    target_port: int
    created_at: Seconds


class Rules(msgspec.Struct):
    rules: list[Rule]


class Mounts(msgspec.Struct):
    mount_paths: list[str]
    restarted: bool = False


class Token(msgspec.Struct):
    id: str
    name: str
    scopes: dict[str, list[str]]
    expires_at: int
    created_at: Seconds
    last_used_at: int
    token: str = ""
    service_account_id: str = ""


class Account(msgspec.Struct):
    id: str
    name: str
    scopes: dict[str, list[str]]
    created_at: Seconds
    token_count: int


class AdminUser(msgspec.Struct):
    user_id: str
    username: str
    display_name: str


class AdminSession(msgspec.Struct):
    id: int | str
    user_id: str
    username: str
    display_name: str
    ip_address: str
    created_at: Seconds
    expires_at: Seconds


class AdminFile(File):
    pass


def read(answer: Any, kind: type[T]) -> T:
    """The JSON of a success, as a client that declares its types reads it."""
    ok(answer)
    return msgspec.json.decode(answer.content, type=kind)


def claims_of(token: str) -> Claims:
    middle = token.split(".")[1]
    raw = base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4))
    return msgspec.json.decode(raw, type=Claims)


# --- the dashboard -------------------------------------------------------------------------


class Dashboard:
    """A page in a browser: ``fetch`` with the token that it keeps, ``EventSource`` and
    ``WebSocket`` with the token in the query, as they cannot send headers."""

    def __init__(self, cloud: ComputeCloud) -> None:
        self.url = cloud.url
        self.http = cloud.client()

    def log_in(self, username: str, password: str = PASSWORD) -> Login:
        found = read(
            self.http.post("/api/login", json={"username": username, "password": password}), Login
        )
        self.token = found.token
        self.http.headers["Authorization"] = f"Bearer {found.token}"
        return found

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def with_token(self, path: str) -> str:
        return f"{path}{'&' if '?' in path else '?'}token={quote(self.token)}"


class EventSource:
    """What a browser's does, over a socket of its own."""

    def __init__(self, page: Dashboard, path: str) -> None:
        self._connection = Connection(page.url)
        self._connection.request("GET", page.with_token(path), {"Accept": "text/event-stream"})
        head = self._connection.answer_head()
        assert head.status == 200
        assert (head.header("Content-Type") or "").startswith("text/event-stream")
        self._socket = self._connection.socket
        self.text = bytes(self._connection.buffer)  # what came with the head

    def wait_open(self) -> None:
        """Until something came: only then the page begins the transfer."""
        while b"\n" not in self.text:
            piece = self._socket.recv(65536)
            assert piece, "the stream ended"
            self.text += piece

    def rest(self) -> list[Progress]:
        """That its end comes before the answer of the transfer is in test_storage_progress."""
        while not self.text.endswith(b"\r\n0\r\n\r\n"):
            piece = self._socket.recv(65536)
            assert piece, "it was cut off"
            self.text += piece
        self._connection.close()
        lines = [line.strip() for line in self.text.split(b"\n")]
        return [
            msgspec.json.decode(line.removeprefix(b"data:"), type=Progress)
            for line in lines
            if line.startswith(b"data:")
        ]


@pytest.fixture
def page(computing: ComputeCloud) -> Dashboard:
    """Of a new user, who has logged in."""
    name = unique("visitor")
    computing.make_user(name)
    made = Dashboard(computing)
    made.log_in(name)
    return made


def test_the_page_logs_in_and_stays_so(computing: ComputeCloud) -> None:
    name = unique("ada")
    computing.make_user(name)
    page = Dashboard(computing)
    refused(page.http.post("/api/login", json={"username": name, "password": "wrong"}), 401)
    refused(page.http.post("/api/login", json={"username": "", "password": ""}), 400)
    login = page.log_in(f"  {name} ")
    claims = claims_of(login.token)
    assert (claims.type, claims.username, claims.user_id) == ("session", name, login.user_id)
    assert not claims.is_admin
    assert 23 * 3600 < claims.exp - time.time() <= 24 * 3600
    # Loaded again, it asks whether the token that it kept is still good.
    assert read(page.http.get("/api/session"), Session).user_id == login.user_id
    refused(computing.client().get("/api/session"), 401)
    read(page.http.post("/api/logout"), Status)
    refused(page.http.get("/api/session"), 401)


def test_the_page_is_asked_by_the_browser_first(computing: ComputeCloud) -> None:
    """Served from another origin than the API and not on its list, it gets no leave."""
    answer = computing.client().options(
        "/storage/namespaces",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert "access-control-allow-origin" not in answer.headers


def test_files_on_the_page(page: Dashboard, computing: ComputeCloud) -> None:
    me = read(page.http.get("/api/session"), Session).user_id
    space = unique("photos")
    made = read(page.http.post("/storage/namespaces", json={"name": space, "visibility": 0}), Space)
    assert made == Space(space, 0, hidden=False, visibility=0, owner_id=me)
    spaces = read(page.http.get("/storage/namespaces"), list[Space])
    assert [each.name for each in spaces] == sorted(each.name for each in spaces)
    assert {"default", space} <= {each.name for each in spaces}
    (default,) = (each for each in spaces if each.name == "default")
    assert (default.owner_id, default.visibility) == (None, 2)

    data = b"\x89PNG" + bytes(range(256)) * 100
    sent = page.http.post(
        f"/storage/upload?namespace={space}&overwrite=false",
        files={"file": ("été 2026.png", data, "image/png")},
        headers={"X-File-Size": str(len(data))},
    )
    assert read(sent, Uploaded) == Uploaded("ok", "été 2026.png")
    again = page.http.post(
        f"/storage/upload?namespace={space}", files={"file": ("été 2026.png", b"", "image/png")}
    )
    refused(again, 409)
    (listed,) = read(page.http.get("/storage/files", params={"namespace": space}), list[File])
    assert (listed.path, listed.namespace, listed.size) == ("été 2026.png", space, len(data))

    # A link in a new tab, a picture in the page: the token is in the address.
    link = page.with_token(f"/storage/{space}/{quote('été 2026.png')}")
    shown = computing.client().get(link)
    assert (shown.status_code, shown.content) == (200, data)
    assert shown.headers["content-type"] == "image/png"
    saved = computing.client().get(
        page.with_token(f"/storage/download?name={quote('été 2026.png')}&namespace={space}")
    )
    assert saved.content == data
    assert saved.headers["content-disposition"].startswith("attachment")
    refused(computing.client().get(f"/storage/{space}/{quote('été 2026.png')}"), 401)

    shared = read(page.http.put(f"/storage/namespaces/{space}", json={"visibility": 1}), Space)
    assert shared.visibility == 1
    assert computing.client().get(f"/storage/{space}/{quote('été 2026.png')}").content == data
    names = [each.name for each in read(computing.client().get("/storage/namespaces"), list[Space])]
    assert space not in names
    read(
        page.http.delete("/storage/delete", params={"name": "été 2026.png", "namespace": space}),
        Uploaded,
    )
    assert read(page.http.get(f"/storage/files?namespace={space}"), list[File]) == []
    read(page.http.delete(f"/storage/namespaces/{space}"), Status)
    refused(page.http.get(f"/storage/files?namespace={space}"), 404)
    wait_for(
        lambda: read(page.http.get("/storage/status"), Cluster) == Cluster(3, 3), "three servers"
    )


@pytest.mark.parametrize("size", [0, 1000, 9 * MIB])
def test_the_bar_of_an_upload_is_full_at_last(page: Dashboard, size: int) -> None:
    """The page opens the stream, waits for its first line, and uploads."""
    space, transfer = unique("bar"), unique("transfer")
    ok(page.http.post("/storage/namespaces", json={"name": space}))
    stream = EventSource(page, f"/sse/progress?id={transfer}")
    stream.wait_open()
    answer = page.http.post(
        f"/storage/upload?namespace={space}&id={transfer}",
        files={"file": ("film.mp4", b"v" * size)},
        headers={"X-File-Size": str(size)},
    )
    events = stream.rest()
    read(answer, Uploaded)
    assert events[-1] == Progress(transfer, "upload", bytes=size, total=size, done=True)
    assert [event.done for event in events[:-1]] == [False] * (len(events) - 1)


async def test_containers_on_the_page(page: Dashboard, computing: ComputeCloud) -> None:
    key = read(
        page.http.post("/compute/ssh-keys", json={"name": "laptop", "public_key": ED25519}), Key
    )
    async with websocket(page.port, page.with_token("/compute/ws")) as socket:
        first = await socket.json()
        assert first == {"type": "containers", "data": []}
        made = read(
            page.http.post(
                "/compute/containers",
                json={
                    "name": "box", "instance_type": "tiny", "memory_mb": 512, "storage_gb": 5,
                    "ssh_key_ids": [key.id], "enable_ssh": True, "mount_paths": [],
                },
            ),
            Container,
        )  # fmt: skip
        assert made.status == "pending"
        status = ""
        while status != "running":
            reported = await socket.json()
            assert reported["type"] == "container_status"
            assert reported["data"]["container_id"] == made.id
            status = reported["data"]["status"]
    async with websocket(page.port, page.with_token("/compute/ws")) as socket:
        (listed,) = msgspec.convert((await socket.json())["data"], list[Container])
        assert (listed.id, listed.status, listed.ssh_enabled) == (made.id, "running", True)
        assert listed.ssh_command
    of_it = f"/compute/containers/{made.id}"
    assert read(page.http.get(f"{of_it}/mounts"), Mounts).mount_paths == ["/root"]
    changed = page.http.put(f"{of_it}/mounts", json={"mount_paths": ["/root", "/srv"]})
    assert read(changed, Mounts) == Mounts(["/root", "/srv"], restarted=True)
    computing.until(page.http, made.id, "running")
    assert read(page.http.put(f"{of_it}/ssh", json={"ssh_enabled": False}), Ssh) == Ssh(False)
    read(page.http.post(f"{of_it}/ingress", json={"port": 8080}), Rule)
    (rule,) = read(page.http.get(f"{of_it}/ingress"), Rules).rules
    assert (rule.port, rule.target_port) == (8080, 8080)
    read(page.http.delete(f"{of_it}/ingress/8080"), Status)
    read(page.http.post(f"{of_it}/stop"), Container)
    computing.until(page.http, made.id, "stopped")
    assert read(page.http.post(f"{of_it}/start"), Container).status == "pending"
    read(page.http.delete(of_it), Status)
    assert read(page.http.get("/compute/containers"), Containers).containers == []
    read(page.http.delete(f"/compute/ssh-keys/{key.id}"), Status)


@asynccontextmanager
async def terminal(page: Dashboard, container_id: str) -> AsyncIterator[Any]:
    path = page.with_token(f"/compute/containers/{container_id}/terminal")
    async with websocket(page.port, path) as socket:
        yield socket


async def test_the_terminal_in_the_page(page: Dashboard, computing: ComputeCloud) -> None:
    """Keys go as text, pasted bytes as binary; all that comes is binary, and its bytes are
    UTF-8 that the page decodes by itself."""
    box = computing.running(page.http)
    async with terminal(page, box["id"]) as socket:
        await socket.send('{"type":"resize","cols":132,"rows":43}')
        heard = b""
        for typed in ("Grüße, ", "Grüße, ".encode()):
            await socket.send(typed)
        with trio.fail_after(HANG_SECONDS):
            while heard.count("Grüße, ".encode()) < 2:
                piece = await socket.receive()
                assert isinstance(piece, bytes), "frames are binary"
                heard += piece
        ok(page.http.post(f"/compute/containers/{box['id']}/stop"))
        with trio.fail_after(HANG_SECONDS):
            while await socket.receive() is not None:
                pass
        # So the page says that the connection was closed, and not that the shell ended.
        assert socket.close_code == 1011 or 4000 <= socket.close_code <= 4999
        assert socket.close_reason


def test_tokens_and_service_accounts_on_the_page(page: Dashboard) -> None:
    me = read(page.http.get("/api/session"), Session).user_id
    scopes = {f"storage.{me}.files": ["read", "create"]}
    for name, lasts in (("first", "30d"), ("second", "never")):
        made = read(
            page.http.post(
                "/api/tokens", json={"name": name, "scopes": scopes, "expires_in": lasts}
            ),
            Token,
        )
        assert made.token.startswith("ecloud_")
        assert (made.expires_at == 0) == (lasts == "never")
    account = read(
        page.http.post("/api/service-accounts", json={"name": "backup", "scopes": scopes}), Account
    )
    assert account.token_count == 0
    of_it = f"/api/service-accounts/{account.id}"
    robot = read(page.http.post(f"{of_it}/tokens", json={"name": "cron"}), Token)
    assert robot.token.startswith("ecloud_")
    (listed,) = read(page.http.get("/api/service-accounts"), list[Account])
    assert (listed.id, listed.token_count) == (account.id, 1)
    found = {each.name: each for each in read(page.http.get("/api/tokens"), list[Token])}
    assert set(found) == {"first", "second", "cron"}
    assert found["cron"].service_account_id == account.id
    assert not found["first"].service_account_id
    assert not any(each.token for each in found.values())
    less = {f"storage.{me}.files": ["read"]}
    read(page.http.put(f"{of_it}/scopes", json={"scopes": less}), Account)
    assert read(page.http.get(of_it), Account).scopes == less
    assert [each.name for each in read(page.http.get(f"{of_it}/tokens"), list[Token])] == ["cron"]
    read(page.http.delete(of_it), Status)
    read(page.http.delete(f"/api/tokens/{found['first'].id}"), Status)
    assert [each.name for each in read(page.http.get("/api/tokens"), list[Token])] == ["second"]


def test_the_administrator_s_pages(page: Dashboard, computing: ComputeCloud) -> None:
    admin = Dashboard(computing)
    assert admin.log_in("admin").is_admin
    name = unique("guest")
    ok(
        admin.http.post(
            "/admin/users",
            json={"username": name, "password": PASSWORD, "display_name": "A Guest"},
        )
    )
    (guest,) = (
        each
        for each in read(admin.http.get("/admin/users"), list[AdminUser])
        if each.username == name
    )
    assert guest.display_name == "A Guest"
    visitor = Dashboard(computing)
    visitor.log_in(name)
    box = computing.container(visitor.http)
    ok(visitor.http.post("/storage/namespaces", json={"name": name}))
    ok(visitor.http.post(f"/storage/upload?namespace={name}", files={"file": ("f", b"1")}))
    sessions = read(admin.http.get("/admin/sessions"), list[AdminSession])
    (session,) = (each for each in sessions if each.user_id == guest.user_id)
    assert (session.display_name, session.ip_address) == ("A Guest", "127.0.0.1")
    assert box["id"] in [
        each.id for each in read(admin.http.get("/compute/admin/containers"), list[Container])
    ]
    spaces = {each.name: each for each in read(admin.http.get("/admin/namespaces"), list[Space])}
    assert spaces[name].owner_id == guest.user_id
    files = read(admin.http.get("/admin/files"), list[AdminFile])
    assert ("f", name) in [(each.name, each.namespace) for each in files]
    read(admin.http.delete("/admin/sessions", params={"id": session.id}), Status)
    refused(visitor.http.get("/api/session"), 401)
    read(admin.http.delete("/admin/users", params={"id": guest.user_id}), Status)
    refused(visitor.http.post("/api/login", json={"username": name, "password": PASSWORD}), 401)
    computing.until_gone(box["id"])
    for path in ("/admin/users", "/admin/sessions", "/compute/admin/containers"):
        refused(page.http.get(path), 403)


# --- the command line ----------------------------------------------------------------------


class CommandLine:
    """A compiled program: a fresh connection for each command, a token in its configuration."""

    def __init__(self, cloud: ComputeCloud, token: str) -> None:
        self._url, self._token = cloud.url, token

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "User-Agent": "Go-http-client/1.1",
            "Accept-Encoding": "gzip",
            **options.pop("headers", {}),
        }
        with httpx.Client(base_url=self._url, timeout=HANG_SECONDS, **PLAIN) as client:
            return client.request(method, path, headers=headers, **options)


def test_a_session_of_the_command_line(page: Dashboard, computing: ComputeCloud) -> None:
    me = read(page.http.get("/api/session"), Session)
    everything = {
        f"compute.{me.user_id}.containers": [
            "create", "read", "update", "delete", "start", "stop",
        ],
        f"compute.{me.user_id}.keys": ["create", "read", "delete"],
        f"storage.{me.user_id}.namespaces": ["create", "read", "update", "delete"],
        f"storage.{me.user_id}.files": ["create", "read", "delete"],
    }  # fmt: skip
    token = read(
        page.http.post("/api/tokens", json={"name": "cli", "scopes": everything}), Token
    ).token
    cli = CommandLine(computing, token)
    # Which user the token is of.
    assert read(cli("GET", "/api/session"), Session) == me
    refused(cli("GET", "/api/tokens"), (401, 403))

    key = read(
        cli("POST", "/compute/ssh-keys", json={"name": "cli", "public_key": f"{ED25519} a@b"}), Key
    )
    blob = base64.b64decode(ED25519.split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    assert key.fingerprint == f"SHA256:{digest}"
    assert read(cli("GET", "/compute/ssh-keys"), Keys).ssh_keys == [key]
    refused(cli("POST", "/compute/containers", json={"name": "box", "ssh_key_ids": []}), 400)
    box = read(
        cli(
            "POST", "/compute/containers",
            json={"name": "box", "ssh_key_ids": [key.id], "ssh_enabled": True, "mount_paths": None},
        ),
        Container,
    )  # fmt: skip
    assert (box.instance_type, box.memory_mb, box.storage_gb) == ("nano", 512, 5)
    computing.until(page.http, box.id, "running")
    found = read(cli("GET", f"/compute/containers/{box.id}"), Container)
    assert (found.status, found.memory_used_mb, found.storage_used_gb) == ("running", 128, 1.2)
    https = {"port": 443, "target_port": 8443}
    assert read(cli("POST", f"/compute/containers/{box.id}/ingress", json=https), Rule).port == 443
    assert read(cli("GET", f"/compute/containers/{box.id}"), Container).https_enabled
    refused(cli("POST", f"/compute/containers/{box.id}/ingress", json={"port": 22}), 400)
    read(cli("DELETE", f"/compute/containers/{box.id}"), Status)
    refused(cli("GET", "/compute/containers/ffffffff"), 404)

    space = unique("cli")
    read(cli("POST", "/storage/namespaces", json={"name": space}), Space)
    data = bytes(range(256)) * 4096
    boundary = "0b5f3f2a7c"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="dump.sql"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    sent = cli(
        "POST", f"/storage/upload?namespace={space}&overwrite=true",
        content=iter([body, data, f"\r\n--{boundary}--\r\n".encode()]),  # chunked: piped
        headers={
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "X-File-Size": str(len(data)),
        },
    )  # fmt: skip
    assert read(sent, Uploaded) == Uploaded("ok", "dump.sql")
    got = cli("GET", "/storage/download", params={"name": "dump.sql", "namespace": space})
    assert (got.content, got.headers["content-length"]) == (data, str(len(data)))
    part = cli("GET", f"/storage/{space}/dump.sql", headers={"Range": "bytes=1048000-"})
    assert (part.status_code, part.content) == (206, data[1_048_000:])
    refused(cli("GET", "/storage/download", params={"name": "none", "namespace": space}), 404)
    read(
        cli("DELETE", "/storage/delete", params={"name": "dump.sql", "namespace": space}), Uploaded
    )
    read(cli("DELETE", f"/storage/namespaces/{space}"), Status)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/no/such/route", 404),
        ("PATCH", "/api/session", 405),
        ("POST", "/storage/namespaces", 400),
        ("GET", "/compute/containers/none", 404),
        ("PUT", "/storage/namespaces/none", 400),
        ("GET", "/sse/progress", 400),
    ],
)
def test_every_error_is_one_that_it_can_print(
    page: Dashboard, computing: ComputeCloud, method: str, path: str, status: int
) -> None:
    answer = CommandLine(computing, bearer(page.http))(method, path)
    assert answer.status_code == status
    error = json.loads(answer.content)
    assert list(error) == ["error"]
    assert isinstance(error["error"], str)
    assert error["error"]

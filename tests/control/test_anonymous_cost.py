"""What requests of strangers cost the master and the records: docs/security.md has the table, and
here its numbers are counted."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from auth_server import PASSWORD, CheapAuth, Server, running
from harness import Cluster
from s3_client import EVERY, S3Client, done

from control.app import ControlApp
from control.installed import discover
from control.records import Table
from control.s3 import S3
from control.storage import READ, Storage
from control.testing import make_app
from gfs.client.master import MasterClient

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (`(?:GET|POST) [^|]*) \| (\d+)[^|]*\| (\d+)[^|]*\|", re.MULTILINE)
SPACES = 10
#: More than what is kept beside its name.
FILE_BYTES = 300_000
LISTING = "GET /storage/files"
#: By operation of S3: method, whether it is of an object, and subresource.
S3_READS = {
    "GetObject": ("GET", "object", ""),
    "HeadObject": ("HEAD", "object", ""),
    "GetObjectAcl": ("GET", "object", "acl"),
    "GetObjectAttributes": ("GET", "object", "attributes"),
    "GetObjectTagging": ("GET", "object", "tagging"),
    "GetObjectLegalHold": ("GET", "object", "legal-hold"),
    "GetObjectRetention": ("GET", "object", "retention"),
    "HeadBucket": ("HEAD", "bucket", ""),
    "GetBucketLocation": ("GET", "bucket", "location"),
    "GetBucketVersioning": ("GET", "bucket", "versioning"),
}
#: There are no locks, and no rules for other sites' pages, so these are refused.
NOT_SET = {"GetObjectLegalHold", "GetObjectRetention", "OPTIONS"}
#: Headers that make a request cost more.
S3_HEADERS = {
    "x-amz-object-attributes": "ETag",
    "origin": "https://example.com",
    "access-control-request-method": "GET",
}
#: What lists cost has a test of its own.
S3_LISTS = {("GET", "bucket", ""), ("GET", "bucket", "versions")}


@dataclass
class Cost:
    questions: int = 0
    rows: int = 0


#: Of the request that a task works for; None: of none.
cost: ContextVar[Cost | None] = ContextVar("cost", default=None)
asking: ContextVar[bool] = ContextVar("asking", default=False)


def table() -> dict[str, Cost]:
    """From the documentation: the most that a request may cost."""
    text = (ROOT / "docs/security.md").read_text().partition("## What a stranger may cost")[2]
    found: dict[str, Cost] = {}
    for routes, questions, rows in ROW.findall(text):
        for route in re.findall(r"`(\w+ [^`]+)`", routes):
            found[route] = Cost(int(questions), int(rows))
    return found


def named_in_table() -> set[str]:
    text = (ROOT / "docs/security.md").read_text().partition("## What a stranger may cost")[2]
    return set(re.findall(r"`((?:GET|POST) [^`?]+)`", text.partition("\n## ")[0]))


def test_every_route_without_a_credential_is_in_the_table(tmp_path: Path) -> None:
    app = make_app(tmp_path, *discover().values())
    anonymous = {
        f"{route.method} {route.path.replace(':space', '').replace(':path', '')}"
        for _, route in app.table
        if route.need.kind in ("public", "anybody") or route.need.is_open
    }
    # What is listed has a test of its own.
    assert named_in_table() | {LISTING} == anonymous | {LISTING}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Cost]:
    """The costs of the requests, in order; those of background work are nobody's."""
    found: list[Cost] = []
    handle, row = ControlApp.handle_request, Table._row

    async def handle_request(self: ControlApp, *words: Any) -> Any:
        found.append(Cost())
        cost.set(found[-1])
        return await handle(self, *words)

    def read(self: Table[Any], *words: Any) -> Any:
        if (current := cost.get()) is not None:
            current.rows += 1
        return row(self, *words)

    def counting(name: str, count: Any) -> None:
        real = getattr(MasterClient, name)

        async def ask(self: MasterClient, first: Any, *words: Any, **named: Any) -> Any:
            current = cost.get()
            if current is None or asking.get():
                return await real(self, first, *words, **named)
            current.questions += count(first)
            token = asking.set(True)
            try:
                return await real(self, first, *words, **named)
            finally:
                asking.reset(token)

        monkeypatch.setattr(MasterClient, name, ask)

    monkeypatch.setattr(ControlApp, "handle_request", handle_request)
    monkeypatch.setattr(Table, "_row", read)
    for name in ("ask", "call"):
        counting(name, lambda _: 1)
    for name in ("ask_many", "ask_now"):
        counting(name, len)
    return found


@asynccontextmanager
async def visited(cluster: Cluster) -> AsyncIterator[tuple[Server, str]]:
    """The API with public storage namespaces and a file; the address of a link to that."""
    async with running(cluster.state, modules=(CheapAuth, Storage)) as server:
        for number in range(SPACES):
            body = {"name": f"space-{number}", "visibility": 2}
            await server.call("POST", "/storage/namespaces", server.admin, **body)
        auth = {"Authorization": f"Bearer {server.admin['token']}"}
        for number in range(3):
            url = f"/storage/space-0/folder/file-{number}?overwrite=true"
            (await server.http.put(url, content=bytes(FILE_BYTES), headers=auth)).raise_for_status()
        made = await server.http.post(
            "/storage/namespaces/space-0/shares", json={"path": "folder/file-0"}, headers=auth
        )
        made.raise_for_status()
        yield server, made.json()["url"]


async def test_what_a_stranger_costs_is_no_more_than_the_table_says(
    cluster: Cluster, counted: list[Cost]
) -> None:
    most = table()
    async with visited(cluster) as (server, link):
        requests = {
            "GET /storage/download": "/storage/download?namespace=space-0&name=folder/file-0",
            "GET /storage/download/{namespace}/{path}": "/storage/download/space-0/folder/file-0",
            "GET /storage/{namespace}/{path}": "/storage/space-0/folder/file-0",
            "GET /share/{id}": link,
            "GET /storage/namespaces/{namespace}/entries": (
                "/storage/namespaces/space-0/entries?folder=folder"
            ),
            "GET /storage/namespaces": f"/storage/namespaces?limit={SPACES}",
            "GET /storage/status": "/storage/status",
            "GET /healthz": "/healthz",
            "GET /readyz": "/readyz",
            "GET /metrics": "/metrics",
            "GET /openapi.json": "/openapi.json",
            "GET /docs": "/docs",
        }
        for route, path in requests.items():
            counted.clear()
            answer = await server.http.get(path)
            assert answer.status_code == 200, (route, answer.text)
            (found,) = counted
            print(route, found)
            assert found.questions <= most[route].questions, route
            # It is for each of them, and there is one from the start.
            times = SPACES + 1 if route == "GET /storage/namespaces" else 1
            assert found.rows <= times * most[route].rows, route
            for method in ("HEAD", "OPTIONS"):
                counted.clear()
                answer = await server.http.request(method, path)
                assert answer.status_code in (200, 204), (method, route)
                asked = most[route] if method == "HEAD" else Cost()
                assert counted[0].questions <= asked.questions, (method, route)
                assert counted[0].rows <= times * asked.rows, (method, route)
        for username in ("admin", "nobody"):
            counted.clear()
            await server.call("POST", "/api/login", username=username, password=PASSWORD)
            (found,) = counted
            print("login", found)
            assert (found.questions, found.rows <= most["POST /api/login"].rows) == (0, True)
        await server.call("POST", "/api/logout")


def s3_table() -> dict[str, Cost]:
    """The same over S3."""
    text = (ROOT / "docs/security.md").read_text().partition("### Over S3")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[A-Z][^|]*) \| (\d+)[^|]*\| (\d+)[^|]*\|", text, re.MULTILINE)
    return {
        name: Cost(int(questions), int(rows))
        for names, questions, rows in rows
        for name in re.findall(r"`(\w+)`", names)
    }


async def test_what_a_stranger_costs_over_s3_is_no_more_than_the_table_says(
    cluster: Cluster, counted: list[Cost]
) -> None:
    most = s3_table()
    everybody = {"Principal": "*", "Action": "s3:*"}
    is_secret = {"StringEquals": {"s3:ExistingObjectTag/kind": "secret"}}
    async with running(cluster.state, modules=(CheapAuth, Storage, S3)) as server:
        service = next(each for each in server.app.modules if isinstance(each, S3))._service
        for_all = {place for place, each in service._operations.items() if each.need == READ}
        assert for_all == set(S3_READS.values()) | S3_LISTS
        scopes = {f"storage.{server.admin['user_id']}": EVERY}
        made = await server.call(
            "POST", "/api/s3-keys", server.admin, name="k", scopes=scopes, expires_in="30d"
        )
        assert made.status_code == 200, made.text
        key = made.json()
        url = str(server.http.base_url).rstrip("/")
        server.app.control.ports[server.http.base_url.port or 0] = "s3"

        async def ask(client: S3Client, *words: Any, **named: Any) -> httpx.Response:
            counted.clear()
            return await trio.to_thread.run_sync(partial(client.call, *words, **named))

        with (
            S3Client(url, key["access_key_id"], key["secret_access_key"]) as owner,
            S3Client(url) as nobody,
        ):
            versions: list[str] = []
            of = {"object": "plain/folder/key", "bucket": "plain"}
            done(await ask(owner, "PUT", "closed"))
            for bucket, status in (("plain", ""), ("kept", "Enabled")):
                done(await ask(owner, "PUT", bucket))
                about = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
                rules = [
                    {"Effect": "Allow", **everybody, "Resource": about},
                    {"Effect": "Deny", **everybody, "Resource": about, "Condition": is_secret},
                ]
                policy = {"Version": "2012-10-17", "Statement": rules}
                done(await ask(owner, "PUT", bucket, {"policy": ""}, json.dumps(policy).encode()))
                if status:
                    inside = f"<Status>{status}</Status>"
                    text = f"<VersioningConfiguration>{inside}</VersioningConfiguration>"
                    done(await ask(owner, "PUT", bucket, {"versioning": ""}, text.encode()))
                for _ in range(3):
                    stored = await ask(owner, "PUT", f"{bucket}/folder/key", body=bytes(FILE_BYTES))
                    versions += [done(stored).headers.get("x-amz-version-id", "")] * bool(status)
            oldest = versions[0]
            asked: list[tuple[str, str, str, dict[str, str], bytes]] = [
                (name, method, of[level], {subresource: ""} if subresource else {}, b"")
                for name, (method, level, subresource) in S3_READS.items()
            ]
            asked += [
                ("GetObjectVersion", "GET", "kept/folder/key", {"versionId": oldest}, b""),
                ("PutObject", "PUT", "plain/folder/new", {}, bytes(FILE_BYTES)),
                ("PutObject", "PUT", "kept/folder/key", {}, bytes(FILE_BYTES)),
                ("DeleteObject", "DELETE", "plain/folder/new", {}, b""),
                ("DeleteObject", "DELETE", "kept/folder/key", {}, b""),
                ("OPTIONS", "OPTIONS", "plain/folder/key", {}, b""),
            ]
            for name, method, path, query, body in asked:
                answer = await ask(nobody, method, path, query, body, S3_HEADERS)
                (found,) = counted
                print(name, path, answer.status_code, found)
                assert answer.status_code < 300 or name in NOT_SET, (name, answer.text)
                assert found.questions <= most[name].questions, name
                assert found.rows <= most[name].rows, name
            for path in ("nothing/key", "closed/key"):
                answer = await ask(nobody, "GET", path)
                assert answer.status_code in (403, 404)
                print(path, counted)
                assert counted[0].questions == 0
                assert counted[0].rows <= most["HeadBucket"].rows
            form = {"key": "folder/form", "file": bytes(FILE_BYTES)}
            counted.clear()
            answer = await server.http.post("/plain", files={"file": form.pop("file")}, data=form)
            print("form", answer.status_code, counted)
            assert answer.status_code == 204, answer.text
            assert counted[0].questions <= most["PostObject"].questions
            assert counted[0].rows <= most["PostObject"].rows


async def test_a_crowd_of_strangers_costs_no_more_than_one(
    cluster: Cluster, counted: list[Cost]
) -> None:
    """Each second, however many ask."""
    async with visited(cluster) as (server, _):
        for path in ("/storage/status", "/readyz"):
            counted.clear()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(server.http.get, path)
            rounds = 1 + (trio.current_time() - began)
            assert len(counted) == 100
            assert sum(each.questions for each in counted) <= rounds

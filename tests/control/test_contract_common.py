"""What all routes have in common: errors, methods, CORS, health, metrics."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from checks import anonymous, bearer, make_namespace, ok, put, refused, unique, wait_for
from cloud import Cloud
from raw import Connection
from storage_people import Who

pytestmark = pytest.mark.real

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def user(owner: Who) -> httpx.Client:
    return owner[0]


@pytest.mark.parametrize(
    "target",
    ["/nothing", "/api", "/api/", "/api/nothing", "/api/login/x", "/api/tokens/x/y/z", "/admin",
     "/admin/nothing", "/storage", "/storagex/files", "/sse", "/sse/other", "/favicon.ico",
     "/storage/namespaces/a/b", "/API/login"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_unknown_routes_are_404_as_json(user: httpx.Client, method: str, target: str) -> None:
    # An absolute URL, since httpx would take //api for a host.
    answer = user.request(method, str(user.base_url).rstrip("/") + target)
    refused(answer, (404, 405) if target == "/storage/namespaces/a/b" else 404)


def test_errors_of_head_have_no_body(cloud: Cloud) -> None:
    with Connection(cloud.url) as connection:
        for target, status in (
            *(("/nothing", 404), ("/api/login", 405), ("/api/session", 401)),
            *(("/storage/default/missing", 404), ("/storage/no.such/f", 404)),
        ):
            assert connection.exchange("HEAD", target).status == status
        assert connection.exchange("GET", "/healthz").status == 200


IS_JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "target", ["/api/login", "/api/tokens", "/api/service-accounts", "/storage/namespaces"]
)
def test_a_json_body_that_is_too_large_is_413(user: httpx.Client, target: str) -> None:
    """Also if its length is unknown, so that only counting helps."""
    pieces = [b'{"name": "', *[b"x" * (MIB // 10)] * 80, b'"}']
    for body in (b"".join(pieces), iter(pieces)):
        refused(user.post(target, content=body, headers=IS_JSON), 413)


def test_an_admitted_body_may_come_in_chunks(user: httpx.Client) -> None:
    name = unique("chunked")
    pieces = iter([b'{"na', b'me": "', name.encode(), b'"}'])
    assert ok(user.post("/storage/namespaces", content=pieces, headers=IS_JSON))["name"] == name


def test_a_compressed_body_is_not_taken_for_json(user: httpx.Client) -> None:
    body = gzip.compress(b'{"name": "x"}')
    headers = {**IS_JSON, "Content-Encoding": "gzip"}
    refused(user.post("/storage/namespaces", content=body, headers=headers), (400, 415))


def test_unknown_query_parameters_are_ignored(user: httpx.Client) -> None:
    ok(user.get("/storage/files", params={"namespace": "default", "colour": "red", "limit": "1"}))


def test_401_says_how_to_authenticate(nobody: httpx.Client) -> None:
    """RFC 9110, 15.5.2."""
    answer = nobody.get("/api/session")
    refused(answer, 401)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_answers_are_never_cached_by_strangers(
    user: httpx.Client, cloud: Cloud, nobody: httpx.Client
) -> None:
    """A private file must not come out of a shared cache to somebody else."""
    for visibility, control in [(0, "private, no-cache"), (2, "no-cache")]:
        space = make_namespace(user, "cached", visibility)
        put(user, space, "f", b"x")
        found = user.get(f"/storage/{space}/f", params={"token": bearer(user)})
        assert found.headers["Cache-Control"] == control
    space = make_namespace(user, "cached", 0)
    refused(nobody.get(f"/storage/{space}/f"), 401)


ORIGIN = "https://dashboard.example"


def cors(answer: httpx.Response) -> list[str]:
    return [name for name in answer.headers if name.startswith("access-control-")]


def preflight(client: httpx.Client, target: str, method: str, origin: str) -> httpx.Response:
    asked = {"Method": method, "Headers": "authorization, content-type, x-file-size, range"}
    headers = {f"Access-Control-Request-{name}": value for name, value in asked.items()}
    return client.options(target, headers={"Origin": origin, **headers})


@pytest.mark.parametrize("origin", [ORIGIN, "null", "http://127.0.0.1"])
def test_cors_is_closed_by_default(user: httpx.Client, origin: str) -> None:
    headers = {"Origin": origin}
    for target in ("/api/session", "/storage/namespaces", "/nothing", "/healthz"):
        assert cors(user.get(target, headers=headers)) == []
    assert cors(preflight(user, "/storage/upload", "POST", origin)) == []


@pytest.fixture(scope="module")
def open_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud that two origins may call."""
    with Cloud(
        tmp_path_factory.mktemp("cors"),
        chunkservers=1,
        environment={"GFS_CONTROL_ORIGINS": f"{ORIGIN}, http://localhost:3000"},
    ) as made:
        yield made.start()


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_configured_origins_may_call(open_cloud: Cloud, origin: str) -> None:
    with anonymous(open_cloud.url) as client:
        for target, status in (("/storage/namespaces", 200), ("/api/session", 401), ("/no", 404)):
            answer = client.get(target, headers={"Origin": origin})
            assert answer.status_code == status
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert "origin" in answer.headers["Vary"].lower()
        for method, target in (
            ("POST", "/api/login"),
            ("POST", "/storage/upload"),
            ("DELETE", "/storage/delete"),
            ("PUT", "/storage/default/file"),
            ("GET", "/storage/download"),
        ):
            answer = preflight(client, target, method, origin)
            assert answer.status_code in (200, 204)
            allowed = answer.headers
            assert allowed["Access-Control-Allow-Origin"] == origin
            assert allowed["Access-Control-Allow-Credentials"] == "true"
            methods = set(re.split(r",\s*", allowed["Access-Control-Allow-Methods"]))
            assert methods >= {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}
            headers = set(re.split(r",\s*", allowed["Access-Control-Allow-Headers"].lower()))
            assert headers >= {"content-type", "authorization", "x-file-size", "range"}


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", ORIGIN + ".evil.example", "http://dashboard.example",
     "https://dashboard.example:444", ORIGIN.upper() + "x"],
)  # fmt: skip
def test_other_origins_may_not_call(open_cloud: Cloud, origin: str) -> None:
    with anonymous(open_cloud.url) as client:
        answer = client.get("/storage/namespaces", headers={"Origin": origin})
        for each in (answer, preflight(client, "/storage/upload", "POST", origin)):
            assert "Access-Control-Allow-Origin" not in each.headers


def test_cors_covers_files_and_their_headers(open_cloud: Cloud) -> None:
    """A page may show progress and resume only if it can read these."""
    client, _ = open_cloud.make_user()
    space = make_namespace(client, "cors", 2)
    put(client, space, "f", b"0123456789")
    answer = client.get(f"/storage/{space}/f", headers={"Origin": ORIGIN, "Range": "bytes=2-4"})
    assert answer.status_code == 206
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = answer.headers["Access-Control-Expose-Headers"].lower()
    for name in ("content-range", "etag", "content-disposition", "x-kept", "x-kept-until"):
        assert name in exposed


def test_not_ready_without_the_master(make_cloud: Callable[..., Cloud]) -> None:
    """But alive; and ready again when the master is back."""
    cloud = make_cloud(chunkservers=2).start()
    with anonymous(cloud.url) as client:
        ok(client.get("/readyz"))
        cloud.cluster.kill("master", 19)  # SIGSTOP: no restart hides it
        try:
            wait_for(lambda: client.get("/readyz").status_code == 503, "unreadiness")
            ok(client.get("/healthz"))
        finally:
            cloud.cluster.kill("master", 18)
        wait_for(lambda: client.get("/readyz").status_code == 200, "readiness")


SAMPLE = re.compile(
    r"[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-zA-Z_]\w*=\"(\\.|[^\"\\])*\""
    r"(,[a-zA-Z_]\w*=\"(\\.|[^\"\\])*\")*,?\})? (NaN|[-+]?(Inf|[0-9.eE+-]+))( -?\d+)?"
)


def test_metrics_are_prometheus_text(nobody: httpx.Client, user: httpx.Client) -> None:
    secret = bearer(user)
    ok(nobody.get("/storage/namespaces", params={"token": secret}))
    answer = nobody.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = [line for line in answer.text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 5
    for line in lines:
        assert SAMPLE.fullmatch(line), line
    assert secret not in answer.text
    assert user.headers["Authorization"] not in answer.text


def test_nothing_reveals_which_software_it_is(nobody: httpx.Client) -> None:
    for answer in (nobody.get("/healthz"), nobody.get("/nothing")):
        server: Any = answer.headers.get("Server", "")
        assert not re.search(r"\d", server), server

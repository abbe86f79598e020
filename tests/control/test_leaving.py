"""No client's leaving is an error of ours: on every route, in every phase, however it leaves."""

from __future__ import annotations

import re
import secrets
import socket
import struct
from collections.abc import Iterator

import httpx
import pytest
from checks import bearer, metrics, ok
from compute_cloud import ComputeCloud
from limits import HANG_SECONDS

pytestmark = pytest.mark.real

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)
#: How much of the request is sent, and whether something of the answer is awaited.
PHASES = ("half a head", "no body", "half a body", "whole", "answer")
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"x" * 500


def routes(cloud: ComputeCloud) -> Iterator[tuple[str, str, bool]]:
    """Method, path and whether it is a WebSocket too, of all there are."""
    for path, methods in ok(cloud.admin.get("/openapi.json"))["paths"].items():
        for method, reported in methods.items():
            if not path.startswith("/healthz"):
                yield method.upper(), path, "x-websocket" in reported


def request(method: str, path: str, token: str, upgrade: bool, phase: str) -> bytes:
    body = b'{"name": "x", "scopes": {}, "username": "y", "password": "z", "visibility": 0}'
    kind = "application/json"
    if "upload" in path or (method in ("PUT", "POST") and "{path}" in path):
        body, kind = FORM, "multipart/form-data; boundary=b"
    if upgrade or method in ("GET", "HEAD", "DELETE"):
        body = b""
    length = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if body else ""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"{UPGRADE if upgrade else ''}{length}\r\n"
    ).encode()
    return {
        "half a head": head[: len(head) // 2],
        "no body": head,
        "half a body": head + body[: len(body) // 2],
    }.get(phase, head + body)


def leave(cloud: ComputeCloud, data: bytes, phase: str, *, reset: bool) -> None:
    url = httpx.URL(cloud.url)
    with socket.create_connection((url.host, url.port or 80), HANG_SECONDS) as sock:
        sock.sendall(data)
        if phase == "answer":
            sock.recv(10)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def counted_500(cloud: ComputeCloud) -> list[str]:
    text = metrics(cloud.admin)
    return re.findall(r"gfs_control_requests_total\{.*status=\"500\".*", text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComputeCloud]:
    """One that stores files, too: a chunk needs two servers."""
    with ComputeCloud(tmp_path_factory.mktemp("whole"), chunkservers=2) as made:
        made.start()
        (made.world.directory / "logs").write_text("a line\n")
        yield made


@pytest.fixture(scope="module")
def parameters(whole: ComputeCloud) -> dict[str, str]:
    user, _ = whole.make_user()
    space = f"leaving-{secrets.token_hex(4)}"
    ok(user.post("/storage/namespaces", json={"name": space, "visibility": 0}))
    ok(user.put(f"/storage/{space}/file", content=bytes(2_000_000)))
    container = whole.running(user)
    return {"id": container["id"], "namespace": space, "path": "file", "token": bearer(user)}


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("phase", PHASES)
def test_no_leaving_is_a_500(
    whole: ComputeCloud, parameters: dict[str, str], phase: str, reset: bool
) -> None:
    for method, path, upgrade in routes(whole):
        given = re.sub(r"\{(\w+)\}", lambda found: parameters.get(found[1], "none"), path)
        if "?" not in given and "/storage/" in given:
            given += f"?namespace={parameters['namespace']}&name=file&id=x"
        if given == "/sse/progress":
            given += "?id=x"
        if method == "DELETE" and not given.endswith("none"):
            continue  # what the others need
        for upgraded in {False, upgrade}:
            for _ in range(5 if upgraded else 1):
                data = request(method, given, parameters["token"], upgraded, phase)
                leave(whole, data, phase, reset=reset)
    # What comes too late to be seen here, the next phase sees.
    assert counted_500(whole) == []
    log = (whole.cluster.state / "log" / "control.log").read_text()
    assert "Traceback" not in log, log[-10000:]

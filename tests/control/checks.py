"""What several of the black-box tests look at in the same way."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import httpx
from forks import STARTER
from harness import wait_for as wait_for
from limits import HANG_SECONDS

from control.recent import RECENT_SECONDS

_numbers = itertools.count(1)

#: For clients of http:// alone: each would read the certificates of all authorities, which
#: takes longer than most requests.
PLAIN = {"trust_env": False, "verify": False}


def unique(prefix: str) -> str:
    """A name that no other test of this run has."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


def children(pid: int) -> list[int]:
    """Of all its threads, each of which may have started some (but see ``forks``)."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += map(int, (thread / "children").read_text().split())
    return [child for child in found if _name(child) != STARTER]


def _name(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def ok(response: Any) -> Any:
    """The JSON of a success, which is always 200."""
    body = _body(response)
    assert _status(response) == 200, (_status(response), body[:500])
    assert _header(response, "content-type") == "application/json", _header(
        response, "content-type"
    )
    return json.loads(body)


def refused(response: Any, status: int | tuple[int, ...], *words: str) -> str:
    """The message of an error as every route must give it.

    Args:
        status: the one, or those, that it may have.
        words: what the message must name.
    """
    body = _body(response)
    statuses = (status,) if isinstance(status, int) else status
    assert _status(response) in statuses, (_status(response), body[:500])
    assert _header(response, "content-type") == "application/json", body[:500]
    value = json.loads(body)
    assert set(value) == {"error"}, value
    message = value["error"]
    assert isinstance(message, str)
    assert message.strip(), "an empty message"
    assert "\n" not in message, message
    assert len(message) < 2000, f"a message of {len(message)} characters"
    assert not re.search(r"Traceback|File \"|\.py\b|0x[0-9a-f]{6}", message), message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    return message


def bearer(client: httpx.Client) -> str:
    """The token of a logged-in client."""
    scheme, _, token = client.headers["Authorization"].partition(" ")
    assert scheme == "Bearer"
    return token


def with_token(url: str, token: str) -> httpx.Client:
    """A client that sends ``token`` with every request."""
    return httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=HANG_SECONDS, **PLAIN
    )


def anonymous(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=HANG_SECONDS, **PLAIN)


def make_namespace(client: httpx.Client, prefix: str, visibility: int = 0) -> str:
    name = unique(prefix)
    ok(client.post("/storage/namespaces", json={"name": name, "visibility": visibility}))
    return name


def make_token(client: httpx.Client, scopes: dict[str, list[str]]) -> dict[str, Any]:
    """An API token as its creation answers."""
    made: dict[str, Any] = ok(
        client.post("/api/tokens", json={"name": unique("token"), "scopes": scopes})
    )
    return made


def put(client: httpx.Client, namespace: str, path: str, data: bytes, **query: str) -> None:
    """Upload as a form, as the reference does."""
    folder, _, name = path.rpartition("/")
    parameters = {"namespace": namespace, **query, **({"path": folder} if folder else {})}
    answer = ok(client.post("/storage/upload", params=parameters, files={"file": (name, data)}))
    assert answer["status"] == "ok", answer


def get(client: httpx.Client, namespace: str, path: str) -> bytes:
    response = client.get("/storage/download", params={"namespace": namespace, "name": path})
    assert response.status_code == 200, response.text
    return response.content


def paths(client: httpx.Client, namespace: str) -> list[str]:
    """The paths of all files of a storage namespace, in the order of the listing."""
    return [
        entry["path"] for entry in ok(client.get("/storage/files", params={"namespace": namespace}))
    ]


def names(client: httpx.Client) -> list[str]:
    """The names of the storage namespaces that the client is shown."""
    return [entry["name"] for entry in ok(client.get("/storage/namespaces"))]


def metrics(client: httpx.Client) -> str:
    """``/metrics`` as of now: what is answered may be what somebody was told a moment ago."""
    time.sleep(RECENT_SECONDS)
    return client.get("/metrics").text


def metric(url: str, name: str) -> float:
    """The sum of all samples of ``name`` in ``/metrics``, for those who wait for one."""
    with anonymous(url) as client:
        text = client.get("/metrics").text
    samples = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert samples, f"no {name} in /metrics"
    return sum(map(float, samples))


def _status(response: Any) -> int:
    return int(getattr(response, "status_code", None) or response.status)


def _body(response: Any) -> bytes:
    return bytes(response.content if isinstance(response, httpx.Response) else response.body)


def _header(response: Any, name: str) -> str | None:
    if isinstance(response, httpx.Response):
        return response.headers.get(name)
    found: str | None = response.header(name)
    return found

"""The page at /docs: it needs nothing but this server, and it is for everybody.

What it shows and does is looked at in a browser (tests/browser/test_browser_documentation.py).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path

import httpx
import pytest

from control.testing import make_app, served

FOLDER = resources.files("control.documentation")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with served(make_app(tmp_path)) as made:
        yield made


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 302),
        ("TEXT/HTML", 302),
        ("*/*", 302),
        ("application/json", 404),
        ("", 302),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_who_takes_pages_is_led_here_from_the_front(
    client: httpx.AsyncClient, accept: str, status: int, method: str
) -> None:
    answer = await client.request(method, "/", headers={"Accept": accept})
    assert answer.status_code == status
    if status == 302:
        assert answer.headers["Location"] == "/docs"
        assert (await client.get(answer.headers["Location"])).status_code == 200
    else:
        assert answer.headers["Content-Type"] == "application/json"
        assert method == "HEAD" or set(answer.json()) == {"error"}


async def test_the_page_and_all_its_files_are_served(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    found = {}
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        answer = await client.get(path)
        found[path] = (answer.status_code, answer.headers["content-type"].partition(";")[0])
    assert found == {
        "/docs/page.css": (200, "text/css"),
        "/docs/page.js": (200, "text/javascript"),
        "/docs/swagger-ui-bundle.js": (200, "text/javascript"),
        "/docs/swagger-ui.css": (200, "text/css"),
        "/openapi.json": (200, "application/json"),
    }


async def test_only_the_scripts_of_this_one_answer_run(client: httpx.AsyncClient) -> None:
    """The files of users are of the same origin, so ``'self'`` would let those run."""
    nonces = set()
    for _ in "12":
        answer = await client.get("/docs")
        parts = answer.headers["content-security-policy"].split(";")
        policy = dict(part.strip().split(" ", 1) for part in parts)
        (nonce,) = re.findall("^'nonce-([\\w-]{16,})'$", policy["script-src"])
        assert re.findall(r"<script [^>]*>", answer.text) == [
            f'<script src="/docs/{name}.js" nonce="{nonce}" defer>'
            for name in ("swagger-ui-bundle", "page")
        ]
        nonces.add(nonce)
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert answer.headers["cache-control"] == "no-store"
    assert len(nonces) == 2


@pytest.mark.parametrize("path", ["/docs", "/docs/page.js", "/docs/swagger-ui.css"])
async def test_no_other_site_has_any_of_it(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/docs/page.css", "/docs/page.js", "/docs/swagger-ui-bundle.js"])
async def test_caches_keep_files_and_ask_whether_they_are_right(
    client: httpx.AsyncClient, path: str
) -> None:
    first = await client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    "name",
    [
        "missing.js",
        "openapi.py",
        "__init__.py",
        "..%2fopenapi.py",
        "page.html%00",
        "%2e%2e",
        "x/y",
        "swagger-ui.js",
    ],
)
async def test_nothing_else_of_the_package_is_served(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/docs/{name}")
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_the_policy_lets_all_of_it_run() -> None:
    """No script or style inside the page, and no address of another host."""
    page = FOLDER.joinpath("page.html").read_text()
    assert re.findall(r"<script(?! src=)|<style| style=| on\w+=", page) == []
    for name in ("page.html", "page.css", "page.js"):
        assert "://" not in FOLDER.joinpath(name).read_text()

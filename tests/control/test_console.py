"""The server's part of the console: it serves files, and what protects them. What they show and do
is looked at in a browser (tests/browser/test_browser_console.py)."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import httpx
import pytest

from control.api import Module
from control.console import Console
from control.testing import make_app, served

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ROOT = Path(__file__).parents[2]
SCRIPT = b"console.log(1)"


def built_in(directory: Path, **files: bytes) -> type[Module]:
    """The module with these built files."""
    for name, data in files.items():
        (directory / name).write_bytes(data)
        (directory / f"{name}.gz").write_bytes(gzip.compress(data))
    return type("Console", (Console,), {"built": directory})


@pytest.fixture
def console(tmp_path: Path) -> type[Module]:
    directory = tmp_path / "built"
    directory.mkdir()
    page = b'<script nonce="NONCE" src="/console/main-1.js"></script>'
    return built_in(directory, **{"index.html": page, "main-1.js": SCRIPT})


def policy_of(answer: httpx.Response) -> dict[str, str]:
    parts = answer.headers["content-security-policy"].split(";")
    return dict((part.strip() + " ").split(" ", 1) for part in parts)


async def test_the_front_is_the_page_but_for_programs_that_take_no_page(
    tmp_path: Path, console: type[Module]
) -> None:
    async with served(make_app(tmp_path, console)) as client:
        for accept in (BROWSER["Accept"], "*/*", "text/*;q=0.5", ""):
            page = await client.get("/", headers={"Accept": accept})
            kind = page.headers["content-type"]
            assert (page.status_code, kind) == (200, "text/html; charset=utf-8")
            assert page.headers["vary"] == "Accept"
        assert (await client.head("/", headers=BROWSER)).status_code == 200
        for accept in ("application/json", "image/*"):
            answer = await client.get("/", headers={"Accept": accept})
            assert (answer.status_code, set(answer.json())) == (404, {"error"})
        assert (await client.get("/docs")).status_code == 200


async def test_only_scripts_of_this_answer_run(tmp_path: Path, console: type[Module]) -> None:
    """Not those of the same origin, where users' files are."""
    async with served(make_app(tmp_path, console)) as client:
        found = set()
        for _ in range(2):
            page = await client.get("/", headers=BROWSER)
            policy = policy_of(page)
            nonce = re.findall(r'nonce="([\w-]{20,})"', page.text)
            assert policy["script-src"].split() == [f"'nonce-{nonce[0]}'", "'strict-dynamic'"]
            assert policy["default-src"].strip() == "'none'"
            assert policy["style-src"].strip() == policy["connect-src"].strip() == "'self'"
            assert policy["frame-ancestors"].strip() == policy["base-uri"].strip() == "'none'"
            assert policy["require-trusted-types-for"].strip() == "'script'"
            assert page.headers["cache-control"] == "no-store"
            assert page.headers["x-content-type-options"] == "nosniff"
            found.add(nonce[0])
        assert len(found) == 2
        assert "set-cookie" not in page.headers


async def test_files_are_kept_for_good_and_sent_compressed(
    tmp_path: Path, console: type[Module]
) -> None:
    async with served(make_app(tmp_path, console)) as client:
        for encoding in ("gzip", "identity"):
            answer = await client.get("/console/main-1.js", headers={"Accept-Encoding": encoding})
            assert answer.content == SCRIPT
            assert answer.headers.get("content-encoding", "identity") == encoding
            assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "name", ["index.html", "main-1.js.gz", "main-2.js", "..%2fmodule.py", "%2e%2e", "x/y"]
)
async def test_nothing_else_is_served(tmp_path: Path, console: type[Module], name: str) -> None:
    async with served(make_app(tmp_path, console)) as client:
        assert (await client.get(f"/console/{name}")).status_code == 404


async def test_a_console_that_is_not_built_leads_to_the_documentation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "built"
    directory.mkdir()
    async with served(make_app(tmp_path, built_in(directory))) as client:
        answer = await client.get("/", headers=BROWSER)
        assert (answer.status_code, answer.headers["location"]) == (302, "/docs")
        assert (await client.get("/console/main-1.js")).status_code == 404
    assert "`make console` builds it" in caplog.text


def test_versions_are_locked_without_addresses() -> None:
    lock = json.loads((ROOT / "console/package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert len(packages) > 5
    assert all(each["integrity"].startswith("sha512-") for each in packages.values())
    assert not [name for name, each in packages.items() if "resolved" in each]
    for path in (ROOT / "console").glob("*"):
        if path.is_file():
            assert "registry." not in path.read_text().replace("lockfile-registry-resolved", "")

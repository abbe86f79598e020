"""The page at /docs: it needs nothing but this server, and it is for everybody.

This holds what can be held without a browser: that nothing in its files asks another
host, that a strict policy lets all of it run, that what a screen reader needs is there;
and, where Node is installed, what its scripts compute.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from inprocess import make_app, served

from control.documentation import routes

FOLDER = resources.files("control.documentation")
PAGE = FOLDER.joinpath("page.html").read_text()
SCRIPTS = sorted(path.name for path in FOLDER.iterdir() if path.name.endswith(".js"))
CSS = FOLDER.joinpath("page.css").read_text()


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


ELEMENTS = Elements(PAGE)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with served(make_app(tmp_path)) as made:
        yield made


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 302),
        ("TEXT/HTML", 302),
        ("*/*", 404),
        ("application/json", 404),
        ("", 404),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_browser_is_led_here_from_the_front_and_nobody_else(
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
    """Followed as a browser does, from the page to scripts to what they import."""
    waiting, seen = ["/docs"], dict[str, str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        answer = await client.get(path)
        assert answer.status_code == 200, path
        seen[path] = answer.headers["content-type"]
        names = re.findall(r'(?:src|href)="(/docs/[^"]+)"|from "(\./[^"]+)"', answer.text)
        waiting += [urljoin(path, one or other) for one, other in names]
    expected = {f"/docs/{name}": "text/javascript; charset=utf-8" for name in SCRIPTS}
    expected |= {"/docs": "text/html; charset=utf-8", "/docs/page.css": "text/css; charset=utf-8"}
    assert seen == expected


@pytest.mark.parametrize("path", ["/docs", "/docs/page.js", "/docs/page.css"])
async def test_only_the_page_itself_may_run_and_be_asked(
    client: httpx.AsyncClient, path: str
) -> None:
    headers = (await client.get(path)).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/docs", "/docs/page.js"])
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
    ["missing.js", "openapi.py", "__init__.py", "..%2fopenapi.py", "page.html%00", "%2e%2e", "x/y"],
)
async def test_nothing_else_of_the_package_is_served(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/docs/{name}")
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_nothing_in_it_asks_another_host() -> None:
    for name in ["page.html", "page.css", *SCRIPTS]:
        text = FOLDER.joinpath(name).read_text()
        assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.M), name
    assert "@import" not in CSS
    assert "url(" not in CSS


def test_the_policy_lets_all_of_it_run() -> None:
    """No script or style inside the page, no code made from text."""
    assert all(script["src"] for script in ELEMENTS.all("script"))
    assert not ELEMENTS.all("style")
    for tag, attributes in ELEMENTS.found:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
    for name in SCRIPTS:
        text = FOLDER.joinpath(name).read_text()
        for forbidden in ("eval(", "new Function", "innerHTML", "outerHTML", "document.write"):
            assert forbidden not in text, (name, forbidden)


def test_the_token_stays_in_memory() -> None:
    for name in SCRIPTS:
        text = FOLDER.joinpath(name).read_text()
        for place in ("localStorage", "sessionStorage", "indexedDB", "cookie", "history."):
            assert place not in text, (name, place)
    (field,) = [each for each in ELEMENTS.all("input") if each.get("id") == "token"]
    assert field["type"] == "password"
    assert field["autocomplete"] == "off"
    assert "name" not in field


def test_a_screen_reader_finds_its_way() -> None:
    assert ELEMENTS.all("html") == [{"lang": "en"}]
    assert len(ELEMENTS.all("main")) == len(ELEMENTS.all("nav")) == len(ELEMENTS.all("h1")) == 1
    assert ELEMENTS.all("nav")[0]["aria-label"]
    ids = {attributes.get("id") for _, attributes in ELEMENTS.found}
    labelled = {label["for"] for label in ELEMENTS.all("label")}
    for field in ELEMENTS.all("input"):
        assert field["id"] in labelled
    for link in ELEMENTS.all("a"):
        if (link["href"] or "").startswith("#"):
            assert (link["href"] or "")[1:] in ids


def test_it_fits_a_phone_and_follows_the_dark() -> None:
    views = [each for each in ELEMENTS.all("meta") if each.get("name") == "viewport"]
    assert views[0]["content"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in CSS


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    """WCAG 2, 1.4.3: 4.5 to 1, for every colour of text on either background."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.S)
    colours = dict(re.findall(r"--(\w+): (#\w{6});", blocks[0 if scheme == "light" else 1]))
    for name in ("text", "quiet", "link", "bad", "get", "change", "delete"):
        for background in ("page", "panel"):
            assert contrast(colours[name], colours[background]) >= 4.5, (name, background)


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    def linear(part: str) -> float:
        value = int(part, 16) / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(colour[at : at + 2]) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_file_that_is_served_is_there() -> None:
    assert {*routes._ASSETS} == {"page.css", *SCRIPTS}


# --- what the scripts compute ---------------------------------------------------------


def computed(module: str, expression: str, *values: Any) -> Any:
    """What ``expression`` gives with the functions of ``module`` as ``m`` and ``v`` = values."""
    source = FOLDER.joinpath(module).read_text()
    script = f"""
        const m = await import("data:text/javascript," + encodeURIComponent({json.dumps(source)}));
        const v = {json.dumps(values)};
        console.log(JSON.stringify({expression}));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


NAMESPACE = {"name": "namespace", "in": "path", "schema": {"type": "string", "pattern": "^[^/]+$"}}
PATH = {"name": "path", "in": "path", "schema": {"type": "string", "minLength": 1}}
LIMIT = {"name": "limit", "in": "query", "schema": {"type": "integer"}}
RANGE = {"name": "Range", "in": "header", "schema": {"type": "string"}}


@pytest.mark.extra("node")
def test_a_form_becomes_an_address() -> None:
    values = {"path:namespace": "a/b", "path:path": "über uns/x?.txt", "query:limit": "5"}
    address = computed(
        "request.js", "m.target(...v)", "/s/{namespace}/{path}", [NAMESPACE, PATH, LIMIT], values
    )
    assert address == "/s/a%2Fb/%C3%BCber%20uns/x%3F.txt?limit=5"
    assert computed("request.js", "m.target(...v)", "/s", [LIMIT], {"query:limit": ""}) == "/s"


@pytest.mark.extra("node")
def test_a_form_without_what_the_path_needs_says_so() -> None:
    story = computed(
        "request.js",
        "(() => { try { m.target(...v) } catch (error) { return error.message } })()",
        "/s/{path}",
        [PATH],
        {},
    )
    assert story == "path: give a value"


@pytest.mark.extra("node")
def test_the_headers_are_those_that_were_given() -> None:
    given = [[RANGE, LIMIT], {"header:Range": "bytes=0-9", "query:limit": "5"}, "secret", ""]
    assert computed("request.js", "m.headers(...v)", *given) == {
        "Range": "bytes=0-9",
        "Authorization": "Bearer secret",
    }


@pytest.mark.extra("node")
def test_the_command_sends_the_same_and_holds_no_secret() -> None:
    headers = {"Range": "bytes=0-9", "Authorization": "Bearer secret"}
    command = computed(
        "request.js", "m.curl(...v)", "PUT", "http://h/it's", headers, {"json": '{"a": "b\'c"}'}
    )
    assert "secret" not in command
    words = subprocess.run(
        ["bash", "-c", f"curl() {{ printf '%s\\0' \"$@\"; }}; TOKEN=mine; {command}"],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert words.stdout.decode().split("\0")[:-1] == [
        *("-X", "PUT", "http://h/it's"),
        *("-H", "Range: bytes=0-9"),
        *("-H", "Authorization: Bearer mine"),
        *("-H", "Content-Type: application/json"),
        *("-d", '{"a": "b\'c"}'),
    ]


COMPONENTS = {
    "Book": {
        "type": "object",
        "required": ["title"],
        "properties": {
            "title": {"type": "string", "maxLength": 9, "description": "On the cover."},
            "pages": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "more": {"type": "array", "items": {"$ref": "#/components/schemas/Book"}},
        },
    }
}
BOOK = {"$ref": "#/components/schemas/Book"}


@pytest.mark.extra("node")
def test_types_are_told_in_words() -> None:
    assert computed("schema.js", "m.typeName(...v)", BOOK) == "Book"
    assert computed("schema.js", "m.typeName(...v)", {"type": "array", "items": BOOK}) == (
        "list of Book"
    )
    either = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert computed("schema.js", "m.typeName(...v)", either) == "integer or null"


@pytest.mark.extra("node")
def test_fields_are_listed_and_types_that_hold_themselves_end() -> None:
    rows = computed("schema.js", "m.fields(...v)", BOOK, COMPONENTS)
    assert rows[0] == ["title", "string", "yes", "On the cover.; at most 9 characters"]
    assert rows[1][:3] == ["pages", "integer or null", "no"]
    assert rows[2][:2] == ["more", "list of Book"]
    assert len(rows) == 3


@pytest.mark.extra("node")
def test_fields_of_fields_are_listed_with_their_place() -> None:
    schema = {
        "type": "object",
        "properties": {
            "books": {"type": "array", "items": BOOK},
            "by_name": {"type": "object", "additionalProperties": BOOK},
        },
    }
    places = [row[0] for row in computed("schema.js", "m.fields(...v)", schema, COMPONENTS)]
    assert {"books", "books[].title", "by_name", "by_name.*.title"} <= {*places}
    assert len(places) == len(set(places))


@pytest.mark.extra("node")
def test_an_example_fits_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "visibility": {"type": "integer", "minimum": 1},
            "expires_in": {"enum": ["30d", "never"], "default": "never"},
            "scopes": {"type": "object", "additionalProperties": {"type": "array"}},
        },
    }
    assert computed("schema.js", "m.example(...v)", schema, {}) == {
        "name": "",
        "visibility": 1,
        "expires_in": "never",
        "scopes": {},
    }


@pytest.mark.extra("node")
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_parsed(name: str) -> None:
    done = subprocess.run(
        ["node", "--input-type=module", "--check"],
        input=FOLDER.joinpath(name).read_text(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr

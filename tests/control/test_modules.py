"""Somebody else's package, installed as one installs packages, becomes part of the API.

It is the example of ``docs/modules.md``, so what that page says works. Nothing of it is
named in this project; it is found because it is installed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from checks import ok, refused, wait_for
from cloud import PASSWORD
from harness import GFS, STOP_SECONDS, environment
from werkzeug.routing import BaseConverter
from wheels import install, make_wheel

from control.api import PUBLIC, Call, Module, Route, Schema, ScopeTable, StartupError
from control.app import build_app
from control.auth import Auth

ROOT = Path(__file__).parents[2]
DELIVERY_SECONDS = 30.0


def on_the_page(language: str) -> str:
    page = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    [example] = re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.M | re.S)
    return str(example)


PROJECT, EXAMPLE = on_the_page("toml"), on_the_page("python")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the example is installed in."""
    target = tmp_path_factory.mktemp("installed")
    wheel = make_wheel(tmp_path_factory.mktemp("wheel"), PROJECT, {"greetings.py": EXAMPLE})
    install(target, wheel)
    return target


class Served:
    """``gfs control`` with some modules; its clients."""

    def __init__(self, directory: Path, installed: Path, modules: str) -> None:
        read, write = os.pipe()
        try:
            self.process = subprocess.Popen(
                [
                    *(*GFS, "control", "--state", str(directory / "state")),
                    *("--modules", modules, "--bind", "127.0.0.1:0", "--ready-fd", str(write)),
                ],
                env=environment(PYTHONPATH=str(installed), GFS_ADMIN_PASSWORD=PASSWORD),
                stdin=subprocess.DEVNULL,
                pass_fds=[write],
            )
        finally:
            os.close(write)
        with open(read, "rb") as pipe:
            report = json.loads(pipe.readline() or b"{}")  # when it serves, or cannot
        if "auth" not in report:
            self.stop()
            pytest.fail(f"gfs control does not serve: {report}")
        self.url = report["auth"]

    def client(self, token: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)

    def login(self, username: str) -> dict[str, Any]:
        with self.client() as client:
            answer = client.post("/api/login", json={"username": username, "password": PASSWORD})
        session: dict[str, Any] = ok(answer)
        return session

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("served"), installed, "auth,greetings")
    yield made
    made.stop()


@pytest.fixture
def session(server: Served) -> dict[str, Any]:
    return server.login("admin")


def post(server: Served, token: str, text: str = "Hello") -> httpx.Response:
    with server.client(token) as client:
        return client.post("/greetings", json={"text": text})


def get(server: Served, token: str, card: str) -> httpx.Response:
    with server.client(token) as client:
        return client.get(f"/greetings/{card}")


def make_token(server: Served, session: dict[str, Any], scopes: dict[str, list[str]]) -> Any:
    with server.client(session["token"]) as client:
        return client.post("/api/tokens", json={"name": "toy", "scopes": scopes})


def test_its_routes_answer_and_keep_what_they_are_told(
    server: Served, session: dict[str, Any]
) -> None:
    card = ok(post(server, session["token"], "Many happy returns"))
    found = ok(get(server, session["token"], card["id"]))
    assert (found["id"], found["text"]) == (card["id"], "Many happy returns")


def test_its_routes_are_checked_like_all_others(server: Served, session: dict[str, Any]) -> None:
    refused(post(server, ""), 401)
    refused(post(server, session["token"], ""), 400, "text")
    refused(get(server, session["token"], "missing"), 404)


def test_its_background_task_works(server: Served, session: dict[str, Any]) -> None:
    card = ok(post(server, session["token"]))
    assert not card["is_delivered"]
    wait_for(
        lambda: ok(get(server, session["token"], card["id"]))["is_delivered"],
        DELIVERY_SECONDS,
        "delivery of the card",
    )


def test_a_token_is_limited_to_its_scopes(server: Served, session: dict[str, Any]) -> None:
    owner = session["user_id"]
    first, second = (ok(post(server, session["token"])) for _ in range(2))

    reads = ok(make_token(server, session, {f"greetings.{owner}.cards": ["read"]}))["token"]
    ok(get(server, reads, first["id"]))
    refused(post(server, reads), 403)

    one = ok(make_token(server, session, {f"greetings.{owner}.cards.{first['id']}": ["read"]}))
    ok(get(server, one["token"], first["id"]))
    refused(get(server, one["token"], second["id"]), 403)

    other = ok(make_token(server, session, {f"storage.{owner}.files": ["read"]}))["token"]
    refused(get(server, other, first["id"]), 403)


def test_only_its_own_scopes_can_be_granted(server: Served, session: dict[str, Any]) -> None:
    owner = session["user_id"]
    refused(make_token(server, session, {f"greetings.{owner}.cards": ["burn"]}), 400, "burn")
    refused(make_token(server, session, {f"greetings.{owner}.hats": ["read"]}), 400, "hats")
    refused(make_token(server, session, {f"farewells.{owner}": ["read"]}), 400, "farewells")


def test_what_is_a_users_goes_with_him(server: Served, session: dict[str, Any]) -> None:
    with server.client(session["token"]) as client:
        user = ok(client.post("/admin/users", json={"username": "ada", "password": PASSWORD}))
        his = server.login("ada")["token"]
        card = ok(post(server, his))
        refused(get(server, session["token"], card["id"]), 403)
        ok(client.delete("/admin/users", params={"id": user["id"]}))
        refused(get(server, session["token"], card["id"]), 404)


def test_it_is_documented(server: Served) -> None:
    with server.client() as client:
        document = ok(client.get("/openapi.json"))
    operation = document["paths"]["/greetings/{id}"]["get"]
    assert operation["x-scope"] == "greetings.cards: read"
    assert document["components"]["schemas"]["CardView"]["description"] == "A greeting card."
    assert {"name": "greetings", "description": "Greeting cards"} in document["tags"]
    assert not [path for path in document["paths"] if path.startswith("/storage")]


def test_where_it_is_not_chosen_it_serves_nothing_and_its_scopes_are_known(
    installed: Path, tmp_path: Path
) -> None:
    """Hosts may share the records and serve different modules of them."""
    server = Served(tmp_path, installed, "auth")
    try:
        session = server.login("admin")
        refused(post(server, session["token"]), 404)
        ok(make_token(server, session, {f"greetings.{session['user_id']}.cards": ["read"]}))
    finally:
        server.stop()


def test_without_being_installed_it_is_not_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [*GFS, "control", "--state", str(tmp_path / "state"), "--modules", "auth,greetings"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "greetings" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


# --- for its author -----------------------------------------------------------------


def test_it_imports_one_place_of_ours() -> None:
    names = {
        name
        for node in ast.walk(ast.parse(EXAMPLE))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [each.name for each in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if name.partition(".")[0] in ("control", "gfs")
    }
    assert names == {"control.api"}


#: Mistakes of an author, and what mypy says of each.
MISTAKES = {
    "": "",
    "body: NewCard) -> CardView:/body: CardView) -> CardView:": "Callable[[Call, NewCard]",
    "call: Call, body: NewCard)/call: Call)": "Callable[[Call, NewCard]",
    "body=NewCard,/": "Callable[[Call], ",
    "def get(self, call: Call) -> CardView:/def get(self, call: Call) -> Card:": "CardView",
    "self.control.records/self.control.recods": "recods",
    "answer=CardView,/answer=CardView, querry=NewCard,": "querry",
}


def test_mypy_finds_an_authors_mistakes(tmp_path: Path) -> None:
    files = []
    for number, change in enumerate(MISTAKES):
        before, _, after = change.partition("/")
        assert before in EXAMPLE
        files.append(tmp_path / f"greetings_{number}.py")
        files[-1].write_text(EXAMPLE.replace(before, after, 1) if before else EXAMPLE)
    done = subprocess.run(
        [*(sys.executable, "-m", "mypy", "--strict", "--config-file="), *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = {path.name: [] for path in files}
    for line in done.stdout.splitlines():
        name, _, message = line.partition(": error: ")
        if message:
            found[Path(name.partition(":")[0]).name].append(message)
    for path, said in zip(files, MISTAKES.values(), strict=True):
        messages = found[path.name]
        assert bool(messages) == bool(said), (path.name, messages)
        assert any(said in message for message in messages) or not said, (path.name, messages)


# --- clashes ------------------------------------------------------------------------


def test_two_packages_with_one_name_are_named(tmp_path: Path, installed: Path) -> None:
    """Whichever is found first would silently take the other's place."""
    other = PROJECT.replace("gfs-greetings", "gfs-farewells")
    install(tmp_path / "other", make_wheel(tmp_path, other, {}))
    path = os.pathsep.join(map(str, (installed, tmp_path / "other")))
    done = subprocess.run(
        [*GFS, "control", "--state", str(tmp_path / "state"), "--modules", "auth"],
        env=environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert "'greetings'" in line
    assert "gfs-greetings 1.0" in line
    assert "gfs-farewells 1.0" in line


class First(Module):
    name = "first"
    scopes: ClassVar[ScopeTable] = {"cards": {"all": frozenset({"read"})}}
    schemas = (Schema("cards", 1, []),)
    converters: ClassVar[dict[str, type[BaseConverter]]] = {"card": BaseConverter}

    def routes(self) -> list[Route]:
        return [Route("GET", "/cards/{id}", self.get, PUBLIC, "A card", answer=str)]

    async def get(self, call: Call) -> str:
        return call.params["id"]


class Plain(Module):
    name = "second"


CLASHES = {
    "module": type("Second", (Plain,), {"name": "first"}),
    "system": type("Second", (Plain,), {"name": "system"}),
    "auth": type("Second", (Plain,), {"name": "auth"}),
    "scope": type("Second", (Plain,), {"scopes": First.scopes}),
    "scope of ours": type("Second", (Plain,), {"scopes": {"storage": {}}}),
    "rows": type("Second", (Plain,), {"schemas": (Schema("cards", 1, []),)}),
    "rows of ours": type("Second", (Plain,), {"schemas": (Schema("quota", 1, []),)}),
    "converter": type("Second", (Plain,), {"converters": First.converters}),
    "converter of werkzeug": type("Second", (Plain,), {"converters": {"path": BaseConverter}}),
    "route": type(
        "Second",
        (Plain,),
        {
            "routes": lambda self: [
                Route("GET", "/cards/{name}", First.get, PUBLIC, "The same", answer=str)
            ]
        },
    ),
    "route of ours": type(
        "Second",
        (Plain,),
        {"routes": lambda self: [Route("GET", "/docs", First.get, PUBLIC, "x", answer=str)]},
    ),
    "settings of the client": type("Second", (Plain,), {"name": "client"}),
    "settings of quotas": type("Second", (Plain,), {"name": "quota"}),
}


@pytest.mark.parametrize("what", CLASHES)
def test_a_clash_is_an_error_at_the_start_that_names_both(what: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError) as caught:
        build_app([First, CLASHES[what]], state=tmp_path)
    message = str(caught.value)
    assert f"{__name__}:Second" in message
    assert any(
        other in message
        for other in (f"{__name__}:First", "the control plane itself", "gfs-control-plane ")
    )


def test_modules_that_clash_in_nothing_are_served_together(tmp_path: Path) -> None:
    app = build_app([First, Plain, Auth], state=tmp_path)
    assert [module.name for module in app.modules] == ["first", "second", "auth"]


def test_records_before_the_process_serves_are_an_error_that_says_so(tmp_path: Path) -> None:
    app = build_app([First], state=tmp_path)
    with pytest.raises(Exception, match=r"control\.records is only there while .* use it in"):
        _ = app.control.records
    with pytest.raises(AttributeError, match="recods"):
        _ = app.control.recods  # type: ignore[attr-defined]

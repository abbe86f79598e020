"""Somebody else's package, installed as one installs packages, becomes part of the API.

It is the example of ``docs/modules.md``, so what that page says works. Nothing of it is
named in this project; it is found because it is installed.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import forks
import httpx
import noticeboard
import pytest
import trio
from alone import Alone
from checks import ok, refused, wait_for
from cloud import PASSWORD
from harness import environment
from limits import HANG_SECONDS
from wheels import install, make_wheel

from control import api
from control.api import (
    PUBLIC,
    Call,
    Module,
    QuotaUsage,
    Route,
    Schema,
    ScopeTable,
    StartupError,
    Table,
    Txn,
    scoped,
)
from control.app import application, build_app
from control.auth import Auth
from control.cli import serving as serving_processes
from control.http import listen
from control.identity.rows import User
from control.settings import ControlSettings
from control.storage.shapes import NewSpace
from control.testing import make_app, served, serving
from gfs.errors import GfsError
from gfs.failures import the_one

ROOT = Path(__file__).parents[2]
BOARD = Path(noticeboard.__file__)


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


class Served(Alone):
    """With some modules."""

    def __init__(self, directory: Path, installed: Path, modules: str) -> None:
        super().__init__(directory, environment={"PYTHONPATH": str(installed)})
        self.modules = modules

    def session(self, username: str) -> dict[str, Any]:
        with self.client() as client:
            answer = client.post("/api/login", json={"username": username, "password": PASSWORD})
        session: dict[str, Any] = ok(answer)
        return session


@pytest.fixture(scope="module")
def server(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served"), installed, "auth,greetings") as made:
        yield made.start()


@pytest.fixture
def session(server: Served) -> dict[str, Any]:
    return server.session("admin")


def post(server: Served, token: str, text: str = "Hello") -> httpx.Response:
    with server.client(token or None) as client:
        return client.post("/greetings", json={"text": text})


def get(server: Served, token: str, card: str) -> httpx.Response:
    with server.client(token) as client:
        return client.get(f"/greetings/{card}")


def make_token(server: Served, session: dict[str, Any], scopes: dict[str, list[str]]) -> Any:
    with server.client(session["token"]) as client:
        return client.post("/api/tokens", json={"name": "toy", "scopes": scopes})


def test_its_routes_answer_and_keep_what_they_get(server: Served, session: dict[str, Any]) -> None:
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
        his = server.session("ada")["token"]
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
    with Served(tmp_path, installed, "auth") as server:
        session = server.start().session("admin")
        refused(post(server, session["token"]), 404)
        ok(make_token(server, session, {f"greetings.{session['user_id']}.cards": ["read"]}))


@pytest.mark.real
def test_without_being_installed_it_is_not_found(tmp_path: Path) -> None:
    done = forks.run(
        ["control", "--state", tmp_path / "state", "--modules", "auth,greetings"],
        text=True,
        env=environment(),
    )
    assert done.returncode != 0
    assert "greetings" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("text", [EXAMPLE, BOARD.read_text()], ids=["greetings", "noticeboard"])
def test_it_imports_one_place_of_ours(text: str) -> None:
    names = {
        name
        for node in ast.walk(ast.parse(text))
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


def test_an_author_can_use_every_name_of_the_facade() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(BOARD.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "api"
    }
    assert used == {*api.__all__} - {"internals"}, "internals is for what comes with us"


#: Types of attributes and methods that say that they are not for modules of third parties, and
#: of the setting ``trusted_proxies``.
NOT_FOR_AUTHORS = {
    "Credentials",
    "Ledger",
    "Named",
    "Proxies",
    "Refusal",
    "SharedLock",
    "SigningKeys",
}


def test_what_the_facade_gives_an_author_has_types_that_it_names_too() -> None:
    names = [getattr(api, name) for name in api.__all__]
    offered = {each for each in names if isinstance(each, type)}
    found: set[type] = set()
    for kind in offered - {api.StreamingRequest}:  # Quart's but for its body
        if kind.__module__.startswith("control."):
            members = [kind, *(each for name, each in vars(kind).items() if name[0] != "_")]
            for member in members:
                hinted = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if hasattr(hinted, "__annotations__"):
                    found |= set(types_of(list(typing.get_type_hints(hinted).values())))
    ours = {kind for kind in found if kind.__module__.startswith("control.")}
    assert {kind.__name__ for kind in ours - offered} - NOT_FOR_AUTHORS == set()


def types_of(hint: Any) -> Iterator[type]:
    for part in hint if isinstance(hint, list | tuple) else typing.get_args(hint):
        yield from types_of(part)
    if isinstance(hint, type):
        yield hint


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


@pytest.mark.real
def test_mypy_finds_an_authors_mistakes(tmp_path: Path) -> None:
    files = []
    for number, change in enumerate(MISTAKES):
        before, _, after = change.partition("/")
        assert before in EXAMPLE
        files.append(tmp_path / f"greetings_{number}.py")
        files[-1].write_text(EXAMPLE.replace(before, after, 1) if before else EXAMPLE)
    done = subprocess.run(
        [*(sys.executable, "-m", "mypy", "--strict", "--config-file="), *map(str, [*files, BOARD])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    found: dict[str, list[str]] = {path.name: [] for path in [*files, BOARD]}
    for line in done.stdout.splitlines():
        name, _, message = line.partition(": error: ")
        if message:
            found[Path(name.partition(":")[0]).name].append(message)
    assert found[BOARD.name] == []
    for path, said in zip(files, MISTAKES.values(), strict=True):
        messages = found[path.name]
        assert bool(messages) == bool(said), (path.name, messages)
        assert any(said in message for message in messages) or not said, (path.name, messages)


@pytest.mark.parametrize("command", [["--modules", "auth"], ["quota", "admin"]])
def test_two_packages_with_one_name_are_named(
    command: list[str], tmp_path: Path, installed: Path
) -> None:
    """Whichever is found first would silently take the other's place."""
    (tmp_path / "state" / "control").mkdir(parents=True)
    other = PROJECT.replace("gfs-greetings", "gfs-farewells")
    install(tmp_path / "other", make_wheel(tmp_path, other, {}))
    path = os.pathsep.join(map(str, (installed, tmp_path / "other")))
    done = forks.run(
        ["control", *command, "--state", tmp_path / "state"],
        text=True,
        env=environment(PYTHONPATH=path),
    )
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert "'greetings'" in line
    assert "gfs-greetings 1.0" in line
    assert "gfs-farewells 1.0" in line


shared = Table("t", User, key=lambda row: row.id)


def used(txn: Txn, user_id: str) -> dict[str, int]:
    return {}


class First(Module):
    name = "first"
    scopes: ClassVar[ScopeTable] = {"cards": {"all": frozenset({"read"})}}
    schemas = (Schema("cards", 1, [shared]),)
    parameter_kinds: ClassVar[dict[str, str]] = {"card": "[a-z]+"}

    def routes(self) -> list[Route]:
        return [Route("GET", path, self.get, PUBLIC, "x", answer=str) for path in self.paths]

    paths = ("/cards/{id}", "/by-name/{id:card}", "/{rest:path}/end")

    async def get(self, call: Call) -> str:
        return call.params["id"]


class Second(Module):
    name = "second"

    async def get(self, call: Call) -> str:
        return ""

    async def post(self, call: Call, body: NewSpace) -> str:
        return ""


def second(**fields: Any) -> type[Module]:
    """``Second`` with these attributes; ``route`` is the arguments of its only route."""
    if "route" in fields:
        made = {
            "method": "GET",
            "path": "/x",
            "handler": "get",
            "need": PUBLIC,
            "answer": str,
            **fields.pop("route"),
        }
        fields["routes"] = lambda self: [
            Route(
                **{**made, "handler": getattr(self, made["handler"])},
                summary="x",
            )
        ]  # fmt: skip
    return type("Second", (Second,), fields)


CLASHES = {
    "module": second(name="first"),
    "system": second(name="system"),
    "auth": second(name="auth"),
    "scope": second(scopes=First.scopes),
    "scope of ours": second(scopes={"storage": {}}),
    "schema": second(schemas=(Schema("cards", 1, []),)),
    "schema of ours": second(schemas=(Schema("quota", 1, []),)),
    "schema twice": second(schemas=(Schema("a", 1, []), Schema("a", 2, []))),
    "table": second(schemas=(Schema("a", 1, [shared]),)),
    "kind": second(parameter_kinds=First.parameter_kinds),
    "kind of ours": second(parameter_kinds={"path": ".*"}),
    "usage": second(usage=QuotaUsage(["containers"], used)),
    "usage of files": second(usage=QuotaUsage(["bytes"], used)),
    "route": second(route={"path": "/cards/{name}"}),
    "route with a slash": second(route={"path": "/cards/{name}/"}),
    "route of a kind that is the same": second(
        parameter_kinds={"word": "[a-z]+"}, route={"path": "/by-name/{name:word}"}
    ),
    "route of a path": second(route={"path": "/{all:path}/end"}),
    "route of ours": second(route={"path": "/docs"}),
    "settings of the client": second(name="client"),
    "settings of quotas": second(name="quota"),
    "settings that begin alike": second(name="first_aid"),
    "settings that begin like those of ours": second(name="client_cache"),
    "a variable": second(name="admin"),
}


@pytest.mark.parametrize("what", CLASHES)
def test_a_clash_is_an_error_at_the_start_that_names_both(what: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r" is defined (twice )?by ") as caught:
        build_app([First, CLASHES[what]], state=tmp_path)
    message = str(caught.value)
    assert f"{__name__}:Second" in message
    assert "twice" in message or any(
        other in message
        for other in (f"{__name__}:First", "the control plane itself", "gfs-control-plane ")
    )


#: Declarations that are none, and what is said of them.
NOT_DECLARED = {
    "name": (second(name="Second one"), "cannot be a module's name"),
    "scopes": (second(scopes=["cards"]), "scopes must be a ScopeTable"),
    "dots": (second(scopes={"a.b": {}}), "the scope 'a.b' must be made of"),
    "schemas": (second(schemas=Schema("a", 1, [])), "schemas must be a list"),
    "settings": (second(settings_kind=int), "settings_kind must be a subclass of Settings"),
    "expression": (second(parameter_kinds={"a": "["}), "'a' is not a regular expression"),
    "group": (second(parameter_kinds={"a": "(b)"}), "'a' has a group"),
    "usage": (second(usage=QuotaUsage(["cards"], used)), "usage must be a QuotaUsage of some of"),
    "init": (second(__init__=lambda self, control: 1 / 0), "__init__ failed: ZeroDivisionError"),
    "exit": (second(routes=lambda self: sys.exit(3)), "routes() failed: SystemExit: 3 ("),
    "none": (second(routes=lambda self: None), "routes() failed: TypeError"),
    "text": (second(routes=lambda self: ["/x"]), "routes() returns '/x': no Route"),
    "HEAD": (second(route={"method": "HEAD"}), "HEAD /x: the method must be one of GET, "),
    "small letters": (second(route={"method": "get"}), "get /x: the method must be one of GET, "),
    "path": (second(route={"path": "x"}), "GET x: a path begins with /"),
    "brace": (second(route={"path": "/x/{id:"}), "has parameters as {name} or {name:kind}"),
    "Werkzeug's": (second(route={"path": "/x/<id>"}), "has parameters as {name} or {name:kind}"),
    "kind": (second(route={"path": "/x/{id:string}"}), "no kind 'string' of path parameters: path"),
    "twice": (second(route={"path": "/{a}/{a}"}), "the parameter 'a' is there twice"),
    "need": (second(route={"need": None}), "need must be PUBLIC"),
    "scope": (second(route={"need": scoped("cards", "all", "burn")}), "scope 'cards.all: burn'"),
    "parameter": (
        second(route={"need": scoped("cards", "all", "read", parameter="id")}),
        "'id' of its need is no parameter",
    ),
    "body": (second(route={"body": dict}), "body must be a Struct or a Content"),
    "handler": (second(route={"handler": "post"}), "the handler must take (call) alone"),
    "no body": (second(route={"body": NewSpace}), "the handler must take (call, body)"),
    "answer": (second(route={"answer": object}), "GET /x: TypeError: "),
}


@pytest.mark.parametrize("what", NOT_DECLARED)
def test_a_mistake_of_its_author_is_an_error_at_the_start_that_names_it(
    what: str, tmp_path: Path
) -> None:
    kind, words = NOT_DECLARED[what]
    with pytest.raises(StartupError) as caught:
        build_app([First, kind], state=tmp_path)
    assert f"{__name__}:Second" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_that_clash_in_nothing_are_served_together(tmp_path: Path) -> None:
    app = build_app([First, Second, Auth], state=tmp_path)
    assert [module.name for module in app.modules] == ["first", "second", "auth"]


def test_records_before_the_process_serves_are_an_error_that_says_so(tmp_path: Path) -> None:
    app = build_app([First], state=tmp_path)
    with pytest.raises(Exception, match=r"control\.records is only there while .* use it in"):
        _ = app.control.records
    with pytest.raises(AttributeError, match="recods"):
        _ = app.control.recods  # type: ignore[attr-defined]


async def test_the_test_on_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("greetings")
    monkeypatch.setitem(sys.modules, "greetings", module)
    for text in (EXAMPLE, on_the_page("py")):
        exec(compile(text, "docs/modules.md", "exec", dont_inherit=True), module.__dict__)
    await module.test_a_card_is_delivered(tmp_path)


async def test_the_second_module_works(tmp_path: Path) -> None:
    async with serving(tmp_path, noticeboard.Board) as cloud:
        ada, admin = await cloud.user("ada"), await cloud.user("admin")
        for number, (text, visibility) in enumerate([("b", 0), ("a", 2)], 1):
            made = await ada.post("/board/notices", json={"text": text, "visibility": visibility})
            assert ok(made) == {"number": number, "text": text}
        assert [each["text"] for each in ok(await ada.get("/board/notices"))] == ["a", "b"]
        refused(await cloud.anonymous.get("/board/notices/1"), 401)
        refused(await admin.get("/board/notices/1"), 403, "the notice belongs to another")
        assert ok(await cloud.anonymous.get("/board/notices/2"))["text"] == "a"
        refused(await admin.get(f"/board/notices/{'9' * 5000}"), 414, "path")
        for name in ("first", "02"):
            refused(await admin.get(f"/board/notices/{name}"), 404, "no such route")
        ok(await ada.post("/board/notices", json={"text": "c"}))
        refused(await ada.post("/board/notices", json={"text": "d"}), 507, "you have 3 notices")
        sent = await ada.put("/board/lines", content=b"one\n")
        assert (sent.status_code, sent.content) == (200, b"ONE\n")
        for failure, error in noticeboard.FAILURES.items():
            refused(await ada.get(f"/board/fail/{failure}"), error.status, str(error))
        for path, statuses in {
            "anybody": (200, 200, 200),
            "logged-in": (401, 200, 200),
            "session": (401, 200, 200),
            "admin": (401, 403, 200),
            "admin-with-a-scope": (401, 403, 200),
            "service": (401, 401, 401),
        }.items():
            for client, status in zip((cloud.anonymous, ada, admin), statuses, strict=True):
                assert (await client.get(f"/board/{path}")).status_code == status, path
        refused(await ada.get("/board/echo"), 426)
        ok(await cloud.anonymous.get("/readyz"))
        ok(await cloud.anonymous.get("/openapi.json"))


Run = Callable[..., Awaitable[None]]


async def _fails_at_once(self: Module, *, task_status: trio.TaskStatus[None]) -> None:
    raise ZeroDivisionError("by zero")


async def _fails_later(self: Module, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    raise ZeroDivisionError("by zero")


async def _fails_at_the_end(self: Module, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    try:
        await trio.sleep_forever()
    finally:
        raise ZeroDivisionError("by zero")


async def _never_starts(self: Module, *, task_status: trio.TaskStatus[None]) -> None:
    await trio.sleep_forever()


async def _says_why(self: Module, *, task_status: trio.TaskStatus[None]) -> None:
    raise StartupError("second: there is no coffee")


_FAILED = "Second: its background work failed, so this process ends: ZeroDivisionError: by zero ("


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (_fails_at_once, _FAILED),
        (_fails_later, _FAILED),
        (_fails_at_the_end, _FAILED),
        (_never_starts, "Second: run() did not call task_status.started() within 0.2 s"),
        (_says_why, "second: there is no coffee"),
    ],
)
async def test_background_work_that_fails_ends_the_process_with_one_error_that_names_it(
    run: Run, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if run is _never_starts:
        monkeypatch.setattr(application, "START_SECONDS", 0.2)

    async def serve() -> None:
        async with served(make_app(tmp_path, second(run=run))):
            if run is not _fails_at_the_end:
                await trio.sleep_forever()

    with pytest.raises((GfsError, BaseExceptionGroup)) as caught:
        await serve()
    found = the_one(caught.value)
    assert isinstance(found, GfsError)
    assert words in str(found)


async def test_a_module_that_does_not_end_is_named_and_the_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token, killed = trio.lowlevel.current_trio_token(), trio.Event()
    monkeypatch.setattr(os, "_exit", lambda code: token.run_sync_soon(killed.set))
    monkeypatch.setattr(serving_processes, "CLOSE_SECONDS", 0.05)

    async def run(self: Module, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await killed.wait()

    app, settings = make_app(tmp_path, second(run=run)), ControlSettings(graceful_seconds=0.0)
    start = serving_processes.alone(app, listen("127.0.0.1:0"), settings, None, "text")
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(start)
            nursery.cancel_scope.cancel()
    assert "Second does not end" in caplog.text


async def _returns(self: Module, *, task_status: trio.TaskStatus[None]) -> None:
    await trio.lowlevel.checkpoint()


async def _exits(self: Module, call: Call) -> str:
    sys.exit(3)


async def _returns_an_object(self: Module, call: Call) -> Any:
    return object()


@pytest.mark.parametrize("handler", [_exits, _returns_an_object])
async def test_a_handler_that_fails_fails_its_request_alone_and_the_log_names_it(
    handler: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(make_app(tmp_path, second(get=handler, route={}, run=_returns))) as http:
        refused(await http.get("/x"), 500, "internal error")
        assert "GET /x of the module 'second' failed" in caplog.messages
        ok(await http.get("/healthz"))

"""Somebody else's package, installed as one installs packages, becomes part of the API.

``toy/`` holds a package that knows only what :mod:`control.api.module` tells. Nothing of
it is named in this project; it is found because it is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from checks import ok, refused, wait_for
from cloud import PASSWORD
from harness import GFS, STOP_SECONDS, environment

TOY = Path(__file__).parent / "toy"
DELIVERY_SECONDS = 30.0


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the toy package is installed in."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"),
            *("--target", str(target), str(TOY)),
        ],
        check=True,
        timeout=120,
    )
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

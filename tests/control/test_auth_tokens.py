"""API tokens and service accounts over a real socket."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import jwt
import pytest
from auth_server import CheapAuth, Server, running
from checks import ok, refused

from control.api import PRIVATE, PUBLIC_VISIBILITY, Call, Module, NoSuchThing, Route, Target
from control.auth.accounts import ACCOUNTS_MAX
from control.auth.tokens import TOKENS_MAX
from control.identity.access import scoped
from control.identity.rows import ServiceAccount, Token, accounts, tokens
from control.identity.scopes import SCOPES_BYTES_MAX, SEED_SCOPES, check_grants
from control.records import Txn

DAY = 24 * 3600


class Echo(Module):
    """Lets tokens in that may read the file ``default``, as ``storage`` would."""

    name = "echo"

    def routes(self) -> list[Route]:
        need = scoped("storage", "files", "read", parameter="name")
        is_open = replace(need, is_open=True)
        return [
            Route("GET", "/echo/{name}", self.echo, need, "Who asks", answer=dict[str, str]),
            Route("GET", "/open/{name}", self.open, is_open, "Who asks", answer=dict[str, str]),
        ]

    async def echo(self, call: Call) -> dict[str, str]:
        return {"user_id": call.user.user_id}

    async def open(self, call: Call) -> dict[str, str]:
        """What is ``private`` belongs to somebody else, the rest is everybody's."""
        name = call.params["name"]
        if name == "missing":
            raise NoSuchThing("there is no such file")
        visibility = PRIVATE if name == "private" else PUBLIC_VISIBILITY
        call.allow(Target("nobody", name, visibility), reading=True)
        return {"user_id": call.principal.user_id if call.principal else ""}


def scopes_of(user: dict[str, Any], *actions: str) -> dict[str, list[str]]:
    return {f"storage.{user['user_id']}.files": list(actions or ("read",))}


async def make(server: Server, user: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer = await server.call(
        "POST", "/api/tokens", user, **{"name": "ci", "scopes": scopes_of(user), **body}
    )
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path, modules=(CheapAuth, Echo)) as made:
        yield made


@pytest.mark.parametrize("kind", ["session", "token"])
async def test_an_expired_token_is_nobodys_where_nobody_may_come_and_refused_elsewhere(
    echo: Server, kind: str
) -> None:
    who = await echo.new_user("ada")
    if kind == "token":
        who = await make(echo, who, expires_in="365d")
    with mock.patch.object(echo.app.control.credentials, "_clock", return_value=1e10):
        answer = await echo.call("GET", "/open/public", who)
        assert ok(answer) == {"user_id": ""}
        _says(answer, "expired", "log in again")
        answer = await echo.call("GET", "/open/missing", who)
        assert refused(answer, 404)
        _says(answer, "expired")
        for path in ("/open/private", "/echo/default", "/api/tokens"):
            answer = await echo.call("GET", path, who)
            assert _says(answer, "expired", "log in again") == refused(answer, 401)


async def test_a_malformed_token_is_nobodys_where_nobody_may_come(echo: Server) -> None:
    for text in ("x", "a.b.c", "ecloud_x", "x" * 5000):
        who = {"token": text}
        answer = await echo.call("GET", "/open/public", who)
        assert ok(answer) == {"user_id": ""}
        _says(answer, "malformed")
        for path in ("/open/private", "/echo/default"):
            answer = await echo.call("GET", path, who)
            assert _says(answer, "malformed") == refused(answer, 401)
    answer = await echo.call("GET", "/open/public")
    assert "WWW-Authenticate" not in answer.headers
    answer = await echo.call("GET", "/open/private")
    refused(answer, 401, "not logged in")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_revoked_or_forged_token_is_refused_everywhere(echo: Server) -> None:
    ada = await echo.new_user("ada")
    made = await make(echo, ada)
    ok(await echo.call("DELETE", f"/api/tokens/{made['id']}", ada))
    forged = {"token": jwt.encode({"type": "session"}, "k" * 32, "HS256", {"kid": "other"})}
    cut_off = {"token": made["token"].removeprefix("ecloud_")}
    padded, spaced = ({"token": f"{ada['token']}{end}"} for end in ("=", "\xa0"))
    later = await echo.login("ada")
    ok(await echo.call("POST", "/api/logout", later))
    for who, word in ((made, "revoked"), (later, "ended"), (forged, "not valid"),
                      (cut_off, "not valid"), (padded, "not valid")):  # fmt: skip
        for path in ("/open/public", "/open/private", "/open/missing", "/echo/default"):
            answer = await echo.call("GET", path, who)
            assert _says(answer, word, "log in again") == refused(answer, 401)
        # Whoever is logged out already may log out.
        _says(await echo.call("POST", "/api/logout", who), word)
    _says(await echo.call("GET", "/echo/default", spaced), "malformed")


def _says(answer: httpx.Response, *words: str) -> str:
    """What the answer says is wrong with the token, as RFC 6750 has it."""
    found = re.fullmatch(
        'Bearer error="invalid_token", error_description="([^"]+)"',
        answer.headers["WWW-Authenticate"],
    )
    assert found is not None
    assert all(word in found[1] for word in words), found[1]
    return found[1]


async def test_a_token_is_shown_once_and_works_until_it_is_revoked(echo: Server) -> None:
    ada = await echo.new_user("ada")
    made = await make(echo, ada, name="  ci ", expires_in="30d")
    assert set(made) == {
        "id", "name", "scopes", "expires_at", "created_at", "last_used_at", "token"
    }  # fmt: skip
    assert re.fullmatch("[0-9A-Za-z]{8,16}", made["id"])
    assert made["name"] == "ci"
    assert made["expires_at"] == made["created_at"] + 30 * DAY
    assert made["last_used_at"] == 0
    claims = jwt.decode(made["token"].removeprefix("ecloud_"), options={"verify_signature": False})
    claims.pop("jti")
    assert claims == {
        "sub": ada["user_id"],
        "user_id": ada["user_id"],
        "token_id": made["id"],
        "type": "api_token",
        "scopes": scopes_of(ada),
        "iat": made["created_at"],
        "exp": made["expires_at"],
    }
    answer = await echo.call("GET", "/echo/default", made)
    assert answer.json() == {"user_id": ada["user_id"]}
    (listed,) = (await echo.call("GET", "/api/tokens", ada)).json()
    assert listed.pop("last_used_at") >= made["created_at"]
    assert listed == {
        key: made[key] for key in ("id", "name", "scopes", "expires_at", "created_at")
    }
    answer = await echo.call("DELETE", f"/api/tokens/{made['id']}", ada)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert (await echo.call("GET", "/echo/default", made)).status_code == 401
    assert (await echo.call("GET", "/api/tokens", ada)).json() == []
    for gone in (made["id"], "x" * 600):
        answer = await echo.call("DELETE", f"/api/tokens/{gone}", ada)
        assert answer.status_code == 404


async def test_a_token_ends_when_its_maker_says(server: Server) -> None:
    ada, eve = await server.new_user("ada"), await server.new_user("eve")
    for expires_in, days in (("90d", 90), ("365d", 365), ("never", None), (None, None)):
        made = await make(server, ada, **({"expires_in": expires_in} if expires_in else {}))
        end = 0 if days is None else made["created_at"] + days * DAY
        assert made["expires_at"] == end
        text = made["token"].removeprefix("ecloud_")
        claims = jwt.decode(text, options={"verify_signature": False})
        # A library that verifies ``exp`` would refuse 0, so a token without end has none.
        assert claims.get("exp", 0) == end
    assert ok(await server.call("GET", "/api/tokens", eve)) == []


async def test_a_user_has_a_bounded_number_of_tokens_and_accounts(
    server: Server, ada: dict[str, Any]
) -> None:

    def fill(txn: Txn) -> None:
        for number in range(TOKENS_MAX - 1):
            text = f"t{number}"
            tokens.insert(
                txn, Token(text, ada["user_id"], "n", scopes_of(ada), text, 1, 0, 0, number)
            )
        for number in range(ACCOUNTS_MAX - 1):
            account = ServiceAccount(f"a{number}", ada["user_id"], "n", scopes_of(ada), 1, number)
            accounts.insert(txn, account)

    await server.app.control.records.write(fill)
    for path in ("/api/tokens", "/api/service-accounts"):
        statuses = [
            (await server.call("POST", path, ada, name="x", scopes=scopes_of(ada))).status_code
            for _ in range(2)
        ]
        assert statuses == [200, 400]


async def test_services_ask_whether_a_token_is_valid(server: Server, ada: dict[str, Any]) -> None:
    made = await make(server, ada)
    key = (server.control / "keys" / "service.key").read_text().strip()

    async def ask(token_id: str, **headers: str) -> tuple[int, Any]:
        answer = await server.http.get(f"/api/tokens/{token_id}/check", headers=headers)
        return answer.status_code, answer.json()

    assert await ask(made["id"], **{"X-Service-Key": key}) == (200, {"status": "valid"})
    assert (await ask("missing", **{"X-Service-Key": key}))[0] == 404
    for wrong in ("", "x", key[:-1], key + "x", key.swapcase()):
        assert (await ask(made["id"], **{"X-Service-Key": wrong}))[0] == 401
    assert (await ask(made["id"]))[0] == 401
    for who in (ada, server.admin):
        assert (await ask(made["id"], Authorization=f"Bearer {who['token']}"))[0] == 401
    await server.call("DELETE", f"/api/tokens/{made['id']}", ada)
    assert (await ask(made["id"], **{"X-Service-Key": key}))[0] == 404


async def test_a_service_accounts_tokens_may_what_the_account_may_now(echo: Server) -> None:
    ada = await echo.new_user("ada")
    answer = await echo.call(
        "POST", "/api/service-accounts", ada, name=" bot ", scopes=scopes_of(ada)
    )
    bot = answer.json()
    assert set(bot) == {"id", "name", "scopes", "created_at", "token_count"}
    assert (bot["name"], bot["scopes"]) == ("bot", scopes_of(ada))
    one = f"/api/service-accounts/{bot['id']}"
    assert (await echo.call("GET", one, ada)).json() == bot
    assert (await echo.call("GET", "/api/service-accounts", ada)).json() == [bot]

    made = (await echo.call("POST", f"{one}/tokens", ada, name="a", expires_in="90d")).json()
    later = (await echo.call("POST", f"{one}/tokens", ada, name="b")).json()
    assert made["scopes"] == bot["scopes"]
    assert made["expires_at"] == made["created_at"] + 90 * DAY
    assert (await echo.call("GET", "/echo/default", made)).status_code == 200
    own = await make(echo, ada)
    reported = (await echo.call("GET", "/api/tokens", ada)).json()
    assert [(row["id"], row.get("service_account_id"), row["scopes"]) for row in reported] == [
        (own["id"], None, own["scopes"]),
        (later["id"], bot["id"], bot["scopes"]),
        (made["id"], bot["id"], bot["scopes"]),
    ]
    bot["token_count"] = 2
    assert (await echo.call("GET", one, ada)).json() == bot
    assert (await echo.call("GET", "/api/service-accounts", ada)).json() == [bot]

    fewer = scopes_of(ada, "create")
    answer = await echo.call("PUT", f"{one}/scopes", ada, scopes=fewer)
    assert answer.json() == {**bot, "scopes": fewer}
    assert (await echo.call("GET", "/echo/default", made)).status_code == 403
    listed = (await echo.call("GET", f"{one}/tokens", ada)).json()
    assert [(row["name"], row["scopes"]) for row in listed] == [("b", fewer), ("a", fewer)]
    assert all("token" not in row for row in listed)

    # A single one is revoked like any other.
    answer = await echo.call("DELETE", f"/api/tokens/{later['id']}", ada)
    assert answer.status_code == 200
    assert (await echo.call("GET", "/echo/default", later)).status_code == 401

    await echo.call("PUT", f"{one}/scopes", ada, scopes=scopes_of(ada))
    assert (await echo.call("GET", "/echo/default", made)).status_code == 200
    assert (await echo.call("DELETE", one, ada)).json() == {"status": "ok"}
    assert (await echo.call("GET", "/echo/default", made)).status_code == 401
    for method in ("GET", "DELETE"):
        assert (await echo.call(method, one, ada)).status_code == 404
    assert (await echo.call("GET", "/api/service-accounts", ada)).json() == []


async def test_as_many_tokens_as_one_may_have_are_made_and_listed_in_pieces(
    server: Server, ada: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with as many scopes as it may have: no step takes long (see conftest), and to make
    one, or an account, no other is read."""
    user_id = ada["user_id"]
    scopes = {f"storage.{user_id}.files.{number:0180}": ["read"] for number in range(36)}
    check_grants(SEED_SCOPES, user_id, scopes)
    assert len(json.dumps(scopes)) > 0.9 * SCOPES_BYTES_MAX

    def fill(txn: Txn) -> None:
        for number in range(ACCOUNTS_MAX - 1):
            account = ServiceAccount(f"a{number}", user_id, "a", scopes, 1, number)
            accounts.insert(txn, account)
        for number in range(TOKENS_MAX - 1):
            kind = ({}, "a0") if number % 2 else (scopes, "")
            row = Token(f"t{number}", user_id, "t", kind[0], f"d{number}", 1, 0, 0, number, kind[1])
            tokens.insert(txn, row)

    await server.app.control.records.write(fill, seconds=60.0)
    with monkeypatch.context() as patch:
        for table in (tokens, accounts):
            patch.setattr(table, "by", None)
        body = {"name": "last", "scopes": scopes}
        made = ok(await server.call("POST", "/api/tokens", ada, **body))
        ok(await server.call("POST", "/api/service-accounts", ada, **body))
    reported = ok(await server.call("GET", "/api/tokens", ada))
    assert [row["id"] for row in reported] == [
        made["id"], *(f"t{number}" for number in reversed(range(TOKENS_MAX - 1)))
    ]  # fmt: skip
    assert all(row["scopes"] == scopes for row in reported)
    reported = ok(await server.call("GET", "/api/service-accounts/a0/tokens", ada))
    assert [row["id"] for row in reported] == [
        f"t{number}" for number in reversed(range(1, TOKENS_MAX - 1, 2))
    ]
    reported = ok(await server.call("GET", "/api/service-accounts", ada))
    assert (len(reported), reported[0]["name"]) == (ACCOUNTS_MAX, "last")


async def test_service_accounts_of_others_do_not_exist(server: Server) -> None:
    ada, eve = await server.new_user("ada"), await server.new_user("eve")
    answer = await server.call(
        "POST", "/api/service-accounts", ada, name="bot", scopes=scopes_of(ada)
    )
    one = f"/api/service-accounts/{answer.json()['id']}"
    for method, path, body in (
        ("GET", one, {}),
        ("DELETE", one, {}),
        ("PUT", f"{one}/scopes", {"scopes": scopes_of(eve)}),
        ("POST", f"{one}/tokens", {"name": "x"}),
        ("GET", f"{one}/tokens", {}),
    ):
        assert (await server.call(method, path, eve, **body)).status_code == 404, path
    assert (await server.call("GET", "/api/service-accounts", eve)).json() == []
    for body in ({"scopes": scopes_of(eve)}, {"scopes": {}}, {"scopes": "x"}, {}):
        refused(await server.call("PUT", f"{one}/scopes", ada, **body), 400)
        refused(await server.call("POST", "/api/service-accounts", ada, name="a", **body), 400)
    body = {"name": " ", "scopes": scopes_of(ada)}
    refused(await server.call("POST", "/api/service-accounts", ada, **body), 400, "name")
    assert (await server.call("GET", one, ada)).json()["scopes"] == scopes_of(ada)

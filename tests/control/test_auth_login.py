"""Login, session and logout over a real socket."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from argon2 import PasswordHasher
from auth_server import PASSWORD, CheapAuth, Server, running
from checks import refused
from harness import GFS
from hypothesis import given, settings
from hypothesis import strategies as st

import control.api.call
import control.auth.login
from control.auth.failures import wait_seconds
from control.auth.first_start import FILE_NAME
from control.identity import users as people
from control.identity.passwords import Passwords
from control.identity.rows import users
from control.records import Txn
from control.volatile import Volatile

DAY = 24 * 3600

FAIL_THREE_TIMES = """
import sys, time
from pathlib import Path
from control.auth.failures import Attempt, Failures
from control.volatile import Volatile
failures = Failures(Volatile.open(Path(sys.argv[1])), 4, 900)
for _ in range(3):
    failures.check(Attempt("ada", "", "127.0.0.1"), time.time())
    failures.note(Attempt("ada", "", "127.0.0.1"), time.time())
"""


class Counting(PasswordHasher):
    """Counts the hashes that are computed to verify a password."""

    count = 0

    def verify(self, hash: str | bytes, password: str | bytes) -> Any:
        self.count += 1
        return super().verify(hash, password)


class CountedAuth(CheapAuth):
    hasher = Counting(time_cost=1, memory_cost=8, parallelism=1)


class StrongerAuth(CheapAuth):
    hasher = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)


async def test_a_login_gives_a_session_that_works_until_the_end(server: Server) -> None:
    before = int(time.time())
    ada = await server.new_user("ada", display_name="Ada L.")
    assert set(ada) == {"username", "display_name", "user_id", "is_admin", "token"}
    answer = await server.call("GET", "/api/session", ada)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "username": "ada",
        "display_name": "Ada L.",
        "user_id": ada["user_id"],
        "is_admin": False,
    }
    claims = jwt.decode(ada["token"], options={"verify_signature": False})
    assert claims["sub"] == claims["user_id"] == ada["user_id"]
    assert claims["username"] == "ada"
    assert claims["display_name"] == "Ada L."
    assert claims["is_admin"] is False
    assert claims["type"] == "session"
    assert claims["exp"] - claims["iat"] == 24 * 3600
    assert before <= claims["iat"] <= int(time.time())
    head = jwt.get_unverified_header(ada["token"])
    assert (head["alg"], bool(head["kid"])) == ("HS256", True)
    other = await server.login("ada")
    # Again, with a token that has ended, or with none, there is nothing to do.
    for who in (ada, ada, {"token": "x"}, None):
        answer = await server.call("POST", "/api/logout", who)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert (await server.call("GET", "/api/session", ada)).status_code == 401
    assert (await server.call("GET", "/api/session", other)).status_code == 200
    # A browser sends the cookie for the page of a stranger, too.
    cookie = {"Cookie": f"token={other['token']}"}
    assert (await server.http.post("/api/logout", headers=cookie)).status_code == 200
    assert (await server.call("GET", "/api/session", other)).status_code == 200


async def test_a_new_password_ends_all_other_sessions_and_no_token(tmp_path: Path) -> None:
    new = "another horse"
    async with running(tmp_path) as server:
        ada, other = await server.new_user("ada"), await server.login("ada")
        scopes = {f"storage.{ada['user_id']}": ["read"]}
        made = (await server.call("POST", "/api/tokens", ada, name="x", scopes=scopes)).json()
        for body, status, word in (
            ({"old": "wrong one", "new": new}, 403, "old"),
            ({"old": PASSWORD, "new": "short"}, 400, "new"),
            ({"old": PASSWORD, "new": PASSWORD}, 400, "new"),
            ({"old": "", "new": new}, 400, "old"),
            ({"new": new}, 400, "old"),
        ):
            answer = await server.call("PUT", "/api/password", ada, **body)
            assert answer.status_code == status
            assert answer.json()["error"].startswith(word)
            assert (await server.call("GET", "/api/session", other)).status_code == 200
        answer = await server.call("PUT", "/api/password", ada, old=PASSWORD, new=new)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    async with running(tmp_path) as server:
        for who, status in ((ada, 200), (other, 401), (made, 200)):
            assert (await server.call("GET", "/api/session", who)).status_code == status
        assert await server.login_status("ada", PASSWORD) == 401
        await server.login("ada", new)


async def test_a_new_password_of_the_administrator_ends_the_made_up_one(server: Server) -> None:
    file = server.control / FILE_NAME
    old = file.read_text().strip()
    answer = await server.call("PUT", "/api/password", server.admin, old=old, new=PASSWORD)
    assert answer.status_code == 200
    assert not file.exists(), "nobody is shown a password that is none"


async def test_guesses_at_the_old_password_are_failed_logins(tmp_path: Path) -> None:
    async with running(tmp_path, login_failures=2) as server:
        ada = await server.new_user("ada")
        for status in (403, 403, 429):
            answer = await server.call(
                "PUT", "/api/password", ada, old="a guess", new="long enough"
            )
            assert answer.status_code == status
        answer = await server.call("PUT", "/api/password", ada, old=PASSWORD, new="long enough")
        assert (answer.status_code, "Retry-After" in answer.headers) == (429, True)


async def test_both_failures_cost_a_hash_and_over_the_limit_nothing_does(tmp_path: Path) -> None:
    async with running(tmp_path, modules=(CountedAuth,), login_failures=1) as server:
        await server.new_user("ada")
        hasher = CountedAuth.hasher
        assert isinstance(hasher, Counting)
        answers = []
        for username in ("ada", "bob"):
            hasher.count = 0
            answer = await server.call("POST", "/api/login", username=username, password="no")
            assert (answer.status_code, hasher.count) == (401, 1)
            answers.append((answer.content, set(answer.headers)))
        assert answers[0] == answers[1]
        hasher.count = 0
        assert (await server.login_status("ada"), hasher.count) == (429, 0)


async def test_twenty_failures_are_allowed_and_any_number_of_successes(server: Server) -> None:
    await server.new_user("ada")
    for _ in range(25):
        await server.login("ada")
    for _ in range(20):
        assert await server.login_status("ada", "no") == 401
    for password in ("no", PASSWORD):
        answer = await server.call("POST", "/api/login", username="ada", password=password)
        refused(answer, 429)
        assert 1 <= int(answer.headers["Retry-After"]) <= 15 * 60


async def test_no_more_failures_than_the_limit_are_reported_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, login_failures=5) as server:
        statuses: list[int] = []

        async def guess() -> None:
            answer = await server.call("POST", "/api/login", username="ada", password="no")
            statuses.append(answer.status_code)
            assert answer.status_code == 401 or int(answer.headers["Retry-After"]) > 0

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(guess)
        assert sorted(statuses) == [401] * 5 + [429] * 15


async def test_other_records_of_users_displace_no_failed_logins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer for each id that one makes up, until the file is full and begun anew."""
    small = functools.partial(Volatile.open, map_bytes=1024**2)
    monkeypatch.setattr(Volatile, "open", small)
    async with running(tmp_path, login_failures=1) as server:
        assert await server.login_status("ada", "no") == 401
        facts = server.app.control.volatile
        facts.put("transfer", "first", b"", ttl_seconds=DAY)
        for number in range(100):
            facts.put("transfer", str(number), bytes(32 * 1024), ttl_seconds=DAY)
        assert facts.get("transfer", "first", bytes) is None
        assert await server.login_status("ada", "no") == 429


@pytest.mark.real
async def test_workers_count_failures_together(tmp_path: Path) -> None:
    async with running(tmp_path, login_failures=4) as server:
        place = str(server.control / "logins")
        command = [sys.executable, "-c", FAIL_THREE_TIMES, place]
        await trio.run_process(command)
        for username, status in (("ada", 401), ("ada", 429), ("bob", 401)):
            assert await server.login_status(username, "no") == status


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How late each answer to a login came; the test does not wait for it."""
    found: list[float] = []

    async def note(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(control.auth.login, "wait", note)
    return found


async def login_at(server: Server, username: str, password: str, address: str) -> int:
    body = {"username": username, "password": password}
    headers = {"X-Forwarded-For": address} if address else {}
    return (await server.http.post("/api/login", json=body, headers=headers)).status_code


async def test_nobody_is_locked_out_by_guesses_from_elsewhere(
    tmp_path: Path, waited: list[float]
) -> None:
    """Thousands of guessers, each at an address of his own."""

    async def login(password: str, address: str, username: str = "ada") -> int:
        return await login_at(server, username, password, address)

    proxy = {"trusted_proxies": "127.0.0.1"}
    async with running(tmp_path, login_failures=2, **proxy) as server:
        await server.new_user("ada")
        assert await login(PASSWORD, "2001:db8::1") == 200
        for username in ("ada", "nobody"):
            waited.clear()
            for number in range(8):
                assert await login("guess", f"192.0.2.{number}", username) == 401
            assert waited == [0, 0, 0, 0.5, 1, 2, 4, 8], "an unknown user is no faster"
        waited.clear()
        # At an address that is known nobody waits; at another one for a while.
        assert await login(PASSWORD, "2001:db8::ffff") == 200
        assert waited == []
        assert await login(PASSWORD, "198.51.100.1") == 200
        assert waited == [8]
        assert await login(PASSWORD, "198.51.100.1") == 200
        assert waited == [8], "by now it is known"
        # At an address that is known guesses are guesses.
        for status in (401, 401, 429):
            assert await login("guess", "2001:db8::2") == status
        assert await login(PASSWORD, "2001:db8::3") == 429
        assert await login(PASSWORD, "2001:db8:0:1::3") == 200
    # What is known outlives a restart, and logging out.
    async with running(tmp_path, login_failures=2, **proxy) as server:
        waited.clear()
        assert await login(PASSWORD, "198.51.100.1") == 200
        assert waited == []


async def test_guesses_wait_before_they_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So they take no turn meanwhile, and no memory. One that knows the user's place waits after
    it: a right password does not."""
    order: list[str] = []

    async def wait(seconds: float) -> None:
        order.append("late" if seconds else "at once")

    real = Passwords.verify

    async def verify(self: Passwords, *words: Any) -> bool:
        order.append("hash")
        return await real(self, *words)

    monkeypatch.setattr(control.auth.login, "wait", wait)
    monkeypatch.setattr(Passwords, "verify", verify)
    async with running(tmp_path, login_failures=1, trusted_proxies="127.0.0.1") as server:
        await server.new_user("ada")

        async def guess(username: str, address: str) -> list[str]:
            order.clear()
            assert await login_at(server, username, "guess", address) == 401
            return list(order)

        for username in ("ada", "nobody"):
            assert await guess(username, "192.0.2.1") == ["at once", "hash"]
            assert await guess(username, "192.0.2.2") == ["at once", "hash"]
            assert await guess(username, "192.0.2.3") == ["late", "hash"]
        assert await guess("ada", "") == ["hash", "late"]


async def test_names_that_are_made_up_delay_their_address(
    tmp_path: Path, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.auth.failures, "ADDRESS_UNDELAYED_MAX", 3)
    async with running(tmp_path, trusted_proxies="127.0.0.1") as server:
        login = functools.partial(login_at, server)
        await server.new_user("ada")
        assert await login("ada", PASSWORD, "192.0.2.1") == 200
        waited.clear()
        for number in range(6):
            assert await login(f"made-up-{number}", "guess", "192.0.2.1") == 401
        assert waited == [0, 0, 0, 0, 0.5, 1], "late, and not refused"
        waited.clear()
        assert await login("ada", PASSWORD, "192.0.2.1") == 200
        assert waited == [], "she has logged in from there before"
        assert await login("made-up", "guess", "192.0.2.2") == 401
        assert waited == [0]


@pytest.mark.real
async def test_a_new_password_clears_the_counts(tmp_path: Path, waited: list[float]) -> None:
    async with running(tmp_path, login_failures=1) as server:
        ada = await server.new_user("ada")

        guess = functools.partial(server.login_status, "ada", "guess")
        assert [await guess(), await guess()] == [401, 429]
        command = [*GFS, "control", "set-password", "ada", "--state", str(tmp_path)]
        await trio.run_process(command, stdin=b"another horse", capture_stdout=True)
        assert [await guess(), await guess()] == [401, 429]
        assert max(waited) == 0
        assert (await server.call("GET", "/api/session", ada)).status_code == 401


async def test_places_of_a_user_are_bounded_and_go_with_him(
    server: Server, ada: dict[str, Any]
) -> None:
    records = server.app.control.records

    def fill(txn: Txn) -> None:
        for number in range(1, 100):
            people.note_place(txn, ada["user_id"], f"192.0.2.{number}", DAY * number)

    def known(txn: Txn) -> list[int]:
        return [
            number
            for number in range(100)
            if people.is_place(txn, ada["user_id"], f"192.0.2.{number}")
        ]

    await records.write(fill)
    with records.read() as reading:
        assert len(known(reading)) == people.PLACES_MAX - 1  # and where he is today
        assert known(reading)[-1] == 99
    await server.call("DELETE", f"/admin/users?id={ada['user_id']}", server.admin)
    with records.read() as reading:
        assert known(reading) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1000)), st.integers(1, 30), st.floats(1, 1000), st.floats(0, 1000))
def test_after_retry_after_a_client_may_try_again(
    times: list[float], limit: int, window: float, now: float
) -> None:
    wait = wait_seconds(times, limit, window, now)
    recent = [at for at in times if abs(now - at) < window]
    assert (wait > 0) == (len(recent) >= limit)
    if wait:
        # A thousandth for the rounding of sums of seconds.
        later = now + wait + 0.001
        assert len([at for at in recent if later - at < window]) < limit


async def test_a_password_of_old_parameters_is_hashed_again_by_a_login(tmp_path: Path) -> None:
    def stored() -> str:
        with server.app.control.records.read() as txn:
            user = users.find(txn, "username", "ada")
        assert user is not None
        return user.password

    async with running(tmp_path) as server:
        await server.new_user("ada")
        before = stored()
    async with running(tmp_path, modules=(StrongerAuth,)) as server:
        assert stored() == before
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(server.login, "ada")
        assert stored() != before
        assert not StrongerAuth.hasher.check_needs_rehash(stored())
        await server.login("ada")


async def test_a_name_is_the_same_in_composed_and_decomposed_form(server: Server) -> None:
    made = await server.new_user("Zoe\u0308")
    assert made["username"] == "Zo\u00eb"
    await server.login("Zo\u00eb")
    await server.login("Zoe\u0308")
    again = await server.call(
        "POST", "/admin/users", server.admin, username="Zo\u00eb", password=PASSWORD
    )
    assert again.status_code == 409


async def test_who_may_be_anybody_sends_less(server: Server) -> None:
    body = b'{"name": "x", "pad": "' + b"x" * 64 * 1024 + b'"}'
    assert (await server.http.post("/api/login", content=body)).status_code == 413
    headers = {"Authorization": f"Bearer {server.admin['token']}"}
    answer = await server.http.post("/api/tokens", content=body, headers=headers)
    assert answer.status_code == 400, "a session's body may be longer, and is read"


async def test_a_body_that_drips_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.api.call, "JSON_SECONDS", 0.05)
    async with running(tmp_path, body_stall_seconds=3600.0) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.http.base_url.port or 0)
        async with stream:
            head = b"POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
            await stream.send_all(head + b"{")
            answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":' in answer


async def test_answers_with_secrets_are_kept_by_no_cache(server: Server) -> None:
    token = {"token": server.admin["token"]}
    for path, params in (("/api/session", token), ("/api/session", {"token": "x"})):
        answer = await server.http.get(path, params=params)
        assert answer.headers["Cache-Control"] == "no-store"


async def test_sessions_and_their_ends_outlive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        ada, ended = await server.new_user("ada"), await server.login("ada")
        await server.call("POST", "/api/logout", ended)
    async with running(tmp_path) as server:
        assert (await server.call("GET", "/api/session", ada)).status_code == 200
        assert (await server.call("GET", "/api/session", ended)).status_code == 401

"""Users and sessions, as administrators see them; the first administrator."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import httpx
import jwt
import pytest
from auth_server import PASSWORD, CheapAuth, Server, running
from checks import ok, refused
from limits import HANG_SECONDS

import control.recent
from control.api import Module, UserDeletion
from control.auth import take_first_password
from control.auth.first_start import FILE_NAME, generate_password, make_first_admin
from control.errors import Conflict
from control.identity import ids
from control.identity import users as people
from control.identity.passwords import Passwords
from control.identity.rows import IDENTITY, users
from control.records import Records, Schema, Txn
from control.records.schemas import encoded
from gfs.errors import StartupError
from gfs.variables import ADMIN_PASSWORD

CHEAP = CheapAuth.hasher

MAKE_FIRST_ADMIN = """
import sys, trio
from pathlib import Path
from argon2 import PasswordHasher
from control.auth.first_start import make_first_admin
from control.identity.passwords import Passwords
from control.identity.rows import IDENTITY
from control.records import Records
place = Path(sys.argv[1])
records = Records.open(place / "records", [IDENTITY], sync=False)
passwords = Passwords(1, 1, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
print("ready", flush=True)
sys.stdin.readline()
print(trio.run(make_first_admin, records, passwords, place, "admin"))
"""


class Notes(Module):
    """Has something to do when a user is deleted, or a reason not to let him."""

    name = "notes"
    deleted: ClassVar[list[str]] = []
    fails: ClassVar[bool] = False

    @staticmethod
    def _forget(txn: Txn, user_id: str) -> None:
        if Notes.fails:
            raise OSError("the notes are gone")
        Notes.deleted.append(user_id)

    on_user_deleted: ClassVar[UserDeletion | None] = _forget


async def test_users_are_made_listed_and_deleted(server: Server) -> None:
    body = {"username": " bob ", "password": PASSWORD, "is_admin": True, "unknown": 1}
    answer = await server.call("POST", "/admin/users", server.admin, **body)
    bob = answer.json()
    assert set(bob) == {
        "id", "user_id", "username", "display_name", "is_admin", "created_at"
    }  # fmt: skip
    assert bob["user_id"] == bob["id"]
    assert (bob["username"], bob["display_name"], bob["is_admin"]) == ("bob", "bob", True)
    assert len(bob["id"]) == 6
    assert bob["id"].isalnum()
    await server.new_user("ada", display_name=" Ada ")
    listed = (await server.call("GET", "/admin/users", server.admin)).json()
    assert [row["username"] for row in listed] == ["ada", "admin", "bob"]
    assert listed[2] == bob
    assert listed[0]["display_name"] == "Ada"
    answer = await server.call("DELETE", f"/admin/users?id={bob['user_id']}", server.admin)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    listed = (await server.call("GET", "/admin/users", server.admin)).json()
    assert [row["username"] for row in listed] == ["ada", "admin"]


async def test_what_administrators_may_not_do_either(server: Server) -> None:
    await server.new_user("ada")
    me = server.admin["user_id"]
    for path, status in (
        ("/admin/users", 400),
        ("/admin/users?id=", 400),
        (f"/admin/users?id={me}", 400),
        ("/admin/users?id=Nobody", 404),
    ):
        refused(await server.call("DELETE", path, server.admin), status)
    for username, status in (("ada", 409), ("a\x1bb", 400)):
        body = {"username": username, "password": PASSWORD}
        refused(await server.call("POST", "/admin/users", server.admin, **body), status)
    assert len((await server.call("GET", "/admin/users", server.admin)).json()) == 2


async def test_a_deleted_user_is_out_at_once_in_every_module(tmp_path: Path) -> None:
    Notes.deleted, Notes.fails = [], False
    async with running(tmp_path, modules=(CheapAuth, Notes)) as server:
        ada = await server.new_user("ada")
        scopes = {f"storage.{ada['user_id']}": ["read"]}
        made = (await server.call("POST", "/api/tokens", ada, name="x", scopes=scopes)).json()
        path = f"/admin/users?id={ada['user_id']}"

        Notes.fails = True
        assert (await server.call("DELETE", path, server.admin)).status_code == 500
        assert (await server.call("GET", "/api/session", ada)).status_code == 200
        assert len((await server.call("GET", "/api/tokens", ada)).json()) == 1

        Notes.fails = False
        assert (await server.call("DELETE", path, server.admin)).status_code == 200
        assert Notes.deleted == [ada["user_id"]]
        listed = ok(await server.call("GET", "/admin/sessions", server.admin))
        assert {row["username"] for row in listed} == {"admin"}
        assert (await server.call("GET", "/api/session", ada)).status_code == 401
        assert (await server.call("GET", "/api/session", made)).status_code == 401
        assert await server.login_status("ada") == 401
        again = await server.new_user("ada")
        assert again["user_id"] != ada["user_id"]
        assert (await server.call("GET", "/api/session", ada)).status_code == 401


async def test_the_last_administrator_cannot_be_deleted(server: Server) -> None:
    """Two who delete each other at once come to this: each still was one when asked."""
    bob = await server.new_user("bob", is_admin=True)
    records = server.app.control.records
    await records.write(lambda txn: people.delete(txn, server.admin["user_id"], []))
    with pytest.raises(Conflict, match="last administrator"):
        await records.write(lambda txn: people.delete(txn, bob["user_id"], []))
    assert (await server.call("GET", "/admin/users", bob)).status_code == 200


async def test_sessions_are_listed_newest_first_with_who_and_where(tmp_path: Path) -> None:
    async with running(tmp_path, session_seconds=3600.0) as server:
        ada = await server.new_user("ada", display_name="Ada L.")
        listed = (await server.call("GET", "/admin/sessions", server.admin)).json()
        assert {row["username"] for row in listed} == {"admin", "ada"}
        row = next(row for row in listed if row["username"] == "ada")
        assert set(row) == {
            "id", "user_id", "username", "display_name", "created_at", "expires_at",
            "ip_address", "address",
        }  # fmt: skip
        assert row["display_name"] == "Ada L."
        assert row["user_id"] == ada["user_id"]
        assert row["expires_at"] == row["created_at"] + 3600
        assert row["address"] == row["ip_address"] == "127.0.0.1"
        times = [row["created_at"] for row in listed]
        assert times == sorted(times, reverse=True)


async def test_an_administrator_ends_one_session(server: Server) -> None:
    first, second = await server.new_user("ada"), await server.login("ada")
    ids = [
        jwt.decode(each["token"], options={"verify_signature": False})["jti"]
        for each in (first, second)
    ]
    listed = (await server.call("GET", "/admin/sessions", server.admin)).json()
    assert set(ids) < {row["id"] for row in listed}
    path = f"/admin/sessions?id={ids[0]}"
    assert (await server.call("DELETE", path, server.admin)).json() == {"status": "ok"}
    assert (await server.call("GET", "/api/session", first)).status_code == 401
    assert (await server.call("GET", "/api/session", second)).status_code == 200
    assert (await server.call("DELETE", path, server.admin)).status_code == 404
    answer = await server.call("DELETE", "/admin/sessions", server.admin)
    assert answer.status_code == 400


async def test_names_that_people_take_for_the_same_are_one(server: Server) -> None:
    await server.new_user("Ada.B-1_x+y@example.org")
    for first in (" A", "a", "\uff21"):
        name = f"{first}da.B-1_x+y@example.org "
        answer = await server.call(
            "POST", "/admin/users", server.admin, username=name, password=PASSWORD
        )
        assert answer.status_code == 409, name


async def test_names_and_passwords_of_before_the_rules_go_on(server: Server) -> None:

    def insert(txn: Txn) -> None:
        for name in ("a/b", "A/B"):
            people.users.insert(
                txn, people.User(ids.user_id(), name, name, CHEAP.hash("x"), False, 1)
            )

    await server.app.control.records.write(insert)
    for name in ("a/b", "A/B"):
        who = await server.login(name, "x")
        body = {"old": "x", "new": "y"}
        assert (await server.call("PUT", "/api/password", who, **body)).status_code == 400
        body["new"] = PASSWORD
        assert (await server.call("PUT", "/api/password", who, **body)).status_code == 200
        await server.login(name, PASSWORD)


async def test_the_first_password_is_shown_once(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        file = server.control / FILE_NAME
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        password = take_first_password(server.control)
        assert password is not None
        assert len(password) >= 20
        assert take_first_password(server.control) is None
        assert not file.exists()
        admin = await server.login("admin", password)
        assert (admin["username"], admin["is_admin"]) == ("admin", True)
    async with running(tmp_path) as server:
        assert take_first_password(server.control) is None
        await server.login("admin", password)


async def test_the_password_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_PASSWORD, "given to it")
    async with running(tmp_path, admin_username="root") as server:
        assert take_first_password(server.control) is None
        await server.login("root", "given to it")
    monkeypatch.setenv(ADMIN_PASSWORD, "another one")
    async with running(tmp_path, admin_username="root") as server:
        await server.login("root", "given to it")
        assert await server.login_status("root", "another one") == 401


async def test_a_crash_between_password_and_user_is_made_good(tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.mkdir(mode=0o700)
    (control / FILE_NAME).write_text("of a start that died\n")
    async with running(tmp_path) as server:
        password = take_first_password(server.control)
        assert password not in (None, "of a start that died")
        assert password is not None
        await server.login("admin", password)


async def test_a_stale_password_does_not_outlive_a_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "control"
    control.mkdir(mode=0o700)
    (control / FILE_NAME).write_text("of a start that died\n")
    monkeypatch.setenv(ADMIN_PASSWORD, "given to it")
    records = Records.open(control / "records", [IDENTITY], sync=False)
    assert await make_first_admin(records, Passwords(1, 1, CHEAP), control, "admin")
    assert take_first_password(control) is None
    records.close()


@pytest.mark.real
def test_processes_that_start_at_once_make_one_administrator(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE_FIRST_ADMIN, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != ADMIN_PASSWORD},
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    reported = sorted(process.communicate(timeout=HANG_SECONDS)[0].strip() for process in processes)
    assert reported == ["False", "False", "True"]
    records = Records.open(tmp_path / "records", [IDENTITY], sync=False)
    with records.read() as txn:
        (admin,) = users.scan(txn)
    records.close()
    password = take_first_password(tmp_path)
    assert password is not None
    assert CHEAP.verify(admin.password, password), "the file is of the one who won"


async def test_a_first_password_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADMIN_PASSWORD, "x" * 1025)
    records = Records.open(tmp_path / "records", [IDENTITY], sync=False)
    with pytest.raises(StartupError, match="password"):
        await make_first_admin(records, Passwords(1, 1, CHEAP), tmp_path, "admin")
    with records.read() as txn:
        assert users.count(txn) == 0
    records.close()


def test_generated_passwords_differ_and_are_easy_to_copy() -> None:
    made = {generate_password() for _ in range(100)}
    assert len(made) == 100
    for password in made:
        assert len(password) >= 20
        assert not set(password) - set("abcdefghijkmnpqrstuvwxyz23456789-")


async def test_a_first_password_that_is_not_utf8_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADMIN_PASSWORD, os.fsdecode(b"correct \xff horse"))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(tmp_path):
            pass
    assert caught.group_contains(StartupError, match="password: not UTF-8")


async def test_another_user_is_changed(server: Server, ada: dict[str, Any]) -> None:
    path = f"/admin/users?id={ada['user_id']}"

    async def change(**body: Any) -> httpx.Response:
        return await server.call("PUT", path, server.admin, **body)

    changed = (await change(display_name="Ada L.")).json()
    assert (changed["username"], changed["display_name"]) == ("ada", "Ada L.")
    assert (await server.call("GET", "/api/session", ada)).status_code == 200
    assert (await change(is_admin=True)).json()["is_admin"]
    assert (await server.call("GET", "/api/session", ada)).status_code == 401
    again = await server.login("ada")
    assert again["is_admin"]
    mine = f"/admin/users?id={server.admin['user_id']}"
    for body in ({"password": "another password"}, {"is_admin": False}):
        assert (await server.call("PUT", mine, server.admin, **body)).status_code == 400
    assert (await server.call("PUT", mine, server.admin, display_name="Root")).status_code == 200
    for password in ("short", "", 7):
        assert (await change(password=password)).status_code == 400
    assert (await change(password="a new pass word")).status_code == 200
    assert (await server.call("GET", "/api/session", again)).status_code == 401
    await server.login("ada", "a new pass word")
    assert not (await change(is_admin=False)).json()["is_admin"]
    gone = await server.call("PUT", "/admin/users?id=nobody", server.admin, is_admin=True)
    assert gone.status_code == 404


async def test_the_last_administrator_stays_one(server: Server) -> None:
    other = await server.new_user("other", is_admin=True)
    mine = f"/admin/users?id={server.admin['user_id']}"
    assert (await server.call("PUT", mine, other, is_admin=False)).status_code == 200
    own = f"/admin/users?id={other['user_id']}"
    assert (await server.call("PUT", own, other, is_admin=False)).status_code == 400


async def test_an_old_process_is_not_ready_and_refuses_changes_for_now(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whatever is before it asks a process of the newer release."""
    monkeypatch.setattr(control.recent, "RECENT_SECONDS", 0.0)
    ok(await server.call("GET", "/readyz"))
    records = server.app.control.records
    upgraded = encoded(Schema("identity", 2, IDENTITY.tables))
    await records.write(lambda txn: txn.raw.put(b"identity", upgraded, db=records._tables._stored))
    body = {"username": "ada", "password": PASSWORD}
    answer = await server.call("POST", "/admin/users", server.admin, **body)
    refused(answer, 503, "try again later")
    assert answer.headers["Retry-After"]
    answer = await server.call("GET", "/readyz")
    refused(answer, 503, "another release has changed the tables of 'identity'")
    ok(await server.call("GET", "/admin/users", server.admin))


async def test_a_limit_that_there_is_not_is_refused_by_name(server: Server) -> None:
    path = f"/admin/quotas?id={server.admin['user_id']}"
    before = ok(await server.call("GET", path, server.admin))
    answer = await server.call("PUT", path, server.admin, files=1, flies=2)
    refused(answer, 400, "flies", "no such field")
    assert ok(await server.call("GET", path, server.admin)) == before

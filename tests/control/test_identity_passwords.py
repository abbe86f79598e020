"""Passwords: the same work for everybody, a few at a time, a bounded queue."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from argon2 import PasswordHasher, Type
from limits import HANG_SECONDS

from control.auth.shapes import NewPassword
from control.cli.commands import set_password
from control.errors import BadRequest, Unavailable
from control.identity.passwords import (
    PASSWORD_RULE,
    Passwords,
    check_password,
    make_hasher,
    new_password,
)
from control.settings import ControlSettings
from gfs.errors import SettingsError

ROOT = Path(__file__).parents[2]
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Counting(PasswordHasher):
    """Notes the parameters of every hash that is computed."""

    def __init__(self, **more: Any) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1, **more)
        self.verified: list[str] = []

    def verify(self, hash: str | bytes, password: str | bytes) -> Any:
        self.verified.append(str(hash).rpartition("$")[0].rpartition("$")[0])
        return super().verify(hash, password)


class Stuck(PasswordHasher):
    """Holds every hash until it is let go."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.go = threading.Event()
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def hash(self, password: str | bytes, **more: Any) -> str:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.go.wait(HANG_SECONDS)
        with self._lock:
            self.at_once -= 1
        return super().hash(password, **more)


@pytest.mark.parametrize("refused", ["", "short", "aaaabbbbccc", "Alice.Smith"])
def test_the_rule_for_new_passwords_is_one_text(refused: str) -> None:
    with pytest.raises(BadRequest) as caught:
        new_password(refused, "alice.smith", "new")
    assert str(caught.value) == (f"new: {PASSWORD_RULE}" if refused else str(caught.value))
    assert new_password("aaaabbbcd", "alice.smith") == "aaaabbbcd"


def test_it_is_the_same_wherever_it_is_written() -> None:
    texts = {
        "the OpenAPI document": str(NewPassword),
        "the help of set-password": str(set_password.help),
        **{
            path: (ROOT / path).read_text()
            for path in ("console/src/texts.ts", "docs/rest.md", "docs/settings.md")
        },
    }
    for name, text in texts.items():
        plain = " ".join(text.lower().split())
        assert PASSWORD_RULE in plain, name
        assert plain.count("8 characters") == plain.count(PASSWORD_RULE), name


def test_production_takes_what_rfc_9106_recommends() -> None:
    hasher = make_hasher(ControlSettings())
    assert hasher.type is Type.ID
    assert (hasher.memory_cost, hasher.time_cost, hasher.parallelism) == (65536, 3, 4)


@pytest.mark.parametrize(
    ("name", "value"), [("memory_mib", 7), ("memory_mib", 4097), ("passes", 0), ("passes", 101)]
)
def test_neither_too_little_nor_too_much_is_asked_of_a_hash(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"password_{name}"):
        ControlSettings(**{f"password_{name}": value}).check()


def test_a_hash_has_the_parameters_of_the_settings() -> None:
    hasher = make_hasher(ControlSettings(password_memory_mib=9, password_passes=1))
    assert "$m=9216,t=1," in hasher.hash("x")


async def test_a_password_is_proven_by_its_hash() -> None:
    passwords = Passwords(1, 4, CHEAP)
    stored = await passwords.hash("geheim ü")
    assert stored.startswith("$argon2id$")
    assert await passwords.verify(stored, "geheim ü")
    assert not await passwords.verify(stored, "geheim u")
    assert stored != await passwords.hash("geheim ü")


async def test_an_unknown_user_costs_the_same_hash_as_a_wrong_password() -> None:
    hasher = Counting()
    passwords = Passwords(1, 4, hasher)
    stored = await passwords.hash("right")
    assert not await passwords.verify(stored, "wrong")
    assert not await passwords.verify(None, "wrong")
    wrong, unknown = hasher.verified
    assert wrong == unknown
    assert "m=8,t=1,p=1" in wrong


async def test_no_password_is_that_of_nobody() -> None:
    passwords = Passwords(1, 4, CHEAP)
    await passwords.prepare()
    assert not await passwords.verify(None, "")


async def test_a_stored_password_that_is_none_never_matches() -> None:
    passwords = Passwords(1, 4, CHEAP)
    for stored in ("", "x", "$argon2id$v=19$m=8,t=1,p=1$AAAA$"):
        assert not await passwords.verify(stored, "x")


async def test_other_parameters_are_outdated() -> None:
    passwords = Passwords(1, 4, CHEAP)
    stored = await passwords.hash("x")
    assert not passwords.is_outdated(stored)
    assert Passwords(1, 4, PasswordHasher()).is_outdated(stored)


async def test_few_at_once_and_a_bounded_queue() -> None:
    hasher = Stuck()
    passwords = Passwords(2, 3, hasher)
    done: list[str] = []

    async def one(address: str) -> None:
        done.append(await passwords.hash("x", address))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(one, f"192.0.2.{number}")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unavailable) as refused:
            await passwords.hash("x", "192.0.2.5")
        assert refused.value.headers["Retry-After"]
        hasher.go.set()
    assert len(done) == 5
    assert hasher.most_at_once <= 2
    await passwords.hash("there is room again")


async def test_who_waits_for_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.identity.passwords.TURN_SECONDS", 0.01)
    hasher = Stuck()
    passwords = Passwords(1, 4, hasher)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passwords.hash, "first")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unavailable):
            await passwords.hash("second", "192.0.2.2")
        hasher.go.set()
    assert not passwords._waiting
    assert not passwords._inside


async def test_one_address_leaves_places_to_others() -> None:
    hasher = Stuck()
    passwords = Passwords(2, 6, hasher)

    async def taken_by(*addresses: str) -> list[str]:
        """Those who got a place, of all who came one after the other."""
        refused: list[str] = []

        async def one(address: str) -> None:
            try:
                await passwords.hash("x", address)
            except Unavailable:
                refused.append(address)

        for address in addresses:
            nursery.start_soon(one, address)
            await trio.testing.wait_all_tasks_blocked()
        return [address for address in addresses if address not in refused]

    async with trio.open_nursery() as nursery:
        assert await taken_by("a", "a", "a", "a") == ["a"] * 4
        assert await taken_by("a") == []
        # Of IPv6 whoever has a network has all addresses in it.
        assert await taken_by("2001:db8::1", "2001:db8::2") == ["2001:db8::1", "2001:db8::2"]
        assert await taken_by("2001:db8::3") == []
        assert await taken_by("2001:db8:0:1::1") == ["2001:db8:0:1::1"]
        assert await taken_by("b") == ["b"]
        hasher.go.set()


async def test_addresses_are_served_in_turn() -> None:
    """Whoever has many logins waiting does not make others wait for all of them."""
    hasher = Stuck()
    passwords = Passwords(1, 20, hasher)
    served: list[str] = []

    async def one(address: str) -> None:
        await passwords.hash("x", address)
        served.append(address)

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            for address in "aaaaaabbc":
                nursery.start_soon(one, address)
                await trio.testing.wait_all_tasks_blocked()
            hasher.go.set()
    assert "".join(served) == "a" + "abc" + "ab" + "aaa"
    assert not passwords._waiting
    assert not passwords._inside


async def test_networks_that_are_always_under_way_keep_nobody_else_out() -> None:
    """In the first moment they may: each had the places that were left to others by then."""
    hasher = Stuck()
    passwords = Passwords(2, 64, hasher)
    served = 0

    async def one(network: str) -> None:
        nonlocal served
        with contextlib.suppress(Unavailable):
            await passwords.hash("x", network)
            served += 1
            for each in "abcdefg":
                nursery.start_soon(one, each)

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            for network in "abcdefg":
                for _ in range(40):
                    nursery.start_soon(one, network)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Unavailable):
                await passwords.hash("x", "in the first moment")
            hasher.go.set()
            while served < 200:  # noqa: ASYNC110
                await trio.sleep(0.01)
            for number in range(9):
                await passwords.hash("x", f"another {number}")
            nursery.cancel_scope.cancel()


async def test_no_turn_is_lost_with_who_leaves_as_it_comes() -> None:
    passwords = Passwords(1, 4, CHEAP)
    await passwords._turn("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passwords._turn, "b")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        passwords._pass_on()
    with trio.fail_after(HANG_SECONDS):
        await passwords._turn("c")
    assert not passwords._waiting


async def test_who_leaves_the_queue_makes_room() -> None:
    hasher = Stuck()
    passwords = Passwords(1, 1, hasher)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passwords.hash, "first")
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await passwords.hash("second", "192.0.2.2")
        assert scope.cancelled_caught
        nursery.start_soon(passwords.hash, "third", "192.0.2.3")
        await trio.testing.wait_all_tasks_blocked()
        hasher.go.set()


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize("password", ["", "x" * 1025, "ü" * 513])
def test_a_password_has_1_to_1024_bytes(password: str) -> None:
    with pytest.raises(BadRequest, match="password"):
        check_password(password)
    assert check_password("x" * 1024)
    assert check_password(" ") == " "

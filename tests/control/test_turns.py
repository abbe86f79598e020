"""Turns of those who change one thing, and the lock that several machines have for that."""

from __future__ import annotations

import secrets
import types
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import trio
import trio.testing

from control.api import Control
from control.errors import Unavailable
from control.records import SharedLock
from control.storage.turns import Turns, completions

T = TypeVar("T")


class _PostgreSQL:
    """Answers when the test lets it, and at once at the end."""

    session = 1

    def __init__(self) -> None:
        self.work: Callable[[_PostgreSQL], object] | None = None
        self.meanwhile: Callable[[], None] = bool
        self.is_held = False

    async def ask(self, work: Callable[[_PostgreSQL], T], *, always: bool = False) -> T:
        if self.work is None:
            self.work = work
            await _without_end()
        return work(self)

    def try_lock(self, name: str) -> bool:
        self.meanwhile()
        self.is_held = True
        return True

    def unlock(self, name: str) -> None:
        self.is_held = False


@types.coroutine
def _without_end() -> Generator[None, None, None]:
    while True:
        yield


@pytest.mark.parametrize("given_up", ["before", "meanwhile", "after"])
async def test_a_lock_is_not_kept_that_was_given_up(given_up: str) -> None:
    """Before it is taken, while it is taken in another thread, and with its answer under way."""
    postgresql = _PostgreSQL()
    lock = SharedLock(postgresql, "work")
    taking = lock.take()
    taking.send(None)
    if given_up == "before":
        taking.close()
    if given_up == "meanwhile":
        postgresql.meanwhile = taking.close
    assert postgresql.work is not None
    postgresql.work(postgresql)
    taking.close()
    assert lock.is_mine == postgresql.is_held == (given_up == "after")
    await lock.release()
    assert not postgresql.is_held


class _Taken:
    """A lock that another machine has."""

    async def take(self) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def release(self) -> None:
        await trio.lowlevel.checkpoint()


def _turns(directory: Path, shared: _Taken | None = None) -> Turns:
    records: Any = SimpleNamespace(lock=lambda _: shared)
    return completions(cast(Control, SimpleNamespace(directory=directory, records=records)))


@pytest.mark.parametrize("of", ["a task", "a process", "a machine"])
async def test_a_turn_is_not_waited_for_without_an_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, of: str
) -> None:
    one, upload = _turns(tmp_path), secrets.token_hex(16)
    beside = tmp_path / "beside"
    beside.mkdir()
    other = {"a task": one, "a process": _turns(tmp_path), "a machine": _turns(beside, _Taken())}[
        of
    ]
    with trio.fail_after(3600):
        async with one.turn(upload):
            with pytest.raises(Unavailable, match="try again later"):
                async with other.turn(upload):
                    pass
        async with one.turn(upload):
            pass

"""What is obtained once for all who ask within a second."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from auth_server import CheapAuth, running
from checks import ok
from limits import HANG_SECONDS

import control.storage.module
from control.errors import Unavailable
from control.recent import RECENT_SECONDS, Recent
from control.storage import Storage

virtual = pytest.mark.usefixtures("virtual_time")


class Dear:
    """Takes two seconds."""

    def __init__(self) -> None:
        self.times = 0
        self.fails = False

    async def __call__(self) -> int:
        self.times += 1
        await trio.sleep(2)
        if self.fails:
            raise Unavailable("not now")
        return self.times


@virtual
async def test_all_who_ask_within_a_second_have_it_obtained_once() -> None:
    dear = Dear()
    recent = Recent(dear)
    found: list[int] = []

    async def ask() -> None:
        found.append(await recent.get())

    with trio.fail_after(HANG_SECONDS):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(ask)
            await trio.sleep(RECENT_SECONDS - 0.1)
            await ask()
            await trio.sleep(0.2)
    assert found == [1] * 101 + [2] * 101 + [3] * 101


@virtual
async def test_a_failure_is_told_to_all_and_is_no_older() -> None:
    dear = Dear()
    dear.fails = True
    recent = Recent(dear)
    refused: list[str] = []

    async def ask() -> None:
        try:
            await recent.get()
        except Unavailable as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert refused == ["not now"] * 100
    assert (dear.times, trio.current_time()) == (1, 2)
    dear.fails = False
    await trio.sleep(RECENT_SECONDS)
    assert await recent.get() == 2


@virtual
async def test_whoever_asks_and_leaves_again_and_again_has_it_obtained_no_more_often() -> None:
    dear = Dear()
    recent = Recent(dear)
    for _ in range(100):
        with trio.move_on_after(0.1):
            await recent.get()
    assert dear.times <= 1 + trio.current_time() / (2 + RECENT_SECONDS)


class Master:
    """Counts what it is asked."""

    asked = 0

    async def status(self) -> Any:
        self.asked += 1
        none = dict.fromkeys(
            ("files", "bytes", "under_replicated", "corrupt", "lost"), 0
        ) | dict.fromkeys(("repairs_active", "repairs_queued"), 0)
        return SimpleNamespace(totals=SimpleNamespace(**none), servers=[], role="master")


async def test_a_crowd_that_asks_for_health_asks_the_master_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control.storage.module, "CONNECT_SECONDS", 0.0)
    async with running(tmp_path, modules=(CheapAuth, Storage)) as server:
        storage = server.app.modules[1]
        assert isinstance(storage, Storage)
        for path in ("/storage/status", "/readyz"):
            master = Master()
            storage.cluster._fs = cast(Any, master)
            began = trio.current_time()

            async def ask(path: str = path) -> None:
                ok(await server.http.get(path))

            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(ask)
            assert 1 <= master.asked <= 1 + (trio.current_time() - began) / RECENT_SECONDS

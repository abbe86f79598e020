"""When servers end connections whose cluster key was retired."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from gfs.protocol.server import KEYS_SECONDS, RETIRED_SECONDS, _end_retired


class Connection:
    peer = "somebody"

    def __init__(self, key: bytes, *, busy: bool) -> None:
        self.key = key
        self.busy = busy
        self.exchanges = 0
        self.ending = False
        self.closed_at: float | None = None

    def close(self) -> None:
        if self.closed_at is None:
            self.closed_at = trio.current_time()


async def test_an_exchange_under_way_may_end_first_but_not_take_forever(
    autojump_clock: MockClock,
) -> None:
    idle, between = Connection(b"old", busy=False), Connection(b"old", busy=False)
    busy, endless = Connection(b"old", busy=True), Connection(b"old", busy=True)
    new = Connection(b"new", busy=False)
    world: Any = SimpleNamespace(
        clock=SimpleNamespace(sleep=trio.sleep, monotonic=trio.current_time)
    )
    keys = [b"old", b"new"]
    identity: Any = SimpleNamespace(credentials=SimpleNamespace(current_keys=lambda: keys))
    served: Any = {idle, between, busy, endless, new}

    async def exchange_after_exchange() -> None:
        while not between.ending:
            between.exchanges += 1
            await trio.sleep(KEYS_SECONDS / 8)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_retired, world, identity, served)
        nursery.start_soon(exchange_after_exchange)
        await trio.sleep(3.5 * KEYS_SECONDS)  # between two looks
        assert not [one for one in served if one.ending or one.closed_at is not None]
        keys.remove(b"old")
        retired = trio.current_time()
        await trio.sleep(KEYS_SECONDS)
        assert between.ending
        assert between.closed_at is None, "the next exchange might be on its way"
        await trio.sleep(RETIRED_SECONDS / 2)
        assert idle.closed_at <= retired + 2 * KEYS_SECONDS
        assert between.closed_at is not None
        assert busy.closed_at is None
        busy.busy = False
        ended = trio.current_time()
        await trio.sleep(2 * RETIRED_SECONDS)
        nursery.cancel_scope.cancel()
    assert ended <= busy.closed_at <= ended + KEYS_SECONDS
    assert endless.closed_at <= retired + RETIRED_SECONDS + 2 * KEYS_SECONDS
    assert new.closed_at is None

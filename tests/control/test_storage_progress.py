"""When the end of an upload is reported, by a clock that a busy machine does not slow."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from control.metrics import Metrics
from control.storage.transfer.progress import HEARD_SECONDS, Listening, Transfers
from control.volatile import Volatile


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
@pytest.mark.parametrize("reads", [True, False])
async def test_the_end_is_reported_before_the_upload_is_answered(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, elsewhere: bool, reads: bool
) -> None:
    """Clients stop listening at the answer. One who reads nothing holds it up for a second."""
    volatile = Volatile.open(tmp_path / "shared")
    control: Any = SimpleNamespace(volatile=volatile, metrics=Metrics())
    call: Any = SimpleNamespace(
        method="PUT", principal=SimpleNamespace(user_id="ada"), header=lambda name: None
    )
    transfers = Transfers(control)
    listened = Transfers(control) if elsewhere else transfers
    happened: list[str] = []
    opened = trio.Event()

    async def listen() -> None:
        async with aclosing(Listening(volatile, listened, "ada", "t").events()) as events:
            async for data in events:
                opened.set()
                if not reads:
                    await trio.sleep_forever()
                happened.append("end" if b'"done":true' in data else "progress")

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(listen)
        await opened.wait()
        await trio.testing.wait_all_tasks_blocked()
        transfer = transfers.begin(call, "t", "upload", 10)
        with transfer:
            transfer.moved(10)
        ended = trio.current_time()
        await transfer.wait_for_listeners()
        happened.append("answer")
        took = trio.current_time() - ended
        nursery.cancel_scope.cancel()
    volatile.close()
    assert happened[-4:] == (["end"] * 3 + ["answer"] if reads else ["answer"])
    assert took < HEARD_SECONDS if reads else took == pytest.approx(HEARD_SECONDS)

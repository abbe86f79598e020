"""Answers to requests that take long."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import trio
from trio.testing import MockClock

from control.api import RecordsFailed
from control.s3.errors import S3Error
from control.s3.patience import QUIET_SECONDS, Patience

CALL: Any = SimpleNamespace(
    request=SimpleNamespace(scope={"raw_path": b"/bucket/key"}), route="S3 POST"
)
DOCUMENT = b'<?xml version="1.0" encoding="UTF-8"?>\n<Result/>'


async def work(seconds: float = 0.0, error: Exception | None = None) -> bytes:
    await trio.sleep(seconds)
    if error is not None:
        raise error
    return DOCUMENT


async def test_what_is_ready_soon_is_answered_as_ever(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    patience = Patience()
    await nursery.start(patience.run)
    answer = await patience.answer(CALL, lambda: work(QUIET_SECONDS / 2))
    assert await answer.get_data() == DOCUMENT
    with pytest.raises(S3Error, match="no"):
        await patience.answer(CALL, lambda: work(1, S3Error("NoSuchKey", "no")))


@pytest.mark.parametrize("error", [None, S3Error("NoSuchUpload", "no"), ValueError("a bug")])
async def test_what_takes_long_is_answered_with_spaces_before_it(
    nursery: trio.Nursery, autojump_clock: MockClock, error: Exception | None
) -> None:
    patience = Patience()
    await nursery.start(patience.run)
    answer = await patience.answer(CALL, lambda: work(QUIET_SECONDS * 5.5, error))
    assert answer.status_code == 200
    pieces = []
    async with answer.response as body:
        async for piece in body:
            pieces.append(bytes(piece))
    assert pieces[1:-1] == [b" "] * 4
    root = ElementTree.fromstring(b"".join(pieces))
    assert root.tag == "Result" if error is None else "Error"


async def test_the_work_ends_with_its_request(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    patience = Patience()
    await nursery.start(patience.run)
    ended = []

    async def endless() -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())
        raise AssertionError

    with trio.move_on_after(1):
        await patience.answer(CALL, endless)
    await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == 1
    answer = await patience.answer(CALL, endless)
    async with answer.response as body:
        async for _ in body:
            break
    await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == 2


async def test_failed_records_end_the_process(autojump_clock: MockClock) -> None:
    patience = Patience()

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(patience.run)
            with contextlib.suppress(S3Error):
                await patience.answer(CALL, lambda: work(1, RecordsFailed("the disk")))

    with pytest.raises(ExceptionGroup) as failed:
        await serve()
    assert failed.group_contains(RecordsFailed)

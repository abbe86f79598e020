"""Calls that share messages: who waits, who is given what, who gives up."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import trio
from trio.testing import MockClock

from gfs.client.rounds import BYTES_MAX, ITEMS_MAX, LATE_SECONDS, UNDER_WAY_MAX, Item, Rounds
from gfs.errors import MasterUnavailable, NotFound


class One(Item):
    __slots__ = ("answer", "name")

    def __init__(self, name: int, size: int = 0) -> None:
        super().__init__(size)
        self.name = name
        self.answer = -1


class Worker:
    """Answers with the item's own name, after some time; negative ones fail."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds = seconds
        self.rounds: list[list[int]] = []
        self.cancelled = 0

    async def __call__(self, items: list[One]) -> None:
        self.rounds.append([item.name for item in items])
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        for item in items:
            item.answer = item.name
            item.end(NotFound(f"{item.name}") if item.name < 0 else None)


async def ask(rounds: Rounds[One], name: int, size: int = 0) -> None:
    one = One(name, size)
    await rounds.ask([one])
    assert one.answer == name
    assert isinstance(one.error, NotFound) == (name < 0)


async def test_what_arrives_together_shares_a_round(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        for name in range(40):
            nursery.start_soon(ask, rounds, name - 10)
    assert sorted(chain.from_iterable(worker.rounds)) == list(range(-10, 30))
    assert len(worker.rounds) <= UNDER_WAY_MAX


async def test_one_call_waits_for_nobody(autojump_clock: MockClock) -> None:
    worker = Worker(1.0)
    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        await ask(rounds, 1)
        nursery.start_soon(ask, rounds, 2)
        await trio.sleep(0.5)
        began = trio.current_time()
        await ask(rounds, 3)
        assert trio.current_time() - began == 1.0
    assert worker.rounds == [[1], [2], [3]]


async def test_what_comes_meanwhile_goes_with_the_next(autojump_clock: MockClock) -> None:
    worker = Worker(LATE_SECONDS / 2)
    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        for name in range(UNDER_WAY_MAX + 8):
            nursery.start_soon(ask, rounds, name)
            await trio.sleep(LATE_SECONDS / 100)
    assert [len(each) for each in worker.rounds] == [1] * UNDER_WAY_MAX + [8]


async def test_nobody_waits_long_for_a_round_that_hangs(autojump_clock: MockClock) -> None:
    worker = Worker(60)
    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        for name in range(UNDER_WAY_MAX):
            nursery.start_soon(ask, rounds, name)
            await trio.sleep(0.01)
        worker.seconds = 0.001
        for name in range(10):
            began = trio.current_time()
            await ask(rounds, 100 + name)
            # The first one finds out that the others are late.
            assert trio.current_time() - began < (0.01 if name else 2 * LATE_SECONDS)


async def test_whoever_gives_up_leaves_the_others(autojump_clock: MockClock) -> None:
    worker = Worker()

    async def give_up(rounds: Rounds[One], name: int, seconds: float) -> None:
        with trio.move_on_after(seconds) as scope:
            await rounds.ask([One(name), One(name + 1)])
        assert scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        for number in range(30):
            nursery.start_soon(ask, rounds, number)
            nursery.start_soon(give_up, rounds, 1000 + 2 * number, number / 5000)
        await trio.sleep(1)
        assert worker.cancelled == 0, "somebody waits for it still"
        nursery.start_soon(give_up, rounds, 5000, 0.005)
        await trio.sleep(1)
        assert worker.cancelled == 1, "nobody waits for it"
        await ask(rounds, 7)


async def test_what_was_given_up_before_its_round_is_in_none(autojump_clock: MockClock) -> None:
    worker = Worker(LATE_SECONDS / 2)
    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        for name in range(UNDER_WAY_MAX):
            nursery.start_soon(ask, rounds, name)
            await trio.sleep(0.001)
        with trio.move_on_after(0.001):
            await rounds.ask([One(50)])
        await ask(rounds, 60)
    assert 50 not in chain.from_iterable(worker.rounds)


async def test_a_round_is_bounded(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        many = [One(number) for number in range(2 * ITEMS_MAX + 1)]
        await rounds.ask(many)
        assert [one.answer for one in many] == list(range(2 * ITEMS_MAX + 1))
        large = [One(number, BYTES_MAX // 2) for number in range(5)]
        await rounds.ask(large)
    sizes = [len(each) for each in worker.rounds]
    assert sizes == [ITEMS_MAX, ITEMS_MAX, 1, 2, 2, 1]


async def test_closing_ends_all_calls(autojump_clock: MockClock) -> None:
    worker = Worker(math.inf)
    ended: list[type[Exception]] = []

    async def refused(rounds: Rounds[One], name: int) -> None:
        one = One(name)
        await rounds.ask([one])
        ended.append(type(one.error))  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, worker)
        for name in range(UNDER_WAY_MAX + 5):
            nursery.start_soon(refused, rounds, name)
            await trio.sleep(0.001)
        rounds.close()
        await rounds.ended()
        await trio.sleep(0.001)
        with pytest.raises(MasterUnavailable):
            await rounds.ask([One(9)])
    assert ended == [MasterUnavailable] * (UNDER_WAY_MAX + 5)


async def test_closing_waits_for_no_round(autojump_clock: MockClock) -> None:
    async def slow_to_end(_: list[One]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)

    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, slow_to_end)
        one = One(1)
        nursery.start_soon(rounds.ask, [one])
        await trio.sleep(0.001)
        rounds.close()
        assert isinstance(one.error, MasterUnavailable)
        await rounds.ended()
        assert trio.current_time() > 60


async def test_a_bug_gives_each_back_to_its_caller(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: list[One]) -> None:
        await trio.sleep(0.01)
        raise TypeError("this is a bug")

    async with trio.open_nursery() as nursery:
        rounds = Rounds(nursery, broken)
        for count in (3, 1):
            items = [One(number) for number in range(count)]
            await rounds.ask(items)
            assert [one.error for one in items] == [None] * count
    assert "this is a bug" in caplog.text

"""Reading in order through a mount, with a file whose bytes come when they like."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
import trio

from gfs.blocks import BLOCK_BYTES, MIB
from gfs.errors import ChunkUnavailable
from gfs.mount.forward import IDLE_SECONDS, STEP_BYTES, Forward

PAGE_BYTES = 4096
BYTES = random.Random(1).randbytes(24 * MIB + 12_345)
CHUNK_BYTES = 6 * MIB


class Blocks:
    """As the client's stream of blocks; a step ends at the end of a chunk."""

    def __init__(self, file: File, position: int) -> None:
        assert position % BLOCK_BYTES == 0
        self._file = file
        self.position = position
        self.end = len(BYTES)
        self.closed = False
        self._is_read = self._is_broken = False

    async def read_into(self, target: memoryview) -> int:
        assert not self._is_read, "one at a time"
        assert not self.closed
        assert not self._is_broken, "a connection was left in the middle of an answer"
        assert len(target) % BLOCK_BYTES == 0 or self.position + len(target) == self.end
        self._is_read = True
        is_whole = False
        try:
            await self._file.wait()
            is_whole = True
        finally:
            self._is_read = False
            self._is_broken = not is_whole
        count = min(len(target), CHUNK_BYTES - self.position % CHUNK_BYTES)
        target[:count] = BYTES[self.position : self.position + count]
        self.position += count
        return count

    def close(self) -> None:
        assert not self._is_read
        self.closed = True


class File:
    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance
        self.reads = 0
        self.streams: list[Blocks] = []

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._chance is not None:
            await trio.sleep(self._chance.choice([0, 0, 0.1]))
            if self._chance.random() < 0.03:
                raise ChunkUnavailable("no replica answers")

    async def pread(self, offset: int, count: int) -> bytes:
        self.reads += 1
        await self.wait()
        return BYTES[offset : offset + count]

    def blocks(self, offset: int) -> Blocks:
        self.streams.append(Blocks(self, offset))
        return self.streams[-1]


def forward(file: Any) -> Forward:
    return Forward(file)


@pytest.mark.parametrize("count", [STEP_BYTES, 2 * BLOCK_BYTES])
async def test_an_answer_is_the_memory_that_was_read_into(count: int) -> None:
    file = File()
    reading = forward(file)
    memory = set()
    for at in range(0, len(BYTES), count):
        found = await reading.read(at, count)
        assert found == BYTES[at : at + count]
        if file.streams:
            assert isinstance(found, memoryview)
            memory.add(id(found.obj))
    assert (file.reads, len(file.streams), len(memory)) == (1, 1, 1)


async def test_who_reads_here_and_there_has_no_stream() -> None:
    file = File()
    reading = forward(file)
    for at in (0, 9 * MIB, 3 * MIB, 20 * MIB, 12 * MIB, 6 * MIB):
        assert await reading.read(at, PAGE_BYTES) == BYTES[at : at + PAGE_BYTES]
    assert file.streams == []


async def test_of_who_reads_no_further_nothing_is_held(autojump_clock: object) -> None:
    file = File()
    reading = forward(file)
    for at in range(0, 4 * MIB, MIB):
        await reading.read(at, MIB)
    await trio.sleep(IDLE_SECONDS - 1)
    reading.rest()
    (stream,) = file.streams
    assert not stream.closed
    await trio.sleep(2)
    reading.rest()
    assert stream.closed
    assert await reading.read(4 * MIB, MIB) == BYTES[4 * MIB : 5 * MIB]


@pytest.mark.parametrize("seed", range(20))
async def test_every_answer_is_what_is_there(seed: int, autojump_clock: object) -> None:
    """Requests overtake one another, some begin anywhere, some fail, and some are given up; what
    was read is forgotten at any time. Each stream is closed, once nobody reads from it."""
    chance = random.Random(seed)
    file = File(chance)
    reading = forward(file)

    async def read(offset: int, count: int) -> None:
        await trio.sleep(chance.choice([0, 0, 0.05]))
        with trio.move_on_after(0.15 if chance.random() < 0.05 else 100):
            with suppress(ChunkUnavailable):
                assert await reading.read(offset, count) == BYTES[offset : offset + count]

    async def program(nursery: trio.Nursery) -> None:
        at = 0
        for _ in range(60):
            count = chance.randint(1, 256) * PAGE_BYTES
            nursery.start_soon(read, at, count)
            at += count
            if chance.random() < 0.1:
                at = chance.randrange(0, len(BYTES), PAGE_BYTES)
            if chance.random() < 0.05:
                chance.choice([reading.stop, reading.rest])()
            await trio.sleep(chance.choice([0, 0.1, 0.1, 0.3]))

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            for _ in range(chance.choice([1, 1, 2])):
                nursery.start_soon(program, nursery)
    reading.stop()
    assert all(stream.closed for stream in file.streams)
    assert file.streams

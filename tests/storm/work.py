"""One client process of the storm: ``python -m tests.storm.work``.

It calls until it is stopped (a line on its stdin, or its end), one call at a time,
and reads back what it wrote; what may be there it knows from its own model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO

import httpx
import trio
from limits import HANG_SECONDS

import gfs
from gfs.client import Client
from gfs.errors import GfsError, NotFound

from .model import (
    BLOCK_BYTES,
    LOG,
    SHARED,
    Call,
    Model,
    content,
    is_mixed_of,
    is_one_of,
    museum,
)

SPACE = "storm"
PATHS = 30
PAUSE_SECONDS_MAX = 0.05
#: Blocks of the shared file: near, far, over the ends of chunks and past them.
BLOCKS = [*range(40), *range(4_000, 4_020), *range(16_370, 16_400), *range(33_000, 33_010)]
LENGTHS = [0, 100, 4096, 65_536, 200_000, 1_048_576, 3_000_001]


class Wrong(Exception):
    """Bytes that nobody wrote, or not what was acknowledged."""


class Worker:
    def __init__(self, number: int, seed: str, clients: int, log: TextIO) -> None:
        self.number, self._clients, self._log = number, clients, log
        self.chance = random.Random(f"{seed}/client {number}")
        self.model = Model()
        self._last = 0
        self._blocks = [block for block in BLOCKS if block % clients == number % clients]

    def write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    async def call(
        self, op: str, path: str, work: Callable[[Call], Awaitable[None]], **arguments: object
    ) -> None:
        """Log it, make it, log what came of it."""
        self._last += 1
        call = Call(self.number, self._last, op, path, arguments, time.monotonic())
        self.write(
            {
                "client": call.client, "id": call.id, "op": op, "path": path,
                "arguments": arguments, "began": call.began,
            }
        )  # fmt: skip
        before = dict(arguments)
        try:
            await work(call)
            call.result = "ok"
        except Wrong as error:
            call.result, call.text = "wrong", str(error)
        except GfsError as error:
            call.result, call.text = error.code, str(error)
        except httpx.HTTPError as error:
            call.result, call.text = "unreachable", repr(error)
        more = {name: value for name, value in call.arguments.items() if name not in before}
        self.write(
            {
                "id": call.id, "ended": time.monotonic(), "result": call.result,
                "text": call.text, "more": more,
            }
        )  # fmt: skip
        self.model.ended(call)

    @property
    def folder(self) -> str:
        return f"/storm/{self.number}/"

    def new(self) -> tuple[int, int]:
        length = self.chance.choice(LENGTHS[:5]) if self.chance.random() < 0.9 else LENGTHS[-1]
        return self._last + 1, length

    def path(self) -> str:
        """One to write to, that no failed call was about."""
        slot = self.chance.randrange(PATHS)
        names = (f"{self.folder}{slot}.{attempt}" for attempt in itertools.count())
        return next(name for name in names if name not in self.model.retired)


class LibraryWorker(Worker):
    async def step(self, fs: Client) -> None:
        steps = [
            self.put, self.put, self.read, self.read, self.rename, self.delete, self.append,
            self.pwrite, self.pwrite, self.read_block, self.visit,
        ]  # fmt: skip
        await self.chance.choice(steps)(fs)

    async def put(self, fs: Client) -> None:
        number, length = self.new()

        async def work(call: Call) -> None:
            await fs.put(content(self.number, number, length), call.path, overwrite=True)

        await self.call("put", self.path(), work, number=number, length=length)

    async def read(self, fs: Client) -> None:
        paths = sorted(path for path in self.model.files if path not in self.model.retired)
        if not paths:
            return
        path = self.chance.choice(paths)

        async def work(call: Call) -> None:
            try:
                data: bytes | None = await fs.get(path)
            except NotFound:
                data = None
            if not is_one_of(data, self.number, self.model.files[path]):
                raise Wrong(f"{path}: {_short(data)}, not {self.model.files[path]}")

        await self.call("read", path, work)

    async def rename(self, fs: Client) -> None:
        paths = sorted(self.model.usable())
        if not paths:
            return
        source, target = self.chance.choice(paths), self.path()
        if source == target:
            return

        async def work(call: Call) -> None:
            await fs.rename(source, target, replace=True)

        await self.call("rename", source, work, to=target)

    async def delete(self, fs: Client) -> None:
        paths = sorted(self.model.usable())
        if paths:
            await self.call("delete", self.chance.choice(paths), lambda c: fs.delete(c.path))

    async def append(self, fs: Client) -> None:
        number, _ = self.new()
        length = self.chance.choice([20, 100, 20_000])

        async def work(call: Call) -> None:
            record = content(self.number, number, length)
            call.arguments["offset"] = await fs.append(LOG, record)

        await self.call("append", LOG, work, number=number, length=length)

    async def pwrite(self, fs: Client) -> None:
        blocks = [block for block in self._blocks if block not in self.model.retired]
        if not blocks:
            return
        block, number = self.chance.choice(blocks), self._last + 1

        async def work(call: Call) -> None:
            async with await fs.open(SHARED, "r+") as file:
                data = content(self.number, number, BLOCK_BYTES)
                await file.pwrite(block * BLOCK_BYTES, data)

        await self.call("pwrite", SHARED, work, block=block, number=number)

    async def read_block(self, fs: Client) -> None:
        if not self.model.blocks:
            return
        block = self.chance.choice(sorted(self.model.blocks))

        async def work(call: Call) -> None:
            async with await fs.open(SHARED) as file:
                data = await file.pread(block * BLOCK_BYTES, BLOCK_BYTES)
            allowed = self.model.blocks[block]
            if not is_mixed_of(data.ljust(BLOCK_BYTES, b"\0"), self.number, allowed):
                raise Wrong(f"block {block} of {SHARED}: {_short(data)}, not {allowed}")

        await self.call("read_block", SHARED, work, block=block)

    async def visit(self, fs: Client) -> None:
        path, (number, length) = self.chance.choice(list(museum().items()))

        async def work(call: Call) -> None:
            data = await fs.get(path)
            if data != content(0, number, length):
                raise Wrong(f"{path}: {_short(data)}")

        await self.call("visit", path, work)


class RestWorker(Worker):
    """The same through the REST API, on files of a storage namespace."""

    async def step(self, http: httpx.AsyncClient) -> None:
        await self.chance.choice([self.put, self.put, self.read, self.read, self.delete])(http)

    @property
    def folder(self) -> str:
        return ""

    async def put(self, http: httpx.AsyncClient) -> None:
        number, length = self.new()

        async def work(call: Call) -> None:
            data = content(self.number, number, length)
            answer = await http.post(
                "/storage/upload",
                params={"namespace": SPACE, "overwrite": "true"},
                files={"file": (call.path, data)},
            )
            _check(answer)

        await self.call("rest_put", self.path(), work, number=number, length=length)

    async def read(self, http: httpx.AsyncClient) -> None:
        paths = sorted(path for path in self.model.files if path not in self.model.retired)
        if not paths:
            return
        path = self.chance.choice(paths)

        async def work(call: Call) -> None:
            answer = await http.get("/storage/download", params={"namespace": SPACE, "name": path})
            if answer.status_code != 404:
                _check(answer)
            data = None if answer.status_code == 404 else answer.content
            if not is_one_of(data, self.number, self.model.files[path]):
                raise Wrong(f"{path}: {_short(data)}, not {self.model.files[path]}")

        await self.call("rest_read", path, work)

    async def delete(self, http: httpx.AsyncClient) -> None:
        paths = sorted(self.model.usable())
        if not paths:
            return

        async def work(call: Call) -> None:
            where = {"namespace": SPACE, "name": call.path}
            _check(await http.delete("/storage/delete", params=where))

        await self.call("rest_delete", self.chance.choice(paths), work)


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise httpx.HTTPStatusError(
            f"{answer.status_code} {answer.text[:200]}", request=answer.request, response=answer
        )


def _short(data: bytes | None) -> str:
    return "nothing" if data is None else f"{len(data)} bytes {data[:8].hex()}"


class _Reports(logging.Handler):
    """What the library logs of its troubles, into the same log."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(logging.WARNING)
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.write({"log": record.getMessage(), "at": time.monotonic()})


async def work(options: argparse.Namespace) -> None:
    with options.log.open("w") as log:
        kind = RestWorker if options.rest else LibraryWorker
        worker = kind(options.number, options.seed, options.clients, log)
        logging.getLogger("gfs").addHandler(_Reports(worker))
        async with trio.open_nursery() as nursery:

            async def until_reported() -> None:
                await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
                stop.set()

            stop = trio.Event()
            nursery.start_soon(until_reported)
            if isinstance(worker, RestWorker):
                token = {"Authorization": f"Bearer {os.environ['STORM_TOKEN']}"}
                async with httpx.AsyncClient(
                    base_url=options.rest, headers=token, timeout=HANG_SECONDS
                ) as http:
                    await _until(stop, worker, lambda: worker.step(http))
            else:
                async with gfs.connect(state=options.state) as fs:
                    await _until(stop, worker, lambda: worker.step(fs))


async def _until(stop: trio.Event, worker: Worker, step: Callable[[], Awaitable[None]]) -> None:
    while not stop.is_set():
        await step()
        # A program that does something else in between.
        with trio.move_on_after(worker.chance.uniform(0, PAUSE_SECONDS_MAX)):
            await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--seed")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--rest", default="")
    trio.run(work, parser.parse_args())

"""A client process that puts and gets until it is stopped, and notes what went wrong.

    python disk_load.py MASTER KEY_FILE NAME

It writes one line when its first rounds are done. After SIGTERM it ends its calls and
writes a report: a JSON object with the calls by kind, the slowest, failures, wrong bytes.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio

import gfs
from gfs.client import Client

WORKERS = 4
#: Files of one worker, put again and again.
FILES = 8
#: Most are small, and a few are more than a packet of 1 MiB.
SIZES = (100, 4_000, 20_000, 20_000, 20_000, 20_000, 150_000, 1_300_000)
#: Files that are there before, and stay as they are.
STANDING = 60
PAUSE_SECONDS = 0.2
NOTED_MAX = 20


def standing(number: int) -> tuple[str, bytes]:
    chance = random.Random(number)
    return f"/standing/{number}", chance.randbytes(chance.choice(SIZES))


class Load:
    def __init__(self, fs: Client, name: str) -> None:
        self.fs, self.name = fs, name
        self.stopping = False
        self.rounds = 0
        self.busy = trio.Event()
        self.calls: Counter[str] = Counter()
        self.slowest: dict[str, Any] = {"seconds": 0.0}
        self.failures: list[dict[str, Any]] = []
        self.wrong: list[str] = []

    async def call(
        self, function: Callable[..., Awaitable[Any]], path: str, *args: Any, **kwargs: Any
    ) -> Any:
        kind = function.__name__
        noted = {"call": kind, "path": path, "at": time.strftime("%H:%M:%S", time.gmtime())}
        began = time.monotonic()
        try:
            return await function(*args, path, **kwargs)
        except Exception as error:
            self.failures.append({**noted, "error": f"{type(error).__name__}: {error}"})
            return None
        finally:
            seconds = time.monotonic() - began
            self.calls[kind] += 1
            if seconds > self.slowest["seconds"]:
                self.slowest = {**noted, "seconds": round(seconds, 2)}

    async def get(self, path: str, data: bytes) -> None:
        found = await self.call(self.fs.get, path)
        if found is not None and found != data:
            self.wrong.append(path)

    async def work(self, worker: int) -> None:
        chance = random.Random(f"{self.name} {worker}")
        held: dict[str, bytes] = {}
        while not self.stopping:
            path = f"/load/{self.name}/{worker}/{chance.randrange(FILES)}"
            data = chance.randbytes(chance.choice(SIZES))
            if await self.call(self.fs.put, path, data, overwrite=True):
                held[path] = data
            else:
                held.pop(path, None)  # it may have been carried out, or not
            for path in chance.sample(sorted(held), min(2, len(held))):
                await self.get(path, held[path])
            await self.get(*standing(chance.randrange(STANDING)))
            self.rounds += 1
            if self.rounds == WORKERS:
                self.busy.set()
            await trio.sleep(PAUSE_SECONDS)

    def report(self) -> str:
        return json.dumps(
            {
                "calls": self.calls,
                "slowest": self.slowest,
                "failures": self.failures[:NOTED_MAX],
                "wrong": self.wrong[:NOTED_MAX],
            }
        )


async def main(master: str, key_file: str, name: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with gfs.connect(master, key=key_file) as fs:
            load = Load(fs, name)
            async with trio.open_nursery() as nursery:
                for worker in range(WORKERS):
                    nursery.start_soon(load.work, worker)
                await load.busy.wait()
                print("busy", flush=True)
                await anext(signals)
                load.stopping = True
        print(load.report(), flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])

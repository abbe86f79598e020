"""A program of clients that put, get, append, write in place and make snapshots until SIGTERM,
and read back.

    python mixed_load.py MASTERS KEY_FILE NAME

It runs with the packages of either release, so it uses what both have. Every call must succeed;
it prints ``ready`` when each of its tasks has done a round, and at the end how many there were.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import trio

import gfs
from gfs.client import Client

SIZES = (0, 10, 60_000, 70_000, 400_000)
FILES_MAX = 200
#: Of the file that is written in place.
PLACE_BYTES = 200_000
WRITE_BYTES = 1000


class Load:
    def __init__(self, fs: Client, name: str) -> None:
        self._fs = fs
        self._name = name
        self._files: dict[str, bytes] = {}
        #: The put that is under way: its end may come before it is known here.
        self._putting: tuple[str, bytes] | None = None
        self._place = bytearray(PLACE_BYTES)
        #: The write in place that is under way, and where.
        self._writing = 0, b""
        self.rounds = {"files": 0, "records": 0, "snapshots": 0, "writes": 0}
        #: When each of its tasks has done a round.
        self.began = trio.Event()

    async def files(self) -> None:
        chance = random.Random(self._name)
        while True:
            path = f"/{self._name}/{chance.randrange(FILES_MAX)}"
            data = chance.randbytes(chance.choice(SIZES))
            self._putting = path, data
            await self._fs.put(data, path, overwrite=True)
            self._files[path], self._putting = data, None
            await self._check(chance.choice([*self._files]))
            await self._check_part(chance.choice([*self._files]), chance.random())
            self._count("files")
            await trio.sleep(0.01)

    async def records(self) -> None:
        """Each is where it was acknowledged to be, or in a copy of it that came later."""
        path = f"/{self._name}-records"
        while True:
            number = self.rounds["records"]
            await self._fs.append(path, f"record {number}".encode())
            self._count("records")
            await trio.sleep(0.01)

    async def snapshots(self) -> None:
        while True:
            number = self.rounds["snapshots"]
            path = f"/{self._name}-source"
            data = f"as of {number}".encode()
            await self._fs.put(data, path, overwrite=True)
            await self._fs.snapshot(path, f"{path}-{number}")
            await self._fs.put(b"changed since", path, overwrite=True)
            assert await self._fs.get(f"{path}-{number}") == data
            self._count("snapshots")
            await trio.sleep(0.1)

    async def writes(self) -> None:
        chance = random.Random(self._name)
        await self._fs.put(bytes(self._place), self._place_path)
        while True:
            start = chance.randrange(PLACE_BYTES - WRITE_BYTES)
            self._writing = start, chance.randbytes(WRITE_BYTES)
            async with await self._fs.open(self._place_path, "r+") as file:
                await file.pwrite(*self._writing)
            self._write()
            await self._check_place()
            self._count("writes")
            await trio.sleep(0.05)

    def _write(self) -> None:
        start, data = self._writing
        self._place[start : start + len(data)] = data

    @property
    def _place_path(self) -> str:
        return f"/{self._name}-place"

    async def _check_place(self) -> None:
        found = await self._fs.get(self._place_path)
        if found != self._place:
            self._write()
        assert found == self._place

    async def check(self) -> None:
        await self._check_place()
        for path in self._files:
            await self._check(path)
        found = await self._fs.get(f"/{self._name}-records")
        for number in range(self.rounds["records"]):
            assert f"record {number}".encode() in found, number
        for number in range(self.rounds["snapshots"]):
            path = f"/{self._name}-source-{number}"
            assert await self._fs.get(path) == f"as of {number}".encode()

    def _count(self, kind: str) -> None:
        self.rounds[kind] += 1
        if all(self.rounds.values()):
            self.began.set()

    async def _check(self, path: str) -> None:
        data = await self._fs.get(path)
        assert data == self._files[path] or (path, data) == self._putting, path

    async def _check_part(self, path: str, share: float) -> None:
        data = self._files[path]
        start = int(share * len(data))
        async with await self._fs.open(path) as file:
            await file.seek(start)
            assert await file.read(100) == data[start : start + 100], path


async def main(masters: str, key: str, name: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with gfs.connect(masters, key=Path(key)) as fs:
            load = Load(fs, name)
            async with trio.open_nursery() as nursery:
                for task in (load.files, load.records, load.snapshots, load.writes):
                    nursery.start_soon(task)
                await load.began.wait()
                print("ready", gfs.__version__, flush=True)
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    break
            await load.check()
    print("done", load.rounds, flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])

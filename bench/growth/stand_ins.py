"""Chunkservers that only speak: they register with the master, report the replicas of
the generated files, and go on with heartbeats. Their disks are full, so whatever is
written goes to the real ones.

    python -m bench.growth.stand_ins ADDRESS KEY_FILE FIRST_HANDLE FILES
"""

from __future__ import annotations

import struct
import sys
from itertools import chain, cycle
from pathlib import Path

import trio

from bench.growth.namespace import LENGTH, RACK, REPLICATION, stand_in
from gfs.errors import GfsError
from gfs.io import real_world
from gfs.protocol import handshake
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import (
    REPORT_RECORDS_MAX,
    Disk,
    Heartbeat,
    Register,
    RegisterReply,
    ReportReplicas,
)
from gfs.protocol.rpc import Rpc
from gfs.state import read_keys

REPORT_SECONDS = 600.0
SAMPLE_RECORDS = 512
AGAIN_SECONDS = 0.2


def records(first: int, count: int) -> bytes:
    """As :data:`gfs.protocol.messages.REPLICA_RECORD`."""
    numbers = chain.from_iterable((handle, 1, LENGTH) for handle in range(first, first + count))
    return struct.pack(">" + "QII" * count, *numbers)


class StandIn:
    def __init__(self, address: str, key: bytes, index: int, first: int, count: int) -> None:
        self._address = address
        self._id, self._at = stand_in(index)
        self._identity = Identity("chunkserver", self._id, key)
        self._first, self._end = first, first + count
        self._incarnation = 0
        self._disks = [Disk("/nowhere", 2**50, 0, count, "full")]

    async def run(self) -> None:
        while True:
            try:
                await self._session()
            except* (ConnectionError, OSError, GfsError):
                pass
            await trio.sleep(AGAIN_SECONDS)

    async def _session(self) -> None:
        connection = await handshake.connect(real_world(), self._address, self._identity)
        rpc = Rpc(connection)
        self._incarnation += 1
        async with trio.open_nursery() as nursery:

            async def move() -> None:
                await rpc.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(move)
            reply, _ = await rpc.call(
                Register(0, self._id, self._incarnation, self._at, RACK, self._disks, 0)
            )
            if not isinstance(reply, RegisterReply):
                raise ConnectionError("no registration")
            for start in range(self._first, self._end, REPORT_RECORDS_MAX):
                stop = min(start + REPORT_RECORDS_MAX, self._end)
                body = records(start, stop - start)
                report = ReportReplicas(0, stop == self._end)
                await rpc.call(report, body, seconds=REPORT_SECONDS)
            for start in cycle(range(self._first, self._end, SAMPLE_RECORDS)):
                body = records(start, min(SAMPLE_RECORDS, self._end - start))
                beat = Heartbeat(0, self._disks, self._end - self._first, [], [])
                await rpc.call(beat, body, seconds=REPORT_SECONDS)
                await trio.sleep(reply.heartbeat_ms / 1000)


async def run(address: str, key: bytes, first: int, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for index in range(REPLICATION):
            nursery.start_soon(StandIn(address, key, index, first, count).run)


def main() -> None:
    address, key_file, first, count = sys.argv[1:]
    trio.run(run, address, read_keys(Path(key_file))[0], int(first), int(count))


if __name__ == "__main__":
    main()

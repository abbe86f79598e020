"""``python -m bench.arrays``: zarr by fsspec's store, and by one of our own.

zarr's ``FsspecStore`` calls ``gfs://`` in threads, one for each call under way. The store below
calls the client in its own loop, with no thread for each. Each writes and reads an array of many
chunks, in turns; printed are the medians of the rounds: chunks a second, and the microseconds of
this process's time for each, which the machine's other work changes least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from bench import cluster
from bench.circumstances import OUT, circumstances
from gfs.blocks import KIB
from gfs.client import sync
from gfs.errors import GfsError, NotFound
from gfs.fsspec import GfsFileSystem

try:
    import numpy
    import zarr
    from zarr.abc.store import (
        ByteRequest,
        OffsetByteRequest,
        RangeByteRequest,
        Store,
        SuffixByteRequest,
    )
    from zarr.core.buffer import Buffer, BufferPrototype
    from zarr.storage import FsspecStore
except ImportError as missing:
    raise SystemExit(f"{missing}: run  make install-foreign") from None

ROUNDS = 5


def _slice(request: ByteRequest | None) -> tuple[int | None, int | None]:
    match request:
        case RangeByteRequest(start, end):
            return start, end
        case OffsetByteRequest(offset):
            return offset, None
        case SuffixByteRequest(suffix):
            return -suffix, None
    return None, None


class OwnStore(Store):
    """What a store of our own would be, as far as arrays are written and read."""

    supports_writes = supports_deletes = supports_listing = True

    def __init__(self, client: sync.SyncClient, path: str, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.client, self.path = client, path

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        running = self.client._current()
        function = getattr(running.client, method)
        future = running.portal.start_task_soon(lambda: function(*arguments, **options))
        return await asyncio.wrap_future(future)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnStore) and self.path == other.path

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        (found,) = await self.get_partial_values(prototype, [(key, byte_range)])
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        asked = [(f"{self.path}/{key}", *_slice(request)) for key, request in key_ranges]
        if len(asked) == 1 and asked[0][1:] == (None, None):
            try:
                found = [await self._call("get", asked[0][0])]
            except GfsError as error:
                found = [error]
        else:
            found = await self._call("get_ranges", asked)
        for each in found:
            if isinstance(each, GfsError) and not isinstance(each, NotFound):
                raise each
        return [
            prototype.buffer.from_bytes(each) if isinstance(each, bytes) else None for each in found
        ]

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await self._call("put", value.to_bytes(), f"{self.path}/{key}", overwrite=True)

    async def exists(self, key: str) -> bool:
        return bool(await self._call("exists", f"{self.path}/{key}"))

    async def delete(self, key: str) -> None:
        self._check_writable()
        with suppress(NotFound):
            await self._call("delete", f"{self.path}/{key}")

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise NotImplementedError
        yield

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        try:
            entries = await self._call("list", f"{self.path}/{prefix}".rstrip("/"))
        except NotFound:
            return
        for entry in entries:
            yield entry.path.rpartition("/")[2]


def rates(store: Any, chunks: int, values: Any) -> dict[str, float]:
    array = zarr.create_array(
        store, shape=values.shape, chunks=(len(values) // chunks,), dtype="f8", compressors=None
    )
    found = {}
    for name, work in (
        ("write", lambda: array.__setitem__(slice(None), values)),
        ("read", lambda: array[:]),
    ):
        began, used = time.perf_counter(), time.process_time()
        work()
        found[name] = chunks / (time.perf_counter() - began)
        found[f"{name}_us"] = 1e6 * (time.process_time() - used) / chunks
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.arrays", description=__doc__)
    parser.add_argument("--chunks", type=int, default=500)
    parser.add_argument("--kib", type=int, default=32, help="size of a chunk")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    started, load_before = time.time(), os.getloadavg()[0]
    values = numpy.random.default_rng(1).random(arguments.chunks * arguments.kib * KIB // 8)
    runs: dict[str, list[float]] = {}
    with (
        cluster.interrupted_cleanly(),
        cluster.running(folder=arguments.dir) as servers,
        sync.connect(state=servers.state) as client,
    ):
        for number in range(ROUNDS):
            options = {"state": str(servers.state)}
            for place, store in (
                ("fsspec", FsspecStore.from_url(f"gfs:///f/{number}", storage_options=options)),
                ("own", OwnStore(client, f"/o/{number}")),
            ):
                for name, rate in rates(store, arguments.chunks, values).items():
                    runs.setdefault(f"{name}_{place}", []).append(rate)
        GfsFileSystem(state=str(servers.state)).close()
    result: dict[str, Any] = {name: statistics.median(found) for name, found in runs.items()}
    for name in sorted(result):
        print(f"{name:16} {result[name]:7.0f}   {[round(v) for v in runs[name]]}")
    result |= {"chunks": arguments.chunks, "kib": arguments.kib}
    result["circumstances"] = circumstances(started, load_before)
    OUT.mkdir(exist_ok=True)
    (OUT / "arrays.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["circumstances"]))


if __name__ == "__main__":
    main()

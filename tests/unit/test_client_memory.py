"""How much memory a client takes for what it reads."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from gfs.blocks import MIB
from gfs.client import files, transfer

LENGTH = 8 * MIB


class Blocks:
    """A stream that is there at once."""

    def __init__(self, core: Any, file: Any, position: int, end: int) -> None:
        self.position, self.end, self.until = position, end, 0.0

    async def read_into(self, target: memoryview) -> int:
        self.position += len(target)
        return len(target)

    def close(self) -> None: ...


@pytest.mark.parametrize("call", ["read", "pread", "get"])
async def test_bytes_are_the_memory_that_they_were_read_into(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file: Any = SimpleNamespace(entry=SimpleNamespace(length=LENGTH), path="/f")

    async def opened(*_: object, **__: object) -> Any:
        return file

    for module in (files, transfer):
        monkeypatch.setattr(module, "BlockStream", Blocks)
    monkeypatch.setattr(transfer, "FileMap", SimpleNamespace(open=opened))
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    core: Any = SimpleNamespace(
        master=SimpleNamespace(new_request=lambda: 1), world=SimpleNamespace(clock=clock)
    )
    existing = files.ExistingFile(core, file, "r")
    tracemalloc.start()
    try:
        if call == "get":
            data = await transfer.read_bytes(core, "/f")
        elif call == "read":
            data = await existing.read()
        else:
            data = await existing.pread(0, LENGTH)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (type(data), len(data)) == (bytes, LENGTH)
    assert peak < LENGTH + MIB

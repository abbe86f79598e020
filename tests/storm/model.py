"""What a client of the storm may find: out of the log that it writes itself.

A call is logged before it begins and when it has ended. What was acknowledged holds until
the next call that changes it. A call that failed may have been carried out, or may be at
any later time: nothing is done any more to what it was about (it is *retired*), and both
are right from then on.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

BLOCK_BYTES = 4096
SHARED, LOG, MUSEUM = "/storm/shared", "/storm/log", "/museum"

#: A content: (its number, its length); None: nothing is there.
Content = tuple[int, int] | None


@lru_cache(64)
def content(client: int, number: int, length: int) -> bytes:
    return random.Random(f"{client}/{number}").randbytes(length)


def museum() -> dict[str, tuple[int, int]]:
    """Files that are never changed, and damaged: path to content, of client 0."""
    lengths = [1, 5_000, 70_000, 300_000, 1_100_000, 3_000_000]
    return {f"{MUSEUM}/{n}": (n, length) for n, length in enumerate(lengths)}


@dataclass
class Call:
    """A line of the log; the time is that of the machine since its start."""

    client: int
    id: int
    op: str
    path: str
    arguments: dict[str, Any]
    began: float
    ended: float = float("inf")
    result: str = ""
    text: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def __str__(self) -> str:
        return f"client {self.client} call {self.id}: {self.op} {self.path} {self.arguments}"


@dataclass
class Model:
    files: dict[str, set[Content]] = field(default_factory=dict)
    blocks: dict[int, set[Content]] = field(default_factory=dict)
    #: Records by content: offsets that were acknowledged.
    records: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    retired: set[str | int] = field(default_factory=set)

    def ended(self, call: Call) -> None:
        """It was acknowledged, or failed."""
        is_well, arguments = call.result == "ok", call.arguments
        if call.op in ("put", "rest_put"):
            self._set(call.path, (arguments["number"], arguments["length"]), is_well)
        elif call.op in ("delete", "rest_delete"):
            self._set(call.path, None, is_well)
        elif call.op == "rename":
            for found in self.files[call.path].copy():
                self._set(arguments["to"], found, is_well)
            self._set(call.path, None, is_well)
        elif call.op == "pwrite":
            there = self.blocks.setdefault(arguments["block"], {None})
            if is_well:
                there.clear()
            else:
                self.retired.add(arguments["block"])
            there.add((arguments["number"], BLOCK_BYTES))
        elif call.op == "append":
            offsets = self.records[arguments["number"], arguments["length"]]
            if is_well:
                offsets.append(arguments["offset"])

    def _set(self, path: str, new: Content, is_well: bool) -> None:
        there = self.files.setdefault(path, {None})
        if is_well:
            there.clear()
        else:
            self.retired.add(path)
        there.add(new)

    def usable(self) -> list[str]:
        """Files that are there for sure."""
        return [
            path
            for path, there in self.files.items()
            if path not in self.retired and None not in there
        ]


def is_one_of(data: bytes | None, client: int, allowed: set[Content]) -> bool:
    """Whether ``data``, None if there was nothing, is what one of these calls left."""
    whole = [None if c is None else content(client, *c) for c in allowed]
    return data in whole


def is_mixed_of(data: bytes, client: int, allowed: set[Content]) -> bool:
    """The same of a block, of which a write that failed may have left any part."""
    whole = [bytes(len(data)) if c is None else content(client, *c) for c in allowed]
    if data in whole:
        return True
    return len(whole) > 1 and all(
        any(each[at] == byte for each in whole) for at, byte in enumerate(data)
    )


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def calls_of(path: Path) -> tuple[list[Call], list[dict[str, Any]]]:
    """The calls in a client's log, and what its library logged meanwhile."""
    calls: dict[int, Call] = {}
    reported = []
    for line in read_log(path):
        if "log" in line:
            reported.append(line)
        elif "began" in line:
            calls[line["id"]] = Call(**line)
        else:
            call = calls[line["id"]]
            call.ended, call.result, call.text = line["ended"], line["result"], line["text"]
            call.arguments |= line["more"]
    return list(calls.values()), reported

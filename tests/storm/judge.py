"""Whether a storm was weathered: by the clients' logs, the faults', and a fresh client.

At fault is the file system for: a byte that nobody wrote, an acknowledgement that does not
hold, a call of more than ``CALL_SECONDS_MAX`` in which at least two of three chunkservers
(and for REST the control plane) lived, and a call that failed unless they were away for as long
as a client waits for them. Whoever is killed comes back at once, so that is no excuse; nor is a
master that is away: whoever needs it waits. What docs/promises.md says of
the rest: what was written while one chunkserver lived alone is on that one alone until another
has been back for ``REPAIR_SECONDS``: nothing can read it while that one is away.
"""

from __future__ import annotations

import itertools
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx

from gfs.client import Client
from gfs.client.master import PLACEMENT_SECONDS
from gfs.errors import ChunkUnavailable, NotEnoughChunkservers, NotFound

from .faults import CHUNKSERVERS, Away
from .model import (
    BLOCK_BYTES,
    LOG,
    SHARED,
    Call,
    Model,
    calls_of,
    content,
    is_mixed_of,
    is_one_of,
    museum,
    read_log,
)

CALL_SECONDS_MAX = 15.0
#: What a process needs to be found again by those who lost it.
RETURN_SECONDS = 1.0
#: And to get what was written without it: it registers, and chunks are copied.
REPAIR_SECONDS = 10.0
#: A client waits at least so long for chunkservers, which register within 3 s when they are back.
WAIT_SECONDS_MIN = PLACEMENT_SECONDS - 3.0
#: What a call may fail with when they were away for longer.
EXCUSED = (ChunkUnavailable.code, NotEnoughChunkservers.code)
SHOWN = 8


def aways(path: Path) -> list[Away]:
    return [Away(**line) for line in read_log(path)]


class Judge:
    """``slowness`` is how many times as long all may take on this machine."""

    def __init__(self, logs: dict[int, Path], faults: Path, slowness: float = 1.0) -> None:
        self._call_seconds_max = slowness * CALL_SECONDS_MAX
        self._return_seconds = slowness * RETURN_SECONDS
        self._repair_seconds = slowness * REPAIR_SECONDS
        self.calls: list[Call] = []
        self.reported: dict[int, list[dict[str, Any]]] = {}
        self.models: dict[int, Model] = {}
        self.problems: list[str] = []
        self._aways = aways(faults)
        for number, path in logs.items():
            calls, self.reported[number] = calls_of(path)
            model = self.models[number] = Model()
            for call in calls:
                model.ended(call)
            self.calls += calls

    # --- calls ------------------------------------------------------------------------------

    def _seconds_away(self, call: Call, *needed: str) -> float:
        """How long two chunkservers of three, or one of ``needed``, did not live meanwhile."""
        points = {call.began, call.ended}
        for away in self._aways:
            points |= {away.began, away.ended + self._return_seconds}
        inside = sorted(point for point in points if call.began <= point <= call.ended)
        found = 0.0
        for left, right in itertools.pairwise(inside):
            back = right - self._return_seconds
            absences = [a for a in self._aways if a.began <= left and back <= a.ended]
            gone = {a.who for a in absences}
            if (
                gone.intersection(needed)
                or len(gone.intersection(CHUNKSERVERS)) > 1
                or any(map(self._was_alone_before, absences))
            ):
                found += right - left
        return found

    def _was_alone_before(self, absence: Away) -> bool:
        """Whether no other chunkserver lived a moment before that one went away."""
        others = [who for who in CHUNKSERVERS if who != absence.who]
        if len(others) == len(CHUNKSERVERS):
            return False
        first, second = ([a for a in self._aways if a.who == who] for who in others)
        return any(
            max(a.began, b.began) < min(a.ended, b.ended)
            and 0 <= absence.began - min(a.ended, b.ended) <= self._repair_seconds
            for a in first
            for b in second
        )

    def seconds(self, call: Call) -> float:
        """How long it took while all it needs lived."""
        needed = ["control"] if call.op.startswith("rest") else []
        return call.seconds - self._seconds_away(call, *needed)

    def _may_fail(self, call: Call) -> bool:
        if call.op.startswith("rest"):
            if any(
                away.who == "control"
                and away.began <= call.ended <= away.ended + self._return_seconds
                for away in self._aways
            ):
                return True  # its connection ended with the process
        elif call.result not in EXCUSED:
            return False
        return self._seconds_away(call) >= WAIT_SECONDS_MIN

    def judge_calls(self) -> None:
        for call in self.calls:
            if not call.result:
                self.problems.append(f"{call}: never ended")
            elif call.result == "wrong":
                self.problems.append(f"{call}: WRONG BYTES: {call.text}")
            elif call.result != "ok" and not self._may_fail(call):
                self.problems.append(
                    f"{call}: failed after {call.seconds:.1f} s: {call.result}: {call.text}"
                )
            elif self.seconds(call) > self._call_seconds_max:
                self.problems.append(f"{call}: took {self.seconds(call):.1f} s")

    def longest(self) -> list[str]:
        """The calls that took longest, and what happened meanwhile."""
        lines = []
        for call in sorted(self.calls, key=self.seconds, reverse=True)[:SHOWN]:
            counted = self.seconds(call)
            lines.append(f"{counted:6.2f} s of {call.seconds:.2f} s: {call}: {call.result}")
            events = [
                (a.began, f"{a.who}: {a.kind} (for {a.ended - a.began:.1f} s)")
                for a in self._aways
                if a.began < call.ended and call.began < a.ended + self._return_seconds
            ]
            events += [
                (line["at"], line["log"])
                for line in self.reported[call.client]
                if call.began <= line["at"] <= call.ended
            ]
            lines += [
                f"        {at - call.began:+7.2f} s {text}" for at, text in sorted(events)[:12]
            ]
        return lines

    # --- reading everything back -------------------------------------------------------------

    async def judge_files(self, fs: Client) -> None:
        for path, (number, length) in museum().items():
            self._expect(path, await _get(fs, path), 0, {(number, length)})
        for client, model in self.models.items():
            for path, allowed in model.files.items():
                if path.startswith("/"):
                    self._expect(path, await _get(fs, path), client, allowed)
        await self._judge_shared(fs)
        await self._judge_log(fs)

    def judge_rest(self, http: httpx.Client, space: str) -> None:
        for client, model in self.models.items():
            for path, allowed in model.files.items():
                if not path.startswith("/"):
                    answer = http.get(
                        "/storage/download", params={"namespace": space, "name": path}
                    )
                    data = None if answer.status_code == 404 else answer.content
                    self._expect(path, data, client, allowed)

    def _expect(self, path: str, data: bytes | None, client: int, allowed: set[Any]) -> None:
        if not is_one_of(data, client, allowed):
            what = "nothing" if data is None else f"{len(data)} bytes"
            self.problems.append(f"{path} of client {client}: {what}, not one of {allowed}")

    async def _judge_shared(self, fs: Client) -> None:
        """Every block is what its writer was given, or zeros where nobody wrote."""
        data = await fs.get(SHARED)
        owners = {
            block: (client, allowed)
            for client, model in self.models.items()
            for block, allowed in model.blocks.items()
        }
        for block in range(-(-len(data) // BLOCK_BYTES)):
            found = data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            client, allowed = owners.pop(block, (0, {None}))
            if not is_mixed_of(found.ljust(BLOCK_BYTES, b"\0"), client, allowed):
                self.problems.append(
                    f"{SHARED}, block {block} of client {client}: {found[:8].hex()}"
                )
        for block, (client, allowed) in owners.items():
            if None not in allowed:
                self.problems.append(f"{SHARED}, block {block} of client {client}: past the end")

    async def _judge_log(self, fs: Client) -> None:
        """Each acknowledged record is where it was said to be; nothing else is there."""
        there: dict[int, bytes] = {}
        async with aclosing(fs.records(LOG, duplicates=True)) as records:
            async for record in records:
                there[record.offset] = record.data
        attempted = set()
        for client, model in self.models.items():
            for (number, length), offsets in model.records.items():
                data = content(client, number, length)
                attempted.add(data)
                for offset in offsets:
                    if there.get(offset) != data:
                        self.problems.append(
                            f"{LOG}: no record {number} of client {client} at {offset}"
                        )
        if not set(there.values()) <= attempted:
            self.problems.append(f"{LOG}: a record that nobody appended")


async def _get(fs: Client, path: str) -> bytes | None:
    try:
        return await fs.get(path)
    except NotFound:
        return None

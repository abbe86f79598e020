"""What is done to the cluster, and when: all of it decided by the seed beforehand.

Three rows of faults go on side by side: one of chunkservers and their disks, of which two
are left alone nearly always, one of the master and one of the control plane. A fault begins a
while after the one before it in its row is over. What was done is written down, with the times
between which a process could not answer: the judge goes by that.
"""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import on_disk
import trio
from harness import Cluster
from limits import HANG_SECONDS
from signals import send

from gfs.client import Client
from gfs.errors import GfsError

from .model import museum

CHUNKSERVERS = ["chunkserver-1", "chunkserver-2", "chunkserver-3"]
STOP_SECONDS_MAX = 20.0
#: Nobody starts a stopped master, so calls wait for as long as this.
MASTER_STOP_SECONDS_MAX = 5.0
REST_SECONDS_MAX = 4.0


@dataclass(frozen=True)
class Fault:
    #: Seconds after the end of the one before it.
    after: float
    kind: str
    who: tuple[str, ...]
    #: How long it is stopped, or what is damaged and how.
    seconds: float = 0.0
    path: str = ""
    how: str = ""

    def __str__(self) -> str:
        what = f" for {self.seconds:.1f} s" if self.seconds else f" {self.path} {self.how}".rstrip()
        return f"{self.kind} {', '.join(self.who)}{what}"


@dataclass(frozen=True)
class Away:
    """``who`` could not answer from ``began`` to ``ended``."""

    who: str
    kind: str
    began: float
    ended: float


def of_chunkservers(seed: str) -> Iterator[Fault]:
    chance = random.Random(f"{seed}/chunkservers")
    while True:
        after = chance.uniform(0, REST_SECONDS_MAX)
        kind = chance.choice(["kill", "kill", "stop", "stop", "damage"])
        count = 1 if chance.random() < 0.9 else 2
        who = tuple(chance.sample(CHUNKSERVERS, count))
        if kind == "damage":
            # Several replicas, and never all.
            who = tuple(chance.sample(CHUNKSERVERS, chance.choice([1, 2])))
            how = chance.choice(["flip", "flip head", "cut", "delete"])
            yield Fault(after, kind, who, path=chance.choice(list(museum())), how=how)
        else:
            yield Fault(after, kind, who, _stop_seconds(chance) if kind == "stop" else 0.0)


def of_master(seed: str) -> Iterator[Fault]:
    chance = random.Random(f"{seed}/master")
    while True:
        # So that it is killed as often as a chunkserver is: some four times a minute.
        after = chance.uniform(0, 4 * REST_SECONDS_MAX)
        kind = chance.choice(["kill", "kill", "stop"])
        seconds = chance.uniform(0.5, MASTER_STOP_SECONDS_MAX) if kind == "stop" else 0.0
        yield Fault(after, kind, ("master",), seconds)


def of_control(seed: str) -> Iterator[Fault]:
    chance = random.Random(f"{seed}/control")
    while True:
        after = chance.uniform(0, 6 * REST_SECONDS_MAX)
        kind = chance.choice(["kill", "stop"])
        yield Fault(after, kind, ("control",), _stop_seconds(chance) if kind == "stop" else 0.0)


def _stop_seconds(chance: random.Random) -> float:
    return chance.choice([chance.uniform(0.5, 5), chance.uniform(5, STOP_SECONDS_MAX)])


class Storm:
    def __init__(self, cluster: Cluster, fs: Client, log: TextIO) -> None:
        self._cluster = cluster
        self._fs = fs
        self._log = log
        self.counts: dict[str, int] = {}
        #: Replicas that were not made good again in time.
        self.problems: list[str] = []

    async def run(self, row: Iterator[Fault], until: float) -> None:
        """One fault after another; what is begun is ended."""
        for fault in row:
            if time.monotonic() + fault.after >= until:
                return
            await trio.sleep(fault.after)
            for who in fault.who:
                what = f"{fault.kind} of {who.partition('-')[0]}"
                self.counts[what] = self.counts.get(what, 0) + 1
            print(f"{time.strftime('%H:%M:%S')} {fault}", flush=True)
            if fault.kind == "damage":
                await self._damage(fault)
                continue
            async with trio.open_nursery() as nursery:
                for who in fault.who:
                    nursery.start_soon(
                        self._kill if fault.kind == "kill" else self._stop, who, fault
                    )

    async def _kill(self, who: str, fault: Fault) -> None:
        began = time.monotonic()
        pid = self._cluster.kill(who)
        await trio.to_thread.run_sync(self._cluster.wait_restarted, who, pid)
        self._was_away(who, fault, began)

    async def _stop(self, who: str, fault: Fault) -> None:
        began = time.monotonic()
        pid = self._cluster.kill(who, signal.SIGSTOP)
        try:
            await trio.sleep(fault.seconds)
        finally:
            send(pid, signal.SIGCONT)
        self._was_away(who, fault, began)

    def _was_away(self, who: str, fault: Fault, began: float) -> None:
        away = Away(who, fault.kind, began, time.monotonic())
        self._log.write(json.dumps(asdict(away)) + "\n")
        self._log.flush()

    # --- damage -----------------------------------------------------------------------------

    async def _damage(self, fault: Fault) -> None:
        """To a file all of whose replicas are good; they are to be so again."""
        if not await self._is_whole(fault.path):
            self.problems.append(f"{fault.path} was not made good again")
            return
        report = await self._fs.locate(fault.path)
        for chunk, who in itertools.product(report.chunks, fault.who):
            await trio.to_thread.run_sync(
                damage, self._cluster.state / who, chunk.handle, fault.how
            )
        # Until then the next fault could take the last good replica away.
        if not await self._is_whole(fault.path):
            self.problems.append(f"{fault.path} was not made good again")

    async def _is_whole(self, path: str) -> bool:
        with trio.move_on_after(HANG_SECONDS):
            while True:
                try:
                    if not (await self._fs.fsck(path)).damaged:
                        return True
                except GfsError as error:
                    print(f"fsck {path}: {error}", flush=True)
                await trio.sleep(0.2)
        return False


def damage(directory: Path, handle: int, how: str) -> None:
    """One replica, if it is there. At the place it does not matter which: what does is that it
    is seen."""
    replica = on_disk.replicas(directory).get(handle)
    if replica is not None:
        on_disk.damage(replica, how)

"""One seed, from a new cluster to the last check; and what came of it."""

from __future__ import annotations

import gc
import logging
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import trio

from gfs.errors import MasterUnavailable
from gfs.testing import Crashed, SimCluster, run_simulated
from gfs.testing.scratch import make_scratch
from gfs.testing.threads import LoopBlocked

from .ancestry import Ancestry
from .elected import ElectedMasters
from .everywhere import Everywhere
from .faults import Faults, mount_disks
from .metadata import read_metadata
from .plan import Plan
from .record import Record, Violation
from .scale import idle
from .settle import Settling
from .workload import CALLS_AT_ONCE, Actor, told_of_appends

TAIL_EVENTS = 60

#: How a seed fails: the checker saw what may not be; something broke that it does not
#: look at; there was no end; nobody is left to tell of it.
BROKEN_PROMISE = "a promise is broken"
ERROR = "an error that no checker raised"
NO_END = "no end"
DEATH = "its process died"
#: Mistakes that the interpreter finds in what it runs.
SLIPS = (AttributeError, ImportError, NameError, SyntaxError, TypeError)


@dataclass
class Outcome:
    seed: int
    digest: str = ""
    events: int = 0
    simulated_seconds: float = 0.0
    real_seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    shaken: int = 0
    #: Replicas that the master moved for fuller balance.
    moves: int = 0
    #: Empty if all went well; else what did not, and the tail of what led to it.
    failure: str = ""
    #: Which kind of failure: one of those below.
    verdict: str = ""
    story: str = ""
    trace: str = ""


def run_plan(plan: Plan, verbose: bool = False) -> Outcome:
    """Run a plan. Never raises: a failure is in the outcome."""
    global _under_way
    outcome = Outcome(plan.seed)
    run = _under_way = _Run(plan, outcome, verbose)
    began = time.perf_counter()
    # What Python tidies up, and when, is nothing that a seed decides.
    gc.disable()
    try:
        run_simulated(plan.seed, run.main)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        found = [*_leaves(error), *run.bugs]
        outcome.failure = _describe(found)
        outcome.verdict = _verdict(found)
    finally:
        run.conclude()
        gc.enable()
        _under_way = None
    outcome.real_seconds = time.perf_counter() - began
    return outcome


def lost(seed: int, why: str, is_late: bool) -> Outcome:
    """The outcome of a seed that does not end by itself, as far as it is known here."""
    run = _under_way
    outcome = Outcome(seed) if run is None else run.outcome
    outcome.failure, outcome.verdict = why, NO_END if is_late else DEATH
    if run is not None:
        run.conclude()
        for directory in filter(None, (run.cluster and run.cluster.directory, run.directory)):
            shutil.rmtree(directory, ignore_errors=True)
    return outcome


class _Run:
    def __init__(self, plan: Plan, outcome: Outcome, verbose: bool) -> None:
        self.plan = plan
        self.outcome = outcome
        self.verbose = verbose
        self.record: Record | None = None
        self.faults: Faults | None = None
        self.cluster: SimCluster | None = None
        #: For local files of clients.
        self.directory = ""
        #: Clients that have not done all their work, and for how long that may go on.
        self._at_work: set[str] = set()
        self._last_seconds = 0.0
        #: Not set in a pause of clients and faults; and how long that was.
        self._resumed = trio.Event()
        self._resumed.set()
        self._paused = 0.0

    async def main(self) -> None:
        plan = self.plan
        kind = ElectedMasters if plan.elects else SimCluster
        self.cluster = cluster = kind(
            plan.seed,
            chunkservers=plan.chunkservers,
            racks=plan.racks,
            disks=plan.disks,
            master=plan.master,
            chunkserver=plan.chunkserver,
            client=plan.client,
            start=False,
            supervised=True,
        )
        ancestry = Ancestry(lambda: read_metadata(cluster.directory))
        self.record = record = Record(cluster.trace, ancestry)
        quiet = _Telling(record) if self.verbose else _Quiet()
        moves = _Events("gfs.master.replicas.garbage_collector", "replica_moved")
        doubts = _Events("gfs.chunkserver.disks.loading", "notes_damaged")
        elections = told_of_elections(record)
        with quiet, moves, doubts, elections, told_of_appends(record), self._scratch():
            async with cluster:
                mount_disks(cluster, plan)
                await cluster.start_all()
                await self._live(cluster, record)
                self.outcome.simulated_seconds = trio.current_time()
        self.outcome.moves = moves.count
        if doubts.count and self.faults is not None and not self.faults.harmed_notes:
            raise Violation("what a power cut tore, or nothing, was taken for damage to notes")

    @contextmanager
    def _scratch(self) -> Iterator[None]:
        self.directory = make_scratch()
        try:
            yield
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def _live(self, cluster: SimCluster, record: Record) -> None:
        plan = self.plan
        clients = [f"client{n}" for n in range(plan.clients)]
        faults = self.faults = Faults(cluster, plan, record, clients)
        Everywhere(cluster, record, plan, faults.losses)
        async with trio.open_nursery() as nursery:
            for name in clients:
                nursery.start_soon(self._client, cluster, record, name)
            worked = 0.0
            if plan.absence is not None:
                nursery.start_soon(faults.long_absence, plan.absence.leaves)
                worked = plan.absence.pause
                await self._strike(faults, worked)
                await self._pause(faults)
            await self._strike(faults, plan.seconds - worked)
            bound = self._last_seconds
            nursery.cancel_scope.deadline = trio.current_time() + bound
        if nursery.cancel_scope.cancelled_caught:
            late = ", ".join(sorted(self._at_work))
            raise Violation(f"{bound:g} s after the faults {late} are still not done")
        settling = Settling(cluster, plan, record, faults)
        async with cluster.client("reader") as fs:
            await settling.look(fs)
            await settling.come_to_rest(fs)
            record.tell("at rest")
            await settling.check(fs)

    async def _strike(self, faults: Faults, seconds: float) -> None:
        async with trio.open_nursery() as striking:
            striking.start_soon(faults.run)
            await trio.sleep(seconds)
            striking.cancel_scope.cancel()
        faults.record.tell("the faults end")
        await faults.end()

    async def _pause(self, faults: Faults) -> None:
        """Until a server is back that is away for long."""
        began, self._resumed = trio.current_time(), trio.Event()
        with idle():
            await faults.returned.wait()
        self._paused = trio.current_time() - began
        self._resumed.set()

    async def _left(self, until: float) -> float:
        """How much of the time for work is left. Waits while there is a pause."""
        await self._resumed.wait()
        return until - (trio.current_time() - self._paused)

    async def _client(self, cluster: SimCluster, record: Record, name: str) -> None:
        """A program that makes its calls, and is started again when it was killed."""
        chance = random.Random(f"{self.plan.seed}/{name}")
        actor = Actor(name, record, chance, self.plan, cluster, self.directory)
        self._at_work.add(name)
        self._last_seconds = actor.last_seconds
        left = self.plan.calls
        mean = self.plan.seconds / (left + 1)
        until = trio.current_time() + self.plan.seconds
        while left > 0 and await self._left(until) > 0:
            try:
                async with cluster.client(name) as fs:
                    while left > 0 and (rest := await self._left(until)) > 0:
                        left -= 1
                        await trio.sleep(min(chance.expovariate(1 / mean), rest))
                        await self._resumed.wait()
                        for _ in range(chance.choice([1, 1, 1, CALLS_AT_ONCE])):
                            await actor.act(fs)
            except (MasterUnavailable, Crashed):
                await trio.sleep(1.0)
        self._at_work.remove(name)

    @property
    def bugs(self) -> list[BaseException]:
        """What processes logged as bugs and went on."""
        return [] if self.cluster is None else self.cluster.bugs

    def conclude(self) -> None:
        """Whatever happened: what there is to tell."""
        outcome = self.outcome
        if self.cluster is not None:
            outcome.digest = self.cluster.trace.digest()
            outcome.events = self.cluster.trace.events
            outcome.trace = self.cluster.trace.tail(TAIL_EVENTS) if outcome.failure else ""
        if self.record is not None:
            outcome.calls, outcome.failures = self.record.calls, self.record.failures
            outcome.shaken = sum(model.shaken for model in self.record.files.values())
            if outcome.failure:
                outcome.story = "\n".join(self.record.story[-TAIL_EVENTS:])
            if self.verbose:
                outcome.story = "\n".join(self.record.story)
        if self.faults is not None:
            outcome.faults = self.faults.counts


#: What runs in this process now.
_under_way: _Run | None = None


class _Quiet:
    """Nobody reads the processes' logs: that costs half of the time."""

    def __enter__(self) -> None:
        self._log = logging.getLogger("gfs")
        self._before = (self._log.level, self._log.propagate)
        self._log.setLevel(logging.ERROR)
        self._log.propagate = False

    def __exit__(self, *_: object) -> None:
        self._log.level, self._log.propagate = self._before
        self._log.setLevel(self._before[0])


class _Events(logging.Handler):
    """Counts the significant events of a kind, by the servers' own word."""

    def __init__(
        self, logger: str, event: str, act: Callable[[dict[str, str]], None] = lambda _: None
    ) -> None:
        """``act`` is called with the fields of each."""
        super().__init__(logging.INFO)
        self._event = event
        self._act = act
        self._log = logging.getLogger(logger)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "gfs_event", "") == self._event:
            self.count += 1
            self._act(record.gfs_fields)  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        self._before = self._log.level
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._before)


def told_of_elections(record: Record) -> _Events:
    """While in it, the master tells which chunks had to be given a possibly stale replica."""
    return _Events(
        "gfs.master.upkeep.elections",
        "replica_believed",
        lambda fields: record.elected(int(fields["chunk"], 16)),
    )


class _Telling(logging.Handler):
    """The processes' logs go into the story."""

    def __init__(self, record: Record) -> None:
        super().__init__(logging.INFO)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        if trio.lowlevel.in_trio_run():
            self._record.story.append(
                f"{trio.current_time():12.6f}     {record.name}: {record.getMessage()}"
            )

    def __enter__(self) -> None:
        self._log = logging.getLogger("gfs")
        self._before = (self._log.level, self._log.propagate)
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._log.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._before[0])
        self._log.propagate = self._before[1]


def _verdict(found: list[BaseException]) -> str:
    if any(isinstance(error, SLIPS) for error in found):
        return ERROR
    broken = (Violation, LoopBlocked)
    return BROKEN_PROMISE if any(isinstance(error, broken) for error in found) else ERROR


def _describe(found: list[BaseException]) -> str:
    """Errors, each once, with where they arose."""
    lines = []
    for each in dict.fromkeys(found):
        notes = getattr(each, "__notes__", [])
        text = "".join(traceback.format_exception(type(each), each, each.__traceback__))
        text = text.partition("the last of seed")[0]
        lines.append(text.strip())
        lines += [note for note in notes if note.startswith("logged by")]
    return "\n".join(lines)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]

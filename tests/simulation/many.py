"""Which seeds are run and how, on many cores; what came of all of them."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .crew import run_all
from .scale import FULL, SCALE, shrink

shrink()

from .plan import Plan, make_plan  # noqa: E402
from .run import Outcome, lost, run_plan  # noqa: E402

#: Of real time, for one seed: a hundred times what it takes.
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Choice:
    """What of a run is chosen on the command line."""

    hours: float = 1.0
    kinds: list[str] | None = None
    rate: float = 1.0
    verbose: bool = False
    durability: str | None = None
    #: Kinds of calls: these alone, if any.
    only: tuple[str, ...] = ()

    def plan(self, seed: int) -> Plan:
        return make_plan(seed, self.hours, self.kinds, self.rate, self.durability, self.only)

    def run(self, seed: int) -> Outcome:
        return run_plan(self.plan(seed), self.verbose)

    def command(self, seed: int) -> str:
        """The command that replays a seed, as exactly as it was run."""
        words = ["python", "-m", "tests.simulation", "--seed", f"{seed}"]
        if os.environ.get(SCALE) == FULL:
            words.insert(0, f"{SCALE}={FULL}")
        if self.hours != 1.0:
            words += ["--hours", f"{self.hours!r}"]
        if self.kinds is not None:
            words += ["--faults", ",".join(self.kinds) or "none"]
        if self.rate != 1.0:
            words += ["--rate", f"{self.rate!r}"]
        if self.durability is not None:
            words += ["--durability", self.durability]
        if self.only:
            words += ["--calls", ",".join(self.only)]
        return shlex.join(words)


@dataclass
class Totals:
    seeds: int = 0
    failed: list[int] = field(default_factory=list)
    simulated_seconds: float = 0.0
    events: int = 0
    shaken: int = 0
    moves: int = 0
    #: Seeds in which some were moved.
    moving: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.perf_counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        if outcome.failure:
            self.failed.append(outcome.seed)
        self.simulated_seconds += outcome.simulated_seconds
        self.events += outcome.events
        self.shaken += outcome.shaken
        self.moves += outcome.moves
        self.moving += outcome.moves > 0
        self.faults.update(outcome.faults)
        self.calls.update(outcome.calls)
        self.failures.update(outcome.failures)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def lines(self) -> list[str]:
        hours = self.simulated_seconds / 3600
        lines = [
            f"{self.seeds} seeds in {self.seconds:.1f} s: {self.seeds / self.seconds:.2f} seeds/s, "
            f"{hours:.2f} simulated hours, {self.events} events",
            f"calls     {_listed(self.calls)}",
            f"refused   {_listed(self.failures)}",
            f"faults    {_listed(self.faults)}",
            f"replicas moved for balance: {self.moves}, in {self.moving} seeds",
            f"files whose bytes the faults excuse: {self.shaken}",
        ]
        if self.failed:
            lines.append(f"FAILED    {', '.join(map(str, sorted(self.failed)))}")
        return lines


def _listed(counts: Counter[str]) -> str:
    parts = [f"{what} {count}" for what, count in sorted(counts.items())]
    return f"{sum(counts.values())} ({', '.join(parts)})"


def outcomes(
    seeds: Iterator[int], jobs: int, choice: Choice, patience: float = PATIENCE_SECONDS
) -> Iterator[Outcome]:
    """Run the seeds, in ``jobs`` processes; outcomes as they come. One that takes longer
    than ``patience`` has failed, and so has one whose process died."""
    return run_all(choice.run, seeds, jobs, patience, lost)


def until(seconds: float, seeds: Iterator[int]) -> Iterator[int]:
    """Seeds for as long as told."""
    end = time.monotonic() + seconds
    for seed in seeds:
        if time.monotonic() >= end:
            return
        yield seed


Print = Callable[[str], None]


def report(outcome: Outcome, choice: Choice, say: Print) -> None:
    """All that is known of a seed that failed."""
    plan = choice.plan(outcome.seed)
    say(f"\n===== seed {outcome.seed} FAILED: {outcome.verdict} =====\n{plan}\n{outcome.failure}")
    say(f"\n----- what was done, the last of it -----\n{outcome.story}")
    say(f"\n----- the trace's tail -----\n{outcome.trace}")
    say(f"\nreplay: {choice.command(outcome.seed)}")

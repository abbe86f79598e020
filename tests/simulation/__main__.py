"""``python -m tests.simulation``: a simulated cluster under faults, seed by seed.

Prints seeds per second, simulated hours, calls and faults by kind; for a seed that
fails what was wrong, what led to it, and the command that replays it. Ends with 1
if one failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys

from .many import PATIENCE_SECONDS, Choice, Totals, outcomes, report, until  # isort: skip - it changes sizes
from .plan import KINDS
from .workload import CALLS

PROGRESS_SEEDS = 200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--seed", type=int, help="only this one, and all that happened in it")
    parser.add_argument(
        "--hours",
        type=float,
        default=1.0,
        help="clients and faults of no seed are at work for longer, in simulated time, and in "
        "most for a minute. After that their last calls end and the cluster comes to rest. "
        "With 1 or more, some seeds have an hour on top in which a server is away and hardly "
        "anything else happens (default: 1)",
    )
    parser.add_argument(
        "--faults",
        help=f"only these, with commas, or none, or all: {', '.join(KINDS)} "
        "(default: each seed has its own)",
    )
    parser.add_argument(
        "--rate", type=float, default=1.0, help="faults so many times as often (default: 1)"
    )
    parser.add_argument(
        "--durability",
        choices=["replicated", "fsync"],
        help="of all chunkservers (default: each seed has its own)",
    )
    parser.add_argument(
        "--calls",
        default="all",
        help="only these of the clients' calls, with commas, or all (default): "
        f"{', '.join(kind.__name__ for kind in CALLS)}",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--time", type=float, help="go on for so many seconds instead of --seeds")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        help="a seed that takes longer, in seconds of real time, has failed "
        f"(default: {PATIENCE_SECONDS:g})",
    )
    parser.add_argument("--digests", action="store_true", help="print each seed's trace digest")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    return parser.parse_args()


def kinds_of(text: str | None) -> list[str] | None:
    if text is None:
        return None
    if text in ("none", "all"):
        return list(KINDS) if text == "all" else []
    kinds = [kind.strip() for kind in text.split(",")]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        sys.exit(f"no such fault: {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    return kinds


def calls_of(text: str) -> tuple[str, ...]:
    known = [kind.__name__ for kind in CALLS]
    calls = tuple(call.strip() for call in text.split(",")) if text != "all" else ()
    unknown = [call for call in calls if call not in known]
    if unknown:
        sys.exit(f"no such call: {', '.join(unknown)}; there are: {', '.join(known)}")
    return calls


def main() -> int:
    options = arguments()
    is_one = options.seed is not None
    choice = Choice(
        options.hours,
        kinds_of(options.faults),
        options.rate,
        verbose=is_one,
        durability=options.durability,
        only=calls_of(options.calls),
    )
    if is_one:
        return _one(choice, options.seed, options.patience)
    seeds = iter(range(options.first, options.first + options.seeds))
    if options.time is not None:
        seeds = until(options.time, itertools.count(options.first))
    totals = Totals()
    for outcome in outcomes(seeds, options.jobs, choice, options.patience):
        totals.add(outcome)
        if options.digests:
            print(outcome.seed, outcome.digest)
        if outcome.failure:
            report(outcome, choice, print)
            if not options.keep_going:
                break
        if totals.seeds % PROGRESS_SEEDS == 0:
            print(totals.lines()[0], flush=True)
    print("\n".join(totals.lines()), flush=True)
    return 1 if totals.failed else 0


def _one(choice: Choice, seed: int, patience: float) -> int:
    (outcome,) = outcomes(iter([seed]), 1, choice, patience)
    print(choice.plan(seed))
    print(outcome.story)
    if outcome.failure:
        report(outcome, choice, print)
    totals = Totals()
    totals.add(outcome)
    print("\n".join(totals.lines()))
    print(f"seed {seed}: trace {outcome.digest}, {outcome.events} events")
    return 1 if outcome.failure else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.exit(code)

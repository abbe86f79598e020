"""``python -m tests.simulation.mutants [NAME ...]``: which deliberate bugs are caught.

Prints for each mutant the seed that caught it, how it showed, and in how many
seconds; as many mutants at once as told. Ends with 1 if one lives.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from . import SEEDS, Mutant, NotJudged, Verdict, judge, mutants

SHOWN = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"at most (default: {SEEDS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at once")
    options = parser.parse_args()
    known = {mutant.name: mutant for mutant in mutants()}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        sys.exit(f"no such mutant: {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = [known[name] for name in options.names or known]
    print(f"{'mutant':24} {'seed':>5} {'seconds':>8}  how it showed", flush=True)
    living = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in as_completed(pool.submit(_judge, each, options.seeds) for each in chosen):
            print(_row(verdict.result()), flush=True)
            if verdict.result().seed is None:
                living.append(verdict.result().mutant.name)
    print(f"{len(living)} of {len(chosen)} live: {', '.join(sorted(living)) or 'none'}")
    return 1 if living else 0


def _judge(mutant: Mutant, seeds: int) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="gfs-mutant-") as tree:
        try:
            return judge(mutant, Path(tree), seeds, jobs=1)
        except NotJudged as error:
            # The others are judged all the same.
            print(f"{mutant.name}: {error}", file=sys.stderr, flush=True)
            return Verdict(mutant, None, "NOT JUDGED", 0.0)


def _row(verdict: Verdict) -> str:
    seed = "-" if verdict.seed is None else verdict.seed
    how = verdict.how[:SHOWN]
    return f"{verdict.mutant.name:24} {seed:>5} {verdict.seconds:8.1f}  {how}"


if __name__ == "__main__":
    sys.exit(main())

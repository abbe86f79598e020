"""``python -m tests.storm --seconds 600 --seed 17``: see the package. Ends with 1 if the
file system broke a promise; prints what, the longest calls, and how to run it again."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (600)")
    parser.add_argument("--seed", default=str(int(time.time())), help="what is done, and when")
    parser.add_argument("--clients", type=int, default=4, help="processes; one is REST's (4)")
    parser.add_argument("--keep", type=Path, help="where logs and cluster stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        directory = options.keep or Path(made)
        directory.mkdir(parents=True, exist_ok=True)
        sys.exit(1 if run.run(directory, options.seed, options.seconds, options.clients) else 0)

"""``python -m tests.mutation [ROOM ...]``: what share of small mistakes the tests notice.

A room is a package of :data:`~tests.mutation.ROOMS`, or ``known`` for the table of mistakes
made by hand. Prints every mutation as it is judged, and in the end what survived. Ends with
1 if one of ``known`` did; of the others each must be looked at.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ROOMS, Batches, Mutation, Tree, drawn, known
from .covering import Covering, batches

#: For what should take some seconds, beside others.
KNOWN_SECONDS = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="only these (default: all)")
    parser.add_argument("--places", type=int, default=40, help="in each room (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="draws the places (default: 0)")
    parser.add_argument("--only", default="", metavar="PATH:LINE", help="of what was drawn")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutations at once")
    options = parser.parse_args()
    rooms = options.rooms or ["known", *ROOMS]
    if unknown := set(rooms) - {"known", *ROOMS}:
        sys.exit(f"no such room: {', '.join(unknown)}; there are: known, {', '.join(ROOMS)}")
    work = [
        (room, mutation, batches)
        for room in rooms
        for mutation, batches in _work(room, options.places, options.seed)
        if options.only in f"{mutation.path}:{mutation.line}"
    ]
    survivors: list[tuple[str, Mutation]] = []

    def judge(part: list[tuple[str, Mutation, Batches]]) -> None:
        def judged(number: int, by: str | None, ran: int) -> None:
            room, mutation, _ = part[number]
            print(f"{mutation}\n    {by or f'SURVIVED {ran} tests'}", flush=True)
            if by is None:
                survivors.append((room, mutation))

        with tempfile.TemporaryDirectory(prefix="gfs-mutation-") as place:
            Tree(Path(place)).judge([each for _, *each in part], judged)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(judge, [work[job :: options.jobs] for job in range(options.jobs)]))
    for _, mutation in survivors:
        print(f"SURVIVED {mutation}")
    alive = Counter(room for room, _ in survivors)
    for room, count in Counter(room for room, *_ in work).items():
        caught = count - alive[room]
        print(f"== {room}: {caught} of {count} caught, {caught / count:.0%}")
    return 1 if alive["known"] else 0


def _work(room: str, count: int, seed: int) -> list[tuple[Mutation, Batches]]:
    if room == "known":
        named = [(each.mutation(), [f"tests/{test}" for test in each.tests]) for each in known()]
        return [(mutation, [(tests, KNOWN_SECONDS)]) for mutation, tests in named]
    covering = Covering()
    return [
        (mutation, batches(*covering.tests(mutation.path, mutation.lines), covering.seconds))
        for mutation in drawn(room, count, seed)
    ]


if __name__ == "__main__":
    sys.exit(main())

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ROOMS, Mutation, Tree, drawn, known

#: For a group of a room's tests, which take some minutes at most.
LIMIT_SECONDS = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="only these (default: all)")
    parser.add_argument("--places", type=int, default=40, help="in each room (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="draws the places (default: 0)")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="for some tests")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="rooms at once")
    options = parser.parse_args()
    rooms = options.rooms or ["known", *ROOMS]
    if unknown := set(rooms) - {"known", *ROOMS}:
        sys.exit(f"no such room: {', '.join(unknown)}; there are: known, {', '.join(ROOMS)}")
    survivors: dict[str, list[Mutation]] = {}

    def judge(room: str) -> None:
        survivors[room] = _judge(room, options.places, options.seed, options.limit)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(judge, rooms))
    for room in rooms:
        for mutation in survivors[room]:
            print(f"SURVIVED {mutation}")
    return 1 if survivors.get("known") else 0


def _judge(room: str, count: int, seed: int, limit: float) -> list[Mutation]:
    if room == "known":
        work = [(each.mutation(), [each.tests]) for each in known()]
    else:
        work = [(mutation, ROOMS[room]) for mutation in drawn(room, count, seed)]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="gfs-mutation-") as place:
        tree = Tree(Path(place))
        for mutation, groups in work:
            by = tree.caught_by(mutation, groups, limit)
            if by is None:
                survivors.append(mutation)
            print(f"{mutation}\n    {by or 'SURVIVED'}", flush=True)
        for test in tree.broken:
            print(f"{test} fails without any mistake: left out", flush=True)
    caught = len(work) - len(survivors)
    print(f"== {room}: {caught} of {len(work)} caught, {caught / len(work):.0%}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())

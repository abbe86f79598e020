"""Records of the control plane in LMDB and in PostgreSQL, in the same run.

    python -m bench.records [postgresql://USER@HOST:PORT/DATABASE]

Writes of a row each, one after another and 64 at once, each acknowledged only when it is on the
disk; the question before a request, whether the copy has all that was acknowledged; and reads.
Without a URL, LMDB alone. In PostgreSQL the rows go into stores of their own names, and stay.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import trio

from control.records import Records, Schema, Table

ROUNDS = 3
SECONDS = 2.0
AT_ONCE = 64
#: Of each row, about those of a user.
BYTES = 100


class Row(msgspec.Struct, array_like=True):
    name: str
    text: str


ROWS = Table("rows", Row, key=lambda row: row.name)
SCHEMA = Schema("bench", 1, [ROWS])


@contextmanager
def opened(url: str) -> Iterator[Records]:
    """In a directory that goes with it; with a URL, as a copy there."""
    with tempfile.TemporaryDirectory(prefix="gfs-bench-records-") as place:
        if url:
            name = f"bench_{secrets.token_hex(4)}"
            records = Records.open_shared(url, Path(place), [SCHEMA], store=name)
        else:
            records = Records.open(Path(place, "records"), [SCHEMA])
        with closing(records):
            yield records


async def per_second(work: Callable[[int], Awaitable[object]], at_once: int = 1) -> float:
    """``work`` is called with a number of its own each time."""
    done = 0
    began = time.perf_counter()

    async def go_on() -> None:
        nonlocal done
        while time.perf_counter() < began + SECONDS:
            done += 1
            await work(done)

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(go_on)
    return done / (time.perf_counter() - began)


async def measure(url: str) -> dict[str, float]:
    with opened(url) as records:

        async def write(number: int) -> None:
            row = Row(f"{number:08}", "x" * BYTES)
            await records.write(lambda txn: ROWS.put(txn, row))

        async def ask(_: int) -> None:
            await records.fresh()

        found = {
            "writes/s, one after another": await per_second(write),
            f"writes/s, {AT_ONCE} at once": await per_second(write, AT_ONCE),
        }
        if url:
            found["questions/s, one after another"] = await per_second(ask)
        count, began = 0, time.perf_counter()
        with records.read() as txn:
            while time.perf_counter() < began + SECONDS:
                for _ in range(1000):
                    ROWS.get(txn, "00000001")
                count += 1000
        found["reads/s"] = count / (time.perf_counter() - began)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__)
    parser.add_argument("url", nargs="?", default="")
    url = parser.parse_args().url
    places = {"LMDB": ""} | ({"PostgreSQL": url} if url else {})
    rounds: dict[str, list[dict[str, float]]] = {place: [] for place in places}
    for number in range(ROUNDS):
        for place in list(places)[:: -1 if number % 2 else 1]:
            rounds[place].append(trio.run(measure, places[place]))
    print(f"medians of {ROUNDS} rounds")
    for place, each in rounds.items():
        for what in each[0]:
            print(f"{place:10} {what:32} {statistics.median(one[what] for one in each):12,.0f}")


if __name__ == "__main__":
    main()

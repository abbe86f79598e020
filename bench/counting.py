"""What metrics cost a server: counting an operation, and a scrape.

Operations are counted by :class:`gfs.metrics.Operations`, alone and as a batch; a histogram of
``prometheus-client`` is measured beside them. A scrape is of as many chunkservers as are said:
what holds the loop (names and labels are put together), and what is done in a thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram, Metric

from gfs.metrics import Operations, Values, exposition, gauge
from gfs.protocol.messages import Stat

COUNT = 100_000
BATCH = 100


def cpu_us(act: Callable[[], object], count: int) -> float:
    """Microseconds of a call: the best of five rounds, since others compute beside us."""
    best = math.inf
    for _ in range(5):
        started = time.thread_time()
        for _ in range(count):
            act()
        best = min(best, time.thread_time() - started)
    return best / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.counting", description=__doc__)
    parser.add_argument("--servers", type=int, default=1000, help="chunkservers of one disk")
    servers = range(parser.parse_args().servers)
    operations = Operations(math.inf)
    batch = [Stat(id=number, path="/") for number in range(BATCH)]
    histogram = Histogram("x", "x", ["operation"], registry=CollectorRegistry()).labels("Stat")
    alone = cpu_us(lambda: operations.done(Stat, 1, 0.003), COUNT)
    together = cpu_us(lambda: operations.all_done(batch, 0.003), COUNT // BATCH) / BATCH
    library = cpu_us(lambda: histogram.observe(0.003), COUNT)
    print(f"an operation counted: {alone:.2f} µs, of a batch {together:.2f} µs")
    print(f"the same by a histogram of prometheus-client: {library:.2f} µs")

    free: Values = {(("server", f"{n:032x}"), ("disk", "/srv/gfs")): n for n in servers}
    states: Values = {(("server", f"{n:032x}"), ("state", "ok")): n for n in servers}

    def build() -> list[Metric]:
        return [gauge("gfs_free", "Free", free), gauge("gfs_disks", "Disks", states)]

    built = build()
    print(
        f"a scrape of {len(servers)} chunkservers: {cpu_us(build, 3) / 1000:.1f} ms of the loop, "
        f"{cpu_us(lambda: exposition(built), 3) / 1000:.1f} ms in a thread"
    )


if __name__ == "__main__":
    main()

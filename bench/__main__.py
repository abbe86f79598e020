"""Measure everything; print it, write it and draw it to bench/out/.

The large file and the bare limits are measured in turns, round by round, so
that a noisy neighbour hits both; the figures are the medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import trio

import gfs
from bench import bare, cluster, loads, picture, report
from bench.circumstances import OUT, add_page_option, circumstances
from gfs.blocks import MIB

ROUNDS = 3
CALLS_MIB = 128


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    add_page_option(parser, "docs/speed.md")
    arguments = parser.parse_args()
    with cluster.interrupted_cleanly():
        result = measure(arguments.mib * MIB, arguments.seconds, arguments.dir)
    OUT.mkdir(exist_ok=True)
    (OUT / "bench.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    picture.draw(result, OUT / "bench.png")
    if arguments.page:
        report.update_page(result)
    print(report.table(result))
    print(f"\n{OUT / 'bench.json'}\n{OUT / 'bench.png'}")


def measure(total: int, seconds: float, folder: str | None) -> report.Result:
    started = time.time()
    load_before = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="gfs-bare-", dir=folder) as scratch,
        cluster.running(folder=folder) as servers,
    ):
        # First: gigabytes of the large files on their way to the disk, and then
        # deleted, would be what the small ones' commits wait for.
        print("small operations …", flush=True)
        small = trio.run(loads.all_small, servers.state, seconds)
        runs = large_file(servers, total, Path(scratch))
        figures = {name: statistics.median(values) for name, values in runs.items()}
        figures |= trio.run(calls, servers.state)
        figures |= small
    figures["write_of_bare_chain"] = figures["write_mib_s"] / figures["bare_chain_mib_s"]
    figures["read_of_bare_sendfile"] = figures["read_mib_s"] / figures["bare_sendfile_mib_s"]
    return {
        **circumstances(started, load_before),
        "large_file_mib": total // MIB,
        "figures": {name: round(value, 3) for name, value in figures.items()},
        "runs": {name: [round(value, 3) for value in values] for name, values in runs.items()},
    }


def large_file(servers: cluster.Running, total: int, scratch: Path) -> dict[str, list[float]]:
    """All rounds of the large file beside the bare limits, figure by figure."""
    rounds: list[dict[str, float]] = []
    for number in range(ROUNDS):
        print(f"large file, round {number + 1} of {ROUNDS} …", flush=True)
        found = {"bare_chain_mib_s": bare.chain(total, scratch)}
        found |= trio.run(one_large_file, servers, total)
        found["bare_sendfile_mib_s"] = bare.sendfile(total, scratch)
        rounds.append(found)
    return {name: [found[name] for found in rounds] for name in rounds[0]}


async def one_large_file(servers: cluster.Running, total: int) -> dict[str, float]:
    """One put and one get, and what they cost the processors."""
    figures = {}
    async with gfs.connect(state=servers.state) as fs:
        for name, load in (("write", loads.write), ("read", loads.read)):
            client, others = time.process_time(), servers.cpu_seconds()
            figures[f"{name}_mib_s"] = await load(fs, "/bench/large", total)
            gib = total / (1024 * MIB)
            figures[f"{name}_client_cpu_s_per_gib"] = (time.process_time() - client) / gib
            figures[f"{name}_servers_cpu_s_per_gib"] = (servers.cpu_seconds() - others) / gib
        await fs.delete("/bench/large", now=True)
    return figures


async def calls(state: Path) -> loads.Figures:
    async with gfs.connect(state=state) as fs:
        return await loads.calls_per_mib(fs, CALLS_MIB * MIB)


if __name__ == "__main__":
    main()

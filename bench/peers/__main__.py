"""Run the systems in turns, round by round, each time anew in an empty directory; print
what was found, write it and draw it to bench/out/."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench import cluster, report
from bench.circumstances import OUT, add_page_option, circumstances
from bench.peers import moosefs, ours, picture, seaweedfs
from bench.peers.table import SYSTEMS, Result, table, turns
from bench.peers.ways import IN_FLIGHT, Figures
from gfs.blocks import MIB

MODULES = {"ours": ours, "seaweedfs": seaweedfs, "moosefs": moosefs}
README = Path(__file__).parents[2] / "README.md"
BEGIN = "<!-- bench-peers: begin (from bench/out/peers.json; nothing in here by hand) -->"
END = "<!-- bench-peers: end -->"
QUICK = {"mib": 64, "seconds": 1.0, "rounds": 1, "listed": 200}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--listed", type=int, default=1000, help="files of a listed directory")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    add_page_option(parser, "README.md")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a minute")
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**QUICK)
        arguments = parser.parse_args()
    with cluster.interrupted_cleanly():
        result = compare(arguments)
    conditions = report.conditions(result)
    text = table(result, conditions)
    OUT.mkdir(exist_ok=True)
    (OUT / "peers.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (OUT / "peers.md").write_text(text + "\n", encoding="utf-8")
    picture.draw(result, conditions, OUT / "peers.png")
    if arguments.page:
        report.replace_block(README, BEGIN, END, text)
    print(f"\n{text}\n\n{OUT}/peers.json, peers.md, peers.png")


def compare(arguments: argparse.Namespace) -> Result:
    started, load_before = time.time(), os.getloadavg()[0]
    not_run = {name: why for name, module in MODULES.items() if (why := module.missing())}
    runs: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="gfs-peers-", dir=arguments.dir) as scratch:
        source = Path(scratch) / "source"
        make_source(source, arguments.mib)
        for number in range(arguments.rounds):
            for name in turns(list(MODULES), number):
                if name in not_run:
                    continue
                print(f"round {number + 1} of {arguments.rounds}: {SYSTEMS[name]} …", flush=True)
                source.read_bytes()
                try:
                    found = one_turn(name, Path(scratch), source, arguments)
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    if name == "ours":
                        raise
                    not_run[name] = f"it failed: {error}"
                    continue
                for way, figures in found.items():
                    for figure, value in figures.items():
                        runs.setdefault(way, {}).setdefault(figure, []).append(round(value, 3))
    return {
        **circumstances(started, load_before),
        **{name: getattr(arguments, name) for name in QUICK},
        "in_flight": IN_FLIGHT,
        "versions": {name: MODULES[name].version() for name in MODULES if name not in not_run},
        "not_run": not_run,
        "figures": {
            way: {name: statistics.median(values) for name, values in figures.items()}
            for way, figures in runs.items()
        },
        "runs": runs,
    }


def one_turn(
    name: str, scratch: Path, source: Path, arguments: argparse.Namespace
) -> dict[str, Figures]:
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        return MODULES[name].run(Path(folder), source, arguments.seconds, arguments.listed)


def make_source(path: Path, mib: int) -> None:
    piece = os.urandom(MIB)
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(piece)


if __name__ == "__main__":
    main()

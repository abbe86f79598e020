"""``python -m bench``: measure everything, write JSON and one picture to bench/out/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import trio

from bench import bare, cluster, loads, report
from gfs.blocks import MIB

OUT = Path(__file__).parent / "out"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per rate")
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    total = arguments.mib * MIB
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="gfs-bare-", dir=arguments.dir) as name:
        folder = Path(name)
        figures: loads.Figures = {
            "bare_chain_mib_s": statistics.median(bare.chain(total, folder) for _ in range(3)),
            "bare_sendfile_mib_s": statistics.median(
                bare.sendfile(total, folder) for _ in range(3)
            ),
        }
    with cluster.running(folder=arguments.dir) as state:
        figures |= trio.run(loads.all_loads, state, total, arguments.seconds)
    figures["write_of_bare_chain"] = figures["write_mib_s"] / figures["bare_chain_mib_s"]
    figures["read_of_bare_sendfile"] = figures["read_mib_s"] / figures["bare_sendfile_mib_s"]
    result = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "kernel": platform.release(),
        "large_file_mib": arguments.mib,
        "figures": {name: round(value, 3) for name, value in figures.items()},
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    report.draw(figures, OUT / "bench.png")
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()

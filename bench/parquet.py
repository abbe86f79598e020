"""``python -m bench.parquet``: a Parquet data set by ``gfs://``, beside a local directory.

A table of random numbers is written with pyarrow in several files, into a cluster on this machine
and into a directory on the same disk, and read again: all of it, and one column of ten. The two
take turns, and the figures are the medians of the rounds. What is written is in the page cache of
each replica, or of this machine, when it counts as written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import cluster
from bench.circumstances import OUT, circumstances
from gfs.blocks import MIB
from gfs.fsspec import GfsFileSystem

COLUMNS = 10
FILE_BYTES = 128 * MIB
ROUNDS = 3


def timed(total: int, work: Callable[[], object]) -> float:
    """MiB a second."""
    began = time.perf_counter()
    work()
    return total / MIB / (time.perf_counter() - began)


def rates(fs: Any, root: str, tables: list[Any]) -> dict[str, float]:
    """``fs`` None: a local directory."""
    import pyarrow.dataset
    import pyarrow.parquet

    total = sum(table.nbytes for table in tables)

    def write() -> None:
        for number, table in enumerate(tables):
            pyarrow.parquet.write_table(
                table,
                f"{root}/{number}.parquet",
                filesystem=fs,
                compression="none",
                use_dictionary=False,
            )

    def read(columns: list[str] | None) -> None:
        found = pyarrow.dataset.dataset(root, filesystem=fs, format="parquet")
        rows = found.to_table(columns=columns).num_rows
        assert rows == sum(table.num_rows for table in tables)

    return {
        "write": timed(total, write),
        "read": timed(total, lambda: read(None)),
        "read_column": timed(total // COLUMNS, lambda: read(["c3"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.parquet", description=__doc__)
    parser.add_argument("--mib", type=int, default=128, help="size of the data set")
    parser.add_argument("--replication", type=int, default=3)
    parser.add_argument("--dir", help="where the data goes (default: the temporary directory)")
    arguments = parser.parse_args()
    try:
        import numpy
        import pyarrow
    except ImportError as error:
        raise SystemExit(f"{error}: run  make install-foreign") from None
    started, load_before = time.time(), os.getloadavg()[0]
    random = numpy.random.default_rng(1)
    files = max(1, arguments.mib * MIB // FILE_BYTES)
    rows = arguments.mib * MIB // files // COLUMNS // 8
    tables = [
        pyarrow.table({f"c{n}": random.random(rows) for n in range(COLUMNS)}) for _ in range(files)
    ]
    runs: dict[str, list[float]] = {}
    with (
        cluster.interrupted_cleanly(),
        tempfile.TemporaryDirectory(prefix="gfs-local-", dir=arguments.dir) as scratch,
        cluster.running(folder=arguments.dir) as servers,
    ):
        gfs = GfsFileSystem(state=servers.state, replication=arguments.replication)
        for number in range(ROUNDS):
            for place, fs, root in (
                ("gfs", gfs, f"/parquet/{number}"),
                ("local", None, f"{scratch}/{number}"),
            ):
                (gfs.makedirs if fs else os.makedirs)(root)
                for name, rate in rates(fs, root, tables).items():
                    runs.setdefault(f"{name}_{place}", []).append(rate)
            gfs.client.delete(f"/parquet/{number}", recursive=True, now=True)
            shutil.rmtree(Path(scratch) / str(number))
        gfs.close()
    result: dict[str, Any] = {name: statistics.median(values) for name, values in runs.items()}
    for name in sorted(result):
        print(f"{name:20} {result[name]:7.0f} MiB/s   {[round(v) for v in runs[name]]}")
    result["mib"] = arguments.mib
    result["circumstances"] = circumstances(started, load_before)
    OUT.mkdir(exist_ok=True)
    (OUT / "parquet.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["circumstances"]))


if __name__ == "__main__":
    main()

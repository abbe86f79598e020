"""One picture of a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(figures: dict[str, float], path: Path) -> None:
    """Bulk throughput beside its bare limit, and operations per second."""
    fig, (bulk, rates) = plt.subplots(1, 2, figsize=(11, 4.5))
    names = ["bare chain", "write x3", "bare sendfile", "read"]
    keys = ["bare_chain_mib_s", "write_mib_s", "bare_sendfile_mib_s", "read_mib_s"]
    bars = bulk.bar(names, [figures[key] for key in keys], color=["#bbb", "#2a6", "#bbb", "#26a"])
    bulk.bar_label(bars, fmt="%.0f")
    bulk.set_ylabel("MiB/s, one client, loopback")
    bulk.set_title("One large file, 3 replicas, checksums end to end")
    rate_keys = [key for key in figures if key.endswith("_per_s")]
    bars = rates.barh(
        [k.removesuffix("_per_s") for k in rate_keys], [figures[k] for k in rate_keys]
    )
    rates.bar_label(bars, fmt="%.0f", padding=3)
    rates.set_xscale("log")
    rates.set_xlabel("operations per second (name_concurrency)")
    rates.set_title("Small operations")
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)

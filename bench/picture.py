"""What a run found, as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.report import SMALL, Result, conditions

INK, FAINT, GRID = "#22313f", "#7f8c8d", "#e4e8eb"
BARE, WRITE, READ, SMALL_COLOR = "#cfd6db", "#2a9d6f", "#2f6db3", "#8e5aa8"


def draw(result: Result, path: Path) -> None:
    """Bulk throughput before its bare limit, and operations per second."""
    with plt.rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK}):
        fig, (bulk, small) = plt.subplots(
            1, 2, figsize=(12, 5.2), gridspec_kw={"width_ratios": [1, 1.25]}
        )
        _draw_bulk(bulk, result)
        _draw_small(small, result)
        fig.suptitle(
            "What the cluster does on one machine: 3 chunkservers, 3 replicas, one client",
            x=0.012, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        fig.text(0.012, 0.015, conditions(result), fontsize=8.5, color=FAINT)
        fig.tight_layout(rect=(0, 0.04, 1, 0.98), w_pad=3)
        fig.savefig(path, dpi=130)
        plt.close(fig)


def bare_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=12)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, colors=INK)
    axes.set_axisbelow(True)


def _draw_bulk(axes: Axes, result: Result) -> None:
    figures, runs = result["figures"], result["runs"]
    bare_axes(axes, f"One file of {result['large_file_mib']} MiB, every block checksummed")
    for at, (name, bare, ratio, color, label) in enumerate(
        [
            ("write", "bare_chain", "write_of_bare_chain", WRITE, "bare chain"),
            ("read", "bare_sendfile", "read_of_bare_sendfile", READ, "bare sendfile"),
        ]
    ):
        limit, value = figures[f"{bare}_mib_s"], figures[f"{name}_mib_s"]
        axes.bar(at, limit, width=0.62, color=BARE, zorder=1)
        axes.bar(at, value, width=0.42, color=color, zorder=2)
        axes.scatter([at] * len(runs[f"{name}_mib_s"]), runs[f"{name}_mib_s"],
                     s=16, color="white", edgecolors=INK, linewidths=0.7, zorder=3)  # fmt: skip
        top = max(limit, value, *runs[f"{name}_mib_s"])
        axes.annotate(
            f"{value:,.0f} MiB/s", (at, top), (0, 20), textcoords="offset points",
            ha="center", fontsize=13, fontweight="bold", color=color,
        )  # fmt: skip
        axes.annotate(
            f"{figures[ratio]:.0%} of {label} ({limit:,.0f})", (at, top), (0, 6),
            textcoords="offset points", ha="center", fontsize=9, color=FAINT,
        )  # fmt: skip
    axes.set_xticks([0, 1], ["write to all 3 replicas", "verified read"])
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(0, 1.2 * max(max(values) for key, values in runs.items() if "mib_s" in key))
    axes.set_ylabel("MiB/s")
    axes.grid(axis="y", color=GRID)
    caption(axes, "grey: the same bytes over bare sockets; dots: single runs; bars: their medians")


def _draw_small(axes: Axes, result: Result) -> None:
    figures = result["figures"]
    bare_axes(axes, "Small operations per second")
    rates = [figures[f"{key}_per_s"] for key, _, _ in SMALL]
    rows = list(range(len(SMALL)))[::-1]
    left = min(rates) / 3
    axes.hlines(rows, left, rates, color=GRID, linewidth=5, zorder=1)
    axes.scatter(rates, rows, s=70, color=SMALL_COLOR, zorder=2)
    for row, rate, (key, _, _) in zip(rows, rates, SMALL, strict=True):
        axes.annotate(
            f"{rate:,.0f}", (rate, row), (9, 2), textcoords="offset points",
            va="bottom", fontsize=11, fontweight="bold",
        )  # fmt: skip
        axes.annotate(
            f"{figures[f'{key}_p50_ms']:.2g} ms, {figures[f'{key}_p99_ms']:.2g} ms",
            (rate, row), (9, -2), textcoords="offset points", va="top", fontsize=8.5, color=FAINT,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(left, max(rates) * 6)
    axes.set_ylim(-0.7, len(SMALL) - 0.3)
    labels = [f"{name}, {count} at once" if count > 1 else name for _, name, count in SMALL]
    axes.set_yticks(rows, labels)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", which="minor", length=0)
    axes.grid(axis="x", color=GRID)
    caption(axes, "below each rate: the median of the calls, and what 99 of 100 stay within")


def caption(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0, 0), (0, -32), xycoords="axes fraction", textcoords="offset points",
        fontsize=8.5, color=FAINT,
    )  # fmt: skip

"""What a run found, for people: a table, a picture, the table of docs/speed.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Result = dict[str, Any]

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
BEGIN = "<!-- bench: begin (figures from bench/out/bench.json; nothing in here by hand) -->"
END = "<!-- bench: end -->"

#: Key of the rate, what it is, calls in flight.
SMALL = [
    ("stat_1", "stat", 1),
    ("stat_16", "stat", 16),
    ("stat_128", "stat", 128),
    ("put_1k_1", "put of 1 KiB", 1),
    ("put_1k_16", "put of 1 KiB", 16),
    ("get_1k_1", "get of 1 KiB", 1),
    ("get_1k_16", "get of 1 KiB", 16),
    ("put_many_1k", "put_many of 64 x 1 KiB", 1),
    ("get_many_1k", "get_many of 64 x 1 KiB", 1),
]

INK, FAINT, GRID = "#22313f", "#7f8c8d", "#e4e8eb"
BARE, WRITE, READ, SMALL_COLOR = "#cfd6db", "#2a9d6f", "#2f6db3", "#8e5aa8"


#: A load average above this before the run means that it was not alone.
ALONE_LOAD_MAX = 0.5


def conditions(result: Result) -> str:
    load = result["load_before"]
    busy = ": other work was running" if load > ALONE_LOAD_MAX else ""
    return (
        f"{result['when'][:10]}, {result['cpus']} cores ({result.get('cpu', '?')}), loopback, "
        f"Python {result['python']}, load average {load:.1f} before{busy}"
    )


def table(result: Result) -> str:
    """All figures as text."""
    f = result["figures"]
    lines = [conditions(result), ""]
    lines.append(f"one file of {result['large_file_mib']} MiB, 3 replicas, one client")
    for name, bare, ratio in (
        ("write", "bare_chain", "write_of_bare_chain"),
        ("read", "bare_sendfile", "read_of_bare_sendfile"),
    ):
        label = bare.replace("_", " ")
        lines.append(
            f"  {name:<6} {f[f'{name}_mib_s']:7.0f} MiB/s   {f[ratio]:4.0%} of {label} "
            f"({f[f'{bare}_mib_s']:.0f} MiB/s)"
        )
        lines.append(
            f"         {f[f'{name}_client_cpu_s_per_gib']:7.2f} s of processor per GiB in the "
            f"client, {f[f'{name}_servers_cpu_s_per_gib']:.2f} in the servers; "
            f"{f[f'{name}_client_calls_per_mib']:.0f} calls per MiB in the client"
        )
    lines += ["", f"{'small operations':<18} {'in flight':>9} {'per second':>11}   p50 ms   p99 ms"]
    for key, name, concurrency in SMALL:
        lines.append(
            f"  {name:<16} {concurrency:>9} {f[f'{key}_per_s']:>11,.0f} "
            f"{f[f'{key}_p50_ms']:>8.2f} {f[f'{key}_p99_ms']:>8.2f}"
        )
    lines += ["", f"measured in {result['took_seconds']:.0f} s"]
    return "\n".join(lines)


# --- docs/speed.md ----------------------------------------------------------------


def page_table(result: Result) -> str:
    f = result["figures"]
    rows = [
        ("write of one file, 3 replicas", f"{f['write_mib_s']:.0f} MiB/s",
         f"{f['write_of_bare_chain']:.0%} of a bare chain of three processes "
         f"({f['bare_chain_mib_s']:.0f} MiB/s)"),
        ("verified read of it", f"{f['read_mib_s']:.0f} MiB/s",
         f"{f['read_of_bare_sendfile']:.0%} of bare `sendfile` to one reader "
         f"({f['bare_sendfile_mib_s']:.0f} MiB/s)"),
    ]  # fmt: skip
    for key, name, concurrency in SMALL:
        if concurrency == 128 or (key.startswith("get") and concurrency == 1):
            continue
        flight = "one at a time" if concurrency == 1 else f"{concurrency} in flight"
        rows.append(
            (
                f"`{name.split()[0]}`{name.removeprefix(name.split()[0])}, {flight}",
                f"{f[f'{key}_per_s']:,.0f} /s",
                f"median {f[f'{key}_p50_ms']:.1f} ms, 99 % within {f[f'{key}_p99_ms']:.1f} ms",
            )
        )
    lines = [f"| {what} | {figure} | {beside} |" for what, figure, beside in rows]
    head = f"One client, one file of {result['large_file_mib']} MiB; {conditions(result)}."
    return "\n".join([head, "", "| | | |", "| --- | ---: | --- |", *lines])


def update_page(result: Result, path: Path = PAGE) -> None:
    """Put the figures between the marks in docs/speed.md."""
    replace_block(path, BEGIN, END, page_table(result))


def replace_block(path: Path, begin: str, end: str, content: str) -> None:
    """Put ``content`` between two marks of a page."""
    text = path.read_text(encoding="utf-8")
    found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.S)
    if found is None:
        raise RuntimeError(f"{path} has no place for the figures")
    block = f"{begin}\n{content}\n{end}"
    path.write_text(text[: found.start()] + block + text[found.end() :], encoding="utf-8")


# --- the picture ---------------------------------------------------------------------


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

"""What a run found, for people: a table, and the table of docs/speed.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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

#: Said by others already.
NOT_ON_THE_PAGE = ("stat_128", "get_1k_1")

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
        if key in NOT_ON_THE_PAGE:
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

"""The table of docs/speed.md."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from bench.report import SMALL, page_table


def test_the_page_has_each_load() -> None:
    """But what other rows say, too."""
    figures: dict[str, float] = defaultdict(lambda: 1.0)
    result: dict[str, Any] = {
        "figures": figures, "large_file_mib": 64, "load_before": 0.0, "when": "2026-12-01",
        "cpus": 2, "python": "3.11",
    }  # fmt: skip
    table = page_table(result)
    shown = [load for load in SMALL if load[0] not in ("stat_128", "get_1k_1")]
    for _, name, count in shown:
        first, _, rest = name.partition(" ")
        flight = "one at a time" if count == 1 else f"{count} in flight"
        assert f"| `{first}`{rest and ' ' + rest}, {flight} |" in table
    assert sum(line.count("/s |") for line in table.splitlines()) == 2 + len(shown)

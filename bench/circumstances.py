"""When a measurement was made and on what, and where its results go."""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out"
LOAD_MAX = 0.5
"""The load average of a minute above which no page gets the figures."""


def add_page_option(parser: argparse.ArgumentParser, page: str) -> None:
    """``--page``, which ends the program at once if other work would be in the figures."""
    parser.add_argument("--page", action=_IfIdle, nargs=0, default=False, help=f"update {page}")


class _IfIdle(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any
    ) -> None:
        load = os.getloadavg()[0]
        if load > LOAD_MAX:
            parser.error(
                f"the load average is {load:.2f}, and a page gets figures of an idle machine "
                f"(at most {LOAD_MAX}): end what else runs, wait a minute and try again, or "
                "leave --page out"
            )
        setattr(namespace, self.dest, True)


def circumstances(started: float, load_before: float) -> dict[str, object]:
    """When a run was made that began at ``started``, and on what."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "took_seconds": round(time.time() - started, 1),
        "cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()

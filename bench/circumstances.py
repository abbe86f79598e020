"""When a measurement was made and on what, and where its results go."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

OUT = Path(__file__).parent / "out"


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

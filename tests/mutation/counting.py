"""Copied beside the packages of a tree that is measured (covering.py), where the start of each
Python process finds it; so it imports nothing of ours."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

import coverage


def start(counted: str, tree: str) -> None:
    if coverage.Coverage.current() is not None:
        return  # a virtual environment on top of another reads its .pth files twice
    os.register_at_fork(after_in_child=lambda: _start(counted, tree))
    _start(counted, tree)


def _start(counted: str, tree: str) -> None:
    counting = coverage.Coverage(
        data_file=f"{counted}/coverage",
        data_suffix=True,
        branch=True,
        source=[f"{tree}/gfs", f"{tree}/control"],
        config_file=False,
        context=_started_by(Path(counted)),
        messages=False,
    )
    counting.start()
    atexit.register(_save, counting, os.getpid())


def _save(counting: coverage.Coverage, process: int) -> None:
    if os.getpid() == process:
        counting.stop()
        counting.save()


def _started_by(counted: Path) -> str | None:
    """The test that runs in the process of pytest that is above this one."""
    process = os.getpid()
    while process > 1:
        try:
            return (counted / f"{process}.test").read_text() + "|child"
        except FileNotFoundError:
            pass
        try:
            status = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return None
        process = int(status.rpartition(")")[2].split()[1])
    return None

"""Directories in memory for the real files of a simulation, those of LMDB.

Each has its process's id in its name: directories that a killed process left behind are
removed by the next one.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from pathlib import Path

_NAME = re.compile(r"gfs-sim-(\d+)-")
_MEMORY = "/dev/shm"


def make_scratch() -> str:
    """A new, empty directory, in memory if there is a file system there."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else tempfile.gettempdir()
    _remove_left(parent)
    return tempfile.mkdtemp(prefix=f"gfs-sim-{os.getpid()}-", dir=parent)


@functools.cache
def _remove_left(parent: str) -> None:
    """Remove them, once per process, since it reads every name."""
    remove_left(Path(parent))


def remove_left(parent: Path) -> None:
    """Remove the directories in ``parent`` whose process is gone."""
    for path in parent.iterdir():
        found = _NAME.match(path.name)
        if found and not _runs(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

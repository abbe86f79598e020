"""A file system of some size, for what happens when a disk is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from needs import need


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """An empty tmpfs of ``size`` bytes at ``path``, which is made. Ends the test where that
    cannot be mounted: root may."""
    path.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "gfs-test", path],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        need(f"a full disk needs a tmpfs, which root may mount: {reason}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=False)

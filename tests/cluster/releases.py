"""The release before this one, to run its processes beside ours.

It is the newest tag ``v…`` below the commit at hand, or, while there is none, the commit that
PREVIOUS names. A shallow clone has neither.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

REPOSITORY = Path(__file__).parents[2]
#: The last commit of release 0.1, of which no tag was made.
PREVIOUS = "f7b364e30fb5d5bcacc7dbe37c242d7769604324"


def previous() -> str:
    """A tag or a commit; empty if its history is not here."""
    tag = _git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^").strip()
    name = tag or PREVIOUS
    return name if _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") else ""


def check_out(name: str, directory: Path) -> None:
    """The program of that release, without its tests."""
    done = subprocess.run(
        ["git", "-C", REPOSITORY, "archive", name, "gfs", "control"],
        stdout=subprocess.PIPE,
        check=True,
    )
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")


def start(
    directory: Path, *arguments: str, log: BinaryIO, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Python with the packages below ``directory`` in place of those that are installed."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**environment, "PYTHONPATH": os.fspath(directory)},
        cwd=directory,
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""

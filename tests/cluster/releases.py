"""States of the program from before, to run their processes beside ours.

The release before this one is the newest tag ``v…`` below the commit at hand; while there is
none, the commits that UNTAGGED names stand for it. A shallow clone has neither.
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
#: The last commit of release 0.1.
RELEASE_0_1 = "ad3845eca2ad85ca5edbce68038658377ef602dd"
#: And the first of 0.2.
UNTAGGED = (RELEASE_0_1, "27037496e35dba053f46b1eda9e646d5923774fb")


def previous() -> tuple[str, ...]:
    """A tag, or commits."""
    tag = _git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^").strip()
    return (tag,) if tag else UNTAGGED


def is_here(name: str) -> bool:
    """Whether this clone has that tag or commit. Only a shallow one may lack it."""
    if _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"):
        return True
    is_shallow = _git("rev-parse", "--is-shallow-repository").strip()
    assert is_shallow != "false", f"{name} is neither a tag nor a commit of this history"
    return False


def check_out(name: str, directory: Path) -> None:
    """The program in that state, without its tests."""
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
    try:
        done = subprocess.run(
            ["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""

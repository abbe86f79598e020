"""The recipe of the image: what it installs is complete, and runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import DEPLOY
from harness import environment
from limits import HANG_SECONDS

import gfs

REPOSITORY = DEPLOY.parent
CONTAINERFILE = DEPLOY / "container" / "Containerfile"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``gfs`` as the image has it, made by the recipe's own commands in another directory."""
    root = tmp_path_factory.mktemp("image")
    text = CONTAINERFILE.read_text().replace("\\\n", " ")
    source = root / "source"
    source.mkdir()
    for line in re.findall(r"^COPY (?!--)(.+)$", text, re.M):
        *names, target = line.split()
        for name in names:
            found, place = REPOSITORY / name, root / target.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(found, place)
    (command,) = re.findall(r"^RUN (.+)$", text, re.M)
    command = command.replace("/source", str(source)).replace("/opt/gfs", str(root / "gfs"))
    done = subprocess.run(
        command.replace("python3", sys.executable, 1),
        shell=True,
        capture_output=True,
        text=True,
        # Of a minute's work.
        timeout=2 * HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    yield root / "gfs" / "bin" / "gfs"
    shutil.rmtree(root)


def test_what_the_image_has_runs_a_cluster(program: Path, tmp_path: Path) -> None:
    """Without the source, which the recipe leaves behind."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
            cwd=tmp_path,
            env=environment(GFS_STATE=str(tmp_path / "state"), HOME=os.devnull),
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    assert gfs.__version__ in run("--version")
    assert run("control", "--help")
    run("up", "--port", "0", "--detach")
    try:
        (tmp_path / "file").write_text("from the image")
        run("put", "file", "/file")
        assert run("cat", "/file") == "from the image"
    finally:
        run("down")

"""Small packages, as wheels that pip installs without a network or a build backend."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from limits import HANG_SECONDS


def make_wheel(directory: Path, project_file: str, modules: Mapping[str, str]) -> Path:
    """A wheel of the project that ``project_file`` (pyproject.toml) describes."""
    project = tomllib.loads(project_file)["project"]
    name = f"{project['name'].replace('-', '_')}-{project['version']}"
    files = dict(modules) | {
        f"{name}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
            + "".join(f"Requires-Dist: {each}\n" for each in project["dependencies"])
        ),
        f"{name}.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: make_wheel\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"{name}.dist-info/entry_points.txt": "".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
            for group, points in project["entry-points"].items()
        ),
    }
    files[f"{name}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files)
    wheel = directory / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def install(target: Path, wheel: Path) -> None:
    """Install ``wheel`` into the directory ``target``, for PYTHONPATH."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--no-cache-dir", "--target", str(target), str(wheel)),
        ],
        check=True,
        timeout=HANG_SECONDS,
    )

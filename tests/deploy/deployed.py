"""The files under deploy/, and what they are tested with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from limits import HANG_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
#: Program → Debian's package.
PACKAGES = {
    "systemd-analyze": "systemd",
    "strace": "strace",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "nginx": "nginx-light",
    "curl": "curl",
}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What it says, if it ends well."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False, cwd=cwd
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr

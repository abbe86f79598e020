"""What some tests need besides Python and make. They are marked ``extra``: those in the
folders below are by where they lie, others by ``@pytest.mark.extra("curl")``, which names the
programs. ``make test`` leaves them out, ``make test-all`` runs them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

#: Set: a test whose needs are not met fails. Otherwise it is skipped.
REQUIRE = "GFS_TEST_REQUIRE"
#: Folders of tests that need root, containers, an API server, a browser, other packages,
#: or minutes.
FOLDERS = {"browser", "deploy", "disks", "kubernetes", "mount", "podman", "python", "s3", "storm"}


def need(missing: str) -> None:
    """End the test if ``missing`` says what is not there."""
    if missing and os.environ.get(REQUIRE):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


def need_modules(*names: str, install: str) -> None:
    """End the test if one cannot be imported; ``install`` is the command that adds it."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    need(f"{', '.join(absent)}: not installed: run  {install}" if absent else "")


def need_programs(item: pytest.Item) -> None:
    for mark in item.iter_markers("extra"):
        need(", ".join(f"{name} is not installed" for name in mark.args if not shutil.which(name)))

"""Programs of Debian's that the files under deploy/ are for."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

# The clusters are those of the tests with real processes.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from deployed import PACKAGES

#: "require": without these programs the tests fail; otherwise they are skipped.
WANTED = "GFS_TEST_DEPLOY"


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if not missing:
        return
    packages = " ".join(sorted({PACKAGES[name] for name in missing}))
    reason = f"{', '.join(missing)}: not there: apt install {packages}"
    if os.environ.get(WANTED) == "require":
        pytest.fail(reason)
    pytest.skip(reason)

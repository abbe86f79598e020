"""Programs of Debian's that the files under deploy/ are for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

# The clusters are those of the tests with real processes.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from deployed import PACKAGES
from needs import need


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if not missing:
        return
    packages = " ".join(sorted({PACKAGES[name] for name in missing}))
    need(f"{', '.join(missing)}: not there: apt install {packages}")

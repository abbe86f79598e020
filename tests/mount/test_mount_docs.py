"""The recipe of docs/mount.md, as a user runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness import Cluster
from mounts import sh
from readme import ROOT, blocks


def test_the_page_shows_what_happens(
    cluster: Cluster, environment: dict[str, str], tmp_path: Path
) -> None:
    ran = [text for language, text in blocks(ROOT / "docs" / "mount.md") if language == "sh"]
    assert ran
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    names = " ".join(f"{name}={environment[name]}" for name in ("GFS_STATE",))
    for text in ran:
        script = text.replace("/mnt/gfs", str(tmp_path / "gfs"))
        printed = sh(f"export {names} PATH={path}\n{script}", tmp_path)
        assert "sources.list.d" in printed
        assert not (tmp_path / "gfs").is_mount()

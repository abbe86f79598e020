"""The recipes of docs/mount.md and docs/python.md for a shell, as a user runs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from mounts import sh
from readme import ROOT, blocks

from gfs.client.sync import SyncClient


@pytest.mark.parametrize(("page", "printed"), [("mount", "sources.list.d"), ("python", "3\n")])
def test_the_page_shows_what_happens(
    environment: dict[str, str], client: SyncClient, tmp_path: Path, page: str, printed: str
) -> None:
    (text,) = [text for language, text in blocks(ROOT / "docs" / f"{page}.md") if language == "sh"]
    client.mkdir("/notes", exist_ok=True)  # a block before it has made it
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = text.replace("/mnt/gfs", str(tmp_path / "gfs"))
    names = f"export GFS_STATE={environment['GFS_STATE']} PATH={path}"
    assert printed in sh(f"{names}\n{script}", tmp_path)
    assert not (tmp_path / "gfs").is_mount()

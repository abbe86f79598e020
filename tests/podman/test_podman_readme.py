"""The way of docs/containers.md from nothing to a shell in a container, with real containers.

It is followed as it stands (see :mod:`readme`), by a user whose home directory is empty
and who has just said ``make up``. The image is the tests' own, made with the recipe
that a user's is built with.
"""

from __future__ import annotations

from pathlib import Path

import podman_here
from checks import wait_for
from readme import CONTAINERS, follow


def test_the_page_leads_to_a_shell_in_a_container(containers_work: None, tmp_path: Path) -> None:
    with podman_here.running(tmp_path / "cloud") as here:
        home = tmp_path / "home"
        usual = home / ".local" / "state" / "gfs"
        usual.parent.mkdir(parents=True)
        usual.symlink_to(here.directory / "state")
        follow([CONTAINERS], home, here.cloud.url)
        # The page deletes it; that takes a moment longer than the page.
        wait_for(lambda: not here.recorded(), "end of the page's container")

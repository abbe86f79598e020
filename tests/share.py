"""How much of what may be more or less is run: seeds, and examples of costly properties.

``make test`` runs a quarter of them and CI all: GFS_TEST_SHARE, in percent, which is 100
where nothing is said.
"""

from __future__ import annotations

import os


def share(count: int) -> int:
    """This run's part of ``count``, rounded up."""
    return -(-count * int(os.environ.get("GFS_TEST_SHARE", "100")) // 100)

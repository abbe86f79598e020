"""How much of what may be more or less is run, and which part: seeds, and examples of costly
properties.

``make test`` runs a tenth, and CI all: GFS_TEST_SHARE, in percent, which is 100 where
nothing is said. Of seeds GFS_TEST_TURN, any whole number, says which part: 0, the first, there.
"""

from __future__ import annotations

import os


def share(count: int) -> int:
    """This run's part of ``count``, rounded up."""
    return -(-count * int(os.environ.get("GFS_TEST_SHARE", "100")) // 100)


def turn(count: int) -> range:
    """The seeds of this run, of ``count``: at most its share, and in each turn others until
    all have had theirs."""
    size = share(count)
    first = int(os.environ.get("GFS_TEST_TURN", "0")) % -(-count // size) * size
    return range(first, min(first + size, count))

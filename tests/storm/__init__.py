"""A storm on real processes: ``python -m tests.storm``, ``make storm SECONDS=600``.

Several client processes work on a cluster of real processes, through the library and
through the REST API, while chunkservers, master and control plane are killed, are stopped
for up to 20 s, and replicas are damaged on disk. One seed decides what is done to whom and
when (:mod:`.faults`), and what each client calls (:mod:`.work`). Each client writes down
what it began and what was acknowledged; at the end the judge (:mod:`.judge`) reads all of
it back.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The cluster of the tests with real processes.
sys.path[:0] = [str(Path(__file__).parents[1] / "cluster"), str(Path(__file__).parents[1])]

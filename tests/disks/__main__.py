"""A cluster under load, and disks to break by hand: ``python -m tests.disks``, as root.

Each line of input is a kind of disk (see DiskCluster.by_kind) and what is done to it, the
name of a method of RealDisk: ``cached hang``, ``cached go_on``, ``mount shut_down``.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from disk_cluster import DiskCluster

with (
    tempfile.TemporaryDirectory() as directory,
    DiskCluster.running(Path(directory)) as cluster,
    cluster.load("by-hand"),
):
    print(f"GFS_MASTER={cluster.master_address} GFS_STATE={cluster.state} gfs status --disks")
    for line in sys.stdin:
        kind, method = line.split()
        getattr(cluster.by_kind(kind)[1], method)()

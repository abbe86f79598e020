"""Who tries to be the master (``elect``).

An *engine* outside of this system, such as etcd, gives a *hold* to one process at a time: the
right to try to be the master, which ends by itself if it is not renewed (:mod:`.engine`; that of
etcd is :mod:`.etcd`, that of Kubernetes :mod:`.lease`). :mod:`.candidate` tries to get the hold
for this process, and keeps it. It does not decide whether the process has everything that was
acknowledged: the counting of :mod:`gfs.master.shadows` does. :mod:`.guard` lets nothing out
of this process after its hold.
"""

from gfs.master.election.candidate import Candidate
from gfs.master.election.engine import Claim, Engine, EngineAway, View
from gfs.master.election.guard import Guarded

__all__ = ["Candidate", "Claim", "Engine", "EngineAway", "Guarded", "View", "etcd", "lease"]

"""The cluster, for administrators: its state, what to do about it, and its recent past.

:mod:`.module` has the routes, :mod:`.shapes` their JSON. :mod:`.watch` asks the master every few
seconds, in one of the processes that share the records, and keeps what has changed (:mod:`.events`)
and numbers over the last hour (:mod:`.series`).
"""

from control.cluster.module import ClusterModule

__all__ = ["ClusterModule"]

"""A cluster on this machine, and its processes.

``gfs up`` is one supervisor and, as processes of their own, one master, some
chunkservers and the control plane: the same commands that a deployment on many
machines runs (``gfs master``, ``gfs chunkserver``, ``gfs control``).

Three inherited descriptors tie a child to its supervisor:

* the *report* (a pipe of its own): one JSON line when the child serves, or when it
  cannot start. End of file without a line means that it died.
* the *lifeline* (one pipe for all): nothing is ever written to it. Its end of file
  means that the supervisor is gone, for any reason; the child then stops as on
  SIGTERM. No child outlives its cluster.
* the *lock*: the flock on ``DIR/lock`` belongs to the open file and so to
  supervisor and children together, and to the children of these. It is free only when
  the last of them has ended, so a new ``gfs up`` on the same state never finds a part
  of an old cluster running, and after ``kill -9`` of all processes no stale lock
  remains.

A child that dies is started again, after 0.1 s, doubling to 10 s while it
keeps dying. ``gfs control --workers N`` keeps its workers in the same way.
Prior art: daemontools' ``supervise`` for the lock and the
restart, s6 for readiness by descriptor.

Modules: :mod:`gfs.cluster.directory` (the state directory),
:mod:`gfs.cluster.supervisor` (``gfs up``), :mod:`gfs.cluster.children` (restarts
of child processes), :mod:`gfs.cluster.process` (one child), :mod:`gfs.cluster.report`
(the report's two ends), :mod:`gfs.cluster.launch` (``--detach`` and ``gfs down``),
:mod:`gfs.cluster.scrape` (the metrics' port). Others use these modules as they are, so that a
command loads only those that it needs.
"""

__all__ = [
    "children",
    "directory",
    "launch",
    "process",
    "report",
    "scrape",
    "supervisor",
]

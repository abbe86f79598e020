"""A whole cluster on this machine, and its processes.

``gfs up`` is one supervisor and, as processes of their own, one master, some
chunkservers and the control plane: the same commands that a deployment on many
machines runs (``gfs master``, ``gfs chunkserver``, ``gfs control``).

Three inherited descriptors tie a child to its supervisor:

* the *report* (a pipe of its own): one JSON line when the child truly serves,
  or when it cannot start. End of file without a line: it died.
* the *lifeline* (one pipe for all): nothing is ever written to it. Its end of file
  means that the supervisor is gone, for any reason; the child then stops as on
  SIGTERM. No child outlives its cluster.
* the *lock*: the flock on ``DIR/lock`` belongs to the open file and so to
  supervisor and children together, and to the children of these. It is free
  only when the last of them is gone, so a new ``gfs up`` on the same state never
  meets half an old cluster, and after ``kill -9`` of everything nothing stale
  remains.

A child that dies is started again, after 0.1 s, doubling to 10 s while it
keeps dying. ``gfs control --workers N`` keeps its workers in the same way.
Prior art: daemontools' ``supervise`` for the lock and the
restart, s6 for readiness by descriptor.

Modules: :mod:`gfs.cluster.directory` (the state directory),
:mod:`gfs.cluster.supervisor` (``gfs up``), :mod:`gfs.cluster.children` (restarts
of child processes), :mod:`gfs.cluster.process` (one child), :mod:`gfs.cluster.report`
(the report's two ends), :mod:`gfs.cluster.launch` (``--detach`` and ``gfs down``).
"""

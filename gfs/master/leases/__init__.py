"""Leases: who may order the mutations of a chunk, and for how long (the paper, 3.1).

The leases that run are in :mod:`gfs.master.tables.leases`. :mod:`.granting` grants one: it
raises the chunk's version on its replicas (:mod:`.version_raise`), in two commits.
:mod:`.copy_on_write` does so for a chunk that several files share: each replica is copied
first, and the copy is leased.

Others call :class:`.granting.Grants`. Beside it only an upload that goes on without a failed
server raises a version (:mod:`gfs.master.service.uploads`).
"""

from gfs.master.leases.granting import Grants

__all__ = [
    "Grants",
]

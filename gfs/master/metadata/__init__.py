"""The metadata: what is on the master's disk, and how it changes.

A *mutation* is planned (:mod:`.namespace`, :mod:`.trash`), becomes a record
(:mod:`.operations`), and is applied, logged and committed by the one
:class:`~.committer.Committer`. It is answered when the :mod:`.watermark` has passed it.
Rows (:mod:`.rows`) are in one LMDB environment (:mod:`.store`). Look-ups
(:mod:`.lookups`, :mod:`.subtree`) read a snapshot of it and never wait.

Others use the classes below, and the functions of the modules that are listed with them. They
may read rows within a ``store.read()`` transaction, and change them only through
``Committer.submit`` with a plan. The exception is a shadow master, which applies the rows of
another master's log with :func:`.operation_log.replay`, or replaces its own store by a
copy of it. A master's promises belong to it and not to the cluster
(``Store.set_standing``). Nothing here knows of connections or chunkservers.
"""

from gfs.master.metadata.committer import (
    CHUNKS_PER_WEIGHT,
    TRIM_MIN,
    TRIM_PER_MUTATION,
    Callback,
    Committer,
    Outcome,
    Plan,
    trim,
)
from gfs.master.metadata.number_set import NumberSet
from gfs.master.metadata.store import (
    HANDLE_RANGE,
    LOCK_NAME,
    Counted,
    Databases,
    Effects,
    Freed,
    Promise,
    Standing,
    State,
    Store,
    Txn,
    UnderWay,
    open_only,
    take_lock,
)
from gfs.master.metadata.uptime import Uptime
from gfs.master.metadata.watermark import QuorumWatermark

__all__ = [
    "CHUNKS_PER_WEIGHT",
    "HANDLE_RANGE",
    "LOCK_NAME",
    "TRIM_MIN",
    "TRIM_PER_MUTATION",
    "Callback",
    "Committer",
    "Counted",
    "Databases",
    "Effects",
    "Freed",
    "NumberSet",
    "Outcome",
    "Plan",
    "Promise",
    "QuorumWatermark",
    "Standing",
    "State",
    "Store",
    "Txn",
    "UnderWay",
    "Uptime",
    "lookups",
    "namespace",
    "open_only",
    "operation_log",
    "operations",
    "paths",
    "rows",
    "shared_chunks",
    "subtree",
    "take_lock",
    "terms",
    "trash",
    "trim",
]

"""Replication of the master: shadow masters (the paper, 5.1.3).

A master sends its operation log to its shadow masters (:mod:`.log_sender`); a shadow
master applies it (:mod:`.log_receiver`), after fetching a copy of the whole store if
its own history differs (:mod:`.store_copy`). A shadow master answers look-ups meanwhile
(:mod:`.read_only_master`,
:mod:`.shadow_process`). One can be promoted (:mod:`.promotion`). :mod:`.quorum` decides
which shadow masters must have an operation before it is acknowledged; :mod:`.promises`
ensures that none acknowledges to a deposed master; and :mod:`.term_announcer` announces
a new term to processes that may not know it.

The process uses ``Shadows``, ``ShadowSession`` and ``TermAnnouncer`` of a master, and
``Shadow`` of a shadow master. A backup is taken and restored by the same means as a
shadow master's copy.
"""

from gfs.master.shadows.log_receiver import check_counters, connect_master
from gfs.master.shadows.log_sender import Shadows, ShadowSession
from gfs.master.shadows.shadow_process import Shadow, begin_term
from gfs.master.shadows.term_announcer import TermAnnouncer

__all__ = [
    "Shadow",
    "ShadowSession",
    "Shadows",
    "TermAnnouncer",
    "begin_term",
    "check_counters",
    "connect_master",
    "store_copy",
]

"""Replication of the master: shadow masters (the paper, 5.1.3).

A master sends its operation log to its shadows (:mod:`.log_sender`); a shadow applies it
(:mod:`.log_receiver`), having fetched a copy of the whole store if its own history is another
one (:mod:`.store_copy`). A shadow answers look-ups meanwhile (:mod:`.read_only_master`,
:mod:`.shadow_process`). One can be promoted (:mod:`.promotion`). Which shadows must have an
operation before it is acknowledged is said by :mod:`.quorum`; that no shadow acknowledges
to a deposed master, by :mod:`.promises`; and :mod:`.term_announcer` makes a new term known
to whoever may not have heard of it.

The process uses ``Shadows``, ``ShadowSession`` and ``TermAnnouncer`` of a master, and
``Shadow`` of a shadow master.
"""

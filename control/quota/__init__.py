"""Quotas: what each user may have, and what he has.

*Limits* are rows of the records if an administrator set them for a user, else settings.
Storage namespaces and containers are rows as well, so they are counted in the very
transaction that adds one.

*Files and bytes* are in the file system, which knows nothing of users. What each user has
of them is counted beside it (:mod:`control.quota.usage`), in a store that all processes of
the machine share. An upload first reserves room, in the transaction that reads the limit,
so that uploads at the same time cannot exceed it together. Its change is recorded when the
file system has made it. A file counts for the user who uploaded it, as its attribute says,
wherever it is; a file without the attribute counts for no one.

*What can go wrong.* The file system and this store do not change in one step. Between the
two a process can be killed, or not hear whether its change was made. The reservation is a
row that outlives its process. Another process that finds one without its owner schedules a
recount of the storage namespace (:mod:`control.storage.accounting`); until then the room
stays reserved. So recorded usage is never too low.

The store is never synced, so an upload waits for no further disk. ``kill -9`` loses nothing
of it, since the kernel has its pages. A power cut may damage it, so each boot of the machine
starts with an empty one and a recount.
"""

from __future__ import annotations

from control.quota.ledger import Claim, Ledger
from control.quota.limits import QUOTA, Limits, Override, limits_of, overrides
from control.quota.usage import Change, Tally

__all__ = [
    "QUOTA",
    "Change",
    "Claim",
    "Ledger",
    "Limits",
    "Override",
    "Tally",
    "limits_of",
    "overrides",
]

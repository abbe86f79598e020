"""Quotas: what each user may have, and what he has.

*Limits* are rows of the records: the administrators' word for a user, else the settings.
Storage namespaces and containers are rows as well, so they are counted in the very
transaction that adds one.

*Files and bytes* are in the file system, which knows nothing of users. What each user has
of them is counted beside it (:mod:`control.quota.usage`), in a store that all processes of
the machine share: whoever uploads reserves room first, in one transaction with the look at
his limit, so that uploads at the same time cannot exceed it together; and what came and
went is entered when the file system has done it. A file counts for who uploaded it, as
its attribute says, wherever it is; one without for nobody.

*What can go wrong.* The file system and this store do not change in one step. Between the
two a process can be killed, or not hear whether its change was made. The reservation says
that there is such a change, and outlives its process: whoever finds that one ended without
its owner's word has the storage namespace counted anew (:mod:`control.storage.recount`),
and until then its room stays reserved. So what is known is never too low.

The store is never synced, so an upload waits for no further disk: ``kill -9`` takes nothing
from it, since the kernel has its pages. A power cut may tear it; so each boot of the machine
begins with an empty one, and counts.
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

"""Quotas: the limits of each user, and the usage that counts towards them.

*Limits* are rows of the records if an administrator set them for a user, else settings.
Storage namespaces and containers are rows as well, so they are counted in the very
transaction that adds one.

*Files and bytes* are in the file system, which knows nothing of users. The usage of each
user is counted beside it (:mod:`control.quota.usage`), in a store that all processes of
the machine share. An upload first reserves room, in the transaction that reads the limit,
so that uploads at the same time cannot exceed it together. Its change is recorded when the
file system has made it. A file counts for the user who uploaded it, as its attribute says,
wherever it is; a file without the attribute counts for no one. One that is in many folders
counts as several, so that the quota of files bounds the folders, too.

*Failures.* The file system and this store do not change in one step. Between the two a
process can be killed, or lose the answer of the file system. The reservation is a
row that outlives its process. Another process that finds one without its owner schedules a
recount of the storage namespace (:mod:`control.storage.accounting`); until then the room
stays reserved. So recorded usage is never too low.

The store is never synced, so an upload waits for no further disk. ``kill -9`` loses nothing
of it, since the kernel has its pages. A power cut may damage it, so each boot of the machine
starts with an empty one and a recount.
"""

__all__ = ["ledger", "limits", "usage"]

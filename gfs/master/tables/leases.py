"""Leases: which server may order mutations of a chunk, and for how long (the paper, 3.1).

A lease names the primary and the chain that has its version. Both sides count it: the
primary ``lease_seconds - lease_margin_seconds`` from when it got the grant (or sent the
heartbeat that was answered with the extension), the master ``lease_seconds`` from
before it sent the grant. So the primary stops first, as long as the clocks' drift in
that time is below the margin.

Leases are only in memory. A restarted master knows of none and may grant a chunk again
while an old primary still has its lease. This is safe, because a grant always raises
the version of the replicas it goes to, and a replica refuses mutations of another
version than its own: the old primary's chain is broken from then on. For the same
reason the chunk of a broken chain may be granted again before the old lease ends.
"""

from __future__ import annotations

from typing import NamedTuple

#: Chunks of uploads begin with this version, without a lease; chunks that are made for
#: writes in place begin above it. So a restarted master knows which chunks may be under
#: a lease of the master before it.
FIRST_VERSION = 1
FIRST_LEASED_VERSION = FIRST_VERSION + 1


class Lease(NamedTuple):
    version: int
    #: Server indexes, the primary first.
    chain: tuple[int, ...]
    inode: int
    ends: float

    @property
    def primary(self) -> int:
        return self.chain[0]


class LeaseTable:
    def __init__(self, lease_seconds: float, margin_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        #: The duration that a primary gets.
        self.lease_ms = int((lease_seconds - margin_seconds) * 1000)
        self._leases: dict[int, Lease] = {}
        #: Chunks that were granted lately, and when.
        self._granted: dict[int, float] = {}
        #: Until then a lease of the master before this one may still be valid.
        self.old_until = float("-inf")
        #: Files that are held for a snapshot: their chunks are not granted.
        self.held: set[int] = set()
        #: Whether the files that an earlier master's snapshot held are still being collected.
        self.holds_all = False
        #: Chunks whose lease is being revoked for a snapshot: it is not extended.
        self.revoking: set[int] = set()
        #: Leases to be revoked, so that an endangered chunk can be copied.
        self.to_revoke: dict[int, None] = {}

    def is_held(self, inode: int) -> bool:
        """Whether the file is held for a snapshot."""
        return self.holds_all or inode in self.held

    def may_be_leased(self, handle: int, attempted: int, now: float) -> bool:
        """Whether a lease of the chunk, whose version ``attempted`` was attempted, that
        the master before this one granted may still be valid: then a copy could miss a
        write under that lease. It cannot be, once this master has granted the chunk: so
        a chunk that is written all the time can be copied."""
        return (
            attempted >= FIRST_LEASED_VERSION
            and now < self.old_until
            and not self.has_granted(handle)
        )

    def current(self, handle: int, now: float) -> Lease | None:
        """The lease of a chunk, if one is valid."""
        lease = self._leases.get(handle)
        if lease is None:
            return None
        if now >= lease.ends:
            del self._leases[handle]
            return None
        return lease

    def is_usable(self, lease: Lease, now: float) -> bool:
        """Whether the lease is valid by the primary's count, which ends before ours."""
        return now < lease.ends - (self.lease_seconds - self.lease_ms / 1000)

    def remaining_ms(self, lease: Lease, now: float) -> int:
        """The rest of the lease by the primary's count, never below 1."""
        master_ms = int((lease.ends - now) * 1000)
        return max(1, master_ms - (int(self.lease_seconds * 1000) - self.lease_ms))

    def granted(
        self, handle: int, version: int, chain: tuple[int, ...], inode: int, sent: float
    ) -> Lease:
        """``sent`` is the time before the grant was sent."""
        lease = Lease(version, chain, inode, sent + self.lease_seconds)
        self._leases[handle] = lease
        self._granted[handle] = sent
        return lease

    def has_granted(self, handle: int) -> bool:
        """Whether this master has granted the chunk within the last two lease times:
        then all its current replicas refuse mutations under an earlier lease."""
        return handle in self._granted

    def extend(self, handle: int, server: int, now: float) -> bool:
        """Extend the lease for ``primary``; False if it is not the primary any more."""
        lease = self.current(handle, now)
        if lease is None or lease.primary != server:
            return False
        self._leases[handle] = lease._replace(ends=now + self.lease_seconds)
        return True

    def drop(self, handle: int) -> None:
        self._leases.pop(handle, None)

    def expire(self, now: float) -> None:
        for handle in [h for h, lease in self._leases.items() if now >= lease.ends]:
            del self._leases[handle]
        oldest = now - 2 * self.lease_seconds
        for handle in [h for h, sent in self._granted.items() if sent < oldest]:
            del self._granted[handle]

    def are_at(self, server: int) -> bool:
        """Whether the server is in the chain of any lease. Linear in the leases."""
        return any(server in lease.chain for lease in self._leases.values())

    def __len__(self) -> int:
        return len(self._leases)


def wants_new_grant(lease: Lease | None, asked_version: int) -> bool:
    """Whether this request needs a new version, or can be answered with the present lease.

    The present lease is the answer for all clients except one that saw the chain of
    this version break, because a server failed or the primary knew of no lease (after a
    restart). A failure of an older version does not count.
    """
    return lease is None or asked_version == lease.version

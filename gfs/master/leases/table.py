"""Who may order mutations of a chunk, and for how long: the paper, section 3.1.

A lease names the primary and the chain that holds its version. It is counted
twice: the primary counts ``lease_seconds - lease_margin_seconds`` from when it
got the grant (or sent the heartbeat that was answered with the extension), the
master counts ``lease_seconds`` from before it sent it. So whatever the
difference of the two clocks' starts, bounded by the margin, the primary stops
first.

Leases live in memory only. A master that was restarted knows of none and may
grant a chunk anew while an old primary still holds its lease; this is
safe, because a grant always raises the version at the replicas it goes to, and
a replica refuses mutations of another version than its own: the old primary's
chain is broken from then on. For the same reason a broken chain may be granted
anew before the old lease ends.
"""

from __future__ import annotations

from typing import NamedTuple

#: What an upload makes begins at this version, and is under no lease; a chunk that is
#: made to be written in place begins above it, so that a master that was restarted knows
#: which may be under a lease of the master before it.
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
        #: Until then a lease of the master before this one may still be running.
        self.old_until = float("-inf")
        #: Files that stand still, for a snapshot: nothing of them is granted.
        self.held: set[int] = set()
        #: Which of them a snapshot of a master before this one has is being looked for.
        self.holds_all = False
        #: Chunks whose lease is being revoked for one: it is not extended.
        self.revoking: set[int] = set()
        #: Leases to be revoked, so that an endangered chunk can be copied.
        self.to_revoke: dict[int, None] = {}

    def is_held(self, inode: int) -> bool:
        """Whether the file stands still, for a snapshot."""
        return self.holds_all or inode in self.held

    def may_be_leased(self, handle: int, attempted: int, now: float) -> bool:
        """Whether this master's predecessor may have given a lease of the chunk, of which
        version ``attempted`` was attempted, that still runs: a copy could miss a write that
        is let in under it. None is, once this master has granted the chunk: one that is
        written all the time can be copied then."""
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
        """Whether the primary's count of it, which ends before ours, goes on."""
        return now < lease.ends - (self.lease_seconds - self.lease_ms / 1000)

    def remaining_ms(self, lease: Lease, now: float) -> int:
        """What is left of it for the primary's count, never below 1."""
        master_ms = int((lease.ends - now) * 1000)
        return max(1, master_ms - (int(self.lease_seconds * 1000) - self.lease_ms))

    def granted(
        self, handle: int, version: int, chain: tuple[int, ...], inode: int, sent: float
    ) -> Lease:
        """``sent`` is the time before the grant went out."""
        lease = Lease(version, chain, inode, sent + self.lease_seconds)
        self._leases[handle] = lease
        self._granted[handle] = sent
        return lease

    def has_granted(self, handle: int) -> bool:
        """Whether the chunk was granted by this master, in these last two leases' time: then
        all its current replicas refuse what is ordered under a lease from before."""
        return handle in self._granted

    def extend(self, handle: int, server: int, now: float) -> bool:
        """The primary asks to go on; False if it is not the primary any more."""
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
        """Whether it is in the chain of any. Looks at all of them."""
        return any(server in lease.chain for lease in self._leases.values())

    def __len__(self) -> int:
        return len(self._leases)


def wants_new_grant(lease: Lease | None, asked_version: int) -> bool:
    """Does this request need a new version, or does the present lease answer it?

    A valid lease answers everyone, except the client that saw the chain of that
    very version break, whether a server failed or the primary knew of no lease
    (it was started again): a failure of an older version is old news.
    """
    return lease is None or asked_version == lease.version

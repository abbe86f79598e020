"""Replicas that something speaks against, until their servers have looked at them.

A reader's failure, or a report that contradicts what the master knows, does not make a
replica bad: what it is, its own server finds out when it reads it again. Until then it is
a location, but nothing else is deleted on the strength of it.
"""

from __future__ import annotations

#: Replicas waiting to be verified; more are left to the next reader's report.
VERIFY_MAX = 10_000
#: A replica that was just verified is not verified again for this long.
VERIFIED_SECONDS = 5.0

#: Index of a chunkserver, handle of a chunk.
Replica = tuple[int, int]


class Suspects:
    def __init__(self) -> None:
        #: Replicas to verify; whether their blocks must be read.
        self.to_verify: dict[Replica, bool] = {}
        #: Those that are being verified.
        self.verifying: set[Replica] = set()
        #: Those that could not be verified, and were not reported as good since.
        self.unverified: set[Replica] = set()
        self._verified_at: dict[Replica, float] = {}

    def add(self, replica: Replica, blocks: bool, now: float) -> bool:
        """Have its server look at the replica, and read it all if ``blocks``. False if that
        was done a moment ago, or cannot be done now."""
        if now - self._verified_at.get(replica, float("-inf")) < VERIFIED_SECONDS:
            return False
        if replica in self.verifying:
            return False
        if replica not in self.to_verify and len(self.to_verify) >= VERIFY_MAX:
            self.unverified.add(replica)
            return False
        self.to_verify[replica] = blocks or self.to_verify.get(replica, False)
        return True

    def verified(self, replica: Replica, now: float) -> None:
        """Its server has answered."""
        self._verified_at[replica] = now
        self.unverified.discard(replica)

    def expire(self, now: float) -> None:
        for replica, when in list(self._verified_at.items()):
            if now - when < VERIFIED_SECONDS:
                break
            del self._verified_at[replica]

    def forget_server(self, index: int) -> None:
        self.unverified = {replica for replica in self.unverified if replica[0] != index}

    def is_verified_soon(self, handle: int) -> bool:
        """Whether a replica of the chunk is being verified or waits for it."""
        return any(handle == known for _, known in (*self.to_verify, *self.verifying))

    def __contains__(self, replica: Replica) -> bool:
        return replica in self.to_verify or replica in self.verifying or replica in self.unverified

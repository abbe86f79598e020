"""Replicas that may be bad, until their servers have verified them.

A client's failure to read, or a report that contradicts the master's tables, does not
make a replica bad: its own server verifies it. Until then it is a location, but no
other replica is deleted because of it.
"""

from __future__ import annotations

#: The most replicas that wait to be verified; others wait for the next report of a client.
VERIFY_MAX = 10_000
#: A replica that was just verified is not verified again for this long.
VERIFIED_SECONDS = 5.0

#: Index of a chunkserver, handle of a chunk.
Replica = tuple[int, int]


class Suspects:
    def __init__(self) -> None:
        #: Replicas to verify, and whether their blocks must be read.
        self.to_verify: dict[Replica, bool] = {}
        #: Those that are being verified.
        self.verifying: set[Replica] = set()
        #: Replicas that could not be verified, and were not reported as good since.
        self.unverified: set[Replica] = set()
        self._verified_at: dict[Replica, float] = {}

    def add(self, replica: Replica, blocks: bool, now: float) -> bool:
        """Have its server verify the replica, with all blocks if ``blocks``. False if
        that was done a moment ago, or cannot be done now."""
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
        """Note that its server has answered."""
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

"""Which connections are admitted, and which are closed when there are too many.

A connection has a slot until it is closed. The slots of an address are limited. When it has
them all, its own slowest connection is closed for a new one, or the new one is refused. A client
that holds thousands of connections without sending anything, or that sends or reads a byte now
and then, therefore obstructs no other address.

The slowest connection is the one without progress for the longest time. Progress is a
request that begins or ends, or 64 KiB moved. A connection is closed for another only if it
has made no progress for ``slow_seconds`` and its client is the cause: the server waits for
the client, or the answer has begun, as with event streams and slow readers. A connection
that is idle after a request is closed at once, since that harms nobody. A request that the
application works on keeps its slot. An address replaces its own connections only once every
``room_seconds``, since ending one and serving another takes a hundred times as long as
refusing one; so a client that reconnects again and again costs little. The search for a
slow connection is limited in the same way.

When every slot of all addresses is taken, an idle connection is closed for a new one; else the
address with the most connections loses its slowest, if it has more than its share; else the
slowest is closed. So a few addresses that make progress just fast enough keep nobody out, and
end nobody's connection that is only silent.

The gateway of containers (``control/compute/podman/network/gateway.py``) gives out its places in
the same way.

Plain code: it has no clock and never waits. Every operation takes the same time however many
connections there are, except the search for a slow one, and the choice when all slots of all
addresses are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

PROGRESS_BYTES = 64 * 1024
"""How many bytes count as progress. With ``slow_seconds`` of 5 that is 13 KB/s."""


SHARE_MIN = 16


class Holder(Protocol):
    """A holder of a slot."""

    @property
    def held_by_client(self) -> bool:
        """Whether it makes no progress because of its client."""


HolderT = TypeVar("HolderT", bound=Holder)


@dataclass(eq=False)
class _Group(Generic[HolderT]):
    """The connections of one address, each with the time of its last progress; the one
    that has made none for the longest comes first."""

    key: str
    idle: dict[HolderT, float] = field(default_factory=dict)
    busy: dict[HolderT, float] = field(default_factory=dict)
    #: When one of them lost its slot for another, and when a slow one was looked for.
    made_room: float = -math.inf
    searched: float = -math.inf

    def __len__(self) -> int:
        return len(self.idle) + len(self.busy)

    @property
    def idle_longest(self) -> HolderT | None:
        return next(iter(self.idle), None)

    def slow_since(self, latest: float) -> HolderT | None:
        for holder, since in self.busy.items():
            if since > latest:
                return None
            if holder.held_by_client:
                return holder
        return None


class Slots(Generic[HolderT]):
    """The slots of one server. Times are in seconds of any monotonic clock.

    Args:
        slots_max: How many there are.
        per_address_max: How many one address may have.
        slow_seconds: See above.
        room_seconds: See above.
        share_min: An address with no more connections than these loses none that makes
            progress, however many addresses there are.
    """

    def __init__(
        self,
        slots_max: int,
        per_address_max: int,
        slow_seconds: float,
        room_seconds: float = 0.0,
        share_min: int = SHARE_MIN,
    ) -> None:
        self._slots_max = slots_max
        self._per_address_max = per_address_max
        self._slow_seconds = slow_seconds
        self._room_seconds = room_seconds
        self._share_min = share_min
        self._groups: dict[str, _Group[HolderT]] = {}
        self._of: dict[HolderT, _Group[HolderT]] = {}

    def __len__(self) -> int:
        return len(self._of)

    @property
    def all_taken(self) -> bool:
        return len(self._of) >= self._slots_max

    def slowest_of(self, address: str, now: float) -> HolderT | None:
        """The holder that must end before *address* gets another slot; None if none must.

        Raises:
            LookupError: The address has all of its slots, and each holder makes progress,
                or one has just lost its slot to another.
        """
        group = self._groups.get(address)
        if group is None or len(group) < self._per_address_max:
            return None
        if now < group.made_room + self._room_seconds:
            raise LookupError(address)
        slowest = group.idle_longest
        if slowest is None and now >= group.searched + self._room_seconds:
            group.searched = now
            slowest = group.slow_since(now - self._slow_seconds)
        if slowest is None:
            raise LookupError(address)
        group.made_room = now
        return slowest

    def slowest_of_all(self, now: float, address: str | None = None) -> HolderT | None:
        """The holder that can end for any address; one of the address with the most first.

        For an *address* that would have as many as that, only its own slow one: two of them would
        end each other's connections again and again.
        """
        groups = sorted(self._groups.values(), key=len, reverse=True)
        for group in groups:
            if group.idle_longest is not None:
                return group.idle_longest
        share = self._slots_max // (len(groups) + 1)
        if groups and len(groups[0]) > max(self._share_min, share):
            own = None if address is None else self._groups.get(address)
            if own is not None and len(own) >= max(self._share_min + 1, len(groups[0]) - 1):
                return own.slow_since(now - self._slow_seconds)
            if (slowest := groups[0].slow_since(now)) is not None:
                return slowest
        for group in groups:
            if (slow := group.slow_since(now - self._slow_seconds)) is not None:
                return slow
        return None

    def take(self, holder: HolderT, address: str, now: float) -> None:
        """Give *holder* a slot of *address*, or move the slot that it has."""
        self.give_back(holder)
        group = self._groups.setdefault(address, _Group(address))
        group.busy[holder] = now
        self._of[holder] = group

    def give_back(self, holder: HolderT) -> None:
        """Free the slot of *holder*, if it has one."""
        group = self._of.pop(holder, None)
        if group is not None:
            group.idle.pop(holder, None)
            group.busy.pop(holder, None)
            if not len(group):
                del self._groups[group.key]

    def note_progress(self, holder: HolderT, now: float, *, idle: bool = False) -> None:
        """Record progress of *holder*; *idle*: it waits for a request from now on."""
        group = self._of.get(holder)
        if group is not None:
            group.idle.pop(holder, None)
            group.busy.pop(holder, None)
            (group.idle if idle else group.busy)[holder] = now

"""Who may have a connection, and who loses one when there are too many.

Each connection takes a slot until it is closed. One address gets only so many: when
they are taken, its own slowest connection is closed for a new one, or the new one is
refused. So whoever holds thousands of connections and says nothing in them, or sends or
reads a byte now and then, is in nobody's way but his own.

The slowest is the one that has made no progress for the longest. Progress is a request
that begins or ends, or 64 KiB moved. A connection is closed for another only if it has
made none for ``slow_seconds`` and that is the client's doing: it waits for the client,
or is in an answer that has begun, as event streams and slow readers are. One that is idle
after a request goes at once, since that harms nobody. A request that the application
works on keeps its slot. An address gets so few places by that, one each ``room_seconds``,
that a crowd which comes again and again costs little: to begin and end a connection takes
twenty times as long as to turn one away.

When every slot of all addresses is taken and nobody is slow, the address that has the most
loses one, if that is more than its share: some addresses that read just fast enough would
keep everybody else out.

Plain code: no clock and no waiting. All but the choice when every slot of all addresses
is taken takes the same time however many connections there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["PROGRESS_BYTES", "Slots"]

PROGRESS_BYTES = 64 * 1024
"""What a connection must move to count as one that gets on. With ``slow_seconds`` of 5
that is 13 KB/s."""


#: Nobody who has no more than these loses one that gets on.
SHARE_MIN = 16


class Holder(Protocol):
    """A connection, as far as this is about it."""

    @property
    def held_by_client(self) -> bool:
        """Whether it is the client that it does not get on for."""


HolderT = TypeVar("HolderT", bound=Holder)


@dataclass(eq=False)
class _Group(Generic[HolderT]):
    """The connections of one address, each with the time of its last progress; the one
    that has made none for the longest comes first."""

    key: str
    idle: dict[HolderT, float] = field(default_factory=dict)
    busy: dict[HolderT, float] = field(default_factory=dict)
    #: When one of them lost its slot for another.
    made_room: float = -math.inf

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
    """The slots of one server. Times are in seconds, of any clock that only goes on.

    Args:
        slots_max: In all.
        per_address_max: Of one address.
        slow_seconds: See above.
        room_seconds: See above.
    """

    def __init__(
        self,
        slots_max: int,
        per_address_max: int,
        slow_seconds: float,
        room_seconds: float = 0.0,
    ) -> None:
        self._slots_max = slots_max
        self._per_address_max = per_address_max
        self._slow_seconds = slow_seconds
        self._room_seconds = room_seconds
        self._groups: dict[str, _Group[HolderT]] = {}
        self._of: dict[HolderT, _Group[HolderT]] = {}

    def __len__(self) -> int:
        return len(self._of)

    @property
    def all_taken(self) -> bool:
        return len(self._of) >= self._slots_max

    def slowest_of(self, address: str, now: float) -> HolderT | None:
        """Who must lose the slot before *address* gets another; None: nobody.

        Raises:
            LookupError: The address has all it may have, and each of these gets on, or
                one has just lost its slot for another.
        """
        group = self._groups.get(address)
        if group is None or len(group) < self._per_address_max:
            return None
        if now < group.made_room + self._room_seconds:
            raise LookupError(address)
        slowest = group.idle_longest or group.slow_since(now - self._slow_seconds)
        if slowest is None:
            raise LookupError(address)
        group.made_room = now
        return slowest

    def slowest_of_all(self, now: float) -> HolderT | None:
        """Who can lose the slot to anybody: of the address with the most of them first."""
        groups = sorted(self._groups.values(), key=len, reverse=True)
        for group in groups:
            if group.idle_longest is not None:
                return group.idle_longest
        for group in groups:
            if (slow := group.slow_since(now - self._slow_seconds)) is not None:
                return slow
        share = self._slots_max // (len(groups) + 1)
        if groups and len(groups[0]) > max(SHARE_MIN, share):
            return groups[0].slow_since(now)
        return None

    def take(self, holder: HolderT, address: str, now: float) -> None:
        """*holder* has a slot from now on, or has it for another address."""
        self.give_back(holder)
        group = self._groups.setdefault(address, _Group(address))
        group.busy[holder] = now
        self._of[holder] = group

    def give_back(self, holder: HolderT) -> None:
        """*holder* has no slot any more; nothing happens if it had none."""
        group = self._of.pop(holder, None)
        if group is not None:
            group.idle.pop(holder, None)
            group.busy.pop(holder, None)
            if not len(group):
                del self._groups[group.key]

    def got_on(self, holder: HolderT, now: float, *, idle: bool = False) -> None:
        """*holder* has made progress; *idle*: it waits for a request from now on."""
        group = self._of.get(holder)
        if group is not None:
            group.idle.pop(holder, None)
            group.busy.pop(holder, None)
            (group.idle if idle else group.busy)[holder] = now

"""Reservations: chunks that were reserved for clients' new files, and are not published yet.

Reservations last as long as their client sends requests. After a restart of the master
the client reclaims them (Reclaim). Their replicas may have been collected meanwhile, by
this master or the one before: they are *doubted* until their servers report them. So
are those on a server that registers again without them: it may have lost what it
acknowledged to clients.
"""

from __future__ import annotations

from typing import NamedTuple

from gfs.errors import Busy, InvalidArgument
from gfs.master.metadata import NumberSet
from gfs.master.tables.locations import Holders


class Reservation(NamedTuple):
    version: int
    servers: Holders
    client: str
    replication: int
    #: Servers that must report the replica before it is published; and those that
    #: reported that they lack it.
    doubted: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()


class _Holder:
    __slots__ = ("handles", "heard")

    def __init__(self, now: float) -> None:
        self.handles: set[int] = set()
        self.heard = now


class ReservationTable:
    """``next_handle`` … ``handle_end`` - 1 is the durable range of handles that can be
    allocated: an allocation costs no commit, and a restart skips the rest of the
    range."""

    def __init__(self, next_handle: int, handle_end: int) -> None:
        self.next_handle = next_handle
        self.handle_end = handle_end
        self._reservations: dict[int, Reservation] = {}
        self._clients: dict[str, _Holder] = {}
        #: Chunks of files that are being committed.
        self.publishing: set[int] = set()

    def new_handle(self) -> int:
        if self.next_handle >= self.handle_end:
            raise Busy("the master is making new chunk handles durable: try again")
        handle = self.next_handle
        self.next_handle += 1
        return handle

    @property
    def handles_left(self) -> int:
        return self.handle_end - self.next_handle

    def check_handle(self, handle: int) -> None:
        """Raises InvalidArgument for a handle that was never allocated."""
        if not 0 < handle < self.next_handle:
            raise InvalidArgument(
                f"chunk {handle:x} does not exist: this handle was never allocated"
            )

    def get(self, handle: int) -> Reservation | None:
        return self._reservations.get(handle)

    def put(self, handle: int, reservation: Reservation, now: float) -> None:
        self._reservations[handle] = reservation
        holder = self._clients.get(reservation.client)
        if holder is None:
            holder = self._clients[reservation.client] = _Holder(now)
        holder.handles.add(handle)
        holder.heard = now

    def doubt(self, server: int, reported: NumberSet) -> None:
        """Doubt the replicas on a server that came back with only the ``reported``
        ones: others that were written there may be lost, or are being written. Linear
        in the reservations."""
        for handle, each in self._reservations.items():
            if server in each.servers and handle not in reported and server not in each.absent:
                self._reservations[handle] = each._replace(doubted=each.doubted | {server})

    def resolve(self, handle: int, server: int, version: int | None) -> None:
        """Resolve a doubt: the replica exists, with ``version``, or does not (None)."""
        reservation = self._reservations.get(handle)
        if reservation is None or server not in reservation.doubted:
            return
        absent = reservation.absent
        if version is None or version < reservation.version:
            absent |= {server}
        self._reservations[handle] = reservation._replace(
            doubted=reservation.doubted - {server}, absent=absent
        )

    def lost(self, handle: int, server: int) -> None:
        """Note that the server has lost its replica, if it had one."""
        reservation = self._reservations.get(handle)
        if reservation is not None and server in reservation.servers:
            self._reservations[handle] = reservation._replace(
                doubted=reservation.doubted - {server}, absent=reservation.absent | {server}
            )

    def pop(self, handle: int) -> Reservation | None:
        reservation = self._reservations.pop(handle, None)
        if reservation is not None:
            holder = self._clients[reservation.client]
            holder.handles.discard(handle)
            if not holder.handles:
                del self._clients[reservation.client]
        return reservation

    def at(self, server: int) -> int:
        """The number of reserved chunks with a replica on the server. Linear in the
        reservations."""
        return sum(server in each.servers for each in self._reservations.values())

    def heard(self, client: str, now: float) -> None:
        holder = self._clients.get(client)
        if holder is not None:
            holder.heard = now

    def expired(self, now: float, silence_seconds: float) -> list[int]:
        """The handles whose client sent nothing for ``silence_seconds``."""
        return [
            handle
            for holder in self._clients.values()
            if now - holder.heard >= silence_seconds
            for handle in holder.handles
        ]

    def forgive(self, seconds: float) -> None:
        """Extend all reservations by a time in which the master itself did not run."""
        for holder in self._clients.values():
            holder.heard += seconds

    def __len__(self) -> int:
        return len(self._reservations)

"""Where the replicas are, and which chunks are being written.

Nothing of this is on disk. Chunkservers have the last word on what they hold
(the paper, section 2.6.2): they report it when they register and in pieces
with every heartbeat, and the master only ever compares.

*Locations* are the replicas known to be whole and of the chunk's current
version, on servers that are not dead. The table knows which version that is: what
deletes a replica compares it with the chunk's row, so that replicas of an older
version never pass for those that stay. The comparison of one reported replica with
the row:

==========================================  ==================================
reported                                    it is
==========================================  ==================================
version equal, long enough                  a location
version equal, too short                    suspect: the server is asked to
                                            verify it
possibly stale, version not lower           no location: garbage, unless there is
                                            nothing else (:mod:`gfs.master.replicas.election`)
version lower, and it was no location       stale
version lower, but it was a location        suspect: the report may be older
                                            than the grant it contradicts
version higher                              the master failed while granting:
                                            the higher version is taken
chunk unknown, but reserved                 being written: nothing
chunk unknown                               orphaned (:mod:`gfs.master.replicas.garbage`)
==========================================  ==================================

*Reservations* are chunks handed to clients for new files and not published
yet. They live as long as their client is heard from. After a restart of the
master the client brings them back (Reclaim). What it names may have been
collected meanwhile, by this master or the one before: its replicas are
*doubted* until their servers say that they are there. So are those on a server that
registers again without them: it may have lost what it acknowledged to clients.

Sketch for 1,000,000 chunks of 3 replicas: one dict of int to a version and a tuple of
small ints, shared between chunks of the same version on the same servers: about 100
bytes a chunk, 100 MB in all. There is no index by server: losing one costs a pass over
the dict (0.1 s a million), in slices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from gfs.errors import Busy, InvalidArgument

#: Sets of servers kept for sharing.
SHARED_MAX = 100_000

Holders = tuple[int, ...]


class Located(NamedTuple):
    version: int
    holders: Holders


_NOWHERE = Located(0, ())


class LocationTable:
    def __init__(self) -> None:
        self._located: dict[int, Located] = {}
        self._shared: dict[Located, Located] = {}
        #: Locations per server index.
        self.counts: dict[int, int] = {}
        #: Each collects the handles that change, for a shadow master.
        self.watchers: list[dict[int, None]] = []

    def get(self, handle: int) -> Holders:
        """Server indexes, in no order that means anything."""
        return self._located.get(handle, _NOWHERE).holders

    def version(self, handle: int) -> int:
        """What all its locations are of; 0 if there are none."""
        return self._located.get(handle, _NOWHERE).version

    def add(self, handle: int, server: int, version: int) -> bool:
        """True if it is news. Locations of another version are none any more, but one
        of a lower version than they have is refused."""
        known = self._located.get(handle, _NOWHERE)
        if version < known.version:
            return False
        if version > known.version:
            for other in known.holders:
                self.counts[other] -= 1
            known = _NOWHERE
        if server in known.holders:
            return False
        self._put(handle, version, tuple(sorted((*known.holders, server))))
        self.counts[server] = self.counts.get(server, 0) + 1
        return True

    def remove(self, handle: int, server: int) -> bool:
        """True if it was there."""
        version, holders = self._located.get(handle, _NOWHERE)
        if server not in holders:
            return False
        self._put(handle, version, tuple(s for s in holders if s != server))
        self.counts[server] -= 1
        return True

    def replace(self, handle: int, servers: Iterable[int], version: int) -> Holders:
        """Exactly these; returns those that are none any more."""
        before = self.pop(handle)
        for server in servers:
            self.add(handle, server, version)
        return tuple(server for server in before if server not in self.get(handle))

    def pop(self, handle: int) -> Holders:
        """The chunk is no more."""
        holders = self._located.pop(handle, _NOWHERE).holders
        for watcher in self.watchers:
            watcher[handle] = None
        for server in holders:
            self.counts[server] -= 1
        return holders

    def handles(self) -> list[int]:
        """A copy, to go over in slices."""
        return list(self._located)

    def _put(self, handle: int, version: int, holders: Holders) -> None:
        for watcher in self.watchers:
            watcher[handle] = None
        if not holders:
            self._located.pop(handle, None)
            return
        if len(self._shared) > SHARED_MAX:
            self._shared.clear()
        located = Located(version, holders)
        self._located[handle] = self._shared.setdefault(located, located)

    def __len__(self) -> int:
        return len(self._located)


class Reservation(NamedTuple):
    version: int
    servers: Holders
    client: str
    replication: int
    #: Servers that must say that the replica is there before it is published;
    #: and those that said it is not.
    doubted: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()


class _Holder:
    __slots__ = ("handles", "heard")

    def __init__(self, now: float) -> None:
        self.handles: set[int] = set()
        self.heard = now


class ReservationTable:
    """``next_handle`` … ``handle_end`` - 1 is the durable range still to be
    handed out: handing out costs no commit, and a restart skips what is left."""

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
        """InvalidArgument for a handle that was never handed out."""
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

    def doubt(self, server: int, reported: Collection[int]) -> None:
        """The server came back, and all it holds is ``reported``: what else was written
        there may be lost, or be written just now. Looks at all of them."""
        for handle, each in self._reservations.items():
            if server in each.servers and handle not in reported and server not in each.absent:
                self._reservations[handle] = each._replace(doubted=each.doubted | {server})

    def resolve(self, handle: int, server: int, version: int | None) -> None:
        """A doubted replica is there, of ``version``, or is not (None)."""
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
        """The replica there went, if there was one."""
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
        """How many have a replica there. Looks at all of them."""
        return sum(server in each.servers for each in self._reservations.values())

    def heard(self, client: str, now: float) -> None:
        holder = self._clients.get(client)
        if holder is not None:
            holder.heard = now

    def expired(self, now: float, silence_seconds: float) -> list[int]:
        """Handles whose client was not heard from for ``silence_seconds``."""
        return [
            handle
            for holder in self._clients.values()
            if now - holder.heard >= silence_seconds
            for handle in holder.handles
        ]

    def forgive(self, seconds: float) -> None:
        """The master itself did not run for this long."""
        for holder in self._clients.values():
            holder.heard += seconds

    def __len__(self) -> int:
        return len(self._reservations)

"""The chunkservers as the master knows them.

======  ==========================================================================
state   meaning
======  ==========================================================================
live    connected, with recent heartbeats: it gets new chunks, and copies once it
        has reported all its replicas
silent  disconnected, or heartbeats are missing: it gets no new replicas, but its
        replicas still count
dead    without a heartbeat for ``dead_seconds``: its replicas do not count any
        more and are re-replicated
======  ==========================================================================

A server has the id that it made for its disks and, inside the master, a small index
that never changes while the master runs. Its *incarnation* grows with each of its
starts: messages of an older incarnation or an older connection are ignored (hadoop
PR#4568).

Ages are counted on the master's own clock. If the master itself did not run (a
suspended machine), no heartbeat could arrive: :meth:`ServerTable.forgive` moves all
ages by that time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gfs.errors import DiskFailed, StaleVersion
from gfs.io import lost_mount
from gfs.master.metadata import NumberSet
from gfs.master.metadata.rows import DRAINED, NOT_DRAINING, KnownServer
from gfs.protocol.messages import PAGE_BYTES_MAX, Disk, Scrub, ServerAddress
from gfs.protocol.rpc import Rpc

#: A server is silent when this many heartbeats are missing.
SILENT_HEARTBEATS = 3
#: The list of servers that replicas can be placed on is renewed at most this often.
PLACEABLE_SECONDS = 0.25
#: How long a server whose chain broke is avoided, unless it sends a message.
FAILED_SECONDS = 5.0
#: A dead server without replicas is removed from the table after this long.
FORGET_SECONDS = 7 * 24 * 3600.0
#: After so many ``dead_seconds`` a chunk that no chunkserver has reported is declared lost.
LOST_PERIODS = 2
RECENT_DECAY_PER_SECOND = 0.93

LIVE, SILENT, DEAD = "live", "silent", "dead"
#: The shown state of a drained server that is away.
STOPPED = "stopped"
_USABLE = frozenset(("ok", "slow"))
#: States of disks that are not used at all.
DISK_DOWN = frozenset(("failed", "missing"))

#: The size of a ChunkLocation on the wire, without servers and per server; and that of
#: an address without its strings.
LOCATION_BYTES, LOCATION_SERVER_BYTES, ADDRESS_BYTES = 24, 3, 12


@dataclass(slots=True)
class Shift:
    """A replica that is being moved to a server, or away from it: then its bytes are negative."""

    bytes: int
    #: When the move ended; None while it is under way.
    ended_at: float | None = None


class Calm(NamedTuple):
    """What a server's disks had in use when nothing moved, and what had moved until then."""

    used_bytes: int
    moved_in_bytes: int
    moved_out_bytes: int


@dataclass(slots=True)
class Transfers:
    """The replicas that are copied to one server, and from it, and those of them that are moved
    for balance."""

    clones_in: int = 0
    clones_out: int = 0
    #: By handle: the moves that the reports of its disks may not cover yet.
    shifts: dict[int, Shift] = field(default_factory=dict)
    #: The sums of those, and of those of them that have ended.
    arriving_bytes: int = 0
    leaving_bytes: int = 0
    arrived_bytes: int = 0
    left_bytes: int = 0
    #: The sums of all that ever began.
    moved_in_bytes: int = 0
    moved_out_bytes: int = 0

    def begin(self, handle: int, count: int) -> None:
        """Note that so many bytes of a replica are being moved here, or away (negative)."""
        self.end(handle)
        self.shifts[handle] = Shift(count)
        self.arriving_bytes += max(0, count)
        self.leaving_bytes += max(0, -count)
        self.moved_in_bytes += max(0, count)
        self.moved_out_bytes += max(0, -count)

    def set_ended(self, handle: int, at: float | None) -> None:
        """Note when the move ended, which the reports of its disks may not cover yet; None:
        it is under way."""
        shift = self.shifts[handle]
        sign = (at is not None) - (shift.ended_at is not None)
        self.arrived_bytes += sign * max(0, shift.bytes)
        self.left_bytes += sign * max(0, -shift.bytes)
        shift.ended_at = at

    def end(self, handle: int) -> None:
        """Note that the reports of its disks cover the move."""
        if handle in self.shifts:
            self.set_ended(handle, None)
            shift = self.shifts.pop(handle)
            self.arriving_bytes -= max(0, shift.bytes)
            self.leaving_bytes -= max(0, -shift.bytes)


@dataclass(slots=True)
class Registration:
    incarnation: int = 0
    #: Whether it is complete on this connection.
    is_complete: bool = False
    #: Handles reported since it began; None outside one.
    reported: NumberSet | None = None


@dataclass(slots=True)
class Particulars:
    """What a server says of itself."""

    #: What it packs: see :func:`gfs.blocks.packed_bytes`.
    packed_bytes_max: int = 0
    scrub: Scrub = field(default_factory=Scrub)
    certificate_until_ns: int = 0


@dataclass(eq=False, slots=True)
class Server:
    index: int
    id: str
    address: str
    rack: str
    last_heard: float
    state: str = SILENT
    disks: list[Disk] = field(default_factory=list)
    #: The number of replicas that it reports, garbage included.
    chunks: int = 0
    rpc: Rpc | None = None
    registration: Registration = field(default_factory=Registration)
    particulars: Particulars = field(default_factory=Particulars)
    used: float = 0.0
    total_bytes: int = 0
    transfers: Transfers = field(default_factory=Transfers)
    recent: float = 0.0
    failed_at: float = float("-inf")
    draining: int = NOT_DRAINING
    #: It is under maintenance until then, in the uptime of masters: see
    #: :mod:`gfs.master.service.operator_commands`.
    maintenance_until_ns: int = 0
    #: Where its disks are mounted, by path, as it is recorded.
    mounts: dict[str, str] = field(default_factory=dict)
    #: The address as replies carry it, and its size there.
    wire: tuple[ServerAddress, int] = ServerAddress("", "", ""), ADDRESS_BYTES

    def set_wire(self) -> None:
        """After a change of the address or the rack."""
        size = ADDRESS_BYTES + len(self.id) + len(self.address) + len(self.rack)
        self.wire = ServerAddress(self.id, self.address, self.rack), size

    def set_disks(self, disks: list[Disk]) -> None:
        """Set the reported disks. Free space on a disk that takes no new replicas
        counts neither as free nor in the total."""
        self.disks = disks
        free = sum(disk.free_bytes for disk in disks if disk.state in _USABLE)
        total = free + sum(disk.total_bytes - disk.free_bytes for disk in disks)
        self.used = 1.0 - free / total if total > 0 else 1.0
        self.total_bytes = total

    @property
    def used_bytes(self) -> int:
        return int(self.used * self.total_bytes)

    @property
    def least_used_bytes(self) -> int:
        """The least use of its disks after all moves under way."""
        return self.used_bytes - self.transfers.leaving_bytes

    @property
    def most_used_bytes(self) -> int:
        return self.used_bytes + self.transfers.arriving_bytes

    def least_used_since(self, calm: Calm) -> int:
        """:attr:`least_used_bytes`, with what was known in a calm moment: the reports may cover
        any part of the moves that have ended since."""
        known = calm.used_bytes - (self.transfers.moved_out_bytes - calm.moved_out_bytes)
        least = self.least_used_bytes
        return max(least, min(known, least + self.transfers.left_bytes))

    def most_used_since(self, calm: Calm) -> int:
        known = calm.used_bytes + self.transfers.moved_in_bytes - calm.moved_in_bytes
        most = self.most_used_bytes
        return min(most, max(known, most - self.transfers.arrived_bytes))

    @property
    def calm(self) -> Calm:
        """To be taken while nothing moves."""
        return Calm(self.used_bytes, self.transfers.moved_in_bytes, self.transfers.moved_out_bytes)

    @property
    def free_bytes(self) -> int:
        """The free space for new replicas."""
        return sum(disk.free_bytes for disk in self.disks if disk.state in _USABLE)

    @property
    def has_space(self) -> bool:
        return any(disk.state in _USABLE and disk.free_bytes > 0 for disk in self.disks)


class ServerTable:
    def __init__(
        self,
        known: dict[str, KnownServer],
        heartbeat_seconds: float,
        dead_seconds: float,
        now: float,
    ) -> None:
        self._silent_seconds = min(SILENT_HEARTBEATS * heartbeat_seconds, dead_seconds)
        self._dead_seconds = dead_seconds
        self._began_at = now
        self.by_id: dict[str, Server] = {}
        self.by_index: list[Server | None] = []
        #: Indexes of the servers that are not live.
        self.not_live: set[int] = set()
        #: Servers that became live, or completed their registration, since the last evaluation.
        self.revived: set[int] = set()
        #: Servers known from before the master was started, which have not registered since.
        self.awaited: set[int] = set()
        #: Servers under maintenance that have not registered with this master yet: each
        #: chunk may have an unknown replica on each of them.
        self.spared = 0
        #: Indexes of the draining and drained servers; and the chunks that were being granted
        #: when the drain of each began.
        self.draining: set[int] = set()
        self.granting_then: dict[int, frozenset[int]] = {}
        self._open_to_new: list[Server] = []
        self._placeable: list[Server] = []
        self._placeable_until = float("-inf")
        for server_id, row in known.items():
            server = self._add(server_id, row.address, row.rack, now)
            self.set_draining(server, row.draining)
            server.maintenance_until_ns = row.maintenance_until_ns
            server.mounts = row.mounts
            if row.draining != DRAINED:  # it has no replicas, and may be stopped
                self.awaited.add(server.index)

    def _add(self, server_id: str, address: str, rack: str, now: float) -> Server:
        index = len(self.by_index)
        server = Server(index, server_id, address, rack, now)
        server.set_wire()
        self.by_id[server_id] = server
        self.by_index.append(server)
        self.not_live.add(index)
        return server

    def get(self, index: int) -> Server:
        server = self.by_index[index]
        if server is None:
            raise IndexError(f"server {index} was removed from the table")
        return server

    def all(self) -> list[Server]:
        return list(self.by_id.values())

    def had_time_to_report(self, now: float) -> bool:
        """Whether chunkservers had the time to report all replicas, also those that
        were being written or verified when this master began."""
        return now >= self._began_at + LOST_PERIODS * self._dead_seconds

    # --- coming and going ----------------------------------------------------------

    def check_mounts(self, address: str, disks: list[Disk]) -> None:
        """Raises DiskFailed if a new chunkserver at ``address`` would fill the file system below
        the disk of another one on this machine, which is not mounted now."""
        machine = address.rpartition(":")[0]
        for server in self.by_id.values():
            if server.address.rpartition(":")[0] != machine:
                continue
            for disk in disks:
                before = server.mounts.get(disk.path, "")
                if lost_mount(before, disk.mount):
                    raise DiskFailed(
                        f"{disk.path} was a disk of chunkserver {server.id}, mounted at {before}, "
                        "and nothing is mounted there now: mount it, and start the chunkserver. "
                        "If that disk is gone for good, and a new chunkserver is to fill the file "
                        f"system of {disk.mount}: gfs forget {server.id}, then start it"
                    )

    def register(
        self,
        server_id: str,
        incarnation: int,
        address: str,
        rack: str,
        disks: list[Disk],
        rpc: Rpc,
        now: float,
    ) -> tuple[Server, bool]:
        """Take the first message of a server on a connection; True if the server is
        new, or if stored data of it has changed.

        Raises StaleVersion for an older incarnation than the known one. An
        older connection of the same server is closed.
        """
        mounts = {disk.path: disk.mount for disk in disks if disk.mount not in ("", "/")}
        server = self.by_id.get(server_id)
        if server is None:
            server = self._add(server_id, address, rack, now)
            changed = True
        elif incarnation < server.registration.incarnation:
            raise StaleVersion(
                f"chunkserver {server_id} was restarted: this connection belongs to its former "
                "process"
            )
        else:
            changed = (server.address, server.rack, server.mounts) != (address, rack, mounts)
        if server.rpc is not None and server.rpc is not rpc:
            server.rpc.close()
        server.address, server.rack = address, rack
        server.set_wire()
        server.mounts = mounts
        server.rpc = rpc
        server.registration = Registration(incarnation, reported=NumberSet())
        server.set_disks(disks)
        self.heard(server, now)
        return server, changed

    def heard(self, server: Server, now: float) -> None:
        server.last_heard = now
        if server.state != LIVE and server.rpc is not None:
            self._set_state(server, LIVE)
            self.revived.add(server.index)

    def registration_complete(self, server: Server) -> None:
        """Note that it has reported all its replicas."""
        server.registration.reported = None
        server.registration.is_complete = True
        self.awaited.discard(server.index)
        self.revived.add(server.index)
        self._placeable_until = float("-inf")

    def disconnected(self, server: Server, rpc: Rpc) -> bool:
        """The connection ended. False if the server has a newer one."""
        if server.rpc is not rpc:
            return False
        server.rpc = None
        server.registration.is_complete = False
        server.registration.reported = None
        if server.state == LIVE:
            self._set_state(server, SILENT)
        return True

    def _set_state(self, server: Server, state: str) -> None:
        server.state = state
        (self.not_live.discard if state == LIVE else self.not_live.add)(server.index)
        self._placeable_until = float("-inf")

    def maintain(self, server_id: str, until_ns: int) -> None:
        """Set the end of its maintenance; 0: none."""
        server = self.by_id.get(server_id)
        if server is not None:
            server.maintenance_until_ns = until_ns

    def tick(self, now: float, lived_ns: int) -> list[Server]:
        """Update states by the time; returns the servers that are dead from now on."""
        died = []
        self.spared = 0
        for server in self.by_id.values():
            age = now - server.last_heard
            is_spared = lived_ns < server.maintenance_until_ns
            if server.state != DEAD and age >= self._dead_seconds and not is_spared:
                self._set_state(server, DEAD)
                self.awaited.discard(server.index)
                died.append(server)
            elif server.state == LIVE and age >= self._silent_seconds:
                self._set_state(server, SILENT)
            elif server.state == SILENT and age >= self._dead_seconds:
                self.awaited.discard(server.index)
                self.spared += not server.registration.incarnation
        return died

    def decay(self, seconds: float) -> None:
        """Let recent creations count less."""
        factor = RECENT_DECAY_PER_SECOND**seconds
        for server in self.by_id.values():
            server.recent *= factor

    def forgive(self, seconds: float) -> None:
        """Move all ages by a time in which the master itself did not run."""
        for server in self.by_id.values():
            server.last_heard += seconds

    def forgettable(self, now: float, locations: Mapping[int, int]) -> list[Server]:
        """The servers that have been dead for very long and have no known replicas."""
        return [
            server
            for server in self.by_id.values()
            if server.state == DEAD
            and not locations.get(server.index)
            and now - server.last_heard >= FORGET_SECONDS
        ]

    def forget(self, server: Server) -> None:
        del self.by_id[server.id]
        self.by_index[server.index] = None
        self.not_live.discard(server.index)
        self.draining.discard(server.index)
        self.granting_then.pop(server.index, None)

    def set_draining(self, server: Server, draining: int) -> None:
        server.draining = draining
        (self.draining.add if draining else self.draining.discard)(server.index)
        self._placeable_until = float("-inf")

    # --- choosing --------------------------------------------------------------------

    def placeable(self, now: float) -> list[Server]:
        """The servers that may get a copy of a replica. Do not change the list."""
        self._refresh_placeable(now)
        return self._placeable

    def open_to_new(self, now: float) -> list[Server]:
        """The servers that may get a new chunk: also those that have not completed
        their registration, since they cannot have it. Do not change the list."""
        self._refresh_placeable(now)
        return self._open_to_new

    def _refresh_placeable(self, now: float) -> None:
        if now < self._placeable_until:
            return
        self._open_to_new = [
            server
            for server in self.by_id.values()
            if server.state == LIVE and server.has_space and not server.draining
        ]
        self._placeable = [
            server for server in self._open_to_new if server.registration.is_complete
        ]
        self._placeable_until = now + PLACEABLE_SECONDS

    def placement_changed(self) -> None:
        self._placeable_until = float("-inf")

    def failed(self, server: Server, now: float) -> None:
        """Note that a client saw a chain break at this server."""
        server.failed_at = now

    def is_suspect(self, server: Server, now: float) -> bool:
        """Whether a chain broke there a moment ago, and it has sent no message since."""
        return now - server.failed_at < FAILED_SECONDS and server.last_heard <= server.failed_at

    def may_be_there(self, server: Server, now: float) -> bool:
        """Whether the server may be running: also if its connection ended just now,
        since it may just be reconnecting, and if this master has not run for long
        enough to know."""
        return server.state == LIVE or now - server.last_heard < self._silent_seconds

    def expects(self, now: float, failed: frozenset[int], *, seconds: float) -> bool:
        """Whether a server from before this master's start may still connect, or is
        registering. One that takes longer than ``seconds`` counts as away and is not waited
        for, nor are those that have ``failed``."""
        return any(
            server.state == LIVE or now - server.last_heard < seconds
            for server in map(self.get, self.awaited - failed)
        )

    @property
    def live_count(self) -> int:
        return len(self.by_id) - len(self.not_live)

    def ordered(self) -> list[Server]:
        """The servers in the order in which they are shown."""
        return sorted(self.by_id.values(), key=lambda server: (server.rack, server.id))


class AddressBook:
    """The ``servers`` table of a reply, which carries each server once, however many chunks
    refer to it; and the room that is left."""

    def __init__(self, room: int = PAGE_BYTES_MAX) -> None:
        self.servers: list[ServerAddress] = []
        self.room = room
        self._positions: dict[int, int] = {}

    def positions(self, servers: list[Server]) -> list[int]:
        self.room -= LOCATION_BYTES + LOCATION_SERVER_BYTES * len(servers)
        known, found = self._positions, []
        for server in servers:
            at = known.get(server.index)
            if at is None:
                at = known[server.index] = len(known)
                address, size = server.wire
                self.servers.append(address)
                self.room -= size
            found.append(at)
        return found

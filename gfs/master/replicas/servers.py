"""The chunkservers as the master knows them.

============  ==========================================================
state         meaning
============  ==========================================================
live          connected, and heard from lately: new chunks are placed there,
              and copies once it has reported all it holds
silent        the connection is gone or the heartbeat late: nothing new is
              placed there, but its replicas still count
dead          not heard from for ``dead_seconds``: its replicas do not count
              any more and are made anew elsewhere
============  ==========================================================

A server is known by the id it made for its own disk, and inside the master by
a small index that never changes while the master runs. Its *incarnation* grows
with each of its starts: what an older incarnation or an older connection still
says is ignored (hadoop PR#4568).

Ages are counted on the master's own clock. If the master itself stood still (a
suspended machine), nobody could be heard meanwhile: :meth:`ServerTable.forgive`
moves all ages by that time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gfs.errors import StaleVersion
from gfs.master.metadata.rows import KnownServer
from gfs.master.replicas import drain
from gfs.protocol.messages import Disk, Scrub, ServerAddress
from gfs.protocol.rpc import Rpc

#: A server is silent when this many heartbeats are missing.
SILENT_HEARTBEATS = 3
#: The list of servers to place on is made anew at most this often.
PLACEABLE_SECONDS = 0.25
#: A chunkserver connects to a master that was started again within this time.
COMING_SECONDS = 5.0
#: A server a chain broke at is passed over this long, unless it is heard from.
FAILED_SECONDS = 5.0
#: A dead server that holds nothing is removed from the table after this long.
FORGET_SECONDS = 7 * 24 * 3600.0
RECENT_DECAY_PER_SECOND = 0.93

LIVE, SILENT, DEAD = "live", "silent", "dead"
#: As one is shown that was drained and is away.
STOPPED = "stopped"
_USABLE = frozenset(("ok", "slow"))
#: States of disks that are not used at all.
DISK_DOWN = frozenset(("failed", "missing"))


@dataclass(slots=True)
class Shift:
    """A replica on its way to a server, or away from it: then its bytes are negative."""

    bytes: int
    #: When it had ended, and was not looked for any more.
    ended_at: float | None = None


@dataclass(eq=False, slots=True)
class Server:
    index: int
    id: str
    address: str
    rack: str
    last_heard: float
    state: str = SILENT
    incarnation: int = 0
    disks: list[Disk] = field(default_factory=list)
    #: What it says it holds, wanted or not.
    chunks: int = 0
    rpc: Rpc | None = None
    #: Its registration on this connection is complete.
    registered: bool = False
    #: Handles known to be there since its registration began; None outside one.
    reported: set[int] | None = None
    used: float = 0.0
    total_bytes: int = 0
    #: By handle: replicas moved for balance that ``used`` may not cover yet.
    shifts: dict[int, Shift] = field(default_factory=dict)
    #: The sums of those.
    arriving_bytes: int = 0
    leaving_bytes: int = 0
    recent: float = 0.0
    failed_at: float = float("-inf")
    scrub: Scrub = field(default_factory=Scrub)
    certificate_until_ns: int = 0
    clones_in: int = 0
    clones_out: int = 0
    #: See :mod:`gfs.master.replicas.drain`; and the chunks that were being granted when it began.
    draining: int = drain.NO
    granting_then: frozenset[int] = frozenset()
    #: It is under maintenance until then, in the uptime of masters: see
    #: :mod:`gfs.master.service.operator_commands`.
    maintenance_until_ns: int = 0
    #: The address as replies carry it.
    wire: ServerAddress = field(default_factory=lambda: ServerAddress("", "", ""))

    def set_disks(self, disks: list[Disk]) -> None:
        """As it reported them. What is free on a disk that takes nothing new counts neither
        as free nor as there."""
        self.disks = disks
        free = sum(disk.free_bytes for disk in disks if disk.state in _USABLE)
        total = free + sum(disk.total_bytes - disk.free_bytes for disk in disks)
        self.used = 1.0 - free / total if total > 0 else 1.0
        self.total_bytes = total

    def begin_shift(self, handle: int, count: int) -> None:
        """So many bytes of a replica begin to come here, or to leave (less than 0)."""
        self.end_shift(handle)
        self.shifts[handle] = Shift(count)
        self.arriving_bytes += max(0, count)
        self.leaving_bytes += max(0, -count)

    def end_shift(self, handle: int) -> None:
        shift = self.shifts.pop(handle, None)
        if shift is not None:
            self.arriving_bytes -= max(0, shift.bytes)
            self.leaving_bytes -= max(0, -shift.bytes)

    @property
    def used_bytes(self) -> int:
        return int(self.used * self.total_bytes)

    @property
    def least_used_bytes(self) -> int:
        """At least so much of its disks is used when all moves under way have ended."""
        return self.used_bytes - self.leaving_bytes

    @property
    def most_used_bytes(self) -> int:
        return self.used_bytes + self.arriving_bytes

    @property
    def free_bytes(self) -> int:
        """For new replicas."""
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
        self.by_id: dict[str, Server] = {}
        self.by_index: list[Server | None] = []
        #: Indexes of the servers that are not live.
        self.not_live: set[int] = set()
        #: Servers that came to be live, or fully registered, since this was last looked at.
        self.revived: set[int] = set()
        #: Known from before the master was started, and not heard of since.
        self.awaited: set[int] = set()
        #: Servers under maintenance that this master has not heard of yet: each chunk may
        #: have a replica more than is known on each of them.
        self.spared = 0
        #: Indexes of the servers that are being emptied, or are empty.
        self.draining: set[int] = set()
        self._open_to_new: list[Server] = []
        self._placeable: list[Server] = []
        self._placeable_until = float("-inf")
        for server_id, row in known.items():
            server = self._add(server_id, row.address, row.rack, now)
            self.set_draining(server, row.draining)
            server.maintenance_until_ns = row.maintenance_until_ns
            if row.draining != drain.DRAINED:  # nothing is there, and it may be gone
                self.awaited.add(server.index)

    def _add(self, server_id: str, address: str, rack: str, now: float) -> Server:
        index = len(self.by_index)
        server = Server(index, server_id, address, rack, now)
        server.wire = ServerAddress(server_id, address, rack)
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

    # --- coming and going ----------------------------------------------------------

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
        """A server's first words on a connection; True if it is new, or changed
        in what is remembered over a restart.

        Raises StaleVersion for an older incarnation than the known one. An
        older connection of the same server is closed.
        """
        server = self.by_id.get(server_id)
        if server is None:
            server = self._add(server_id, address, rack, now)
            changed = True
        elif incarnation < server.incarnation:
            raise StaleVersion(
                f"chunkserver {server_id} was restarted: this connection is of its older process"
            )
        else:
            changed = (server.address, server.rack) != (address, rack)
        if server.rpc is not None and server.rpc is not rpc:
            server.rpc.close()
        server.incarnation, server.address, server.rack = incarnation, address, rack
        server.wire = ServerAddress(server_id, address, rack)
        server.rpc = rpc
        server.registered = False
        server.reported = set()
        server.set_disks(disks)
        self.heard(server, now)
        return server, changed

    def heard(self, server: Server, now: float) -> None:
        server.last_heard = now
        if server.state != LIVE and server.rpc is not None:
            self._set_state(server, LIVE)
            self.revived.add(server.index)

    def registration_complete(self, server: Server) -> None:
        """It has reported everything it holds."""
        server.reported = None
        server.registered = True
        self.awaited.discard(server.index)
        self.revived.add(server.index)
        self._placeable_until = float("-inf")

    def disconnected(self, server: Server, rpc: Rpc) -> bool:
        """The connection ended. False if the server has a newer one."""
        if server.rpc is not rpc:
            return False
        server.rpc = None
        server.registered = False
        server.reported = None
        if server.state == LIVE:
            self._set_state(server, SILENT)
        return True

    def _set_state(self, server: Server, state: str) -> None:
        server.state = state
        (self.not_live.discard if state == LIVE else self.not_live.add)(server.index)
        self._placeable_until = float("-inf")

    def maintain(self, server_id: str, until_ns: int) -> None:
        """It is under maintenance until then; 0: it is not."""
        server = self.by_id.get(server_id)
        if server is not None:
            server.maintenance_until_ns = until_ns

    def tick(self, now: float, lived_ns: int) -> list[Server]:
        """Let time pass; returns the servers that are dead from now on."""
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
                self.spared += not server.incarnation
        return died

    def decay(self, seconds: float) -> None:
        """Creations become less recent."""
        factor = RECENT_DECAY_PER_SECOND**seconds
        for server in self.by_id.values():
            server.recent *= factor

    def forgive(self, seconds: float) -> None:
        """The master itself did not run for this long."""
        for server in self.by_id.values():
            server.last_heard += seconds

    def forgettable(self, now: float, locations: Mapping[int, int]) -> list[Server]:
        """Dead for very long, and nothing is known to be there."""
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

    def set_draining(self, server: Server, draining: int) -> None:
        server.draining = draining
        (self.draining.add if draining else self.draining.discard)(server.index)
        self._placeable_until = float("-inf")

    # --- choosing --------------------------------------------------------------------

    def placeable(self, now: float) -> list[Server]:
        """The servers a copy of a replica may go to; do not change the list."""
        self._refresh_placeable(now)
        return self._placeable

    def open_to_new(self, now: float) -> list[Server]:
        """The servers a new chunk may go to, which none of them can hold already: also
        those that have not reported yet what they hold. Do not change the list."""
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
        self._placeable = [server for server in self._open_to_new if server.registered]
        self._placeable_until = now + PLACEABLE_SECONDS

    def placement_changed(self) -> None:
        self._placeable_until = float("-inf")

    def failed(self, server: Server, now: float) -> None:
        """A client saw a chain break at this server."""
        server.failed_at = now

    def is_suspect(self, server: Server, now: float) -> bool:
        """A chain broke there a moment ago, and it has said nothing since."""
        return now - server.failed_at < FAILED_SECONDS and server.last_heard <= server.failed_at

    def may_be_there(self, server: Server, now: float) -> bool:
        """Also if its connection ended just now: it may only connect anew. And if this
        master has not been there for long enough to say."""
        return server.state == LIVE or now - server.last_heard < self._silent_seconds

    def expects(self, now: float) -> bool:
        """Whether a server that was there before this master was started may come at any
        moment, or is reporting what it holds. One that takes longer is away and not waited for."""
        return any(
            server.state == LIVE or now - server.last_heard < COMING_SECONDS
            for server in map(self.get, self.awaited)
        )

    @property
    def live_count(self) -> int:
        return len(self.by_id) - len(self.not_live)

    def ordered(self) -> list[Server]:
        """As they are shown."""
        return sorted(self.by_id.values(), key=lambda server: (server.rack, server.id))

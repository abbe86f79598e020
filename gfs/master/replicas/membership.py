"""Chunkservers that come and go, and their disks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from gfs.diagnostics import event
from gfs.master.metadata import Store
from gfs.master.replicas.goals import SLICE, Goals
from gfs.master.tables import DISK_DOWN, LIVE, ReplicaMap, ReservationTable, Server
from gfs.protocol.messages import Disk

log = logging.getLogger(__name__)


class Membership:
    def __init__(
        self,
        store: Store,
        replica_map: ReplicaMap,
        goals: Goals,
        reservations: ReservationTable,
    ) -> None:
        self._store = store
        self._map = replica_map
        self._servers = replica_map.servers
        self._locations = replica_map.locations
        self._garbage = replica_map.garbage
        self._goals = goals
        self._repair = goals.repair
        self._reservations = reservations

    def set_disks(self, server: Server, disks: list[Disk]) -> None:
        """Record a chunkserver's report of its disks."""
        before = {disk.path: disk.state for disk in server.disks}
        had_space = server.has_space
        server.set_disks(disks)
        if server.has_space != had_space:
            self._servers.placement_changed()
        for disk in disks:
            if disk.state in DISK_DOWN and before.get(disk.path) not in DISK_DOWN:
                log.error(
                    "disk %s of chunkserver %s is %s: %s. When it works again: gfs disk retry "
                    "%s %s; if it is gone for good: gfs disk remove %s %s",
                    *(disk.path, server.id, disk.state, disk.reason),
                    *(server.id, disk.path, server.id, disk.path),
                    extra=event(
                        "disk_failed",
                        server=server.id,
                        disk=disk.path,
                        state=disk.state,
                        reason=disk.reason,
                    ),
                )
            elif before.get(disk.path) in DISK_DOWN and disk.state not in DISK_DOWN:
                log.warning(
                    "disk %s of chunkserver %s works again",
                    disk.path,
                    server.id,
                    extra=event("disk_used", server=server.id, disk=disk.path),
                )

    def server_died(self, server: Server) -> Iterator[None]:
        """Remove a dead server's replicas from the locations. In slices."""
        index = server.index
        self._map.suspects.forget_server(index)
        for _ in self._garbage.forgetting(index, SLICE):
            yield
            if server.state == LIVE:
                return  # it came back meanwhile, and reports its replicas
        for handles in self._locations.slices(SLICE, index):
            if server.state == LIVE:
                return
            with self._store.read() as txn:
                for handle in handles:
                    self._locations.remove(handle, index)
                    self._goals.evaluate_row(txn, handle)
            yield

    def finish_registration(self, server: Server) -> Iterator[None]:
        """Complete a registration: replicas that the server was assumed to have and did
        not report do not exist. In slices."""
        index, reported, rpc = server.index, server.registration.reported, server.rpc
        if reported is None:
            return
        for handles in self._locations.slices(SLICE, index):
            with self._store.read() as txn:
                for handle in handles:
                    if handle not in reported:
                        self._locations.remove(handle, index)
                        self._goals.evaluate_row(txn, handle)
            yield
            if server.rpc is not rpc:
                return
        for handles in self._garbage.slices(SLICE):
            for handle in handles:
                if handle not in reported:
                    self._garbage.drop(index, handle)
            yield
            if server.rpc is not rpc:
                return
        self._reservations.doubt(index, reported)
        server.chunks = len(reported)
        self._servers.registration_complete(server)
        self._repair.retry_all()
        log.info(
            "chunkserver %s (%s, rack %s) registered with %d replicas",
            server.id,
            server.address,
            server.rack,
            len(reported),
            extra=event("chunkserver_up", server=server.id, replicas=len(reported)),
        )

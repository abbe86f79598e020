"""Chunkservers that come and go, and their disks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from gfs.diagnostics import event
from gfs.master.metadata.store import Store
from gfs.master.replicas.goals import SLICE, Goals
from gfs.master.replicas.locations import ReservationTable
from gfs.master.replicas.replica_map import ReplicaMap
from gfs.master.replicas.servers import DISK_DOWN, LIVE, Server
from gfs.protocol.messages import Disk

log = logging.getLogger(__name__)


class Registration:
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
        """What a chunkserver reports of its disks."""
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
        """Its replicas do not count any more. In slices."""
        index = server.index
        self._garbage.forget_server(index)
        self._map.suspects.forget_server(index)
        handles = self._locations.handles()
        for start in range(0, len(handles), SLICE):
            with self._store.read() as txn:
                for handle in handles[start : start + SLICE]:
                    if server.state == LIVE:
                        return  # it came back meanwhile, and reports
                    if index in self._locations.get(handle):
                        self._locations.remove(handle, index)
                        self._goals.evaluate_row(txn, handle)
            yield

    def finish_registration(self, server: Server) -> Iterator[None]:
        """Everything the server holds was reported: what it was assumed to
        hold and did not report is not there. In slices."""
        index, reported, rpc = server.index, server.reported, server.rpc
        if reported is None:
            return
        handles = self._locations.handles()
        for start in range(0, len(handles), SLICE):
            with self._store.read() as txn:
                for handle in handles[start : start + SLICE]:
                    if index in self._locations.get(handle) and handle not in reported:
                        self._locations.remove(handle, index)
                        self._goals.evaluate_row(txn, handle)
            yield
            if server.rpc is not rpc:
                return
        for handle, of_chunk in list(self._garbage.replicas.items()):
            if index in of_chunk and handle not in reported:
                self._garbage.drop(index, handle)
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

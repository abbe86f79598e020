"""Suspect replicas: their chunkservers are asked to read them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from gfs.errors import DiskFailed, GfsError
from gfs.master.master import Master
from gfs.master.replicas import Reports
from gfs.master.tables import LIVE, Server
from gfs.protocol.messages import VerifyChunk, VerifyReply

log = logging.getLogger(__name__)

VERIFY_SECONDS = 60.0
VERIFIES_TOTAL = 32
VERIFIES_PER_SERVER = 2


class Verifications:
    """``reports`` takes the answers; then ``act`` is called, which starts the next work."""

    def __init__(
        self, master: Master, reports: Reports, nursery: trio.Nursery, act: Callable[[], None]
    ) -> None:
        self._master = master
        self._reports = reports
        self._nursery = nursery
        self._act = act
        self._verifying: dict[int, int] = {}

    def start(self) -> None:
        master = self._master
        for key, blocks in list(master.replica_map.suspects.to_verify.items()):
            if len(master.replica_map.suspects.verifying) >= VERIFIES_TOTAL:
                return
            server = master.servers.by_index[key[0]]
            if server is None or server.state != LIVE or server.rpc is None:
                del master.replica_map.suspects.to_verify[key]
                master.goals.repair.unblock(key[1])
            elif self._verifying.get(server.index, 0) < VERIFIES_PER_SERVER:
                del master.replica_map.suspects.to_verify[key]
                master.replica_map.suspects.verifying.add(key)
                self._verifying[server.index] = self._verifying.get(server.index, 0) + 1
                self._nursery.start_soon(self._verify, server, key[1], blocks)

    async def _verify(self, server: Server, handle: int, blocks: bool) -> None:
        try:
            await self.ask(server, handle, blocks)
        finally:
            self._master.replica_map.suspects.verifying.discard((server.index, handle))
            self._verifying[server.index] -= 1
        self._act()

    async def ask(self, server: Server, handle: int, blocks: bool) -> VerifyReply | None:
        """A server's answer about its replica, which the master's tables then include."""
        master = self._master
        try:
            if server.rpc is None:
                return None
            # Version 0: any version. The comparison with the row is made here.
            request = VerifyChunk(id=0, handle=handle, version=0, blocks=blocks)
            # The length at the time of the request: it may be appended to until the answer comes.
            length_min = master.replica_map.length_min(handle)
            reply, _ = await server.rpc.call(request, seconds=VERIFY_SECONDS)
            if isinstance(reply, VerifyReply):
                self._reports.verified(server, handle, reply, blocks, length_min)
                return reply
        except DiskFailed as error:
            log.warning("chunkserver %s cannot read chunk %x: %s", server.id, handle, error)
            master.goals.drop_location(server, handle)
        except (GfsError, ConnectionError) as error:
            log.info("chunkserver %s did not verify chunk %x: %s", server.id, handle, error)
            master.replica_map.suspects.unverified.add((server.index, handle))
        return None

"""Of chunks of which only possibly stale replicas are left, one is elected: the rule is
:mod:`gfs.master.rules.election`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import trio

from gfs.diagnostics import event
from gfs.errors import GfsError
from gfs.master.leases import Grants
from gfs.master.master import Master
from gfs.master.rules import election
from gfs.master.tables import FORGETFUL, Server
from gfs.master.upkeep.verifications import Verifications
from gfs.protocol.messages import VerifyReply

log = logging.getLogger(__name__)

#: The most elections at once; and how long a chunk is put off after one that failed.
ELECTIONS_TOTAL = 8
ELECTION_REST_SECONDS = 2.0


class Elections:
    """``act`` starts what follows from an election."""

    def __init__(
        self,
        master: Master,
        nursery: trio.Nursery,
        grants: Grants,
        verifications: Verifications,
        act: Callable[[], None],
    ) -> None:
        self._master = master
        self._nursery = nursery
        self._grants = grants
        self._verifications = verifications
        self._act = act
        #: Elections that run; when each chunk may have its next one.
        self._choosing = 0
        self._elect_after: dict[int, float] = {}

    def start(self) -> None:
        """Start elections for chunks that have only possibly stale replicas, if no
        absent server might have a better one."""
        master, now = self._master, self._master.now
        if not master.goals.possibly_stale:
            self._elect_after.clear()
            return
        if master.replica_map.in_safe_mode or master.goals.awaits_any():
            return
        for handle in master.goals.possibly_stale:
            if self._choosing >= ELECTIONS_TOTAL:
                return
            if now >= self._elect_after.get(handle, now) and master.goals.may_elect(handle):
                self._choosing += 1
                self._elect_after[handle] = math.inf  # until that ended
                self._nursery.start_soon(self._elect, handle)

    async def _elect(self, handle: int) -> None:
        master = self._master
        try:
            await self._elect_best(handle)
        except GfsError as error:
            log.info("no surviving replica of chunk %x is elected: %s", handle, error)
        finally:
            self._choosing -= 1
            self._elect_after[handle] = master.now + ELECTION_REST_SECONDS
        self._act()

    async def _elect_best(self, handle: int) -> None:
        master = self._master
        found: list[tuple[Server, VerifyReply]] = []
        asked = master.replica_map.garbage.of_kind(handle, FORGETFUL)
        async with trio.open_nursery() as nursery:
            for index in asked:
                nursery.start_soon(self._verify_first, master.servers.get(index), handle, found)
        chosen = election.best(found)
        if chosen is None or len(found) < len(asked) or not master.goals.may_elect(handle):
            return
        await self._grants.elect(handle, chosen)
        log.warning(
            "chunk %x: every surviving replica is possibly stale, as its machine lost power: the "
            "replica on chunkserver %s is elected; the last writes may be lost",
            handle,
            chosen.id,
            extra=event("replica_believed", server=chosen.id, chunk=f"{handle:x}"),
        )

    async def _verify_first(
        self, server: Server, handle: int, found: list[tuple[Server, VerifyReply]]
    ) -> None:
        reply = await self._verifications.ask(server, handle, blocks=True)
        if reply is not None:
            found.append((server, reply))

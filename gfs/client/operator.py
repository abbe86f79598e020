"""The calls of a client on the cluster itself: its servers, disks, masters, and what is where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gfs.client import fsck
from gfs.client.core import one_request
from gfs.client.fsck import ChunkReport, FsckReport
from gfs.client.names import Names
from gfs.errors import IsADirectory
from gfs.protocol.messages import (
    AcceptRestore,
    Disk,
    DiskOrder,
    DiskOrderReply,
    Done,
    Drain,
    DrainReply,
    Election,
    ElectionReply,
    Entry,
    ForgetServer,
    ForgetShadow,
    Maintenance,
    Promote,
    PromoteReply,
    Repair,
    RepairReply,
    ServerStatus,
    Status,
    StatusReply,
)

#: A promotion waits for the old master and for other shadow masters, each for some seconds.
PROMOTE_SECONDS = 60.0
#: Reading the heads of a million replicas on a disk takes minutes.
DISK_ORDER_SECONDS = 600.0


@dataclass(frozen=True)
class LocateReport:
    """A file and the master's state of its chunks."""

    entry: Entry
    chunks: list[ChunkReport]


class Operator(Names):
    """What an operator asks, and orders."""

    async def status(self) -> StatusReply:
        """The totals, all servers with all their disks, and the masters."""
        reply = page = await self._ask(Status(id=0), StatusReply)
        while page.more and page.servers:
            last = page.servers[-1]
            page = await self._ask(Status(id=0, after=[last.rack, last.id]), StatusReply)
            reply.servers += page.servers
        reply.more = False
        return reply

    async def repair(
        self, *, paused: bool | None = None, settings: Mapping[str, int] | None = None
    ) -> RepairReply:
        """Pause or resume repair and set its limits, if asked to, and return its progress.
        The limits are ``clones_per_server``, ``clones_total``, ``moves_total`` (copy orders)
        or ``bytes_per_second`` (of each chunkserver that serves clients); -1 restores
        the value that the process was started with. Durable when this returns.

        Raises InvalidArgument.
        """
        request = Repair(id=0, paused=paused, settings=dict(settings or {}))
        return await self._ask(request, RepairReply)

    async def maintain(self, server: str, seconds: int) -> None:
        """Start maintenance of a chunkserver, by id or address, for this long, at most a
        week: while it is away it is not declared dead and its chunks are not re-replicated.
        0 ends the maintenance. Durable when this returns.

        Raises NotFound, InvalidArgument (it is dead already).
        """
        await self._ask(Maintenance(id=0, server=server, seconds=seconds), Done)

    async def forget_server(self, server: str) -> None:
        """Remove a chunkserver, by id or address, that is dead, or drained and stopped, from
        the master's list. Durable when this returns.

        Raises NotFound, InvalidArgument (it lives), Busy (try again in a minute).
        """
        await self._ask(ForgetServer(id=0, server=server), Done)

    async def drain(
        self, server: str, *, cancel: bool = False, fewer_racks: bool = False
    ) -> ServerStatus:
        """Drain a chunkserver, by id or address, so that it can be stopped.

        It gets no new replicas, and its replicas are copied elsewhere before they are
        deleted. Returns as soon as the drain is stored: ``drain`` of each server in
        :meth:`status` is its progress; when it is ``"drained"`` the server can be stopped.
        ``cancel`` cancels the drain.

        Raises NotFound, and DrainRefused if it cannot be done: the other servers are too
        few for the goals or have too little space; replicas would be in fewer racks
        (``fewer_racks`` accepts that); or the server does not answer.
        """
        request = Drain(id=0, server=server, cancel=cancel, fewer_racks=fewer_racks)
        return (await self._ask(request, DrainReply)).server

    async def order_disk(self, server: str, path: str, action: str) -> Sequence[Disk]:
        """Change the disk at ``path`` of a chunkserver, by id or address; returns the state
        of all its disks.

        ``action``: ``"add"`` a directory to the server; ``"drain"``: move its replicas to
        the server's other disks (``"undrain"``: cancel that); ``"remove"`` one that is
        empty, or has failed; ``"retry"`` one that has failed. A directory on the root file
        system, on one where another disk of the machine's chunkservers is, or where the file
        system of a former disk is not mounted, is added by ``"add-unmounted"`` only; and
        ``"remove-damaged"`` also removes a drained disk on which only damaged replicas are left,
        which are lost if there is no good one. The change is stored on the server's disks when
        this returns.

        Raises NotFound, AlreadyExists, InvalidArgument, DiskFailed (it cannot be used),
        ReplicaUnavailable (the server is not connected), DeadlineExceeded.
        """
        request = DiskOrder(id=0, server=server, path=path, action=action)
        return (await self._core.master.once(request, DiskOrderReply, DISK_ORDER_SECONDS)).disks

    async def promote(self, *, force: bool = False) -> PromoteReply:
        """Make the shadow master that this client is connected to the master.

        Raises StaleVersion if acknowledged operations may be lost (``force`` accepts
        that) or the old master cannot hand over, InvalidArgument if this is not a shadow
        master.
        """
        request = Promote(id=0, force=force)
        return await self._core.master.once(request, PromoteReply, PROMOTE_SECONDS)

    async def election(self) -> ElectionReply:
        """Which master has the hold, if an engine elects the masters of this cluster."""
        nobody = ElectionReply(id=0)  # elects masters of an older release
        return await self._core.master.call(lambda: Election(id=0), ElectionReply, unknown=nobody)

    async def forget_shadow(self, address: str) -> None:
        """Declare the shadow master at ``address`` lost for good: it does not count any more
        for ``replicas_before_ack``. It must not be promoted afterwards with its data.

        Raises NotFound if none is known there, Busy if it follows.
        """
        await self._ask(ForgetShadow(id=0, address=address), Done)

    async def accept_restore(self) -> None:
        """Accept that files made after a restored backup are lost: from now on chunks that no
        file has are garbage, as always. Durable when this returns; without effect if no
        backup was restored."""
        await self._ask(AcceptRestore(id=0), Done)

    @one_request
    async def locate(self, path: str) -> LocateReport:
        """The file and the master's state of its chunks."""
        entry = await self.stat(path)
        if entry.kind == "directory":
            raise IsADirectory(f"{path}: is a directory")
        chunks = []
        async for page in fsck.chunk_pages(self._core, path):
            for c in page.chunks:
                replicas = [page.servers[n] for n in c.servers]
                chunks.append(
                    ChunkReport(
                        c.index,
                        c.handle,
                        c.version,
                        c.length,
                        c.goal,
                        replicas,
                        c.lease_ms,
                        c.primary,
                    )
                )
        return LocateReport(entry, chunks)

    @one_request
    async def fsck(
        self,
        path: str = "/",
        *,
        verify: bool = True,
        server: str = "",
        progress: Callable[[int], object] = lambda chunks: None,
    ) -> FsckReport:
        """Check all replicas of all files at and below ``path``; see FsckReport.

        Args:
            verify: have every server read and verify its replicas; else compare metadata.
            server: check only the replicas of the chunkserver with this id; chunks below
                their goal, lost chunks and orphans are not reported then.
            progress: called with each number of chunks that were checked.
        """
        return await fsck.fsck(fsck.Check(self._core, verify, server, progress), path)

"""New files: reserve, recover, reclaim, release, publish.

A new file's chunks exist on chunkservers before the file is in the namespace. Until it
is published they are in the reservation table. :func:`check_publish` decides whether
the chunks that a client publishes are on the servers that it names; the namespace
decides the rest in the commit.
"""

from __future__ import annotations

import logging

import msgspec

from gfs.errors import (
    Busy,
    ChunkUnavailable,
    InvalidArgument,
    NotEnoughChunkservers,
    ProtocolError,
    StaleVersion,
)
from gfs.failures import plural
from gfs.master.master import Master
from gfs.master.metadata.namespace import check_chunk_lengths, chunk_row
from gfs.master.metadata.operations import NewChunk
from gfs.master.tables import DEAD, FIRST_VERSION, LIVE, ORPHANED, AddressBook, Reservation, Server
from gfs.protocol.attributes import check_attributes, check_digest
from gfs.protocol.messages import (
    JOINED_MAX,
    LOCATE_CHUNKS_MAX,
    ChunkLocation,
    Done,
    Join,
    Publish,
    PublishedChunk,
    Reclaim,
    Recover,
    RecoverReply,
    Release,
    Reserve,
    ReserveReply,
)

log = logging.getLogger(__name__)

REPLICATION_MAX = 64
VERSION_MAX = 2**32 - 1
_chunks = msgspec.msgpack.Decoder(list[PublishedChunk])
_inodes = msgspec.msgpack.Decoder(list[int])


def check_replication(asked: int, default: int) -> int:
    """0 means the cluster's default."""
    if asked == 0:
        return default
    if not 1 <= asked <= REPLICATION_MAX:
        raise InvalidArgument(f"a replication of {asked}: it must be 1 to {REPLICATION_MAX}")
    return asked


def reserve(master: Master, request: Reserve) -> ReserveReply:
    """Handles and servers for new chunks; fewer than requested if the reply would
    otherwise be too large, but at least one."""
    if not 1 <= request.count <= LOCATE_CHUNKS_MAX:
        raise InvalidArgument(f"{request.count} chunks at once: 1 to {LOCATE_CHUNKS_MAX}")
    replication = check_replication(request.replication, master.settings.replication)
    now = master.now
    avoid = frozenset(request.avoid)
    book = AddressBook()
    chunks: list[ChunkLocation] = []
    chosen: list[Server] = []
    while len(chunks) < request.count and (not chunks or book.room > 0):
        try:
            if chosen and request.together:
                master.new_chunks.place_beside(chosen)
            else:
                chosen = master.new_chunks.place(replication, avoid, "a new chunk")
            handle = master.reservations.new_handle()
        except (Busy, NotEnoughChunkservers):
            if chunks:
                break
            raise
        servers = tuple(server.index for server in chosen)
        reservation = Reservation(FIRST_VERSION, servers, request.client, replication)
        master.reservations.put(handle, reservation, now)
        chunks.append(ChunkLocation(handle, FIRST_VERSION, 0, book.positions(chosen)))
    master.new_chunks.prefetch_handles()
    return ReserveReply(id=0, replication=replication, servers=book.servers, chunks=chunks)


def _own(master: Master, client: str, handle: int) -> Reservation:
    """The client's reservation of a chunk, or an error that says what to do."""
    master.reservations.check_handle(handle)
    reservation = master.reservations.get(handle)
    if reservation is None:
        raise ChunkUnavailable(
            f"the reservation of chunk {handle:x} has ended: write this part again"
        )
    if reservation.client != client:
        raise InvalidArgument(f"chunk {handle:x} is reserved by another client")
    return reservation


def recover(master: Master, request: Recover) -> RecoverReply:
    """A chain without the failed servers, under a new version.

    A repeated request, whose first answer was lost, gets that answer again.
    """
    reservation = _own(master, request.client, request.handle)
    if not 0 < request.version < VERSION_MAX:
        raise InvalidArgument(f"a chunk version of {request.version}")
    now = master.now
    failed = set()
    for server_id in request.failed:
        server = master.servers.by_id.get(server_id)
        if server is not None:
            failed.add(server.index)
            master.servers.failed(server, now)
    repeated = request.version < reservation.version and failed.isdisjoint(reservation.servers)
    if not repeated:
        reservation = _without(master, request, reservation, failed, now)
        master.reservations.put(request.handle, reservation, now)
    book = AddressBook()
    chain = [master.servers.get(index) for index in reservation.servers]
    positions = book.positions(chain)
    chunk = ChunkLocation(request.handle, reservation.version, 0, positions)
    return RecoverReply(id=0, servers=book.servers, chunk=chunk)


def _without(
    master: Master, request: Recover, reservation: Reservation, failed: set[int], now: float
) -> Reservation:
    left = tuple(
        index
        for index in reservation.servers
        # If a retained server has also failed, the client reports it next.
        if index not in failed and master.servers.may_be_there(master.servers.get(index), now)
    )
    if not left:
        # Kept as orphans for the grace: their servers may come back with them.
        master.collector.give_up_reservation(request.handle, at_once=False)
        raise ChunkUnavailable(
            f"no chunkserver that has chunk {request.handle:x} can be reached: "
            "write this part again"
        )
    version = max(request.version, reservation.version) + 1
    # A server that acknowledges a write of the new version certainly has the replica.
    nobody: frozenset[int] = frozenset()
    return reservation._replace(version=version, servers=left, doubted=nobody, absent=nobody)


def release(master: Master, request: Release) -> Done:
    """Release reservations of the client; other handles are ignored."""
    for handle in request.handles:
        reservation = master.reservations.get(handle)
        if (
            reservation is not None
            and reservation.client == request.client
            and handle not in master.reservations.publishing
        ):
            master.collector.give_up_reservation(handle, at_once=True)
    return Done(id=0)


def decode_chunks(body: bytes, servers: list[str]) -> list[PublishedChunk]:
    """The chunks in the body of Publish or Reclaim, their fields in range."""
    try:
        chunks = _chunks.decode(body) if body else []
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the list of chunks cannot be decoded: {error}") from None
    count = len(servers)
    for chunk in chunks:
        if not (0 < chunk.version <= VERSION_MAX and chunk.length >= 0):
            raise InvalidArgument(f"chunk {chunk.handle:x} with an impossible version or length")
        for at in chunk.servers:
            if not 0 <= at < count:
                raise InvalidArgument(f"chunk {chunk.handle:x} on server {at} of {count}")
    return chunks


def reclaim(master: Master, request: Reclaim, body: bytes) -> None:
    """Restore reservations of a former master.

    Chunks that were published, released or reserved by another client meanwhile are
    left as they are. The client may have been away for long and its replicas collected:
    all replicas are doubted, except those that were reported and not ordered deleted
    since.
    """
    now = master.now
    chunks = decode_chunks(body, request.servers)
    with master.store.read() as txn:
        for chunk in chunks:
            handle = chunk.handle
            master.reservations.check_handle(handle)
            known = master.reservations.get(handle)
            if known is not None and (
                known.client != request.client or known.version >= chunk.version
            ):
                continue
            if master.replica_map.garbage.is_scheduled(handle):
                continue
            if txn.get(handle.to_bytes(8, "big"), None, txn.db.chunks) is not None:
                continue
            servers = [
                server.index
                for at in chunk.servers
                if (server := master.servers.by_id.get(request.servers[at])) is not None
                and not master.replica_map.garbage.was_ordered(server.index, handle, now)
            ]
            if not servers:
                continue  # collected everywhere, or about to be
            doubted = frozenset(
                i for i in servers if master.replica_map.garbage.at(i, handle) is None
            )
            for index in servers:
                master.replica_map.garbage.drop(index, handle)
            reservation = Reservation(
                chunk.version,
                tuple(dict.fromkeys(servers)),
                request.client,
                master.settings.replication,
                doubted,
            )
            master.reservations.put(handle, reservation, now)


class Upload:
    """Chunks that are to be published: checked, and not yet committed."""

    def __init__(self, replication: int) -> None:
        self.replication = replication
        self.chunks: list[NewChunk] = []
        #: The holders of each, in the same order.
        self.holders: list[tuple[int, ...]] = []


def check_publish(master: Master, request: Publish, body: bytes) -> Upload:
    """Check that these chunks may become a file.

    Raises ProtocolError or InvalidArgument for chunks that can never be published, Busy
    while a restarted master waits for reports of them or has them verified, and
    ChunkUnavailable if they are gone.
    """
    check_digest(request.digest)
    check_attributes(request.attributes)
    chunks = decode_chunks(body, request.servers)
    check_chunk_lengths(request.path, [chunk.length for chunk in chunks], request.length)
    _resolve_doubts(master, chunks)
    upload = Upload(check_replication(request.replication, master.settings.replication))
    named = [master.servers.by_id.get(server_id) for server_id in request.servers]
    seen: set[int] = set()
    for chunk in chunks:
        if chunk.handle in seen:
            raise InvalidArgument(f"chunk {chunk.handle:x} is in the file twice")
        seen.add(chunk.handle)
        claimed = {
            server.index: server for at in chunk.servers if (server := named[at]) is not None
        }
        if not chunk.servers:
            raise InvalidArgument(f"chunk {chunk.handle:x} was not acknowledged by any chunkserver")
        upload.holders.append(_holders(master, request.client, chunk, claimed))
        upload.chunks.append(NewChunk(chunk.handle, chunk.version, chunk.length))
    return upload


def check_join(master: Master, request: Join, body: bytes) -> tuple[list[int], int]:
    """The inodes of the files that are to be joined, and the new file's replication. Raises
    InvalidArgument."""
    check_digest(request.digest)
    check_attributes(request.attributes)
    try:
        sources = _inodes.decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidArgument(f"the list of files cannot be decoded: {error}") from None
    if len(sources) > JOINED_MAX or not all(0 < inode < 1 << 64 for inode in sources):
        raise InvalidArgument(f"at most {JOINED_MAX} files can be joined, by their inodes")
    return sources, check_replication(request.replication, master.settings.replication)


def _resolve_doubts(master: Master, chunks: list[PublishedChunk]) -> None:
    """Have the servers asked for doubted replicas. Raises Busy until they have
    answered; a server that is not connected is not waited for, and does not count as a
    holder."""
    waiting = 0
    for chunk in chunks:
        reservation = master.reservations.get(chunk.handle)
        for index in () if reservation is None else reservation.doubted:
            server = master.servers.get(index)
            if server.state == LIVE and server.rpc is not None:
                master.replica_map.suspect(server, chunk.handle)
                waiting += 1
    if waiting:
        raise Busy(
            f"{plural(waiting, 'replica')} must be verified after a restart of a chunkserver: "
            "try again"
        )


def _holders(
    master: Master, client: str, chunk: PublishedChunk, claimed: dict[int, Server]
) -> tuple[int, ...]:
    """The named servers that have the chunk, as far as is known."""
    handle = chunk.handle
    master.reservations.check_handle(handle)
    reservation = master.reservations.get(handle)
    if reservation is not None:
        if reservation.client != client:
            raise InvalidArgument(f"chunk {handle:x} is reserved by another client")
        if chunk.version < reservation.version:
            raise StaleVersion(
                f"chunk {handle:x} was recovered meanwhile, to version {reservation.version}"
            )
        excluded = reservation.doubted | reservation.absent
        # Of the servers named when it was reclaimed, only these may still have it.
        holders = tuple(
            index
            for index in reservation.servers
            if index in claimed and claimed[index].state != DEAD and index not in excluded
        )
    else:
        holders = tuple(
            index
            for index in claimed
            if (known := master.replica_map.garbage.at(index, handle)) is not None
            and known.kind == ORPHANED
            and known.version == chunk.version
            and not master.replica_map.garbage.is_scheduled(handle)
        )
    if holders:
        return holders
    if master.replica_map.in_safe_mode:
        raise Busy(f"the master is in safe mode: chunk {handle:x} is not reported yet: try again")
    raise ChunkUnavailable(
        f"no chunkserver that has chunk {handle:x} can be reached: write this part again"
    )


def is_published(master: Master, upload: Upload) -> bool:
    """Whether its commit was made, although it is not acknowledged."""
    with master.store.read() as txn:
        return bool(upload.chunks) and chunk_row(txn, upload.chunks[0].handle) is not None


def published(master: Master, upload: Upload) -> None:
    """After the commit: the holders of the chunks become locations."""
    for new, holders in zip(upload.chunks, upload.holders, strict=True):
        handle = new.handle
        reservation = master.reservations.pop(handle)
        known: list[int] = []
        for index in holders:
            server = master.servers.get(index)
            master.replica_map.garbage.drop(index, handle)
            # The server died during the commit, or came back without the replica.
            if server.state == DEAD or (reservation is not None and index in reservation.absent):
                continue
            reported = server.registration.reported
            untold = reported is not None and handle not in reported
            if untold or (reservation is not None and index in reservation.doubted):
                master.replica_map.suspect(server, handle)
            known.append(index)
        for index in master.replica_map.locations.add_all(handle, known, new.version):
            reported = master.servers.get(index).registration.reported
            if reported is not None:
                reported.add(handle)
        if (
            len(master.replica_map.locations.get(handle)) != upload.replication
            or handle in master.replica_map.garbage.replicas
            # A server may have reported its replica before, while shadow masters were waited for.
            or master.goals.repair.is_known(handle)
            # A server may have been drained since the chunk was placed.
            or not master.servers.draining.isdisjoint(holders)
        ):
            master.goals.evaluate(handle, new.version, upload.replication)

"""Writing into a published file, in place, under a lease (the paper, 3.1).

The master names the primary and the version; the bytes go down the chain as in
an upload, and are acknowledged when every replica has them. A chain that breaks
is reported, and the master grants a higher version to the replicas that are
left, which fences the others. The same bytes are then written again: the range
holds them when the call returns.

If two clients write the same range of one chunk at once, one of the two writes
remains, the same on all replicas; over several chunks the pieces may interleave (the
paper's "consistent but undefined"). Writers of separate ranges keep one another's
bytes, wherever the file ended when they began: the primary fills the gap before a
range with zeros (:mod:`gfs.chunkserver.exchanges.write`).
"""

from __future__ import annotations

from gfs.blocks import CHUNK_BYTES, packet_sums
from gfs.client.core import ClientCore
from gfs.client.upload import ChainBroken, ChainWriter, OutPacket
from gfs.errors import ChunkUnavailable, MasterUnavailable, ProtocolError, Retryable
from gfs.protocol.messages import (
    PACKET_BYTES_MAX,
    AcquireLease,
    Done,
    LeaseReply,
    SetLength,
)

PAUSE_SECONDS_MIN = 0.05
PAUSE_SECONDS_MAX = 1.0


async def write_in_place(
    core: ClientCore, inode: int, length: int, offset: int, data: memoryview
) -> int:
    """Write ``data`` at ``offset`` of the file, which is ``length`` bytes long or longer.

    A gap before ``offset`` reads as zeros. Returns the least length of the file; the bytes
    are then on every live replica, and the length is durable.
    Raises NotFound if the file is gone, ChunkUnavailable when no chain could be had.
    Cancelled, it leaves any part of the range written.
    """
    for index in range(length // CHUNK_BYTES, offset // CHUNK_BYTES):
        await _write_chunk(core, inode, index, CHUNK_BYTES, memoryview(b""))
    done = 0
    while done < len(data):
        at = offset + done
        count = min(len(data) - done, CHUNK_BYTES - at % CHUNK_BYTES)
        await _write_chunk(
            core, inode, at // CHUNK_BYTES, at % CHUNK_BYTES, data[done : done + count]
        )
        done += count
    if offset + len(data) > length:
        length = offset + len(data)
        await set_length(core, inode, length)
    return length


async def set_length(core: ClientCore, inode: int, length: int) -> None:
    """Have the master record a length, if it is above the one that it knows, and the present time
    as that of the file's last change. Raises NotFound if the file is gone."""
    await core.master.ask(SetLength(*core.master.stamp(), inode=inode, length=length), Done)


async def _write_chunk(
    core: ClientCore, inode: int, index: int, offset: int, data: memoryview
) -> None:
    version, failed, failures = 0, "", 0
    clock = core.world.clock
    give_up = clock.monotonic() + core.settings.retry_seconds
    pause = PAUSE_SECONDS_MIN
    while True:
        try:
            writer, held = await _lease(core, inode, index, version, failed)
            try:
                if data or offset > held:
                    await _send_all(writer, offset, data, max(0, offset - held))
                return
            except ChainBroken as broken:
                core.suspect(broken.server, broken.code)
                version, failed = writer.version, broken.server
                last: Exception = broken
            finally:
                writer.abandon()
        except MasterUnavailable:
            raise  # the wait is over already
        except Retryable as error:
            last = error
        failures += 1
        if failures > 2 and clock.monotonic() + pause > give_up:
            raise ChunkUnavailable(f"the write of chunk {index} keeps failing: {last}") from last
        if failures > 1:
            await clock.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)


async def _lease(
    core: ClientCore, inode: int, index: int, version: int, failed: str
) -> tuple[ChainWriter, int]:
    """The present primary and chain of this chunk, and its least length; the chain of
    ``version`` broke at ``failed``."""
    reply = await core.master.ask(
        AcquireLease(
            *core.master.stamp(),
            inode=inode,
            index=index,
            version=version,
            failed=[failed] if failed else [],
        ),
        LeaseReply,
    )
    writer = ChainWriter(core, reply.chunk.handle, "mutate", reply.chunk.version)
    writer.chain = [reply.servers[n] for n in reply.chunk.servers]
    if not writer.chain:
        raise ProtocolError("a lease without servers")
    return writer, reply.chunk.length


async def _send_all(writer: ChainWriter, offset: int, data: memoryview, hole: int) -> None:
    """Write ``data``, which may be empty; ``hole`` bytes before it may be missing."""
    window = writer.core.settings.window_bytes
    done = 0
    while True:
        count = min(PACKET_BYTES_MAX - (offset + done) % PACKET_BYTES_MAX, len(data) - done)
        view = data[done : done + count]
        packet = OutPacket(
            offset=offset + done,
            data=view,
            sums=packet_sums(offset + done, view),
            pooled=None,
            last=done + count == len(data),
            hole=0 if done else hole,
        )
        writer.packets.append(packet)
        await writer.transmit(packet)
        done += count
        if packet.last:
            break
        while len(writer.packets) * PACKET_BYTES_MAX > window and len(writer.packets) > 4:
            await writer.receive_ack()
    while not writer.done:
        await writer.receive_ack()

"""A connection that carries one exchange at a time and receives bodies without a copy.

Heads are read through a small buffer. The part of the body that arrives with the head
(at most ``READ_AHEAD_BYTES``) is copied to the caller's buffer; the rest is received
straight into it. So a small message costs one ``recv``, and a 1 MiB packet one more for
each piece that the kernel has.

Used for the handshake of every connection and for everything to chunkservers.
"""

from __future__ import annotations

from gfs.blocks import Buffer
from gfs.diagnostics import request_name, request_of
from gfs.errors import GfsError, ProtocolError, from_wire
from gfs.io import File, Runner, Stream
from gfs.protocol.frames import HEADER_BYTES, decode_head, encode_frame, encode_head, split_header
from gfs.protocol.messages import PROTOCOL_NEWEST, Failure, Message

READ_AHEAD_BYTES = 8 * 1024


class BulkConnection:
    """Frames over a stream, one after another. At most one task may send, and one receive.

    Every failure of the peer or the network is ``ConnectionError`` or
    ProtocolError; after either, or after a cancelled call, the connection can only be
    closed. Callers set deadlines.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.peer = stream.peer
        self.peer_role = ""
        self.peer_id = ""
        self.peer_cluster = ""
        self.peer_term = 0
        #: Of the protocol, the newest that both sides speak.
        self.version = PROTOCOL_NEWEST
        #: The name of the cluster key that both sides proved to have.
        self.key = b""
        #: The error that was last sent, for the metrics.
        self.failure: GfsError | None = None
        #: The first of the request ids that this side makes on the connection.
        self.first_request = 1
        #: Bytes of the body of the last received message that were not taken yet.
        self.body_bytes = 0
        self._buffer = bytearray(READ_AHEAD_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self.closed = False
        #: Set by the server of the exchanges: whether one is under way, how many began,
        #: and whether the connection is to be ended after this one.
        self.busy = False
        self.exchanges = 0
        self.ending = False
        #: Whether the last exchange was an append, and was answered with a place.
        self.appended = False

    async def send(self, message: Message, body: Buffer = b"") -> None:
        if type(message) is Failure:
            self.failure = from_wire(message.code, message.message)
        if len(body) <= READ_AHEAD_BYTES:
            await self.stream.send_all(encode_frame(message, body))
        else:
            await self.stream.send_all(encode_head(message, len(body)), body)

    async def send_frames(self, frames: bytes, *more: Buffer) -> None:
        """Send frames that :func:`encode_frame` or :func:`encode_head` made."""
        await self.stream.send_all(frames, *more)

    async def send_file(
        self,
        message: Message,
        file: File,
        offset: int,
        count: int,
        run: Runner | None = None,
    ) -> None:
        """Send ``message`` with ``count`` bytes of ``file`` as its body; ``run`` is that
        of the disk (see :meth:`gfs.io.Stream.send_file`)."""
        await self.stream.send_all(encode_head(message, count))
        await self.stream.send_file(file, offset, count, run)

    async def receive(self) -> Message:
        """The next message; ``ConnectionError`` if the peer ended the stream.

        ``body_bytes`` then says how much body follows: take all of it with
        ``receive_body`` or ``read_body`` before the next ``receive``.
        """
        message = await self.receive_or_end()
        if message is None:
            raise ConnectionResetError(f"{self.peer} ended the connection")
        return message

    async def receive_or_end(self) -> Message | None:
        """As ``receive``, but None if the stream ended between two frames."""
        if self.body_bytes:
            raise ProtocolError(f"{self.body_bytes} bytes of the last body were not taken")
        if not await self._fill(HEADER_BYTES, may_end=True):
            return None
        head_bytes, body_bytes = split_header(self._buffer, self._start)
        if HEADER_BYTES + head_bytes <= READ_AHEAD_BYTES:
            await self._fill(HEADER_BYTES + head_bytes)
            start = self._start + HEADER_BYTES
            message = decode_head(self._view[start : start + head_bytes], body_bytes)
            self._start = start + head_bytes
        else:
            self._start += HEADER_BYTES
            head = bytearray(head_bytes)
            await self._take(memoryview(head), head_bytes)
            message = decode_head(head, body_bytes)
        self.body_bytes = body_bytes
        return message

    async def receive_reply(self) -> Message:
        """As ``receive``; a Failure is raised as the error it carries."""
        message = await self.receive()
        if type(message) is Failure:
            error = from_wire(message.code, message.message, message.server)
            error.request = request_name(request_of(message.id))
            raise error
        return message

    @property
    def held_bytes(self) -> int:
        """Bytes after the last message that have been received: they can be taken
        without a wait."""
        return self._end - self._start

    async def receive_body(self, target: memoryview) -> None:
        """Fill ``target`` with the next bytes of the body."""
        await self.receive_some(target, len(target))

    async def receive_some(self, target: memoryview, least: int) -> int:
        """As ``receive_body``, but returns with ``least`` bytes or more, as many as there are."""
        if len(target) > self.body_bytes:
            raise ProtocolError(f"a body of {self.body_bytes} bytes, {len(target)} were expected")
        count = await self._take(target, least)
        self.body_bytes -= count
        return count

    async def read_body(self) -> bytes:
        """The rest of the body (the message's own limit bounds it)."""
        body = bytearray(self.body_bytes)
        await self.receive_body(memoryview(body))
        return bytes(body)

    async def _take(self, target: memoryview, least: int) -> int:
        held = min(self._end - self._start, len(target))
        if held:
            target[:held] = self._view[self._start : self._start + held]
            self._start += held
        while held < least:
            count = await self.stream.receive_into(target[held:], least - held)
            if not count:
                raise ConnectionResetError(f"{self.peer} ended the connection in mid-frame")
            held += count
        return held

    async def _fill(self, count: int, may_end: bool = False) -> bool:
        """Receive until the buffer has at least ``count`` bytes; False if the stream
        ends before a frame."""
        while self._end - self._start < count:
            if self._start and self._start + count > READ_AHEAD_BYTES:
                held = self._end - self._start
                self._buffer[:held] = self._buffer[self._start : self._end]
                self._start, self._end = 0, held
            elif self._start == self._end:
                self._start = self._end = 0
            received = await self.stream.receive_into(self._view[self._end :])
            if not received:
                if may_end and self._start == self._end:
                    return False
                raise ConnectionResetError(f"{self.peer} ended the connection in mid-frame")
            self._end += received
        return True

    def take_read_ahead(self) -> bytes:
        """Bytes received after the last frame, for a caller that takes over the stream."""
        data = bytes(self._view[self._start : self._end])
        self._start = self._end = 0
        return data

    def close(self) -> None:
        self.closed = True
        self.stream.close()

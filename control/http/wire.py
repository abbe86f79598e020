"""One TCP connection on which every wait is bounded.

``trio.SocketStream`` can wait without end for a peer that reads nothing, and sends one
buffer at a time. This stream sends several buffers with one system call and no copy,
and fails when the peer reads nothing for too long. It tries the system call first,
and waits for the kernel only if that would block, since most answers fit into the
socket's buffer.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Sequence

import trio

from control.http.slots import PROGRESS_BYTES

Buffer = bytes | bytearray | memoryview

JOIN_BYTES_MAX = 32 * 1024
"""Below this size joining buffers is cheaper than passing a list of them."""


def _nothing() -> None:
    """Do nothing."""


class Wire(trio.abc.Stream):
    """A connected socket as a Trio stream.

    Args:
        sock: Connected and non-blocking; closed by :meth:`aclose`.
        send_stall_seconds: How long the peer may read nothing.
        note_progress: Called after each 64 KiB that were received or sent.

    Attributes:
        waits: How many tasks wait for the peer to send or to read.
    """

    def __init__(
        self,
        sock: socket.socket,
        send_stall_seconds: float,
        note_progress: Callable[[], None] = _nothing,
    ) -> None:
        self.sock = sock
        self._send_stall_seconds = send_stall_seconds
        self._note_progress = note_progress
        self._moved_bytes = 0
        self.waits = 0

    def _count(self, moved_bytes: int) -> None:
        self._moved_bytes += moved_bytes
        if self._moved_bytes >= PROGRESS_BYTES:
            self._moved_bytes = 0
            self._note_progress()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one byte; ``b""`` once the peer has ended.

        If this is cancelled, nothing was read: the next reader goes on at the same place.

        Raises:
            trio.BrokenResourceError: The connection is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        data = self._receive_now(max_bytes or 65536)
        if data is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while data is None:
            self.waits += 1
            try:
                await trio.lowlevel.wait_readable(self.sock)
            finally:
                self.waits -= 1
            data = self._receive_now(max_bytes or 65536)
        self._count(len(data))
        return data

    def _receive_now(self, bytes_max: int) -> bytes | None:
        try:
            return self.sock.recv(bytes_max)
        except BlockingIOError:
            return None
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send_all(self, data: Buffer) -> None:
        """Send one buffer; see :meth:`send_buffers`."""
        await self.send_buffers([data])

    async def send_buffers(self, buffers: Sequence[Buffer]) -> None:
        """Hand all of *buffers* to the kernel, in order.

        They may be reused when this returns. If cancelled, a part may have been sent.
        Returns without a checkpoint if everything fits at once.

        Raises:
            trio.BrokenResourceError: The peer is gone, or read nothing for too long.
        """
        total = sum(
            piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in buffers
        )
        if total <= JOIN_BYTES_MAX and len(buffers) > 1:
            buffers = [b"".join(buffers)]
        sent = self._send_now(buffers)
        self._count(sent)
        if sent < total:
            await self._send_rest(buffers, sent)

    def _send_now(self, buffers: Sequence[Buffer]) -> int:
        try:
            if len(buffers) == 1:
                return self.sock.send(buffers[0])
            return self.sock.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def _send_rest(self, buffers: Sequence[Buffer], sent: int) -> None:
        rest = [memoryview(piece).cast("B") for piece in buffers]
        while True:
            while rest and sent >= rest[0].nbytes:
                sent -= rest.pop(0).nbytes
            if not rest:
                return
            rest[0] = rest[0][sent:]
            await self._wait_for_room()
            sent = self._send_now(rest)
            self._count(sent)

    async def _wait_for_room(self) -> None:
        """Wait until the kernel accepts more, as long as the peer reads at all.

        The kernel wakes us when a good part of its buffer is free. On a slow line that
        may take longer than the limit, so the queued bytes are compared first.
        """
        queued = self.queued_bytes()
        while True:
            with trio.move_on_after(self._send_stall_seconds):
                self.waits += 1
                try:
                    await trio.lowlevel.wait_writable(self.sock)
                finally:
                    self.waits -= 1
                return
            before, queued = queued, self.queued_bytes()
            if queued >= before:
                raise trio.BrokenResourceError("the peer reads nothing")

    def queued_bytes(self) -> int:
        """How many sent bytes the peer's system has not acknowledged yet."""
        packed = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return int(struct.unpack("i", packed)[0])

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room, within the same limit as sending."""
        await self._wait_for_room()

    def end_sending(self) -> None:
        """End our side of the connection; the peer can still be read."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    def reset(self) -> None:
        """End the connection with a reset, which the peer sees as an error, when it is closed."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def aclose(self) -> None:
        """Close at once, without waiting until the kernel has sent everything."""
        self._note_progress = _nothing  # whose owner has this wire: both would stay in memory
        if self.sock.fileno() != -1:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()
        await trio.lowlevel.checkpoint()

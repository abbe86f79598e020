"""Counting the frames of HTTP/2 before they are handled.

Handling a frame of 9 bytes can cost a hundred times as much as sending it, and some
never end: a header block continues in CONTINUATION frames, and a frame of 16 MiB is kept
until it is complete. So the heads of all frames are checked first. A frame with neither
a request nor a byte of a body is *overhead*. A client may send as much of it as its
real traffic needs, and a little more with time; beyond that it is disconnected (PING,
SETTINGS, RST_STREAM, empty frames, headers for ended streams: CVE-2019-9512 to 9518,
CVE-2023-44487; CONTINUATION without end: CVE-2024-27316).

Plain code: it has no clock and never waits.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Flooded", "FrameMeter"]

PREFACE_BYTES = 24
HEAD_BYTES = 9
FRAME_BYTES_MAX = 16 * 1024
"""The largest frame: both sides start with it, and we never raise it."""
FRAMES_AT_ONCE = 64
"""How many frames are handled without a break: h2 takes 10 to 40 µs for each. A header
block ends a turn: some 30 bytes of it take up to 10 ms, since it may repeat large headers
of earlier ones."""
OVERHEAD_MAX = 1000
CREDIT_MAX = 4000
"""The overhead that a client can save up. It is large since window updates come after the
bytes that pay for them, for some MiB at once."""
SETTINGS_MAX = 32
"""How many settings a frame has. The protocol knows ten, and h2 keeps all that it gets."""
SETTING_BYTES = 6
RESET_OVERHEAD = 8
"""As how many frames a reset counts, since the request that it ends was work."""
OVERHEAD_PER_SECOND = 10
OVERHEAD_PER_ANSWER = 16
OVERHEAD_BYTES = 1024
"""How many bytes of bodies, either way, allow one frame of overhead. Go's client sends two
window updates for each 4 KiB that it has read; most others wait for 16 KiB or more."""

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9
END_HEADERS = 4


class Flooded(Exception):
    """The client sends frames that no use of HTTP/2 needs."""


class FrameMeter:
    """Counts the frames of one connection on their way to h2.

    Args:
        header_bytes_max: The largest header block, compressed.

    Attributes:
        header_blocks: How many have begun.
        client_goes: Whether the client has sent GOAWAY: it begins no further request. h2
            does not get that frame, since it would send nothing more after it, not even
            the answers that are under way.
    """

    def __init__(self, header_bytes_max: int) -> None:
        self._header_bytes_max = header_bytes_max
        self._head = bytearray()
        self._left = PREFACE_BYTES
        self._withheld = False
        self._block_bytes = 0
        self._overhead = 0.0
        self._earned = 0.0
        self._block_open = False
        self._in_headers = False
        self.header_blocks = 0
        self.client_goes = False

    @property
    def in_header_block(self) -> bool:
        """Whether a header block has begun that is not complete."""
        return self._block_open or (self._in_headers and self._left > 0)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """*data* for h2, in pieces of at most ``FRAMES_AT_ONCE`` frames and one header block.

        Raises:
            Flooded: A frame or a header block is larger than allowed.
        """
        view = memoryview(data)
        pieces: list[bytes | memoryview] = []
        frames = 0
        at = 0
        while at < len(view):
            if self._left:
                payload = view[at : at + self._left]
                at += len(payload)
                self._left -= len(payload)
                if not self._withheld:
                    pieces.append(payload)
            else:
                part = view[at : at + HEAD_BYTES - len(self._head)]
                at += len(part)
                self._head += part
                if len(self._head) == HEAD_BYTES:
                    self._begin_frame()
                    if not self._withheld:
                        pieces.append(bytes(self._head))
                    self._head.clear()
                    frames += 1
            block_ends = self._in_headers and not (self._block_open or self._left)
            if block_ends or frames == FRAMES_AT_ONCE:
                self._in_headers &= not block_ends
                yield b"".join(pieces)
                pieces.clear()
                frames = 0
        yield b"".join(pieces)

    def _begin_frame(self) -> None:
        size = self._left = int.from_bytes(self._head[:3], "big")
        kind, flags = self._head[3], self._head[4]
        if size > FRAME_BYTES_MAX:
            raise Flooded("a frame is larger than 16 KiB")
        if kind == SETTINGS and size > SETTINGS_MAX * SETTING_BYTES:
            raise Flooded(f"there are more than {SETTINGS_MAX} settings in a frame")
        self._withheld = kind == GOAWAY
        self._in_headers = kind in (HEADERS, CONTINUATION)
        if self._in_headers:
            self.header_blocks += kind == HEADERS
            self._block_bytes = size + (self._block_bytes if kind == CONTINUATION else 0)
            self._block_open = not flags & END_HEADERS
            if self._block_bytes > self._header_bytes_max:
                raise Flooded(f"the headers are larger than {self._header_bytes_max} bytes")
            self._overhead += 1
        else:
            if kind == SETTINGS:
                self._overhead += max(1, size // SETTING_BYTES)
            else:
                self._overhead += RESET_OVERHEAD if kind == RST_STREAM else 1
            self.client_goes |= kind == GOAWAY

    def charge(self, frames: int) -> None:
        """Count so many frames more (or less), since only h2 knows what they contained."""
        self._overhead += frames

    def is_flooded(self, seconds: float, answered: int, body_bytes: int) -> bool:
        """Whether there is more overhead than needed by a connection that is *seconds* old,
        with so many answered requests and bytes of bodies, both ways."""
        earned = (
            OVERHEAD_PER_SECOND * seconds
            + OVERHEAD_PER_ANSWER * answered
            + body_bytes // OVERHEAD_BYTES
        )
        self._overhead = max(self._overhead - (earned - self._earned), -CREDIT_MAX)
        self._earned = earned
        return self._overhead > OVERHEAD_MAX

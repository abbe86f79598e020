"""Decoding a body in chunks (RFC 9112, 7.1), strictly.

h11 reads chunks too, but accepts a bare line feed as the end of a trailer, blanks behind
a size, and any byte in a chunk extension. A proxy that reads these otherwise sees the
body end elsewhere, so that a part of the body becomes our next request. Here only the
grammar is accepted, without the "bad white space" that it tolerates, since no client
sends it.

Trailers are checked and dropped: no handler uses them.
"""

from __future__ import annotations

import re

from control.http.heads import Refusal

SIZE_LINE_BYTES_MAX = 256
"""Sizes need 18 bytes. The rest is for extensions, which are ignored."""
TRAILERS_BYTES_MAX = 8 * 1024
"""The bound of all trailers together: the shortest possible lines take 2 ms."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*\r\n"
)
_TRAILER = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*\r\n")


class ChunkedBody:
    """Decodes the chunks of one body. Plain code: it never waits.

    Attributes:
        complete: Whether the end was seen; :attr:`rest` is what came after it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._chunk_left = 0
        self._crlf_owed = False
        self._in_trailers = False
        self._trailers_left = TRAILERS_BYTES_MAX
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Add bytes that came from the client."""
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """The bytes that were fed and are not of this body, or not decoded yet."""
        return bytes(self._buffer)

    def next_piece(self) -> bytes:
        """The next bytes of the body, of one chunk at most; ``b""`` if there are none yet,
        or if it is complete.

        Raises:
            Refusal: The chunks are malformed (400), or the trailers are too large (431).
        """
        while not self.complete:
            if self._chunk_left:
                piece = bytes(self._buffer[: self._chunk_left])
                del self._buffer[: len(piece)]
                self._chunk_left -= len(piece)
                self._crlf_owed = not self._chunk_left
                return piece
            if not (self._read_trailer() if self._in_trailers else self._read_size()):
                break
        return b""

    def _read_size(self) -> bool:
        if self._crlf_owed:
            if self._buffer[:2] != b"\r\n"[: len(self._buffer)]:
                raise Refusal(400, "a chunk is longer than its size, or has no CR LF behind it")
            if len(self._buffer) < 2:
                return False
            del self._buffer[:2]
            self._crlf_owed = False
        line = self._line(SIZE_LINE_BYTES_MAX, Refusal(400, "a chunk's size line is too long"))
        if line is None:
            return False
        size = _SIZE_LINE.fullmatch(line)
        if size is None:
            raise Refusal(400, "a chunk starts with its size in hex digits and CR LF")
        self._chunk_left = int(size[1], 16)
        self._in_trailers = not self._chunk_left
        return True

    def _read_trailer(self) -> bool:
        line = self._line(self._trailers_left, Refusal(431, "the trailers are too large"))
        if line is None:
            return False
        self._trailers_left -= len(line)
        if line == b"\r\n":
            self.complete = True
        elif _TRAILER.fullmatch(line) is None:
            raise Refusal(400, "a trailer is a header in one line that ends with CR LF")
        return True

    def _line(self, bytes_max: int, too_long: Refusal) -> bytes | None:
        """The next line with its end; None if it has not arrived yet."""
        end = self._buffer.find(b"\n", 0, bytes_max) + 1
        if end:
            line = bytes(self._buffer[:end])
            del self._buffer[:end]
            return line
        if len(self._buffer) >= bytes_max:
            raise too_long
        return None

"""A container's output as lines, decoded from the frames that Podman sends.

A frame is 8 bytes (the stream, three zeros, the length in big-endian order) and that many
bytes of one stream. A line may come in several frames; a last line without a newline is
returned at the end.
"""

from __future__ import annotations

from collections.abc import Iterator

HEAD_BYTES = 8
#: A longer line is sent in pieces.
LINE_BYTES_MAX = 64 * 1024


class Lines:
    """Splits frames into lines. Keeps less than a frame's head and one line of each stream."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._stream = 0
        self._partial: dict[int, bytes] = {}

    def feed(self, data: bytes) -> Iterator[str]:
        at = 0
        while at < len(data):
            if not self._left:
                take = HEAD_BYTES - len(self._head)
                self._head += data[at : at + take]
                at += take
                if len(self._head) == HEAD_BYTES:
                    self._stream = self._head[0] & 3
                    self._left = int.from_bytes(self._head[4:], "big")
                    self._head = b""
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            yield from self._lines(piece)

    def end(self) -> Iterator[str]:
        for partial in self._partial.values():
            if partial:
                yield _text(partial)
        self._partial.clear()

    def _lines(self, piece: bytes) -> Iterator[str]:
        *whole, rest = (self._partial.get(self._stream, b"") + piece).split(b"\n")
        for line in whole:
            yield _text(line)
        while len(rest) >= LINE_BYTES_MAX:
            yield _text(rest[:LINE_BYTES_MAX])
            rest = rest[LINE_BYTES_MAX:]
        self._partial[self._stream] = rest


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")

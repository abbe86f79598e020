"""The codec: bytes in, messages out. No I/O (fuzzed in the unit tests).

One frame, all integers big-endian::

    u32 head length | u32 body length | head (msgpack) | body (raw bytes)

The lengths are checked before anything is allocated for them: a head against
``HEAD_BYTES_MAX``, a body against the message's own ``BODY_BYTES_MAX``. Bodies of bulk
connections do not pass through the codec: they go from the socket to the caller's
buffer.
"""

from __future__ import annotations

import struct

import msgspec

from gfs.blocks import Buffer
from gfs.errors import ForeignPeer, GfsError, ProtocolError, TlsRefused
from gfs.protocol.messages import HEAD_BYTES_MAX, AnyMessage, Message

HEADER = struct.Struct(">II")
HEADER_BYTES = HEADER.size
#: The first bytes of every TLS connection (handshake, version 3.x), and of an alert that ends one.
TLS_HELLO, TLS_ALERT = 0x1603, 0x1503
#: How connections by other protocols begin. As the length of a head each is far too much.
FOREIGN = {
    "HTTP": (b"HTTP", b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN"),
    "HTTP/2": (b"PRI ",),
    "SSH": (b"SSH-",),
}

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(AnyMessage)
_pack_header = HEADER.pack
_unpack_header = HEADER.unpack_from


def encode_frame(message: Message, body: Buffer = b"") -> bytes:
    """A frame with a small body, in one piece."""
    head = _encoder.encode(message)
    if body:
        return b"".join((_pack_header(len(head), len(body)), head, body))
    return _pack_header(len(head), 0) + head


def encode_head(message: Message, body_bytes: int) -> bytes:
    """The header and head of a frame whose ``body_bytes`` of body are sent separately."""
    head = _encoder.encode(message)
    return _pack_header(len(head), body_bytes) + head


def split_header(data: Buffer, at: int = 0) -> tuple[int, int]:
    """Head and body length from the 8 bytes at ``at``; refuses a bad head length."""
    head_bytes, body_bytes = _unpack_header(data, at)
    if not 0 < head_bytes <= HEAD_BYTES_MAX:
        raise _foreign(bytes(data[at : at + HEADER_BYTES]), head_bytes)
    return head_bytes, body_bytes


def _foreign(first: bytes, head_bytes: int) -> GfsError:
    """The error for a connection that begins with these bytes, which names what it speaks."""
    if head_bytes >> 16 == TLS_HELLO:
        return TlsRefused("a TLS connection, but this side has no TLS: see gfs up --help")
    if head_bytes >> 16 == TLS_ALERT:
        return TlsRefused("it speaks TLS, but this side has no TLS: give --tls, or GFS_TLS")
    for name, beginnings in FOREIGN.items():
        if first.startswith(beginnings):
            return ForeignPeer(f"it speaks {name}, not gfs's protocol")
    if first.isascii() and first.decode().isprintable():
        return ForeignPeer(f"it speaks text ({first.decode()!r} …), not gfs's protocol")
    return ForeignPeer(
        f"it does not speak gfs's protocol: a frame has a head of {head_bytes} bytes"
    )


def decode_head(head: Buffer, body_bytes: int) -> Message:
    """The message, or ProtocolError: unknown tag, wrong types, body too large."""
    try:
        message = _decoder.decode(head)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(f"a head that is not a message: {error}") from None
    if body_bytes > message.BODY_BYTES_MAX:
        name = type(message).__name__
        raise ProtocolError(
            f"{name} with a body of {body_bytes} bytes, at most {message.BODY_BYTES_MAX} allowed"
        )
    return message


class FrameDecoder:
    """Decodes frames from a byte stream that arrives in pieces of any size.

    Holds at most one incomplete frame, whose size is bounded by the limits above.
    After a ProtocolError the decoder cannot be used any more: the next frame's start is
    not known, and frames of the same piece are lost.

    The cost is linear in the bytes, however small the pieces are: an incomplete frame
    is examined again only when it is complete.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        #: So many bytes must be held before there is anything to decode.
        self._wanted = HEADER_BYTES
        #: The head of the frame whose body is awaited, and where that begins.
        self._message: Message | None = None
        self._body_start = 0

    def feed(self, data: Buffer) -> list[tuple[Message, bytes]]:
        """All frames that are complete now, oldest first, as (message, body)."""
        buffer = self._data
        buffer += data
        end = len(buffer)
        if end < self._wanted:
            return []
        frames: list[tuple[Message, bytes]] = []
        at = 0
        with memoryview(buffer) as view:
            if self._message is not None:
                at = self._wanted
                frames.append((self._message, bytes(view[self._body_start : at])))
                self._message = None
            while True:
                start = at + HEADER_BYTES
                if start > end:
                    self._wanted = HEADER_BYTES
                    break
                head_bytes, body_bytes = split_header(buffer, at)
                head_end = start + head_bytes
                if head_end > end:
                    self._wanted = head_end - at
                    break
                message = decode_head(view[start:head_end], body_bytes)
                body_end = head_end + body_bytes
                if body_end > end:
                    self._message = message
                    self._body_start = head_end - at
                    self._wanted = body_end - at
                    break
                frames.append((message, bytes(view[head_end:body_end])))
                at = body_end
        if at:
            del buffer[:at]
        return frames

"""The payload of a request: as it is, or framed as ``aws-chunked``.

An ``aws-chunked`` body is a sequence of chunks ``SIZE[;chunk-signature=…]\\r\\n DATA \\r\\n``, the
last one empty, followed by trailers ``name:value\\r\\n`` and an empty line. With signatures, each
chunk's depends on the one before, the first on that of the request, and that of the trailers on
the last. The bytes of a chunk are passed on before its signature can be checked: nothing is
published before the whole body has been read.

Source: "Transferring payload in multiple chunks" of the S3 API, with and without trailers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Iterator, Mapping

import trio

from control.api import BodyCutShort
from control.s3 import checksums
from control.s3.checksums import Sum
from control.s3.errors import S3Error
from control.s3.signature import UNSIGNED, Key, Signed

SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_CHUNKS_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING = frozenset({SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER})
LINE_BYTES_MAX = 1024
TRAILERS_MAX = 16
CHUNKS_AT_ONCE = 100

_EMPTY = hashlib.sha256(b"").hexdigest()
_hash = re.compile(r"[0-9a-f]{64}")
_chunk = re.compile(rb"([0-9a-fA-F]{1,12})(?:;chunk-signature=([0-9a-f]{64}))?")


def _bad(what: str) -> S3Error:
    return S3Error("IncompleteBody", f"the body is not a valid aws-chunked one: {what}")


class ChunkDecoder:
    """Takes a body of ``aws-chunked`` piece by piece; see the module."""

    def __init__(self, signed: Signed | None, key: Key | None) -> None:
        """``key``: chunks are signed with it, else they must not be signed."""
        self._signed, self._key = signed, key
        self._previous = signed.signature if signed is not None else ""
        self._line = bytearray()
        self._left = 0
        self._sum: Sum | None = None
        self._signature = ""
        self._state = "size"
        self._hashed = bytearray()
        self.trailers: dict[str, str] = {}
        self.is_done = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The bytes of the object in ``piece``. Raises S3Error."""
        at = 0
        while at < len(piece):
            if self._state == "data":
                data = piece[at : at + self._left]
                at += len(data)
                self._left -= len(data)
                if self._sum is not None:
                    self._sum.update(data)
                if not self._left:
                    self._state = "end"
                yield data
                continue
            if self.is_done:
                raise _bad("it goes on after its end")
            end = piece.find(b"\n", at)
            stop = len(piece) if end < 0 else end + 1
            self._line += piece[at:stop]
            at = stop
            if len(self._line) > LINE_BYTES_MAX:
                raise _bad("a line is too long")
            if end >= 0:
                line, self._line = bytes(self._line), bytearray()
                if not line.endswith(b"\r\n"):
                    raise _bad("a line does not end with CR LF")
                self._take(line[:-2])

    def finish(self) -> None:
        """Raises S3Error if the body has ended too early."""
        if not self.is_done:
            raise _bad("it ends too early")

    def _take(self, line: bytes) -> None:
        if self._state == "size":
            self._begin_chunk(line)
        elif self._state == "end":
            if line:
                raise _bad("a chunk is longer than it says")
            self._check_chunk()
            self._state = "size"
        else:
            self._take_trailer(line)

    def _begin_chunk(self, line: bytes) -> None:
        found = _chunk.fullmatch(line)
        if found is None or (found[2] is None) != (self._key is None):
            raise _bad("a chunk does not begin with its size" + " and signature" * bool(self._key))
        self._left = int(found[1], 16)
        self._signature = (found[2] or b"").decode()
        self._sum = hashlib.sha256() if self._key is not None else None
        if self._left:
            self._state = "data"
        else:
            self._check_chunk()
            self._state = "trailers"

    def _check_chunk(self) -> None:
        if self._sum is not None:
            digest = self._sum.digest().hex()
            self._check("AWS4-HMAC-SHA256-PAYLOAD", self._signature, _EMPTY, digest)

    def _check(self, kind: str, signature: str, *lines: str) -> None:
        assert self._key is not None
        assert self._signed is not None
        expected = self._key.sign(kind, self._signed.date, self._previous, *lines)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise S3Error("SignatureDoesNotMatch", "the signature of a piece of the body is wrong")
        self._previous = signature

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            if self._key is not None and self._hashed:
                raise S3Error("SignatureDoesNotMatch", "the trailers are not signed")
            self.is_done = True
            return
        name, colon, value = line.decode("latin-1").partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon or len(self.trailers) >= TRAILERS_MAX:
            raise _bad("its trailers are invalid")
        if name == "x-amz-trailer-signature":
            if self._key is None:
                raise _bad("its trailers are signed, and its chunks are not")
            digest = hashlib.sha256(self._hashed).hexdigest()
            self._check("AWS4-HMAC-SHA256-TRAILER", value, digest)
            self._hashed.clear()
            return
        self._hashed += f"{name}:{value}\n".encode()
        self.trailers[name] = value


class Payload:
    """The bytes of an object in a request's body, verified: when the iteration ends without an
    error, they are what the client has sent, by all sums that it gave.

    ``md5`` and ``checksum`` (algorithm and value) are known then.
    """

    def __init__(
        self,
        body: AsyncIterator[bytes],
        headers: Mapping[str, str],
        signed: Signed | None,
        key: Key | None,
        *,
        is_sized: bool = True,
        algorithm: str = "",
    ) -> None:
        """``is_sized``: its length is in the headers. ``algorithm``: the checksum's, if the client
        has not chosen one. Raises S3Error for headers that contradict one another."""
        self._body = body
        self._received = 0
        declared = signed.payload if signed is not None else ""
        if signed is None:
            # Who signs nothing may leave that header out, as botocore does.
            encodings = headers.get("content-encoding", "").replace(" ", "").split(",")
            default = UNSIGNED_CHUNKS_TRAILER if "aws-chunked" in encodings else UNSIGNED
            declared = headers.get("x-amz-content-sha256", default)
        self._sha256 = declared if _hash.fullmatch(declared) else ""
        self._decoder: ChunkDecoder | None = None
        if declared in STREAMING:
            is_signed = declared != UNSIGNED_CHUNKS_TRAILER
            if is_signed and signed is None:
                raise S3Error("AccessDenied", "the body is signed, and the request is not")
            self._decoder = ChunkDecoder(signed, key if is_signed else None)
        elif not self._sha256 and declared != UNSIGNED:
            raise S3Error("InvalidArgument", "x-amz-content-sha256 is no SHA-256 and no known word")
        self.length = _length(headers, self._decoder is not None) if is_sized else None
        self._md5 = _md5(headers.get("content-md5"))
        self.algorithm, self._expected = _checksum(headers)
        self._trailer = headers.get("x-amz-trailer", "").strip().lower()
        if self._trailer:
            if self._decoder is None:
                raise S3Error("InvalidRequest", "only a body of aws-chunked has trailers")
            named = checksums.algorithm_of(self._trailer)
            if self.algorithm and self._expected is not None:
                raise S3Error("InvalidRequest", "give one checksum, in a header or as a trailer")
            self.algorithm = named
        self.algorithm = self.algorithm or algorithm
        self._sums = checksums.Sums(signed=bool(self._sha256), checksum=self.algorithm)

    @property
    def md5(self) -> bytes:
        return self._sums.md5.digest()

    @property
    def checksum(self) -> str:
        """``ALGORITHM:BASE64``; empty if nobody has chosen one."""
        if self._sums.checksum is None:
            return ""
        return f"{self.algorithm}:{checksums.text_of(self._sums.checksum.digest())}"

    def __aiter__(self) -> Payload:
        return self

    async def __anext__(self) -> bytes:
        data = b""
        while not data:
            try:
                piece = await anext(self._body)
            except StopAsyncIteration:
                await self._end()
                raise
            except BodyCutShort:
                raise S3Error("IncompleteBody", "the body ended before its length") from None
            data = await self._decoded(self._decoder, piece) if self._decoder else piece
        self._received += len(data)
        if self.length is not None and self._received > self.length:
            raise S3Error("IncompleteBody", f"the body has more than {self.length} bytes")
        await self._sums.update(data)
        return data

    async def _decoded(self, decoder: ChunkDecoder, piece: bytes) -> bytes:
        parts: list[bytes] = []
        for part in decoder.feed(piece):
            parts.append(part)
            if len(parts) % CHUNKS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()  # they may be of one byte each
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _end(self) -> None:
        if self._decoder is not None:
            self._decoder.finish()
        if self.length is not None and self._received != self.length:
            raise S3Error(
                "IncompleteBody", f"the body has {self._received} bytes, not {self.length}"
            )
        await self._sums.finish()
        self._check()

    def _check(self) -> None:
        sums, decoder = self._sums, self._decoder
        if sums.sha256 is not None and sums.sha256.digest().hex() != self._sha256:
            raise S3Error("XAmzContentSHA256Mismatch", "the body has another SHA-256")
        if self._md5 is not None and self._md5 != sums.md5.digest():
            raise S3Error("BadDigest", "the body has another MD5 than Content-MD5")
        if self._trailer and decoder is not None:
            text = decoder.trailers.get(self._trailer)
            if text is None:
                raise S3Error("IncompleteBody", f"the trailer {self._trailer} is missing")
            self._expected = checksums.decode(self.algorithm, text)
        found = sums.checksum.digest() if sums.checksum is not None else None
        if self._expected not in (None, found):
            raise S3Error("BadDigest", f"the body has another {self.algorithm} checksum")


def _length(headers: Mapping[str, str], is_chunked: bool) -> int | None:
    name = "x-amz-decoded-content-length" if is_chunked else "content-length"
    text = headers.get(name)
    if text is None and not is_chunked and "transfer-encoding" in headers:
        return None
    if text is None:
        raise S3Error("MissingContentLength", f"the header {name} is missing")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise S3Error("InvalidArgument", f"{name} must be a number")
    return int(text)


def _md5(text: str | None) -> bytes | None:
    if text is None:
        return None

    try:
        value = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise S3Error("InvalidDigest", "Content-MD5 must be an MD5 in Base64")
    return value


def _checksum(headers: Mapping[str, str]) -> tuple[str, bytes | None]:
    """The checksum in a header: its algorithm and value. Empty if there is none."""
    named = [
        name
        for name in headers
        if name.startswith(checksums.PREFIX) and name not in checksums.OTHERS
    ]
    if len(named) > 1:
        raise S3Error("InvalidRequest", "give one checksum")
    if not named:
        chosen = headers.get("x-amz-checksum-algorithm") or headers.get(
            "x-amz-sdk-checksum-algorithm", ""
        )
        return (checksums.algorithm_of(chosen) if chosen else "", None)
    algorithm = checksums.algorithm_of(named[0])
    return algorithm, checksums.decode(algorithm, headers[named[0]])

"""Downloads: a file, parts of it, or 304 if the client has it already.

A small file is read in one piece and sent with its head. A larger one is sent by a
generator: it reads the next piece when the kernel has taken the last one, so a slow
reader costs the memory of one piece and delays no other request. The client library
has verified every byte, and continues with another replica where one fails. If none
is left in the middle of a file, the generator raises, and the server closes the
connection before ``Content-Length`` bytes were sent.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from control.api import PRIVATE, Call, NoSuchThing, Response, Unavailable, json_response
from control.storage.names import last_segment
from control.storage.rows import Space
from control.storage.transfer import ranges
from control.storage.transfer.conditional import Validators, Verdict, judge, range_counts
from control.storage.transfer.disposition import content_disposition
from control.storage.transfer.media import OCTETS, media_type, security_policy
from control.storage.transfer.progress import Transfer
from control.storage.transfer.ranges import Span, Unsatisfiable
from gfs.blocks import KIB
from gfs.client import Client, Entry, ExistingFile
from gfs.errors import FileChanged, IsADirectory, NotADirectory, NotFound

#: Up to this size one read and one send cost less than a stream.
WHOLE_BYTES_MAX = 64 * KIB
#: How often a file is opened again that was replaced while it was opened.
REOPENED_MAX = 10

Body = AsyncGenerator[bytes | memoryview, None]


async def send(
    call: Call,
    fs: Client,
    space: Space,
    path: str,
    transfer: Transfer,
    *,
    inline: bool,
    directory: str = "",
) -> Response:
    """The answer to GET or HEAD. The caller has checked that the user may read the file.
    ``directory``: where the path begins, if that is not the storage namespace."""
    full = f"{directory or space.directory}/{path}"
    for _ in range(REOPENED_MAX):
        try:
            return await _send(call, fs, space, path, full, transfer, inline)
        except FileChanged:
            continue  # it was replaced between the opening and the first read
    raise Unavailable(f"{path} is being replaced again and again: try again later")


async def _send(
    call: Call,
    fs: Client,
    space: Space,
    path: str,
    full: str,
    transfer: Transfer,
    inline: bool,
) -> Response:
    with_body = call.method != "HEAD"
    try:
        file = await _open(fs, full) if with_body else None
        entry = file.entry if file is not None else await fs.stat(full)
    except (NotFound, NotADirectory, IsADirectory):
        raise NoSuchThing(f"{path} does not exist") from None
    if entry.kind != "file":
        raise NoSuchThing(f"{path} does not exist")
    answer = _Answer(entry, space, last_segment(path), inline)
    verdict = judge(call.header, answer.validators)
    if verdict is Verdict.FAILED:
        transfer.finish_early()
        return answer.failed()
    if verdict is Verdict.NOT_MODIFIED:
        transfer.finish_early()
        return answer.not_modified()
    if file is None:
        return answer.head()
    spans: list[Span] | None = None
    header = call.header("Range")
    if header is not None and range_counts(call.header("If-Range"), answer.validators):
        try:
            spans = ranges.wanted(header, entry.length)
        except Unsatisfiable:
            transfer.finish_early()
            return answer.unsatisfiable()
    return await answer.content(file, spans, transfer)


async def _open(fs: Client, full: str) -> ExistingFile:
    file = await fs.open(full)
    assert isinstance(file, ExistingFile)
    return file


class _Answer:
    """The possible answers to a request for one file."""

    def __init__(self, entry: Entry, space: Space, name: str, inline: bool) -> None:
        self.validators = Validators.of(entry)
        self._length = entry.length
        self._type = media_type(name) if inline else OCTETS
        self._headers = {
            **self.validators.headers,
            # A file can be replaced at any time, so clients must revalidate; mostly the
            # answer is 304.
            "Cache-Control": "private, no-cache" if space.visibility == PRIVATE else "no-cache",
            "Accept-Ranges": "bytes",
        }
        self._describe(name, inline)

    def _describe(self, name: str, inline: bool) -> None:
        kind = "inline" if inline else "attachment"
        self._about = {
            **self._headers,
            "Content-Disposition": content_disposition(kind, name),
            "X-Content-Type-Options": "nosniff",
        }
        if inline:
            self._about["Content-Security-Policy"] = security_policy(self._type)
            # The URL may contain a token.
            self._about["Referrer-Policy"] = "no-referrer"

    def failed(self) -> Response:
        why = "the file is not the one that If-Match or If-Unmodified-Since names"
        return json_response({"error": why}, 412, self._headers)

    def not_modified(self) -> Response:
        response = Response(b"", 304, self._headers)
        # They would describe this empty body instead of the file; RFC 9110, 15.4.5.
        del response.headers["Content-Length"], response.headers["Content-Type"]
        return response

    def unsatisfiable(self) -> Response:
        headers = {**self._headers, "Content-Range": f"bytes */{self._length}"}
        why = f"Range: the file has {self._length} bytes, and no range contains any of them"
        return json_response({"error": why}, 416, headers)

    def head(self) -> Response:
        response = Response(b"", 200, self._about, content_type=self._type)
        response.headers["Content-Length"] = str(self._length)
        return response

    async def content(
        self, file: ExistingFile, spans: Sequence[Span] | None, transfer: Transfer
    ) -> Response:
        """The file, or the spans of it."""
        if spans is None:
            return await self._part(file, Span(0, self._length), transfer, 200, {})
        if len(spans) == 1:
            part = {"Content-Range": spans[0].content_range(self._length)}
            return await self._part(file, spans[0], transfer, 206, part)
        return await self._parts(file, spans, transfer)

    async def _part(
        self,
        file: ExistingFile,
        span: Span,
        transfer: Transfer,
        status: int,
        headers: Mapping[str, str],
    ) -> Response:
        transfer.total = span.length
        headers = {**self._about, **headers}
        if span.length <= WHOLE_BYTES_MAX:
            data = await file.pread(span.start, span.length)
            with transfer:
                transfer.moved(len(data))
            return Response(data, status, headers, content_type=self._type)
        headers["Content-Length"] = str(span.length)
        body = await _begun(_stream(file, [(b"", span)], b"", transfer))
        return Response(body, status, headers, content_type=self._type)

    async def _parts(
        self, file: ExistingFile, spans: Sequence[Span], transfer: Transfer
    ) -> Response:
        """``multipart/byteranges``: RFC 9110, section 14.6."""
        boundary = secrets.token_hex(16)
        parts = [(self._part_head(boundary, span), span) for span in spans]
        tail = f"\r\n--{boundary}--\r\n".encode()
        transfer.total = sum(span.length for span in spans)
        length = transfer.total + sum(len(head) for head, _ in parts) + len(tail)
        return Response(
            await _begun(_stream(file, parts, tail, transfer)),
            206,
            {**self._about, "Content-Length": str(length)},
            content_type=f"multipart/byteranges; boundary={boundary}",
        )

    def _part_head(self, boundary: str, span: Span) -> bytes:
        return (
            f"\r\n--{boundary}\r\nContent-Type: {self._type}\r\n"
            f"Content-Range: {span.content_range(self._length)}\r\n\r\n"
        ).encode()


async def _begun(body: Body) -> Body:
    """``body`` after its first step. An error of that step is raised here, so that a failure
    before the first byte is still answered with a status."""
    await anext(body)
    return body


async def _stream(
    file: ExistingFile, parts: Sequence[tuple[bytes, Span]], tail: bytes, transfer: Transfer
) -> Body:
    """Each part's head and bytes. An empty piece comes first, once the first bytes are read.

    A view is valid until the next step.
    """
    async with aclosing(_pieces(file, parts)) as pieces:
        first, length = await anext(pieces)
        yield b""
        with transfer:
            yield first
            transfer.moved(length)
            async for piece, length in pieces:
                yield piece
                transfer.moved(length)
            if tail:
                yield tail


async def _pieces(
    file: ExistingFile, parts: Sequence[tuple[bytes, Span]]
) -> AsyncGenerator[tuple[bytes | memoryview, int], None]:
    """The pieces to send, and how many bytes of each belong to the file."""
    for head, span in parts:
        async with aclosing(file.stream(span.start, span.length)) as stream:
            first = await anext(stream)  # before the head, which cannot be withdrawn
            if head:
                yield head, 0
            yield first, len(first)
            async for piece in stream:
                yield piece, len(piece)

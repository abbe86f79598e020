"""A form with a file in it, as it comes: RFC 7578 by the ``multipart`` package.

Pieces of the body go in, pieces of the file come out, the same bytes objects
where possible; nothing is kept but a few bytes at the seams. The parser's strict
mode judges some forms by how the body happens to be cut into pieces: one that
ends with the line break after its closing boundary, as all do, would fail if that
came alone. So it is not used. What comes before the first boundary is skipped here for
the same reason, and what follows the last is ignored, as RFC 2046 says.
"""

from __future__ import annotations

from collections.abc import Iterator

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from control.errors import BadRequest

FORM = "multipart/form-data"
#: The name of the part with the file.
FIELD = "file"
#: Other parts are skipped, up to this many.
OTHERS_MAX = 1000
HEADER_BYTES_MAX = 4096
HEADERS_MAX = 8
BOUNDARY_BYTES_MAX = 200


class FileBegins:
    """The header of the file's part has come; ``filename`` as it says, or None."""

    def __init__(self, filename: str | None) -> None:
        self.filename = filename


#: The file's header, then its bytes.
Event = FileBegins | bytes


def is_form(content_type: str | None) -> bool:
    """Whether a body of this type is a form with parts."""
    kind = (content_type or "").partition(";")[0]
    return kind.strip().lower() == FORM


class FormReader:
    """Takes one form apart. :meth:`feed` it, and in the end :meth:`finish`.

    Raises BadRequest for what is not such a form.
    """

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get("boundary", "")
        if not boundary:
            raise BadRequest(f"Content-Type: {FORM} without a boundary")
        if len(boundary) > BOUNDARY_BYTES_MAX or not boundary.isascii():
            raise BadRequest(f"Content-Type: a boundary has at most {BOUNDARY_BYTES_MAX} bytes")
        try:
            self._parser = PushMultipartParser(
                boundary,
                max_header_size=HEADER_BYTES_MAX,
                max_header_count=HEADERS_MAX,
                max_segment_count=OTHERS_MAX + 1,
            )
        except MultipartError as error:
            raise BadRequest(f"Content-Type: {error}") from None
        self._first = f"--{boundary}".encode()
        #: What came before the parser was given anything; None: it was.
        self._head: bytes | None = b""
        self._is_start = True
        self._is_in_file = False
        self._has_file = False

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events in ``piece``. Consume them before the next call."""
        if self._head is not None:
            piece = self._begin(self._head + piece)
        if not piece:
            return
        try:
            for event in self._parser.parse(piece):
                if isinstance(event, bytes):
                    if self._is_in_file:
                        yield event
                elif event is None:
                    self._is_in_file = False
                elif event.name == FIELD:
                    yield self._begin_file(event)
        except ParserLimitReached as error:
            raise BadRequest(f"the form goes beyond a limit: {error}") from None
        except MultipartError as error:
            raise BadRequest(f"the form is malformed: {error}") from None

    def finish(self) -> None:
        """The body has ended. Raises BadRequest if the form has not, or has no file."""
        try:
            self._parser.close()
        except MultipartError:
            raise BadRequest(
                "the form is malformed: it ends without its closing boundary"
            ) from None
        if not self._has_file:
            raise BadRequest(f"the form has no part named {FIELD!r}")

    def _begin(self, head: bytes) -> bytes:
        """Skip a preamble: what is left from the first boundary on, if it is there."""
        first = self._first
        if self._is_start:
            if len(head) < len(first):
                self._head = head
                return b""
            self._is_start = False
            if head.startswith(first):
                self._head = None
                return head
        at = head.find(b"\r\n" + first)
        if at < 0:
            self._head = head[-(len(first) + 1) :]
            return b""
        self._head = None
        return head[at + 2 :]

    def _begin_file(self, part: MultipartSegment) -> FileBegins:
        if self._has_file:
            raise BadRequest(f"the form has more than one part named {FIELD!r}")
        self._has_file = self._is_in_file = True
        return FileBegins(part.filename)

"""Reads a form with a file as it arrives: RFC 7578, with the ``multipart`` package.

Pieces of the body go in, pieces of the file come out, the same bytes objects
where possible; only a few bytes are kept between pieces. The parser's strict
mode is not used, since for some forms its verdict depends on how the body is cut into
pieces: a form ends with a line break after its closing boundary, and it would fail if
that break came alone. The bytes before the first boundary are skipped here for
the same reason, and those after the last are ignored, as RFC 2046 says.
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

from control.api import BadRequest

FORM = "multipart/form-data"
#: The name of the part with the file.
FIELD = "file"
#: How many other parts are skipped before a form is refused.
OTHERS_MAX = 1000
HEADER_BYTES_MAX = 4096
HEADERS_MAX = 8
BOUNDARY_BYTES_MAX = 200


class FileBegins:
    """The header of the file's part was read; ``filename`` is from it, or None."""

    def __init__(self, filename: str | None) -> None:
        self.filename = filename


#: The file's header, then its bytes.
Event = FileBegins | bytes


def is_form(content_type: str | None) -> bool:
    """Whether a body of this type is a form with parts."""
    kind = (content_type or "").partition(";")[0]
    return kind.strip().lower() == FORM


class FormReader:
    """Parses one form. Call :meth:`feed` with each piece, and :meth:`finish` in the end.

    Both raise BadRequest if the body is not such a form.
    """

    def __init__(self, content_type: str, fields_bytes_max: int = 0) -> None:
        """``fields_bytes_max``: keep the parts before the file, so many bytes in all."""
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
        #: The bytes before the first boundary; None once the parser got the rest.
        self._head: bytes | None = b""
        self._is_start = True
        self._is_in_file = False
        self._has_file = False
        #: The parts before the file, by their names in lower case.
        self.fields: dict[str, bytes] = {}
        self._field = ""
        self._fields_bytes_left = fields_bytes_max
        self._keeps_fields = fields_bytes_max > 0

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
                    elif self._field:
                        self._keep(event)
                elif event is None:
                    self._is_in_file, self._field = False, ""
                elif event.name == FIELD:
                    yield self._begin_file(event)
                elif self._keeps_fields and not self._has_file:
                    self._field = event.name.lower()
                    self._keep(b"")
        except ParserLimitReached as error:
            raise BadRequest(f"the form goes beyond a limit: {error}") from None
        except MultipartError as error:
            raise BadRequest(f"the form is malformed: {error}") from None

    def finish(self) -> None:
        """The body has ended. Raises BadRequest if the form is incomplete, or has no file."""
        try:
            self._parser.close()
        except MultipartError:
            raise BadRequest(
                "the form is malformed: it ends without its closing boundary"
            ) from None
        if not self._has_file:
            raise BadRequest(f"the form has no part named {FIELD!r}")

    def _keep(self, data: bytes) -> None:
        self._fields_bytes_left -= len(self._field) + len(data)
        if self._fields_bytes_left < 0:
            raise BadRequest("the form's fields before its file are too long")
        self.fields[self._field] = self.fields.get(self._field, b"") + data

    def _begin(self, head: bytes) -> bytes:
        """Skip a preamble: returns the bytes from the first boundary on, if it was found."""
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

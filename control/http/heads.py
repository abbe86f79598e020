"""Decisions about the heads of requests and answers: plain functions that never wait."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_to_bytes
from wsgiref.handlers import format_date_time

import h11

from control.http.limits import HEADER_LINES_MAX, OWN_BYTES_MAX, PARAMETERS_MAX, PATH_BYTES_MAX
from control.http.wire import Buffer

Headers = Sequence[tuple[bytes, bytes]]

OWN = frozenset(
    {b"connection", b"upgrade", b"expect", b"sec-websocket-key", b"sec-websocket-version",
     b"sec-websocket-protocol"}
)  # fmt: skip
"""The headers that the server itself takes apart."""

BLANK_LINE = re.compile(rb"\n\r?\n")
FOLDED = re.compile(rb"\n[ \t]")
BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
ABSOLUTE_FORM = re.compile(rb"https?://([^/?]*)", re.IGNORECASE)
#: RFC 9110, section 7.2: ``uri-host [":" port]``.
HOST = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}){0,255})(?::[0-9]{0,5})?"
)


class Refusal(Exception):
    """The server answers the request with this status, instead of the application."""

    def __init__(self, status: int, message: str, *, is_url: bool = False) -> None:
        """``is_url``: it is the URL that is wrong."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.is_url = is_url


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The parts of a request's head that the server itself uses.

    Attributes:
        target: The raw path with its query, without scheme and host.
        path: The path, percent-decoded; strictly, see ``_decoded_path``.
        body_bytes: The length of the body, or None if it comes in chunks.
        keep_alive: Whether the client wants to send another request afterwards.
        expects_continue: Whether it waits for ``100 Continue`` before it sends the body.
    """

    method: str
    target: bytes
    path: str
    http_version: str
    headers: list[tuple[bytes, bytes]]
    body_bytes: int | None
    keep_alive: bool
    expects_continue: bool
    is_websocket: bool


UNREAD = RequestHead("-", b"", "", "1.1", [], 0, False, False, False)
"""Used instead of a head that could not be read."""


def read_head(request: h11.Request) -> RequestHead:
    """Check one request head, and extract what the server needs.

    Raises:
        Refusal: The request must not reach the application.
    """
    http_version = request.http_version.decode("ascii")
    if http_version not in ("1.0", "1.1"):
        raise Refusal(505, f"HTTP/{http_version} is not supported; use HTTP/1.1")
    if request.method == b"CONNECT":
        raise Refusal(501, "CONNECT is not supported: this server is not a proxy")
    if not request.method.isupper():
        # Methods are case-sensitive. If an application takes "head" for HEAD and a proxy
        # does not, they disagree about where the answer ends.
        raise Refusal(501, "write the method in capital letters")
    headers = list(request.headers)
    length: bytes | None = None
    chunked = False
    expects_continue = False
    tokens: list[bytes] = []
    upgrade = b""
    for name, value in headers:
        if len(value) > OWN_BYTES_MAX and name in OWN:
            called = name.decode("ascii").title()
            raise Refusal(431, f"the header {called} has more than {OWN_BYTES_MAX} bytes")
        if name == b"content-length":
            length = value
        elif name == b"transfer-encoding":
            chunked = True
        elif name == b"connection":
            tokens += [token.strip() for token in value.lower().split(b",")]
        elif name == b"upgrade":
            upgrade = value.lower()
        elif name == b"expect":
            expects_continue = value.lower() == b"100-continue"
    if chunked and length is not None:
        # Two servers in a row that pick a different one can be made to disagree about
        # where the next request starts, so neither is picked.
        raise Refusal(400, "send Content-Length or Transfer-Encoding, not both")
    if chunked and http_version == "1.0":
        raise Refusal(400, "HTTP/1.0 has no Transfer-Encoding; send Content-Length")
    target, authority = _origin_form(request.target, request.method)
    if authority:
        # It counts, and not what the header says: RFC 9112, section 3.2.2.
        headers = [(b"host", authority), *(each for each in headers if each[0] != b"host")]
    _check_host(headers)
    path = _decoded_path(target)
    return RequestHead(
        method=request.method.decode("ascii"),
        target=target,
        path=path,
        http_version=http_version,
        headers=headers,
        body_bytes=None if chunked else int(length or 0),
        keep_alive=http_version != "1.0" and b"close" not in tokens,
        expects_continue=expects_continue and http_version != "1.0",
        is_websocket=upgrade == b"websocket" and b"upgrade" in tokens and request.method == b"GET",
    )


def refuse_many_lines(received: bytes | bytearray) -> None:
    """Refuse too many header lines before time is spent on them.

    Args:
        received: The bytes so far, of the head and perhaps of what follows it.

    Raises:
        Refusal: There are too many.
    """
    if received.count(b"\n") > HEADER_LINES_MAX:
        end = BLANK_LINE.search(received)
        if end is None or received.count(b"\n", 0, end.start()) > HEADER_LINES_MAX:
            raise Refusal(431, f"there are more than {HEADER_LINES_MAX} headers")


def refuse_loose_lines(head: bytes | bytearray) -> None:
    """Refuse ways to end or continue a line that servers interpret differently.

    h11 accepts a bare line feed as the end of a line, and joins a line that begins with
    white space to the one before. A proxy that reads these otherwise sees other headers
    than we do, so that it may let pass requests that it should stop.

    Args:
        head: The bytes of one request line and its headers.

    Raises:
        Refusal: The head has one of these.
    """
    if head.count(b"\n") != head.count(b"\r\n"):
        raise Refusal(400, "lines end with CR LF, not with LF alone")
    if FOLDED.search(head) is not None:
        raise Refusal(400, "a header is one line; folding is obsolete")


def _origin_form(target: bytes, method: bytes) -> tuple[bytes, bytes]:
    """The path with its query, and the authority of a target in absolute form, else b""."""
    if b"#" in target:
        raise Refusal(400, "a request target has no fragment; write '%23' for '#'")
    if target.startswith(b"/"):
        return target, b""
    absolute = ABSOLUTE_FORM.match(target)
    if absolute is not None:
        if not absolute[1]:
            raise Refusal(400, "the URL in the request line names no host")
        rest = target[absolute.end() :]
        return rest if rest.startswith(b"/") else b"/" + rest, absolute[1]
    if target == b"*" and method == b"OPTIONS":
        return target, b""
    raise Refusal(400, "the request target must be a path that starts with '/'")


def _check_host(headers: Headers) -> None:
    """Refuse a host that a proxy, a log or a link may take for another one."""
    for name, value in headers:
        if name == b"host":
            found = HOST.fullmatch(value)
            if found is None or not (found[1] is None or _is_ipv6(found[1].decode("ascii"))):
                raise Refusal(400, "the Host must be a name or an address, and perhaps a port")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _decoded_path(target: bytes) -> str:
    """Decode the path; refuse escapes that decode to nothing, or not to UTF-8.

    Decoders that put a replacement character in their place make different names
    look the same. The query stays encoded, but must be decodable too.
    """
    path, _, query = target.partition(b"?")
    if query.count(b"&") >= PARAMETERS_MAX:
        message = f"the query has more than {PARAMETERS_MAX} parameters"
        raise Refusal(400, message, is_url=True)
    if len(path) > PATH_BYTES_MAX and len(unquote_to_bytes(path)) > PATH_BYTES_MAX:
        raise Refusal(414, f"the path has more than {PATH_BYTES_MAX} bytes", is_url=True)
    if b"%" not in target:
        return path.decode("ascii")
    if BAD_ESCAPE.search(target) is not None:
        message = "the path or query has a '%' without two hex digits; write '%25' for it"
        raise Refusal(400, message, is_url=True)
    _strictly_decoded(query, "query")
    return _strictly_decoded(path, "path")


def _strictly_decoded(part: bytes, where: str) -> str:
    try:
        return unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError:
        message = f"the {where} is not valid percent-encoded UTF-8"
        raise Refusal(400, message, is_url=True) from None


@dataclass(slots=True)
class AnswerFraming:
    """How the end of an answer's body is marked.

    Attributes:
        bytes_left: How many bytes of the Content-Length are missing, None without one.
        chunked: Whether the body is sent in chunks.
        suppressed: Whether the answer has no body, whatever the application sends.
        close: Whether the connection ends with this answer.
    """

    bytes_left: int | None
    chunked: bool
    suppressed: bool
    close: bool

    @classmethod
    def decide(cls, head: RequestHead, status: int, headers: Headers) -> AnswerFraming:
        length: int | None = None
        close = not head.keep_alive
        encoded = False
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                encoded = True
            elif name == b"connection" and b"close" in value.lower():
                close = True
        suppressed = head.method == "HEAD" or status in (204, 304)
        if encoded:
            length = None
        unknown = length is None and not suppressed
        chunked = unknown and head.http_version == "1.1"
        return cls(length, chunked, suppressed, close or (unknown and not chunked))

    def frame(self, piece: Buffer, last: bool) -> list[Buffer]:
        """The buffers to send for one piece of the body, without copying it.

        Raises:
            ValueError: The application sends more than its Content-Length.
        """
        if self.suppressed:
            return []
        size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
        if self.chunked:
            framed: list[Buffer] = []
            if size:
                framed += [b"%x\r\n" % size, piece, b"\r\n"]
            if last:
                framed.append(b"0\r\n\r\n")
            return framed
        if self.bytes_left is not None:
            if size > self.bytes_left:
                raise ValueError(
                    f"the answer's Content-Length leaves {self.bytes_left} bytes, "
                    f"but the application sends {size}"
                )
            self.bytes_left -= size
        return [piece] if size else []

    @property
    def until_close(self) -> bool:
        """Whether the body ends where the connection does."""
        return self.bytes_left is None and not self.chunked and not self.suppressed

    @property
    def short(self) -> bool:
        """Whether the body is shorter than its Content-Length."""
        return not self.suppressed and bool(self.bytes_left)


#: The body of a refusal and its type.
Explained = tuple[str, bytes]


def in_json(refusal: Refusal) -> Explained:
    """The body of a refusal, where the application has none of its own."""
    return "application/json", json.dumps({"error": refusal.message}).encode("ascii")


def error_answer(status: int, explained: Explained, *, with_body: bool = True) -> bytes:
    """A whole answer that refuses a request and ends the connection."""
    kind, body = explained
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii")
    return head + body if with_body else head


_date_second = 0
_date_bytes = b""


def date_header() -> bytes:
    """The value of the Date header, formatted once a second."""
    global _date_second, _date_bytes
    now = int(time.time())
    if now != _date_second:
        _date_second, _date_bytes = now, format_date_time(now).encode("ascii")
    return _date_bytes

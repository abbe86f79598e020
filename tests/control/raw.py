"""A client of our own for HTTP as nobody should speak it.

Libraries refuse to send most of what a hostile client sends, and tidy up what they
receive. This one sends the bytes it is given and reads an answer by the letter of RFC
9112. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from limits import HANG_SECONDS

LINE_BYTES_MAX = 64 * 1024


class Closed(Exception):
    """The server ended the connection where an answer, or more of it, was expected."""


@dataclass
class Answer:
    """One response. ``interim`` are the statuses of the 1xx that came before it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} more than once: {found}"
        return found[0] if found else None

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A TCP connection to the server at ``url``, with TLS if that says ``https``.

    Args:
        seconds: what each single wait for the server may take.
        receive_bytes: the kernel's receive buffer, if small ones matter.
    """

    def __init__(
        self,
        url: str,
        *,
        seconds: float = HANG_SECONDS,
        receive_bytes: int | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        host, port = parts.hostname or "", parts.port or 80
        if receive_bytes is None:
            self.socket: socket.socket = socket.create_connection((host, port), seconds)
        else:
            self.socket = socket.socket()
            # Before connecting: the window is agreed upon in the handshake.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            self.socket.settimeout(seconds)
            self.socket.connect((host, port))
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=host)
        self.buffer = bytearray()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def __del__(self) -> None:
        # A test that fails leaves its connections: that is no second failure.
        with contextlib.suppress(AttributeError):
            self.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False if the server had closed before that."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Send a head, with ``Content-Length`` if there is a ``body``, and the body."""
        self.send(head(method, target, self.host, headers, body) + (body or b""))

    def exchange(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        self.request(method, target, headers, body)
        return self.answer(method)

    # --- reading --------------------------------------------------------------------

    def answer(self, method: str = "GET") -> Answer:
        """The next final response with all of its body. Raises Closed."""
        found = self.answer_head()
        found.body = self._body(found, method)
        return found

    def answer_head(self) -> Answer:
        """The head of the next final response. Raises Closed."""
        interim = []
        while True:
            found = self.next_head()
            if found.status >= 200:
                found.interim = interim
                return found
            interim.append(found.status)

    def next_head(self) -> Answer:
        """The next head, interim ones too. Raises Closed."""
        version, _, rest = self._line().partition(b" ")
        assert version in (b"HTTP/1.1", b"HTTP/1.0"), (version, rest)
        status = int(rest[:3])
        headers = []
        while line := self._line():
            name, colon, value = line.partition(b":")
            assert colon, line
            assert name == name.strip(), line
            headers.append((name.decode("ascii"), value.strip().decode("latin-1")))
        return Answer(status, headers)

    def read(self, count: int) -> bytes:
        """Exactly so many bytes of a body. Raises Closed."""
        while len(self.buffer) < count:
            self._more()
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def read_to_end(self) -> bytes:
        """All that comes until the server closes."""
        try:
            while True:
                self._more()
        except Closed:
            data = bytes(self.buffer)
            self.buffer.clear()
            return data

    def is_closed(self) -> bool:
        """Whether the server closes, without another byte, within the time for a wait."""
        return self.read_to_end() == b""

    def _more(self) -> None:
        try:
            data = self.socket.recv(1024 * 1024)
        except ConnectionResetError as error:
            raise Closed("reset") from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise Closed("ended") from error
        if not data:
            raise Closed("ended")
        self.buffer += data

    def _line(self) -> bytes:
        while True:
            end = self.buffer.find(b"\r\n")
            if end >= 0:
                line = bytes(self.buffer[:end])
                del self.buffer[: end + 2]
                return line
            assert len(self.buffer) < LINE_BYTES_MAX, "a line without end"
            self._more()

    def _body(self, found: Answer, method: str) -> bytes:
        if method == "HEAD" or found.status in (204, 304):
            return b""
        if (found.header("Transfer-Encoding") or "").lower() == "chunked":
            return b"".join(self._chunks())
        length = found.header("Content-Length")
        return self.read_to_end() if length is None else self.read(int(length))

    def _chunks(self) -> list[bytes]:
        pieces = []
        while size := int(self._line().partition(b";")[0], 16):
            pieces.append(self.read(size))
            assert self._line() == b""
        while self._line():
            pass
        return pieces


def head(
    method: str,
    target: str,
    host: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """A request's head as bytes; values may hold anything that Latin-1 can say."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


FORM_BOUNDARY = "boundary-of-the-tests"


def form_part(name: str, data: bytes, filename: str | None = None, more: str = "") -> bytes:
    """One part of a form, with the delimiter before it."""
    file = f'; filename="{filename}"' if filename is not None else ""
    start = f'--{FORM_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n'
    return f"{start}{more}\r\n".encode() + data + b"\r\n"


FORM_END = f"--{FORM_BOUNDARY}--\r\n".encode()
FORM_TYPE = f"multipart/form-data; boundary={FORM_BOUNDARY}"

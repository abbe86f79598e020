"""The access log: one line for each request, in a format that other programs read.

Text is the *combined log format* of Apache and nginx; JSON has one object a line. Both
name the client as ``trusted_proxies`` finds it, and neither the query of the request nor
that of the referring page, since either may hold a token.

The event loop only composes the line; a thread writes it. When the thread cannot keep up,
for instance since the reader of stderr has stopped, lines are dropped, and a later line
has their number.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

log = logging.getLogger("control.http")

LINES_MAX = 10_000
"""How many lines wait for the thread at most: 2 MB as a rule."""
FIELD_CHARACTERS_MAX = 1024
"""How much of a path, a referring page or a browser's name is logged."""
STOP_SECONDS = 2.0
ABORTED = 499
"""The status of a request whose connection ended before an answer, as in nginx."""

_UNSAFE = re.compile(r'["\\\x00-\x1f\x7f-\U0010ffff]')


@dataclass(frozen=True, slots=True)
class Access:
    """One request that has ended.

    Attributes:
        protocol: ``HTTP/1.1``, say.
        status: The status of the answer, 101 for a WebSocket, 0 if there was no answer.
        sent_bytes: The size of the answer's body, or of a WebSocket's messages.
        seconds: From the request's head to the end of the answer.
        request: The request's id in the other logs, or nothing.
    """

    client: str
    method: str
    target: bytes
    protocol: str
    headers: Sequence[tuple[bytes, bytes]]
    status: int
    sent_bytes: int
    seconds: float
    request: str = ""

    def header(self, name: bytes) -> str:
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return ""


Note = Callable[[Access], None]


def _without_query(text: str) -> str:
    return re.split(r"[?#]", text, maxsplit=1)[0][:FIELD_CHARACTERS_MAX]


def _combined(access: Access, now: float) -> str:
    when = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now - access.seconds))
    path = _without_query(access.target.decode("latin-1"))
    request = _quoted(f"{access.method} {path} {access.protocol}" if path else "-")
    referer = _quoted(_without_query(access.header(b"referer")) or "-")
    agent = _quoted(access.header(b"user-agent")[:FIELD_CHARACTERS_MAX] or "-")
    status = access.status or ABORTED
    return f"{access.client} - - [{when}] {request} {status} {access.sent_bytes} {referer} {agent}"


def _quoted(text: str) -> str:
    """A field in quotes, escaped as Apache does."""
    return '"' + _UNSAFE.sub(lambda found: f"\\x{min(ord(found[0]), 255):02x}", text) + '"'


def _json(access: Access, now: float) -> str:
    began = now - access.seconds
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began))
    return json.dumps(
        {
            "time": f"{moment}.{int(began % 1 * 1000):03d}Z",
            "level": "info",
            "logger": "control.access",
            "event": "request",
            "client": access.client,
            "method": access.method,
            "path": _without_query(access.target.decode("latin-1")),
            "protocol": access.protocol,
            "status": access.status or ABORTED,
            "bytes": access.sent_bytes,
            "seconds": round(access.seconds, 6),
            "referer": _without_query(access.header(b"referer")),
            "user_agent": access.header(b"user-agent")[:FIELD_CHARACTERS_MAX],
            "request": access.request,
        }
    )


FORMATS = {"text": _combined, "json": _json}


class AccessLog:
    """Lines for *stream* in one of ``FORMATS``; see :func:`open_access_log`."""

    def __init__(self, stream: TextIO, form: str) -> None:
        self._stream = stream
        self._make_line = FORMATS[form]
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self._dropped = 0

    def note(self, access: Access) -> None:
        """Log one request. Never waits, and never fails."""
        try:
            self._lines.put_nowait(self._make_line(access, time.time()))
        except queue.Full:
            self._dropped += 1

    def write(self) -> None:
        """Write lines until :meth:`stop`; for a thread."""
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                log.warning("the access log lacks %d lines: it is written too slowly", dropped)
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                self._stream.write(line + "\n")
                self._stream.flush()

    def stop(self) -> None:
        """Let :meth:`write` end, if it is not stuck."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)


@contextlib.contextmanager
def open_access_log(form: str, stream: TextIO | None = None) -> Iterator[Note]:
    """A log that is written to *stream* (default: stderr) until the block ends."""
    access_log = AccessLog(stream or sys.stderr, form)
    thread = threading.Thread(target=access_log.write, name="access log", daemon=True)
    thread.start()
    try:
        yield access_log.note
    finally:
        access_log.stop()
        thread.join(STOP_SECONDS)

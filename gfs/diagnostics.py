"""Diagnostics: request ids, events and logs.

*Request ids.* Each request of a client gets an id of 40 bits, and every message sent for
it carries the id: the upper bits of a message's ``id``, whose lower 24 count the calls
of one connection. A server takes it from the message and puts it into its own messages
to other servers. Log lines and errors name it, ten hex digits, so one ``grep`` follows a
request through all processes. A server's own work gets an id as well, at its first
message.

*Events.* Significant events (the paper, 5.3) have a name and fields besides the text:
``log.warning("…", extra=event("chunkserver_dead", server="…"))``. The text log shows the text,
the JSON log everything, one object a line.

*Rate limit.* Repair moves and deletes a thousand replicas in a second. Of repeated lines
the first ones are logged singly, then one line every ten seconds with their number
(:class:`Gathered`), so that a log grows by kilobytes, whatever the size of the cluster.

Costs 0.1 µs per message; only lines that are written are formatted.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

from gfs.errors import GfsError

REQUEST_BITS = 40
CALL_BITS = 24
REQUEST_MASK = (1 << REQUEST_BITS) - 1
CALL_MASK = (1 << CALL_BITS) - 1

#: The request that the present task works for; 0: not known.
request: ContextVar[int] = ContextVar("gfs_request", default=0)


def request_name(number: int) -> str:
    """The request id as ten hex digits."""
    return f"{number:010x}"


def request_of(message_id: int) -> int:
    """The request that a message belongs to; 0: none."""
    return message_id >> CALL_BITS & REQUEST_MASK


def message_id() -> int:
    """The id of a message that opens an exchange for the present request."""
    return request.get() << CALL_BITS


class working_for:
    """The block works for this request. A class, since that is cheaper than a generator."""

    __slots__ = ("_number", "_token")

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        self._token = request.set(self._number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        request.reset(self._token)


class asked_for(working_for):
    """As ``working_for``, for a request of this process itself: errors that leave the
    block name it.

    An async generator works for the request of the caller of its next step, so one that
    has a request of its own enters this block around each wait; never around a
    ``yield``.
    """

    __slots__ = ()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if isinstance(error, GfsError):
            error.request = request_name(self._number)


def event(name: str, **fields: object) -> dict[str, Any]:
    """The ``extra`` of a log line for a significant event."""
    return {"gfs_event": name, "gfs_fields": fields}


class TextFormatter(logging.Formatter):
    """Text, with the request in brackets at the end, if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        number = request.get()
        return f"{line} [{request_name(number)}]" if number else line


class JsonFormatter(logging.Formatter):
    """JSON, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        number = request.get()
        if number:
            line["request"] = request_name(number)
        name = getattr(record, "gfs_event", None)
        if name is not None:
            line["event"] = name
            for key, value in record.__dict__["gfs_fields"].items():
                line.setdefault(key, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


#: Events that may occur a thousand times a second. Others are always logged singly.
GATHERED = frozenset(
    {
        *(
            "replica_copied",
            "copy_failed",
            "replica_moved",
            "replicas_deleted",
            "replicas_copied",
        ),
        *("replica_believed", "replica_salvaged", "corruption_found", "corruption_repaired"),
        *("lease_granted", "lease_revoked", "version_raised", "request_slow", "request_failed"),
    }
)
#: So many lines of each kind are logged singly; then their number is logged at this
#: interval, until there is none during one.
LOGGED_SINGLY = 10
GATHERED_SECONDS = 10.0


@dataclass
class _Kind:
    """Lines of one kind, since ``began``."""

    began: float
    logged: int = 0
    counted: int = 0
    servers: Counter[str] = field(default_factory=Counter)
    last: logging.LogRecord | None = None


class Gathered:
    """Decides which lines are logged singly, and summarizes the others.

    A kind is one of ``GATHERED``, or the format string of a message that is not an event.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def takes(self, record: logging.LogRecord, now: float) -> bool:
        """Whether ``summaries`` will count it, instead of logging it singly."""
        happened = getattr(record, "gfs_event", None)
        if happened is not None and happened not in GATHERED:
            return False
        name = happened or str(record.msg)
        kind = self._kinds.get(name)
        if kind is None or (not kind.counted and now - kind.began >= GATHERED_SECONDS):
            kind = self._kinds[name] = _Kind(now)
        if kind.logged < LOGGED_SINGLY:
            kind.logged += 1
            return False
        kind.counted += 1
        kind.last = record
        server = record.__dict__.get("gfs_fields", {}).get("server")
        if server is not None:
            kind.servers[str(server)] += 1
        return True

    def summaries(self, now: float) -> Iterator[logging.LogRecord]:
        """One line for each kind with further lines."""
        for name, kind in self._kinds.items():
            if kind.last is not None:
                yield _summary(kind.last, kind.counted, now - kind.began, kind.servers)
                self._kinds[name] = _Kind(now, logged=LOGGED_SINGLY)


def _summary(
    last: logging.LogRecord, count: int, seconds: float, servers: Counter[str]
) -> logging.LogRecord:
    name = getattr(last, "gfs_event", None) or "repeated"
    fields = event(name, count=count, seconds=round(seconds, 1), servers=dict(servers))
    summary = {
        "msg": "%d more like this in %.0f s, the last: %s",
        "exc_info": None,
        "exc_text": None,
    }
    args = (count, seconds, last.getMessage())
    return logging.makeLogRecord({**last.__dict__, **fields, **summary, "args": args})


class GatheringHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream, rate-limited by :class:`Gathered`. A thread writes summaries; it
    exists only while some are due, and at the end."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._gathered = Gathered()
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if not self._gathered.takes(record, time.monotonic()):
            super().emit(record)
        elif self._timer is None:
            self._timer = threading.Timer(GATHERED_SECONDS, self._log_summaries)
            self._timer.daemon = True
            self._timer.start()

    def _log_summaries(self) -> None:
        self.acquire()
        try:
            self._timer = None
            for record in self._gathered.summaries(time.monotonic()):
                super().emit(record)
        finally:
            self.release()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._log_summaries()
        super().close()


FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def start_logging(level: str, form: str = "text") -> None:
    """Log to stderr from ``level`` on, in one of ``FORMATTERS``. With debug, without a
    rate limit."""
    debug = level == "debug"
    handler = (logging.StreamHandler if debug else GatheringHandler)(sys.stderr)
    handler.setFormatter(FORMATTERS[form]())
    logging.basicConfig(handlers=[handler], level=level.upper())
    if not debug:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request

"""What all connections of one server share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from control.http.access_log import Note
from control.http.heads import Explained, Refusal, in_json
from control.http.limits import HttpLimits

Address = tuple[str, int]
Headers = Sequence[tuple[bytes, bytes]]
Application = Callable[[dict[str, Any], Callable[[], Any], Callable[[Any], Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that all connections of one server share.

    Attributes:
        state: The state that the application's startup has left for its requests.
        stopping: Set when the server stops.
        note: Logs a request that has ended; None if there is no access log.
    """

    app: Application
    limits: HttpLimits
    state: Mapping[str, Any]
    stopping: trio.Event
    note: Note | None

    def explain(self, server: Address | None, refusal: Refusal) -> Explained:
        """The body of a refusal. The application may have its own for one of its ports."""
        explain = getattr(self.app, "explain_refusal", None)
        found = explain(server[1], refusal) if explain is not None and server else None
        return found or in_json(refusal)

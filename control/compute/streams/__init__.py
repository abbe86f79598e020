"""Compute's WebSockets: events (:mod:`.hub`), output (:mod:`.logs`) and shells
(:mod:`.terminal`), and how many of them a container may have (:mod:`.counted`)."""

from control.compute.streams.hub import EVENTS_PING_SECONDS, Hub
from control.compute.streams.logs import READERS_MAX, TEXT, Logs
from control.compute.streams.terminal import TERMINAL_PING_SECONDS, TERMINALS_MAX, Terminals

__all__ = [
    "EVENTS_PING_SECONDS",
    "READERS_MAX",
    "TERMINALS_MAX",
    "TERMINAL_PING_SECONDS",
    "TEXT",
    "Hub",
    "Logs",
    "Terminals",
]

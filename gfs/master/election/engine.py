"""What an election engine does for us, whichever it is.

It is trusted with one thing: to give the hold to one process at a time, and to nobody else before
``hold_seconds`` have passed since the last request of the holder that it answered. If it is wrong
about that, two processes try to be the master, and terms and counting let one of them
acknowledge; only reads of the other one may then be old.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class EngineAway(Exception):
    """The engine did not answer, or refused this process: what was asked may have happened."""


@dataclass(frozen=True)
class Claim:
    """What the holder shows to the others."""

    address: str
    #: When it got the hold, by its wall clock, for people.
    since_ns: int
    #: It gives the hold up to the process at this address; empty: it does not.
    offered_to: str = ""


@dataclass(frozen=True)
class View:
    """What the engine has recorded."""

    #: None: nobody has the hold.
    claim: Claim | None = None
    #: The id of the cluster, which its first master recorded; empty: there was none yet.
    cluster: str = ""
    #: The engine's own mark of this state of the hold.
    version: int = 0


class Engine(Protocol):
    """All calls raise EngineAway. The caller sets deadlines. A call that raised or was
    cancelled may have been carried out, also later."""

    #: For people.
    name: str

    async def view(self) -> View:
        """As it is now, not as some replica of the engine has it."""

    async def take(self, claim: Claim, seen: View) -> object | None:
        """Take the hold if it is as in ``seen``: with nobody, or offered to this process.
        Returns the hold; None if another process was faster."""

    async def renew(self, hold: object) -> bool:
        """Renew it; False if it is not this process's any more."""

    async def offer(self, hold: object, claim: Claim) -> None:
        """Show ``claim``, with an offer to another process. It ends as if it was not renewed."""

    async def release(self, hold: object) -> None:
        """End it now."""

    async def record(self, cluster: str) -> str:
        """Record the cluster's id for good, unless one is recorded. Returns the recorded one."""

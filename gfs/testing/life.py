"""Whether a simulated process lives, and what happens to it at its death."""

from __future__ import annotations

import errno
from typing import Protocol


class Crashed(ConnectionError):
    """A process that was killed touched the world: nothing of it happened.

    A real process just ends; here its tasks still unwind. Every call they make
    through the seam raises this, whatever kind of call it is: a ConnectionError
    to the network code, an OSError to the disk code.
    """

    def __init__(self, name: str) -> None:
        super().__init__(errno.EIO, f"{name} was killed")


class Mortal(Protocol):
    """Something a process holds that the kernel takes back at its death."""

    def die(self) -> None: ...


class Life:
    """One incarnation of a simulated process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self._holds: dict[Mortal, None] = {}

    def check(self) -> None:
        """Raise Crashed in a dead process."""
        if not self.alive:
            raise Crashed(self.name)

    def hold(self, thing: Mortal) -> None:
        self._holds[thing] = None

    def let_go(self, thing: Mortal) -> None:
        self._holds.pop(thing, None)

    def kill(self) -> None:
        """At once: sockets break, open files close, no call does anything more."""
        self.alive = False
        holds, self._holds = self._holds, {}
        for thing in holds:
            thing.die()

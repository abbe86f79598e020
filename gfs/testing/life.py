"""Whether a simulated process lives, and what happens to it at its death."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from gfs.testing.inode import Hang


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


class RunningCall(Protocol):
    """See :class:`gfs.testing.threads.Call`."""

    late: float

    def stop(self, seconds: float) -> None: ...

    def meets(self, hang: Hang, kind: str, chance: random.Random) -> None: ...


class BlockingCalls(Protocol):
    """See :class:`gfs.testing.threads.Threads`."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any: ...


class Life:
    """One incarnation of a simulated process."""

    #: Whether disks that fail do so for it.
    meets_failures = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        #: The blocking call that runs now, and who makes them; see gfs.testing.threads.
        self.call: RunningCall | None = None
        self.threads: BlockingCalls | None = None
        #: Whether a call to a file that the loop's thread makes is an error; and those.
        self.guards_loop = False
        self.wrongs: list[BaseException] = []
        self._holds: dict[Mortal, None] = {}
        #: What ends as well when nobody refers to it any more.
        self._holds_weakly: WeakKeyDictionary[Mortal, None] = WeakKeyDictionary()
        self._fuse = 0
        self._when_burnt: Callable[[], None] | None = None

    def light(self, calls: int, when_burnt: Callable[[], None] | None = None) -> None:
        """Die instead of the ``calls``-th disk call from now that changes something: in the
        middle of what takes no time here, a write of several parts for example. 0: do
        not, after all."""
        self._fuse, self._when_burnt = calls, when_burnt

    def burn(self) -> None:
        """A disk call that changes something is about to be made."""
        if self._fuse and self.alive:
            self._fuse -= 1
            if not self._fuse and self._when_burnt is not None:
                self._when_burnt()

    def check(self) -> None:
        """Raise Crashed in a dead process."""
        if not self.alive:
            raise Crashed(self.name)

    def hold(self, thing: Mortal, weakly: bool = False) -> None:
        (self._holds_weakly if weakly else self._holds)[thing] = None

    def let_go(self, thing: Mortal) -> None:
        self._holds.pop(thing, None)
        self._holds_weakly.pop(thing, None)

    def kill(self) -> None:
        """At once: sockets break, open files close, no call does anything more."""
        self.alive = False
        holds = [*self._holds, *self._holds_weakly]
        self._holds.clear()
        self._holds_weakly.clear()
        for thing in holds:
            thing.die()


class Onlooker(Life):
    """Nobody's: of a test that looks at what is on a disk. No disk fails for it."""

    meets_failures = False

    def __init__(self) -> None:
        super().__init__("who looks")

"""Whether a simulated process lives, and what happens when it is killed."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from gfs.testing.inode import Hang


class Crashed(ConnectionError):
    """A call of a process that was killed: it had no effect.

    A real process just ends; here its tasks still unwind. Every call they make
    through the seam raises this, whatever kind of call it is: a ConnectionError
    to the network code, an OSError to the disk code.
    """

    def __init__(self, name: str) -> None:
        super().__init__(errno.EIO, f"{name} was killed")


class Mortal(Protocol):
    """Something of a process that the kernel closes when it ends."""

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

    #: Whether failing disks fail for it.
    meets_failures = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        #: The blocking call that runs now, and the threads that make them; see gfs.testing.threads.
        self.call: RunningCall | None = None
        self.threads: BlockingCalls | None = None
        #: Whether a file call in the loop's thread is an error; and the errors so far.
        self.guards_loop = False
        self.wrongs: list[BaseException] = []
        self._holds: dict[Mortal, None] = {}
        #: What the kernel closes when the process ends, unless it is unreferenced already.
        self._holds_weakly: WeakKeyDictionary[Mortal, None] = WeakKeyDictionary()
        self._fuse = 0
        self._when_burnt: Callable[[], None] | None = None

    def light(self, calls: int, when_burnt: Callable[[], None] | None = None) -> None:
        """Kill the process in place of the ``calls``-th disk call from now on that
        changes something: in the middle of an operation that takes no virtual time,
        such as a write of several parts. 0 cancels this."""
        self._fuse, self._when_burnt = calls, when_burnt

    def burn(self) -> None:
        """Called before each disk call that changes something."""
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
        """Kill the process at once: sockets break, open files close, further calls have
        no effect."""
        self.alive = False
        holds = [*self._holds, *self._holds_weakly]
        self._holds.clear()
        self._holds_weakly.clear()
        for thing in holds:
            thing.die()


class Onlooker(Life):
    """The life of a test that inspects a disk: it belongs to no process, and no disk
    fails for it."""

    meets_failures = False

    def __init__(self) -> None:
        super().__init__("who looks")

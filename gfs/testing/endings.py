"""How simulated processes end, and which endings are bugs."""

from __future__ import annotations

import logging

import trio

from gfs.errors import DiskFailed, StartupError
from gfs.testing.life import Crashed

#: The errors of a process that cannot go on.
ENDINGS = (StartupError, DiskFailed)


class BugCatcher(logging.Handler):
    """Collects the bugs that processes log: in production they continue, a test must fail."""

    def __init__(self, supervised: bool) -> None:
        super().__init__(logging.ERROR)
        self.bugs: list[BaseException] = []
        self._supervised = supervised

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if self._supervised and isinstance(error, ENDINGS):
            return
        if error is not None and not only_crashed(error):
            error.add_note(f"logged by {record.name}: {record.getMessage()}")
            self.bugs.append(error)


def only_crashed(error: BaseException) -> bool:
    """Whether ``error`` only says that the process was killed."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_crashed(each) for each in error.exceptions)
    return isinstance(error, (Crashed, trio.Cancelled)) or isinstance(error.__cause__, Crashed)


def only_ends(error: BaseException) -> bool:
    """Whether a process ended with one of the errors that say that it cannot go on."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_ends(each) for each in error.exceptions)
    return isinstance(error, ENDINGS)


def has_cancelled(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)


def without_ordinary(error: BaseException) -> BaseException | None:
    """``error`` without plain exceptions: cancellations and interrupts remain."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Exception)[1]
    return None if isinstance(error, Exception) else error


def plain(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))

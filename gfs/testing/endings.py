"""How simulated processes end, and which of it is a bug."""

from __future__ import annotations

import logging

import trio

from gfs.errors import DiskFailed, StartupError
from gfs.testing.life import Crashed

#: What a process ends with when it cannot go on where it is.
ENDINGS = (StartupError, DiskFailed)


class BugCatcher(logging.Handler):
    """Collects what the processes log as bugs: production goes on, a test must not."""

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
    """Whether ``error`` is nothing but a killed process noticing that it is."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_crashed(each) for each in error.exceptions)
    return isinstance(error, (Crashed, trio.Cancelled)) or isinstance(error.__cause__, Crashed)


def only_ends(error: BaseException) -> bool:
    """Whether a process ended as it should when it cannot go on."""
    if isinstance(error, BaseExceptionGroup):
        return all(only_ends(each) for each in error.exceptions)
    return isinstance(error, ENDINGS)


def has_cancelled(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)


def without_ordinary(error: BaseException) -> BaseException | None:
    """What is left of ``error`` without plain exceptions: cancellation, interrupts."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Exception)[1]
    return None if isinstance(error, Exception) else error


def plain(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))

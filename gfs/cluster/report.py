"""The report: a started process states, once, that it serves or why it cannot.

One line of JSON on an inherited pipe: ``{"pid": 7, …}`` with facts for the process
that started it, or ``{"error": "…", "exit_code": 2}``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import trio

from gfs.errors import GfsError, StartupError
from gfs.failures import sentence

#: A longer report is invalid.
REPORT_BYTES_MAX = 64 * 1024


class Reporter:
    """The child's end. ``descriptor`` None: no process waits for a report."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.is_pending = True
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    @property
    def is_awaited(self) -> bool:
        """Whether a process still waits for the report."""
        return self._descriptor is not None

    def serving(self, facts: dict[str, Any]) -> None:
        self._send({"pid": os.getpid(), **facts})

    def failed(self, message: str, exit_code: int) -> None:
        self._send({"error": message, "exit_code": exit_code})

    def _send(self, facts: dict[str, Any]) -> None:
        """Send the first report; later ones have no reader and go nowhere."""
        self.is_pending = False
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        # If the parent is gone, the lifeline ends this process.
        with contextlib.suppress(OSError):
            os.write(descriptor, json.dumps(facts).encode() + b"\n")
        os.close(descriptor)


@contextlib.contextmanager
def reported(descriptor: int | None) -> Iterator[None]:
    """Report a SettingsError of the body, which runs before the process does, to the
    waiting process."""
    try:
        yield
    except GfsError as error:
        Reporter(descriptor).failed(sentence(error), error.exit_code)
        raise


async def receive_report(descriptor: int) -> dict[str, Any] | None:
    """The parent's end: the report, or None if the child ended without one.

    Takes over ``descriptor``. Cancellation only ends the waiting.
    """
    data = bytearray()
    async with trio.lowlevel.FdStream(descriptor) as stream:
        while not data.endswith(b"\n") and len(data) < REPORT_BYTES_MAX:
            some = await stream.receive_some()
            if not some:
                return None
            data += some
    try:
        facts = json.loads(data)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def failure(facts: dict[str, Any]) -> GfsError | None:
    """The error in a report, if there is one."""
    if "error" not in facts:
        return None
    kind = StartupError if facts.get("exit_code") == StartupError.exit_code else GfsError
    return kind(str(facts["error"]))

"""The watch on the event loop of each control plane that tests start: a test during which a
request held it fails.

The control plane itself logs each step of a task that computes for long, by the CPU time of its
thread (``control.app.loop``), so a busy machine adds little. Of a process the log is read, of an
application in the test's own process its logger. The client of a test may compute for long.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

#: The longest step that a request may cause.
HOLD_SECONDS = 0.050
_LINE = re.compile(r"(?P<what>.*) held the event loop for (?P<ms>[0-9]+) ms, until (?P<place>.*)")


class Holds(logging.Handler):
    """What was logged since the last look, by this process and by others."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[str] = []
        #: How much was read of each log.
        self._read: dict[Path, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._add(record.getMessage())

    def _add(self, line: str) -> None:
        found = _LINE.search(line)
        if found is None or int(found["ms"]) < HOLD_SECONDS * 1000:
            return
        if "<test " not in found["what"] and "tests/" not in found["place"]:
            self._found.append(line.strip())

    def read(self, log: Path) -> None:
        """Read what a process has logged since."""
        if not log.exists():
            return
        with log.open("rb") as file:
            # A log that was begun anew is shorter.
            start = self._read.get(log, 0)
            file.seek(start if start <= log.stat().st_size else 0)
            lines = file.read()
            self._read[log] = file.tell()
        for line in lines.decode(errors="replace").splitlines():
            self._add(line)

    def take(self) -> list[str]:
        found, self._found = self._found, []
        return found


holds = Holds()
logging.getLogger("control.app.loop").addHandler(holds)

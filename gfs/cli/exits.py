"""How a subcommand ends early without an error of its own."""

from __future__ import annotations

import contextlib
import os
import sys

#: Also of ``fsck`` and ``scrub`` that found damage.
EXIT_FAILED = 1
#: Of ``get --partial`` that left holes.
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130
EXIT_STDOUT_CLOSED = 141


class StdoutClosed(Exception):
    """The reader of stdout is gone; what is left to say interests nobody."""


class Interrupted(Exception):
    """A signal asked for the end, and everything was put away."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number


class Failed(Exception):
    """The command failed and has told so already."""

    def __init__(self, exit_code: int = EXIT_FAILED) -> None:
        super().__init__()
        self.exit_code = exit_code


def silence_stdout() -> None:
    """Keep the interpreter's last flush of a closed stdout from complaining."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # not a real stdout


def complain(text: str) -> None:
    """One line on stderr. When nobody listens, the exit code still tells."""
    with contextlib.suppress(OSError, ValueError):
        print(f"gfs: {text}", file=sys.stderr, flush=True)

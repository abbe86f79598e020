"""Exceptions that end a subcommand early without an error message of their own."""

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
    """The reader of stdout is gone, so the rest of the output is not written."""


class Interrupted(Exception):
    """A signal ended the command, after its clean-up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number


class Failed(Exception):
    """The command failed and has already printed why."""

    def __init__(self, exit_code: int = EXIT_FAILED) -> None:
        super().__init__()
        self.exit_code = exit_code


def silence_stdout() -> None:
    """Keep the interpreter's last flush of a closed stdout from failing."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # not a real stdout


def complain(text: str) -> None:
    """Print one line on stderr. If that is closed, the exit code remains."""
    with contextlib.suppress(OSError, ValueError):
        print(f"gfs: {text}", file=sys.stderr, flush=True)

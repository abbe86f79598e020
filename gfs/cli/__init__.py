"""The `gfs` command: the file system for people and scripts.

Rules that hold for every subcommand:

* Results go to stdout, everything else to stderr. With ``--json``
  stdout carries exactly one JSON document.
* A failure is one line, ``gfs: …``, and the exit code of its error class: 2
  for invalid settings and failed starts, 3 when no master answers, 1 for the rest, 130
  after Ctrl-C, 141 when stdout's reader is gone (docs/troubleshooting.md has the table).
  ``GFS_DEBUG=1`` adds the traceback.
* No partial file is left under a final name, locally or in the cluster.
* Memory does not grow with the number or the size of files.

A subcommand's module imports only click and the light parts of ``gfs`` at its
top, so that ``gfs --help`` and tab completion stay quick; ``tests/unit/
test_cli_start.py`` checks it.

Subcommands of other packages (``gfs control``) use :mod:`.options`, :mod:`.exits` and
:mod:`.output`, and the REST API shows the warnings of :mod:`.health`;
:mod:`.command` refuses two of one name.
"""

from __future__ import annotations

import sys

__all__ = ["command", "exits", "health", "main", "options", "output"]


def main() -> None:
    """The console script."""
    try:
        from gfs.cli.command import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("click", "rich", "lmdb"):
            raise
        sys.exit(
            f"gfs: the command needs {error.name}: pip install 'gfs-control-plane[server]' "
            "(the client library alone does not need it)"
        )
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))

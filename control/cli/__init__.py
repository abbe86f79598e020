"""The command ``gfs control``, found by the entry-point group ``gfs.commands``.

:mod:`.commands` reads the command line; :mod:`.serving` runs the processes that serve;
:mod:`.reset_password` and :mod:`.quotas` change the state without a server.
"""

from __future__ import annotations

from control.cli.commands import control

__all__ = ["control"]

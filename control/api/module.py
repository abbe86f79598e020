"""What a control-plane module is. How to write one: ``docs/modules.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import trio
from werkzeug.routing import BaseConverter

from control.api.route import Route
from control.api.runtime import Contribution, Control
from gfs.config import Settings, load


class Module(Contribution):
    """Base of all modules. The process makes one object of each module that it serves,
    before the records are open: what ``__init__`` needs is ``control.settings`` and the
    like. ``control.records`` is there in :meth:`run` and in handlers."""

    #: One line for people.
    summary: ClassVar[str] = ""
    #: Kinds of path parameters of its own, by the name they have in ``{name:kind}``.
    converters: ClassVar[Mapping[str, type[BaseConverter]]] = {}
    #: Its settings: table ``[name]`` of the settings file and ``GFS_<NAME>_*``.
    settings_kind: ClassVar[type[Settings]] = Settings
    settings: Settings

    def __init__(self, control: Control) -> None:
        self.control = control
        self.settings = load(self.settings_kind, self.name, file=control.config)

    def routes(self) -> Sequence[Route]:
        """What it serves. Called once."""
        return ()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Background work, for as long as the process serves.

        Call ``task_status.started()`` when requests can be taken. It may return
        when nothing is left to do; an exception ends the process; cancelled, it
        cleans up. Wrap in a loop what may fail and should be tried again.
        """
        task_status.started()

    async def check_ready(self) -> None:
        """Raise if something it depends on does not answer (``/readyz``)."""

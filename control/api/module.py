"""The base of modules of the control plane; ``docs/modules.md`` shows how to write one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import trio
from quart import Response

from control.api.call import Call
from control.api.route import Route
from control.api.runtime import Contribution, Control
from control.http import Explained, Refusal, StreamingRequest
from gfs.config import Settings, load


class Module(Contribution):
    """Base of all modules. The process creates one object of each module that it serves,
    before the records are open: ``__init__`` may use ``control.settings`` and the like.
    ``control.records`` exists only in :meth:`run` and in handlers."""

    #: One line that describes it.
    summary: ClassVar[str] = ""
    #: Its own kinds of path parameters: their name in ``{name:kind}`` -> a regular
    #: expression (without groups) for their values.
    parameter_kinds: ClassVar[Mapping[str, str]] = {}
    #: The name of a port of its own, ``s3`` for instance; requests there go to :meth:`serve`.
    port: ClassVar[str] = ""
    #: Its settings: table ``[name]`` of the settings file and ``GFS_<NAME>_*``.
    settings_kind: ClassVar[type[Settings]] = Settings
    settings: Settings

    def __init__(self, control: Control) -> None:
        self.control = control
        self.settings = load(self.settings_kind, self.name, file=control.config)

    def routes(self) -> Sequence[Route]:
        """The routes that it serves. Called once."""
        return ()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Background work, for as long as the process serves.

        Call ``task_status.started()`` when requests can be served, soon: all modules
        together have 50 s. It may return when it has nothing left to do; an exception ends
        the process; when it is cancelled it must clean up within seconds. Work that may
        fail and should be tried again belongs in a loop.
        """
        task_status.started()

    async def serve(self, request: StreamingRequest, watch: Callable[[Call], None]) -> Response:
        """Answer a request that came to the module's own port, with its own errors; others are
        answered as those of routes are. It waits for ``control.fresh()`` before it reads records,
        so that this failure, too, is answered in its form. ``watch`` must be given the call as soon
        as its credential is verified: the request ends when that one does."""
        raise NotImplementedError

    def explain_refusal(self, refusal: Refusal) -> Explained | None:
        """The body of an answer of the server itself, at the module's own port, to what is no
        request, or none any more; None: as the REST API has it. It is not for modules of third
        parties."""
        return None

    async def check_ready(self) -> None:
        """Raise if something it depends on does not answer (``/readyz``). Called once a second
        at most, however many ask; it has 3 s.

        The text of an ApiError, such as Unavailable, is in the answer; that of any other
        exception only in the log.
        """

"""What a control-plane module is, and how modules are found.

A module is a subclass of :class:`Module`: its name, the scopes and rows it
defines, its routes, background tasks, and what it depends on. ``auth`` and
``storage`` are modules like any third party's; all are found by the entry-point
group ``gfs.control.modules``. In a package of your own::

    [project.entry-points."gfs.control.modules"]
    greetings = "greetings:Greetings"

    class Greetings(Module):
        name = "greetings"
        scopes = {"greetings": {"cards": frozenset({"read"})}}

        def routes(self):
            return [Route("GET", "/greetings/{who}", self.greet,
                          scoped("greetings", "cards", "read"), "Greet somebody", answer=Card)]

        async def greet(self, call: Call) -> Card:
            return Card(text=f"Hello {call.params['who']}")

``gfs control --modules auth,greetings`` then serves both. Several processes may
serve different modules from the same state: they share the records.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import trio
from werkzeug.routing import BaseConverter

from control.identity.access import Need
from control.identity.scopes import ScopeTable
from control.records import Schema, Txn
from gfs.config import Settings, load
from gfs.errors import StartupError

if TYPE_CHECKING:
    from control.api.runtime import Control

GROUP = "gfs.control.modules"

Handler = Callable[..., Awaitable[Any]]
#: Part of a transaction that deletes the user of this id.
UserDeletion = Callable[[Txn, str], None]
#: What the user of this id has, by the names of control.quota.Limits.
UsageOf = Callable[[Txn, str], dict[str, int]]


@dataclass(frozen=True)
class Content:
    """A body or an answer that is not JSON, for the documentation.

    ``fields`` are the parts of a form; without any the content is raw bytes.
    """

    type: str
    description: str = ""
    fields: Sequence[str] = ()


@dataclass(frozen=True)
class Upgrade:
    """How a ``GET`` route goes on as a WebSocket, if that is asked for.

    Args:
        handler: ``async (call, socket)``. What it raises before ``socket.accept()`` is
            answered in JSON, as of any request; when it returns the WebSocket is
            closed with 1000. It is cancelled when the client leaves, and when the
            credential has ended (the WebSocket is closed with 4401) or may no longer do
            this (4403): see :mod:`control.app.watch`.
        sends: what the client gets, for the documentation.
        takes: what the client may send. If nothing, what it sends is dropped.
        ping_seconds: how often the client is pinged.
    """

    handler: Handler
    sends: str
    takes: str = ""
    ping_seconds: float = 20.0


@dataclass(frozen=True)
class Route:
    """One method on one path, and everything that is to be known about it.

    The documentation is made of these, and requests are checked by them:
    nothing else says what a route takes.

    Args:
        method: ``GET`` (``HEAD`` comes with it), ``POST`` …
        path: with parameters as ``{name}``; ``{name:path}`` spans slashes.
        handler: ``async (call)``, or ``async (call, body)`` if ``body`` is given. It
            returns what ``answer`` says, or a Quart response.
        need: what the credential must allow. There is no default.
        query: a Struct of the query parameters; ``call.query(Struct)`` gives it.
        headers: request headers that matter, with what they are for.
        body: a Struct (JSON), or a :class:`Content` that the handler reads itself.
        answer: the JSON type of the answer, or a :class:`Content`.
        errors: statuses besides those that follow from the rest.
        others: further successful statuses, with what they mean.
        upgrade: the same as a WebSocket. For one that is nothing else the handler is
            :func:`control.api.call.upgrade_only`.
    """

    method: str
    path: str
    handler: Handler
    need: Need
    summary: str
    query: type[msgspec.Struct] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: type[msgspec.Struct] | Content | None = None
    answer: Any = None
    errors: Sequence[int] = ()
    others: dict[int, str] = field(default_factory=dict)
    description: str = ""
    tag: str = ""
    upgrade: Upgrade | None = None


class Module:
    """Base of all modules. One object per process; made before the records are
    open, so ``__init__`` only keeps ``control`` and reads the settings."""

    name: ClassVar[str]
    #: One line for people.
    summary: ClassVar[str] = ""
    #: The scopes it defines; tokens with them can be made wherever it is installed.
    scopes: ClassVar[ScopeTable] = {}
    #: Its rows. Opened wherever it is installed.
    schemas: ClassVar[Sequence[Schema]] = ()
    #: Kinds of path parameters of its own, by the name they have in ``{name:kind}``.
    converters: ClassVar[Mapping[str, type[BaseConverter]]] = {}
    #: Its settings: table ``[name]`` of the settings file and ``GFS_<NAME>_*``.
    settings_kind: ClassVar[type[Settings]] = Settings
    settings: Settings
    #: What a user's deletion does to its rows, in the same transaction.
    on_user_deleted: ClassVar[UserDeletion | None] = None
    #: What a user has of that for which there are quotas, as far as its rows tell.
    usage: ClassVar[UsageOf | None] = None

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


def discover() -> dict[str, type[Module]]:
    """Every installed module by its name. Raises StartupError for a broken one."""
    found: dict[str, type[Module]] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            kind = point.load()
        except Exception as error:
            raise StartupError(
                f"control-plane module {point.name!r} ({point.value}) cannot be loaded: {error}"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Module)) or kind.name != point.name:
            raise StartupError(f"{point.value} is not a control-plane module named {point.name!r}")
        found[point.name] = kind
    return found


def choose(names: Iterable[str], installed: dict[str, type[Module]]) -> list[type[Module]]:
    """The modules of these names; all that are installed if there are none."""
    wanted = list(dict.fromkeys(names)) or sorted(installed)
    for name in wanted:
        if name not in installed:
            known = ", ".join(sorted(installed)) or "none"
            raise StartupError(f"no control-plane module {name!r} is installed, only: {known}")
    return [installed[name] for name in wanted]

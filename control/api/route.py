"""The routes of a module: one :class:`Route` for each method on each path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar, Unpack, overload

import msgspec
from quart import Response

from control.api.call import Call
from control.errors import UpgradeRequired
from control.http import Socket
from control.identity.access import Need

BodyT = TypeVar("BodyT", bound=msgspec.Struct)
AnswerT = TypeVar("AnswerT")

#: The module of the routes of health, metrics and documentation.
SYSTEM = "system"


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
    """How a ``GET`` route serves a request for a WebSocket.

    Args:
        handler: ``async (call, socket)``. An error before ``socket.accept()`` is
            answered in JSON, as for any request; when it returns, the WebSocket is
            closed with 1000. It is cancelled when the client leaves, and when the
            credential has ended (the WebSocket is closed with 4401) or may no longer do
            this (4403): see :mod:`control.app.watch`.
        sends: what the server sends, for the documentation.
        takes: what the client may send. If this is empty, its messages are dropped.
        ping_seconds: how often the client is pinged.
    """

    handler: Callable[[Call, Socket], Awaitable[None]]
    sends: str
    takes: str = ""
    ping_seconds: float = 20.0


@dataclass(frozen=True)
class _Declaration:
    """The fields of a :class:`Route`, whose types depend on one another there."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
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


class _Others(TypedDict, total=False):
    """The fields of a route that its handler does not depend on."""

    query: type[msgspec.Struct] | None
    headers: dict[str, str]
    errors: Sequence[int]
    others: dict[int, str]
    description: str
    tag: str
    upgrade: Upgrade | None


class Route(_Declaration):
    """One method on one path, with everything that is known about it.

    The documentation is generated from routes, and requests are checked against them:
    nothing else defines what a route accepts.

    Args:
        method: ``GET`` (``HEAD`` comes with it), ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
        path: with parameters as ``{name}``; ``{name:path}`` spans slashes, ``{name:int}`` is
            digits, and a module can define further kinds.
        handler: ``async (call)``, or ``async (call, body)`` if ``body`` is given. It
            returns an object of the type ``answer``, or a Quart response.
        need: what the credential must allow. There is no default.
        query: a Struct of the query parameters; ``call.query(Struct)`` returns it.
        headers: request headers that the handler uses, with their purpose.
        body: a Struct (JSON), or a :class:`Content` that the handler reads itself.
        answer: the JSON type of the answer, or a :class:`Content`.
        errors: statuses besides those that follow from the rest.
        others: further successful statuses, with what they mean.
        upgrade: how it serves WebSockets. The handler of a route that serves nothing else
            is :func:`upgrade_only`.

    mypy checks the handler against ``body`` and ``answer``.
    """

    # The types of handlers: with or without a body, and with an answer that becomes JSON
    # or with a response of their own.
    @overload
    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[[Call, BodyT], Awaitable[AnswerT | Response]],
        need: Need,
        summary: str,
        *,
        body: type[BodyT],
        answer: type[AnswerT],
        **others: Unpack[_Others],
    ) -> None: ...
    @overload
    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[[Call, BodyT], Awaitable[Response]],
        need: Need,
        summary: str,
        *,
        body: type[BodyT],
        answer: Content | None = None,
        **others: Unpack[_Others],
    ) -> None: ...
    @overload
    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[[Call], Awaitable[AnswerT | Response]],
        need: Need,
        summary: str,
        *,
        body: Content | None = None,
        answer: type[AnswerT],
        **others: Unpack[_Others],
    ) -> None: ...
    @overload
    def __init__(
        self,
        method: str,
        path: str,
        handler: Callable[[Call], Awaitable[Response]],
        need: Need,
        summary: str,
        *,
        body: Content | None = None,
        answer: Content | None = None,
        **others: Unpack[_Others],
    ) -> None: ...
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)


async def upgrade_only(call: Call) -> Response:
    """The handler of a route that serves only WebSockets."""
    raise UpgradeRequired

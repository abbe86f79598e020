"""``build_app``: any subset of modules as one ASGI application.

A request goes one way: the router finds its :class:`Route`; the credential that
came with it is verified; :func:`control.identity.access.decide` is asked whether
it may; the body is decoded if it is JSON, and the credential asked for again, since
that may take a minute; the handler runs; its answer, or its error, becomes the
response. Credentials and users are changed, and containers made, in a transaction that
asks once more (:meth:`Call.write`). Everything that all routes have in common is here
and nowhere else: errors as JSON, CORS, ``HEAD``, health and metrics.

Quart's request context is not pushed: handlers get a :class:`Call`, and a small
request costs a fifth less without it. Hooks of Quart extensions do not run.
"""

from __future__ import annotations

import functools
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import trio
from quart import Response
from quart.wrappers import Request
from quart_trio import QuartTrio
from werkzeug.routing import Rule
from werkzeug.wrappers import Response as WerkzeugResponse

from control.api import (
    Call,
    Content,
    Control,
    Module,
    Route,
    Upgrade,
    json_response,
)
from control.api.call import ENDED, scope_name
from control.api.installed import OURS, SYSTEM, check_clashes, choose, clash, discover, package_of
from control.app.cors import Cors
from control.app.loop import Loop
from control.app.watch import Watch
from control.documentation import documentation_routes
from control.errors import ApiError, BadRequest, Forbidden, Unauthorized, explain
from control.http import (
    HttpConnection,
    Receive,
    Send,
    Socket,
    SocketClosed,
    SocketConnection,
    StreamingRequest,
)
from control.http.socket import CLOSE_SECONDS, NORMAL, OUR_FAULT, REFUSED
from control.identity.access import PUBLIC, Need, Principal, decide
from control.metrics import CONTENT_TYPE
from control.records import RecordsFailed
from control.settings import ControlSettings
from gfs.cluster.failures import EXPECTED, leaves, the_one
from gfs.config import default_state_directory
from gfs.diagnostics import REQUEST_BITS, request_name
from gfs.diagnostics import request as current_request
from gfs.errors import GfsError

log = logging.getLogger(__name__)

#: A dependency that does not answer within this time is not ready.
READY_SECONDS = 3.0
SWEEP_SECONDS = 10.0
#: RFC 6455, 5.5: a control frame carries 125 bytes, two of them for the code.
CLOSE_REASON_BYTES_MAX = 123

_parameter = re.compile(r"\{(\w+)(?::(\w+))?\}")


def build_app(
    modules: Sequence[str | type[Module]] = (),
    settings: ControlSettings | None = None,
    *,
    state: Path | None = None,
    master: str | None = None,
    key: bytes | Path | None = None,
    tls: Path | None = None,
    config: Path | None = None,
) -> ControlApp:
    """An ASGI app (Quart on Trio) that serves ``modules``.

    Args:
        modules: names of installed modules, or classes; none means all installed. A class
            takes the place of the installed module that it is, or inherits from.
        settings: see :class:`ControlSettings`.
        state: the cluster's state directory (default: as ``gfs up``); the records
            are below it.
        master: ``HOST:PORT`` of the master, if the state does not have it.
        key: the cluster key or its file, if it is not in the state directory.
        tls: the directory with what TLS takes, if that is not there either.
        config: a TOML file; its table ``[client]`` is for the file system's client.

    Raises StartupError for a module that is not installed, and for two that take the same
    name for a thing (:mod:`control.api.installed`). The records are opened when the app
    starts to serve.
    """
    installed = discover()
    named = [name for name in modules if isinstance(name, str)]
    given = [kind for kind in modules if not isinstance(kind, str)]
    chosen = choose(named, installed) if named or not given else []
    others = [kind for kind in installed.values() if not any(issubclass(g, kind) for g in given)]
    known = [*others, *given]
    check_clashes(known)
    control = Control(
        settings or ControlSettings(),
        state or default_state_directory(),
        known,
        master=master,
        key=key,
        tls=tls,
        config=config,
    )
    return ControlApp(control, [kind(control) for kind in [*chosen, *given]])


class Connection(HttpConnection):
    """A request, whose credential is watched until all of its answer is sent."""

    async def __call__(self, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(receive, send)
        finally:
            cast(ControlApp, self.app).watch.forget(id(self.scope))


class ControlApp(QuartTrio):
    """See :func:`build_app`. ``table`` holds every route it serves, with the name
    of the module it is of."""

    asgi_http_class = Connection  # type: ignore[assignment]
    asgi_websocket_class = SocketConnection  # type: ignore[assignment]
    request_class = StreamingRequest

    def __init__(self, control: Control, modules: Sequence[Module]) -> None:
        super().__init__("control", static_folder=None)
        self.control = control
        self.modules = list(modules)
        self.metrics = control.metrics
        self.table: list[tuple[str, Route]] = []
        self._failed = trio.Event()
        self.watch = Watch(self._ask_again)
        self.loop = Loop(self.metrics)
        self._cors = Cors(control.settings.origin_list)
        # Bodies of any length, for any time: the server ends what stalls, and
        # every handler bounds what it keeps.
        self.config.update(
            MAX_CONTENT_LENGTH=None,
            BODY_TIMEOUT=None,
            RESPONSE_TIMEOUT=None,
            BACKGROUND_TASK_SHUTDOWN_TIMEOUT=None,
        )
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        for module in modules:
            self.url_map.converters.update(module.converters)
            for route in module.routes():
                self._add(module.name, route)
        summaries = {module.name: module.summary for module in modules}
        documentation = documentation_routes(self.table, summaries, self.url_map.converters)
        for route in [*self._own_routes(), *documentation]:
            self._add(SYSTEM, route)
        self._router = self.url_map.bind("")
        self.before_serving(self._start)

    # --- life ---------------------------------------------------------------------

    async def _start(self) -> None:
        await self.nursery.start(self._live)

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Records and background tasks, until the server's nursery is cancelled."""
        with self.control.opened():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.control.credentials.upkeep)
                nursery.start_soon(self.watch.run)
                nursery.start_soon(self._sweep)
                nursery.start_soon(self._end_when_failed)
                for module in self.modules:
                    await nursery.start(module.run)
                task_status.started()
                with self.loop.watched():
                    await trio.sleep_forever()

    async def _sweep(self) -> None:
        """Remove volatile facts that have expired."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            try:
                for facts in (self.control.volatile, self.control.logins):
                    await facts.sweep_all(time.time())
            except (GfsError, OSError) as error:
                # A full disk, say. These facts may be lost, so the process goes on.
                log.warning("expired shared facts could not be removed: %s", error)

    async def _end_when_failed(self) -> None:
        """A process that no longer knows what is on its disk ends; started again, it
        finds every acknowledged change."""
        await self._failed.wait()
        raise RecordsFailed("the records cannot be used any more: see above")

    def log_exception(self, *arguments: Any, **named: Any) -> None:
        """Log what keeps it from starting in one line, bugs with their traceback.

        Quart 0.23 gives its context before what was caught, 0.22 does not.
        """
        if not isinstance(the_one(arguments[-1][1]), EXPECTED):
            super().log_exception(*arguments, **named)

    # --- routes -------------------------------------------------------------------

    def _add(self, module: str, route: Route) -> None:
        for owner, other in self.table:
            if (other.method, _shape(other.path)) == (route.method, _shape(route.path)):
                packages = {each.name: package_of(type(each)) for each in self.modules}
                raise clash(
                    f"the route {route.method} {route.path}",
                    *(packages.get(name, OURS) for name in (owner, module)),
                )
        rule = _parameter.sub(_werkzeug_parameter, route.path)
        self.url_map.add(Rule(rule, methods=[route.method], endpoint=str(len(self.table))))
        self.table.append((module, route))

    def _own_routes(self) -> list[Route]:
        status = dict[str, str]
        return [
            Route("GET", "/healthz", self._health, PUBLIC, "The process is up", answer=status),
            Route(
                "GET",
                "/readyz",
                self._ready,
                PUBLIC,
                "Everything it depends on answers",
                answer=status,
                errors=[503],
            ),
            Route(
                "GET",
                "/metrics",
                self._metrics,
                PUBLIC,
                "Counters of this process, for Prometheus",
                answer=Content("text/plain"),
            ),
        ]

    async def _health(self, call: Call) -> dict[str, str]:
        return {"status": "ok"}

    async def _ready(self, call: Call) -> Response | dict[str, str]:
        failed: dict[str, str] = {}

        async def check(module: Module) -> None:
            try:
                with trio.fail_after(READY_SECONDS):
                    await module.check_ready()
            except trio.TooSlowError:
                failed[module.name] = f"does not answer within {READY_SECONDS:g} s"
            except Exception as error:
                failed[module.name] = explain(error)[1]

        async with trio.open_nursery() as nursery:
            for module in self.modules:
                nursery.start_soon(check, module)
        if failed:
            story = "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))
            return json_response({"error": f"not ready: {story}"}, 503)
        return {"status": "ok"}

    async def _metrics(self, call: Call) -> Response:
        return Response(await self.metrics.text(), content_type=CONTENT_TYPE)

    # --- one request --------------------------------------------------------------

    async def handle_request(self, request: Request) -> Response | WerkzeugResponse:
        """From the parsed head to the response, whose body may still be to come."""
        began = time.perf_counter()
        number = _new_request()
        path = "none"
        try:
            route, params = self._find(request)
            if route is None:
                response = self._options(request)
            else:
                path = route.path
                self.loop.note(f"{route.method} {path}")
                response = await self._answer(route, cast(StreamingRequest, request), params)
        except (Exception, BaseExceptionGroup) as error:
            found = list(leaves(error))
            if not found or not all(isinstance(leaf, Exception) for leaf in found):
                raise  # a cancellation or an interrupt is not an answer
            if any(isinstance(leaf, RecordsFailed) for leaf in found):
                self._failed.set()
            response = _error_response(error)
        response.headers["X-Request-Id"] = request_name(number)
        self._cors.mark(response.headers, request.headers.get("Origin"))
        self.metrics.note(request.method, path, response.status_code, time.perf_counter() - began)
        return response

    async def handle_socket(self, request: StreamingRequest, socket: Socket) -> Response | None:
        """From the request for a WebSocket to its end; the refusal, if it is refused."""
        began = time.perf_counter()
        _new_request()
        path = "none"

        def note(status: int) -> None:
            self.metrics.note("GET", path, status, time.perf_counter() - began)

        socket.when_accepted = functools.partial(note, 101)
        try:
            route, params = self._find(request)
            if route is None or route.upgrade is None:
                raise BadRequest("there is no WebSocket here: ask without Upgrade")
            path = route.path
            self.loop.note(f"the WebSocket {path}")
            principal = self._admit(route.need, request, params)
            call = Call(self.control, route.need, f"GET {path}", request, params, principal)
            await self._converse(call, route.upgrade, socket)
            return None
        except (Exception, BaseExceptionGroup) as error:
            found = list(leaves(error))
            if not found or not all(isinstance(leaf, Exception) for leaf in found):
                raise
            if any(isinstance(leaf, RecordsFailed) for leaf in found):
                self._failed.set()
            if all(isinstance(leaf, SocketClosed) for leaf in found):
                return None  # the client has left, perhaps before it was accepted
            status, message, headers = explain(error)
        if socket.accepted:
            await socket.close(OUR_FAULT, _cut(message, CLOSE_REASON_BYTES_MAX))
            return None
        response = _error_answer(status, message, headers)
        self._cors.mark(response.headers, request.headers.get("Origin"))
        note(response.status_code)
        return response

    async def _converse(self, call: Call, upgrade: Upgrade, socket: Socket) -> None:
        """The handler, for as long as the client is there and may go on."""
        refusals: list[ApiError] = []

        async def close(refusal: ApiError) -> None:
            # At once: the handler may take a while to release what it holds. A client that
            # reads nothing is not waited for.
            with trio.move_on_after(CLOSE_SECONDS):
                reason = _cut(str(refusal), CLOSE_REASON_BYTES_MAX)
                await socket.close(REFUSED + refusal.status, reason)

        def end(refusal: ApiError) -> None:
            refusals.append(refusal)
            nursery.cancel_scope.cancel()
            closing.start_soon(close, refusal)

        async def drop() -> None:
            while True:
                await socket.receive()

        async with trio.open_nursery() as closing, trio.open_nursery() as nursery:
            with self.watch.over(call, end):
                if not upgrade.takes:
                    nursery.start_soon(drop)
                await upgrade.handler(call, socket)
                nursery.cancel_scope.cancel()
        if refusals and not socket.accepted:
            raise refusals[0]
        await socket.close(NORMAL)

    def _find(self, request: Request) -> tuple[Route | None, dict[str, str]]:
        """The route and its parameters; None for OPTIONS. Raises HTTPException."""
        method = request.method
        if method == "OPTIONS":
            return None, {}
        endpoint, params = self._router.match(request.path, method=method)
        return self.table[int(endpoint)][1], cast(dict[str, str], params)

    def _options(self, request: Request) -> Response:
        methods = self._router.allowed_methods(request.path)
        if not methods:
            self._router.match(request.path, method="GET")  # raises the 404
        allowed = ", ".join(sorted({*methods, "OPTIONS"}))
        return self._cors.preflight(allowed, request.headers.get("Origin"))

    async def _answer(
        self, route: Route, request: StreamingRequest, params: dict[str, str]
    ) -> Response:
        principal = self._admit(route.need, request, params)
        name = f"{route.method} {route.path}"
        call = Call(self.control, route.need, name, request, params, principal)
        scope = cast(dict[str, Any], request.scope)
        refuse = scope["extensions"]["control.refuse"]
        self.watch.begin(id(scope), call, lambda refusal: refuse(refusal.status, str(refusal)))
        if isinstance(route.body, type):
            body = await call.json(route.body)
            # It may have taken a minute.
            refusal = self._ask_again(call) if principal is not None else None
            if refusal is not None:
                raise refusal
            answer = await route.handler(call, body)
        else:
            answer = await route.handler(call)
        return answer if isinstance(answer, Response) else json_response(answer)

    def _admit(self, need: Need, request: Request, params: Mapping[str, str]) -> Principal | None:
        """The user of the request, if it may go on. Raises Unauthorized or Forbidden."""
        if need.kind == "public":
            return None
        if need.kind == "service":
            if not self.control.keys.is_service_key(request.headers.get("X-Service-Key", "")):
                raise Unauthorized("X-Service-Key: missing or wrong")
            return None
        token = _token(need, request)
        principal = self.control.credentials.verify(token) if token else None
        if principal is None and token and need.kind != "anybody" and not need.is_open:
            raise Unauthorized(ENDED)
        decide(principal, need, scope_name(need, request, params))
        return principal

    def _ask_again(self, call: Call) -> ApiError | None:
        """The refusal, if a request with a credential that was let in would not be now."""
        try:
            principal = self._admit(call.need, call.request, call.params)
            if principal is None:  # an open route would serve it as anonymous
                raise Unauthorized(ENDED)
            call.check_again(principal)
        except (Unauthorized, Forbidden) as refusal:
            return refusal
        return None


def _werkzeug_parameter(found: re.Match[str]) -> str:
    name, kind = found.groups()
    return f"<{kind}:{name}>" if kind else f"<{name}>"


def _shape(path: str) -> str:
    """``path`` without the names of its parameters, which distinguish no two routes."""
    return _parameter.sub(r"{:\2}", path)


def _token(need: Need, request: Request) -> str | None:
    """The header's, else (on reads) the query's, else the cookie's where it will do."""
    header = request.headers.get("Authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""
    if request.method in ("GET", "HEAD"):
        asked = request.args.get("token")
        if asked is not None:
            return asked
    if need.takes_cookie:
        return _cookie("token", request.headers.get("Cookie", ""))
    return None


def _cookie(name: str, header: str) -> str | None:
    """The cookie's value. Cookies of other programs on the host may be malformed, at
    which the parsers of the libraries give up or break."""
    for pair in header.split(";"):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            return value.strip().strip('"')
    return None


def _new_request() -> int:
    """The number that this request has in all logs, the file system's too. It stays until
    the task takes the next: the body of the answer is still to come."""
    number = secrets.randbits(REQUEST_BITS) or 1
    current_request.set(number)
    return number


def _error_response(error: BaseException) -> Response:
    return _error_answer(*explain(error))


def _error_answer(status: int, message: str, headers: Mapping[str, str]) -> Response:
    response = json_response({"error": message}, status)
    response.headers.extend(headers)
    return response


def _cut(text: str, size: int) -> str:
    """The start of ``text`` that fits into ``size`` bytes."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")

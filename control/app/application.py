"""``build_app``: any subset of modules as one ASGI application.

Each request takes the same steps: the router finds its :class:`Route`; its credential is
verified; :func:`control.identity.access.decide` decides whether it is allowed; the body
is decoded if it is JSON, and the credential is checked again, since that may take a
minute; the handler runs; its answer, or its error, becomes the response. Transactions that
change credentials and users, or create containers, check once more (:meth:`Call.write`).
Everything that all routes share is here alone: errors as JSON, CORS, ``HEAD``, health and
metrics.

Quart's request context is not pushed: handlers get a :class:`Call`, and a small
request costs a fifth less without it. Hooks of Quart extensions do not run.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import trio
from quart import Response
from quart.wrappers import Request
from quart_trio import QuartTrio
from werkzeug.exceptions import RequestHeaderFieldsTooLarge
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
from control.api.internals import SYSTEM
from control.app.cors import Cors
from control.app.loop import Loop
from control.app.routing import Routes
from control.app.watch import Watch
from control.documentation import documentation_routes
from control.errors import (
    TICKET_ENDED,
    ApiError,
    BadRequest,
    Forbidden,
    InvalidToken,
    Unauthorized,
    explain,
    invalid_token,
)
from control.http import (
    Explained,
    HttpConnection,
    Receive,
    Refusal,
    Send,
    Socket,
    SocketClosed,
    SocketConnection,
    StreamingRequest,
)
from control.http.socket import CLOSE_SECONDS, NORMAL, OUR_FAULT, REFUSED
from control.identity.access import PUBLIC, Need, Principal, decide
from control.identity.credentials import Fault
from control.installed import blamed, check_clashes, choose, discover, one_line, package_of
from control.metrics import CONTENT_TYPE
from control.recent import Recent
from control.records import RecordsFailed, RecordsUpgraded
from control.settings import ControlSettings
from gfs.config import default_state_directory
from gfs.diagnostics import REQUEST_BITS, request_name
from gfs.diagnostics import request as current_request
from gfs.errors import GfsError, SettingsError, StartupError
from gfs.failures import EXPECTED, leaves, the_one

log = logging.getLogger(__name__)

#: A dependency that does not answer within this time is not ready.
READY_SECONDS = 3.0
SWEEP_SECONDS = 10.0
#: How long all modules may take to start; the server waits 60 s for them.
START_SECONDS = 50.0
#: RFC 6455, 5.5: a control frame carries 125 bytes, two of them for the code.
CLOSE_REASON_BYTES_MAX = 123


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
        tls: the directory with the files for TLS, if they are not there either.
        config: a TOML file; its table ``[client]`` is for the file system's client.

    Raises StartupError for a module that is not installed, and for clashes of names
    (:mod:`control.installed`). The records are opened when the app
    starts to serve.
    """
    installed = discover()
    named = [name for name in modules if isinstance(name, str)]
    given = [kind for kind in modules if not isinstance(kind, str)]
    chosen = choose(named, installed) if named or not given else []
    others = [kind for kind in installed.values() if not any(issubclass(g, kind) for g in given)]
    known = [*others, *given]
    if given:
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
    return ControlApp(control, [_made(kind, control) for kind in [*chosen, *given]])


def _made(kind: type[Module], control: Control) -> Module:
    with blamed(kind, "__init__ failed"):
        return kind(control)


class Connection(HttpConnection):
    """A request, whose credential is watched until all of its answer is sent."""

    async def __call__(self, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(receive, send)
        finally:
            cast(ControlApp, self.app).watch.forget(id(self.scope))


class ControlApp(QuartTrio):
    """See :func:`build_app`."""

    asgi_http_class = Connection  # type: ignore[assignment]
    asgi_websocket_class = SocketConnection  # type: ignore[assignment]
    request_class = StreamingRequest

    def __init__(self, control: Control, modules: Sequence[Module]) -> None:
        super().__init__("control", static_folder=None)
        self.control = control
        self.modules = list(modules)
        self.metrics = control.metrics
        self._running: list[Module] = []
        self._failed = trio.Event()
        self.watch = Watch(self._ask_again)
        self.loop = Loop(self.metrics)
        self._unready = Recent(self._find_unready)
        self._cors = Cors(control.settings.origin_list)
        # Bodies may have any length and take any time: the server ends those that stall,
        # and every handler bounds what it keeps.
        self.config.update(
            MAX_CONTENT_LENGTH=None,
            BODY_TIMEOUT=None,
            RESPONSE_TIMEOUT=None,
            BACKGROUND_TASK_SHUTDOWN_TIMEOUT=None,
        )
        self.routes = Routes(modules, control.scopes)
        for module in modules:
            with blamed(type(module), "routes() failed"):
                for route in module.routes():
                    self.routes.add(module.name, route)
        summaries = {module.name: module.summary for module in modules}
        documentation = documentation_routes(self.table, summaries, self.routes.kinds)
        #: They are answered while PostgreSQL is away.
        self._without_records = {each.path for each in [*self._own_routes(), *documentation]}
        self._without_records.remove("/readyz")
        for route in [*self._own_routes(), *documentation]:
            self.routes.add(SYSTEM, route)
        self._own_ports = {module.port: module for module in modules if module.port}
        self.before_serving(self._start)

    # --- tasks --------------------------------------------------------------------

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
                with trio.move_on_after(START_SECONDS) as starting:
                    for module in self.modules:
                        await nursery.start(self._run, module)
                if starting.cancelled_caught:
                    raise StartupError(
                        f"{package_of(type(module))}: run() did not call task_status.started() "
                        f"within {START_SECONDS:g} s"
                    )
                task_status.started()
                with self.loop.watched():
                    await trio.sleep_forever()

    async def _run(self, module: Module, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the background work of ``module``. A failure ends the process: a bug is logged
        with its traceback, and raised as one line that names the package."""
        self._running.append(module)
        try:
            await module.run(task_status=task_status)
            with contextlib.suppress(RuntimeError):  # it may have called started() already
                task_status.started()
        except (Exception, BaseExceptionGroup) as error:
            cause = the_one(error)
            if isinstance(cause, StartupError | SettingsError) or not isinstance(cause, Exception):
                raise
            package = package_of(type(module))
            if isinstance(cause, GfsError):
                log.error("the background work of %s failed: %s", package, cause)
                raise
            log.error("the background work of %s failed", package, exc_info=error)
            raise GfsError(
                f"{package}: its background work failed, so this process ends: {one_line(cause)}"
            ) from error
        finally:
            self._running.remove(module)

    @property
    def running(self) -> list[str]:
        """The packages whose background work has not ended."""
        return [package_of(type(module)) for module in self._running]

    async def _sweep(self) -> None:
        """Remove volatile facts that have expired."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            try:
                for facts in (self.control.volatile, self.control.logins):
                    await facts.sweep_all(time.time())
            except (GfsError, OSError) as error:
                # A full disk, for instance. The facts may be lost, so the process goes on.
                log.warning("expired shared facts could not be removed: %s", error)

    async def _end_when_failed(self) -> None:
        """End the process when it does not know what is on its disk; after a restart it has
        every acknowledged change."""
        await self._failed.wait()
        raise RecordsFailed("the records cannot be used any more: see above")

    def log_exception(self, *arguments: Any, **named: Any) -> None:
        """Log an error that prevents the start in one line, a bug with its traceback.

        Quart 0.23 passes its context before the exception, 0.22 does not.
        """
        if not isinstance(the_one(arguments[-1][1]), EXPECTED):
            super().log_exception(*arguments, **named)

    # --- routes -------------------------------------------------------------------

    @property
    def table(self) -> Sequence[tuple[str, Route]]:
        """Every route that it serves, with the name of its module."""
        return self.routes.table

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
        if reasons := await self._unready.get():
            return json_response({"error": f"not ready: {reasons}"}, 503)
        return {"status": "ok"}

    async def _find_unready(self) -> str:
        """Why it is not ready; empty if it is."""
        failed: dict[str, str] = {}

        async def check(module: Module) -> None:
            try:
                with trio.fail_after(READY_SECONDS):
                    await module.check_ready()
            except trio.TooSlowError:
                failed[module.name] = f"does not answer within {READY_SECONDS:g} s"
            except Exception as error:
                name = f"check_ready() of {package_of(type(module))}"
                failed[module.name] = explain(error, name)[1]

        try:
            self.control.check_tables()
        except RecordsUpgraded as error:
            failed["records"] = str(error)
        async with trio.open_nursery() as nursery:
            for module in self.modules:
                nursery.start_soon(check, module)
        return "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))

    async def _metrics(self, call: Call) -> Response:
        return Response(await self.metrics.text(), content_type=CONTENT_TYPE)

    # --- one request --------------------------------------------------------------

    async def handle_request(self, request: Request) -> Response | WerkzeugResponse:
        """From the parsed head to the response, whose body may still be to come."""
        began = time.perf_counter()
        number = _new_request()
        route = None
        headers: dict[str, str] = {}
        owner = self._owner_of(request)
        try:
            if owner is not None:
                self.loop.note(f"port {owner.port}")
                response = await owner.serve(
                    cast(StreamingRequest, request), functools.partial(self._watch, request)
                )
            else:
                route, params = self.routes.find(request)
                if route is None:
                    response = self._options(request)
                else:
                    self.loop.note(f"{route.method} {route.path}")
                    streaming = cast(StreamingRequest, request)
                    response = await self._answer(route, streaming, params, headers)
        except (Exception, BaseExceptionGroup, SystemExit) as error:
            if not self._is_answered(error):
                raise
            response = _error_answer(*explain(error, self.routes.name(route)))
        for name, value in headers.items():
            response.headers.setdefault(name, value)
        response.headers["X-Request-Id"] = request_name(number)
        if owner is None:
            self._cors.mark(response.headers, _origin(request))
        path = f"port {owner.port}" if owner else "none" if route is None else route.path
        self.metrics.note(request.method, path, response.status_code, time.perf_counter() - began)
        return response

    def _watch(self, request: Request, call: Call) -> None:
        """End the request when the credential of ``call`` does."""
        scope = cast(dict[str, Any], request.scope)
        refuse = scope["extensions"]["control.refuse"]
        self.watch.begin(id(scope), call, lambda refusal: refuse(refusal.status, str(refusal)))

    def _owner_of(self, request: Request) -> Module | None:
        """The module whose own port the request came to, if it is such a port."""
        address = request.scope.get("server")
        return self._owner_of_port(address[1] if address is not None else 0)

    def _owner_of_port(self, number: int | None) -> Module | None:
        return self._own_ports.get(self.control.ports.get(number or 0, ""))

    def explain_refusal(self, number: int, refusal: Refusal) -> Explained | None:
        """The body of a refusal by the server, at this port; None: the usual one."""
        owner = self._owner_of_port(number)
        return owner.explain_refusal(refusal) if owner is not None else None

    def _is_answered(self, error: BaseException) -> bool:
        """Whether a request that ended with ``error`` is answered: not after a cancellation or an
        interrupt.

        The failures are not returned, since a frame that keeps one is kept by its traceback in
        turn, with all of the request, until the garbage collector runs.
        """
        kinds = {type(leaf) for leaf in leaves(error)}
        if any(issubclass(kind, RecordsFailed) for kind in kinds):
            self._failed.set()
        # A handler that calls sys.exit() does not end the process.
        return bool(kinds) and all(issubclass(kind, Exception | SystemExit) for kind in kinds)

    async def handle_socket(self, request: StreamingRequest, socket: Socket) -> Response | None:
        """Serve a WebSocket from its request to its end. Returns the refusal, if any."""
        began = time.perf_counter()
        _new_request()
        route = None

        def note(status: int) -> None:
            path = "none" if route is None else route.path
            self.metrics.note("GET", path, status, time.perf_counter() - began)

        socket.when_accepted = functools.partial(note, 101)
        try:
            route, params = self.routes.find(request)
            if route is None or route.upgrade is None:
                raise BadRequest("there is no WebSocket here: send the request without Upgrade")
            self.loop.note(f"the WebSocket {route.path}")
            await self.control.fresh()
            principal, _ = self._admit(route.need, request, params)
            call = Call(self.control, route.need, f"GET {route.path}", request, params, principal)
            await self._converse(call, route.upgrade, socket)
            return None
        except (Exception, BaseExceptionGroup, SystemExit) as error:
            if not self._is_answered(error):
                raise
            if all(isinstance(leaf, SocketClosed) for leaf in leaves(error)):
                return None  # the client has left, perhaps before it was accepted
            status, message, headers = explain(error, self.routes.name(route))
        if socket.accepted:
            await socket.close(OUR_FAULT, _cut(message, CLOSE_REASON_BYTES_MAX))
            return None
        response = _error_answer(status, message, headers)
        self._cors.mark(response.headers, _origin(request))
        note(response.status_code)
        return response

    async def _converse(self, call: Call, upgrade: Upgrade, socket: Socket) -> None:
        """Run the handler while the client is connected and its credential is valid."""
        refusals: list[ApiError] = []

        async def close(refusal: ApiError) -> None:
            # This does not wait for the handler, which may take a while to clean up, nor for
            # long for a client that reads nothing.
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
                try:
                    await upgrade.handler(call, socket)
                finally:
                    # Cancelled by Trio for an error, the other task's frames would keep that.
                    nursery.cancel_scope.cancel()
        if refusals and not socket.accepted:
            raise refusals.pop()  # or this frame and its traceback would keep one another
        await socket.close(NORMAL)

    def _options(self, request: Request) -> Response:
        allowed = ", ".join(self.routes.methods(request))
        return self._cors.preflight(allowed, _origin(request))

    async def _answer(
        self,
        route: Route,
        request: StreamingRequest,
        params: dict[str, str],
        headers: dict[str, str],
    ) -> Response:
        """``headers`` gets those that the answer has whatever becomes of the request."""
        if route.path not in self._without_records:
            await self.control.fresh()
        principal, fault = self._admit(route.need, request, params)
        if fault is not None:
            headers |= invalid_token(fault.value)
        name = f"{route.method} {route.path}"
        call = Call(self.control, route.need, name, request, params, principal)
        self._watch(request, call)
        try:
            answer = await self._handle(route, call)
        except Unauthorized:
            if fault is None:
                raise
            raise InvalidToken(fault.value) from None
        return answer if isinstance(answer, Response) else json_response(answer)

    async def _handle(self, route: Route, call: Call) -> Any:
        if not isinstance(route.body, type):
            return await route.handler(call)
        body = await call.json(route.body)
        if call.principal is not None:
            self._check_again(call)  # the body may have taken a minute
        return await route.handler(call, body)

    def _admit(
        self, need: Need, request: Request, params: Mapping[str, str]
    ) -> tuple[Principal | None, Fault | None]:
        """The user of the request, if it is allowed; and what is wrong with its token, if it is
        served as anonymous in spite of that. Raises Unauthorized or Forbidden."""
        if need.kind == "public":
            return None, None
        if need.kind == "service":
            if not self.control.keys.is_service_key(request.headers.get("X-Service-Key", "")):
                raise Unauthorized("X-Service-Key: missing or wrong")
            return None, None
        token = _token(need, request)
        principal = fault = None
        if token is None and (ticket := _ticket(need, request)) is not None:
            file = need.file_in(params, request.args)
            principal = self.control.credentials.verify_ticket(ticket, file)
            if principal is None:
                raise Unauthorized(TICKET_ENDED)
        elif token:
            principal = self.control.credentials.verify(token)
            if principal is None:
                fault = self.control.credentials.fault(token)
                if not (need.kind == "anybody" or (need.is_open and fault.is_anonymous)):
                    raise InvalidToken(fault.value)
        decide(principal, need, need.name_in(params, request.args))
        return principal, fault

    def _ask_again(self, call: Call) -> ApiError | None:
        """The refusal of a request whose credential was valid and is not any more; or None."""
        try:
            self._check_again(call)
        except (Unauthorized, Forbidden) as refusal:
            return refusal
        return None

    def _check_again(self, call: Call) -> None:
        """Raises Unauthorized or Forbidden if the request, whose credential was valid, would be
        refused now."""
        if self._owner_of(call.request) is not None:
            # Whose port it is has found its credential, which only that module understands.
            with self.control.records.read() as txn:
                call.check_credential(txn)
            return
        principal, fault = self._admit(call.need, call.request, call.params)
        if fault is not None:  # an open route would serve it as anonymous
            raise InvalidToken(fault.value)
        call.check_again(principal)


def _origin(request: Request) -> str | None:
    """The origin of the page that asks; None for one that is longer than any page has."""
    with contextlib.suppress(RequestHeaderFieldsTooLarge):
        return request.headers.get("Origin")
    return None


def _token(need: Need, request: Request) -> str | None:
    """The token of the header, or on reads of the query, or of the cookie where allowed. A change
    takes no cookie: a browser sends it for the pages of strangers, too."""
    header = request.headers.get("Authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        return token.strip(" ") if scheme.lower() == "bearer" else ""
    if request.method in ("GET", "HEAD"):
        asked = request.args.get("token")
        if asked is not None:
            return asked
        if need.takes_cookie:
            return _cookie("token", request.headers.get("Cookie", ""))
    return None


def _ticket(need: Need, request: Request) -> str | None:
    """The ticket of the query, at a route that answers with one file."""
    is_reading = need.file and request.method in ("GET", "HEAD")
    return request.args.get("ticket") if is_reading else None


def _cookie(name: str, header: str) -> str | None:
    """The cookie's value. Cookies of other programs on the host may be malformed, and the
    parsers of libraries fail on those."""
    for pair in header.split(";"):
        if name in pair:  # 60,000 empty pairs take 4 ms, and 10 without this
            key, _, value = pair.partition("=")
            if key.strip() == name:
                return value.strip().strip('"')
    return None


def _new_request() -> int:
    """The id of this request in all logs, those of the file system included. It is valid
    until the task's next request, since the body of the answer is sent later."""
    number = secrets.randbits(REQUEST_BITS) or 1
    current_request.set(number)
    return number


def _error_answer(status: int, message: str, headers: Mapping[str, str]) -> Response:
    response = json_response({"error": message}, status)
    response.headers.extend(headers)
    return response


def _cut(text: str, size: int) -> str:
    """The start of ``text`` that fits into ``size`` bytes."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")

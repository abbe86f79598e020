"""One request, as a handler sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

import msgspec
import trio
from quart.wrappers import Request
from werkzeug.exceptions import RequestEntityTooLarge

from control.api.runtime import Control
from control.errors import BadRequest, TooLarge, TooSlow, Unauthorized
from control.http import StreamingRequest
from control.identity.access import Need, Principal, Target, decide, decide_target
from control.records import Txn
from gfs.blocks import KIB
from gfs.errors import InvariantViolated

QueryT = TypeVar("QueryT", bound=msgspec.Struct)
BodyT = TypeVar("BodyT")
T = TypeVar("T")

#: The largest JSON body without a credential: a worker's 1024 connections hold at most 64 MiB.
ANONYMOUS_JSON_BYTES_MAX = 64 * KIB
#: The whole of a JSON body, however steadily it drips.
JSON_SECONDS = 60.0
#: The answer to a session that ended, a token that was revoked, and to any other text.
ENDED = "the token is not valid, or not any more: log in again"


class Call:
    """The request, who makes it, and what it is allowed to do."""

    __slots__ = ("_allowed", "control", "need", "params", "principal", "request", "route")

    def __init__(
        self,
        control: Control,
        need: Need,
        route: str,
        request: StreamingRequest,
        params: Mapping[str, str],
        principal: Principal | None,
    ) -> None:
        self.control = control
        #: What the route asks of a credential.
        self.need = need
        #: Method and path as declared, for logs.
        self.route = route
        self.request = request
        #: The path's parameters.
        self.params = params
        #: None: anonymous.
        self.principal = principal
        self._allowed: list[tuple[Target, bool]] = []

    @property
    def user(self) -> Principal:
        """The user who is logged in: only for routes whose need guarantees that there is one."""
        if self.principal is None:
            raise InvariantViolated("the route lets anonymous requests in")
        return self.principal

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def address(self) -> str:
        """The client's; behind proxies what the setting ``trusted_proxies`` makes of it."""
        return self.request.remote_addr or ""

    def header(self, name: str) -> str | None:
        return self.request.headers.get(name)

    def query(self, kind: type[QueryT]) -> QueryT:
        """The query parameters as ``kind``; of one that is repeated, the first.

        Raises BadRequest that names the parameter.
        """
        try:
            return msgspec.convert(self.request.args.to_dict(), kind, strict=False)
        except msgspec.ValidationError as error:
            raise BadRequest(field_message(error)) from None

    async def json(self, kind: type[BodyT]) -> BodyT:
        """The body as ``kind``. Raises BadRequest that names the field, TooLarge, TooSlow."""
        limit = self.control.settings.json_bytes_max
        if self.principal is None:
            limit = min(limit, ANONYMOUS_JSON_BYTES_MAX)
        try:
            with trio.fail_after(JSON_SECONDS):
                data = await self.request.body.read_all(limit)
        except trio.TooSlowError:
            raise TooSlow(f"the body did not come within {JSON_SECONDS:g} s") from None
        except RequestEntityTooLarge:
            raise TooLarge(f"the body is larger than {limit} bytes") from None
        return decode_json(data, kind)

    def body(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they come; the sender waits for the reader.

        Raises BodyCutShort when the client hangs up in the middle.
        """
        return aiter(self.request.body)

    def allow(self, target: Target, *, reading: bool = False) -> None:
        """Go on only if the credential may do to ``target`` what the route needs.

        Raises Unauthorized or Forbidden.
        """
        decide_target(self.principal, self.need, target, reading=reading)
        self._allowed.append((target, reading))

    def check_again(self, principal: Principal | None) -> None:
        """Whether ``principal``, whom the credential stands for by now, may do what was
        allowed so far. Raises Unauthorized or Forbidden."""
        for target, reading in self._allowed:
            decide_target(principal, self.need, target, reading=reading)

    def check_credential(self, txn: Txn) -> None:
        """Whether the credential is still there and may do this, in the transaction that
        does it. Raises Unauthorized or Forbidden.

        A request is let in before its body has come and before a password is hashed. What
        it leaves behind may outlive the credential: a token, a key, a user.
        """
        principal = self.control.credentials.again(txn, self.user)
        if principal is None:
            raise Unauthorized(ENDED)
        decide(principal, self.need, scope_name(self.need, self.request, self.params))
        self.check_again(principal)

    async def write(self, change: Callable[[Txn], T], *, seconds: float = 10.0) -> T:
        """As :meth:`control.records.Records.write`, after :meth:`check_credential`."""

        def checked(txn: Txn) -> T:
            self.check_credential(txn)
            return change(txn)

        return await self.control.records.write(checked, seconds=seconds)


def scope_name(need: Need, request: Request, params: Mapping[str, str]) -> str:
    """The last part of the scope that the request asks for."""
    if not need.parameter:
        return ""
    return params.get(need.parameter) or request.args.get(need.parameter) or need.fallback


def decode_json(data: bytes, kind: type[BodyT]) -> BodyT:
    """Raises BadRequest in words that name the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(field_message(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the body is not valid JSON for this: it is nested too deeply") from None


def field_message(error: msgspec.ValidationError) -> str:
    """``name: expected str, got int`` of msgspec's ``Expected `str` … - at `$.name```."""
    text = str(error)
    what, _, where = text.partition(" - at `")
    what = what.replace("`", "")
    what = what[:1].lower() + what[1:]
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    if what.startswith("object missing required field "):
        field = what.rpartition(" ")[2]
        return f"{path + '.' if path else ''}{field}: is required"
    return f"{path}: {what}" if path else f"the body: {what}"

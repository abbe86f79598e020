"""One request: the interface of handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

import msgspec
import trio
from werkzeug.exceptions import RequestEntityTooLarge

from control.api.runtime import Control
from control.errors import ENDED, BadRequest, InvalidToken, TooLarge, TooSlow
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
#: How long a JSON body may take in all, however steadily it arrives.
JSON_SECONDS = 60.0


class Call:
    """The request, its user, and what it is allowed to do."""

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
        #: What the route requires of a credential.
        self.need = need
        #: Method and path as declared, for logs.
        self.route = route
        self.request = request
        #: The path's parameters as text. :meth:`path` converts them to other types.
        self.params = params
        #: The user; None if the request is anonymous.
        self.principal = principal
        self._allowed: list[tuple[Target, bool]] = []

    @property
    def user(self) -> Principal:
        """The user who is logged in; only for routes whose need guarantees that there is one."""
        if self.principal is None:
            raise InvariantViolated("the route lets anonymous requests in")
        return self.principal

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def address(self) -> str:
        """The client's address; behind proxies the one that ``trusted_proxies`` leads to."""
        return self.request.remote_addr or ""

    def header(self, name: str) -> str | None:
        """The value of a header, the first if it is there several times. Raises
        RequestHeaderFieldsTooLarge if it is longer than its bound (:mod:`control.http.texts`)."""
        value: str | None = self.request.headers.get(name)
        return value

    def query(self, kind: type[QueryT]) -> QueryT:
        """The query parameters as ``kind``; of a repeated one, the first value.

        Raises BadRequest that names the parameter.
        """
        args = self.request.args
        return _converted({n: args[n] for n in kind.__struct_encode_fields__ if n in args}, kind)

    def path(self, kind: type[QueryT]) -> QueryT:
        """The path's parameters as ``kind``. Raises BadRequest that names the parameter."""
        return _converted(self.params, kind)

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
        """The body in pieces, as they arrive; the sender waits for the reader.

        Raises BodyCutShort when the client hangs up in the middle.
        """
        return aiter(self.request.body)

    def allow(self, target: Target, *, reading: bool = False) -> None:
        """Check that the credential allows what the route needs on ``target``.

        Raises Unauthorized or Forbidden.
        """
        decide_target(self.principal, self.need, target, reading=reading)
        self._allowed.append((target, reading))

    def check_again(self, principal: Principal | None) -> None:
        """Check that ``principal``, the present user of the credential, may do everything that
        was allowed so far. Raises Unauthorized or Forbidden."""
        for target, reading in self._allowed:
            decide_target(principal, self.need, target, reading=reading)

    def check_credential(self, txn: Txn) -> None:
        """Check, in the transaction of the change, that the credential still exists and allows
        it. Raises Unauthorized or Forbidden.

        A request is checked before its body has come and before a password is hashed, and
        its result may outlive the credential: a token, a key, a user.
        """
        principal = self.control.credentials.again(txn, self.user)
        if principal is None:
            raise InvalidToken(ENDED)
        decide(principal, self.need, self.need.name_in(self.params, self.request.args))
        self.check_again(principal)

    async def write(self, change: Callable[[Txn], T], *, seconds: float = 10.0) -> T:
        """As :meth:`control.records.Records.write`, after :meth:`check_credential`."""

        def checked(txn: Txn) -> T:
            self.check_credential(txn)
            return change(txn)

        return await self.control.records.write(checked, seconds=seconds)


def _converted(texts: Mapping[str, str], kind: type[QueryT]) -> QueryT:
    try:
        return msgspec.convert(texts, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(field_message(error)) from None


def decode_json(data: bytes, kind: type[BodyT]) -> BodyT:
    """Decode JSON. Raises BadRequest with a message that names the field."""
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
    if what.startswith("object contains unknown field "):
        field = what.rpartition(" ")[2]
        return f"{path + '.' if path else ''}{field}: there is no such field"
    return f"{path}: {what}" if path else f"the body: {what}"

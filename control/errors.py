"""The errors with which a REST request can be answered.

::

    ApiError
    ├── BadRequest        400  the request breaks a rule that it names
    ├── Unauthorized      401  no credentials
    │   └── InvalidToken  401  a token that is not valid
    ├── Forbidden         403  valid credentials that do not allow this
    ├── NoSuchThing       404  it does not exist
    ├── TooSlow           408  the body did not come in time
    ├── Conflict          409  it exists already, or changed meanwhile
    ├── TooLarge          413  the body is above its bound
    ├── UpgradeRequired   426  it is a WebSocket: with ``Upgrade``
    ├── TooManyRequests   429  with ``Retry-After``
    ├── Unavailable       503  something that it needs does not answer now
    └── QuotaReached      507  the user has no room for it

Every answer is ``{"error": "<one line>"}``. Errors of the file system are
translated here (:func:`explain`): users get advice, and internal addresses, paths and
chunk handles are only in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar

from werkzeug.exceptions import HTTPException

from control.http import BodyCutShort
from gfs.errors import DiskFull, GfsError, InvalidArgument, InvalidName, Retryable
from gfs.failures import leaves

log = logging.getLogger(__name__)


class ApiError(Exception):
    """The root of the tree. ``str(error)`` is the line that the user reads."""

    status: ClassVar[int] = 500

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class BadRequest(ApiError):
    status = 400


class Unauthorized(ApiError):
    """RFC 9110, 15.5.2: says how to authenticate."""

    status = 401

    def __init__(self, message: str = "not logged in: send Authorization: Bearer <token>") -> None:
        super().__init__(message, {"WWW-Authenticate": "Bearer"})


class InvalidToken(Unauthorized):
    """RFC 6750, 3.1: a token was sent, and what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.headers = invalid_token(message)


def invalid_token(message: str) -> dict[str, str]:
    """The header of an answer to a request whose token is not valid."""
    return {"WWW-Authenticate": f'Bearer error="invalid_token", error_description="{message}"'}


class Forbidden(ApiError):
    status = 403


class NoSuchThing(ApiError):
    status = 404


class TooSlow(ApiError):
    status = 408


class Conflict(ApiError):
    status = 409


class InTheWay(Conflict):
    """A folder is where a file should be, or a file where a folder should be."""


class TooLarge(ApiError):
    status = 413


class UpgradeRequired(ApiError):
    """RFC 9110, 15.5.22: says to what."""

    status = 426

    def __init__(self) -> None:
        super().__init__(
            "this is a WebSocket: send the request with Upgrade: websocket",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )


class TooManyRequests(ApiError):
    status = 429

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message, {"Retry-After": str(max(1, seconds))})


class Unavailable(ApiError):
    status = 503


class QuotaReached(ApiError):
    status = 507


#: The answer to a session that has ended, and a token that was revoked or whose user is gone.
ENDED = "the session has ended, or the token was revoked: log in again"
TICKET_ENDED = "the ticket is not valid for this file, or not any more: make a new one"
#: The message for users about an internal failure.
INTERNAL = "internal error: see the server's log"
UNAVAILABLE = "the storage does not answer right now: try again later"
FULL = "the storage is full: nothing was stored"


#: Failures with a message for users. All others are bugs of ours.
_KNOWN = (ApiError, HTTPException, GfsError, BodyCutShort)


def explain(error: BaseException, what: str) -> tuple[int, str, Mapping[str, str]]:
    """Status, message and headers of the answer to a request that failed with ``error``.
    ``what`` names the request in the log.

    Of an exception group one is answered, a bug first. Failures that the user did not cause
    are logged here, bugs with their traceback.
    """
    failure = min(leaves(error), key=lambda leaf: isinstance(leaf, _KNOWN), default=error)
    if isinstance(failure, ApiError):
        return failure.status, str(failure), failure.headers
    if isinstance(failure, HTTPException):
        return _explain_http(failure)
    if isinstance(failure, BodyCutShort | InvalidName | InvalidArgument):
        return 400, str(failure), {}
    if isinstance(failure, DiskFull):
        log.warning("%s: %s", type(failure).__name__, failure)
        return 507, FULL, {}
    if isinstance(failure, Retryable) or (
        isinstance(failure, GfsError) and failure.http_status == 503
    ):
        log.warning("%s: %s", type(failure).__name__, failure)
        return 503, UNAVAILABLE, {"Retry-After": "5"}
    log.error("%s failed", what, exc_info=error)
    return 500, INTERNAL, {}


def _explain_http(error: HTTPException) -> tuple[int, str, Mapping[str, str]]:
    """The framework's own refusals: unknown routes, wrong methods."""
    status = error.code or 500
    if status == 404:
        return 404, "no such route: see /openapi.json for those that exist", {}
    if status == 405:
        # Every path answers OPTIONS, though the framework knows only routes.
        allowed = ", ".join(sorted({*(getattr(error, "valid_methods", None) or ()), "OPTIONS"}))
        return 405, f"this method is not offered here, only {allowed}", {"Allow": allowed}
    return status, error.description or error.name, {}

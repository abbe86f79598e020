"""Translates a backend's failures to answers to requests."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from control.api import BadRequest, Unavailable
from control.compute.backend.interface import BackendUnavailable, Impossible
from gfs.failures import the_one

log = logging.getLogger(__name__)

#: A path of two parts or more that is not in a URL or in the name of an image.
_PATH = re.compile(r"(?<![\w./:@-])(?:/[\w.,+@~-]+){2,}/?")


def for_users(text: str) -> str:
    """The text without paths of this machine, which only its operator sees, in the log."""
    return _PATH.sub("…", text)


@contextmanager
def as_answers() -> Iterator[None]:
    """Raises Unavailable for what may succeed later, BadRequest for what never will."""
    try:
        yield
    except Exception as error:
        failure = the_one(error)  # from the exception group that a nursery raises
        if isinstance(failure, BackendUnavailable):
            # The text alone: a handler that keeps records would keep the frames of the request.
            log.warning("%s", str(failure))
            raise Unavailable(for_users(str(failure)), {"Retry-After": "5"}) from error
        if isinstance(failure, trio.TooSlowError):
            raise Unavailable(
                "the backend of containers does not answer in time: try again", {"Retry-After": "5"}
            ) from None
        if isinstance(failure, Impossible):
            log.warning("%s", str(failure))
            raise BadRequest(for_users(str(failure))) from error
        raise

"""A backend's failures, as answers to requests."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from control.compute.backend import BackendUnavailable, Impossible
from control.errors import BadRequest, Unavailable
from gfs.cluster.failures import the_one

log = logging.getLogger(__name__)

#: A path of two parts or more, that is no part of an address or of an image's name.
_PATH = re.compile(r"(?<![\w./:@-])(?:/[\w.,+@~-]+){2,}/?")


def for_users(text: str) -> str:
    """Without the paths of this machine: they are for its operator, in the log."""
    return _PATH.sub("…", text)


@contextmanager
def as_answers() -> Iterator[None]:
    """Raises Unavailable for what may do later, BadRequest for what never will."""
    try:
        yield
    except Exception as error:
        story = the_one(error)  # out of the group that a nursery makes of it
        if isinstance(story, BackendUnavailable):
            log.warning("%s", story)
            raise Unavailable(for_users(str(story)), {"Retry-After": "5"}) from error
        if isinstance(story, trio.TooSlowError):
            raise Unavailable(
                "what runs containers does not answer in time: try again", {"Retry-After": "5"}
            ) from None
        if isinstance(story, Impossible):
            log.warning("%s", story)
            raise BadRequest(for_users(str(story))) from error
        raise

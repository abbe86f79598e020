"""A backend's failures, as answers to requests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from control.compute.backend import BackendUnavailable, Impossible
from control.errors import BadRequest, Unavailable
from gfs.cluster.failures import the_one

log = logging.getLogger(__name__)


@contextmanager
def as_answers() -> Iterator[None]:
    """Raises Unavailable for what may do later, BadRequest for what never will."""
    try:
        yield
    except Exception as error:
        story = the_one(error)  # out of the group that a nursery makes of it
        if isinstance(story, BackendUnavailable):
            log.warning("%s", story)
            raise Unavailable(str(story), {"Retry-After": "5"}) from error
        if isinstance(story, trio.TooSlowError):
            raise Unavailable(
                "what runs containers does not answer in time: try again", {"Retry-After": "5"}
            ) from None
        if isinstance(story, Impossible):
            raise BadRequest(str(story)) from error
        raise

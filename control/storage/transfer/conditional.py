"""Conditional requests (RFC 9110, section 13): is what the client has still good.

The validators of a file are its entity tag and the second it was last changed in.
The tag is the better witness: two contents can follow each other within a second.

``werkzeug.http`` parses these headers too, but it takes a word without quotes for an entity
tag, reads as many tags as are sent, and raises OverflowError at a date whose year or zone
has 20 digits, which would be our fault (500) and not the client's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from enum import Enum

from gfs.client import Entry

Header = Callable[[str], str | None]

TAGS_MAX = 256
#: One element of a list, which may have empty ones.
_tag = re.compile(r'[\s,]*((?:W/)?"[\x21\x23-\x7e\x80-\U0010ffff]*")\s*(?:,|$)')


class Verdict(Enum):
    GO = 200
    NOT_MODIFIED = 304
    FAILED = 412


@dataclass(frozen=True)
class Validators:
    """``etag`` as in the header; ``modified`` in unix seconds. A file has both or
    neither."""

    etag: str | None
    modified: int | None

    @classmethod
    def of(cls, entry: Entry) -> Validators:
        """The tag is of the block checksums the file is stored with, which are of its
        content alone."""
        if not entry.digest:
            # It was written in place. Neither its length nor its time changes with each
            # such write, and another may come at any moment: nothing that can be said of
            # it now would distinguish the next content from this one.
            return cls(None, None)
        return cls(f'"{entry.digest.hex()}-{entry.length:x}"', entry.modified_ns // 10**9)

    @property
    def headers(self) -> dict[str, str]:
        if self.etag is None or self.modified is None:
            return {}
        return {"ETag": self.etag, "Last-Modified": formatdate(self.modified, usegmt=True)}


def judge(header: Header, validators: Validators) -> Verdict:
    """For GET and HEAD, in the RFC's order (section 13.2.2).

    A file without validators is never the one the client has.
    """
    etag, modified = validators.etag, validators.modified
    if (match := header("If-Match")) is not None:
        is_expected = matches(match, etag, strong=True)
    else:
        since = _seconds(header("If-Unmodified-Since"))
        is_expected = since is None or (modified is not None and modified <= since)
    if not is_expected:
        return Verdict.FAILED
    if etag is None or modified is None:
        return Verdict.GO
    if (match := header("If-None-Match")) is not None:
        is_known = matches(match, etag, strong=False)
    else:
        since = _seconds(header("If-Modified-Since"))
        is_known = since is not None and modified <= since
    return Verdict.NOT_MODIFIED if is_known else Verdict.GO


def range_counts(if_range: str | None, validators: Validators) -> bool:
    """Whether ``Range`` is to be obeyed: the client's part is of this very file.

    A date never says so. It would have to be a strong validator (section 13.1.5), and
    a file can be replaced twice within its second. Who has a date has a tag as well.
    """
    if if_range is None:
        return True
    return validators.etag is not None and _equal(if_range.strip(), validators.etag, strong=True)


def matches(header: str, etag: str | None, *, strong: bool) -> bool:
    """Whether a list of entity tags names ``etag``. ``*`` names whatever is there. More than
    ``TAGS_MAX`` are not looked at: nobody who has a file once has it in so many states."""
    if header.strip() == "*":
        return True
    if etag is None:
        return False
    at = 0
    for _ in range(TAGS_MAX):
        found = _tag.match(header, at)
        if found is None:
            break
        if _equal(found[1], etag, strong=strong):
            return True
        at = found.end()
    return False


def _equal(one: str, other: str, *, strong: bool) -> bool:
    if strong:
        return one == other and not one.startswith("W/")
    return one.removeprefix("W/") == other.removeprefix("W/")


def _seconds(date: str | None) -> int | None:
    """A date in any of HTTP's three forms; None if it is none of them."""
    if not date:
        return None
    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp())
    except (TypeError, ValueError, OverflowError, IndexError):
        return None

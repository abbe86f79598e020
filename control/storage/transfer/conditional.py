"""Conditional requests (RFC 9110, section 13): whether the client's copy is still current.

The validators of a file are its entity tag and the second of its last change. The tag is
the stronger one, since a file can change twice within a second.

``werkzeug.http`` parses these headers too, but it takes a word without quotes for an entity
tag, reads as many tags as are sent, and raises OverflowError at a date whose year or zone
has 20 digits, which we would answer with 500 instead of ignoring the header.
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
#: One element of a list, in which elements may be empty.
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
        """The tag is computed from the stored checksums of the file's blocks, which depend on
        its content alone."""
        if not entry.digest:
            # The file was written in place. A write in place need not change its length or
            # time, and another may come at any moment, so no validator could distinguish
            # the next content from this one.
            return cls(None, None)
        return cls(f'"{entry.digest.hex()}-{entry.length:x}"', entry.modified_ns // 10**9)

    @property
    def headers(self) -> dict[str, str]:
        if self.etag is None or self.modified is None:
            return {}
        return {"ETag": self.etag, "Last-Modified": formatdate(self.modified, usegmt=True)}


def judge(header: Header, validators: Validators) -> Verdict:
    """Evaluate the conditions of a GET or HEAD, in the RFC's order (section 13.2.2).

    A file without validators never matches the client's copy.
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

    A date in ``If-Range`` never matches: it would have to be a strong validator (section
    13.1.5), and a file can be replaced twice within a second. A client that has the date
    has the tag as well.
    """
    if if_range is None:
        return True
    return validators.etag is not None and _equal(if_range.strip(), validators.etag, strong=True)


def matches(header: str, etag: str | None, *, strong: bool) -> bool:
    """Whether a list of entity tags contains ``etag``; ``*`` matches any. Tags after the first
    ``TAGS_MAX`` are ignored: no client has so many versions of a file."""
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
    """A date in any of HTTP's three forms, in unix seconds; None for anything else."""
    if not date:
        return None
    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp())
    except (TypeError, ValueError, OverflowError, IndexError):
        return None

"""Lifecycle: objects that are deleted when they are old, by rules of their bucket.

A rule is about the objects with its prefix, tags and size. Their age counts from their last
change, in whole days, and they go at the midnight (UTC) after that, as in S3; deletion is that of
a user: what is in the trash can be undeleted. One process of the machine looks through the buckets
that have rules, in constant memory, each hour.

In a bucket with versions what expires is kept as one, and rules about old ones delete these for
good, and the delete markers that are left alone. Rules that move objects to another storage class
are refused.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache, partial
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

import trio

from control.api import ApiError, Conflict, Control, RecordsFailed
from control.api.internals import Lock, in_pages
from control.s3.buckets import Buckets
from control.s3.configuration import configurations, forget_bucket, stored
from control.s3.documents import around, parse, text_of
from control.s3.errors import S3Error
from control.s3.metadata import of_entry
from control.s3.names import key_of, path_in_keys
from control.s3.patience import Patience
from control.storage import (
    Cluster,
    Space,
    Spaces,
    Version,
    Versions,
    all_in_pages,
    delete_entry,
    id_of,
    is_marker,
    listing,
)
from gfs.client import Entry
from gfs.errors import GfsError, NotADirectory, NotFound

#: Aborts the uploads to a bucket whose keys have a prefix, and that began before (in ns).
Abort = Callable[[Space, str, int], Awaitable[None]]

log = logging.getLogger(__name__)

ROOT = "LifecycleConfiguration"
RULES_MAX = 1000
#: Rows of documents that are read at once; each may have 64 KiB.
PAGE_ROWS = 16
ID_LETTERS_MAX = 255
#: The last day that a date can have.
LAST = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
_REFUSED = ("Transition", "NoncurrentVersionTransition")
#: What a rule may do.
_ACTIONS = ("Expiration", "AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration")

#: What an Expiration says.
_ENDS = ("Days", "Date", "ExpiredObjectDeleteMarker")
_SCOPES = ("Prefix", "Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan")


class Rule(NamedTuple):
    """Which objects expire, and when: after ``days``, or at ``date`` (unix seconds)."""

    id: str
    prefix: str
    tags: dict[str, str]
    #: More bytes than this, and fewer than that.
    above: int
    below: int | None
    days: int
    date: int
    #: Multipart uploads end so many days after they began; 0: not by this rule.
    abort_days: int
    #: Versions end so many days after they were replaced; 0: not by this rule.
    old_days: int = 0
    #: But so many of them stay.
    old_kept: int = 0
    #: Delete markers go that are alone.
    has_markers: bool = False

    def is_about(self, key: str, entry: Entry) -> bool:
        if not key.startswith(self.prefix) or entry.length <= self.above:
            return False
        if self.below is not None and entry.length >= self.below:
            return False
        return not self.tags or self.tags.items() <= of_entry(entry).tags.items()

    def expires(self, entry: Entry, day_seconds: int) -> int:
        """When an object expires, in unix seconds."""
        if not self.days:
            return self.date
        return _midnight(entry.modified_ns, self.days, day_seconds)

    def ends(self, version: Version, newer: int, day_seconds: int, now: float) -> bool:
        """Whether an old version is to go, of which so many newer old ones are there."""
        if not self.old_days or newer < self.old_kept or not self.is_about(*version[:2]):
            return False
        return _midnight(version.until_ns, self.old_days, day_seconds) <= now

    def ends_marker(self, marker: Version, day_seconds: int, now: float) -> bool:
        """Whether a delete marker is to go that is alone."""
        if not marker.key.startswith(self.prefix) or self.tags:
            return False
        is_old = self.days and _midnight(marker.entry.modified_ns, self.days, day_seconds) <= now
        return self.has_markers or bool(is_old)


def _midnight(ns: int, days: int, day_seconds: int) -> int:
    """The first one so many days after a time, in unix seconds."""
    at = ns // 10**9 + days * day_seconds
    return -(-at // day_seconds) * day_seconds


def check(root: Element) -> None:
    """Check a document, and give names to rules without one. Raises S3Error."""
    found = root.findall("Rule")
    if not 1 <= len(found) <= RULES_MAX:
        raise S3Error("MalformedXML", f"give 1 to {RULES_MAX} rules")
    for each in found:
        if not text_of(each, "ID"):
            for empty in each.findall("ID"):
                each.remove(empty)
            SubElement(each, "ID").text = secrets.token_hex(12)
        if text_of(each, "Status") not in ("Enabled", "Disabled"):
            raise S3Error("MalformedXML", "a rule's Status is Enabled or Disabled")
        for action in _REFUSED:
            if each.find(action) is not None:
                raise S3Error("NotImplemented", f"{action} is not offered")
        if all(each.find(action) is None for action in _ACTIONS):
            raise S3Error("InvalidRequest", f"a rule does one of {', '.join(_ACTIONS)}")
        _check_expiration(each.find("Expiration"))
        made = _rule(each)
        if each.find("AbortIncompleteMultipartUpload") is not None and not made.abort_days:
            raise S3Error(
                "InvalidRequest",
                "AbortIncompleteMultipartUpload has DaysAfterInitiation, and its rule neither tags "
                "nor sizes: an upload has none",
            )
    names = [text_of(each, "ID") for each in found]
    if len(set(names)) < len(names):
        raise S3Error("InvalidArgument", "two rules have one ID")
    if any(len(name) > ID_LETTERS_MAX or not name.isprintable() for name in names):
        raise S3Error("InvalidArgument", f"an ID has at most {ID_LETTERS_MAX} letters")


def _check_expiration(expiration: Element | None) -> None:
    """Raises S3Error unless it says one thing."""
    if expiration is None:
        return
    said = [text_of(expiration, name).lower() for name in _ENDS]
    if not any(said) or sum(text not in ("", "false") for text in said) > 1:
        raise S3Error("MalformedXML", f"Expiration has one of {', '.join(_ENDS)}")


def _rule(each: Element) -> Rule:
    scope = _scope(each)
    tags = scope.findall("Tag")
    above = _number(scope, "ObjectSizeGreaterThan")
    below = _number(scope, "ObjectSizeLessThan")
    days, date, expiration = None, 0, each.find("Expiration")
    old = each.find("NoncurrentVersionExpiration")
    old_days = _number(old, "NoncurrentDays") if old is not None else None
    old_kept = _number(old, "NewerNoncurrentVersions") if old is not None else None
    has_markers = False
    if expiration is not None:
        days = _number(expiration, "Days")
        has_markers = text_of(expiration, "ExpiredObjectDeleteMarker").lower() == "true"
        if text_of(expiration, "Date"):
            date = _date(text_of(expiration, "Date"))
    abort = each.find("AbortIncompleteMultipartUpload")
    abort_days = _number(abort, "DaysAfterInitiation") if abort is not None else None
    if old is not None and old_days is None:
        raise S3Error("MalformedXML", "NoncurrentVersionExpiration has NoncurrentDays")
    if 0 in (days, abort_days, old_days):
        raise S3Error("InvalidArgument", "a number of days is at least 1")
    return Rule(
        text_of(each, "ID"),
        scope.findtext("Prefix") or "",  # a space more or less is another prefix
        {tag.findtext("Key") or "": tag.findtext("Value") or "" for tag in tags},  # so is a tag
        -1 if above is None else above,
        below,
        days or 0,
        date,
        # Rules for uploads may be stored that have some, though they are refused: these end none.
        0 if tags or (above, below) != (None, None) else abort_days or 0,
        old_days or 0,
        old_kept or 0,
        has_markers,
    )


def _scope(rule: Element) -> Element:
    """What says which objects a rule is about. Raises S3Error if there is none that is understood:
    then the rule would be about others, and delete them."""
    scopes = [each for each in rule if each.tag in ("Filter", "Prefix")]
    if len(scopes) != 1:
        raise S3Error("MalformedXML", "a rule has one Filter")
    if scopes[0].tag == "Prefix":
        return rule
    found, is_known = scopes[0], True
    if len(found) == 1 and found[0].tag == "And":
        found = found[0]
        is_known = len(found) > 0
    names = [each.tag for each in found]
    is_known = is_known and all(name in _SCOPES for name in names)
    if not is_known or any(names.count(name) > 1 for name in names if name != "Tag"):
        raise S3Error("MalformedXML", f"a Filter has {', '.join(_SCOPES)}, together in And")
    return found


def _number(element: Element, name: str) -> int | None:
    text = text_of(element, name)
    if text and not re.fullmatch(r"[0-9]{1,15}", text):
        raise S3Error("InvalidArgument", f"{name} is a number of at most 15 digits")
    return int(text) if text else None


def _date(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise S3Error("MalformedXML", "Date is like 2026-01-31T00:00:00Z") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    if at.timestamp() % 86400:
        raise S3Error("InvalidArgument", "Date is a midnight, UTC")
    return int(at.timestamp())


@lru_cache(256)
def _rules(text: str) -> list[Rule]:
    """The rules that are to be carried out."""
    root = parse(around(ROOT, text), ROOT)
    return [_rule(each) for each in root.findall("Rule") if text_of(each, "Status") == "Enabled"]


class Lifecycle:
    def __init__(
        self, control: Control, cluster: Cluster, spaces: Spaces, day_seconds: int
    ) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._day_seconds = day_seconds
        self._buckets = Buckets(cluster, spaces, Versions(control, cluster, spaces), Patience())
        #: Held by the one process that looks through the buckets.
        self._lock = Lock(control.directory / "lifecycle.lock")

    def has_rules(self, space: Space) -> bool:
        return stored(self._control.records, space, "lifecycle") is not None

    def mark(self, space: Space, key: str, entry: Entry, headers: dict[str, str]) -> None:
        """Say in an answer when an object expires, if it does."""
        text = stored(self._control.records, space, "lifecycle")
        found = self._first(_rules(text), key, entry) if text is not None else None
        if found is not None:
            at, rule = found
            date = formatdate(min(at, LAST), usegmt=True)
            headers["x-amz-expiration"] = f'expiry-date="{date}", rule-id="{rule.id}"'

    def _first(self, rules: Iterable[Rule], key: str, entry: Entry) -> tuple[int, Rule] | None:
        """The first end of an object, and the rule."""
        ends = [
            (rule.expires(entry, self._day_seconds), rule)
            for rule in rules
            if (rule.days or rule.date) and rule.is_about(key, entry)
        ]
        return min(ends, key=lambda end: end[0], default=None)

    async def run(self, abort_old: Abort) -> None:
        """Look through the buckets again and again, until cancelled."""
        await self._cluster.connected.wait()
        while True:
            if self._lock.take():
                try:
                    await self._look_through(abort_old)
                finally:
                    self._lock.close()
            await trio.sleep(max(1.0, self._day_seconds / 24))

    async def _look_through(self, abort_old: Abort) -> None:
        await self._forget_gone()
        async with aclosing(all_in_pages(self._control.records)) as pages:
            async for page in pages:
                for space in page:
                    if not space.deleting:
                        await self._look_through_bucket(space, abort_old)

    async def _look_through_bucket(self, space: Space, abort_old: Abort) -> None:
        text = stored(self._control.records, space, "lifecycle")
        await trio.lowlevel.checkpoint()
        if text is None:
            return
        try:
            await self._expire(space, _rules(text))
            if space.versioning:
                await self._expire_versions(space, _rules(text))
            for rule in _rules(text):
                if rule.abort_days:
                    began = time.time() - rule.abort_days * self._day_seconds
                    await abort_old(space, rule.prefix, int(began * 1e9))
        except RecordsFailed:
            raise  # and with it this process ends
        except (GfsError, ApiError, S3Error, OSError) as error:
            log.warning("objects could not be expired in %s: %s", space.name, error)

    async def _forget_gone(self) -> None:
        """Delete the documents of buckets that are gone: releases before 0.3 left them there."""
        records, gone = self._control.records, set[str]()
        # Their ids are read first: a bucket that is made meanwhile is not taken for one of them.
        async with aclosing(in_pages(records, configurations, PAGE_ROWS)) as pages:
            async for page in pages:
                gone.update(row.space_id for row in page)
        async with aclosing(all_in_pages(records)) as rows:
            async for there in rows:
                gone.difference_update(space.id for space in there)
        for space_id in gone:
            await records.write(partial(forget_bucket, space_id=space_id))

    async def _expire(self, space: Space, rules: list[Rule]) -> None:
        now = time.time()
        prefixes = [rule.prefix for rule in rules if rule.days or rule.date]
        # Keys that are paths, and the others.
        for prefix in _apart([*prefixes, *map(path_in_keys, prefixes)]):
            found = listing.files(self._cluster.fs, space.directory, prefix=prefix)
            async with aclosing(found) as files:
                async for path, entry in files:
                    key = key_of(path)
                    if key is not None and self._is_over(rules, key, entry, now):
                        await self._delete(space, rules, path, key)

    async def _expire_versions(self, space: Space, rules: list[Rule]) -> None:
        now, day = time.time(), self._day_seconds
        rules = [each for each in rules if each.old_days or each.has_markers or each.days]
        prefixes = [rule.prefix for rule in rules]
        for prefix in _apart(prefixes):
            marker: Version | None = None
            newer = 0
            async with aclosing(self._buckets.versions.every(space, prefix)) as found:
                async for each in found:
                    if each.is_latest:
                        if marker is not None and any(
                            r.ends_marker(marker, day, now) for r in rules
                        ):
                            await self._end(space, marker)
                        marker, newer = (each if is_marker(each.entry) else None), 0
                        continue
                    marker = None
                    if any(rule.ends(each, newer, day, now) for rule in rules):
                        await self._end(space, each)
                    newer += 1
            if marker is not None and any(r.ends_marker(marker, day, now) for r in rules):
                await self._end(space, marker)

    async def _end(self, space: Space, version: Version) -> None:
        """Delete exactly this version."""

        def check(entry: Entry) -> None:
            # By its path: one that is the latest again has another.
            if (entry.inode, entry.path) != (version.entry.inode, version.entry.path):
                raise Conflict("it is another one, or the latest, meanwhile")

        try:
            id_ = id_of(version.entry)
            await self._buckets.versions.delete_version(space, version.key, id_, check)
        except ApiError as error:
            log.info("a version that expired was not deleted: %s", error)

    def _is_over(self, rules: list[Rule], key: str, entry: Entry, now: float) -> bool:
        first = self._first(rules, key, entry)
        return first is not None and first[0] <= now

    async def _delete(self, space: Space, rules: list[Rule], path: str, key: str) -> None:
        """Delete an object, if it is still to go: since it was listed, the same file may have got
        another time, or other tags."""
        turn = self._buckets.versions.locked(space, key)
        try:
            # Where there are versions, deleting takes the turn itself.
            async with nullcontext() if space.versioning else turn:
                entry = await self._cluster.fs.stat(f"{space.directory}/{path}")
                if entry.kind == "file" and self._is_over(rules, key, entry, time.time()):
                    parts = (self._control, self._cluster, self._spaces)
                    await delete_entry(*parts, space, path, entry)
        except (NotFound, NotADirectory):
            pass
        except ApiError as error:
            log.info("an object that expired was not deleted: %s", error)


def _apart(prefixes: Iterable[str]) -> list[str]:
    """Those of which none begins with another: no object is looked at twice."""
    apart: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not apart or not prefix.startswith(apart[-1]):
            apart.append(prefix)
    return apart

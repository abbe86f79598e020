"""Buckets: storage namespaces, and the lists of what is in them."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import trio

from control.api import PRIVATE, BadRequest, Conflict, NoSuchThing, RecordsFailed, Response, Txn
from control.api.internals import users
from control.s3.acl import BUCKETS, STORED, of_bucket
from control.s3.call import S3Call
from control.s3.documents import (
    BYTES_MAX,
    CONTENT_TYPE,
    Child,
    document,
    text_of,
    time_of,
    url_encoded,
)
from control.s3.errors import S3Error, as_s3_error
from control.s3.metadata import etag_of, of_entry
from control.s3.names import UPLOADS, path_of, path_of_version
from control.s3.patience import Patience
from control.storage import (
    DELETE,
    Cluster,
    NewSpace,
    Space,
    Spaces,
    Version,
    Versions,
    change_space,
    check_space_name,
    delete_file,
    id_of,
    is_marker,
    listing,
    may_remove,
    present_space,
    space_rows,
)
from control.storage.keys import all_keys
from gfs.client import Entry
from gfs.failures import leaves

#: Not like an address, and each part between dots begins and ends with a letter or digit.
_BUCKET = re.compile(
    r"(?![0-9]+(\.[0-9]+){3}$)(?!.*(\.\.|\.-|-\.))[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
)
KEYS_MAX = 1000
#: Of DeleteObjects, each of which takes some requests and commits.
DELETED_AT_ONCE = 16
#: Keys of a common prefix that are read in vain before a new list begins after them all.
SKIPPED_MAX = 1000
#: Keys that are read for one page, and those of one common prefix more: with that many it ends,
#: however few it has. Each of a thousand prefixes may have nearly as many as are not skipped.
READ_MAX = 4 * KEYS_MAX
#: Files among those of keys that are no paths, and that are none.
VAIN_MAX = 1000
_LAST = "\U0010ffff"
BUCKETS_MAX = 10_000
#: Entered for each question to the master.
Turn = AbstractAsyncContextManager[object]


def xml(root: str, children: list[Child], status: int = 200) -> Response:
    return Response(document(root, children), status, content_type=CONTENT_TYPE)


class Wanted(NamedTuple):
    """What a list is to have."""

    prefix: str
    delimiter: str
    limit: int
    is_url: bool

    @classmethod
    def by(cls, call: S3Call) -> Wanted:
        encoding = call.options.get("encoding-type", "")
        if encoding not in ("", "url"):
            raise S3Error("InvalidArgument", "encoding-type must be url")
        limit = min(call.number("max-keys", KEYS_MAX), KEYS_MAX)
        options = call.options
        return cls(options.get("prefix", ""), options.get("delimiter", ""), limit, encoding != "")

    def shown(self, text: str) -> str:
        return url_encoded(text, self.is_url)

    def head(self, space: Space, page: Page) -> list[Child]:
        return [
            ("Name", space.name),
            ("Prefix", self.shown(self.prefix)),
            ("Delimiter", self.shown(self.delimiter) if self.delimiter else None),
            ("MaxKeys", self.limit),
            ("EncodingType", "url" if self.is_url else None),
            ("IsTruncated", page.is_more),
        ]


class Page(NamedTuple):
    """A part of a list. ``last`` is the key or common prefix to list on after."""

    objects: list[tuple[str, Entry]]
    folders: list[str]
    last: str
    is_more: bool


class Conditions(NamedTuple):
    """What an object must be to be deleted."""

    etag: str | None = None
    modified: str | None = None
    size: str | None = None

    def check(self, entry: Entry) -> None:
        etag = etag_of(entry)
        fits = self.etag is None or etag.strip('"') == self.etag.strip('"') or self.etag == "*"
        fits = fits and self.size in (None, str(entry.length))
        if self.modified is not None:
            fits = fits and _seconds(self.modified) == entry.modified_ns // 10**9
        if not fits:
            raise S3Error("PreconditionFailed", "the object is not the one of the conditions")


def _seconds(text: str) -> int:
    """A time as headers have it, or as documents do."""
    try:
        if text[:1].isdigit():
            return int(datetime.fromisoformat(text).timestamp())
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError):
        raise S3Error("InvalidArgument", f"{text:.80} is not a time") from None


class Buckets:
    def __init__(
        self, cluster: Cluster, spaces: Spaces, versions: Versions, patience: Patience
    ) -> None:
        self._cluster = cluster
        self._spaces = spaces
        self.versions = versions
        self._patience = patience

    def find(self, name: str) -> Space:
        """Raises S3Error if there is no such bucket."""
        try:
            return self._spaces.get(name)
        except NoSuchThing:
            raise S3Error("NoSuchBucket", f"there is no bucket {name:.80}") from None

    def readable(self, call: S3Call) -> Space:
        space = self.find(call.bucket)
        call.allow(space.target, reading=True)
        return space

    def owned(self, call: S3Call) -> Space:
        """The bucket, whose owner the caller must be. What all users share nobody owns: rules of
        one would delete files of others."""
        space = self.find(call.bucket)
        call.allow(space.target)
        if space.is_default:
            raise S3Error("AccessDenied", f"{space.name} has no owner: nobody can configure it")
        return space

    def owner(self, call: S3Call, space: Space) -> list[Child]:
        """Whose all objects of a bucket are."""
        with call.control.records.read() as txn:
            user = users.get(txn, space.owner_id or "")
        return [("ID", space.owner_id or ""), ("DisplayName", user.username if user else "")]

    async def list_all(self, call: S3Call) -> Response:
        """By name; 10,000 at most, or as many as are asked for."""
        user = call.user
        prefix = call.options.get("prefix", "")
        after = call.options.get("continuation-token", "")
        limit = call.number("max-buckets", BUCKETS_MAX)
        if not 0 < limit <= BUCKETS_MAX:
            raise S3Error("InvalidArgument", f"max-buckets must be 1 to {BUCKETS_MAX}")
        with call.control.records.read() as txn:
            own = [s for s in space_rows.by(txn, "owner", user.user_id) if not s.deleting]
        found = sorted(
            (s for s in own if s.name.startswith(prefix) and s.name > after), key=lambda s: s.name
        )
        buckets = [
            ("Bucket", [("Name", s.name), ("CreationDate", time_of(s.created_at * 10**9))])
            for s in found[:limit]
        ]
        token = found[limit - 1].name if len(found) > limit else None
        owner = [("ID", user.user_id), ("DisplayName", user.username)]
        return xml(
            "ListAllMyBucketsResult",
            [("Owner", owner), ("Buckets", buckets), ("ContinuationToken", token)],
        )

    async def create(self, call: S3Call) -> bool:
        """Returns False if the caller has it already: then nothing of it is changed. Raises
        S3Error."""
        if not _BUCKET.fullmatch(call.bucket):
            raise S3Error(
                "InvalidBucketName", "a bucket's name has 3 to 63 of a-z, 0-9, dots and hyphens"
            )
        name = of_bucket(call.headers.get("x-amz-acl", "private")) or "private"
        visibility = BUCKETS[name]
        if call.headers.get("content-length", "0") != "0":
            await call.document("CreateBucketConfiguration")
        try:
            check_space_name(call.bucket)
            await self._spaces.create(call, NewSpace(call.bucket, visibility))
        except BadRequest as error:
            raise S3Error("InvalidBucketName", str(error)) from None
        except Conflict:
            # As in the oldest region of S3, the owner may create it again.
            if not self._is_same(call, name):
                raise S3Error(
                    "BucketAlreadyExists", f"there is another bucket {call.bucket} already"
                ) from None
            return False
        return True

    def _is_same(self, call: S3Call, name: str) -> bool:
        try:
            space = self._spaces.get(call.bucket)
        except NoSuchThing:
            return False
        is_private = space.visibility == PRIVATE
        is_listed = name not in STORED or name == space.acl
        is_listed = is_listed and is_private == (BUCKETS[name] == PRIVATE)
        return space.owner_id == call.user.user_id and is_listed

    async def head(self, call: S3Call) -> Response:
        self.readable(call)
        return Response(b"", 200, {"x-amz-bucket-region": "us-east-1"}, content_type=CONTENT_TYPE)

    async def delete(self, call: S3Call) -> Response:
        self.find(call.bucket)
        try:
            await self._spaces.delete_empty(call)
        except Conflict:
            raise S3Error("BucketNotEmpty", "delete the bucket's objects first") from None
        return Response(b"", 204)

    async def has_objects(self, space: Space) -> bool:
        passed = frozenset({f"{UPLOADS}/"})
        files = listing.files(self._cluster.fs, space.directory, without=passed, page=1)
        async with aclosing(files) as found:
            async for _ in found:
                return True
        return False

    async def location(self, call: S3Call) -> Response:
        self.readable(call)
        return xml("LocationConstraint", [])

    async def versioning(self, call: S3Call) -> Response:
        space = self.readable(call)
        status = {"on": "Enabled", "suspended": "Suspended"}.get(space.versioning)
        return xml("VersioningConfiguration", [("Status", status)])

    async def put_versioning(self, call: S3Call) -> Response:
        """Versions once switched on can be suspended, and not be switched off."""
        space = self.owned(call)
        root = await call.document("VersioningConfiguration")
        status = {"Enabled": "on", "Suspended": "suspended"}.get(text_of(root, "Status"))
        if text_of(root, "MfaDelete") == "Enabled":
            raise S3Error("NotImplemented", "deletion by a second factor is not offered")
        if status is None:
            raise S3Error("MalformedXML", "Status is Enabled or Suspended")

        def change(txn: Txn) -> None:
            call.check_credential(txn)
            now = present_space(txn, space)
            if now is None:
                raise S3Error("NoSuchBucket", "the bucket was deleted meanwhile")
            change_space(txn, now, versioning=status)

        await call.control.records.write(change)
        return Response(b"", 200)

    # --- objects in a bucket ------------------------------------------------------

    async def list_objects(self, call: S3Call) -> Response:
        space = self.readable(call)
        options = call.options
        version = options.get("list-type", "1")
        if version not in ("1", "2"):
            raise S3Error("InvalidArgument", "list-type must be 2")
        wanted = Wanted.by(call)
        turn = self._cluster.turn(call.actor)
        page = await self._page(space, wanted, _after(call.options, version), turn)
        same = wanted.head(space, page)
        if version == "2":
            token = base64.urlsafe_b64encode(page.last.encode()).decode() if page.is_more else None
            start = options.get("start-after")
            same += [
                ("KeyCount", len(page.objects) + len(page.folders)),
                ("ContinuationToken", options.get("continuation-token")),
                ("NextContinuationToken", token),
                ("StartAfter", None if start is None else wanted.shown(start)),
            ]
        else:
            same += [("Marker", wanted.shown(options.get("marker", "")))]
            if page.is_more:
                same += [("NextMarker", wanted.shown(page.last))]
        has_owner = version == "1" or options.get("fetch-owner", "") == "true"
        owner = [("Owner", self.owner(call, space))] if has_owner else []
        contents = [
            ("Contents", [*_described(wanted.shown(key), entry), *owner])
            for key, entry in page.objects
        ]
        return xml("ListBucketResult", [*same, *contents, *_folders(wanted, page)])

    async def list_versions(self, call: S3Call) -> Response:
        """All versions, by key, the newest first. Without versions each object is one, ``null``."""
        space = self.readable(call)
        wanted = Wanted.by(call)
        marker, version = call.options.get("key-marker", ""), call.options.get("version-id-marker")
        if version and not (marker and re.fullmatch("null|[0-9a-f]{16}", version)):
            raise S3Error("InvalidArgument", "version-id-marker: there is no such version")
        owner = self.owner(call, space)
        listed: list[Child] = []
        last, is_more = ("", ""), False
        turn = self._cluster.turn(call.actor)
        groups = _Groups(wanted.prefix, wanted.delimiter)
        found = self._versions(space, wanted, groups, marker, version or "", turn)
        async with aclosing(found):
            async for key, each in found:
                if len(listed) == wanted.limit or (listed and groups.read > READ_MAX):
                    is_more = wanted.limit > 0
                    break
                if each is None:
                    listed.append(("CommonPrefixes", [("Prefix", wanted.shown(key))]))
                    last = key, ""
                else:
                    listed.append(_version(wanted.shown(key), each, owner))
                    last = key, id_of(each.entry)
        same = [
            *wanted.head(space, Page([], [], "", is_more)),
            ("KeyMarker", wanted.shown(marker)),
            ("VersionIdMarker", version),
            ("NextKeyMarker", wanted.shown(last[0]) if is_more else None),
            ("NextVersionIdMarker", (last[1] or None) if is_more else None),
        ]
        return xml("ListVersionsResult", [*same, *listed])

    async def _versions(
        self,
        space: Space,
        wanted: Wanted,
        groups: _Groups,
        marker: str,
        version: str,
        turn: Turn,
    ) -> AsyncGenerator[tuple[str, Version | None], None]:
        """(key, version), by key, from a version of a key on; None for a common prefix."""
        fs, first = self._cluster.fs, marker
        while True:
            start = ""
            if marker:
                place = await self.versions.place_of(space, marker, version) if version else "~"
                start = f"{path_of_version(marker)}!{place}"
            older = listing.files(
                fs,
                space.directory,
                prefix=path_of_version(wanted.prefix),
                after=start,
                page=wanted.limit + 1,
                turn=turn,
            )
            currents = all_keys(
                fs,
                space.directory,
                wanted.prefix,
                after=marker,
                page=wanted.limit + 1,
                turn=turn,
                vain_max=VAIN_MAX,
            )
            merged = self.versions.all(currents, older, marker)
            async with aclosing(currents), aclosing(older), aclosing(merged) as found:
                async for each in found:
                    common = groups.of(each.key)
                    if common is None:
                        yield each.key, each
                    elif common > first:
                        yield common, None
                    elif groups.is_long:
                        break
                else:
                    return
            marker, version = groups.skip(), ""

    async def _page(self, space: Space, wanted: Wanted, after: str, turn: Turn) -> Page:
        objects: list[tuple[str, Entry]] = []
        folders: list[str] = []
        last = ""
        groups = _Groups(wanted.prefix, wanted.delimiter)
        found = self._found(space, wanted, groups, after, turn)
        async with aclosing(found):
            async for key, entry in found:
                is_long = last != "" and groups.read > READ_MAX
                if len(objects) + len(folders) == wanted.limit or is_long:
                    return Page(objects, folders, last, wanted.limit > 0)
                last = key
                if entry is None:
                    folders.append(key)
                else:
                    objects.append((key, entry))
        return Page(objects, folders, last, False)

    async def _found(
        self, space: Space, wanted: Wanted, groups: _Groups, after: str, turn: Turn
    ) -> AsyncGenerator[tuple[str, Entry | None], None]:
        """(key, entry) of objects, by key; entry is None for a common prefix."""
        first = after
        while True:
            found = all_keys(
                self._cluster.fs,
                space.directory,
                wanted.prefix,
                by_folder=wanted.delimiter == "/",
                after=after,
                page=wanted.limit + 1,
                turn=turn,
                vain_max=VAIN_MAX,
            )
            async with aclosing(found):
                async for key, entry in found:
                    common = groups.of(key)
                    if common is None:
                        yield key, entry
                    elif common > first:
                        yield common, None
                    elif groups.is_long:
                        break
                else:
                    return
            after = groups.skip()

    async def delete_objects(self, call: S3Call) -> Response:
        """Up to 1,000 keys; each is deleted, or has its error."""
        space = self.find(call.bucket)
        if call.authority is None or not call.authority.has_policy(space):
            call.allow(space.target)
        root = await call.document("Delete", BYTES_MAX, 7 * KEYS_MAX)
        is_quiet = (root.findtext("Quiet") or "").strip().lower() == "true"
        wanted = root.findall("Object")
        if not 1 <= len(wanted) <= KEYS_MAX:
            raise S3Error("MalformedXML", f"give 1 to {KEYS_MAX} objects")
        results: list[Child | None] = [None] * len(wanted)

        async def delete(number: int) -> None:
            each = wanted[number]
            key = each.findtext("Key") or ""
            version = each.findtext("VersionId")
            conditions = Conditions(
                each.findtext("ETag"), each.findtext("LastModifiedTime"), each.findtext("Size")
            )
            named: list[Child] = [("Key", key), ("VersionId", version)]
            done = await self.delete_one(call, space, key, version or "", conditions)
            if isinstance(done, S3Error):
                results[number] = "Error", [*named, ("Code", done.code), ("Message", str(done))]
            elif not is_quiet:
                if done is not None and is_marker(done):
                    named.append(("DeleteMarker", True))
                    named.append(("DeleteMarkerVersionId", id_of(done)))
                results[number] = "Deleted", named

        async def delete_some(numbers: Iterator[int]) -> None:
            for number in numbers:
                await trio.lowlevel.checkpoint()  # a refusal waits for nothing
                await delete(number)

        async def work() -> bytes:
            numbers = iter(range(len(wanted)))
            async with trio.open_nursery() as nursery:
                for _ in range(DELETED_AT_ONCE):
                    nursery.start_soon(delete_some, numbers)
            return document("DeleteResult", [each for each in results if each is not None])

        return await self._patience.answer(call, work)

    async def delete_one(
        self, call: S3Call, space: Space, key: str, version: str, conditions: Conditions
    ) -> Entry | S3Error | None:
        """Delete an object, or a version. One that is not there counts as deleted. Returns the
        marker that was made or deleted, the version that was deleted, or a failure."""
        try:
            path = path_of(key)
            if not re.fullmatch("(null|[0-9a-f]{16})?", version):
                raise S3Error("InvalidArgument", "VersionId is null, or 16 hexadecimal digits")
            if call.key != key:  # one of many
                call = await call.about(DELETE, "s3:DeleteObject", call.bucket, key, version)
            if space.versioning:
                return await self._delete_kept(call, space, key, version, conditions)
            if version in ("", "null"):
                await delete_file(
                    call, self._cluster, self._spaces, space, path, check=conditions.check
                )
        except NoSuchThing:
            return None
        except Exception as error:
            if any(isinstance(leaf, RecordsFailed) for leaf in leaves(error)):
                raise  # and with it this process ends
            return as_s3_error(error, "S3 DELETE")
        return None

    async def _delete_kept(
        self, call: S3Call, space: Space, key: str, version: str, conditions: Conditions
    ) -> Entry | None:
        """Delete in a bucket with versions."""
        call.allow(space.target)

        def check(entry: Entry | None) -> None:
            if entry is not None:
                may_remove(call, space, entry)
                conditions.check(entry)
            elif conditions != Conditions():
                raise NoSuchThing(f"there is no object {key:.200}")  # and so nothing to mark

        if version:
            return await self.versions.delete_version(space, key, version, check)
        return (await self.versions.delete(space, key, call.user.user_id, check)).marker


class _Groups:
    """The common prefixes of keys that come in their order. One may have millions of keys: of these
    some are skipped one by one, and then all at once, by a new list. ``read`` is how many came."""

    def __init__(self, prefix: str, delimiter: str) -> None:
        self._begin = len(prefix)
        self._delimiter = delimiter
        self._common = ""
        self._skipped = 0
        self.read = 0

    def of(self, key: str) -> str | None:
        """The common prefix that begins with this key; empty: it began with an earlier one.
        None: the key is in none."""
        self.read += 1
        if self._common and key.startswith(self._common):
            self._skipped += key < self.end
            return ""
        cut = key.find(self._delimiter, self._begin) if self._delimiter else -1
        if cut < 0:
            return None
        self._common, self._skipped = key[: cut + len(self._delimiter)], 0
        return self._common

    @property
    def is_long(self) -> bool:
        return self._skipped > SKIPPED_MAX

    def skip(self) -> str:
        """After which a new list begins."""
        self._skipped = 0
        return self.end

    @property
    def end(self) -> str:
        """After all keys of the last one, but those that go on with this very sign."""
        return f"{self._common}{_LAST}"


def _after(options: Mapping[str, str], version: str) -> str:
    """The key, or common prefix, after which a list begins."""
    if version == "2" and options.get("continuation-token"):
        try:
            return base64.urlsafe_b64decode(options["continuation-token"]).decode()
        except ValueError:
            raise S3Error("InvalidArgument", "the continuation token is not one of ours") from None
    return options.get("start-after" if version == "2" else "marker", "")


def _folders(wanted: Wanted, page: Page) -> list[Child]:
    return [("CommonPrefixes", [("Prefix", wanted.shown(folder))]) for folder in page.folders]


def _described(key: str, entry: Entry) -> list[Child]:
    return [
        ("Key", key),
        ("LastModified", time_of(entry.modified_ns)),
        ("ETag", etag_of(entry, of_entry(entry))),
        ("Size", entry.length),
        ("StorageClass", "STANDARD"),
    ]


def _version(key: str, version: Version, owner: list[Child]) -> Child:
    entry = version.entry
    one: list[Child] = [
        ("VersionId", id_of(entry)),
        ("IsLatest", version.is_latest),
        ("Owner", owner),
    ]
    if is_marker(entry):
        return ("DeleteMarker", [("Key", key), ("LastModified", time_of(entry.modified_ns)), *one])
    return ("Version", [*_described(key, entry), *one])

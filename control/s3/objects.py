"""Objects: put, get, head, copy, delete, tags."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from email.utils import formatdate
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

import trio
from msgspec.structs import replace

from control.api import Conflict, Control, NoSuchThing, Response
from control.api.internals import InTheWay
from control.s3 import acl
from control.s3 import metadata as stored
from control.s3.buckets import Buckets, Conditions, xml
from control.s3.call import S3Call
from control.s3.checksums import ALGORITHMS, FULL, PREFIX, Sum, algorithm_of, text_of
from control.s3.documents import Child, document, time_of
from control.s3.errors import S3Error
from control.s3.lifecycle import Lifecycle
from control.s3.metadata import Metadata, etag_of
from control.s3.names import key_of, path_of
from control.s3.patience import Patience
from control.storage import (
    CREATE,
    READ,
    Cluster,
    Space,
    Spaces,
    Transfers,
    Upload,
    UploadRequest,
    check_path,
    conditional,
    id_of,
    is_marker,
    may_remove,
    ranges,
)
from gfs.blocks import KIB
from gfs.client import Entry
from gfs.errors import FileChanged, IsADirectory, NotADirectory, NotFound

#: Up to this size one read and one send cost less than a stream.
WHOLE_BYTES_MAX = 64 * KIB
REOPENED_MAX = 10
PARTS_LISTED_MAX = 1000
#: Parameters of a signed GET that replace headers of its answer.
OVERRIDES = ("cache-control", "content-disposition", "content-encoding", "content-language",
             "content-type", "expires")  # fmt: skip


def _named(space: Space, entry: Entry) -> dict[str, str]:
    """Which version it is, in a bucket that has some."""
    return {"x-amz-version-id": id_of(entry)} if space.versioning else {}


def made(space: Space, entry: Entry) -> dict[str, str]:
    """The same of what was just stored: as in S3 it has no name while versions are suspended."""
    return _named(space, entry) if id_of(entry) != "null" else {}


def _marked(marker: Entry) -> dict[str, str]:
    return {"x-amz-delete-marker": "true", "x-amz-version-id": id_of(marker)}


def no_such_key(key: str) -> S3Error:
    return S3Error("NoSuchKey", f"there is no object {key:.200}")


class Objects:
    def __init__(
        self, control: Control, cluster: Cluster, spaces: Spaces, transfers: Transfers,
        buckets: Buckets, patience: Patience, lifecycle: Lifecycle,
    ) -> None:  # fmt: skip
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._transfers = transfers
        self._buckets = buckets
        self._patience = patience
        self._lifecycle = lifecycle

    # --- reading ------------------------------------------------------------------

    async def find(self, space: Space, key: str, version: str = "") -> Entry:
        """An object, or a version of it. Raises S3Error if there is none, or it is a delete
        marker."""
        path = path_of(key)
        if version:
            found = await self._buckets.versions.find(space, key, version)
            if found is None:
                raise S3Error("NoSuchVersion", f"there is no such version of {key:.200}")
            if is_marker(found):
                raise S3Error("MethodNotAllowed", "this is a delete marker", _marked(found))
            return found
        try:
            entry = await self._cluster.fs.stat(f"{space.directory}/{path}")
        except (NotFound, NotADirectory):
            return await self._latest(space, key)
        if entry.kind != "file":
            return await self._latest(space, key)
        return entry

    async def _latest(self, space: Space, key: str) -> Entry:
        """Of a key with no file at its path. Raises S3Error."""
        found = await self._buckets.versions.latest(space, key) if space.versioning else None
        if found is None:
            raise no_such_key(key)
        if is_marker(found):
            raise S3Error("NoSuchKey", f"the object {key:.200} was deleted", _marked(found))
        return found

    async def head(self, call: S3Call) -> Response:
        space = self._buckets.readable(call)
        entry = await self.find(space, call.key, call.version)
        answer = _Answer(call, entry)
        self._mark(call, space, entry, answer.headers)
        refusal = answer.refusal()
        return refusal if refusal is not None else answer.head()

    async def attributes(self, call: S3Call) -> Response:
        """Of what is asked for, what is known."""
        space = self._buckets.readable(call)
        entry = await self.find(space, call.key, call.version)
        call.answers.update(_named(space, entry))
        metadata = stored.of_entry(entry)
        sums = checksum_children(metadata)
        known: dict[str, Child] = {
            "ETag": ("ETag", etag_of(entry, metadata).strip('"')),
            "Checksum": ("Checksum", sums or None),
            "ObjectParts": ("ObjectParts", _parts(call, metadata) if metadata.parts else None),
            "StorageClass": ("StorageClass", "STANDARD"),
            "ObjectSize": ("ObjectSize", entry.length),
        }
        asked = {
            name.strip() for name in call.headers.get("x-amz-object-attributes", "").split(",")
        }
        if not asked <= known.keys():
            raise S3Error("InvalidArgument", f"x-amz-object-attributes are {', '.join(known)}")
        found = [known[name] for name in known if name in asked]
        response = xml("GetObjectAttributesResponse", found)
        response.headers["Last-Modified"] = formatdate(entry.modified_ns // 10**9, usegmt=True)
        return response

    async def get(self, call: S3Call) -> Response:
        space = self._buckets.readable(call)
        for _ in range(REOPENED_MAX):
            try:
                return await self._get(call, space)
            except FileChanged:
                continue  # it was replaced between the opening and the first read
        raise S3Error("ServiceUnavailable", "the object is being replaced again and again")

    async def _get(self, call: S3Call, space: Space) -> Response:
        full = f"{space.directory}/{call.path}"
        if call.version:
            full = (await self.find(space, call.key, call.version)).path
        try:
            file: Any = await self._cluster.fs.open(full)
        except (NotFound, NotADirectory, IsADirectory):
            await self._latest(space, call.key)
            raise FileChanged(full) from None  # it has come back
        entry: Entry = file.entry
        if call.version and id_of(entry) != call.version:
            raise FileChanged(full)  # it has moved, and another is there
        answer = _Answer(call, entry)
        self._mark(call, space, entry, answer.headers)
        refusal = answer.refusal()
        if refusal is not None:
            return refusal
        start, stop, status = answer.span()
        headers = answer.headers
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.length}"
        if stop - start <= WHOLE_BYTES_MAX:
            data = await file.pread(start, stop - start)
            return Response(data, status, headers, content_type=answer.type)
        headers["Content-Length"] = str(stop - start)
        body = _stream(file, start, stop - start)
        await anext(body)  # a failure before the first byte is answered with a status
        return Response(body, status, headers, content_type=answer.type)

    def _mark(self, call: S3Call, space: Space, entry: Entry, headers: dict[str, str]) -> None:
        """Say in an answer when the object expires, and which version it is."""
        if not call.version:
            self._lifecycle.mark(space, call.key, entry, headers)
        headers.update(_named(space, entry))

    # --- writing ------------------------------------------------------------------

    async def put(self, call: S3Call) -> Response:
        metadata = replace(stored.of_request(call.headers), tags=tags_of_header(call.headers))
        payload = call.open_payload()
        stored.check_room(metadata, payload.algorithm)

        def described() -> Metadata:
            return replace(metadata, etag=payload.md5.hex(), checksum=payload.checksum)

        await self.store(call, call.bucket, call.path, described)
        headers = {"ETag": f'"{payload.md5.hex()}"'}
        headers |= checksum_headers(Metadata(checksum=payload.checksum))
        space = self._buckets.find(call.bucket)
        if self._lifecycle.has_rules(space):
            with suppress(S3Error):  # it was stored, and is gone already
                entry = await self.find(space, call.key)
                self._lifecycle.mark(space, call.key, entry, headers)
        return Response(b"", 200, headers)

    async def store(
        self,
        call: S3Call,
        bucket: str,
        path: str,
        described: Callable[[], Metadata],
        within: str = "",
        joined: Sequence[Entry] = (),
    ) -> Entry:
        """Store the call's body as a file, under the conditions of its headers; or instead what
        other files have. ``within``: a folder above it that must be there.

        Raises S3Error: NoSuchBucket also if it was deleted meanwhile.
        """
        expect = await self._expected(call, bucket, path)
        request = UploadRequest(
            bucket, path, "", True, "", expect,
            lambda: {**stored.attributes(described()), **call.marks}, within,
            joined, check_path,
        )  # fmt: skip
        parts = (call, self._control, self._cluster, self._spaces)
        space = self._buckets.find(bucket)
        self._check_list(call, space)
        try:
            upload = Upload(*parts, request, self._transfers, form=False)
            await upload.take()
        except Conflict as error:
            if not await self._are_there(joined):
                raise _source_changed() from None
            if expect is None or isinstance(error, InTheWay):
                raise
            raise S3Error("PreconditionFailed", "the object is another one meanwhile") from None
        except NoSuchThing:
            self._buckets.find(bucket)
            raise
        assert upload.entry is not None
        if key_of(path) is not None:
            call.answers.update(made(space, upload.entry))
        return upload.entry

    async def _are_there(self, files: Sequence[Entry]) -> bool:
        """Whether they are still at their paths, as they were."""
        for entry in files:
            try:
                now = await self._cluster.fs.stat(entry.path)
            except (NotFound, NotADirectory):
                return False
            if (now.inode, now.digest) != (entry.inode, entry.digest):
                return False
        return True

    def _check_list(self, call: S3Call, space: Space) -> None:
        """Check that the object may have the list that is asked for. Raises S3Error."""
        if "x-amz-acl" in call.headers:
            call.allow(space.target)
            acl.check(space, acl.canned(call.headers["x-amz-acl"]))

    async def _expected(self, call: S3Call, bucket: str, path: str) -> int | None:
        """The inode that must be at the path by the conditions of a write; 0: none may be; None:
        anything."""
        if_match, if_none = call.headers.get("if-match"), call.headers.get("if-none-match")
        if if_match is None and if_none is None:
            return None
        space = self._buckets.find(bucket)
        call.allow(space.target)
        try:
            there: Entry | None = await self._cluster.fs.stat(f"{space.directory}/{path}")
        except (NotFound, NotADirectory):
            there = None
        if there is not None and there.kind != "file":
            there = None
        key = key_of(path)
        if there is None and space.versioning and key is not None:
            with suppress(S3Error):  # there is none, or its marker
                there = await self._latest(space, key)
        etag = etag_of(there) if there is not None else None
        if if_match is not None:
            if there is None:
                raise no_such_key(call.key)
            if not conditional.matches(_quoted(if_match), etag, strong=True):
                raise S3Error("PreconditionFailed", "the object is not the one of If-Match")
        if (
            if_none is not None
            and there is not None
            and conditional.matches(_quoted(if_none), etag, strong=False)
        ):
            raise S3Error("PreconditionFailed", "there is such an object already")
        return there.inode if there is not None else 0

    async def copy(self, call: S3Call) -> Response:
        """Copy an object, with its metadata or that of the request."""
        return await self._patience.answer(call, partial(self._copy, call))

    async def _copy(self, call: S3Call) -> bytes:
        for _ in range(REOPENED_MAX):
            with suppress(FileChanged):  # what was known of it is not true any more
                return await self._copy_once(call)
        raise S3Error("OperationAborted", "the object is being changed again and again")

    async def _copy_once(self, call: S3Call) -> bytes:
        source, entry = await self.source(call)
        self._check_list(call, self._buckets.find(call.bucket))
        there = stored.of_entry(entry)
        is_itself = source == (call.bucket, call.key)
        source_version = call.headers["x-amz-copy-source"].partition("?versionId=")[2]
        if _replaces(call, "metadata"):
            metadata = replace(stored.of_request(call.headers), etag=there.etag,
                               checksum=there.checksum, parts=there.parts,
                               sums=there.sums)  # fmt: skip
        else:
            metadata = there
            if is_itself and not source_version:
                raise S3Error("InvalidRequest", "a copy to itself must replace its metadata")
        if _replaces(call, "tagging"):
            metadata = replace(metadata, tags=tags_of_header(call.headers))
        else:
            metadata = replace(metadata, tags=there.tags)
            if there.tags:
                tagged = {**call.headers, "x-amz-tagging": urlencode(there.tags)}
                put = await call.about(
                    CREATE, "s3:PutObject", call.bucket, call.key, headers=tagged
                )
                put.allow(self._buckets.find(call.bucket).target)
        if not metadata.etag:
            metadata = replace(metadata, etag=etag_of(entry).strip('"'))
        algorithm = call.headers.get(f"{PREFIX}algorithm")
        if algorithm is not None:
            metadata = await self.summed(entry, metadata, algorithm_of(algorithm))
        is_itself = is_itself and not self._buckets.find(call.bucket).versioning
        done = await self._describe_again(call, entry, metadata) if is_itself else None
        if done is None:
            await self.store_copy(call, call.path, entry, metadata)
            done = await self.find(self._buckets.find(call.bucket), call.key)
        return document(
            "CopyObjectResult",
            [
                ("LastModified", time_of(done.modified_ns)),
                ("ETag", etag_of(done)),
                *checksum_children(stored.of_entry(done)),
            ],
        )

    async def summed(self, entry: Entry, metadata: Metadata, algorithm: str) -> Metadata:
        """With the checksum of all its bytes by this algorithm: they are read if it has another."""
        if metadata.checksum.startswith(f"{algorithm}:") and metadata.checksum_type == FULL:
            return metadata
        total = ALGORITHMS[algorithm][0]()
        async with aclosing(self._read_all([(entry, 0, entry.length)], [total])) as pieces:
            async for _ in pieces:
                pass
        text = f"{algorithm}:{text_of(total.digest())}"
        return replace(metadata, checksum=text, sums=[])

    async def _describe_again(self, call: S3Call, entry: Entry, metadata: Metadata) -> Entry | None:
        """Give an object other metadata, in one step, under the conditions of the headers. None
        if it was written in place: its bytes have another ETag than it may have had. Raises
        FileChanged if others have changed its metadata or tags since the entry was read."""
        space = self._buckets.find(call.bucket)
        call.allow(space.target)
        if not entry.digest:
            return None
        expect = await self._expected(call, call.bucket, call.path)
        may_remove(call, space, entry)
        if expect not in (None, entry.inode):
            raise S3Error("PreconditionFailed", "the object is another one meanwhile")
        fs = self._cluster.fs
        async with self._buckets.versions.locked(space, call.key):
            try:
                now = await fs.stat(entry.path)
                if now.inode != entry.inode or now.attributes == entry.attributes:
                    return await fs.set_attributes(
                        entry.path,
                        stored.attributes(metadata),
                        modified_ns=time.time_ns(),
                        expect=entry.inode,
                    )
            except (FileChanged, NotFound, NotADirectory):
                raise S3Error("OperationAborted", "the object was replaced meanwhile") from None
        raise FileChanged(entry.path)

    async def store_copy(
        self, call: S3Call, path: str, source: Entry, metadata: Metadata, within: str = ""
    ) -> None:
        """Store a whole file again."""
        pieces = [(source, 0, source.length)]
        if source.digest:
            await self.store_joined(call, path, [source], lambda: metadata, within)
            return
        # It was written in place: what is known of its bytes may not be true any more.
        md5 = hashlib.md5(usedforsecurity=False)

        def described() -> Metadata:
            return replace(metadata, etag=md5.hexdigest(), checksum="")

        await self.store_stream(call, pieces, described, path, [md5], within)

    async def store_joined(
        self,
        call: S3Call,
        path: str,
        files: Sequence[Entry],
        described: Callable[[], Metadata],
        within: str = "",
    ) -> None:
        """Store the bytes of other files one after the other: no byte moves, since they share
        their chunks. All but the last must be of whole ones, and none written in place."""
        call.read_from(_nothing(), sum(each.length for each in files))
        await self.store(call, call.bucket, path, described, within, files)

    async def store_stream(
        self,
        call: S3Call,
        pieces: list[tuple[Entry, int, int]],
        described: Callable[[], Metadata],
        path: str = "",
        sums: Sequence[Sum] = (),
        within: str = "",
    ) -> None:
        """Store bytes of other files one after the other: (file, offset, length). ``sums`` get
        them, too."""
        body = self._read_all(pieces, sums)
        async with aclosing(body):
            call.read_from(body, sum(length for _, _, length in pieces))
            await self.store(call, call.bucket, path or call.path, described, within)

    async def _read_all(self, pieces: list[tuple[Entry, int, int]], sums: Sequence[Sum]) -> Any:
        def add(data: bytes) -> None:
            for each in sums:
                each.update(data)

        for entry, offset, length in pieces:
            if not length:
                continue
            try:
                file: Any = await self._cluster.fs.open(entry.path)
                if file.entry.inode != entry.inode or file.entry.digest != entry.digest:
                    raise FileChanged(entry.path)
                async with aclosing(file.stream(offset, length)) as stream:
                    async for piece in stream:
                        if sums:
                            await trio.to_thread.run_sync(add, piece)
                        yield piece
            except (FileChanged, NotFound, NotADirectory, IsADirectory):
                raise _source_changed() from None

    async def source(self, call: S3Call) -> tuple[tuple[str, str], Entry]:
        """The object that ``x-amz-copy-source`` names, which the caller may read, under its
        conditions."""
        text, _, version = call.headers["x-amz-copy-source"].partition("?versionId=")
        bucket, slash, key = unquote(text).removeprefix("/").partition("/")
        if not (bucket and slash and key):
            raise S3Error("InvalidArgument", "x-amz-copy-source must be BUCKET/KEY")
        if not re.fullmatch("(null|[0-9a-f]{16})?", version):
            raise S3Error("InvalidArgument", "the source's versionId is null, or 16 hex digits")
        space = self._buckets.find(bucket)
        reading = await call.about(READ, "s3:GetObject", bucket, key, version)
        reading.allow(space.target, reading=True)
        expected = call.headers.get("x-amz-source-expected-bucket-owner")
        if expected not in (None, space.owner_id):
            raise S3Error("AccessDenied", "the source's bucket has another owner")
        entry = await self.find(space, key, version)
        for name, value in _named(space, entry).items():
            call.answers[name.replace("x-amz-", "x-amz-copy-source-")] = value

        def condition(name: str) -> str | None:
            value = call.headers.get(f"x-amz-copy-source-{name.lower()}")
            return value if value is None or "Match" not in name else _quoted(value)

        verdict = conditional.judge(condition, _validators(entry))
        if verdict is not conditional.Verdict.GO:
            raise S3Error("PreconditionFailed", "the source is not as the conditions say")
        return (bucket, key), entry

    async def delete(self, call: S3Call) -> Response:
        space = self._buckets.find(call.bucket)
        call.allow(space.target)
        conditions = Conditions(
            call.headers.get("if-match"),
            call.headers.get("x-amz-if-match-last-modified-time"),
            call.headers.get("x-amz-if-match-size"),
        )
        done = await self._buckets.delete_one(call, space, call.key, call.version, conditions)
        if isinstance(done, S3Error):
            raise done
        if done is not None and is_marker(done):
            return Response(b"", 204, _marked(done))
        return Response(b"", 204, {"x-amz-version-id": call.version} if call.version else {})


def _source_changed() -> S3Error:
    return S3Error("OperationAborted", "the source was replaced or deleted meanwhile: try again")


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield


async def _stream(file: Any, start: int, length: int) -> Any:
    async with aclosing(file.stream(start, length)) as stream:
        first = await anext(stream)
        yield b""
        yield first
        async for piece in stream:
            yield piece


def _replaces(call: S3Call, what: str) -> bool:
    """Whether a copy has this as the request says, and not as its source. Raises S3Error."""
    name = f"x-amz-{what}-directive"
    said = call.headers.get(name, "COPY").upper()
    if said not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"{name} is COPY or REPLACE")
    return said == "REPLACE"


def _quoted(etags: str) -> str:
    """S3 takes an ETag without its quotes as well."""
    return etags if '"' in etags or etags.strip() == "*" else f'"{etags.strip()}"'


def _validators(entry: Entry) -> conditional.Validators:
    return conditional.Validators(etag_of(entry), entry.modified_ns // 10**9)


def tags_of_header(headers: Mapping[str, str]) -> dict[str, str]:
    text = headers.get("x-amz-tagging", "")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except ValueError:
        raise S3Error("InvalidArgument", "x-amz-tagging must be like a query") from None
    return check_tags(pairs)


def check_tags(pairs: list[tuple[str, str]], tags_max: int = stored.TAGS_MAX) -> dict[str, str]:
    """Raises S3Error."""
    tags = dict(pairs)
    if len(tags) != len(pairs):
        raise S3Error("InvalidTag", "a tag is there twice")
    if len(tags) > tags_max:
        raise S3Error("InvalidTag", f"at most {tags_max} tags are allowed")
    if any(not 0 < len(key) <= 128 or len(value) > 256 for key, value in tags.items()):
        raise S3Error("InvalidTag", "a tag's key has 1 to 128 letters, its value at most 256")
    return tags


def checksum_headers(metadata: Metadata) -> dict[str, str]:
    """The checksum of an object, if it has one."""
    algorithm, _, value = metadata.checksum.partition(":")
    if not algorithm:
        return {}
    return {PREFIX + algorithm: value, PREFIX + "type": metadata.checksum_type}


def checksum_children(metadata: Metadata) -> list[Child]:
    """The same, in a document."""
    algorithm, _, value = metadata.checksum.partition(":")
    if not algorithm:
        return []
    return [(f"Checksum{algorithm.upper()}", value), ("ChecksumType", metadata.checksum_type)]


def _parts(call: S3Call, metadata: Metadata) -> list[Child]:
    """Some of the parts that an object was uploaded in."""
    after = _count(call.headers.get("x-amz-part-number-marker"), 0)
    limit = min(_count(call.headers.get("x-amz-max-parts"), PARTS_LISTED_MAX), PARTS_LISTED_MAX)
    algorithm = metadata.checksum.partition(":")[0].upper()
    every = list(enumerate(metadata.lengths, 1))
    shown = every[after : after + limit]
    parts: list[Child] = [
        (
            "Part",
            [
                ("PartNumber", number),
                ("Size", length),
                (f"Checksum{algorithm}", metadata.sums[number - 1] if metadata.sums else None),
            ],
        )
        for number, length in shown
    ]
    return [
        ("PartsCount", len(every)),
        ("PartNumberMarker", after),
        ("NextPartNumberMarker", shown[-1][0] if shown else 0),
        ("MaxParts", limit),
        ("IsTruncated", after + limit < len(every)),
        *parts,
    ]


def _count(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise S3Error("InvalidArgument", f"{text:.80} is not a number")
    return int(text)


class _Answer:
    """The answer to GET or HEAD of one object."""

    def __init__(self, call: S3Call, entry: Entry) -> None:
        self._call = call
        self._entry = entry
        metadata = stored.of_entry(entry)
        self._validators = _validators(entry)
        self._metadata = metadata
        self.type = stored.type_of(call.key, metadata)
        self.headers = {
            "ETag": etag_of(entry, metadata),
            "Last-Modified": formatdate(entry.modified_ns // 10**9, usegmt=True),
            "Accept-Ranges": "bytes",
            **metadata.headers,
            **{stored.USER + name: value for name, value in metadata.user.items()},
        }
        if metadata.tags:
            self.headers["x-amz-tagging-count"] = str(len(metadata.tags))
        if call.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            self.headers |= checksum_headers(metadata)
        for name in OVERRIDES:
            value = call.options.get(f"response-{name}", "")
            if value:
                if call.principal is None:
                    raise S3Error("InvalidRequest", "sign a request that changes headers")
                if not stored.is_value(value):
                    raise S3Error("InvalidArgument", f"response-{name} has control characters")
                if name == "content-type":
                    self.type = value
                else:
                    self.headers[name] = value

    def _header(self, name: str) -> str | None:
        text = self._call.header(name)
        return _quoted(text) if text is not None and name in ("If-Match", "If-None-Match") else text

    def refusal(self) -> Response | None:
        verdict = conditional.judge(self._header, self._validators)
        if verdict is conditional.Verdict.FAILED:
            raise S3Error("PreconditionFailed", "the object is not the one of the conditions")
        # A write in place need change neither length nor time, and so not the ETag.
        if verdict is conditional.Verdict.NOT_MODIFIED and self._entry.digest:
            headers = {n: v for n, v in self.headers.items() if not n.startswith(PREFIX)}
            response = Response(b"", 304, headers)
            del response.headers["Content-Length"], response.headers["Content-Type"]
            return response
        return None

    def span(self) -> tuple[int, int, int]:
        """The bytes to send, and the status."""
        length = self._entry.length
        if "partNumber" in self._call.options:
            return self._part(self._call.number("partNumber", 0))
        header = self._call.headers.get("range")
        same = self._call.headers.get("if-range")
        if header is None or (same is not None and not self._entry.digest):
            return 0, length, 200
        if not conditional.range_counts(same, self._validators):
            return 0, length, 200
        try:
            spans = ranges.wanted(header, length)
        except ranges.Unsatisfiable:
            raise S3Error(
                "InvalidRange",
                f"the object has {length} bytes, and none of those that were asked for",
                {"Content-Range": f"bytes */{length}"},
            ) from None
        if spans is None or len(spans) != 1:
            return 0, length, 200
        self._forget_checksum()  # it is that of the whole object
        return spans[0].start, spans[0].stop, 206

    def _forget_checksum(self) -> None:
        for name in [n for n in self.headers if n.startswith(PREFIX)]:
            del self.headers[name]

    def _part(self, number: int) -> tuple[int, int, int]:
        """One of the parts that it was uploaded in. If they are not known, it is one."""
        lengths = self._metadata.lengths
        if not 1 <= number <= max(1, len(lengths)):
            raise S3Error("InvalidPart", f"the object has {max(1, len(lengths))} parts")
        if not lengths:
            return 0, self._entry.length, 200
        self.headers["x-amz-mp-parts-count"] = str(len(lengths))
        if PREFIX + "type" in self.headers:
            self._forget_checksum()
            if self._metadata.sums:
                algorithm = self._metadata.checksum.partition(":")[0]
                self.headers[PREFIX + algorithm] = self._metadata.sums[number - 1]
                self.headers[PREFIX + "type"] = self._metadata.checksum_type
        start = sum(lengths[: number - 1])
        return start, start + lengths[number - 1], 206

    def head(self) -> Response:
        start, stop, status = self.span()
        if status == 206:
            self.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{self._entry.length}"
        response = Response(b"", status, self.headers, content_type=self.type)
        response.headers["Content-Length"] = str(stop - start)
        return response

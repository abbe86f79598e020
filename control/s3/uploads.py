"""Multipart uploads.

An upload under way is a folder of the bucket, ``.s3-uploads/ID``: in it the file ``upload`` (the
key, and as its attributes the metadata of the object) and a file for each part, ``00001`` to
``10000``. So parts count in the quotas, survive any crash, and are listed,
replaced and deleted like other files. What completes an upload is the publication of the
object, in one step. After that the folder is deleted (:mod:`control.storage.unfinished`, which also
expires it). So a process that is killed leaves the object, or the upload, or both; the object's
attribute ``upload`` says of which upload it is.

The object shares the chunks of its parts if all but the last are of whole ones; else completing
copies them through this process. ``docs/s3.md`` says what else was considered.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import NamedTuple
from xml.etree.ElementTree import Element

import trio
from msgspec.structs import replace

from control.api import Control, NoSuchThing, RecordsFailed, Response
from control.api.internals import HeaderTexts
from control.s3 import metadata as stored
from control.s3.buckets import Buckets, xml
from control.s3.call import S3Call
from control.s3.checksums import ALGORITHMS, COMPOSITE, FULL, PREFIX, algorithm_of, combined
from control.s3.checksums import text_of as text_of_sum
from control.s3.documents import BYTES_MAX, Child, document, time_of, url_encoded
from control.s3.errors import S3Error
from control.s3.metadata import Metadata, etag_of
from control.s3.names import UPLOADS, path_of
from control.s3.objects import Objects, checksum_children, made, tags_of_header
from control.s3.patience import Patience
from control.s3.payload import Payload
from control.storage import (
    PATH_BYTES_MAX,
    UPLOAD,
    Cluster,
    Space,
    Spaces,
    completions,
    end_upload,
    folder_of,
    is_upload,
    listing,
    owner_of,
    upload_folders,
)
from gfs.blocks import CHUNK_BYTES, MIB
from gfs.client import Entry
from gfs.errors import GfsError, NotADirectory, NotFound

log = logging.getLogger(__name__)

PARTS_MAX = 10_000
#: All parts but the last have at least so many bytes, as S3 has it.
PART_BYTES_MIN = 5 * MIB
LIST_MAX = 1000
#: More parts at once would keep other tasks waiting for over a millisecond or two.
INLINE_PARTS_MAX = 100
#: Uploads whose keys are read at once.
PAGE = 256
_ID = re.compile(r"[0-9a-f]{32}")
_MD5 = re.compile(r"[0-9a-f]{32}")


class Found(NamedTuple):
    """An upload under way."""

    space: Space
    folder: str
    #: What the object is to have.
    metadata: Metadata

    @property
    def algorithm(self) -> str:
        """Of its checksum, and those of its parts; empty: it is to have none."""
        return self.metadata.checksum.partition(":")[0]


class Part(NamedTuple):
    """A part that the object is to have."""

    number: int
    #: MD5 in hex.
    etag: str
    #: ``ALGORITHM:BASE64``; empty: any.
    checksum: str


def _checksum(
    chosen: str, parts: list[str], lengths: list[int], headers: Mapping[str, str]
) -> tuple[str, list[str]]:
    """The checksum of an object of several parts, of the kind that its upload began with, as it is
    stored, and those of the parts in Base64; empty if not all have one.

    ``parts``: theirs, as they are stored. ``headers``: one may have what it must be. Raises S3Error
    if it is another.
    """
    algorithm, _, kind = chosen.partition(":")
    found = [part.partition(":") for part in parts]
    text, values = "", [value for _, _, value in found]
    if not algorithm or any(each[0] != algorithm for each in found):
        values = []
    elif kind == FULL:
        sums = map(base64.b64decode, values)
        text = text_of_sum(combined(algorithm, zip(sums, lengths, strict=True)))
    else:
        total = ALGORITHMS[algorithm][0]()
        total.update(b"".join(map(base64.b64decode, values)))
        text = f"{text_of_sum(total.digest())}-{len(values)}"
    if algorithm and headers.get(PREFIX + algorithm, text) != text:
        raise S3Error("BadDigest", f"the parts have another {algorithm} checksum")
    return f"{algorithm}:{text}" if text else "", values


class Uploads:
    def __init__(
        self,
        control: Control,
        cluster: Cluster,
        spaces: Spaces,
        buckets: Buckets,
        objects: Objects,
        patience: Patience,
    ) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._buckets = buckets
        self._objects = objects
        self._patience = patience
        self._end = partial(end_upload, control, cluster, spaces)
        self._completions = completions(control)

    # --- parts --------------------------------------------------------------------

    async def create(self, call: S3Call) -> Response:
        path_of(call.key)
        algorithm, kind = _checksum_of(call)
        metadata = replace(
            stored.of_request(call.headers),
            tags=tags_of_header(call.headers),
            checksum=f"{algorithm}:{kind}" if algorithm else "",
        )
        stored.check_room(metadata, algorithm, in_parts=True)
        upload_id = secrets.token_hex(16)
        key = call.key.encode()
        call.read_from(_once(key), len(key))
        await self._objects.store(
            call, call.bucket, f"{folder_of(upload_id)}/upload", lambda: metadata
        )
        response = xml(
            "InitiateMultipartUploadResult",
            [("Bucket", call.bucket), ("Key", call.key), ("UploadId", upload_id)],
        )
        if algorithm:
            response.headers[f"{PREFIX}algorithm"] = algorithm.upper()
            response.headers[f"{PREFIX}type"] = kind
        return response

    async def _find(self, call: S3Call) -> Found:
        space = self._buckets.find(call.bucket)
        call.allow(space.target)
        upload_id = call.options["uploadId"]
        if not _ID.fullmatch(upload_id):
            raise _missing()
        folder = folder_of(upload_id)
        path = f"{space.directory}/{folder}/upload"
        try:
            entry = await self._cluster.fs.stat(path)
            # Anybody may have put a file of any length there, over REST.
            is_key = entry.kind == "file" and entry.length <= PATH_BYTES_MAX
            key = await self._cluster.fs.get(path) if is_key else b""
        except (NotFound, NotADirectory):
            raise _missing() from None
        if key != call.key.encode():
            raise _missing()
        if space.is_default and owner_of(entry) != call.user.user_id:
            raise S3Error("AccessDenied", "this upload is another user's")
        return Found(space, folder, stored.of_entry(entry))

    async def put_part(self, call: S3Call) -> Response:
        number = _number(call.options.get("partNumber", ""))
        found = await self._find(call)
        path = f"{found.folder}/{number:05d}"
        if "x-amz-copy-source" in call.headers:
            work = partial(self._copy_part, call, found, path)
            return await self._patience.answer(call, work)
        return await self._put_part(call, found, path)

    async def _put_part(self, call: S3Call, upload: Found, path: str) -> Response:
        payload = call.open_payload(upload.algorithm)
        if upload.algorithm not in ("", payload.algorithm):
            raise S3Error(
                "InvalidRequest",
                f"the upload has checksums by {upload.algorithm}, and this part one by "
                f"{payload.algorithm}: then the object could have none",
            )

        def described() -> Metadata:
            return Metadata(etag=payload.md5.hex(), checksum=payload.checksum)

        with _as_missing():
            await self._objects.store(call, call.bucket, path, described, upload.folder)
        headers = {"ETag": f'"{payload.md5.hex()}"'}
        algorithm, _, value = payload.checksum.partition(":")
        if algorithm:
            headers[PREFIX + algorithm] = value
        return Response(b"", 200, headers)

    async def _copy_part(self, call: S3Call, upload: Found, path: str) -> bytes:
        _, entry = await self._objects.source(call)
        start, stop = 0, entry.length
        text = call.headers.get("x-amz-copy-source-range")
        if text is not None:
            found = re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{1,18})", text)
            if found is None:
                raise S3Error("InvalidArgument", "the range must be like bytes=0-99")
            if not int(found[1]) <= int(found[2]) < entry.length:
                raise S3Error("InvalidRange", "the range is not one of the source")
            start, stop = int(found[1]), int(found[2]) + 1
        known = stored.of_entry(entry)
        algorithm = upload.algorithm
        with _as_missing():
            if stop - start == entry.length and entry.digest and _MD5.fullmatch(known.etag):
                about = Metadata(etag=known.etag, checksum=known.checksum)
                if algorithm:
                    about = await self._objects.summed(entry, about, algorithm)
                await self._objects.store_copy(call, path, entry, about, upload.folder)
            else:
                md5 = hashlib.md5(usedforsecurity=False)
                total = ALGORITHMS[algorithm][0]() if algorithm else None

                def described() -> Metadata:
                    text = f"{algorithm}:{text_of_sum(total.digest())}" if total else ""
                    return Metadata(etag=md5.hexdigest(), checksum=text)

                pieces = [(entry, start, stop - start)]
                sums = [md5, total] if total else [md5]
                await self._objects.store_stream(call, pieces, described, path, sums, upload.folder)
                about = described()
        said: list[Child] = [
            ("LastModified", time_of(time.time_ns())),
            ("ETag", f'"{about.etag}"'),
            *_checksum_child(about, algorithm),
        ]
        return document("CopyPartResult", said)

    async def _parts(
        self, space: Space, folder: str, after: int = 0
    ) -> AsyncGenerator[tuple[int, Entry], None]:
        path = f"{space.directory}/{folder}"
        try:
            async with aclosing(self._cluster.fs.scan(path, f"{after:05d}")) as found:
                async for entry in found:
                    name = entry.path.rpartition("/")[2]
                    if name.isdecimal():
                        yield int(name), entry
        except (NotFound, NotADirectory):
            return

    # --- the end ------------------------------------------------------------------

    async def complete(self, call: S3Call) -> Response:
        # A checksum in its headers is that of the object, and not that of the document.
        headers = HeaderTexts(call.headers)
        for name in [name for name in headers if name.startswith(PREFIX)]:
            del headers[name]
        call.payload = Payload(aiter(call.request.body), headers, call.signed, call.signer)
        root = await call.document("CompleteMultipartUpload", BYTES_MAX, 6 * PARTS_MAX)
        if len(root) <= INLINE_PARTS_MAX:
            wanted = _wanted(root)
        else:
            wanted = await trio.to_thread.run_sync(_wanted, root)
        return await self._patience.answer(call, partial(self._completed, call, wanted))

    async def _completed(self, call: S3Call, wanted: list[Part]) -> bytes:
        if not all(_MD5.fullmatch(part.etag) for part in wanted):
            await self._find(call)  # to say first that there is no such upload
            raise S3Error("InvalidPart", "a part has no such ETag")
        etag = _etag_of([part.etag for part in wanted])
        try:
            await self._find(call)  # who may not complete it does not wait for those who do
            async with self._completions.turn(call.options["uploadId"]):
                await self._complete(call, wanted, etag)
        except S3Error as error:
            # Another request may have completed it, or this one, whose answer was lost.
            if error.code not in ("NoSuchUpload", "OperationAborted"):
                raise
            if (there := await self._there(call, etag)) is None:
                raise
            call.answers.update(made(self._buckets.find(call.bucket), there))
        done = await self._there(call, etag)
        where: list[Child] = [
            ("Location", f"/{call.bucket}/{call.key}"),
            ("Bucket", call.bucket),
            ("Key", call.key),
            ("ETag", f'"{etag}"'),
        ]
        sums = checksum_children(stored.of_entry(done)) if done is not None else []
        return document("CompleteMultipartUploadResult", [*where, *sums])

    async def _complete(self, call: S3Call, wanted: list[Part], etag: str) -> None:
        upload = await self._find(call)
        done = await self._there(call, etag)
        if done is not None:  # a process that was killed has published it
            call.answers.update(made(upload.space, done))
        else:
            await self._publish(call, upload, wanted, etag)
        try:
            await self._end(upload.space, upload.folder)
        except RecordsFailed:
            raise
        except GfsError as error:
            log.warning("a completed upload of S3 could not be removed yet: %s", error)

    async def _publish(self, call: S3Call, upload: Found, wanted: list[Part], etag: str) -> None:
        there = {number: entry async for number, entry in self._parts(upload.space, upload.folder)}
        pieces: list[tuple[Entry, int, int]] = []
        checksums: list[str] = []
        for place, part in enumerate(wanted):
            if place % INLINE_PARTS_MAX == 0:
                await trio.lowlevel.checkpoint()
            entry = there.get(part.number)
            known = stored.of_entry(entry) if entry is not None else Metadata()
            is_it = known.etag == part.etag and part.checksum in ("", known.checksum)
            if entry is None or not entry.digest or not is_it:
                raise S3Error("InvalidPart", f"part {part.number} is another one, or not there")
            if entry.length < PART_BYTES_MIN and place < len(wanted) - 1:
                raise S3Error("EntityTooSmall", f"part {part.number} has less than 5 MiB")
            pieces.append((entry, 0, entry.length))
            checksums.append(known.checksum)
        lengths = [length for _, _, length in pieces]
        if call.headers.get("x-amz-mp-object-size") not in (None, str(sum(lengths))):
            raise S3Error("InvalidRequest", "the parts have another length than the object")
        call.marks[UPLOAD] = call.options["uploadId"]
        checksum, sums = _checksum(upload.metadata.checksum, checksums, lengths, call.headers)
        metadata = replace(
            upload.metadata,
            etag=etag,
            checksum=checksum,
            parts=stored.runs_of(lengths),
            sums=sums,
        )
        if any(length % CHUNK_BYTES for length in lengths[:-1]):
            await self._objects.store_stream(call, pieces, lambda: metadata)
        else:
            files = [entry for entry, _, _ in pieces]
            await self._objects.store_joined(call, call.path, files, lambda: metadata)

    async def _there(self, call: S3Call, etag: str) -> Entry | None:
        """The object, if it is the one of this upload and these parts."""
        try:
            entry = await self._objects.find(self._buckets.find(call.bucket), call.key)
        except S3Error:
            return None
        is_it = entry.attributes.get(UPLOAD) == call.options["uploadId"]
        return entry if is_it and stored.of_entry(entry).etag == etag else None

    async def abort(self, call: S3Call) -> Response:
        upload = await self._find(call)
        await self._end(upload.space, upload.folder)
        return Response(b"", 204)

    async def delete_bucket(self, call: S3Call) -> Response:
        """Delete a bucket without objects; uploads under way to it are aborted."""
        space = self._buckets.owned(call)
        if not await self._buckets.has_objects(space) and not await self._has_others(space):
            async with aclosing(upload_folders(self._cluster.fs, space)) as found:
                async for entry in found:
                    await self._end(space, folder_of(entry.path.rpartition("/")[2]))
        return await self._buckets.delete(call)

    async def _has_others(self, space: Space) -> bool:
        """Whether there are files beside the uploads that are none of theirs."""
        fs, directory = self._cluster.fs, f"{space.directory}/{UPLOADS}"
        with suppress(NotFound, NotADirectory):
            async with aclosing(fs.scan(directory)) as found:
                async for entry in found:
                    if entry.kind == "file":
                        return True
                    if not is_upload(entry):
                        async with aclosing(listing.files(fs, entry.path, page=1)) as files:
                            async for _ in files:
                                return True
        return False

    async def abort_old(self, space: Space, prefix: str, before_ns: int) -> None:
        """Abort the uploads to a bucket that began before, by a rule for keys with a prefix."""
        async with aclosing(self._uploads(space)) as uploads:
            async for key, upload_id, began_ns in uploads:
                if key.startswith(prefix) and began_ns < before_ns:
                    await self._end(space, folder_of(upload_id))

    # --- lists --------------------------------------------------------------------

    async def list_parts(self, call: S3Call) -> Response:
        upload = await self._find(call)
        after = call.number("part-number-marker", 0)
        limit = min(call.number("max-parts", LIST_MAX), LIST_MAX)
        shown: list[tuple[int, Entry]] = []
        is_more = False
        async with aclosing(self._parts(upload.space, upload.folder, after)) as found:
            async for each in found:
                if len(shown) == limit:
                    is_more = limit > 0
                    break
                shown.append(each)
        parts: list[Child] = [
            (
                "Part",
                [
                    ("PartNumber", number),
                    ("LastModified", time_of(entry.modified_ns)),
                    ("ETag", etag_of(entry)),
                    ("Size", entry.length),
                    *_checksum_child(stored.of_entry(entry), upload.algorithm),
                ],
            )
            for number, entry in shown
        ]
        algorithm, _, kind = upload.metadata.checksum.partition(":")
        owner = self._buckets.owner(call, upload.space)
        head: list[Child] = [
            ("Bucket", call.bucket),
            ("Key", call.key),
            ("UploadId", call.options["uploadId"]),
            ("Initiator", owner),
            ("Owner", owner),
            ("PartNumberMarker", after),
            ("NextPartNumberMarker", shown[-1][0] if shown else 0),
            ("MaxParts", limit),
            ("IsTruncated", is_more),
            ("StorageClass", "STANDARD"),
            ("ChecksumAlgorithm", algorithm.upper() or None),
            ("ChecksumType", kind or None),
        ]
        return xml("ListPartsResult", [*head, *parts])

    async def list_uploads(self, call: S3Call) -> Response:
        """By key, then by id. Each page reads the keys of all uploads of the bucket: these are
        in the order of their ids. What is kept is no more than two pages."""
        space = self._buckets.find(call.bucket)
        call.allow(space.target)
        options = call.options
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
        limit = min(call.number("max-uploads", LIST_MAX), LIST_MAX)
        after = options.get("key-marker", ""), options.get("upload-id-marker", "")
        is_url = options.get("encoding-type", "") == "url"
        #: (key, id): when it began. A common prefix has neither.
        first: dict[tuple[str, str], int] = {}
        async with aclosing(self._uploads(space)) as uploads:
            async for key, upload_id, began_ns in uploads:
                if not key.startswith(prefix) or not _is_after(key, upload_id, *after):
                    continue
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut < 0:
                    first[key, upload_id] = began_ns
                elif (common := key[: cut + len(delimiter)]) > after[0]:
                    first[common, ""] = 0
                if len(first) > 2 * LIST_MAX:
                    first = {place: first[place] for place in sorted(first)[: limit + 1]}
        shown = sorted(first)[:limit]
        last = shown[-1] if shown else ("", "")
        owner = self._buckets.owner(call, space)
        listed: list[Child] = [
            (
                "Upload",
                [
                    ("Key", url_encoded(key, is_url)),
                    ("UploadId", upload_id),
                    ("Initiator", owner),
                    ("Owner", owner),
                    ("StorageClass", "STANDARD"),
                    ("Initiated", time_of(first[key, upload_id])),
                ],
            )
            if upload_id
            else ("CommonPrefixes", [("Prefix", url_encoded(key, is_url))])
            for key, upload_id in shown
        ]
        is_more = 0 < limit < len(first)
        head: list[Child] = [
            ("Bucket", space.name),
            ("KeyMarker", url_encoded(after[0], is_url)),
            ("UploadIdMarker", after[1]),
            ("NextKeyMarker", url_encoded(last[0], is_url) if is_more else None),
            ("NextUploadIdMarker", last[1] if is_more else None),
            ("Prefix", url_encoded(prefix, is_url)),
            ("Delimiter", url_encoded(delimiter, is_url) if delimiter else None),
            ("EncodingType", "url" if is_url else None),
            ("MaxUploads", limit),
            ("IsTruncated", is_more),
        ]
        return xml("ListMultipartUploadsResult", [*head, *listed])

    async def _uploads(self, space: Space) -> AsyncGenerator[tuple[str, str, int], None]:
        """(key, id, when it began), by id."""
        page: list[Entry] = []
        async with aclosing(upload_folders(self._cluster.fs, space)) as found:
            async for entry in found:
                page.append(entry)
                if len(page) == PAGE:
                    for each in await self._keys(page):
                        yield each
                    page.clear()
        for each in await self._keys(page):
            yield each

    async def _keys(self, folders: list[Entry]) -> list[tuple[str, str, int]]:
        ids = [entry.path.rpartition("/")[2] for entry in folders]
        files = [(f"{entry.path}/upload", 0, PATH_BYTES_MAX + 1) for entry in folders]
        keys = map(_key_in, await self._cluster.fs.get_ranges(files))
        return [
            (key, upload_id, entry.created_ns)
            for key, upload_id, entry in zip(keys, ids, folders, strict=True)
            if key is not None and _ID.fullmatch(upload_id)
        ]


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def _missing() -> S3Error:
    return S3Error("NoSuchUpload", "there is no such upload, or not any more")


@contextmanager
def _as_missing() -> Iterator[None]:
    """A part can only be published into the folder of its upload."""
    try:
        yield
    except NoSuchThing:
        raise _missing() from None


def _key_in(data: bytes | GfsError) -> str | None:
    """The key of an upload. None if it has ended just now, or the file is none of ours: over REST
    anybody may have put it there."""
    if isinstance(data, GfsError) or len(data) > PATH_BYTES_MAX:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _is_after(key: str, upload_id: str, key_marker: str, id_marker: str) -> bool:
    if key == key_marker and id_marker:
        return upload_id > id_marker
    return key > key_marker


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= PARTS_MAX:
        raise S3Error("InvalidArgument", f"partNumber must be 1 to {PARTS_MAX}")
    return int(text)


def _checksum_of(call: S3Call) -> tuple[str, str]:
    """The algorithm and the kind of checksum that an upload is to have. Raises S3Error."""
    text = call.headers.get(f"{PREFIX}algorithm")
    if text is None:
        return "", ""
    algorithm = algorithm_of(text)
    kind = call.headers.get(f"{PREFIX}type", FULL if algorithm == "crc64nvme" else COMPOSITE)
    if kind not in (FULL, COMPOSITE):
        raise S3Error("InvalidArgument", f"{PREFIX}type is {FULL} or {COMPOSITE}")
    if kind == FULL and algorithm.startswith("sha"):
        raise S3Error("InvalidRequest", f"{algorithm} is {COMPOSITE}")
    if kind == COMPOSITE and algorithm == "crc64nvme":
        raise S3Error("InvalidRequest", f"{algorithm} is {FULL}")
    return algorithm, kind


def _checksum_child(part: Metadata, algorithm: str) -> list[Child]:
    """The checksum of a part, if it is by the algorithm of its upload."""
    return checksum_children(part)[:1] if part.checksum.startswith(f"{algorithm}:") else []


def _wanted(root: Element) -> list[Part]:
    """The parts that the object is to have."""
    wanted = []
    for each in root.findall("Part"):
        said = {child.tag: (child.text or "").strip() for child in each}
        sums = ((name, said.get(f"Checksum{name.upper()}")) for name in ALGORITHMS)
        checksum = next((f"{name}:{text}" for name, text in sums if text), "")
        number = _number(said.get("PartNumber", ""))
        wanted.append(Part(number, said.get("ETag", "").strip('"').lower(), checksum))
    if not 1 <= len(wanted) <= PARTS_MAX:
        raise S3Error("MalformedXML", f"give 1 to {PARTS_MAX} parts")
    if any(first.number >= second.number for first, second in itertools.pairwise(wanted)):
        raise S3Error("InvalidPartOrder", "the parts must ascend")
    return wanted


def _etag_of(parts: list[str]) -> str:
    """S3's form for the MD5s of several parts."""
    digest = hashlib.md5(bytes.fromhex("".join(parts)), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(parts)}"

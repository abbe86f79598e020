"""What is stored with an object: ETag, headers, metadata of the user, checksum, tags.

It is in one attribute of the file, as JSON. A file that came another way has none of it: its
ETag is that of the REST API. A file that was written in place since has lost its digest, and
with it the ETag.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping, Sequence
from itertools import groupby

import msgspec
from msgspec.structs import replace

from control.s3.checksums import ALGORITHMS, text_of
from control.s3.errors import S3Error
from gfs.client import Entry

ATTRIBUTE = "s3"
#: A file's attributes have 1,024 bytes together.
BYTES_MAX = 900
USER = "x-amz-meta-"
#: Headers that are stored with an object and come back with it.
HEADERS = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
)
TAGS_MAX = 10
DEFAULT_TYPE = "binary/octet-stream"
_control = re.compile("[\0-\x08\n-\x1f\x7f]")


class Metadata(msgspec.Struct, omit_defaults=True, frozen=True):
    #: MD5 in hex, or S3's form for several parts; empty: unknown.
    etag: str = msgspec.field(default="", name="e")
    type: str = msgspec.field(default="", name="t")
    headers: dict[str, str] = msgspec.field(default_factory=dict, name="h")
    user: dict[str, str] = msgspec.field(default_factory=dict, name="u")
    #: ``ALGORITHM:BASE64``; of a multipart upload under way ``ALGORITHM:TYPE``.
    checksum: str = msgspec.field(default="", name="c")
    tags: dict[str, str] = msgspec.field(default_factory=dict, name="g")
    #: How long the parts were that it was uploaded in, and how many of each length: number,
    #: length, number, length … Empty: one part, or not known.
    parts: list[int] = msgspec.field(default_factory=list, name="p")
    #: The checksums of the parts, in Base64; empty: not known.
    sums: list[str] = msgspec.field(default_factory=list, name="s")

    @property
    def lengths(self) -> list[int]:
        """Of its parts."""
        runs = zip(self.parts[::2], self.parts[1::2], strict=True)
        return [length for number, length in runs for _ in range(number)]

    @property
    def checksum_type(self) -> str:
        return "COMPOSITE" if "-" in self.checksum else "FULL_OBJECT"


_decoder = msgspec.json.Decoder(Metadata)


def of_request(headers: Mapping[str, str]) -> Metadata:
    """What the headers of a request say. Raises S3Error."""
    encoding = headers.get("content-encoding", "")
    codings = [c.strip() for c in encoding.split(",") if c.strip() not in ("", "aws-chunked")]
    kept = {name: headers[name] for name in HEADERS if name in headers}
    kept.pop("content-encoding", None)
    if codings:
        kept["content-encoding"] = ", ".join(codings)
    user = {name.removeprefix(USER): _sent(headers[name]) for name in headers if _is_user(name)}
    kept = {name: _sent(value) for name, value in kept.items()}
    found = Metadata(type=_sent(headers.get("content-type", "")), headers=kept, user=user)
    if not all(map(is_value, (*user, *user.values(), *kept.values(), found.type))):
        # Not every server in front is as strict as ours.
        raise S3Error("InvalidArgument", "a header has control characters")
    attributes(found)
    return found


def _is_user(name: str) -> bool:
    return name.startswith(USER)


def is_value(text: str) -> bool:
    """Whether a header may have this value: a line break would begin another header."""
    return _control.search(text) is None


def _sent(value: str) -> str:
    """A header's value as the client wrote it. Those of requests are in Latin-1 here, so that
    their bytes can be verified; answers are sent in UTF-8."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def runs_of(lengths: Sequence[int]) -> list[int]:
    """The lengths of parts, as they are stored."""
    return [n for length, same in groupby(lengths) for n in (sum(1 for _ in same), length)]


def attributes(metadata: Metadata) -> dict[str, str]:
    """As attributes of a file: without what is known of its parts, if that is too long. Raises
    S3Error if the rest is."""
    text = msgspec.json.encode(metadata).decode()
    if len(text.encode()) > BYTES_MAX and metadata.sums:
        return attributes(replace(metadata, sums=[]))
    if len(text.encode()) > BYTES_MAX and metadata.parts:
        return attributes(replace(metadata, parts=[]))
    if len(text.encode()) > BYTES_MAX:
        raise S3Error(
            "MetadataTooLarge",
            f"an object has {BYTES_MAX} bytes of headers, metadata and tags, with its ETag and "
            "checksum",
        )
    return {ATTRIBUTE: text}


def check_room(metadata: Metadata, algorithm: str, *, in_parts: bool = False) -> None:
    """Check before the bytes come that there is room for what is known after them: the ETag, and
    the checksum by this algorithm (empty: none). Raises S3Error."""
    parts = "-10000" if in_parts else ""
    checksum = ""
    if algorithm:
        checksum = f"{algorithm}:{text_of(bytes(ALGORITHMS[algorithm][1]))}{parts}"
    attributes(replace(metadata, etag="0" * 32 + parts, checksum=checksum))


def of_entry(entry: Entry) -> Metadata:
    """What is stored with a file."""
    text = entry.attributes.get(ATTRIBUTE)
    try:
        found = _decoder.decode(text) if text else Metadata()
    except msgspec.DecodeError:
        return Metadata()
    if entry.digest:
        return found
    return replace(found, etag="", checksum="", parts=[], sums=[])  # these were of other bytes


def etag_of(entry: Entry, metadata: Metadata | None = None) -> str:
    """With its quotes."""
    metadata = metadata or of_entry(entry)
    if not entry.digest:
        return f'"{entry.inode:x}{entry.modified_ns:x}-{entry.length:x}"'
    return f'"{metadata.etag or f"{entry.digest.hex()}-{entry.length:x}"}"'


def type_of(path: str, metadata: Metadata) -> str:
    return metadata.type or mimetypes.guess_type(path)[0] or DEFAULT_TYPE

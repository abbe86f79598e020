"""Signature Version 2 of presigned URLs: ``AWSAccessKeyId``, ``Expires`` and ``Signature``.

boto3 makes such URLs by default, as do ``s3cmd signurl`` and old SDKs. What is
signed is the method, ``Content-MD5``, ``Content-Type``, the expiry, all headers that begin with
``x-amz-``, the path with the bucket, and those parameters that are sub-resources. The text that
is signed puts these one behind the other without escapes, so that two requests may have the same
one. So of each request it is checked that its text can be read in one way only, and that it has
no parameter besides those that are signed.

The expiry is a point in time, and when the URL was made is not in it. A URL that was made to last
longer than seven days is refused until its last seven days.

Pure. Source: "Signing and authenticating REST requests" of the S3 API, RFC 2104.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from control.s3.errors import S3Error
from control.s3.signature import (
    EXPIRES_MAX,
    SKEW_SECONDS,
    UNSIGNED,
    Headers,
    Signed,
    headers_of,
    parse_query,
)

#: The methods that a URL may be for.
METHODS = ("GET", "HEAD", "PUT")
#: The parameters that are signed: those that SDKs sign, and S3 as well.
SUBRESOURCES = frozenset(
    {
        *("accelerate", "acl", "analytics", "cors", "defaultObjectAcl", "delete", "inventory"),
        *("lifecycle", "location", "logging", "metrics", "notification", "object-lock"),
        *("partNumber", "policy", "replication", "requestPayment", "response-cache-control"),
        *("response-content-disposition", "response-content-encoding"),
        *("response-content-language", "response-content-type", "response-expires", "restore"),
        *("select", "select-type", "storageClass", "tagging", "torrent", "uploadId", "uploads"),
        *("versionId", "versioning", "versions", "website"),
    }
)
_OWN = frozenset({"AWSAccessKeyId", "Expires", "Signature"})
#: Headers that are signed and may be in the query, besides those that begin with ``x-amz-``.
_STANDARD = ("content-md5", "content-type")

_amz = re.compile(r"x-amz-[a-z0-9!#$%&'*+.^_`|~-]+")
_control = re.compile(r"[\x00-\x1f\x7f]")
_expires = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class Presigned:
    """A presigned URL and the request that was made with it."""

    access_key_id: str
    #: Unix seconds.
    expires: int
    signature: str
    #: What was signed, if it is this request.
    text: bytes
    #: The parameters of its query that are about the operation.
    options: Mapping[str, str]
    #: Headers of the request that are in its query.
    headers: Mapping[str, str]

    def check_time(self, now: float) -> None:
        """Raises S3Error if it has expired, or lasts for too long."""
        if now > self.expires:
            raise S3Error("AccessDenied", "the URL has expired")
        if self.expires > now + EXPIRES_MAX + SKEW_SECONDS:
            raise S3Error("AccessDenied", f"a URL is valid for {EXPIRES_MAX} seconds at most")

    def verify(self, secret: str) -> None:
        """Raises S3Error if the request is not what was signed."""
        expected = base64.b64encode(hmac.digest(secret.encode(), self.text, "sha1"))
        if not hmac.compare_digest(expected, self.signature.encode()):
            raise S3Error(
                "SignatureDoesNotMatch",
                "the signature is not that of this request: check the secret key, and that the "
                "method, the path, Content-Type, Content-MD5 and the headers that begin with "
                "x-amz- are those that were signed",
            )

    def signed(self) -> Signed:
        """For those who ask who has signed the request, and how its payload is sent."""
        return Signed(self.access_key_id, "", "", (), self.signature, UNSIGNED)


def is_presigned(query: Mapping[str, str]) -> bool:
    """Whether a request has a signature of this kind."""
    return "AWSAccessKeyId" in query


def presigned(method: str, resource: bytes, query: bytes, headers: Headers) -> Presigned:
    """A request with a presigned URL.

    Args:
        resource: the path as it was sent, with the bucket, also if that is in the host's name.
        query: as it was sent.
        headers: all of them, with names in lower case.

    Raises S3Error for one that is malformed, or that says something which is not signed.
    """
    if any(name == "authorization" for name, _ in headers):
        raise S3Error("InvalidArgument", "sign in the header or in the query, not in both")
    if method not in METHODS:
        raise S3Error("InvalidRequest", f"URLs signed with version 2 are for {', '.join(METHODS)}")
    pairs = parse_query(query)
    found = dict(pairs)
    _check(pairs)
    if not _expires.fullmatch(found.get("Expires", "")):
        raise S3Error("AccessDenied", "Expires must be a time in seconds since 1970")
    _check_payload(dict(headers), found)
    in_query = {name: found[name].strip(" \t") for name in found if _is_header(name)}
    lines = _signed_headers(in_query, headers)
    text = b"\n".join(
        [
            method.encode(),
            *(lines.pop(name, b"") for name in _STANDARD),
            found["Expires"].encode(),
            *(name.encode() + b":" + value for name, value in sorted(lines.items())),
            resource + _subresources(query),
        ]
    )
    standard = {name: in_query[name] for name in _STANDARD if name in in_query}
    return Presigned(
        access_key_id=found["AWSAccessKeyId"],
        expires=int(found["Expires"]),
        signature=found.get("Signature", ""),
        text=text,
        options={name: value for name, value in pairs if name in SUBRESOURCES},
        headers=headers_of(in_query) | standard,
    )


def _check_payload(headers: Mapping[str, str], query: Mapping[str, str]) -> None:
    """Raises S3Error for a body that is signed or framed: a URL is made before there is a body."""
    for said in (headers, query):
        if said.get("x-amz-content-sha256", UNSIGNED) != UNSIGNED or "aws-chunked" in said.get(
            "content-encoding", ""
        ):
            raise S3Error(
                "InvalidRequest", "send the body of a presigned URL as it is, without its SHA-256"
            )


def _is_header(name: str) -> bool:
    return name in _STANDARD or _amz.fullmatch(name) is not None


def _check(pairs: Sequence[tuple[str, str]]) -> None:
    """Raises S3Error for a parameter that is not signed, or that could be read in two ways."""
    seen = set()
    for name, value in pairs:
        if name not in _OWN | SUBRESOURCES and not _is_header(name):
            raise S3Error(
                "AccessDenied",
                f"version 2 does not sign the parameter {name:.80}: sign the URL with version 4",
            )
        if name in seen:
            raise S3Error("InvalidArgument", f"the parameter {name} is there twice")
        if _control.search(value):
            raise S3Error("InvalidArgument", f"the parameter {name} has control characters")
        seen.add(name)


def _signed_headers(in_query: Mapping[str, str], headers: Headers) -> dict[str, bytes]:
    """The headers that are signed, those in the query among them. Raises S3Error if both say
    something about one of them, and not the same."""
    values: dict[str, list[bytes]] = {}
    for name, value in headers:
        if name in _STANDARD or name.startswith("x-amz-"):
            # As it came, byte for byte.
            values.setdefault(name, []).append(value.encode("latin-1", "replace").strip(b" \t"))
    lines = {name: b",".join(parts) for name, parts in values.items()}
    for name, text in in_query.items():
        if lines.setdefault(name, text.encode()) != text.encode():
            raise S3Error("AccessDenied", f"{name} in the query and the header are not the same")
    return lines


def _subresources(query: bytes) -> bytes:
    """The parameters that are signed, with values that are decoded. Raises S3Error if a value
    looks like further ones."""
    signed = []
    for part in query.split(b"&"):
        name, equals, value = part.replace(b"+", b" ").partition(b"=")
        decoded = unquote_to_bytes(name)
        if decoded.decode() in SUBRESOURCES:
            signed.append((decoded, equals + unquote_to_bytes(value)))
    text = b"&".join(name + value for name, value in sorted(signed))
    names = [piece.partition(b"=")[0].decode() for piece in text.split(b"&")]
    if sum(name in SUBRESOURCES for name in names) != len(signed):
        raise S3Error("InvalidArgument", "a value in the query looks like another parameter")
    return b"?" + text if signed else b""

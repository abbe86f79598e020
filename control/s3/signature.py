"""Signature Version 4 of requests: in the header ``Authorization`` or in the query.

Pure: the bytes of a request in, who signed it and when out. The canonical form of a request is
made from its raw path and query, which the client has encoded in its own way: each part is
decoded and encoded again by the one rule of the scheme (RFC 3986's unreserved characters stay).

Source: "Signature Version 4 signing process" and "Authenticating requests" of the S3 API.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

from control.s3.errors import S3Error

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
#: How far a client's clock may be off.
SKEW_SECONDS = 15 * 60
#: How long a presigned URL may be valid.
EXPIRES_MAX = 7 * 24 * 3600

#: Parameters of a presigned URL that are no headers of the request.
_NO_HEADERS = (
    *("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signature"),
    *("x-amz-signedheaders", "x-amz-content-sha256", "x-amz-user-agent"),
    *("x-amz-checksum-", "x-amz-sdk-"),
)

_DATE = "%Y%m%dT%H%M%SZ"
_SCOPE = re.compile(r"([^/]{1,128})/([0-9]{8})/([^/]{1,64})/(s3)/(aws4_request)")
_SIGNATURE = re.compile(r"[0-9a-f]{64}")
_spaces = re.compile(r" +")

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Signed:
    """What a request says of its signature."""

    access_key_id: str
    #: ``DATE/REGION/s3/aws4_request``.
    scope: str
    #: As in the request: ``20260101T000000Z``.
    date: str
    signed_headers: tuple[str, ...]
    signature: str
    #: What the payload's hash is to be, or how the payload is sent.
    payload: str
    #: Of a presigned URL: how long it is valid.
    expires: int | None = None


def encode(raw: bytes, safe: str = "") -> str:
    return quote(raw, safe=safe + "-._~")


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """The parameters, decoded. Raises S3Error for what is not UTF-8."""
    found = []
    for part in query.split(b"&"):
        if part:
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            found.append((_text(unquote_to_bytes(name)), _text(unquote_to_bytes(value))))
    return found


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "the URL is not UTF-8") from None


def find(headers: Mapping[str, str], query: Mapping[str, str]) -> Signed | None:
    """The signature of a request, whose header names are in lower case; None if there is none.

    Raises S3Error for one that is malformed, or of another scheme.
    """
    authorization = headers.get("authorization")
    if authorization is not None and "X-Amz-Signature" in query:
        raise S3Error("InvalidArgument", "sign in the header or in the query, not in both")
    if authorization is not None:
        return _from_header(authorization, headers)
    if "X-Amz-Signature" in query or "X-Amz-Algorithm" in query:
        return _from_query(query)
    if "AWSAccessKeyId" in query:  # the service asks signature2 first, where it is switched on
        raise S3Error(
            "InvalidRequest", f"signatures are of {ALGORITHM} alone: version 2 is switched off here"
        )
    return None


def headers_of(query: Mapping[str, str]) -> dict[str, str]:
    """The headers that a presigned URL has in its query, which was signed. Those about a checksum
    are left out, as in S3: they are of the body that its maker had, which is none."""
    return {
        name.lower(): value
        for name, value in query.items()
        if name.lower().startswith("x-amz-") and not name.lower().startswith(_NO_HEADERS)
    }


def _from_header(authorization: str, headers: Mapping[str, str]) -> Signed:
    scheme, _, rest = authorization.partition(" ")
    if scheme != ALGORITHM:
        raise S3Error("InvalidRequest", f"signatures are of {ALGORITHM} alone")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    payload = headers.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error("InvalidRequest", "the header x-amz-content-sha256 is missing")
    return _signed(
        fields.get("Credential", ""),
        headers.get("x-amz-date", ""),
        fields.get("SignedHeaders", ""),
        fields.get("Signature", ""),
        payload,
        None,
    )


def _from_query(query: Mapping[str, str]) -> Signed:
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        raise _bad_query(f"X-Amz-Algorithm must be {ALGORITHM}")
    expires = query.get("X-Amz-Expires", "")
    if not re.fullmatch(r"-?[0-9]{1,18}", expires):
        raise _bad_query("X-Amz-Expires must be a number of seconds")
    if not 0 < int(expires) <= EXPIRES_MAX:
        raise S3Error("AccessDenied", f"a URL is valid for 1 to {EXPIRES_MAX} seconds")
    return _signed(
        query.get("X-Amz-Credential", ""),
        query.get("X-Amz-Date", ""),
        query.get("X-Amz-SignedHeaders", ""),
        query.get("X-Amz-Signature", ""),
        query.get("X-Amz-Content-Sha256", UNSIGNED),
        int(expires),
    )


def _bad_query(message: str) -> S3Error:
    return S3Error("AuthorizationQueryParametersError", message)


def _signed(
    credential: str, date: str, names: str, signature: str, payload: str, expires: int | None
) -> Signed:
    scope = _SCOPE.fullmatch(credential)
    headers = tuple(names.split(";"))
    what = ""
    if scope is None:
        what = "Credential must be KEY/DATE/REGION/s3/aws4_request"
    elif not _SIGNATURE.fullmatch(signature):
        what = "Signature must be 64 hexadecimal digits"
    elif "host" not in headers or list(headers) != sorted(headers):
        what = "SignedHeaders must have host, and be sorted"
    if what:
        if expires is not None:
            raise _bad_query(what)
        raise S3Error("AuthorizationHeaderMalformed", what)
    assert scope is not None
    if not date.startswith(scope[2]):
        raise S3Error("AuthorizationHeaderMalformed", "the date is not that of the credential")
    return Signed(
        scope[1], credential.partition("/")[2], date, headers, signature, payload, expires
    )


def check_time(signed: Signed, now: float) -> None:
    """Raises S3Error if the request is too old, or of the future."""
    try:
        at = datetime.strptime(signed.date, _DATE).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise S3Error("AccessDenied", "the date must be like 20260131T235959Z") from None
    if signed.expires is None:
        if abs(now - at) > SKEW_SECONDS:
            raise S3Error(
                "RequestTimeTooSkewed", "the clocks of client and server differ by over 15 minutes"
            )
    elif at > now + SKEW_SECONDS:
        raise S3Error("AccessDenied", "the URL is not valid yet")
    elif now > at + signed.expires:
        raise S3Error("AccessDenied", "the URL has expired")


class Key:
    """The key of a day, region and service, which signs requests and their pieces."""

    def __init__(self, secret: str, scope: str) -> None:
        key = f"AWS4{secret}".encode()
        for part in scope.split("/"):
            key = _hmac(key, part)
        self._key = key
        self.scope = scope

    def sign(self, kind: str, date: str, *lines: str) -> str:
        return self.sign_text("\n".join([kind, date, self.scope, *lines]))

    def sign_text(self, text: str) -> str:
        return _hmac(self._key, text).hex()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def canonical(
    method: str, raw_path: bytes, query: Sequence[tuple[str, str]], headers: Headers, signed: Signed
) -> str:
    """The canonical form of a request."""
    pairs = sorted(
        (encode(name.encode()), encode(value.encode()))
        for name, value in query
        if name != "X-Amz-Signature"
    )
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(_spaces.sub(" ", value.strip()))
    lines = [f"{name}:{','.join(values.get(name, []))}" for name in signed.signed_headers]
    return "\n".join(
        [
            method,
            encode(unquote_to_bytes(raw_path), safe="/"),
            "&".join(f"{name}={value}" for name, value in pairs),
            *lines,
            "",
            ";".join(signed.signed_headers),
            signed.payload,
        ]
    )


def verify(
    key: Key,
    signed: Signed,
    method: str,
    raw_path: bytes,
    query: Sequence[tuple[str, str]],
    headers: Headers,
) -> None:
    """Raises S3Error if the request is not what was signed, or says more than that."""
    for name, _ in headers:
        # A header that decides what happens must not be added by somebody on the way.
        if name.startswith("x-amz-") and name not in signed.signed_headers:
            if signed.expires is not None and name == "x-amz-content-sha256":
                continue
            raise S3Error("AccessDenied", f"the header {name} is not signed")
    text = canonical(method, raw_path, query, headers, signed)
    # Headers are signed as they came, byte for byte.
    digest = hashlib.sha256(text.encode("latin-1", "replace")).hexdigest()
    expected = key.sign(ALGORITHM, signed.date, digest)
    if not hmac.compare_digest(expected, signed.signature):
        raise S3Error(
            "SignatureDoesNotMatch",
            "the signature is not that of this request: check the secret key, and that nothing "
            "on the way changes the path, the host or headers",
        )

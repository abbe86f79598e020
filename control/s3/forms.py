"""Uploads by a form of a web page ("POST policies"): somebody who has a key signs a policy, which
says what a browser may upload for a while; the browser sends it with the file.

A form is fields and then the file. All that the fields say must be allowed by the policy. The
policy is signed with version 4, or with version 2, which many pages still do. Without a policy a
form is anonymous.

Source: "Browser-Based Uploads Using POST" of the S3 API, and its page on creating a policy.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import trio

from control.api import BodyCutShort, Principal, Response
from control.s3.call import S3Call
from control.s3.documents import CONTENT_TYPE, document, parse
from control.s3.errors import S3Error
from control.s3.metadata import TAGS_MAX, is_value
from control.s3.objects import Objects
from control.s3.payload import Payload
from control.s3.signature import Key, find
from control.s3.tagging import tags_of
from control.storage import PATH_BYTES_MAX, FileBegins, FormReader, is_form
from gfs.blocks import KIB

FIELDS_BYTES_MAX = 64 * KIB
#: How long the fields may take to arrive.
FIELDS_SECONDS = 60.0
#: Fields that no condition need be about.
_FREE = frozenset({"awsaccesskeyid", "signature", "x-amz-signature", "policy", "file"})
#: Others may be ignored, or say what the file is, which changes nothing.
_FREE_STARTS = ("x-ignore-", "x-amz-checksum-")
#: Fields that become headers, besides those that begin with ``x-amz-``.
_HEADERS = frozenset(
    {"cache-control", "content-disposition", "content-encoding", "content-type", "expires",
     "content-language", "content-md5"}
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")

#: The secret and the user of an access key.
Finder = Callable[[str], tuple[str, Principal]]


@dataclass(frozen=True)
class Policy:
    """What a form may upload: conditions on its fields, and on the length of its file."""

    expires: float
    #: (operation, field, value).
    conditions: list[tuple[str, str, str]]
    least: int = 0
    most: int | None = None

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Raises S3Error."""
        try:
            made = _policy(json.loads(base64.b64decode(text, validate=True)))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise S3Error(
                "InvalidPolicyDocument", "the policy is not a JSON policy in Base64"
            ) from None
        return made

    def check(self, fields: Mapping[str, str], now: float) -> None:
        """Raises S3Error."""
        if now > self.expires:
            raise S3Error("AccessDenied", "the policy has expired")
        known = {field for _, field, _ in self.conditions}
        for field in fields:
            if field not in known and field not in _FREE and not field.startswith(_FREE_STARTS):
                raise S3Error("AccessDenied", f"the policy does not say what {field:.80} may be")
        for operation, field, value in self.conditions:
            given = fields.get(field)
            fits = given is not None and (
                given.startswith(value) if operation == "starts-with" else given == value
            )
            if not fits:
                raise S3Error("AccessDenied", f"the policy does not allow this {field:.80}")


def _policy(found: Any) -> Policy:
    at = datetime.fromisoformat(found["expiration"])
    if "T" not in found["expiration"] or at.tzinfo is None:
        raise ValueError
    conditions: list[tuple[str, str, str]] = []
    least = 0
    most: int | None = None
    for each in found["conditions"]:
        if isinstance(each, dict):
            if not each:
                raise ValueError
            conditions += [("eq", field.lower(), _text(value)) for field, value in each.items()]
            continue
        operation, field, value = each
        if operation == "content-length-range":
            low, high = int(field), int(value)
            if not 0 <= low <= high:
                raise ValueError
            least, most = max(least, low), high if most is None else min(most, high)
        elif operation.lower() in ("eq", "starts-with") and field.startswith("$"):
            conditions.append((operation.lower(), field[1:].lower(), _text(value)))
        else:
            raise ValueError
    return Policy(at.astimezone(UTC).timestamp(), conditions, least, most)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _key(text: str, filename: str) -> str:
    """The key that a field names, with the file's name where it says so. Raises S3Error."""
    key = text if len(text) > PATH_BYTES_MAX else text.replace("${filename}", filename)
    if len(key.encode()) > PATH_BYTES_MAX:
        raise S3Error("KeyTooLongError", f"a key has at most {PATH_BYTES_MAX} bytes")
    return key


class Forms:
    def __init__(self, objects: Objects, find: Finder, signer: Callable[[str, str], Key]) -> None:
        self._objects = objects
        self._find = find
        self._signer = signer

    async def read(self, call: S3Call) -> S3Call:
        """The upload that a form is: its fields were read and checked, its file comes next.
        Raises S3Error."""
        kind = call.headers.get("content-type", "")
        if not is_form(kind):
            raise S3Error("NotImplemented", "POST of a bucket takes a form (multipart/form-data)")
        form = _Form(FormReader(kind, FIELDS_BYTES_MAX), aiter(call.request.body))
        try:
            with trio.fail_after(FIELDS_SECONDS):
                filename = await form.begin()
        except trio.TooSlowError:
            raise S3Error("RequestTimeout", "the form's fields did not come in time") from None
        fields = form.fields()
        if "key" not in fields:
            raise S3Error("InvalidArgument", "the form has no field named key")
        fields["key"] = _key(fields["key"], filename)
        access_key_id, principal = "", None
        if "policy" in fields:
            access_key_id, principal = self._verified(fields)
            form.policy = Policy.parse(fields["policy"])
            form.policy.check({**fields, "bucket": call.bucket}, time.time())
        headers = {
            name: value
            for name, value in fields.items()
            if name in _HEADERS or name.startswith("x-amz-")
        }
        for name, value in headers.items():
            if not (_NAME.fullmatch(name) and is_value(value)):
                raise S3Error("InvalidArgument", f"the field {name:.80} can be no header")
            if name.startswith("x-amz-copy-source"):
                raise S3Error("InvalidArgument", f"a form has its file: {name:.80} is no field")
        if "acl" in fields:
            headers["x-amz-acl"] = fields["acl"]
        if "tagging" in fields:
            tags = tags_of(parse(fields["tagging"].encode(), "Tagging"), TAGS_MAX)
            headers["x-amz-tagging"] = urlencode(tags)
        upload = S3Call(
            call.control, call.need, call.request, principal, call.bucket,
            fields["key"], fields, headers, None, None,
        )  # fmt: skip
        upload.access_key_id = access_key_id
        upload.payload = Payload(form, upload.headers, None, None, is_sized=False)
        return upload

    def _verified(self, fields: Mapping[str, str]) -> tuple[str, Principal]:
        """The access key that has signed the policy, and whose it is. Raises S3Error."""
        text = fields["policy"]
        if "x-amz-signature" in fields or "x-amz-algorithm" in fields:
            names = ("Algorithm", "Credential", "Date", "Signature")
            query = {f"X-Amz-{name}": fields.get(f"x-amz-{name.lower()}", "") for name in names}
            query |= {"X-Amz-Expires": "1", "X-Amz-SignedHeaders": "host"}
            signed = find({}, query)
            assert signed is not None
            access_key_id = signed.access_key_id
            secret, principal = self._find(access_key_id)
            expected = self._signer(secret, signed.scope).sign_text(text)
            given = signed.signature
        elif "awsaccesskeyid" in fields and "signature" in fields:
            access_key_id = fields["awsaccesskeyid"]
            secret, principal = self._find(access_key_id)
            digest = hmac.digest(secret.encode(), text.encode(), "sha1")
            expected, given = base64.b64encode(digest).decode(), fields["signature"]
        else:
            raise S3Error("InvalidArgument", "the form has a policy, and no signature")
        if not hmac.compare_digest(expected.encode(), given.encode()):
            raise S3Error("SignatureDoesNotMatch", "the signature is not that of the policy")
        return access_key_id, principal

    async def post(self, call: S3Call) -> Response:
        """Store the file of a form that was read."""
        stored = await self._objects.put(call)
        etag = stored.headers["ETag"]
        where = f"/{call.bucket}/{quote(call.key)}"
        fields = call.options
        redirect = fields.get("success_action_redirect") or fields.get("redirect", "")
        if _is_url(redirect):
            query = urlencode({"bucket": call.bucket, "key": call.key, "etag": etag})
            joint = "&" if "?" in redirect else "?"
            return Response(b"", 303, {"Location": f"{redirect}{joint}{query}", "ETag": etag})
        headers = {"ETag": etag, "Location": where}
        status = fields.get("success_action_status")
        if status == "201":
            about = [("Location", where), ("Bucket", call.bucket), ("Key", call.key)]
            body = document("PostResponse", [*about, ("ETag", etag)], is_error=True)
            return Response(body, 201, headers, content_type=CONTENT_TYPE)
        return Response(b"", 200 if status == "200" else 204, headers)


def _is_url(text: str) -> bool:
    """Whether a browser can be sent there; elsewhere it is not sent, as in S3."""
    try:
        return is_value(text) and urlsplit(text).scheme in ("http", "https")
    except ValueError:
        return False


class _Form:
    """A form as it arrives: the fields first; to iterate it yields the bytes of the file."""

    def __init__(self, reader: FormReader, body: AsyncIterator[bytes]) -> None:
        self._reader = reader
        self._body = body
        self._events: Iterator[FileBegins | bytes] = iter(())
        self._received = 0
        self.policy = Policy(0, [])

    async def begin(self) -> str:
        """Read the fields. Returns the name of the file."""
        while True:
            event = await self._next()
            if isinstance(event, FileBegins):
                return event.filename or ""
            if event is None:
                self._reader.finish()

    async def _next(self) -> FileBegins | bytes | None:
        """The next event; None at the end."""
        while True:
            for event in self._events:
                return event
            try:
                self._events = self._reader.feed(await anext(self._body))
            except StopAsyncIteration:
                return None
            except BodyCutShort:
                raise S3Error("IncompleteBody", "the form ended before its length") from None

    def fields(self) -> dict[str, str]:
        try:
            return {name: value.decode() for name, value in self._reader.fields.items()}
        except UnicodeDecodeError:
            raise S3Error("InvalidArgument", "a field of the form is not UTF-8") from None

    def __aiter__(self) -> _Form:
        return self

    async def __anext__(self) -> bytes:
        """A piece of the file, as long as the policy allows it."""
        piece, policy = await self._next(), self.policy
        if isinstance(piece, bytes):
            self._received += len(piece)
            if policy.most is not None and self._received > policy.most:
                raise S3Error("EntityTooLarge", f"the policy allows {policy.most} bytes")
            return piece
        self._reader.finish()
        if self._received < policy.least:
            raise S3Error("EntityTooSmall", f"the policy demands {policy.least} bytes")
        raise StopAsyncIteration

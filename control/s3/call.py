"""One request of S3."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Protocol
from xml.etree.ElementTree import Element

import trio

from control.api import Call, Control, Need, Principal, StreamingRequest, Txn
from control.api.internals import ENDED, HeaderTexts, InvalidToken, ParameterTexts
from control.s3.checksums import INLINE_BYTES_MAX
from control.s3.documents import ELEMENTS_MAX, parse
from control.s3.errors import S3Error
from control.s3.names import path_of
from control.s3.payload import Payload
from control.s3.signature import Key, Signed
from control.storage import READ, Space

#: What policies call it to give tags to an object, which may be why others can read it.
TAGGING = "s3:PutObjectTagging"


_parsing_of_loop: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("parsing")


def _parsing() -> trio.CapacityLimiter:
    """Whose turn it is to parse a long document."""
    try:
        return _parsing_of_loop.get()
    except LookupError:
        _parsing_of_loop.set(trio.CapacityLimiter(1))
        return _parsing_of_loop.get()


class Judge(Protocol):
    """What decides by the policies of buckets: :class:`control.s3.authority.Authority`."""

    async def judge(self, call: S3Call, action: str, key: str) -> bool: ...
    def has_policy(self, space: Space) -> bool: ...


def of_version(action: str, version: str) -> str:
    """What policies call it: S3 has other names for what is about one version."""
    of_object, verb, rest = action.partition("Object")
    is_one = version and of_object in ("s3:Get", "s3:Put", "s3:Delete")
    return f"{of_object}{verb}Version{rest}" if is_one else action


class S3Call(Call):
    """A request whose signature was verified. Its body is the object's bytes: without the frames
    of ``aws-chunked``, verified when it ends."""

    __slots__ = (
        *("_document", "_source", "access_key_id", "actor", "answers", "authority", "bucket"),
        *("headers", "key", "marks", "options", "payload", "signed", "signer"),
    )

    def __init__(
        self,
        control: Control,
        need: Need,
        request: StreamingRequest,
        principal: Principal | None,
        bucket: str,
        key: str,
        options: Mapping[str, str],
        headers: Mapping[str, str],
        signed: Signed | None,
        signer: Key | None,
    ) -> None:
        """``key`` is empty for a request about a bucket."""
        params = {"namespace": bucket, "name": bucket}
        super().__init__(control, need, f"S3 {request.method}", request, params, principal)
        self.bucket = bucket
        self.key = key
        #: The parameters of the query.
        self.options = ParameterTexts(options)
        #: By lower-case name.
        self.headers = HeaderTexts(headers)
        self.signed = signed
        self.signer = signer
        #: Of the key that has signed it, or the policy of its form.
        self.access_key_id = signed.access_key_id if signed is not None else ""
        self.payload: Payload | None = None
        self._source: tuple[AsyncIterator[bytes], int] | None = None
        self._document: Element | None = None
        #: Headers that its answer has besides.
        self.answers: dict[str, str] = {}
        #: Attributes that what it stores has besides.
        self.marks: dict[str, str] = {}
        #: Who has sent it. It is carried out as by ``principal``: the bucket's owner, if the
        #: bucket's policy allows it.
        self.actor = principal
        self.authority: Judge | None = None

    def act_for(self, owner: Principal) -> None:
        """Carry it out as by the owner of the bucket."""
        self.principal = owner

    def check_credential(self, txn: Txn) -> None:
        if self.actor is self.principal:
            super().check_credential(txn)
            return
        if self.actor is not None and self.control.credentials.again(txn, self.actor) is None:
            raise InvalidToken(ENDED)
        self.check_again(self.principal)

    async def about(
        self, need: Need, action: str, bucket: str, key: str, version: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> S3Call:  # fmt: skip
        """The same request, as one that does this with an object of any bucket, or a version of
        it, by one who may; with other headers. Raises S3Error if a policy denies it."""
        options = {"versionId": version} if version else {}
        call = self._other(need, bucket, key, options, headers or self.headers)
        if self.authority is not None:
            await self.authority.judge(call, of_version(action, version), key)
        return call

    def listing(self, prefix: str) -> S3Call:
        """The same request, as one that lists what has a prefix."""
        return self._other(READ, self.bucket, "", {"prefix": prefix}, self.headers)

    def _other(
        self, need: Need, bucket: str, key: str, options: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> S3Call:  # fmt: skip
        made = S3Call(
            self.control, need, self.request, self.actor, bucket, key, options, headers,
            self.signed, None,
        )  # fmt: skip
        made.access_key_id = self.access_key_id
        made.authority = self.authority
        return made

    @property
    def version(self) -> str:
        """The id of the version that it is about; empty: the latest."""
        return self.options.get("versionId", "")

    @property
    def path(self) -> str:  # type: ignore[override]
        """The path of the object's file in its storage namespace. Raises S3Error."""
        return path_of(self.key)

    def header(self, name: str) -> str | None:
        if name == "Content-Length":
            length = self._source[1] if self._source else self.open_payload().length
            return None if length is None else str(length)
        return None if name == "X-File-Size" else self.headers.get(name.lower())

    def open_payload(self, algorithm: str = "") -> Payload:
        """``algorithm``: its checksum's, if the client has not chosen one; for the first who opens
        it. Raises S3Error for headers that contradict one another."""
        if self.payload is None:
            body = aiter(self.request.body)
            self.payload = Payload(
                body, self.headers, self.signed, self.signer, algorithm=algorithm
            )
        return self.payload

    def read_from(self, source: AsyncIterator[bytes], length: int) -> None:
        """Store these bytes instead of the request's body."""
        self._source = source, length

    async def body_up_to(self, bytes_max: int) -> AsyncIterator[bytes]:
        """The body, if it is no longer. Raises S3Error."""
        received = 0
        async for piece in self.body():
            received += len(piece)
            if received > bytes_max:
                raise S3Error("MalformedXML", f"the body has more than {bytes_max} bytes")
            yield piece

    async def document(
        self, root: str, bytes_max: int = INLINE_BYTES_MAX, elements_max: int = ELEMENTS_MAX
    ) -> Element:
        """The body of a request that is a document, its root element. Raises S3Error."""
        if self._document is None:
            data = b"".join([bytes(piece) async for piece in self.body_up_to(bytes_max)])
            if len(data) <= INLINE_BYTES_MAX:
                self._document = parse(data, root, elements_max)
            else:
                # One at a time: each thread that computes makes the event loop wait in turn.
                self._document = await trio.to_thread.run_sync(
                    parse, data, root, elements_max, limiter=_parsing()
                )
        return self._document

    def number(self, name: str, default: int) -> int:
        """A parameter that is a number; ``default`` if it is not there. Raises S3Error."""
        text = self.options.get(name, "")
        if text and not re.fullmatch(r"[0-9]{1,10}", text):
            raise S3Error("InvalidArgument", f"{name} must be a number")
        return int(text) if text else default

    def body(self) -> AsyncIterator[bytes]:
        return self._source[0] if self._source else aiter(self.open_payload())

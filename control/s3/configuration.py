"""What a bucket has beside its objects: tags, rules of CORS and of lifecycle. Each is a document
of S3, which is checked when it comes, stored as it came, and sent back.

What else S3 lets one configure is not offered; where a bucket that has none of it has an answer in
S3 (no policy, no encryption, no lock), that answer is true here and given: see :data:`ABSENT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from xml.etree.ElementTree import Element

import msgspec
from msgspec.structs import replace

from control.api import Records, Response, Table, Txn
from control.s3.buckets import Buckets, xml
from control.s3.call import S3Call
from control.s3.documents import CONTENT_TYPE, Child, around, inside
from control.s3.errors import S3Error
from control.storage import Space, present_space

#: A bucket's documents are a row of the records: together at most so many letters.
LETTERS_MAX = 64 * 1024


class Configuration(msgspec.Struct, array_like=True, frozen=True):
    #: The storage namespace's id: a new one of the same name has another.
    space_id: str
    #: By subresource: what is in the root of the document.
    documents: dict[str, str]


configurations = Table("s3_buckets", Configuration, key=lambda row: row.space_id)


def forget_bucket(txn: Txn, space_id: str) -> None:
    """Delete the documents of a bucket that is deleted."""
    configurations.delete(txn, space_id)


class Kind(NamedTuple):
    """A document of a bucket."""

    root: str
    #: The error of a bucket without it.
    missing: str
    #: Raises S3Error. It may complete the document.
    check: Callable[[Element], object]


#: What a bucket without these answers: an error, or a document.
ABSENT: Mapping[str, str | tuple[str, list[Child]]] = {
    "accelerate": ("AccelerateConfiguration", []),
    "encryption": "ServerSideEncryptionConfigurationNotFoundError",
    "logging": ("BucketLoggingStatus", []),
    "notification": ("NotificationConfiguration", []),
    "object-lock": "ObjectLockConfigurationNotFoundError",
    "ownershipControls": (
        "OwnershipControls",
        [("Rule", [("ObjectOwnership", "BucketOwnerEnforced")])],
    ),
    "replication": "ReplicationConfigurationNotFoundError",
    "requestPayment": ("RequestPaymentConfiguration", [("Payer", "BucketOwner")]),
    "website": "NoSuchWebsiteConfiguration",
}
#: Those whose removal succeeds where there is none.
REMOVABLE = ("encryption", "replication", "website")


def stored(records: Records, space: Space, name: str) -> str | None:
    """What is in the root of a bucket's document."""
    with records.read() as txn:
        row = configurations.get(txn, space.id)
    return row.documents.get(name) if row is not None else None


class Configurations:
    def __init__(self, buckets: Buckets, kinds: Mapping[str, Kind]) -> None:
        self._buckets = buckets
        self._kinds = kinds

    def _named(self, call: S3Call) -> tuple[str, Kind]:
        return next((name, kind) for name, kind in self._kinds.items() if name in call.options)

    async def get(self, call: S3Call) -> Response:
        name, kind = self._named(call)
        text = stored(call.control.records, self._buckets.owned(call), name)
        if text is None:
            raise S3Error(kind.missing, "the bucket has none")
        return Response(around(kind.root, text), 200, content_type=CONTENT_TYPE)

    async def put(self, call: S3Call) -> Response:
        name, kind = self._named(call)
        space = self._buckets.owned(call)
        root = await call.document(kind.root)
        kind.check(root)
        await self.set(call, space, name, inside(root))
        return Response(b"", 200)

    async def delete(self, call: S3Call) -> Response:
        name, _ = self._named(call)
        await self.set(call, self._buckets.owned(call), name, None)
        return Response(b"", 204)

    async def set(
        self,
        call: S3Call,
        space: Space,
        name: str,
        text: str | None,
        also: Callable[[Txn, Space], None] = lambda txn, now: None,
    ) -> None:
        """Store a document, or remove it, and change what else follows from it."""

        def change(txn: Txn) -> None:
            call.check_credential(txn)
            now = present_space(txn, space)
            if now is None:
                raise S3Error("NoSuchBucket", "the bucket was deleted meanwhile")
            row = configurations.get(txn, space.id) or Configuration(space.id, {})
            documents = {n: t for n, t in row.documents.items() if n != name}
            if text is not None:
                documents[name] = text
            if sum(map(len, documents.values())) > LETTERS_MAX:
                raise S3Error(
                    "InvalidRequest", f"a bucket's documents have {LETTERS_MAX} letters together"
                )
            configurations.put(txn, replace(row, documents=documents))
            also(txn, now)

        await call.control.records.write(change)

    # --- what no bucket has -------------------------------------------------------

    async def absent(self, call: S3Call) -> Response:
        self._buckets.owned(call)
        answer = next(answer for name, answer in ABSENT.items() if name in call.options)
        if isinstance(answer, str):
            raise S3Error(answer, "the bucket has none, and can have none here")
        return xml(*answer)

    async def remove_absent(self, call: S3Call) -> Response:
        self._buckets.owned(call)
        return Response(b"", 204)

    async def no_lock(self, call: S3Call) -> Response:
        """Answer what S3 says of retention and holds in a bucket without object lock."""
        self._buckets.owned(call)
        if call.key:
            raise S3Error("InvalidRequest", "the bucket has no object lock, and can have none here")
        raise S3Error("InvalidBucketState", "the bucket has no object lock, and can have none here")

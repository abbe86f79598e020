"""From a request to its operation: who signed it, what it asks for, and errors as XML.

The operation follows from the method, from whether the path names a bucket or an object, and
from the *subresource*: a parameter of the query such as ``uploads``. What is not in the table is
answered with ``NotImplemented``.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from control.api import (
    Call,
    Control,
    Need,
    NoSuchThing,
    Principal,
    RecordsFailed,
    Response,
    StreamingRequest,
    scoped,
)
from control.api.internals import HeaderTexts, ParameterTexts
from control.s3 import cors, lifecycle, signature2
from control.s3.access import Access
from control.s3.authority import BLOCK, BLOCK_ROOT, OWNERSHIP, POLICY, Authority, Block
from control.s3.buckets import Buckets
from control.s3.call import S3Call, of_version
from control.s3.configuration import ABSENT, REMOVABLE, Configurations, Kind
from control.s3.cors import Cors
from control.s3.documents import CONTENT_TYPE, error_document
from control.s3.errors import S3Error, as_s3_error
from control.s3.forms import Forms
from control.s3.keys import Keys
from control.s3.objects import Objects
from control.s3.patience import Patience
from control.s3.signature import Key, Signed, check_time, find, headers_of, parse_query, verify
from control.s3.tagging import Tagging, check_bucket_tags
from control.s3.uploads import Uploads
from control.storage import CREATE, DELETE, READ, Cluster, Spaces, Transfers, Versions
from gfs.failures import leaves

log = logging.getLogger(__name__)

#: Parameters that make another operation of a request.
SUBRESOURCES = frozenset(
    {
        *("abac", "accelerate", "acl", "analytics", "attributes", "cors", "delete", "encryption"),
        *("intelligent-tiering", "inventory", "legal-hold", "lifecycle", "location", "logging"),
        *("metadataConfiguration", "metadataInventoryTable", "metadataJournalTable"),
        *("metadataTable", "renameObject", "session"),
        *("metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus"),
        *("publicAccessBlock", "replication", "requestPayment", "restore", "retention", "select"),
        *("tagging", "torrent", "uploadId", "uploads", "versioning", "versions", "website"),
    }
)
#: The other parameters that a request which changes something may have.
PARAMETERS = frozenset({"partNumber", "versionId"})
#: Headers that ask for something which is not offered: a success would be a lie.
NOT_OFFERED = re.compile(
    r"x-amz-(server-side-encryption|object-lock|grant-|website-redirect-location|"
    r"copy-source-server-side|write-offset-bytes|bucket-object-lock-enabled).*"
)

#: Whether each object may be deleted is decided when it is known.
EACH_DELETED = replace(DELETE, is_open=True)

Handler = Callable[[S3Call], Awaitable[Response]]


VERSION_ID = re.compile("null|[0-9a-f]{16}")
#: Operations that may be about a version.
OF_VERSIONS = frozenset(
    {("GET", "object", ""), ("HEAD", "object", ""), ("DELETE", "object", ""),
     ("GET", "object", "acl"), ("PUT", "object", "acl"), ("GET", "object", "attributes"),
     ("GET", "object", "tagging"), ("PUT", "object", "tagging"), ("DELETE", "object", "tagging"),
     *((method, "object", name) for method in ("GET", "PUT") for name in ("legal-hold",
       "retention"))}
)  # fmt: skip


class Operation(NamedTuple):
    handler: Handler
    need: Need
    #: What policies call it; empty: they are asked elsewhere, or not at all.
    action: str = ""


#: What policies call operations: reading, and changing.
_OF_BUCKETS = {
    "": ("ListBucket", ""),
    "accelerate": ("GetAccelerateConfiguration", ""),
    "acl": ("GetBucketAcl", "PutBucketAcl"),
    "cors": ("GetBucketCORS", "PutBucketCORS"),
    "delete": ("", ""),
    "encryption": ("GetEncryptionConfiguration", "PutEncryptionConfiguration"),
    "lifecycle": ("GetLifecycleConfiguration", "PutLifecycleConfiguration"),
    "location": ("GetBucketLocation", ""),
    "logging": ("GetBucketLogging", ""),
    "notification": ("GetBucketNotification", ""),
    "object-lock": ("GetBucketObjectLockConfiguration", "PutBucketObjectLockConfiguration"),
    OWNERSHIP: ("GetBucketOwnershipControls", "PutBucketOwnershipControls"),
    POLICY: ("GetBucketPolicy", "PutBucketPolicy"),
    "policyStatus": ("GetBucketPolicyStatus", ""),
    BLOCK: ("GetBucketPublicAccessBlock", "PutBucketPublicAccessBlock"),
    "replication": ("GetReplicationConfiguration", "PutReplicationConfiguration"),
    "requestPayment": ("GetBucketRequestPayment", ""),
    "tagging": ("GetBucketTagging", "PutBucketTagging"),
    "uploads": ("ListBucketMultipartUploads", ""),
    "versioning": ("GetBucketVersioning", "PutBucketVersioning"),
    "versions": ("ListBucketVersions", ""),
    "website": ("GetBucketWebsite", "DeleteBucketWebsite"),
}
_OF_OBJECTS = {
    "acl": ("GetObjectAcl", "PutObjectAcl"),
    "legal-hold": ("GetObjectLegalHold", "PutObjectLegalHold"),
    "retention": ("GetObjectRetention", "PutObjectRetention"),
    "tagging": ("GetObjectTagging", "PutObjectTagging"),
    "uploadId": ("ListMultipartUploadParts", "PutObject"),
}
_OTHERS = {
    ("PUT", "bucket", ""): "",
    ("DELETE", "bucket", ""): "DeleteBucket",
    ("POST", "bucket", ""): "PutObject",
    ("DELETE", "bucket", POLICY): "DeleteBucketPolicy",
    ("DELETE", "object", ""): "DeleteObject",
    ("DELETE", "object", "tagging"): "DeleteObjectTagging",
    ("DELETE", "object", "uploadId"): "AbortMultipartUpload",
}


def _action(method: str, level: str, subresource: str) -> str:
    """What policies call an operation."""
    is_reading = method in ("GET", "HEAD")
    if level == "service":
        return ""
    found = _OTHERS.get((method, level, subresource))
    if found is None and level == "bucket":
        found = _OF_BUCKETS[subresource][not is_reading]
    elif found is None:
        usual = ("GetObject", "PutObject")
        found = _OF_OBJECTS.get(subresource, usual)[not is_reading]
    return f"s3:{found}" if found else ""


def _spaces(action: str) -> Need:
    return scoped("storage", "namespaces", action, parameter="name")


class Service:
    def __init__(
        self, control: Control, cluster: Cluster, spaces: Spaces, transfers: Transfers, keys: Keys,
        domain: str, expiry: lifecycle.Lifecycle, takes_version_2: bool,
    ) -> None:  # fmt: skip
        self._control = control
        self._spaces = spaces
        self._keys = keys
        self._domain = domain.lower().strip(".")
        #: Whether presigned URLs may be signed with version 2.
        self._takes_version_2 = takes_version_2
        self._signers: dict[tuple[str, str], Key] = {}
        self.patience = patience = Patience()
        versions = Versions(control, cluster, spaces)
        self._buckets = buckets = Buckets(cluster, spaces, versions, patience)
        objects = Objects(control, cluster, spaces, transfers, buckets, patience, expiry)
        self.uploads = uploads = Uploads(control, cluster, spaces, buckets, objects, patience)
        tagging = Tagging(cluster, buckets, objects)
        kinds = {
            "cors": Kind(cors.ROOT, "NoSuchCORSConfiguration", cors.check),
            "lifecycle": Kind(lifecycle.ROOT, "NoSuchLifecycleConfiguration", lifecycle.check),
            "tagging": Kind("Tagging", "NoSuchTagSet", check_bucket_tags),
            BLOCK: Kind(BLOCK_ROOT, "NoSuchPublicAccessBlockConfiguration", Block.of),
        }
        documents = Configurations(buckets, kinds)
        self._authority = authority = Authority(control, buckets, objects, documents)
        access = Access(buckets, objects, authority, documents)
        self._cors = Cors(control, spaces)
        self._forms = Forms(objects, self._find_key, self._signer)
        #: By method, what the path names, and subresource.
        self._operations: dict[tuple[str, str, str], Operation] = {
            ("GET", "service", ""): Operation(buckets.list_all, _spaces("read")),
            ("GET", "bucket", ""): Operation(buckets.list_objects, READ),
            ("GET", "bucket", "versions"): Operation(buckets.list_versions, READ),
            ("GET", "bucket", "acl"): Operation(access.get_bucket, _spaces("read")),
            ("PUT", "bucket", "acl"): Operation(access.put_bucket, _spaces("update")),
            ("GET", "bucket", "policyStatus"): Operation(authority.policy_status, _spaces("read")),
            ("PUT", "bucket", "object-lock"): Operation(documents.no_lock, _spaces("update")),
            ("POST", "bucket", ""): Operation(self._forms.post, CREATE),
            ("GET", "bucket", "location"): Operation(buckets.location, READ),
            ("GET", "bucket", "versioning"): Operation(buckets.versioning, READ),
            ("PUT", "bucket", "versioning"): Operation(buckets.put_versioning, _spaces("update")),
            ("GET", "bucket", "uploads"): Operation(uploads.list_uploads, CREATE),
            ("HEAD", "bucket", ""): Operation(buckets.head, READ),
            ("PUT", "bucket", ""): Operation(access.create_bucket, _spaces("create")),
            ("DELETE", "bucket", ""): Operation(uploads.delete_bucket, _spaces("delete")),
            ("POST", "bucket", "delete"): Operation(buckets.delete_objects, EACH_DELETED),
            ("GET", "object", ""): Operation(objects.get, READ),
            ("HEAD", "object", ""): Operation(objects.head, READ),
            ("PUT", "object", ""): Operation(objects.put, CREATE),
            ("PUT", "object", "copy"): Operation(objects.copy, CREATE),
            ("DELETE", "object", ""): Operation(objects.delete, DELETE),
            ("GET", "object", "acl"): Operation(access.get_object, READ),
            ("PUT", "object", "acl"): Operation(access.put_object, CREATE),
            ("GET", "object", "attributes"): Operation(objects.attributes, READ),
            ("GET", "object", "tagging"): Operation(tagging.get, READ),
            ("PUT", "object", "tagging"): Operation(tagging.put, CREATE),
            ("DELETE", "object", "tagging"): Operation(tagging.delete, CREATE),
            ("POST", "object", "uploads"): Operation(uploads.create, CREATE),
            ("PUT", "object", "uploadId"): Operation(uploads.put_part, CREATE),
            ("GET", "object", "uploadId"): Operation(uploads.list_parts, CREATE),
            ("POST", "object", "uploadId"): Operation(uploads.complete, CREATE),
            ("DELETE", "object", "uploadId"): Operation(uploads.abort, CREATE),
        }
        for name in kinds:
            for method, handler, action in (
                ("GET", documents.get, "read"),
                ("PUT", documents.put, "update"),
                ("DELETE", documents.delete, "update"),
            ):
                need = _spaces(action)
                if (method, name) == ("PUT", "lifecycle"):
                    need = DELETE  # that is what the rules do
                self._operations[method, "bucket", name] = Operation(handler, need)
        for name in ABSENT:
            self._operations["GET", "bucket", name] = Operation(documents.absent, _spaces("read"))
        for name in REMOVABLE:
            operation = Operation(documents.remove_absent, _spaces("update"))
            self._operations["DELETE", "bucket", name] = operation
        self._operations |= {
            ("GET", "bucket", POLICY): Operation(authority.get_policy, _spaces("read")),
            ("PUT", "bucket", POLICY): Operation(authority.put_policy, _spaces("update")),
            ("DELETE", "bucket", POLICY): Operation(authority.delete_policy, _spaces("update")),
            ("PUT", "bucket", BLOCK): Operation(authority.put_block, _spaces("update")),
            ("PUT", "bucket", OWNERSHIP): Operation(authority.put_ownership, _spaces("update")),
            ("DELETE", "bucket", OWNERSHIP): Operation(
                authority.delete_ownership, _spaces("update")
            ),
            ("DELETE", "bucket", BLOCK): Operation(authority.delete_block, _spaces("update")),
        }
        for name in ("legal-hold", "retention"):
            self._operations["GET", "object", name] = Operation(documents.no_lock, READ)
            self._operations["PUT", "object", name] = Operation(documents.no_lock, CREATE)
        self._operations = {
            place: operation._replace(action=_action(*place))
            for place, operation in self._operations.items()
        }

    async def serve(self, request: StreamingRequest, watch: Callable[[Call], None]) -> Response:
        """Answer a request. Raises nothing but what ends the process, or this task."""
        request_id = secrets.token_hex(8).upper()
        headers = request.headers.joined()
        bucket = ""
        try:
            await self._control.fresh()
            bucket, key = self._names(request.scope["raw_path"], headers.get("host", ""))
            if request.method == "OPTIONS":
                response = self._cors.preflight(bucket, headers)
            else:
                response = await self._carry_out(request, watch, bucket, key, headers)
        except Exception as error:
            if any(isinstance(leaf, RecordsFailed) for leaf in leaves(error)):
                raise
            response = _refusal(request, as_s3_error(error, f"S3 {request.method}"), request_id)
        if request.method == "HEAD":
            length = response.headers.get("Content-Length", "0")
            response.set_data(b"")
            response.headers["Content-Length"] = length
        if "origin" in headers and request.method != "OPTIONS":
            self._cors.mark(response, bucket, request.method, headers)
        response.headers["x-amz-request-id"] = request_id
        return response

    async def _carry_out(
        self,
        request: StreamingRequest,
        watch: Callable[[Call], None],
        bucket: str,
        key: str,
        headers: HeaderTexts,
    ) -> Response:
        raw_path: bytes = request.scope["raw_path"]
        pairs = parse_query(request.scope["query_string"])
        query = ParameterTexts(pairs)
        listed = [(name.lower(), value) for name, value in request.headers.items()]
        signed: Signed | None = None
        signer: Key | None = None
        principal: Principal | None = None
        if self._takes_version_2 and signature2.is_presigned(query):
            bucket_in_host = self._bucket_in(headers.get("host", ""))
            resource = f"/{bucket_in_host}".encode() * bool(bucket_in_host) + raw_path
            presigned = signature2.presigned(
                request.method, resource, request.scope["query_string"], listed
            )
            principal = self._verified_2(presigned)
            signed, query = presigned.signed(), ParameterTexts(presigned.options)
            headers = HeaderTexts({**presigned.headers, **headers})
        elif (signed := find(headers, query)) is not None:
            signer, principal = self._verified(signed, request.method, raw_path, pairs, listed)
            if signed.expires is not None:
                headers = HeaderTexts({**headers_of(query), **headers})
        operation = self._operation(request.method, bucket, key, query, headers)
        call = S3Call(
            self._control, operation.need, request, principal, bucket, key, query, headers,
            signed, signer,
        )  # fmt: skip
        if operation.handler == self._forms.post:
            call = await self._forms.read(call)
        watch(call)
        if call.principal is None and bucket and (request.method, key) != ("PUT", ""):
            self._owner(bucket)  # to say first that there is none, as S3 does
        call.authority = self._authority
        await self._authority.admit(call, of_version(operation.action, call.version))
        _check_headers(call.headers)
        expected = headers.get("x-amz-expected-bucket-owner")
        if expected is not None and expected != self._owner(bucket):
            raise S3Error("AccessDenied", "the bucket has another owner")
        response = await operation.handler(call)
        response.headers.update(call.answers)
        return response

    def _owner(self, bucket: str) -> str | None:
        try:
            return self._spaces.get(bucket).owner_id
        except NoSuchThing:
            raise S3Error("NoSuchBucket", f"there is no bucket {bucket:.80}") from None

    def _names(self, raw_path: bytes, host: str) -> tuple[str, str]:
        """The bucket and the key that the path, or the host and the path, name."""
        try:
            path = unquote_to_bytes(raw_path).decode().removeprefix("/")
        except UnicodeDecodeError:
            raise S3Error("InvalidURI", "the URL is not UTF-8") from None
        in_host = self._bucket_in(host)
        if in_host:
            return in_host, path
        bucket, _, key = path.partition("/")
        return bucket, key

    def _bucket_in(self, host: str) -> str:
        """The bucket that the host names; empty if it names none."""
        name = host.lower().partition(":")[0]
        is_below = self._domain and name.endswith(f".{self._domain}")
        return name.removesuffix(f".{self._domain}") if is_below else ""

    def _verified_2(self, presigned: signature2.Presigned) -> Principal:
        presigned.check_time(time.time())
        secret, principal = self._find_key(presigned.access_key_id)
        presigned.verify(secret)
        return principal

    def _verified(
        self,
        signed: Signed,
        method: str,
        raw_path: bytes,
        query: list[tuple[str, str]],
        headers: list[tuple[str, str]],
    ) -> tuple[Key, Principal]:
        check_time(signed, time.time())
        secret, principal = self._find_key(signed.access_key_id)
        signer = self._signer(secret, signed.scope)
        verify(signer, signed, method, raw_path, query, headers)
        return signer, principal

    def _find_key(self, access_key_id: str) -> tuple[str, Principal]:
        found = self._keys.find(access_key_id)
        if found is None:
            raise S3Error("InvalidAccessKeyId", "there is no such access key, or not any more")
        return found

    def _signer(self, secret: str, scope: str) -> Key:
        """The key of a day costs four HMACs: it is kept."""
        known = self._signers.get((secret, scope))
        if known is None:
            if len(self._signers) >= 1024:
                self._signers.clear()
            known = self._signers[secret, scope] = Key(secret, scope)
        return known

    def _operation(
        self,
        method: str,
        bucket: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> Operation:
        level = "object" if key else "bucket" if bucket else "service"
        asked = sorted(SUBRESOURCES & query.keys())
        subresource = asked[0] if asked else ""
        if method == "PUT" and level == "object" and not asked and "x-amz-copy-source" in headers:
            subresource = "copy"
        found = self._operations.get((method, level, subresource))
        if found is None or len(asked) > 1:
            what = f"{method} of a {level}" + (f" with {subresource}" if subresource else "")
            raise S3Error("NotImplemented", f"{what} is not offered")
        version = query.get("versionId", "")
        if version and not VERSION_ID.fullmatch(version):
            raise S3Error("InvalidArgument", "versionId is null, or 16 hexadecimal digits")
        if version and (method, level, subresource) not in OF_VERSIONS:
            raise S3Error("InvalidArgument", "this operation is not about a version")
        if "partNumber" in query and subresource != "uploadId" and method not in ("GET", "HEAD"):
            # It would be about the whole object, which the client takes for a part.
            raise S3Error("InvalidArgument", "partNumber is without its uploadId")
        if method not in ("GET", "HEAD"):
            for name in query:
                # It may make another operation of the request, which this one is not.
                # Those that begin with "x-" are for logs, says the page about S3's access logs;
                # in a presigned URL they are headers, see :func:`headers_of`.
                if name not in PARAMETERS | SUBRESOURCES and not name.lower().startswith("x-"):
                    raise S3Error("NotImplemented", f"the parameter {name:.80} is not offered")
        return found


def _check_headers(headers: Mapping[str, str]) -> None:
    """Raises S3Error for what is not offered."""
    if headers.get("x-amz-security-token"):
        raise S3Error(
            "InvalidToken", "access keys have no session token here: leave out AWS_SESSION_TOKEN"
        )
    for name in headers:
        if NOT_OFFERED.fullmatch(name) and headers[name].lower() != "false":
            raise S3Error("NotImplemented", f"the header {name} is not offered")
    if headers.get("x-amz-storage-class", "STANDARD") != "STANDARD":
        raise S3Error("InvalidStorageClass", "there is one storage class, STANDARD")
    if headers.get("x-amz-object-ownership", "BucketOwnerEnforced") != "BucketOwnerEnforced":
        raise S3Error("NotImplemented", "all objects of a bucket are its owner's")


def _refusal(request: StreamingRequest, error: S3Error, request_id: str) -> Response:
    body = error_document(error, request.scope["raw_path"].decode("latin-1"), request_id)
    return Response(body, error.status, error.headers, content_type=CONTENT_TYPE)

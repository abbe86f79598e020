"""Errors as S3 has them: a code that clients decide by, a status, a message for people."""

from __future__ import annotations

from collections.abc import Mapping

from control.api import (
    ApiError,
    BadRequest,
    BodyCutShort,
    Conflict,
    Forbidden,
    NoSuchThing,
    QuotaReached,
    TooLarge,
    TooManyRequests,
    TooSlow,
    Unauthorized,
    Unavailable,
)
from control.api.internals import InTheWay, Refusal, explain
from gfs.failures import leaves

#: The statuses of the codes that are used here.
STATUS = {
    "AccessControlListNotSupported": 400,
    "AccessDenied": 403,
    "AccessForbidden": 403,
    "AuthorizationHeaderMalformed": 400,
    "AuthorizationQueryParametersError": 400,
    "BadDigest": 400,
    "BadRequest": 400,
    "BucketAlreadyExists": 409,
    "BucketAlreadyOwnedByYou": 409,
    "BucketNotEmpty": 409,
    "EntityTooLarge": 400,
    "EntityTooSmall": 400,
    "IncompleteBody": 400,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidArgument": 400,
    "InvalidBucketAclWithObjectOwnership": 400,
    "InvalidBucketName": 400,
    "InvalidBucketState": 409,
    "InvalidDigest": 400,
    "InvalidPart": 400,
    "InvalidPartOrder": 400,
    "InvalidPolicyDocument": 400,
    "InvalidRange": 416,
    "InvalidRequest": 400,
    "InvalidStorageClass": 400,
    "InvalidTag": 400,
    "InvalidToken": 400,
    "InvalidURI": 400,
    "KeyTooLongError": 400,
    "MalformedPolicy": 400,
    "MalformedXML": 400,
    "MetadataTooLarge": 400,
    "MethodNotAllowed": 405,
    "MissingContentLength": 411,
    "NoSuchBucket": 404,
    "NoSuchBucketPolicy": 404,
    "NoSuchCORSConfiguration": 404,
    "NoSuchKey": 404,
    "NoSuchLifecycleConfiguration": 404,
    "NoSuchPublicAccessBlockConfiguration": 404,
    "NoSuchTagSet": 404,
    "NoSuchUpload": 404,
    "NoSuchVersion": 404,
    "NoSuchWebsiteConfiguration": 404,
    "NotImplemented": 501,
    "ObjectLockConfigurationNotFoundError": 404,
    "OperationAborted": 409,
    "PreconditionFailed": 412,
    "QuotaExceeded": 403,
    "ReplicationConfigurationNotFoundError": 404,
    "RequestTimeTooSkewed": 403,
    "RequestHeaderSectionTooLarge": 400,
    "RequestTimeout": 400,
    "ServerSideEncryptionConfigurationNotFoundError": 404,
    "ServiceUnavailable": 503,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
    "UnresolvableGrantByEmailAddress": 400,
    "XAmzContentSHA256Mismatch": 400,
}

_OF_API: list[tuple[type[ApiError], str]] = [
    (Unauthorized, "AccessDenied"),
    (Forbidden, "AccessDenied"),
    (NoSuchThing, "NoSuchKey"),
    (InTheWay, "InvalidRequest"),  # it would be so the next time as well
    (Conflict, "OperationAborted"),
    (QuotaReached, "QuotaExceeded"),
    (TooLarge, "EntityTooLarge"),
    (TooManyRequests, "SlowDown"),
    (TooSlow, "RequestTimeout"),
    (Unavailable, "ServiceUnavailable"),
    (BadRequest, "InvalidArgument"),
]


class S3Error(Exception):
    def __init__(self, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS[code]
        self.headers = headers or {}


def _of_api(error: ApiError) -> S3Error:
    """The same refusal, as S3 says it."""
    code = next((code for kind, code in _OF_API if isinstance(error, kind)), "InvalidRequest")
    return S3Error(code, str(error), dict(error.headers))


def _of_status(status: int, message: str, headers: Mapping[str, str] | None = None) -> S3Error:
    """A failure that the user did not cause, see :func:`control.errors.explain`."""
    codes = {400: "InvalidArgument", 414: "InvalidURI", 431: "RequestHeaderSectionTooLarge",
             503: "ServiceUnavailable", 507: "QuotaExceeded"}  # fmt: skip
    return S3Error(codes.get(status, "InternalError"), message, dict(headers or {}))


def of_refusal(refusal: Refusal) -> S3Error:
    """What the server itself answers, which has a status of its own."""
    codes = {400: "BadRequest", 408: "RequestTimeout", 429: "SlowDown",
             501: "NotImplemented", 505: "NotImplemented"}  # fmt: skip
    if refusal.is_url:
        return S3Error("InvalidURI", refusal.message)
    code = codes.get(refusal.status)
    return S3Error(code, refusal.message) if code else _of_status(refusal.status, refusal.message)


def as_s3_error(error: BaseException, what: str) -> S3Error:
    """The answer to a failure; those that the user did not cause are logged."""
    found = next((leaf for leaf in leaves(error) if isinstance(leaf, S3Error)), None)
    if found is not None:
        return found
    api = next((leaf for leaf in leaves(error) if isinstance(leaf, ApiError)), None)
    if isinstance(api, Unauthorized):
        return S3Error("AccessDenied", "sign the request with an access key")
    if api is not None:
        return _of_api(api)
    if any(isinstance(leaf, BodyCutShort) for leaf in leaves(error)):
        return S3Error("IncompleteBody", "the body ended before its announced length")
    return _of_status(*explain(error, what))

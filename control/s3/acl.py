"""Access control lists, as far as they can be true here: all objects of a bucket are its owner's
(S3 calls that *bucket owner enforced*), and the bucket's visibility is that of all of them.

So the list of a private bucket, and of each object in it, is ``private``; that of a public one is
``public-read``. A bucket can be given either; an object can be given the one that it has. A bucket
can also be ``public-read-write`` (a public one in which everybody may write) or
``authenticated-read`` (a private one that each user may read), and have grants to single users:
over S3 alone, and as by a policy (:mod:`.authority`). All others are answered with
``NotImplemented``.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import msgspec

from control.api import PRIVATE, PUBLIC_VISIBILITY
from control.s3.documents import Child, text_of
from control.s3.errors import S3Error
from control.storage import Space

_XSI = "http://www.w3.org/2001/XMLSchema-instance"
USERS = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
EVERYBODY = "http://acs.amazonaws.com/groups/global/AllUsers"
#: The lists that a bucket can have, and their visibility.
BUCKETS = {
    "private": PRIVATE,
    "public-read": PUBLIC_VISIBILITY,
    "public-read-write": PUBLIC_VISIBILITY,
    "authenticated-read": PRIVATE,
}
#: Those that the visibility alone does not say: they are stored.
STORED = frozenset({"public-read-write", "authenticated-read"})
#: What they allow others.
WRITES = frozenset(
    {"s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"}
)
READS = frozenset({"s3:ListBucket", "s3:ListBucketVersions", "s3:GetObject", "s3:GetObjectVersion"})
#: What a grant to a user allows.
PERMISSIONS: dict[str, frozenset[str]] = {
    "READ": READS,
    "WRITE": WRITES,
    "READ_ACP": frozenset({"s3:GetBucketAcl"}),
    "WRITE_ACP": frozenset({"s3:PutBucketAcl"}),
    "FULL_CONTROL": READS | WRITES | {"s3:GetBucketAcl", "s3:PutBucketAcl"},
}
GRANTS_MAX = 100
#: (user_id, permission).
Grants = list[tuple[str, str]]
_GRANTS: dict[str, list[tuple[str, str]]] = {
    "private": [],
    "public-read": [(EVERYBODY, "READ")],
    "public-read-write": [(EVERYBODY, "READ"), (EVERYBODY, "WRITE")],
    "authenticated-read": [(USERS, "READ")],
}
#: Those that S3 knows and that are not offered here.
OTHERS = frozenset(
    {"public-read-write", "aws-exec-read", "authenticated-read", "log-delivery-write"}
)


def canned(name: str) -> int | None:
    """The visibility that a canned list asks for; None if it is true of both. Raises S3Error."""
    if name in ("bucket-owner-full-control", "bucket-owner-read"):
        return None
    if name == "private":
        return PRIVATE
    if name == "public-read":
        return PUBLIC_VISIBILITY
    if name in OTHERS:
        raise S3Error("NotImplemented", f"the list {name} is not offered")
    raise S3Error("InvalidArgument", f"x-amz-acl: {name:.80} is no canned list")


def of_bucket(name: str) -> str:
    """A canned list for a bucket; empty: the one that it has. Raises S3Error."""
    if name in BUCKETS:
        return name
    canned(name)
    return ""


def of_space(space: Space) -> str:
    """The list of a bucket."""
    return space.acl or of_objects(space)


def of_objects(space: Space) -> str:
    """The list of each object in it."""
    return "private" if space.visibility == PRIVATE else "public-read"


def grants_of(text: str | None) -> Grants:
    """To single users, as they are stored."""
    return msgspec.json.decode(text, type=Grants) if text is not None else []


def allows(space: Space, grants: str | None, user_id: str | None, action: str) -> bool:
    """Whether the list of a bucket lets a user, or somebody, do something that its visibility
    does not."""
    for who, permission in grants_of(grants):
        if who == user_id and action in PERMISSIONS[permission]:
            return True
    name = space.acl if not space.private else ""
    if name == "public-read-write":
        return action in WRITES
    return name == "authenticated-read" and user_id is not None and action in READS


def check(space: Space, visibility: int | None) -> None:
    """Check that objects of the bucket have the list that is asked for. Raises S3Error."""
    if visibility is not None and (visibility == PRIVATE) != (space.visibility == PRIVATE):
        now = "private" if space.visibility == PRIVATE else "public"
        raise S3Error("NotImplemented", f"the bucket is {now}, and so is each object in it")


def described(
    name: str, owner: list[Child], users: Sequence[tuple[list[Child], str]] = ()
) -> list[Child]:
    """The list of a bucket or of an object in it, as a document; with grants to users."""
    grants = [_grant("Group", [("URI", uri)], permission) for uri, permission in _GRANTS[name]]
    grants.append(_grant("CanonicalUser", owner, "FULL_CONTROL"))
    grants += [_grant("CanonicalUser", user, permission) for user, permission in users]
    return [("Owner", owner), ("AccessControlList", grants)]


def written(root: Element, space: Space) -> tuple[str, Grants]:
    """The canned list that a document asks for, and the grants to users besides. Raises
    S3Error."""
    if root.find("AccessControlList") is None:
        raise S3Error("MalformedXML", "the document has no AccessControlList")
    asked = {_granted(each) for each in root.findall("AccessControlList/Grant")}
    full = (space.owner_id or "", "FULL_CONTROL")
    users = sorted(each for each in asked - {full} if ":" not in each[0])
    if not all(who and permission in PERMISSIONS for who, permission in users):
        raise S3Error("NotImplemented", "grants are to users by their ID")
    if len(users) > GRANTS_MAX:
        raise S3Error("InvalidRequest", f"a bucket has at most {GRANTS_MAX} grants to users")
    for name, grants in _GRANTS.items():
        if asked == {full, *grants, *users}:
            return name, users
    raise S3Error("NotImplemented", f"lists are {', '.join(BUCKETS)}, the owner's")


def _grant(kind: str, who: list[Child], permission: str) -> Child:
    grantee = f'Grantee xmlns:xsi="{_XSI}" xsi:type="{kind}"'
    return ("Grant", [(grantee, who), ("Permission", permission)])


def _granted(grant: Element) -> tuple[str, str]:
    grantee = grant.find("Grantee")
    if grantee is None:
        raise S3Error("MalformedXML", "a Grant has no Grantee")
    if grantee.find("EmailAddress") is not None:
        raise S3Error("UnresolvableGrantByEmailAddress", "users have no addresses of mail here")
    return text_of(grantee, "ID") or text_of(grantee, "URI"), text_of(grant, "Permission")

"""Who may do what: the policy of a bucket, its block of public access, and else its owner and its
visibility (:mod:`control.identity`).

Who is allowed something by a policy acts for the bucket's owner, with that request alone: what is
stored is the owner's, and counts in the owner's quota. What a policy denies is denied to the
owner as well, except to read, change and delete the policy. A key of a user needs the scope of the
operation in its own grants, too: a policy gives no key more than its user gave it.

All this is about the port of S3. Over REST the owner and the visibility decide.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from control.api import PRIVATE, ApiError, Control, Principal, Response, Txn
from control.api.internals import decide, decide_target, users
from control.s3 import acl
from control.s3 import metadata as stored_with
from control.s3 import policy as policies
from control.s3.buckets import Buckets, xml
from control.s3.call import TAGGING, S3Call
from control.s3.configuration import Configurations, stored
from control.s3.documents import around, inside, parse, text_of
from control.s3.errors import S3Error
from control.s3.objects import Objects, tags_of_header
from control.s3.policy import ARN, Policy, Who
from control.s3.tagging import tags_of
from control.storage import Space, change_space

POLICY = "policy"
GRANTS = "grants"
OWNERSHIP = "ownershipControls"
ENFORCED = "BucketOwnerEnforced"
BLOCK = "publicAccessBlock"
BLOCK_ROOT = "PublicAccessBlockConfiguration"
#: What the owner may do whatever the policy says.
ALWAYS = frozenset({"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"})
#: Lists that are not the owner's alone.
PUBLIC_LISTS = frozenset({"public-read", "public-read-write", "authenticated-read"})
#: The list that says nothing: all objects are the owner's.
BY_OWNER = "bucket-owner-full-control"
LISTED = frozenset({"s3:PutBucketAcl", "s3:PutObjectAcl"})
EVERY = ["create", "read", "update", "delete"]
_EXISTING, _REQUESTED = "s3:existingobjecttag/", "s3:requestobjecttag/"


class Block(NamedTuple):
    """A block of public access."""

    public_acls: bool = False
    ignores_acls: bool = False
    public_policy: bool = False
    restricts: bool = False

    @classmethod
    def of(cls, root: Element) -> Block:
        """Raises S3Error."""
        names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy",
                 "RestrictPublicBuckets")  # fmt: skip
        said = [text_of(root, name).lower() for name in names]
        if {each.tag for each in root} - set(names) or set(said) - {"", "true", "false"}:
            raise S3Error("MalformedXML", f"a block has {', '.join(names)}, each true or false")
        return cls(*(text == "true" for text in said))


def block_of(text: str | None) -> Block:
    """Of a bucket's document; what is not there is not blocked."""
    return Block() if text is None else Block.of(parse(around(BLOCK_ROOT, text), BLOCK_ROOT))


class Authority:
    def __init__(
        self, control: Control, buckets: Buckets, objects: Objects, documents: Configurations
    ) -> None:
        self._control = control
        self._buckets = buckets
        self._objects = objects
        self._documents = documents

    # --- deciding -----------------------------------------------------------------

    async def admit(self, call: S3Call, action: str) -> None:
        """Let the call act for the bucket's owner if the policy allows it. Raises S3Error if the
        policy denies it, Unauthorized and Forbidden as without one."""
        if action and await self.judge(call, action, call.key):
            return
        decide(call.principal, call.need, call.need.name_in(call.params, {}))
        if action == "s3:GetObject":
            await self._say_missing(call)

    async def judge(self, call: S3Call, action: str, key: str) -> bool:
        """Whether the policy lets the call act for the owner, as it does from now on. Raises
        S3Error if it denies it."""
        space = self._buckets.find(call.bucket)
        if (call.headers.get("x-amz-acl", BY_OWNER) != BY_OWNER or action in LISTED) and stored(
            self._control.records, space, OWNERSHIP
        ) is not None:
            raise S3Error("AccessControlListNotSupported", "the bucket's owner has no lists")
        if call.headers.get("x-amz-acl", "") in PUBLIC_LISTS and self.blocks_lists(space):
            raise S3Error("AccessDenied", "the bucket's block allows no public lists")
        found = self._policy(space)
        asked = (action, *_besides(call, action))
        said: dict[str, bool | None] = {}
        if found is not None:
            said = {each: await self._verdict(call, space, found, each, key) for each in asked}
            if False in said.values():
                if action in ALWAYS and _is_owner(call, space):
                    return False
                raise S3Error("AccessDenied", "the bucket's policy denies this")
            if found.is_public and self._block(space).restricts:
                said.clear()
        if space.owner_id is None or _is_owner(call, space):
            return False
        user_id = call.actor.user_id if call.actor is not None else None
        needed = [each for each in asked if each in (action, TAGGING)]
        if not all(map(said.get, needed)) and not self._is_listed(space, user_id, action):
            return False
        if call.principal is not None:
            decide(call.principal, call.need, space.name)
        with self._control.records.read() as txn:
            owner = users.get(txn, space.owner_id)
        if owner is None:
            return False
        call.act_for(
            Principal(
                user_id=owner.id,
                username=owner.username,
                display_name=owner.display_name,
                credential_id="",
                grants={f"storage.{owner.id}": EVERY},
            )
        )
        return True

    def _is_listed(self, space: Space, user_id: str | None, action: str) -> bool:
        grants = stored(self._control.records, space, GRANTS)
        return acl.allows(space, grants, user_id, action)

    def _policy(self, space: Space) -> Policy | None:
        text = stored(self._control.records, space, POLICY)
        return policies.parse(text, space.name) if text is not None else None

    def _block(self, space: Space) -> Block:
        return block_of(stored(self._control.records, space, BLOCK))

    async def _verdict(
        self, call: S3Call, space: Space, found: Policy, action: str, key: str
    ) -> bool | None:
        actor = call.actor
        who = Who(actor.user_id, call.access_key_id) if actor is not None else Who()
        resource = f"{ARN}{space.name}/{key}" if key else f"{ARN}{space.name}"
        about = found.about(who, action, resource)
        asked = {condition.key for each in about for condition in each.conditions}
        existing: dict[str, str] = {}
        requested: dict[str, str] = {}
        if key and any(name.startswith(_EXISTING) for name in asked):
            try:
                entry = await self._objects.find(space, key, call.version)
                existing = stored_with.of_entry(entry).tags
            except S3Error:
                pass  # an object that is not there has none
        if any(name.startswith(_REQUESTED) for name in asked):
            # A form may have a field of that name: its tags are in its headers by now.
            if key and "tagging" in call.options and call.request.method == "PUT":
                document = await call.document("Tagging")
                requested = tags_of(document, stored_with.TAGS_MAX)
            else:
                requested = tags_of_header(call.headers)

        def value(name: str) -> str | None:
            if name.startswith(_EXISTING):
                return existing.get(name.removeprefix(_EXISTING))
            if name.startswith(_REQUESTED):
                return requested.get(name.removeprefix(_REQUESTED))
            return _value(call, actor, name)

        return policies.verdict(about, value)

    async def _say_missing(self, call: S3Call) -> None:
        """Say to who may not read an object that it is not there, if he may list it. Raises S3Error
        if so."""
        space = self._buckets.find(call.bucket)
        found = self._policy(space)
        if found is None or (self._block(space).restricts and found.is_public):
            return
        with suppress(ApiError):
            decide_target(call.principal, call.need, space.target, reading=True)
            return
        asking = call.listing(call.key)
        if await self._verdict(asking, space, found, "s3:ListBucket", ""):
            await self._objects.find(space, call.key)

    # --- documents ----------------------------------------------------------------

    async def get_policy(self, call: S3Call) -> Response:
        text = stored(self._control.records, self._buckets.owned(call), POLICY)
        if text is None:
            raise S3Error("NoSuchBucketPolicy", "the bucket has none")
        return Response(text.encode(), 200, content_type="application/json")

    async def put_policy(self, call: S3Call) -> Response:
        space = self._buckets.owned(call)
        data = bytearray()
        async for piece in call.body():
            data += piece
            if len(data) > policies.LETTERS_MAX:
                raise policies.malformed(f"a policy has at most {policies.LETTERS_MAX} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise policies.malformed("the policy is not UTF-8") from None
        if text.count('"') > 2 * policies.TEXTS_MAX:
            raise policies.malformed(f"a policy has at most {policies.TEXTS_MAX} names and values")
        found = policies.parse(text, space.name)
        if found.is_public and self._block(space).public_policy:
            raise S3Error("AccessDenied", "the bucket's block allows no public policy")
        await self._documents.set(call, space, POLICY, text)
        return Response(b"", 204)

    async def delete_policy(self, call: S3Call) -> Response:
        await self._documents.set(call, self._buckets.owned(call), POLICY, None)
        return Response(b"", 204)

    async def put_ownership(self, call: S3Call) -> Response:
        """The one control that there is: from then on no list can be set."""
        space = self._buckets.owned(call)
        root = await call.document("OwnershipControls")
        if {text_of(rule, "ObjectOwnership") for rule in root.iter("Rule")} != {ENFORCED}:
            raise S3Error("NotImplemented", "all objects of a bucket are its owner's")
        granted = stored(self._control.records, space, GRANTS)
        if acl.of_space(space) != "private" or granted is not None:
            raise S3Error("InvalidBucketAclWithObjectOwnership", "make the bucket private first")
        await self._documents.set(call, space, OWNERSHIP, inside(root))
        return Response(b"", 200)

    async def delete_ownership(self, call: S3Call) -> Response:
        await self._documents.set(call, self._buckets.owned(call), OWNERSHIP, None)
        return Response(b"", 204)

    async def policy_status(self, call: S3Call) -> Response:
        space = self._buckets.owned(call)
        found = self._policy(space)
        is_public = found is not None and found.is_public and not self._block(space).restricts
        is_public = is_public or space.target.visibility != PRIVATE
        is_public = is_public or self._is_listed(space, "", "s3:GetObject")
        return xml("PolicyStatus", [("IsPublic", is_public)])

    async def put_block(self, call: S3Call) -> Response:
        root = await call.document(BLOCK_ROOT)
        await self._set_block(call, root, is_private=Block.of(root).ignores_acls)
        return Response(b"", 200)

    async def delete_block(self, call: S3Call) -> Response:
        await self._set_block(call, None, is_private=False)
        return Response(b"", 204)

    async def _set_block(self, call: S3Call, root: Element | None, *, is_private: bool) -> None:
        space = self._buckets.owned(call)

        def also(txn: Txn, now: Space) -> None:
            change_space(txn, now, private=is_private)

        await self._documents.set(call, space, BLOCK, None if root is None else inside(root), also)

    def blocks_lists(self, space: Space) -> bool:
        """Whether nothing in the bucket may be given a public list."""
        return self._block(space).public_acls

    def has_policy(self, space: Space) -> bool:
        """Whether others may do something with some objects, by a policy or by a list."""
        texts = (stored(self._control.records, space, name) for name in (POLICY, GRANTS))
        return bool(space.acl) or any(text is not None for text in texts)


def _is_owner(call: S3Call, space: Space) -> bool:
    return call.actor is not None and call.actor.user_id == space.owner_id


def _besides(call: S3Call, action: str) -> list[str]:
    """What an operation does besides: a policy that denies it denies the whole."""
    found = []
    if action == "s3:PutObject" and "x-amz-tagging" in call.headers:
        found.append(TAGGING)
    if action == "s3:PutObject" and "x-amz-acl" in call.headers:
        found.append("s3:PutObjectAcl")
    if action in ("s3:GetObject", "s3:GetObjectVersion") and "attributes" in call.options:
        found.append(f"{action}Attributes")
    return found


def _value(call: S3Call, actor: Principal | None, name: str) -> str | None:
    """What a request has for a condition's key."""
    match name:
        case "aws:referer":
            return call.headers.get("referer")
        case "aws:useragent":
            return call.headers.get("user-agent")
        case "aws:sourceip":
            return call.address or None
        case "aws:securetransport":
            return "true" if call.request.scheme == "https" else "false"
        case "aws:userid":
            return actor.user_id if actor is not None else None
        case "aws:username":
            return actor.username if actor is not None else None
        case "s3:x-amz-copy-source":
            text = call.headers.get("x-amz-copy-source")
            if text is None:
                return None
            return unquote(text.partition("?versionId=")[0]).removeprefix("/")
        case "s3:versionid":
            return call.options.get("versionId")
    kind, _, rest = name.partition(":")
    if rest.startswith("x-amz-"):
        return call.headers.get(rest)
    return call.options.get(rest) if kind == "s3" else None

"""Access control lists of buckets and objects: read and set, see :mod:`.acl`."""

from __future__ import annotations

import msgspec

from control.api import PRIVATE, Response, Txn
from control.api.internals import users
from control.s3 import acl
from control.s3.authority import ENFORCED, GRANTS, OWNERSHIP, PUBLIC_LISTS, Authority
from control.s3.buckets import Buckets, xml
from control.s3.call import S3Call
from control.s3.configuration import Configurations, stored
from control.s3.documents import Child
from control.s3.errors import S3Error
from control.s3.objects import Objects
from control.storage import Space, change_space


class Access:
    def __init__(
        self, buckets: Buckets, objects: Objects, authority: Authority, documents: Configurations
    ) -> None:
        self._buckets = buckets
        self._objects = objects
        self._authority = authority
        self._documents = documents

    async def get_bucket(self, call: S3Call) -> Response:
        space = self._buckets.owned(call)
        name = acl.of_space(space)
        named = [
            (self._user(call, who), permission)
            for who, permission in acl.grants_of(stored(call.control.records, space, GRANTS))
        ]
        owner = self._buckets.owner(call, space)
        return xml("AccessControlPolicy", acl.described(name, owner, named))

    def _user(self, call: S3Call, user_id: str) -> list[Child]:
        with call.control.records.read() as txn:
            user = users.get(txn, user_id)
        return [("ID", user_id), ("DisplayName", user.username if user is not None else "")]

    async def get_object(self, call: S3Call) -> Response:
        space = self._buckets.owned(call)
        await self._objects.find(space, call.key, call.version)
        owner = self._buckets.owner(call, space)
        return xml("AccessControlPolicy", acl.described(acl.of_objects(space), owner))

    async def create_bucket(self, call: S3Call) -> Response:
        name = acl.of_bucket(call.headers.get("x-amz-acl", "private")) or "private"
        response = Response(b"", 200, {"Location": f"/{call.bucket}"})
        if not await self._buckets.create(call):
            return response
        space = self._buckets.find(call.bucket)
        if space.owner_id != call.user.user_id:  # it has been deleted and created again
            raise S3Error("OperationAborted", "the bucket was deleted meanwhile: try again")
        await self._store(call, space, name, [])
        if call.headers.get("x-amz-object-ownership") == ENFORCED:
            text = f"<Rule><ObjectOwnership>{ENFORCED}</ObjectOwnership></Rule>"
            await self._documents.set(call, space, OWNERSHIP, text)
        return response

    async def put_bucket(self, call: S3Call) -> Response:
        space = self._buckets.owned(call)
        canned = call.headers.get("x-amz-acl")
        grants: acl.Grants = []
        if canned is not None:
            name = acl.of_bucket(canned)
        else:
            name, grants = await self._written(call, space)
        if not name:
            return Response(b"", 200)
        await self._store(call, space, name, grants)
        return Response(b"", 200)

    async def _store(self, call: S3Call, space: Space, name: str, grants: acl.Grants) -> None:
        """In one step, since half of a list may let others write."""
        visibility = acl.BUCKETS[name]
        if (visibility == PRIVATE) == (space.visibility == PRIVATE):
            visibility = space.visibility
        listed = name if name in acl.STORED else ""
        granted = msgspec.json.encode(grants).decode() if grants else None
        is_same = (visibility, listed) == (space.visibility, space.acl)
        if is_same and granted == stored(call.control.records, space, GRANTS):
            return

        def also(txn: Txn, now: Space) -> None:
            if now.owner_id != space.owner_id:
                raise S3Error("OperationAborted", "the bucket was changed meanwhile: try again")
            change_space(txn, now, visibility=visibility, acl=listed)

        await self._documents.set(call, space, GRANTS, granted, also)

    async def put_object(self, call: S3Call) -> Response:
        space = self._buckets.owned(call)
        await self._objects.find(space, call.key, call.version)
        canned = call.headers.get("x-amz-acl")
        if canned is None:
            name, grants = await self._written(call, space)
            if name in acl.STORED or grants:
                raise S3Error("NotImplemented", "an object has its bucket's list, and no grants")
            acl.check(space, acl.BUCKETS[name])
        else:
            acl.check(space, acl.canned(canned))
        return Response(b"", 200)

    async def _written(self, call: S3Call, space: Space) -> tuple[str, acl.Grants]:
        name, grants = acl.written(await call.document("AccessControlPolicy"), space)
        with call.control.records.read() as txn:
            if any(users.get(txn, who) is None for who, _ in grants):
                raise S3Error("InvalidArgument", "a grant is to a user who is not there")
        if name in PUBLIC_LISTS and self._authority.blocks_lists(space):
            raise S3Error("AccessDenied", "the bucket's block allows no public lists")
        return name, grants

"""Links that show one file to all who have them, until they expire or are revoked.

A link has a secret, of which only the hash is stored. The secret is in the query, since the access
log has paths. It shows the file that is at the path when it is used; it ends with the storage
namespace, and when that changes its owner. Making one is a change of who may read, as making a
storage namespace public is: it takes the same right.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from control.api import (
    PUBLIC,
    Call,
    Conflict,
    Content,
    Control,
    NoSuchThing,
    Response,
    Route,
    Txn,
    scoped,
    within,
)
from control.storage.cluster import Cluster
from control.storage.folders import LOOK_SECONDS, Purged
from control.storage.names import check_own_path, last_segment
from control.storage.rows import Share, Space, shares
from control.storage.shapes import FileName
from control.storage.spaces import Spaces
from control.storage.transfer import Transfers, download
from gfs.errors import NotADirectory, NotFound

#: Of one user.
SHARES_MAX = 1000
SECONDS_MIN, SECONDS_MAX = 60, 366 * 86400
SECONDS_DEFAULT = 7 * 86400
SECRET_BYTES = 24
_GONE = "there is no such link, or not any more"


class ShareInfo(msgspec.Struct):
    id: str
    path: str
    created_at: int
    expires_at: int
    inline: bool


class NewShareInfo(ShareInfo):
    url: Annotated[str, Meta(description="The link, from the host on; shown only here")]


class ShareList(msgspec.Struct):
    shares: Annotated[
        list[ShareInfo], Meta(description="Not those that have expired; the newest first")
    ]


class NewShare(msgspec.Struct):
    path: FileName
    expires_in: Annotated[int, Meta(ge=SECONDS_MIN, le=SECONDS_MAX, description="Seconds")] = (
        SECONDS_DEFAULT
    )
    inline: Annotated[
        bool, Meta(description="Browsers show it, in a sandbox; else they save it")
    ] = True


class LinkQuery(msgspec.Struct):
    key: Annotated[str, Meta(max_length=100, description="The secret of the link")] = ""


class ShareRoutes:
    def __init__(
        self,
        control: Control,
        cluster: Cluster,
        spaces: Spaces,
        transfers: Transfers,
    ) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces
        self._transfers = transfers

    def routes(self) -> Sequence[Route]:
        base = "/storage/namespaces/{namespace}/shares"
        read = scoped("storage", "namespaces", "read", parameter="namespace")
        update = scoped("storage", "namespaces", "update", parameter="namespace")
        return [
            Route(
                "GET",
                base,
                self.all,
                read,
                "The links to files of a storage namespace",
                answer=ShareList,
                errors=[401, 403, 404],
            ),
            Route(
                "POST",
                base,
                self.make,
                update,
                "Make a link that shows a file to all who have it",
                body=NewShare,
                answer=NewShareInfo,
                errors=[401, 403, 404, 409, 503, 507],
                description=(
                    "Until it expires it shows the file that is at the path then. A user has at "
                    f"most {SHARES_MAX:,} links."
                ),
            ),
            Route(
                "DELETE",
                f"{base}/{{id}}",
                self.revoke,
                update,
                "Revoke a link",
                answer=Purged,
                errors=[401, 403, 404, 507],
            ),
            Route(
                "GET",
                "/share/{id}",
                self.show,
                PUBLIC,
                "The file that a link shows",
                query=LinkQuery,
                answer=Content("*/*"),
                errors=[400, 404, 412, 416, 503],
                others={206: "The ranges asked for", 304: "The client has it already"},
            ),
        ]

    async def all(self, call: Call) -> ShareList:
        space = self._spaces.own(call, call.params["namespace"])
        now = time.time()
        with self._control.records.read() as txn:
            found = [row for row in shares.by(txn, "space", space.id) if row.expires_at > now]
        found.sort(key=lambda row: (row.created_at, row.id), reverse=True)
        return ShareList([_info(row) for row in found])

    async def make(self, call: Call, body: NewShare) -> NewShareInfo:
        space = self._spaces.own(call, call.params["namespace"])
        check_own_path(body.path)
        with within(LOOK_SECONDS):
            try:
                entry = await self._cluster.fs.stat(f"{space.directory}/{body.path}")
            except (NotFound, NotADirectory):
                raise NoSuchThing(f"{body.path} does not exist") from None
        if entry.kind != "file":
            raise NoSuchThing(f"{body.path} is a folder: links show files")
        secret, now = secrets.token_urlsafe(SECRET_BYTES), int(time.time())
        row = Share(
            secrets.token_hex(8),
            _digest(secret),
            space.id,
            space.name,
            body.path,
            call.user.user_id,
            now,
            now + body.expires_in,
            body.inline,
        )

        def insert(txn: Txn) -> None:
            count = 0
            for other in list(shares.by(txn, "user", row.user_id)):
                if other.expires_at <= now:
                    shares.delete(txn, other.id)
                else:
                    count += 1
            if count >= SHARES_MAX:
                raise Conflict(f"you have {SHARES_MAX} links: revoke some first")
            shares.insert(txn, row)

        await call.write(insert)
        url = f"/share/{row.id}?key={secret}"
        return NewShareInfo(row.id, row.path, row.created_at, row.expires_at, row.is_inline, url)

    async def revoke(self, call: Call) -> Purged:
        space = self._spaces.own(call, call.params["namespace"])

        def delete(txn: Txn) -> str:
            row = shares.get(txn, call.params["id"])
            if row is None or row.space_id != space.id:
                raise NoSuchThing(_GONE)
            shares.delete(txn, row.id)
            return row.path

        return Purged(last_segment(await call.write(delete)))

    async def show(self, call: Call) -> Response:
        query = call.query(LinkQuery)
        row, space = self._find(call.params["id"], query.key)
        transfer = self._transfers.begin(call, "", "download")
        try:
            fs = self._cluster.fs
            return await download.send(call, fs, space, row.path, transfer, inline=row.is_inline)
        except BaseException as error:
            transfer.finish_early(error)
            raise

    def _find(self, id_: str, secret: str) -> tuple[Share, Space]:
        """Raises NoSuchThing, with the same words whatever is wrong."""
        with self._control.records.read() as txn:
            row = shares.get(txn, id_)
        if row is None or not hmac.compare_digest(row.digest, _digest(secret)):
            raise NoSuchThing(_GONE)
        try:
            space = self._spaces.get(row.space_name)
        except NoSuchThing:
            raise NoSuchThing(_GONE) from None
        is_same = space.id == row.space_id and space.owner_id in (row.user_id, None)
        if row.expires_at <= time.time() or not is_same:
            raise NoSuchThing(_GONE)
        return row, space


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _info(row: Share) -> ShareInfo:
    return ShareInfo(row.id, row.path, row.created_at, row.expires_at, row.is_inline)

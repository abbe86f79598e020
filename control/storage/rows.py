"""The rows of storage namespaces. Their files are in the file system alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from control.api import PRIVATE, PUBLIC_VISIBILITY, Schema, Table, Target, Txn
from control.storage.names import DEFAULT

#: The directory in the file system that has a directory for each storage namespace.
ROOT = "/storage"
#: The same for their snapshots. They are no part of the namespace's own directory, or a snapshot
#: would contain those before it.
SNAPSHOTS = "/storage-snapshots"


class Space(msgspec.Struct, array_like=True, frozen=True):
    """One storage namespace. It exists if and only if this row exists."""

    name: str
    #: 8 hex digits. A new storage namespace of the same name has another id, so the files
    #: of the deleted one can never appear in it.
    id: str
    #: None: it has no owner, like ``default`` and those whose owner was deleted.
    owner_id: str | None
    visibility: int
    hidden: bool
    created_at: int  # unix seconds
    #: Nobody sees it any more; the row keeps the name until the files are deleted.
    deleting: bool = False
    #: It is deleted only if its directory turns out to be empty; otherwise it exists on.
    if_empty: bool = False
    #: Nobody but its owner sees it, whatever its visibility is: a block of public access over S3.
    private: bool = False
    #: "on": what is replaced or deleted is kept, see :mod:`.versions`; "suspended": what was kept
    #: so far. Empty: it never was on.
    versioning: str = ""
    #: A list of S3 that allows others more than the visibility does. It ends with the visibility
    #: that it was given with.
    acl: str = ""

    @property
    def directory(self) -> str:
        """The directory of its files."""
        return f"{ROOT}/{self.name}.{self.id}"

    @property
    def snapshots(self) -> str:
        """The directory of its snapshots."""
        return f"{SNAPSHOTS}/{self.name}.{self.id}"

    @property
    def snapshots_id(self) -> str:
        """The name under which the files of its snapshots are counted: they are not its files."""
        return f"{self.id}s"

    @property
    def counted(self) -> Mapping[str, str]:
        """What is counted under which name -> the directory."""
        return {self.id: self.directory, self.snapshots_id: self.snapshots}

    @property
    def is_default(self) -> bool:
        return self.name == DEFAULT

    @property
    def target(self) -> Target:
        """What :mod:`control.identity.access` needs to know of it."""
        return Target(
            self.owner_id,
            self.name,
            PRIVATE if self.private else self.visibility,
            is_shared=self.is_default,
            noun=f"storage namespace {self.name}",
        )


def _owner(space: Space) -> list[str]:
    return [space.owner_id] if space.owner_id is not None else []


def _listed(space: Space) -> list[str]:
    return ["public"] if space.target.visibility == PUBLIC_VISIBILITY else []


spaces = Table(
    "namespaces",
    Space,
    key=lambda space: space.name,
    indexes={"owner": _owner, "listed": _listed},
)


class Share(msgspec.Struct, array_like=True, frozen=True):
    """A link that shows one file to all who have it."""

    id: str
    #: SHA-256 of the secret in the link.
    digest: bytes
    space_id: str
    space_name: str
    path: str
    user_id: str
    created_at: int
    expires_at: int
    is_inline: bool


shares = Table(
    "shares",
    Share,
    key=lambda share: share.id,
    indexes={"space": lambda share: [share.space_id], "user": lambda share: [share.user_id]},
)


def spaces_of(txn: Txn, user_id: str) -> int:
    """How many storage namespaces the user has."""
    return sum(not space.deleting for space in spaces.by(txn, "owner", user_id))


def present_space(txn: Txn, space: Space) -> Space | None:
    """The same storage namespace as it is now; None: it was deleted meanwhile."""
    found = spaces.get(txn, space.name)
    return found if found is not None and found.id == space.id and not found.deleting else None


def change_space(txn: Txn, now: Space, **changes: Any) -> None:
    spaces.put(txn, replace(now, **changes))


def usage(txn: Txn, user_id: str) -> dict[str, int]:
    return {"namespaces": spaces_of(txn, user_id)}


def forget_shares(txn: Txn, space_id: str) -> None:
    """Delete the links to files of a storage namespace that is deleted."""
    for share in list(shares.by(txn, "space", space_id)):
        shares.delete(txn, share.id)


STORAGE = Schema("storage", 1, [spaces, shares])


def disown(txn: Txn, user_id: str) -> None:
    """Make the storage namespaces of a deleted user private and remove their owner; end the
    user's links."""
    for share in list(shares.by(txn, "user", user_id)):
        shares.delete(txn, share.id)
    for space in list(spaces.by(txn, "owner", user_id)):
        spaces.put(txn, replace(space, owner_id=None, visibility=PRIVATE, acl=""))

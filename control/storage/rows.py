"""The rows of storage namespaces. Their files are in the file system alone."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from control.identity.access import PRIVATE, PUBLIC_VISIBILITY, Target
from control.records import Schema, Table, Txn
from control.storage.names import DEFAULT

#: The directory in the file system that has a directory for each storage namespace.
ROOT = "/storage"


class Space(msgspec.Struct, array_like=True, frozen=True):
    """One storage namespace. That this row is there is what makes it exist."""

    name: str
    #: 8 hex digits. A name that is taken again after a deletion has another one, so
    #: the files of the first can never show up in the second.
    id: str
    #: None: without an owner, as ``default`` is, and others whose owner was deleted.
    owner_id: str | None
    visibility: int
    hidden: bool
    created_at: int  # unix seconds
    #: Gone for everybody; the row keeps the name until the files are gone as well.
    deleting: bool = False

    @property
    def directory(self) -> str:
        """The directory of its files."""
        return f"{ROOT}/{self.name}.{self.id}"

    @property
    def is_default(self) -> bool:
        return self.name == DEFAULT

    @property
    def target(self) -> Target:
        """For the decision who may do what with it."""
        return Target(
            self.owner_id,
            self.name,
            self.visibility,
            is_shared=self.is_default,
            noun=f"storage namespace {self.name}",
        )


def _owner(space: Space) -> list[str]:
    return [space.owner_id] if space.owner_id is not None else []


def _listed(space: Space) -> list[str]:
    return ["public"] if space.visibility == PUBLIC_VISIBILITY else []


spaces = Table(
    "namespaces",
    Space,
    key=lambda space: space.name,
    indexes={"owner": _owner, "listed": _listed},
)


def spaces_of(txn: Txn, user_id: str) -> int:
    """How many storage namespaces the user has."""
    return sum(not space.deleting for space in spaces.by(txn, "owner", user_id))


def usage(txn: Txn, user_id: str) -> dict[str, int]:
    return {"namespaces": spaces_of(txn, user_id)}


STORAGE = Schema("storage", 1, [spaces])


def disown(txn: Txn, user_id: str) -> None:
    """The deletion of a user leaves his storage namespaces private and without an owner."""
    for space in list(spaces.by(txn, "owner", user_id)):
        spaces.put(txn, replace(space, owner_id=None, visibility=PRIVATE))

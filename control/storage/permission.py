"""Permission to overwrite and delete files, which is more than permission to write.

In ``default`` everybody who is logged in may upload. So there, and only there,
a file belongs to the user who uploaded it: only that user and administrators may replace
or delete it. :mod:`control.identity.access` decides in all cases.
"""

from __future__ import annotations

from dataclasses import replace

from control.api import Call, Forbidden, Target, scoped
from control.api.internals import decide_target
from control.storage.names import DEFAULT
from control.storage.rows import Space
from gfs.client import Entry

READ = scoped("storage", "files", "read", parameter="namespace", fallback=DEFAULT, is_open=True)
CREATE = scoped("storage", "files", "create", parameter="namespace", fallback=DEFAULT)
DELETE = scoped("storage", "files", "delete", parameter="namespace", fallback=DEFAULT)

#: Of routes that answer with the file at a path, or of a name: a ticket will do.
READ_PATH = replace(READ, file=("path",))
READ_NAME = replace(READ, file=("name",))

#: The file's attribute with the user_id of its uploader.
OWNER = "owner"
OWNER_LENGTH_MAX = 64


def owner_of(entry: Entry) -> str:
    """The user_id of the uploader; empty if the control plane did not write the attribute."""
    owner = entry.attributes.get(OWNER, "")
    return owner if len(owner) <= OWNER_LENGTH_MAX else ""


def may_remove(call: Call, space: Space, entry: Entry) -> None:
    """Check that the caller may replace or delete ``entry``. Raises Unauthorized or Forbidden."""
    decide_target(call.principal, DELETE, space.target)
    if not space.is_default:
        return
    owner = entry.attributes.get(OWNER) or None
    noun = "this file in default"
    try:
        decide_target(call.principal, DELETE, Target(owner, space.name, noun=noun))
    except Forbidden as refusal:
        try:
            # A file without an owner is for administrators.
            decide_target(call.principal, DELETE, Target(None, space.name, noun=noun))
        except Forbidden:
            raise refusal from None


def may_remove_any(call: Call, space: Space) -> bool:
    """Whether the caller may replace any file of ``space``."""
    if space.is_default:
        return False
    try:
        decide_target(call.principal, DELETE, space.target)
    except Forbidden:
        return False
    return True

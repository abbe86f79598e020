"""Quotas on the command line, whether a server runs or not. It needs write permission
for the state directory and no other credential."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import trio
from msgspec.structs import asdict

from control.api import Control
from control.identity.rows import users
from control.quota.limits import NOUNS, limits_of, override, overrides
from control.quota.usage import count
from control.records import Txn
from control.storage import Recounts
from control.storage.rows import spaces
from gfs.errors import Busy, SettingsError

#: Another process may be recounting.
WAIT_SECONDS = 600.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Line:
    name: str
    used: int
    limit: int
    is_changed: bool


async def change(control: Control, username: str, changes: Mapping[str, int | None]) -> list[Line]:
    """Set the named limits of ``username``, None for the default. Returns all of them.

    Raises SettingsError for a user who does not exist.
    """

    def decide(txn: Txn) -> list[Line]:
        user = users.find(txn, "username", username)
        if user is None:
            raise SettingsError(f"there is no user {username!r}")
        override(txn, user.id, changes)
        row = overrides.get(txn, user.id)
        limits = asdict(limits_of(txn, user.id, control.limits))
        used = control.used_by(txn, user.id)
        return [
            Line(name, used.get(name, 0), limits[name], row is not None and name in row.limits)
            for name in NOUNS
        ]

    with control.opened():
        return await control.records.write(decide)


async def recount(control: Control) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Count all files of all storage namespaces. Returns the corrected users: files and bytes
    before and now, by username.

    It may run while everything runs. Raises Busy if another process takes too long with it.
    """
    with control.opened():
        ledger = control.ledger
        with trio.move_on_after(WAIT_SECONDS) as waiting:
            while not await ledger.begin_recounting():  # noqa: ASYNC110 - no event exists for it
                await trio.sleep(POLL_SECONDS)
        if waiting.cancelled_caught:
            raise Busy("another process is counting files: try again later")
        await control.fresh()
        before = _all_files(control)
        with control.records.read() as txn:
            names = [id_ for row in spaces.scan(txn) if not row.deleting for id_ in row.counted]
        await ledger.clear_dead()
        async with control.connect() as fs:
            if not await Recounts(control.records, ledger).count(fs, names):
                raise Busy(
                    "some uploads are still under way, so not all files were counted: "
                    "try again later"
                )
        after = _all_files(control)
    return {name: (before[name], after[name]) for name in after if before[name] != after[name]}


def _all_files(control: Control) -> dict[str, tuple[int, int]]:
    with control.records.read() as txn, control.ledger.read() as counted:
        found = {user.username: count(counted, "u", user.id) for user in users.scan(txn)}
    return {name: (row.files, row.bytes) for name, row in found.items()}

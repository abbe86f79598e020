"""SSH keys: added, listed, deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from control.api import BadRequest, Call, Control, Need, NoSuchThing, Route, Txn, scoped
from control.compute import names
from control.compute.reconcile import machine
from control.compute.requests.shapes import KeyInfo, KeyList, NewKey, Status
from control.compute.rows import KEYS_MAX, Key, add_event, containers, count_up, keys, numbered

#: The longest number of a key that is looked up.
ID_DIGITS_MAX = 15


class SshKeys:
    """Their routes. ``poke`` is called after an event was written."""

    def __init__(self, control: Control, poke: Callable[[], None]) -> None:
        self._control = control
        self._poke = poke

    def routes(self) -> Sequence[Route]:
        def need(action: str) -> Need:
            parameter = "id" if action == "delete" else ""
            return scoped("compute", "keys", action, parameter=parameter)

        return [
            Route(
                "GET",
                "/compute/ssh-keys",
                self.list,
                need("read"),
                "List SSH keys",
                answer=KeyList,
            ),
            Route(
                "POST",
                "/compute/ssh-keys",
                self.add,
                need("create"),
                "Add an SSH key",
                body=NewKey,
                answer=KeyInfo,
                description="At most ten per user.",
            ),
            Route(
                "DELETE",
                "/compute/ssh-keys/{id}",
                self.delete,
                need("delete"),
                "Delete an SSH key",
                answer=Status,
                description="It allows no login any more; users who are logged in stay.",
            ),
        ]

    async def list(self, call: Call) -> KeyList:
        with self._control.records.read() as txn:
            return KeyList([KeyInfo.of(key) for key in keys.by(txn, "owner", call.user.user_id)])

    async def add(self, call: Call, body: NewKey) -> KeyInfo:
        user_id = call.user.user_id
        line = names.clean_key(body.public_key)
        name = names.clean_name(body.name)

        def insert(txn: Txn) -> Key:
            if keys.count(txn, "owner", user_id) >= KEYS_MAX:
                raise BadRequest(f"you have {KEYS_MAX} SSH keys already: delete one first")
            key = Key(count_up(txn, "key"), user_id, name, line, int(time.time()))
            keys.insert(txn, key)
            return key

        return KeyInfo.of(await call.write(insert))

    async def delete(self, call: Call) -> Status:
        """Containers that have the key stop accepting it as soon as the driver has called
        the backend, running ones within seconds. Open logins stay."""
        text = call.params["id"]
        known = text.isascii() and text.isdecimal() and len(text) <= ID_DIGITS_MAX
        row_key = numbered(int(text)) if known else ""

        def delete(txn: Txn) -> None:
            found = keys.get(txn, row_key)
            # A key of another user is answered like one that does not exist, since ids are
            # consecutive.
            if found is None or found.user_id != call.user.user_id:
                raise NoSuchThing("you have no such SSH key")
            keys.delete(txn, row_key)
            line = found.public_key
            if any(key.public_key == line for key in keys.by(txn, "owner", found.user_id)):
                return  # the same key is stored twice, and one is left
            for before in list(containers.by(txn, "owner", found.user_id)):
                after = machine.withdraw_key(before, line)
                if after != before:
                    containers.put(txn, after)
                    add_event(txn, after, "wish")

        await call.write(delete)
        self._poke()
        return Status()

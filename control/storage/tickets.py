"""Tickets: the right to read one file, for addresses.

A browser sends no header with a download, nor for a film: what lets it read must be in the
address, and with that it gets into histories and the logs of proxies. A ticket is good for one
file only, for half a day at most, and ends with the session or API token that asked for it
(:mod:`control.identity.credentials`). Nothing is stored, so there can be any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from control.api import Call, Control, NoSuchThing, Route, scoped, within
from control.api.internals import TICKET_SECONDS
from control.storage.cluster import Cluster
from control.storage.folders import LOOK_SECONDS
from control.storage.names import check_own_path
from control.storage.shapes import FileName
from control.storage.snapshots import ID
from control.storage.spaces import Spaces
from gfs.errors import NotADirectory, NotFound

SECONDS_MIN = 60


class NewTicket(msgspec.Struct):
    path: FileName
    snapshot: Annotated[
        str,
        Meta(pattern=f"^({ID})?$", description="The `id` of a snapshot, if the file is in that"),
    ] = ""
    expires_in: Annotated[int, Meta(ge=SECONDS_MIN, le=TICKET_SECONDS, description="Seconds")] = (
        TICKET_SECONDS
    )


class TicketInfo(msgspec.Struct):
    ticket: Annotated[str, Meta(description="For `?ticket=` in the address of the file")]
    expires_at: int


class TicketRoutes:
    def __init__(self, control: Control, cluster: Cluster, spaces: Spaces) -> None:
        self._control = control
        self._cluster = cluster
        self._spaces = spaces

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "POST",
                "/storage/namespaces/{namespace}/tickets",
                self.make,
                scoped("storage", "files", "read", parameter="namespace"),
                "Make a ticket to read one file, for an address",
                body=NewTicket,
                answer=TicketInfo,
                errors=[401, 403, 404, 503],
                description=(
                    "With `?ticket=` the addresses of this file, or of this file in the snapshot, "
                    "answer `GET` and `HEAD` without another credential. It ends with the "
                    "session or API token that made it, and after 12 hours at the latest."
                ),
            )
        ]

    async def make(self, call: Call, body: NewTicket) -> TicketInfo:
        check_own_path(body.path)
        name = call.params["namespace"]
        if body.snapshot:
            space = self._spaces.own(call, name)
            names = [space.name, body.snapshot, body.path]
            full = f"{space.snapshots}/{body.snapshot}/{body.path}"
        else:
            space = self._spaces.readable(call, name)
            names = [space.name, body.path]
            full = f"{space.directory}/{body.path}"
        with within(LOOK_SECONDS):
            try:
                entry = await self._cluster.fs.stat(full)
            except (NotFound, NotADirectory):
                raise NoSuchThing(f"{body.path} does not exist") from None
        if entry.kind != "file":
            raise NoSuchThing(f"{body.path} is a folder: tickets are for files")
        return TicketInfo(
            *self._control.credentials.issue_ticket(call.user, names, body.expires_in)
        )

"""``/compute/ws``: the events of a user's containers, as they happen.

There is no queue. A listener remembers the number of the last event that it has sent, and
reads the next ones from the records when it is woken. So a client that reads nothing costs
only its connection and delays nobody, and one that comes back gets the events that it
has missed. A listener that is behind by more events than are kept sends the present state.
"""

from __future__ import annotations

import msgspec

from control.api import Call, Records, Socket
from control.compute.reconcile import Changes
from control.compute.requests import (
    Containers,
    DeletedMessage,
    FirstMessage,
    Gone,
    StatusMessage,
    message,
    status_message,
)
from control.compute.rows import events_after, last_event, of_user

EVENTS_PING_SECONDS = 30.0


class Hub:
    def __init__(self, records: Records, changes: Changes, containers: Containers) -> None:
        self._records = records
        self._changes = changes
        self._containers = containers

    async def listen(self, call: Call, socket: Socket) -> None:
        """Serve a listener until the client leaves."""
        user_id = call.user.user_id
        with self._records.read() as txn:
            number = last_event(txn)
            rows = of_user(txn, user_id)
        first = FirstMessage(await self._containers.infos(rows))
        await socket.accept(EVENTS_PING_SECONDS)
        await socket.send(_text(first))
        known = {row.id for row in rows}
        while True:
            await self._changes.after(number)
            number, messages = self._news(user_id, number, known)
            for each in messages:
                await socket.send(_text(each))

    def _news(
        self, user_id: str, number: int, known: set[str]
    ) -> tuple[int, list[StatusMessage | DeletedMessage]]:
        """The number of the last event, and the messages that bring the listener up to it.

        ``known`` are the containers that it knows; this call updates the set.
        """
        with self._records.read() as txn:
            news = events_after(txn, number)
            rows = of_user(txn, user_id) if news is None else []
            number = last_event(txn)
        if news is not None:
            own = [message(event) for event in news if event.user_id == user_id]
            messages = [each for each in own if each is not None]
            for each in messages:
                _note(known, each)
            return number, messages
        gone = known - {row.id for row in rows}
        known.clear()
        known.update(row.id for row in rows)
        return number, [
            *(DeletedMessage(Gone(container_id)) for container_id in sorted(gone)),
            *(status_message(row.id, row.shown, row.external_ip) for row in rows),
        ]


def _note(known: set[str], news: StatusMessage | DeletedMessage) -> None:
    if isinstance(news, DeletedMessage):
        known.discard(news.data.container_id)
    else:
        known.add(news.data.container_id)


def _text(news: msgspec.Struct) -> str:
    return msgspec.json.encode(news).decode()

"""A module by somebody else: greeting cards, posted now and delivered in the background."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated

import msgspec
import trio

from control.api.call import Call
from control.api.module import Module, Route
from control.errors import NoSuchThing
from control.identity.access import Target, scoped
from control.records import Schema, Table, Txn

#: A card whose process ended before it was delivered is found at the latest by then.
LOOK_SECONDS = 5.0


class Card(msgspec.Struct, array_like=True, frozen=True):
    id: str
    user_id: str
    text: str
    is_delivered: bool = False


cards = Table("cards", Card, key=lambda c: c.id, indexes={"user": lambda c: [c.user_id]})
SCHEMA = Schema("greetings", 1, [cards])


class NewCard(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class CardView(msgspec.Struct):
    """A greeting card."""

    id: str
    text: str
    is_delivered: bool

    @classmethod
    def of(cls, card: Card) -> CardView:
        return cls(card.id, card.text, card.is_delivered)


def forget_user(txn: Txn, user_id: str) -> None:
    for card in cards.by(txn, "user", user_id):
        cards.delete(txn, card.id)


class Greetings(Module):
    name = "greetings"
    summary = "Greeting cards"
    scopes = {"greetings": {"cards": frozenset({"create", "read"})}}  # noqa: RUF012
    schemas = (SCHEMA,)
    on_user_deleted = staticmethod(forget_user)

    def routes(self) -> Sequence[Route]:
        read = scoped("greetings", "cards", "read", parameter="id")
        create = scoped("greetings", "cards", "create")
        return [
            Route("POST", "/greetings", self.post, create, "Post a card", body=NewCard,
                  answer=CardView),
            Route("GET", "/greetings/{id}", self.get, read, "One card", answer=CardView),
        ]  # fmt: skip

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._posted = trio.Event()
        task_status.started()
        while True:
            self._posted = trio.Event()
            await self.control.records.write(deliver)
            with trio.move_on_after(LOOK_SECONDS):
                await self._posted.wait()

    async def post(self, call: Call, body: NewCard) -> CardView:
        card = Card(secrets.token_hex(8), call.user.user_id, body.text)
        await self.control.records.write(lambda txn: cards.insert(txn, card))
        self._posted.set()
        return CardView.of(card)

    async def get(self, call: Call) -> CardView:
        with self.control.records.read() as txn:
            card = cards.get(txn, call.params["id"])
        if card is None:
            raise NoSuchThing("there is no such card")
        call.allow(Target(card.user_id, card.id, noun="the card"))
        return CardView.of(card)


def deliver(txn: Txn) -> None:
    for card in cards.scan(txn):
        if not card.is_delivered:
            cards.put(txn, msgspec.structs.replace(card, is_delivered=True))

"""Service accounts: each has scopes, and its tokens always have the account's present scopes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from quart import Response

from control.api import SESSION, BadRequest, Call, Control, NoSuchThing, Route, Txn, json_array
from control.api.internals import (
    ServiceAccount,
    accounts,
    check_grants,
    clean_label,
    ids,
    people,
    tokens,
)
from control.auth.shapes import (
    AccountBody,
    AccountInfo,
    AccountTokenBody,
    NewToken,
    ScopesBody,
    Status,
    TokenInfo,
)
from control.auth.tokens import check_room, new_token, newest_first, token_info

#: The most service accounts of one user.
ACCOUNTS_MAX = 100


class AccountRoutes:
    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> Sequence[Route]:
        one = "/api/service-accounts/{id}"
        return [
            Route(
                "POST",
                "/api/service-accounts",
                self.create,
                SESSION,
                "Make a service account",
                body=AccountBody,
                answer=AccountInfo,
                errors=[507],
                description=f"A user has {ACCOUNTS_MAX} at most.",
            ),
            Route(
                "GET",
                "/api/service-accounts",
                self.list_accounts,
                SESSION,
                "The caller's service accounts, newest first",
                answer=list[AccountInfo],
            ),
            Route(
                "GET",
                one,
                self.get,
                SESSION,
                "One service account",
                answer=AccountInfo,
                errors=[404],
            ),
            Route(
                "DELETE",
                one,
                self.delete,
                SESSION,
                "Delete a service account and its tokens",
                answer=Status,
                errors=[404, 507],
            ),
            Route(
                "PUT",
                f"{one}/scopes",
                self.set_scopes,
                SESSION,
                "Change what its tokens may do, existing ones included",
                body=ScopesBody,
                answer=AccountInfo,
                errors=[404, 507],
            ),
            Route(
                "POST",
                f"{one}/tokens",
                self.create_token,
                SESSION,
                "Make a token of the service account",
                body=AccountTokenBody,
                answer=NewToken,
                errors=[404, 507],
            ),
            Route(
                "GET",
                f"{one}/tokens",
                self.list_tokens,
                SESSION,
                "Its tokens, newest first",
                answer=list[TokenInfo],
                errors=[404],
            ),
        ]

    async def create(self, call: Call, body: AccountBody) -> AccountInfo:
        user_id = call.user.user_id
        draft = ServiceAccount(
            id=ids.token_id(),
            user_id=user_id,
            name=clean_label(body.name),
            scopes=check_grants(self._control.scopes, user_id, body.scopes),
            created_at=int(time.time()),
            serial=0,
        )

        def decide(txn: Txn) -> ServiceAccount:
            if accounts.count(txn, "user", user_id) >= ACCOUNTS_MAX:
                raise BadRequest(
                    f"you have {ACCOUNTS_MAX} service accounts, no more are allowed: delete some"
                )
            row = msgspec.structs.replace(draft, serial=time.time_ns())
            people.add_account(txn, row)
            return row

        return _info(await call.write(decide), 0)

    async def list_accounts(self, call: Call) -> list[AccountInfo]:
        with self._control.records.read() as txn:
            rows = list(accounts.by(txn, "user", call.user.user_id))
            rows.sort(key=lambda row: row.serial, reverse=True)
            return [_info(row, _count(txn, row)) for row in rows]

    async def get(self, call: Call) -> AccountInfo:
        with self._control.records.read() as txn:
            row = _own(txn, call)
            return _info(row, _count(txn, row))

    async def delete(self, call: Call) -> Status:
        def decide(txn: Txn) -> None:
            row = _own(txn, call)
            people.delete_account(txn, row.id)

        await call.write(decide)
        return Status()

    async def set_scopes(self, call: Call, body: ScopesBody) -> AccountInfo:
        def decide(txn: Txn) -> AccountInfo:
            row = _own(txn, call)
            scopes = check_grants(self._control.scopes, row.user_id, body.scopes)
            row = msgspec.structs.replace(row, scopes=scopes)
            people.change_account(txn, row)
            return _info(row, _count(txn, row))

        return await call.write(decide)

    async def create_token(self, call: Call, body: AccountTokenBody) -> NewToken:
        name = clean_label(body.name)
        with self._control.records.read() as txn:
            account = _own(txn, call)

        def check(txn: Txn) -> None:
            call.check_credential(txn)
            _own(txn, call)
            check_room(txn, account.user_id)

        row, text = await self._control.credentials.issue_token(
            account.user_id,
            name,
            account.scopes,
            body.expires_in,
            account_id=account.id,
            check=check,
        )
        return new_token(row, account.scopes, text)

    async def list_tokens(self, call: Call) -> Response:
        with self._control.records.read() as txn:
            account = _own(txn, call)
        rows = await self._control.records.all(tokens, "account", account.id)
        credentials = self._control.credentials
        return json_array(
            await newest_first(rows), lambda row: token_info(credentials, row, account.scopes)
        )


def _own(txn: Txn, call: Call) -> ServiceAccount:
    """The caller's account that the path names. Raises NoSuchThing."""
    row = accounts.get(txn, call.params["id"])
    if row is None or row.user_id != call.user.user_id:
        raise NoSuchThing("no such service account")
    return row


def _count(txn: Txn, row: ServiceAccount) -> int:
    return tokens.count(txn, "account", row.id)


def _info(row: ServiceAccount, token_count: int) -> AccountInfo:
    return AccountInfo(
        id=row.id,
        name=row.name,
        scopes=row.scopes,
        created_at=row.created_at,
        token_count=token_count,
    )

"""API tokens of a user. They can be managed only with a session."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from quart import Response

from control.api import (
    SERVICE,
    SESSION,
    BadRequest,
    Call,
    Control,
    NoSuchThing,
    Route,
    Txn,
    in_order,
    json_array,
)
from control.api.internals import (
    Credentials,
    Token,
    accounts,
    check_grants,
    clean_label,
    current_scopes,
    is_live,
    people,
    tokens,
    users,
)
from control.auth.shapes import NewToken, Status, TokenBody, TokenInfo, Validity

#: The most tokens of one user, with those of the user's service accounts.
TOKENS_MAX = 1000
MISSING = "no such token"


class TokenRoutes:
    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "POST",
                "/api/tokens",
                self.create,
                SESSION,
                "Make an API token",
                body=TokenBody,
                answer=NewToken,
                errors=[507],
                description=f"A user has {TOKENS_MAX} at most.",
            ),
            Route(
                "GET",
                "/api/tokens",
                self.list_tokens,
                SESSION,
                "The caller's API tokens, newest first",
                answer=list[TokenInfo],
                description="Tokens of the caller's service accounts are included.",
            ),
            Route(
                "DELETE",
                "/api/tokens/{id}",
                self.delete,
                SESSION,
                "Revoke an API token of the caller or of the caller's service accounts",
                answer=Status,
                errors=[404, 507],
            ),
            Route(
                "GET",
                "/api/tokens/{id}/check",
                self.check,
                SERVICE,
                "Whether an API token is still valid",
                answer=Validity,
                errors=[404],
            ),
        ]

    async def create(self, call: Call, body: TokenBody) -> NewToken:
        user_id = call.user.user_id
        name = clean_label(body.name)
        scopes = check_grants(self._control.scopes, user_id, body.scopes)

        def check(txn: Txn) -> None:
            call.check_credential(txn)
            check_room(txn, user_id)

        row, text = await self._control.credentials.issue_token(
            user_id, name, scopes, body.expires_in, check=check
        )
        return new_token(row, scopes, text)

    async def list_tokens(self, call: Call) -> Response:
        records, user_id = self._control.records, call.user.user_id
        rows = [row for row in await records.all(tokens, "owner", user_id) if not row.purpose]
        scopes = {row.id: row.scopes for row in await records.all(accounts, "user", user_id)}

        def info(row: Token) -> TokenInfo:
            now = scopes.get(row.account_id, {}) if row.account_id else row.scopes
            return token_info(self._control.credentials, row, now)

        return json_array(await newest_first(rows), info)

    async def delete(self, call: Call) -> Status:
        user_id = call.user.user_id

        def decide(txn: Txn) -> None:
            row = tokens.get(txn, call.params["id"])
            if row is None or row.user_id != user_id or row.purpose:
                raise NoSuchThing(MISSING)
            people.revoke_token(txn, row.id)

        await call.write(decide)
        return Status()

    async def check(self, call: Call) -> Validity:
        with self._control.records.read() as txn:
            row = tokens.get(txn, call.params["id"])
            if (
                row is None
                or not is_live(row, self._control.credentials.now())
                or current_scopes(txn, row) is None
                or users.get(txn, row.user_id) is None
            ):
                raise NoSuchThing(MISSING)
        return Validity()


def check_room(txn: Txn, user_id: str) -> None:
    """Raises BadRequest if the user has the most tokens already."""
    if tokens.count(txn, "owner", user_id) >= TOKENS_MAX:
        raise BadRequest(f"you have {TOKENS_MAX} API tokens, no more are allowed: delete some")


async def newest_first(rows: Sequence[Token]) -> Sequence[Token]:
    return await in_order(rows, lambda row: row.serial, reverse=True)


def token_info(credentials: Credentials, row: Token, scopes: dict[str, list[str]]) -> TokenInfo:
    """A token's description with its present ``scopes``: a service account's are not in
    the token's row."""
    return TokenInfo(
        id=row.id,
        name=row.name,
        scopes=scopes,
        expires_at=row.expires_at,
        created_at=row.created_at,
        last_used_at=credentials.last_used_at(row),
        service_account_id=row.account_id or UNSET,
    )


def new_token(row: Token, scopes: dict[str, list[str]], text: str) -> NewToken:
    return NewToken(
        id=row.id,
        name=row.name,
        scopes=scopes,
        expires_at=row.expires_at,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        token=text,
    )

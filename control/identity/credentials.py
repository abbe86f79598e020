"""Credentials: made here, and verified here and nowhere else.

A *session* is a JWT, signed with a key of :mod:`control.identity.keys`, and a
row. The signature is checked once for each text (the outcome is kept), the row
and the user at every call: a deleted session or user is out with the next
request, in every process.

An *API token* looks like a JWT behind a prefix, so that clients can read its
claims. What proves it is the SHA-256 of its whole text, which is in its row
and the only thing of it that is stored. Since 128 random bits are in the text
(claim ``jti``), neither the signing key nor the records are enough to make one,
and rotating the key does not end it. A text that is changed in any way, an
algorithm of ``none`` or another key's signature included, has another hash.

``verify`` never says why it refuses: the caller learns "not valid", and so does
whoever tries.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import jwt
import msgspec
import trio

from control.errors import Unauthorized
from control.http import network_of
from control.identity import ids
from control.identity.access import Principal
from control.identity.keys import SigningKeys
from control.identity.rows import (
    ServiceAccount,
    Session,
    Token,
    User,
    accounts,
    sessions,
    tokens,
    users,
)
from control.identity.users import note_place
from control.records import Records, Table, Txn
from gfs.errors import DiskFailed, GfsError

log = logging.getLogger(__name__)

RowT = TypeVar("RowT", bound=msgspec.Struct)

PREFIX = "ecloud_"
ALGORITHM = "HS256"
DAYS = 24 * 3600
#: ``expires_in`` of an API token, in seconds; 0: never.
LIFETIMES: Mapping[str, int] = {"30d": 30 * DAYS, "90d": 90 * DAYS, "365d": 365 * DAYS, "never": 0}

#: A session's text with the longest names and all of their letters escaped.
SESSION_BYTES_MAX = 4096
#: Sessions whose signature need not be checked again: 16 MiB at most.
CACHE_SIZE = 4096
#: Sessions of one user. One login every 90 seconds, all day long, keeps those of a day.
SESSIONS_MAX = 1000
UPKEEP_SECONDS = 30.0
#: Uses between two flushes; of further tokens ``last_used_at`` lags behind.
USED_MAX = 16384
#: Rows looked at in one round of upkeep, so that no transaction is long.
SWEEP_ROWS = 1000
#: Expired tokens are shown for this long before their rows are removed.
EXPIRED_TOKEN_SECONDS = 30 * DAYS
LAST_FLUSH_SECONDS = 2.0


class _Claims(msgspec.Struct, frozen=True):
    """What a session's text must hold."""

    sub: str
    user_id: str
    username: str
    display_name: str
    is_admin: bool
    type: Literal["session"]
    iat: int
    exp: int
    jti: str


class PasswordChanged(Exception):
    """The password that was verified, or its hash, is not the user's any more."""


class Credentials:
    """What a process needs to make and to verify them.

    ``clock`` gives unix seconds. ``verify`` is synchronous and takes some 20 µs; the
    rest is asynchronous, and what it has written is on the disk when it returns.
    """

    def __init__(
        self, records: Records, keys: SigningKeys, clock: Callable[[], float] = time.time
    ) -> None:
        self._records = records
        self._keys = keys
        self._clock = clock
        self._known: dict[str, tuple[str, _Claims]] = {}
        self._used: dict[str, int] = {}
        self._session_cursor = ""
        self._token_cursor = ""

    def now(self) -> float:
        """Unix seconds, by the clock that expiry is judged by."""
        return self._clock()

    # --- verifying ----------------------------------------------------------------

    def verify(self, token: str) -> Principal | None:
        """The user of ``token``; None if it is not valid, or not any more."""
        if token.startswith(PREFIX):
            return self._verify_api_token(token)
        return self._verify_session(token)

    def _verify_session(self, text: str) -> Principal | None:
        claims = self._claims(text)
        if claims is None or claims.exp <= self._clock():
            return None
        with self._records.read() as txn:
            return self._of_session(txn, claims.jti, claims.user_id)

    def _of_session(self, txn: Txn, session_id: str, user_id: str) -> Principal | None:
        session = sessions.get(txn, session_id)
        user = users.get(txn, user_id)
        if session is None or session.user_id != user_id or session.expires_at <= self._clock():
            return None
        return None if user is None else _principal(user, session.id, None)

    def _claims(self, text: str) -> _Claims | None:
        """The claims of a session with a good signature; it may have expired."""
        known = self._known.get(text)
        if known is not None:
            key_id, claims = known
            # The key may have been rotated since.
            return claims if self._keys.secret(key_id) is not None else None
        if len(text) > SESSION_BYTES_MAX:
            return None
        try:
            key_id = str(jwt.get_unverified_header(text).get("kid", ""))
            secret = self._keys.secret(key_id)
            if secret is None:
                return None
            # Times are compared by the caller, with the clock that was given.
            payload = jwt.decode(
                text,
                secret,
                algorithms=[ALGORITHM],
                options={"verify_exp": False, "verify_iat": False},
            )
            claims = msgspec.convert(payload, _Claims)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        if len(self._known) >= CACHE_SIZE:
            del self._known[next(iter(self._known))]
        self._known[text] = key_id, claims
        return claims

    def _verify_api_token(self, text: str) -> Principal | None:
        with self._records.read() as txn:
            found = self._of_token(txn, tokens.find(txn, "digest", digest_of(text)))
        if found is not None:
            token_id = found.credential_id
            if len(self._used) < USED_MAX or token_id in self._used:
                self._used[token_id] = int(self._clock())
        return found

    def _of_token(self, txn: Txn, row: Token | None) -> Principal | None:
        if row is None or not is_live(row, self._clock()):
            return None
        grants = current_scopes(txn, row)
        user = users.get(txn, row.user_id)
        return None if user is None or grants is None else _principal(user, row.id, grants)

    def again(self, txn: Txn, known: Principal) -> Principal | None:
        """The user of a verified credential, as of ``txn``; None: it has ended.

        For the thread that ``txn`` belongs to, whichever it is.
        """
        if known.is_session:
            return self._of_session(txn, known.credential_id, known.user_id)
        return self._of_token(txn, tokens.get(txn, known.credential_id))

    # --- making -------------------------------------------------------------------

    async def issue_session(
        self,
        user: User,
        address: str,
        *,
        seconds: float = 24 * 3600.0,
        new_password: str | None = None,
    ) -> str:
        """A session of ``user`` for ``seconds``, logged in from ``address``.

        ``new_password`` is the hash to keep of the password that was just proven.
        Beyond 1000 sessions of a user his oldest one ends. Raises PasswordChanged if
        ``user`` has another password by now, Unauthorized if he is gone.
        """
        now = int(self._clock())
        row = Session(ids.long_id(), user.id, now, now + max(1, math.ceil(seconds)), address)

        def decide(txn: Txn) -> User:
            found = users.get(txn, user.id)
            if found is None:
                raise Unauthorized("the user is not there any more")
            if found.password != user.password:
                raise PasswordChanged
            if new_password is not None:
                users.put(txn, msgspec.structs.replace(found, password=new_password))
            _make_room(txn, user.id)
            sessions.insert(txn, row)
            note_place(txn, user.id, network_of(address), now)
            return found

        found = await self._records.write(decide)
        return self._sign(
            {
                "sub": found.id,
                "user_id": found.id,
                "username": found.username,
                "display_name": found.display_name,
                "is_admin": found.is_admin,
                "type": "session",
                "iat": now,
                "exp": row.expires_at,
                "jti": row.id,
            }
        )

    async def issue_token(
        self,
        user_id: str,
        name: str,
        scopes: dict[str, list[str]],
        expires_in: str,
        *,
        account_id: str = "",
        check: Callable[[Txn], None],
    ) -> tuple[Token, str]:
        """A new API token and its text, which nobody can be shown again.

        The arguments have been checked; ``check`` is asked in the transaction and raises
        if whoever asks for it may not have it by then. With ``account_id`` it is that
        service account's: its scopes count at every use, ``scopes`` only says what they
        are now.
        """
        now = int(self._clock())
        lifetime = LIFETIMES[expires_in]
        expires_at = now + lifetime if lifetime else 0
        token_id = ids.token_id()
        text = self._token_text(user_id, token_id, scopes, now, expires_at)
        draft = Token(
            id=token_id,
            user_id=user_id,
            name=name,
            scopes={} if account_id else scopes,
            digest=digest_of(text),
            created_at=now,
            expires_at=expires_at,
            last_used_at=0,
            serial=0,
            account_id=account_id,
        )

        def decide(txn: Txn) -> Token:
            check(txn)
            row = msgspec.structs.replace(draft, serial=time.time_ns())
            tokens.insert(txn, row)
            return row

        return await self._records.write(decide), text

    def _token_text(
        self,
        user_id: str,
        token_id: str,
        scopes: dict[str, list[str]],
        now: int,
        expires_at: int,
    ) -> str:
        claims: dict[str, Any] = {
            "sub": user_id,
            "user_id": user_id,
            "token_id": token_id,
            "type": "api_token",
            "scopes": scopes,
            "iat": now,
            "jti": secrets.token_hex(16),
        }
        if expires_at:  # a JWT whose exp is 0 has expired; one without never does
            claims["exp"] = expires_at
        return PREFIX + self._sign(claims)

    def _sign(self, claims: dict[str, Any]) -> str:
        key = self._keys.current
        return jwt.encode(claims, key.raw, algorithm=ALGORITHM, headers={"kid": key.id})

    # --- upkeep -------------------------------------------------------------------

    def last_used_at(self, row: Token) -> int:
        """When ``row`` was last used, as far as this process knows; 0: never."""
        return max(row.last_used_at, self._used.get(row.id, 0))

    async def upkeep(self) -> None:
        """Write down what was used and remove what has expired, until cancelled.

        Every 30 s, and a last time within 2 s of being cancelled. What fails is tried
        again the next time, except DiskFailed, which is raised: nothing can be
        written by this process any more.
        """
        try:
            while True:
                await trio.sleep(UPKEEP_SECONDS)
                try:
                    await self.tidy()
                except DiskFailed:
                    raise
                except GfsError as error:
                    log.warning("upkeep of the credentials failed, will be tried again: %s", error)
        finally:
            with trio.move_on_after(LAST_FLUSH_SECONDS, shield=True):
                await self._flush_last()

    async def _flush_last(self) -> None:
        try:
            await self.flush()
        except GfsError as error:
            log.warning("the last uses of API tokens were not written down: %s", error)

    async def tidy(self) -> None:
        """One round of upkeep."""
        await self.flush()
        await self._sweep_sessions()
        await self._sweep_tokens()

    async def flush(self) -> None:
        """Write down when tokens were last used."""
        used, self._used = self._used, {}
        if not used:
            return

        def decide(txn: Txn) -> None:
            for token_id, at in used.items():
                row = tokens.get(txn, token_id)
                if row is not None and row.last_used_at < at:
                    tokens.put(txn, msgspec.structs.replace(row, last_used_at=at))

        try:
            await self._records.write(decide)
        except BaseException:
            self._used = used | self._used
            raise

    async def _sweep_sessions(self) -> None:
        now = self._clock()
        with self._records.read() as txn:
            looked_at = _some(sessions.scan(txn, after=self._session_cursor))
        gone = [row.id for row in looked_at if row.expires_at <= now]
        if gone:
            await self._records.write(lambda txn: _delete_all(sessions, txn, gone))
        self._session_cursor = looked_at[-1].id if len(looked_at) == SWEEP_ROWS else ""

    async def _sweep_tokens(self) -> None:
        long_ago = self._clock() - EXPIRED_TOKEN_SECONDS
        with self._records.read() as txn:
            looked_at = _some(tokens.scan(txn, after=self._token_cursor))
        gone = [row.id for row in looked_at if row.expires_at and row.expires_at <= long_ago]
        if gone:
            await self._records.write(lambda txn: _delete_all(tokens, txn, gone))
        self._token_cursor = looked_at[-1].id if len(looked_at) == SWEEP_ROWS else ""


def digest_of(text: str) -> str:
    """The hash that is kept of an API token."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def is_live(row: Token, now: float) -> bool:
    """Whether the token has not expired."""
    return not row.expires_at or now < row.expires_at


def current_scopes(txn: Txn, row: Token) -> dict[str, list[str]] | None:
    """What a token is granted now; None if its service account is gone."""
    if not row.account_id:
        return row.scopes
    account: ServiceAccount | None = accounts.get(txn, row.account_id)
    return None if account is None else account.scopes


def _make_room(txn: Txn, user_id: str) -> None:
    """End the user's oldest session if he has as many as he may have."""
    if sessions.count(txn, "user", user_id) >= SESSIONS_MAX:
        oldest = min(sessions.by(txn, "user", user_id), key=lambda row: (row.created_at, row.id))
        sessions.delete(txn, oldest.id)


def _principal(user: User, credential_id: str, grants: Mapping[str, list[str]] | None) -> Principal:
    return Principal(
        user_id=user.id,
        username=user.username,
        display_name=user.display_name,
        is_admin=user.is_admin,
        credential_id=credential_id,
        grants=grants,
    )


def _some(rows: Iterable[RowT]) -> list[RowT]:
    return list(itertools.islice(rows, SWEEP_ROWS))


def _delete_all(table: Table[RowT], txn: Txn, keys: Iterable[str]) -> None:
    for key in keys:
        table.delete(txn, key)

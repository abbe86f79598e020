"""Credentials: this module alone creates and verifies them.

A *session* is a JWT, signed with a key of :mod:`control.identity.keys`, and a
row. The signature is checked once for each text (the outcome is cached), the row
and the user at every call: the next request with a deleted session, or of a deleted
user, is refused in every process.

An *API token* looks like a JWT behind a prefix, so that clients can read its
claims. It is verified by the SHA-256 of its whole text; its row stores that hash and
not the text. Since the text has 128 random bits
(claim ``jti``), neither the signing key nor the records are enough to make one,
and rotating the key does not end it. A text that is changed in any way, to the
algorithm ``none`` or the signature of another key for instance, has another hash.

A *ticket* is for the addresses of files, which get into histories and the logs of proxies: a
JWT, signed as a session is, that names one file and the session or API token that asked for
it, and ends with that. It may what the credential may, at routes that answer with this file
(:attr:`control.identity.access.Need.file`), and is no credential anywhere else.

``verify`` does not say why it refuses; :meth:`Credentials.fault` does, for the holder of the
text. That a text has expired or was revoked is said only of one that this control plane made: who
makes one up learns nothing but that it is not valid.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jwt
import msgspec
import trio

from control.errors import ENDED, Unauthorized
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
from control.records import Records, Txn
from gfs.errors import DiskFailed, GfsError

log = logging.getLogger(__name__)

RowT = TypeVar("RowT", bound=msgspec.Struct)

PREFIX = "ecloud_"
ALGORITHM = "HS256"
DAYS = 24 * 3600
#: ``expires_in`` of an API token, in seconds; 0: never.
LIFETIMES: Mapping[str, int] = {"30d": 30 * DAYS, "90d": 90 * DAYS, "365d": 365 * DAYS, "never": 0}

#: The one spelling in Base64 of 32 bytes: the last letter has four bits of them, and two zeros.
_SIGNATURE = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
#: The longest text of a session: the longest names, with all of their letters escaped.
SESSION_BYTES_MAX = 4096
#: How many signatures of sessions and tickets are cached: 16 MiB at most.
CACHE_SIZE = 4096
#: How long a ticket lasts at most: for as long as somebody watches a film, with pauses.
TICKET_SECONDS = 12 * 3600
#: How many sessions a user has at most: with a login every 90 seconds, those of a day.
SESSIONS_MAX = 1000
UPKEEP_SECONDS = 30.0
#: How many tokens' uses are kept between two flushes; ``last_used_at`` of others lags.
USED_MAX = 16384
#: How many rows one round of upkeep checks, so that no transaction is long.
SWEEP_ROWS = 1000
#: Expired tokens are shown for this long before their rows are removed.
EXPIRED_TOKEN_SECONDS = 30 * DAYS
LAST_FLUSH_SECONDS = 2.0


class _Session(msgspec.Struct, frozen=True, tag_field="type", tag="session"):
    """The claims that a session's text must have."""

    sub: str
    user_id: str
    username: str
    display_name: str
    is_admin: bool
    iat: int
    exp: int
    jti: str


class _Ticket(msgspec.Struct, frozen=True, tag_field="type", tag="ticket"):
    """The claims of a ticket."""

    user_id: str
    #: The credential that asked for it.
    is_session: bool
    jti: str
    #: The hash of the file's names.
    file: str
    exp: int


_Claims = _Session | _Ticket


class Fault(enum.Enum):
    """What is wrong with a text that is no valid credential, in words for who sent it."""

    MALFORMED = "the token is malformed: send it exactly as it was issued, or log in again"
    EXPIRED = "the token has expired: log in again, or make a new API token"
    REVOKED = ENDED
    NOT_VALID = "the token is not valid: it was not issued here, or was changed; log in again"

    @property
    def is_anonymous(self) -> bool:
        """Whether its sender counts as anonymous where no login is needed."""
        return self in (Fault.MALFORMED, Fault.EXPIRED)


class PasswordChanged(Exception):
    """The password that was verified, or its hash, is not the user's any more."""


class Credentials:
    """Creates and verifies credentials.

    ``clock`` returns unix seconds. ``verify`` is synchronous and takes some 20 µs; the
    other methods are asynchronous, and their changes are on the disk when they return.
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
        """Unix seconds, by the clock that decides about expiry."""
        return self._clock()

    # --- verifying ----------------------------------------------------------------

    def verify(self, token: str) -> Principal | None:
        """The user of ``token``; None if it is not valid, or not any more."""
        if token.startswith(PREFIX):
            return self._verify_api_token(token)
        return self._verify_session(token)

    def fault(self, text: str) -> Fault:
        """What is wrong with a text that :meth:`verify` has refused."""
        is_api_token = text.startswith(PREFIX)
        if is_api_token:
            with self._records.read() as txn:
                row: Token | None = tokens.find(txn, "digest", digest_of(text))
            if row is not None:
                return Fault.REVOKED if is_live(row, self._clock()) else Fault.EXPIRED
        elif len(text) > SESSION_BYTES_MAX:
            return Fault.MALFORMED
        text = text.removeprefix(PREFIX)
        try:
            head = jwt.get_unverified_header(text)
            claims = jwt.decode(text, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            return Fault.MALFORMED
        secret = self._keys.secret(str(head.get("kid", "")))
        if secret is None or claims.get("type") != ("api_token" if is_api_token else "session"):
            return Fault.NOT_VALID
        try:
            _signed_claims(text, secret)
        except (jwt.PyJWTError, ValueError):
            return Fault.NOT_VALID
        ends_at = claims.get("exp", math.inf)
        has_ended = isinstance(ends_at, int) and ends_at <= self._clock()
        return Fault.EXPIRED if has_ended else Fault.REVOKED

    def _verify_session(self, text: str) -> Principal | None:
        claims = self._claims(text)
        if not isinstance(claims, _Session) or claims.exp <= self._clock():
            return None
        with self._records.read() as txn:
            return self._of_session(txn, claims.jti, claims.user_id)

    def verify_ticket(self, text: str, file: Sequence[str]) -> Principal | None:
        """The user of a ticket; None if it is not valid for this file, or not any more."""
        claims = self._claims(text)
        if not isinstance(claims, _Ticket) or claims.exp <= self._clock():
            return None
        if claims.file != _file_digest(file):
            return None
        with self._records.read() as txn:
            if claims.is_session:
                return self._of_session(txn, claims.jti, claims.user_id)
            return self.verify_by_id(txn, claims.jti)

    def _of_session(self, txn: Txn, session_id: str, user_id: str) -> Principal | None:
        session = sessions.get(txn, session_id)
        user = users.get(txn, user_id)
        if session is None or session.user_id != user_id or session.expires_at <= self._clock():
            return None
        return None if user is None else _principal(user, session.id, None)

    def _claims(self, text: str) -> _Claims | None:
        """The claims of a session or ticket with a good signature; it may have expired."""
        known = self._known.get(text)
        if known is not None:
            # The key may be gone since.
            return known[1] if self._keys.secret(known[0]) is not None else None
        if len(text) > SESSION_BYTES_MAX:
            return None
        try:
            key_id = str(jwt.get_unverified_header(text).get("kid", ""))
            secret = self._keys.secret(key_id)
            if secret is None:
                return None
            claims: _Claims = msgspec.convert(_signed_claims(text, secret), _Claims)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        if len(self._known) >= CACHE_SIZE:
            del self._known[next(iter(self._known))]
        self._known[text] = key_id, claims
        return claims

    def _verify_api_token(self, text: str) -> Principal | None:
        with self._records.read() as txn:
            found = self._of_token(txn, tokens.find(txn, "digest", digest_of(text)))
        return self._note_use(found)

    def verify_by_id(self, txn: Txn, token_id: str) -> Principal | None:
        """The user of a token whose holder has proven otherwise that it is theirs; None if it
        is not valid, or not any more."""
        return self._note_use(self._of_token(txn, tokens.get(txn, token_id)))

    def _note_use(self, found: Principal | None) -> Principal | None:
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
        """The user of a verified credential, as of ``txn``; None if it has ended.

        May be called in any thread, that of ``txn``.
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

        ``new_password`` is the new hash to store of the password that was just verified.
        If the user has 1000 sessions, the oldest one ends. Raises PasswordChanged if
        ``user`` has another password by now, Unauthorized if the user was deleted.
        """
        now = int(self._clock())
        row = Session(ids.long_id(), user.id, now, now + max(1, math.ceil(seconds)), address)

        def decide(txn: Txn) -> User:
            found = users.get(txn, user.id)
            if found is None:
                raise Unauthorized("this user does not exist any more")
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
        purpose: str = "",
        check: Callable[[Txn], None],
        also: Callable[[Txn, Token], None] | None = None,
    ) -> tuple[Token, str]:
        """A new API token and its text, which cannot be shown again.

        The caller has checked the arguments; ``check`` is called in the transaction and
        raises if the caller may not have the token any more. With ``account_id`` the
        token belongs to that service account: the account's scopes count at every use,
        and ``scopes`` only has their present value. ``also`` is called in the transaction with
        the new row: for rows of others that belong to it.
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
            purpose=purpose,
        )

        def decide(txn: Txn) -> Token:
            check(txn)
            row = msgspec.structs.replace(draft, serial=time.time_ns())
            tokens.insert(txn, row)
            if also is not None:
                also(txn, row)
            return row

        return await self._records.write(decide), text

    def issue_ticket(
        self, principal: Principal, file: Sequence[str], seconds: int
    ) -> tuple[str, int]:
        """A ticket for a file that ``principal`` may read, and when it ends, at the latest.

        Nothing is stored. ``file`` are its names as :meth:`Need.file_in` has them.
        """
        expires_at = int(self._clock()) + min(seconds, TICKET_SECONDS)
        claims = _Ticket(
            principal.user_id,
            principal.is_session,
            principal.credential_id,
            _file_digest(file),
            expires_at,
        )
        return self._sign(msgspec.to_builtins(claims)), expires_at

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
        """Save the last uses and remove expired rows, until cancelled.

        Every 30 s, and a last time within 2 s after the cancellation. A failed round is
        repeated the next time, except for DiskFailed, which is raised: this process
        cannot write any more.
        """
        try:
            while True:
                await trio.sleep(UPKEEP_SECONDS)
                try:
                    await self.tidy()
                except DiskFailed:
                    raise
                except GfsError as error:
                    log.warning("upkeep of the credentials failed, it is tried again: %s", error)
        finally:
            with trio.move_on_after(LAST_FLUSH_SECONDS, shield=True):
                await self._flush_last()

    async def _flush_last(self) -> None:
        try:
            await self.flush()
        except GfsError as error:
            log.warning("the last uses of API tokens were not saved: %s", error)

    async def tidy(self) -> None:
        """One round of upkeep."""
        await self.flush()
        await self._sweep_sessions()
        await self._sweep_tokens()

    async def flush(self) -> None:
        """Save when tokens were last used."""
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
            await self._records.write(lambda txn: [sessions.delete(txn, id_) for id_ in gone])
        self._session_cursor = looked_at[-1].id if len(looked_at) == SWEEP_ROWS else ""

    async def _sweep_tokens(self) -> None:
        long_ago = self._clock() - EXPIRED_TOKEN_SECONDS
        with self._records.read() as txn:
            looked_at = _some(tokens.scan(txn, after=self._token_cursor))
        gone = [row.id for row in looked_at if row.expires_at and row.expires_at <= long_ago]
        if gone:
            await self._records.write(lambda txn: [tokens.delete(txn, id_) for id_ in gone])
        self._token_cursor = looked_at[-1].id if len(looked_at) == SWEEP_ROWS else ""


def digest_of(text: str) -> str:
    """The hash that is stored for an API token."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _file_digest(names: Sequence[str]) -> str:
    return hashlib.sha256(msgspec.json.encode(names)).hexdigest()


def is_live(row: Token, now: float) -> bool:
    """Whether the token has not expired."""
    return not row.expires_at or now < row.expires_at


def _signed_claims(text: str, secret: bytes) -> dict[str, Any]:
    """The claims of a text that ``secret`` has signed; the caller compares its times, with its
    own clock. Raises PyJWTError or ValueError for any other text, also for another spelling of
    the signature: the head and the claims are signed as text, but the signature itself is decoded,
    with padding, foreign letters and any last bits passed over."""
    if not _SIGNATURE.fullmatch(text.rpartition(".")[2]):
        raise jwt.InvalidSignatureError
    claims: dict[str, Any] = jwt.decode(
        text, secret, algorithms=[ALGORITHM], options={"verify_exp": False, "verify_iat": False}
    )
    return claims


def current_scopes(txn: Txn, row: Token) -> dict[str, list[str]] | None:
    """The present scopes of a token; None if its service account is gone."""
    if not row.account_id:
        return row.scopes
    account: ServiceAccount | None = accounts.get(txn, row.account_id)
    return None if account is None else account.scopes


def _make_room(txn: Txn, user_id: str) -> None:
    """End the user's oldest session if the user has the maximum."""
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

"""Access keys: a public id and a secret, with which a user's tools sign requests.

A key is an API token without a text (so scopes, expiry, revocation and the deletion of its user
are those of tokens), and a row with its secret. A signature can only be verified by who has the
secret; so it is stored, encrypted with the key in ``keys/s3.key`` (mode 0600): the records
alone give nobody a secret. Where several machines share the records, that key is a row of the
table ``secrets``, as those that sign sessions.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from cryptography.fernet import Fernet, InvalidToken
from msgspec import Meta

from control.api import (
    SESSION,
    BadRequest,
    Call,
    Control,
    NoSuchThing,
    Principal,
    Route,
    Table,
    Txn,
)
from control.api.internals import (
    Token,
    check_grants,
    clean_label,
    locked,
    make_private_directory,
    people,
    read_secret,
    shared_secret,
    tokens,
    write_secret,
)
from control.api.internals import secrets as shared_secrets
from control.auth import Status, TokenBody
from gfs.errors import StartupError

#: The most access keys of one user.
KEYS_MAX = 100
PURPOSE = "s3"
#: Of the key that encrypts the secrets.
NAME = "s3.key"
MISSING = "no such access key"
ALPHABET = string.ascii_letters + string.digits
SECRET_LETTERS = 40
#: The signing secrets that are kept decrypted.
CACHE_SIZE = 4096


class AccessKey(msgspec.Struct, array_like=True, frozen=True):
    """The secret of an access key."""

    access_key_id: str
    token_id: str
    user_id: str
    #: Encrypted.
    secret: str


access_keys = Table(
    "s3_keys",
    AccessKey,
    key=lambda row: row.access_key_id,
    indexes={"user": lambda row: [row.user_id], "token": lambda row: [row.token_id]},
)


def forget_user(txn: Txn, user_id: str) -> None:
    for row in list(access_keys.by(txn, "user", user_id)):
        access_keys.delete(txn, row.access_key_id)


class AccessKeyInfo(msgspec.Struct):
    """An access key, without its secret."""

    id: str
    name: str
    access_key_id: str
    scopes: dict[str, list[str]]
    created_at: int
    expires_at: int
    last_used_at: int


class NewAccessKey(msgspec.Struct):
    """A new access key. The secret is shown this once."""

    id: str
    name: str
    access_key_id: str
    secret_access_key: str
    scopes: dict[str, list[str]]
    created_at: int
    expires_at: int
    endpoint: Annotated[
        str, Meta(description="Where S3 is served, as seen from this request; empty: not known")
    ] = ""


def _key_in_file(directory: Path) -> str:
    """The key in a file, which is made if there is none. Raises StartupError for a file that others
    can read."""
    make_private_directory(directory)
    with locked(directory / "lock"):
        text = read_secret(directory / NAME, 1024)
        if text is None:
            text = Fernet.generate_key()
            write_secret(directory / NAME, text + b"\n")
    return text.decode("ascii", "replace")


def _key_in_rows(txn: Txn) -> str:
    """The same of records that several machines share."""
    return shared_secret(txn, NAME, lambda: Fernet.generate_key().decode())


class Cipher:
    """Encrypts secrets with a key."""

    def __init__(self, key: str, where: str) -> None:
        """Raises StartupError for a key that is damaged."""
        try:
            self._fernet = Fernet(key.strip())
        except ValueError:
            raise StartupError(
                f"{where}: this is no key: remove it to make a new one; then all access "
                "keys of S3 must be made again"
            ) from None

    def encrypt(self, secret: str) -> str:
        return self._fernet.encrypt(secret.encode()).decode()

    def decrypt(self, text: str) -> str | None:
        """None if it was encrypted with another key."""
        try:
            return self._fernet.decrypt(text).decode()
        except InvalidToken:
            return None


class Keys:
    """The access keys, for one process."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._cipher: Cipher | None = None
        self._known: dict[str, str] = {}

    @property
    def cipher(self) -> Cipher | None:
        """None: no process has made a key yet, of those that share the records."""
        if self._cipher is None and self._control.records.writer:
            with self._control.records.read() as txn:
                row = shared_secrets.get(txn, NAME)
            self._cipher = None if row is None else Cipher(row.text, f"secrets {NAME!r}")
        elif self._cipher is None:
            directory = self._control.directory / "keys"
            self._cipher = Cipher(_key_in_file(directory), str(directory / NAME))
        return self._cipher

    async def _make_cipher(self) -> Cipher:
        if self.cipher is None:
            self._cipher = Cipher(await self._control.records.write(_key_in_rows), NAME)
        assert self.cipher is not None
        return self.cipher

    def find(self, access_key_id: str) -> tuple[str, Principal] | None:
        """The secret of a key, and whose it is; None if it is not valid, or not any more."""
        with self._control.records.read() as txn:
            row = access_keys.get(txn, access_key_id)
            if row is None:
                return None
            principal = self._control.credentials.verify_by_id(txn, row.token_id)
        secret = self._secret(row.secret) if principal is not None else None
        return None if principal is None or secret is None else (secret, principal)

    def _secret(self, text: str) -> str | None:
        known = self._known.get(text)
        if known is None:
            known = None if self.cipher is None else self.cipher.decrypt(text)
            if known is not None:
                if len(self._known) >= CACHE_SIZE:
                    del self._known[next(iter(self._known))]
                self._known[text] = known
        return known

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "POST",
                "/api/s3-keys",
                self.create,
                SESSION,
                "Make an access key for S3",
                body=TokenBody,
                answer=NewAccessKey,
                errors=[507],
                description=f"The secret is shown once. A user has {KEYS_MAX} keys at most.",
            ),
            Route(
                "GET",
                "/api/s3-keys",
                self.list_keys,
                SESSION,
                "The caller's access keys for S3, newest first",
                answer=list[AccessKeyInfo],
            ),
            Route(
                "DELETE",
                "/api/s3-keys/{id}",
                self.delete,
                SESSION,
                "Revoke an access key for S3",
                answer=Status,
                errors=[404, 507],
            ),
        ]

    async def create(self, call: Call, body: TokenBody) -> NewAccessKey:
        scopes = check_grants(self._control.scopes, call.user.user_id, body.scopes)
        made = await self.make(call.user.user_id, body.name, scopes, body.expires_in, call)
        made.endpoint = self._endpoint(call)
        return made

    def _endpoint(self, call: Call) -> str:
        """S3 has a port of its own, at the host that the request was sent to. What a proxy in front
        makes of it is not known."""
        port = next((each for each, name in self._control.ports.items() if name == PURPOSE), None)
        if port is None or self._control.settings.public_url:
            return ""
        url = urlsplit(call.request.host_url)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"{url.scheme}://{host}:{port}"

    async def make(
        self,
        user_id: str,
        name: str,
        scopes: dict[str, list[str]],
        expires_in: str,
        call: Call | None = None,
    ) -> NewAccessKey:
        # Letters and digits alone: some commands would take a hyphen in front for an option.
        secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LETTERS))
        encrypted = (await self._make_cipher()).encrypt(secret)
        access_key_id = "GFS" + secrets.token_hex(8).upper() + "0"

        def check(txn: Txn) -> None:
            if call is not None:
                call.check_credential(txn)
            left = 0
            for row in list(access_keys.by(txn, "user", user_id)):
                if tokens.get(txn, row.token_id) is None:
                    access_keys.delete(txn, row.access_key_id)  # it has expired long ago
                else:
                    left += 1
            if left >= KEYS_MAX:
                raise BadRequest(f"you have {KEYS_MAX} access keys, no more are allowed")

        def also(txn: Txn, token: Token) -> None:
            access_keys.insert(txn, AccessKey(access_key_id, token.id, user_id, encrypted))

        row, _ = await self._control.credentials.issue_token(
            user_id, clean_label(name), scopes, expires_in, purpose=PURPOSE, check=check, also=also
        )
        return NewAccessKey(
            row.id, row.name, access_key_id, secret, scopes, row.created_at, row.expires_at
        )

    async def list_keys(self, call: Call) -> list[AccessKeyInfo]:
        credentials = self._control.credentials
        found: list[tuple[int, AccessKeyInfo]] = []
        with self._control.records.read() as txn:
            for key in access_keys.by(txn, "user", call.user.user_id):
                row = tokens.get(txn, key.token_id)
                if row is not None:
                    info = AccessKeyInfo(
                        row.id,
                        row.name,
                        key.access_key_id,
                        row.scopes,
                        row.created_at,
                        row.expires_at,
                        credentials.last_used_at(row),
                    )
                    found.append((row.serial, info))
        return [info for _, info in sorted(found, key=lambda each: -each[0])]

    async def delete(self, call: Call) -> Status:
        def decide(txn: Txn) -> None:
            row = next(iter(access_keys.by(txn, "token", call.params["id"])), None)
            if row is None or row.user_id != call.user.user_id:
                raise NoSuchThing(MISSING)
            access_keys.delete(txn, row.access_key_id)
            people.revoke_token(txn, row.token_id)

        await call.write(decide)
        return Status()

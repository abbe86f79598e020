"""Users: their names, their creation and deletion, and the end of what they log in with, in
transactions of the callers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from control.errors import BadRequest, Conflict, NoSuchThing
from control.identity import ids
from control.identity.rows import (
    Places,
    ServiceAccount,
    Session,
    User,
    accounts,
    folded,
    places,
    sessions,
    tokens,
    users,
)
from control.records import Taken, Txn

NAME_BYTES_MAX = 64
#: Characters of a new username besides letters and digits; e-mail addresses are allowed.
NAME_SIGNS = "._-@+'"
#: Letters that are invisible.
_FILLERS = "\u115f\u1160\u3164\uffa0"
DISPLAY_NAME_BYTES_MAX = 128
#: Known networks of one user. A new one replaces the one not used for the longest time.
PLACES_MAX = 32
#: How often a login from a known place is saved.
PLACE_SECONDS = 24 * 3600
#: There are 57 thousand million ids, so even a second one that is taken is not expected.
ID_TRIES = 16


def clean_username(username: str) -> str:
    """``username`` trimmed and in its composed form (NFC), since keyboards and file names
    encode the same letters differently. Raises BadRequest."""
    return _clean("username", unicodedata.normalize("NFC", username), NAME_BYTES_MAX)


def new_username(username: str) -> str:
    """As :func:`clean_username`; it must also be readable, easy to type, and safe in a path
    or a URL. Raises BadRequest.

    Users from before these rules keep their names.
    """
    username = clean_username(username)
    is_fine = all(letter.isalnum() or letter in NAME_SIGNS for letter in username)
    if not is_fine or not username[0].isalnum() or set(username) & set(_FILLERS):
        raise BadRequest(
            f"username: letters, digits and {NAME_SIGNS}, with a letter or a digit first"
        )
    return username


def clean_display_name(name: str, username: str) -> str:
    """``name`` trimmed, ``username`` if nothing is left. Raises BadRequest."""
    return _clean("display_name", name.strip() or username, DISPLAY_NAME_BYTES_MAX)


def clean_label(name: str) -> str:
    """The name of a token or a service account, trimmed. Raises BadRequest."""
    return bounded("name", name.strip(), NAME_BYTES_MAX)


def _clean(field: str, text: str, bytes_max: int) -> str:
    text = bounded(field, text.strip(), bytes_max)
    if any(unicodedata.category(letter) == "Cc" for letter in text):
        raise BadRequest(f"{field}: no control characters")
    return text


def bounded(field: str, text: str, bytes_max: int) -> str:
    """``text``, if it has 1 to ``bytes_max`` bytes of UTF-8. Raises BadRequest."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # possible in the environment, not in JSON
        raise BadRequest(f"{field}: not UTF-8") from None
    if not 1 <= size <= bytes_max:
        raise BadRequest(f"{field}: 1 to {bytes_max} bytes")
    return text


def create(
    txn: Txn, *, username: str, display_name: str, password: str, is_admin: bool, now: int
) -> User:
    """A new user. ``password`` is a hash. Raises Conflict if the name is taken, or a name
    that differs only in case or in look-alike letters."""
    if users.find(txn, "folded", folded(username)) is not None:
        raise Conflict(f"username: {username!r} is taken")
    for _ in range(ID_TRIES):
        user = User(ids.user_id(), username, display_name, password, is_admin, now)
        try:
            users.insert(txn, user)
        except Taken:
            continue
        return user
    raise Conflict("no free user id was found: try again")


def change(
    txn: Txn, user_id: str, *, password: str | None, display_name: str | None, is_admin: bool | None
) -> User:
    """Change what is not None. ``password`` is a hash. A new password, and other rights, end the
    user's sessions.

    Raises NoSuchThing, or Conflict for the last administrator.
    """
    user = users.get(txn, user_id)
    if user is None:
        raise NoSuchThing("no such user")
    if is_admin is False and user.is_admin and users.count(txn, "admin", "yes") == 1:
        raise Conflict("this is the last administrator: create another one first")
    changed = replace(
        user,
        password=user.password if password is None else password,
        display_name=user.display_name if display_name is None else display_name,
        is_admin=user.is_admin if is_admin is None else is_admin,
    )
    users.put(txn, changed)
    if password is not None or changed.is_admin != user.is_admin:
        _end_sessions(txn, user_id)
    return changed


def set_password(txn: Txn, user: User, password: str, kept: str = "") -> None:
    """``password`` is a hash. The user's sessions end, but for the one with the id ``kept``."""
    users.put(txn, replace(user, password=password))
    _end_sessions(txn, user.id, kept)


def _end_sessions(txn: Txn, user_id: str, kept: str = "") -> None:
    for session in list(sessions.by(txn, "user", user_id)):
        if session.id != kept:
            sessions.delete(txn, session.id)


def end_session(txn: Txn, session_id: str) -> Session | None:
    """Returns the session that ended; None if there is none."""
    return sessions.delete(txn, session_id)


def revoke_token(txn: Txn, token_id: str) -> None:
    """Without effect if there is no such token."""
    tokens.delete(txn, token_id)


def add_account(txn: Txn, account: ServiceAccount) -> None:
    """Raises Taken if there is one with its id."""
    accounts.insert(txn, account)


def change_account(txn: Txn, account: ServiceAccount) -> None:
    """Replace the one with its id."""
    accounts.put(txn, account)


def delete_account(txn: Txn, account_id: str) -> None:
    """Delete a service account with its tokens."""
    for token in tokens.by(txn, "account", account_id):
        tokens.delete(txn, token.id)
    accounts.delete(txn, account_id)


def note_place(txn: Txn, user_id: str, network: str, now: int) -> None:
    """Record that the user has logged in from ``network``."""
    row = places.get(txn, user_id) or Places(user_id, {})
    if now - row.last.get(network, 0) < PLACE_SECONDS:
        return
    newest = sorted(({**row.last, network: now}).items(), key=lambda item: item[1])[-PLACES_MAX:]
    places.put(txn, Places(user_id, dict(newest)))


def is_place(txn: Txn, user_id: str, network: str) -> bool:
    """Whether the user has logged in from ``network`` before."""
    row = places.get(txn, user_id)
    return row is not None and network in row.last


def delete(txn: Txn, user_id: str, deletions: Iterable[Callable[[Txn, str], None]]) -> None:
    """Delete the user with all rows that belong to the user alone, and call ``deletions``.

    Raises NoSuchThing, or Conflict for the last administrator.
    """
    user = users.get(txn, user_id)
    if user is None:
        raise NoSuchThing("no such user")
    if user.is_admin and users.count(txn, "admin", "yes") == 1:
        raise Conflict("this is the last administrator: create another one first")
    _end_sessions(txn, user_id)
    places.delete(txn, user_id)
    for token in tokens.by(txn, "owner", user_id):
        tokens.delete(txn, token.id)
    for account in accounts.by(txn, "user", user_id):
        accounts.delete(txn, account.id)
    users.delete(txn, user_id)
    for delete_more in deletions:
        delete_more(txn, user_id)

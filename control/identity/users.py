"""Users: their names, made and deleted. All in transactions that others hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

from control.errors import BadRequest, Conflict, NoSuchThing
from control.identity import ids
from control.identity.rows import (
    Places,
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
#: What a new username may have besides letters and digits: e-mail addresses are names, too.
NAME_SIGNS = "._-@+'"
#: Letters that nobody can see.
_FILLERS = "\u115f\u1160\u3164\uffa0"
DISPLAY_NAME_BYTES_MAX = 128
#: Known networks of one user. A new one replaces the one not used for the longest time.
PLACES_MAX = 32
#: A login from a known place is written down this often.
PLACE_SECONDS = 24 * 3600
#: Of 57 thousand million ids, a second one that is taken is not to be expected.
ID_TRIES = 16


def clean_username(username: str) -> str:
    """``username`` trimmed and in its composed form (NFC): keyboards and file names
    give the same letters in different bytes. Raises BadRequest."""
    return _clean("username", unicodedata.normalize("NFC", username), NAME_BYTES_MAX)


def new_username(username: str) -> str:
    """As :func:`clean_username`, and such that it can be read, typed, and put into a path
    or an address without a second thought. Raises BadRequest.

    Names of users from before these rules are not looked at again.
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
    except UnicodeEncodeError:  # from the environment; JSON has no such text
        raise BadRequest(f"{field}: not UTF-8") from None
    if not 1 <= size <= bytes_max:
        raise BadRequest(f"{field}: 1 to {bytes_max} bytes")
    return text


def create(
    txn: Txn, *, username: str, display_name: str, password: str, is_admin: bool, now: int
) -> User:
    """A new user. ``password`` is its hash. Raises Conflict when the name is taken, or
    one that differs only in small and capital letters or in how they are drawn."""
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


def note_place(txn: Txn, user_id: str, network: str, now: int) -> None:
    """The user has logged in from ``network``."""
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
    """Delete the user with all that is his alone, and let modules do their part.

    Raises NoSuchThing, or Conflict for the last administrator.
    """
    user = users.get(txn, user_id)
    if user is None:
        raise NoSuchThing("no such user")
    if user.is_admin and users.count(txn, "admin", "yes") == 1:
        raise Conflict("this is the last administrator: make another one first")
    for session in sessions.by(txn, "user", user_id):
        sessions.delete(txn, session.id)
    places.delete(txn, user_id)
    for token in tokens.by(txn, "owner", user_id):
        tokens.delete(txn, token.id)
    for account in accounts.by(txn, "user", user_id):
        accounts.delete(txn, account.id)
    users.delete(txn, user_id)
    for delete_more in deletions:
        delete_more(txn, user_id)

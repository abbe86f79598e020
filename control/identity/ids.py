"""Random ids of digits and letters, which need no escaping anywhere."""

from __future__ import annotations

import secrets
import string

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase


def random_text(length: int) -> str:
    """``length`` characters of [0-9A-Za-z], 5.95 random bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def user_id() -> str:
    """An id that is short, since people type it into scopes; it may be taken already."""
    return random_text(6)


def token_id() -> str:
    """An id of 71 bits, for tokens and service accounts; a collision is not expected."""
    return random_text(12)


def long_id() -> str:
    """An id of 131 bits, which nobody can guess."""
    return random_text(22)

"""Ids: random, of digits and letters, so that they need no escaping anywhere."""

from __future__ import annotations

import secrets
import string

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase


def random_text(length: int) -> str:
    """``length`` characters of [0-9A-Za-z], 5.95 random bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def user_id() -> str:
    """Short, since people type it into scopes: a new one may be taken."""
    return random_text(6)


def token_id() -> str:
    """71 bits, so a collision is not to be expected. For service accounts, too."""
    return random_text(12)


def long_id() -> str:
    """131 bits: nobody can guess it."""
    return random_text(22)

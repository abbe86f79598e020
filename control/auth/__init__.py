"""The module ``auth``: logins, API tokens, service accounts and users."""

from __future__ import annotations

from control.auth.first_start import FILE_NAME, take_first_password
from control.auth.module import Auth
from control.auth.shapes import Status, TokenBody

__all__ = [
    "FILE_NAME",
    "Auth",
    "Status",
    "TokenBody",
    "take_first_password",
]

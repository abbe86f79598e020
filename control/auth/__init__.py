"""Auth: logins, API tokens, service accounts and users, as a control-plane module."""

from __future__ import annotations

from control.auth.first_start import take_first_password
from control.auth.module import Auth

__all__ = ["Auth", "take_first_password"]

"""The module ``auth``: its routes, and what it does at start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import trio
from argon2 import PasswordHasher

from control.api import Control, Module, Route
from control.api.internals import Passwords, make_hasher, users
from control.auth.accounts import AccountRoutes
from control.auth.admin import AdminRoutes
from control.auth.failures import Failures
from control.auth.first_start import make_first_admin
from control.auth.login import LoginRoutes
from control.auth.quotas import QuotaRoutes
from control.auth.tokens import TokenRoutes


class Auth(Module):
    """Logins, API tokens, service accounts and the administration of users."""

    name = "auth"
    summary = "Logins, API tokens, service accounts, users"
    #: Instead of one with the parameters of the settings.
    hasher: ClassVar[PasswordHasher | None] = None

    def __init__(self, control: Control) -> None:
        super().__init__(control)
        settings = control.settings
        hasher = self.hasher or make_hasher(settings)
        self._passwords = Passwords(settings.password_threads, settings.password_queue, hasher)
        self._login = LoginRoutes(control, self._passwords)
        self._tokens = TokenRoutes(control)
        self._accounts = AccountRoutes(control)
        self._admin = AdminRoutes(control, self._passwords)
        self._quotas = QuotaRoutes(control)

    def routes(self) -> Sequence[Route]:
        return [
            *self._login.routes(),
            *self._tokens.routes(),
            *self._accounts.routes(),
            *self._admin.routes(),
            *self._quotas.routes(),
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the first administrator if there is no user, and return."""
        control, settings = self.control, self.control.settings
        self._login.failures = Failures(
            control.logins, settings.login_failures, settings.login_window_seconds
        )
        await self._passwords.prepare()
        await make_first_admin(
            control.records, self._passwords, control.directory, settings.admin_username
        )
        task_status.started()

    async def check_ready(self) -> None:
        with self.control.records.read() as txn:
            users.count(txn)

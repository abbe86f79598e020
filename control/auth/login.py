"""Login, session, logout."""

from __future__ import annotations

import time
from collections.abc import Sequence

from control.auth.failures import Failures
from control.auth.shapes import LoginAnswer, LoginBody, SessionInfo, Status
from control.call import Call
from control.errors import Unauthorized, Unavailable
from control.identity.access import PUBLIC, SESSION_OR_COOKIE
from control.identity.credentials import PasswordChanged
from control.identity.passwords import Passwords, check_password
from control.identity.rows import User, users
from control.identity.users import clean_username
from control.module import Route
from control.runtime import Control

#: One message for both, or it would tell who exists.
WRONG = "wrong username or password"
#: Another login may renew the hash, or somebody change the password, while it is proven.
TRIES = 3


class LoginRoutes:
    """``failures`` is set before the first request."""

    failures: Failures

    def __init__(self, control: Control, passwords: Passwords) -> None:
        self._control = control
        self._passwords = passwords

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "POST",
                "/api/login",
                self.login,
                PUBLIC,
                "Log in",
                body=LoginBody,
                answer=LoginAnswer,
                errors=[401, 429, 507],
                description=(
                    "The session lasts 24 hours unless configured otherwise. After too many "
                    "failed attempts from one address or for one user every attempt is "
                    "answered 429 until the time in `Retry-After` has passed."
                ),
            ),
            Route(
                "GET",
                "/api/session",
                self.session,
                SESSION_OR_COOKIE,
                "Who is logged in",
                answer=SessionInfo,
            ),
            Route(
                "POST",
                "/api/logout",
                self.logout,
                PUBLIC,
                "Log out",
                answer=Status,
                description="The client forgets its token: that is what ends the session.",
            ),
        ]

    async def login(self, call: Call, body: LoginBody) -> LoginAnswer:
        username = clean_username(body.username)
        password = check_password(body.password)
        self.failures.check(call.address, username, time.time())
        for _ in range(TRIES):
            user = await self._proven(username, password)
            if user is None:
                self.failures.note(call.address, username, time.time())
                raise Unauthorized(WRONG)
            # Guesses that were let in together: those after one too many are told nothing.
            self.failures.check(call.address, username, time.time())
            try:
                return await self._admitted(user, call.address, password)
            except PasswordChanged:
                continue
        raise Unavailable("your password is being changed: try again", {"Retry-After": "1"})

    async def session(self, call: Call) -> SessionInfo:
        user = call.user
        return SessionInfo(
            username=user.username,
            display_name=user.display_name,
            user_id=user.user_id,
            is_admin=user.is_admin,
        )

    async def logout(self, call: Call) -> Status:
        return Status()

    async def _proven(self, username: str, password: str) -> User | None:
        with self._control.records.read() as txn:
            user = users.find(txn, "username", username)
        stored = None if user is None else user.password
        return user if await self._passwords.verify(stored, password) else None

    async def _admitted(self, user: User, address: str, password: str) -> LoginAnswer:
        token = await self._control.credentials.issue_session(
            user,
            address,
            seconds=self._control.settings.session_seconds,
            new_password=await self._renewed(user, password),
        )
        return LoginAnswer(
            username=user.username,
            display_name=user.display_name,
            user_id=user.id,
            is_admin=user.is_admin,
            token=token,
        )

    async def _renewed(self, user: User, password: str) -> str | None:
        """A hash with the present parameters, if the stored one has others."""
        if not self._passwords.is_outdated(user.password):
            return None
        return await self._passwords.hash(password)

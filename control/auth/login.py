"""Login, session, logout, and one's own password."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import trio

from control.api import (
    ANYBODY,
    PUBLIC,
    SESSION,
    ApiError,
    BadRequest,
    Call,
    Control,
    Forbidden,
    Route,
    Txn,
    Unauthorized,
    Unavailable,
)
from control.api.internals import (
    LOGGED_IN_OR_COOKIE,
    PasswordChanged,
    Passwords,
    User,
    check_password,
    clean_username,
    network_of,
    new_password,
    people,
    users,
)
from control.auth.failures import Attempt, Failures
from control.auth.first_start import FILE_NAME
from control.auth.shapes import LoginAnswer, LoginBody, PasswordBody, SessionInfo, Status

CHANGING = "your password is being changed: try again"
#: While a password is verified, another login may renew the hash, or the password may be changed.
TRIES = 3
#: How an answer is delayed.
wait = trio.sleep


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
                    "failed attempts for one user at one address every attempt there is "
                    "answered 429 until the time in `Retry-After` has passed. After too many "
                    "for one user from anywhere, or at one address for any users, the answers are "
                    "delayed by up to 8 s, except for a right password from an address that the "
                    "user has logged in from before."
                ),
            ),
            Route(
                "GET",
                "/api/session",
                self.session,
                LOGGED_IN_OR_COOKIE,
                "The user who is logged in",
                answer=SessionInfo,
            ),
            Route(
                "POST",
                "/api/logout",
                self.logout,
                ANYBODY,
                "Log out",
                answer=Status,
                errors=[507],
                description=(
                    "Ends the session whose token is sent: the token is refused at once, and "
                    "requests under way with it end within 5 s. Without a token, or with one that "
                    "is not valid any more, the request succeeds and changes nothing. An API "
                    "token is not a session "
                    "and stays valid: `DELETE /api/tokens/{id}` revokes it."
                ),
            ),
            Route(
                "PUT",
                "/api/password",
                self.change_password,
                SESSION,
                "Change the caller's password",
                body=PasswordBody,
                answer=Status,
                errors=[429, 507],
                description=(
                    "Ends all other sessions of the user; API tokens stay. 403 if `old` is not "
                    "the password; that counts as a failed login."
                ),
            ),
        ]

    async def login(self, call: Call, body: LoginBody) -> LoginAnswer:
        username = clean_username(body.username)
        password = check_password(body.password)
        for _ in range(TRIES):
            user = await self._proven_or_refused(call, username, password, _wrong)
            try:
                return await self._admitted(user, call.address, password)
            except PasswordChanged:
                continue
        raise Unavailable(CHANGING, {"Retry-After": "1"})

    async def session(self, call: Call) -> SessionInfo:
        user = call.user
        return SessionInfo(
            username=user.username,
            display_name=user.display_name,
            user_id=user.user_id,
            is_admin=user.is_admin,
        )

    async def logout(self, call: Call) -> Status:
        who = call.principal
        if who is not None and who.is_session:
            session_id = who.credential_id
            await self._control.records.write(lambda txn: people.end_session(txn, session_id))
        return Status()

    async def change_password(self, call: Call, body: PasswordBody) -> Status:
        who = call.user
        old = check_password(body.old, "old")
        new = new_password(body.new, who.username, "new")
        if new == old:
            raise BadRequest("new: this is the old password")
        user = await self._proven_or_refused(call, who.username, old, _wrong_old)
        if user.id != who.user_id:  # deleted, and another one made of the same name
            raise Unauthorized
        hashed = await self._passwords.hash(new, call.address)

        def decide(txn: Txn) -> None:
            found = users.get(txn, user.id)
            if found is None or found.password != user.password:
                raise Unavailable(CHANGING, {"Retry-After": "1"})
            people.set_password(txn, found, hashed, kept=who.credential_id)

        await call.write(decide)
        if user.username == self._control.settings.admin_username:
            # The password of the first start is not valid any more.
            (self._control.directory / FILE_NAME).unlink(missing_ok=True)
        return Status()

    async def _proven_or_refused(
        self, call: Call, username: str, password: str, wrong: Callable[[], ApiError]
    ) -> User:
        """The user, if this is the right password; else ``wrong()`` is raised, or
        TooManyRequests."""
        with self._control.records.read() as txn:
            user = users.find(txn, "username", username)
            place = network_of(call.address)
            is_known = user is not None and people.is_place(txn, user.id, place)
        stored = None if user is None else user.password
        attempt = Attempt(username, stored or "", call.address)
        self.failures.check(attempt, time.time())
        delay = self.failures.delay(attempt, time.time())
        if not is_known:
            # Before the hash, so that those who guess take the fewest of its turns.
            await wait(delay)
            self.failures.check(attempt, time.time())
        if not await self._passwords.verify(stored, password, call.address) or user is None:
            self.failures.note(attempt, time.time())
            if is_known:
                await wait(delay)
            raise wrong()
        # Guesses that were admitted together: those beyond the limit are refused,
        # whatever their password is.
        self.failures.check(attempt, time.time())
        return user

    async def _admitted(self, user: User, address: str, password: str) -> LoginAnswer:
        token = await self._control.credentials.issue_session(
            user,
            address,
            seconds=self._control.settings.session_seconds,
            new_password=await self._renewed(user, password, address),
        )
        return LoginAnswer(
            username=user.username,
            display_name=user.display_name,
            user_id=user.id,
            is_admin=user.is_admin,
            token=token,
        )

    async def _renewed(self, user: User, password: str, address: str) -> str | None:
        """A hash with the present parameters, if the stored one has others."""
        if not self._passwords.is_outdated(user.password):
            return None
        return await self._passwords.hash(password, address)


def _wrong() -> ApiError:
    """The same error for an unknown user and a wrong password, so that it does not
    reveal which users exist."""
    return Unauthorized("wrong username or password")


def _wrong_old() -> ApiError:
    """Not 401, since clients then drop the session."""
    return Forbidden("old: this is not your password")

"""Routes for administrators: users and their sessions."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import UNSET
from quart import Response

from control.api import (
    ADMIN,
    BadRequest,
    Call,
    Control,
    NoSuchThing,
    Route,
    Txn,
    in_order,
    json_array,
)
from control.api.internals import Passwords, Session, User, new_password, people, sessions, users
from control.auth.first_start import FILE_NAME
from control.auth.shapes import (
    SessionQuery,
    SessionRow,
    Status,
    UserBody,
    UserChange,
    UserInfo,
    UserQuery,
)

#: Seconds for the deletion of a user in all modules.
DELETE_SECONDS = 60.0


class AdminRoutes:
    def __init__(self, control: Control, passwords: Passwords) -> None:
        self._control = control
        self._passwords = passwords

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "GET",
                "/admin/users",
                self.list_users,
                ADMIN,
                "All users, by name",
                answer=list[UserInfo],
            ),
            Route(
                "POST",
                "/admin/users",
                self.create_user,
                ADMIN,
                "Make a user",
                body=UserBody,
                answer=UserInfo,
                errors=[409, 507],
            ),
            Route(
                "PUT",
                "/admin/users",
                self.change_user,
                ADMIN,
                "Change another user: password, display name, rights",
                query=UserQuery,
                body=UserChange,
                answer=UserInfo,
                errors=[404, 409, 507],
                description=(
                    "A new password and other rights end the user's sessions; API tokens stay "
                    "valid. Your own password is changed with `PUT /api/password`."
                ),
            ),
            Route(
                "DELETE",
                "/admin/users",
                self.delete_user,
                ADMIN,
                "Delete a user",
                query=UserQuery,
                answer=Status,
                errors=[404, 409, 507],
                description=(
                    "The user's sessions and tokens end at once. The files stay: the storage "
                    "namespaces become private and have no owner, so that only administrators "
                    "have access. Administrators cannot delete themselves, nor the last "
                    "administrator (409)."
                ),
            ),
            Route(
                "GET",
                "/admin/sessions",
                self.list_sessions,
                ADMIN,
                "All valid sessions, newest first",
                answer=list[SessionRow],
            ),
            Route(
                "DELETE",
                "/admin/sessions",
                self.delete_session,
                ADMIN,
                "End a session",
                query=SessionQuery,
                answer=Status,
                errors=[404, 507],
                description=(
                    "Its token is refused at once; requests under way with it end within 5 s."
                ),
            ),
        ]

    async def list_users(self, call: Call) -> Response:
        rows = await self._control.records.all(users)
        return json_array(await in_order(rows, lambda row: row.username), _info)

    async def create_user(self, call: Call, body: UserBody) -> UserInfo:
        username = people.new_username(body.username)
        display_name = people.clean_display_name(body.display_name, username)
        password = new_password(body.password, username)
        hashed = await self._passwords.hash(password, call.address)

        def decide(txn: Txn) -> User:
            return people.create(
                txn,
                username=username,
                display_name=display_name,
                password=hashed,
                is_admin=body.is_admin,
                now=int(time.time()),
            )

        return _info(await call.write(decide))

    async def change_user(self, call: Call, body: UserChange) -> UserInfo:
        user_id = call.query(UserQuery).id
        if user_id == call.user.user_id and (body.password, body.is_admin) != (UNSET, UNSET):
            raise BadRequest(
                "id: change your own password with PUT /api/password; another administrator "
                "changes your rights"
            )
        with self._control.records.read() as txn:
            user = users.get(txn, user_id)
        if user is None:
            raise NoSuchThing("no such user")
        hashed = name = None
        if body.display_name is not UNSET:
            name = people.clean_display_name(body.display_name, user.username)
        if body.password is not UNSET:
            password = new_password(body.password, user.username)
            hashed = await self._passwords.hash(password, call.address)
        is_admin = None if body.is_admin is UNSET else body.is_admin

        def decide(txn: Txn) -> User:
            return people.change(
                txn, user_id, password=hashed, display_name=name, is_admin=is_admin
            )

        changed = _info(await call.write(decide))
        if hashed is not None and user.username == self._control.settings.admin_username:
            # The password of the first start is not valid any more.
            (self._control.directory / FILE_NAME).unlink(missing_ok=True)
        return changed

    async def delete_user(self, call: Call) -> Status:
        user_id = call.query(UserQuery).id
        if user_id == call.user.user_id:
            raise BadRequest("id: you cannot delete yourself: let another administrator do it")

        def decide(txn: Txn) -> None:
            people.delete(txn, user_id, self._control.user_deletions)

        await call.write(decide, seconds=DELETE_SECONDS)
        return Status()

    async def list_sessions(self, call: Call) -> Response:
        now = time.time()
        people_by_id = {row.id: row for row in await self._control.records.all(users)}
        rows = await self._control.records.all(sessions)

        def info(row: Session) -> SessionRow | None:
            if row.expires_at <= now or row.user_id not in people_by_id:
                return None
            return SessionRow(
                id=row.id,
                user_id=row.user_id,
                username=people_by_id[row.user_id].username,
                display_name=people_by_id[row.user_id].display_name,
                created_at=row.created_at,
                expires_at=row.expires_at,
                ip_address=row.address,
                address=row.address,
            )

        newest_first = await in_order(rows, lambda row: (row.created_at, row.id), reverse=True)
        return json_array(newest_first, info)

    async def delete_session(self, call: Call) -> Status:
        session_id = call.query(SessionQuery).id

        def decide(txn: Txn) -> None:
            if people.end_session(txn, session_id) is None:
                raise NoSuchThing("no such session")

        await call.write(decide)
        return Status()


def _info(row: User) -> UserInfo:
    return UserInfo(
        id=row.id,
        user_id=row.id,
        username=row.username,
        display_name=row.display_name,
        is_admin=row.is_admin,
        created_at=row.created_at,
    )

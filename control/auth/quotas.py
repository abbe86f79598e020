"""Routes of quotas: users see their limits and usage, administrators set limits."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import asdict

from control.api import ADMIN, LOGGED_IN, Call, Control, NoSuchThing, Route, Txn
from control.api.internals import NOUNS, User, limits_of, override, overrides, users
from control.auth.shapes import NewLimits, Quota, QuotaInfo, UserQuery, UserQuotaInfo


class QuotaRoutes:
    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> Sequence[Route]:
        return [
            Route(
                "GET",
                "/api/quota",
                self.get_own,
                LOGGED_IN,
                "The caller's limits and usage",
                answer=QuotaInfo,
                description=(
                    "Uploads above a limit are refused with 507, or with 413 if they exceed the "
                    "limit by themselves; a container above it with 400."
                ),
            ),
            Route(
                "GET",
                "/admin/quotas",
                self.get,
                ADMIN,
                "A user's limits and usage",
                query=UserQuery,
                answer=UserQuotaInfo,
                errors=[404],
            ),
            Route(
                "PUT",
                "/admin/quotas",
                self.put,
                ADMIN,
                "Change a user's limits",
                query=UserQuery,
                body=NewLimits,
                answer=UserQuotaInfo,
                errors=[404, 507],
                description=(
                    "Limits that are left out stay as they are; null restores the default. A "
                    "limit below the usage deletes nothing; it only refuses more."
                ),
            ),
        ]

    async def get_own(self, call: Call) -> QuotaInfo:
        with self._control.records.read() as txn:
            return QuotaInfo(**self._quotas(txn, call.user.user_id))

    async def get(self, call: Call) -> UserQuotaInfo:
        with self._control.records.read() as txn:
            return self._info(txn, _user(txn, call))

    async def put(self, call: Call, body: NewLimits) -> UserQuotaInfo:
        changes = {name: limit for name, limit in asdict(body).items() if limit is not UNSET}

        def decide(txn: Txn) -> UserQuotaInfo:
            user = _user(txn, call)
            override(txn, user.id, changes)
            return self._info(txn, user)

        return await call.write(decide)

    def _info(self, txn: Txn, user: User) -> UserQuotaInfo:
        row = overrides.get(txn, user.id)
        changed = [] if row is None else [name for name in NOUNS if name in row.limits]
        quotas = self._quotas(txn, user.id)
        return UserQuotaInfo(**quotas, user_id=user.id, username=user.username, changed=changed)

    def _quotas(self, txn: Txn, user_id: str) -> dict[str, Quota]:
        limits = asdict(limits_of(txn, user_id, self._control.limits))
        used = self._control.used_by(txn, user_id)
        return {name: Quota(used.get(name, 0), limits[name]) for name in NOUNS}


def _user(txn: Txn, call: Call) -> User:
    """The user that the query names. Raises NoSuchThing."""
    user = users.get(txn, call.query(UserQuery).id)
    if user is None:
        raise NoSuchThing("no such user")
    return user

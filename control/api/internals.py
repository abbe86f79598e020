"""What the modules that come with the control plane use beside :mod:`control.api`: quotas, users
and what they log in with, locks between processes. It may change with any version, so that
third parties' modules do without.
"""

from __future__ import annotations

from control.api.route import SYSTEM
from control.errors import ENDED, InTheWay, InvalidToken, explain
from control.http import Explained, Proxies, Refusal, Slots, network_of
from control.identity import ids
from control.identity import users as people
from control.identity.access import LOGGED_IN_OR_COOKIE, decide, decide_target
from control.identity.credentials import (
    TICKET_SECONDS,
    Credentials,
    PasswordChanged,
    current_scopes,
    is_live,
)
from control.identity.passwords import (
    PASSWORD_BYTES_MAX,
    PASSWORD_LENGTH_MIN,
    PASSWORD_LETTERS_MIN,
    Passwords,
    check_password,
    make_hasher,
    new_password,
)
from control.identity.rows import (
    Secret,
    ServiceAccount,
    Session,
    Token,
    User,
    accounts,
    secrets,
    sessions,
    tokens,
    users,
)
from control.identity.scopes import SCOPES_BYTES_MAX, SCOPES_MAX, SEED_SCOPES, check_grants
from control.identity.secretfiles import locked, make_private_directory, read_secret, write_secret
from control.identity.users import (
    DISPLAY_NAME_BYTES_MAX,
    NAME_BYTES_MAX,
    NAME_SIGNS,
    clean_label,
    clean_username,
)
from control.metrics import Metrics
from control.paths import PARAMETER
from control.quota import usage
from control.quota.ledger import Claim, Ledger, Lock
from control.quota.limits import (
    LIMIT_MAX,
    NOUNS,
    Floor,
    check_quota,
    floors,
    limits_of,
    override,
    overrides,
)
from control.quota.usage import (
    Change,
    Tally,
    Trash,
    add_space,
    count,
    drop_space,
    forget_purge,
    trash_space,
    used_by,
)
from control.recent import Recent
from control.records import PAGE_ROWS, SharedLock, in_pages

__all__ = [
    "Change",
    "Claim",
    "Credentials",
    "DISPLAY_NAME_BYTES_MAX",
    "ENDED",
    "Explained",
    "Floor",
    "InTheWay",
    "InvalidToken",
    "LIMIT_MAX",
    "LOGGED_IN_OR_COOKIE",
    "Ledger",
    "Lock",
    "Metrics",
    "NAME_BYTES_MAX",
    "NAME_SIGNS",
    "NOUNS",
    "PAGE_ROWS",
    "PARAMETER",
    "PASSWORD_BYTES_MAX",
    "PASSWORD_LENGTH_MIN",
    "PASSWORD_LETTERS_MIN",
    "PasswordChanged",
    "Passwords",
    "Proxies",
    "Recent",
    "Refusal",
    "SCOPES_BYTES_MAX",
    "SCOPES_MAX",
    "SEED_SCOPES",
    "SYSTEM",
    "Secret",
    "ServiceAccount",
    "Session",
    "SharedLock",
    "Slots",
    "TICKET_SECONDS",
    "Tally",
    "Token",
    "Trash",
    "User",
    "accounts",
    "add_space",
    "check_grants",
    "check_password",
    "check_quota",
    "clean_label",
    "clean_username",
    "count",
    "current_scopes",
    "decide",
    "decide_target",
    "drop_space",
    "explain",
    "floors",
    "forget_purge",
    "ids",
    "in_pages",
    "is_live",
    "limits_of",
    "locked",
    "make_hasher",
    "make_private_directory",
    "network_of",
    "new_password",
    "override",
    "overrides",
    "people",
    "read_secret",
    "secrets",
    "sessions",
    "tokens",
    "trash_space",
    "usage",
    "used_by",
    "users",
    "write_secret",
]

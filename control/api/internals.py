"""What the modules that come with the control plane use beside :mod:`control.api`: quotas, users
and what they log in with, locks between processes. It may change with any version, so that
third parties' modules do without. All that is imported here is for them.
"""

from __future__ import annotations

from control.api.route import SYSTEM
from control.errors import ENDED, InTheWay, InvalidToken, explain
from control.http import (
    Explained,
    HeaderTexts,
    ParameterTexts,
    Proxies,
    Refusal,
    Slots,
    network_of,
)
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
from control.identity.keys import shared_secret
from control.identity.passwords import (
    PASSWORD_BYTES_MAX,
    PASSWORD_LENGTH_MIN,
    PASSWORD_RULE,
    Passwords,
    check_password,
    make_hasher,
    new_password,
)
from control.identity.rows import (
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
    save_floors,
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

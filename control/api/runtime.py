"""The state that the modules of one process share: settings, records, keys, credentials."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Never

import gfs
from control.api.workloads import WorkloadsOf
from control.identity.credentials import Credentials
from control.identity.keys import SigningKeys
from control.identity.opening import open_records
from control.identity.rows import IDENTITY
from control.identity.scopes import SEED_SCOPES, ScopeTable, merge
from control.metrics import Metrics
from control.quota.ledger import Ledger
from control.quota.limits import QUOTA, Limits, forget_limits, limits_of
from control.quota.usage import used_by
from control.records import Records, Schema, Txn
from control.settings import ControlSettings
from control.volatile import Volatile
from gfs.client import Client
from gfs.config import ClientSettings, load
from gfs.errors import GfsError, InvariantViolated

log = logging.getLogger(__name__)

#: Below the state directory.
DIRECTORY = "control"


#: Part of a transaction that deletes the user of this id.
UserDeletion = Callable[[Txn, str], None]
#: Part of the transaction that ends the storage namespace of this id.
NamespaceDeletion = Callable[[Txn, str], None]


class QuotaUsage(NamedTuple):
    """The usage of quotas that a module's rows account for."""

    #: The quotas: fields of :class:`Limits`, each accounted for by one module.
    names: Sequence[str]
    #: The usage of the user with this id, by those names.
    of: Callable[[Txn, str], Mapping[str, int]]


class Contribution:
    """The parts of a module that apply wherever it is installed, served or not: hosts may
    share the records and serve different modules."""

    name: ClassVar[str]
    #: The scopes that it defines; tokens can have them wherever it is installed.
    scopes: ClassVar[ScopeTable] = {}
    #: Its tables, which are opened wherever it is installed.
    schemas: ClassVar[Sequence[Schema]] = ()
    #: Deletes or changes the rows of a user who is deleted, in the same transaction.
    on_user_deleted: ClassVar[UserDeletion | None] = None
    #: Deletes the rows about a storage namespace that is deleted, in the same transaction.
    on_namespace_deleted: ClassVar[NamespaceDeletion | None] = None
    #: The usage of quotas that it accounts for.
    usage: ClassVar[QuotaUsage | None] = None


class Control:
    """The state of one process of the control plane.

    ``state`` is the cluster's state directory; durable state is below ``state/control``,
    and all processes of this machine share it. Modules of third parties must not use
    ``logins``, ``keys``, ``credentials`` and ``ledger``.
    """

    #: This and all attributes up to ``ledger`` exist only while the process serves.
    records: Records
    #: Facts that all processes of the machine share, and that may be lost.
    volatile: Volatile
    #: Failed logins. They are in a store of their own, since one user can fill it, and then
    #: it starts empty.
    logins: Volatile
    keys: SigningKeys
    credentials: Credentials
    #: The usage of users in files.
    ledger: Ledger

    def __init__(
        self,
        settings: ControlSettings,
        state: Path,
        installed: Sequence[type[Contribution]],
        *,
        master: str | None = None,
        key: bytes | Path | None = None,
        tls: Path | None = None,
        config: Path | None = None,
    ) -> None:
        self.settings = settings
        self.state = state
        self.directory = state / DIRECTORY
        #: The master's address for :meth:`connect`; None: the one in the state directory.
        self.master = master
        self.key = key
        self.tls = tls
        self.config = config
        #: The ports of modules that have their own: the number, and the name.
        self.ports: dict[int, str] = {}
        #: What runs for users: modules that run something add a function in their ``__init__``,
        #: and those that show it ask all of them.
        self.workloads: list[WorkloadsOf] = []
        self._installed = installed
        self.metrics = Metrics()
        #: The limits of users for whom no administrator set others.
        self.limits = load(Limits, "quota", file=config)
        self.scopes: ScopeTable = merge([SEED_SCOPES, *(kind.scopes for kind in installed)])

    if not TYPE_CHECKING:  # or mypy would not find misspelt names

        def __getattr__(self, name: str) -> Never:
            if name in Control.__annotations__:
                raise InvariantViolated(
                    f"control.{name} is only there while the process serves: use it in "
                    "Module.run and in handlers, not in __init__ or routes()"
                )
            raise AttributeError(f"'Control' object has no attribute {name!r}")

    def connect(self) -> AbstractAsyncContextManager[Client]:
        """Connect to the file system as :func:`gfs.connect` does, with the settings ``[client]``.

        Raises SettingsError for invalid settings; entering it raises what that raises.
        """
        settings = load(ClientSettings, "client", file=self.config)
        return gfs.connect(
            self.master, state=self.state, key=self.key, tls=self.tls, settings=settings
        )

    @property
    def user_deletions(self) -> list[UserDeletion]:
        """The functions to call in the transaction that deletes a user."""
        of_modules = [kind.on_user_deleted for kind in self._installed]
        return [forget_limits, *(deletion for deletion in of_modules if deletion is not None)]

    @property
    def namespace_deletions(self) -> list[NamespaceDeletion]:
        """The functions to call in the transaction that ends a storage namespace."""
        of_modules = [kind.on_namespace_deleted for kind in self._installed]
        return [deletion for deletion in of_modules if deletion is not None]

    @property
    def schemas(self) -> list[Schema]:
        """Those of all tables, of every module that is installed."""
        schemas: list[Schema] = [IDENTITY, QUOTA]
        for kind in self._installed:
            schemas += [schema for schema in kind.schemas if schema not in schemas]
        return schemas

    def limits_of(self, user_id: str) -> Limits:
        """The present limits of the user."""
        with self.records.read() as txn:
            return limits_of(txn, user_id, self.limits)

    def used_by(self, txn: Txn, user_id: str) -> dict[str, int]:
        """The usage of the user, by the names of :class:`Limits`."""
        found: dict[str, int] = {}
        for kind in self._installed:
            if kind.usage is not None:
                found |= kind.usage.of(txn, user_id)
        with self.ledger.read() as counted:
            files = used_by(counted, user_id)
        return found | {"bytes": files.bytes, "files": files.files}

    def _share_facts(self, stores: Mapping[str, Volatile]) -> None:
        """Post changes of facts to the other machines, and make theirs here."""

        def take(post: str) -> None:
            store = stores.get(post[:1])
            if store is not None:
                try:
                    store.take(base64.b64decode(post[1:]))
                except (GfsError, ValueError) as error:
                    log.warning("a fact of another machine cannot be kept: %s", error)

        for name, store in stores.items():
            store.posts = partial(self._post, name)
        self.records.take_posts(take)

    def _post(self, store: str, change: bytes) -> None:
        self.records.post(store + base64.b64encode(change).decode())

    async def fresh(self) -> None:
        """Wait until reads see all that was acknowledged before, by any control plane."""
        await self.records.fresh()
        await self.ledger.records.fresh()

    def check_tables(self) -> None:
        """Raise RecordsUpgraded if another release has upgraded the records meanwhile."""
        self.records.check_tables()
        self.ledger.records.check_tables()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the records and the rest for the time of a block. Blocks for some milliseconds.

        Raises StartupError if they cannot be opened, or a newer release wrote them.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self.settings
        with ExitStack() as stack:
            self.records = open_records(settings, self.directory, self.schemas)
            stack.callback(self.records.close)
            self.volatile = Volatile.open(self.directory / "volatile")
            stack.callback(self.volatile.close)
            self.logins = Volatile.open(self.directory / "logins")
            stack.callback(self.logins.close)
            if settings.records:
                self._share_facts({"v": self.volatile, "l": self.logins})
            usage = self.directory / "usage"
            self.ledger = Ledger.open(usage, settings.records, map_bytes=settings.map_bytes)
            stack.callback(self.ledger.close)
            if settings.records:
                self.keys = SigningKeys.open_shared(self.records)
            else:
                self.keys = SigningKeys.open(self.directory / "keys")
            self.credentials = Credentials(self.records, self.keys)
            yield

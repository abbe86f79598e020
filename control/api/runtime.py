"""What the modules of one process share: settings, records, keys, credentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Never

from control.identity.credentials import Credentials
from control.identity.keys import SigningKeys
from control.identity.rows import IDENTITY
from control.identity.scopes import SEED_SCOPES, ScopeTable, merge
from control.metrics import Metrics
from control.quota import QUOTA, Ledger, Limits, limits_of
from control.quota.limits import forget_limits
from control.quota.usage import used_by
from control.records import Records, Schema, Txn
from control.records.volatile import Volatile
from control.settings import ControlSettings
from gfs.config import load
from gfs.errors import InvariantViolated

#: Below the state directory.
DIRECTORY = "control"


#: Part of a transaction that deletes the user of this id.
UserDeletion = Callable[[Txn, str], None]
#: What the user of this id has, by the names of control.quota.Limits.
UsageOf = Callable[[Txn, str], dict[str, int]]


class Contribution:
    """What a module adds to the state that all share, wherever it is installed: hosts may
    share the records and serve different modules of them."""

    name: ClassVar[str]
    #: The scopes it defines; tokens with them can be made wherever it is installed.
    scopes: ClassVar[ScopeTable] = {}
    #: Its rows. Opened wherever it is installed.
    schemas: ClassVar[Sequence[Schema]] = ()
    #: What a user's deletion does to its rows, in the same transaction.
    on_user_deleted: ClassVar[UserDeletion | None] = None
    #: What a user has of each thing with a quota, as far as its rows show.
    usage: ClassVar[UsageOf | None] = None


class Control:
    """One process's share of the control plane.

    ``state`` is the cluster's state directory; what is durable is below
    ``state/control`` and shared by all processes of this machine.
    """

    #: This and the next are there while the process serves; not before.
    records: Records
    volatile: Volatile
    #: Failed logins, apart from the rest: one user can fill that store, which then starts
    #: empty.
    logins: Volatile
    keys: SigningKeys
    credentials: Credentials
    #: What users have in files.
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
        #: Where the file system is, for :func:`gfs.connect`; None: as the state says.
        self.master = master
        self.key = key
        self.tls = tls
        self.config = config
        self._installed = installed
        self.metrics = Metrics()
        #: The limits of users for whom no administrator set others.
        self.limits = load(Limits, "quota", file=config)
        self.scopes: ScopeTable = merge([SEED_SCOPES, *(kind.scopes for kind in installed)])

    if not TYPE_CHECKING:  # a mistake in a name stays one for mypy

        def __getattr__(self, name: str) -> Never:
            if name in Control.__annotations__:
                raise InvariantViolated(
                    f"control.{name} is only there while the process serves: use it in "
                    "Module.run and in handlers, not in __init__ or routes()"
                )
            raise AttributeError(f"'Control' object has no attribute {name!r}")

    @property
    def user_deletions(self) -> list[UserDeletion]:
        """To be called, all of them, in the transaction that deletes a user."""
        of_modules = [kind.on_user_deleted for kind in self._installed]
        return [forget_limits, *(deletion for deletion in of_modules if deletion is not None)]

    def limits_of(self, user_id: str) -> Limits:
        """What the user may have, as of now."""
        with self.records.read() as txn:
            return limits_of(txn, user_id, self.limits)

    def used_by(self, txn: Txn, user_id: str) -> dict[str, int]:
        """What the user has, by the names of :class:`Limits`."""
        found: dict[str, int] = {}
        for kind in self._installed:
            if kind.usage is not None:
                found |= kind.usage(txn, user_id)
        with self.ledger.read() as counted:
            files = used_by(counted, user_id)
        return found | {"bytes": files.bytes, "files": files.files}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The records, open. Blocks for some milliseconds.

        Raises StartupError when they cannot be opened, or are of newer code.
        """
        schemas: list[Schema] = [IDENTITY, QUOTA]
        for kind in self._installed:
            schemas += [schema for schema in kind.schemas if schema not in schemas]
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self.settings
        with ExitStack() as stack:
            self.records = Records.open(
                self.directory / "records",
                schemas,
                map_bytes=settings.map_bytes,
                sync=settings.sync,
            )
            stack.callback(self.records.close)
            self.volatile = Volatile.open(self.directory / "volatile")
            stack.callback(self.volatile.close)
            self.logins = Volatile.open(self.directory / "logins")
            stack.callback(self.logins.close)
            self.ledger = Ledger.open(self.directory / "usage", map_bytes=settings.map_bytes)
            stack.callback(self.ledger.close)
            self.keys = SigningKeys.open(self.directory / "keys")
            self.credentials = Credentials(self.records, self.keys)
            yield

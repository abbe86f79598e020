"""What the modules of one process share: settings, records, keys, credentials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from control.identity.credentials import Credentials
from control.identity.keys import SigningKeys
from control.identity.rows import IDENTITY
from control.identity.scopes import SEED_SCOPES, ScopeTable, merge
from control.metrics import Metrics
from control.module import Module, UserDeletion
from control.records import Records, Schema
from control.settings import ControlSettings
from control.volatile import Volatile

#: Below the state directory.
DIRECTORY = "control"


class Control:
    """One process's share of the control plane.

    ``state`` is the cluster's state directory; what is durable is below
    ``state/control`` and shared by all processes of this machine.
    """

    #: There while the process serves; not before.
    records: Records
    volatile: Volatile
    keys: SigningKeys
    credentials: Credentials

    def __init__(
        self,
        settings: ControlSettings,
        state: Path,
        installed: Sequence[type[Module]],
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
        self.scopes: ScopeTable = merge([SEED_SCOPES, *(kind.scopes for kind in installed)])

    @property
    def user_deletions(self) -> list[UserDeletion]:
        """To be called, all of them, in the transaction that deletes a user."""
        return [
            kind.on_user_deleted for kind in self._installed if kind.on_user_deleted is not None
        ]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The records, open. Blocks for some milliseconds.

        Raises StartupError when they cannot be opened, or are of newer code.
        """
        schemas: list[Schema] = [IDENTITY]
        for kind in self._installed:
            schemas += [schema for schema in kind.schemas if schema not in schemas]
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self.settings
        self.records = Records.open(
            self.directory / "records",
            schemas,
            map_bytes=settings.map_bytes,
            sync=settings.sync,
        )
        try:
            self.volatile = Volatile.open(self.directory / "volatile")
            try:
                self.keys = SigningKeys.open(self.directory / "keys")
                self.credentials = Credentials(self.records, self.keys)
                yield
            finally:
                self.volatile.close()
        finally:
            self.records.close()

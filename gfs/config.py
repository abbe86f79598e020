"""Typed settings: defaults < TOML file < ``GFS_*`` environment < flags.

One frozen struct per role. A TOML file has a table per role (``[master]``,
``[chunkserver]``, ``[client]``); the environment variable of a setting is
``GFS_<ROLE>_<SETTING>`` in capitals. An unknown name, in a role's table,
among the flags or in the environment, or an invalid value is a SettingsError that
names it. Only the variables that container platforms set for a
service of such a name (``GFS_MASTER_SERVICE_HOST``) are left alone.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gfs.blocks import BLOCK_BYTES, MIB
from gfs.errors import SettingsError
from gfs.variables import ADMIN_PASSWORD

SettingsT = TypeVar("SettingsT", bound="Settings")

DEFAULT_PORT = 9400

#: Variables of no role, and those of the tests.
VARIABLES = (
    *("GFS_MASTER", "GFS_STATE", "GFS_KEY_FILE", "GFS_TLS", "GFS_CONFIG"),
    *("GFS_LOG_LEVEL", "GFS_LOG_FORMAT", "GFS_DEBUG", ADMIN_PASSWORD),
    *("GFS_SEEDS", "GFS_SIMULATION_SCALE"),
)
TEST_PREFIX = "GFS_TEST_"

#: Variables that Kubernetes and Docker set in containers for a service named gfs-….
_OF_A_SERVICE = re.compile(
    r"GFS(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
    r"=.*|GFS(_\w+)?_PORT=(tcp|udp|sctp)://.*"
)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the roles' settings."""

    def check(self) -> None:
        """Raise SettingsError for values that contradict each other."""


#: A chunkserver carries out 32 long orders at once; copies must leave some of them to
#: deletions, verifications and writes.
CLONES_PER_SERVER_MAX = 16


class MasterSettings(Settings, frozen=True, kw_only=True):
    address: str = f"127.0.0.1:{DEFAULT_PORT}"
    #: Goal of new files that set no other.
    replication: int = 3
    #: A new chunk needs this many live servers (or its goal, if that is lower).
    replicas_min: int = 2
    heartbeat_seconds: float = 1.0
    #: A server without a heartbeat for this long is dead: its chunks are re-replicated.
    dead_seconds: float = 15.0
    #: When all remaining replicas of a chunk are possibly stale: how long the master waits
    #: for absent servers before it elects the best surviving replica.
    forgetful_seconds: float = 600.0
    lease_seconds: float = 60.0
    #: The primary stops this long before the lease ends by the master's clock.
    lease_margin_seconds: float = 5.0
    #: Chunks in no file are kept this long, so that a client can continue its upload
    #: after a restart of the master.
    garbage_grace_seconds: float = 60.0
    #: Reservations of a client that is silent for this long are discarded.
    client_silence_seconds: float = 60.0
    #: Deleted files can be undeleted for this long; 0: not at all.
    trash_seconds: float = 3 * 24 * 3600.0
    #: Clones running at once: for one target or source, and in all.
    clones_per_server: int = 2
    clones_total: int = 64
    #: Orders at once that move replicas for the balance of racks and disks; 0: none.
    moves_total: int = 4
    #: A server moves replicas to one whose disks are emptier by more than this share.
    balance_share: float = 0.1
    #: Answers to mutations are stored this long, for retries.
    answers_seconds: float = 120.0
    #: Upper bound of the metadata; address space, not memory or disk.
    map_bytes: int = 64 * 1024 * MIB
    #: Metadata commits wait for the disk. Off only for disposable data.
    sync: bool = True
    #: Run as a shadow master of the master at these addresses (with commas).
    shadow_of: str = ""
    #: A mutation is acknowledged when this many shadow masters have it on disk.
    replicas_before_ack: int = 0
    #: Who decides which process tries to be the master: etcd://HOST:PORT[,…]/NAME or
    #: kubernetes://NAMESPACE/LEASE; empty: an
    #: operator. All masters of a cluster are then started with the same settings.
    elect: str = ""
    #: The right to be the master ends so long after the engine that ``elect`` names gave it last.
    hold_seconds: float = 3.0
    #: A user of etcd, and the file with its password; a directory with ca.pem for TLS to it.
    elect_user: str = ""
    elect_password_file: str = ""
    elect_tls: str = ""
    #: A mutation that waits longer for them fails with an error that allows a retry.
    shadow_wait_seconds: float = 5.0
    #: Rows of the operation log kept for absent shadow masters.
    log_rows_max: int = 1_000_000
    #: An operation that takes so long is logged.
    slow_seconds: float = 1.0
    #: Where /metrics is served, HOST:PORT; empty: nowhere.
    metrics: str = ""

    def __post_init__(self) -> None:
        if self.elect and not self.replicas_before_ack:
            # One that is elected without hands must have everything that was acknowledged.
            msgspec.structs.force_setattr(self, "replicas_before_ack", 1)

    def check(self) -> None:
        _require(1 <= self.replication <= 64, "replication must be 1 to 64")
        _require(self.replicas_min >= 1, "replicas_min must be at least 1")
        _require(
            0 < self.heartbeat_seconds < self.dead_seconds,
            "heartbeat_seconds must be above 0 and below dead_seconds",
        )
        _require(
            0 < self.lease_margin_seconds < self.lease_seconds,
            "lease_margin_seconds must be above 0 and below lease_seconds",
        )
        _require(self.trash_seconds >= 0, "trash_seconds must not be negative")
        _require(
            1 <= self.clones_per_server <= CLONES_PER_SERVER_MAX,
            f"clones_per_server must be 1 to {CLONES_PER_SERVER_MAX}",
        )
        _require(self.moves_total >= 0, "moves_total must not be negative")
        _require(0 < self.balance_share <= 1, "balance_share must be above 0 and at most 1")
        _require(0 <= self.replicas_before_ack <= 16, "replicas_before_ack must be 0 to 16")
        _require(self.shadow_wait_seconds > 0, "shadow_wait_seconds must be above 0")
        _require(2 <= self.hold_seconds <= 600, "hold_seconds must be 2 to 600")
        _require(
            not (self.elect and self.shadow_of),
            "elect and shadow_of: leave shadow_of out: who is elected is the master, and the "
            "others are its shadow masters",
        )


class ChunkserverSettings(Settings, frozen=True, kw_only=True):
    address: str = "127.0.0.1:0"
    #: The master; or, with commas, all processes that may be it, shadow masters included.
    master: str = f"127.0.0.1:{DEFAULT_PORT}"
    rack: str = "default"
    #: "replicated": acknowledged means in the page cache of every live replica.
    durability: str = "replicated"
    #: Each of the two files of a disk's redo journal.
    journal_bytes: int = 16 * MIB
    #: New replicas of up to this size are packed, many in one file; 0: each has its own file.
    packed_bytes_max: int = BLOCK_BYTES
    #: A disk with less free space than this takes no new replicas.
    reserve_bytes: int = 256 * MIB
    #: Blocking disk calls at once, per disk.
    disk_threads: int = 8
    #: A call to a disk that has not returned after this long fails the disk.
    disk_hang_seconds: float = 8.0
    #: Clone and scrub traffic while clients are being served; idle: no limit.
    background_bytes_per_second: int = 64 * MIB
    #: All chunk files are checked (existence, length) once in this time.
    scan_seconds: float = 10.0
    #: All blocks are read and verified once in this time.
    scrub_seconds: float = 7 * 24 * 3600.0
    #: A chunk written in place, and then not again for this long, is synced. Until then a
    #: power cut makes this replica possibly stale; with "fsync" the write is in the redo
    #: journal until then.
    mark_seconds: float = 60.0
    #: An exchange without progress for this long is ended.
    idle_seconds: float = 30.0
    #: An operation that takes so long is logged.
    slow_seconds: float = 1.0
    #: Where /metrics is served, HOST:PORT; empty: nowhere.
    metrics: str = ""

    def check(self) -> None:
        _require(self.disk_hang_seconds >= 1, "disk_hang_seconds must be at least 1")
        _require(self.durability in ("replicated", "fsync"), "durability: replicated or fsync")
        _require(self.journal_bytes >= 1024, "journal_bytes must be at least 1024")
        _require(0 <= self.packed_bytes_max <= BLOCK_BYTES, "packed_bytes_max: 0 to 64 KiB")
        _require(self.disk_threads >= 1, "disk_threads must be at least 1")
        _require(self.mark_seconds > 0, "mark_seconds must be above 0")


class ClientSettings(Settings, frozen=True, kw_only=True):
    #: Buffers of all transfers of one client together; beyond it they wait.
    memory_bytes: int = 32 * MIB
    #: Data sent and not yet acknowledged, per file being written.
    window_bytes: int = 8 * MIB
    #: A chunkserver that sends nothing for this long is left out: a busy one sends a
    #: progress message every half second, as long as its disk makes progress.
    stall_seconds: float = 2.0
    #: If the next bytes of a read do not arrive within this, another replica is asked;
    #: doubled in each further round.
    hedge_seconds: float = 0.5
    #: How long calls are retried while the master or all replicas are away.
    retry_seconds: float = 30.0
    #: Files copied at once by put and get of directories.
    parallel_files: int = 16
    #: How long chunk locations are cached.
    location_seconds: float = 30.0

    def check(self) -> None:
        _require(self.memory_bytes >= 4 * MIB, "memory_bytes must be at least 4 MiB")
        _require(self.window_bytes >= BLOCK_BYTES, "window_bytes must be at least 64 KiB")


#: The file system's roles. Each has a table in the settings file and variables of its name.
ROLES: Mapping[str, type[Settings]] = {
    "master": MasterSettings,
    "chunkserver": ChunkserverSettings,
    "client": ClientSettings,
}


def split_addresses(text: str) -> list[str]:
    """``a:1,b:2`` as a list, each once."""
    return list(dict.fromkeys(part for each in text.split(",") if (part := each.strip())))


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise SettingsError(sentence)


def load(
    kind: type[SettingsT],
    role: str,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> SettingsT:
    """The settings of one role, merged from all four sources.

    ``flags`` whose value is None were not given. Raises SettingsError.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(read_table(file, role))
    environment = os.environ if environment is None else environment
    names = variables(kind, role)
    _refuse_unknown(environment, f"GFS_{role}_".upper(), names)
    values.update({names[given]: raw for given, raw in environment.items() if given in names})
    values.update({k: v for k, v in (flags or {}).items() if v is not None})
    try:
        settings = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{role} settings: {error}") from None
    settings.check()
    return settings


def variables(kind: type[Settings], role: str) -> dict[str, str]:
    """The environment variables of a role, and which setting each is for."""
    return {f"GFS_{role}_{name}".upper(): name for name in kind.__struct_fields__}


def check_environment(
    environment: Mapping[str, str] | None = None, others: Iterable[str] = ()
) -> None:
    """Raise SettingsError if a variable that starts with ``GFS_`` is unknown.

    ``others`` are roles of other packages. Their names are for :func:`load` to check,
    when they start.
    """
    environment = os.environ if environment is None else environment
    known = {name for role, kind in ROLES.items() for name in variables(kind, role)}
    prefixes = (TEST_PREFIX, *(f"GFS_{role}_".upper() for role in others))
    rest = {name: raw for name, raw in environment.items() if not name.startswith(prefixes)}
    _refuse_unknown(rest, "GFS_", (*VARIABLES, *sorted(known), *prefixes))


def _refuse_unknown(environment: Mapping[str, str], prefix: str, known: Iterable[str]) -> None:
    known = set(known)
    for name, raw in environment.items():
        if not name.startswith(prefix) or name in known or _OF_A_SERVICE.match(f"{name}={raw}"):
            continue
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
        hint = f"did you mean {near[0]}{'…' * near[0].endswith('_')}? " if near else ""
        raise SettingsError(
            f"{name} in the environment is not a setting: {hint}Correct it, or take it out "
            "(docs/settings.md has all settings)"
        )


def read_table(file: Path, role: str) -> dict[str, Any]:
    """The table of ``role`` in a settings file. Raises SettingsError."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from None
    table = tables.get(role, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{file}: [{role}] must be a table")
    return table


def default_state_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Where ``gfs up`` keeps its state and where clients look for it."""
    environment = os.environ if environment is None else environment
    if environment.get("GFS_STATE"):
        return Path(environment["GFS_STATE"])
    base = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "gfs"

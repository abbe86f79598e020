"""Settings of the control plane: flags, else ``GFS_CONTROL_*``, else table
``[control]`` of the ``--config`` file."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from control.http import Proxies
from gfs.blocks import KIB, MIB
from gfs.config import Settings
from gfs.errors import SettingsError

HOURS = 3600.0
#: Ten years.
SECONDS_MAX = 10 * 365 * 24 * HOURS

#: See :attr:`ControlSettings.descriptors`.
OTHER_DESCRIPTORS = 512

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


class ControlSettings(Settings, frozen=True, kw_only=True):
    #: HOST:PORT; port 0 takes any that is free.
    bind: str = "127.0.0.1:8080"
    #: HOST:PORT for S3; port 0 takes any that is free. Empty: S3 is not served.
    s3_bind: str = ""
    #: Processes that share the port.
    workers: int = 1
    #: Where users, tokens and namespaces are: postgresql://[USER@]HOST[:PORT]/DATABASE for
    #: several machines that share them. Empty: in the state directory.
    records: str = ""
    #: Names of modules, separated by commas; empty: all that are installed.
    modules: str = ""
    #: TLS: PEM files. Both or none.
    certfile: str = ""
    keyfile: str = ""
    #: Origins that browsers may call from (CORS), separated by commas. None: same origin only.
    origins: str = ""
    #: The URL that users see, if there is a proxy in front.
    public_url: str = ""
    #: Addresses or networks of the proxies in front, separated by commas, each of which
    #: appends its client's address to X-Forwarded-For.
    trusted_proxies: str = ""
    #: One line for each request, on stderr.
    access_log: bool = False
    session_seconds: float = 24 * HOURS
    #: Name of the administrator that is created when there is no user.
    admin_username: str = "admin"
    #: Failed logins for one user at one address within the window; 0: no limit.
    login_failures: int = 20
    login_window_seconds: float = 15 * 60.0
    #: Passwords hashed at once; others wait, up to the queue's bound.
    password_threads: int = 2
    password_queue: int = 64
    #: The memory of Argon2id for each hash: the second choice of RFC 9106.
    password_memory_mib: int = 64
    password_passes: int = 3
    #: JSON bodies above this are refused: they are decoded in one go on the event loop,
    #: a full one in up to 5 ms.
    json_bytes_max: int = 128 * KIB
    header_bytes_max: int = 64 * KIB
    #: Open connections of one worker, and those of one address among these.
    connections_max: int = 1024
    connections_per_address_max: int = 256
    #: The whole head of a request must have come within this time.
    header_seconds: float = 10.0
    keep_alive_seconds: float = 60.0
    #: A body or a response that makes no progress for this long is ended.
    body_stall_seconds: float = 30.0
    send_stall_seconds: float = 60.0
    #: How long requests under way may take to end when the process stops.
    graceful_seconds: float = 5.0
    #: Upper bound of the records; address space, not memory or disk.
    map_bytes: int = 4 * 1024 * MIB
    #: Commits wait for the disk. Off only for data that may be lost.
    sync: bool = True

    def check(self) -> None:
        for field in self.__struct_fields__:
            if field.endswith("_seconds"):
                self._check_seconds(field, getattr(self, field))
        for field in self.__struct_fields__:
            if field.endswith(("_bytes", "_max")) and getattr(self, field) < 1:
                raise SettingsError(f"{field} must be at least 1")
        if self.workers < 1 or self.workers > 256:
            raise SettingsError("workers must be 1 to 256")
        if bool(self.certfile) != bool(self.keyfile):
            raise SettingsError("certfile and keyfile: give both, or none")
        if self.records:
            _check_records(self.records)
        _ = self.proxies
        if not 0 <= self.login_failures <= 100:
            raise SettingsError("login_failures must be 0 to 100")
        for origin in self.origin_list:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"origins: {origin!r} is not an origin: write https://host or "
                    "https://host:port, without a path"
                )
        if self.password_threads < 1 or self.password_queue < 1:
            raise SettingsError("password_threads and password_queue must be at least 1")
        if not 8 <= self.password_memory_mib <= 4096 or not 1 <= self.password_passes <= 100:
            raise SettingsError(
                "password_memory_mib must be 8 to 4096, and password_passes 1 to 100"
            )

    def _check_seconds(self, field: str, value: float) -> None:
        """Check a time in seconds. NaN is refused, too."""
        if field == "graceful_seconds" and value == 0:
            return
        if not 0 < value <= SECONDS_MAX:
            raise SettingsError(f"{field} must be above 0 and at most {SECONDS_MAX:g}")

    @property
    def descriptors(self) -> int:
        """How many open files and sockets a worker may need, but for those of the gateway of
        containers, which has what is left: two for each connection (its own, and one that serves
        it), and those of records, logs, servers of the cluster and backends of compute."""
        return 2 * self.connections_max + OTHER_DESCRIPTORS

    @property
    def module_names(self) -> list[str]:
        return _split(self.modules)

    @property
    def proxies(self) -> Proxies:
        """Raises SettingsError."""
        try:
            return Proxies(_split(self.trusted_proxies))
        except ValueError as error:
            raise SettingsError(
                f"trusted_proxies: {error}; give the proxies' addresses, or networks like "
                "10.0.0.0/24 (not, as before, how many they are)"
            ) from None

    @property
    def origin_list(self) -> list[str]:
        """The origins as browsers write them: in lower case, without a slash at the end."""
        return [origin.lower().rstrip("/") for origin in _split(self.origins)]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _check_records(url: str) -> None:
    """Refuse a URL with a password: everybody on the machine can read the list of processes."""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    ports = "".join(each.rpartition("]")[2].partition(":")[2] for each in hosts)
    try:
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        options = None
    # A password with a "/", "?" or "#" ends the host: libpq would print the rest of it.
    is_cut = (ports and not ports.isdecimal()) or "@" in parts.path + parts.fragment
    if parts.scheme not in ("postgresql", "postgres") or is_cut or options is None:
        raise SettingsError("records: this is not postgresql://[USER@]HOST[:PORT]/DATABASE")
    if parts.password or any(each.endswith("password") for each in options):
        raise SettingsError(
            "records: the URL must not contain a password: write it to ~/.pgpass, or to a file "
            "that ?passfile=FILE names (mode 0600), as HOST:PORT:DATABASE:USER:PASSWORD"
        )

"""The names of the file system as fsspec has them: addresses, what is there, directories."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from gfs.client import Entry, as_built_in, sync
from gfs.errors import (
    InvalidArgument,
    InvalidName,
    NotADirectory,
    NotFound,
)
from gfs.fsspec.connections import Place, client_of, disconnect

PROTOCOL = "gfs"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):[0-9]{1,5}")
PORT_MAX = 65535
_DIGITS = re.compile(r"[0-9]{1,3}")
#: What is in the file of a key.
_KEY = re.compile(r"\s*[0-9A-Fa-f]{64}\s*")
#: Options of every file system that mean nothing to one without caches and asyncio.
_FSSPEC_OPTIONS = frozenset(
    {
        *("asynchronous", "loop", "batch_size", "add_docs", "add_aliases"),
        *("use_listings_cache", "listings_expiry_time", "max_paths"),
    }
)


def split_url(url: str) -> tuple[list[str], str]:
    """The addresses and the path of ``gfs://[HOST:PORT[,HOST:PORT]]/path``, or of a path alone.

    Raises InvalidArgument.
    """
    if not url.startswith(f"{PROTOCOL}://"):
        path = url.removeprefix(f"{PROTOCOL}::")
        addresses = []
    else:
        where, _, path = url.removeprefix(f"{PROTOCOL}://").partition("/")
        addresses = where.split(",") if where else []
    if any("@" in address for address in addresses):
        raise InvalidArgument("a URL names no user or key: say key=FILE in the storage options")
    for address in addresses:
        if not _is_address(address):
            raise InvalidArgument(
                f"{url}: {address!r} is not HOST:PORT: write gfs://HOST:PORT/path, or gfs:///path "
                "for the cluster that GFS_MASTER or the state directory names"
            )
    return addresses, "/" + path.strip("/") if path.strip("/") else "/"


class Names(AbstractFileSystem):
    """Connected at the first call. What is asked for is what the master says now."""

    protocol = PROTOCOL
    root_marker = "/"

    def __init__(
        self,
        master: str | Sequence[str] | None = None,
        *,
        state: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        tls: str | os.PathLike[str] | None = None,
        replication: int | str | None = None,
        retry_seconds: float | None = None,
        **options: Any,
    ) -> None:
        unknown = sorted(options.keys() - _FSSPEC_OPTIONS)
        if unknown:
            raise TypeError(
                f"gfs has no option {unknown[0]!r}: there are master, state, key, tls, "
                "replication and retry_seconds"
            )
        if isinstance(key, bytes) or (isinstance(key, str) and _KEY.fullmatch(key)):
            raise InvalidArgument("key is the name of the file with the cluster key, not the key")
        addresses = [a.strip() for a in master.split(",")] if isinstance(master, str) else master
        for address in addresses or ():
            if not _is_address(address):
                raise InvalidArgument(f"master={address!r}: give HOST:PORT")
        if retry_seconds is not None and not _is_seconds(retry_seconds):
            raise InvalidArgument(f"retry_seconds={retry_seconds!r}: give a number of seconds")
        super().__init__(**options)
        self.replication = _goal(replication)
        self._place = Place(
            tuple(addresses) if addresses else None,
            _path_or_none(state),
            _path_or_none(key),
            _path_or_none(tls),
            retry_seconds,
        )

    def __repr__(self) -> str:
        where = self._place.master or (self._place.state,)
        return f"{type(self).__name__}({','.join(filter(None, where))})"

    @property
    def client(self) -> sync.SyncClient:
        """The blocking client, with all that fsspec has no name for. It belongs to all file
        systems of this process with the same options."""
        return client_of(self._place)

    def close(self) -> None:
        """Disconnect this process from the cluster; the next call connects again. Files that
        are being written are discarded."""
        disconnect(self._place)

    @property
    def fsid(self) -> str:
        return f"{PROTOCOL}_{self.client.status().cluster}"

    # --- URLs ---------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, (list, tuple)):
            return [cls._strip_protocol(each) for each in path]
        return split_url(stringify_path(path))[1]

    def unstrip_protocol(self, name: str) -> str:
        where = ",".join(self._place.master or ())
        # fsspec's rsync puts a path in the place of another: the root ends with no slash either.
        return f"{PROTOCOL}://{where}{self._strip_protocol(name).rstrip('/')}"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        addresses, _ = split_url(stringify_path(path))
        return {"master": ",".join(addresses)} if addresses else {}

    # --- what is there ------------------------------------------------------------------

    @staticmethod
    def info_of(entry: Entry) -> dict[str, Any]:
        """An entry as fsspec has it; times in seconds since 1970, as local files have them."""
        return {
            "name": entry.path,
            "size": entry.length,
            "type": entry.kind,
            "created": entry.created_ns / 1e9,
            "mtime": entry.modified_ns / 1e9,
            "ino": entry.inode,
            "replication": entry.replication,
            "digest": entry.digest.hex(),
            "attributes": dict(entry.attributes),
        }

    def _stat(self, path: str) -> Entry:
        return self.client.stat(self._strip_protocol(path))

    def _kind(self, path: str) -> str:
        """``"file"``, ``"directory"``, or nothing. A cluster that does not answer is no answer."""
        try:
            return self._stat(path).kind
        except (NotFound, NotADirectory, InvalidName):
            return ""

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return self.info_of(self._stat(path))

    def exists(self, path: str, **kwargs: Any) -> bool:
        return bool(self._kind(path))

    def isdir(self, path: str) -> bool:
        return self._kind(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._kind(path) == "file"

    def created(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._stat(path).created_ns / 1e9, UTC)

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._stat(path).modified_ns / 1e9, UTC)

    def ukey(self, path: str) -> str:
        """Differs whenever the file was replaced or changed; a rename does not count."""
        entry = self._stat(path)
        facts = entry.inode, entry.length, entry.modified_ns, entry.digest.hex()
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def checksum(self, path: str) -> int:
        return int(self.ukey(path), 16)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        try:
            entries = self.client.list(path)
        except NotADirectory:
            entries = [self._stat(path)]
        return [self.info_of(entry) if detail else entry.path for entry in entries]

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], object] = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        def omit(error: OSError) -> None:
            # What cannot be listed now is there all the same.
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        return super().walk(  # type: ignore[no-any-return]
            path, maxdepth, topdown, omit if on_error == "omit" else on_error, **kwargs
        )

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(NotFound, NotADirectory, InvalidName):
            root = self._stat(path)
            if withdirs or root.kind == "file":
                found[path] = self.info_of(root)
            for entry in _below(self.client, path, maxdepth) if root.kind == "directory" else ():
                if withdirs or entry.kind == "file":
                    found[entry.path] = self.info_of(entry)
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **kwargs: Any,
    ) -> Any:
        found = self.find(path, maxdepth, withdirs, detail=True, **kwargs)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    # --- directories --------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        self.client.mkdir(self._strip_protocol(path), parents=create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.client.mkdir(self._strip_protocol(path), parents=True, exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        path = self._strip_protocol(path)
        entry = self.client.stat(path)
        if entry.kind != "directory":
            raise as_built_in(NotADirectory(f"{path}: is not a directory"), path)
        self.client.delete(path, expect=entry.inode)


def _is_address(text: str) -> bool:
    return bool(_ADDRESS.fullmatch(text)) and 0 < int(text.rpartition(":")[2]) <= PORT_MAX


def _goal(value: int | str | None) -> int | None:
    """Also of digits, since text is all that the environment (FSSPEC_GFS_REPLICATION) has."""
    number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
    if number is None or (type(number) is int and number >= 0):
        return number
    raise InvalidArgument(f"replication={value!r:.100}: give a number of replicas")


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < math.inf


def _path_or_none(name: str | os.PathLike[str] | None) -> str | None:
    return None if name is None else os.fspath(name)


def _below(client: sync.SyncClient, path: str, maxdepth: int | None) -> Iterator[Entry]:
    pending = [(path, 1)]
    while pending:
        directory, depth = pending.pop()
        try:
            for entry in client.scan(directory):
                yield entry
                if entry.kind == "directory" and (maxdepth is None or depth < maxdepth):
                    pending.append((entry.path, depth + 1))
        except (NotFound, NotADirectory):
            continue  # it was there a moment ago

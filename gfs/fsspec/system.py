"""The file system as fsspec has it, over the blocking client.

Nothing is cached but locations of chunks: a listing is what the master says now. What fsspec
does file by file goes in the client's batches, ``mv`` is a rename, and a copy is a snapshot,
which copies no data.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.compression import compr
from fsspec.core import get_compression, has_magic
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from gfs.blocks import KIB, Buffer
from gfs.client import Entry, LocalPart, as_built_in, sync
from gfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    GfsError,
    InvalidArgument,
    IsADirectory,
    NotFound,
)
from gfs.fsspec.bulk import BATCHED_BYTES_MAX, Planned, batches
from gfs.fsspec.files import (
    WRITE_BUFFER_BYTES,
    Compressed,
    Delayed,
    Reader,
    Text,
    Updater,
    Writer,
    known_cache,
)
from gfs.fsspec.names import Names

#: Up to this, the bytes of one of many files are copied; others share their chunks with the copy.
COPIED_BYTES_MAX = 64 * KIB
_TEXT_OPTIONS = ("encoding", "errors", "newline")
_MODES = "rb, wb, xb, ab, r+b, and the same as text"


class GfsFileSystem(Names):
    """A cluster, for fsspec.

    Args:
        master: ``HOST:PORT`` of the masters, with commas or as a list; a URL has them, too.
            Default: as :func:`gfs.client.connect`.
        state: the state directory of a cluster on this machine.
        key: the *file* with the cluster key. A key itself is refused: the options of a file
            system are printed, pickled and sent to other machines.
        tls: the directory with the cluster's ``ca.pem``.
        replication: the goal of files that are written, instead of the cluster's.
        retry_seconds: how long a call goes on while the cluster is away.

    Connects at the first call, once in each process. Safe for threads, fork, spawn and pickle.
    """

    transaction_type = Delayed

    # --- one file -----------------------------------------------------------------------

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        path = self._strip_protocol(path)
        text = "b" not in mode
        options = {name: kwargs.pop(name) for name in _TEXT_OPTIONS if text and name in kwargs}
        binary = mode.replace("t", "") + "b" if text else mode
        compression = get_compression(path, compression)
        autocommit = kwargs.pop("autocommit", not self._intrans)
        file = opened = self._open(
            path, binary, block_size, autocommit, cache_options=cache_options, **kwargs
        )
        try:
            if compression is not None:
                compress = compr[compression]
                file = compress(file, mode="r") if "r" in mode else Compressed(file, compress)
            if text:
                file = Text(file, **options)
        except BaseException:
            opened.discard()  # or an empty file would appear when nobody knows it any more
            raise
        if not autocommit and "r" not in mode:
            self.transaction.files.append(file)
        return file

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        cache_type: str | None = None,
        replication: int | None = None,
        size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if kwargs:
            raise TypeError(f"{path}: open has no option {min(kwargs)!r}")
        if not known_cache(cache_type):
            raise InvalidArgument(f"{path}: cache_type={cache_type!r} is unknown to fsspec")
        plain = "".join(sorted(mode.replace("b", "")))
        if plain == "r":
            file = self.client.open(path, "r")
            assert file.entry is not None
            info = self.info_of(file.entry)
            return Reader(self, file, info, block_size, cache_type, cache_options)
        if plain in ("w", "x"):
            file = self.client.open(path, plain, replication=replication or self.replication)
            return Writer(self, file, mode, publish=autocommit)
        if plain not in ("a", "+r"):
            raise InvalidArgument(f"{path}: mode {mode!r} is unknown: there are {_MODES}")
        if not autocommit:
            raise InvalidArgument(
                f"{path}: mode {mode!r} changes the file at once, which a transaction cannot delay"
            )
        if plain == "+r":
            return Updater(self, self.client.open(path, "r+"), mode)
        with contextlib.suppress(AlreadyExists):
            self.client.put(b"", path, expect=0, replication=replication or self.replication)
        return Writer(self, self.client.open(path, "r+"), mode, publish=True)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file; of one that is there, the time of change is now."""
        try:
            self.pipe_file(path, b"", mode="overwrite" if truncate else "create")
        except AlreadyExists:
            self.client.set_attributes(self._strip_protocol(path), modified_ns=time.time_ns())

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        if start is None and end is None:
            return self.client.get(path)
        (found,) = self.client.get_ranges([(path, start, end)])
        if isinstance(found, GfsError):
            raise found
        return found

    def pipe_file(self, path: str, value: Buffer, mode: str = "overwrite", **kwargs: Any) -> None:
        if self._intrans:
            with self.open(path, "wb" if _overwrites(mode) else "xb") as file:
                file.write(_bytes_like(value))
            return
        self.client.put(
            _bytes_like(value),
            self._strip_protocol(path),
            replication=self.replication,
            overwrite=_overwrites(mode),
        )

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: BinaryIO | None = None,
        **kwargs: Any,
    ) -> None:
        """A local file has its name when it is complete."""
        rpath = self._strip_protocol(rpath)
        entry = self.client.stat(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if entry.kind == "directory":
            if outfile is not None:
                raise as_built_in(IsADirectory(f"{rpath}: is a directory"), rpath)
            os.makedirs(lpath, exist_ok=True)
            return
        callback.set_size(entry.length)
        if outfile is None:
            target = os.path.realpath(lpath)
            if os.path.exists(target) and not os.path.isfile(target):
                with open(target, "wb", buffering=0) as device:  # a pipe, or /dev/null
                    self.client.get(rpath, device, progress=callback.relative_update)
                return
        else:
            target = outfile
        self.client.get(rpath, target, overwrite=True, progress=callback.relative_update)

    def put_file(
        self,
        lpath: Any,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        rpath = self._strip_protocol(rpath)
        if not isfilelike(lpath):
            if os.path.isdir(lpath):
                self.makedirs(rpath, exist_ok=True)
                return
            callback.set_size(os.path.getsize(lpath))
        if self._intrans:
            with contextlib.ExitStack() as stack:
                local = lpath if isfilelike(lpath) else stack.enter_context(open(lpath, "rb"))
                mode = "wb" if _overwrites(mode) else "xb"
                file = stack.enter_context(self.open(rpath, mode))
                while piece := local.read(WRITE_BUFFER_BYTES):
                    file.write(piece)
                    callback.relative_update(len(piece))
            return
        self.client.put(
            lpath,
            rpath,
            replication=self.replication,
            progress=callback.relative_update,
            overwrite=_overwrites(mode),
        )

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """A copy shares the chunks of its source until one of them is written."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if self._stat(source).kind == "directory":
            self.makedirs(target, exist_ok=True)
        elif source != target:
            _share(self.client, source, target)

    def rm_file(self, path: str) -> None:
        _raise_first(_delete_files(self.client, [self._strip_protocol(path)]))

    _rm = rm_file

    # --- many files ---------------------------------------------------------------------

    def cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any
    ) -> Any:
        paths = self.expand_path(path, recursive=recursive)
        if not isinstance(path, (list, tuple)) and paths == [self._strip_protocol(path)]:
            entry_kind = self._kind(paths[0]) if recursive else ""
            if entry_kind != "directory":
                return self.cat_file(paths[0], **kwargs)
        if recursive:
            paths = [
                p for p, kind in zip(paths, self.kinds(paths), strict=True) if kind != "directory"
            ]
        if kwargs:
            found = self.cat_ranges(paths, kwargs.get("start"), kwargs.get("end"))
        else:
            found = self.client.get_many(paths)
        return dict(_kept(paths, found, on_error))

    def kinds(self, paths: list[str]) -> list[str]:
        """``"file"``, ``"directory"``, or nothing, of each."""
        return [e.kind if isinstance(e, Entry) else "" for e in self.client.stat_many(paths)]

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """``max_gap`` is not needed, since ranges are not merged."""
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        begins = starts if isinstance(starts, list) else [starts] * len(paths)
        stops = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(begins) == len(stops):
            raise ValueError(f"{len(paths)} paths, {len(begins)} starts and {len(stops)} ends")
        names = self._strip_protocol(paths)
        found = self.client.get_ranges(zip(names, begins, stops, strict=True))
        if on_error != "return":
            _raise_first(found)
        return found

    def pipe(self, path: Any, value: Buffer | None = None, **kwargs: Any) -> None:
        if not isinstance(path, dict):
            self.pipe_file(path, value if value is not None else b"", **kwargs)
            return
        overwrite = _overwrites(kwargs.get("mode", "overwrite"))
        if self._intrans:
            for name, data in path.items():
                self.pipe_file(name, data, **kwargs)
            return
        items = {self._strip_protocol(name): _bytes_like(data) for name, data in path.items()}
        _raise_first(
            self.client.put_many(items.items(), overwrite=overwrite, replication=self.replication)
        )

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Callback = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        plan = Planned(self)
        AbstractFileSystem.get(plan, rpath, lpath, recursive=recursive, maxdepth=maxdepth)
        callback.set_size(len(plan.pairs))
        pairs = [(self._strip_protocol(source), target) for source, target in plan.pairs]
        entries = self.client.stat_many([source for source, _ in pairs])
        small: list[tuple[Entry, str]] = []
        for entry, (source, target) in zip(entries, pairs, strict=True):
            if isinstance(entry, GfsError):
                raise entry
            if entry.kind == "file" and entry.length <= BATCHED_BYTES_MAX and _is_plain(target):
                small.append((entry, target))
                continue
            with callback.branched(source, target) as child:
                self.get_file(source, target, callback=child, **kwargs)
            callback.relative_update()
        for batch in batches(small, lambda each: each[0].length):
            found = self.client.get_many([entry.path for entry, _ in batch])
            for (entry, target), data in zip(batch, found, strict=True):
                if isinstance(data, GfsError):
                    raise data
                with callback.branched(entry.path, target) as child:
                    child.set_size(len(data))
                    _write_local(target, data)
                    child.relative_update(len(data))
                callback.relative_update()

    def put(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool = False,
        callback: Callback = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        plan = Planned(self)
        AbstractFileSystem.put(plan, lpath, rpath, recursive=recursive, maxdepth=maxdepth)
        callback.set_size(len(plan.pairs))
        overwrite = _overwrites(kwargs.get("mode", "overwrite"))
        small: list[tuple[str, str]] = []
        for source, target in plan.pairs:
            is_small = os.path.isfile(source) and os.path.getsize(source) <= BATCHED_BYTES_MAX
            if is_small and not self._intrans:
                small.append((source, self._strip_protocol(target)))
                continue
            with callback.branched(source, target) as child:
                self.put_file(source, target, callback=child, **kwargs)
            callback.relative_update()
        for batch in batches(small, lambda pair: os.path.getsize(pair[0])):
            # Of two with one target, the later one remains, as it would one after another.
            items = {target: _read_local(source) for source, target in batch}
            _raise_first(
                self.client.put_many(
                    items.items(), overwrite=overwrite, replication=self.replication
                )
            )
            callback.relative_update(len(batch))

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **kwargs: Any,
    ) -> None:
        """A directory whose target is free is copied whole, at one instant. Of other files, the
        bytes of small ones are copied, in batches, which costs less than a snapshot of each; the
        rest share their chunks. With ``on_error="ignore"``, which ``recursive`` means too, a file
        that is gone by then is left out."""
        plan = Planned(self)
        AbstractFileSystem.copy(plan, path1, path2, recursive, maxdepth, **kwargs)
        strip = self._strip_protocol
        # Of two with one target, the later one remains, as it would one after another.
        sources = {strip(target): strip(source) for source, target in plan.pairs}
        has_all = recursive and maxdepth is None and isinstance(path1, str)
        ignored = [NotFound] * (on_error == "ignore" or (on_error is None and recursive))
        whole: set[str] = set()
        small: list[tuple[Entry, str]] = []
        entries = self.client.stat_many(sources.values())
        for (target, source), entry in zip(sources.items(), entries, strict=True):
            if source == target or not whole.isdisjoint(_above(source)):
                continue
            with contextlib.suppress(*ignored):
                if isinstance(entry, GfsError):
                    raise entry
                if entry.kind == "directory":
                    if has_all and _copied_whole(self.client, source, target):
                        whole.add(source)
                    else:
                        self.makedirs(target, exist_ok=True)
                elif entry.length > COPIED_BYTES_MAX or entry.attributes or entry.appended:
                    _share(self.client, source, target)
                else:
                    small.append((entry, target))
        for batch in batches(small, lambda each: each[0].length):
            goals: dict[int, list[tuple[str, bytes]]] = {}
            found = self.client.get_many([entry.path for entry, _ in batch])
            for (entry, target), data in zip(batch, found, strict=True):
                with contextlib.suppress(*ignored):
                    if isinstance(data, GfsError):
                        raise data
                    goals.setdefault(entry.replication, []).append((target, data))
            for goal, items in goals.items():
                _raise_first(self.client.put_many(items, overwrite=True, replication=goal))

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Rename files and directories, each at one instant. Into ``path2`` if that is a
        directory or ends with a slash."""
        if isinstance(path1, (list, tuple)) and isinstance(path2, (list, tuple)):
            pairs = list(zip(path1, path2, strict=True))
        else:
            several = isinstance(path1, (list, tuple)) or has_magic(stringify_path(path1))
            sources = self.expand_path(path1) if several else [path1]
            into = several or stringify_path(path2).endswith("/") or self.isdir(path2)
            under = self._strip_protocol(path2).rstrip("/")
            pairs = [
                (
                    each,
                    f"{under}/{self._strip_protocol(each).rpartition('/')[2]}" if into else path2,
                )
                for each in sources
            ]
        for source, target in pairs:
            source, target = self._strip_protocol(source), self._strip_protocol(target)
            if source != target:
                self.client.rename(source, target, replace=True, parents=True)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files, and with ``recursive`` directories with all that is in them, each at
        one instant; they can be undeleted for a while."""
        if recursive and maxdepth is not None:
            for each in reversed(self.expand_path(path, recursive=True, maxdepth=maxdepth)):
                if self.isdir(each):
                    with contextlib.suppress(DirectoryNotEmpty):
                        self.rmdir(each)
                else:
                    self.rm_file(each)
            return
        paths = self.expand_path(path)
        if recursive:
            # What is below another goes with it.
            given = set(paths)
            tops = [path for path in paths if given.isdisjoint(_above(path))]
            _raise_first(self.client.delete_many(tops, recursive=True))
        else:
            _raise_first(_delete_files(self.client, paths))


def _above(path: str) -> Iterator[str]:
    """The directories that a path is in."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def _overwrites(mode: str) -> bool:
    if mode not in ("overwrite", "create"):
        raise InvalidArgument(f"mode={mode!r}: there are overwrite and create")
    return mode == "overwrite"


def _bytes_like(value: Any) -> Buffer:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value
    return memoryview(value).cast("B")


def _kept(paths: list[str], found: Sequence[Any], on_error: str) -> Iterator[tuple[str, Any]]:
    for path, data in zip(paths, found, strict=True):
        if isinstance(data, Exception):
            if on_error == "raise":
                raise data
            if on_error == "omit":
                continue
        yield path, data


def _raise_first(found: Sequence[object]) -> None:
    for each in found:
        if isinstance(each, Exception):
            raise each


def _share(client: sync.SyncClient, source: str, target: str) -> None:
    try:
        client.snapshot(source, target, parents=True)
    except AlreadyExists:
        aside = f"{target.rpartition('/')[0]}/.copy-{secrets.token_hex(8)}"
        try:
            client.snapshot(source, aside)
            client.rename(aside, target, replace=True)
        except BaseException:
            with contextlib.suppress(NotFound):
                client.delete(aside, now=True)
            raise


def _copied_whole(client: sync.SyncClient, source: str, target: str) -> bool:
    try:
        client.snapshot(source, target, parents=True)
    except (AlreadyExists, InvalidArgument):  # it is there, or within the source
        return False
    return True


def _delete_files(client: sync.SyncClient, paths: list[str]) -> list[GfsError | None]:
    """Only files: the inodes say that what is deleted is what was looked at."""
    found: list[GfsError | None] = []
    files: list[Entry] = []
    for path, entry in zip(paths, client.stat_many(paths), strict=True):
        if isinstance(entry, GfsError):
            found.append(entry)
        elif entry.kind == "directory":
            found.append(as_built_in(IsADirectory(f"{path}: is a directory"), path))
        else:
            files.append(entry)
    inodes = [entry.inode for entry in files]
    return found + client.delete_many([entry.path for entry in files], expect=inodes)


def _is_plain(target: object) -> bool:
    """Whether a local path has a file, or nothing: no directory, device or open file."""
    if isfilelike(target):
        return False
    return os.path.isfile(target) or not os.path.lexists(target)  # type: ignore[arg-type]


def _read_local(source: str) -> bytes:
    with open(source, "rb") as file:
        return file.read()


def _write_local(target: str, data: bytes) -> None:
    part = LocalPart(os.path.realpath(target))
    try:
        part.open()
        part.write(memoryview(data))
        part.commit(overwrite=True)
    finally:
        part.discard()

"""The calls of a client on bytes: files as a whole, many files at once, open ones, and records."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import suppress
from typing import Literal, overload

from gfs.blocks import Buffer
from gfs.client import many, transfer
from gfs.client.append import Appends, Record, read_records
from gfs.client.core import ClientCore, one_request
from gfs.client.files import ExistingFile, File, NewFile, normal_mode
from gfs.client.items import all_of, bytes_in, look_at_path
from gfs.client.names import Names
from gfs.client.publish import PublishOptions, check_expect, goal_of
from gfs.client.read import FileMap, check_path
from gfs.client.rescue import Rescued, rescue
from gfs.errors import (
    AlreadyExists,
    GfsError,
    InvalidArgument,
    IsADirectory,
    NotFound,
)
from gfs.protocol.messages import Entry


class Contents(Names):
    """What reads and writes the bytes of files."""

    def __init__(self, core: ClientCore, appends: Appends) -> None:
        super().__init__(core)
        self._appends = appends

    @one_request
    async def put(
        self,
        source: transfer.Source,
        path: str,
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
        progress: transfer.Progress | None = None,
        attributes: Mapping[str, str] | None = None,
        expect: int | None = None,
        modified_ns: int = 0,
    ) -> Entry:
        """Store ``source`` as ``path``; acknowledged when it returns. Files up to 64 KiB that are
        stored by several tasks at the same time share messages, and each is acknowledged by
        itself.

        Args:
            source: a local path, bytes, a binary file object, or an async
                iterator of bytes.
            overwrite: replace a file of that name, atomically, at the end.
            replication: the goal for this file, instead of the cluster's.
            parents: make missing directories. A path: only below that directory, which
                must exist when the file is published (NotFound).
            progress: called with each number of bytes taken from the source
                (negative when an upload starts over).
            attributes: up to 16 short texts stored with the file, names and values at
                most 1,024 bytes together; every Entry of the file has them.
            expect: the condition on the path, instead of ``overwrite``: 0, nothing is
                there (else AlreadyExists); or the ``inode`` of the file to replace
                (FileChanged if another one is there, or none).
            modified_ns: the file's time of change, in nanoseconds since 1970; 0: the present
                time.

        Raises AlreadyExists, IsADirectory, NotADirectory, InvalidName,
        InvalidArgument, FileChanged, NotFound, NotEnoughChunkservers, DiskFull.
        """
        return await transfer.put(
            self._core,
            source,
            path,
            options=PublishOptions(overwrite, parents, attributes, expect, modified_ns),
            replication=goal_of(replication),
            progress=progress,
        )

    @overload
    async def get(
        self, path: str, target: None = None, *, progress: transfer.Progress | None = None
    ) -> bytes: ...

    @overload
    async def get(
        self,
        path: str,
        target: transfer.Target,
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
        partial: Literal[False] = False,
    ) -> Entry: ...

    @overload
    async def get(
        self,
        path: str,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
        partial: Literal[True],
    ) -> Rescued: ...

    @one_request
    async def get(
        self,
        path: str,
        target: transfer.Target | None = None,
        *,
        overwrite: bool = False,
        progress: transfer.Progress | None = None,
        partial: bool = False,
    ) -> bytes | Entry | Rescued:
        """Fetch ``path``, every byte verified: as bytes, or to ``target``.

        A local path gets the whole file or nothing; a file object gets the bytes
        as they arrive. Raises NotFound, IsADirectory, AlreadyExists (local), and
        FileChanged if the file is replaced again and again meanwhile.

        ``partial`` writes a damaged or partly lost file to a local path, with all verified
        bytes that any replica still has; the result lists the holes. Servers that do
        not answer are waited for as in any read; after the first wait without an
        answer, the rest of the file is read without waiting.
        """
        if partial:
            if not isinstance(target, (str, os.PathLike)):
                raise InvalidArgument("partial needs a local path as its target")
            return await rescue(
                self._core,
                path,
                os.fspath(target),
                overwrite=overwrite,
                progress=progress or (lambda _: None),
            )
        if target is None:
            return await transfer.get_bytes(self._core, path, progress)
        if isinstance(target, (str, os.PathLike)):
            return await transfer.get_to_path(
                self._core, path, os.fspath(target), overwrite=overwrite, progress=progress
            )
        return await transfer.get_to_file(self._core, path, target, progress)

    @one_request
    async def put_many(
        self,
        items: Iterable[tuple[str, Buffer]],
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
    ) -> list[Entry | GfsError]:
        """As :meth:`put` of each (path, bytes), files up to 64 KiB together: a few round trips
        for each 256 files, whatever else is stored at the same time. Returns entries in the
        order of ``items``, and in the place of a file that was not stored the error that
        ``put`` raises. Each file is acknowledged by itself, as a whole.

        Raises InvalidArgument, with the index, for an item that is not a path as text and
        contiguous bytes, and for a path that another item has, too. The items of a list, a tuple
        or a dict's view are all looked at first: then nothing was stored. An iterator may have
        no end, so it is taken as it goes, up to 256 items or 4 MiB at once, and the next are not
        taken until these have ended; the error says how many were sent before.

        If the call is cancelled, or the iterator raises, what was taken before the last round has
        been stored, or has failed; of the last round each file may have been stored, as a whole;
        of what was not taken, nothing. :meth:`stat_many` shows it, and the same call with
        ``overwrite`` completes it.
        """
        options = PublishOptions(overwrite, parents, None, None)
        return await many.put_many(self._core, items, options, goal_of(replication))

    @one_request
    async def get_many(self, paths: Iterable[str]) -> list[bytes | GfsError]:
        """As :meth:`get` of each path, small files together: a round trip for each server and
        each 256 files, whatever else is read at the same time. Returns the bytes, every one
        verified, in the order of ``paths``, and in the place of a file that could not be read
        the error that ``get`` raises. All of it is in memory at once. Large files, and those
        with appended records, are read one by one, ``parallel_files`` at a time. Raises
        InvalidArgument, with the index, for an item that is not text: of a list before anything
        is read, of an iterator, which is taken 256 paths at a time, before its 256 are. If the
        call is cancelled or raises, what it has read is lost.

        The files wait together for chunkservers that do not answer: when one has had no good
        replica for ``retry_seconds``, those that are left ask each of theirs once.
        """
        return await many.get_many(self._core, paths)

    @one_request
    async def stat_many(self, paths: Iterable[str]) -> list[Entry | GfsError]:
        """As :meth:`stat` of each path, 256 in one round trip; for a file with appended records
        its chunkservers are asked as well. Returns the entries in the order of ``paths``, and in
        the place of one that failed the error that ``stat`` raises. Raises InvalidArgument as
        :meth:`get_many`.
        """
        return await many.stat_many(self._core, paths, self.stat)

    @one_request
    async def delete_many(
        self,
        paths: Iterable[str],
        *,
        recursive: bool = False,
        expect: Iterable[int | None] | None = None,
        now: bool = False,
    ) -> list[GfsError | None]:
        """As :meth:`delete` of each path, 256 in one round trip; ``expect`` has an inode, or None,
        for each. Returns None for each that was deleted, in the order of ``paths``, and in the
        place of one that was not the error that ``delete`` raises. Raises InvalidArgument, with
        the index, for an item that is not text, before anything is deleted. If the call is
        cancelled, each may have been deleted, and the same call again completes it.
        """
        names = all_of(paths, look_at_path)
        inodes = [None] * len(names) if expect is None else list(expect)
        if len(inodes) != len(names):
            raise InvalidArgument(f"{len(names)} paths, but {len(inodes)} inodes to expect")
        for inode in inodes:
            check_expect(inode)
        return await many.delete_many(self._core, zip(names, inodes, strict=True), recursive, now)

    @one_request
    async def get_ranges(
        self, ranges: Iterable[tuple[str, int | None, int | None]]
    ) -> list[bytes | GfsError]:
        """Of each ``(path, start, end)`` the bytes ``[start:end]``, as a slice has them: None is
        the beginning or the end, negative numbers count from the end. Small files go together,
        as in :meth:`get_many`; each other one is opened once for every 256 ranges. Returns the
        bytes, every one verified, in the order of ``ranges``, and in the place of a range that
        could not be read the error that reading an open file raises. All of it is in memory
        at once, the files wait together, and wrong items raise, as there.
        """
        return await many.get_ranges(self._core, ranges)

    def stream(
        self, path: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[memoryview, None]:
        """Verified pieces of up to 1 MiB; each view is valid until the next step.

        Leave it early only inside ``contextlib.aclosing``.
        """
        return transfer.stream(self._core, path, offset, length)

    @one_request
    async def open(self, path: str, mode: str = "r", *, replication: int | None = None) -> File:
        """A file object: ``r``, ``w`` (replaces on close), ``x``, ``r+`` (in place).

        Use it with ``async with await fs.open(…)``.
        """
        plain = normal_mode(mode)
        if plain in ("r", "r+"):
            return ExistingFile(self._core, await FileMap.open(self._core, path), plain)
        # What publishing would raise at the end is raised early.
        with suppress(NotFound):
            entry = await self.stat(path)
            if entry.kind == "directory":
                raise IsADirectory(f"{path}: is a directory")
            if plain == "x":
                raise AlreadyExists(f"{path}: exists")
        return self.create(path, overwrite=plain == "w", replication=replication)

    def create(
        self,
        path: str,
        *,
        overwrite: bool = False,
        replication: int | None = None,
        parents: bool | str = True,
        attributes: Mapping[str, str] | None = None,
        expect: int | None = None,
    ) -> NewFile:
        """A new file to be written, published when it is closed; the arguments are
        those of :meth:`put`. Use it with ``async with``.

        Sends no request: the path is checked only on close. Raises InvalidName and
        InvalidArgument at once.
        """
        check_path(path)
        options = PublishOptions(overwrite, parents, attributes, expect)
        return NewFile(self._core, path, goal_of(replication), options)

    # --- records --------------------------------------------------------------------

    @one_request
    async def append(self, path: str, record: Buffer, *, create: bool = True) -> int:
        """Append ``record`` to a file, which is created if it does not exist; returns its
        offset, for :meth:`records`. Any number of clients may append to one file at the
        same time: each record is stored in one piece, at an offset that the primary chooses.

        On return it is on all replicas, and every later open of the file reads it. *At
        least once*: an append that is retried after a failure may be stored twice. An
        append that raises may have been stored, or be stored later; no part of it is
        ever returned as a record.

        Args:
            record: up to a quarter of a chunk (16 MiB), 0 bytes included.
            create: make a missing file, and missing directories; else NotFound.

        A file that is replaced or deleted meanwhile may still take records for a while
        (``location_seconds``).

        Raises InvalidArgument (too long), IsADirectory, InvalidName, DiskFull,
        ChunkUnavailable when no replicas could be had within ``retry_seconds``.
        Cancelled, it may have been stored or not.
        """
        bytes_in(record)
        return (await self._appends.append(path, [record], create))[0]

    @one_request
    async def append_many(
        self, path: str, records: Iterable[Buffer], *, create: bool = True
    ) -> list[int]:
        """Append several records, as :meth:`append`, and return the offset of each. They
        keep their order, but others' records may be in between. If it raises, some may have
        been stored; but none if it raises InvalidArgument: an item is not bytes, or too long.
        """
        return await self._appends.append(path, records, create)

    def records(
        self, path: str, *, start: int = 0, duplicates: bool = False
    ) -> AsyncGenerator[Record, None]:
        """The records of a file in file order, up to its end at the time of the call. Bytes
        that are not a record are skipped.

        Args:
            start: the offset of a record, from :meth:`append` or from a record; reading
                starts there. Add one to start after that record.
            duplicates: also yield repeated records (with the same ``client`` and
                ``sequence``).

        Leave it early only inside ``contextlib.aclosing``. Raises NotFound,
        IsADirectory, ChunkUnavailable.
        """
        return read_records(self._core, path, start, duplicates)

"""What the clients of a general run do: every call of the client library, on few
names, so that they meet. :mod:`.test_calls` looks that none is missing: of all that the
library's objects have, only those for shadow masters are not here. These clusters have
none: :mod:`.shadowed` has.

Each kind of call is one function of :class:`Actor`, listed in ``CALLS`` with how
often it is made. A new call of the library is one more function, and one more
:class:`~.names_model.Call` if it changes names.
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import trio

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB
from gfs.client import Client, Entry, ExistingFile, NewFile
from gfs.client import Record as AppendedRecord
from gfs.client import append as appending
from gfs.client.append import records_of
from gfs.client.core import ClientCore
from gfs.client.master import CALL_SECONDS
from gfs.client.operator import LocateReport
from gfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    DiskFailed,
    DrainRefused,
    FileChanged,
    GfsError,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from gfs.master.service.snapshots import QUIET_SECONDS
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.messages import SMALL_BYTES_MAX, ClusterTotals, StatusReply, TrashEntry
from gfs.protocol.patience import WORK_SECONDS
from gfs.testing import SimCluster

from .everywhere import CALM_SECONDS
from .files_model import FileModel
from .linear import Event
from .metadata import is_past, read_metadata
from .names_model import (
    ANY_FILE,
    DIRECTORY,
    OK,
    Call,
    Delete,
    Exists,
    Files,
    List,
    Look,
    MakeDirectory,
    Prune,
    Publish,
    Rename,
    Sight,
    Snapshot,
    Undelete,
    split,
)
from .packs import handles_on
from .plan import DAMAGING, DRIFT_MAX, HARMLESS, Plan
from .record import LOG, MADE_BY, NOTE, Record, Violation, content

T = TypeVar("T")

#: Calls of one actor that adds records.
APPENDS_MAX = 10
#: Those who write a file side by side, and how many parts of it each.
BESIDE_MAX = 4
STRIPES_MAX = 4
PAGES_MAX = 5
#: Files of one churn. So long afterwards most are gone: those who read what was replaced
#: get ten seconds, and as long is more than enough.
CHURNS = 40
CHURNED_SECONDS = 20.0
#: What the namespace refuses: nothing happened then.
REFUSALS = (
    NotFound, AlreadyExists, IsADirectory, NotADirectory, DirectoryNotEmpty, InvalidArgument,
    FileChanged,
)  # fmt: skip
#: Faults after which files may be unreadable, and disks full, for good.
LASTING = DAMAGING | {"disk full", "disk hang"}
#: Some writers stop for a while in the middle of an upload.
PAUSE_SHARE = 0.1
#: What a program does as one step is a few calls, of which some go wrong for as long as
#: they may.
TROUBLES_MAX = 3
#: A call that is cancelled tells the servers that it is, and ends.
CANCEL_SECONDS = 3.0
#: What a program does without a pause is so many steps at most.
CALLS_AT_ONCE = 3
#: The pauses in these.
RESTS_SECONDS = 400.0

#: Where snapshots are made, and what may be in them.
SNAPSHOTS = ["/s", "/t", "/b/s"]
COPIES = ["/s", "/t", "/s/x", "/t/x", "/b/s", "/s/c/x", "/t/c/x", "/b/s/x"]
DIRECTORIES = ["/a", "/b", "/a/c"]
#: Only logs ever have these names, for whoever appends does not look each time.
LOGS = ["/log", "/a/log"]
FILES = ["/x", "/y", "/a/x", "/a/y", "/b/x", "/a/c/x"]

LENGTHS = [
    0, 1, 100, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, MIB, MIB + 1,
    CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1,
]  # fmt: skip


class Unclear(Exception):
    """Nobody can tell what is to be expected."""


class GivenUp(Exception):
    """An upload that its writer does not want any more."""


class Actor:
    """One client and the program that uses it."""

    def __init__(
        self,
        name: str,
        record: Record,
        chance: random.Random,
        plan: Plan,
        cluster: SimCluster,
        scratch: str,
    ) -> None:
        self.name = name
        self.record = record
        self.chance = chance
        self.plan = plan
        self.settings = plan.client
        self._cluster = cluster
        #: A real directory: what is there is no part of a seed, and never told of.
        self._scratch = scratch
        only = plan.only or [kind.__name__ for kind in CALLS]
        self._kinds = [kind for kind in CALLS if kind.__name__ in only]
        self._weights = [CALLS[kind] for kind in self._kinds]
        self._scope = trio.CancelScope()
        #: The last one that is in the history, which says whether it is right.
        self._refusal: GfsError | None = None

    async def act(self, fs: Client) -> None:
        """One call, of whatever kind."""
        (kind,) = self.chance.choices(self._kinds, self._weights)
        self.record.calls[kind.__name__] += 1
        hangs_up_after = self._patience()
        bound = hangs_up_after or self._bound(kind)
        with trio.move_on_after(bound) as self._scope:
            began = trio.current_time()
            try:
                await kind(self, fs)
            except Unclear as error:
                self.record.tell(f"{self.name}: {error}")
            except GfsError as error:
                self._fail(kind.__name__, error, began)
        if self._scope.cancelled_caught and not hangs_up_after:
            raise Violation(f"{kind.__name__} has no end: it took more than {bound:g} s")
        if trio.current_time() > self._scope.deadline + CANCEL_SECONDS:
            raise Violation(f"{kind.__name__} went on though it was cancelled")

    def _fail(self, what: str, error: GfsError, began: float) -> None:
        """Whether a step of the program that began then may fail so."""
        self.record.failures[error.code] += 1
        self.record.tell(f"{self.name}: {what}: {type(error).__name__}: {error}")
        self._judge(what, error, began)

    def _judge(self, what: str, error: GfsError, began: float) -> None:
        if error is self._refusal or (what == "drain" and isinstance(error, DrainRefused)):
            return
        if isinstance(error, (NotFound, FileChanged)) and self.record.may_be_gone(began):
            return
        if isinstance(error, REFUSALS):
            raise Violation(f"{what} was refused for no reason that is known") from error
        if not self.plan.faults.keys() & LASTING and self._is_calm(began):
            raise Violation(f"nothing is wrong, and {what} failed") from error

    def _is_calm(self, since: float) -> bool:
        """Whether nothing was wrong from long before ``since`` on."""
        return self.record.is_calm(self.plan.master.dead_seconds + CALM_SECONDS, since)

    def _patience(self) -> float:
        """Some callers hang up in the middle; most wait: 0."""
        if self.chance.random() < 0.05:
            return self.chance.choice([0.002, 0.02, 1.0])
        return 0.0

    def _bound(self, kind: Callable[..., object]) -> float:
        """No call may take longer. All that the client library waits for is bounded: by
        ``retry_seconds`` since it last got on, and by what the last attempt may take."""
        settings, master = self.settings, self.plan.master
        attempt = CALL_SECONDS + settings.stall_seconds + WORK_SECONDS
        bound = TROUBLES_MAX * (settings.retry_seconds + attempt)
        if kind is Actor.snapshot:
            # They are made one after another, and each waits for all leases to end.
            each = master.lease_seconds + master.lease_margin_seconds + QUIET_SECONDS
            bound += self.plan.clients * each
        if kind is Actor.append:
            bound *= APPENDS_MAX  # one after another
        if kind is Actor.write_beside:
            bound *= STRIPES_MAX
        if kind is Actor.churn:
            bound *= CHURNS
        return bound

    @property
    def last_seconds(self) -> float:
        """All that is left to do when the faults end takes no longer."""
        return RESTS_SECONDS + CALLS_AT_ONCE * max(map(self._bound, self._kinds))

    async def _rest(self, seconds: float) -> None:
        """The program does something else, which is no part of any call."""
        self._scope.deadline += seconds
        await trio.sleep(seconds)

    # --- how calls are told to the record -----------------------------------------------

    async def told(self, call: Call, work: Awaitable[T], see: Callable[[T], object]) -> T:
        """Have ``work`` done as ``call``; ``see`` says what its result shows."""
        event = self.record.begin(self.name, call)
        try:
            result = await work
        except REFUSALS as error:
            self._refused(event, error)
            raise
        self.record.end(event, OK, see(result))
        return result

    def _refused(self, event: Event, error: GfsError, seen: object = None) -> None:
        """``seen``, if the refusal tells what is there."""
        if isinstance(error, FileChanged) and isinstance(event.call, Look):
            return  # of a file that was replaced while it was read: no answer about the name
        self.record.end(event, error.code if seen is None else OK, seen)
        self._refusal = error

    def number(self) -> int:
        return self.record.next_number()

    def _file(self) -> str:
        if self.record.snapshots and self.chance.random() < 0.2:
            return self.chance.choice(COPIES)
        return self.chance.choice(FILES if self.chance.random() < 0.95 else DIRECTORIES)

    def _readable(self) -> str:
        return self.chance.choice(LOGS) if self.chance.random() < 0.1 else self._file()

    def _any(self) -> str:
        return self.chance.choice(FILES + LOGS + DIRECTORIES)

    def _length(self) -> int:
        if self.chance.random() < 0.6:
            return self.chance.choice(LENGTHS)
        return self.chance.randrange(self.chance.choice([MIB, 3 * CHUNK_BYTES]))

    # --- whole files -----------------------------------------------------------------------

    async def put(self, fs: Client) -> None:
        chance, path, number = self.chance, self._file(), self.number()
        data = content(chance, self._length())
        attributes = {MADE_BY: str(number)} if chance.random() < 0.8 else {}
        replace, parents = chance.random() < 0.7, chance.random() < 0.8
        expect, inode = await self._expectation(fs, path)
        goal = chance.choice([0, 0, 0, 1, 2])
        self.record.new_file(number, data, attributes, goal)
        source: object = data
        if chance.random() < 0.3:
            source = chance.choice([io.BytesIO, _pieces, self._local_file])(data)
        call = Publish(number, split(path), replace, parents, 0, expect)
        entry = await self.told(
            call,
            fs.put(
                source,  # type: ignore[arg-type]
                path,
                overwrite=replace,
                parents=parents,
                attributes=attributes,
                expect=inode,
                replication=goal or None,
            ),
            lambda _: None,
        )
        if entry.length != len(data):
            raise Violation(f"{entry}: {len(data)} bytes were put")
        self.record.published(number, entry.inode)

    async def _expectation(
        self, fs: Client, path: str, share: float = 0.3
    ) -> tuple[int | None, int | None]:
        """What a careful writer, as so many are, expects at the path: (the call that made
        it, its inode)."""
        if self.chance.random() > share:
            return None, None
        if self.chance.random() < 0.2:
            return 0, 0
        try:
            entry = await fs.stat(path)
        except GfsError:
            return 0, 0
        model = self.record.model(entry) if entry.kind == "file" else None
        if model is None or model.number < 0:
            return None, None  # which of the copies it is, the history does not tell
        return model.number, entry.inode

    async def write_new(self, fs: Client) -> None:
        """A file object, written in pieces."""
        chance, path, number = self.chance, self._file(), self.number()
        data = content(chance, self._length())
        replace = chance.random() < 0.7
        self.record.new_file(number, data, {})
        gives_up = chance.random() < 0.15
        try:
            if chance.random() < 0.5:
                file = fs.create(path, overwrite=replace)
            else:
                file = await self._open_new(fs, path, "w" if replace else "x")
            done = 0
            while done < len(data):
                count = chance.randint(1, len(data) - done)
                await file.write(data[done : done + count])
                done += count
                if file.tell() != done:
                    raise Violation(f"at {file.tell()} after {done} bytes")
                if chance.random() < 0.2:
                    await file.flush()
                if chance.random() < PAUSE_SHARE:
                    await self._rest(chance.uniform(1, 40))
            if gives_up:
                raise GivenUp
            expected, inode = await self._expectation(fs, path, share=0.1)
            if inode is not None:
                file.expect(inode)
            note = self.record.new_note()
            if chance.random() < 0.5:
                file.describe({NOTE: note})
            call = Publish(number, split(path), replace, True, expect=expected)
        except GivenUp:
            await file.abort()
            return
        except BaseException:
            with trio.CancelScope(shield=True):
                if "file" in locals():
                    await file.abort()
            raise
        await self.told(call, file.close(), lambda _: None)
        assert file.entry is not None
        self.record.published(number, file.entry.inode)

    async def _open_new(self, fs: Client, path: str, mode: str) -> NewFile:
        """What would be refused when it is closed is mostly refused at once."""
        event = self.record.begin(self.name, Look(self.number(), split(path)))
        try:
            file = await fs.open(path, mode)
        except IsADirectory as error:
            self._refused(event, error, DIRECTORY)
            raise
        except AlreadyExists as error:
            self._refused(event, error, ANY_FILE)
            raise
        except NotADirectory as error:
            self._refused(event, error)
            raise
        if mode == "x":
            self.record.end(event, NotFound.code)
        else:
            self.record.take_back(event)
        assert isinstance(file, NewFile)
        return file

    def _local_file(self, data: bytes) -> str:
        """The path of a new file of this machine's."""
        path = os.path.join(self._scratch, f"{self.name}-{self.number()}")
        with open(path, "wb") as file:
            file.write(data)
        return path

    async def get(self, fs: Client) -> None:
        """All of a file, in one of the ways there are."""
        path, opened = self._readable(), trio.current_time()
        way = self.chance.choice([self._get_bytes, self._get_pieces, self._get_to, self._get_to])
        event = self.record.begin(self.name, Look(self.number(), split(path), opens=True))
        try:
            seen = await way(fs, path, opened)
        except REFUSALS as error:
            self._refused(event, error)
            raise
        self.record.end(event, OK, seen)

    async def _get_bytes(self, fs: Client, path: str, since: float) -> Sight:
        return self._whole(path, await fs.get(path), since)

    async def _get_pieces(self, fs: Client, path: str, since: float) -> Sight:
        return self._whole(path, await self._pieces(fs, path), since)

    async def _pieces(
        self, fs: Client, path: str, start: int = 0, length: int | None = None
    ) -> bytes:
        got = bytearray()
        async with aclosing(fs.stream(path, start, length)) as pieces:
            async for view in pieces:
                got += view
        return bytes(got)

    def _whole(self, path: str, data: bytes, since: float) -> Sight:
        """The files that this may be all of."""
        found = self.record.candidates(data, since)
        if not found:
            self.record.look_for_losses()
            found = self.record.candidates(data, since)
        if not found:
            raise Violation(f"{path}: {len(data)} bytes that no file had then: {data[:40]!r}")
        return found

    async def _get_to(self, fs: Client, path: str, opened: float) -> Sight:
        """To a file here, and with what is told of it."""
        if self.chance.random() < 0.5:
            target = io.BytesIO()
            entry = await fs.get(path, target)
            data = target.getvalue()
        else:
            entry, data = await self._get_to_path(fs, path)
        if len(data) != entry.length:
            raise Violation(f"{len(data)} bytes came of {entry}")
        seen = self.record.sight(entry, opened)
        model = self.record.model(entry)
        if model is not None:
            since = self._since(opened) if model.log is None else opened
            self.record.check_read(model, 0, data, since)
        return seen

    async def _get_to_path(self, fs: Client, path: str) -> tuple[Entry, bytes]:
        """What is there already stays until all of the file is."""
        old, began = b"what was there", trio.current_time()
        target = self._local_file(old)
        overwrite = self.chance.random() < 0.5
        if not overwrite:
            await self._keeps(fs, path, target, old)
            os.remove(target)
        try:
            entry = await fs.get(path, target, overwrite=overwrite)
        except BaseException:
            there = _content(target)
            if there != (old if overwrite else None):
                self._whole(path, there or b"", began)
            raise
        data = _content(target)
        if data is None:
            raise Violation(f"{path}: it came, and is not here")
        return entry, data

    async def _keeps(self, fs: Client, path: str, target: str, old: bytes) -> None:
        """Nothing that has the name already is replaced unless that is said."""
        try:
            await fs.get(path, target)
        except AlreadyExists:
            if _content(target) != old:
                raise Violation(f"{path}: a file of that name here was replaced") from None
        else:
            raise Violation(f"{path}: it came though a file of that name is here")

    # --- reading -----------------------------------------------------------------------------

    async def _open(self, fs: Client, path: str, mode: str) -> tuple[ExistingFile, FileModel]:
        since = trio.current_time()
        call = Look(self.number(), split(path), opens=True)
        file = await self.told(
            call, fs.open(path, mode), lambda f: self.record.sight(f.entry, since)
        )  # type: ignore[attr-defined]
        assert isinstance(file, ExistingFile)
        model = self.record.model(file.entry)
        if model is None:
            raise Unclear(f"{path}: nobody can tell which file this is")
        return file, model

    async def read(self, fs: Client) -> None:
        """Open, and read here and there, for a while."""
        opened = trio.current_time()
        file, model = await self._open(fs, self._readable(), "r")
        async with file:
            for _ in range(self.chance.randint(1, 4)):
                since = self._since(opened)
                start = self.chance.randint(0, file.length)
                count = self.chance.choice([1, 100, BLOCK_BYTES, 3 * MIB, file.length])
                data = await self._read(file, start, count)
                if len(data) != max(0, min(count, file.length - start)):
                    raise Violation(f"{len(data)} of {count} bytes at {start} of {file.length}")
                part = len(data) < file.length
                if model.log is not None and not part:
                    since = opened  # it ends where it ended then
                self.record.check_read(model, start, data, since, part)
                await self._rest(self.chance.choice([0, 0, 0.1, 5]))

    async def _read(self, file: ExistingFile, start: int, count: int) -> bytes:
        """By position or without, into memory of our own or not."""
        chance = self.chance
        if chance.random() < 0.5:
            return await file.pread(start, count)
        base, whence = chance.choice(
            [(0, os.SEEK_SET), (file.tell(), os.SEEK_CUR), (file.length, os.SEEK_END)]
        )
        await file.seek(start - base, whence)
        if chance.random() < 0.5:
            data = await file.read(count)
        else:
            target = bytearray(count)
            data = bytes(target[: await file.readinto(target)])
        if file.tell() != start + len(data):
            raise Violation(f"at {file.tell()} after {len(data)} bytes from {start}")
        return data

    async def stream(self, fs: Client) -> None:
        """A part of a file, from where it is open or by its path."""
        if self.chance.random() < 0.3:
            await self._stream_path(fs)
            return
        opened = trio.current_time()
        file, model = await self._open(fs, self._readable(), "r")
        known = file.entry.length
        start, length = self._part(file.length)
        got = bytearray()
        try:
            if start % 2:  # no draw, which would make each seed another run
                start -= start % BLOCK_BYTES
                got += await self._blocks(file, start, length)
            else:
                async with aclosing(file.stream(start, length)) as pieces:
                    async for view in pieces:
                        got += view
        finally:
            await self.chance.choice([file.close, file.abort])()
        # What is known of its length may become more while it is read.
        least, most = (each - start for each in (known, file.entry.length))
        if length is not None:
            least, most = min(least, length), min(most, length)
        if not least <= len(got) <= most:
            raise Violation(
                f"a stream of {len(got)} bytes from {start} of {known} to "
                f"{file.entry.length}, {length} asked"
            )
        since = self._since(opened) if model.log is None else opened
        self.record.check_read(model, start, bytes(got), since, length is not None)

    async def _blocks(self, file: ExistingFile, start: int, length: int | None) -> bytes:
        """What a stream gives, read as the mount does: into the caller's memory."""
        with closing(file.blocks(start)) as blocks:
            got, at = bytearray(max(0, blocks.end - start)), 0
            while at < (len(got) if length is None else min(length, len(got))):
                at += await blocks.read_into(memoryview(got)[at : at + 3 * BLOCK_BYTES])
        return bytes(got[: at if length is None else min(at, length)])

    def _part(self, whole: int) -> tuple[int, int | None]:
        """(start, length) of some of it, or of all the rest: None."""
        start = self.chance.randint(0, whole)
        return start, self.chance.choice([None, self.chance.randint(0, whole)])

    async def _stream_path(self, fs: Client) -> None:
        path, since = self._readable(), trio.current_time()
        entry, model = await self._look(fs, path)
        start, length = self._part(entry.length)
        opened = trio.current_time()
        work = self._pieces(fs, path, start, length)
        got = await self.told(Look(self.number(), split(path), opens=True), work, lambda _: None)
        if model is not None and self._is_steady(path, since):
            since = self._since(opened) if model.log is None else opened
            self.record.check_read(model, start, got, since, part=True)
            least = model.length_min(opened) - start
            if len(got) < (least if length is None else min(least, length)):
                raise Violation(f"{path}: {len(got)} bytes from {start} on, {length} asked")

    async def _look(self, fs: Client, path: str) -> tuple[Entry, FileModel | None]:
        """Which file is at a path. Raises Unclear if none is."""
        since = trio.current_time()
        call = Look(self.number(), split(path))
        entry = await self.told(call, fs.stat(path), lambda e: self.record.sight(e, since))
        if entry.kind == "directory":
            raise Unclear(f"{path}: a directory")
        return entry, self.record.model(entry)

    def _is_steady(self, path: str, since: float) -> bool:
        """Whether the same file was at a path from ``since`` on."""
        return not any(
            event.ended >= since and event.call.touches(split(path))
            for event in self.record.history
        )

    def _since(self, opened: float) -> float:
        """From when on a write must be seen: locations are cached for a while."""
        return max(opened, trio.current_time() - 1.1 * self.settings.location_seconds)

    async def churn(self, fs: Client) -> None:
        """A small file, replaced and deleted as fast as that goes. What is left of it goes
        as fast, in however many orders."""
        began, path = trio.current_time(), f"/{self.name}"
        for _ in range(CHURNS):
            number = self.number()
            data, attributes = content(self.chance, 10), {MADE_BY: str(number)}
            self.record.new_file(number, data, attributes)
            put = fs.put(data, path, overwrite=True, attributes=attributes)
            entry = await self.told(Publish(number, split(path), True), put, lambda _: None)
            self.record.named(number, entry.inode)
            if self.chance.random() < 0.3:
                delete = fs.delete(path, now=True)
                await self.told(Delete(self.number(), split(path)), delete, lambda _: None)
        # Not what others replace meanwhile.
        replaced = set(self._garbage())
        await self._rest(CHURNED_SECONDS)
        left = sum(handle in replaced for handle in self._garbage())
        if left > CHURNS and self._is_calm(began):
            raise Violation(f"{CHURNED_SECONDS:g} s after {CHURNS} files {left} replicas are left")

    def _garbage(self) -> list[int]:
        """The handle of each replica of no file."""
        cluster = self._cluster
        chunks = read_metadata(cluster.directory).chunks
        handles = [handle for name in cluster.chunkservers for handle in handles_on(cluster, name)]
        return [handle for handle in handles if handle not in chunks]

    # --- writing in place ----------------------------------------------------------------------

    async def update(self, fs: Client) -> None:
        """Open to write in place: here and there, at the end, a little past it."""
        opened = trio.current_time()
        file, model = await self._open(fs, self._file(), "r+")
        if model.log is not None:
            return
        async with file:
            for _ in range(self.chance.randint(1, 3)):
                await self._write(file, model)
            if self.chance.random() < 0.5:
                since = self._since(opened)
                start = self.chance.randint(0, file.length)
                data = await file.pread(start, self.chance.choice([100, 2 * CHUNK_BYTES]))
                self.record.check_read(model, start, data, since)

    async def write_beside(self, fs: Client) -> None:
        """A file by several clients at once, each its own parts of it, in any order: as a
        checkpoint is written. All lie beyond where it ends at first, and gaps are left."""
        path = self._file()
        if self.chance.random() < 0.7:
            await self._put_small(fs, path)
        count = self.chance.randint(2, BESIDE_MAX)
        stripe = self.chance.choice([100, BLOCK_BYTES, BLOCK_BYTES + 1, MIB, CHUNK_BYTES // 2 + 1])
        numbers = list(range(count * self.chance.randint(1, STRIPES_MAX)))
        gaps = self.chance.choice([0.0, 0.3])
        async with trio.open_nursery() as nursery:
            for n in range(count):
                mine = [at * stripe for at in numbers[n::count] if self.chance.random() >= gaps]
                self.chance.shuffle(mine)
                nursery.start_soon(self._write_stripes, f"{self.name}-{n}", path, mine, stripe)

    async def _put_small(self, fs: Client, path: str) -> None:
        number = self.number()
        data = content(self.chance, self.chance.choice([0, 0, 1, BLOCK_BYTES + 1]))
        attributes = {MADE_BY: str(number)}
        self.record.new_file(number, data, attributes)
        work = fs.put(data, path, overwrite=True, attributes=attributes)
        entry = await self.told(Publish(number, split(path), True), work, lambda _: None)
        self.record.published(number, entry.inode)

    async def _write_stripes(self, name: str, path: str, starts: list[int], count: int) -> None:
        """By a client of its own."""
        began = trio.current_time()
        try:
            async with self._cluster.client(name) as fs:
                file, model = await self._open(fs, path, "r+")
                if model.log is not None:
                    return
                first = file.length
                async with file:
                    for start in starts:
                        await self._write_at(file, model, first + start, count)
                    data = await file.pread(0, file.length)
                    self.record.check_read(model, 0, data, self._since(began))
        except Unclear as error:
            self.record.tell(f"{name}: {error}")
        except GfsError as error:
            self._fail("write_beside", error, began)

    # --- records -----------------------------------------------------------------------------

    async def make_log(self, fs: Client) -> None:
        """A file to be appended to, of which some are not empty to begin with."""
        path, number = self.chance.choice(LOGS), self.number()
        data = content(self.chance, self.chance.choice([0, 0, 100, BLOCK_BYTES, CHUNK_BYTES - 100]))
        attributes = {MADE_BY: str(number), LOG: "1"}
        self.record.new_file(number, data, attributes)
        call = Publish(number, split(path), False, True)
        work = fs.put(data, path, attributes=attributes)
        entry = await self.told(call, work, lambda _: None)
        self.record.published(number, entry.inode)

    async def append(self, fs: Client) -> None:
        """Some records, one after another or together, to a file that may have to be made."""
        path, create = self.chance.choice(LOGS), self.chance.random() < 0.3
        if not create:
            await self._look(fs, path)
        async with trio.open_nursery() as nursery:
            for _ in range(self.chance.choice([1, 1, 3, APPENDS_MAX])):
                count = self.chance.choice([1, 1, 1, 3])
                records = [self._new_record() for _ in range(count)]
                if self.chance.random() < 0.5:
                    await self._append_or_fail(fs, path, records, create)
                else:
                    nursery.start_soon(self._append_or_fail, fs, path, records, create)

    def _new_record(self) -> bytes:
        """Like no other."""
        size = self.chance.choice([0, 0, 100, BLOCK_BYTES, 2 * MIB, CHUNK_BYTES // 4 - 16])
        name = b"record %8d" % self.number()
        return (name + content(self.chance, size))[: CHUNK_BYTES // 4]

    async def _append_or_fail(
        self, fs: Client, path: str, records: Sequence[bytes], create: bool
    ) -> None:
        began = trio.current_time()
        try:
            await self._append(fs, path, records, create)
        except InvalidArgument as error:
            raise Violation(f"a record that is in order was refused: {error}") from error
        except GfsError as error:
            self.record.failures[error.code] += 1
            self.record.tell(f"{self.name}: append: {type(error).__name__}: {error}")
            if create and isinstance(error, NotFound):
                raise Violation(f"{path} was to be made for a record: {error}") from error
            if isinstance(error, REFUSALS):
                look = Look(self.number(), split(path), opens=True)
                self._refused(self.record.begin(self.name, look, began), error)
            self._judge("append", error, began)

    async def _append(self, fs: Client, path: str, records: Sequence[bytes], create: bool) -> None:
        appends = [self.record.begin_append(data, self.name) for data in records]
        if len(records) == 1:
            offsets = [await fs.append(path, records[0], create=create)]
        else:
            offsets = await fs.append_many(path, records, create=create)
        # Which file has the path may have changed meanwhile, and only this can tell.
        last = fs._appends._appenders[path, create]._inode
        inodes = [self.record.took.get(append.data, last) for append in appends]
        for append, offset, inode in zip(appends, offsets, inodes, strict=True):
            self.record.end_append(append, offset, inode)
        if len(set(inodes)) == 1 and offsets != sorted(offsets):
            raise Violation(f"{path}: records appended in order are at {offsets}")

    async def records(self, fs: Client) -> None:
        """Those of an open file, or of a path."""
        path, since = self.chance.choice(LOGS), trio.current_time()
        if self.chance.random() < 0.5:
            await self._records_of_path(fs, path)
            return
        file, model = await self._open(fs, path, "r")
        async with file:
            start = self._some_record(model)
            async with aclosing(records_of(fs._core, file._map, start, True)) as every:
                found = [record async for record in every]
            self.record.check_records(model, found, since, start)

    async def _records_of_path(self, fs: Client, path: str) -> None:
        since = trio.current_time()
        _, model = await self._look(fs, path)
        start = 0 if model is None else self._some_record(model)
        duplicates, opened = self.chance.random() < 0.3, trio.current_time()
        work = self._all_records(fs, path, start, duplicates)
        found = await self.told(Look(self.number(), split(path), opens=True), work, lambda _: None)
        if model is not None and self._is_steady(path, since):
            self.record.check_records(model, found, opened, start, once=not duplicates)

    async def _all_records(
        self, fs: Client, path: str, start: int, duplicates: bool
    ) -> Sequence[AppendedRecord]:
        async with aclosing(fs.records(path, start=start, duplicates=duplicates)) as every:
            return [record async for record in every]

    def _some_record(self, model: FileModel) -> int:
        """The offset of one, or 0."""
        if model.log is None:
            raise Violation(f"file {model.number} has the path of a log")
        return self.chance.choice([0, *[a.offset for a in model.log.acknowledged][-3:]])

    async def _write(self, file: ExistingFile, model: FileModel) -> None:
        chance = self.chance
        where = chance.random()
        if where < 0.6:
            start = chance.randint(0, file.length)
        elif where < 0.9:
            start = file.length
        else:
            start = file.length + chance.randint(1, 2 * MIB)
        count = chance.choice([1, 100, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * MIB, CHUNK_BYTES])
        await self._write_at(file, model, start, count)

    async def _write_at(self, file: ExistingFile, model: FileModel, start: int, count: int) -> None:
        chance = self.chance
        data = content(chance, count)
        write = self.record.begin_write(model, start, data, self.name)
        if chance.random() < 0.7:
            await file.pwrite(start, data)
        else:
            await file.seek(start)
            await file.write(data)
            await file.flush()
            if file.tell() != start + count:
                raise Violation(f"at {file.tell()} after a write to {start + count}")
        self.record.acknowledge(model, write)
        self.record.tell(f"{self.name}: written file {model.number} at {start}")
        if file.length < start + count:
            raise Violation(f"{file.length} bytes after a write to {start + count}")

    # --- many files at once ----------------------------------------------------------------------

    async def put_many(self, fs: Client) -> None:
        chance, record = self.chance, self.record
        replace, parents = chance.random() < 0.7, chance.random() < 0.8
        items: list[tuple[str, bytes]] = []
        events: list[tuple[Event, int]] = []
        for path in chance.sample(FILES, chance.randint(1, len(FILES))):
            number, data = self.number(), content(chance, self._small_length())
            record.new_file(number, data, {})
            call = Publish(number, split(path), replace, parents)
            events.append((record.begin(self.name, call), number))
            items.append((path, data))
        results = await fs.put_many(items, overwrite=replace, parents=parents)
        failures = []
        for (event, number), result in zip(events, results, strict=True):
            if isinstance(result, Entry):
                record.end(event, OK, None)
                record.published(number, result.inode, among_others=True)
            elif isinstance(result, REFUSALS):
                self._refused(event, result)
            else:
                failures.append(result)
        if failures:
            raise failures[0]

    async def at_once(self, fs: Client) -> None:
        """Small files, each stored or read by a call of its own, at the same time; some of the
        callers hang up, and the others are not to notice."""
        failures: list[GfsError] = []
        async with trio.open_nursery() as nursery:
            for path in self.chance.choices(FILES, k=self.chance.randint(2, 12)):
                one = self._get_one if self.chance.random() < 0.4 else self._put_one
                nursery.start_soon(self._or_hang_up, partial(one, fs, path), failures)
        if failures:
            raise failures[0]

    async def _or_hang_up(
        self, call: Callable[[], Awaitable[None]], failures: list[GfsError]
    ) -> None:
        hangs_up_after = self.chance.choice([0.001, 0.003, 0.01, 0.1])
        seconds = hangs_up_after if self.chance.random() < 0.2 else math.inf
        with trio.move_on_after(seconds):
            try:
                await call()
            except Unclear as error:
                self.record.tell(f"{self.name}: {error}")
            except GfsError as error:
                if error is not self._refusal:
                    failures.append(error)

    async def _put_one(self, fs: Client, path: str) -> None:
        chance, number, replace = self.chance, self.number(), self.chance.random() < 0.7
        data, goal = (
            content(chance, chance.randrange(SMALL_BYTES_MAX + 100)),
            chance.choice([0, 0, 0, 1, 2]),
        )
        attributes = {MADE_BY: str(number)} if chance.random() < 0.5 else {}
        self.record.new_file(number, data, attributes, goal)
        work = fs.put(
            data, path, overwrite=replace, attributes=attributes, replication=goal or None
        )
        entry = await self.told(Publish(number, split(path), replace), work, lambda _: None)
        if entry.length != len(data) or entry.attributes != attributes:
            raise Violation(f"{entry}: {len(data)} bytes were put, with {attributes}")
        self.record.published(number, entry.inode, among_others=True)

    async def _get_one(self, fs: Client, path: str) -> None:
        event = self.record.begin(self.name, Look(self.number(), split(path), opens=True))
        try:
            seen = await self._get_bytes(fs, path, trio.current_time())
        except REFUSALS as error:
            self._refused(event, error)
            raise
        self.record.end(event, OK, seen)

    def _small_length(self) -> int:
        return self._length() if self.chance.random() < 0.1 else self.chance.randrange(70_000)

    async def get_many(self, fs: Client) -> None:
        async def by_ranges(paths: list[str]) -> list[bytes | GfsError]:
            return await fs.get_ranges([(path, None, None) for path in paths])

        get = by_ranges if self.chance.random() < 0.3 else fs.get_many
        await self._look_at_many(get, self._whole, opens=True)

    async def stat_many(self, fs: Client) -> None:
        def sight(path: str, entry: Entry, since: float) -> Sight:
            return self.record.sight(entry, since)

        await self._look_at_many(fs.stat_many, sight, opens=False)

    async def _look_at_many(
        self,
        look: Callable[[list[str]], Awaitable[list[T | GfsError]]],
        see: Callable[[str, T, float], Sight],
        opens: bool,
    ) -> None:
        since = trio.current_time()
        paths = [self._readable() for _ in range(self.chance.randint(1, 8))]
        calls = [Look(self.number(), split(path), opens=opens) for path in paths]
        events = [self.record.begin(self.name, call) for call in calls]
        failures = []
        for path, event, result in zip(paths, events, await look(paths), strict=True):
            if not isinstance(result, GfsError):
                self.record.end(event, OK, see(path, result, since))
            elif isinstance(result, REFUSALS) and not isinstance(result, FileChanged):
                self._refused(event, result)
            else:
                failures.append(result)
        if failures:
            raise failures[0]

    # --- names ---------------------------------------------------------------------------------

    async def stat(self, fs: Client) -> None:
        path, since = self._any(), trio.current_time()
        call = Look(self.number(), split(path))
        await self.told(call, fs.stat(path), lambda entry: self.record.sight(entry, since))

    async def list(self, fs: Client) -> None:
        path, since = self.chance.choice(["/", *DIRECTORIES]), trio.current_time()
        after = self.chance.choice(["", "", "a", "b", "log", "nothing"])

        def seen(entries: list) -> dict[str, Sight]:  # type: ignore[type-arg]
            names = [entry.path.rpartition("/")[2] for entry in entries]
            if names != sorted(names):
                raise Violation(f"{path}: a listing out of order: {names}")
            return {
                name: self.record.sight(entry, since)
                for name, entry in zip(names, entries, strict=True)
            }

        work = self._scan(fs, path, after) if after else fs.list(path)
        await self.told(List(self.number(), split(path), after), work, seen)

    async def list_files(self, fs: Client) -> None:
        """Page after page, each of which is all that was there at one moment."""
        path, after = self.chance.choice(["/", "/", *DIRECTORIES]), ""
        prefix, limit = self.chance.choice(["", "", "a", "a/", "x"]), self.chance.randint(1, 4)
        for _ in range(PAGES_MAX):
            since = trio.current_time()

            def seen(entries: Sequence[Entry], path: str = path, since: float = since) -> object:
                start = f"{path.removesuffix('/')}/"
                names = [entry.path.removeprefix(start) for entry in entries]
                if names != sorted(names):
                    raise Violation(f"{path}: files out of order: {names}")
                return {
                    name: self.record.sight(entry, since)
                    for name, entry in zip(names, entries, strict=True)
                }

            call = Files(self.number(), split(path), prefix, after, limit)
            found: list[Entry] = []

            async def first(after: str = after, found: list[Entry] = found) -> Sequence[Entry]:
                async with aclosing(
                    fs.files(path, prefix=prefix, after=after, page=limit)
                ) as entries:
                    async for entry in entries:
                        found.append(entry)
                        if len(found) == limit:
                            break
                return found

            await self.told(call, first(), seen)
            if len(found) < limit:
                return
            after = found[-1].path.removeprefix(f"{path.removesuffix('/')}/")

    async def list_all_files(self, fs: Client) -> None:
        """Many questions for one list: each file is one that was there, in order and once."""
        since, last = trio.current_time(), b""
        async for entry in fs.files("/", page=2):
            self.record.sight(entry, since)
            if entry.path.encode() <= last:
                raise Violation(f"files out of order: {entry.path} after {last!r}")
            last = entry.path.encode()

    async def prune(self, fs: Client) -> None:
        path = self.chance.choice(DIRECTORIES)
        await self.told(Prune(self.number(), split(path)), fs.prune(path), lambda _: None)

    async def _scan(self, fs: Client, path: str, after: str) -> Sequence[Entry]:
        return [entry async for entry in fs.scan(path, after)]

    async def exists(self, fs: Client) -> None:
        path = self._any()
        await self.told(Exists(self.number(), split(path)), fs.exists(path), lambda there: there)

    async def walk(self, fs: Client) -> None:
        """Many pages: each entry is one that was there, and no more is promised."""
        since = trio.current_time()
        async for entry in fs.walk("/"):
            self.record.sight(entry, since)

    async def mkdir(self, fs: Client) -> None:
        path = self.chance.choice(DIRECTORIES)
        parents, exist_ok = self.chance.random() < 0.5, self.chance.random() < 0.5
        call = MakeDirectory(self.number(), split(path), parents, exist_ok)

        def see(entry: Entry) -> None:
            if (entry.path, entry.kind) != (path, "directory"):
                raise Violation(f"{path} was made, and the answer has {entry}")

        await self.told(call, fs.mkdir(path, parents=parents, exist_ok=exist_ok), see)

    async def rename(self, fs: Client) -> None:
        source, target = self._any(), self.chance.choice(FILES + DIRECTORIES)
        if source in LOGS and self.chance.random() < 0.5:
            target = self.chance.choice(LOGS)
        replace, parents = self.chance.random() < 0.6, self.chance.random() < 0.3
        call = Rename(self.number(), split(source), split(target), replace, parents)
        await self.told(
            call, fs.rename(source, target, replace=replace, parents=parents), lambda _: None
        )

    async def snapshot(self, fs: Client) -> None:
        source, target = self._any(), self.chance.choice(SNAPSHOTS)
        if self.chance.random() < 0.2:
            source, target = self.chance.choice(SNAPSHOTS), self.chance.choice(FILES + DIRECTORIES)
        parents = self.chance.random() < 0.5
        call = Snapshot(self.number(), split(source), split(target), parents)
        await self.told(call, fs.snapshot(source, target, parents=parents), lambda _: None)

    async def delete(self, fs: Client) -> None:
        path = self._any()
        if self.record.snapshots and self.chance.random() < 0.3:
            path = self.chance.choice(SNAPSHOTS)
        expect, inode = None, None
        if self.chance.random() < 0.8:
            expect, inode = await self._expectation(fs, path, 0.8)
        if expect == 0:
            expect = inode = None
        recursive = self.chance.random() < 0.4
        call = Delete(self.number(), split(path), recursive, expect)
        now, since = self.chance.random() < 0.2, trio.current_time()
        await self.told(
            call, fs.delete(path, recursive=recursive, expect=inode, now=now), lambda _: None
        )
        if inode and not now and not self.record.undeletions[inode]:
            self.record.trashed[inode] = since
            if self.chance.random() < 0.5:
                await self._look_into_trash(fs)

    async def delete_many(self, fs: Client) -> None:
        """Some of them with what is to be there."""
        recursive = self.chance.random() < 0.3
        paths = self.chance.sample(FILES + LOGS, self.chance.randint(1, 5))
        expected = [await self._expectation(fs, path, 0.5) for path in paths]
        expected = [each if each[0] != 0 else (None, None) for each in expected]
        events = [
            self.record.begin(self.name, Delete(self.number(), split(path), recursive, expect))
            for path, (expect, _) in zip(paths, expected, strict=True)
        ]
        results = await fs.delete_many(
            paths, recursive=recursive, expect=[inode for _, inode in expected]
        )
        failures = []
        for event, result in zip(events, results, strict=True):
            if result is None:
                self.record.end(event, OK, None)
            elif isinstance(result, REFUSALS):
                self._refused(event, result)
            else:
                failures.append(result)
        if failures:
            raise failures[0]

    async def _look_into_trash(self, fs: Client) -> None:
        """Some time later, and mostly not too late, it is there still."""
        await self._rest(self.chance.uniform(0, min(self.plan.master.trash_seconds, 20.0)))
        before = dict(self.record.trashed)
        page = await fs.trash_page()
        there = page.entries
        while page.cursor:
            page = await fs.trash_page(cursor=page.cursor)
            there += page.entries
        self._check_trash([entry for entry in there if entry.kind == "file"], before)

    # --- the trash ---------------------------------------------------------------------------

    async def undelete(self, fs: Client) -> None:
        """Have a deleted file back, where it was or elsewhere."""
        before = dict(self.record.trashed)
        there = [entry async for entry in fs.trash() if entry.kind == "file"]
        self._check_trash(there, before)
        known = [entry for entry in there if entry.inode in self.record.by_inode]
        if not known:
            return
        entry = self.chance.choice(known)
        file = self.record.by_inode[entry.inode]
        target = self.chance.choice([entry.path, self._file()])
        self.record.undeletions[entry.inode] += 1
        self.record.trashed.pop(entry.inode, None)
        event = self.record.begin(self.name, Undelete(self.number(), split(target), file))
        try:
            await fs.undelete(entry.path, target=target, inode=entry.inode)
        except NotFound as error:
            self.record.take_back(event)
            self._check_gone(entry)
            self._refusal = error
            raise
        except REFUSALS as error:
            self._refused(event, error)
            raise
        self.record.end(event, OK)

    def _check_trash(self, there: list[TrashEntry], before: dict[int, float]) -> None:
        """Everything is kept for as long as was said, and told of."""
        seconds = self.plan.master.trash_seconds
        for entry in there:
            # Longer by what masters were away; and both are times of the wall clock.
            kept = (entry.until_ns - entry.deleted_ns) / 1e9
            if kept < seconds - 1 and "clock jump" not in self.plan.faults:
                raise Violation(f"{entry} is to be kept for {kept} s")
        if self._trash_goes_early():
            return
        told = {entry.inode for entry in there}
        for inode, since in before.items():
            is_due = trio.current_time() > since + (1 - DRIFT_MAX) * seconds
            if inode not in told and inode in self.record.trashed and not is_due:
                raise Violation(f"inode {inode}, deleted at {since}, is not in the trash")

    def _check_gone(self, entry: TrashEntry) -> None:
        """It was in the trash a moment ago, and is not: somebody took it, or time is up."""
        if self.record.undeletions[entry.inode] > 1 or self._trash_goes_early():
            return
        is_due = is_past(self._cluster, entry.until_ns)
        if not is_due and "clock jump" not in self.plan.faults:
            raise Violation(f"{entry} went from the trash too early")

    def _trash_goes_early(self) -> bool:
        """Only a cluster that has no room on as many servers as a new chunk needs takes it
        from the trash."""
        faults, plan, record = self.plan.faults.keys(), self.plan, self.record
        if "disk full" not in faults:
            return False
        needed = min(plan.master.replicas_min, plan.master.replication)
        having = plan.chunkservers - len(record.drained) - record.full_most
        return having < needed or bool(faults - HARMLESS - {"disk full", "bit flip"})

    async def empty_trash(self, fs: Client) -> None:
        """All of it, what is below a directory, or one file."""
        record, path = self.record, self.chance.choice(["/", *DIRECTORIES])
        there = [entry async for entry in fs.trash(path)]
        for entry in there:
            if entry.path != path and not entry.path.startswith(path.rstrip("/") + "/"):
                raise Violation(f"{entry} is not below {path}")
        files = [entry for entry in there if entry.kind == "file"]
        if files and self.chance.random() < 0.8:
            entry = self.chance.choice(files)
            self._give_up([entry.inode])
            await fs.empty_trash(entry.path, inode=entry.inode)
        else:
            self._give_up(record.by_inode)
            await fs.empty_trash(path, recursive=True)

    def _give_up(self, inodes: Iterable[int]) -> None:
        for inode in inodes:
            self.record.undeletions[inode] += 1
            self.record.trashed.pop(inode, None)

    # --- attributes ----------------------------------------------------------------------------

    async def set_attributes(self, fs: Client) -> None:
        path, value = self._file(), self.record.new_note()

        def see(entry: Entry) -> None:
            if entry.attributes.get(NOTE) != value:
                raise Violation(f"{path} has {entry.attributes}, and was given {value}")

        call = Look(self.number(), split(path))
        await self.told(call, fs.set_attributes(path, {NOTE: value}), see)

    # --- goals ---------------------------------------------------------------------------------

    async def set_goal(self, fs: Client) -> None:
        path, since = self._file(), trio.current_time()
        goal = self.record.begin_goal(self.chance.choice([0, 1, 2, 3]))
        call = Look(self.number(), split(path), opens=True)
        try:
            await self.told(call, fs.set_replication(path, goal.value), lambda _: None)
        except REFUSALS:
            self.record.goals.remove(goal)
            raise
        call = Look(self.number(), split(path))
        seen = await self.told(call, self._seen(fs, path, since), lambda seen: seen)
        if isinstance(seen, frozenset):
            self.record.end_goal(goal, split(path), seen)

    async def _seen(self, fs: Client, path: str, since: float) -> Sight:
        return self.record.sight(await fs.stat(path), since)

    async def set_goals(self, fs: Client) -> None:
        """Of all that is below a directory."""
        path, since = self.chance.choice(["/", *DIRECTORIES]), trio.current_time()
        before = await self._files_below(fs, path)
        goal = self.record.begin_goal(self.chance.choice([0, 1, 2, 3]))
        work = fs.set_replication(path, goal.value, recursive=True)
        count = await self.told(Look(self.number(), split(path)), work, lambda _: None)
        goal.ended = trio.current_time()
        steady = [entry for entry in before if self._is_steady(entry.path, since)]
        if count < len(steady):
            raise Violation(f"the goals of {count} files were set, {len(steady)} were there")
        for entry in steady:
            number = self.record.by_inode.get(entry.inode)
            if number is not None:
                self.record.goals.append(replace(goal, of=number))

    async def _files_below(self, fs: Client, path: str) -> Sequence[Entry]:
        """As they were; nothing if they cannot all be seen."""
        try:
            return [entry async for entry in fs.walk(path) if entry.kind == "file"]
        except REFUSALS:
            return []

    # --- the rest --------------------------------------------------------------------------------

    async def look_around(self, fs: Client) -> None:
        """What changes nothing; and where nobody else does, it says what a walk does."""
        path, since = self.chance.choice(["/", "/", *DIRECTORIES]), trio.current_time()
        call = Look(self.number(), split(path))
        usage = await self.told(call, fs.disk_usage(path), lambda _: None)
        totals = self._check_status(await fs.status())
        try:
            entries = [entry async for entry in fs.walk(path)]
        except REFUSALS:
            return
        if not self._is_quiet(since):
            return
        # What is appended to is told with the next heartbeats.
        length = sum(entry.length for entry in entries) if not self.record.appends else None
        files = sum(entry.kind == "file" for entry in entries)
        # The totals have a deleted tree until its rows are given up, piece by piece.
        deleted = any(isinstance(event.call, Delete) for event in self.record.history)
        for told in (usage, totals) if path == "/" and not deleted else (usage,):
            if (told.files, told.directories) != (files, len(entries) - files) or (
                length is not None and told.bytes != length
            ):
                raise Violation(f"{path}: {told}; there are {entries}")

    def _check_status(self, status: StatusReply) -> ClusterTotals:
        """What it says of servers and chunks where nothing is wrong."""
        servers = {server.address for server in status.servers}
        if len(status.servers) != len(servers) or len(servers) > self.plan.chunkservers:
            raise Violation(f"the servers {[s.address for s in status.servers]}")
        if not self.plan.faults:
            away = [server for server in status.servers if server.state != "live"]
            if away or len(servers) < self.plan.chunkservers:
                raise Violation(f"nothing is wrong, and of the servers are not live: {away}")
            if status.totals.lost or status.totals.corrupt:
                raise Violation(f"nothing is wrong: {status.totals}")
        return status.totals

    def _is_quiet(self, since: float) -> bool:
        """Whether nobody changed anything from ``since`` on."""
        record = self.record
        models = [*record.files.values(), *record.copies.values()]
        return not (
            any(event.ended >= since and not event.call.pure for event in record.history)
            or any(write.acknowledged >= since for model in models for write in model.writes)
            or any(each.acknowledged >= since for each in record.appends.values())
        )

    async def drain(self, fs: Client) -> None:
        """Empty a chunkserver for a while, or for good."""
        servers = (await fs.status()).servers
        drained = [server for server in servers if server.drain]
        if drained and self.chance.random() < 0.7:
            await fs.drain(self.chance.choice(drained).id, cancel=True)
        elif servers:
            server = self.chance.choice(servers).address
            self.record.drained.add(server)
            await fs.drain(server, fewer_racks=self.chance.random() < 0.5)

    async def maintain(self, fs: Client) -> None:
        """A chunkserver may be away for a little longer, or not any more."""
        servers = (await fs.status()).servers
        if not servers:
            return
        try:
            await fs.maintain(self.chance.choice(servers).id, self.chance.choice([0, 5]))
        except InvalidArgument as error:
            self._refusal = error  # it is dead already
            raise

    async def repair(self, fs: Client) -> None:
        """How far it is: nothing is lost where nothing is wrong."""
        reply = await fs.repair()
        if not self.plan.faults and (reply.lost or reply.paused):
            raise Violation(f"nothing is wrong: {reply}")

    async def drain_disk(self, fs: Client) -> None:
        """Have the replicas of a disk on the server's others; or not any more."""
        servers = (await fs.status()).servers
        if not servers:
            return
        server = self.chance.choice(servers)
        draining = [disk.path for disk in server.disks if disk.state == "draining"]
        path = self.chance.choice(draining or self._cluster.disks)
        action = "undrain" if draining else "drain"
        if action == "drain":
            self.record.draining.add((server.address, path))
        try:
            await fs.order_disk(server.address, path, action)
        except (InvalidArgument, NotFound, DiskFailed) as error:
            self._refusal = error  # the only disk, or one that has failed
            raise

    async def locate(self, fs: Client) -> None:
        path, since = self._readable(), trio.current_time()
        call = Look(self.number(), split(path), opens=True)
        report = await self.told(
            call, fs.locate(path), lambda found: self.record.sight(found.entry, since)
        )
        for chunk in report.chunks:
            servers = {server.id for server in chunk.replicas}
            if len(servers) != len(chunk.replicas) or len(servers) > self.plan.chunkservers:
                raise Violation(f"{path}: {chunk}")
        if self._is_steady(path, since):
            self._check_chunks(path, report)

    def _check_chunks(self, path: str, report: LocateReport) -> None:
        """Of a file that was there all the time."""
        indexes = [chunk.index for chunk in report.chunks]
        handles = {chunk.handle for chunk in report.chunks}
        least = -(-report.entry.length // CHUNK_BYTES)
        if indexes != list(range(len(indexes))) or len(indexes) < least:
            raise Violation(f"{report.entry} has the chunks {indexes}")
        if len(handles) != len(indexes):
            raise Violation(f"{path}: a chunk is in it twice: {report.chunks}")
        model = self.record.model(report.entry)
        if model is None or self.record.snapshots:
            return  # a chunk of several files has the highest of their goals
        usual = self.plan.master.replication
        goals = {goal or usual for goal in self.record.all_goals_of(model)}
        for chunk in report.chunks:
            if (chunk.goal or usual) not in goals:
                raise Violation(f"{path}: {chunk}: its goal must be of {sorted(goals)}")

    async def fsck(self, fs: Client) -> None:
        since, verify = trio.current_time(), self.chance.random() < 0.5
        report = await fs.fsck("/", verify=verify)
        found = {problem.kind for problem in report.problems}
        if "corrupt" in found and not DAMAGING & self.plan.faults.keys():
            raise Violation(f"no disk did any harm: {report.problems}")
        if "lost" in found and not self.plan.faults:
            raise Violation(f"nothing is wrong: {report.problems}")
        files = [entry async for entry in fs.walk("/") if entry.kind == "file"]
        if self._is_quiet(since) and report.files != len(files):
            raise Violation(f"fsck looked at {report.files} files of {len(files)}")


def _content(path: str) -> bytes | None:
    """Of a file of this machine's, if there is one."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


@contextmanager
def told_of_appends(record: Record) -> Iterator[None]:
    """While a run lasts, the library tells what only it knows: that ``append`` made a
    file, and which file took a record."""
    put, hear = appending.put, appending.Appender._hear

    async def put_and_tell(core: ClientCore, source: bytes, path: str, **more: object) -> Entry:
        number = record.next_number()
        record.new_file(number, source, {LOG: "1"})
        who = core.world.network._machine  # type: ignore[attr-defined]
        event = record.begin(who, Publish(number, split(path), False, True))
        try:
            entry = await put(core, source, path, **more)  # type: ignore[arg-type]
        except REFUSALS as error:
            record.end(event, error.code)
            raise
        record.end(event, OK)
        record.published(number, entry.inode)
        return entry

    async def hear_and_tell(
        appender: appending.Appender,
        connection: BulkConnection,
        lease: appending._Lease,
        flight: appending._Flight,
    ) -> bool:
        batch = flight.batches[0]
        full = await hear(appender, connection, lease, flight)
        for pending in batch:
            if pending.done.is_set():
                record.took[bytes(pending.data)] = appender._inode
        return full

    appending.put = put_and_tell  # type: ignore[assignment]
    appending.Appender._hear = hear_and_tell  # type: ignore[method-assign]
    try:
        yield
    finally:
        appending.put = put
        appending.Appender._hear = hear  # type: ignore[method-assign]


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 3 * BLOCK_BYTES // 2):
        yield data[at : at + 3 * BLOCK_BYTES // 2]


#: Every call, and how often it is made among all.
CALLS: dict[Callable[[Actor, Client], Awaitable[None]], float] = {
    Actor.put: 20,
    Actor.write_new: 8,
    Actor.get: 10,
    Actor.read: 10,
    Actor.stream: 4,
    Actor.update: 20,
    Actor.write_beside: 5,
    Actor.churn: 0.5,
    Actor.put_many: 8,
    Actor.get_many: 6,
    Actor.at_once: 10,
    Actor.stat_many: 2,
    Actor.make_log: 6,
    Actor.append: 14,
    Actor.records: 6,
    Actor.stat: 6,
    Actor.exists: 2,
    Actor.list: 4,
    Actor.list_files: 4,
    Actor.list_all_files: 1,
    Actor.walk: 2,
    Actor.mkdir: 5,
    Actor.rename: 8,
    Actor.snapshot: 5,
    Actor.delete: 8,
    Actor.delete_many: 2,
    Actor.prune: 1,
    Actor.undelete: 5,
    Actor.empty_trash: 0.5,
    Actor.set_attributes: 2,
    Actor.set_goal: 4,
    Actor.set_goals: 1,
    Actor.look_around: 3,
    Actor.drain: 2,
    Actor.drain_disk: 2,
    Actor.maintain: 1,
    Actor.repair: 1,
    Actor.locate: 1,
    Actor.fsck: 1,
}

__all__ = ["CALLS", "DIRECTORY", "Actor"]

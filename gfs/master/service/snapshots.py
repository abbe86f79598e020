"""Snapshots: a copy of a file or a directory tree at once, by sharing its chunks
(the paper, 3.4).

No byte of data is copied: the copy's files have the same chunks, each of which
counts who has it (:mod:`gfs.master.metadata.shared_chunks`). The rows of the names are copied, in
pieces, each a mutation of its own, so that others are served in between (100,000
files take seconds). Meanwhile the copy has no name: it is invisible until the last
mutation gives it one.

The source does not change until then, so that it does not matter when each piece was
copied; the copy is the source at the instant of that last mutation:

* names: everything that would change an entry at or below the source, or move or
  delete it or a directory above it, is answered Busy, by the plans of
  :mod:`gfs.master.metadata.namespace`. For that the store's counters have the snapshots under way.
* bytes: before a file is copied nobody gets a new lease of its chunks, or sets its
  length (:attr:`~gfs.master.tables.leases.LeaseTable.held`), and existing leases are
  revoked: a write under way may end; later ones need a lease, and wait.

Afterwards a write finds that its chunk is shared, and gets a copy of it
(:mod:`gfs.master.leases.copy_on_write`).

A master that dies leaves a copy without a name. The next one compares it with the
source to find out how far it is, lets no client write meanwhile, and continues when the
client repeats its request; so a snapshot completes even if masters die repeatedly. If
its client does not ask within ``OLD_SECONDS``, the copy is given up and reclaimed like
a row of the trash.

Rejected: copying directories when they are first changed, in constant time. It
would make every look-up and every inode number depend on which part of which tree
is shared.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import trio

from gfs.errors import (
    AlreadyExists,
    Busy,
    GfsError,
    InvalidArgument,
    NotFound,
    invariant,
)
from gfs.master.leases import Grants
from gfs.master.master import Master
from gfs.master.metadata import Outcome, Store, Txn, UnderWay, lookups, shared_chunks
from gfs.master.metadata.namespace import (
    Place,
    Planned,
    check_thawed,
    chunk_row,
    find,
    inode_row,
    place_for,
)
from gfs.master.metadata.operations import (
    Copied,
    SnapshotAbandoned,
    SnapshotBegun,
    SnapshotCopied,
    SnapshotFinished,
)
from gfs.master.metadata.paths import parse
from gfs.master.metadata.rows import (
    KIND_DIRECTORY,
    KIND_FILE,
    entry_key,
    pack_file_chunk_key,
    unpack_entry,
    unpack_u64,
)
from gfs.master.tables import FIRST_LEASED_VERSION, Lease
from gfs.protocol.messages import Done, RevokeLease, Snapshot, SnapshotReply

log = logging.getLogger(__name__)

#: Entries and chunks copied in one mutation: some 5 ms.
PIECE = 256
#: The most requested snapshots; they are made one after another.
RUNS_MAX = 64
#: The client gets an interim answer after this.
ANSWER_SECONDS = 2.0
#: How long a write under way may take, before it is cut off and must be repeated.
PATIENCE_SECONDS = 1.0
REVOKE_SECONDS = 5.0
REVOKES_AT_ONCE = 32
#: A snapshot is given up unless the leases and grants of a piece end within this.
QUIET_SECONDS = 20.0
POLL_SECONDS = 0.02
ABANDON_REST_SECONDS = 0.5
#: A snapshot that the previous master began is given up when its client has not asked again.
OLD_SECONDS = 10.0
#: Entries of a copy that are compared in one slice.
LOOK_SLICE = 1000


# --- plans -------------------------------------------------------------------------


def _target(txn: Txn, request: Snapshot, source: int) -> Place:
    segments = parse(request.target)
    if not segments:
        raise AlreadyExists("/ exists already")
    place = place_for(txn, segments, request.parents)
    if source in place.passed:
        raise InvalidArgument(f"{request.target} is in {request.source}: take another place")
    if place.existing(txn) is not None:
        raise AlreadyExists(f"{request.target} exists already")
    return place


def plan_begin(txn: Txn, request: Snapshot, time_ns: int) -> tuple[SnapshotBegun, Done]:
    segments = parse(request.source)
    if not segments:
        raise InvalidArgument(
            "/ cannot be copied into itself: make snapshots of the directories in it"
        )
    origin = place_for(txn, segments, parents=False)
    found = origin.existing(txn)
    if found is None:
        raise NotFound(f"{request.source}: no such file or directory")
    source = found[0]
    _target(txn, request, source)
    check_thawed(txn, [source])
    operation = SnapshotBegun(time_ns, source, txn.state.next_inode, origin.passed)
    return operation, Done(id=0)


def plan_copy(txn: Txn, pieces: list[Copied], time_ns: int) -> Planned:
    """``pieces`` that make an inode get the next inode numbers."""
    number = txn.state.next_inode
    numbered = []
    for piece in pieces:
        copy = piece.copy
        if piece.parent:
            copy, number = number, number + 1
        numbered.append(
            Copied(piece.source, copy, piece.parent, piece.name, piece.first, piece.count)
        )
    return SnapshotCopied(time_ns, numbered), Done(id=0)


def plan_finish(
    txn: Txn, request: Snapshot, copy: int, reply: SnapshotReply, time_ns: int
) -> Planned:
    source = next((s.source for s in txn.state.snapshots if s.copy == copy), None)
    if source is None:
        raise Busy("the snapshot was given up: try again")
    place = _target(txn, request, source)
    operation = SnapshotFinished(time_ns, place.made, copy, place.parent, place.name)
    return operation, reply


def plan_abandon(txn: Txn, copy: int, time_ns: int) -> Planned:
    if all(snapshot.copy != copy for snapshot in txn.state.snapshots):
        return None, Done(id=0)
    return SnapshotAbandoned(time_ns, copy), Done(id=0)


# --- walking -----------------------------------------------------------------------


class _Chunks(NamedTuple):
    """The chunks of a file that are not shared yet."""

    source: int
    copy: int
    first: int
    end: int


class _Directory(NamedTuple):
    source: int
    copy: int
    after: bytes


class Walk:
    """The entries to be copied, piece by piece, while nothing of the source changes. It
    keeps the directories that it has not visited."""

    def __init__(self, source: int, copy: int, kind: int, chunks: int, piece: int = PIECE) -> None:
        self._piece = piece
        self._chunks: deque[_Chunks] = deque()
        self._directories: deque[_Directory] = deque()
        if kind == KIND_DIRECTORY:
            self._directories.append(_Directory(source, copy, b""))
        else:
            self._chunks.append(_Chunks(source, copy, 0, chunks))
        self.reply = SnapshotReply(0, False, 0, 0, 0)

    @property
    def is_done(self) -> bool:
        return not (self._chunks or self._directories)

    def next(self, txn: Txn) -> list[Copied]:
        """The next pieces to copy. The walk advances only with :meth:`copied`."""
        if self._chunks:
            left = self._chunks[0]
            count = min(self._piece, left.end - left.first)
            return [Copied(left.source, left.copy, 0, b"", left.first, count)]
        source, copy, after = self._directories[0]
        pieces: list[Copied] = []
        room = self._piece
        for name, inode, _ in lookups.children(txn, source, after):
            row = inode_row(txn, inode)
            invariant(row is not None, "what has a name has an inode")
            count = min(row.chunks, room - 1) if row is not None else 0
            pieces.append(Copied(inode, 0, copy, name, 0, count))
            room -= 1 + count
            if room <= 0 or (row is not None and count < row.chunks):
                break
        return pieces

    def copied(self, txn: Txn, pieces: list[Copied]) -> None:
        """Advance past the pieces that the operation has copied."""
        if self._chunks:
            self._more_chunks(pieces[0])
            return
        directory = self._directories.popleft()
        if pieces:
            self._directories.appendleft(directory._replace(after=pieces[-1].name))
        for piece in pieces:
            row = inode_row(txn, piece.source)
            if row is None:
                raise AssertionError("the source of a snapshot does not change")
            if row.kind == KIND_DIRECTORY:
                self.reply.directories += 1
                self._directories.append(_Directory(piece.source, piece.copy, b""))
            else:
                self.reply.files += 1
                self.reply.bytes += row.length
                if piece.count < row.chunks:
                    self._chunks.append(_Chunks(piece.source, piece.copy, piece.count, row.chunks))

    def resume(self, store: Store) -> Iterator[list[int]]:
        """Advance past what the copy has already, which is possible because no row of
        the source has changed since. In slices: yields the inodes of the source that
        were copied."""
        pending = list(self._directories)
        for left in list(self._chunks):
            with store.read() as txn:
                row = inode_row(txn, left.source)
            self._chunks.clear()
            self._resume_file(store, left.source, left.copy, 0 if row is None else row.chunks)
            yield [left.source]
        self._directories.clear()
        while pending:
            source, copy, after = pending.pop(0)
            with store.read() as txn:
                found = [
                    (name, inode, kind, *unpack_entry(_entry(txn, source, name)))
                    for name, inode, kind in islice(lookups.children(txn, copy, after), LOOK_SLICE)
                ]
            for name, of_copy, kind, of_source, _ in found:
                after = name
                with store.read() as txn:
                    row = inode_row(txn, of_source)
                if row is None:
                    raise AssertionError("the source of a snapshot does not change")
                if kind == KIND_DIRECTORY:
                    self.reply.directories += 1
                    pending.append(_Directory(of_source, of_copy, b""))
                else:
                    self.reply.files += 1
                    self.reply.bytes += row.length
                    self._resume_file(store, of_source, of_copy, row.chunks)
            if len(found) == LOOK_SLICE:
                pending.insert(0, _Directory(source, copy, after))
            else:
                self._directories.append(_Directory(source, copy, after))
            yield [of_source for _, _, _, of_source, _ in found]

    def _resume_file(self, store: Store, source: int, copy: int, chunks: int) -> None:
        with store.read() as txn:
            first = sum(1 for _ in lookups.chunk_rows(txn, copy, 0))
        if first < chunks:
            self._chunks.append(_Chunks(source, copy, first, chunks))

    def _more_chunks(self, piece: Copied) -> None:
        left = self._chunks.popleft()._replace(first=piece.first + piece.count)
        if left.first < left.end:
            self._chunks.appendleft(left)


def _entry(txn: Txn, directory: int, name: bytes) -> bytes:
    return txn.get(entry_key(directory, name), b"", txn.db.entries)


def _handles(txn: Txn, pieces: list[Copied]) -> Iterator[int]:
    for piece in pieces:
        for index in range(piece.first, piece.first + piece.count):
            yield unpack_u64(
                txn.get(pack_file_chunk_key(piece.source, index), b"", txn.db.file_chunks)
            )


# --- carrying it out ---------------------------------------------------------------


class _Run:
    """One requested snapshot."""

    def __init__(self, request: Snapshot) -> None:
        self.request = request
        self.reply = SnapshotReply(0, False, 0, 0, 0)
        self.outcome: Outcome | None = None
        self.ended = trio.Event()
        #: Whether the outcome was returned to its client.
        self.is_answered = False


class Snapshots:
    """All snapshots of a master: one at a time, each in a task of ``nursery``, so that
    it continues when its client's connection ends."""

    def __init__(self, master: Master, grants: Grants, nursery: trio.Nursery) -> None:
        self._master = master
        self._grants = grants
        self._nursery = nursery
        self._turn = trio.Lock()
        self._runs: dict[tuple[str, int], _Run] = {}
        #: Source -> what a master before this one has copied of it.
        self._old: dict[int, tuple[UnderWay, Walk]] = {}
        if master.store.state.snapshots:
            master.leases.holds_all = True
            nursery.start_soon(self._take_up_old)

    async def ask(self, request: Snapshot) -> SnapshotReply:
        """Begin the snapshot, or return its progress. Raises the error that refuses it."""
        key = (request.client, request.sequence)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._begin(request)
        with trio.move_on_after(ANSWER_SECONDS):
            await run.ended.wait()
        if run.outcome is None:
            reply = run.reply
            return SnapshotReply(0, False, reply.files, reply.directories, reply.bytes)
        run.is_answered = True
        if isinstance(run.outcome, GfsError):
            self._runs.pop(key, None)  # a repeated request tries again
            raise run.outcome
        invariant(isinstance(run.outcome, SnapshotReply), "a snapshot is answered as such")
        reply = run.outcome  # type: ignore[assignment]
        return SnapshotReply(0, True, reply.files, reply.directories, reply.bytes)

    def _begin(self, request: Snapshot) -> _Run:
        for key, run in list(self._runs.items()):
            if len(self._runs) < RUNS_MAX and not run.is_answered:
                break
            if run.outcome is not None:
                del self._runs[key]
        if len(self._runs) >= RUNS_MAX:
            raise Busy(f"{RUNS_MAX} snapshots are waiting already: try again")
        run = _Run(request)
        self._nursery.start_soon(self._carry_out, run)
        return run

    async def _carry_out(self, run: _Run) -> None:
        outcome: Outcome
        try:
            # Only the client that asked for one may continue it.
            while self._master.leases.holds_all or (
                self._old and self._old_of(run.request) is None
            ):
                await self._master.world.clock.sleep(POLL_SECONDS)
            async with self._turn:
                outcome = await self._make(run)
        except GfsError as error:
            outcome = error
        except Exception as error:
            log.exception("a snapshot failed because of a bug in the master")
            outcome = GfsError(f"the master failed on this request: {error!r}")
        run.outcome = outcome
        run.ended.set()

    async def _make(self, run: _Run) -> Outcome:
        master = self._master
        if (old := self._old.pop(self._old_of(run.request) or 0, None)) is not None:
            log.info("a snapshot that the previous master began is continued")
            return await self._make_whole(run, *old)
        begun: SnapshotBegun | None = None
        time_ns = master.world.clock.time_ns()

        def begin(txn: Txn) -> Planned:
            nonlocal begun
            begun, reply = plan_begin(txn, run.request, time_ns)
            return begun, reply

        made = False
        try:
            await master.committer.perform(begin)
            made = True
        finally:
            # It may have begun although this raised, if only shadow masters lacked it.
            if begun is not None and not made:
                await self._abandon(begun.copy)
        if begun is None:
            raise AssertionError("a snapshot begins")
        return await self._make_whole(run, UnderWay(begun.source, begun.copy, begun.above), None)

    def _old_of(self, request: Snapshot) -> int | None:
        """The source of this snapshot's copy, if a former master has begun one."""
        with self._master.store.read() as txn:
            found = find(txn, parse(request.source)) if self._old else None
        return found[0] if found is not None and found[0] in self._old else None

    async def _make_whole(self, run: _Run, under_way: UnderWay, walk: Walk | None) -> Outcome:
        """Copy the rest and give the copy its name; or give it up."""
        finished = False
        try:
            await self._copy(run, under_way, walk)
            outcome = await self._finish(run, under_way.copy)
            finished = not isinstance(outcome, GfsError)
        finally:
            if not finished:
                await self._abandon(under_way.copy)
            self._master.leases.held.clear()
        return outcome

    def _begin_walk(self, under_way: UnderWay) -> Walk:
        with self._master.store.read() as txn:
            row = inode_row(txn, under_way.source)
        if row is None:
            raise AssertionError("the source of a snapshot does not change")
        return Walk(under_way.source, under_way.copy, row.kind, row.chunks)

    async def _copy(self, run: _Run, under_way: UnderWay, walk: Walk | None) -> None:
        master = self._master
        with master.store.read() as txn:
            row = inode_row(txn, under_way.source)
        if row is None:
            raise AssertionError("the source of a snapshot does not change")
        if row.kind == KIND_FILE:
            # Its chunks are counted when none can be added any more.
            await self._hold([under_way.source])
            with master.store.read() as txn:
                row = inode_row(txn, under_way.source) or row
            run.reply.files, run.reply.bytes = 1, row.length
        if walk is None:
            walk = self._begin_walk(under_way)
        if row.kind == KIND_DIRECTORY:
            run.reply = walk.reply
        while not walk.is_done:
            with master.store.read() as txn:
                pieces = walk.next(txn)
            if await self._hold([piece.source for piece in pieces]):
                with master.store.read() as txn:
                    pieces = walk.next(txn)  # a grant that was under way may have added chunks
            await self._end_leases(pieces)
            if pieces:
                plan = partial(plan_copy, pieces=pieces, time_ns=master.world.clock.time_ns())
                operation, _ = await master.committer.perform(plan)
                if not isinstance(operation, SnapshotCopied):
                    raise AssertionError("a piece is copied")
                pieces = operation.pieces
            with master.store.read() as txn:
                walk.copied(txn, pieces)

    async def _finish(self, run: _Run, copy: int) -> Outcome:
        master = self._master
        reply = run.reply
        done = SnapshotReply(0, True, reply.files, reply.directories, reply.bytes)
        plan = partial(
            plan_finish,
            request=run.request,
            copy=copy,
            reply=done,
            time_ns=master.world.clock.time_ns(),
        )
        return await master.committer.ask(run.request.client, run.request.sequence, plan)

    # --- standing still ----------------------------------------------------------------

    async def _hold(self, inodes: list[int]) -> bool:
        """Prevent new leases of these files' chunks; True if one was granted just now."""
        held = self._master.leases.held
        held.update(inodes)
        waited = False
        with trio.move_on_after(QUIET_SECONDS) as scope:
            while self._grants.is_busy(inodes):
                waited = True
                await self._master.world.clock.sleep(POLL_SECONDS)
        if scope.cancelled_caught:
            raise Busy("a chunk to be copied is leased again and again: try again")
        return waited

    async def _end_old_leases(self, pieces: list[Copied]) -> None:
        """End leases of a former master. Their primaries are not known, so the replicas
        get a version without a lease; or the leases expire."""
        master = self._master
        fenced: set[int] = set()
        while master.now < master.leases.old_until:
            with master.store.read() as txn:
                leased = [
                    handle
                    for handle in dict.fromkeys(_handles(txn, pieces))
                    if handle not in fenced
                    and (row := chunk_row(txn, handle)) is not None
                    and row.attempted >= FIRST_LEASED_VERSION
                    and not shared_chunks.is_frozen(row)
                ]
            if not leased:
                return
            slots = trio.CapacityLimiter(REVOKES_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for handle in leased:
                    await slots.acquire_on_behalf_of(handle)
                    nursery.start_soon(self._fence, handle, fenced, slots)
            if not fenced.issuperset(leased):
                await master.world.clock.sleep(ABANDON_REST_SECONDS)

    async def _fence(self, handle: int, fenced: set[int], slots: trio.CapacityLimiter) -> None:
        try:
            await self._grants.fence(handle, frozenset())
            self._master.leases.drop(handle)
            fenced.add(handle)
        except (GfsError, ConnectionError) as error:
            log.info(
                "leases of chunk %x from the previous master must expire first: %s", handle, error
            )
        finally:
            slots.release_on_behalf_of(handle)

    async def _end_leases(self, pieces: list[Copied]) -> None:
        master = self._master
        await self._end_old_leases(pieces)
        if not len(master.leases):
            return
        with master.store.read() as txn:
            leased = {
                handle: lease
                for handle in _handles(txn, pieces)
                if (lease := master.leases.current(handle, master.now)) is not None
            }
        slots = trio.CapacityLimiter(REVOKES_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for handle, lease in leased.items():
                await slots.acquire_on_behalf_of(handle)
                nursery.start_soon(self._end_lease, handle, lease, slots)
        if any(master.leases.current(handle, master.now) for handle in leased):
            raise Busy("a lease of a file to be copied could not be revoked: try again")

    async def _end_lease(self, handle: int, lease: Lease, slots: trio.CapacityLimiter) -> None:
        """Revoke a lease; or, if its primary does not answer, raise the version of the
        other replicas, which makes the lease useless. If there is no other, it has to
        expire."""
        master = self._master
        master.leases.revoking.add(handle)
        try:
            primary = master.servers.get(lease.primary)
            order = RevokeLease(0, handle, int(PATIENCE_SECONDS * 1000))
            try:
                if primary.rpc is None:
                    raise ConnectionResetError("its connection ended")
                await primary.rpc.call(order, seconds=REVOKE_SECONDS)
            except (GfsError, ConnectionError) as error:
                log.info("the lease of chunk %x was not revoked: %s", handle, error)
                await self._grants.fence(handle, frozenset([lease.primary]))
            master.leases.drop(handle)
        except (GfsError, ConnectionError) as error:
            log.info("the lease of chunk %x must expire first: %s", handle, error)
            with trio.move_on_after(QUIET_SECONDS):
                while master.leases.current(handle, master.now) is not None:
                    await master.world.clock.sleep(POLL_SECONDS)
        finally:
            master.leases.revoking.discard(handle)
            slots.release_on_behalf_of(handle)

    # --- giving up ---------------------------------------------------------------------

    async def _abandon(self, copy: int) -> None:
        """Give the copy up. Until this is done, the source cannot change."""
        master = self._master
        while True:
            # Nobody waits for an answer, so it does not wait for shadow masters.
            plan = partial(plan_abandon, copy=copy, time_ns=master.world.clock.time_ns())
            outcome = await master.committer.ask("", 0, plan)
            if not isinstance(outcome, GfsError):
                return
            log.warning("a snapshot could not be given up: %s", outcome)
            await master.world.clock.sleep(ABANDON_REST_SECONDS)

    async def _take_up_old(self) -> None:
        """Continue snapshots that a former master began, when their clients ask again."""
        master = self._master
        async with self._turn:
            for under_way in master.store.state.snapshots:
                walk = self._begin_walk(under_way)
                for inodes in walk.resume(master.store):
                    master.leases.held.update(inodes)
                    await trio.lowlevel.checkpoint()
                self._old[under_way.source] = under_way, walk
            master.leases.holds_all = False
        await master.world.clock.sleep(OLD_SECONDS)
        async with self._turn:
            for under_way, _ in self._old.values():
                log.info(
                    "a snapshot that the previous master began is given up: its client did not "
                    "ask again"
                )
                await self._abandon(under_way.copy)
            if self._old:
                self._old.clear()
                master.leases.held.clear()

"""The namespace on real LMDB against a plain dict, through the committer.

Hypothesis makes up mutations, alone and in groups, retries of earlier ones,
restarts, and pieces of reclaiming. After each step the whole tree, the
listings and the totals are what the dict says; at the end the operation log,
applied to an empty store, makes the same rows again.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from share import share

from gfs.errors import (
    Busy,
    GfsError,
    InvalidArgument,
    NotADirectory,
    NotFound,
)
from gfs.io import real_world
from gfs.master.metadata import lookups, operation_log, trash
from gfs.master.metadata.committer import Committer, Job, Outcome, Plan
from gfs.master.metadata.namespace import (
    Planned,
    chunk_handle,
    chunk_row,
    inode_row,
    lookup,
    plan_add_chunk,
    plan_attempt_version,
    plan_delete,
    plan_join,
    plan_make_directory,
    plan_publish,
    plan_rename,
    plan_replace_chunk,
    plan_set_attributes,
    plan_set_length,
    plan_set_replication,
)
from gfs.master.metadata.operations import (
    NewChunk,
    Operation,
    Reclaimed,
)
from gfs.master.metadata.rows import (
    KIND_FILE,
    chunk_of,
    pack_u64,
    unpack_file_chunk_key,
    unpack_u64,
)
from gfs.master.metadata.shared_chunks import goals_of, is_frozen
from gfs.master.metadata.store import HANDLE_RANGE, Freed, Store, Txn, open_store
from gfs.master.metadata.trash import (
    TrashBook,
    chunks_of,
    plan_empty,
    plan_empty_early,
    plan_undelete,
    rows_from,
)
from gfs.master.rules.trash_purge import Search, Shortage
from gfs.master.service.snapshots import Walk, plan_abandon, plan_begin, plan_copy, plan_finish
from gfs.protocol import messages as wire
from tests.simulation.names_model import (
    DIRECTORY,
    OK,
    Call,
    Delete,
    Look,
    MakeDirectory,
    Path,
    Publish,
    Refused,
    Rename,
    Snapshot,
    place,
    step,
)

CHUNK = 64 * 1024 * 1024
CLIENT = "a client"
MAP_BYTES = 1 << 28

NAMES = st.sampled_from(["a", "b", "c", "ä", "a.b"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(tuple)


class Held(NamedTuple):
    length: int
    digest: bytes
    attributes: dict[str, str]


#: What a path is: DIRECTORY, or a file's inode.
Tree = dict[Path, int]
DIGESTS = st.sampled_from([b"", b"0123456789abcdef"])
ATTRIBUTES = st.dictionaries(st.sampled_from(["x", "y-1"]), st.text(max_size=3), max_size=2)
#: Later than any reclaiming in here.
KEPT_NS = 10**15
#: An inode that nothing has.
NOBODY = 1 << 40


def text(path: Path) -> str:
    return "/" + "/".join(path)


class InTrash(NamedTuple):
    path: Path
    deleted_ns: int
    #: What there was, by its path below it; the empty one is itself.
    tree: Tree


class Model:
    """The tree, which the model of the simulation changes, what is in its files, and the trash."""

    def __init__(self) -> None:
        self.tree: Tree = {}
        self.files: dict[int, Held] = {}
        #: In the order of deletion.
        self.trash: list[InTrash] = []
        #: The inode that the store gave the file now published.
        self.new_inode = 0

    def carry_out(self, call: Call) -> object:
        tree = dict(self.tree)
        seen = call.change(tree)
        self.tree = tree
        return seen

    def lengths(self, tree: Tree) -> list[int]:
        return [self.files[inode].length for inode in tree.values() if inode]

    def publish(self, path: Path, request: wire.Publish, below: Path | None) -> None:
        if below is not None and (len(below) >= len(path) or path[: len(below)] != below):
            raise Refused("invalid_argument")
        expect = None if request.expect == -1 else request.expect
        more = request.replace, request.parents, len(below or ()), expect
        self.carry_out(Publish(self.new_inode, path, *more))
        self.files[self.new_inode] = Held(request.length, request.digest, request.attributes)

    def delete(self, path: Path, recursive: bool, expect: int, kept: bool, time_ns: int) -> None:
        before = self.tree
        if expect == 0:
            self.carry_out(Look(0, path))
            raise Refused("invalid_argument")
        self.carry_out(Delete(0, path, recursive, None if expect == -1 else expect))
        if kept:
            gone = {p[len(path) :]: before[p] for p in before if p not in self.tree}
            self.trash.append(InTrash(path, time_ns, gone))

    def undelete(self, path: Path, target: Path, chosen: InTrash | None) -> None:
        found = [entry for entry in self.trash if entry.path == path]
        if not found or (chosen and chosen not in found):
            raise Refused("not_found")
        chosen = chosen or found[-1]
        made = place(self.tree, target, True)
        if target in self.tree:
            raise Refused("already_exists")
        back = {target + below: node for below, node in chosen.tree.items()}
        self.tree = self.tree | dict.fromkeys(made, DIRECTORY) | back
        self.trash.remove(chosen)

    def set_attributes(
        self, path: Path, expect: int, given: dict[str, str], removed: list[str]
    ) -> None:
        inode = self.carry_out(Look(0, path))
        if expect == 0:
            raise Refused("invalid_argument")
        if expect > 0 and inode != expect:
            raise Refused("file_changed")
        if isinstance(inode, int) and inode != DIRECTORY:
            held = self.files[inode]
            stay = {k: v for k, v in held.attributes.items() if k not in removed}
            self.files[inode] = held._replace(attributes=stay | given)

    def empty(self, path: Path, recursive: bool) -> None:
        self.trash = [
            entry
            for entry in self.trash
            if not (entry.path == path or (recursive and entry.path[: len(path)] == path))
        ]


def plan_reclaim(limit: int) -> Plan:
    def plan(txn: Txn) -> Planned:
        keys = [key for key, _ in txn.scan(b"", txn.db.trash)]
        due = [(unpack_u64(key[:8]), unpack_u64(key[8:])) for key in keys]
        due = [row for row in due if row[0] < KEPT_NS]
        if not due:
            return None, wire.Done(id=0)
        return Reclaimed(*due[0], limit, due[1:]), wire.Done(id=0)

    return plan


class Real:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.freed: list[Freed] = []
        self.handles = itertools.count(1)
        self.times = itertools.count(1_000)
        self.open()

    def open(self) -> None:
        self.store = open_store(self.directory, MAP_BYTES, False, "feed", 7)
        self.committer = Committer(real_world(), self.store, 120.0, lambda effects: None)
        self.committer.uptime = self  # type: ignore[assignment]

    def now_ns(self) -> int:
        """Time passes with what happens."""
        return max(next(self.times), self.store.state.lived_ns)

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def commit(self, jobs: list[tuple[int, Plan]]) -> list[Outcome]:
        batch = [Job(CLIENT, number, plan, lambda _: None, 1) for number, plan in jobs]
        outcomes, effects = self.committer._commit(batch)
        self.freed += effects.freed
        return outcomes

    def perform(self, plan: Plan) -> Operation | None:
        """As the master's own; returns the operation."""
        made: list[Planned] = []

        def remember(txn: Txn) -> Planned:
            made[:] = [plan(txn)]
            return made[0]

        outcomes, effects = self.committer._commit([Job("", 0, remember, lambda _: None, 1)])
        self.freed += effects.freed
        assert isinstance(outcomes[0], wire.Message), outcomes
        return made[0][0]

    def reclaim(self, limit: int) -> None:
        self.perform(plan_reclaim(limit))

    def counted(self) -> TrashBook:
        """What the deleted directories hold, as a master that starts finds it."""
        book = TrashBook(self.store)
        for slices in (book.load(), book.count()):
            for _ in slices:
                pass
        assert not book.waiting
        return book

    def empty(self) -> None:
        request = wire.EmptyTrash(0, CLIENT, 0, "/", True)
        plan: Plan = lambda txn: plan_empty(txn, request, 1)  # noqa: E731
        assert isinstance(self.commit([(1_000_000, plan)])[0], wire.EmptyTrashReply)

    def reclaim_all(self, limit: int) -> None:
        for _ in range(10_000):
            with self.store.read() as txn:
                if not txn.count(txn.db.trash):
                    return
            self.reclaim(limit)
        raise AssertionError("reclaiming does not end")

    def chunks_for(self, length: int) -> list[NewChunk]:
        lengths = [CHUNK] * (length // CHUNK) + ([length % CHUNK] if length % CHUNK else [])
        return [NewChunk(next(self.handles), 1, held) for held in lengths]


Mutation = tuple[Plan, Callable[[Model], object]]


class NamespaceMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="gfs-namespace-")
        self.real = Real(self.directory)
        self.model = Model()
        self.numbers = itertools.count(1)
        #: What was answered: number -> (plan, outcome).
        self.answered: dict[int, tuple[Plan, Outcome]] = {}
        #: The names in each directory, by its inode, and when they were looked at.
        self.names: dict[int, set[Path]] = {}
        self.looked_at = 0

    def teardown(self) -> None:
        if not hasattr(self, "real"):
            return
        try:
            self.check_reclaimed()
            self.check_replay()
        finally:
            self.real.store.close()
            shutil.rmtree(self.directory)

    def some_path(self, data: st.DataObject, known: list[Path]) -> Path:
        """One of those, or any."""
        anything = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
        return data.draw(st.sampled_from(known) | anything if known else anything)

    def expected(self, data: st.DataObject, path: Path) -> int:
        inode = self.model.tree.get(path)
        wanted = [-1, -1, -1, 0, NOBODY]
        return data.draw(st.sampled_from([*wanted, inode] if inode else wanted))

    def publish(self, data: st.DataObject, path: Path) -> Mutation:
        length = data.draw(st.sampled_from([0, 1, CHUNK, CHUNK + 5, 3 * CHUNK]))
        below = data.draw(
            st.none() | st.none() | st.integers(0, len(path)).map(lambda n: path[:n]) | PATHS
        )
        replace, parents = data.draw(st.booleans()), data.draw(st.sampled_from([True, True, False]))
        request = wire.Publish(
            *(0, CLIENT, 0, text(path), length, 3, replace, parents, []),
            digest=data.draw(DIGESTS),
            attributes=data.draw(ATTRIBUTES),
            expect=self.expected(data, path),
            below="" if below is None else text(below),
        )
        return self.publishing(path, request, below)

    def publishing(self, path: Path, request: wire.Publish, below: Path | None = None) -> Mutation:
        chunks = self.real.chunks_for(request.length)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_publish(txn, request, chunks, 3, time_ns),
            lambda model: model.publish(path, request, below),
        )

    def joining(self, data: st.DataObject, path: Path) -> Mutation:
        """Of files that are there; mostly of such as can be joined."""
        files = [inode for inode in self.model.tree.values() if inode]
        whole = [
            inode
            for inode in files
            if self.model.files[inode].digest and not self.model.files[inode].length % CHUNK
        ]
        first = st.lists(st.sampled_from(whole), max_size=3) if whole else st.just([])
        last = st.lists(st.sampled_from(files), max_size=2) if files else st.just([])
        sources = data.draw(first) + data.draw(last)
        goal = data.draw(st.integers(1, 4))
        length = sum(self.model.files[inode].length for inode in sources)
        request = wire.Join(
            *(0, CLIENT, 0, text(path), length, goal, data.draw(st.booleans()), True, []),
            digest=data.draw(DIGESTS),
            attributes=data.draw(ATTRIBUTES),
            expect=self.expected(data, path),
        )
        time_ns = next(self.real.times)

        def expected(model: Model) -> None:
            passed = 0
            for inode in sources:
                if not model.files[inode].digest:
                    raise Refused("file_changed")
                if passed % CHUNK:
                    raise Refused("invalid_argument")
                passed += model.files[inode].length
            model.publish(path, request, None)

        return lambda txn: plan_join(txn, request, sources, goal, time_ns), expected

    def make_directory(self, path: Path, parents: bool, exist_ok: bool) -> Mutation:
        request = wire.MakeDirectory(0, CLIENT, 0, text(path), parents, exist_ok)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_make_directory(txn, request, time_ns),
            lambda model: model.carry_out(MakeDirectory(0, path, parents, exist_ok)),
        )

    def rename(self, source: Path, target: Path, replace: bool, parents: bool) -> Mutation:
        request = wire.Rename(0, CLIENT, 0, text(source), text(target), replace, parents)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_rename(txn, request, time_ns),
            lambda model: model.carry_out(Rename(0, source, target, replace, parents)),
        )

    def delete(self, path: Path, recursive: bool, expect: int, now: bool) -> Mutation:
        request = wire.Delete(0, CLIENT, 0, text(path), recursive, expect, now)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_delete(txn, request, time_ns, KEPT_NS),
            lambda model: model.delete(path, recursive, expect, not now, time_ns),
        )

    def undelete(self, data: st.DataObject, path: Path) -> Mutation:
        """The last one; or one by its inode, as the listing names it."""
        target = data.draw(st.none() | PATHS)
        with self.real.store.read() as txn:
            reported = [e for e in self.reported(txn, text(path)) if e.path == text(path)]
        inode, chosen = 0, None
        if reported and data.draw(st.booleans()):
            nth = data.draw(st.integers(0, len(reported) - 1))
            inode = reported[nth].inode
            chosen = [entry for entry in self.model.trash if entry.path == path][nth]
        new_name = text(target) if target else ""
        request = wire.Undelete(0, CLIENT, 0, text(path), new_name, inode)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_undelete(txn, request, time_ns),
            lambda model: model.undelete(path, target or path, chosen),
        )

    def set_attributes(self, data: st.DataObject, path: Path) -> Mutation:
        expect = self.expected(data, path)
        removed = data.draw(st.lists(st.sampled_from(["x", "y-1"]), max_size=1))
        given = data.draw(ATTRIBUTES)
        request = wire.SetAttributes(0, CLIENT, 0, text(path), given, removed, 0, expect)
        return (
            lambda txn: plan_set_attributes(txn, request),
            lambda model: model.set_attributes(path, expect, given, removed),
        )

    def set_replication(self, path: Path, goal: int) -> Mutation:
        request = wire.SetReplication(0, CLIENT, 0, text(path), goal)
        return (
            lambda txn: plan_set_replication(txn, request, goal),
            lambda model: model.carry_out(Look(0, path, opens=True)),
        )

    def empty(self, path: Path, recursive: bool) -> Mutation:
        request = wire.EmptyTrash(0, CLIENT, 0, text(path), recursive)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_empty(txn, request, time_ns),
            lambda model: model.empty(path, recursive),
        )

    def reported(self, txn: Txn, path: str) -> list[wire.TrashEntry]:
        book = self.real.counted()
        entries: list[wire.TrashEntry] = []
        cursor, more = b"", True
        while more:
            page, cursor = trash.page(txn, book, path, cursor, 2, lambda due_ns: due_ns)
            assert len(page) <= 2
            entries += page
            more = bool(cursor)
        return entries

    @rule(data=st.data(), count=st.integers(1, 6))
    def mutate(self, data: st.DataObject, count: int) -> None:
        flags = st.booleans()
        wanted = []
        for _ in range(count):
            kind = data.draw(st.integers(0, 14))
            path = self.some_path(data, list(self.model.tree))
            if kind <= 2:
                wanted.append(self.publish(data, path))
            elif kind == 3:
                wanted.append(self.make_directory(path, data.draw(flags), data.draw(flags)))
            elif kind <= 5:
                target = self.some_path(data, list(self.model.tree))
                wanted.append(self.rename(path, target, data.draw(flags), data.draw(flags)))
            elif kind <= 8:
                expect = self.expected(data, path)
                wanted.append(self.delete(path, data.draw(flags), expect, data.draw(flags)))
            elif kind <= 11:
                path = self.some_path(data, [entry.path for entry in self.model.trash])
                wanted.append(self.undelete(data, path))
            elif kind == 12:
                wanted.append(self.set_replication(path, data.draw(st.integers(1, 4))))
            elif kind == 13:
                wanted.append(self.set_attributes(data, path))
            else:
                path = self.some_path(data, [entry.path for entry in self.model.trash])
                wanted.append(self.empty(path, data.draw(flags)))
        self.carry_out(wanted)

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        self.carry_out([self.joining(data, self.some_path(data, list(self.model.tree)))])

    @rule(data=st.data(), flags=st.lists(st.booleans(), min_size=3, max_size=3))
    def snapshot(self, data: st.DataObject, flags: list[bool]) -> None:
        """Piece by piece, with attempts to change it in between; given up, or whole."""
        source = self.some_path(data, list(self.model.tree))
        target = self.some_path(data, [])
        parents, gives_up, dies = flags
        request = wire.Snapshot(0, CLIENT, 0, text(source), text(target), parents)
        call = Snapshot(0, source, target, parents)
        refused, _, _ = step(frozenset(self.model.tree.items()), call)
        if refused != OK:
            with pytest.raises(GfsError) as caught, self.real.store.read() as txn:
                plan_begin(txn, request, 5)
            assert caught.value.code == refused
            return
        begun = self.real.perform(partial(plan_begin, request=request, time_ns=5))
        with self.real.store.read() as txn:
            row = inode_row(txn, begun.source)
        walk = Walk(begun.source, begun.copy, row.kind, row.chunks, piece=3)
        while not walk.is_done:
            self.disturb(data, source)
            with self.real.store.read() as txn:
                pieces = walk.next(txn)
            if pieces:
                copied = self.real.perform(partial(plan_copy, pieces=pieces, time_ns=6))
                pieces = copied.pieces
            with self.real.store.read() as txn:
                walk.copied(txn, pieces)
            self.same_tree()
            self.real.reclaim(2)
        if gives_up:
            if dies:
                self.real.reopen()
            assert [s.copy for s in self.real.store.state.snapshots] == [begun.copy]
            self.real.perform(partial(plan_abandon, copy=begun.copy, time_ns=7))
            assert self.real.perform(partial(plan_abandon, copy=begun.copy, time_ns=7)) is None
        else:
            plan = partial(
                plan_finish,
                request=request,
                copy=begun.copy,
                reply=walk.reply,
                time_ns=next(self.real.times),
            )
            self.carry_out([(plan, lambda model: model.carry_out(call))])
            self.copied_inodes()
        assert self.real.store.state.snapshots == []

    def disturb(self, data: st.DataObject, source: Path) -> None:
        """What would change the source is refused; elsewhere things go on."""
        inside = (*source, data.draw(NAMES))
        paths = st.sampled_from([source, inside, source[:-1] or source, source])
        path = data.draw(paths)
        mutation = data.draw(
            st.sampled_from(
                [
                    self.delete(path, True, -1, True),
                    self.rename(path, ("elsewhere",), True, True),
                    self.rename(("elsewhere",), inside, True, True),
                    self.make_directory(inside, True, True),
                ]
            )
        )
        before = self.real.store.state.sequence
        outcome = self.real.commit([(next(self.numbers), mutation[0])])[0]
        assert isinstance(outcome, (Busy, NotFound, NotADirectory)), outcome
        assert self.real.store.state.sequence == before

    def copied_inodes(self) -> None:
        """The copies are files of their own."""
        for path, entry in self.everything().items():
            if (inode := self.model.tree[path]) < 0:
                self.model.tree[path] = entry.inode
                self.model.files[entry.inode] = self.model.files[-inode]

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """A chunk of a file is about to be written: shared, it is replaced by its own."""
        files = [inode for inode in self.model.tree.values() if inode]
        files = [inode for inode in files if self.model.files[inode].length]
        if not files:
            return
        inode = data.draw(st.sampled_from(files))
        held = self.model.files[inode]
        index = data.draw(st.integers(0, -(-held.length // CHUNK) - 1))
        with self.real.store.read() as txn:
            handle = chunk_handle(txn, inode, index)
            chunk = chunk_row(txn, handle)
        if is_frozen(chunk):
            new = {"shared": handle, "handle": next(self.real.handles), "version": 2}
            plan = partial(plan_replace_chunk, inode=inode, index=index, **new)
        else:
            plan = partial(plan_attempt_version, handle=handle, inode=inode)
        self.real.perform(plan)
        self.model.files[inode] = held._replace(digest=b"")

    @rule(data=st.data(), goal=st.integers(1, 4))
    def raise_or_lower(self, data: st.DataObject, goal: int) -> None:
        """Of a file that is there, perhaps one that shares its chunks."""
        files = [path for path, node in self.model.tree.items() if node]
        if files:
            self.carry_out([self.set_replication(data.draw(st.sampled_from(files)), goal)])

    @rule(data=st.data(), paths=st.lists(PATHS, min_size=1, max_size=4))
    def there_and_back(self, data: st.DataObject, paths: list[Path]) -> None:
        """Files appear, some go, some come back: what chance alone does too seldom."""
        for path in paths:
            request = wire.Publish(0, CLIENT, 0, text(path), CHUNK + 5, 3, True, True, [])
            self.carry_out([self.publishing(path, request)])
        for _ in range(data.draw(st.integers(1, 3))):
            path = data.draw(st.sampled_from(paths))
            path = path[: data.draw(st.integers(1, len(path)))]
            self.carry_out([self.delete(path, True, -1, False)])
        known = [entry.path for entry in self.model.trash]
        for path in data.draw(st.lists(st.sampled_from(known or paths), max_size=2)):
            self.carry_out([self.undelete(data, path)])

    def carry_out(self, wanted: list[Mutation]) -> None:
        jobs = [(next(self.numbers), plan) for plan, _ in wanted]
        outcomes = self.real.commit(jobs)
        for (number, plan), (_, expected), outcome in zip(jobs, wanted, outcomes, strict=True):
            self.compare(expected, outcome)
            self.answered[number] = (plan, outcome)

    def compare(self, expected: Callable[[Model], object], outcome: Outcome) -> None:
        if isinstance(outcome, wire.PublishReply):
            self.model.new_inode = outcome.entry.inode
        refused = ""
        try:
            expected(self.model)
        except Refused as error:
            refused = error.code
        assert getattr(outcome, "code", "") == refused, outcome

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """What succeeded gets the same answer, and changes nothing."""
        done = [n for n, (_, o) in self.answered.items() if isinstance(o, wire.Message)]
        if not done:
            return
        number = data.draw(st.sampled_from(done))
        plan, first = self.answered[number]
        sequence = self.real.store.state.sequence
        assert self.real.commit([(number, plan)]) == [first]
        assert self.real.store.state.sequence == sequence

    @rule()
    def reopen(self) -> None:
        before = self.real.store.state
        self.real.reopen()
        after = self.real.store.state
        assert after.handle_end == before.handle_end + HANDLE_RANGE
        assert msgspec.structs.replace(after, handle_end=0) == msgspec.structs.replace(
            before, handle_end=0
        )

    @rule(limit=st.integers(1, 4))
    def reclaim(self, limit: int) -> None:
        self.real.reclaim(limit)

    @rule(wanted=st.sampled_from([1, CHUNK, 5 * CHUNK]))
    def run_short_of_space(self, wanted: int) -> None:
        """What was deleted first goes first, no more than is needed and nothing that frees no
        space; all that frees some if everything is not enough."""
        store, time_ns = self.real.store, next(self.real.times)
        search = Search(store, lambda _: (0,), Shortage({0: wanted}, 1), time_ns)
        for _ in search.run():
            pass
        rows = search.chosen()
        everything = [inode for _, inode, _ in rows_from(store, time_ns)]
        chosen = [row.inode for row in rows]
        least = min(wanted, self.freed_by(everything))
        if not rows:
            assert least == 0
            return
        assert chosen == [inode for inode in everything if inode in chosen]
        assert self.freed_by(chosen) >= least > self.freed_by(chosen[:-1])
        for inode in chosen:
            assert self.freed_by(chosen) > self.freed_by([i for i in chosen if i != inode])
        for inode in everything[: everything.index(chosen[-1])]:
            assert inode in chosen or not self.freed_by([inode])
        plan = partial(
            plan_empty_early, time_ns=time_ns, wanted=[(row.due_ns, row.inode) for row in rows]
        )
        with store.read() as txn:
            gone = {e.deleted_ns for e in self.reported(txn, "/") if e.inode in chosen}
        assert isinstance(self.real.commit([(next(self.numbers), plan)])[0], wire.Done)
        self.model.trash = [e for e in self.model.trash if e.deleted_ns not in gone]

    def freed_by(self, inodes: list[int]) -> int:
        """Bytes of the chunks that no file has when these rows of the trash are gone."""
        store = self.real.store
        met = [chunk for inode in inodes for part in chunks_of(store, inode) for chunk in part]
        had = Counter(handle for handle, _, _ in met)
        return sum({h: held for h, references, held in met if had[h] == references}.values())

    def everything(self) -> dict[Path, wire.Entry]:
        found: dict[Path, wire.Entry] = {}
        with self.real.store.read() as txn:
            visits = list(lookups.walk(txn, "/", lookups.Cursor()))
            assert visits[0].segments == []
            assert not any(visit.row.flags for visit in visits)
            for visit in visits:
                chunks = lookups.file_chunks(txn, visit.inode, visit.row.length, 0)
                # A shared one has the highest goal of its files.
                assert all(chunk.goal >= visit.row.replication for chunk in chunks)
            for visit in visits[1:]:
                path = tuple(s.decode() for s in visit.segments)
                assert path not in found
                found[path] = lookups.stat(txn, text(path))
            order = [v.segments for v in visits]
            self.check_goals(txn)
        assert order == sorted(order)
        return found

    def check_goals(self, txn: Txn) -> None:
        """Each chunk knows the goals of the files that have it: of those in the trash too."""
        wanted: dict[bytes, Counter[int]] = {}
        for key, handle in txn.scan(b"", txn.db.file_chunks):
            row = inode_row(txn, unpack_file_chunk_key(key)[0])
            wanted.setdefault(handle, Counter())[row.replication] += 1
        rows = {key: chunk_of(row) for key, row in txn.scan(b"", txn.db.chunks)}
        assert {key: goals_of(row) for key, row in rows.items()} == wanted
        assert all(row.replication == max(wanted[key]) for key, row in rows.items())

    @invariant()
    def same_tree(self) -> None:
        found = self.everything()
        is_file = {path: entry.kind == "file" for path, entry in found.items()}
        reported = {path: entry.inode * is_file[path] for path, entry in found.items()}
        assert reported == self.model.tree
        assert len({e.inode for e in found.values()}) == len(found)
        for path, entry in found.items():
            held = Held(entry.length, entry.digest, entry.attributes)
            assert not is_file[path] or held == self.model.files[entry.inode]
            assert entry.path == text(path)
            assert entry.chunks == -(-entry.length // CHUNK)

    @invariant()
    def directories_whose_names_changed_say_when(self) -> None:
        found = self.everything()
        with self.real.store.read() as txn:
            found[()] = lookups.stat(txn, "/")
        before, self.names = self.names, {}
        for path, entry in found.items():
            if entry.kind == "directory":
                names = {below for below in found if below and below[:-1] == path}
                self.names[entry.inode] = {below[-1:] for below in names}
                if before.get(entry.inode, self.names[entry.inode]) != self.names[entry.inode]:
                    assert entry.modified_ns > self.looked_at, path
        self.looked_at = next(self.real.times)

    @invariant()
    def same_listings(self) -> None:
        tree = self.model.tree
        with self.real.store.read() as txn:
            for path in [(), *[p for p, n in tree.items() if n == DIRECTORY]]:
                names = sorted(
                    (p[-1] for p in tree if p[:-1] == path), key=lambda name: name.encode()
                )
                got, after, more = [], "", True
                while more:
                    page, more = lookups.list_page(txn, text(path), after, 2)
                    assert len(page) <= 2
                    got += [entry.path.rpartition("/")[2] for entry in page]
                    after = got[-1] if got else ""
                assert got == names

    @invariant()
    def same_trash(self) -> None:
        lengths = [self.model.lengths(entry.tree) for entry in self.model.trash]
        wanted = [
            (text(entry.path), entry.deleted_ns, sum(each), len(each))
            for entry, each in zip(self.model.trash, lengths, strict=True)
        ]
        wanted.sort(key=lambda entry: (entry[0].encode() + b"\0", entry[1]))
        with self.real.store.read() as txn:
            reported = self.reported(txn, "/")
            assert [(e.path, e.deleted_ns, e.length, e.files) for e in reported] == wanted
            assert txn.count(txn.db.trash_paths) == len(reported)
            assert all(entry.until_ns > entry.deleted_ns + KEPT_NS for entry in reported)
            for path in {entry.path[:1] for entry in self.model.trash}:
                below = [e.path for e in reported if (e.path + "/").startswith(text(path) + "/")]
                assert [entry.path for entry in self.reported(txn, text(path))] == below

    @invariant()
    def same_totals(self) -> None:
        state, book = self.real.store.state, self.real.counted()
        entries = self.model.trash
        deleted = [length for entry in entries for length in self.model.lengths(entry.tree)]
        assert state.trash_rows == len(entries)
        assert state.trash_files + book.files == len(deleted)
        assert state.trash_bytes + book.bytes == sum(deleted)
        with self.real.store.read() as txn:
            keys = [unpack_u64(key[:8]) for key, _ in txn.scan(b"", txn.db.trash)]
        if any(due < KEPT_NS for due in keys):
            return  # what is below a deleted directory is counted out piece by piece
        lengths = self.model.lengths(self.model.tree)
        assert state.files - book.files == len(lengths)
        assert state.bytes - book.bytes == sum(lengths)
        directories = len(self.model.tree) - len(lengths)
        assert state.directories - book.directories == directories

    def check_reclaimed(self) -> None:
        """With the trash emptied, only what the tree needs is left."""
        self.real.empty()
        self.model.trash.clear()
        self.real.reclaim_all(3)
        self.same_tree()
        self.same_totals()
        chunks = sum(-(-length // CHUNK) for length in self.model.lengths(self.model.tree))
        with self.real.store.read() as txn:
            had = Counter(handle for _, handle in txn.scan(b"", txn.db.file_chunks))
            rows = {key: chunk_of(row) for key, row in txn.scan(b"", txn.db.chunks)}
            assert had.total() == chunks
            assert {key: row.references for key, row in rows.items()} == had
            shared = sum((row.references - 1) * row.length for row in rows.values())
            assert self.real.store.state.shared_bytes == shared
            assert txn.count(txn.db.inodes) == len(self.model.tree) + 1
            assert txn.count(txn.db.entries) == len(self.model.tree)
            live = {unpack_u64(key) for key, _ in txn.scan(b"", txn.db.chunks)}
        assert len(set(self.real.freed)) == len(self.real.freed)
        assert live.isdisjoint(freed.handle for freed in self.real.freed)

    def check_replay(self) -> None:
        """Whoever follows the operation log gets the same rows."""
        copy = tempfile.mkdtemp(prefix="gfs-replay-")
        try:
            follower = open_store(copy, MAP_BYTES, False, "feed", 7)

            def follow(txn: Txn) -> int:
                chain = operation_log.chain(txn)
                with self.real.store.read() as source:
                    page = operation_log.read(source, txn.state.sequence + 1, 500)
                for row, answer in page:
                    chain = operation_log.replay(txn, row, answer, chain)
                return len(page)

            while follower.commit(follow):
                pass
            assert rows_of(follower) == rows_of(self.real.store)
            counted = msgspec.structs.replace(follower.state, handle_end=0)
            assert counted == msgspec.structs.replace(self.real.store.state, handle_end=0)
            follower.close()
        finally:
            shutil.rmtree(copy)


def rows_of(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    with store.read() as txn:
        db = txn.db
        tables = [name for name in db._fields if name != "meta"]
        return {name: list(txn.scan(b"", getattr(db, name))) for name in tables}


NamespaceMachine.TestCase.settings = settings(
    max_examples=share(100), stateful_step_count=25, deadline=None
)
TestNamespace = NamespaceMachine.TestCase


@pytest.fixture
def real(tmp_path):  # type: ignore[no-untyped-def]
    made = Real(str(tmp_path / "metadata"))
    yield made
    made.store.close()


def publish(
    real: Real, number: int, path: str, length: int, replace: bool = False, **more: Any
) -> wire.Entry:
    request = wire.Publish(0, CLIENT, number, path, length, 3, replace, True, [], **more)
    chunks = real.chunks_for(length)
    (outcome,) = real.commit([(number, lambda txn: plan_publish(txn, request, chunks, 3, number))])
    assert isinstance(outcome, wire.PublishReply), outcome
    return outcome.entry


def delete(real: Real, number: int, path: str) -> None:
    request = wire.Delete(0, CLIENT, number, path, True)
    real.commit([(number, lambda txn: plan_delete(txn, request, number))])


def test_publishing_returns_what_was_replaced(real: Real) -> None:
    def publishing(number: int, length: int, owner: str) -> Outcome:
        request = wire.Publish(0, CLIENT, number, "/f", length, 3, True, True, [])
        request.attributes = {"owner": owner}
        chunks = real.chunks_for(length)
        plan: Plan = lambda txn: plan_publish(txn, request, chunks, 3, number)  # noqa: E731
        (outcome,) = real.commit([(number, plan)])
        # Asked again, it says the same.
        assert real.commit([(number, plan)]) == [outcome]
        return outcome

    first = publishing(1, 7, "ada")
    second = publishing(2, 9, "bob")
    assert (first.replaced, second.replaced) == ([], [first.entry])


@pytest.mark.parametrize(
    ("length", "keeps", "seconds"),
    [
        (CHUNK, -1, 10),
        (CHUNK + 1, -1, 600),
        (CHUNK + 1, 2, 600),  # the inode of the file
        (CHUNK + 1, 0, 0),
        (CHUNK + 1, 7, 0),
    ],
)
def test_a_replaced_file_is_kept_for_its_readers(
    real: Real, length: int, keeps: int, seconds: int
) -> None:
    publish(real, 1, "/f", length)
    publish(real, 2, "/f", 5, replace=True, keeps=keeps)
    with real.store.read() as txn:
        [(key, _)] = txn.scan(b"", txn.db.trash)
    assert 0 <= unpack_u64(key[:8]) - seconds * 10**9 < 1_000_000


def test_times_and_attributes_are_set_and_stay(real: Real) -> None:
    def stat(path: str) -> wire.Entry:
        with real.store.read() as txn:
            return lookups.stat(txn, path)

    made = wire.MakeDirectory(0, CLIENT, 1, "/d/e", True, False, {"mode": "750"})
    real.commit([(1, lambda txn: plan_make_directory(txn, made, 1))])
    assert (stat("/d").attributes, stat("/d/e").attributes) == ({}, {"mode": "750"})
    reported = publish(real, 2, "/f", 10, digest=DIGEST, attributes={"a": "b"}, modified_ns=77)
    assert (reported.created_ns, reported.modified_ns) == (2, 77)
    assert stat("/f") == reported
    for number, (path, modified_ns) in enumerate({"/f": 0, "/d/e": 88, "/": 99}.items(), 3):
        request = wire.SetAttributes(0, CLIENT, number, path, {"c": "d"}, ["a"], modified_ns)
        (reply,) = real.commit([(number, lambda txn, r=request: plan_set_attributes(txn, r))])
        assert reply.entry == stat(path)
        assert reply.entry.attributes.keys() - {"mode"} == {"c"}
        assert reply.entry.modified_ns == modified_ns or path == "/f"
    assert (stat("/f").digest, stat("/f").modified_ns) == (DIGEST, 77)
    too_many = wire.SetAttributes(0, CLIENT, 9, "/f", {f"n{n}": "" for n in range(16)})
    (outcome,) = real.commit([(9, lambda txn: plan_set_attributes(txn, too_many))])
    assert isinstance(outcome, InvalidArgument)


def test_a_directory_was_changed_when_a_name_in_it_was_made_or_went(real: Real) -> None:
    numbers = itertools.count(1)

    def times() -> dict[str, int]:
        with real.store.read() as txn:
            return {path: lookups.stat(txn, path).modified_ns for path in ("/", "/a", "/b")}

    def changed(plan: Callable[[Txn, int], Planned]) -> str:
        """The directories of which that is told."""
        before, number = times(), next(numbers)
        (outcome,) = real.commit([(number, lambda txn: plan(txn, 1000 + number))])
        assert isinstance(outcome, wire.Message), outcome
        now = times()
        assert {now[path] for path in now if now[path] != before[path]} <= {1000 + number}
        return " ".join(path for path in now if now[path] != before[path])

    def put(path: str) -> Callable[[Txn, int], Planned]:
        request = wire.Publish(0, CLIENT, 0, path, 0, 3, True, True, [])
        return lambda txn, at: plan_publish(txn, request, [], 3, at)

    def rename(source: str, target: str) -> Callable[[Txn, int], Planned]:
        request = wire.Rename(0, CLIENT, 0, source, target, True, True)
        return lambda txn, at: plan_rename(txn, request, at)

    for path in ("/a", "/b"):
        made = wire.MakeDirectory(0, CLIENT, 1, path, True, False)
        real.commit([(next(numbers), lambda txn, made=made: plan_make_directory(txn, made, 1))])
    tell = wire.SetAttributes(0, CLIENT, 0, "/a", {"x": "y"}, [])
    delete = wire.Delete(0, CLIENT, 0, "/a/h", False, -1, False)
    undelete = wire.Undelete(0, CLIENT, 0, "/a/h", "/b/back")
    make = wire.MakeDirectory(0, CLIENT, 0, "/b/made/deep", True, True)
    assert changed(put("/a/f")) == "/a"
    assert changed(put("/a/f")) == ""  # the same name for other bytes
    assert changed(put("/a/below/g")) == "/a"
    assert changed(put("/a/below/h")) == ""
    assert changed(rename("/a/f", "/b/f")) == "/a /b"
    assert changed(put("/b/g")) == "/b"
    assert changed(rename("/b/g", "/b/f")) == "/b"
    assert changed(rename("/b/f", "/a/h")) == "/a /b"
    assert changed(lambda txn, at: plan_delete(txn, delete, at, KEPT_NS)) == "/a"
    assert changed(lambda txn, at: plan_undelete(txn, undelete, at)) == "/b"
    assert changed(lambda txn, at: plan_make_directory(txn, make, at)) == "/b"
    assert changed(lambda txn, at: plan_make_directory(txn, make, at)) == ""
    assert changed(lambda txn, at: plan_set_attributes(txn, tell)) == ""


def test_length_only_grows_and_within_the_chunks(real: Real) -> None:
    entry = publish(real, 1, "/f", CHUNK + 10)

    def set_length(number: int, length: int) -> Outcome:
        request = wire.SetLength(0, CLIENT, number, entry.inode, length)
        return real.commit([(number, lambda txn: plan_set_length(txn, request, number))])[0]

    assert isinstance(set_length(2, 5), wire.Done)
    with real.store.read() as txn:
        assert lookups.stat(txn, "/f").length == CHUNK + 10
    assert isinstance(set_length(3, 2 * CHUNK), wire.Done)
    assert isinstance(set_length(4, 2 * CHUNK + 1), InvalidArgument)
    with real.store.read() as txn:
        assert lookups.stat(txn, "/f").length == 2 * CHUNK
        lengths = [c.length for c in lookups.file_chunks(txn, entry.inode, 2 * CHUNK, 0)]
    assert lengths == [CHUNK, CHUNK]
    assert real.store.state.bytes == 2 * CHUNK


DIGEST = b"0123456789abcdef"


@pytest.mark.parametrize("change", ["a lease", "another chunk", "a length"])
def test_a_file_that_is_to_change_loses_its_digest(real: Real, change: str) -> None:
    entry = publish(real, 1, "/f", 10, digest=DIGEST, attributes={"a": "b"})
    other = publish(real, 2, "/g", 10, digest=DIGEST)
    with real.store.read() as txn:
        (chunk,) = lookups.file_chunks(txn, entry.inode, 10, 0)
    plans: dict[str, Plan] = {
        "a lease": lambda txn: plan_attempt_version(txn, chunk.handle, entry.inode),
        "another chunk": lambda txn: plan_add_chunk(txn, entry.inode, 1, 999, 1, 5),
        "a length": lambda txn: plan_set_length(
            txn, wire.SetLength(0, CLIENT, 3, entry.inode, 20), 5
        ),
    }
    assert isinstance(real.commit([(3, plans[change])])[0], wire.Message)
    real.reopen()
    with real.store.read() as txn:
        now = lookups.stat(txn, "/f")
        assert (now.digest, now.attributes) == (b"", {"a": "b"})
        assert lookups.stat(txn, "/g").digest == other.digest == DIGEST


def test_a_snapshot_has_the_chunk_that_its_file_got_when_it_began(real: Real) -> None:
    """A grant that was under way: the leases are ended, and nothing granted, only then."""
    entry = publish(real, 1, "/f", CHUNK, digest=DIGEST, attributes={"a": "b"})
    request = wire.Snapshot(0, CLIENT, 2, "/f", "/copy", False)
    begun = real.perform(partial(plan_begin, request=request, time_ns=5))
    handle = next(real.handles)
    add = partial(plan_add_chunk, inode=entry.inode, index=1, handle=handle, version=2, time_ns=6)
    real.perform(add)
    walk = Walk(begun.source, begun.copy, KIND_FILE, 2, piece=1)
    while not walk.is_done:
        with real.store.read() as txn:
            pieces = walk.next(txn)
        copied = real.perform(partial(plan_copy, pieces=pieces, time_ns=7))
        with real.store.read() as txn:
            walk.copied(txn, copied.pieces)
    finish = partial(plan_finish, request=request, copy=begun.copy, reply=walk.reply, time_ns=8)
    real.perform(finish)
    with real.store.read() as txn:
        copy, source = lookups.stat(txn, "/copy"), lookups.stat(txn, "/f")
        row = chunk_row(txn, handle)
    assert (copy.chunks, copy.length, copy.digest) == (2, CHUNK, b"")
    assert copy.attributes == source.attributes == {"a": "b"}
    assert row.references == 2
    delete(real, 3, "/copy")
    real.empty()
    real.reclaim_all(1)
    with real.store.read() as txn:
        assert txn.count(txn.db.file_chunks) == 2


def test_a_chunk_that_was_joined_meanwhile_is_not_leased(real: Real) -> None:
    """Whoever is about to write has looked at it before."""
    entry = publish(real, 1, "/f", 10, digest=DIGEST)
    with real.store.read() as txn:
        (chunk,) = lookups.file_chunks(txn, entry.inode, 10, 0)
    request = wire.Join(0, CLIENT, 2, "/joined", 10, 3, False, True, [])
    plans: list[Plan] = [
        lambda txn: plan_join(txn, request, [entry.inode], 3, 5),
        lambda txn: plan_attempt_version(txn, chunk.handle, entry.inode),
    ]
    joined, attempt = real.commit(list(enumerate(plans, 2)))
    assert isinstance(joined, wire.PublishReply), joined
    assert isinstance(attempt, Busy)


def test_no_more_chunks_are_joined_than_one_commit_may_take(real: Real) -> None:
    length = CHUNK * (wire.JOINED_CHUNKS_MAX // wire.JOINED_MAX + 1)
    entry = publish(real, 1, "/f", length, digest=DIGEST)
    sources = [entry.inode] * wire.JOINED_MAX
    request = wire.Join(0, CLIENT, 2, "/g", length * wire.JOINED_MAX, 3, True, True, [])
    (outcome,) = real.commit([(2, lambda txn: plan_join(txn, request, sources, 3, 5))])
    assert isinstance(outcome, InvalidArgument)


def test_a_file_without_anything_to_carry_has_the_row_it_always_had(real: Real) -> None:
    plain = publish(real, 1, "/plain", 10)
    marked = publish(real, 2, "/marked", 10, digest=DIGEST)
    with real.store.read() as txn:
        sizes = [
            len(txn.get(pack_u64(entry.inode), b"", txn.db.inodes)) for entry in (plain, marked)
        ]
    assert sizes[0] == 32 < sizes[1]


def test_a_lease_of_a_chunk_whose_file_is_gone_changes_nothing_else(real: Real) -> None:
    entry = publish(real, 1, "/f", 10, digest=DIGEST)
    with real.store.read() as txn:
        (chunk,) = lookups.file_chunks(txn, entry.inode, 10, 0)
    plan: Plan = lambda txn: plan_attempt_version(txn, chunk.handle, NOBODY)  # noqa: E731
    assert isinstance(real.commit([(2, plan)])[0], wire.Done)
    with real.store.read() as txn:
        assert lookups.stat(txn, "/f").digest == DIGEST


def test_an_open_file_is_found_by_its_inode_wherever_it_is(real: Real) -> None:
    entry = publish(real, 1, "/f", 1)
    rename = wire.Rename(0, CLIENT, 2, "/f", "/d/g", False, True)
    real.commit([(2, lambda txn: plan_rename(txn, rename, 2))])
    with real.store.read() as txn:
        assert lookups.open_file(txn, "/f", entry.inode)[0] == entry.inode
        with pytest.raises(NotFound):
            lookups.open_file(txn, "/f", 0)
    publish(real, 3, "/d/g", 2, replace=True)
    with real.store.read() as txn:
        assert lookups.open_file(txn, "/d/g", entry.inode)[0] == entry.inode
    real.reclaim_all(10)
    with real.store.read() as txn:
        with pytest.raises(GfsError, match="replaced by another") as caught:
            lookups.open_file(txn, "/d/g", entry.inode)
        assert caught.value.code == "file_changed"
    delete(real, 4, "/d")
    with real.store.read() as txn, pytest.raises(NotFound):
        lookups.open_file(txn, "/d/g", entry.inode)


def test_a_big_delete_is_cut_into_pieces(real: Real) -> None:
    for number in range(1, 41):
        publish(real, number, f"/d/e{number % 3}/f{number}", 3 * CHUNK)
    delete(real, 50, "/d")
    pieces = 0
    while True:
        with real.store.read() as txn:
            if not txn.count(txn.db.trash):
                break
        before = len(real.freed)
        real.reclaim(10)
        assert len(real.freed) - before <= 10
        pieces += 1
    assert len(real.freed) == 120
    assert pieces >= 12
    state = real.store.state
    assert (state.files, state.directories, state.bytes) == (0, 0, 0)


def test_a_walk_survives_what_moves_under_it(real: Real) -> None:
    for number in range(1, 6):
        publish(real, number, f"/a/f{number}", 1)
    publish(real, 6, "/b/g", 1)
    cursor = lookups.Cursor([b"a", b"f3"], -1, True)
    delete(real, 7, "/a")
    with real.store.read() as txn:
        left = [visit.segments for visit in lookups.walk(txn, "/", cursor)]
    assert left == [[b"b"], [b"b", b"g"]]


@pytest.mark.parametrize(
    ("folder", "tail", "attributes"),
    [("x" * 250, "y" * 240, {}), ("", "", {f"{n:064}": "" for n in range(15)} | {"v": "v" * 63})],
    ids=["long names", "all that an entry may carry"],
)
def test_a_listing_page_fits_into_a_reply(
    real: Real, folder: str, tail: str, attributes: dict[str, str]
) -> None:
    digest = DIGEST if attributes else b""
    for number in range(101, 401):
        path = f"/{folder}/{number}{tail}".replace("//", "/")
        publish(real, number, path, 0, digest=digest, attributes=attributes)
    names: list[str] = []
    more = True
    with real.store.read() as txn:
        while more:
            page, more = lookups.list_page(txn, f"/{folder}", names[-1] if names else "", 10_000)
            assert 0 < len(msgspec.msgpack.encode(page)) <= wire.PAGE_BYTES_MAX
            assert all((e.digest, e.attributes) == (digest, attributes) for e in page)
            names += [entry.path.rpartition("/")[2] for entry in page]
    assert names == [f"{number}{tail}" for number in range(101, 401)]


@pytest.mark.parametrize("after", ["b", "b\0", "a" * 5000, "b" * 255, "b" * 5000])
def test_a_page_may_begin_at_what_nothing_can_be_called(real: Real, after: str) -> None:
    names = ["a", "b", "b" * 254, "b" * 255, "c"]
    for number, name in enumerate(names, 1):
        publish(real, number, f"/d/{name}", 0)
    with real.store.read() as txn:
        page, more = lookups.list_page(txn, "/d", after, 10)
    assert [entry.path for entry in page] == [f"/d/{name}" for name in names if name > after]
    assert not more


@pytest.mark.parametrize("when", ["before it is counted", "while it is counted", "afterwards"])
def test_a_file_below_a_deleted_directory_is_written_on(real: Real, when: str) -> None:
    """By who had it open; what the trash holds is counted with it."""
    entry = publish(real, 1, "/d/f", 5)
    for number in range(2, 204):
        publish(real, number, f"/d/e/{number:03}", 1)
    book = TrashBook(real.store)

    def write() -> None:
        request = wire.SetLength(0, CLIENT, 301, entry.inode, 50)
        plan: Plan = lambda txn: plan_set_length(txn, request, 301)  # noqa: E731
        _, effects = real.committer._commit([Job(CLIENT, 301, plan, lambda _: None, 1)])
        for inode, length in effects.grown:
            book.grown(inode, length)

    request = wire.Delete(0, CLIENT, 300, "/d", True)
    plan: Plan = lambda txn: plan_delete(txn, request, 300, KEPT_NS)  # noqa: E731
    _, effects = real.committer._commit([Job(CLIENT, 300, plan, lambda _: None, 1)])
    ((inode, _),) = effects.trashed
    book.waiting[inode] = None
    counting = book._count(inode, 100)
    if when == "before it is counted":
        write()
    next(counting)
    if when == "while it is counted":
        write()
    for _ in counting:
        pass
    if when == "afterwards":
        write()
    state = real.store.state
    assert (book.files, book.bytes) == (203, 252)
    assert (state.files - book.files, state.bytes - book.bytes) == (0, 0)
    assert book.usage(inode) == (203, 1, 252)
    book.changed(inode, False)
    assert (book.files, book.directories, book.bytes) == (0, 0, 0)


ODD_PATHS = (
    *("/", "/d", "/d/", "/d/e/f", "/d/e/f/", "/d//f", "//d", "d/e/f", "f", "", "/d/e/../e/f"),
    *("/d/e/.", "/d/e/f/g", "/d/e/none", "/none/f", "/d/e/f\0", "/d/e/ö", "/d/e/\ud800"),
    *("/d/e/" + 255 * "x", "/d/e/" + 256 * "x", "/d/e/" + 128 * "ö", "/d/e/" + 1024 * "y/" + "y"),
    "/d/e/" + 2046 * "y/" + "y",
)


def test_what_a_snapshot_knows_of_a_directory_changes_no_answer(real: Real) -> None:
    """Nor is it walked to for each file of a batch."""
    for number, path in enumerate(("/d/e/f", "/d/e/ö", "/d/e/" + 255 * "x"), 1):
        publish(real, number, path, 10)

    def found(txn: Txn, path: str) -> object:
        try:
            return lookup(txn, path)
        except GfsError as error:
            return type(error), str(error)

    with real.store.read() as batch:
        for path in ODD_PATHS * 2:
            with real.store.read() as alone:
                assert found(batch, path) == found(alone, path), path
    with real.store.read() as batch:
        get, asked = batch.get, []

        def counted(key: bytes, default: bytes | None, database: object) -> bytes | None:
            asked.append(key)
            return get(key, default, db=database)

        batch.get = counted
        for _ in range(64):
            lookup(batch, "/d/e/f")
    assert len(asked) < 64 + 10

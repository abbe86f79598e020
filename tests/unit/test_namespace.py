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
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    GfsError,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from gfs.io import real_world
from gfs.master import reads
from gfs.master.committer import Committer, Job, Outcome, Plan
from gfs.master.namespace import (
    Planned,
    plan_delete,
    plan_make_directory,
    plan_publish,
    plan_rename,
    plan_set_length,
)
from gfs.master.operations import LogRecord, NewChunk, Reclaimed, apply
from gfs.master.rows import KIND_DIRECTORY, unpack_u64
from gfs.master.store import HANDLE_RANGE, Store, Txn, open_store
from gfs.protocol.messages import (
    Delete,
    Done,
    Entry,
    MakeDirectory,
    Message,
    Publish,
    PublishReply,
    Rename,
    SetLength,
)

CHUNK = 64 * 1024 * 1024
CLIENT = "a client"
MAP_BYTES = 1 << 28

NAMES = st.sampled_from(["a", "b", "c", "ä", "a.b"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(tuple)
Path = tuple[str, ...]
#: A path's file length, or None for a directory.
Tree = dict[Path, int | None]


def text(path: Path) -> str:
    return "/" + "/".join(path)


# --- the model -----------------------------------------------------------------------


class Model:
    def __init__(self) -> None:
        self.tree: Tree = {}

    def _parents(self, tree: Tree, path: Path, make: bool) -> None:
        for end in range(1, len(path)):
            parent = path[:end]
            if parent not in tree:
                if not make:
                    raise NotFound
                tree[parent] = None
            elif tree[parent] is not None:
                raise NotADirectory

    def publish(self, path: Path, length: int, replace: bool, parents: bool) -> None:
        tree = dict(self.tree)
        self._parents(tree, path, parents)
        if path in tree:
            if tree[path] is None:
                raise IsADirectory
            if not replace:
                raise AlreadyExists
        tree[path] = length
        self.tree = tree

    def make_directory(self, path: Path, parents: bool, exist_ok: bool) -> None:
        tree = dict(self.tree)
        self._parents(tree, path, parents)
        if path in tree and (tree[path] is not None or not exist_ok):
            raise AlreadyExists
        tree[path] = None
        self.tree = tree

    def rename(self, source: Path, target: Path, replace: bool, parents: bool) -> None:
        tree = dict(self.tree)
        self._parents(tree, source, False)
        if source not in tree:
            raise NotFound
        # Whatever is made on the way is made inside the source, which is refused.
        if len(target) > len(source) and target[: len(source)] == source:
            if tree[source] is not None:
                raise NotADirectory
            inside = dict(tree)
            self._parents(inside, target, parents)
            raise InvalidArgument
        self._parents(tree, target, parents)
        if source == target:
            return
        if target in tree:
            if not replace:
                raise AlreadyExists
            if tree[target] is None:
                raise IsADirectory
            if tree[source] is None:
                raise NotADirectory
            del tree[target]
        moved = {p: n for p, n in tree.items() if p[: len(source)] == source}
        for path, node in moved.items():
            del tree[path]
            tree[target + path[len(source) :]] = node
        self.tree = tree

    def delete(self, path: Path, recursive: bool) -> None:
        self._parents(self.tree, path, False)
        if path not in self.tree:
            raise NotFound
        below = [p for p in self.tree if p[: len(path)] == path]
        if len(below) > 1 and not recursive:
            raise DirectoryNotEmpty
        self.tree = {p: n for p, n in self.tree.items() if p not in below}


# --- the real one ----------------------------------------------------------------------


def plan_reclaim(limit: int) -> Plan:
    def plan(txn: Txn) -> Planned:
        for key, _ in txn.scan(b"", txn.db.trash):
            return Reclaimed(unpack_u64(key[:8]), unpack_u64(key[8:]), limit), Done(id=0)
        return None, Done(id=0)

    return plan


class Real:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.freed: list[tuple[int, int]] = []
        self.handles = itertools.count(1)
        self.times = itertools.count(1_000)
        self.open()

    def open(self) -> None:
        self.store = open_store(self.directory, MAP_BYTES, False, "feed", 7)
        self.committer = Committer(real_world(), self.store, 120.0, self.freed.extend)

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def commit(self, jobs: list[tuple[int, Plan]]) -> list[Outcome]:
        batch = [Job(CLIENT, number, plan, lambda _: None, 1) for number, plan in jobs]
        outcomes, freed = self.committer._commit(batch)
        self.freed += freed
        return outcomes

    def reclaim(self, limit: int) -> None:
        batch = [Job("", 0, plan_reclaim(limit), lambda _: None, 1)]
        outcomes, freed = self.committer._commit(batch)
        assert isinstance(outcomes[0], Done)
        self.freed += freed

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


Mutation = tuple[Plan, Callable[[Model], None]]


class NamespaceMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="gfs-namespace-")
        self.real = Real(self.directory)
        self.model = Model()
        self.numbers = itertools.count(1)
        #: What was answered: number -> (plan, outcome).
        self.answered: dict[int, tuple[Plan, Outcome]] = {}

    def teardown(self) -> None:
        if not hasattr(self, "real"):
            return
        try:
            self.check_reclaimed()
            self.check_replay()
        finally:
            self.real.store.close()
            shutil.rmtree(self.directory)

    # --- mutations ---

    def publish(self, path: Path, length: int, replace: bool, parents: bool) -> Mutation:
        chunks = self.real.chunks_for(length)
        request = Publish(
            id=0,
            client=CLIENT,
            sequence=0,
            path=text(path),
            length=length,
            replication=3,
            replace=replace,
            parents=parents,
            servers=[],
        )
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_publish(txn, request, chunks, 3, time_ns),
            lambda model: model.publish(path, length, replace, parents),
        )

    def make_directory(self, path: Path, parents: bool, exist_ok: bool) -> Mutation:
        request = MakeDirectory(0, CLIENT, 0, text(path), parents, exist_ok)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_make_directory(txn, request, time_ns),
            lambda model: model.make_directory(path, parents, exist_ok),
        )

    def rename(self, source: Path, target: Path, replace: bool, parents: bool) -> Mutation:
        request = Rename(0, CLIENT, 0, text(source), text(target), replace, parents)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_rename(txn, request, time_ns),
            lambda model: model.rename(source, target, replace, parents),
        )

    def delete(self, path: Path, recursive: bool) -> Mutation:
        request = Delete(0, CLIENT, 0, text(path), recursive)
        time_ns = next(self.real.times)
        return (
            lambda txn: plan_delete(txn, request, time_ns),
            lambda model: model.delete(path, recursive),
        )

    @rule(data=st.data(), count=st.integers(1, 6))
    def mutate(self, data: st.DataObject, count: int) -> None:
        """Some mutations, committed together."""
        flags = st.booleans()
        wanted = []
        for _ in range(count):
            kind = data.draw(st.integers(0, 5))
            path = data.draw(PATHS)
            if kind <= 1:
                length = data.draw(st.sampled_from([0, 1, CHUNK, CHUNK + 5, 3 * CHUNK]))
                wanted.append(self.publish(path, length, data.draw(flags), data.draw(flags)))
            elif kind == 2:
                wanted.append(self.make_directory(path, data.draw(flags), data.draw(flags)))
            elif kind <= 4:
                target = data.draw(PATHS)
                wanted.append(self.rename(path, target, data.draw(flags), data.draw(flags)))
            else:
                wanted.append(self.delete(path, data.draw(flags)))
        jobs = [(next(self.numbers), plan) for plan, _ in wanted]
        outcomes = self.real.commit(jobs)
        for (number, plan), (_, expected), outcome in zip(jobs, wanted, outcomes, strict=True):
            self.compare(expected, outcome)
            self.answered[number] = (plan, outcome)

    def compare(self, expected: Callable[[Model], None], outcome: Outcome) -> None:
        refused: type[GfsError] | None = None
        try:
            expected(self.model)
        except GfsError as error:
            refused = type(error)
        if refused is None:
            assert isinstance(outcome, Message), outcome
        else:
            assert type(outcome) is refused, outcome

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """What succeeded gets the same answer, and changes nothing."""
        done = [n for n, (_, o) in self.answered.items() if isinstance(o, Message)]
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

    # --- what must hold ---

    def everything(self) -> dict[Path, Entry]:
        found: dict[Path, Entry] = {}
        with self.real.store.read() as txn:
            visits = list(reads.walk(txn, "/", reads.Cursor()))
            assert visits[0].segments == []
            for visit in visits[1:]:
                path = tuple(s.decode() for s in visit.segments)
                assert path not in found
                found[path] = reads.stat(txn, text(path))
            order = [v.segments for v in visits]
        assert order == sorted(order)
        return found

    @invariant()
    def same_tree(self) -> None:
        found = self.everything()
        told = {p: e.length if e.kind == "file" else None for p, e in found.items()}
        assert told == self.model.tree
        assert len({e.inode for e in found.values()}) == len(found)
        for path, entry in found.items():
            assert entry.path == text(path)
            assert entry.chunks == -(-entry.length // CHUNK)

    @invariant()
    def same_listings(self) -> None:
        tree = self.model.tree
        with self.real.store.read() as txn:
            for path in [(), *[p for p, n in tree.items() if n is None]]:
                names = sorted(
                    (p[-1] for p in tree if p[:-1] == path), key=lambda name: name.encode()
                )
                got, after, more = [], "", True
                while more:
                    page, more = reads.list_page(txn, text(path), after, 2)
                    assert len(page) <= 2
                    got += [entry.path.rpartition("/")[2] for entry in page]
                    after = got[-1] if got else ""
                assert got == names

    @invariant()
    def same_totals(self) -> None:
        with self.real.store.read() as txn:
            trash = txn.count(txn.db.trash)
        if trash:
            return  # what is below a deleted directory is counted out piece by piece
        state = self.real.store.state
        lengths = [n for n in self.model.tree.values() if n is not None]
        assert (state.files, state.bytes) == (len(lengths), sum(lengths))
        assert state.directories == len(self.model.tree) - len(lengths)

    def check_reclaimed(self) -> None:
        """With the trash emptied, only what the tree needs is left."""
        self.real.reclaim_all(3)
        self.same_tree()
        self.same_totals()
        chunks = sum(-(-n // CHUNK) for n in self.model.tree.values() if n)
        with self.real.store.read() as txn:
            assert txn.count(txn.db.chunks) == chunks
            assert txn.count(txn.db.file_chunks) == chunks
            assert txn.count(txn.db.inodes) == len(self.model.tree) + 1
            assert txn.count(txn.db.entries) == len(self.model.tree)
            live = {unpack_u64(key) for key, _ in txn.scan(b"", txn.db.chunks)}
        assert len(set(self.real.freed)) == len(self.real.freed)
        assert live.isdisjoint(handle for handle, _ in self.real.freed)

    def check_replay(self) -> None:
        """Whoever follows the operation log gets the same rows."""
        copy = tempfile.mkdtemp(prefix="gfs-replay-")
        try:
            follower = open_store(copy, MAP_BYTES, False, "feed", 7)
            with self.real.store.read() as txn:
                log = list(txn.scan(b"", txn.db.operation_log))
                assert [unpack_u64(key) for key, _ in log] == list(range(1, len(log) + 1))

            def replay(txn: Txn) -> None:
                for _, row in log:
                    apply(txn, msgspec.msgpack.decode(row, type=LogRecord).operation)

            follower.commit(replay)
            assert rows_of(follower) == rows_of(self.real.store)
            follower.close()
        finally:
            shutil.rmtree(copy)


def rows_of(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    with store.read() as txn:
        db = txn.db
        tables = ("entries", "inodes", "file_chunks", "chunks", "trash")
        return {name: list(txn.scan(b"", getattr(db, name))) for name in tables}


NamespaceMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None
)
TestNamespace = NamespaceMachine.TestCase


# --- by hand ---------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path):  # type: ignore[no-untyped-def]
    made = Real(str(tmp_path / "metadata"))
    yield made
    made.store.close()


def publish(real: Real, number: int, path: str, length: int, **flags: bool) -> Entry:
    request = Publish(
        id=0,
        client=CLIENT,
        sequence=number,
        path=path,
        length=length,
        replication=3,
        replace=flags.get("replace", False),
        parents=True,
        servers=[],
    )
    chunks = real.chunks_for(length)
    (outcome,) = real.commit([(number, lambda txn: plan_publish(txn, request, chunks, 3, number))])
    assert isinstance(outcome, PublishReply), outcome
    return outcome.entry


def test_length_only_grows_and_within_the_chunks(real: Real) -> None:
    entry = publish(real, 1, "/f", CHUNK + 10)

    def set_length(number: int, length: int) -> Outcome:
        request = SetLength(0, CLIENT, number, entry.inode, length)
        return real.commit([(number, lambda txn: plan_set_length(txn, request, number))])[0]

    assert isinstance(set_length(2, 5), Done)
    with real.store.read() as txn:
        assert reads.stat(txn, "/f").length == CHUNK + 10
    assert isinstance(set_length(3, 2 * CHUNK), Done)
    assert isinstance(set_length(4, 2 * CHUNK + 1), InvalidArgument)
    with real.store.read() as txn:
        assert reads.stat(txn, "/f").length == 2 * CHUNK
        lengths = [c.length for c in reads.file_chunks(txn, entry.inode, 2 * CHUNK, 0)]
    assert lengths == [CHUNK, CHUNK]
    assert real.store.state.bytes == 2 * CHUNK


def test_an_open_file_is_found_by_its_inode_wherever_it_is(real: Real) -> None:
    entry = publish(real, 1, "/f", 1)
    rename = Rename(0, CLIENT, 2, "/f", "/d/g", False, True)
    real.commit([(2, lambda txn: plan_rename(txn, rename, 2))])
    with real.store.read() as txn:
        assert reads.open_file(txn, "/f", entry.inode)[0] == entry.inode
        with pytest.raises(NotFound):
            reads.open_file(txn, "/f", 0)
    publish(real, 3, "/d/g", 2, replace=True)
    with real.store.read() as txn:
        with pytest.raises(GfsError, match="replaced by another") as caught:
            reads.open_file(txn, "/d/g", entry.inode)
        assert caught.value.code == "file_changed"
    delete = Delete(0, CLIENT, 4, "/d", True)
    real.commit([(4, lambda txn: plan_delete(txn, delete, 4))])
    with real.store.read() as txn, pytest.raises(NotFound):
        reads.open_file(txn, "/d/g", entry.inode)


def test_a_big_delete_is_cut_into_pieces(real: Real) -> None:
    for number in range(1, 41):
        publish(real, number, f"/d/e{number % 3}/f{number}", 3 * CHUNK)
    request = Delete(0, CLIENT, 50, "/d", True)
    real.commit([(50, lambda txn: plan_delete(txn, request, 50))])
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


def test_a_walk_goes_on_where_it_stood(real: Real) -> None:
    for number in range(1, 31):
        publish(real, number, f"/d{number % 4}/e/f{number}", 1)
    whole, pieces = [], []
    with real.store.read() as txn:
        whole = [visit.segments for visit in reads.walk(txn, "/", reads.Cursor())]
    cursor = reads.Cursor()
    while True:
        with real.store.read() as txn:
            visits = list(itertools.islice(reads.walk(txn, "/", cursor), 3))
        if not visits:
            break
        pieces += [visit.segments for visit in visits]
        cursor = reads.Cursor(visits[-1].segments, -1, True)
    assert pieces == whole
    assert len(whole) == 1 + 4 + 4 + 30


def test_a_walk_survives_what_moves_under_it(real: Real) -> None:
    for number in range(1, 6):
        publish(real, number, f"/a/f{number}", 1)
    publish(real, 6, "/b/g", 1)
    cursor = reads.Cursor([b"a", b"f3"], -1, True)
    request = Delete(0, CLIENT, 7, "/a", True)
    real.commit([(7, lambda txn: plan_delete(txn, request, 7))])
    with real.store.read() as txn:
        left = [visit.segments for visit in reads.walk(txn, "/", cursor)]
    assert left == [[b"b"], [b"b", b"g"]]


def test_a_listing_page_fits_into_a_reply(real: Real) -> None:
    long = "x" * 250
    for number in range(1, 301):
        publish(real, number, f"/{long}/{number:03d}{'y' * 240}", 0)
    names: list[str] = []
    more = True
    with real.store.read() as txn:
        while more:
            page, more = reads.list_page(txn, f"/{long}", names[-1] if names else "", 10_000)
            assert 0 < len(msgspec.msgpack.encode(page)) < 60_000
            names += [entry.path.rpartition("/")[2] for entry in page]
    assert len(names) == 300
    with real.store.read() as txn:
        root, _ = reads.lookup(txn, "/")
        kinds = [kind for _, _, kind in reads.children(txn, root, b"")]
    assert kinds == [KIND_DIRECTORY]

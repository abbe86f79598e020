"""Records: tables against a model, transactions, upgrades, many processes, kill -9.

All of it in LMDB, and with a real PostgreSQL, where each directory has a store of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from limits import HANG_SECONDS
from postgresql import PostgreSQL

from control.records import (
    KEY_BYTES_MAX,
    Records,
    RecordsBusy,
    RecordsUpgraded,
    RowUnreadable,
    Schema,
    Table,
    Taken,
    Txn,
)
from control.records import writer as writer_module
from control.records.store import PIECE_ROWS, READERS_MAX
from gfs.errors import DiskFull, InvalidArgument, StartupError


class Person(msgspec.Struct, array_like=True, frozen=True):
    name: str
    email: str
    groups: tuple[str, ...] = ()
    visits: int = 0


PEOPLE: Table[Person] = Table(
    "people",
    Person,
    key=lambda row: row.name,
    indexes={"email": lambda row: [row.email], "group": lambda row: row.groups},
    unique=["email"],
)
SCHEMA = Schema("crowd", 1, [PEOPLE])


#: In the environment: the PostgreSQL to use.
URL = "RECORDS_URL_OF_TEST"
PLACES = ["lmdb", pytest.param("postgresql", marks=pytest.mark.extra)]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the records of the test are, and of the processes that it starts."""
    if request.param == "postgresql":
        monkeypatch.setenv(URL, request.getfixturevalue("postgresql").url)
    return str(request.param)


def open_records(directory: Path, *schemas: Schema, **options: Any) -> Records:
    url = os.environ.get(URL)
    if url is None:
        return Records.open(directory, schemas, **options)
    options.pop("sync", None)
    store = hashlib.blake2b(bytes(directory), digest_size=8).hexdigest()
    return Records.open_shared(url, directory, schemas, store=store, **options)


@pytest.fixture
def records(tmp_path: Path, place: str) -> Iterator[Records]:
    opened = open_records(tmp_path / "records", SCHEMA, sync=False)
    yield opened
    opened.close()


def check_indexes(txn: Txn) -> None:
    """The index holds exactly what the rows say, read without the table's help."""
    handles = txn.handles[PEOPLE]
    with txn.raw.cursor(handles.entries) as cursor:
        found = sorted(cursor)
    expected = [
        (name.encode() + b"\0\0" + value.encode(), row.name.encode())
        for row in PEOPLE.scan(txn)
        for name, values in (("email", (row.email,)), ("group", set(row.groups)))
        for value in values
    ]
    assert found == sorted(expected)


# One table against a dict


names = st.text(st.sampled_from("abé\0\uffff\U0001f600"), min_size=1, max_size=3)
values = st.sampled_from(["", "a", "a\0", "b", "x" * 400, "x" * 401, "x" * 402, "é" * 300])
people = st.builds(Person, names, values, st.lists(values, max_size=3).map(tuple))


class Undo(Exception):
    pass


class AgainstAModel(RuleBasedStateMachine):
    """Any changes, several to a transaction, some rolled back, with reopenings."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.model: dict[str, Person] = {}

    @initialize()
    def open(self) -> None:
        self.records = open_records(self.directory, SCHEMA, sync=False, map_bytes=2**24)

    def teardown(self) -> None:
        self.records.close()
        shutil.rmtree(self.directory)

    @rule()
    def reopen(self) -> None:
        self.records.close()
        self.open()

    @rule(
        changes=st.lists(
            st.tuples(st.sampled_from(["insert", "put", "delete"]), people), max_size=6
        ),
        undo=st.booleans(),
        through_taken=st.booleans(),
    )
    def change(self, changes: list[tuple[str, Person]], undo: bool, through_taken: bool) -> None:
        model = dict(self.model)

        def decide(txn: Txn) -> None:
            for what, row in changes:
                expected = self.apply(model, what, row)
                got: object
                try:
                    if what == "delete":
                        got = PEOPLE.delete(txn, row.name)
                    else:
                        got = getattr(PEOPLE, what)(txn, row)
                except Taken as error:
                    got = (error.table, error.index, error.value)
                    if not through_taken:
                        assert got == expected
                        raise
                assert got == expected
                self.compare(txn, model)
            if undo:
                raise Undo

        try:
            trio.run(self.records.write, decide)
        except (Undo, Taken):
            return
        self.model = model

    @staticmethod
    def apply(model: dict[str, Person], what: str, row: Person) -> object:
        if what == "delete":
            return model.pop(row.name, None)
        if what == "insert" and row.name in model:
            return ("people", "", row.name)
        if any(row.email == each.email for each in model.values() if each.name != row.name):
            return ("people", "email", row.email)
        model[row.name] = row
        return None

    @invariant()
    def same(self) -> None:
        with self.records.read() as txn:
            self.compare(txn, self.model)

    def compare(self, txn: Txn, model: dict[str, Person]) -> None:
        rows = [model[name] for name in sorted(model)]
        assert list(PEOPLE.scan(txn)) == rows
        assert PEOPLE.count(txn) == len(rows)
        for name in ("a", "é\0", "\U0001f600"):
            assert PEOPLE.get(txn, name) == model.get(name)
            assert list(PEOPLE.scan(txn, after=name)) == [r for r in rows if r.name > name]
            assert list(PEOPLE.scan(txn, prefix=name)) == [
                r for r in rows if r.name.startswith(name)
            ]
        for value in ("", "a", "x" * 400, "x" * 401, "x" * 402, "é" * 300):
            mails = [r for r in rows if r.email == value]
            groups = [r for r in rows if value in r.groups]
            assert PEOPLE.find(txn, "email", value) == (mails[0] if mails else None)
            assert PEOPLE.find(txn, "group", value) == (groups[0] if groups else None)
            assert list(PEOPLE.by(txn, "group", value)) == groups
            assert PEOPLE.count(txn, "group", value) == len(groups)
        used = sum(1 + len(set(row.groups)) for row in rows)
        assert txn.raw.stat(txn.handles[PEOPLE].entries)["entries"] == used


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)


@pytest.mark.extra
@pytest.mark.smoke
def test_postgresql_against_a_model(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, postgresql.url)
    fewer = settings(max_examples=15, stateful_step_count=8, deadline=None)
    run_state_machine_as_test(AgainstAModel, settings=fewer)


# Keys


async def test_keys_that_cannot_be(records: Records) -> None:
    longest = "é" * (KEY_BYTES_MAX // 2)
    await records.write(lambda txn: PEOPLE.insert(txn, Person(longest, "e", ("g",))))
    for bad in ("", longest + "x", "\udc80"):
        with pytest.raises(InvalidArgument):
            await records.write(lambda txn, bad=bad: PEOPLE.put(txn, Person(bad, "f")))
        with records.read() as txn:
            assert PEOPLE.get(txn, bad) is None
    with records.read() as txn:
        assert PEOPLE.get(txn, longest) == PEOPLE.find(txn, "group", "g")
        assert [row.name for row in PEOPLE.by(txn, "group", "g")] == [longest]
        assert [row.name for row in PEOPLE.by(txn, "group", "g", after=longest[:-1])] == [longest]
        assert list(PEOPLE.by(txn, "group", "g", after=longest)) == []
        assert [row.name for row in PEOPLE.scan(txn, after=longest[:-1])] == [longest]
        assert list(PEOPLE.scan(txn, after=longest)) == []
        assert list(PEOPLE.scan(txn, after=longest + "x" * 100)) == []
        assert list(PEOPLE.scan(txn, prefix=longest + "x" * 100)) == []
        assert PEOPLE.find(txn, "email", "\udc80") is None


@pytest.mark.parametrize("count", [0, 1, PIECE_ROWS, PIECE_ROWS + 1, 3 * PIECE_ROWS])
async def test_all_rows_are_read_in_pieces(records: Records, count: int) -> None:
    def fill(txn: Txn) -> None:
        for number in range(count):
            PEOPLE.insert(txn, Person(f"{number:05}", f"{number}@", (f"{number % 2}",)))

    await records.write(fill)
    names = [f"{number:05}" for number in range(count)]
    assert [row.name for row in await records.all(PEOPLE)] == names
    for value in (0, 1):
        found = await records.all(PEOPLE, "group", str(value))
        assert [row.name for row in found] == names[value::2]


async def test_rows_may_be_deleted_while_they_are_walked(records: Records) -> None:
    def fill(txn: Txn) -> None:
        for number in range(300):
            PEOPLE.insert(txn, Person(f"{number:03}", f"{number}@", ("all",)))

    def delete_all(walk: Callable[[Txn], Iterator[Person]]) -> Callable[[Txn], list[str]]:
        def decide(txn: Txn) -> list[str]:
            seen = []
            for row in walk(txn):
                assert PEOPLE.delete(txn, row.name) == row
                seen.append(row.name)
            assert PEOPLE.count(txn) == PEOPLE.count(txn, "group", "all") == 0
            return seen

        return decide

    for walk in (lambda txn: PEOPLE.by(txn, "group", "all"), PEOPLE.scan):
        await records.write(fill)
        assert await records.write(delete_all(walk)) == [f"{n:03}" for n in range(300)]


def test_declarations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="unique names an index"):
        Table("t", Person, key=lambda row: row.name, unique=["email"])
    with pytest.raises(ValueError, match="a name has only"):
        Table("T/", Person, key=lambda row: row.name)
    with pytest.raises(ValueError, match="two tables have one name"):
        Schema("s", 1, [PEOPLE, PEOPLE])


async def test_misuse_is_reported(records: Records) -> None:
    stranger: Table[Person] = Table("stranger", Person, key=lambda row: row.name)
    with records.read() as txn:
        with pytest.raises(LookupError, match="in no Schema"):
            stranger.get(txn, "x")
        with pytest.raises(LookupError, match="no index 'mail'"):
            PEOPLE.find(txn, "mail", "x")
        assert not txn.is_write


# Transactions


@pytest.mark.real
async def test_writes_that_wait_share_a_transaction_and_fail_alone(
    records: Records, tmp_path: Path
) -> None:
    """While another process holds the lock all of these queue up behind it."""
    results: dict[int, object] = {}
    transactions = set()

    async def one(number: int) -> None:
        def decide(txn: Txn) -> int:
            transactions.add(txn.raw.id())
            PEOPLE.insert(txn, Person(str(number), f"{number // 2}@"))
            return number

        try:
            results[number] = await records.write(decide)
        except Taken as error:
            results[number] = (error.index, error.value)

    holder = start(tmp_path, "hold")
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
            await trio.testing.wait_all_tasks_blocked()
        finish(holder)
    assert results == {n: ("email", f"{n // 2}@") if n % 2 else n for n in range(20)}
    assert len(transactions) <= 2
    with records.read() as txn:
        assert PEOPLE.count(txn) == 10
        check_indexes(txn)


@pytest.mark.real
async def test_a_write_that_cannot_begin_is_given_up_and_never_happens(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "WAITING_MAX", 3)
    holder = start(tmp_path, "hold")
    with pytest.raises(RecordsBusy, match=r"within 0\.01 s"):
        await records.write(lambda txn: PEOPLE.insert(txn, Person("a", "a")), seconds=0.01)
    with trio.CancelScope() as scope:
        scope.cancel()
        await records.write(lambda txn: PEOPLE.insert(txn, Person("b", "b")))
    async with trio.open_nursery() as nursery:
        for name in "cde":
            nursery.start_soon(
                records.write, lambda txn, name=name: PEOPLE.insert(txn, Person(name, name))
            )
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RecordsBusy, match="3 changes wait"):
            await records.write(lambda txn: PEOPLE.insert(txn, Person("f", "f")))
        # Readers wait for nobody.
        with records.read() as txn:
            assert PEOPLE.count(txn) == 0
        finish(holder)
    with records.read() as txn:
        assert [row.name for row in PEOPLE.scan(txn)] == ["c", "d", "e"]


async def test_a_full_map_is_reported_and_passes(tmp_path: Path, place: str) -> None:
    records = open_records(tmp_path, SCHEMA, map_bytes=2**18, sync=False)
    try:
        await records.write(lambda txn: PEOPLE.insert(txn, Person("small", "s")))
        with pytest.raises(DiskFull, match="raise map_bytes"):
            await records.write(lambda txn: PEOPLE.insert(txn, Person("big", "x" * 2**19)))
        await records.write(lambda txn: PEOPLE.insert(txn, Person("other", "o")))
        with records.read() as txn:
            assert [row.name for row in PEOPLE.scan(txn)] == ["other", "small"]
    finally:
        records.close()


def test_whoever_keeps_what_was_read_keeps_no_reader(records: Records) -> None:
    """An error's traceback does, until the collector comes by."""
    kept = []
    for _ in range(READERS_MAX + 1):
        with records.read() as txn:
            kept.append(txn)
            assert PEOPLE.get(txn, "nobody") is None


async def test_after_close(tmp_path: Path, place: str) -> None:
    records = open_records(tmp_path, SCHEMA)
    await records.write(lambda txn: PEOPLE.insert(txn, Person("a", "a")))
    records.close()
    records.close()
    with pytest.raises(RecordsBusy, match="closed"):
        await records.write(PEOPLE.count)
    with pytest.raises(RecordsBusy, match="closed"):
        records.read()


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "records"
    Records.open(directory, [SCHEMA]).close()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())


def test_the_names_of_new_files_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    Records.open(tmp_path / "records", [SCHEMA]).close()
    assert synced == [str(tmp_path / "records"), str(tmp_path)]


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot be opened"):
        Records.open(tmp_path / "file", [SCHEMA])
    (tmp_path / "data.mdb").write_bytes(b"no records" * 1000)
    with pytest.raises(StartupError, match="cannot be opened"):
        Records.open(tmp_path, [SCHEMA])


# Versions


class PersonV0(msgspec.Struct, array_like=True):
    full_name: str
    email: str


OLD_PEOPLE: Table[PersonV0] = Table("people", PersonV0, key=lambda row: row.full_name)


def add_groups(txn: Txn) -> None:
    for row in OLD_PEOPLE.scan(txn):
        OLD_PEOPLE.delete(txn, row.full_name)
        PEOPLE.insert(txn, Person(row.full_name.lower(), row.email, ("old",)))


def fail_after_half(txn: Txn) -> None:
    add_groups(txn)
    raise Undo


async def test_upgrades(tmp_path: Path, place: str) -> None:
    records = open_records(tmp_path, Schema("crowd", 1, [OLD_PEOPLE]))

    def fill(txn: Txn) -> None:
        for name in ("Ada", "Bob"):
            OLD_PEOPLE.insert(txn, PersonV0(name, f"{name}@"))

    await records.write(fill)
    records.close()
    with pytest.raises(Undo):
        open_records(tmp_path, Schema("crowd", 3, [PEOPLE], {1: add_groups, 2: fail_after_half}))
    with pytest.raises(StartupError, match="cannot upgrade: first run one that knows 3"):
        open_records(tmp_path, Schema("crowd", 3, [PEOPLE], {1: add_groups}))
    steps = []

    def second(txn: Txn) -> None:
        steps.append([row.name for row in PEOPLE.scan(txn)])

    upgraded = Schema("crowd", 3, [PEOPLE], {1: add_groups, 2: second})
    for _ in range(2):
        records = open_records(tmp_path, upgraded)
        with records.read() as txn:
            assert list(PEOPLE.by(txn, "group", "old")) == [
                Person("ada", "Ada@", ("old",)),
                Person("bob", "Bob@", ("old",)),
            ]
            check_indexes(txn)
        records.close()
    assert steps == [["ada", "bob"]]
    with pytest.raises(StartupError, match="version 3, this release knows 2: run a newer one"):
        open_records(tmp_path, Schema("crowd", 2, [PEOPLE]))


async def test_a_new_index_finds_old_rows(tmp_path: Path, place: str) -> None:
    plain: Table[Person] = Table("people", Person, key=lambda row: row.name)
    records = open_records(tmp_path, Schema("crowd", 1, [plain]))
    await records.write(lambda txn: plain.insert(txn, Person("a", "same@")))
    records.close()
    records = open_records(tmp_path, SCHEMA)
    with records.read() as txn:
        assert PEOPLE.find(txn, "email", "same@") == Person("a", "same@")
    records.close()
    records = open_records(tmp_path, Schema("crowd", 1, [plain]))
    await records.write(lambda txn: plain.insert(txn, Person("b", "same@")))
    records.close()
    with pytest.raises(StartupError, match="email 'same@' is taken"):
        open_records(tmp_path, SCHEMA)


@pytest.mark.real
async def test_an_old_process_does_not_write_what_another_upgraded(
    records: Records, tmp_path: Path
) -> None:
    assert finish(start(tmp_path, "upgrade")) == ""
    with pytest.raises(RecordsUpgraded, match="restart this process"):
        await records.write(lambda txn: PEOPLE.insert(txn, Person("a", "a")))


async def test_a_module_may_come_later_and_names_do_not_collide(tmp_path: Path, place: str) -> None:
    other: Table[Person] = Table("people", Person, key=lambda row: row.name)
    open_records(tmp_path, SCHEMA).close()
    records = open_records(tmp_path, SCHEMA, Schema("later", 1, [other]))
    await records.write(lambda txn: other.insert(txn, Person("a", "a")))
    with records.read() as txn:
        assert (PEOPLE.count(txn), other.count(txn)) == (0, 1)
    records.close()


WHOLE = msgspec.msgpack.encode(Person("ada", "ada@", ("g",), 7))


@pytest.mark.parametrize(
    "data",
    [
        *(WHOLE[:size] for size in range(len(WHOLE))),
        WHOLE + b"\0",
        msgspec.msgpack.encode({"name": "ada", "email": "ada@"}),
        msgspec.msgpack.encode(["ada"]),
        msgspec.msgpack.encode(["ada", 1]),
        WHOLE.replace(b"ada@", b"ada\xff"),
    ],
)
async def test_a_row_that_cannot_be_read_is_named(records: Records, data: bytes) -> None:
    await records.write(lambda txn: txn.raw.put(b"ada", data, db=txn.handles[PEOPLE].rows))
    with records.read() as txn, pytest.raises(RowUnreadable) as caught:
        PEOPLE.get(txn, "ada")
    assert (caught.value.table, caught.value.key) == ("people", "ada")


# Many processes. Each is this file, run with a directory and what to do.


def start(directory: Path, *what: str) -> subprocess.Popen[str]:
    """A process that has said that it is ready, waiting for its input to end."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(directory / "records"), *what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], HANG_SECONDS)
    assert ready
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Let it go on, and what it printed until it ended by itself."""
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0
    return output


@pytest.mark.real
def test_processes_share_a_counter_and_a_unique_index(tmp_path: Path, place: str) -> None:
    rounds = 150
    processes = [start(tmp_path, "hammer", str(rounds)) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    won = [int(process.communicate(timeout=HANG_SECONDS)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    records = open_records(tmp_path / "records", SCHEMA)
    with records.read() as txn:
        counter = PEOPLE.get(txn, "counter")
        assert counter is not None
        assert counter.visits == 2 * rounds
        # Each address went to exactly one of them.
        assert sum(won) == rounds
        assert PEOPLE.count(txn) == rounds + 1
        check_indexes(txn)
    records.close()


@pytest.mark.real
def test_kill_9_of_writers_loses_nothing_acknowledged(tmp_path: Path, place: str) -> None:
    """With a reader here all the time, as the other workers of a server are."""
    records = open_records(tmp_path / "records", SCHEMA)
    chance = random.Random(3)
    acknowledged = 0
    try:
        for turn in range(8):
            process = start(tmp_path, "insert", str(turn))
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            lines = [process.stdout.readline() for _ in range(chance.randrange(1, 60))]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
            process.stdout.close()
            process.wait(HANG_SECONDS)
            reported = {line.strip() for line in lines if line.endswith("\n")}
            acknowledged += len(reported)
            trio.run(records.fresh)
            with records.read() as txn:
                for name in reported:
                    assert PEOPLE.get(txn, name) == PEOPLE.find(txn, "email", f"{name}@")
                    assert PEOPLE.get(txn, name) is not None
                assert PEOPLE.count(txn) >= acknowledged
                check_indexes(txn)
    finally:
        records.close()
    assert acknowledged >= 8


@pytest.mark.real
async def test_the_lock_of_a_killed_process_is_freed(tmp_path: Path, place: str) -> None:
    records = open_records(tmp_path / "records", SCHEMA)
    try:
        holder = start(tmp_path, "hold")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                records.write, lambda txn: PEOPLE.insert(txn, Person("mine", "mine@"))
            )
            await trio.testing.wait_all_tasks_blocked()
            holder.kill()
        holder.communicate(timeout=HANG_SECONDS)
        with records.read() as txn:
            # Not what the holder had written without committing.
            assert [row.name for row in PEOPLE.scan(txn)] == ["mine"]
            check_indexes(txn)
    finally:
        records.close()


def ready() -> None:
    print("ready", flush=True)
    sys.stdin.read()


def hold(records: Records) -> None:
    """Keep the write lock, with a row written, until the test lets it go on; then undo."""

    def decide(txn: Txn) -> None:
        PEOPLE.insert(txn, Person("held", "held@"))
        ready()
        raise Undo

    with contextlib.suppress(Undo):
        trio.run(records.write, decide)


async def hammer(records: Records, rounds: int) -> None:
    me = str(os.getpid())

    def count(txn: Txn) -> None:
        row = PEOPLE.get(txn, "counter") or Person("counter", "counter@")
        PEOPLE.put(txn, msgspec.structs.replace(row, visits=row.visits + 1))

    won = 0
    for number in range(rounds):
        await records.write(count)
        try:
            await records.write(
                lambda txn, number=number: PEOPLE.insert(
                    txn, Person(f"{me}-{number}", f"{number}@", (me,))
                )
            )
            won += 1
        except Taken:
            continue  # The other process was first.
    print(won, flush=True)


async def insert(records: Records, turn: str) -> None:
    async def lane(lane: int) -> None:
        for number in range(10**6):
            name = f"{turn}-{lane}-{number}"
            row = Person(name, f"{name}@", (turn, str(lane)))
            await records.write(lambda txn, row=row: PEOPLE.insert(txn, row))
            os.write(1, f"{name}\n".encode())

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(lane, number)


def main(directory: str, what: str, *arguments: str) -> None:
    if what == "upgrade":
        ready()
        schema = Schema("crowd", 2, [PEOPLE], {1: lambda txn: None})
        open_records(Path(directory), schema).close()
        return
    records = open_records(Path(directory), SCHEMA)
    if what == "hold":
        hold(records)
    elif what == "hammer":
        ready()
        trio.run(hammer, records, int(arguments[0]))
    else:
        ready()
        trio.run(insert, records, arguments[0])
    records.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

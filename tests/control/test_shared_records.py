"""Records that several processes share in PostgreSQL: what of it can fail, and what a copy
must not miss. test_records.py has what is the same in LMDB."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import psycopg
import pytest
import trio
from limits import HANG_SECONDS
from postgresql import PostgreSQL
from postgresql import running as running_server
from psycopg import sql
from s3_client import make_ada
from spread import Proxy
from test_records import PEOPLE, SCHEMA, Person, check_indexes

from control.api import Control, ControlSettings
from control.cli import moving
from control.cli.access_keys import make_key
from control.compute import Compute
from control.compute.rows import Fact, facts
from control.records import Records, RecordsBusy, Txn
from control.records import postgres as postgres_module
from control.records import shared as shared_module
from control.records.errors import RecordsAway
from control.records.schemas import encoded
from control.records.shared import Shared
from control.records.store import _own_directory
from control.s3 import S3, Keys, NewAccessKey
from control.storage import Storage
from gfs.errors import SettingsError, StartupError
from gfs.io import try_flock

pytestmark = pytest.mark.extra

Open = Callable[..., Records]


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    """One for this test alone, which ends it."""
    with running_server() as made:
        yield made


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Open]:
    made: list[Records] = []

    def make(server: PostgreSQL, store: str = "") -> Records:
        name = store or tmp_path.name[-20:]
        made.append(Records.open_shared(server.url, tmp_path / "copies", [SCHEMA], store=name))
        return made[-1]

    yield make
    for records in made:
        records.close()
    assert list((tmp_path / "copies").iterdir()) == []


def add(name: str, visits: int = 0) -> Callable[[Txn], None]:
    return lambda txn: PEOPLE.put(txn, Person(name, f"{name}@", ("all",), visits))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(HANG_SECONDS):
        while not condition():  # noqa: ASYNC110 (it is of another thread)
            await trio.sleep(0.02)


async def ask_for_ever(records: Records) -> None:
    while True:
        await records.fresh()
        await trio.sleep(0.01)


async def back(records: Records) -> None:
    """Wait until PostgreSQL answers again."""
    with trio.fail_after(HANG_SECONDS):
        while True:
            try:
                await records.fresh()
                return
            except RecordsAway:
                await trio.sleep(0.05)


def names(records: Records) -> list[str]:
    with records.read() as txn:
        check_indexes(txn)
        return [row.name for row in PEOPLE.scan(txn)]


async def test_a_copy_that_asks_has_what_others_were_answered(
    postgresql: PostgreSQL, opening: Open
) -> None:
    one, other = opening(postgresql), opening(postgresql)
    for number in range(30):
        writer, reader = (one, other) if number % 2 else (other, one)
        await writer.write(add(f"{number:02}"))
        await reader.fresh()
        assert names(reader) == [f"{each:02}" for each in range(number + 1)]
    await one.write(lambda txn: [PEOPLE.delete(txn, f"{each:02}") for each in range(29)])
    await other.fresh()
    assert names(other) == ["29"]


async def test_a_copy_that_nobody_asks_is_notified(
    postgresql: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_module, "IDLE_SECONDS", 600.0)
    one, other = opening(postgresql), opening(postgresql)
    await one.write(add("a"))
    await until(lambda: names(other) == ["a"])


async def test_values_that_change_hands_in_one_commit(
    postgresql: PostgreSQL, opening: Open
) -> None:
    """A unique value is with two rows while a copy takes them one by one."""
    one, other = opening(postgresql), opening(postgresql)
    await one.write(lambda txn: [PEOPLE.insert(txn, Person(each, each)) for each in "ab"])

    def exchange(txn: Txn) -> None:
        PEOPLE.put(txn, Person("a", "-"))
        PEOPLE.put(txn, Person("b", "a"))
        PEOPLE.put(txn, Person("a", "b"))

    await one.write(exchange)
    await other.fresh()
    with other.read() as txn:
        assert [PEOPLE.find(txn, "email", each) for each in "ab"] == [
            Person("b", "a"),
            Person("a", "b"),
        ]
        check_indexes(txn)


async def test_a_copy_that_is_too_old_is_made_anew(
    postgresql: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletions are forgotten after a while."""
    monkeypatch.setattr(postgres_module, "KEPT_COMMITS", 3)
    monkeypatch.setattr(postgres_module, "SWEPT_EVERY", 2)
    one, other = opening(postgresql, "old"), opening(postgresql, "old")
    for number in range(4):
        await one.write(add(str(number)))
    await other.fresh()
    assert other._shared is not None
    # It hears nothing for a while.
    with other._shared._changing:
        for number in range(3):
            await one.write(lambda txn, number=number: PEOPLE.delete(txn, str(number)))
        for _ in range(10):
            await one.write(add("3", 7))
        with psycopg.connect(postgresql.url) as look:
            (kept,) = look.execute(
                "SELECT count(*) FROM gfs.rows WHERE store = 'old' AND value IS NULL"
            ).fetchone()  # type: ignore[misc]
        assert kept == 0
    await other.fresh()
    # What it had asked for before it was held up may be old.
    await other.fresh()
    assert names(other) == ["3"]


async def test_a_sweep_reads_deleted_rows_only(postgresql: PostgreSQL, opening: Open) -> None:
    records = opening(postgresql, "sweep")
    await records.write(lambda txn: [PEOPLE.put(txn, Person(f"{n}", f"{n}")) for n in range(3000)])
    await records.write(lambda txn: [PEOPLE.delete(txn, f"{n}") for n in range(5)])
    with contextlib.closing(postgres_module.Database.connect(postgresql.url, "sweep", "-")) as line:
        line.begin()
        line._sweep(1000)
        (read,) = line._one(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables "
            "WHERE relid = 'gfs.rows'::regclass"
        )
        (left,) = line._one("SELECT count(*) FROM gfs.rows WHERE store = 'sweep' AND value IS NULL")
        line.roll_back()
    assert left == 0
    assert read < 20


async def test_many_deleted_rows_are_swept_in_pieces(
    postgresql: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit has a deadline."""
    for name, number in (("KEPT_COMMITS", 1), ("SWEPT_EVERY", 1), ("SWEPT_ROWS_MAX", 2)):
        monkeypatch.setattr(postgres_module, name, number)
    records = opening(postgresql, "pieces")
    await records.write(lambda txn: [PEOPLE.put(txn, Person(f"{n}", f"{n}")) for n in range(5)])
    await records.write(lambda txn: [PEOPLE.delete(txn, f"{n}") for n in range(5)])
    left = []
    with psycopg.connect(postgresql.url, autocommit=True) as look:
        for number in range(3):
            await records.write(add("other", number))
            left += look.execute(
                "SELECT count(*) FROM gfs.rows WHERE store = 'pieces' AND value IS NULL"
            ).fetchall()
    assert left == [(3,), (1,), (0,)]


async def test_an_answer_that_was_lost_is_found_again(
    postgresql: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection fails right after the commit, or right before: the change is made once."""
    records = opening(postgresql)
    commit = postgres_module.Database.commit
    for when in ("before", "after"):
        failures = [when]

        def failing(self: Any, *arguments: Any, failures: list[str] = failures) -> None:
            failure = failures.pop() if failures else ""
            if failure == "before":
                self._connection.close()
            commit(self, *arguments)
            if failure == "after":
                raise psycopg.OperationalError("the connection is lost")

        monkeypatch.setattr(postgres_module.Database, "commit", failing)
        runs = []

        def count(txn: Txn, runs: list[int] = runs) -> int:
            row = PEOPLE.get(txn, "counter") or Person("counter", "c")
            PEOPLE.put(txn, Person("counter", "c", (), row.visits + 1))
            runs.append(row.visits)
            return row.visits + 1

        before = [1] if when == "before" else [2]
        assert await records.write(count) == before[0]
        assert len(runs) == (2 if when == "before" else 1)
        with records.read() as txn:
            row = PEOPLE.get(txn, "counter")
        assert row is not None
        assert row.visits == before[0]


async def test_kill_9_of_postgresql_loses_nothing_acknowledged(
    server: PostgreSQL, opening: Open
) -> None:
    one, other = opening(server), opening(server)
    acknowledged: set[str] = set()
    refused = 0

    async def lane(records: Records, lane: str) -> None:
        nonlocal refused
        for number in range(10**6):
            name = f"{lane}-{number:06}"
            try:
                await records.write(add(name))
                acknowledged.add(name)
            except RecordsBusy:
                refused += 1
                await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(lane, one, f"one-{number}")
            nursery.start_soon(lane, other, f"other-{number}")
        for _ in range(3):
            await trio.sleep(1)
            count = len(acknowledged)
            server.kill()
            # Whoever asks is refused, and waits for nobody.
            with pytest.raises(RecordsAway), trio.fail_after(HANG_SECONDS):
                await ask_for_ever(one)
            await trio.to_thread.run_sync(server.start)
            await until(lambda count=count: len(acknowledged) >= count + 20)
        nursery.cancel_scope.cancel()
    for records in (one, other):
        await back(records)
        assert acknowledged <= set(names(records))
    assert names(one) == names(other)
    late = opening(server)
    assert names(late) == names(one)


async def test_a_server_that_is_stopped_holds_nobody_for_long(
    server: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one on a machine that the network has cut off: nothing answers, and nothing fails."""
    monkeypatch.setattr(postgres_module, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(postgres_module._Connection, "seconds", 1.0)
    monkeypatch.setattr(shared_module, "TRIED_SECONDS", 2.0)
    records = opening(server)
    await records.write(add("a"))
    server.signal(signal.SIGSTOP)
    try:
        with trio.fail_after(HANG_SECONDS):
            with pytest.raises(RecordsAway):
                await ask_for_ever(records)
            with pytest.raises(RecordsBusy):
                await records.write(add("b"))
            assert names(records) == ["a"]
    finally:
        server.signal(signal.SIGCONT)
    with trio.fail_after(HANG_SECONDS):
        while True:
            try:
                await records.write(add("c"))
                break
            except RecordsBusy:
                await trio.sleep(0.1)
    # Whether the first was made was not said.
    assert set(names(records)) - {"b"} == {"a", "c"}


async def test_a_writer_that_is_stopped_lets_others_go_on(
    postgresql: PostgreSQL, opening: Open
) -> None:
    """One that holds the lock of the store; PostgreSQL ends its transaction."""
    records = opening(postgresql, "stopped")
    with psycopg.connect(postgresql.url, options="-c idle_in_transaction_session_timeout=5s") as db:
        db.execute("SELECT FROM gfs.stores WHERE store = 'stopped' FOR UPDATE")
        with trio.fail_after(HANG_SECONDS):
            await records.write(add("a"), seconds=HANG_SECONDS)
        with pytest.raises(psycopg.Error):
            db.execute("SELECT 1")
    assert names(records) == ["a"]


def test_a_server_that_does_not_let_us_in_is_reported_at_once(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    url = postgresql.url.replace("/postgres", "/nothing", 1).replace("gfs@", "nobody@")
    with pytest.raises(StartupError, match="cannot be opened"):
        Records.open_shared(url, tmp_path, [SCHEMA])
    assert list(tmp_path.iterdir()) == []


def test_tables_of_a_newer_release_are_refused(server: PostgreSQL, tmp_path: Path) -> None:
    Records.open_shared(server.url, tmp_path, [SCHEMA]).close()
    with psycopg.connect(server.url) as db:
        db.execute("UPDATE gfs.version SET version = version + 1")
    version = postgres_module.VERSION
    with pytest.raises(StartupError, match=f"version {version + 1}, this release knows {version}"):
        Records.open_shared(server.url, tmp_path, [SCHEMA])


async def test_tables_of_version_1_are_upgraded_and_its_processes_refused(
    server: PostgreSQL, opening: Open
) -> None:
    rows = [
        ("schemas", b"crowd", encoded(SCHEMA)),
        ("crowd.people", b"ada", msgspec.msgpack.encode(Person("ada", "ada@"))),
    ]
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute(postgres_module._STEPS[0])
        db.execute("INSERT INTO gfs.stores VALUES ('one', 7, 0), ('other', 0, 0)")
        for row in rows:
            db.execute("INSERT INTO gfs.rows VALUES ('one', %s, %s, %s, 7)", row)
        one, other = opening(server, "one"), opening(server, "other")
        assert (names(one), names(other)) == (["ada"], [])
        await one.write(add("bob"))
        assert names(opening(server, "one")) == ["ada", "bob"]
        # What version 1 asks for, with each request and with each commit.
        for asked in ("SELECT swept FROM gfs.stores", "SELECT sequence FROM gfs.writers"):
            with pytest.raises(psycopg.errors.ProgrammingError):
                db.execute(asked)


def secret_of(control: Control, key: NewAccessKey) -> str:
    found = Keys(control).find(key.access_key_id)
    assert found is not None
    return found[0]


async def test_a_key_of_s3_that_one_machine_makes_is_known_to_all(
    server: PostgreSQL, tmp_path: Path
) -> None:
    settings = ControlSettings(records=server.url)
    one, other = (Control(settings, tmp_path / name, [Storage, S3]) for name in ("one", "other"))
    with one.opened():
        make_ada(one)
    made = [await make_key(control, "ada", "laptop") for control in (one, other)]
    for control in (one, other):
        with control.opened():
            assert [secret_of(control, key) for key in made] == [
                key.secret_access_key for key in made
            ]
        assert not (control.directory / "keys").exists()


async def test_records_move_to_postgresql_and_back(server: PostgreSQL, tmp_path: Path) -> None:
    def control(name: str, url: str = "") -> Control:
        return Control(ControlSettings(records=url), tmp_path / name, [Storage, S3])

    first = control("first")
    with first.opened():
        make_ada(first)
        key = first.keys.current
    made = await make_key(first, "ada", "laptop")
    with first.opened():
        rows = sorted(first.records.dump())
    count = moving.export(first, tmp_path / "one")
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    middle = control("middle", server.url)
    assert moving.load(middle, tmp_path / "one") > 0
    with middle.opened():
        assert middle.keys.current == key
        assert secret_of(middle, made) == made.secret_access_key
    with pytest.raises(StartupError, match="not empty"):
        moving.load(middle, tmp_path / "one")
    moving.export(middle, tmp_path / "two")
    last = control("last")
    moving.load(last, tmp_path / "two")
    with last.opened():
        assert last.keys.current == key
        assert secret_of(last, made) == made.secret_access_key
        assert sorted(last.records.dump()) == rows
    assert count == len(rows) + 3
    (tmp_path / "torn").write_bytes((tmp_path / "one").read_bytes()[:-8])
    with pytest.raises(SettingsError):
        moving.load(control("torn"), tmp_path / "torn")


async def test_posts_reach_all_others(postgresql: PostgreSQL, opening: Open) -> None:
    one, other = opening(postgresql), opening(postgresql)
    received: list[str] = []
    other.take_posts(received.append)
    one.take_posts(received.append)
    await other.fresh()
    for number in range(3):
        one.post(str(number))
    await until(lambda: received == ["0", "1", "2"])


async def test_a_lock_passes_on_when_its_holder_is_gone(
    postgresql: PostgreSQL, opening: Open
) -> None:
    one, other = opening(postgresql), opening(postgresql)
    locks = [records.lock("work") for records in (one, other)]
    assert locks[0] is not None
    assert locks[1] is not None
    assert await locks[0].take()
    assert not await locks[1].take()
    await locks[0].release()
    assert await locks[1].take()
    assert not await locks[0].take()
    assert await one.is_connected(other.writer)
    other.close()
    assert not locks[1].is_mine
    assert not await one.is_connected(other.writer)
    assert await locks[0].take()


async def test_a_lock_is_released_whatever_else_waits(
    postgresql: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is well keeps a lock that nobody releases."""
    one, other = opening(postgresql), opening(postgresql)
    lock, others = one.lock("work"), other.lock("work")
    assert lock is not None
    assert others is not None
    assert await lock.take()
    monkeypatch.setattr(shared_module, "ASKING_MAX", 0)
    with pytest.raises(RecordsBusy, match="requests wait"):
        await one.fresh()
    await lock.release()
    monkeypatch.undo()
    assert await others.take()


async def test_a_lock_whose_answer_was_lost_is_taken_once(
    server: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is carried out after its caller has given up: PostgreSQL counts how often a
    connection has taken a lock."""
    one, other = opening(server), opening(server)
    lock, others = one.lock("work"), other.lock("work")
    assert lock is not None
    assert others is not None
    await one.fresh()
    monkeypatch.setattr(shared_module, "FRESH_SECONDS", 0.2)
    for _ in range(3):
        server.signal(signal.SIGSTOP)
        assert not await lock.take()
        server.signal(signal.SIGCONT)
        monkeypatch.setattr(shared_module, "FRESH_SECONDS", 20.0)
        assert await lock.take()
        assert await lock.take()
        await lock.release()
        assert await others.take()
        await others.release()
        monkeypatch.setattr(shared_module, "FRESH_SECONDS", 0.2)
    monkeypatch.setattr(shared_module, "FRESH_SECONDS", 20.0)


async def test_a_process_that_connects_again_is_known_to_be_there(
    postgresql: PostgreSQL, opening: Open
) -> None:
    """Its connection before has the lock of its name for some more seconds, where the network
    has failed; and it knows of itself."""
    one, other = opening(postgresql), opening(postgresql)
    await one.fresh()
    assert await one.is_connected(one.writer)
    shared = one._shared
    assert shared is not None
    key = _key(one)
    with psycopg.connect(postgresql.url, autocommit=True) as before:
        (holder,) = before.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' "
            "AND (classid::bigint << 32 | objid::bigint) = %s",
            [key],
        ).fetchone()  # type: ignore[misc]
        took = threading.Thread(target=before.execute, args=("SELECT pg_advisory_lock(%s)", [key]))
        took.start()
        with psycopg.connect(postgresql.url, autocommit=True) as operator:
            await until(lambda: _waits(operator, key))
            operator.execute("SELECT pg_terminate_backend(%s)", [holder])
        await until(lambda: not took.is_alive() and shared.session > 1)
        await back(one)
    with trio.fail_after(HANG_SECONDS):
        while not await other.is_connected(one.writer):  # noqa: ASYNC110 (it is of another thread)
            await trio.sleep(0.05)


def _key(records: Records) -> int:
    digest = postgres_module.Database._key
    assert records._shared is not None
    line = cast(postgres_module.Database, SimpleNamespace(_store=records._shared._store))
    return digest(line, records.writer)


def _waits(operator: psycopg.Connection[Any], key: int) -> bool:
    found = operator.execute(
        "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
        "AND (classid::bigint << 32 | objid::bigint) = %s",
        [key],
    )
    return found.fetchone() is not None


async def test_descriptors_above_1023(
    postgresql: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a server with many clients that connects again."""
    monkeypatch.setattr(shared_module, "IDLE_SECONDS", 600.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        one, other = opening(postgresql), opening(postgresql)
        await one.write(add("a"))
        await other.fresh()
        await one.write(add("b"))
        await until(lambda: names(other) == ["a", "b"])
        for records in (one, other):
            records.close()


async def test_commits_that_postgresql_has_lost_are_gone_everywhere(
    postgresql: PostgreSQL, opening: Open
) -> None:
    """It was restored from a backup, or a standby took over that lacked the last ones."""
    one, other = opening(postgresql, "restored"), opening(postgresql, "restored")
    for number in range(9):
        await one.write(add(str(number)))
    await other.fresh()
    with psycopg.connect(postgresql.url) as operator:
        (last,) = operator.execute(
            "SELECT sequence FROM gfs.stores WHERE store = 'restored'"
        ).fetchone()  # type: ignore[misc]
        operator.execute(
            "DELETE FROM gfs.rows WHERE store = 'restored' AND sequence > %s", [last - 5]
        )
        operator.execute(
            "DELETE FROM gfs.commits WHERE store = 'restored' AND sequence > %s", [last - 5]
        )
        operator.execute("UPDATE gfs.stores SET sequence = %s WHERE store = 'restored'", [last - 5])
    for records in (one, other):
        await records.fresh()
        assert names(records) == ["0", "1", "2", "3"]
    await other.write(add("new"))
    await one.write(add("newer"))
    for records in (one, other):
        await records.fresh()
        assert names(records) == ["0", "1", "2", "3", "new", "newer"]


async def test_as_many_commits_as_were_lost_do_not_hide_the_loss(
    server: PostgreSQL, opening: Open
) -> None:
    """One process connects to the restored server first, and commits as often as was lost; then
    the other, whose last commit has the same number."""
    line = Proxy([("127.0.0.1", server.port)])
    data, backup = (server.directory / name for name in ("data", "backup"))
    url = server.url.replace(str(server.port), str(line.port))
    through = cast(PostgreSQL, SimpleNamespace(url=url))
    try:
        one, other = opening(server), opening(through)
        for name in ("kept", "token"):
            await one.write(add(name))
        server.stop()
        await trio.run_process(["cp", "-a", data, backup])
        server.start()
        await back(one)
        for number in range(3):
            await one.write(add(f"lost-{number}"))
        await back(other)
        assert names(other) == ["kept", "lost-0", "lost-1", "lost-2", "token"]
        server.stop()
        with pytest.raises(RecordsAway), trio.fail_after(HANG_SECONDS):
            await ask_for_ever(other)
        line.flows.clear()
        shutil.rmtree(data)
        backup.rename(data)
        server.start()
        await back(one)
        await one.write(lambda txn: PEOPLE.delete(txn, "token"))
        for number in range(2):
            await one.write(add(f"new-{number}"))
        line.flows.set()
        await back(other)
        assert names(other) == names(one) == ["kept", "new-0", "new-1"]
    finally:
        line.flows.set()
        line.close()


async def test_decisions_are_made_on_no_rows_that_postgresql_has_lost(
    postgresql: PostgreSQL, opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer may find the loss before the follower does."""
    records = opening(postgresql, "decisions")
    for number in range(3):
        await records.write(add(str(number)))
    monkeypatch.setattr(Shared, "_bring", lambda *_: None)
    with psycopg.connect(postgresql.url) as operator:
        replace_last_commit(operator, "decisions")
    found = await records.write(lambda txn: [row.name for row in PEOPLE.scan(txn)])
    assert found == ["0", "1"]


def replace_last_commit(operator: psycopg.Connection[Any], store: str) -> None:
    """As if PostgreSQL had lost it, and another process had made one since."""
    for change in (
        sql.SQL("DELETE FROM gfs.rows WHERE (store, sequence) = {}"),
        sql.SQL("UPDATE gfs.commits SET mark = gen_random_uuid() WHERE (store, sequence) = {}"),
    ):
        last = sql.SQL("(SELECT store, sequence FROM gfs.stores WHERE store = {})")
        operator.execute(change.format(last.format(store)))


async def test_waits_are_short_again_once_everything_was_copied(
    postgresql: PostgreSQL, opening: Open
) -> None:
    records = opening(postgresql, "waits")
    await records.write(add("a"))
    await records.write(add("b"))
    shared = records._shared
    assert shared is not None
    with psycopg.connect(postgresql.url) as operator:
        replace_last_commit(operator, "waits")
    await records.fresh()
    assert names(records) == ["a"]
    with psycopg.connect(postgresql.url) as operator:
        replace_last_commit(operator, "waits")
    await records.write(add("c"))
    assert names(records) == ["a", "c"]
    follower = await shared.ask(waits)
    assert shared._line is not None
    assert follower == waits(shared._line) == [5.0, "5s", "5s", "5s"]


def waits(line: postgres_module.Database) -> list[float | str]:
    asked = "SELECT current_setting(name) FROM unnest(%s::text[]) AS name"
    shown = line._connection.execute(asked, [list(postgres_module._TIMEOUTS)]).fetchall()
    return [line._connection.seconds, *(value for (value,) in shown)]


async def test_transactions_are_as_here_whatever_the_servers_defaults_are(
    server: PostgreSQL, opening: Open
) -> None:
    with psycopg.connect(server.url, autocommit=True) as operator:
        operator.execute("ALTER DATABASE postgres SET default_transaction_isolation = serializable")
    one, other = opening(server), opening(server)

    async def count(records: Records) -> None:
        def more(txn: Txn) -> None:
            row = PEOPLE.get(txn, "counter") or Person("counter", "c")
            PEOPLE.put(txn, Person("counter", "c", (), row.visits + 1))

        for _ in range(30):
            await records.write(more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shared, "_drop", fail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count, one)
            nursery.start_soon(count, other)
    await one.fresh()
    with one.read() as txn:
        row = PEOPLE.get(txn, "counter")
    assert row is not None
    assert row.visits == 60


def fail(self: Shared) -> None:
    raise AssertionError("a transaction failed")


def test_processes_that_start_at_once_leave_one_anothers_copies_alone(tmp_path: Path) -> None:
    failures: list[str] = []

    def begin(lane: int) -> None:
        for number in range(100):
            own = tmp_path / f"{lane}-{number}"
            try:
                lock = _own_directory(tmp_path, own)
            except OSError as error:
                failures.append(str(error))
                return
            other = os.open(own, os.O_RDONLY) if own.exists() else -1
            if other < 0 or try_flock(other):
                failures.append(f"{own} is another's, or gone")
            os.close(lock)

    threads = [threading.Thread(target=begin, args=[lane]) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://gfs:secret@h/d",
        "postgresql://gfs:se/cret@h/d",
        "postgresql://gfs:1/secret@h/d",
        "postgresql://gfs:se?cret@h/d",
        "postgresql://gfs:1?secret@h/d",
        "postgresql://gfs:1#secret@h/d",
        "postgresql://gfs@h/d?password=secret",
        "postgresql://gfs@h/d?sslkey=k&sslpassword=secret",
        "gfs:secret@h/d",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_printed(url: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        ControlSettings(records=url).check()
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://gfs@a:5432,b,[::1]:5433/gfs?target_session_attrs=read-write",
        "postgresql:///gfs?host=/run/postgresql&user=a@b",
        "postgres://h",
    ],
)
def test_urls_of_postgresql(url: str) -> None:
    ControlSettings(records=url).check()


def test_an_export_that_fails_leaves_no_file(tmp_path: Path) -> None:
    control = Control(ControlSettings(sync=False), tmp_path / "state", [Storage])
    with control.opened():
        pass
    path = tmp_path / "records"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "open_records", lambda *_: raise_it(StartupError("no")))
        with pytest.raises(StartupError):
            moving.export(control, path)
    assert not path.exists()
    with pytest.MonkeyPatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "fsync", lambda _: raise_it(full))
        with pytest.raises(SettingsError, match="No space left"):
            moving.export(control, path)
    assert not path.exists()
    assert moving.export(control, path) > 0


def raise_it(error: Exception) -> Any:
    raise error


def test_rows_of_a_module_that_is_not_installed_are_not_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The output says what is not moved."""
    many = Control(ControlSettings(), tmp_path / "many", [Storage, Compute])
    with many.opened():
        many.records.write_at_start(lambda txn: facts.put(txn, Fact("one", "two")))
    moving.export(many, tmp_path / "all")
    few = Control(ControlSettings(), tmp_path / "few", [Storage])
    with pytest.raises(StartupError, match=r"compute\.\w+.*install that module"):
        moving.load(few, tmp_path / "all")
    assert not caplog.records
    fewer = Control(ControlSettings(), tmp_path / "many", [Storage])
    moving.export(fewer, tmp_path / "some")
    assert "'compute' are left out" in caplog.text
    moving.load(few, tmp_path / "some")

"""The rows in PostgreSQL: their order, and their durability.

::

    gfs.stores    store → sequence                  one row for each store; its lock is the order
    gfs.rows      store, place, key → value, sequence
    gfs.commits   store, sequence → mark            the last commits

*One order.* A commit locks the row of its store, so commits follow one another, as with
LMDB's write lock; each has the next sequence number, and every row says which commit changed
it last. So "what is new since I looked" is one range of an index, at any time, and nobody
has to be notified reliably: a notification only says that it is worth looking.

*Marks.* PostgreSQL can lose commits: it is restored from a backup, or replaced by a standby that
lacked them. Numbers do not show that once others have committed as often again, so each commit
also has a random mark, and a copy knows that of its last commit. A copy whose last commit
PostgreSQL does not know, by number and mark, is made again.

A deleted row stays with no value, so that the others see the deletion. Such rows are swept once
they are :data:`KEPT_COMMITS` old, and the commits with them: so a copy that is older is made
again, too.

*An answer that was lost.* A connection can fail while a commit is under way. The next one
waits for the same lock, which the old transaction holds until it has ended one way or the
other, and then finds in ``gfs.commits`` which way.

*Deadlines.* Each statement has one here (:data:`ANSWER_SECONDS`), and PostgreSQL ends the
transaction of a process that was stopped while it held the lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import uuid
from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple, TypeVar

import psycopg
from psycopg import sql
from psycopg.abc import PQGen

from control.records.txn import Changes
from gfs.errors import StartupError

RV = TypeVar("RV")

#: Longer than a commit takes on a busy disk, shorter than a caller waits for its write.
ANSWER_SECONDS = 5.0
#: To copy and upgrade everything, some 100,000 rows a second.
PATIENT_SECONDS = 600.0
CONNECT_SECONDS = 3
#: How old deletions are when they are forgotten, and how often that is done, in commits.
KEPT_COMMITS = 20_000
SWEPT_EVERY = 100
#: Of deleted rows at once, within a commit: some 0.1 s. What is left waits for the next time.
SWEPT_ROWS_MAX = 10_000
#: The channel of posts, and how long one may be: PostgreSQL allows 8000 bytes.
POSTS = "gfs_posts"
POST_BYTES_MAX = 7900
#: The lock of those who make the tables.
_MAKING = 0x67667301

_TIMEOUTS = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")
_OPTIONS = {
    # A process that was stopped, or whose machine is gone, holds up the others for so long.
    **dict.fromkeys(_TIMEOUTS, "5s"),
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    # Whatever the server's defaults are: every commit is on the disk, and each statement sees
    # what was committed before it.
    "synchronous_commit": "on",
    "default_transaction_isolation": "read\\ committed",
}

#: Each makes the tables of one more version from those before, and the first one from none. The
#: row of the store is what others lock first, so a change of that table comes first, too. What a
#: running process of an older release uses is dropped or renamed, so that it is refused.
_STEPS: Sequence[LiteralString] = [
    """
    CREATE SCHEMA IF NOT EXISTS gfs;
    CREATE TABLE gfs.version (version integer NOT NULL);
    INSERT INTO gfs.version VALUES (1);
    CREATE TABLE gfs.stores (
        store text PRIMARY KEY, sequence bigint NOT NULL, swept bigint NOT NULL
    );
    CREATE TABLE gfs.rows (
        store text NOT NULL, place text NOT NULL, key bytea NOT NULL,
        value bytea, sequence bigint NOT NULL, PRIMARY KEY (store, place, key)
    );
    CREATE INDEX rows_by_sequence ON gfs.rows (store, sequence);
    CREATE TABLE gfs.writers (
        store text NOT NULL, writer text NOT NULL, sequence bigint NOT NULL,
        seen timestamptz NOT NULL, PRIMARY KEY (store, writer)
    );
    """,
    """
    ALTER TABLE gfs.stores DROP COLUMN swept;
    DROP TABLE gfs.writers;
    CREATE TABLE gfs.commits (
        store text NOT NULL, sequence bigint NOT NULL, mark uuid NOT NULL,
        PRIMARY KEY (store, sequence)
    );
    INSERT INTO gfs.commits SELECT store, sequence, gen_random_uuid() FROM gfs.stores;
    CREATE INDEX deleted_rows ON gfs.rows (store, sequence) WHERE value IS NULL;
    UPDATE gfs.version SET version = 2;
    """,
]
#: Of the tables here.
VERSION = len(_STEPS)


class Row(NamedTuple):
    place: str
    key: bytes
    #: None: deleted.
    value: bytes | None
    sequence: int


class Commit(NamedTuple):
    sequence: int
    mark: uuid.UUID | None

    def next(self) -> Commit:
        """One that may follow it."""
        return Commit(self.sequence + 1, uuid.uuid4())


#: Before the first commit.
NONE = Commit(0, None)


class News(NamedTuple):
    """The rows that changed since a commit."""

    commit: Commit
    rows: list[Row]
    since: Commit
    #: Whether PostgreSQL knows that commit; if not, there are no rows.
    is_known: bool

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows."""
        return self.since == NONE


class _Connection(psycopg.Connection[Any]):
    """A connection whose waits end."""

    seconds = ANSWER_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        return super().wait(gen, interval, self.seconds if timeout is None else timeout)


class Database:
    """One connection, for the store of one name. For one thread; after any error of psycopg
    it must be closed."""

    def __init__(self, connection: _Connection, store: str, writer: str) -> None:
        self._connection = connection
        self._store = store
        self._writer = writer
        self._is_notified = False
        self._locks: set[str] = set()
        #: What others have posted; for the follower.
        self.posts: list[str] = []
        connection.add_notify_handler(self._note)

    @classmethod
    def connect(cls, url: str, store: str, writer: str, *, is_patient: bool = False) -> Database:
        """``is_patient``: to copy or upgrade everything, and for nothing else: its waits
        do not end soon."""
        options = " ".join(f"-c {name}={value}" for name, value in _OPTIONS.items())
        connection = _Connection.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            # A patient connection, too, is to notice soon that the other machine is gone.
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            options=options,
            application_name=f"gfs control {os.getpid()}",
        )
        database = cls(connection, store, writer)
        if is_patient:
            connection.seconds = PATIENT_SECONDS
            for name in _TIMEOUTS:
                connection.execute(
                    sql.SQL("SET {} = {}").format(sql.Identifier(name), f"{PATIENT_SECONDS:.0f}s")
                )
        return database

    def _note(self, notification: psycopg.Notify) -> None:
        if notification.channel == POSTS:
            writer, _, post = notification.payload.partition(" ")
            if writer != self._writer:
                self.posts.append(post)
        self._is_notified = True

    def post(self, posts: Sequence[str]) -> None:
        """Send these to all others that listen to :data:`POSTS`, in order. They are not stored."""
        self._connection.execute(
            "SELECT pg_notify(%s, post) FROM unnest(%s::text[]) AS post",
            [POSTS, [f"{self._writer} {post}" for post in posts]],
        )

    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._connection.close()

    def prepare(self) -> None:
        """Make the tables, or upgrade them. Raises StartupError if a newer release did."""
        run = self._connection.execute
        with self._connection.transaction():
            run("SELECT pg_advisory_xact_lock(%s)", [_MAKING])
            version = 0
            if self._one("SELECT to_regclass('gfs.version')")[0] is not None:
                (version,) = self._one("SELECT version FROM gfs.version")
            if version > VERSION:
                raise StartupError(
                    f"the tables in PostgreSQL have version {version}, this release knows "
                    f"{VERSION}: run a newer one"
                )
            for step in _STEPS[version:]:
                run(step)
            run("INSERT INTO gfs.stores VALUES (%s, 0) ON CONFLICT DO NOTHING", [self._store])

    def listen(self, channel: str) -> None:
        self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def try_lock(self, name: str) -> bool:
        """Take the lock of this name, if no other process has it. It is released by
        :meth:`unlock`, or with the connection. Taking it twice is as taking it once."""
        key = self._key(name)
        # PostgreSQL would count.
        if name not in self._locks and self._one("SELECT pg_try_advisory_lock(%s)", [key])[0]:
            self._locks.add(name)
        return name in self._locks

    def unlock(self, name: str) -> None:
        if name in self._locks:
            self._locks.remove(name)
            self._connection.execute("SELECT pg_advisory_unlock(%s)", [self._key(name)])

    def is_locked(self, name: str) -> bool:
        """Whether any process has it: the attempt is over with the statement."""
        return (
            name in self._locks
            or not self._one("SELECT pg_try_advisory_xact_lock(%s)", [self._key(name)])[0]
        )

    def _key(self, name: str) -> int:
        digest = hashlib.blake2b(f"{self._store} {name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)

    def wait_for_news(self, seconds: float, wake: int) -> None:
        """Wait for a notification, for the descriptor ``wake`` to be readable, or for the time.
        The next statement takes the notification."""
        if not self._is_notified:
            waiting = select.poll()  # select() takes no descriptor above 1023
            for descriptor in (self._connection.fileno(), wake):
                waiting.register(descriptor, select.POLLIN)
            waiting.poll(seconds * 1000)
        self._is_notified = False

    def news(self, since: Commit = NONE) -> News:
        """What changed after ``since``, or all rows, as of one moment."""
        asked = {"store": self._store, "sequence": since.sequence, "mark": since.mark}
        with self._connection.cursor(binary=True) as cursor:
            cursor.execute(_NEWS, asked)
            found = cursor.fetchall()
        sequence, mark, is_known = found[0][:3]
        if since != NONE and not is_known:
            return News(Commit(sequence, mark), [], since, False)
        rows = [Row(*each[3:]) for each in found if each[3] is not None]
        return News(Commit(sequence, mark), rows, since, True)

    # --- a commit -------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction and take the lock of the store: until it ends, nobody else can
        commit, and each statement sees all commits."""
        with self._connection.pipeline():
            self._connection.execute("BEGIN")
            self._connection.execute(
                "SELECT FROM gfs.stores WHERE store = %s FOR UPDATE", [self._store]
            )

    def has(self, commit: Commit) -> bool:
        """Whether it was committed, of the last :data:`KEPT_COMMITS`."""
        return self._one(_HAS, [self._store, *commit]) == (True,)

    def commit(self, commit: Commit, changes: Changes) -> None:
        """Store the changes as this commit, durably, and notify the others."""
        sequence = commit.sequence
        places, keys, values = [], [], []
        for (place, key), value in changes.items():
            places.append(place)
            keys.append(key)
            values.append(value)
        run = self._connection.execute
        with self._connection.pipeline():
            run(_STORE, [self._store, sequence, places, keys, values])
            run("UPDATE gfs.stores SET sequence = %s WHERE store = %s", [sequence, self._store])
            run("INSERT INTO gfs.commits VALUES (%s, %s, %s)", [self._store, *commit])
            if sequence % SWEPT_EVERY == 0:
                self._sweep(sequence - KEPT_COMMITS)
            run("SELECT pg_notify(%s, %s)", [channel(self._store), self._writer])
            run("COMMIT")

    def roll_back(self) -> None:
        self._connection.execute("ROLLBACK")

    def _sweep(self, before: int) -> None:
        # The commits first: no copy that knows one of those that stay lacks a deletion of these.
        run = self._connection.execute
        run("DELETE FROM gfs.commits WHERE store = %s AND sequence <= %s", [self._store, before])
        run(_SWEEP, [self._store, before, SWEPT_ROWS_MAX])

    def _one(self, query: LiteralString, arguments: Sequence[object] = ()) -> tuple[Any, ...]:
        row = self._connection.execute(query, arguments).fetchone()
        return row if row is not None else (None,)


_HAS = "SELECT true FROM gfs.commits WHERE store = %s AND sequence = %s AND mark = %s"
#: One statement, so that the number and the rows are of one moment.
_NEWS = """
SELECT stores.sequence, last.mark,
    EXISTS (
        SELECT FROM gfs.commits
        WHERE store = %(store)s AND sequence = %(sequence)s AND mark = %(mark)s
    ),
    place, key, value, rows.sequence
FROM gfs.stores
LEFT JOIN gfs.commits AS last
    ON last.store = stores.store AND last.sequence = stores.sequence
LEFT JOIN gfs.rows ON rows.store = stores.store AND rows.sequence > %(sequence)s
WHERE stores.store = %(store)s
"""
#: By the index of deleted rows alone: it does not read those that are there.
_SWEEP = """
DELETE FROM gfs.rows WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM gfs.rows
    WHERE store = %s AND value IS NULL AND sequence <= %s ORDER BY sequence LIMIT %s
))
"""
_STORE = """
INSERT INTO gfs.rows (store, place, key, value, sequence)
SELECT %s, place, key, value, %s
FROM unnest(%s::text[], %s::bytea[], %s::bytea[]) AS change (place, key, value)
ON CONFLICT (store, place, key)
DO UPDATE SET value = excluded.value, sequence = excluded.sequence
"""


def channel(store: str) -> str:
    """The channel that commits to the store are announced on."""
    return f"gfs_{store}"

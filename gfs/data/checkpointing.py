"""Checkpoints: directories that appear whole, or not at all.

What a checkpoint is made of is written below a directory aside, and a rename, which the master
does at one instant, puts all of it under its name. Beside ``/runs/7/step-100``::

    /runs/7/.gfs-checkpoints/step-100@TRY/
        begun-0  done-1  …      one mark for each writer
        files/                  becomes /runs/7/step-100

*Several writers.* Each makes a mark when it begins, and renames it when it has written all that
is its own. The last one, or any that waits, publishes. A mark is made once and renamed once, so
a writer whose directory was removed meanwhile cannot finish: what it writes after that may make
the directory again, but not the mark.

*Writers that die.* A writer renews its mark while it writes. One that has been silent for
``silence_seconds`` is taken for dead: the others give up, and the next checkpoint in the directory
removes what is left. Its own limit is in an attribute of the mark: who judges with a shorter one
waits for that. Nothing that a reader sees depends on this judgement: a writer that was only slow
has its error, and what it wrote is gone. All times are the master's.

*Which directories are checkpoints* says an attribute, which names the directory's inode. Nothing
else is counted, or deleted, as one: neither directories that happen to lie there, nor a snapshot
of a checkpoint. They are in the order of their inodes, in which they were begun; inode numbers
only grow.

Deleting is a rename, too: a checkpoint disappears at one instant, into the trash.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gfs.client import Entry, as_built_in, sync
from gfs.data.clients import FileSystem, client_of
from gfs.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FileChanged,
    GfsError,
    InvalidArgument,
    NotFound,
    Retryable,
)

ASIDE = ".gfs-checkpoints"
#: Of each checkpoint: the inode of the directory.
ATTRIBUTE = "gfs.checkpoint"
#: Of each mark: the seconds after which its writer may be taken for dead.
SILENCE = "gfs.silence"

SILENCE_SECONDS = 600.0
#: A writer renews its mark so often, or ten times in what counts as silence.
RENEWAL_SECONDS = 60.0
#: Between two looks at what the other writers have done.
PAUSE_SECONDS = (0.05, 1.0)


@contextmanager
def checkpoint(
    fs: FileSystem,
    path: str,
    *,
    keep: int | None = None,
    writer: int = 0,
    writers: int = 1,
    attempt: str = "",
    silence_seconds: float = SILENCE_SECONDS,
) -> Iterator[str]:
    """A context manager; its value is the directory to write to, by any means and from any
    process. It gets its name ``path`` when the block ends, with all files that are closed then; if
    the block raises, or the process dies, nothing gets that name.

    Several processes may write one checkpoint together, each in such a block, with the same
    ``writers`` and ``attempt``. The block of each ends when all have ended, and the checkpoint is
    there; if one of them raises or dies, all raise.

    Args:
        fs: the blocking client, or fsspec's file system for ``gfs://``.
        path: where the checkpoint appears; a name that nothing has yet.
        keep: delete all but so many checkpoints in the same directory, those begun first,
            once this one is there. They can be undeleted for a while, and their open files can
            be read. Nothing else in the directory is touched.
        writer: which of the writers this is, from 0.
        writers: how many there are.
        attempt: with several writers, a name that all of them know and no earlier try at this
            checkpoint had, such as the job's id and how often it was restarted: parts of two
            tries are never mixed.
        silence_seconds: a writer that does not reach the master for this long, or does not begin
            when another has waited for it this long, counts as dead. Where the writers of a
            directory have different limits, the longer of the two that judge and are judged.

    Raises AlreadyExists if something has the name, at the beginning and at the end: of two
    checkpoints of one name, the first that ends is there, whole. DeadlineExceeded if another
    writer died, NotFound if one gave up or this one was taken for dead, and what the client
    raises.
    """
    one = _Try(client_of(fs), path, keep, writer, writers, attempt, silence_seconds)
    one.begin()
    try:
        with one.renewed():
            yield one.files
        one.end()
    except BaseException:
        one.give_up()
        raise


def latest(fs: FileSystem, directory: str) -> str | None:
    """The path of the checkpoint in ``directory`` that was begun last; None if there is none.
    Raises what the client raises: a cluster that does not answer has no answer."""
    found = checkpoints(fs, directory)
    return found[-1] if found else None


def checkpoints(fs: FileSystem, directory: str) -> list[str]:
    """The paths of all checkpoints in ``directory``, in the order in which they were begun."""
    return [entry.path for entry in _checkpoints(client_of(fs), directory)]


def _checkpoints(client: sync.SyncClient, directory: str) -> list[Entry]:
    try:
        entries = client.list(directory)
    except NotFound:
        return []
    found = [entry for entry in entries if entry.attributes.get(ATTRIBUTE) == str(entry.inode)]
    return sorted(found, key=lambda entry: entry.inode)


class _Try:
    """One writer's part in one try at a checkpoint."""

    def __init__(
        self,
        client: sync.SyncClient,
        path: str,
        keep: int | None,
        writer: int,
        writers: int,
        attempt: str,
        silence_seconds: float,
    ) -> None:
        self._client = client
        self._path = path.rstrip("/")
        parent, _, name = self._path.rpartition("/")
        if not path.startswith("/") or not name:
            raise InvalidArgument(
                f"{path!r}: give the path of a checkpoint, such as /runs/7/step-1"
            )
        if keep is not None and keep < 1:
            raise InvalidArgument(f"keep={keep}: the new checkpoint is kept, so it is 1 at least")
        if not 0 <= writer < writers:
            raise InvalidArgument(f"writer={writer} of writers={writers}: they count from 0")
        if writers > 1 and not attempt:
            raise InvalidArgument(
                "several writers need attempt=: a name that they all know, and that no earlier "
                "try at this checkpoint had"
            )
        if "/" in attempt or silence_seconds <= 0:
            raise InvalidArgument(f"attempt={attempt!r}, silence_seconds={silence_seconds}")
        self._directory = parent or "/"
        self._keep = keep
        self._writer = writer
        self._writers = writers
        self._silence_seconds = silence_seconds
        self._aside = f"{parent}/{ASIDE}"
        self._here = f"{self._aside}/{name}@{attempt or secrets.token_hex(8)}"
        self.files = f"{self._here}/files"
        self._process = os.getpid()
        self._inode = 0
        self._mark: Entry
        self._marked_at = 0.0

    # --- begin ------------------------------------------------------------------------

    def begin(self) -> None:
        if self._client.exists(self._path):
            taken = AlreadyExists(f"{self._path}: exists: a checkpoint replaces nothing")
            raise as_built_in(taken, self._path)
        self._inode = self._client.mkdir(self.files, parents=True, exist_ok=True).inode
        marks = {entry.path for entry in self._client.list(self._here)}
        begun, done = self._mark_of("begun"), self._mark_of("done")
        try:
            if done in marks:
                raise AlreadyExists(done)
            self._put_mark(begun, 0)
        except AlreadyExists:
            taken = AlreadyExists(
                f"{self._path}: writer {self._writer} of this attempt has begun already: another "
                "try needs another attempt="
            )
            raise as_built_in(taken, self._path) from None
        with suppress(GfsError):  # the next checkpoint finds it
            self._remove_what_is_left()

    def _mark_of(self, state: str, writer: int | None = None) -> str:
        return f"{self._here}/{state}-{self._writer if writer is None else writer}"

    def _put_mark(self, path: str, expect: int) -> None:
        silence = {SILENCE: str(self._silence_seconds)}
        self._marked(self._client.put(b"", path, expect=expect, parents=False, attributes=silence))

    def _marked(self, mark: Entry) -> None:
        self._mark, self._marked_at = mark, time.monotonic()

    def _silence(self, entry: Entry) -> float:
        """For how many seconds nothing was heard of what made this."""
        passed = time.monotonic() - self._marked_at
        return (self._mark.modified_ns - entry.modified_ns) / 1e9 + passed

    def _remove_what_is_left(self) -> None:
        """Tries of which nothing was heard. One whose writer is alive all the same fails."""
        for left in self._client.list(self._aside):
            if left.path == self._here:
                continue
            with suppress(NotFound, FileChanged):
                heard = [left, *self._client.list(left.path)]
                if min(self._silence(entry) for entry in heard) > self._limit(heard):
                    self._delete(left.path, left.inode)

    def _limit(self, marks: list[Entry]) -> float:
        """The longest silence after which none of those who made these need be alive."""
        theirs = [float(mark.attributes.get(SILENCE, 0)) for mark in marks]
        return max([self._silence_seconds, *theirs])

    def _delete(self, path: str, inode: int | None = None) -> None:
        self._client.delete(path, recursive=True, expect=inode, now=True)

    # --- while it is written ------------------------------------------------------------

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the mark meanwhile, in a thread: the block may be in one long write."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(self._renewal_seconds):
                try:
                    self._renew()
                except Retryable:
                    continue  # the next time
                except GfsError:
                    return  # it is gone: the end says so

        thread = threading.Thread(target=renew, name="gfs checkpoint", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            if os.getpid() == self._process:
                thread.join()

    @property
    def _renewal_seconds(self) -> float:
        return min(RENEWAL_SECONDS, self._silence_seconds / 10)

    def _renew(self) -> None:
        """Only the mark that is there is replaced: one that was removed is not made again."""
        mark = self._mark
        try:
            self._put_mark(mark.path, mark.inode)
        except FileChanged:
            # Removed, or renewed by a call that had no answer in time.
            self._marked(self._client.stat(mark.path))

    # --- end --------------------------------------------------------------------------

    def end(self) -> None:
        """Return when the checkpoint is there."""
        if os.getpid() != self._process:
            return  # a forked process left the block: it is not the one that ends it
        try:
            done = self._mark_of("done")
            self._client.rename(self._mark.path, done)
            self._mark.path = done
            self._renew()
            self._wait_for_others()
            published = self._publish()
        except (NotFound, FileChanged) as error:
            if not self._is_there():
                gone = NotFound(
                    f"{self._here}: was removed before the checkpoint was whole: another writer "
                    f"gave up, or this one did not reach the master for {self._silence_seconds:g} s"
                )
                raise as_built_in(gone, self._here) from error
            published = False  # by another writer
        if published:
            self._clear()
        with suppress(GfsError):  # the checkpoint is there all the same
            self._delete_old()

    def _is_there(self) -> bool:
        try:
            return self._client.stat(self._path).inode == self._inode
        except NotFound:
            return False

    def _wait_for_others(self) -> None:
        since, renewed = time.monotonic(), time.monotonic()
        pause, longest = PAUSE_SECONDS
        while True:
            marks = {entry.path: entry for entry in self._client.list(self._here)}
            wanted = [n for n in range(self._writers) if self._mark_of("done", n) not in marks]
            if not wanted:
                return
            now = time.monotonic()
            for number in wanted:
                begun = marks.get(self._mark_of("begun", number))
                silence = now - since if begun is None else self._silence(begun)
                if silence > self._limit([begun] if begun else []):
                    dead = DeadlineExceeded(
                        f"{self._path}: writer {number} of {self._writers} has been silent for "
                        f"{silence:.0f} s, and counts as dead"
                    )
                    raise as_built_in(dead, self._path)
            if now - renewed > self._renewal_seconds:
                self._renew()
                renewed = now
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _publish(self) -> bool:
        """False: another writer has done it."""
        mark = {ATTRIBUTE: str(self._inode)}
        self._client.set_attributes(self.files, mark, expect=self._inode)
        try:
            self._client.rename(self.files, self._path)
        except AlreadyExists:
            if self._is_there():
                return False
            taken = AlreadyExists(f"{self._path}: another one of this name was there first")
            raise as_built_in(taken, self._path) from None
        return True

    def _clear(self) -> None:
        """What is not removed here, the next checkpoint finds."""
        with suppress(GfsError):
            self._delete(self._here)
            # Unless another one is being written.
            self._client.delete(self._aside, now=True)

    def _delete_old(self) -> None:
        if self._keep is None:
            return
        found = _checkpoints(self._client, self._directory)
        for old in found[: -self._keep]:
            if old.inode != self._inode:
                with suppress(NotFound, FileChanged):
                    self._client.delete(old.path, recursive=True, expect=old.inode)

    def give_up(self) -> None:
        """The other writers find nothing, and give up, too."""
        if os.getpid() == self._process:
            self._clear()

"""The accounting of quotas against a model of the file system, with whatever can happen in
between: kills, answers that are lost, deleted storage namespaces, and recounts meanwhile.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from control.errors import ApiError, Conflict, QuotaReached, TooLarge, TooManyRequests
from control.quota import usage
from control.quota.ledger import Ledger
from control.quota.limits import Limits
from control.quota.usage import USAGE, Begun, Change, MustYield, Reservation, Tally
from control.records import Records, Txn
from gfs.errors import DiskFull

T = TypeVar("T")
LIMITS = Limits(bytes=100, files=4)
SEEDS, STEPS = 60, 800
USERS, PROCESSES = ("ada", "bob"), ("p", "q")
#: As how many files one counts there.
PATHS = {"a": 1, "b": 1, "c": 2}


@dataclass
class Space:
    id: str
    is_deleted: bool = False
    #: Path → inode.
    files: dict[str, int] = field(default_factory=dict)


@dataclass
class File:
    inode: int
    owner: str
    length: int


@dataclass
class Act:
    """An upload, or without an owner a deletion, in a process."""

    row: Reservation
    space: Space
    path: str
    owner: str
    length: int
    #: The file that must still be there; 0: any.
    expect: int = 0
    is_publishing: bool = False
    changes: list[Change] | None = None


@dataclass
class Walk:
    space: Space
    begun: Begun
    tally: Tally = field(default_factory=Tally)
    at: str = ""
    #: What was publishing when it ended.
    waits_for: set[str] | None = None


class Accounting:
    """The store, the file system, and what is under way, moved on by dice."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.records = Records.open(directory, [USAGE], sync=False)
        self.numbers = itertools.count(1)
        self.files: dict[int, File] = {}
        self.spaces: list[Space] = []
        self.acts: list[Act] = []
        self.walk: Walk | None = None
        self._make_space()

    def run(self, steps: int) -> None:
        rules = {
            self.upload: 8,
            self.delete: 4,
            self.go_on: 48,
            self.move: 3,
            self.walk_on: 8,
            self.begin_recount: 3,
            self.lose_the_answer: 4,
            self.delete_without_a_word: 1,
            self.kill: 2,
            self.recounting_dies: 1,
            self.mark_deleted: 1,
            self.finish_deletions: 1,
        }
        for rule in self.rng.choices([*rules], [*rules.values()], k=steps):
            rule()
            self.nobody_has_more_than_the_limit()
        self.all_is_right_in_the_end()

    def write(self, decide: Callable[[Txn], T]) -> T:
        """In this thread, at once: tens of thousands of them are made."""
        with self.records._environment.begin(write=True) as raw:
            return decide(Txn(raw, self.records._handles, is_write=True))

    def _make_space(self) -> None:
        space = Space(f"{next(self.numbers):08x}")
        self.spaces.append(space)
        self.write(lambda txn: usage.add_space(txn, space.id, is_counted=True))

    def truth(self, user: str) -> tuple[int, int]:
        own = [
            (PATHS[path], self.files[inode].length)
            for space in self.spaces
            if not space.is_deleted
            for path, inode in space.files.items()
            if self.files[inode].owner == user
        ]
        return sum(files for files, _ in own), sum(length for _, length in own)

    # --- uploads and deletions ------------------------------------------------------------

    def upload(self) -> None:
        rng, space = self.rng, self.rng.choice(self.spaces)
        process, user, path = rng.choice(PROCESSES), rng.choice(USERS), rng.choice([*PATHS])
        length = rng.choice((0, 5, 20, 30, 50, 96, 110))
        there = self.files.get(space.files.get(path, 0))
        row = Reservation(f"{process}.{next(self.numbers)}", user, space.id, PATHS[path], length)
        expect = 0
        error = self._reserve(row)
        if error is not None:
            files, used = self.truth(user)
            is_settled = not any(space.is_deleted for space in self.spaces)
            if is_settled and not self.acts and not self._doubtful():
                assert used + length > LIMITS.bytes or files + PATHS[path] > LIMITS.files
            assert isinstance(error, TooLarge) == (length > LIMITS.bytes)
            # What came to a storage namespace that is deleted by now was never counted.
            if there is None or there.owner != user or space.is_deleted:
                return
            more, expect = max(0, length - there.length), there.inode
            row = replace(row, files=0, bytes=more, replaces=expect, credit=there.length)
            if self._reserve(row) is not None:
                return
        self.acts.append(Act(row, space, path, user, length, expect))

    def _reserve(self, row: Reservation, limits: Limits | None = LIMITS) -> ApiError | None:
        try:
            self.write(lambda txn: usage.reserve(txn, row, limits))
        except (QuotaReached, TooLarge, Conflict) as error:
            return error
        return None

    def delete(self) -> None:
        process, path = self.rng.choice(PROCESSES), self.rng.choice([*PATHS])
        space = self.rng.choice(self.spaces)
        inode = space.files.get(path)
        if inode is not None:
            row = Reservation(f"{process}.{next(self.numbers)}", "", space.id)
            self.acts.append(Act(row, space, path, "", 0, inode))

    def go_on(self) -> None:
        if self.acts:
            self._step(self.rng.choice(self.acts))

    def _step(self, act: Act) -> None:
        if not act.is_publishing:
            act.row = replace(act.row, is_publishing=True)
            limits = LIMITS if act.owner else None
            error = self._reserve(act.row, limits)
            act.is_publishing = error is None
            if error is not None:
                # What was lost is reserved, though it may be gone: for a while that is more.
                assert isinstance(error, Conflict) or self._doubtful()
                self._end(act, usage.release)
        elif act.changes is None:
            self._carry_out(act)
            if act.changes is None:
                self._end(act, usage.release)
        else:
            changes, space = act.changes, act.space
            self.write(
                lambda txn: usage.record(
                    txn, act.row.id, space.id, changes, lambda: not space.is_deleted
                )
            )
            self.acts.remove(act)

    def _carry_out(self, act: Act) -> None:
        """What the file system does; no changes: it refuses."""
        there = act.space.files.get(act.path, 0)
        if act.space not in self.spaces or (act.expect and there != act.expect):
            return
        act.changes = []
        if there:
            gone = self.files.pop(there)
            del act.space.files[act.path]
            act.changes.append(Change(there, gone.owner, gone.length, False, PATHS[act.path]))
        if act.owner:
            file = File(next(self.numbers), act.owner, act.length)
            self.files[file.inode] = file
            act.space.files[act.path] = file.inode
            act.changes.append(Change(file.inode, file.owner, file.length, True, PATHS[act.path]))

    def move(self) -> None:
        """In one step, whose answer may be lost. (A recount that is under way finds it once, twice
        or not at all: until the next one there may be more than the limit.)"""
        space, (source, target) = self.rng.choice(self.spaces), self.rng.sample([*PATHS], 2)
        inode, is_walked = space.files.get(source, 0), self.walk and self.walk.space is space
        if not inode or target in space.files or is_walked:
            return
        owner, more = self.files[inode].owner, PATHS[target] - PATHS[source]
        row = Reservation(f"p.{next(self.numbers)}", owner, space.id, max(0, more), 0, True)
        if self._reserve(row) is not None:
            return
        space.files[target] = space.files.pop(source)
        if self.rng.random() < 0.2:
            self.write(lambda txn: usage.mark_lost(txn, row.id))
            return
        changes = [Change.moved(inode, owner, more)]
        is_there = lambda: not space.is_deleted  # noqa: E731
        self.write(lambda txn: usage.record(txn, row.id, space.id, changes, is_there, moved=True))

    def lose_the_answer(self) -> None:
        if not self.acts:
            return
        act = self.rng.choice(self.acts)
        if act.is_publishing and self.rng.random() < 0.5 and act.changes is None:
            self._carry_out(act)
        self._end(act, usage.mark_lost if act.is_publishing else usage.release)

    def _end(self, act: Act, end: Callable[[Txn, str], None]) -> None:
        self.write(lambda txn: end(txn, act.row.id))
        self.acts.remove(act)

    def delete_without_a_word(self) -> None:
        """As with a full disk: neither before nor after it can anything be written."""
        for act in self.acts:
            if not (act.owner or act.is_publishing):
                self._carry_out(act)
                self.acts.remove(act)
                self.write(lambda txn, act=act: usage.require_recount(txn, act.space.id))  # type: ignore[misc]
                return

    def kill(self) -> None:
        process = self.rng.choice(PROCESSES)
        for act in [act for act in self.acts if act.row.id.startswith(f"{process}.")]:
            if act.is_publishing and act.changes is None and self.rng.random() < 0.5:
                self._carry_out(act)
            self.acts.remove(act)
        self.write(lambda txn: usage.end_process(txn, process))

    # --- storage namespaces ---------------------------------------------------------------

    def mark_deleted(self) -> None:
        self.rng.choice(self.spaces).is_deleted = True

    def finish_deletions(self) -> None:
        for space in [space for space in self.spaces if space.is_deleted]:
            self.write(lambda txn, space=space: usage.drop_space(txn, space.id))
            for inode in space.files.values():
                del self.files[inode]
            space.files.clear()
            self.spaces.remove(space)
            self._make_space()

    # --- recounts -------------------------------------------------------------------------

    def _doubtful(self) -> list[str]:
        with self.records.read() as txn:
            return usage.due(txn)

    def begin_recount(self) -> None:
        if self.walk is None:
            self._begin_recount(self.rng.choice(self.spaces))

    def _begin_recount(self, space: Space) -> None:
        self.write(usage.forget_walks)
        self.walk = Walk(space, self.write(lambda txn: usage.begin_recount(txn, space.id)))

    def walk_on(self) -> None:
        if self.walk is not None:
            self._walk_on(self.walk)

    def _walk_to_the_end(self) -> None:
        while self.walk is not None:
            self._walk_on(self.walk)

    def _walk_on(self, walk: Walk) -> None:
        left = sorted(path for path in walk.space.files if path > walk.at)
        if left and walk.waits_for is None:
            walk.at = left[0]
            file = self.files[walk.space.files[walk.at]]
            walk.tally.add(file.inode, file.owner, file.length, PATHS[walk.at])
            return
        with self.records.read() as txn:
            publishing = usage.publishing(txn, walk.space.id)
        walk.waits_for = publishing if walk.waits_for is None else walk.waits_for & publishing
        if not walk.waits_for:
            self.walk = None
            id_, begun, tally = walk.space.id, walk.begun, walk.tally
            is_there = lambda: not walk.space.is_deleted  # noqa: E731
            self.write(lambda txn: usage.end_recount(txn, id_, begun, tally, is_there))

    def recounting_dies(self) -> None:
        self.walk = None

    # --- what must be true ----------------------------------------------------------------

    def nobody_has_more_than_the_limit(self) -> None:
        for user in USERS:
            files, length = self.truth(user)
            assert files <= LIMITS.files
            assert length <= LIMITS.bytes
            # What is being sent has room, but for one file that takes another's.
            sent = [a for a in self.acts if a.owner == user and a.changes is None]
            replaced = {a.expect for a in sent if a.expect in self.files}
            instead = sum(self.files[inode].length for inode in replaced)
            assert length + sum(act.length for act in sent) <= LIMITS.bytes + instead

    def all_is_right_in_the_end(self) -> None:
        while self.acts:
            self._step(self.acts[0])
        self.finish_deletions()
        self._walk_to_the_end()
        known = {space.id: space for space in self.spaces}
        for space_id in self._doubtful():
            self._begin_recount(known.get(space_id, Space(space_id, is_deleted=True)))
            self._walk_to_the_end()
        assert self._doubtful() == []
        with self.records.read() as txn:
            assert list(usage.reservations.scan(txn)) == []
            assert list(usage.counts.scan(txn, prefix="r/")) == []
            for user in USERS:
                row = usage.count(txn, "u", user)
                assert (row.files, row.bytes) == self.truth(user)
            for space in self.spaces:
                assert usage.count(txn, "s", space.id).files == len(space.files)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_happens_nobody_has_more_and_all_is_right_in_the_end(
    tmp_path: Path, seed: int
) -> None:
    accounting = Accounting(tmp_path, seed)
    accounting.run(STEPS)
    accounting.records.close()


# --- by hand ------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records.open(tmp_path, [USAGE], sync=False)
    yield opened
    opened.close()


def growing(number: int, length: int) -> Reservation:
    return Reservation(f"p.{number}", "ada", "s", 1, length, is_growing=True, began_ns=number)


async def test_of_uploads_that_grow_the_last_gives_way(records: Records) -> None:
    async def reserve(row: Reservation) -> None:
        await records.write(lambda txn: usage.reserve(txn, row, LIMITS))

    await reserve(growing(1, 45))
    await reserve(growing(2, 45))
    with pytest.raises(MustYield):
        await reserve(growing(1, 60))
    with pytest.raises(QuotaReached) as refused:
        await reserve(growing(2, 60))
    assert not isinstance(refused.value, MustYield)
    # It would not help if the others gave way.
    with pytest.raises(TooLarge):
        await reserve(growing(1, 101))
    await records.write(lambda txn: usage.release(txn, "p.2"))
    await reserve(growing(1, 60))


def _deleted(txn: Txn) -> None:
    usage.record(txn, "p.9", "s", [Change(7, "ada", 90, came=False)], lambda: True)


def _deleted_with_its_namespace(txn: Txn) -> None:
    usage.drop_space(txn, "s")


def _deleted_unnoticed(txn: Txn) -> None:
    usage.end_recount(txn, "s", usage.begin_recount(txn, "s"), Tally(), lambda: True)


@pytest.mark.parametrize(
    "go", [_deleted, _deleted_with_its_namespace, _deleted_unnoticed], ids=lambda go: go.__name__
)
async def test_what_was_to_replace_a_file_that_has_gone_needs_room_of_its_own(
    records: Records, go: Callable[[Txn], None]
) -> None:
    def decide(txn: Txn) -> None:
        usage.add_space(txn, "s", is_counted=True)
        usage.record(txn, "p.1", "s", [Change(7, "ada", 90, came=True)], lambda: True)
        upload = Reservation("p.2", "ada", "s", 0, 5, replaces=7, credit=90)
        usage.reserve(txn, upload, LIMITS)
        go(txn)
        with pytest.raises(QuotaReached, match="95 more are reserved"):
            usage.reserve(txn, Reservation("p.3", "ada", "s", 1, 90), LIMITS)
        with pytest.raises(Conflict):
            usage.reserve(txn, upload, LIMITS)
        usage.release(txn, "p.2")
        usage.reserve(txn, Reservation("p.3", "ada", "s", 1, 90), LIMITS)

    await records.write(decide)


async def test_uploads_at_once_of_one_user_are_bounded(records: Records) -> None:
    def decide(txn: Txn) -> None:
        for number in range(usage.UPLOADS_MAX):
            usage.reserve(txn, Reservation(f"p.{number}", "ada", "s"), LIMITS)
        with pytest.raises(TooManyRequests, match=str(usage.UPLOADS_MAX)):
            usage.reserve(txn, Reservation("p.more", "ada", "s"), LIMITS)
        # Those that are under way go on, and so does whatever others do.
        usage.reserve(txn, Reservation("p.0", "ada", "s", 1, 10), LIMITS)
        usage.reserve(txn, Reservation("p.bob", "bob", "s", 1, 10), LIMITS)
        usage.release(txn, "p.1")
        usage.reserve(txn, Reservation("p.more", "ada", "s"), LIMITS)

    await records.write(decide)


async def test_a_lost_change_during_a_recount_requires_another_one(records: Records) -> None:
    def decide(txn: Txn) -> None:
        usage.add_space(txn, "s", is_counted=False)
        begun = usage.begin_recount(txn, "s")
        usage.require_recount(txn, "s")
        usage.end_recount(txn, "s", begun, Tally(), lambda: True)
        assert usage.due(txn) == ["s"]
        usage.end_recount(txn, "s", usage.begin_recount(txn, "s"), Tally(), lambda: True)
        assert usage.due(txn) == []

    await records.write(decide)


async def test_a_change_that_cannot_be_recorded_is_counted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say: what was done is done, and what is known of it is put right."""
    ledger = Ledger.open(tmp_path, map_bytes=2**24)
    file = Change(7, "ada", 10, came=True)

    async def full(*_: object, **__: object) -> None:
        raise DiskFull("full")

    def look() -> tuple[list[str], int]:
        with ledger.read() as txn:
            return usage.due(txn), usage.count(txn, "r", "ada").bytes

    await ledger.records.write(lambda txn: usage.add_space(txn, "s", is_counted=True))
    async with ledger.claim("ada", "s") as claim:
        await claim.publish(1, 10, LIMITS)
        with monkeypatch.context() as patch:
            patch.setattr(ledger.records, "write", full)
            await claim.record([file], lambda: True)
    assert look() == ([], 10)
    await ledger.clear_dead()
    # Its room stays reserved until it is counted.
    assert look() == (["s"], 10)
    begun = await ledger.records.write(lambda txn: usage.begin_recount(txn, "s"))
    tally = Tally()
    tally.add(7, "ada", 10)
    await ledger.records.write(lambda txn: usage.end_recount(txn, "s", begun, tally, lambda: True))
    assert look() == ([], 0)
    ledger.close()


async def test_what_a_dead_process_reserved_is_free_unless_it_was_publishing(
    tmp_path: Path,
) -> None:
    alive = Ledger.open(tmp_path, map_bytes=2**24)
    # Of one process no two can open the file; that it is locked is what counts.
    dying = Ledger(alive.recounting.path.parent, alive.records, 2**24)
    dying._begin()
    await alive.records.write(lambda txn: usage.add_space(txn, "s", is_counted=True))
    for number, is_publishing in enumerate((False, True)):
        row = Reservation(f"{dying.process}.{number}", "ada", "s", 1, 10, is_publishing)
        await dying.records.write(lambda txn, row=row: usage.reserve(txn, row, LIMITS))

    def look() -> tuple[list[str], int]:
        with alive.read() as txn:
            return usage.due(txn), usage.count(txn, "r", "ada").bytes

    await alive.clear_dead()
    assert look() == ([], 20)
    dying._life.close()
    await alive.clear_dead()
    assert look() == (["s"], 10)
    alive.close()


@pytest.mark.parametrize("is_moved", [True, False])
async def test_a_recount_cannot_know_what_it_has_found_of_moved_files(
    records: Records, is_moved: bool
) -> None:
    """An undeleted file has the inode that it had: the walk may have found it before."""

    def decide(txn: Txn) -> None:
        usage.add_space(txn, "s", is_counted=True)
        begun = usage.begin_recount(txn, "s")
        came = [Change(7, "ada", 9, came=True)]
        usage.record(txn, "p.1", "s", came, lambda: True, moved=is_moved)
        usage.end_recount(txn, "s", begun, Tally(), lambda: True)
        assert usage.due(txn) == (["s"] if is_moved else [])
        assert usage.used_by(txn, "ada").bytes == (0 if is_moved else 9)

    await records.write(decide)


async def test_a_recount_does_not_get_very_many_changes_one_by_one(records: Records) -> None:
    def decide(txn: Txn) -> None:
        usage.add_space(txn, "s", is_counted=True)
        usage.begin_recount(txn, "s")
        came = [Change(n + 1, "ada", 1, came=True) for n in range(usage.TOUCHES_MAX + 1)]
        usage.record(txn, "p.1", "s", came, lambda: True)
        assert usage.used_by(txn, "ada").files == len(came)
        assert usage.due(txn) == ["s"]
        assert next(usage.touches.scan(txn), None) is None

    await records.write(decide)


async def test_what_is_undeleted_leaves_the_trash(records: Records) -> None:
    def decide(txn: Txn) -> None:
        gone = usage.Trash.of("ada", 2, 90, 1000.0, 7200.0)
        assert usage.add_to_trash(txn, gone, LIMITS, 1000.0)
        assert not usage.add_to_trash(txn, replace(gone, files=1, bytes=20), LIMITS, 1000.0)
        usage.take_from_trash(txn, replace(gone, files=1, bytes=91))  # not what is there
        usage.take_from_trash(txn, replace(gone, files=1, bytes=80))
        assert usage.add_to_trash(txn, replace(gone, files=1, bytes=20), LIMITS, 1000.0)

    await records.write(decide)

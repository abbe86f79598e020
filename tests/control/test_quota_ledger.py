"""The store of usage as a process has it: full, killed, booted anew; and what goes to the trash."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from limits import HANG_SECONDS

from control.errors import QuotaReached
from control.quota import usage
from control.quota.ledger import Claim, Ledger, Lock
from control.quota.limits import QUOTA, Limits, floors
from control.quota.usage import Change, Tally, Trash, reservations
from control.records import Records, RecordsBusy, Txn
from control.storage.accounting import Recounts
from control.storage.permission import OWNER
from control.storage.rows import STORAGE, Space, spaces
from gfs.client import Client, Entry
from gfs.errors import DiskFull

KIB = 1024
MIB = 1024 * KIB
#: Small, and not so small that the pages of one transaction matter.
MAP_BYTES = 8 * MIB
HOUR = 3600.0
LIMITS = Limits(bytes=100, files=4)
MANY = Limits()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "usage", map_bytes=MAP_BYTES)
    yield opened
    opened.close()


async def know(ledger: Ledger, space_id: str = "s") -> None:
    await ledger.records.write(partial(usage.add_space, space_id=space_id, is_counted=True))


def doubtful(ledger: Ledger) -> list[str]:
    with ledger.read() as txn:
        return usage.due(txn)


def reserved(ledger: Ledger) -> list[str]:
    with ledger.read() as txn:
        return [row.id for row in reservations.scan(txn)]


async def upload(ledger: Ledger, inode: int, length: int, limits: Limits = LIMITS) -> None:
    async with ledger.claim("ada", "s") as claim:
        await claim.publish(1, length, limits)
        await claim.record([Change(inode, "ada", length, came=True)], lambda: True)


# --- no room in the store -----------------------------------------------------------------


async def fill(step: Callable[[int], Any]) -> int:
    """How often it could be done until the store was full."""
    for number in range(100_000):
        try:
            await step(number)
        except DiskFull:
            return number
    raise AssertionError("the store never fills up")


async def test_uploads_leave_room_for_deletions(ledger: Ledger) -> None:
    await know(ledger)

    async def one(number: int) -> None:
        async with ledger.claim(f"user-{number}-{'x' * 400}", "s") as claim:
            await claim.publish(1, 1, MANY)
            owner = f"user-{number}-{'x' * 400}"
            await claim.record([Change(number, owner, 1, came=True)], lambda: True)

    await fill(one)
    for number in range(50):
        async with ledger.claim("", "s") as claim:
            assert await claim.publish_deletion("ada", 1, LIMITS, HOUR) is (number < 4)
            assert len(reserved(ledger)) == 1
            await claim.record([Change(number, "ada", 1, came=False)], lambda: True)
    assert doubtful(ledger) == reserved(ledger) == []
    # And much more than that.
    assert await fill_up(ledger) > 200


async def fill_up(ledger: Ledger) -> int:
    def one(number: int) -> Any:
        row = Trash(f"{number:08}-{'x' * 400}/1", 1, 1)
        return ledger.records.write(lambda txn: usage.trash.put(txn, row))

    return await fill(one)


@pytest.mark.parametrize("end", ["killed", "not heard", "refused", "heard"])
async def test_a_deletion_that_cannot_be_recorded_is_found_out(
    ledger: Ledger, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.quota.ledger.RECORD_SECONDS", 1.0)
    await know(ledger)
    await fill_up(ledger)
    claim = Claim(ledger, f"{ledger.process}.1", "", "s")
    assert await claim.publish_deletion("ada", 1, LIMITS, HOUR)
    if end == "refused":
        claim.refused()
    if end == "heard":
        await claim.record([Change(1, "ada", 1, came=False)], lambda: True)
    if end != "killed":
        await claim.end()
    # With a larger map, another process finds what is to be counted.
    ledger.close()
    other = Ledger.open(tmp_path / "usage", map_bytes=2 * MAP_BYTES)
    try:
        await other.clear_dead()
        # What was heard had room: it needs less than to be written down before.
        assert doubtful(other) == (["s"] if end in ("killed", "not heard") else [])
        assert list(other._marks.iterdir()) == []
        await other.records.write(lambda txn: usage.end_recount(txn, "s", begun(txn), Tally(), yes))
        await other.clear_dead()
        assert doubtful(other) == []
    finally:
        other.close()


def begun(txn: Txn) -> usage.Begun:
    return usage.begin_recount(txn, "s")


def yes() -> bool:
    return True


@pytest.mark.parametrize(
    ("is_publishing", "is_refused", "expected"),
    [(True, False, ["s"]), (True, True, []), (False, False, [])],
)
async def test_what_could_not_be_ended_is_ended_later(
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    is_publishing: bool,
    is_refused: bool,
    expected: list[str],
) -> None:
    await know(ledger)
    async with ledger.claim("ada", "s") as claim:
        await (claim.publish if is_publishing else claim.reserve)(1, 10, LIMITS)
        if is_refused:
            claim.refused()
        monkeypatch.setattr(ledger.records, "write", no_answer)
    with pytest.raises(RecordsBusy):
        await ledger.clear_dead()
    monkeypatch.undo()
    assert len(reserved(ledger)) == 1
    await ledger.clear_dead()
    assert doubtful(ledger) == expected
    assert len(reserved(ledger)) == len(expected)


async def test_a_change_that_was_not_recorded_is_counted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await know(ledger)
    async with ledger.claim("ada", "s") as claim:
        await claim.publish(1, 10, LIMITS)
        monkeypatch.setattr(ledger.records, "write", no_answer)
        await claim.record([Change(1, "ada", 10, came=True)], yes)
    with pytest.raises(RecordsBusy):
        await ledger.clear_dead()
    monkeypatch.undo()
    await ledger.clear_dead()
    assert doubtful(ledger) == ["s"]
    tally = Tally()
    tally.add(1, "ada", 10)
    await ledger.records.write(lambda txn: usage.end_recount(txn, "s", begun(txn), tally, yes))
    assert doubtful(ledger) == reserved(ledger) == []
    with pytest.raises(QuotaReached):
        await upload(ledger, 2, 91)


async def no_answer(decide: Callable[[Txn], Any], *, seconds: float = 0) -> Any:
    raise RecordsBusy("the disk is slow")


async def test_what_a_dead_process_asked_for_and_comes_late_is_counted(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records.open(tmp_path / "records", [QUOTA, STORAGE], sync=False)
    await records.write(partial(spaces.insert, row=Space("s", "s", None, 0, False, 1)))
    await know(ledger)
    async with ledger.claim("ada", "s") as claim:
        await claim.publish(1, 10, LIMITS)
    files: list[Entry] = []

    async def come_late(_: float) -> None:
        files.append(Entry("/storage/s.s/f", 1, "file", 10, 1, 0, 0, attributes={OWNER: "ada"}))

    class Files:
        async def status(self) -> None:
            await trio.lowlevel.checkpoint()

        async def scan(self, _: str) -> AsyncIterator[Entry]:
            for entry in files:
                yield entry

    monkeypatch.setattr(trio, "sleep", come_late)
    assert await Recounts(records, ledger).count(cast(Client, Files()), ["s"])
    monkeypatch.undo()
    assert reserved(ledger) == []
    with ledger.read() as txn:
        assert usage.used_by(txn, "ada").files == 1
    records.close()


# --- a boot -------------------------------------------------------------------------------


async def test_until_all_is_counted_after_a_boot_nobody_has_less_than_before(
    tmp_path: Path,
) -> None:
    records = Records.open(tmp_path / "records", [QUOTA, STORAGE], sync=False)
    counted = []  # the files of each, and its snapshots
    for name in ("s", "other"):
        row = Space(name, name, None, 0, False, 1)
        await records.write(partial(spaces.insert, row=row))
        counted += row.counted

    booted = Ledger.open(tmp_path / "before", map_bytes=MIB)
    recounts = Recounts(records, booted)
    await recounts.schedule_unknown()
    for id_ in counted:
        await count_empty(booted, id_)
    await upload(booted, 1, 60)
    await recounts.save_floors()
    another = Lock(booted.recounting.path)
    assert another.take(), "other processes can recount"
    another.close()
    booted.close()

    booted = Ledger.open(tmp_path / "after", map_bytes=MIB)
    recounts = Recounts(records, booted)
    await recounts.schedule_unknown()
    await recounts.schedule_unknown()
    with pytest.raises(QuotaReached, match="60 are used"):
        await upload(booted, 2, 50)
    # What is known now is not written down for the next time.
    await recounts.save_floors()
    await upload(booted, 2, 30)
    async with booted.claim("", "s") as claim:
        await claim.publish_deletion("ada", 60, LIMITS, HOUR)
        await claim.record([Change(1, "ada", 60, came=False)], yes)
    await upload(booted, 3, 60)
    for id_ in counted:
        if id_ != "s":
            await count_empty(booted, id_)
    with pytest.raises(QuotaReached, match="90 are used"):
        await upload(booted, 4, 11)
    tally = Tally()
    tally.add(2, "ada", 30)
    await booted.records.write(lambda txn: usage.end_recount(txn, "s", begun(txn), tally, yes))
    await upload(booted, 4, 70)
    booted.close()
    records.close()


async def count_empty(ledger: Ledger, space_id: str) -> None:
    def decide(txn: Txn) -> None:
        usage.end_recount(txn, space_id, usage.begin_recount(txn, space_id), Tally(), yes)

    await ledger.records.write(decide)


async def test_the_usage_of_all_users_is_saved_page_by_page(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.storage.accounting.PAGE_ROWS", 2)
    records = Records.open(tmp_path / "records", [QUOTA, STORAGE], sync=False)
    await know(ledger)
    users = {f"user-{number}": number for number in range(1, 6)}
    for name, length in users.items():
        async with ledger.claim(name, "s") as claim:
            await claim.publish(1, length, LIMITS)
            await claim.record([Change(length, name, length, came=True)], yes)
    with trio.fail_after(HANG_SECONDS):
        await Recounts(records, ledger).save_floors()
    with records.read() as txn:
        assert {row.user_id: row.bytes for row in floors.scan(txn)} == users
    records.close()


# --- the trash ----------------------------------------------------------------------------


async def delete(ledger: Ledger, length: int, *, is_refused: bool = False) -> bool:
    async with ledger.claim("", "s") as claim:
        is_kept = await claim.publish_deletion("ada", length, LIMITS, HOUR)
        if is_refused:
            claim.refused()
        else:
            await claim.record([], yes)
    return is_kept


async def test_the_trash_of_a_user_is_no_more_than_his_quota(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("control.quota.ledger.boot_seconds", lambda: now)
    await know(ledger)
    assert await delete(ledger, 60)
    assert not await delete(ledger, 60)
    assert await delete(ledger, 40, is_refused=True)
    assert await delete(ledger, 40)
    assert not await delete(ledger, 1)
    now += 3 * HOUR
    assert [await delete(ledger, 1) for _ in range(5)] == [True] * 4 + [False]
    with ledger.read() as txn:
        assert usage.trash.count(txn) == 1


async def replace_file(ledger: Ledger, length: int, *, is_refused: bool = False) -> bool:
    async with ledger.claim("bob", "s") as claim:
        await claim.reserve(1, 1, MANY)
        claim.will_replace("ada", length, LIMITS, 600.0)
        await claim.publish(1, 1, MANY)
        if is_refused:
            claim.refused()
        else:
            await claim.record([], yes)
    return claim.keeps_replaced


async def test_what_is_kept_for_readers_is_no_more_than_the_quota_of_its_owner(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("control.quota.ledger.boot_seconds", lambda: now)
    await know(ledger)
    assert await replace_file(ledger, 60)
    assert not await replace_file(ledger, 60)
    # The trash has its own room.
    assert await delete(ledger, 100)
    assert await replace_file(ledger, 40, is_refused=True)
    assert await replace_file(ledger, 40)
    assert not await replace_file(ledger, 1)
    now += 600.0
    assert not await replace_file(ledger, 1)  # the file system may not have deleted it yet
    now += 20.0
    assert [await replace_file(ledger, 1) for _ in range(5)] == [True] * 4 + [False]


def test_what_is_in_the_trash_takes_few_rows() -> None:
    for seconds in (HOUR, 3 * 86400.0, 365 * 86400.0):
        names = {Trash.of("ada", 1, 1, now, seconds).id for now in range(0, int(seconds), 60)}
        assert len(names) <= usage.TRASH_PARTS + 1
        for now in (0.0, 1.0, seconds / 7):
            until = int(Trash.of("ada", 1, 1, now, seconds).id.partition("/")[2])
            assert now + seconds <= until


async def test_a_storage_namespace_goes_to_the_trash_as_one_or_not_at_all(ledger: Ledger) -> None:
    def decide(txn: Txn) -> None:
        for space_id, lengths in (("s", {"ada": 60, "bob": 60}), ("t", {"ada": 40, "bob": 60})):
            usage.add_space(txn, space_id, is_counted=True)
            changes = [Change(len(o), o, n, came=True) for o, n in lengths.items()]
            usage.record(txn, "p.1", space_id, changes, yes)

        def throw(space_id: str) -> bool:
            return usage.trash_space(txn, space_id, lambda _: LIMITS, 0, HOUR)

        assert throw("s")
        # Bob's has no room, so that nothing of it counts for Ada; asked again, it is so still.
        assert [throw("t"), throw("t")] == [False, False]
        usage.forget_purge(txn, "t")
        assert usage.add_to_trash(txn, Trash.of("ada", 1, 40, 0, HOUR), LIMITS, 0)
        assert list(usage.counts.scan(txn)) == []

    await ledger.records.write(decide)

"""How much of what there is one step of the driver of containers, and of a recount, looks at."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from limits import HANG_SECONDS
from msgspec.structs import replace
from scripted import Scripted, Thing, World
from test_storage_steps import COUNT, PAGE, Steps

from control.compute.backend import BackendUnavailable, Impossible, Spec
from control.compute.backend.answers import as_answers
from control.compute.reconcile.changes import Changes
from control.compute.reconcile.driver import Driver
from control.compute.reconcile.machine import spec
from control.compute.rows import COMPUTE, Container, containers
from control.errors import ApiError
from control.quota import usage
from control.quota.ledger import Ledger
from control.quota.limits import QUOTA, Floor, floors
from control.quota.usage import State
from control.records import Records, Table, Txn
from control.storage.accounting import Recounts
from control.storage.rows import STORAGE


def container(number: int) -> Container:
    id_, size = f"{number:08x}", (512, 5)
    made = Container(id_, "ada", "box", "nano", *size, (), False, (), (), 0, number)
    return replace(made, applied=1, status="running", seen=True)


def stranger(number: int) -> Spec:
    """Of a container that no row is of."""
    return spec(container(0xF0000000 + number), "image")


@pytest.fixture
async def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The rows that one step of a task reads."""
    made, row = Steps(), Table._row

    def read(self: Table[Any], *words: Any) -> Any:
        made.note()
        return row(self, *words)

    monkeypatch.setattr(Table, "_row", read)
    for module in ("compute.reconcile.driver", "storage.accounting"):
        monkeypatch.setattr(f"control.{module}.PAGE_ROWS", PAGE)
    trio.lowlevel.add_instrument(made)
    return made


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    made = Records.open(tmp_path / "records", [COMPUTE, QUOTA, STORAGE], sync=False)
    yield made
    made.close()


async def test_the_driver_compares_a_page_of_containers_before_others_run(
    records: Records, steps: Steps
) -> None:
    rows = [container(number) for number in range(COUNT)]

    def fill(txn: Txn) -> None:
        for row in rows:
            containers.put(txn, row)

    await records.write(fill)
    made = [*(spec(row, "image") for row in rows), *map(stranger, range(COUNT))]
    world = World({each.id: Thing(each, "running", 1, exposed=each) for each in made})
    world.things[rows[7].id].phase = "stopped"
    del world.things[rows[93].id]
    changes = Changes(records)
    driver = Driver(records, changes, Scripted(world), "image", lost_seconds=0)

    def lost() -> list[str]:
        with records.read() as txn:
            return [row.id for row in containers.scan(txn) if row.status == "failed"]

    there = {row.id for row in rows} - {rows[93].id}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(changes.run)
        nursery.start_soon(driver.run)
        # What no row is of is deleted, what does not run is run, and what is gone is known.
        with trio.fail_after(HANG_SECONDS):
            while not (  # noqa: ASYNC110 - the driver sets no event
                world.things.keys() == there
                and {thing.phase for thing in world.things.values()} == {"running"}
                and lost() == [rows[93].id]
                and not driver._active
            ):
                await trio.sleep(0.01)
        # Who has missed events looks at all of them, page by page as well.
        await trio.lowlevel.checkpoint()
        steps.most = 0
        await driver._kick_all()
        await driver.reconcile()
        nursery.cancel_scope.cancel()
    assert PAGE <= steps.most <= 2 * PAGE


async def test_what_is_not_counted_yet_is_looked_for_page_by_page(
    records: Records, steps: Steps, tmp_path: Path
) -> None:
    def fill(txn: Txn) -> None:
        for number in range(COUNT):
            floors.put(txn, Floor(f"user-{number}", 1, 1))

    def count(txn: Txn) -> None:
        for number in range(COUNT):
            usage.states.put(txn, State(f"{number:08x}", 0))

    ledger = Ledger.open(tmp_path / "usage", map_bytes=2**24)
    await records.write(fill)
    recounts = Recounts(records, ledger)
    for number in range(2):  # with no counts, and with those of all
        await recounts.schedule_unknown()
        if not number:
            await ledger.records.write(count)
    ledger.close()
    assert steps.most == PAGE


@pytest.mark.parametrize("kind", [BackendUnavailable, Impossible])
def test_the_log_keeps_no_failure_of_a_backend(
    caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ApiError), as_answers():
        raise kind("nothing answers")
    [record] = caplog.records
    assert record.getMessage() == "nothing answers"
    assert not [each for each in cast(Any, record.args) if isinstance(each, BaseException)]

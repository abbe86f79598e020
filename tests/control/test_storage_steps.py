"""How much of the storage namespaces a task looks at before others run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

import control.storage.spaces
from control.records import Records, Table
from control.storage.accounting import Recounts
from control.storage.rows import ROOT, STORAGE, Space, spaces
from control.storage.spaces import Spaces

PAGE, COUNT = 8, 100


class Steps(trio.abc.Instrument):
    """The most that one step of a task looked at."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0

    def note(self) -> None:
        self._now += 1
        self.most = max(self.most, self._now)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._now = 0


class FileSystem:
    def __init__(self, *missing: str) -> None:
        self.missing = missing
        self.made: list[str] = []

    async def scan(self, directory: str) -> AsyncGenerator[Any, None]:
        assert directory == ROOT
        for number in range(COUNT):
            await trio.lowlevel.checkpoint()
            row = space(number)
            if row.name not in self.missing:
                yield SimpleNamespace(path=row.directory)

    async def mkdir(self, path: str, **_: object) -> None:
        self.made.append(path)


def space(number: int) -> Space:
    return Space(f"space-{number:04}", f"{number:08x}", None, 0, False, 1)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records.open(tmp_path / "records", [STORAGE], sync=False)
    yield made
    made.close()


@pytest.fixture
async def steps(records: Records, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """With more storage namespaces than a page has."""
    await records.write(lambda txn: [spaces.put(txn, space(n)) for n in range(COUNT)] and None)
    made, row, directory = Steps(), Table._row, Space.directory

    def read(self: Table[Any], *words: Any) -> Any:
        made.note()
        return row(self, *words)

    def look(self: Space) -> str:
        made.note()
        return cast(property, directory).__get__(self)

    monkeypatch.setattr(control.storage.spaces, "PAGE_ROWS", PAGE)
    monkeypatch.setattr(Table, "_row", read)
    monkeypatch.setattr(Space, "directory", property(look))
    trio.lowlevel.add_instrument(made)
    return made


async def test_repair_looks_at_a_page_before_others_run(records: Records, steps: Steps) -> None:
    fs = FileSystem(space(3).name, space(97).name)
    cluster = SimpleNamespace(fs=fs)
    repaired = Spaces(cast(Any, SimpleNamespace(records=records)), cast(Any, cluster))
    await repaired.repair()
    assert fs.made == [space(3).directory, space(97).directory]
    # Each is read, compared, and its directory made.
    assert PAGE <= steps.most <= 4 * PAGE


async def test_a_count_of_all_looks_at_a_page_before_others_run(
    records: Records, steps: Steps
) -> None:
    counted = await Recounts(records, cast(Any, None))._counted()
    assert len(counted) == 2 * COUNT
    assert steps.most == PAGE
    assert len(
        await Spaces(cast(Any, SimpleNamespace(records=records)), cast(Any, None)).all()
    ) == (COUNT)
    assert steps.most == PAGE

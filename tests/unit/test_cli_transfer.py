"""How trees are put, with a cluster that is slow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import trio.testing

from gfs.cli.batch import Batch
from gfs.cli.exits import Failed
from gfs.cli.output import Output
from gfs.cli.progress import Progress
from gfs.cli.transfer import _Put
from gfs.client import Client, Entry
from gfs.errors import AlreadyExists, GfsError, NotADirectory, NotFound
from gfs.protocol.messages import SMALL_BYTES_MAX

COMMIT_SECONDS = 1.0
PARALLEL = 16


class Remote:
    """Each call takes as long, however many there are. ``/x/d7`` is a file."""

    def __init__(self) -> None:
        self.directories: list[str] = []
        #: How often a directory was asked for while no other one was.
        self.rounds = 0
        self._under_way = 0
        self.files: dict[str, int] = {}

    def _made(self, path: str, length: int) -> Entry:
        if path.startswith("/x/d7/"):
            raise NotADirectory("/x/d7 is a file")
        self.files[path] = length
        return Entry(path, 1, "file", length, 3, 0, 0)

    async def stat(self, path: str) -> Entry:
        raise NotFound(path)

    async def mkdir(self, path: str, *, parents: bool, exist_ok: bool) -> None:
        assert (parents, exist_ok) == (True, True)
        self.rounds += not self._under_way
        self._under_way += 1
        await trio.sleep(COMMIT_SECONDS)
        self._under_way -= 1
        if path == "/x/d7":
            raise AlreadyExists("/x/d7 exists already")
        if path.startswith("/x/d7/"):
            raise NotADirectory("/x/d7 is a file")
        self.directories.append(path)

    async def put(self, source: str, path: str, **_: object) -> Entry:
        await trio.sleep(COMMIT_SECONDS)
        return self._made(path, (await trio.Path(source).stat()).st_size)

    async def put_many(
        self, items: Sequence[tuple[str, bytes]], **_: object
    ) -> list[Entry | GfsError]:
        await trio.sleep(COMMIT_SECONDS)
        found: list[Entry | GfsError] = []
        for path, data in items:
            try:
                found.append(self._made(path, len(data)))
            except GfsError as error:
                found.append(error)
        return found


@pytest.mark.parametrize("length", [10, SMALL_BYTES_MAX + 1])
async def test_the_directories_of_a_tree_share_commits(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
    length: int,
) -> None:
    """One that a file is in the way of is reported once, and the others are copied."""
    count = 200
    for number in range(count):
        folder = tmp_path / f"d{number}" / "e"
        folder.mkdir(parents=True)
        with (folder / "file").open("wb") as file:
            file.truncate(length)
    (tmp_path / "empty").mkdir()
    remote = Remote()
    async with Output() as output:
        batch = Batch(output, Progress(), PARALLEL, False)
        put = _Put((str(tmp_path),), "/x", True, False, None)
        with pytest.raises(Failed):
            await batch.run(put.jobs(cast(Client, remote), batch))
    directories = 2 * count + 2
    # Not by the clock: it jumps while a thread looks at a file.
    assert remote.rounds < directories / 10
    assert capsys.readouterr().err == "gfs: /x/d7 exists already\n"
    assert batch.directories == len(remote.directories) == directories - 2
    assert {"/x", "/x/empty", "/x/d8/e"} <= set(remote.directories)
    others = {f"/x/d{number}/e/file": length for number in range(count) if number != 7}
    assert remote.files == others

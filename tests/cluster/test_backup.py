"""A backup of the names, restored on a cluster that has moved on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import on_disk
import pytest
import trio
from limits import HANG_SECONDS
from processes import Processes, wait_live, wait_until, wait_whole

import gfs
from gfs.errors import MasterUnavailable, NotFound
from gfs.master.backup.backup_file import BackupFile


class Backed(Processes):
    """Its chunks are small enough to be copied at once, and its garbage goes soon."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 3, 3.0, GFS_MASTER_GARBAGE_GRACE_SECONDS="0.5")
        self.file = directory / "names.backup"

    def backup(self, file: Path | None = None, code: int = 0) -> str:
        return self.gfs("backup", str(file or self.file), code=code)

    def restore(self, code: int = 0) -> str:
        return self.gfs("restore", str(self.file), code=code)

    def replicas(self) -> set[int]:
        """The handles of all chunks that have a replica."""
        return {
            handle for path in self.state.glob("chunkserver-*") for handle in on_disk.replicas(path)
        }


@pytest.fixture
def backed(tmp_path: Path) -> Iterator[Backed]:
    made = Backed(tmp_path)
    yield made
    made.stop()


def content(name: str) -> bytes:
    return name.encode() * 9_000


@pytest.mark.thin
async def test_a_backup_is_restored_on_a_cluster_that_has_moved_on(
    backed: Backed, tmp_path: Path
) -> None:
    in_thread = trio.to_thread.run_sync
    async with gfs.connect(backed.master_address, key=backed.key) as fs:
        await wait_live(fs, 3)

        async def handle(path: str) -> int:
            return (await fs.locate(path)).chunks[0].handle

        for name in ("kept", "doomed"):
            await fs.put(content(name), f"/old/{name}")
        await in_thread(backed.backup)
        first = backed.file.read_bytes()
        await fs.put(content("second"), "/old/second")
        since = (await fs.status()).sequence
        said = await in_thread(backed.backup)
        # The second one added what was done since.
        assert backed.file.read_bytes()[32 : len(first)] == first[32:]
        operations = range(since, (await fs.status()).sequence + 1)
        assert any(f"operation {number}" in said for number in operations)
        # The cluster moves on.
        doomed = await handle("/old/doomed")
        await fs.delete("/old/doomed")
        await fs.empty_trash("/old/doomed")
        await fs.rename("/old/kept", "/kept")
        await fs.put(content("new"), "/new")
        new = await handle("/new")
        later = tmp_path / "later.backup"
        await in_thread(backed.backup, later)

        async def collected() -> bool:
            return doomed not in await in_thread(backed.replicas)

        await wait_until(collected, "end of the deleted file's replicas")

        # Not where a master's directory is.
        assert "is not empty" in await in_thread(partial(backed.restore, code=1))
        backed.kill("master")
        (backed.state / "master").rename(backed.state / "master-before")
        said = await in_thread(backed.restore)
        assert "has 3 files" in said
        assert "in term 1" in said
        assert "WARNING" not in said
        backed.start_master()

        # What is in the backup and whose chunks exist is there, and the rest is named.
        await wait_live(fs, 3)
        for name in ("kept", "second"):
            assert await fs.get(f"/old/{name}") == content(name)
        for path in ("/kept", "/new"):
            with pytest.raises(NotFound):
                await fs.stat(path)

        async def only_the_doomed_one() -> bool:
            return {p.path for p in (await fs.fsck()).problems} == {"/old/doomed"}

        await wait_until(only_the_doomed_one, "sound files but for one")
        await fs.delete("/old/doomed")
        await wait_whole(fs)
        # New files do not take the numbers of those that were made after the backup.
        await fs.put(content("newer"), "/newer")
        assert await handle("/newer") > new

        # Chunks that the backup does not know are kept, until the operator accepts that.
        gone = await handle("/newer")
        await fs.delete("/newer")
        await fs.empty_trash("/newer")

        async def newer_is_collected() -> bool:
            return gone not in await in_thread(backed.replicas)

        await wait_until(newer_is_collected, "end of a file's replicas")
        assert new in backed.replicas()
        assert "gfs restore --accept" in await in_thread(backed.gfs, "status")
        await in_thread(backed.gfs, "restore", "--accept")

        async def new_is_collected() -> bool:
            return new not in await in_thread(backed.replicas)

        await wait_until(new_is_collected, "end of the unknown replicas")
        assert "gfs restore --accept" not in await in_thread(backed.gfs, "status")
        assert await fs.get("/old/second") == content("second")

        # The backup goes on with what was done since; one with the history that was given
        # up stays as it is.
        await in_thread(backed.backup)
        before = later.read_bytes()
        said = await in_thread(partial(backed.backup, later, code=1))
        assert "has operations that this master lacks" in said
        assert later.read_bytes() == before
        # The master that was is over: it says so, and serves nobody.
        backed.kill("master")
        (backed.state / "master").rename(backed.state / "master-restored")
        (backed.state / "master-before").rename(backed.state / "master")
        backed.start_master()
        old = backed.processes.pop("master")
        assert await in_thread(old.wait, HANG_SECONDS) == 2


async def test_names_of_backups(backed: Backed) -> None:
    """A link, which stays one, to a file that is made; and a name that is no UTF-8."""
    async with gfs.connect(backed.master_address, key=backed.key) as fs:
        await fs.status()
    link, there = backed.state / "link", backed.state / "elsewhere"
    there.mkdir()
    link.symlink_to("elsewhere/names")
    strange = there / os.fsdecode(b"names\xff")
    for file in (link, link, strange, strange):
        await trio.to_thread.run_sync(backed.backup, file)
    assert link.is_symlink()
    for file in (there / "names", strange):
        with closing(BackupFile.open(str(file))) as made:
            assert made.last_point() is not None


def test_what_cannot_be_backed_up_or_restored(backed: Backed) -> None:
    key = str(backed.state / "cluster.key")
    assert "is not a backup" in backed.gfs(
        "restore", key, "--state", str(backed.file), "--key-file", key, code=1
    )
    backed.kill("master")
    backed.environment["GFS_CLIENT_RETRY_SECONDS"] = "0.5"
    said = backed.backup(code=MasterUnavailable.exit_code)
    assert said.startswith("gfs: no master gives a backup")
    (backed.state / "master").rename(backed.state / "master-before")
    assert "No such file" in backed.restore(code=2)
    assert not list(backed.state.glob("master"))
    assert "either the FILE" in backed.gfs("restore", code=2)

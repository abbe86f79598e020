"""Backups taken while the master works, dies and trims its log: what is restored from one
is what the master had at that operation, but for the term."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio

from gfs.blocks import MIB
from gfs.client import Client
from gfs.config import MasterSettings
from gfs.errors import DiskFull, InvalidArgument, MasterUnavailable, NotFound, StartupError
from gfs.master import restore_backup, take_backup
from gfs.master.backup import Point, backup_file, restoring, taking
from gfs.master.metadata import State, committer
from gfs.master.metadata.store import take_lock
from gfs.protocol.credentials import as_credentials
from gfs.testing import SimCluster
from gfs.testing.cluster import MASTER_ADDRESS

from .elected import ElectedCluster
from .seeds import over_seeds
from .settle import handle_of
from .shadowed import MASTER, ShadowedCluster, address
from .test_shadow import Steady, stored_in


@pytest.fixture(autouse=True)
def _trims(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that keeps few rows for nobody in particular."""
    monkeypatch.setattr(committer, "LOG_ROWS_MIN", 10)


def records(path: Path) -> bytes:
    return path.read_bytes()[32:] if path.exists() else b""


@pytest.mark.costly
@over_seeds(6)
async def test_what_is_restored_is_what_the_master_had(
    chance: Random, cluster: SimCluster, fs: Client, tmp_path: Path
) -> None:
    work, file = Steady(chance), tmp_path / "backup"
    credentials = as_credentials(cluster.key)
    operator = cluster.universe.machine("operator").start_process().world

    async def back_up() -> None:
        with suppress(MasterUnavailable), trio.move_on_after(chance.choice([1e-4, 1e-3, 60])):
            await take_backup(operator, [MASTER_ADDRESS], credentials, str(file))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.write, fs, "one")
        for _ in range(12):
            await trio.sleep(chance.choice([0, 0.1, 2]))
            await back_up()
            if chance.random() < 0.2:
                await cluster.crash("master")
                await trio.sleep(chance.choice([0, 1]))
                await cluster.start("master")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()

    async def more(names: str) -> Point:
        for number in range(100):
            await fs.mkdir(f"/{names}-{number}")
        return await take_backup(operator, [MASTER_ADDRESS], credentials, str(file))

    await more("first")
    before = records(file)
    await more("second")
    assert records(file).startswith(before)
    # One that was started since knows of no backup, and trims what nobody waits for.
    await cluster.restart("master")
    await trio.sleep(200)
    point = await more("third")
    assert not records(file).startswith(before)
    await cluster.crash("master")
    had = stored_in(cluster.directory)
    directory = str(tmp_path / "restored")
    made = await restore_backup(operator, credentials, str(file), directory, 1 << 28)
    assert made.point == point
    assert not made.silent
    state = msgspec.msgpack.decode(point.state, type=State)
    assert made.files == state.files
    found = stored_in(directory)
    # The term begins with a row of its own; the master trims its log and the answers.
    for name in had.keys() - {"operation_log", "answers"}:
        assert found[name] == had[name], name
    for name, count in (("operation_log", 1), ("answers", 0)):
        assert len(set(found[name]) - set(had[name])) >= count
        assert set(had[name]) <= set(found[name])


@over_seeds(2)
async def test_the_log_is_kept_for_the_next_backup(
    chance: Random, cluster: SimCluster, fs: Client, tmp_path: Path
) -> None:
    """Also from a backup on that found nothing new: the next needs the row that it ended with."""
    file = tmp_path / "backup"
    credentials = as_credentials(cluster.key)
    operator = cluster.universe.machine("operator").start_process().world
    await fs.mkdir("/before")
    for _ in range(1 + chance.randrange(2)):
        await take_backup(operator, [MASTER_ADDRESS], credentials, str(file))
    before = records(file)
    for number in range(30):
        await fs.mkdir(f"/{number}")
        await trio.sleep(10)
    await take_backup(operator, [MASTER_ADDRESS], credentials, str(file))
    assert records(file).startswith(before)


@over_seeds(
    2,
    kind=ShadowedCluster,
    shadows=2,
    replicas_before_ack=1,
    master={"garbage_grace_seconds": 60.0},
)
async def test_shadow_masters_copy_what_was_restored_and_can_take_over(
    chance: Random, cluster: ShadowedCluster, tmp_path: Path
) -> None:
    """They have operations that it lacks, and count for what is acknowledged."""
    file = str(tmp_path / "backup")
    credentials = as_credentials(cluster.key)
    operator = cluster.universe.machine("operator").start_process().world
    async with cluster.client() as fs:
        await cluster.level("shadow0", "shadow1")
        await fs.put(b"old", "/old")
        await take_backup(operator, [address(MASTER)], credentials, file)
        await fs.put(bytes(MIB), "/new")  # has a chunk file
        new = (await fs.locate("/new")).chunks[0].handle
    for name in cluster.masters:
        await cluster.crash(name)
    directory = cluster.metadata(MASTER)
    shutil.move(directory, tmp_path / "before")
    made = await restore_backup(operator, credentials, file, directory, 1 << 28)
    gone = chance.choice(cluster.shadows)
    [stays] = set(cluster.shadows) - {gone}
    await cluster.start(MASTER)
    await cluster.start(stays)
    async with cluster.client() as fs:
        await fs.mkdir("/made")
        assert await fs.get("/old") == b"old"
        assert (await fs.status()).restored
        await cluster.level(stays)
        # The other one counted when the backup was taken, and does not any more.
        with pytest.raises(NotFound):
            await fs.forget_shadow(address(gone))
        await cluster.crash(MASTER)
        await cluster.promote(stays)
        status = await fs.status()
        assert status.restored
        assert status.term > made.term
        assert {entry.path for entry in await fs.list("/")} == {"/old", "/made"}
        # Long after the grace, the chunk of which no master knows is there.
        await trio.sleep(cluster.settings["garbage_grace_seconds"] + 60)
        files = [path for name in cluster.chunkservers for path in cluster.chunk_files(name)]
        assert new in {handle_of(path) for path in files}


@over_seeds(4, kind=ElectedCluster)
async def test_a_backup_waits_for_the_next_master(
    chance: Random,
    cluster: ElectedCluster,
    fs: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As other calls, as long, and telling the caller; not for one that has another key."""
    operator = cluster.universe.machine("operator").start_process().world
    masters = [address(name) for name in cluster.masters]
    back_up = partial(take_backup, operator, masters)
    file, credentials = str(tmp_path / "backup"), as_credentials(cluster.key)
    first = await cluster.followed()
    for number in range(3):
        await fs.mkdir(f"/{number}")
    began = trio.current_time()
    with pytest.raises(MasterUnavailable, match="another cluster key"):
        await back_up(as_credentials(b"x" * 32), file)
    assert trio.current_time() - began < 1
    await trio.sleep(chance.uniform(0, 1))
    await cluster.crash(first)
    waits: list[bool] = []
    point = await back_up(credentials, file, waits=waits.append)
    assert point.sequence >= 3
    assert waits == [True, False]
    await cluster.followed(count=1)
    take, failures = taking._take, [ConnectionResetError("it died in the middle")]

    async def take_or_fail(*arguments: Any) -> Point:
        if failures:
            raise failures.pop()
        return await take(*arguments)

    monkeypatch.setattr(taking, "_take", take_or_fail)
    waits.clear()
    await back_up(credentials, file, waits=waits.append)
    assert waits == [True, False, True, False]
    for name in cluster.masters:
        await cluster.crash(name)
    began = trio.current_time()
    waits.clear()
    with pytest.raises(MasterUnavailable, match="no master gives a backup"):
        await back_up(credentials, file, 5.0, waits.append)
    assert 4 < trio.current_time() - began < 6
    assert waits == [True]


@over_seeds(1)
async def test_where_a_backup_is_restored(
    cluster: SimCluster, fs: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the top of a disk, through a link, and where a restore was killed; not where
    a master's metadata is, nor where one is restored now. On the disk when it returns."""
    file = str(tmp_path / "backup")
    synced: list[str] = []

    def sync_directory(directory: str) -> None:
        synced.append(f"{directory}: {sorted(os.listdir(directory))}")

    monkeypatch.setattr(restoring, "sync_directory", sync_directory)
    await fs.mkdir("/made")
    credentials = as_credentials(cluster.key)
    operator = cluster.universe.machine("operator").start_process().world
    await take_backup(operator, [MASTER_ADDRESS], credentials, file)
    restore = partial(restore_backup, operator, credentials, file)
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "disk" / "restoring").mkdir()
    (tmp_path / "disk" / "restoring" / "data.mdb").write_bytes(b"torn")
    link = tmp_path / "link"
    link.symlink_to("disk")
    with pytest.raises(DiskFull):
        await restore(str(link), 1 << 16)
    assert not (link / "restoring").exists()
    synced.clear()
    await restore(str(link), 1 << 28)
    there = ["data.mdb", "lost+found", "master.lock", "restoring"]
    assert synced[0] == f"{link}: {there}"
    assert synced[1].startswith(f"{tmp_path}: ")
    assert link.is_symlink()
    assert stored_in(str(link))["entries"]
    with pytest.raises(InvalidArgument, match="is not empty"):
        await restore(str(link), 1 << 28)
    lock = take_lock(str(tmp_path / "other"))
    with pytest.raises(StartupError, match="another master"):
        await restore(str(tmp_path / "other"), 1 << 28)
    os.close(lock)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["master.lock"]


@pytest.mark.costly
@over_seeds(2, master=MasterSettings(map_bytes=1 << 28, log_rows_max=100))
async def test_a_backup_that_is_mostly_log_is_made_anew(
    cluster: SimCluster, fs: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_file, "LOG_BYTES_MIN", 0)
    file = tmp_path / "backup"
    operator = cluster.universe.machine("operator").start_process().world
    sizes = []
    for turn in range(6):
        for number in range(30):
            await fs.mkdir(f"/{turn}-{number}")
            await fs.delete(f"/{turn}-{number}", now=True)
        await trio.sleep(200)  # answers of before are not remembered any more
        credentials = as_credentials(cluster.key)
        point = await take_backup(operator, [MASTER_ADDRESS], credentials, str(file))
        assert point.sequence >= 60 * (turn + 1)
        sizes.append(file.stat().st_size)
        with closing(backup_file.BackupFile.open(str(file), to_read=True)) as backup:
            last = backup.last_point()
        assert last.sequence == point.sequence
    assert any(after < before for before, after in pairwise(sizes)), sizes

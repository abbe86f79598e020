"""A chunkserver's parts by themselves: identity, store, leases, orders, pace."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import trio

from gfs.blocks import packet_sums
from gfs.chunkserver.chunkfile import ChunkFile
from gfs.chunkserver.format import State
from gfs.chunkserver.identity import IdentityFile
from gfs.chunkserver.leases import Leases
from gfs.chunkserver.link import MasterLink
from gfs.chunkserver.node import Node
from gfs.chunkserver.throttle import Throttle
from gfs.config import ChunkserverSettings
from gfs.errors import CorruptReplica, DiskFull, LeaseLost, NotFound, StaleVersion, StartupError
from gfs.io import World, real_world
from gfs.protocol.messages import GrantLease, Orders, ReplicaName, VerifyChunk, WriteChunk


@pytest.fixture
def world() -> World:
    return real_world()


def node_in(*directories: Path, **settings: object) -> Node:
    values = {"reserve_bytes": 0, **settings}
    node = Node(
        real_world(), ChunkserverSettings(**values), [str(d) for d in directories], bytes(32)
    )
    node.open()
    return node


def make_chunk(node: Node, handle: int, version: int, data: bytes, disk: int = 0) -> Path:
    path = node.store.disks[disk].chunk_path(handle)
    chunk = ChunkFile.create(node.world.files, path, handle, version)
    chunk.write(0, data, packet_sums(0, data))
    chunk.commit()
    chunk.close()
    return Path(path)


def test_a_server_keeps_its_identity_on_all_its_disks(tmp_path: Path, world: World) -> None:
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    first = IdentityFile(world.files, paths)
    first.open(world)
    first.record.cluster, first.record.sequence = "c", 7
    first.save()
    first.close()
    again = IdentityFile(world.files, [paths[1], str(tmp_path / "new")])
    again.open(world)
    assert again.record.id == first.record.id
    assert (again.record.cluster, again.record.sequence) == ("c", 7)
    assert again.record.incarnation > first.record.incarnation
    again.close()


def test_disks_of_two_servers_are_not_mixed(tmp_path: Path, world: World) -> None:
    for name in ("a", "b"):
        file = IdentityFile(world.files, [str(tmp_path / name)])
        file.open(world)
        file.close()
    with pytest.raises(StartupError, match="different chunkservers"):
        IdentityFile(world.files, [str(tmp_path / "a"), str(tmp_path / "b")]).open(world)
    # And nothing stays locked after the refusal.
    IdentityFile(world.files, [str(tmp_path / "a")]).open(world)


def test_a_disk_in_use_is_refused(tmp_path: Path, world: World) -> None:
    holder = IdentityFile(world.files, [str(tmp_path)])
    holder.open(world)
    with pytest.raises(StartupError, match="another chunkserver"):
        IdentityFile(world.files, [str(tmp_path)]).open(world)
    holder.close()


def test_a_damaged_record_is_said_and_not_overwritten(tmp_path: Path, world: World) -> None:
    (tmp_path / "server.json").write_text("{")
    with pytest.raises(StartupError, match="damaged"):
        IdentityFile(world.files, [str(tmp_path)]).open(world)
    assert (tmp_path / "server.json").read_text() == "{"


async def test_the_inventory_is_read_at_start(tmp_path: Path) -> None:
    node = node_in(tmp_path / "a", tmp_path / "b")
    make_chunk(node, 1, 1, b"one")
    make_chunk(node, 2, 3, b"two", disk=1)
    make_chunk(node, 3, 1, b"older")
    make_chunk(node, 3, 2, b"newer", disk=1)
    damaged = make_chunk(node, 4, 1, b"damaged")
    damaged.write_bytes(b"\xff" * 3000)
    half = make_chunk(node, 5, 1, b"")
    half.write_bytes(bytes(100))  # made, and never committed
    (half.parent / f"{6:016x}.chunk.clone").write_bytes(b"left over")
    (half.parent / "README").write_bytes(b"not ours")
    node.close()

    node = node_in(tmp_path / "a", tmp_path / "b")
    store = node.store
    assert {h: (r.version, r.length, r.disk) for h, r in store.inventory.items()} == {
        1: (1, 3, 0),
        2: (3, 3, 1),
        3: (2, 5, 1),
    }
    assert [(b.handle, b.kind) for b in store.bad.values()] == [(4, "corrupt")]
    assert not half.exists()
    assert sorted(p.name for p in half.parent.iterdir() if p.suffix != ".chunk") == ["README"]
    assert len(store.pack([1, 2, 3, 4, 99])) == 3 * 16
    assert store.bytes == 3 + 3 + 5
    node.close()


async def test_an_order_names_the_version_it_deletes(tmp_path: Path) -> None:
    node = node_in(tmp_path)
    path = make_chunk(node, 1, 2, b"data")
    node.close()
    node = node_in(tmp_path)
    with pytest.raises(StaleVersion):
        await node.store.delete(1, 1)
    assert path.exists()
    await node.store.delete(1, 2)
    assert not path.exists()
    await node.store.delete(1, 2)  # again: nothing to do
    assert not node.store.inventory
    with pytest.raises(NotFound):
        async with node.store.using(1):
            pass
    node.close()


async def test_orders_of_a_younger_memory_are_refused(tmp_path: Path) -> None:
    """A master restored from an old copy must not delete what it forgot."""
    node = node_in(tmp_path)
    path = make_chunk(node, 1, 1, b"data")
    node.close()
    node = node_in(tmp_path)
    node.identity_file.record.sequence = 100
    link = MasterLink(node)
    delete = [ReplicaName(handle=1, version=1)]
    await link._obey(Orders(id=1, sequence=99, delete=delete, extend_leases=[], lease_ms=0))
    assert path.exists()
    await link._obey(Orders(id=1, sequence=100, delete=delete, extend_leases=[], lease_ms=0))
    assert not path.exists()
    node.close()


async def test_a_file_deleted_while_it_is_open_is_missed(tmp_path: Path) -> None:
    node = node_in(tmp_path)
    path = make_chunk(node, 1, 1, b"data")
    node.close()
    node = node_in(tmp_path)
    request = VerifyChunk(id=1, handle=1, version=1)
    assert (await node.verify(request)).state == "good"
    path.unlink()
    assert (await node.verify(request)).state == "missing"
    assert node.store.bad[1].kind == "missing"
    node.close()


async def test_nothing_is_built_on_a_replica_known_as_unfit(tmp_path: Path) -> None:
    """Its file is gone, and still open: what it acknowledged would be lost."""
    node = node_in(tmp_path)
    path = make_chunk(node, 1, 1, b"data")
    node.close()
    node = node_in(tmp_path)
    grant = GrantLease(id=1, handle=1, version=1, new_version=2, lease_ms=1000)
    write = WriteChunk(id=1, version=1, handle=1, offset=0, mode="mutate", chain=[], primary=False)
    async with node.store.using(1):
        assert (await node.writable(write)).file.version == 1
        path.unlink()
        assert (await node.verify(VerifyChunk(id=1, handle=1, version=1))).state == "missing"
        with pytest.raises(CorruptReplica):
            await node.grant(grant)
        with pytest.raises(CorruptReplica):
            await node.writable(write)
        with pytest.raises(LeaseLost):
            node.leases.check(1)
    node.close()


async def test_a_full_disk_takes_no_new_chunk(tmp_path: Path) -> None:
    node = node_in(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(DiskFull):
        await node.store.create(1, 1)
    assert [report.state for report in node.store.reports()] == ["full"]
    node.close()


async def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfs.chunkserver.store.OPEN_FILES_MAX", 4)
    node = node_in(tmp_path)
    for handle in range(1, 20):
        make_chunk(node, handle, 1, b"%d" % handle)
    node.close()
    node = node_in(tmp_path)
    async with node.store.using(1) as pinned:
        for handle in random.Random(1).choices(range(2, 20), k=50):
            async with node.store.using(handle) as chunk:
                assert chunk.file.read_verified(0, chunk.file.length) == b"%d" % handle
        assert pinned.file.read_verified(0, 1) == b"1"
        assert len(node.store._open) <= 5
    node.close()


def test_a_lease_ends_by_this_server_s_own_clock() -> None:
    now = 0.0
    leases = Leases(lambda: now)
    with pytest.raises(LeaseLost):
        leases.check(1)
    leases.grant(1, 1000)
    now = 0.9
    leases.check(1)
    assert leases.take_used() == [1]
    assert leases.take_used() == []
    leases.extend([1, 2], 1000, since=0.5)
    now = 1.4
    leases.check(1)
    now = 1.5
    with pytest.raises(LeaseLost):
        leases.check(1)
    with pytest.raises(LeaseLost):
        leases.check(2)  # an extension of what was never granted
    leases.grant(1, 1000)
    leases.revoke(1)
    with pytest.raises(LeaseLost):
        leases.check(1)


async def test_background_work_waits_only_for_clients(autojump_clock: object) -> None:
    class VirtualClock:
        def monotonic(self) -> float:
            return trio.current_time()

        def time_ns(self) -> int:
            return 0

        async def sleep(self, seconds: float) -> None:
            await trio.sleep(seconds)

    throttle = Throttle(VirtualClock(), 1000)
    start = trio.current_time()
    for _ in range(100):
        await throttle.take(10_000)
    assert trio.current_time() == start
    throttle.client_starts()
    for _ in range(5):
        await throttle.take(1000)
    assert trio.current_time() - start == pytest.approx(4)
    throttle.client_ends()
    await trio.sleep(1.5)
    before = trio.current_time()
    await throttle.take(1_000_000)
    assert trio.current_time() == before


async def test_a_file_replaced_while_it_is_opened_is_opened_again(tmp_path: Path) -> None:
    node = node_in(tmp_path)
    make_chunk(node, 5, 1, b"old")
    node.store.load()
    (disk,) = node.store.disks
    temporary = disk.chunk_path(5) + ".clone"
    new = ChunkFile.create(node.world.files, temporary, 5, 2)
    new.write(0, b"newer", packet_sums(0, b"newer"))
    new.commit()
    new.close()
    found: list[bytes] = []
    real_open = ChunkFile.open
    opened, go_on = threading.Event(), threading.Event()

    def slow_open(*args: object) -> ChunkFile:
        file = real_open(*args)  # type: ignore[arg-type]
        opened.set()
        go_on.wait(5)
        return file

    async def read() -> None:
        async with node.store.using(5) as chunk:
            found.append(chunk.file.read_verified(0, chunk.file.length))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkFile, "open", slow_open)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.to_thread.run_sync(opened.wait)
            await node.store.install(5, disk, temporary, State(0, 2, 5, b""))
            go_on.set()
    assert found == [b"newer"]
    node.close()


async def test_no_redo_record_outlives_its_replica(tmp_path: Path) -> None:
    node = node_in(tmp_path)
    path = str(make_chunk(node, 5, 1, b"old"))
    node.store.load()
    files = node.world.files
    files.open(path + ".redo", "create").close()
    await node.store.delete(5, 1)
    assert not files.exists(path)
    assert not files.exists(path + ".redo")
    node.close()

"""A chunkserver's parts by themselves: identity, store, leases, orders, pace."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing
from clocks import simulated
from descriptors import none_left
from hypothesis import given
from hypothesis import strategies as st
from limits import HANG_SECONDS

from gfs.blocks import BLOCK_BYTES, block_sum, block_sums, packet_sums
from gfs.chunkserver.copies import small_replicas
from gfs.chunkserver.copies.copy_on_write import copy
from gfs.chunkserver.copies.new_replica import new_replica
from gfs.chunkserver.copies.small_replicas import Batch, serve_replicas
from gfs.chunkserver.disks import FAILED, TICK_SECONDS, identity, read_disk
from gfs.chunkserver.disks.identity import (
    NAMES,
    DiskRecord,
    ServerRecord,
    decode_server,
    encode_server,
)
from gfs.chunkserver.exchanges.append import Appends
from gfs.chunkserver.exchanges.small import SmallRequests
from gfs.chunkserver.files.chunkfile import ChunkFile
from gfs.chunkserver.files.progress import Call
from gfs.chunkserver.node import disk_opening
from gfs.chunkserver.node.leases import Leases
from gfs.chunkserver.node.node import Node
from gfs.chunkserver.node.throttle import LOOK_SECONDS, Throttle
from gfs.chunkserver.replicas import ChunkStore, Made
from gfs.chunkserver.service.dispatch import Dispatcher
from gfs.chunkserver.service.master_link import MasterLink, MasterLinks
from gfs.chunkserver.upkeep.delete import delete_all
from gfs.chunkserver.upkeep.scanning import look_at, scan
from gfs.chunkserver.upkeep.scrub import Scrubber
from gfs.config import ChunkserverSettings
from gfs.errors import (
    CorruptReplica,
    DiskFailed,
    DiskFull,
    LeaseLost,
    NotFound,
    StaleVersion,
    StartupError,
)
from gfs.io import File, real_world
from gfs.protocol import messages as wire
from gfs.testing import Process, Universe

running: list[Node] = []


@pytest.fixture
async def tmp_path(tmp_path: Path) -> AsyncIterator[Path]:
    """Whoever opens disks in it need not close them."""
    yield tmp_path
    while running:
        await running.pop().close()


async def node_in(*directories: Path, **settings: object) -> Node:
    values = {"reserve_bytes": 0, **settings}
    return await start_node([str(d) for d in directories], ChunkserverSettings(**values))


async def start_node(directories: list[str], settings: ChunkserverSettings) -> Node:
    node = Node(real_world(), settings, directories, bytes(32))
    await node.open()
    running.append(node)
    return node


async def close(node: Node) -> Node:
    running.remove(node)
    await node.close()
    return node


def make_chunk(node: Node, handle: int, version: int, data: bytes, disk: int = 0) -> Path:
    path = node.store.disks.used[disk].chunk_path(handle)
    journal = node.store.disks.used[disk].journal
    chunk = ChunkFile.create(node.world.files, path, handle, version, journal)
    chunk.write(0, data, packet_sums(0, data))
    chunk.commit()
    chunk.close()
    return Path(path)


async def reopened(node: Node) -> Node:
    """As after a restart."""
    await close(node)
    return await start_node([disk.path for disk in node.store.disks.used.values()], node.settings)


async def holding(replica: tuple[int, int, bytes], *directories: Path) -> tuple[Node, Path]:
    """One that has found this replica at its start, and its file."""
    node = await node_in(*directories)
    path = make_chunk(node, *replica)
    return await reopened(node), path


async def test_a_server_keeps_its_identity_on_all_its_disks(tmp_path: Path) -> None:
    first = await node_in(tmp_path / "a", tmp_path / "b")
    first.server.record.cluster, first.server.record.sequence = "c", 7
    await first.disk_opening.save()
    await close(first)
    again = await node_in(tmp_path / "b", tmp_path / "new")
    record = again.server.record
    assert again.id == first.id
    assert (record.cluster, record.sequence) == ("c", 7)
    assert record.incarnation > first.server.record.incarnation
    # And it is known which disks it had: one that was added goes on being used.
    assert {disk.path for disk in again.store.disks.used.values()} == {
        str(tmp_path / name) for name in ("a", "b", "new")
    }


@pytest.mark.parametrize("what", ["failed", "removed"])
async def test_the_state_of_a_disk_is_known_though_its_own_record_is_older(
    tmp_path: Path, what: str
) -> None:
    """Only the other disk took the change; the first of several equal records would win."""
    directories = tmp_path / "a", tmp_path / "b"
    node = await node_in(*directories)
    disk = node.store.disks.used[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.disk_orders.run, [])
        if what == "failed":
            disk.fail("failed", "a test")
        else:
            for action in ("drain", "remove"):
                await node.disk_orders.order(wire.DiskOrder(0, "", disk.path, action))
        with trio.fail_after(HANG_SECONDS):
            await disk.closing.closed.wait()
        nursery.cancel_scope.cancel()
    await close(node)
    node = await node_in(*directories)
    doubts = {
        Path(each.path).name: each.health.is_suspect for each in node.store.disks.used.values()
    }
    assert doubts == ({"a": True, "b": False} if what == "failed" else {"b": False})


def test_a_record_of_an_older_release_is_older() -> None:
    """It has no revision."""
    encoded = encode_server(ServerRecord("id", incarnation=3))
    fields = encoded[: encoded.index(b',"sum"')].replace(b'"revision":0,', b"")
    assert b"revision" not in fields
    record = decode_server(fields + b',"sum":"%s"}' % block_sum(fields).hex().encode())
    assert (record.incarnation, record.revision) == (3, 0)


@pytest.mark.parametrize("leaves", ["a bare directory", "another disk", "nothing"])
async def test_a_mount_that_goes_while_its_disk_is_opened_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: str
) -> None:
    """Nothing is made, locked or read in what is at its path then."""
    first, other = tmp_path / "a", tmp_path / "other"
    await close(await node_in(first, tmp_path / "b"))
    await close(await node_in(other))
    if leaves == "a bare directory":
        shutil.rmtree(other)
        other.mkdir()
    elif leaves == "nothing":
        shutil.rmtree(other)
    before = sorted(other.rglob("*"))
    name_disk = identity.name_disk

    def unmount(*arguments: Any) -> str:
        """After the record was read, and before the directory is opened."""
        if not (tmp_path / "away").exists():
            first.rename(tmp_path / "away")
            if other.exists():
                other.rename(first)
        return name_disk(*arguments)

    monkeypatch.setattr(identity, "name_disk", unmount)
    node = await node_in(first, tmp_path / "b")
    states = {Path(each.path).name: each.state for each in node.store.disks.reports()}
    assert states == {"a": "missing", "b": "ok"}
    assert sorted(first.rglob("*")) == [first / path.relative_to(other) for path in before]


async def test_disks_of_two_servers_are_not_mixed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        await close(await node_in(tmp_path / name))
    with pytest.raises(StartupError, match=r"different chunkservers: .*/a to .*/b to "):
        await node_in(tmp_path / "a", tmp_path / "b")
    # And nothing stays locked after the refusal.
    await close(await node_in(tmp_path / "a"))


#: What is found at /1, /2 and /3, as server and disk; and which server that is.
#: Server a knows its disks 1 and 2 at /1 and /2, b the same, c its disk 3 at /3.
CLAIMS = {
    "one server": ("a1 a2", "a"),
    "one server, mounted elsewhere": ("-- a1 a2", "a"),
    "a third one's disk": ("a1 a2 c3", "a"),
    "two mounts are swapped": ("a1 c3", "a"),
    "two mounts of three are swapped": ("a1 b1 b2", "a"),
    "half of each": ("a1 b2", ""),
    "none where it was": ("b2 a1", ""),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_log_says_which_server_it_is(name: str) -> None:
    what, server = CLAIMS[name]
    known = {"a": "12", "b": "12", "c": "3"}
    found = {
        f"/{number}": ServerRecord(
            each[0], disk=each[1], disks=[DiskRecord(n, f"/{n}") for n in known[each[0]]]
        )
        for number, each in enumerate(what.split(), start=1)
        if each != "--"
    }
    if server:
        assert identity.which_server(found) == server
    else:
        with pytest.raises(StartupError, match="/1 to "):
            identity.which_server(found)


@pytest.mark.parametrize("whose", ["another server's", "another process's"])
async def test_a_disk_of_others_does_not_end_the_start(tmp_path: Path, whose: str) -> None:
    """Nor does one that the server remembers and --dir does not name."""
    directories = [tmp_path / name for name in "abc"]
    taken = directories[2]
    node = await node_in(*directories)
    await close(node)
    holder: Node | None = None
    lock: File | None = None
    if whose == "another server's":
        shutil.rmtree(taken)
        holder = await node_in(taken)
        await close(holder)
    else:
        lock = node.world.files.lock(str(taken / "lock"))
    for named in (directories, directories[:2]):
        node = await node_in(*named)
        reports = {Path(each.path).name: each for each in node.store.disks.reports()}
        assert {name: each.state for name, each in reports.items()} == {
            "a": "ok", "b": "ok", "c": "missing"
        }  # fmt: skip
        assert f"chunkserver {holder.id}" if holder else "another" in reports["c"].reason
        assert reports["c"].id
        await close(node)
    if lock is not None:
        lock.close()


@pytest.mark.parametrize("way", ["away", "cancelled", "full"])
async def test_an_order_that_cannot_use_a_disk_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """However often it is given; the report still says which disk it is about."""
    path = tmp_path / "disk"
    node = await node_in(path)
    disk = node.store.disks.used[0]
    retry = wire.DiskOrder(0, "", disk.path, "retry")
    name_disk, scope = identity.name_disk, trio.CancelScope()

    def cancel(*arguments: Any) -> str:
        """Between the look at the record and the opening."""
        scope.cancel()
        return name_disk(*arguments)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.disk_orders.run, [])
        await trio.testing.wait_all_tasks_blocked()
        disk.fail("failed", "a test")
        with trio.fail_after(HANG_SECONDS):
            await disk.closing.closed.wait()
        with pytest.raises(StartupError, match="no disk left"):
            await node.disk_opening.save()
        if way == "away":
            path.rename(tmp_path / "away")
        for _ in range(3):
            scope = trio.CancelScope()
            with monkeypatch.context() as patch, scope:
                if way == "cancelled":
                    patch.setattr(identity, "name_disk", cancel)
                elif way == "full":
                    patch.setattr(identity, "save_record", refuse)
                with pytest.raises((DiskFailed, StartupError, trio.Cancelled)) as refused:
                    await node.disk_orders.order(retry)
                if isinstance(refused.value, trio.Cancelled):
                    raise refused.value
            [report] = node.store.disks.reports()
            assert report.id == disk.id
            if way == "full":
                break
            with trio.fail_after(HANG_SECONDS):
                await node.store.disks.down[disk.path].closing.closed.wait()
            assert not node.disk_opening.watched
        if way == "away":
            (tmp_path / "away").rename(path)
        await node.disk_orders.order(retry)
        [disk] = node.store.disks.used.values()
        disk.fail("failed", "again")
        with trio.fail_after(HANG_SECONDS):
            await disk.closing.closed.wait()  # somebody tended it
        nursery.cancel_scope.cancel()


async def test_a_relative_directory_of_an_older_release_is_the_same_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    node = await node_in(Path("a"))
    await close(node)
    again = await node_in(tmp_path / "a")
    assert [(each.path, each.id) for each in again.store.disks.reports()] == [
        (str(tmp_path / "a"), node.store.disks.used[0].id)
    ]
    assert [each.path for each in again.server.record.disks] == [str(tmp_path / "a")]


async def test_a_disk_in_use_is_refused(tmp_path: Path) -> None:
    await node_in(tmp_path)
    with pytest.raises(StartupError, match="another chunkserver"):
        await node_in(tmp_path)


async def opened(directory: Path) -> ServerRecord:
    """What a server knows of itself that starts there, before it knows better."""
    node = await node_in(directory)
    await close(node)
    return node.server.record


async def test_a_damaged_record_is_reported_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text("{")
    with pytest.raises(StartupError, match="damaged"):
        await node_in(tmp_path)
    assert (tmp_path / "server.json").read_text() == "{"


@pytest.mark.parametrize("name", NAMES)
async def test_the_record_survives_damage_to_either_copy(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    before = await opened(tmp_path)
    size = path.stat().st_size
    for bit in range(0, 8 * size, 53):
        damaged = bytearray(path.read_bytes())
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        assert (await opened(tmp_path)).id == before.id
        assert decode_server(path.read_bytes()).id == before.id, "it was not made anew"
    path.unlink()
    assert (await opened(tmp_path)).id == before.id
    for each in NAMES:
        (tmp_path / each).write_bytes(damaged)
    with pytest.raises(StartupError, match="damaged"):
        await opened(tmp_path)


@given(st.text(), st.lists(st.text(max_size=5), max_size=3), st.integers(0, 2**63), st.data())
def test_what_is_saved_is_read_again_or_refused(
    id: str, masters: list[str], number: int, data: st.DataObject
) -> None:
    record = ServerRecord(id, incarnation=number, masters=masters)
    encoded = encode_server(record)
    assert decode_server(encoded) == record
    assert set(json.loads(encoded)) == {*ServerRecord.__struct_fields__, "sum"}
    damaged = bytearray(encoded)
    damaged[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="checksum"):
        decode_server(bytes(damaged))
    with pytest.raises(ValueError, match="checksum"):
        decode_server(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


async def test_the_inventory_is_read_at_start(tmp_path: Path) -> None:
    node = await node_in(tmp_path / "a", tmp_path / "b")
    make_chunk(node, 1, 1, b"one")
    make_chunk(node, 2, 3, b"two", disk=1)
    make_chunk(node, 3, 1, b"older")
    make_chunk(node, 3, 2, b"newer", disk=1)
    damaged = make_chunk(node, 4, 1, b"damaged")
    damaged.write_bytes(b"\xff" * 3000)
    half = make_chunk(node, 5, 1, b"")
    half.write_bytes(bytes(100))  # made, and never committed
    (half.parent / f"{6:016x}.chunk.clone").write_bytes(b"left over")
    (half.parent / f"{6:016x}.chunk.clone.12").write_bytes(b"left over")
    (half.parent / "README").write_bytes(b"not ours")
    node = await reopened(node)
    store = node.store
    assert {h: (r.version, r.length, r.disk) for h, r in store.inventory.items()} == {
        1: (1, 3, 0),
        2: (3, 3, 1),
        3: (2, 5, 1),
    }
    assert [(b.handle, b.kind) for b in store.inventory.bad.values()] == [(4, "corrupt")]
    assert not half.exists()
    assert sorted(p.name for p in half.parent.iterdir() if p.suffix != ".chunk") == ["README"]
    assert len(store.inventory.pack([1, 2, 3, 4, 99])) == 3 * 16
    assert store.inventory.bytes == 3 + 3 + 5


async def test_an_order_names_the_version_it_deletes(tmp_path: Path) -> None:
    node, path = await holding((1, 2, b"data"), tmp_path)
    with pytest.raises(StaleVersion):
        await node.store.delete(1, 1)
    assert path.exists()
    await node.store.delete(1, 2)
    assert not path.exists()
    await node.store.delete(1, 2)  # again: nothing to do
    assert not node.store.inventory
    with pytest.raises(NotFound):
        async with node.store.open_chunks.using(1):
            pass


async def test_orders_of_a_younger_memory_are_refused(tmp_path: Path) -> None:
    """A master restored from an old copy must not delete what it forgot."""
    node, path = await holding((1, 1, b"data"), tmp_path)
    node.server.record.sequence = 100
    link = MasterLink(node, MasterLinks(node, Appends(node), Scrubber(node)), "master:9400")
    delete = [wire.ReplicaName(handle=1, version=1)]
    with pytest.raises(StaleVersion, match="old metadata"):
        await link.delete(wire.DeleteReplicas(id=1, sequence=99, replicas=delete))
    assert path.exists()
    await link.delete(wire.DeleteReplicas(id=1, sequence=100, replicas=delete))
    assert not path.exists()


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
async def test_of_many_replicas_to_delete_each_is_looked_at(
    tmp_path: Path, durability: str
) -> None:
    """Also those that are open, newer by now, damaged, gone, or on a disk that refuses."""
    directories = [tmp_path / "a", tmp_path / "b"]
    node = await node_in(*directories, durability=durability)
    paths = {number: make_chunk(node, number, 2, b"data", number % 2) for number in range(200)}
    await close(node)
    paths[3].write_bytes(b"damaged")
    node = await node_in(*directories, durability=durability)
    refused = paths[5]
    refused.unlink()
    refused.mkdir()
    names = [wire.ReplicaName(number, 2) for number in range(200)]
    names[3].version, names[7].version = 0, 1
    with trio.fail_after(HANG_SECONDS):
        async with node.store.open_chunks.using(9):
            await delete_all(node, [*names, wire.ReplicaName(1000, 1)])
    assert [number for number, path in paths.items() if path.exists()] == [5, 7]
    assert set(node.store.inventory) == {5, 7}
    assert set(node.store.inventory.bad) == {5}
    assert not node.store.open_chunks.busy
    assert sum(disk.chunks for disk in node.store.disks.used.values()) == 2


@pytest.mark.parametrize("disks", [1, 2])
@simulated(1)
async def test_a_new_master_is_obeyed_once_its_term_is_saved(disks: int) -> None:
    """On any disk: one that refuses it does not keep a server from its master. A start that
    does not know of the term would take the old master."""
    machine = Universe(1).machine("chunkserver")
    directories = [f"/disk{n}" for n in range(disks)]
    old, new = 4 << 32, 5 << 32

    async def start(process: Process) -> Node:
        node = Node(process.world, ChunkserverSettings(), directories, bytes(32))
        await node.open()
        return node

    async def try_to_join(node: Node, term: int) -> bool:
        link = MasterLink(node, MasterLinks(node, Appends(node), Scrubber(node)), "master:9400")
        link._is_master = True
        rpc = type("Peer", (), {"peer_term": term})()
        try:
            await link._join(rpc, wire.RegisterReply(0, "a cluster", sequence=3, heartbeat_ms=500))
        except StartupError:
            assert not link._joined.is_set()
            return False
        assert link._joined.is_set()
        return True

    process = machine.start_process()
    node = await start(process)
    assert await try_to_join(node, old)
    for directory in directories:
        machine.disk.fail(directory, errno.ENOSPC)
    for _ in range(3):
        assert not await try_to_join(node, new)
    machine.disk.fail(directories[-1], 0)
    assert await try_to_join(node, new)
    machine.disk.fail(directories[0], 0)
    process.kill()
    machine.disk.power_cut(None)
    assert (await start(machine.start_process())).identity.term == new


async def test_nothing_is_built_on_a_replica_known_as_unfit(tmp_path: Path) -> None:
    """Its file is gone, and still open: what it acknowledged would be lost."""
    node, path = await holding((1, 1, b"data"), tmp_path)
    grant = wire.GrantLease(id=1, handle=1, version=1, new_version=2, lease_ms=1000)
    verify = wire.VerifyChunk(id=1, handle=1, version=1)
    write = wire.WriteChunk(
        id=1, version=1, handle=1, offset=0, mode="mutate", chain=[], primary=False
    )
    async with node.store.open_chunks.using(1):
        assert (await node.writable(write)).file.version == 1
        assert (await node.verify(verify)).state == "good"
        path.unlink()
        assert (await node.verify(verify)).state == "missing"
        assert not node.store.inventory
        with pytest.raises(NotFound):
            await node.grant(grant)
        with pytest.raises(NotFound):
            await node.writable(write)
        with pytest.raises(LeaseLost):
            node.leases.check(1)


async def test_an_unfit_replica_is_reported_by_the_version_it_has_by_now(tmp_path: Path) -> None:
    """It was reported, and ordered deleted, by the one at which it was found unfit."""
    node, path = await holding((5, 1, b"data"), tmp_path)
    node.store.inventory.mark_bad(5)
    async with node.store.open_chunks.using(5) as chunk:  # as an upload does that starts over
        chunk.file.set_version(2)
        node.store.open_chunks.note(chunk)
    (bad,) = node.store.inventory.bad.values()
    assert (bad.version, bad.kind) == (2, "corrupt")
    await node.store.delete(bad.handle, bad.version)
    assert not path.exists()
    assert not node.store.inventory.bad


async def test_a_full_disk_takes_no_new_chunk(tmp_path: Path) -> None:
    node = await node_in(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(DiskFull):
        await node.store.create(1, 1)
    assert [report.state for report in node.store.disks.reports()] == ["full"]


async def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfs.chunkserver.replicas.open_chunks.OPEN_FILES_MAX", 4)
    node = await node_in(tmp_path)
    for handle in range(1, 20):
        make_chunk(node, handle, 1, b"%d" % handle)
    node = await reopened(node)
    async with node.store.open_chunks.using(1) as pinned:
        for handle in random.Random(1).choices(range(2, 20), k=50):
            async with node.store.open_chunks.using(handle) as chunk:
                assert chunk.file.read_verified(0, chunk.file.length) == b"%d" % handle
        assert pinned.file.read_verified(0, 1) == b"1"
        assert len(node.store.open_chunks._open) <= 5


async def test_a_replica_that_is_read_to_be_copied_is_not_kept_open(tmp_path: Path) -> None:
    node, _ = await holding((1, 1, b"bytes"), tmp_path)
    request = wire.ReadReplicas(0, [wire.ReplicaName(1, 1), wire.ReplicaName(2, 1)])
    async with node.store.open_chunks.using(1) as chunk:
        reply, body = await serve_replicas(node, request)
        assert {(each.handle, each.state) for each in reply.states} == {(1, "good"), (2, "missing")}
        assert body == b"bytes"
        assert chunk.users == 1


async def test_packed_replicas_take_no_places_from_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfs.chunkserver.replicas.open_chunks.OPEN_FILES_MAX", 4)
    node = await node_in(tmp_path, packed_bytes_max=BLOCK_BYTES)
    chunks, large = node.store.open_chunks, bytes(BLOCK_BYTES + 1)
    in_file = Made(1, 1, memoryview(large), block_sums(large))
    assert await node.store.write_new(node.store.disks.pick(), [in_file]) == {}
    async with chunks.using(1):
        pass
    data = b"packed"
    made = [Made(n, 1, memoryview(data), block_sum(data)) for n in range(2, 30)]
    assert await node.store.write_new(node.store.disks.pick(), made) == {}
    for handle in range(2, 30):
        async with chunks.using(handle) as chunk, chunks.using(handle) as again:
            assert again is chunk
            assert chunk.file.read_verified(0, 6) == data
            assert chunks.opened(handle) is chunk
        assert chunks.opened(handle) is None
    assert chunks.opened(1) is not None


async def test_a_packed_replica_that_a_disk_refused_to_delete_hides_no_new_file(
    tmp_path: Path,
) -> None:
    """It had been replaced by one on another disk, and that was deleted since."""
    node = await node_in(tmp_path, packed_bytes_max=BLOCK_BYTES)
    store, large = node.store, bytes(BLOCK_BYTES + 1)
    disk = store.disks.pick()
    old = [Made(n, 1, memoryview(b"old"), block_sum(b"old")) for n in (1, 2, 3)]
    disk.packs.put(old, sync=True)
    await store.create(1, 1)
    new = [Made(n, 1, memoryview(large), block_sums(large)) for n in (2, 3)]
    assert await store.write_new(disk, new[:1]) == {}
    assert await store.install_new(disk, new[1:]) == {}
    assert not len(disk.packs)


async def test_a_connection_is_idle_until_it_asks_and_forgotten_at_its_end(tmp_path: Path) -> None:
    node = await node_in(tmp_path)
    numbers = {"body_bytes": 0, "held_bytes": 0, "exchanges": 0, "first_request": 1}
    connection = mock.Mock(ending=False, peer_role="client", appended=False, **numbers)
    connection.receive_body = mock.AsyncMock()
    connection.receive_or_end = mock.AsyncMock(return_value=wire.AppendRecords(1, 5, 2, 0, []))
    connection.send = mock.AsyncMock(side_effect=ConnectionResetError)
    with pytest.raises(ConnectionResetError):
        await Dispatcher(node).serve(connection)
    assert node.connections.idle == {}
    SmallRequests(node, connection, Dispatcher(node).small_writer)
    assert list(node.connections.idle) == [connection], "it has not asked for anything yet"


async def test_a_disk_of_many_replicas_is_adopted_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gfs.chunkserver.replicas.store.ADOPT_STEP", 10)
    node = await node_in(tmp_path, packed_bytes_max=BLOCK_BYTES)
    data = b"packed"
    made = [Made(n, 1, memoryview(data), block_sum(data)) for n in range(1, 36)]
    store = node.store
    assert await store.write_new(store.disks.pick(), made) == {}
    id = store.disks.pick().id
    await close(node)

    def adopted(fails_after: int) -> list[int]:
        store = ChunkStore(real_world(), ChunkserverSettings(reserve_bytes=0))
        disk = store.disks.new(str(tmp_path))
        disk.id = id
        disk.open()
        steps = []
        for _ in store.adopt(disk, read_disk(disk)):
            steps.append(len(store.inventory))
            with pytest.raises(DiskFailed, match="can be used"):
                store.disks.pick()
            if len(steps) == fails_after:
                disk.fail("failed", "a test")
        assert disk.down or store.disks.pick() is disk
        disk.close()
        return [*steps, len(store.inventory)]

    assert adopted(0) == [10, 20, 30, 35]
    assert adopted(2) == [10, 20, 0]


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


CLOCK: Any = SimpleNamespace(monotonic=trio.current_time, sleep=trio.sleep)


async def test_background_work_waits_only_for_clients(autojump_clock: object) -> None:
    throttle = Throttle(CLOCK, 1000)
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


async def test_another_limit_counts_for_what_waits_already(autojump_clock: object) -> None:
    throttle = Throttle(CLOCK, 1)
    throttle.client_starts()
    await throttle.take(1_000_000)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(throttle.take, 1_000_000)
        await trio.sleep(10)
        throttle.set_rate(1_000_000)
    assert trio.current_time() < 10 + LOOK_SECONDS + 3


async def test_a_file_that_is_opened_is_replaced_after_that(tmp_path: Path) -> None:
    node, _ = await holding((5, 1, b"old"), tmp_path)
    (disk,) = node.store.disks.used.values()
    temporary = disk.chunk_path(5) + ".clone"
    new = ChunkFile.create(node.world.files, temporary, 5, 2, disk.journal, copied=True)
    new.write(0, b"newer", packet_sums(0, b"newer"))
    found: list[bytes] = []
    real_open = ChunkFile.open
    opened, go_on = threading.Event(), threading.Event()

    def slow_open(*args: object) -> ChunkFile:
        file = real_open(*args)  # type: ignore[arg-type]
        opened.set()
        go_on.wait(HANG_SECONDS)
        return file

    async def read() -> None:
        async with node.store.open_chunks.using(5) as chunk:
            found.append(chunk.file.read_verified(0, chunk.file.length))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkFile, "open", slow_open)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.to_thread.run_sync(opened.wait)
            nursery.start_soon(node.store.install, disk, new)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        await read()
    assert found == [b"old", b"newer"]
    new.close()


async def test_no_copy_takes_the_place_of_a_newer_replica(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gfs")

    def repairs() -> list[object]:
        events = [vars(record) for record in caplog.records if hasattr(record, "gfs_event")]
        return [one["gfs_fields"] for one in events if one["gfs_event"] == "corruption_repaired"]

    node, _ = await holding((5, 3, b"newer"), tmp_path)
    (disk,) = node.store.disks.used.values()

    async def put_older() -> None:
        temporary = disk.chunk_path(5) + ".clone"
        old = ChunkFile.create(node.world.files, temporary, 5, 2, disk.journal, copied=True)
        old.write(0, b"old", packet_sums(0, b"old"))
        try:
            await node.store.install(disk, old)
        finally:
            old.close()

    async def there() -> tuple[int, bytes]:
        async with node.store.open_chunks.using(5) as chunk:
            return chunk.file.version, chunk.file.read_verified(0, chunk.file.length)

    with pytest.raises(StaleVersion, match="has version 3 here"):
        await put_older()
    assert await there() == (3, b"newer")
    node.store.inventory.mark_bad(5)  # then it is good for nothing
    assert not repairs()
    await put_older()
    assert await there() == (2, b"old")
    assert repairs() == [{"chunk": "5", "version": 3, "how": "replaced"}]
    node.store.inventory.mark_bad(5)
    await node.store.delete(5, 2)
    assert repairs()[1:] == [{"chunk": "5", "version": 2, "how": "deleted"}]


@pytest.mark.parametrize("how", ["kernel", "here"])
@pytest.mark.parametrize("length", [0, 1, 65_536, 65_537, 3_000_000])
async def test_a_copy_is_a_replica_of_its_own(
    tmp_path: Path, length: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not between these")

    if how == "here":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    data = random.Random(length).randbytes(length)
    node, _ = await holding((7, 3, data), tmp_path)
    await copy(node, wire.CopyChunk(0, 7, 3, 8, 2, 1000))
    node.leases.check(8)
    for handle, version in ((7, 3), (8, 2)):
        reply = await node.verify(wire.VerifyChunk(id=0, handle=handle, version=version))
        assert (reply.state, reply.version, reply.length) == ("good", version, length)
    async with node.store.open_chunks.using(8) as chunk:
        chunk.file.write(0, b"new", packet_sums(0, b"new"))
        chunk.file.commit()
    async with node.store.open_chunks.using(7) as chunk:
        assert not length or chunk.file.read_verified(0, length) == data
    node = await reopened(node)  # and is still there after a restart
    async with node.store.open_chunks.using(8) as chunk:
        whole = chunk.file.read_verified(0, chunk.file.length)
        assert whole == b"new" + data[3:]


async def test_a_damaged_replica_is_not_copied(tmp_path: Path) -> None:
    node, path = await holding((7, 3, bytes(200_000)), tmp_path)
    await close(node)
    content = bytearray(path.read_bytes())
    content[16_384 + 150_000] ^= 1
    path.write_bytes(content)
    node = await node_in(tmp_path)
    with pytest.raises(StaleVersion):
        await copy(node, wire.CopyChunk(0, 7, 2, 8, 2, 0))
    with pytest.raises(CorruptReplica):
        await copy(node, wire.CopyChunk(0, 7, 3, 8, 2, 1000))
    assert [bad.kind for bad in node.store.inventory.bad.values()] == ["corrupt"]
    assert 8 not in node.store.inventory
    (disk,) = node.store.disks.used.values()
    assert not disk.files.list(disk.folder(8))
    with pytest.raises(LeaseLost):
        node.leases.check(8)
    with pytest.raises(NotFound):
        await copy(node, wire.CopyChunk(0, 9, 3, 8, 2, 0))


async def test_a_write_under_way_may_end_before_its_lease_does(tmp_path: Path) -> None:
    node, _ = await holding((7, 3, bytes(100)), tmp_path)
    ended: list[str] = []
    async with node.store.open_chunks.using(7) as chunk, trio.open_nursery() as nursery:
        node.leases.grant(7, 60_000)
        await chunk.mutex.acquire()  # as a write exchange does

        async def revoke() -> None:
            await node.revoke(7, 30.0)
            ended.append("revoked")

        nursery.start_soon(revoke)
        await trio.testing.wait_all_tasks_blocked()
        node.leases.check(7)  # it may acknowledge
        ended.append("written")
        chunk.mutex.release()
    assert ended == ["written", "revoked"]
    with pytest.raises(LeaseLost):
        node.leases.check(7)


async def test_a_file_is_deleted_only_after_it_was_saved(tmp_path: Path) -> None:
    """Whoever saves it has its descriptor, and would give it a number above that of its
    deletion: a power cut might bring it back then."""
    node = await node_in(tmp_path, durability="fsync")
    (disk,) = node.store.disks.used.values()
    await node.grant(wire.GrantLease(id=1, handle=1, version=0, new_version=1, lease_ms=0))
    saves, go_on = threading.Event(), threading.Event()
    done: list[str] = []
    async with node.store.open_chunks.using(1) as chunk:
        sync, put_tombstone = chunk.file.file.sync, disk.journal.put_tombstone

        def slow_sync() -> None:
            saves.set()
            go_on.wait(HANG_SECONDS)
            sync()
            done.append("saved")

        def noted_bury(handle: int, folder: str) -> int:
            done.append("buried")
            return put_tombstone(handle, folder)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunk.file.file, "sync", slow_sync)
            patch.setattr(disk.journal, "put_tombstone", noted_bury)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, chunk.file.save)
                await trio.to_thread.run_sync(saves.wait)
                nursery.start_soon(node.store.delete, 1, 1)
                with trio.move_on_after(0.2):  # it would be done by then
                    while not done:
                        await trio.lowlevel.checkpoint()
                go_on.set()
    assert done[0] == "saved"
    assert done[-1] == "buried"
    assert not node.store.inventory


async def test_one_that_a_full_disk_does_not_save_holds_up_no_others(tmp_path: Path) -> None:
    node = await node_in(tmp_path, durability="fsync")
    (disk,) = node.store.disks.used.values()
    handles = range(1, 10)
    for handle in handles:
        await node.grant(wire.GrantLease(id=1, handle=handle, version=0, new_version=1, lease_ms=0))
    async with node.store.open_chunks.using(5) as chunk:
        is_full, save = True, chunk.file.save

        def save_if_it_can() -> None:
            if is_full:
                raise OSError(errno.ENOSPC, "full")
            save()

        with pytest.MonkeyPatch.context() as patch, trio.fail_after(HANG_SECONDS):
            patch.setattr(chunk.file, "save", save_if_it_can)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.store.durability.keep_saving, disk)
                await node.store.durability.empty_journal(disk)
                while {handle for handle in handles if disk.journal.holds(handle)} != {5}:
                    await trio.lowlevel.checkpoint()
                assert disk.journal.to_save  # its file is not given up
                is_full = False
                while disk.journal.holds(5):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


async def test_a_half_made_replica_that_a_disk_keeps_is_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await node_in(tmp_path, scan_seconds=0.1)
    (disk,) = node.store.disks.used.values()

    def half_made() -> list[str]:
        return [name for name in disk.files.list(disk.folder(1)) if ".clone" in name]

    def refuse(path: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    async def give_up_half() -> None:
        async with new_replica(node, disk, 1, 1, "a copy") as file:
            file.write(0, b"half", packet_sums(0, b"half"))
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk.files, "unlink", refuse)
        with pytest.raises(DiskFailed):
            await give_up_half()
        await node.store.remove_leftovers()
        assert half_made()
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scan, node)
            while half_made():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    # One that is made there meanwhile is let alone.
    with monkeypatch.context() as patch:
        patch.setattr(disk.files, "unlink", refuse)
        with pytest.raises(DiskFailed):
            await give_up_half()
    async with new_replica(node, disk, 1, 1, "a copy") as file:
        file.write(0, b"whole", packet_sums(0, b"whole"))
        await node.store.remove_leftovers()
    assert node.store.inventory[1].length == 5


async def test_a_replica_that_a_disk_keeps_is_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, path = await holding((5, 1, b"data"), tmp_path)
    store, (disk,) = node.store, node.store.disks.used.values()
    with monkeypatch.context() as patch:
        patch.setattr(disk.files, "unlink", mock.Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(DiskFull):
            await store.delete(5, 1)
    # The master learns that it is there, and orders its deletion again.
    assert store.inventory[5].version == store.inventory.bad[5].version == 1
    await store.delete(5, 1)
    assert not path.exists()
    assert 5 not in store.inventory
    assert not store.inventory.bad


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_replica_that_looks_wrong_is_looked_at_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """It may have been written or replaced while the others were looked at."""
    node, _ = await holding((5, 1, b"data"), tmp_path)
    looks = [[(5, is_there)], []]
    monkeypatch.setattr(node.store.inventory, "looks_wrong", lambda disk, handles: looks.pop(0))
    await look_at(node, [5])
    assert looks == []
    assert 5 in node.store.inventory
    assert not node.store.inventory.bad


def open_files(directory: Path) -> list[str]:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    paths = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [path for path in paths if path.startswith(f"{directory}/")]


async def test_a_disk_that_failed_can_be_unmounted_when_the_last_reader_is_done(
    tmp_path: Path,
) -> None:
    """A reader that was slow, or a copy that waited for its source, left its file open until
    the server ended."""
    node, _ = await holding((5, 1, b"data"), tmp_path / "a", tmp_path / "b")
    disk = node.store.disks.used[0]
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.disk_orders.run, ())
            async with node.store.open_chunks.using(5):
                disk.fail(FAILED, "its device is gone")
                await disk.closing.closed.wait()
                assert [path[-6:] for path in open_files(tmp_path / "a")] == [".chunk"]
            while open_files(tmp_path / "a"):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def test_the_write_intent_record_of_a_replica_that_is_gone_goes(tmp_path: Path) -> None:
    node = await node_in(tmp_path)
    disk = node.store.disks.used[0]
    make_chunk(node, 6, 1, b"data")  # which is not known, and may be another's
    for handle in (5, 6):
        disk.intents.put(handle, 1, 4)
    await node.store.durability.clear_intents(disk, 0.0)
    assert [intent.handle for intent in disk.intents.all()] == [6]


@pytest.mark.parametrize("others", [[], ["another:1"]])
async def test_small_replicas_are_copied_together_that_are_new_and_have_one_source(
    tmp_path: Path, others: list[str]
) -> None:
    node, _ = await holding((5, 1, b"data"), tmp_path)
    there, new = wire.ReplicaName(5, 2), wire.ReplicaName(6, 2)
    alone: list[tuple[int, list[str]]] = []

    async def cloned(node: Node, order: wire.CloneChunk) -> None:
        alone.append((order.handle, order.sources))

    with (
        mock.patch.object(small_replicas, "clone", cloned),
        mock.patch.object(Batch, "_copy_all", mock.AsyncMock()) as together,
    ):
        await Batch(node, wire.CloneChunks(1, "other:1", [there, new], others=others)).run()
    sources = ["other:1", *others]
    assert together.mock_calls == [mock.call([] if others else [new])]
    assert alone == [(5, sources), (6, sources)][: 1 + len(others)]
    assert not node.cloning


async def test_what_is_still_to_be_closed_when_a_disk_was_closed_is_closed(tmp_path: Path) -> None:
    node = await node_in(tmp_path)
    disk = node.store.disks.used[0]
    calls: list[int] = []
    disk.closing.finish(lambda: calls.append(1))
    assert calls == []
    disk.closing.later(mock.Mock())
    assert calls == [1]
    disk.closing.finish(lambda: calls.append(2))
    assert calls == [1, 2]


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_was_damaged_is_remembered_when_its_disk_comes_back(
    tmp_path: Path, restarts: bool
) -> None:
    node, _ = await holding((5, 1, b"data"), tmp_path / "a", tmp_path / "b")
    disk = node.store.disks.used[0]
    node.store.inventory.mark_bad(5)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.disk_orders.run, ())
            disk.fail(FAILED, "its cable is loose")
            await disk.closing.closed.wait()
            await node.disk_opening.save()
            if not restarts:
                await node.disk_orders.order(wire.DiskOrder(0, "", disk.path, "retry"))
            nursery.cancel_scope.cancel()
    if restarts:
        (tmp_path / "a").rename(tmp_path / "away")
        node = await reopened(node)
        assert not node.store.inventory
        (tmp_path / "away").rename(tmp_path / "a")
        node = await reopened(node)
    assert node.store.inventory.bad[5].version == 1


async def test_nothing_is_left_to_do_on_a_disk_that_was_removed(tmp_path: Path) -> None:
    node = await node_in(tmp_path / "a", tmp_path / "b")
    make_chunk(node, 5, 2, b"newer", disk=0)
    make_chunk(node, 5, 1, b"older", disk=1)
    node = await reopened(node)
    for action in ("drain", "remove"):
        await node.disk_orders.order(wire.DiskOrder(0, "", str(tmp_path / "b"), action))
    await node.store.remove_leftovers()
    assert node.store.inventory[5].version == 2


async def test_no_record_is_written_into_a_directory_that_was_emptied(tmp_path: Path) -> None:
    """It would look as if it were the disk, and all its replicas lost one by one."""
    node = await node_in(tmp_path / "a", tmp_path / "b")
    for each in (tmp_path / "b").iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    await node.disk_opening.save()
    assert [disk.state for disk in node.store.disks.reports()] == ["ok", "missing"]
    assert not list((tmp_path / "b").iterdir())


async def test_a_call_that_hung_and_fails_in_the_end_does_not_count(tmp_path: Path) -> None:
    """What was to be synced is gone, says the kernel, after the disk was given up for
    hanging: the disk comes back by itself, and all that it noted as unsynced is doubted."""
    node = await node_in(tmp_path / "a", tmp_path / "b")
    disk = node.store.disks.used[0]
    begun, go_on = threading.Event(), threading.Event()

    def refused_late() -> None:
        begun.set()
        go_on.wait(HANG_SECONDS)
        raise OSError(errno.EIO, "lost")

    async def sync() -> None:
        with pytest.raises(DiskFailed):
            await disk.run(refused_late)

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync)
            await trio.to_thread.run_sync(begun.wait)
            for _ in range(int(node.settings.disk_hang_seconds / TICK_SECONDS)):
                disk.tick()
            assert disk.health.hung
            assert not disk.health.may_have_lost
            nursery.start_soon(node.disk_orders.run, ())
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
            while disk.path in node.store.disks.down or disk in node.store.disks.used.values():
                await trio.lowlevel.checkpoint()
            (again,) = [each for each in node.store.disks.used.values() if each.path == disk.path]
            assert again.health.is_suspect
            nursery.cancel_scope.cancel()


async def test_calls_may_begin_while_a_disk_is_asked_how_it_is(tmp_path: Path) -> None:
    """A heartbeat met the change of a thread, and ended the process."""
    node = await node_in(tmp_path)
    (disk,) = node.store.disks.used.values()

    class Begins(Call):
        @property
        def ticks(self) -> int:  # type: ignore[override]
            disk.calls.running[len(disk.calls.running)] = Call("another")
            return 0

        @ticks.setter
        def ticks(self, _: int) -> None: ...

    disk.calls.running[0] = Begins("one")
    assert disk.state == "ok"
    disk.calls.running.clear()


async def test_a_disk_that_could_not_be_added_again_is_still_known(tmp_path: Path) -> None:
    """Its mount was away, and the bare directory must not be taken for it at the next start."""
    node = await node_in(tmp_path / "a", tmp_path / "b")
    disk = node.store.disks.used[0]
    known = node.disk_opening._server.at(disk.path)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.disk_orders.run, ())
            disk.fail(FAILED, "its cable is loose")
            await disk.closing.closed.wait()
            for name in ("server.json", "server.json.copy"):
                (tmp_path / "a" / name).unlink()
            with (
                mock.patch.object(disk_opening, "read_disk", side_effect=OSError(errno.EIO, "no")),
                pytest.raises(DiskFailed),
            ):
                await node.disk_orders.order(wire.DiskOrder(0, "", disk.path, "add"))
            assert node.disk_opening._server.at(disk.path) == known
            nursery.cancel_scope.cancel()


async def test_a_file_that_was_opened_when_its_disk_failed_is_closed(tmp_path: Path) -> None:
    """Nobody gets it, and the error may live for long."""
    node = await node_in(tmp_path)
    (disk,) = node.store.disks.used.values()

    def open_last() -> File:
        disk.down = FAILED
        return disk.files.open(f"{disk.path}/f", "create")

    with none_left():
        with pytest.raises(DiskFailed) as caught:
            await disk.run(open_last)
        await trio.lowlevel.checkpoint()  # the loop has let go of it, too
    assert caught.value.__traceback__
    disk.down = ""

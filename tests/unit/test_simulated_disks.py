"""Simulated disks fail as Linux disks do, hang in the middle of a call, and go away."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest
import trio
from clocks import simulated
from streams import refused

from gfs.io import File, FileSystem
from gfs.testing import Crashed, Machine, Process, Universe, run_simulated
from gfs.testing.inode import Hang
from gfs.testing.threads import LoopBlocked

pytestmark = pytest.mark.filterwarnings("error")

ALWAYS = Hang(1.0, (60.0, 60.0))


def mounted(seed: int) -> Machine:
    found = Universe(seed).machine("m")
    found.disk.mount("/disk", 1 << 20)
    return found


def machine() -> tuple[Machine, FileSystem]:
    found = mounted(3)
    return found, found.start_process().world.files


def content(file: File) -> bytes:
    data = bytearray(file.size())
    file.read_into(memoryview(data), 0)
    return bytes(data)


def written(files: FileSystem) -> File:
    """Old bytes that are on the platter, and new ones that are not."""
    file = files.open("/disk/f", "create")
    file.write(b"old" * 2000, 0)
    file.sync()
    files.sync_directory("/disk")
    file.write(b"new" * 2000, 0)
    file.write(b"more" * 2000, 6000)
    return file


def refuse(host: Machine, file: File) -> None:
    host.disk.fail("/disk", what=["sync"])
    with refused(errno.EIO):
        file.sync()
    host.disk.fail("/disk", 0)


@pytest.mark.parametrize("seed", range(20))
def test_a_failed_sync_is_reported_once_and_has_lost_what_it_did_not_write(seed: int) -> None:
    host, files = machine()
    host.disk.chance = random.Random(seed)
    file = written(files)
    refuse(host, file)
    now = b"new" * 2000 + b"more" * 2000
    assert content(file) == now, "it looks as if nothing had happened"
    file.sync()  # and says that all is well
    inode = host.disk.inode("/disk/f")
    assert inode.harmed
    assert inode.on_platter() != now
    inode.evict()
    assert content(file) == inode.on_platter()
    pages = [content(file)[at : at + 4096] for at in range(0, 14_000, 4096)]
    before = (b"old" * 2000).ljust(14_000, b"\0")
    for at, page in zip(range(0, 14_000, 4096), pages, strict=True):
        assert page in (now[at : at + 4096], before[at : at + 4096])


def test_what_a_power_cut_leaves_of_a_failed_sync() -> None:
    host, files = machine()
    file = written(files)
    refuse(host, file)
    file.sync()
    platter = host.disk.inode("/disk/f").on_platter()
    host.disk.power_cut()
    assert host.disk.read("/disk/f") == platter
    assert not host.disk.inode("/disk/f").unsynced


def test_a_page_that_was_lost_and_is_written_again_is_there() -> None:
    host, files = machine()
    file = written(files)
    refuse(host, file)
    for at in range(0, 14_000, 4096):
        file.write(b"again", at)
    file.sync()
    before = content(file)
    host.disk.inode("/disk/f").evict()
    assert content(file) == before
    host.disk.power_cut()
    assert host.disk.read("/disk/f") == before


def test_who_hears_of_a_failed_sync() -> None:
    """As Linux has it: each who had the file open, once; of who opens it later, the first
    if nobody had heard of it yet."""
    host, files = machine()
    one = written(files)
    other = files.open("/disk/f", "rw")
    refuse(host, one)
    with refused(errno.EIO):
        other.sync()
    other.sync()
    files.open("/disk/f", "rw").sync()
    one.write(b"x", 0)
    host.disk.fail("/disk", what=["sync"])
    host.disk.write_back(random.Random(1))  # nobody asked for that
    host.disk.fail("/disk", 0)
    later = files.open("/disk/f", "rw")
    with refused(errno.EIO):
        later.sync()
    later.sync()
    files.open("/disk/f", "rw").sync()
    with refused(errno.EIO):
        one.sync()


def test_a_directory_whose_sync_failed_has_lost_its_names() -> None:
    host, files = machine()
    files.open("/disk/kept", "create").sync()
    files.sync_directory("/disk")
    files.open("/disk/new", "create").sync()
    files.unlink("/disk/kept")
    host.disk.fail("/disk", what=["sync"])
    with refused(errno.EIO):
        files.sync_directory("/disk")
    host.disk.fail("/disk", 0)
    files.sync_directory("/disk")
    host.disk.write_back(random.Random(1))
    files.open("/disk/newer", "create").sync()
    files.sync_directory("/disk")
    assert host.disk.paths() == ["/disk/new", "/disk/newer"]
    host.disk.power_cut()
    assert host.disk.paths() == ["/disk/kept", "/disk/newer"]


def test_a_disk_that_is_pulled_and_plugged() -> None:
    host, files = machine()
    held, file = files.within("/disk"), written(files)
    volume = host.disk.pull("/disk")
    for call in (
        file.sync, file.size, lambda: file.write(b"x", 0), lambda: held.list("/disk"),
        lambda: files.list("/disk"), lambda: files.space("/disk"),
        lambda: held.open("/disk/f", "r"), lambda: held.make_directories("/disk/d"),
    ):  # fmt: skip
        with refused(errno.EIO):
            call()
    assert not file.read_cached(memoryview(bytearray(1)), 0)
    host.disk.unmount("/disk")
    assert files.list("/disk") == []
    host.disk.plug("/disk", volume)
    assert files.list("/disk") == ["f"]
    with refused(errno.EIO):
        file.sync()
    with refused(errno.EIO):
        held.list("/disk")
    again = files.open("/disk/f", "rw")
    assert content(again) != b"new" * 2000 + b"more" * 2000
    again.write(b"x", 0)
    again.sync()
    assert host.disk.is_synced("/disk/f")


def test_a_disk_that_becomes_read_only() -> None:
    host, files = machine()
    file = written(files)
    host.disk.volume("/disk").read_only = errno.EROFS
    for call in (
        lambda: file.write(b"x", 0), lambda: file.truncate(0), file.sync,
        lambda: files.open("/disk/f", "rw"), lambda: files.open("/disk/g", "create"),
        lambda: files.unlink("/disk/f"), lambda: files.rename("/disk/f", "/disk/g"),
        lambda: files.make_directories("/disk/d"),
    ):  # fmt: skip
        with refused(errno.EROFS):
            call()
    assert files.list("/disk") == ["f"]
    assert content(files.open("/disk/f", "r")).startswith(b"new")


def test_a_disk_that_is_replaced_by_an_empty_one() -> None:
    host, files = machine()
    held, device = files.within("/disk"), files.device("/disk")
    written(files)
    host.disk.replace("/disk")
    assert files.list("/disk") == []
    assert files.device("/disk") != device
    assert held.list("/disk") == ["f"]


CALLS: list[Callable[[FileSystem, File], object]] = [
    lambda files, file: file.read_into(memoryview(bytearray(1)), 0),
    lambda files, file: file.write(b"x", 0),
    lambda files, file: file.sync(),
    lambda files, file: file.truncate(1),
    lambda files, file: file.size(),
    lambda files, file: files.open("/disk/f", "r"),
    lambda files, file: files.open("/disk/g", "create"),
    lambda files, file: files.unlink("/disk/f"),
    lambda files, file: files.rename("/disk/f", "/disk/g"),
    lambda files, file: files.list("/disk"),
    lambda files, file: files.exists("/disk/f"),
    lambda files, file: files.space("/disk"),
    lambda files, file: files.device("/disk"),
    lambda files, file: files.make_directories("/disk/d"),
    lambda files, file: files.sync_directory("/disk"),
    lambda files, file: files.lock("/disk/lock"),
    lambda files, file: files.within("/disk"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)))
@pytest.mark.parametrize("seed", range(2))
@simulated()
async def test_every_call_may_hang_before_its_effect_or_after(seed: int, number: int) -> None:
    host = mounted(seed)
    world = host.start_process().world
    file = await world.run_blocking(written, world.files)
    host.disk.hang("/disk", ALWAYS)
    assert not any(file.read_cached(memoryview(bytearray(1)), 0) for _ in range(50))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run_blocking, CALLS[number], world.files, file)
        await trio.sleep(30)
        assert await world.run_blocking(lambda: 7) == 7  # others go on
        assert trio.current_time() < began + 31
    assert trio.current_time() == pytest.approx(began + 60, abs=0.1)


def test_a_write_that_was_abandoned_comes_late_or_came_before() -> None:
    async def comes_at_once(host: Machine) -> bool:
        world = host.start_process().world
        file = await world.run_blocking(written, world.files)
        host.disk.hang("/disk", ALWAYS)
        with trio.move_on_after(1):
            await world.run_blocking(file.write, b"late", 0, abandon_on_cancel=True)
        assert trio.current_time() < 2
        at_once = host.disk.read("/disk/f").startswith(b"late")
        host.disk.hang("/disk", None)
        await trio.sleep(120)
        assert host.disk.read("/disk/f").startswith(b"late")
        return at_once

    seen = {run_simulated(seed, comes_at_once, mounted(seed)) for seed in range(12)}
    assert seen == {True, False}


class Shared:
    """A file that is written under a lock, and a number that goes with it."""

    def __init__(self, files: FileSystem) -> None:
        self.lock = files.make_lock()
        self.file = files.open("/disk/s", "create")
        self.count = 0

    def add(self) -> int:
        with self.lock, self.lock:
            count = self.count
            self.file.write(b"%d" % count, 0)
            self.count = count + 1
            return self.count


@simulated(1)
async def test_a_call_stops_in_its_middle_with_the_locks_it_has() -> None:
    host = mounted(1)
    process = host.start_process()
    world = process.world
    shared = await world.run_blocking(Shared, world.files)
    host.disk.hang("/disk", ALWAYS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run_blocking, shared.add)
        await trio.sleep(1)
        host.disk.hang("/disk", None)
        nursery.start_soon(world.run_blocking, shared.add)
        await trio.sleep(1)
        assert shared.count == 0
        with pytest.raises(LoopBlocked, match="lock"), shared.lock:
            pass
        with trio.move_on_after(1):
            await world.run_blocking(shared.add, abandon_on_cancel=True)
    await trio.sleep(1)
    assert shared.count == 3
    assert trio.current_time() == pytest.approx(61, abs=1)
    assert len(host.universe.wrongs) == 1
    with shared.lock:
        pass


@simulated(1)
async def test_a_process_that_is_killed_while_its_calls_hang() -> None:
    host = mounted(1)
    process = host.start_process()
    world = process.world
    shared = await world.run_blocking(Shared, world.files)
    host.disk.hang("/disk", ALWAYS)
    ends: list[str] = []

    async def add() -> None:
        try:
            await world.run_blocking(shared.add)
        except Crashed:
            ends.append("crashed")

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(add)
        await trio.sleep(1)
        process.kill()
    assert ends == ["crashed"] * 3
    assert shared.count == 0
    host.disk.hang("/disk", None)
    again = host.start_process().world
    assert await again.run_blocking(again.files.list, "/disk") == ["s"]


async def hanging(seed: int) -> str:
    host = mounted(seed)
    world = host.start_process().world
    shared = await world.run_blocking(Shared, world.files)
    host.disk.hang("/disk", Hang(0.3, (1.0, 5.0)))

    async def add(pause: float) -> None:
        await trio.sleep(pause)
        with trio.move_on_after(4):
            host.universe.trace.add(
                f"{await world.run_blocking(shared.add, abandon_on_cancel=True)}"
            )

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(add, number / 3)
    return host.universe.trace.digest()


def test_a_seed_decides_what_hangs() -> None:
    first, second, other = (run_simulated(seed, hanging, seed) for seed in (5, 5, 6))
    assert first == second != other


@simulated(1)
async def test_a_call_that_the_loop_makes_is_an_error_that_says_where() -> None:
    host = mounted(1)
    host.universe.guards_loop = True
    process: Process = host.start_process()
    files = process.world.files
    file = await process.world.run_blocking(written, files)
    file.read_cached(memoryview(bytearray(1)), 0)
    for call in CALLS:
        with pytest.raises(LoopBlocked, match="in the loop's thread, at a test"):
            call(files, file)
    assert len(host.universe.wrongs) == len(CALLS)


def test_a_punched_hole_takes_no_space_and_a_power_cut_may_undo_it() -> None:
    host, files = machine()
    file = files.open("/disk/f", "create")
    file.write(b"old" * 4000, 0)
    file.sync()
    files.sync_directory("/disk")
    used = host.disk.volume("/disk").used_bytes
    file.punch(4096, 4096)
    assert content(file)[4096:8192] == bytes(4096)
    assert host.disk.volume("/disk").used_bytes == used - 4096
    host.disk.power_cut()
    assert host.disk.read("/disk/f") == b"old" * 4000
    assert host.disk.volume("/disk").used_bytes == used

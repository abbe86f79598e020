"""The simulated seam behaves as the real one does, and follows from its seed."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from share import share
from streams import expect, receive, refused

from gfs.blocks import PAGE_BYTES
from gfs.io import FileSystem, Stream, World, real_world
from gfs.testing import Crashed, Machine, Process, Universe, run_simulated

pytestmark = pytest.mark.filterwarnings("error")


def with_universe(scenario: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Makes a test of ``async scenario(universe, …)``; its ``seed`` decides, if it has one."""

    @functools.wraps(scenario)
    def test(**given: Any) -> None:
        async def main() -> None:
            with trio.fail_after(10_000):
                await scenario(Universe(seed), **given)

        seed = given.get("seed", 1)
        run_simulated(seed, main)

    parameters = [*inspect.signature(scenario).parameters.values()][1:]
    test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return test


async def pair(universe: Universe) -> tuple[Process, Stream, Process, Stream]:
    """Two processes on machines "a" and "b" and the two ends of a connection."""
    left, right = universe.machine("a").start_process(), universe.machine("b").start_process()
    listener = await right.world.network.listen("b:1")
    near = await left.world.network.connect("b:1")
    far = await listener.accept()
    return left, near, right, far


async def race(rounds: int) -> list[int]:
    """Who comes first, of tasks that all can run."""
    order: list[int] = []

    async def note(number: int) -> None:
        await trio.lowlevel.checkpoint()
        order.append(number)

    for _ in range(rounds):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(note, number)
    return order


def test_the_order_does_not_depend_on_another_threads_loop() -> None:
    """A blocking client keeps a loop in a thread, which draws from Trio's generator too."""
    alone = run_simulated(7, race, 200)
    turns = 0

    async def spin() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()

    async def loop() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(spin)

    stop = threading.Event()
    thread = threading.Thread(target=trio.run, args=(loop,))
    thread.start()
    try:
        # A busy machine lets the thread wait for longer than one of them takes.
        before = turns
        for _ in range(10_000):
            assert run_simulated(7, race, 200) == alone
            if turns > before > 0:
                break
            before = turns
        assert turns > before > 0
    finally:
        stop.set()
        thread.join()


def test_two_simulations_at_once_are_refused() -> None:
    async def another() -> None:
        run_simulated(2, trio.sleep, 0)

    with pytest.raises(RuntimeError, match="one at a time"):
        run_simulated(1, another)


@given(st.integers(0, 2**32))
@settings(max_examples=5)
def test_hypothesis_does_not_fix_the_schedule(seed: int) -> None:
    """It seeds Trio's generator itself; ours is set after and put back."""
    assert run_simulated(seed, race, 1) == run_simulated(seed, race, 1)
    assert run_simulated(seed, race, 1) != run_simulated(seed + 1, race, 1)


def test_a_failure_says_its_seed() -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        run_simulated(77, fail)
    assert caught.value.__notes__ == ["simulated with seed 77"]


def test_generators_of_machines_are_independent() -> None:
    universe = Universe(5)
    first = universe.machine("a").start_process().world.random.random()
    again = Universe(5)
    again.machine("b").start_process().world.random.random()
    assert again.machine("a").start_process().world.random.random() == first
    assert universe.machine("a").start_process().world.random.random() != first


@with_universe
async def test_nobody_listens(universe: Universe) -> None:
    world = universe.machine("a").start_process().world
    universe.machine("b")
    with pytest.raises(ConnectionRefusedError):
        await world.network.connect("b:1")
    with pytest.raises(ConnectionError):
        await world.network.connect("no address")
    await universe.machine("b").start_process().world.network.listen("b:1")
    universe.network.take_down("b")
    with pytest.raises(ConnectionRefusedError):
        await world.network.connect("b:1")
    universe.network.bring_up("b")
    (await world.network.connect("b:1")).close()


@with_universe
async def test_listening(universe: Universe) -> None:
    network = universe.machine("a").start_process().world.network
    one = await network.listen("a:0")
    other = await network.listen("127.0.0.1:0")
    assert one.address != other.address
    with pytest.raises(OSError, match="in use"):
        await network.listen(one.address)
    with pytest.raises(OSError, match="not an address of a"):
        await network.listen("b:0")
    stream = await network.connect(one.address)
    one.close()
    assert await stream.receive_into(memoryview(bytearray(1))) == 0
    await network.listen(one.address)


@with_universe
async def test_a_full_sender_learns_that_the_peer_closed(universe: Universe) -> None:
    _, near, _, far = await pair(universe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, ConnectionError, near.send_all, bytes(10_000_000))
        await trio.sleep(1)
        far.close()


@with_universe
async def test_cut_resets_both_sides_at_once(universe: Universe) -> None:
    _, near, _, far = await pair(universe)
    await near.send_all(b"lost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, ConnectionResetError, receive, near, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert universe.network.cut("a", "b") == 1
    for stream in (near, far):
        with pytest.raises(ConnectionResetError):
            await receive(stream, 4)
        with pytest.raises(ConnectionResetError):
            await stream.send_all(b"x")
        stream.close()


@with_universe
async def test_a_partition_is_silence_until_it_heals(universe: Universe) -> None:
    left, near, _, far = await pair(universe)
    universe.network.partition(["a"], ["b"])
    await near.send_all(b"delayed")
    near.close()
    with trio.move_on_after(1000) as connecting:
        await left.world.network.connect("b:1")
    with trio.move_on_after(1000) as receiving:
        await receive(far, 1)
    assert connecting.cancelled_caught
    assert receiving.cancelled_caught
    assert not far.ended()
    await far.send_all(b"into the void")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.world.network.connect, "b:1")
        await trio.sleep(100)
        universe.network.heal()
    assert await receive(far, 100) == b"delayed"


@with_universe
async def test_one_direction_can_be_blocked(universe: Universe) -> None:
    _, near, _, far = await pair(universe)
    universe.network.block("a", "b")
    await far.send_all(b"heard")
    assert await receive(near, 5) == b"heard"
    await near.send_all(b"unheard")
    with trio.move_on_after(1000) as scope:
        await receive(far, 7)
    assert scope.cancelled_caught


@with_universe
async def test_a_slow_link_takes_its_time(universe: Universe) -> None:
    _, near, _, far = await pair(universe)
    universe.network.bytes_per_second = 100_000
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(1_000_000))
        await receive(far, 1_000_000)
    assert 10 <= trio.current_time() - start < 11


@pytest.mark.parametrize("seed", range(8))
@with_universe
async def test_a_killed_process_breaks_its_connections(universe: Universe, seed: int) -> None:
    left, near, right, far = await pair(universe)
    await far.send_all(b"in flight")
    right.kill()
    with pytest.raises(Crashed):
        await far.send_all(b"x")
    with pytest.raises(Crashed):
        await right.world.network.listen("b:2")
    with contextlib.suppress(ConnectionResetError):
        assert await receive(near, 100) == b"in flight"
    with pytest.raises(ConnectionRefusedError):
        await left.world.network.connect("b:1")
    await universe.machine("b").start_process().world.network.listen("b:1")


@with_universe
async def test_the_kernel_takes_back_what_a_killed_process_never_accepted(
    universe: Universe,
) -> None:
    left, right = (universe.machine(name).start_process() for name in "ab")
    await right.world.network.listen("b:1")
    stream = await left.world.network.connect("b:1")
    right.kill()
    with contextlib.suppress(ConnectionResetError):
        assert await receive(stream, 1) == b""


@with_universe
async def test_a_file_that_cannot_be_read_is_not_sent(universe: Universe) -> None:
    _, _, right, far = await pair(universe)
    file = right.world.files.open("/f", "create")
    file.write(b"x", 0)
    right.machine.disk.fail("/f")
    with pytest.raises(OSError, match="Input/output error"):
        await far.send_file(file, 0, 1)


def machine() -> Machine:
    return Universe(3).machine("m")


def real_and_simulated(tmp_path: object) -> list[tuple[str, World]]:
    return [(str(tmp_path), real_world()), ("/root", machine().start_process().world)]


def test_the_simulated_disk_answers_as_the_real_one(tmp_path: object) -> None:
    results = []
    for root, world in real_and_simulated(tmp_path):
        files = world.files
        said: list[object] = []

        def attempt(
            function: Callable[..., object], *args: object, said: list[object] = said
        ) -> None:
            try:
                said.append(function(*args))
            except OSError as error:
                said.append((type(error), error.errno))

        files.make_directories(f"{root}/d/e")
        files.make_directories(f"{root}/d/e")
        file = files.open(f"{root}/d/f", "create")
        file.write(b"0123456789", 0)
        file.write(b"xy", 12)
        buffer = bytearray(20)
        attempt(file.read_into, memoryview(buffer), 3)
        said.append(bytes(buffer))
        attempt(file.read_into, memoryview(buffer), 30)
        attempt(file.size)
        file.truncate(5)
        file.truncate(7)
        attempt(file.read_into, memoryview(buffer), 0)
        said.append(bytes(buffer))
        file.sync()
        files.sync_directory(f"{root}/d")
        attempt(files.open, f"{root}/d/f", "create")
        attempt(files.open, f"{root}/d/none", "r")
        attempt(files.open, f"{root}/d/none/x", "create")
        attempt(files.open, f"{root}/d/f/x", "create")
        attempt(files.open, f"{root}/d", "rw")
        attempt(files.open, f"{root}/d", "replace")
        attempt(files.unlink, f"{root}/d/e")
        attempt(files.unlink, f"{root}/d/none")
        attempt(files.make_directories, f"{root}/d/f")
        attempt(files.list, f"{root}/none")
        attempt(files.list, f"{root}/d/f")
        attempt(files.file_size, f"{root}/d/f")
        attempt(files.exists, f"{root}/d/f/x")
        attempt(files.rename, f"{root}/none", f"{root}/x")
        attempt(files.rename, f"{root}/d/f", f"{root}/d/e")
        attempt(files.rename, f"{root}/d/e", f"{root}/d/f")
        other = files.open(f"{root}/d/g", "replace")
        other.write(b"other", 0)
        files.rename(f"{root}/d/g", f"{root}/d/f")
        attempt(lambda: sorted(files.list(f"{root}/d")))  # noqa: B023
        attempt(files.file_size, f"{root}/d/f")
        attempt(file.size)  # replaced, still open: still readable
        files.unlink(f"{root}/d/f")
        attempt(files.exists, f"{root}/d/f")
        attempt(other.read_into, memoryview(buffer), 0)
        files.open(f"{root}/d/h", "create").close()
        reader = files.open(f"{root}/d/h", "r")
        attempt(reader.write, b"x", 0)
        lock = files.lock(f"{root}/d/lock")
        attempt(files.lock, f"{root}/d/lock")
        lock.close()
        lock.close()
        files.lock(f"{root}/d/lock").close()
        for each in (file, other, reader):
            each.close()
        attempt(file.size)
        results.append(said)
    real, simulated_ = results
    for index, (one, other_) in enumerate(zip(real, simulated_, strict=True)):
        assert one == other_, index


def moved(files: FileSystem, root: str) -> None:
    files.rename(f"{root}/d", f"{root}/away")
    files.make_directories(f"{root}/d/e")


def replaced_by_a_file(files: FileSystem, root: str) -> None:
    files.rename(f"{root}/d", f"{root}/away")
    files.open(f"{root}/d", "create").close()


def gone(files: FileSystem, root: str) -> None:
    files.rename(f"{root}/d", f"{root}/away")


@pytest.mark.parametrize("change", [moved, replaced_by_a_file, gone])
def test_within_leads_to_the_directory_that_was_there(
    tmp_path: object, change: Callable[[FileSystem, str], None]
) -> None:
    for root, world in real_and_simulated(tmp_path):
        files = world.files
        files.make_directories(f"{root}/d/e")
        files.open(f"{root}/d/e/f", "create").write(b"here", 0)
        with refused(errno.ENOTDIR):
            files.within(f"{root}/d/e/f")
        with refused(errno.ENOENT):
            files.within(f"{root}/none")
        held = files.within(f"{root}/d/")
        change(files, root)
        before = files.list(root)
        held.make_directories(f"{root}/d")
        held.make_directories(f"{root}/d/g/h")
        held.make_directories(f"{root}/d/g/h")
        with refused(errno.EEXIST):
            held.make_directories(f"{root}/d/e/f")
        held.open(f"{root}/d/g/new", "create").write(b"new", 0)
        held.rename(f"{root}/d/g/new", f"{root}/d/newer")
        held.lock(f"{root}/d/lock").close()
        for path in (f"{root}/d", f"{root}/d/g", f"{root}/d/"):
            held.sync_directory(path)
            assert held.space(path).total_bytes
        assert sorted(held.list(f"{root}/d")) == ["e", "g", "lock", "newer"]
        assert held.exists(f"{root}/d/e/f")
        assert not held.exists(f"{root}/d/e/none")
        assert not held.exists(f"{root}/dd")
        assert held.file_size(f"{root}/d/newer") == 3
        held.unlink(f"{root}/d/newer")
        with refused(errno.ENOTEMPTY):
            held.remove_directory(f"{root}/d/g")
        with refused(errno.ENOTDIR):
            held.remove_directory(f"{root}/d/lock")
        with refused(errno.ENOENT):
            held.remove_directory(f"{root}/d/none")
        held.remove_directory(f"{root}/d/g/h")
        assert held.list(f"{root}/d/g") == []
        assert sorted(files.list(f"{root}/away")) == ["e", "g", "lock"]
        assert files.list(root) == before
        files.unlink(f"{root}/away/e/f")
        with refused(errno.ENOENT):
            held.open(f"{root}/d/e/f", "r")
        held.close()
        held.close()
        for call in (held.exists, held.make_directories, held.sync_directory, held.space):
            with refused(errno.EBADF):
                call(f"{root}/d/x")
        with refused(errno.EBADF):
            held.open(f"{root}/d/x", "create")
        held.open(f"{root}/other", "create").close()  # not below it


def test_the_device_is_that_of_what_is_visible(tmp_path: object) -> None:
    for root, world in real_and_simulated(tmp_path):
        files = world.files
        files.make_directories(root)
        held = files.within(root)
        assert files.device(root) == held.device(root)
        files.open(f"{root}/f", "create").close()
        assert files.device(f"{root}/f") == files.device(root)
        with refused(errno.ENOENT):
            files.device(f"{root}/none")
        held.close()
    host = machine()
    host.disk.mount("/disk", 2 * PAGE_BYTES)
    files = host.start_process().world.files
    held, device = files.within("/disk"), files.device("/disk")
    assert device != files.device("/")
    volume = host.disk.unmount("/disk")
    assert files.device("/disk") == held.device("/disk") == files.device("/")
    file = held.open("/disk/f", "create")
    file.write(bytes(900), 0)
    assert files.list("/disk") == host.disk.paths() == []
    assert held.space("/disk")[:2] == (2 * PAGE_BYTES, PAGE_BYTES)
    host.disk.mount_again("/disk", volume)
    assert (files.device("/disk"), files.list("/disk")) == (device, ["f"])


def test_a_cached_read(tmp_path: object) -> None:
    for root, world in real_and_simulated(tmp_path):
        world.files.make_directories(root)
        file = world.files.open(f"{root}/f", "create")
        file.write(b"0123456789" * 1000, 0)
        buffer = bytearray(5000)
        results = set()
        for _ in range(100):
            is_there = file.read_cached(memoryview(buffer), 5)
            assert not is_there or buffer == b"5678901234" * 500
            results.add(is_there)
            assert not file.read_cached(memoryview(buffer), 5001), "it ends before"
        assert True in results
        file.close()
        with refused(errno.EBADF):
            file.read_cached(memoryview(buffer), 0)
    assert results == {True, False}  # as the seed decides


def test_a_full_disk_and_a_failing_one() -> None:
    host = machine()
    disk = host.disk
    disk.mount("/small", 3 * PAGE_BYTES)
    files = host.start_process().world.files

    def free_pages() -> float:
        assert files.space("/small").total_bytes == 3 * PAGE_BYTES
        return files.space("/small").free_bytes / PAGE_BYTES

    file = files.open("/small/f", "create")
    file.write(bytes(900), PAGE_BYTES)
    assert free_pages() == 2  # the first is a hole
    with refused(errno.ENOSPC):
        file.write(bytes(2 * PAGE_BYTES + 1), 2 * PAGE_BYTES)
    assert (file.size(), free_pages()) == (PAGE_BYTES + 900, 2)
    file.truncate(9 * PAGE_BYTES)
    file.write(bytes(2), 2 * PAGE_BYTES - 1)
    assert free_pages() == 1
    file.truncate(2 * PAGE_BYTES)
    file.truncate(9 * PAGE_BYTES)
    assert free_pages() == 2
    file.write(bytes(2 * PAGE_BYTES), 7 * PAGE_BYTES)
    with refused(errno.ENOSPC):
        file.write(b"1", 0)
    file.write(b"1", PAGE_BYTES)
    with refused(errno.EXDEV):
        files.rename("/small/f", "/f")
    files.unlink("/small/f")
    assert free_pages() == 0
    file.close()
    assert free_pages() == 3
    disk.fail("/small")
    with refused(errno.EIO):
        files.open("/small/g", "create")
    files.open("/g", "create").close()
    disk.fail("/small", 0)
    files.open("/small/g", "create").close()


def test_a_killed_process_leaves_its_files_as_they_are() -> None:
    host = machine()
    process = host.start_process()
    file = process.world.files.open("/f", "create")
    held = process.world.files.lock("/lock")
    file.write(b"written", 0)
    process.kill()
    for call in (file.size, held.size, lambda: process.world.files.list("/")):
        with pytest.raises(Crashed):
            call()  # type: ignore[operator]
    with pytest.raises(Crashed):
        file.write(b"after death", 0)
    file.close()
    assert host.disk.read("/f") == b"written"
    host.start_process().world.files.lock("/lock").close()


def test_power_cut_loses_what_was_not_synced() -> None:
    host = machine()
    process = host.start_process()
    files = process.world.files
    files.make_directories("/d")
    files.sync_directory("/")
    file = files.open("/d/f", "create")
    file.write(b"a" * 10_000, 0)
    file.sync()
    files.sync_directory("/d")
    file.write(b"b" * 6_000, 5_000)
    file.truncate(9_000)
    file.write(b"c", 20_000)
    files.open("/d/new", "create").close()
    files.rename("/d/f", "/d/moved")
    process.kill()
    host.disk.power_cut()
    assert host.disk.paths() == ["/d/f"]
    assert host.disk.read("/d/f") == b"a" * 10_000
    assert host.disk.space("/").free_bytes == host.disk.space("/").total_bytes - 3 * PAGE_BYTES


@given(st.integers(0, 10_000), st.integers(1, 20_000), st.integers(1, 20_000), st.booleans())
@settings(max_examples=share(100))
def test_power_cut_by_chance_keeps_what_was_synced_and_whole_sectors(
    seed: int, synced: int, more: int, overwrites: bool
) -> None:
    host = machine()
    process = host.start_process()
    file = process.world.files.open("/f", "create")
    file.write(b"a" * synced, 0)
    file.sync()
    process.world.files.sync_directory("/")
    start = 0 if overwrites else synced
    file.write(b"b" * more, start)
    assert not host.disk.is_synced("/f")
    process.kill()
    host.disk.power_cut(random.Random(seed))
    data = host.disk.read("/f")
    before = (b"a" * synced).ljust(start + more, b"\0")
    after = before[:start] + b"b" * more + before[start + more :]
    assert synced <= len(data) <= len(after)
    for at in range(0, len(data), 512):
        sector = data[at : at + 512]
        assert before[at:].startswith(sector) or after[at:].startswith(sector)
    assert host.disk.inode("/f").harmed


def test_what_was_written_back_survives_a_power_cut() -> None:
    host = machine()
    process = host.start_process()
    process.world.files.make_directories("/d/e")
    process.world.files.open("/d/e/f", "create").write(b"bytes", 0)
    host.disk.write_back(random.Random(0))
    assert host.disk.is_synced("/d/e/f")
    process.kill()
    host.disk.power_cut()
    assert host.disk.read("/d/e/f") == b"bytes"
    assert not host.disk.inode("/d/e/f").harmed


def test_a_sector_is_unreadable_until_it_is_written() -> None:
    host = machine()
    file = host.start_process().world.files.open("/f", "create")
    file.write(bytes(2048), 0)

    host.disk.spoil("/f", 700)
    buffer = memoryview(bytearray(100))
    assert file.read_into(buffer, 400) == 100
    for offset in (450, 600, 1000):
        with pytest.raises(OSError, match="Input/output"):
            file.read_into(buffer, offset)
    file.write(bytes(100), 600)
    with pytest.raises(OSError, match="Input/output"):
        file.read_into(buffer, 600)
    file.write(bytes(512), 512)
    assert file.read_into(buffer, 600) == 100


def test_harming_a_disk() -> None:
    host = machine()
    file = host.start_process().world.files.open("/f", "create")
    file.write(b"\x00\x00", 0)
    trace = host.universe.trace

    host.disk.flip_bit("/f", 9)
    assert host.disk.read("/f") == b"\x00\x02"
    host.disk.truncate("/f", 1)
    host.disk.delete("/f")
    host.disk.wipe()
    assert trace.events == 5
    assert "flip bit 9 of /f" in trace.tail()
    assert file.size() == 1


@with_universe
async def test_clocks_can_differ_between_machines(universe: Universe) -> None:
    fast, exact = universe.machine("fast"), universe.machine("exact")
    ahead, true = fast.start_process().world.clock, exact.start_process().world.clock
    fast.time.rate = 2.0
    fast.time.wall_offset_seconds = 1000
    await true.sleep(10)
    assert true.monotonic() == pytest.approx(10)
    assert ahead.monotonic() == pytest.approx(20)
    assert ahead.time_ns() - true.time_ns() == pytest.approx(1010e9)
    await ahead.sleep(10)
    assert true.monotonic() == pytest.approx(15)


@with_universe
async def test_blocking_calls_respect_their_limiter_and_are_not_abandoned(
    universe: Universe,
) -> None:
    process = universe.machine("m").start_process()
    run = process.world.run_blocking
    limiter = trio.CapacityLimiter(1)
    done: list[int] = []

    async def call(number: int) -> None:
        await run(done.append, number, limiter=limiter)
        assert limiter.borrowed_tokens <= 1

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(call, number)
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert limiter.borrowed_tokens == 0
    with trio.CancelScope() as scope:
        scope.cancel()
        await run(done.append, 5)
    assert 5 not in done
    with trio.move_on_after(1e-9):
        await run(done.append, 6)
    assert 6 in done
    with pytest.raises(ZeroDivisionError):
        await run(lambda: 1 / 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, Crashed, run, done.append, 7)
        await trio.testing.wait_all_tasks_blocked()
        process.kill()
    assert 7 not in done


@with_universe
async def test_a_call_that_was_abandoned_goes_on_alone(universe: Universe) -> None:
    host = universe.machine("m")
    process = host.start_process()
    run, limiter = process.world.run_blocking, trio.CapacityLimiter(1)
    done: list[int] = []

    async def abandoned(number: int) -> None:
        host.blocking_seconds = (10, 10)
        with trio.move_on_after(1) as scope:
            await run(done.append, number, limiter=limiter, abandon_on_cancel=True)
        assert scope.cancelled_caught
        host.blocking_seconds = (0, 0)

    await abandoned(1)
    assert trio.current_time() == pytest.approx(1)
    assert limiter.borrowed_tokens == 1
    await run(done.append, 2, limiter=limiter, abandon_on_cancel=True)
    assert done == [1, 2]
    assert trio.current_time() == pytest.approx(10)
    await abandoned(3)
    await run(lambda: done.append(4))
    assert done == [1, 2, 4]
    process.kill()
    await trio.sleep(20)
    assert done == [1, 2, 4]


def test_a_process_dies_in_the_middle_of_its_disk_calls() -> None:
    host = machine()
    process = host.start_process()

    file = process.world.files.open("/f", "create")
    process.life.light(2, process.kill)
    file.write(b"one", 0)
    with pytest.raises(Crashed):
        file.write(b"two", 3)
    assert not process.alive
    assert host.disk.read("/f") == b"one"


def test_a_file_is_as_safe_as_the_folders_it_is_in() -> None:
    host = machine()
    process = host.start_process()
    process.world.files.make_directories("/d/e")
    file = process.world.files.open("/d/e/f", "create")
    file.write(b"bytes", 0)
    file.sync()
    for folder in ("/d/e", "/d", "/"):
        assert not host.disk.is_synced("/d/e/f")
        process.world.files.sync_directory(folder)
    assert host.disk.is_synced("/d/e/f")

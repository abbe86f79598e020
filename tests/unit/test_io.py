"""This machine behind the seam: sockets over loopback, files, worker threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from clocks import virtual_time  # noqa: F401 - a fixture
from descriptors import none_left
from limits import HANG_SECONDS
from streams import expect, receive

from gfs.io import Listener, Stream, World, lost_mount, real, real_world
from gfs.io.real import split_address
from gfs.testing import Universe

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def world() -> World:
    return real_world()


@pytest.fixture(params=["real", "simulated"])
def either_world(request: pytest.FixtureRequest) -> World:
    """What the seam promises holds on both sides of it."""
    if request.param == "real":
        return real_world()
    request.getfixturevalue("virtual_time")
    return Universe(1).machine("m").start_process().world


@contextlib.asynccontextmanager
async def connected(world: World) -> AsyncIterator[tuple[Stream, Stream]]:
    listener = await world.network.listen("127.0.0.1:0")
    near = await world.network.connect(listener.address)
    far = await listener.accept()
    try:
        with trio.fail_after(HANG_SECONDS):
            yield near, far
    finally:
        for each in (near, far, listener):
            each.close()


async def until_pending(stream: Stream, count: int) -> None:
    while stream.pending() < count:  # noqa: ASYNC110 - nobody says when they are there
        await trio.sleep(0.001)


async def test_bytes_both_ways_at_once(world: World) -> None:
    up, down = os.urandom(20 * MIB), os.urandom(15 * MIB)
    got: dict[str, bytes] = {}

    async def into(name: str, stream: Stream, count: int) -> None:
        got[name] = await receive(stream, count)

    async with connected(world) as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(into, "up", far, len(up))
        nursery.start_soon(into, "down", near, len(down))
        nursery.start_soon(near.send_all, up)
        nursery.start_soon(far.send_all, down[:7], down[7:MIB], b"", down[MIB:])
    assert (got["up"], got["down"]) == (up, down)


async def test_more_buffers_than_the_kernel_takes_at_once(world: World) -> None:
    pieces = [bytes([n % 256]) * (n % 7) for n in range(3000)]
    async with connected(world) as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, *pieces)
        assert await receive(far, sum(map(len, pieces))) == b"".join(pieces)


async def test_what_waits_to_be_read_is_known(either_world: World) -> None:
    async with connected(either_world) as (near, far):
        assert near.pending() == 0
        await far.send_all(b"abc")
        await until_pending(near, 3)
        assert await receive(near, 3) == b"abc"
        assert near.pending() == 0


async def test_who_needs_much_is_not_woken_for_little(either_world: World) -> None:
    least, buffer = 64 * KIB, memoryview(bytearray(MIB))
    received: list[int] = []

    async def receive_much(stream: Stream) -> None:
        while sum(received) < least:
            received.append(await stream.receive_into(buffer, least - sum(received)))

    async with connected(either_world) as (near, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_much, far)
            for _ in range(16):
                await either_world.clock.sleep(0.01)
                await near.send_all(bytes(4 * KIB))
        assert sum(received) == least
        assert len(received) <= 3
        await near.send_all(b"x")
        assert await receive(far, 1) == b"x"
        await near.send_all(b"last")
        near.close()
        assert await far.receive_into(buffer, least) == 4
        assert await far.receive_into(buffer, least) == 0


async def test_who_needs_more_than_is_held_for_it_gets_what_there_is(either_world: World) -> None:
    async with connected(either_world) as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(40 * MIB))
        buffer, left = memoryview(bytearray(40 * MIB)), 40 * MIB
        with trio.fail_after(HANG_SECONDS):
            while left:
                left -= await far.receive_into(buffer[:left], left)


async def test_sending_nothing(either_world: World) -> None:
    async with connected(either_world) as (near, far):
        await near.send_all()
        await near.send_all(b"", bytearray(), memoryview(b""))
        await near.send_all(b"x")
        assert await receive(far, 1) == b"x"


@pytest.mark.parametrize(("offset", "count"), [(0, 1), (5, 0), (4097, 3 * MIB), (0, 40 * MIB)])
async def test_send_file(either_world: World, tmp_path: Path, offset: int, count: int) -> None:
    content = os.urandom(MIB) * (count // MIB + 1) + bytes(8192)
    either_world.files.make_directories(f"{tmp_path}")
    file = either_world.files.open(f"{tmp_path}/f", "create")
    file.write(content, 0)
    async with connected(either_world) as (near, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_file, file, offset, count)
            assert await receive(far, count) == content[offset : offset + count]
        with pytest.raises(EOFError, match=f"byte {len(content)}"):
            await near.send_file(file, len(content) - 3, 4)
        assert await receive(far, 3) == bytes(3)
    file.close()


async def test_the_end_of_a_stream(either_world: World) -> None:
    async with connected(either_world) as (near, far):
        assert not far.ended()
        await near.send_all(b"last")
        near.close()
        near.close()
        assert await receive(far, 100) == b"last"
        assert await far.receive_into(memoryview(bytearray(1))) == 0
        assert far.ended()
        with pytest.raises(ConnectionError):
            await far.send_all(bytes(100 * MIB))


async def test_a_stream_with_words_nobody_asked_for_is_ended(either_world: World) -> None:
    async with connected(either_world) as (near, far):
        await near.send_all(b"?")
        await until_pending(far, 1)
        assert far.ended()


async def test_a_reset_by_the_peer(either_world: World) -> None:
    async with connected(either_world) as (near, far):
        await near.send_all(b"never read")
        await until_pending(far, 1)
        far.close()
        with pytest.raises(ConnectionError):
            await receive(near, 1)


async def test_close_wakes_who_waits(either_world: World) -> None:
    async with connected(either_world) as (near, _far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, ConnectionError, receive, near, 1)
            nursery.start_soon(expect, ConnectionError, near.send_all, bytes(64 * MIB))
            await trio.testing.wait_all_tasks_blocked(0.05)
            near.close()
        for call in (near.receive_into(memoryview(bytearray(1))), near.send_all(b"x")):
            with pytest.raises(ConnectionError):
                await call


@pytest.mark.parametrize("reads", [True, False])
async def test_close_under_a_thread_that_sends_keeps_the_descriptor(
    world: World, tmp_path: Path, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file must not leave over a connection that got the same number since."""
    (tmp_path / "f").write_bytes(bytes(MIB))
    file = world.files.open(str(tmp_path / "f"), "r")
    started, go_on = threading.Event(), threading.Event()
    send = real._send_file_some

    def slow(sock: socket.socket, *args: int) -> int:
        started.set()
        go_on.wait(HANG_SECONDS)
        return send(sock, *args)

    monkeypatch.setattr(real, "_send_file_some", slow)
    async with connected(world) as (near, far):
        number = near._socket.fileno()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, ConnectionError, near.send_file, file, 0, MIB)
            await trio.to_thread.run_sync(started.wait)
            near.close()
            assert near._socket.fileno() == number
            if reads:
                assert await far.receive_into(memoryview(bytearray(1))) == 0
            go_on.set()
        assert near._socket.fileno() == -1
        with pytest.raises(ConnectionError):
            await near.send_file(file, 0, 1)
    file.close()


async def test_a_file_whose_disk_hangs_is_given_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once; and nothing of it is closed under the thread that is still there."""
    (tmp_path / "f").write_bytes(bytes(MIB))
    file = world.files.open(str(tmp_path / "f"), "r")
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    send = real._send_file_some
    sent: list[object] = []

    def hang(sock: socket.socket, number: int, *args: int) -> int:
        started.set()
        go_on.wait(HANG_SECONDS)
        sent.append(os.fstat(number).st_ino)
        try:
            return send(sock, number, *args)
        except OSError as error:
            sent.append(type(error))
            raise
        finally:
            ended.set()

    monkeypatch.setattr(real, "_send_file_some", hang)
    inode, limiter = (tmp_path / "f").stat().st_ino, trio.CapacityLimiter(1)
    run = partial(world.run_blocking, limiter=limiter, abandon_on_cancel=True)
    async with connected(world) as (near, far):
        number = near._socket.fileno()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_file, file, 0, MIB, run)
            await trio.to_thread.run_sync(started.wait)
            nursery.cancel_scope.cancel()
        near.close()
        file.close()
        assert near._socket.fileno() == number
        assert await far.receive_into(memoryview(bytearray(1))) == 0
        with pytest.raises(ConnectionError):
            await near.send_file(file, 0, 1, run)
        assert limiter.borrowed_tokens == 1
        go_on.set()
        await trio.to_thread.run_sync(ended.wait)
        async with limiter:  # free when the thread is done
            pass
        assert near._socket.fileno() == -1
    assert sent == [inode, BrokenPipeError]


async def test_a_slow_reader_holds_no_thread(world: World, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(64 * MIB))
    file = world.files.open(str(tmp_path / "f"), "r")
    limiter = trio.to_thread.current_default_thread_limiter()
    async with connected(world) as (near, _far), trio.open_nursery() as nursery:
        nursery.start_soon(near.send_file, file, 0, 64 * MIB)
        while True:
            await trio.testing.wait_all_tasks_blocked(0.05)
            if not limiter.borrowed_tokens:
                break
        nursery.cancel_scope.cancel()
    file.close()


async def test_a_fast_stream_lets_others_run(world: World) -> None:
    """Calls that never have to wait still yield now and then."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with connected(world) as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1000):
            await near.send_all(b"x")
        for _ in range(1000):
            await receive(far, 1)
        nursery.cancel_scope.cancel()
    assert turns >= 100


async def test_addresses() -> None:
    assert split_address("host:1") == ("host", 1)
    assert split_address("[::1]:65535") == ("::1", 65535)
    assert split_address(":80") == ("127.0.0.1", 80)
    for wrong in ("", "host", "host:", "host:x", "host:65536", "host:-1", "host:٣"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            split_address(wrong)


@pytest.mark.parametrize("address", ["no address", "a..b:1", "x" * 70 + ".de:1", "127.0.0.1:1"])
async def test_a_peers_word_for_an_address_is_a_connection_error(
    world: World, address: str
) -> None:
    with none_left(), pytest.raises(ConnectionError):
        await world.network.connect(address)


async def test_an_address_that_is_taken(world: World) -> None:
    listener = await world.network.listen("127.0.0.1:0")
    with none_left(), pytest.raises(OSError) as caught:  # noqa: PT011
        await world.network.listen(listener.address)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()


async def test_ipv6(world: World) -> None:
    try:
        listener = await world.network.listen("[::1]:0")
    except OSError:
        pytest.skip("no IPv6 here")
    assert listener.address.startswith("[::1]:")
    near = await world.network.connect(listener.address)
    far = await listener.accept()
    await near.send_all(b"six")
    assert await receive(far, 3) == b"six"
    for each in (near, far, listener):
        each.close()


async def test_a_server_is_known_by_the_name_that_it_was_given() -> None:
    """The address behind it may be another one after a restart."""
    world = real_world()
    listener = await world.network.listen("localhost:0")
    assert listener.address.startswith("localhost:")
    near = await world.network.connect(listener.address)
    near.close()
    listener.close()


async def test_a_cancelled_connect_leaves_nothing_open(world: World) -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    with none_left(), trio.move_on_after(0.05) as scope:
        await world.network.connect("127.0.0.1:%d" % full.getsockname()[1])  # noqa: UP031
    assert scope.cancelled_caught
    for each in (full, *fillers):
        each.close()


async def test_a_cancelled_accept_loses_no_connection(world: World) -> None:
    listener = await world.network.listen("127.0.0.1:0")
    for _ in range(20):
        with trio.CancelScope() as scope:
            near = await world.network.connect(listener.address)
            scope.cancel()
            far = await listener.accept()
        if scope.cancelled_caught:
            far = await listener.accept()
        await near.send_all(b"x")
        assert await receive(far, 1) == b"x"
        near.close()
        far.close()
    listener.close()


async def test_a_closed_listener(either_world: World) -> None:
    listener = await either_world.network.listen("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, ConnectionError, listener.accept)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
    with pytest.raises(ConnectionError):
        await listener.accept()
    with pytest.raises(ConnectionError):
        await either_world.network.connect(listener.address)
    listener.close()


async def test_accepting_goes_on_when_descriptors_ran_out(
    world: World, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener: Listener = await world.network.listen("127.0.0.1:0")
    near = await world.network.connect(listener.address)
    real_accept = socket.socket.accept
    failures = [errno.EMFILE, errno.ECONNABORTED, errno.ENOBUFS]

    def accept(sock: socket.socket) -> object:
        if failures:
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        return real_accept(sock)

    monkeypatch.setattr(socket.socket, "accept", accept)
    far = await listener.accept()
    assert not failures
    for each in (near, far, listener):
        each.close()


def test_files_are_closed_once_and_by_the_collector(world: World, tmp_path: Path) -> None:
    with none_left():
        file = world.files.open(str(tmp_path / "f"), "create")
        file.close()
        file.close()
        world.files.open(str(tmp_path / "f"), "r")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_lock_is_refused_without_a_leak(world: World, tmp_path: Path) -> None:
    held = world.files.lock(str(tmp_path / "lock"))
    with none_left(), pytest.raises(BlockingIOError):
        world.files.lock(str(tmp_path / "lock"))
    held.close()
    world.files.lock(str(tmp_path / "lock")).close()


def test_a_lock_that_its_holder_deletes_meanwhile_is_not_got(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "lock", fcntl.flock

    def lock_late(number: int, how: int) -> None:
        path.unlink()
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with none_left(), pytest.raises(BlockingIOError):
        world.files.lock(str(path))


def test_space(world: World, tmp_path: Path) -> None:
    space = world.files.space(str(tmp_path))
    assert 0 < space.free_bytes <= space.total_bytes


async def test_blocking_calls_run_beside_the_loop(world: World) -> None:
    limiter = trio.CapacityLimiter(1)
    assert await world.run_blocking(threading.get_ident, limiter=limiter) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await world.run_blocking(divmod, 1, 0)


async def test_blocking_calls_one_after_another_wake_the_same_thread(world: World) -> None:
    both = threading.Barrier(2)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(world.run_blocking, both.wait)
    threads = [await world.run_blocking(threading.get_ident) for _ in range(20)]
    assert len(set(threads)) == 1


async def test_no_blocking_call_is_lost_when_threads_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call meets a thread that is just about to end, or has."""
    monkeypatch.setattr(real, "WORKER_IDLE_SECONDS", 0.0005)
    threads = set()

    async def call(delays: random.Random) -> None:
        for number in range(200):
            assert await world.run_blocking(lambda n=number: n) == number
            threads.add(await world.run_blocking(threading.get_native_id))
            await trio.sleep(delays.uniform(0.0003, 0.0008))

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            for seed in range(3):
                nursery.start_soon(call, random.Random(seed))
    assert len(threads) > 3


async def test_a_call_that_is_abandoned_keeps_its_place_until_it_ends(world: World) -> None:
    started, go_on = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(HANG_SECONDS)
        raise OSError("nobody hears of it")

    limiter = trio.CapacityLimiter(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(world.run_blocking, work, limiter=limiter, abandon_on_cancel=True)
        )
        await trio.to_thread.run_sync(started.wait)
        nursery.cancel_scope.cancel()
    assert limiter.borrowed_tokens == 1
    with trio.move_on_after(0.02) as scope:
        await world.run_blocking(int, limiter=limiter, abandon_on_cancel=True)
    assert scope.cancelled_caught
    go_on.set()
    assert await world.run_blocking(int, limiter=limiter, abandon_on_cancel=True) == 0
    assert limiter.borrowed_tokens == 0


async def test_a_file_closed_under_a_call_stays_what_it_was(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that is used again would lead a write that hung into another file."""
    file = world.files.open(str(tmp_path / "f"), "create")
    started, go_on = threading.Event(), threading.Event()
    numbers: list[int] = []
    pwrite = os.pwrite

    def write(number: int, *args: Any) -> int:
        numbers.append(number)
        started.set()
        go_on.wait(HANG_SECONDS)
        return pwrite(number, *args)

    monkeypatch.setattr(os, "pwrite", write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run_blocking, file.write, b"late", 0)
        await trio.to_thread.run_sync(started.wait)
        file.close()
        others = [world.files.open(str(tmp_path / f"{n}"), "create") for n in range(10)]
        go_on.set()
    assert (tmp_path / "f").read_bytes() == b"late"
    for index, other in enumerate(others):
        other.close()
        assert not (tmp_path / f"{index}").read_bytes()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(numbers[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write(b"x", 0)


async def test_an_error_that_lives_on_keeps_nothing_open(world: World, tmp_path: Path) -> None:
    """Its frames have all that its call used. A disk that failed could not be unmounted."""
    (tmp_path / "f").write_bytes(b"bytes")
    errors: list[Exception] = []

    async def fail(function: Callable[..., Awaitable[object]], *args: object) -> None:
        with pytest.raises((OSError, EOFError)) as caught:
            await function(*args)
        errors.append(caught.value)

    async with connected(world) as (near, _):
        with none_left():
            files = world.files.within(str(tmp_path))
            file = files.open(str(tmp_path / "f"), "r")
            await fail(world.run_blocking, file.write, b"other", 0)
            await fail(world.run_blocking, files.unlink, str(tmp_path / "none"))
            await fail(world.run_blocking, files.list, str(tmp_path / "f"))
            await fail(near.send_file, file, 0, 50)
            file.close()
            files.close()
    assert len(errors) == 4


async def test_a_failed_call_and_its_error_are_no_circle(world: World) -> None:
    """All that the call was given would stay until the collector comes, in minutes."""

    class Bytes:
        pass

    given = Bytes()
    left = weakref.ref(given)

    def fail(_: Bytes) -> None:
        raise OSError("no")

    gc.disable()
    try:
        with contextlib.suppress(OSError):
            await world.run_blocking(fail, given)
        del given
        await trio.lowlevel.checkpoint()
        assert left() is None
    finally:
        gc.enable()


def test_a_file_system_that_does_not_know_what_is_cached(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.files.open(str(tmp_path / "f"), "create")
    file.write(b"bytes", 0)
    calls: list[object] = []

    def cannot(*args: object) -> int:
        calls.append(args)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "preadv", cannot)
    for _ in range(3):
        assert not file.read_cached(memoryview(bytearray(5)), 0)
    assert len(calls) == 1
    file.close()


async def test_a_blocking_call_is_over_when_it_returns(world: World) -> None:
    """Cancelled meanwhile, it is not abandoned: its buffers may be used again."""
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        done.wait(HANG_SECONDS)

    finished = False

    async def call() -> None:
        nonlocal finished
        await world.run_blocking(work)
        finished = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.to_thread.run_sync(started.wait)
        nursery.cancel_scope.cancel()
        done.set()
    assert finished


def test_the_time_a_machine_was_suspended_has_elapsed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {time.CLOCK_BOOTTIME: 5000.0, time.CLOCK_MONOTONIC: 1400.0}
    monkeypatch.setattr(time, "clock_gettime", now.get)
    assert world.clock.elapsed() == 5000.0


async def test_clock_and_chance(world: World, autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    await world.clock.sleep(100)
    assert trio.current_time() - before >= 100
    assert world.clock.monotonic() <= world.clock.monotonic()
    assert world.clock.elapsed() <= world.clock.elapsed()
    assert world.clock.time_ns() > 1_700_000_000 * 10**9
    assert len(world.random_bytes(16)) == 16
    assert world.random_bytes(16) != world.random_bytes(16)


def test_a_boot_is_the_kernels_or_else_each_worlds_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert real_world().boot == real_world().boot
    monkeypatch.setattr("gfs.io.real.BOOT_PATH", str(tmp_path / "none"))
    assert real_world().boot != real_world().boot


def test_a_sync_that_is_started_promises_nothing(world: World, tmp_path: Path) -> None:
    file = world.files.open(f"{tmp_path}/file", "create")
    file.write(os.urandom(MIB), 0)
    file.write(b"newer", 5)
    file.start_sync(0, MIB)
    file.start_sync(MIB, 17)
    file.sync()
    data = bytearray(5)
    assert file.read_into(memoryview(data), 5) == 5
    assert data == b"newer"
    assert file.size() == MIB
    file.close()
    file.start_sync(0, MIB)  # what goes wrong, the next sync reports


@pytest.mark.parametrize(
    ("before", "now", "is_lost"),
    [
        ("/srv/a", "/", True),
        ("/srv/a", "/srv", True),
        ("/srv/a", "/srv/a", False),
        ("/srv/a", "/srv/a/b", False),
        ("/srv/ab", "/srv/a", False),
        ("/mnt/a", "/srv", False),
        ("/", "/", False),
        ("/", "/srv", False),
        ("", "/", False),
        ("/srv/a", "", False),
    ],
)
def test_a_mount_is_lost_if_what_is_there_is_above(before: str, now: str, is_lost: bool) -> None:
    assert lost_mount(before, now) is is_lost

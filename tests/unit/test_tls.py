"""TLS between two ends: what is said comes through whole; whoever should not, cannot."""

from __future__ import annotations

import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from certificates import Authority
from clocks import SLOW, run_slowly, slow_time  # noqa: F401 - a fixture
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS
from share import share

from gfs.errors import GfsError, SettingsError, TlsRefused, WrongClusterKey
from gfs.io import Stream, World, real_world
from gfs.io.tls import BadTls, Tls, certificate_ends
from gfs.protocol import handshake
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.credentials import Credentials, load_credentials
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import Done, Ping
from gfs.protocol.server import serve
from gfs.testing import Universe, run_simulated

KEY = bytes(range(32))
SIMULATED_HOST = "s"

pytestmark = pytest.mark.usefixtures("slow_time")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def made(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority.write(tmp_path_factory.mktemp("tls"), "127.0.0.1")


def member(role: str, tls: Path | None, keys: tuple[bytes, ...] = (KEY,)) -> Identity:
    secure = Tls(tls, server=role == "master") if tls is not None else None
    return Identity(role, role, Credentials(lambda: keys, secure))


async def pong(connection: BulkConnection) -> None:
    while (message := await connection.receive_or_end()) is not None:
        await connection.send(Done(id=message.id))


@contextlib.asynccontextmanager
async def serving(server: Identity) -> AsyncIterator[tuple[World, str]]:
    """The address of a server that answers pings."""
    world = real_world()
    with trio.fail_after(HANG_SECONDS * SLOW):
        listener = await world.network.listen("127.0.0.1:0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, world, listener, server, pong)
            try:
                yield world, listener.address
            finally:
                nursery.cancel_scope.cancel()
                listener.close()


async def served(
    server: Identity, client: Identity, work: Callable[[BulkConnection], Awaitable[None]]
) -> None:
    async with serving(server) as (world, address):
        connection = await handshake.connect(world, address, client)
        with contextlib.closing(connection):
            await work(connection)


async def ask(connection: BulkConnection) -> None:
    await connection.send(Ping(id=7))
    assert await connection.receive() == Done(id=7)
    # Nothing comes unasked on an idle connection: a pool would take it for ended.
    await trio.testing.wait_all_tasks_blocked()
    assert not connection.stream.ended()


async def fails(server: Identity, client: Identity, kind: type[GfsError], words: str) -> None:
    try:
        await served(server, client, ask)
    except* kind as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert words in str(error)
        assert "\n" not in str(error)
    else:
        pytest.fail("it was not refused")


async def test_both_sides_with_tls_get_on(made: Path) -> None:
    await served(member("master", made), member("client", made), ask)


async def test_tls_takes_the_place_of_no_cluster_key(made: Path) -> None:
    stranger = member("client", made, (bytes(32),))
    await fails(member("master", made), stranger, WrongClusterKey, "another cluster key")


async def test_plain_to_tls_and_the_other_way_round(made: Path) -> None:
    await fails(member("master", made), member("client", None), TlsRefused, "requires TLS")
    await fails(member("master", None), member("client", made), TlsRefused, "not speak TLS")


async def test_certificates_that_are_not_to_be_trusted(
    authority: Authority, made: Path, tmp_path: Path
) -> None:
    client = member("client", made)
    elsewhere = authority.write(tmp_path / "name", "127.0.0.2")
    await fails(member("master", elsewhere), client, TlsRefused, "not valid for '127.0.0.1'")
    old = authority.write(tmp_path / "old", "127.0.0.1", days=-1)
    await fails(member("master", old), client, TlsRefused, "certificate has expired")
    stranger = Authority().write(tmp_path / "stranger", "127.0.0.1")
    await fails(member("master", stranger), client, TlsRefused, "is not trusted")


async def test_the_server_says_whom_it_could_not_convince(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stranger = Authority().write(tmp_path / "stranger", "127.0.0.1")
    async with serving(member("master", stranger)) as (world, address):
        with pytest.raises(TlsRefused):
            await handshake.connect(world, address, member("client", made))
        while "does not trust this side's certificate" not in caplog.text:
            await trio.lowlevel.checkpoint()


async def test_new_certificates_serve_without_a_restart(
    authority: Authority, tmp_path: Path
) -> None:
    directory = authority.write(tmp_path / "tls", "127.0.0.1", days=-1)
    server, client = member("master", directory), member("client", directory)
    await fails(server, client, TlsRefused, "expired")
    authority.write(directory, "127.0.0.1")
    await served(server, client, ask)
    (directory / "cert.pem").write_text("nothing of worth")
    await served(server, client, ask)  # those from before stay


@pytest.mark.parametrize("days", [1, 29, 400, 20_000])
def test_when_a_certificate_ends_is_known(authority: Authority, tmp_path: Path, days: int) -> None:
    directory = authority.write(tmp_path / "tls", "127.0.0.1", days=days)
    tls = Tls(directory, server=True)
    certificates = [
        x509.load_pem_x509_certificate((directory / name).read_bytes())
        for name in ("cert.pem", "ca.pem")
    ]
    assert tls.until_ns == min(c.not_valid_after_utc.timestamp() for c in certificates) * 1e9
    # Renewed, it is another date, without a restart.
    authority.write(directory, "127.0.0.1", days=2)
    assert tls.until_ns < 3 * 24 * 3600 * 1e9 + time.time_ns()
    assert Tls(directory, server=False).until_ns == 0


@settings(max_examples=share(200))
@given(st.binary(max_size=200))
def test_no_bytes_of_a_certificate_make_more_than_an_error(made: Path, noise: bytes) -> None:
    der = ssl.PEM_cert_to_DER_cert((made / "cert.pem").read_text())
    path = made / "spoiled.pem"
    for spoiled in (noise, noise + der[len(noise) :], der[: len(noise)]):
        path.write_text(ssl.DER_cert_to_PEM_cert(spoiled))
        with contextlib.suppress(BadTls):
            certificate_ends(path)


async def test_the_authority_is_changed_while_everything_runs(tmp_path: Path) -> None:
    """As the manual says: between its steps any two get on."""
    old, new = Authority("authority of 2026"), Authority("authority of 2027")
    server = old.write(tmp_path / "server", "127.0.0.1")
    client = old.write(tmp_path / "client", "127.0.0.1")
    fresh = new.write(tmp_path / "fresh", "127.0.0.1")
    master, asker = member("master", server), member("client", client)

    async def step(directory: Path, name: str, data: bytes) -> None:
        (directory / name).write_bytes(data)
        if name != "cert.pem":  # it goes with its key
            await served(master, asker, ask)

    await served(master, asker, ask)
    trusted = (fresh / "ca.pem").read_bytes()
    for directory in (server, client):
        both = (directory / "ca.pem").read_bytes() + trusted
        await step(directory, "ca.pem", both)
    for name in ("cert.pem", "key.pem"):
        await step(server, name, (fresh / name).read_bytes())
    for directory in (client, server):
        await step(directory, "ca.pem", trusted)
    # The old authority is worth nothing any more.
    for name in ("cert.pem", "key.pem"):
        (server / name).write_bytes((client / name).read_bytes())
    await fails(master, asker, TlsRefused, "not trusted")


def test_files_that_are_no_good_are_reported_at_the_start(
    authority: Authority, tmp_path: Path
) -> None:
    directory = authority.write(tmp_path / "tls", "127.0.0.1")
    (directory / "key.pem").chmod(0o640)
    with pytest.raises(BadTls, match="chmod 600"):
        Tls(directory, server=True)
    Tls(directory, server=False)
    (directory / "key.pem").unlink()
    with pytest.raises(SettingsError, match="a server needs its certificate"):
        load_credentials(KEY, directory, server=True)
    (directory / "ca.pem").write_text("nothing of worth")
    with pytest.raises(BadTls, match=r"ca\.pem"):
        Tls(directory, server=False)
    with pytest.raises(BadTls, match=r"ca\.pem: No such file"):
        Tls(tmp_path / "nowhere", server=False)


@given(st.binary(min_size=1, max_size=200))
@settings(deadline=None, max_examples=share(50))
def test_what_is_no_tls_costs_one_connection_and_is_answered(made: Path, noise: bytes) -> None:
    async def main() -> None:
        async with serving(member("master", made)) as (world, address):
            stream = await world.network.connect(address)
            await stream.send_all(noise)
            # An incomplete hello is waited for; then the peer is let go.
            if noise[0] not in (0x15, 0x16):
                assert await stream.receive_into(memoryview(bytearray(4096)))
            stream.close()
            connection = await handshake.connect(world, address, member("client", made))
            await ask(connection)
            connection.close()

    run_slowly(main)


@pytest.fixture(scope="module")
def simulated(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority.write(tmp_path_factory.mktemp("tls"), SIMULATED_HOST)


sizes = st.lists(st.integers(1, 50_000), min_size=1, max_size=6)


async def _send(stream: Stream, data: bytes, pieces: list[int]) -> None:
    at = turn = 0
    while at < len(data):
        size = pieces[turn % len(pieces)]
        await stream.send_all(data[at : at + size // 2], data[at + size // 2 : at + size])
        at, turn = at + size, turn + 1


async def _receive(stream: Stream, count: int, pieces: list[int]) -> bytes:
    got = bytearray()
    turn = 0
    while len(got) < count:
        buffer = memoryview(bytearray(min(pieces[turn % len(pieces)], count - len(got))))
        number = await stream.receive_into(buffer, len(buffer))
        assert number
        got += buffer[:number]
        turn += 1
    return bytes(got)


@given(sizes, sizes, st.integers(0, 2**16), st.binary(max_size=10))
@settings(
    deadline=None,
    max_examples=share(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_bytes_come_through_in_order_whatever_the_pieces(
    simulated: Path, sent: list[int], received: list[int], seed: int, tail: bytes
) -> None:
    # Of two records of TLS, the first of 16 KiB; in pieces of a byte it is costly to send.
    data = bytes(i * 31 % 251 for i in range(18_000)) + tail

    async def main() -> None:
        universe = Universe(seed)
        near, far = (universe.machine(name).start_process().world for name in "cs")
        listener = await far.network.listen("s:1")
        plain = await near.network.connect("s:1")
        ends: list[Stream] = []

        async def secure(world: World, stream: Stream, *, server: bool) -> None:
            tls = Tls(simulated, server=server)
            end = (
                await tls.accept(stream, world.run_blocking)
                if server
                else await tls.connect(stream, SIMULATED_HOST, world.run_blocking)
            )
            ends.append(end)

        async def both_ways(end: Stream, world: World) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, end, data, sent)
                assert await _receive(end, len(data), received) == data

        accepted = await listener.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: secure(near, plain, server=False))
            nursery.start_soon(lambda: secure(far, accepted, server=True))
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(both_ways, end, near)
        assert not any(end.ended() for end in ends)
        ends[0].close()
        assert await ends[1].receive_into(memoryview(bytearray(10))) == 0
        assert ends[1].ended()
        ends[1].close()
        listener.close()

    run_simulated(seed, main)


async def test_files_are_sent_through_it(made: Path, tmp_path: Path) -> None:
    world = real_world()
    data = bytes(i * 7 % 253 for i in range(700_000))
    (tmp_path / "file").write_bytes(data)
    file = world.files.open(str(tmp_path / "file"), "r")
    listener = await world.network.listen("127.0.0.1:0")
    plain = await world.network.connect(listener.address)
    tls = Tls(made, server=True)

    async def near() -> None:
        stream = await tls.connect(plain, "127.0.0.1", world.run_blocking)
        assert await _receive(stream, 600_000, [65536]) == data[1000:601_000]
        stream.close()

    with trio.fail_after(HANG_SECONDS * SLOW):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near)
            stream = await tls.accept(await listener.accept(), world.run_blocking)
            await stream.send_file(file, 1000, 600_000)
            with pytest.raises(EOFError):
                await stream.send_file(file, len(data) - 5, 6)
            stream.close()
    file.close()
    listener.close()


key_sets = st.lists(
    st.sampled_from([bytes([n]) * 32 for n in range(3)]), min_size=1, max_size=2, unique=True
).map(tuple)


@given(key_sets, key_sets)
@settings(deadline=None, max_examples=share(60))
def test_any_two_that_share_a_key_get_on_and_no_others(
    ours: tuple[bytes, ...], theirs: tuple[bytes, ...]
) -> None:
    async def shares(connection: BulkConnection) -> None:
        assert connection.key in ours
        assert connection.key in theirs
        await ask(connection)

    async def main() -> None:
        server, client = member("master", None, theirs), member("client", None, ours)
        if set(ours) & set(theirs):
            await served(server, client, shares)
        else:
            await fails(server, client, WrongClusterKey, "another cluster key")

    run_slowly(main)

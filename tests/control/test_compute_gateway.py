"""The TCP gateway of compute, with real sockets on loopback."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing
from descriptors import none_left, open_descriptors
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import HANG_SECONDS
from share import share

from control.compute.podman.network import gateway as module
from control.compute.podman.network.gateway import Address, Gateway, Target

pytestmark = pytest.mark.usefixtures("virtual_time")

KIB = 1024
MIB = 1024 * KIB
#: Where nobody else on this machine listens.
HOST = "127.0.77.1"
#: In /proc/net/tcp: the end was sent, and not all before it was taken.
FIN_WAIT_1 = "04"


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    with none_left():
        yield


class Setting:
    """A gateway, and a server that stands for what listens in a container.

    ``accepted`` hands out the connections that arrive there.
    """

    def __init__(self, gateway: Gateway, server: Address, reported: list[str]) -> None:
        self.gateway = gateway
        self.server = server
        self.reported = reported
        self._arrive, self.accepted = trio.open_memory_channel[trio.SocketStream](100)
        self.streams: list[trio.SocketStream] = []
        #: Whether the server echoes what arrives, instead of handing out the connections.
        self.echoes = False
        self.open = 0

    async def take(self, stream: trio.SocketStream) -> None:
        self.streams.append(stream)
        if self.echoes:
            await self._echo(stream)
        else:
            await self._arrive.send(stream)
            await trio.sleep_forever()

    async def _echo(self, stream: trio.SocketStream) -> None:
        """It does not care for the end of its client's side."""
        self.open += 1
        try:
            while piece := await stream.receive_some():
                await stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.open -= 1
        await trio.sleep_forever()

    def lead(
        self,
        owner: str,
        *addresses: Address,
        to: Address | None = None,
        is_login: bool = False,
    ) -> None:
        target = Target(lambda: to or self.server, is_login)
        self.gateway.set_rules(owner, dict.fromkeys(addresses, target))

    async def connect(self, address: Address, network: str | None = None) -> trio.SocketStream:
        stream = await trio.open_tcp_stream(*address, local_address=network)
        self.streams.append(stream)
        return stream

    async def both(
        self, address: Address, network: str | None = None
    ) -> tuple[trio.SocketStream, trio.SocketStream]:
        """A connection's two ends: the client's and the server's."""
        client = await self.connect(address, network)
        return client, await self.accepted.receive()

    async def is_let_in(self, address: Address, network: str | None = None) -> bool:
        """Whether a client that comes now gets an answer, where the server echoes; it stays."""
        client = await self.connect(address, network)
        return await answers(client)


async def answers(client: trio.SocketStream) -> bool:
    try:
        await client.send_all(b"?")
        return await client.receive_some(1) == b"?"
    except trio.BrokenResourceError:
        return False


@asynccontextmanager
async def setting(retry_seconds: float = 600.0, **options: Any) -> AsyncIterator[Setting]:
    reported: list[str] = []
    gateway = Gateway(changed=reported.append, retry_seconds=retry_seconds, **options)
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    made = Setting(gateway, listener.socket.getsockname()[:2], reported)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            nursery.start_soon(trio.serve_listeners, made.take, [listener])
            try:
                yield made
            finally:
                nursery.cancel_scope.cancel()
                for stream in made.streams:
                    stream.socket.close()


Ends = tuple[trio.SocketStream, trio.SocketStream]


@pytest.fixture
async def here() -> AsyncIterator[Setting]:
    async with setting() as made:
        yield made


@pytest.fixture
def address(here: Setting) -> Address:
    """It leads to the server."""
    found = free_address()
    here.lead("one", found)
    return found


@pytest.fixture
async def ends(here: Setting, address: Address) -> Ends:
    return await here.both(address)


def free_address(host: str = HOST) -> Address:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[0], probe.getsockname()[1]


async def all_of(stream: trio.SocketStream) -> bytes:
    received = b""
    while piece := await stream.receive_some(64 * KIB):
        received += piece
    return received


async def until(condition: Callable[[], bool]) -> None:
    """The caller has the deadline."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.005)


def reset(stream: trio.SocketStream) -> None:
    """Leave without a good-bye, as a process that was killed."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def expect_refused(address: Address) -> None:
    with pytest.raises(OSError, match="attempts to connect"):
        await trio.open_tcp_stream(*address)


# --- bytes ------------------------------------------------------------------------------

_WORDS = st.lists(st.binary(min_size=1, max_size=200_000), max_size=6)


@settings(max_examples=share(40), deadline=None)
@given(asked=_WORDS, answered=_WORDS, client_ends_first=st.booleans())
async def test_what_goes_in_comes_out_on_the_other_side_in_both_directions(
    asked: list[bytes], answered: list[bytes], client_ends_first: bool
) -> None:
    got: dict[str, bytes] = {}

    async def say(
        stream: trio.SocketStream, words: list[bytes], first: bool, heard: trio.Event
    ) -> None:
        for word in words:
            await stream.send_all(word)
        if not first:
            await heard.wait()
        await stream.send_eof()

    async def hear(stream: trio.SocketStream, name: str, heard: trio.Event) -> None:
        got[name] = await all_of(stream)
        heard.set()

    async with setting() as here:
        address = free_address()
        here.lead("one", address)
        client, server = await here.both(address)
        client_heard, server_heard = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, client, asked, client_ends_first, client_heard)
            nursery.start_soon(say, server, answered, not client_ends_first, server_heard)
            nursery.start_soon(hear, client, "client", client_heard)
            nursery.start_soon(hear, server, "server", server_heard)
    assert got["server"] == b"".join(asked)
    assert got["client"] == b"".join(answered)


async def test_the_end_of_one_direction_leaves_the_other_open(ends: Ends) -> None:
    client, server = ends
    await client.send_all(b"all I have to say")
    await client.send_eof()
    assert await all_of(server) == b"all I have to say"
    await server.send_all(b"an answer after the end")
    await server.send_eof()
    assert await all_of(client) == b"an answer after the end"


@pytest.mark.parametrize("breaks", ["client", "server"])
async def test_a_connection_that_broke_is_not_taken_for_one_that_ended(
    ends: Ends, breaks: str
) -> None:
    client, server = ends
    broken, other = (client, server) if breaks == "client" else (server, client)
    await broken.send_all(b"half of it")
    assert await other.receive_some(100) == b"half of it"
    reset(broken)
    with pytest.raises(trio.BrokenResourceError):
        await other.receive_some(100)


async def test_a_side_that_stops_reading_does_not_cut_what_it_sent_to_a_slow_reader(
    address: Address, here: Setting
) -> None:
    """A server answers without reading the whole request, closes, and refuses the rest."""
    # More than the client's system takes, and no more than ours does.
    answer = os.urandom(20 * KIB)
    raw = trio.socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * KIB)
    await raw.connect(address)
    client = trio.SocketStream(raw)
    here.streams.append(client)
    server = await here.accepted.receive()
    await server.send_all(answer)
    await server.send_eof()
    await until(lambda: tcp_state(address[1], raw.getsockname()[1]) == FIN_WAIT_1)
    reset(server)
    open_now = open_descriptors()
    await client.send_all(b"the rest of a request")
    await until(lambda: len(open_now - open_descriptors()) >= 2)  # the gateway has left
    assert await all_of(client) == answer


def tcp_state(local_port: int, remote_port: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        ports = [int(address.split(":")[1], 16) for address in (local, remote)]
        if ports == [local_port, remote_port]:
            return state
    return ""


async def test_a_slow_reader_stops_his_sender_and_nobody_else(
    address: Address, here: Setting
) -> None:
    total, sent = 256 * MIB, 0

    async def pour(stream: trio.SocketStream) -> None:
        nonlocal sent
        piece = bytes(64 * KIB)
        while sent < total:
            await stream.send_all(piece)
            sent += len(piece)
        await stream.send_eof()

    async def count(stream: trio.SocketStream) -> int:
        received = 0
        while piece := await stream.receive_some(MIB):
            received += len(piece)
        return received

    async def there_and_back(client: trio.SocketStream, server: trio.SocketStream) -> None:
        await client.send_all(b"ping")
        assert await server.receive_some(100) == b"ping"
        await server.send_all(b"pong")
        assert await client.receive_some(100) == b"pong"

    slow, sender = await here.both(address)
    other = await here.both(address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour, sender)
        before = -1
        # Until nothing more of it went in while the other went back and forth.
        while before < sent:
            before = sent
            for _ in range(200):
                await there_and_back(*other)
        assert sent < 64 * MIB, "what nobody reads is piled up"
        assert await count(slow) == total


# --- rules ------------------------------------------------------------------------------


async def test_a_rule_ends_with_all_that_it_let_in(here: Setting) -> None:
    kept, removed = free_address(), free_address("127.0.77.2")
    here.lead("one", kept, removed)
    kept_ends, removed_ends = await here.both(kept), await here.both(removed)
    await removed_ends[0].send_all(b"hello")
    assert await removed_ends[1].receive_some(100) == b"hello"
    here.lead("one", kept)
    for end in removed_ends:
        with pytest.raises(trio.BrokenResourceError):
            await end.receive_some(1)
    await expect_refused(removed)
    await kept_ends[0].send_all(b"still there")
    assert await kept_ends[1].receive_some(100) == b"still there"
    assert here.gateway.listening("one") == {kept}


async def test_a_rule_that_is_changed_leads_elsewhere_and_cuts_nobody_off(here: Setting) -> None:
    (second,) = await trio.open_tcp_listeners(0, host=HOST)
    async with second:
        address = free_address()
        here.lead("one", address)
        client, server = await here.both(address)
        here.lead("one", address, to=second.socket.getsockname()[:2])
        moved = await here.connect(address)
        await moved.send_all(b"to the second")
        arrived = await second.accept()
        here.streams.append(arrived)
        assert await arrived.receive_some(100) == b"to the second"
        await client.send_all(b"to the first")
        assert await server.receive_some(100) == b"to the first"


async def test_where_nothing_answers_the_client_is_turned_away(here: Setting) -> None:
    closed, stopped = free_address(), free_address("127.0.77.2")
    nobody = free_address("127.0.77.3")
    here.gateway.set_rules("one", {closed: Target(lambda: nobody), stopped: Target(lambda: None)})
    for address in (closed, stopped):
        client = await here.connect(address)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some(1)


async def test_a_port_of_another_service_is_refused_for_good_also_when_that_restarts() -> None:
    async with setting(retry_seconds=0.01) as here:
        with socket.create_server((HOST, 0)) as service:
            address = service.getsockname()[:2]
            here.lead("one", address)
            assert here.reported == ["one"]
            (reason,) = here.gateway.refused("one").values()
            assert str(address[1]) in reason
            assert "another service of this machine" in reason
        # It is down: neither time nor another wish for it makes it a container's.
        here.lead("one")
        for owner in ("one", "two"):
            here.lead(owner, address)
            assert address in here.gateway.refused(owner)
        await trio.sleep(0.05)
        await expect_refused(address)
        with socket.create_server(address):  # it is back
            assert here.gateway.listening() == set()


@pytest.mark.parametrize("call", ["__init__", "listen"])
async def test_what_is_refused_for_another_reason_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def without_descriptors(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with setting(retry_seconds=0.01) as here:
        address = free_address()
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, call, without_descriptors)
            here.lead("one", address)
            await trio.sleep(0.05)  # It is tried again meanwhile.
            assert "Too many open files" in here.gateway.refused("one")[address]
        await until(lambda: here.gateway.refused("one") == {})
        assert here.reported == ["one", "one"]
        await here.both(address)


async def test_of_two_who_want_a_port_the_second_gets_it_after_the_first(here: Setting) -> None:
    address = free_address()
    here.lead("first", address)
    here.lead("second", address)
    assert here.gateway.listening("first") == {address}
    (reason,) = here.gateway.refused("second").values()
    assert "another container" in reason
    assert here.reported == ["second"]
    here.lead("first")
    assert here.gateway.listening("second") == {address}
    assert here.gateway.refused("second") == {}
    assert here.reported == ["second", "second"]
    await here.both(address)


async def test_an_address_that_this_machine_does_not_have_is_reported(here: Setting) -> None:
    here.lead("one", ("203.0.113.1", 8080))
    (reason,) = here.gateway.refused("one").values()
    assert "does not have that address" in reason


async def test_rules_may_come_and_go_before_they_are_served(here: Setting) -> None:
    address = free_address()
    for _ in range(50):
        here.lead("one", address)
        here.lead("one")
    here.lead("one", address)
    await here.both(address)


async def test_rules_are_kept_until_the_gateway_runs_and_run_again() -> None:
    reported: list[str] = []
    gateway, address = Gateway(changed=reported.append), free_address()
    with trio.fail_after(HANG_SECONDS):
        for _ in range(2):
            gateway.set_rules("one", {address: Target(lambda: None)})
            assert gateway.listening("one") == set()
            await expect_refused(address)
            async with trio.open_nursery() as nursery:
                await nursery.start(gateway.run)
                assert gateway.listening("one") == {address}
                gateway.set_rules("one", {address: Target(lambda: None)})
                await (await trio.open_tcp_stream(*address)).aclose()
                nursery.cancel_scope.cancel()
        await expect_refused(address)
    assert (gateway.refused("one"), reported) == ({}, [])


# --- bounds -----------------------------------------------------------------------------


#: Networks of clients.
HOME, OFFICE = "127.0.88.1", "127.0.88.2"
CROWD = [f"127.0.99.{number}" for number in range(1, 31)]
A_CONTAINER, A_NETWORK, LOGINS = 16, 8, 8


@asynccontextmanager
async def attacked(
    monkeypatch: pytest.MonkeyPatch, **options: Any
) -> AsyncIterator[tuple[Setting, Address, Address]]:
    """A container's port, and one for its logins. There are few places, of which a network has a
    half."""
    monkeypatch.setattr(module, "CONNECTIONS_OF_ONE_MAX", A_CONTAINER)
    monkeypatch.setattr(module, "LOGINS_OF_ONE_MAX", LOGINS)
    async with setting(**options) as here:
        here.echoes = True
        page, login = free_address(), free_address("127.0.77.2")
        rules = {
            page: Target(lambda: here.server),
            login: Target(lambda: here.server, is_login=True),
        }
        here.gateway.set_rules("one", rules)
        yield here, page, login


async def flood(here: Setting, address: Address, *networks: str, count: int) -> None:
    for _ in range(count):
        for network in networks:
            await here.connect(address, network)
    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("strangers", [CROWD[:1], CROWD[:6]])
@pytest.mark.parametrize("kind", ["page", "login"])
async def test_who_says_nothing_is_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch, kind: str, strangers: list[str]
) -> None:
    async with attacked(monkeypatch) as (here, page, login):
        address = login if kind == "login" else page
        await flood(here, address, *strangers, count=3 * A_CONTAINER // len(strangers) + 1)
        assert here.open <= (LOGINS if kind == "login" else A_CONTAINER)
        assert [await here.is_let_in(each, HOME) for each in (page, login)] == [True, True]
        assert trio.current_time() == 0, "it had to wait"
        # Nor among themselves: who says something gets in when another was silent for 5 s.
        while not await here.is_let_in(address, strangers[0]):  # noqa: ASYNC110
            await trio.sleep(0.5)
        assert trio.current_time() <= module.SLOW_SECONDS


@pytest.mark.parametrize("strangers", [2, 6])
async def test_one_that_is_never_silent_keeps_nobody_out_and_ends_nobodys_session(
    monkeypatch: pytest.MonkeyPatch, strangers: int
) -> None:
    """An idle session of somebody else is older than all that the strangers do."""

    async def drip(network: str) -> None:
        while True:
            client = await here.connect(page, network)
            while await answers(client):  # noqa: ASYNC110
                await trio.sleep(module.SLOW_SECONDS - 1)
            await trio.sleep(1)

    async with attacked(monkeypatch) as (here, page, login):
        session = await here.connect(login, HOME)
        assert await answers(session)
        await trio.sleep(module.LOGIN_SECONDS)
        async with trio.open_nursery() as nursery:
            for number in range(A_CONTAINER + 4):
                nursery.start_soon(drip, CROWD[number % strangers])
            await trio.sleep(2 * module.SLOW_SECONDS)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert here.open == A_CONTAINER
            for address in (page, login):
                client = await here.connect(address, OFFICE)
                assert await answers(client)
                await trio.sleep(2 * module.SLOW_SECONDS)
                assert await answers(client)
            assert await answers(session)
            nursery.cancel_scope.cancel()


async def test_the_strangers_of_one_container_take_no_place_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2 * A_CONTAINER)
    async with attacked(monkeypatch) as (here, page, _):
        other = free_address("127.0.77.3")
        here.lead("other", other)
        await flood(here, page, *CROWD, count=1)
        assert here.open == A_CONTAINER
        for _ in range(A_NETWORK):
            assert await here.is_let_in(other, HOME)
        # Nor do those of all containers take all.
        await flood(here, other, *CROWD[:6], count=3)
        await flood(here, page, *CROWD[:6], count=3)
        assert await here.is_let_in(other, OFFICE)
        assert here.open <= 2 * A_CONTAINER


async def test_right_after_the_strangers_have_gone_all_is_open_also_if_the_container_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with attacked(monkeypatch) as (here, page, login):
        for address in (page, login):
            await flood(here, address, *CROWD[:6], count=3)
        for stream in here.streams:
            if stream.socket.fileno() >= 0 and stream.socket.getsockname()[0] in CROWD:
                stream.socket.close()
        for address in (page, login):
            for network in (HOME, OFFICE):
                assert await here.is_let_in(address, network)
        assert trio.current_time() == 0
        await trio.sleep(module.SLOW_SECONDS)
        for address in (page, login):
            assert await here.is_let_in(address, CROWD[0])


@pytest.mark.parametrize("speaks", ["client", "container", "nobody"])
@pytest.mark.parametrize("is_login", [False, True])
async def test_who_says_nothing_at_first_is_ended_within_seconds(
    here: Setting, speaks: str, is_login: bool
) -> None:
    """An SSH server speaks first, whoever comes. Whatever else does may have something to say."""
    address = free_address()
    here.lead("one", address, is_login=is_login)
    client, server = await here.both(address)
    if speaks == "client":
        await client.send_all(b"?")
    elif speaks == "container":
        await server.send_all(b"!")
        await client.receive_some(1)
    stays = speaks == "client" or (speaks == "container" and not is_login)
    await trio.sleep(module.FIRST_BYTE_SECONDS - 0.1)
    assert not await is_ended(client)
    await trio.sleep(0.2)
    assert await is_ended(client) is not stays


async def is_ended(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.05):
        return await ended(stream)
    return False


async def test_who_is_logged_in_has_no_place_of_the_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    async with attacked(monkeypatch) as (here, _, login):
        sessions = []
        for network in CROWD[:3]:
            for _ in range(LOGINS // 2):
                sessions.append(await here.connect(login, network))
                assert await answers(sessions[-1])
            await trio.sleep(module.LOGIN_SECONDS)
        assert len(sessions) > LOGINS
        for session in sessions:
            assert await answers(session)


@pytest.mark.parametrize("is_proxy", [False, True])
async def test_a_network_has_a_half_and_a_proxy_may_have_all(
    monkeypatch: pytest.MonkeyPatch, is_proxy: bool
) -> None:
    async with attacked(monkeypatch, is_proxy=lambda _: is_proxy) as (here, page, _):
        for number in range(A_CONTAINER):
            expected = is_proxy or number < A_NETWORK
            assert await here.is_let_in(page, HOME) == expected


async def test_a_network_that_is_refused_is_named_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with attacked(monkeypatch) as (here, page, _):
        await flood(here, page, HOME, count=A_CONTAINER)
        await flood(here, page, OFFICE, count=A_CONTAINER)
        (record,) = caplog.records
        assert HOME in record.message
        assert "one" in record.message


async def test_nobody_is_let_in_beyond_what_the_process_may_open() -> None:
    async with setting(descriptors=64) as here:
        here.echoes = True
        addresses = [free_address(f"127.0.77.{2 + number}") for number in range(3)]
        for address, network in zip(addresses, (HOME, OFFICE, CROWD[10]), strict=True):
            here.lead(address[0], address)
            await flood(here, address, *CROWD[:10], count=2)
            assert await here.is_let_in(address, network)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert here.open == 64 // 4


async def ended(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


async def test_nobody_listens_at_more_than_his_share_nor_all_at_more_than_the_process_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LISTENERS_OF_ONE_MAX", 10)
    async with setting(descriptors=32) as here:
        addresses = [free_address(f"127.0.77.{2 + number}") for number in range(20)]
        here.lead("greedy", *addresses[:12])
        assert len(here.gateway.listening("greedy")) == 10
        for reason in here.gateway.refused("greedy").values():
            assert "at most 10 ports" in reason
        here.lead("other", *addresses[12:])
        assert len(here.gateway.listening("other")) == 6
        for reason in here.gateway.refused("other").values():
            assert "RLIMIT_NOFILE" in reason
        here.lead("greedy", *addresses[:5])
        here.lead("other", *addresses[12:])
        assert here.gateway.refused("other") == {}


@pytest.mark.parametrize("descriptors", [module.DESCRIPTORS_MIN, 4096, 16 * 1024, 10**6])
def test_ports_and_connections_take_no_more_descriptors_than_there_are(descriptors: int) -> None:
    gateway = Gateway(descriptors=descriptors)
    connections = gateway._slots._slots_max
    assert gateway._listeners_max + 2 * connections <= descriptors
    assert connections >= module.LOGINS_OF_ONE_MAX
    assert gateway._listeners_max >= module.LISTENERS_OF_ONE_MAX


async def test_without_descriptors_connections_are_not_accepted_in_a_hurry() -> None:
    calls = 0

    async def accept() -> None:
        nonlocal calls
        calls += 1
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "too many")

    async with setting() as here:
        address = free_address()
        here.lead("one", address)
        await here.both(address)
        rule = here.gateway._open[address]
        listener, rule.listener = rule.listener, mock.Mock(accept=accept)
        await here.both(address)  # is accepted by the call that was under way
        await trio.sleep(0.25)
        rule.listener = listener
        await here.both(address)
    assert calls == 3


async def test_a_change_of_one_owner_is_no_work_for_the_others(here: Setting) -> None:
    everybody = {f"{number}": free_address(f"127.0.77.{2 + number}") for number in range(50)}
    for owner, address in everybody.items():
        here.lead(owner, address)
    settled: list[str] = []
    settle = here.gateway._open_ports
    here.gateway._open_ports = lambda nursery, owner: (  # type: ignore[method-assign]
        settled.append(owner),
        settle(nursery, owner),
    )[1]
    here.lead("7")
    here.lead("7", everybody["7"])
    assert settled == ["7", "7"]


@pytest.mark.parametrize("seconds", ["IDLE_SECONDS", "IDLE_HALF_CLOSED_SECONDS"])
async def test_a_connection_on_which_nothing_passes_is_ended(
    seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, seconds, 60)
    async with setting() as here:
        address = free_address()
        here.lead("one", address)
        client, server = await here.both(address)
        await client.send_all(b"?")
        assert await server.receive_some(1) == b"?"
        if seconds == "IDLE_HALF_CLOSED_SECONDS":
            await client.send_eof()
            assert await server.receive_some(1) == b""
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some(1)
    assert round(trio.current_time()) == 60


async def test_a_container_that_does_not_take_the_connection_is_given_up() -> None:
    async def never(host: str, port: int) -> trio.SocketStream:
        await trio.sleep_forever()
        raise AssertionError

    connect: Callable[[str, int], Awaitable[trio.SocketStream]] = never
    gateway = Gateway(connect)
    address = free_address()
    gateway.set_rules("one", {address: Target(lambda: ("192.0.2.1", 22))})
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.run)
            async with await trio.open_tcp_stream(*address) as client:
                assert await ended(client)
                assert round(trio.current_time()) == module.CONNECT_SECONDS
            nursery.cancel_scope.cancel()

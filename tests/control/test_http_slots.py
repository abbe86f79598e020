"""Slow clients take the slots of their own address, and of nobody else."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from test_http_server import Client, connected, get, post, running

from control.http import HttpLimits
from control.http.forwarded import Proxies
from control.http.slots import PROGRESS_BYTES, Slots

pytestmark = pytest.mark.usefixtures("virtual_time")

ESTABLISHED = 1
"""What the kernel's ``tcp_info`` begins with."""
CROWD = 20
OF_ONE = 4
LIMITS = HttpLimits(connections_max=8, per_address_max=OF_ONE, graceful_seconds=0)
UPGRADE = get(
    "/flood",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version: 13",
)
#: What is sent at once, and what then drips.
SLOW = {
    "silent": (b"", b""),
    "head": (b"GET /hello HTTP/1.1\r\n", b"X: y\r\n"),
    "body": (post("/count", "Content-Length: 1000000"), b"x"),
    "chunks": (post("/count", "Transfer-Encoding: chunked"), b"1\r\nx\r\n"),
    "reader": (get("/endless"), b""),
    "events": (get("/chunks-for-ever"), b""),
    "websocket": (UPGRADE, b""),
}


async def drip(client: Client, data: bytes) -> None:
    try:
        while data:
            await client.send(data)
            await trio.sleep(0.5)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def is_served(port: int, address: str) -> bool:
    """Whether a client of *address* gets an answer right now."""
    try:
        async with connected(port, address) as client:
            return (await client.ask(get("/hello"))).status == 200
    except (AssertionError, trio.BrokenResourceError):
        return False


def is_open(client: Client) -> bool:
    """Whether the server still has the connection, whatever is left to be read of it."""
    assert isinstance(client.stream, trio.SocketStream)
    return client.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


@pytest.mark.parametrize("kind", SLOW)
async def test_slow_clients_are_in_nobodys_way_but_their_own(kind: str) -> None:
    first, then = SLOW[kind]
    async with (
        running(LIMITS) as (port, _),
        AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        crowd = [
            await stack.enter_async_context(connected(port, "127.0.0.2")) for _ in range(CROWD)
        ]
        for client in crowd:
            await client.send(first)
            nursery.start_soon(drip, client, then)
        # There are more of them than slots in all, and nobody else notices.
        assert await is_served(port, "127.0.0.1")
        # One of their own address waits for nothing but that one of them counts as slow.
        while not await is_served(port, "127.0.0.2"):  # noqa: ASYNC110
            await trio.sleep(1)
        assert round(trio.current_time()) == LIMITS.slow_seconds
        assert sum(is_open(client) for client in crowd) < OF_ONE
        nursery.cancel_scope.cancel()


async def test_what_is_worked_on_stays() -> None:
    async with running(LIMITS) as (port, notes), AsyncExitStack() as stack:
        working = [
            await stack.enter_async_context(connected(port, "127.0.0.2")) for _ in range(OF_ONE)
        ]
        for client in working:
            await client.send(get("/wait"))
        await trio.sleep(2 * LIMITS.slow_seconds)
        assert not await is_served(port, "127.0.0.2")
        notes.go_on.set()
        for client in working:
            assert (await client.answer()).status == 200
        assert await is_served(port, "127.0.0.2"), "those are idle now"


@pytest.mark.parametrize("moved", ["in", "out"])
async def test_what_moves_bytes_gets_on(moved: str) -> None:
    """The last to do so is the last to go, however long it is there."""
    limits = HttpLimits(per_address_max=2, graceful_seconds=0)
    request = get("/endless") if moved == "out" else SLOW["body"][0]
    async with (
        running(limits) as (port, _),
        connected(port, "127.0.0.2") as moving,
        connected(port, "127.0.0.2") as still,
    ):
        await moving.send(request)
        await still.send(SLOW["body"][0])
        await trio.testing.wait_all_tasks_blocked(0.05)
        if moved == "in":
            await moving.send(bytes(2 * PROGRESS_BYTES))
        else:
            await moving.exactly(64 * PROGRESS_BYTES)
        await trio.sleep(2 * limits.slow_seconds)
        assert await is_served(port, "127.0.0.2")
        assert not is_open(still)
        assert is_open(moving)


async def test_one_too_many_is_refused_with_the_reason() -> None:
    async with running(LIMITS) as (port, _), AsyncExitStack() as stack:
        for _ in range(OF_ONE):
            client = await stack.enter_async_context(connected(port, "127.0.0.2"))
            await client.send(get("/wait"))
        async with connected(port, "127.0.0.2") as refused:
            answer = await refused.answer()
            assert answer.status == 429
            assert "too many connections" in answer.error
            assert await refused.rest() == b""


async def test_behind_a_proxy_the_slots_are_the_clients() -> None:
    proxies = Proxies(["127.0.0.9"])
    limits = HttpLimits(per_address_max=2, graceful_seconds=0)
    async with running(limits, proxies=proxies) as (port, notes), AsyncExitStack() as stack:

        async def connect(address: str = "127.0.0.9") -> Client:
            return await stack.enter_async_context(connected(port, address))

        def of(client: str, path: str = "/hello") -> bytes:
            return get(path, f"X-Forwarded-For: {client}")

        # A proxy may have many, and hand its clients' requests to any of them.
        pool = [await connect() for _ in range(6)]
        for client in pool:
            assert (await client.ask(of("192.0.2.1"))).status == 200
        for client in pool[:2]:
            await client.send(of("192.0.2.1", "/wait"))
        await notes.entered.wait()
        assert (await pool[2].ask(of("192.0.2.2"))).status == 200
        assert (await pool[3].ask(of("192.0.2.1"))).status == 429
        assert (await pool[4].ask(of("192.0.2.1, 127.0.0.9"))).status == 429
        # Who is no proxy has those of his own address, whatever he says.
        other = await connect("127.0.0.3")
        assert (await other.ask(of("192.0.2.1"))).status == 200
        notes.go_on.set()
        for client in pool[:2]:
            assert (await client.answer()).status == 200
        assert (await pool[5].ask(of("192.0.2.1"))).status == 200


@dataclass(eq=False)
class Held:
    """A connection, and what a simple model knows of it."""

    address: str
    since: float
    held_by_client: bool
    idle: bool = False


def goes(among: list[Held], now: float) -> Held | None:
    """Who does so of these, the one without progress for the longest first."""
    idle = [one for one in among if one.idle]
    slow = [one for one in among if one.held_by_client and one.since <= now - 4.0]
    return next(iter([*idle, *slow]), None)


@pytest.mark.parametrize(
    ("addresses", "each", "is_room"),
    [(4, 256, True), (64, 16, False), (1024, 1, False), (32, 32, True)],
)
def test_where_all_get_on_who_has_more_than_a_share_makes_room(
    addresses: int, each: int, is_room: bool
) -> None:
    slots: Slots[Held] = Slots(1024, 256, slow_seconds=5)
    for number in range(addresses * each):
        one = Held(f"{number % addresses}", since=100.0, held_by_client=True)
        slots.take(one, one.address, one.since)
    assert slots.all_taken
    assert (slots.slowest_of_all(now=101.0) is not None) == is_room


def test_who_has_more_than_a_share_makes_room_before_a_silent_one_of_somebody_else() -> None:
    """Otherwise a few addresses that move just enough would end all that others only keep."""
    slots: Slots[Held] = Slots(40, 30, slow_seconds=5)
    kept = Held("kept", 0.0, held_by_client=True)
    slots.take(kept, "kept", 0.0)
    for number in range(39):
        slots.take(Held(f"{number % 2}", 100.0, held_by_client=True), f"{number % 2}", 100.0)
    first = slots.slowest_of_all(now=101.0)
    assert first is not None
    assert first.address == "0"
    slots.note_progress(kept, 101.0, idle=True)
    assert slots.slowest_of_all(now=101.0) is kept, "an idle one harms nobody"


def test_two_addresses_with_as_many_do_not_end_each_others_again_and_again() -> None:
    slots: Slots[Held] = Slots(40, 30, slow_seconds=5, share_min=2)
    for number in range(40):
        slots.take(Held(f"{number % 2}", 100.0, held_by_client=True), f"{number % 2}", 100.0)
    for address in "01":
        assert slots.slowest_of_all(101.0, address) is None
        slowest = slots.slowest_of_all(105.0, address)
        assert slowest is not None
        assert slowest.address == address
    assert slots.slowest_of_all(101.0, "another") is not None


def test_an_address_makes_room_for_itself_so_often_and_no_more() -> None:
    slots: Slots[Held] = Slots(6, 2, slow_seconds=1, room_seconds=0.5)
    for _ in range(2):
        slots.take(Held("a", 0.0, held_by_client=True), "a", 0.0)
    for now, makes_room in ((9.0, True), (9.4, False), (9.5, True), (9.6, False)):
        try:
            slowest = slots.slowest_of("a", now)
        except LookupError:
            assert not makes_room
        else:
            assert makes_room
            assert slowest is not None
        assert slots.slowest_of("b", now) is None


def test_a_slow_one_is_not_looked_for_again_and_again() -> None:
    """All that are refused would wait for the search through those that work."""
    asked: list[Working] = []

    class Working:
        @property
        def held_by_client(self) -> bool:
            asked.append(self)
            return False

    slots: Slots[Working] = Slots(6, 2, slow_seconds=1, room_seconds=0.5)
    ones = [Working() for _ in range(2)]
    for one in ones:
        slots.take(one, "a", 0.0)
    for now in (9.0, 9.1, 9.2, 9.3, 9.5):
        with pytest.raises(LookupError):
            slots.slowest_of("a", now)
    assert len(asked) == 2 * 2
    slots.note_progress(ones[0], 9.6, idle=True)
    assert slots.slowest_of("a", 9.6) is ones[0]  # there is nothing to look for


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["connect", "connect", "get on", "end", "idle"]),
            st.sampled_from("aaab"),
            st.booleans(),
            st.integers(0, 9),
        ),
        max_size=60,
    )
)
def test_whoever_goes_is_the_slowest_of_its_address(
    steps: list[tuple[str, str, bool, int]],
) -> None:
    """Compared with a search through all of them."""
    slots: Slots[Held] = Slots(6, 3, 4.0)
    held: list[Held] = []
    now = 0.0
    for what, address, flag, number in steps:
        now += number / 2
        if what != "connect":
            if not held:
                continue
            one = held[number % len(held)]
            if what == "end":
                slots.give_back(one)
                held.remove(one)
            else:
                one.since, one.idle = now, what == "idle"
                held.remove(one)
                held.append(one)
                slots.note_progress(one, now, idle=one.idle)
            continue

        own = [one for one in held if one.address == address]
        if len(own) >= 3 and goes(own, now) is None:
            with pytest.raises(LookupError):
                slots.slowest_of(address, now)
            continue
        slowest = slots.slowest_of(address, now)
        assert slowest is (goes(own, now) if len(own) >= 3 else None)
        if slowest is None and slots.all_taken:
            slowest = slots.slowest_of_all(now)
            if slowest is None:
                assert goes(held, now) is None
                continue
            assert slowest.idle or not any(one.idle for one in held)
            assert slowest is goes([one for one in held if one.address == slowest.address], now)
        if slowest is not None:
            slots.give_back(slowest)
            held.remove(slowest)
        held.append(Held(address, now, flag))
        slots.take(held[-1], address, now)
        assert slots.all_taken == (len(held) >= 6)

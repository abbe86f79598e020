"""Handshake, bulk connections, calls and the server, over real and simulated wires.

Each scenario runs on loopback sockets and on the simulated network, unless it
waits for a deadline: that only in virtual time.
"""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from clocks import SLOW, run_slowly
from limits import HANG_SECONDS
from streams import expect

from gfs.errors import (
    DeadlineExceeded,
    DiskFull,
    GfsError,
    InvalidArgument,
    NotFound,
    ProtocolError,
    WrongCluster,
    WrongClusterKey,
)
from gfs.io import Listener, Stream, World, real_world
from gfs.protocol import handshake, rpc
from gfs.protocol.bulk import READ_AHEAD_BYTES, BulkConnection
from gfs.protocol.credentials import key_name
from gfs.protocol.frames import HEADER, encode_frame, encode_head
from gfs.protocol.handshake import HANDSHAKE_SECONDS, Identity
from gfs.protocol.links import Links
from gfs.protocol.messages import (
    MAGIC,
    PROTOCOL_NEWEST,
    PROTOCOL_OLDEST,
    Done,
    Election,
    Failure,
    Hello,
    HelloProof,
    List,
    Message,
    Multiplex,
    Packet,
    PacketAck,
    Ping,
    Publish,
    ReadReply,
    Stat,
    WriteSmall,
)
from gfs.protocol.outgoing import REPLY_BYTES_MAX, REQUEST_BYTES_MAX
from gfs.protocol.pool import IDLE_SECONDS, BulkPool
from gfs.protocol.rpc import Rpc
from gfs.protocol.server import serve
from gfs.testing import Universe, run_simulated

KEY = bytes(range(32))
MIB = 1 << 20


@dataclass
class Wire:
    """Two processes that can reach one another, and where the second listens."""

    client: World
    server: World
    address: str
    universe: Universe | None = None
    identity: Identity = field(default_factory=lambda: Identity("client", "me", KEY, "c1"))
    server_identity: Identity = field(default_factory=lambda: Identity("master", "m", KEY, "c1"))

    @contextlib.asynccontextmanager
    async def listener(self) -> AsyncIterator[Listener]:
        listener = await self.server.network.listen(self.address)
        try:
            yield listener
        finally:
            listener.close()

    @contextlib.asynccontextmanager
    async def streams(self) -> AsyncIterator[tuple[Stream, Stream]]:
        async with self.listener() as listener:
            near = await self.client.network.connect(listener.address)
            far = await listener.accept()
            try:
                yield near, far
            finally:
                near.close()
                far.close()

    @contextlib.asynccontextmanager
    async def bulk(self) -> AsyncIterator[tuple[BulkConnection, BulkConnection]]:
        async with self.streams() as (near, far):
            yield BulkConnection(near), BulkConnection(far)

    @contextlib.asynccontextmanager
    async def serving(
        self, handle: Callable[[BulkConnection], Awaitable[None]]
    ) -> AsyncIterator[str]:
        async with self.listener() as listener, trio.open_nursery() as nursery:
            nursery.start_soon(serve, self.server, listener, self.server_identity, handle)
            yield listener.address
            nursery.cancel_scope.cancel()

    async def connect(self, address: str) -> BulkConnection:
        return await handshake.connect(self.client, address, self.identity)


Scenario = Callable[[Wire], Awaitable[None]]


def on_a_simulated_wire(scenario: Scenario, seed: int = 1) -> None:
    async def main() -> None:
        universe = Universe(seed)
        client, server = (universe.machine(name).start_process().world for name in "cs")
        with trio.fail_after(HANG_SECONDS):
            await scenario(Wire(client, server, "s:1", universe))

    run_simulated(seed, main)


def on_a_real_wire(scenario: Scenario) -> None:
    async def main() -> None:
        with trio.fail_after(HANG_SECONDS * SLOW):
            await scenario(Wire(real_world(), real_world(), "127.0.0.1:0"))

    run_slowly(main)


def on(*wires: str) -> Callable[[Scenario], Callable[[str], None]]:
    """Makes a test of a scenario: on the real wire, or on one that is simulated."""

    def decorate(scenario: Scenario) -> Callable[[str], None]:
        @pytest.mark.parametrize("wire", wires)
        @functools.wraps(scenario, updated=())
        def test(wire: str) -> None:
            if wire == "real":
                on_a_real_wire(scenario)
            else:
                on_a_simulated_wire(scenario, int(wire.removeprefix("seed")))

        del test.__wrapped__  # type: ignore[attr-defined]
        return test

    return decorate


on_both_wires = on("real", *(f"seed{n}" for n in range(5)))
#: Of what waits for deadlines.
in_virtual_time = on("seed1")
#: With a task that never rests virtual time would stand still.
in_real_time = on("real")


async def until(condition: Callable[[], bool]) -> None:
    """Both kinds of wire need time to pass: a virtual clock only moves in a sleep."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.001)


async def read_all(stream: Stream) -> bytes:
    data, buffer = bytearray(), bytearray(65536)
    with contextlib.suppress(ConnectionError):
        while count := await stream.receive_into(memoryview(buffer)):
            data += buffer[:count]
    return bytes(data)


@on_both_wires
async def test_messages_and_bodies_of_all_sizes(wire: Wire) -> None:
    sizes = [0, 1, 100, READ_AHEAD_BYTES - 30, READ_AHEAD_BYTES, READ_AHEAD_BYTES + 1, 70_000, MIB]
    chance = random.Random(7)
    sizes += [chance.randint(0, 20_000) for _ in range(40)]
    bodies = [chance.randbytes(size) for size in sizes]

    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:

        async def send() -> None:
            for number, body in enumerate(bodies):
                await near.send(Packet(id=number, offset=0, last=False, sums=b"s" * 99), body)
            near.close()

        nursery.start_soon(send)
        for number, body in enumerate(bodies):
            message = await far.receive()
            assert (message.id, far.body_bytes) == (number, len(body))
            if number % 2:
                assert await far.read_body() == body
            else:
                got = bytearray(len(body))
                half = len(body) // 2
                await far.receive_body(memoryview(got)[:half])
                await far.receive_body(memoryview(got)[half:])
                assert got == body
            assert far.body_bytes == 0
        assert await far.receive_or_end() is None


@on_both_wires
async def test_heads_of_all_sizes(wire: Wire) -> None:
    chance = random.Random(8)
    paths = ["p" * chance.choice([1, 100, READ_AHEAD_BYTES - 20, 30_000]) for _ in range(60)]
    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(
            near.send_frames,
            b"".join(encode_frame(Stat(id=n, path=path)) for n, path in enumerate(paths)),
        )
        for number, path in enumerate(paths):
            assert await far.receive() == Stat(id=number, path=path)


@on_both_wires
async def test_a_file_as_a_body(wire: Wire) -> None:
    with tempfile.TemporaryDirectory() as directory:
        wire.server.files.make_directories(directory)
        content = random.Random(3).randbytes(3 * MIB)
        file = wire.server.files.open(f"{directory}/f", "create")
        file.write(content, 0)
        async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
            reply = ReadReply(id=1, offset=5, length=MIB, whole=True, sums=b"")
            nursery.start_soon(far.send_file, reply, file, 5, MIB)
            assert await near.receive_reply() == reply
            assert await near.read_body() == content[5 : MIB + 5]
        file.close()


@on_both_wires
async def test_a_failure_is_raised_and_the_connection_goes_on(wire: Wire) -> None:
    async with wire.bulk() as (near, far):
        await far.send(Failure(id=1, code="disk_full", message="no room", server="s3"))
        await far.send(Done(id=2))
        with pytest.raises(DiskFull, match="no room") as caught:
            await near.receive_reply()
        assert caught.value.server == "s3"  # type: ignore[attr-defined]
        assert await near.receive_reply() == Done(id=2)


@on_both_wires
async def test_bodies_must_be_taken_and_not_more(wire: Wire) -> None:
    async with wire.bulk() as (near, far):
        await near.send(Packet(id=1, offset=0, last=True, sums=b""), b"body")
        await far.receive()
        with pytest.raises(ProtocolError, match="4 bytes of the last body"):
            await far.receive()
        with pytest.raises(ProtocolError, match="a body of 4 bytes"):
            await far.receive_body(memoryview(bytearray(5)))
        assert await far.read_body() == b"body"


FRAME = encode_frame(Packet(id=1, offset=0, last=True, sums=b"sums"), b"body")


async def receive_frame(connection: BulkConnection) -> None:
    await connection.receive()
    await connection.read_body()


@pytest.mark.parametrize("cut", range(1, len(FRAME)))
def test_the_end_in_mid_frame(cut: int) -> None:
    async def scenario(wire: Wire) -> None:
        async with wire.bulk() as (near, far):
            await near.send_frames(FRAME[:cut])
            near.close()
            with pytest.raises(ConnectionError):
                await receive_frame(far)

    on_a_simulated_wire(scenario, cut)


@on_both_wires
async def test_an_oversize_frame_is_refused(wire: Wire) -> None:
    for lie in (
        HEADER.pack(2**31, 0),
        HEADER.pack(0, 0),
        encode_head(Ping(id=1), 1),
        encode_head(Packet(id=1, offset=0, last=True, sums=b""), MIB + 1),
        HEADER.pack(5, 0) + b"junk!",
    ):
        async with wire.bulk() as (near, far):
            await near.send_frames(lie)
            with pytest.raises(ProtocolError):
                await far.receive()


@on_both_wires
async def test_what_was_read_ahead_can_be_taken_over(wire: Wire) -> None:
    async with wire.bulk() as (near, far):
        await near.send_frames(encode_frame(Ping(id=1)) + b"and more")
        await far.receive()
        ahead = far.take_read_ahead()
        while len(ahead) < 8:
            buffer = bytearray(8)
            count = await far.stream.receive_into(memoryview(buffer))
            ahead += buffer[:count]
        assert ahead == b"and more"
        assert far.take_read_ahead() == b""


async def hold(connection: BulkConnection) -> None:
    """A handler that answers pings until the peer leaves."""
    while (message := await connection.receive_or_end()) is not None:
        await connection.read_body()
        await connection.send(Done(id=message.id))


@on_both_wires
async def test_both_sides_learn_who_the_other_is(wire: Wire) -> None:
    seen: list[tuple[str, str, str]] = []

    async def handle(connection: BulkConnection) -> None:
        seen.append((connection.peer_role, connection.peer_id, connection.peer_cluster))
        await hold(connection)

    wire.identity.cluster = ""
    async with wire.serving(handle) as address:
        connection = await wire.connect(address)
        await connection.send(Ping(id=5))
        assert await connection.receive_reply() == Done(id=5)
        assert (connection.peer_role, connection.peer_id) == ("master", "m")
        assert connection.peer_cluster == "c1"
        connection.close()
    assert seen == [("client", "me", "")]


@on_both_wires
async def test_another_key_and_another_cluster(wire: Wire) -> None:
    async with wire.serving(hold) as address:

        async def refused(kind: type[GfsError], identity: Identity) -> None:
            with pytest.raises(kind):
                await handshake.connect(wire.client, address, identity)

        await refused(WrongClusterKey, Identity("client", "me", bytes(32), "c1"))
        await refused(WrongCluster, Identity("client", "me", KEY, "c2"))
        (await wire.connect(address)).close()


@on_both_wires
async def test_a_stranger_learns_nothing_about_a_server(wire: Wire) -> None:
    """Who names no key of the cluster is told that, and not who the server is: its role, its id,
    its cluster, its term, the name of its key."""
    wire.server_identity = Identity("master", "the-id", KEY, "the-cluster", term=0x7E573D)
    known = [b"the-id", b"the-cluster", b"\x7e\x57\x3d", key_name(KEY), b"master", b"shadow"]
    async with wire.serving(hold) as address:
        for changes in (
            {"keys": []},
            {"keys": [b"unknown!"]},
            {"keys": [b"unknown!", key_name(bytes(32))]},
            {"keys": [key_name(KEY)[:-1], key_name(KEY) + b"x"]},
            {"keys": [], "cluster": "another-cluster"},
            {"keys": [b"unknown!"], "cluster": "another-cluster"},
            {"keys": [], "version": PROTOCOL_NEWEST + 1},
            {"keys": [], "role": "master", "term": 1},
            {"keys": [], "nonce": b""},
        ):
            peer = BulkConnection(await wire.client.network.connect(address))
            await peer.send(hello(**changes))
            answer = await read_all(peer.stream)
            peer.close()
            assert b"wrong_cluster_key" in answer or b"protocol" in answer, answer
            assert [each for each in known if each in answer] == [], changes
        # As a member it would have been answered.
        wire.identity.cluster = "the-cluster"
        (await wire.connect(address)).close()


@on_both_wires
async def test_a_connection_has_the_newest_version_that_both_sides_speak(wire: Wire) -> None:
    seen: list[int] = []

    async def note(connection: BulkConnection) -> None:
        seen.append(connection.version)

    async with wire.serving(note) as address:
        connection = await wire.connect(address)
        await read_all(connection.stream)
        connection.close()
        assert (connection.version, seen) == (PROTOCOL_NEWEST, [PROTOCOL_NEWEST])

        for oldest, newest, common in (
            (1, 0, 1),  # release 0.1, which sends no newest
            (1, 1, 1),
            (PROTOCOL_NEWEST, PROTOCOL_NEWEST + 1, PROTOCOL_NEWEST),
            (PROTOCOL_OLDEST, PROTOCOL_NEWEST + 7, PROTOCOL_NEWEST),
            (PROTOCOL_NEWEST + 1, PROTOCOL_NEWEST + 2, None),
            (PROTOCOL_NEWEST + 1, 0, None),
            (0, 0, None),
        ):
            seen.clear()
            ours = hello(version=oldest, newest=newest)
            if common is None:
                with pytest.raises(ProtocolError, match="upgrade the older one"):
                    await greeted(wire, address, ours)
                continue
            peer, theirs = await greeted(wire, address, ours)
            if not newest:
                # What release 0.1 asks for, and what it reads.
                assert theirs.version == 1
                theirs.newest = 0
            await peer.send(proof_of(ours, theirs))
            await read_all(peer.stream)
            assert seen == [common]
            peer.close()


@on_both_wires
async def test_a_server_of_release_0_1_is_understood_and_one_of_the_far_future_is_not(
    wire: Wire,
) -> None:
    async with wire.listener() as listener, trio.open_nursery() as nursery:

        async def answer(version: int, newest: int) -> None:
            connection = BulkConnection(await listener.accept())
            asked = await connection.receive()
            ours = hello(role="master", version=version, newest=newest)
            if not newest:
                asked.newest = 0
            ours.proof = handshake._proof(KEY, b"acceptor", asked, ours)
            await connection.send(ours)
            await read_all(connection.stream)
            connection.close()

        nursery.start_soon(answer, 1, 0)
        connection = await wire.connect(listener.address)
        assert connection.version == 1
        connection.close()
        nursery.start_soon(answer, PROTOCOL_NEWEST + 1, PROTOCOL_NEWEST + 2)
        with pytest.raises(ProtocolError, match="upgrade the older one, release by release"):
            await wire.connect(listener.address)


@on_both_wires
async def test_a_peer_is_not_sent_what_came_after_its_release(wire: Wire) -> None:
    async with wire.bulk() as (near, _):
        near.version = 1
        rpc = Rpc(near)
        with pytest.raises(ProtocolError, match=r"older release.* Election: upgrade it first"):
            await rpc.call(Election(id=0))
        assert not rpc.closed


@on_both_wires
async def test_the_versions_of_a_handshake_are_proved(wire: Wire) -> None:
    """Nobody in between changes the version that one side sees. Who makes both sides look as if
    they were of release 0.1, which proves none, is not noticed: only TLS keeps him out, as from
    all that follows the handshake."""
    async with wire.serving(hold) as address:
        peer, theirs = await greeted(wire, address, hello(newest=1))
        await peer.send(proof_of(hello(newest=PROTOCOL_NEWEST), theirs))
        with pytest.raises(WrongClusterKey):
            await peer.receive_reply()
        peer.close()


@on_both_wires
async def test_a_server_without_the_key_is_found_out(wire: Wire) -> None:
    wire.server_identity.key = bytes(32)
    async with wire.serving(hold) as address:
        with pytest.raises(WrongClusterKey, match=r"cluster\.key"):
            await wire.connect(address)


@on_both_wires
async def test_a_server_that_only_names_the_key_is_found_out(wire: Wire) -> None:
    async with wire.listener() as listener, trio.open_nursery() as nursery:

        async def answer() -> None:
            connection = BulkConnection(await listener.accept())
            asked = await connection.receive()
            assert isinstance(asked, Hello)
            ours = hello(role="master", keys=asked.keys)
            ours.proof = handshake._proof(bytes(32), b"acceptor", asked, ours)
            await connection.send(ours)
            assert await read_all(connection.stream) == b"", "the connector proves nothing to it"
            connection.close()

        nursery.start_soon(answer)
        with pytest.raises(WrongClusterKey, match=r"cluster\.key"):
            await wire.connect(listener.address)


async def greeted(wire: Wire, address: str, ours: Hello) -> tuple[BulkConnection, Hello]:
    """A connection to a server that has answered this hello."""
    peer = BulkConnection(await wire.client.network.connect(address))
    try:
        await peer.send(ours)
        theirs = await peer.receive_reply()
    except GfsError:
        peer.close()
        raise
    return peer, theirs


def proof_of(ours: Hello, theirs: Hello) -> HelloProof:
    return HelloProof(id=0, proof=handshake._proof(KEY, b"connector", ours, theirs))


def hello(**changes: object) -> Hello:
    fields = {
        "id": 0, "magic": MAGIC, "version": PROTOCOL_OLDEST, "role": "client",
        "peer": "evil", "cluster": "", "nonce": b"n" * 16, "keys": [key_name(KEY)],
    }  # fmt: skip
    return Hello(**{**fields, **changes})  # type: ignore[arg-type]


@on_both_wires
async def test_a_proof_is_good_once_and_for_one_side(wire: Wire) -> None:
    """A listener's copy of an earlier handshake opens nothing, nor does a mirror."""
    async with wire.serving(hold) as address:
        first, theirs = await greeted(wire, address, hello())
        proof = proof_of(hello(), theirs).proof
        await first.send(HelloProof(id=0, proof=proof))
        await first.send(Ping(id=1))
        assert await first.receive_reply() == Done(id=1)
        first.close()

        for replayed in (proof, theirs.proof, b"", proof[:31], proof + b"\0", None):
            again, mirrored = await greeted(wire, address, hello())
            said = mirrored.proof if replayed is None else replayed
            await again.send(HelloProof(id=0, proof=said))
            with pytest.raises(WrongClusterKey):
                await again.receive_reply()
            again.close()


@pytest.mark.parametrize(
    "change",
    [{"magic": "http"}, {"nonce": b""}, {"nonce": b"n" * 17}, {"version": 0}, {"cluster": "c9"}],
    ids=str,
)
def test_a_hello_that_is_wrong_is_refused_with_the_reason(change: dict[str, object]) -> None:
    async def scenario(wire: Wire) -> None:
        async with wire.serving(hold) as address:
            with pytest.raises((ProtocolError, WrongCluster)):
                await greeted(wire, address, hello(**change))

    on_a_simulated_wire(scenario)


@in_virtual_time
async def test_silence_in_the_handshake_ends_it(wire: Wire) -> None:
    """On both sides, at every point of it."""
    async with wire.listener() as listener:
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="no hello"):
            await wire.connect(listener.address)
        assert trio.current_time() - start == pytest.approx(HANDSHAKE_SECONDS, abs=0.1)
    async with wire.serving(hold) as address:
        for said in (b"", encode_frame(hello())[:20], encode_frame(hello())):
            stream = await wire.client.network.connect(address)
            await stream.send_all(said)
            start = trio.current_time()
            await read_all(stream)
            assert trio.current_time() - start == pytest.approx(HANDSHAKE_SECONDS, abs=0.1)
            stream.close()


@in_virtual_time
async def test_a_machine_that_vanished_is_given_up(wire: Wire) -> None:
    async with wire.serving(hold) as address:
        wire.universe.network.partition(["c"], ["s"])
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="connection to s:1"):
            await wire.connect(address)
        assert trio.current_time() - start == pytest.approx(handshake.CONNECT_SECONDS)
        assert not wire.universe.network.streams


@contextlib.asynccontextmanager
async def rpc_pair(
    wire: Wire, handler: rpc.Handler, near_handler: rpc.Handler = rpc.refuse_all
) -> AsyncIterator[tuple[Rpc, Rpc]]:
    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        caller, server = Rpc(near, near_handler), Rpc(far, handler)
        nursery.start_soon(caller.run)
        nursery.start_soon(server.run)
        yield caller, server
        nursery.cancel_scope.cancel()


def echo(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
    for message, body in batch:
        server.send(PacketAck(id=message.id, length=len(body)))


@on_both_wires
async def test_many_calls_in_flight_each_get_their_own_answer(wire: Wire) -> None:
    waiting: list[tuple[int, int]] = []
    chance = random.Random(5)

    def out_of_order(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        for message, body in batch:
            waiting.append((message.id, len(body)))
        chance.shuffle(waiting)
        while len(waiting) > 50 or (waiting and answered + len(waiting) == 2000):
            answer(server)

    answered = 0

    def answer(server: Rpc) -> None:
        nonlocal answered
        answered += 1
        request_id, length = waiting.pop()
        server.send(PacketAck(id=request_id, length=length))

    async def call(caller: Rpc, number: int) -> None:
        message = Packet(id=0, offset=0, last=True, sums=b"")
        reply, _ = await caller.call(message, bytes(number), seconds=60)
        assert reply.length == number

    async with rpc_pair(wire, out_of_order) as (caller, _), trio.open_nursery() as nursery:
        for number in range(2000):
            nursery.start_soon(call, caller, number)


@on_both_wires
async def test_what_is_sent_together_waits_for_no_other_task(wire: Wire) -> None:
    """Requests, and the answers to a batch: the writer is there for what a peer takes later."""

    class Steps(trio.abc.Instrument):
        count = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += task.name.endswith("Rpc._write")

    async with rpc_pair(wire, echo) as (caller, _):
        await caller.call(Ping(id=0))
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(50):
            calls = await caller.start([(Ping(id=0), b"")] * 3)
            assert all(isinstance(reply, tuple) for reply in await calls.replies())
        trio.lowlevel.remove_instrument(steps)
    # The simulated network sometimes takes a part only.
    assert steps.count < 20


@on_both_wires
async def test_large_bodies_both_ways(wire: Wire) -> None:
    """Requests above every buffer in both directions at once: nobody may wait for
    the other to read first. One side's answers are as large."""
    size = 12 * MIB

    def mirror(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        for message, body in batch:
            server.send(ReadReply(id=message.id, offset=0, length=0, whole=True, sums=b""), body)

    async def call(caller: Rpc, mirrored: bool) -> None:
        body = random.Random(1).randbytes(size)
        publish = Publish(
            id=0, client="", sequence=0, path="", length=0, replication=1,
            replace=False, parents=False, servers=[],
        )  # fmt: skip
        reply, back = await caller.call(publish, body, seconds=60)
        assert back == body if mirrored else reply == PacketAck(id=publish.id, length=size)

    async with rpc_pair(wire, mirror, echo) as (one, other), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call, one, True)
            nursery.start_soon(call, other, False)


@on_both_wires
async def test_errors_come_back_as_what_they_were(wire: Wire) -> None:
    def fail(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        for message, _ in batch:
            server.send_error(message.id, NotFound("no such file"))

    async with rpc_pair(wire, fail) as (caller, server):
        with pytest.raises(NotFound, match="no such file"):
            await caller.call(Stat(id=0, path="/x"))
        with pytest.raises(ProtocolError, match="Ping is not served here"):
            await server.call(Ping(id=0))


@on_both_wires
async def test_a_cancelled_call_harms_no_other(wire: Wire) -> None:
    asked: list[int] = []

    def slow(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        for message, _ in batch:
            asked.append(message.id)
            if len(asked) == 3:
                for request_id in asked:
                    server.send(Done(id=request_id))

    async with rpc_pair(wire, slow) as (caller, _):
        async with trio.open_nursery() as doomed:
            doomed.start_soon(caller.call, Ping(id=0))
            await until(lambda: bool(asked))
            doomed.cancel_scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            await caller.call(Ping(id=0))  # not even sent
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.call, Ping(id=0))
            nursery.start_soon(caller.call, Ping(id=0))
        assert len(asked) == 3
        assert not caller._calls


@in_virtual_time
async def test_a_call_without_an_answer_ends_at_its_deadline(wire: Wire) -> None:
    async with rpc_pair(wire, lambda _, __: None) as (caller, _):
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded, match=r"no answer from s:1 to Ping within 2.5 s"):
            await caller.call(Ping(id=0), seconds=2.5)
        assert trio.current_time() - start == pytest.approx(2.5)
        assert not caller._calls


@in_virtual_time
async def test_a_connection_wakes_nobody_while_no_call_waits(wire: Wire) -> None:
    class Turns(trio.abc.Instrument):
        count = 0

        def before_io_wait(self, timeout: float) -> None:
            self.count += 1

    def answer_pings(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        echo(server, [each for each in batch if isinstance(each[0], Ping)])

    instrument = Turns()
    async with rpc_pair(wire, answer_pings) as (caller, _):
        for _ in range(2):
            await caller.call(Ping(id=0))
            await trio.sleep(1)
            trio.lowlevel.add_instrument(instrument)
            await trio.sleep(60)
            trio.lowlevel.remove_instrument(instrument)
        assert instrument.count < 10
        # And again as soon as one does.
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await caller.call(Stat(id=0, path="/"), seconds=2.5)
        assert trio.current_time() - start == pytest.approx(2.5, abs=rpc.SWEEP_SECONDS)


@on_both_wires
async def test_calls_that_wait_when_the_connection_ends_fail_at_once(wire: Wire) -> None:
    def silent(_: Rpc, __: object) -> None:
        pass

    async with rpc_pair(wire, silent, silent) as (caller, server):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(expect, ConnectionError, caller.call, Ping(id=0))
            nursery.start_soon(expect, ConnectionError, server.call, Ping(id=0))
            await until(lambda: len(caller._calls) == 10 and bool(server._calls))
            server.close()
        with pytest.raises(ConnectionError):
            await caller.call(Ping(id=0))
        for _ in range(3):
            server.send(Ping(id=0), b"")
        assert not server.outgoing.pieces


@on_both_wires
async def test_a_peer_that_breaks_the_protocol_is_cut_off(wire: Wire) -> None:
    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        caller = Rpc(near)
        nursery.start_soon(caller.run)
        nursery.start_soon(expect, ConnectionError, caller.call, Ping(id=0))
        await far.receive()
        await far.send_frames(b"\xff" * 100)
        assert await read_all(far.stream) == b""
        assert caller.closed


@on_both_wires
async def test_answers_nobody_waits_for_are_no_error(wire: Wire) -> None:
    async with rpc_pair(wire, echo) as (caller, server):
        server.send(Done(id=12345))
        server.send(Failure(id=54321, code="busy", message=""))
        await caller.call(Ping(id=0))


@on_both_wires
async def test_callers_queue_above_the_bound(wire: Wire) -> None:
    most = 0

    def count(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        nonlocal most
        most = max(most, len(caller._calls))
        echo(server, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rpc, "CALLS_MAX", 7)
        async with rpc_pair(wire, count) as (caller, server):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(call_and_perhaps_give_up, caller, number)
            assert most <= 7
            assert not caller._calls
            server._handler = lambda _, __: None
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(expect, ConnectionError, caller.call, Ping(id=0))
                await until(lambda: len(caller._calls) == 7)
                caller.close()


@in_virtual_time
async def test_requests_that_are_sent_together_have_their_replies_in_order(wire: Wire) -> None:
    batches: list[int] = []

    def last_first(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        batches.append(len(batch))
        for message, body in reversed(batch):
            if body == b"refuse":
                server.send_error(message.id, InvalidArgument("refused"))
            elif body != b"ignore":
                server.send(ReadReply(message.id, 0, len(body), True, b""), body)

    bodies = [b"a", b"refuse", b"", b"ignore", b"z"]
    async with rpc_pair(wire, last_first) as (caller, _):
        calls = await caller.start([(WriteSmall(0, 1, 1, b"", []), body) for body in bodies], 0.3)
        replies = await calls.replies()
        assert batches == [len(bodies)]
        kinds = [type(reply) if isinstance(reply, Exception) else reply[1] for reply in replies]
        assert kinds == [b"a", InvalidArgument, b"", DeadlineExceeded, b"z"]
        assert not caller._calls
        calls = await caller.start([(WriteSmall(0, 1, 1, b"", []), b"ignore")] * 3)
        with trio.move_on_after(0.01):
            await calls.replies()
        assert not caller._calls, "who gave up is waited for"
        calls = await caller.start([(Ping(id=0), b"")] * 3)
        caller.close()
        assert [type(reply) for reply in await calls.replies()] == [ConnectionResetError] * 3
        with pytest.raises(ConnectionError):
            await caller.start([(Ping(id=0), b"")])


@in_virtual_time
async def test_requests_to_a_peer_that_does_not_read_are_bounded(wire: Wire) -> None:
    """Those that were given up are in the queue all the same. Who comes then waits for room, and
    gives up when its own time is over; the peer has read again: all go."""
    body = bytes(64 * 1024)
    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        caller = Rpc(near)
        nursery.start_soon(caller.run)
        refused = 0
        for _ in range(300):
            try:
                calls = await caller.start([(WriteSmall(0, 1, 1, b"", []), body)], 0.2)
            except DeadlineExceeded:
                refused += 1
            else:
                calls.drop()
        assert refused
        assert sum(map(len, caller.outgoing.pieces)) < REQUEST_BYTES_MAX + 2 * len(body)
        nursery.start_soon(Rpc(far, echo).run)
        await caller.call(Ping(id=0))
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_a_peer_that_sends_nothing_for_long_is_left(wire: Wire) -> None:
    """Also if those that call it never wait for long; one that answers some calls is not."""
    answers = 0

    def at_times(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        nonlocal answers
        answers += 1
        if answers < 20 and not answers % 5:
            echo(server, batch)

    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        caller = Rpc(near, silent_seconds=5)
        nursery.start_soon(caller.run)
        nursery.start_soon(Rpc(far, at_times).run)
        await trio.sleep(60)  # idle is not silent
        began = trio.current_time()
        while not caller.closed:
            with suppress(DeadlineExceeded, ConnectionResetError):
                await caller.call(Ping(id=0), seconds=0.7)
        assert answers > 20
        # Twelve calls in vain, three answers, and five seconds.
        assert 13 < trio.current_time() - began < 18
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_a_peer_that_takes_long_is_asked_whether_it_is_there(wire: Wire) -> None:
    """It is waited for as long as it says so, and is asked only while somebody waits for long."""
    asked: list[float] = []

    def slow(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        for message, _ in batch:
            if isinstance(message, Ping):
                asked.append(trio.current_time())
                if len(asked) <= 10:
                    server.send(Done(id=message.id))
            elif isinstance(message, Stat):
                server.send(Done(id=message.id))

    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        caller = Rpc(near, silent_seconds=3, probe=lambda: Ping(id=0))
        nursery.start_soon(caller.run)
        nursery.start_soon(Rpc(far, slow).run)
        await trio.sleep(60)
        for _ in range(100):
            await caller.call(Stat(id=0, path="/"))
            await trio.sleep(0.1)
        assert not asked
        began = trio.current_time()
        with pytest.raises(ConnectionResetError, match="has sent nothing for 3 s"):
            await caller.call(Election(id=0), seconds=60)
        # Ten answers in as many seconds or little more, and three seconds after the next question.
        assert 13 < trio.current_time() - began < 18
        assert caller.was_silent
        nursery.cancel_scope.cancel()


@on_both_wires
async def test_a_reader_is_given_so_many_requests_at_a_time(wire: Wire) -> None:
    """So answers are bounded within what one receive brought, too."""
    batches: list[int] = []

    def note(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        batches.append(len(batch))
        echo(server, batch)

    async with rpc_pair(wire, note) as (caller, _):
        await (await caller.start([(Ping(id=0), b"")] * 1000)).replies()
    assert sum(batches) == 1000
    assert max(batches) <= rpc.BATCH_MAX


@in_virtual_time
async def test_who_waits_for_a_link_shares_its_error(wire: Wire) -> None:
    """They do not queue up for an attempt of their own, each after the other's."""
    links = Links(wire.client, wire.identity)
    failed = 0

    async def call() -> None:
        nonlocal failed
        with pytest.raises((ConnectionError, DeadlineExceeded)):
            await links.call(address, Ping(id=0), b"", 5)
        failed += 1

    async def hang(connection: BulkConnection) -> None:
        raise AssertionError("nobody gets here")

    async with wire.serving(hang) as address:
        wire.universe.network.block("c", "s")
        async with trio.open_nursery() as nursery:
            await nursery.start(links.run)
            began = trio.current_time()
            async with trio.open_nursery() as callers:
                for _ in range(20):
                    callers.start_soon(call)
            assert failed == 20
            assert trio.current_time() - began < 3
            nursery.cancel_scope.cancel()


@on_both_wires
async def test_links_are_made_once_and_again(wire: Wire) -> None:
    """Many callers share one connection; who comes after its end gets another."""
    served: list[BulkConnection] = []

    async def serve_one(connection: BulkConnection) -> None:
        assert isinstance(await connection.receive(), Multiplex)
        served.append(connection)
        await Rpc(connection, echo).run()

    async with wire.serving(serve_one) as address, trio.open_nursery() as nursery:
        links = Links(wire.client, wire.identity)
        await nursery.start(links.run)
        found: list[Rpc] = []

        async def get() -> None:
            found.append(await links.get(address, 5))

        async with trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(get)
        assert set(found) == {found[0]}
        await found[0].call(Ping(id=0))
        assert len(served) == 1
        served[0].close()
        await until(lambda: found[0].closed)
        await links.call(address, Ping(id=0), b"", 5)
        assert len(served) == 2
        nursery.cancel_scope.cancel()


async def call_and_perhaps_give_up(caller: Rpc, number: int) -> None:
    with trio.move_on_after(1000 if number % 5 else 0.0002):
        await caller.call(Ping(id=0), seconds=900)


@in_virtual_time
async def test_a_peer_that_does_not_read_is_not_read_from(wire: Wire) -> None:
    """Its answers are bounded: no more requests are taken than fit."""
    served = 0

    def big_answers(server: Rpc, batch: list[tuple[Message, bytes]]) -> None:
        nonlocal served
        served += len(batch)
        for message, _ in batch:
            reply = ReadReply(id=message.id, offset=0, length=0, whole=True, sums=b"")
            server.send(reply, bytes(MIB))

    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        server = Rpc(far, big_answers)
        nursery.start_soon(server.run)
        with trio.move_on_after(10):
            for number in range(1_000_000):
                await near.send(List(id=number, path="p" * 4000, after="", limit=1))
        assert server.outgoing.reply_bytes <= REPLY_BYTES_MAX + 80 * MIB  # one batch above
        settled = served
        await trio.sleep(10)
        assert served == settled < 300
        nursery.cancel_scope.cancel()


@in_real_time
async def test_one_busy_peer_lets_the_others_run(wire: Wire) -> None:
    async with wire.bulk() as (near, far), trio.open_nursery() as nursery:
        seen = 0
        turns = yields = unyielded = 0

        def note(_: Rpc, batch: list[tuple[Message, bytes]]) -> None:
            nonlocal seen, yields, unyielded
            seen += len(batch)
            unyielded += len(batch)
            if unyielded >= rpc.REQUESTS_PER_YIELD:
                yields, unyielded = yields + 1, 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        frames = b"".join(encode_frame(Ping(id=n)) for n in range(100_000))
        nursery.start_soon(Rpc(far, note).run)
        nursery.start_soon(other)
        await near.send_frames(frames)
        await until(lambda: seen == 100_000)
        nursery.cancel_scope.cancel()
        assert yields >= 4
        # The last yield may be seen before the other task has had its turn.
        assert turns >= yields - 1


@on_both_wires
async def test_calls_both_ways_and_frames_read_ahead(wire: Wire) -> None:
    """What followed the handshake in the same receive is not lost."""
    async with wire.streams() as (near, far):
        connection = BulkConnection(far)
        await near.send_all(encode_frame(Ping(id=1)) + encode_frame(Ping(id=2)))
        await connection.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Rpc(connection, echo).run)
            answer = BulkConnection(near)
            assert await answer.receive() == PacketAck(id=2, length=0)
            nursery.cancel_scope.cancel()


async def hostile_peers(wire: Wire, address: str, chance: random.Random) -> None:
    """Everything a port on the network meets. Each costs one connection."""

    async def say(*pieces: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            stream = await wire.client.network.connect(address)
            try:
                for piece in pieces:
                    await stream.send_all(piece)
                await read_all(stream)
            finally:
                stream.close()

    async def hang_up() -> None:
        (await wire.client.network.connect(address)).close()

    async def try_key() -> None:
        stranger = Identity("client", "x", chance.randbytes(32), "c1")
        with pytest.raises(WrongClusterKey):
            await handshake.connect(wire.client, address, stranger)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            # A few bytes and then silence: not where the deadline takes real time.
            start = b"" if wire.universe else b"\xff" * 8
            nursery.start_soon(say, start + chance.randbytes(chance.randint(1, 300)))
            nursery.start_soon(hang_up)
            nursery.start_soon(try_key)
        nursery.start_soon(say, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        nursery.start_soon(say, HEADER.pack(2**32 - 1, 2**32 - 1))
        nursery.start_soon(say, encode_head(hello(), 2**32 - 1))
        nursery.start_soon(say, encode_frame(hello()), encode_frame(hello()))
        nursery.start_soon(say, encode_frame(hello()), encode_frame(HelloProof(id=0, proof=b"")))
        nursery.start_soon(say, encode_frame(Failure(id=0, code="disk_full", message="lies")))
        nursery.start_soon(say, encode_frame(Ping(id=1)))


@on_both_wires
async def test_hostile_peers_cost_one_connection_each(wire: Wire) -> None:
    async with wire.serving(hold) as address:
        good = await wire.connect(address)
        await hostile_peers(wire, address, random.Random(4))
        await good.send(Ping(id=1))
        assert await good.receive_reply() == Done(id=1)
        good.close()
        (await wire.connect(address)).close()


@in_virtual_time
async def test_stalled_peers_do_not_hold_others_up(wire: Wire) -> None:
    async with wire.serving(hold) as address:
        stalled = []
        for _ in range(100):
            stream = await wire.client.network.connect(address)
            await stream.send_all(encode_frame(hello())[:9])
            stalled.append(stream)
        start = trio.current_time()
        good = await wire.connect(address)
        await good.send(Ping(id=1))
        await good.receive_reply()
        assert trio.current_time() - start < 0.1
        await trio.sleep(HANDSHAKE_SECONDS + 1)
        assert len(wire.universe.network.streams) == 2 + len(stalled)  # only their own ends
        for stream in stalled:
            stream.close()
        good.close()


@on_both_wires
async def test_a_handlers_error_ends_its_connection_only(wire: Wire) -> None:
    async def fail(connection: BulkConnection) -> None:
        message = await connection.receive()
        if message.id == 1:
            raise NotFound("no")
        if message.id == 2:
            raise BrokenPipeError
        await connection.send(Done(id=message.id))

    async with wire.serving(fail) as address:
        for number in (1, 2, 3):
            connection = await wire.connect(address)
            await connection.send(Ping(id=number))
            if number == 3:
                assert await connection.receive_reply() == Done(id=3)
            with pytest.raises(ConnectionError):
                await connection.receive()
            connection.close()


@on_both_wires
async def test_a_cancelled_server_closes_what_it_serves(wire: Wire) -> None:
    async with wire.serving(hold) as address:
        connection = await wire.connect(address)
        await connection.send(Ping(id=1))
        await connection.receive_reply()
    with pytest.raises(ConnectionError):
        await connection.receive()
    connection.close()


@on_both_wires
async def test_a_pooled_connection_is_used_again_unless_it_ended(wire: Wire) -> None:
    served: list[BulkConnection] = []

    async def handle(connection: BulkConnection) -> None:
        served.append(connection)
        await hold(connection)

    async with wire.serving(handle) as address:
        pool = BulkPool(wire.client, wire.identity)
        first = await pool.acquire(address)
        await first.send(Ping(id=1))
        await first.receive_reply()
        pool.release(first, address)
        assert await pool.acquire(address) is first
        pool.release(first, address)
        served[0].close()
        await until(first.stream.ended)
        second = await pool.acquire(address)
        assert second is not first
        assert first.closed
        pool.release(second, address)
        pool.close()
        assert second.closed
        third = await pool.acquire(address)
        pool.release(third, address)
        assert third.closed


@in_virtual_time
async def test_a_connection_that_idled_long_is_not_used(wire: Wire) -> None:
    async with wire.serving(hold) as address:
        pool = BulkPool(wire.client, wire.identity)
        first = await pool.acquire(address)
        pool.release(first, address)
        await trio.sleep(IDLE_SECONDS + 1)
        second = await pool.acquire(address)
        assert second is not first
        assert first.closed
        second.close()

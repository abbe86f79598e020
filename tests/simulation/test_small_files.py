"""Small files: one message each, many at once; and what is left of them when it fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import product
from random import Random
from typing import Any

import pytest
import trio

from gfs.blocks import BLOCK_BYTES, block_sum
from gfs.chunkserver.exchanges import Appends, small
from gfs.chunkserver.exchanges.small import READS_MAX, SmallRequests
from gfs.chunkserver.files import ChunkFile
from gfs.chunkserver.packs import DATA_NAME, PackedFile
from gfs.chunkserver.upkeep import Scrubber
from gfs.client import Client, Entry
from gfs.client import small as client_small
from gfs.client.core import ClientCore
from gfs.client.master import MasterClient
from gfs.client.rounds import LATE_SECONDS, UNDER_WAY_MAX
from gfs.config import ChunkserverSettings, ClientSettings
from gfs.errors import (
    AlreadyExists,
    Busy,
    ChunkUnavailable,
    CorruptReplica,
    DirectoryNotEmpty,
    DiskFull,
    FileChanged,
    GfsError,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    MasterUnavailable,
    NotFound,
    ProtocolError,
    StaleVersion,
)
from gfs.master.master import Master
from gfs.master.metadata import Store, Txn
from gfs.master.service import uploads
from gfs.master.tables import ReservationTable
from gfs.protocol import handshake
from gfs.protocol.bulk import BulkConnection
from gfs.protocol.frames import encode_frame
from gfs.protocol.messages import (
    AppendRecords,
    Message,
    Multiplex,
    ReadChunk,
    Reserve,
    ReserveReply,
    ServerAddress,
    Stat,
    VerifyChunk,
    WriteSmall,
)
from gfs.protocol.outgoing import REPLY_BYTES_MAX
from gfs.protocol.patience import SMALL_DISK_SECONDS, SMALL_STEP_SECONDS
from gfs.protocol.rpc import Reply, Rpc
from gfs.testing import SimCluster
from gfs.testing.inode import Hang

from .packs import packed_of, stored
from .promises import assert_sound, content, noted, replicas, settled, wait_for_goal, wait_settled
from .seeds import over_seeds

Asked = tuple[Message, bytes]

LENGTHS = [0, 1, 100, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 300_000]


def some_files(chance: Random, count: int, folder: str = "/f") -> dict[str, bytes]:
    return {f"{folder}/{n}": content(chance, LENGTHS[n % len(LENGTHS)]) for n in range(count)}


async def check(fs: Client, files: dict[str, bytes]) -> None:
    assert await fs.get_many(files) == list(files.values())
    for path, data in files.items():
        assert await fs.get(path) == data


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
@over_seeds(2)
async def test_many_at_once_are_what_they_are_one_by_one(
    seed: int, chance: Random, durability: str
) -> None:
    files = some_files(chance, 300)
    settings = ChunkserverSettings(durability=durability)
    async with SimCluster(seed, chunkserver=settings) as cluster, cluster.client() as fs:
        entries = await fs.put_many(files.items())
        assert [e.length if isinstance(e, Entry) else e for e in entries] == [
            len(data) for data in files.values()
        ]
        await check(fs, files)
        assert await fs.stat_many(files) == [await fs.stat(path) for path in files]
        alone = await fs.put(files["/f/2"], "/alone")
        assert alone.digest == (await fs.stat("/f/2")).digest
        await assert_sound(fs)
        for path in ("/f/1", "/f/5", "/f/7"):
            assert await replicas(fs, path) == 3


@over_seeds(1)
async def test_each_error_is_in_its_place(cluster: SimCluster, fs: Client) -> None:
    await fs.put(b"old", "/there")
    await fs.mkdir("/folder")
    items = [("/new", b"1"), ("/there", b"2"), ("/folder", b"3"), ("\ud800", b"4"), ("/x", b"5")]
    kinds = [Entry, AlreadyExists, IsADirectory, InvalidName, Entry]
    assert [type(each) for each in await fs.put_many(items)] == kinds
    paths = ["/new", "/nothing", "/folder", "\ud800", "/there", "/x"]
    got = await fs.get_many(paths)
    kinds = [bytes, NotFound, IsADirectory, InvalidName, bytes, bytes]
    assert [type(each) for each in got] == kinds
    assert (got[0], got[4], got[5]) == (b"1", b"old", b"5")
    kinds = [Entry, NotFound, Entry, InvalidName, Entry, Entry]
    assert [type(each) for each in await fs.stat_many(paths)] == kinds
    ranges = [(path, start, end) for path in paths for start, end in ((None, 2), (-2, None))]
    kinds = [bytes, NotFound, IsADirectory, InvalidName, bytes, bytes]
    found = await fs.get_ranges(ranges)
    assert [type(each) for each in found] == [kind for kind in kinds for _ in range(2)]
    assert (found[0], found[8], found[9]) == (b"1", b"ol", b"ld")
    results = await fs.put_many([("/there", b"2")], overwrite=True)
    assert isinstance(results[0], Entry)
    assert await fs.get("/there") == b"2"
    # What was written for files that did not get their names goes at once.
    await cluster.wait_until(lambda: stored(cluster) == 9, 30)
    await fs.put(b"below", "/folder/file")
    inode = (await fs.stat("/x")).inode
    expect = [None, None, None, None, inode + 1000, inode]
    gone = await fs.delete_many(
        ["/new", "/nothing", "/folder", "\ud800", "/there", "/x"], expect=expect
    )
    kinds = [None, NotFound, DirectoryNotEmpty, InvalidName, FileChanged, None]
    assert [each and type(each) for each in gone] == kinds
    assert await fs.delete_many(["/folder"], recursive=True, now=True) == [None]
    assert [entry.path for entry in await fs.list()] == ["/there"]
    with pytest.raises(InvalidArgument, match="2 paths, but 1 inodes"):
        await fs.delete_many(["/a", "/b"], expect=[1])


@over_seeds(1)
async def test_many_are_deleted_in_the_time_of_a_few(fs: Client) -> None:
    await fs.put_many((f"/f/{n}", b"") for n in range(500))
    began = trio.current_time()
    await fs.delete("/f/0")
    one = trio.current_time() - began
    began = trio.current_time()
    assert await fs.delete_many(f"/f/{n}" for n in range(1, 500)) == [None] * 499
    assert trio.current_time() - began < 20 * one
    assert await fs.list("/f") == []


def exchanges_opened(fs: Client, patch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the chunkservers with which this client opens exchanges from now on."""
    opened: list[str] = []
    acquire = fs._core.pool.acquire

    async def noted_acquire(address: str) -> BulkConnection:
        opened.append(address)
        return await acquire(address)

    patch.setattr(fs._core.pool, "acquire", noted_acquire)
    return opened


@over_seeds(2)
async def test_files_of_a_few_blocks_are_read_in_rounds_too(
    chance: Random, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 200_000, client_small.FEW_BYTES_MAX]
    files = {f"/f/{n}": chance.randbytes(size) for n, size in enumerate(sizes * 20)}
    await fs.put_many(files.items())
    await fs.put(large := chance.randbytes(client_small.FEW_BYTES_MAX + 1), "/large")
    exchanges = exchanges_opened(fs, monkeypatch)
    await check(fs, files)
    assert not exchanges
    assert await fs.get_many([*files, "/large"]) == [*files.values(), large]
    assert exchanges


@pytest.mark.parametrize("is_old", [False, True])
@over_seeds(1)
async def test_the_length_of_a_small_log_takes_no_exchange(
    chance: Random, fs: Client, monkeypatch: pytest.MonkeyPatch, is_old: bool
) -> None:
    """Unless a server is of a release that answers that in exchanges only."""
    logs = {f"/f/{n}": content(chance, 1000) for n in range(20)}
    for path, record in logs.items():
        await fs.append(path, record)
    if is_old:
        monkeypatch.setattr(small, "VerifyChunk", Stat)  # which it is never sent
    exchanges = exchanges_opened(fs, monkeypatch)
    found = await fs.get_many(logs)
    for (path, record), data in zip(logs.items(), found, strict=True):
        assert isinstance(data, bytes)
        assert record in data
        assert await fs.get(path) == data
    entries = await fs.stat_many(logs)
    assert [e.length for e in entries if isinstance(e, Entry)] == [len(data) for data in found]
    assert bool(exchanges) == is_old


@over_seeds(2)
async def test_ranges_of_files_of_all_sizes(chance: Random, fs: Client) -> None:
    files = some_files(chance, 100)
    await fs.put_many(files.items())
    await fs.put(large := chance.randbytes(3_000_000), "/large")
    files["/large"] = large
    ranges = []
    for path, data in [*files.items(), *[("/large", large)] * 300]:
        ends = [None, 0, 1, -1, len(data), len(data) + 5, chance.randint(-9, len(data))]
        ranges.append((path, chance.choice(ends), chance.choice(ends)))
    assert await fs.get_ranges(ranges) == [files[p][start:end] for p, start, end in ranges]


def frames_sent(patch: pytest.MonkeyPatch) -> Counter[str]:
    """How many from now on, to whom."""
    sent: Counter[str] = Counter()

    def count(name: str, send: Callable[..., object]) -> None:
        def counted(rpc: Rpc, *arguments: object) -> object:
            sent[rpc.peer] += 1
            return send(rpc, *arguments)

        patch.setattr(Rpc, name, counted)

    count("send", Rpc.send)
    count("_begin", Rpc._begin)
    return sent


@over_seeds(2, chunkservers=4)
async def test_single_calls_at_one_time_are_each_what_was_asked(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share messages, and neither options, nor errors, nor answers, nor a giving up."""
    results: dict[int, object] = {}
    old = await fs.put(b"old", "/f/there")

    async def one(n: int) -> None:
        data, path = content(chance, n), f"/f/{n}"
        with trio.move_on_after(chance.random() / 100 if n % 10 == 9 else 100):
            try:
                match n % 10:
                    case 0:
                        await fs.put(data, path, attributes={"n": f"{n}"}, replication=n % 3)
                    case 1:
                        await fs.put(data, "/f/there")
                    case 2:
                        await fs.put(data, "/f/there", expect=old.inode + 10_000)
                    case 3:
                        await fs.put(data, f"/{n}/{n}", parents=False)
                    case 4:
                        async with fs.create(path) as file:
                            await file.write(data)
                    case _:
                        await fs.put(bytearray(data), path)
            except GfsError as error:
                results[n] = type(error)
            else:
                results[n] = data

    await fs.put_many([(f"/warm/{n}", b"x") for n in range(64)])
    with monkeypatch.context() as patched:
        sent = frames_sent(patched)
        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(one, n)
    # Requests, not answers, which are counted one by one.
    requests = sum(count for peer, count in sent.items() if peer.endswith((":9400", ":9500")))
    assert requests < 100, sent
    for n, result in results.items():
        expected = {1: AlreadyExists, 2: FileChanged, 3: NotFound}.get(n % 10)
        assert isinstance(result, bytes) if expected is None else result is expected, n
    got: dict[int, bytes] = {}

    async def read(n: int) -> None:
        with trio.move_on_after(chance.random() / 100 if n % 10 == 8 else 100):
            got[n] = await fs.get(f"/f/{n}")

    stored = {n: data for n, data in results.items() if isinstance(data, bytes)}
    async with trio.open_nursery() as nursery:
        for n in stored:
            nursery.start_soon(read, n)
    assert {n for n in stored if n % 10 != 8} <= got.keys()
    assert all(got[n] == stored[n] for n in got)
    for n in range(10, 200, 10):
        assert (await fs.stat(f"/f/{n}")).attributes == {"n": f"{n}"}
        assert await replicas(fs, f"/f/{n}") == (n % 3 or 3)
    assert await fs.get("/f/there") == b"old"
    await wait_settled(cluster, fs)


@over_seeds(1)
async def test_a_file_that_was_given_up_takes_no_later_ones_place(
    chance: Random, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the master was busy when it was asked, and another caller of its round waits."""
    busy_until = 0.0
    check = uploads.check_publish

    def check_or_wait(*arguments: Any) -> Any:
        if trio.current_time() < busy_until:
            raise Busy("the master is busy here")
        return check(*arguments)

    monkeypatch.setattr(uploads, "check_publish", check_or_wait)

    async def put_other() -> None:
        await fs.put(b"other", "/other", overwrite=True)

    for number in range(20):
        busy_until = trio.current_time() + chance.uniform(0.1, 0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_other)
            with trio.move_on_after(0.02):
                await fs.put(b"given up", "/f", overwrite=True)
            await trio.sleep(chance.uniform(0, 0.1))
            await fs.put(b"kept %d" % number, "/f", overwrite=True)
            await trio.sleep(2)
            assert await fs.get("/f") == b"kept %d" % number


@over_seeds(1)
async def test_a_small_file_is_written_again_if_its_chunk_was_given_up(
    cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the master, between the write and the publication; a call for one file repeats that."""
    refusals = 0
    holders = uploads._holders

    def holders_or_none(*arguments: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise refused("this is refused once")
        return holders(*arguments)

    async def unanswered(_: MasterClient, requests: Sequence[object], __: object) -> list[None]:
        return [None] * len(requests)

    monkeypatch.setattr(uploads, "_holders", holders_or_none)

    async def create(path: str) -> None:
        async with fs.create(path) as file:
            await file.write(b"bytes")

    ways: list[Callable[[str], Awaitable[object]]] = [
        lambda path: fs.put(b"bytes", path),
        lambda path: fs.put_many([(path, b"bytes")]),
        create,
    ]
    for refused, is_answered in product((ChunkUnavailable, DiskFull), (True, False)):
        if not is_answered:
            monkeypatch.setattr(MasterClient, "ask_now", unanswered)
        for number, way in enumerate(ways):
            refusals = 1
            path = f"/{refused.code}/{is_answered}/{number}"
            await way(path)
            assert (await fs.get(path), refusals) == (b"bytes", 0)
    await wait_settled(cluster, fs)


async def seconds_of(calls: Mapping[str, Callable[[], Awaitable[object]]]) -> dict[str, float]:
    """How long each takes, of calls that are made at the same time. Errors count as ends."""
    took: dict[str, float] = {}
    began = trio.current_time()

    async def one(name: str) -> None:
        with suppress(GfsError):
            await calls[name]()
        took[name] = trio.current_time() - began

    async with trio.open_nursery() as nursery:
        for name in calls:
            nursery.start_soon(one, name)
    return took


@over_seeds(1)
async def test_files_of_one_goal_do_not_wait_for_those_of_another(
    cluster: SimCluster, fs: Client
) -> None:
    await fs.put(b"warm", "/warm")
    await cluster.crash("chunkserver1")
    await cluster.crash("chunkserver2")
    await trio.sleep(60)

    def puts() -> dict[str, Callable[[], Awaitable[object]]]:
        calls = {
            f"{goal} {n}": partial(fs.put, b"x", f"/{goal}/{n}", replication=goal)
            for n in range(4)
            for goal in (3, 1, 2)
        }
        return calls | {"empty": partial(fs.put, b"", "/empty")}

    took = await seconds_of(puts())
    for name, seconds in took.items():
        assert seconds < 0.5 if name[0] in "1e" else 5 < seconds < 15, took
    cluster.kill("master")
    took = await seconds_of(puts())
    assert max(took.values()) < 45, took


@over_seeds(1, chunkservers=9)
async def test_only_reads_from_a_server_that_hangs_wait_for_it(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Not those that the round begins after them."""
    data = content(chance, BLOCK_BYTES)
    holders: dict[str, list[str]] = {}
    for path in (f"/{n}" for n in range(200)):
        await fs.put(data, path, replication=2)
        [chunk] = (await fs.locate(path)).chunks
        holders[path] = [server.address for server in chunk.replicas]
    victim = next(n for n in cluster.chunkservers if cluster.address(n) in holders["/0"])
    others = [path for path in holders if cluster.address(victim) not in holders[path]]
    assert others
    cluster.network.partition(["client0"], [victim])
    took = await seconds_of({path: partial(fs.get, path) for path in holders})
    assert max(took[path] for path in others) < 0.5, took


@over_seeds(1)
async def test_only_writes_that_a_server_delays_wait_for_it(
    fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the same round that are written before, or meanwhile, along the same server."""
    delays = {b"A": 0.0, b"B": 0.15, b"C": 0.3, b"D": 60.0}
    send = fs._core.links.ask

    async def send_each(
        address: str,
        requests: Sequence[tuple[Message, bytes]],
        seconds: float,
        take: Callable[[int, Reply], None],
    ) -> None:
        async def one(index: int) -> None:
            await trio.sleep(delays[requests[index][1]])
            await send(address, requests[index : index + 1], 10, lambda _, r: take(index, r))

        async with trio.open_nursery() as nursery:
            for index in range(len(requests)):
                nursery.start_soon(one, index)

    await fs.put(b"warm", "/warm")
    monkeypatch.setattr(fs._core.links, "ask", send_each)
    took = await seconds_of({str(d): partial(fs.put, d, f"/{d!r}") for d in delays})
    for data, delay in delays.items():
        assert took[str(data)] < delay + 2 * LATE_SECONDS, took


@over_seeds(1)
async def test_an_empty_file_waits_for_nobodys_bytes(
    fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = fs._core.links.ask

    async def send_late(*arguments: Any) -> None:
        await trio.sleep(1)
        await send(*arguments)

    await fs.put(b"warm", "/warm")
    monkeypatch.setattr(fs._core.links, "ask", send_late)
    async with trio.open_nursery() as nursery:
        for number in range(UNDER_WAY_MAX):
            nursery.start_soon(partial(fs.put, b"x", f"/{number}"))
            await trio.sleep(0.01)
        took = await seconds_of({"empty": partial(fs.put, b"", "/empty")})
    assert took["empty"] < LATE_SECONDS / 2


@over_seeds(1)
async def test_a_wrong_argument_is_an_error_of_its_own_call(fs: Client) -> None:
    """It neither ends the client, nor its connections."""
    wrong: list[dict[str, Any]] = [
        {"replication": [3]},
        {"replication": 2.5},
        {"replication": "3"},
        {"replication": 65},
        {"replication": 1 << 64},
        {"expect": 1.5},
        {"expect": "1"},
        {"attributes": {"a": 1}},
    ]

    async def put(path: str, arguments: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument) if arguments else nullcontext():
            await fs.put(b"bytes", path, **arguments)

    async def put_many(path: str, arguments: dict[str, Any]) -> None:
        with suppress(InvalidArgument):
            [result] = await fs.put_many([(path, b"bytes")], **arguments)
            assert isinstance(result, InvalidArgument)

    async def create(path: str, arguments: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument):
            async with fs.create(path, **arguments) as file:
                await file.write(b"bytes")

    await fs.put(b"bytes", "/warm")
    connections = fs._core.master.connections
    async with trio.open_nursery() as nursery:
        for number, arguments in enumerate(wrong):
            nursery.start_soon(put, f"/good/{number}", {})
            nursery.start_soon(put, f"/bad/{number}", arguments)
            nursery.start_soon(create, f"/bad/{number}", arguments)
            if "replication" in arguments:
                nursery.start_soon(put_many, f"/bad/{number}", arguments)
    assert fs._core.master.connections == connections
    for number in range(len(wrong)):
        assert await fs.get(f"/good/{number}") == b"bytes"


@over_seeds(1)
async def test_calls_end_when_the_client_ends(cluster: SimCluster) -> None:
    """Though the master does not answer, and they belong to tasks outside of its block."""
    ended: dict[str, type[Exception]] = {}

    async def call(name: str, one: Callable[[], Awaitable[object]]) -> None:
        try:
            await one()
        except GfsError as error:
            ended[name] = type(error)

    async with trio.open_nursery() as nursery:
        async with cluster.client() as fs:
            for number in range(20):
                await fs.put(b"bytes", f"/{number}")
            cluster.network.partition(["client0"], ["master"])
            for number in range(20):
                nursery.start_soon(call, f"put {number}", partial(fs.put, b"bytes", f"/n{number}"))
                nursery.start_soon(call, f"get {number}", partial(fs.get, f"/{number}"))
                await trio.sleep(0.01)
        await trio.sleep(2)
        assert Counter(ended.values()) == {MasterUnavailable: 40}


@over_seeds(1)
async def test_no_chunk_is_used_that_was_reserved_on_a_connection_before(
    fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master forgets with the connection what is claimed on no later one. This one is lost
    while chunks that were there are held for files, and others are asked for."""
    core = fs._core
    await fs.put_many([(f"/{n}", b"bytes") for n in range(20)])
    await fs.put(b"bytes", "/more")
    reserve = core._reserve_now

    async def reconnected(*arguments: Any) -> Any:
        core.master.close()
        return await reserve(*arguments)

    [*_, (goal, spare)] = [(key[0], each) for key, each in core._reserved.items() if key[1]]
    assert spare
    monkeypatch.setattr(core, "_reserve_now", reconnected)
    before = core.master.connections
    reserved, _ = await core.reserve_all(len(spare) + 1, goal)
    assert {each.connection for each in reserved} == {core.master.connections}
    assert core.master.connections > before
    monkeypatch.undo()
    for each in reserved:
        core.give_back(each, goal)


def requests_of(sent: Mapping[str, int]) -> int:
    """Frames to chunkservers; answers are sent one by one."""
    return sum(count for peer, count in sent.items() if peer.endswith(":9500"))


@over_seeds(1, chunkservers=7)
async def test_a_batch_is_a_round_trip_for_each_server(
    chance: Random, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for each file."""
    files = {f"/f/{n}": content(chance, 1000) for n in range(200)}
    await fs.put_many(list(files.items()))  # the connections are made
    await fs.get_many(files)
    with monkeypatch.context() as patched:
        sent, exchanges = frames_sent(patched), exchanges_opened(fs, patched)
        assert all(isinstance(e, Entry) for e in await fs.put_many(files.items(), overwrite=True))
        asked = {peer: sent[peer] for peer in sent if "chunkserver" in peer}
        sent.clear()
        assert await fs.get_many(files) == list(files.values())
        read = sent.copy()
        sent.clear()
        entries = await fs.stat_many(files)
        looked_up = {peer: sent[peer] for peer in sent if peer.endswith((":9400", ":9500"))}
        await fs.put(b"one", "/one")
    # A few batches, whatever the number of servers, and each is passed on twice; then the
    # first chunk of all that is read from them.
    assert 3 <= requests_of(asked) <= 3 * 4, asked
    assert 1 <= requests_of(read) <= 8, read
    assert [entry.length for entry in entries if isinstance(entry, Entry)] == [1000] * 200
    assert list(looked_up.values()) == [1], looked_up
    # What fails in a round is stored by an exchange, which nobody notices who does not look.
    assert not exchanges


@pytest.mark.parametrize("fate", ["dead", "hanging", "full", "cut off"])
@over_seeds(2, chunkservers=4)
async def test_small_files_are_written_though_a_server_fails(
    chance: Random, cluster: SimCluster, fs: Client, fate: str
) -> None:
    files = some_files(chance, 40)
    await fs.put_many(list(files.items())[:4], overwrite=True)
    victim = chance.choice(cluster.chunkservers)
    machine = cluster.machine(victim).disk
    if fate == "dead":
        cluster.kill(victim)
    elif fate == "hanging":
        machine.mount("/disk0", 1 << 30)
        machine.hang("/disk0", Hang(1.0, (60.0, 60.0)))
    elif fate == "full":
        machine.mount("/disk0", 1)
    else:
        cluster.network.block("client0", victim)
        cluster.network.block(victim, "client0")
    began = trio.current_time()
    results = await fs.put_many(files.items(), overwrite=True)
    assert [r for r in results if isinstance(r, GfsError)] == []
    assert trio.current_time() - began < 8, "it waits for more than one server that fails"
    began = trio.current_time()
    await fs.put(files["/f/2"], "/alone")
    assert trio.current_time() - began < 5
    await check(fs, files)


@over_seeds(2)
async def test_a_small_file_is_read_where_it_is_good(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    files = {f"/f/{n}": content(chance, 1000) for n in range(20)}
    await fs.put_many(files.items())
    victim = chance.choice(cluster.chunkservers)
    there = packed_of(cluster, victim)
    assert there
    for packed in there:
        path = f"{packed.directory}/{DATA_NAME}"
        bit = 8 * packed.record.offset + chance.randrange(8000)
        cluster.machine(victim).disk.flip_bit(path, bit)
    assert await fs.get_many(files) == list(files.values())

    async def found() -> bool:
        await fs.get_many(files)
        return (await fs.status()).totals.corrupt == 0 and await settled(fs)

    await cluster.wait_until(found, 60)
    for path in files:
        await wait_for_goal(cluster, fs, path, 3)


@over_seeds(2)
async def test_damage_that_a_round_meets_is_reported(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each file is read by itself then, from servers where nothing is wrong."""

    async def rest(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Scrubber, "_pass", rest)
    files = {f"/f/{n}": content(chance, 1000) for n in range(20)}
    files["/f/blocks"] = content(chance, 3 * BLOCK_BYTES)
    await fs.put_many(files.items())
    victim = chance.choice(cluster.chunkservers)
    address, disk = cluster.address(victim), cluster.machine(victim).disk
    for packed in packed_of(cluster, victim):
        path = f"{packed.directory}/{DATA_NAME}"
        disk.flip_bit(path, 8 * packed.record.offset + chance.randrange(8000))
    [path] = cluster.chunk_files(victim)
    disk.flip_bit(path, 8 * (disk.file_size(path) - 1000))

    def choose(_: ClientCore, holders: list[ServerAddress], __: object) -> ServerAddress:
        return next(server for server in holders if server.address == address)

    def in_order(_: ClientCore, servers: list[ServerAddress]) -> list[ServerAddress]:
        return sorted(servers, key=lambda server: server.address == address)

    monkeypatch.setattr(client_small, "_choose", choose)
    monkeypatch.setattr(ClientCore, "in_order", in_order)
    assert await fs.get_many(files) == list(files.values())

    async def all_found() -> bool:
        return (await fs.status()).totals.corruptions == len(files)

    await cluster.wait_until(all_found, 10)
    await wait_settled(cluster, fs)


@over_seeds(1)
async def test_a_batch_that_is_cancelled_leaves_nothing(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    files = {f"/f/{n}": content(chance, 1000) for n in range(200)}
    for seconds in (0.0005, 0.002, 0.004, 0.01):
        with trio.move_on_after(seconds):
            await fs.put_many(files.items(), overwrite=True)
    got = await fs.get_many(files)
    for data, expected in zip(got, files.values(), strict=True):
        assert isinstance(data, NotFound) or data == expected
    await wait_settled(cluster, fs)


@over_seeds(1)
async def test_wrong_requests_are_refused_one_by_one(cluster: SimCluster, fs: Client) -> None:
    """The others that came with them are answered."""
    await fs.put(b"bytes", "/file")
    [chunk] = (await fs.locate("/file")).chunks
    handle, version = chunk.handle, chunk.version
    data, other = b"other bytes", 0xABCD
    good = ServerAddress("", cluster.address("chunkserver1"), "")
    dead = ServerAddress("dead", cluster.address("chunkserver2"), "")
    cluster.kill("chunkserver2")

    def write(handle: int, body: bytes, version: int = 1, *chain: ServerAddress) -> Asked:
        return WriteSmall(0, handle, version, block_sum(data), list(chain)), body

    asked: list[tuple[Asked, object]] = [
        ((ReadChunk(0, handle, version, 0, 5), b""), b"bytes"),
        ((ReadChunk(0, handle, version, 1, 2), b""), b"yt"),
        ((Stat(0, "/file"), b""), ProtocolError),
        ((VerifyChunk(0, handle, version), b""), ProtocolError),
        ((VerifyChunk(0, handle, version, blocks=False), b""), b""),
        ((ReadChunk(0, handle, version, 0, BLOCK_BYTES + 1), b""), ProtocolError),
        ((ReadChunk(0, handle, version, 0, 0), b""), InvalidArgument),
        ((ReadChunk(0, handle, version, -1, 2), b""), InvalidArgument),
        ((ReadChunk(0, handle, version, 0, 6), b""), StaleVersion),
        ((ReadChunk(0, handle, version + 1, 0, 5), b""), StaleVersion),
        ((ReadChunk(0, other, 1, 0, 5), b""), NotFound),
        (write(other + 3, b"not these bytes"), CorruptReplica),
        (write(other + 4, b""), InvalidArgument),
        (write(other + 5, data, 0), InvalidArgument),
        (write(other + 5, data, 1 << 32), InvalidArgument),
        (write(handle, data), Busy),
        (write(other + 1, data, 1, dead), GfsError),
        (write(other + 2, data, 1, good), b""),
        (write(other + 6, data), Busy),
        (write(other + 6, data), Busy),
        ((ReadChunk(0, handle, version, 4, 1), b""), b"s"),
    ]  # fmt: skip
    rpc = await fs._core.links.get(cluster.address("chunkserver0"), 1)
    replies = await (await rpc.start([each for each, _ in asked])).replies()
    for (request, expected), reply in zip(asked, replies, strict=True):
        if isinstance(expected, bytes):
            assert isinstance(reply, tuple)
            assert reply[1] == expected, request
        else:
            assert isinstance(reply, expected), (request, reply)
            if expected is GfsError:
                assert vars(reply)["server"] == "dead"
    assert (await fs._core.links.get(cluster.address("chunkserver0"), 1)) is rpc


BOUND = 16 * BLOCK_BYTES


async def multiplexed(fs: Client, address: str) -> BulkConnection:
    """A connection for small requests by hand."""
    core = fs._core
    connection = await handshake.connect(core.world, address, core.links._identity)
    await connection.send(Multiplex(id=0))
    return connection


@over_seeds(1)
async def test_what_waits_at_a_server_is_bounded(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that are not in the page cache, whose answers nobody takes; and writes whose next
    server is gone."""
    made = noted(monkeypatch, SmallRequests)
    monkeypatch.setattr(ChunkFile, "read_at_cached", lambda *_: False)
    data = content(chance, BLOCK_BYTES)
    await fs.put(data, "/one")
    [chunk] = (await fs.locate("/one")).chunks
    server, other = cluster.address("chunkserver0"), cluster.address("chunkserver1")
    made.clear()
    reader = await multiplexed(fs, server)
    read = ReadChunk(1, chunk.handle, chunk.version, 0, BLOCK_BYTES)
    await reader.stream.send_all(encode_frame(read) * 2000)
    await trio.sleep(30)
    [requests] = made
    held = sum(map(len, requests._rpc.outgoing.pieces)) + READS_MAX * BLOCK_BYTES
    assert REPLY_BYTES_MAX < held < REPLY_BYTES_MAX + 2 * READS_MAX * BLOCK_BYTES
    reader.close()

    cluster.network.partition(["chunkserver0"], ["chunkserver1"])
    following = ServerAddress("other", other, "")
    monkeypatch.setattr(small, "WAITING_BYTES_MAX", BOUND)
    writers = [await multiplexed(fs, server) for _ in range(3)]
    number, most = 0xABC000, 0
    for _ in range(50):
        for connection in writers:
            number += 1
            write = WriteSmall(number, number, 1, block_sum(data), [following])
            await connection.send_frames(encode_frame(write, data))
            most = max(most, made[-1]._writer.under_way_bytes)
    writer = made[-1]._writer
    assert BOUND - len(data) < most <= BOUND
    await trio.sleep(10)
    assert (writer.under_way_bytes, writer._bytes, writer._handles) == (0, 0, set())
    for connection in writers:
        connection.close()


@over_seeds(1)
async def test_a_disk_that_hangs_is_named_before_other_servers_wait_too_long(
    cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = noted(monkeypatch, SmallRequests)
    data = b"some bytes"
    servers = [ServerAddress(n, cluster.address(n), "") for n in cluster.chunkservers]
    rpc = await fs._core.links.get(servers[0].address, 1)

    async def write(*handles: int) -> list[Reply]:
        asked: list[Asked] = [
            (WriteSmall(0, handle, 1, block_sum(data), servers[1:]), data) for handle in handles
        ]
        return await (await rpc.start(asked)).replies()

    assert all(isinstance(reply, tuple) for reply in await write(0xABC1, 0xABC2))
    cluster.machine(cluster.chunkservers[-1]).disk.hang(cluster.disks[0], Hang(1.0, (60.0, 60.0)))
    for handle in (0xABC3, 0xABC5):  # the first is under way then, the second waits behind it
        began = trio.current_time()
        for reply in await write(handle, handle + 1):
            assert isinstance(reply, Busy)
            assert vars(reply)["server"] == made[-1]._node.id
        took = trio.current_time() - began
        assert SMALL_DISK_SECONDS <= took < SMALL_DISK_SECONDS + SMALL_STEP_SECONDS
    await trio.sleep(65)
    for each in made:
        writer = each._writer
        assert (writer.under_way_bytes, writer._bytes, writer._handles) == (0, 0, set())
        assert not writer._given


@pytest.mark.costly
@over_seeds(1, client=ClientSettings(retry_seconds=5.0))
async def test_a_batch_waits_once_for_a_master_that_is_gone(
    cluster: SimCluster, fs: Client
) -> None:
    """And not once for each file, nor for each window."""
    files = {f"/f/{n}": b"some bytes" for n in range(600)}
    await fs.put_many(list(files.items())[:5])
    cluster.kill("master")
    began = trio.current_time()
    for results in (
        await fs.put_many(files.items(), overwrite=True),
        await fs.get_many(files),
        await fs.stat_many(files),
    ):
        assert len(results) == len(files)
        assert {type(each) for each in results} == {MasterUnavailable}
    assert trio.current_time() - began < 3 * 10


@over_seeds(2)
async def test_whoever_gives_up_has_no_chunks_reserved(
    seed: int, chance: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the master's answer is on its way, and the client lives on."""
    tables = noted(monkeypatch, ReservationTable)
    async with SimCluster(seed) as cluster, cluster.client() as fs:
        file = await fs.open("/open", "w")
        async with file:
            await file.write(b"some bytes")
            await file.flush()
            held = len(tables[-1]._reservations)
            for number in range(30):
                with trio.move_on_after(chance.random() / 400):
                    if number % 2:
                        await fs.put_many([(f"/f/{number}/{each}", b"y") for each in range(64)])
                    else:
                        await fs.put(b"y", f"/f/{number}")
            await trio.sleep(30)  # spare ones are released, too
            assert len(tables[-1]._reservations) == held


@over_seeds(1)
async def test_a_bug_in_a_write_ends_that_write_alone(
    seed: int, chance: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[bytes | GfsError] = []

    async def write_and_read() -> None:
        async with SimCluster(seed) as cluster, cluster.client() as fs:
            with monkeypatch.context() as patched:
                patched.setattr("gfs.chunkserver.replicas.store._pack_all", lambda *_: 1 / 0)
                await fs.put_many([("/a", b"1"), ("/b", b"2")])
                await fs.put(b"3", "/c")
            await fs.put_many([("/d", b"4")])
            got.extend(await fs.get_many(["/a", "/b", "/c", "/d"]))

    with pytest.raises(ExceptionGroup, match="logged as bugs"):
        await write_and_read()
    assert got == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("older", [1, 3])
@over_seeds(1)
async def test_servers_of_an_older_release_are_asked_by_exchanges(
    chance: Random, cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch, older: int
) -> None:
    """Whether the next server of a chain is one, or all are: no call fails, and none of them is
    taken for broken."""
    ids = sorted(server.id for server in (await fs.status()).servers)[:older]
    common = handshake._common_version
    monkeypatch.setattr(
        handshake, "_common_version", lambda hello: 1 if hello.peer in ids else common(hello)
    )
    run = SmallRequests.run

    async def end_or_run(self: SmallRequests) -> None:
        """A server that does not know the message ends the connection."""
        if self._node.id in ids:
            self._connection.close()
        else:
            await run(self)

    monkeypatch.setattr(SmallRequests, "run", end_or_run)
    small_requests = noted(monkeypatch, SmallRequests)
    appended: list[AppendRecords] = []
    serve = Appends.serve

    async def noting(self: Appends, connection: BulkConnection, request: AppendRecords) -> bool:
        appended.append(request)
        return await serve(self, connection, request)

    monkeypatch.setattr(Appends, "serve", noting)
    files = some_files(chance, 16)
    assert all(isinstance(made, Entry) for made in await fs.put_many(files.items()))
    await check(fs, files)
    for path, data in files.items():
        async with await fs.open(path) as file:
            await file.seek(len(data) // 2)
            assert await file.read(10) == data[len(data) // 2 :][:10]
    records = [content(chance, 200_000) for _ in range(30)]
    await fs.append_many("/records", records)
    assert [record.data async for record in fs.records("/records")] == records
    assert fs._core.suspects() == []
    assert not any(requests._node.id in ids for requests in small_requests)
    if older == 3:
        assert not any(request.follows for request in appended)
        assert len(appended) > 3


class Spawned(trio.abc.Instrument):
    """The tasks that clients and chunkservers have started."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.of_servers: list[str] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        name = task.name.rpartition(".")[2]
        if task.name.startswith("gfs.client."):
            self.names.append(name)
        elif task.name.startswith("gfs.chunkserver.exchanges."):
            self.of_servers.append(name)


@over_seeds(1)
async def test_what_costs_as_much_as_files_do_is_not_done_for_each(
    cluster: SimCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks, transactions and cursors of the master, file objects of packed replicas."""
    files = {f"/f/{n}": f"{n}".encode() for n in range(64)}
    calls: Counter[str] = Counter()

    def count(kind: type, name: str) -> None:
        real = getattr(kind, name)

        def counted(*args: Any) -> Any:
            calls[kind.__name__] += 1
            return real(*args)

        monkeypatch.setattr(kind, name, counted)

    await fs.put(b"warm", "/warm")
    count(Store, "read")
    count(Txn, "scan")
    count(PackedFile, "__init__")
    spawned = Spawned()
    trio.lowlevel.add_instrument(spawned)
    assert all(isinstance(each, Entry) for each in await fs.put_many(files.items()))
    assert spawned.names.count("_store") == 1
    assert not {"_write", "_ask"} & {*spawned.names}
    assert spawned.of_servers == ["_write_all"] * 3  # for the disk of each
    assert calls["Store"] < 10
    calls.clear()
    spawned.names.clear()
    assert await fs.get_many(files) == list(files.values())
    assert spawned.names == ["_run"]
    assert calls["Store"] < 10
    assert not calls["Txn"]
    assert calls["PackedFile"] < len(files) / 2  # of which the page cache lacks the bytes
    trio.lowlevel.remove_instrument(spawned)


@over_seeds(1)
async def test_a_client_that_stores_many_reserves_for_several_calls(
    fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = uploads.reserve

    def reserve(master: Master, request: Reserve) -> ReserveReply:
        asked.append(request.count)
        return real(master, request)

    monkeypatch.setattr(uploads, "reserve", reserve)
    for call in range(16):
        await fs.put_many([(f"/{call}/{n}", b"x") for n in range(64)])
    assert len(asked) <= 6, asked

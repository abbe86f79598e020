"""A master, a scripted chunkserver, and a bare client, on one simulated machine.

The chunkserver here keeps its replicas in a dict and does what it is asked,
unless the test says otherwise; what the real one does with bytes is tested
elsewhere. Waiting is polling with a deadline, in virtual time.
"""

from __future__ import annotations

import itertools
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import trio
from clocks import virtual_time  # noqa: F401 - a fixture

from gfs import errors
from gfs.client import connect
from gfs.config import MasterSettings
from gfs.io import DiskSpace
from gfs.master import MasterStarted, run_master
from gfs.master.metadata import Txn, subtree
from gfs.protocol import handshake
from gfs.protocol import messages as wire
from gfs.protocol.handshake import Identity
from gfs.protocol.rpc import Rpc
from gfs.testing import Universe

KEY = bytes(range(32))
CHUNK = 64 * 1024 * 1024
SETTINGS = MasterSettings(
    address="127.0.0.1:0",
    heartbeat_seconds=0.1,
    dead_seconds=1.0,
    lease_seconds=10.0,
    lease_margin_seconds=1.0,
    garbage_grace_seconds=0.3,
    trash_seconds=0.0,
    client_silence_seconds=60.0,
    map_bytes=1 << 28,
    sync=False,
)
WAIT_SECONDS = 20.0

pytestmark = pytest.mark.usefixtures("virtual_time")
ReplyT = TypeVar("ReplyT", bound=wire.Message)


async def until(condition: Callable[[], object], what: str) -> None:
    async def ask() -> object:
        return condition()

    await until_reported(ask, what)


async def until_reported(ask: Callable[[], Awaitable[object]], what: str) -> None:
    """Ask again and again until the answer is true."""
    with trio.move_on_after(WAIT_SECONDS):
        while True:
            if await ask():
                return
            await trio.sleep(0.01)
    raise AssertionError(f"not within {WAIT_SECONDS:g} s: {what}")


@contextmanager
def only_error() -> Iterator[None]:
    """Let the one error of a nursery out of its group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class Cluster:
    """A master in this process that can be stopped and started again."""

    def __init__(
        self, directory: Path, nursery: trio.Nursery, settings: MasterSettings, files: Files | None
    ) -> None:
        world = Universe(1).machine("master").start_process().world
        self.world = replace(world, files=files) if files else world  # type: ignore[arg-type]
        self.directory = str(directory)
        self.settings = settings
        self.nursery = nursery
        self.address = ""
        self.cluster = ""
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    async def start(self) -> None:
        self._scope, self._stopped = trio.CancelScope(), trio.Event()

        async def run(
            scope: trio.CancelScope,
            stopped: trio.Event,
            task_status: trio.TaskStatus[MasterStarted],
        ) -> None:
            try:
                with scope:
                    await run_master(
                        self.world, self.settings, self.directory, KEY, task_status=task_status
                    )
            finally:
                stopped.set()

        started = await self.nursery.start(run, self._scope, self._stopped)
        self.address, self.cluster = started.address, started.cluster
        self.settings = msgspec.structs.replace(self.settings, address=started.address)

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def server(self, name: str, **more: object) -> FakeServer:
        """A registered chunkserver."""
        server = FakeServer(self, name, **more)  # type: ignore[arg-type]
        await server.start()
        return server

    async def client(self, name: str = "client-1") -> Client:
        identity = Identity("client", name, KEY, self.cluster)
        connection = await handshake.connect(self.world, self.address, identity)
        rpc = Rpc(connection)
        self.nursery.start_soon(rpc.run)
        return Client(name, rpc)


@asynccontextmanager
async def running(
    directory: Path, files: Files | None = None, **changes: object
) -> AsyncIterator[Cluster]:
    settings = msgspec.structs.replace(SETTINGS, **changes)
    with only_error():
        async with trio.open_nursery() as nursery:
            cluster = Cluster(directory, nursery, settings, files)
            await cluster.start()
            yield cluster
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def no_bugs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The master serves on when it meets a bug of its own: look for them."""
    yield
    for phase in ("setup", "call"):
        for record in caplog.get_records(phase):  # type: ignore[arg-type]
            assert " bug" not in record.getMessage(), record.exc_text


@pytest.fixture
async def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with running(tmp_path / "master", **getattr(request, "param", {})) as made:
        yield made


def with_settings(**changes: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cluster", [changes], indirect=True, ids=[""])


@pytest.fixture
async def servers(cluster: Cluster) -> Servers:
    return await start_servers(cluster, 3)


@pytest.fixture
async def client(cluster: Cluster) -> Client:
    return await cluster.client()


class FakeServer:
    incarnations = itertools.count(1)

    def __init__(
        self, cluster: Cluster, name: str, rack: str = "r", free: int = 10**12, sequence: int = 0
    ) -> None:
        self.cluster = cluster
        self.id = name
        self.rack = rack
        self.disks = [wire.Disk("/disk", 10**12, free, 0)]
        self.sequence = sequence
        self.incarnation = next(self.incarnations)
        #: handle -> (version, length): what is on its disk.
        self.replicas: dict[int, tuple[int, int]] = {}
        #: handle -> state reported when asked to verify, instead of the truth.
        self.corrupt: set[int] = set()
        self.bad: list[wire.BadReplica] = []
        self.used_leases: list[int] = []
        self.extended: list[int] = []
        self.deleted: list[tuple[int, int]] = []
        self.clones: list[wire.CloneChunks] = []
        self.grants: list[wire.GrantLease] = []
        self.revoked: list[int] = []
        #: Called with each order before it is carried out; True: say nothing.
        self.swallow: Callable[[wire.Message], bool] = lambda message: False
        self.refuse: dict[type[wire.Message], errors.GfsError] = {}
        self.report_all = True
        #: All servers, by id: where clones come from.
        self.cluster_servers: dict[str, FakeServer] = {}
        self._scope = trio.CancelScope()
        self._rpc: Rpc | None = None
        #: The master took it once: it comes back by itself.
        self._started = False

    async def start(self) -> None:
        self._scope = trio.CancelScope()
        await self.cluster.nursery.start(self._run)

    def stop(self) -> None:
        """As kill -9: its connection ends, its disk stays."""
        self._scope.cancel()
        self.incarnation = next(self.incarnations)

    async def _run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Registers, and again when the master was away."""
        with self._scope:
            while True:
                try:
                    await self._session(task_status)
                except (ConnectionError, errors.GfsError) as error:
                    if not self._started:
                        raise
                    logging.info("fake %s: %s", self.id, error)
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(0.02)

    async def _session(self, task_status: trio.TaskStatus[None]) -> None:
        identity = Identity("chunkserver", self.id, KEY, self.cluster.cluster)
        connection = await handshake.connect(self.cluster.world, self.cluster.address, identity)
        self._rpc = rpc = Rpc(connection, self._obey)
        failed: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def move() -> None:
                await rpc.run()
                nursery.cancel_scope.cancel()

            nursery.start_soon(move)
            try:
                await self._register(rpc)
                self._started = True
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                while True:
                    await self._beat(rpc)
                    await trio.sleep(0.1)
            except (ConnectionError, errors.GfsError) as error:
                failed.append(error)
                nursery.cancel_scope.cancel()
        if failed:
            raise failed[0]

    async def _register(self, rpc: Rpc) -> None:
        register = wire.Register(
            id=0,
            server=self.id,
            incarnation=self.incarnation,
            address=f"{self.id}:1",
            rack=self.rack,
            disks=self.disks,
            sequence=self.sequence,
        )
        reply, _ = await rpc.call(register)
        assert isinstance(reply, wire.RegisterReply)
        assert reply.cluster == self.cluster.cluster
        assert reply.heartbeat_ms == 100
        orders, _ = await rpc.call(wire.ReportReplicas(id=0, complete=False), self._report([]))
        assert isinstance(orders, wire.Orders)
        orders, _ = await rpc.call(
            wire.ReportReplicas(id=0, complete=True), self._report(list(self.replicas))
        )
        self._take(orders)

    async def _beat(self, rpc: Rpc) -> None:
        heartbeat = wire.Heartbeat(
            id=0, disks=self.disks, chunks=len(self.replicas), bad=self.bad, leases=self.used_leases
        )
        sample = list(self.replicas) if self.report_all else []
        orders, _ = await rpc.call(heartbeat, self._report(sample))
        self._take(orders)

    def _report(self, handles: list[int]) -> bytes:
        records = [(handle, *self.replicas[handle]) for handle in handles]
        return b"".join(struct.pack(">QII", *record) for record in records)

    def _take(self, orders: wire.Message) -> None:
        assert isinstance(orders, wire.Orders)
        assert orders.sequence >= self.sequence
        self.sequence = orders.sequence
        self.extended += orders.extend_leases

    def _obey(self, rpc: Rpc, batch: list[tuple[wire.Message, bytes]]) -> None:
        for message, _ in batch:
            if self.swallow(message):
                continue
            error = self.refuse.get(type(message))
            if error is not None:
                rpc.send_error(message.id, error)
                continue
            rpc.send(self._carry_out(message))

    def _carry_out(self, message: wire.Message) -> wire.Message:
        if isinstance(message, wire.GrantLease):
            self.grants.append(message)
            version, length = self.replicas.get(message.handle, (0, 0))
            assert message.version <= version <= message.new_version
            self.replicas[message.handle] = (message.new_version, length)
        elif isinstance(message, wire.CloneChunks):
            self.clones.append(message)
            source = self.cluster_servers[message.source.partition(":")[0]]
            for name in message.replicas:
                assert source.replicas[name.handle][0] == name.version
                self.replicas[name.handle] = source.replicas[name.handle]
                self.corrupt.discard(name.handle)
                self.bad = [bad for bad in self.bad if bad.handle != name.handle]
            return wire.CloneChunksReply(message.id, [])
        elif isinstance(message, wire.RevokeLease):
            self.revoked.append(message.handle)
        elif isinstance(message, wire.VerifyChunk):
            version, length = self.replicas.get(message.handle, (0, 0))
            state = "good" if version else "missing"
            if message.handle in self.corrupt:
                state = "corrupt"
            return wire.VerifyReply(
                id=message.id, state=state, version=version, length=length, bad_blocks=[]
            )
        elif isinstance(message, wire.DeleteReplicas):
            for name in message.replicas:
                self.deleted.append((name.handle, name.version))
                if self.replicas.get(name.handle, (0, 0))[0] == name.version:
                    del self.replicas[name.handle]
                    self.corrupt.discard(name.handle)
        else:
            raise AssertionError(message)
        return wire.Done(id=message.id)


Servers = list[FakeServer]


async def start_servers(cluster: Cluster, count: int, **more: object) -> Servers:
    servers = [await cluster.server(f"s{n}", **more) for n in range(count)]
    for server in servers:
        server.cluster_servers = {s.id: s for s in servers}
    return servers


class Client:
    def __init__(self, name: str, rpc: Rpc) -> None:
        self.name = name
        self.rpc = rpc
        self.sequence = itertools.count(1)

    async def call(self, message: wire.Message, kind: type[ReplyT], body: bytes = b"") -> ReplyT:
        reply, _ = await self.rpc.call(message, body)
        assert isinstance(reply, kind)
        return reply

    async def patiently(
        self, message: wire.Message, kind: type[ReplyT], body: bytes = b""
    ) -> ReplyT:
        """As a real client: what is retryable is tried again."""
        with trio.fail_after(WAIT_SECONDS):
            while True:
                try:
                    return await self.call(message, kind, body)
                except errors.Retryable:
                    await trio.sleep(0.02)

    async def stat(self, path: str) -> wire.StatReply:
        return await self.call(wire.Stat(0, path), wire.StatReply)

    async def status(self) -> wire.StatusReply:
        return await self.call(wire.Status(0), wire.StatusReply)

    async def locate(self, path: str, inode: int = 0) -> wire.LocateReply:
        return await self.call(wire.Locate(0, path, inode, 0, 100), wire.LocateReply)

    async def holders(self, path: str) -> list[set[str]]:
        """Who is said to hold each chunk."""
        reply = await self.locate(path)
        return [{reply.servers[n].id for n in chunk.servers} for chunk in reply.chunks]

    async def reserve(self, count: int = 1, replication: int = 3) -> wire.ReserveReply:
        return await self.patiently(
            wire.Reserve(0, self.name, count, replication, []), wire.ReserveReply
        )

    def publish_request(
        self,
        path: str,
        chunks: list[wire.ChunkLocation],
        servers: list[wire.ServerAddress],
        replace: bool = False,
        replication: int = 3,
    ) -> tuple[wire.Publish, bytes]:
        request = wire.Publish(
            id=0,
            client=self.name,
            sequence=next(self.sequence),
            path=path,
            length=sum(chunk.length for chunk in chunks),
            replication=replication,
            replace=replace,
            parents=True,
            servers=[server.id for server in servers],
        )
        body = [wire.PublishedChunk(c.handle, c.version, c.length, c.servers) for c in chunks]
        return request, msgspec.msgpack.encode(body)

    async def put(
        self,
        path: str,
        servers: list[FakeServer],
        lengths: tuple[int, ...] = (10,),
        replace: bool = False,
        replication: int = 3,
    ) -> list[wire.ChunkLocation]:
        """Reserve, "write" and publish a file; its chunks."""
        reserved = wire.ReserveReply(0, replication, [], [])
        if lengths:
            reserved = await self.reserve(len(lengths), replication)
        named = {server.id: server for server in servers}
        for chunk, length in zip(reserved.chunks, lengths, strict=True):
            chunk.length = length
            for at in chunk.servers:
                named[reserved.servers[at].id].replicas[chunk.handle] = (chunk.version, length)
        request, body = self.publish_request(
            path, reserved.chunks, reserved.servers, replace, replication
        )
        await self.call(request, wire.PublishReply, body)
        return reserved.chunks

    async def one_chunk(self, path: str, servers: Servers) -> tuple[int, int]:
        """The handle of the one chunk of a new file, and its inode."""
        (chunk,) = await self.put(path, servers)
        return chunk.handle, (await self.stat(path)).entry.inode

    async def lease(
        self, inode: int, index: int, version: int = 0, failed: tuple[str, ...] = ()
    ) -> tuple[wire.LeaseReply, list[str]]:
        request = wire.AcquireLease(
            0, self.name, next(self.sequence), inode, index, version, list(failed)
        )
        reply = await self.patiently(request, wire.LeaseReply)
        return reply, [reply.servers[n].id for n in reply.chunk.servers]

    async def until_held(self, path: str, wanted: set[str]) -> None:
        async def ask() -> bool:
            return await self.holders(path) == [wanted]

        await until_reported(ask, f"{path} is held by {wanted}")

    async def until_states(self, **wanted: str) -> None:
        async def ask() -> bool:
            reported = {server.id: server.state for server in (await self.status()).servers}
            return reported == wanted

        await until_reported(ask, f"the servers' states are {wanted}")

    async def until_totals(self, **wanted: int) -> None:
        reported: dict[str, int] = {}

        async def ask() -> bool:
            totals = (await self.status()).totals
            reported.update({name: getattr(totals, name) for name in wanted})
            return reported == wanted

        try:
            await until_reported(ask, f"the totals are {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}: they stay {reported}") from None


async def test_a_file_is_there_when_it_is_published(client: Client, servers: Servers) -> None:
    with pytest.raises(errors.NotFound):
        await client.stat("/d/f")
    chunks = await client.put("/d/f", servers, (CHUNK, 7))
    entry = (await client.stat("/d/f")).entry
    assert (entry.path, entry.kind, entry.length, entry.chunks) == ("/d/f", "file", CHUNK + 7, 2)
    found = await client.locate("/d/f")
    assert [c.handle for c in found.chunks] == [c.handle for c in chunks]
    assert [c.length for c in found.chunks] == [CHUNK, 7]
    assert await client.holders("/d/f") == [{"s0", "s1", "s2"}] * 2
    totals = (await client.status()).totals
    assert (totals.files, totals.directories, totals.chunks) == (1, 1, 2)
    assert totals.bytes == CHUNK + 7
    usage = await client.call(wire.DiskUsage(0, "/"), wire.DiskUsageReply)
    assert (usage.files, usage.directories, usage.bytes) == (1, 1, CHUNK + 7)
    assert usage.replicated_bytes == 3 * (CHUNK + 7)


async def test_chunks_that_are_reserved_together_have_the_same_servers(
    cluster: Cluster, client: Client
) -> None:
    await start_servers(cluster, 8)
    chains = []
    for together in (True, True, False):
        reply = await client.patiently(
            wire.Reserve(0, client.name, 20, 3, [], together), wire.ReserveReply
        )
        chains.append([[reply.servers[n].id for n in chunk.servers] for chunk in reply.chunks])
    assert len({chunk.handle for chunk in reply.chunks}) == 20
    assert chains[0] == [chains[0][0]] * 20
    assert chains[1] == [chains[1][0]] * 20
    assert not set(chains[0][0]) & set(chains[1][0]), "those with the fewest new chunks are next"
    assert len({tuple(chain) for chain in chains[2]}) > 5


#: One of each, on a tree with a file and directories, and a file in the trash.
MUTATIONS: dict[type[wire.Mutation], tuple[object, ...]] = {
    wire.Publish: ("/published", 0, 3, False, False, []),
    wire.Join: ("/published", 0, 3, False, False, []),
    wire.MakeDirectory: ("/made", False, False),
    wire.Rename: ("/file", "/renamed", False, False),
    wire.Delete: ("/file", False),
    wire.Prune: ("/empty", "/"),
    wire.SetLength: (),
    wire.Undelete: ("/deleted",),
    wire.EmptyTrash: ("/deleted",),
    wire.SetReplication: ("/file", 2),
    wire.SetAttributes: ("/file", {"a": "b"}),
    wire.Snapshot: ("/directory", "/snapshot"),
}


@pytest.mark.parametrize(
    "kind", [*wire.Mutation.__subclasses__(), wire.Join], ids=lambda kind: kind.__name__
)
async def test_a_retry_gets_the_first_answer_whatever_has_changed_since(
    tmp_path: Path, kind: type[wire.Mutation]
) -> None:
    """Its answer was lost; others have deleted all there was, and have put other things in
    its place; the disk of the metadata is full, and the master a new one."""
    files = Files()
    async with running(tmp_path, files, trash_seconds=300.0) as cluster:
        servers = await start_servers(cluster, 3)
        client, other = await cluster.client(), await cluster.client("client-2")
        await client.put("/directory/in it", servers)
        await client.put("/deleted", servers)
        await client.call(
            wire.Delete(0, client.name, next(client.sequence), "/deleted", False), wire.Done
        )
        await client.put("/file", servers)
        empty = wire.MakeDirectory(0, client.name, next(client.sequence), "/empty", False, False)
        await client.call(empty, wire.StatReply)
        fields = MUTATIONS[kind]
        if kind is wire.SetLength:
            fields = ((await client.stat("/file")).entry.inode, 7)
        request = kind(0, client.name, next(client.sequence), *fields)

        async def ask(asking: Client) -> wire.Message:
            while True:
                reply = await asking.call(
                    request, wire.Message, b"\x90" if issubclass(kind, wire.Publish) else b""
                )
                if not isinstance(reply, wire.SnapshotReply) or reply.done:
                    return msgspec.structs.replace(reply, id=0)

        first = await ask(client)

        async def names() -> list[str]:
            reply = await other.call(wire.List(0, "/", "", 100), wire.ListReply)
            return [f"{entry.path} {entry.inode} {entry.length}" for entry in reply.entries]

        for name in await names():
            path = name.split()[0]
            delete = wire.Delete(0, other.name, next(other.sequence), path, True, now=True)
            await other.call(delete, wire.Done)
        for path in ("/file", "/directory", "/deleted", "/made", "/published", "/renamed"):
            await other.put(path, servers)
        await other.call(
            wire.Delete(0, other.name, next(other.sequence), "/deleted", False), wire.Done
        )
        left = await names()

        files.free = 0
        await cluster.restart()
        client, other = await cluster.client(), await cluster.client("client-2")

        async def is_full() -> bool:
            made = wire.MakeDirectory(0, other.name, next(other.sequence), "/file/in", False, False)
            try:
                await other.call(made, wire.Message)
            except errors.GfsError as error:
                return error.code == "disk_full"
            return False

        await until_reported(is_full, "the disk is full")
        assert await ask(client) == first
        assert await names() == left
        trash = await other.call(wire.ListTrash(0, "/deleted", b"", 10), wire.ListTrashReply)
        assert trash.entries[-1].path == "/deleted"


async def test_mutations_and_their_refusals(client: Client) -> None:
    number = client.sequence
    name = client.name
    request = wire.MakeDirectory(0, name, next(number), "/a/b", True, False, attributes={"a": "b"})
    made = await client.call(request, wire.StatReply)
    again = wire.MakeDirectory(0, name, next(number), "/a/b", False, True)
    assert (await client.call(again, wire.StatReply)).entry == made.entry
    with pytest.raises(errors.AlreadyExists):
        await client.call(
            wire.MakeDirectory(0, name, next(number), "/a/b", False, False), wire.StatReply
        )
    await client.call(wire.Rename(0, name, next(number), "/a", "/c/d", False, True), wire.Done)
    listing = await client.call(wire.List(0, "/c/d", "", 10), wire.ListReply)
    assert ([e.path for e in listing.entries], listing.more) == (["/c/d/b"], False)
    with pytest.raises(errors.GfsError, match="not empty"):
        await client.call(wire.Delete(0, name, next(number), "/c", False), wire.Done)
    await client.call(wire.Delete(0, name, next(number), "/c", True), wire.Done)
    with pytest.raises(errors.NotFound):
        await client.stat("/c")
    await client.until_totals(directories=0, files=0)


async def test_files_below_a_directory_and_directories_that_are_empty(cluster: Cluster) -> None:
    client = await cluster.client()
    number, name = client.sequence, client.name
    for path in ("/a/b/c/d", "/a/b!", "/e"):
        publish = wire.Publish(0, name, next(number), path, 0, 1, False, True, [])
        await client.call(publish, wire.PublishReply, msgspec.msgpack.encode([]))
    whole = await client.call(wire.ListFiles(0, "/", b"", b"", 10), wire.ListFilesReply)
    assert [entry.path for entry in whole.entries] == ["/a/b!", "/a/b/c/d", "/e"]
    assert whole.cursor == b""
    first = await client.call(wire.ListFiles(0, "/a", b"b", b"", 1), wire.ListFilesReply)
    assert ([entry.path for entry in first.entries], first.cursor) == (["/a/b!"], b"b!")
    with pytest.raises(errors.NotFound):
        await client.call(wire.ListFiles(0, "/none", b"", b"", 10), wire.ListFilesReply)
    prune = wire.Prune(0, name, next(number), "/a/b/c", "/a")
    with pytest.raises(errors.GfsError, match="not empty"):
        await client.call(prune, wire.Done)
    await client.call(wire.Delete(0, name, next(number), "/a/b/c/d", False), wire.Done)
    with pytest.raises(errors.GfsError, match="is a file"):
        await client.call(wire.Prune(0, name, next(number), "/a/b!", "/a"), wire.Done)
    with pytest.raises(errors.GfsError, match="not a directory above"):
        await client.call(wire.Prune(0, name, next(number), "/a/b/c", "/e"), wire.Done)
    prune = wire.Prune(0, name, next(number), "/a/b/c", "/a")
    await client.call(prune, wire.Done)
    await client.call(prune, wire.Done)  # the same request again
    left = await client.call(wire.List(0, "/a", "", 10), wire.ListReply)
    assert [entry.path for entry in left.entries] == ["/a/b!"]
    await client.until_totals(directories=1, files=2)


async def test_one_page_of_a_tree_is_read_in_each_turn_of_the_loop(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that others are answered in between, however many were asked for."""
    client = await cluster.client()
    turns: list[int] = []
    page = subtree.page

    class Turns(trio.abc.Instrument):
        count = 0

        def before_io_wait(self, timeout: float) -> None:
            self.count += 1

    def counted(txn: Txn, request: wire.ListFiles) -> object:
        turns.append(instrument.count)
        return page(txn, request)

    instrument = Turns()
    monkeypatch.setattr(subtree, "page", counted)
    trio.lowlevel.add_instrument(instrument)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                question = wire.ListFiles(0, "/", b"", b"", 10)
                nursery.start_soon(client.call, question, wire.ListFilesReply)
    finally:
        trio.lowlevel.remove_instrument(instrument)
    assert len(turns) == 100
    assert len(set(turns)) == 100


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"length": 11}, errors.InvalidArgument, "for a length of 11"),
        ({"handle": 10**6}, errors.InvalidArgument, "never allocated"),
        ({"version": 2**32}, errors.InvalidArgument, "impossible version"),
        ({"chunk_length": CHUNK + 1}, errors.InvalidArgument, "last chunk"),
        ({"servers": []}, errors.InvalidArgument, "by any chunkserver"),
        ({"servers": [5]}, errors.InvalidArgument, "server 5 of"),
        ({"replication": 65}, errors.InvalidArgument, "replication of 65"),
        ({"path": "/x/../y"}, errors.GfsError, "refused"),
        ({"digest": b"short"}, errors.InvalidArgument, "digest of 5 bytes"),
        ({"attributes": {"UP": ""}}, errors.InvalidArgument, "named 'UP'"),
        ({"attributes": {"a": "b" * 1024}}, errors.InvalidArgument, "1025 bytes"),
        ({"expect": -2}, errors.InvalidArgument, "inode -2"),
        ({"expect": 77}, errors.FileChanged, "replaced or deleted meanwhile"),
        ({"below": "/g"}, errors.InvalidArgument, "/g is not a directory above /f"),
        ({"below": "g"}, errors.GfsError, "begin with /"),
        ({"body": b"\xff\x00"}, errors.ProtocolError, "cannot be decoded"),
        ({"twice": True}, errors.InvalidArgument, "twice"),
    ],
)
async def test_what_cannot_be_published(
    cluster: Cluster,
    client: Client,
    change: dict[str, object],
    error: type[errors.GfsError],
    text: str,
) -> None:
    await start_servers(cluster, 3)
    reserved = await client.reserve()
    chunk = reserved.chunks[0]
    chunk.length = 10
    for field in ("handle", "version", "servers"):
        if field in change:
            setattr(chunk, field, change[field])
    chunk.length = change.get("chunk_length", 10)  # type: ignore[assignment]
    chunks = [chunk]
    if change.get("twice"):
        chunk.length = CHUNK
        chunks = [chunk, chunk]
    request, body = client.publish_request("/f", chunks, reserved.servers)
    for field in ("length", "replication", "path", "digest", "attributes", "expect", "below"):
        if field in change:
            setattr(request, field, change[field])
    with pytest.raises(error, match=text):
        await client.call(request, wire.PublishReply, change.get("body", body))  # type: ignore[arg-type]
    with pytest.raises(errors.NotFound):
        await client.stat("/f")


async def test_a_chunk_is_published_once_and_by_its_client(cluster: Cluster) -> None:
    await start_servers(cluster, 3)
    client, thief = await cluster.client(), await cluster.client("client-2")
    reserved = await client.reserve()
    reserved.chunks[0].length = 5
    stolen, body = thief.publish_request("/g", reserved.chunks, reserved.servers)
    with pytest.raises(errors.InvalidArgument, match="another client"):
        await thief.call(stolen, wire.PublishReply, body)
    request, body = client.publish_request("/f", reserved.chunks, reserved.servers)
    await client.call(request, wire.PublishReply, body)
    request, body = client.publish_request("/h", reserved.chunks, reserved.servers)
    with pytest.raises((errors.ChunkUnavailable, errors.Busy)):
        await client.call(request, wire.PublishReply, body)


async def test_a_replaced_file_is_another_file(client: Client, servers: Servers) -> None:
    old = await client.put("/f", servers)
    inode = (await client.stat("/f")).entry.inode
    with pytest.raises(errors.AlreadyExists):
        await client.put("/f", servers)
    await client.put("/f", servers, replace=True)
    # Who has it open can go on reading it, unless there is no space for that.
    assert (await client.locate("/f", inode)).chunks[0].handle == old[0].handle
    servers[0].disks = [wire.Disk("/disk", 10**12, 0, 0, "full")]
    await until(
        lambda: all((old[0].handle, 1) in server.deleted for server in servers),
        "the old file's replicas are deleted",
    )
    with pytest.raises(errors.FileChanged):
        await client.locate("/f", inode)
    await client.until_totals(files=1, chunks=1)


async def test_too_few_servers_is_reported_and_passes(cluster: Cluster, client: Client) -> None:
    with pytest.raises(errors.NotEnoughChunkservers, match=r"needs 2 .* 0 can .*\(0 live\)"):
        await client.call(wire.Reserve(0, client.name, 1, 3, []), wire.ReserveReply)
    await start_servers(cluster, 2)
    reserved = await client.reserve()
    assert len(reserved.chunks[0].servers) == 2
    with pytest.raises(errors.NotEnoughChunkservers, match="needs 2"):
        await client.call(wire.Reserve(0, client.name, 1, 3, ["s0"]), wire.ReserveReply)
    single = await client.call(wire.Reserve(0, client.name, 1, 1, ["s0"]), wire.ReserveReply)
    assert [server.id for server in single.servers] == ["s1"]


async def test_all_disks_of_very_many_servers_are_reported(cluster: Cluster) -> None:
    """More than one head of a message holds."""
    disks = [wire.Disk(f"/srv/gfs/disk-{n}", 10**12, 10**11, n, id=f"{n:032x}") for n in range(24)]
    for number in range(40):
        server = await cluster.server(f"s{number:031}", rack=f"r{number % 3}")
        server.disks = disks
    async with connect(cluster.address, key=KEY, world=cluster.world) as fs:

        async def all_reported() -> bool:
            servers = (await fs.status()).servers
            assert len({server.id for server in servers}) == len(servers) == 40
            return all(server.disks == disks for server in servers)

        await until_reported(all_reported, "every disk is reported")


async def test_full_and_failed_disks_get_nothing(cluster: Cluster, servers: Servers) -> None:
    servers[0].disks = [wire.Disk("/disk", 10**12, 0, 0, "full")]
    client = await cluster.client()

    async def ask() -> bool:
        reserved = await client.reserve()
        return {server.id for server in reserved.servers} == {"s1", "s2"}

    await until_reported(ask, "the full server gets nothing")


async def test_recover_leaves_the_failed_server_out(cluster: Cluster, client: Client) -> None:
    await start_servers(cluster, 3)
    reserved = await client.reserve()
    chunk = reserved.chunks[0]
    failed = reserved.servers[chunk.servers[0]].id
    request = wire.Recover(0, client.name, chunk.handle, 1, [failed])
    first = await client.call(request, wire.RecoverReply)
    assert first.chunk.version == 2
    left = {server.id for server in first.servers}
    assert left == {"s0", "s1", "s2"} - {failed}
    again = await client.call(request, wire.RecoverReply)
    assert (again.chunk, again.servers) == (first.chunk, first.servers)
    chunk.length = 5
    publish, body = client.publish_request("/f", [chunk], reserved.servers)
    with pytest.raises(errors.StaleVersion, match="version 2"):
        await client.call(publish, wire.PublishReply, body)
    everyone = wire.Recover(0, client.name, chunk.handle, 2, ["s0", "s1", "s2"])
    for _ in range(2):
        with pytest.raises(errors.ChunkUnavailable, match="write this part again"):
            await client.call(everyone, wire.RecoverReply)


@with_settings(garbage_grace_seconds=1000.0)
async def test_a_released_upload_is_deleted_at_once(client: Client, servers: Servers) -> None:
    reserved = await client.reserve()
    handle = reserved.chunks[0].handle
    for server in servers:
        server.replicas[handle] = (1, 5)
    await client.call(wire.Release(0, client.name, [handle, 999]), wire.Done)
    await until(lambda: all(server.deleted == [(handle, 1)] for server in servers), "deletion")


@with_settings(client_silence_seconds=0.5)
async def test_an_upload_whose_client_is_gone_is_collected(
    cluster: Cluster, servers: Servers
) -> None:
    gone, alive = await cluster.client("gone"), await cluster.client("alive")
    lost = (await gone.reserve()).chunks[0].handle
    kept = (await alive.reserve()).chunks[0].handle
    for server in servers:
        server.replicas = {lost: (1, 5), kept: (1, 5)}
    with trio.fail_after(WAIT_SECONDS):
        while any((lost, 1) not in server.deleted for server in servers):
            await alive.call(wire.Ping(0), wire.Done)
            await trio.sleep(0.02)
    assert all(kept in server.replicas for server in servers)


@with_settings(dead_seconds=30.0)
async def test_a_short_absence_copies_nothing(cluster: Cluster, client: Client) -> None:
    servers = await start_servers(cluster, 4)
    await client.put("/f", servers)
    holders = (await client.holders("/f"))[0]
    away = next(server for server in servers if server.id in holders)
    away.stop()
    live = {server.id: "live" for server in servers}
    await client.until_states(**{**live, away.id: "silent"})
    found = await client.locate("/f")
    assert found.servers[found.chunks[0].servers[-1]].id == away.id, "silent ones come last"
    assert (await client.reserve()).chunks[0].servers
    await away.start()
    await client.until_states(**live)
    assert not any(server.clones or server.deleted for server in servers)


@with_settings(clones_per_server=1, clones_total=1)
async def test_most_endangered_chunks_are_copied_first(
    cluster: Cluster, client: Client, servers: Servers
) -> None:
    order: list[int] = []
    for n in range(5):
        await client.put(f"/two{n}", servers)
    one = [(await client.put(f"/one{n}", servers))[0].handle for n in range(5)]
    for handle in one:
        servers[1].replicas.pop(handle)
        servers[1].bad.append(wire.BadReplica(handle, 1, "corrupt"))
    for server in servers[:2]:
        server.refuse[wire.CloneChunks] = errors.Busy("not now")
    await client.until_totals(under_replicated=5)
    servers[0].stop()
    await client.until_totals(under_replicated=10)
    for handle in one:
        assert handle in servers[2].replicas
    spare = FakeServer(cluster, "s3")
    spare.cluster_servers = {s.id: s for s in servers}
    spare.refuse[wire.CloneChunks] = errors.Busy("not now")

    def note(message: wire.Message) -> bool:
        if isinstance(message, wire.CloneChunks):
            order.extend(name.handle for name in message.replicas)
        return False

    spare.swallow = note
    await spare.start()
    await until(lambda: len(set(order)) == 10, "the spare server gets a copy of each")
    assert set(list(dict.fromkeys(order))[:5]) == set(one)


async def test_lost_and_found(cluster: Cluster, client: Client) -> None:
    servers = await start_servers(cluster, 2)
    await client.put("/f", servers)
    for server in servers:
        server.stop()
    await client.until_totals(lost=1)
    assert await client.holders("/f") == [set()]
    await servers[0].start()
    await client.until_totals(lost=0, under_replicated=1)
    await servers[1].start()
    await client.until_held("/f", {"s0", "s1"})


async def test_corrupt_replicas_are_replaced_where_they_are(
    client: Client, servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gfs")
    handle = (await client.put("/f", servers))[0].handle
    servers[1].corrupt.add(handle)
    servers[1].refuse[wire.CloneChunks] = errors.Busy("not yet")
    servers[1].bad = [wire.BadReplica(handle, 1, "corrupt")]
    await client.until_totals(corrupt=1, under_replicated=1)
    assert await client.holders("/f") == [{"s0", "s2"}]
    del servers[1].refuse[wire.CloneChunks]
    await client.until_totals(corrupt=0, under_replicated=0)
    assert await client.holders("/f") == [{"s0", "s1", "s2"}]
    (order,) = servers[1].clones
    assert {order.source, *order.others} == {"s0:1", "s2:1"}
    assert not any(server.deleted for server in servers)
    assert f"corrupt replica: chunk {handle:x}" in caplog.text
    assert repairs(caplog) == [{"server": "s1", "version": 1, "how": "replaced"}]


def repairs(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """What was reported of corrupt replicas that are none any more."""
    reported = [
        getattr(record, "gfs_fields", {})
        for record in caplog.records
        if (getattr(record, "gfs_event", "") == "corruption_repaired")
    ]
    return [{name: one[name] for name in ("server", "version", "how")} for one in reported]


async def test_corrupt_replicas_are_deleted_once_there_are_enough(
    cluster: Cluster, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gfs")
    servers = await start_servers(cluster, 4)
    handle = (await client.put("/f", servers))[0].handle
    holders = (await client.holders("/f"))[0]
    sick = next(server for server in servers if server.id in holders)
    spare = next(server for server in servers if server.id not in holders)
    sick.refuse[wire.CloneChunks] = errors.Busy("not me")
    spare.refuse[wire.CloneChunks] = errors.Busy("not yet")
    sick.corrupt.add(handle)
    sick.bad = [wire.BadReplica(handle, 1, "corrupt")]
    await client.until_totals(corrupt=1)
    assert not sick.deleted
    assert not repairs(caplog)
    del spare.refuse[wire.CloneChunks]
    await until(lambda: sick.deleted == [(handle, 1)], "the corrupt replica is deleted")
    assert repairs(caplog)[-1] == {"server": sick.id, "version": 1, "how": "deleted"}
    sick.bad = []
    await client.until_totals(corrupt=0, under_replicated=0)
    assert spare.id in (await client.holders("/f"))[0]


async def test_a_reader_s_report_is_checked_first(client: Client, servers: Servers) -> None:
    handle = (await client.put("/f", servers))[0].handle
    asked: list[int] = []
    for server in servers:
        server.swallow = lambda m: bool(isinstance(m, wire.VerifyChunk) and asked.append(m.handle))
    await client.call(wire.ReportReplica(0, handle, 1, "s0", "corrupt"), wire.Done)
    await client.call(wire.ReportReplica(0, handle, 1, "s0", "corrupt"), wire.Done)
    await until(lambda: asked, "the server is asked")
    assert await client.holders("/f") == [{"s0", "s1", "s2"}]
    servers[2].corrupt.add(handle)
    servers[2].refuse[wire.CloneChunks] = errors.Busy("not yet")
    await client.call(wire.ReportReplica(0, handle, 1, "s2", "corrupt"), wire.Done)
    await client.until_held("/f", {"s0", "s1"})
    assert asked.count(handle) == 2
    del servers[2].refuse[wire.CloneChunks]
    await client.until_held("/f", {"s0", "s1", "s2"})


@with_settings(garbage_grace_seconds=1.0)
async def test_orphans_are_listed_and_collected_after_the_grace(
    cluster: Cluster, client: Client
) -> None:
    server = await cluster.server("s0")
    other = await cluster.server("s1")
    handle = (await client.reserve()).chunks[0].handle
    # A handle of before: reserved, and given up when the master was restarted.
    await cluster.restart()
    client = await cluster.client()
    server.replicas[handle] = (1, 5)
    other.replicas[10**9] = (1, 5)
    await client.until_totals(orphaned=1)
    garbage = await client.call(wire.ListGarbage(0, 0, 10), wire.ListGarbageReply)
    assert [(g.server, g.handle, g.kind) for g in garbage.replicas] == [("s0", handle, "orphaned")]
    await until(lambda: server.deleted == [(handle, 1)], "the orphan is deleted")
    await client.until_totals(orphaned=0)
    # What was never handed out by this master is nothing it may judge.
    assert other.replicas
    assert not other.deleted


async def test_a_lease_raises_the_version_everywhere(cluster: Cluster, servers: Servers) -> None:
    client, other = await cluster.client(), await cluster.client("client-2")
    handle, inode = await client.one_chunk("/f", servers)
    reply, chain = await client.lease(inode, 0)
    assert (reply.chunk.handle, reply.chunk.version, reply.chunk.length) == (handle, 2, 10)
    assert sorted(chain) == ["s0", "s1", "s2"]
    assert 8_000 < reply.lease_ms <= 9_000
    for server in servers:
        assert server.replicas[handle][0] == 2
        assert bool(server.grants[0].lease_ms) == (server.id == chain[0])
    again, same = await other.lease(inode, 0)
    assert (again.chunk.version, same) == (2, chain)
    page = await client.call(wire.FsckPage(0, "/f", b"", 10), wire.FsckPageReply)
    assert page.chunks[0].primary == chain[0]
    assert page.chunks[0].lease_ms > 0
    primary = next(server for server in servers if server.id == chain[0])
    secondary = next(server for server in servers if server.id == chain[1])
    primary.used_leases = secondary.used_leases = [handle]
    await until(lambda: primary.extended, "the lease is extended")
    assert not secondary.extended
    await client.call(wire.Delete(0, client.name, 50, "/f", False), wire.Done)
    primary.extended.clear()
    await until(lambda: not primary.replicas, "the file is reclaimed")
    assert not primary.extended


@with_settings(dead_seconds=30.0)
async def test_a_broken_chain_gets_a_new_version_without_the_failed(
    client: Client, servers: Servers
) -> None:
    handle, inode = await client.one_chunk("/f", servers)
    _, chain = await client.lease(inode, 0)
    failed = next(server for server in servers if server.id == chain[1])
    failed.stop()
    reply, left = await client.lease(inode, 0, version=2, failed=(failed.id,))
    assert (reply.chunk.version, set(left)) == (3, set(chain) - {failed.id})
    # The same break reported again: the present chain is the answer.
    again, same = await client.lease(inode, 0, version=2, failed=(failed.id,))
    assert (again.chunk.version, same) == (3, left)
    # It comes back with the old version: stale, and replaced.
    await failed.start()
    await until(lambda: failed.replicas.get(handle) == (3, 10), "a fresh copy")
    await client.until_totals(stale=0, under_replicated=0)


@with_settings(dead_seconds=30.0)
async def test_a_replica_that_does_not_answer_is_left_behind_for_good(
    client: Client, servers: Servers
) -> None:
    """It may have taken the version that was sent: so that one is not used."""
    handle, inode = await client.one_chunk("/f", servers)
    mute = servers[1]

    def take_and_say_nothing(message: wire.Message) -> bool:
        if isinstance(message, wire.GrantLease):
            mute.replicas[handle] = (message.new_version, 10)
            return True
        return isinstance(message, wire.CloneChunks)

    mute.swallow = take_and_say_nothing
    reply, chain = await client.lease(inode, 0)
    assert set(chain) == {"s0", "s2"}
    assert reply.chunk.version > mute.replicas[handle][0]
    await client.until_totals(stale=1)
    assert (await client.holders("/f")) == [{"s0", "s2"}]


@with_settings(dead_seconds=30.0)
async def test_nobody_answers_and_nothing_is_lost(client: Client, servers: Servers) -> None:
    handle, inode = await client.one_chunk("/f", servers)
    for server in servers:
        server.refuse[wire.GrantLease] = errors.Busy("the disk hangs")
    request = wire.AcquireLease(0, client.name, 9, inode, 0, 0, [])
    with pytest.raises(errors.Retryable, match="took a new lease"):
        await client.call(request, wire.LeaseReply)
    assert await client.holders("/f") == [{"s0", "s1", "s2"}]
    assert [s.replicas[handle][0] for s in servers] == [1, 1, 1]
    for server in servers:
        server.refuse.clear()
    reply, chain = await client.lease(inode, 0)
    assert (reply.chunk.version, len(chain)) == (3, 3)


async def test_a_chunk_is_added_and_the_file_grows(client: Client, servers: Servers) -> None:
    await client.put("/f", servers, ())
    inode = (await client.stat("/f")).entry.inode
    with pytest.raises(errors.InvalidArgument, match="only the next"):
        await client.call(wire.AcquireLease(0, client.name, 9, inode, 1, 0, []), wire.LeaseReply)
    reply, chain = await client.lease(inode, 0)
    assert (reply.chunk.version, reply.chunk.length, len(chain)) == (2, 0, 3)
    assert all(server.replicas[reply.chunk.handle] == (2, 0) for server in servers)
    again, _ = await client.lease(inode, 0)
    assert again.chunk.handle == reply.chunk.handle
    for server in servers:
        server.replicas[reply.chunk.handle] = (2, 99)
    await client.call(wire.SetLength(0, client.name, 77, inode, 99), wire.Done)
    assert (await client.stat("/f")).entry.length == 99
    with pytest.raises(errors.InvalidArgument):
        await client.call(wire.SetLength(0, client.name, 78, inode, CHUNK + 1), wire.Done)
    with pytest.raises(errors.NotFound):
        await client.call(wire.AcquireLease(0, client.name, 79, 12345, 0, 0, []), wire.LeaseReply)


async def test_concurrent_clients_get_one_lease(
    cluster: Cluster, client: Client, servers: Servers
) -> None:
    await client.put("/f", servers, ())
    inode = (await client.stat("/f")).entry.inode
    got = set()

    async def one(name: str) -> None:
        reply, chain = await (await cluster.client(name)).lease(inode, 0)
        got.add((reply.chunk.handle, reply.chunk.version, *chain))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one, f"c{number}")
    assert len(got) == 1
    assert (await client.stat("/f")).entry.chunks == 1


async def test_a_leased_chunk_is_revoked_before_it_is_copied(
    cluster: Cluster, client: Client
) -> None:
    servers = await start_servers(cluster, 4)
    handle, inode = await client.one_chunk("/f", servers)
    _, chain = await client.lease(inode, 0)
    primary = next(server for server in servers if server.id == chain[0])
    dead = next(server for server in servers if server.id == chain[2])
    dead.stop()
    await client.until_totals(under_replicated=0)
    await until(lambda: primary.revoked, "the lease is revoked")
    await client.until_held("/f", {s.id for s in servers} - {dead.id})
    assert all(handle in s.replicas for s in servers)


@with_settings(garbage_grace_seconds=1000.0)
async def test_an_upload_is_published_from_what_servers_report(
    cluster: Cluster, client: Client, servers: Servers
) -> None:
    reserved = await client.reserve()
    chunk = reserved.chunks[0]
    chunk.length = 5
    for server in servers[:2]:
        server.replicas[chunk.handle] = (1, 5)
    await cluster.restart()
    client = await cluster.client()
    request, body = client.publish_request("/f", reserved.chunks, reserved.servers)
    await client.patiently(request, wire.PublishReply, body)
    await client.until_held("/f", {"s0", "s1", "s2"})


@with_settings(dead_seconds=3.0)
async def test_a_restarted_master_waits_for_its_servers(cluster: Cluster, client: Client) -> None:
    servers = await start_servers(cluster, 4)
    await client.put("/f", servers)
    holders = (await client.holders("/f"))[0]
    missing = next(server for server in servers if server.id in holders)
    missing.stop()
    reserved = await client.reserve()
    reserved.chunks[0].length = 5
    request, body = client.publish_request("/g", reserved.chunks, reserved.servers)
    await cluster.restart()
    client = await cluster.client()
    with pytest.raises(errors.Busy, match="is in safe mode"):
        await client.call(request, wire.PublishReply, body)
    totals = (await client.status()).totals
    assert (totals.lost, totals.under_replicated) == (0, 0)
    assert not any(server.clones or server.deleted for server in servers)
    # Once the missing one is given up, its chunk is copied.
    await until(lambda: any(server.clones for server in servers), "the copy")
    with pytest.raises(errors.ChunkUnavailable, match="write this part again"):
        await client.call(request, wire.PublishReply, body)


@pytest.mark.parametrize("ahead", [2, 3])
async def test_a_version_above_the_master_s_is_taken(
    cluster: Cluster, client: Client, servers: Servers, ahead: int
) -> None:
    """The master failed between raising replicas and confirming the version."""
    handle = (await client.put("/f", servers))[0].handle
    await cluster.stop()
    for server in servers[:ahead]:
        server.replicas[handle] = (2, 10)
    servers[2].swallow = lambda message: isinstance(message, wire.CloneChunks)
    await cluster.start()
    client = await cluster.client()
    await client.until_held("/f", {server.id for server in servers[:ahead]})
    assert (await client.locate("/f")).chunks[0].version == 2
    await client.until_totals(under_replicated=3 - ahead)
    # Durably: the next grant bears a version above it.
    await cluster.restart()
    client = await cluster.client()
    inode = (await client.stat("/f")).entry.inode
    reply, _ = await client.lease(inode, 0)
    assert reply.chunk.version > 2


async def test_short_replicas_do_not_count(
    cluster: Cluster, client: Client, servers: Servers
) -> None:
    handle = (await client.put("/f", servers))[0].handle
    await cluster.stop()
    servers[0].replicas[handle] = (1, 9)
    servers[0].refuse[wire.CloneChunks] = errors.Busy("not yet")
    await cluster.start()
    client = await cluster.client()
    await client.until_totals(corrupt=1)
    # The short one may be the first to come back.
    await client.until_held("/f", {"s1", "s2"})
    del servers[0].refuse[wire.CloneChunks]
    await client.until_totals(corrupt=0, under_replicated=0)
    assert servers[0].replicas[handle] == (1, 10)


async def test_a_master_with_old_metadata_gets_no_servers(cluster: Cluster) -> None:
    with pytest.raises(errors.StaleVersion, match="restore newer metadata"):
        await cluster.server("s0", sequence=10**6)
    client = await cluster.client()
    assert (await client.status()).servers == []


async def test_an_older_process_of_a_server_is_refused(cluster: Cluster) -> None:
    server = await cluster.server("s0")
    older = FakeServer(cluster, "s0")
    older.incarnation = 0
    with pytest.raises(errors.StaleVersion, match="former process"):
        await older.start()
    newer = FakeServer(cluster, "s0")
    server._scope.cancel()
    await newer.start()
    client = await cluster.client()
    assert [s.state for s in (await client.status()).servers] == ["live"]


async def test_a_copy_for_a_shadow_master_ends_with_its_last_piece(cluster: Cluster) -> None:
    """Another may be begun."""
    identity = Identity("shadow", "shadow", KEY, cluster.cluster)
    rpc = Rpc(await handshake.connect(cluster.world, cluster.address, identity))
    cluster.nursery.start_soon(rpc.run)
    for _ in range(2):
        for number in itertools.count():
            piece, _ = await rpc.call(wire.ReadCopy(id=0, number=number))
            assert isinstance(piece, wire.CopyPiece)
            if piece.last:
                break


async def test_each_role_has_its_own_requests(cluster: Cluster, client: Client) -> None:
    with pytest.raises(errors.ProtocolError, match="Heartbeat is not for the master from a client"):
        await client.call(wire.Heartbeat(0, [], 0, [], []), wire.Orders)
    identity = Identity("chunkserver", "x", KEY, cluster.cluster)
    connection = await handshake.connect(cluster.world, cluster.address, identity)
    rpc = Rpc(connection)
    cluster.nursery.start_soon(rpc.run)
    server = Client("x", rpc)
    with pytest.raises(errors.ProtocolError, match="before Register"):
        await server.call(wire.Heartbeat(0, [], 0, [], []), wire.Orders)
    with pytest.raises(errors.ProtocolError, match="Stat is not for the master from a chunkserver"):
        await server.call(wire.Stat(0, "/"), wire.StatReply)
    await client.stat("/")


async def test_half_a_replica_is_no_report(cluster: Cluster) -> None:
    server = await cluster.server("s1")
    assert server._rpc is not None
    with pytest.raises(errors.ProtocolError, match="not a whole number of entries"):
        await server._rpc.call(wire.ReportReplicas(id=0, complete=False), bytes(1))


@pytest.mark.parametrize(
    "request_",
    [
        wire.Locate(0, "/", -1, 0, 1),
        wire.Locate(0, "/", 2**64 - 1, 0, 1),
        wire.Locate(0, "/", 0, -5, 1),
        wire.List(0, "/", "", 0),
        wire.List(0, "/", "", -(2**60)),
        wire.Reserve(0, "client-1", 0, 3, []),
        wire.Reserve(0, "client-1", 2**60, 3, []),
        wire.Reserve(0, "client-1", 1, -1, []),
        wire.Reserve(0, "", 1, 3, []),
        wire.Reserve(0, "x" * 65, 1, 3, []),
        wire.Recover(0, "client-1", 0, 1, []),
        wire.Recover(0, "client-1", 2**64 - 1, 1, []),
        wire.Delete(0, "client-1", -1, "/x", False),
        wire.SetLength(0, "client-1", 1, -1, 5),
        wire.SetLength(0, "client-1", 1, 1, 5),
        wire.AcquireLease(0, "client-1", 1, -1, 0, 0, []),
        wire.AcquireLease(0, "client-1", 1, 1, 2**40, 0, []),
        wire.FsckPage(0, "/", b"\xc1", 1),
        wire.ReportReplica(0, 1, 1, "nobody", "corrupt"),
        wire.Stat(0, "relative"),
    ],
)
async def test_senseless_requests_are_refused_one_by_one(
    client: Client, request_: wire.Message, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(errors.GfsError) as caught:
        await client.call(request_, wire.Done)
    assert caught.value.code != "internal"
    assert (await client.stat("/")).entry.kind == "directory"
    assert "bug" not in caplog.text


async def test_a_taken_address_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(errors.StartupError, match="cannot listen at") as caught:
        await run_master(cluster.world, cluster.settings, str(tmp_path / "other"), KEY)
    assert caught.value.exit_code == 2


class Files:
    """A disk with so much free."""

    free = 10**12

    def space(self, path: str) -> DiskSpace:
        return DiskSpace(10**12, self.free)


async def test_a_full_metadata_disk_refuses_growth_and_nothing_else(tmp_path: Path) -> None:
    files = Files()
    files.free = 0
    async with running(tmp_path, files) as cluster:
        client = await cluster.client()
        numbers = itertools.count(1)

        async def make_directory() -> str:
            number = next(numbers)
            request = wire.MakeDirectory(0, client.name, number, f"/{number}", False, False)
            try:
                await client.call(request, wire.StatReply)
            except errors.GfsError as error:
                return error.code
            return "done"

        assert await make_directory() in ("done", "disk_full")
        await until_reported(refused(make_directory), "growth is refused")
        await client.stat("/")
        with pytest.raises(errors.NotFound):
            await client.call(wire.Delete(0, client.name, 10**6, "/none", False), wire.Done)
        files.free = 10**12

        async def again() -> bool:
            return await make_directory() == "done"

        await until_reported(again, "growth is allowed again")


def refused(make: Callable[[], Awaitable[str]]) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return await make() == "disk_full"

    return ask


async def test_fsck_pages_show_every_chunk_once(client: Client, servers: Servers) -> None:
    for number in range(12):
        lengths = (CHUNK,) * (number % 4) + (5,)
        await client.put(f"/d{number % 3}/f{number}", servers, lengths)
    await client.put("/empty", servers, ())
    seen: list[wire.FsckChunk] = []
    files, cursor = 0, b""
    while True:
        page = await client.call(wire.FsckPage(0, "/", cursor, 2), wire.FsckPageReply)
        assert len(page.chunks) <= 2
        seen += page.chunks
        files += page.files
        cursor = page.cursor
        if not cursor:
            break
    names = [(chunk.path, chunk.index) for chunk in seen]
    assert names == sorted(names)
    assert len(set(names)) == len(names) == sum(number % 4 + 1 for number in range(12))
    assert files == 13
    assert all(len(chunk.servers) == chunk.goal == 3 for chunk in seen)
    page = await client.call(wire.FsckPage(0, "/d0/f3", b"", 100), wire.FsckPageReply)
    assert (page.files, len(page.chunks), page.cursor) == (1, 4, b"")

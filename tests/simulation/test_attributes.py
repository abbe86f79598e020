"""What a file carries beside its bytes, and names taken only as expected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from random import Random

import pytest
import trio
from xxhash import xxh3_64_digest, xxh3_128_digest

from gfs.blocks import BLOCK_BYTES, CHUNK_BYTES, MIB
from gfs.client import Client, ExistingFile
from gfs.config import ClientSettings
from gfs.errors import (
    AlreadyExists,
    FileChanged,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from gfs.protocol.messages import AcquireLease
from gfs.testing import SimCluster

from .promises import content
from .seeds import over_seeds
from .test_data_path import asked_of_master

ATTRIBUTES = {"content-type": "text/plain; charset=utf-8", "owner": "ä"}
POOL_BUFFERS = 4
SMALL_POOL = ClientSettings(memory_bytes=POOL_BUFFERS * MIB)


def digest_of(data: bytes) -> bytes:
    """As docs/formats.md tells it. Chunks are whole numbers of blocks."""
    blocks = range(0, len(data), BLOCK_BYTES)
    return xxh3_128_digest(b"".join(xxh3_64_digest(data[at : at + BLOCK_BYTES]) for at in blocks))


async def write_in_pieces(fs: Client, path: str, data: bytes, chance: Random) -> None:
    async with fs.create(path, overwrite=True) as file:
        done = 0
        while done < len(data):
            count = chance.randrange(1, 2 * MIB)
            await file.write(data[done : done + count])
            done += count


@pytest.mark.parametrize(
    "length",
    [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, MIB, 2 * MIB + 70_000, CHUNK_BYTES, CHUNK_BYTES + 100_000],
)
@over_seeds(1)
async def test_a_digest_is_that_of_the_stored_sums(chance: Random, fs: Client, length: int) -> None:
    data = content(chance, length)
    entry = await fs.put(data, "/put")
    assert entry.digest == digest_of(data)
    assert len(entry.digest) == 16
    await write_in_pieces(fs, "/written", data, chance)
    assert (await fs.stat("/written")).digest == entry.digest


@over_seeds(2, client=SMALL_POOL)
async def test_a_digest_does_not_depend_on_the_pool(chance: Random, fs: Client) -> None:
    """With it empty, packets are small; in between they may be large again; and nobody starves."""
    data = content(chance, 3 * MIB + 12_345)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(fs.put, data, f"/{number}")
        for number in range(4 * POOL_BUFFERS):
            nursery.start_soon(write_in_pieces, fs, f"/in-pieces-{number}", data, chance)
    assert {entry.digest for entry in await fs.list("/")} == {digest_of(data)}


@pytest.mark.parametrize(
    ("pieces", "known"),
    [
        ([BLOCK_BYTES, 10], True),
        ([3 * BLOCK_BYTES, 2 * MIB], True),
        ([10], True),
        ([10, 0], True),
        ([10, 1], False),
        ([BLOCK_BYTES + 10, BLOCK_BYTES], False),
    ],
)
@over_seeds(1)
async def test_a_flush_inside_a_block_gives_the_digest_up(
    chance: Random, fs: Client, pieces: list[int], known: bool
) -> None:
    data = content(chance, sum(pieces))
    async with fs.create("/file") as file:
        done = 0
        for count in pieces:
            await file.write(data[done : done + count])
            await file.flush()
            done += count
    assert await fs.get("/file") == data
    assert (await fs.stat("/file")).digest == (digest_of(data) if known else b"")


@over_seeds(6, chunkservers=5)
async def test_what_is_sent_again_is_not_counted_again(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    data = content(chance, 20 * MIB + 5)
    async with fs.create("/file") as file:
        await file.write(data[: 6 * MIB])
        (chunk,) = file._upload._chunks
        victim = chance.choice(chunk.chain).address.partition(":")[0]
        await cluster.crash(victim)
        await file.write(data[6 * MIB :])
    assert chunk.version > 1, "nothing was sent again"
    assert (await fs.stat("/file")).digest == digest_of(data)


def on_leases(fs: Client, action: Callable[[], Awaitable[None]]) -> None:
    """Have ``action`` done after each grant, before its first use."""
    ask = fs._core.master.ask

    async def wrapped(request: object, *rest: object) -> object:
        reply: object = await ask(request, *rest)  # type: ignore[arg-type]
        if isinstance(request, AcquireLease):
            await action()
        return reply

    fs._core.master.ask = wrapped  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("where", ["inside", "at the end", "a chunk more"])
@over_seeds(2)
async def test_a_digest_is_gone_before_the_first_byte_changes(
    chance: Random, cluster: SimCluster, fs: Client, where: str
) -> None:
    """Durably: the master is killed between the grant and the write."""
    length = CHUNK_BYTES if where == "a chunk more" else 200_000
    data = content(chance, length)
    offset = 10 if where == "inside" else length
    granted = 0
    async with cluster.client() as other:
        await fs.put(data, "/file", attributes=ATTRIBUTES)
        await fs.put(data, "/other")

        async def look() -> None:
            nonlocal granted
            if not granted:
                await cluster.restart("master")
            granted += 1
            entry = await other.stat("/file")
            assert (entry.digest, entry.attributes) == (b"", ATTRIBUTES)
            assert await other.get("/file") == data

        on_leases(fs, look)
        async with await fs.open("/file", "r+") as file:
            assert isinstance(file, ExistingFile)
            assert file.entry.digest == digest_of(data)
            await file.pwrite(offset, b"new")
            assert file.entry.digest == b""
        assert granted
        entry = await fs.stat("/file")
        assert (entry.digest, entry.attributes) == (b"", ATTRIBUTES)
        assert (await fs.stat("/other")).digest == digest_of(data)


@over_seeds(1)
async def test_attributes_are_in_every_entry(cluster: SimCluster, fs: Client) -> None:
    put = await fs.put(b"x", "/d/file", attributes=ATTRIBUTES)
    assert put.attributes == ATTRIBUTES
    await cluster.restart("master")
    await fs.rename("/d", "/e")
    entry = await fs.stat("/e/file")
    assert (entry.attributes, entry.digest) == (ATTRIBUTES, digest_of(b"x"))
    assert await fs.list("/e") == [entry]
    assert [e async for e in fs.scan("/e")] == [entry]
    assert entry in [e async for e in fs.walk("/")]
    assert (await fs.locate("/e/file")).entry == entry
    async with await fs.open("/e/file") as file:
        assert isinstance(file, ExistingFile)
        assert file.entry == entry
    async with fs.create("/e/new", attributes={"a": "b"}) as new:
        await new.write(b"x")
    assert new.entry.attributes == (await fs.stat("/e/new")).attributes == {"a": "b"}
    # A file that replaces another keeps nothing of it.
    await fs.put(b"y", "/e/new", overwrite=True)
    assert (await fs.stat("/e/new")).attributes == {}


@over_seeds(1)
async def test_mistakes_are_reported_before_anything_is_sent(fs: Client) -> None:
    with asked_of_master() as asked:
        for wrong in ({"A": "b"}, {"a": "b" * 1025}, {f"{n}": "" for n in range(17)}):
            with pytest.raises(InvalidArgument):
                await fs.put(b"x", "/file", attributes=wrong)
            with pytest.raises(InvalidArgument):
                fs.create("/file", attributes=wrong)
        with pytest.raises(InvalidName):
            fs.create("/file", parents="")
        with pytest.raises(InvalidName):
            fs.create("/" + "x" * 5000)
        with pytest.raises(InvalidArgument):
            fs.create("/file", expect=-1)
        with pytest.raises(InvalidArgument):
            await fs.delete("/file", expect=-1)
        for path in ("/\udcff", "/" + "x" * 80_000, b"/bytes", 7, None):
            for call in (fs.stat, fs.mkdir, fs.get, fs.delete, fs.disk_usage, fs.locate, fs.fsck):
                with pytest.raises(InvalidName):
                    await call(path)  # type: ignore[operator,arg-type]
            with pytest.raises(InvalidName):
                await fs.put(b"x", path)  # type: ignore[arg-type]
            with pytest.raises(InvalidName):
                await fs.rename("/a", path)  # type: ignore[arg-type]
        with pytest.raises(InvalidName):
            await anext(fs.scan("/", "\ud800"))
    assert not asked
    assert fs._core.uploads == 0


@over_seeds(1)
async def test_a_file_is_replaced_only_as_expected(fs: Client) -> None:
    first = await fs.put(b"1", "/d/file", expect=0)
    with pytest.raises(AlreadyExists):
        await fs.put(b"2", "/d/file", expect=0, overwrite=True)
    second = await fs.put(b"2", "/d/file", expect=first.inode)
    with pytest.raises(FileChanged, match="replaced or deleted meanwhile"):
        await fs.put(b"3", "/d/file", expect=first.inode, overwrite=True)
    with pytest.raises(FileChanged):
        async with fs.create("/d/file", expect=first.inode) as file:
            await file.write(b"3")
    assert await fs.get("/d/file") == b"2"
    with pytest.raises(FileChanged):
        await fs.delete("/d/file", expect=first.inode)
    await fs.delete("/d/file", expect=second.inode)
    with pytest.raises(NotFound):
        await fs.delete("/d/file", expect=second.inode)
    for path in ("/d/file", "/gone/file"):
        with pytest.raises(FileChanged):
            await fs.put(b"4", path, expect=second.inode)
        assert not await fs.exists(path)
    assert not await fs.exists("/gone")
    directory = await fs.stat("/d")
    with pytest.raises(IsADirectory):
        await fs.put(b"4", "/d", expect=directory.inode)
    await fs.delete("/d", expect=directory.inode)


@over_seeds(1)
async def test_all_names_are_listed_by_their_bytes(fs: Client) -> None:
    names = ["a", "b c", "ü", "日本", "x" * 255, "%2e%2e", "-rf", "a\nb"]
    for name in names:
        await fs.put(name.encode(), f"/d/{name}")
    for after in (*names, "", "b", "x" * 300, "~"):
        listed = [entry.path async for entry in fs.scan("/d", after)]
        later = sorted(name.encode() for name in names if name.encode() > after.encode())
        assert listed == [f"/d/{name.decode()}" for name in later]
    await fs.rename("/d", "/moved")
    assert await fs.get("/moved/日本") == "日本".encode()


@over_seeds(1)
async def test_directories_are_made_only_below(fs: Client) -> None:
    await fs.mkdir("/space")
    await fs.put(b"x", "/space/a/b", parents="/space")
    await fs.put(b"x", "/file", parents="/")
    async with fs.create("/space/c/d", parents="/space") as file:
        await file.write(b"x")
    file = fs.create("/space/e", parents="/space")
    await file.write(b"x")
    await fs.delete("/space", recursive=True)
    with pytest.raises(NotFound, match=r"^/space: no such directory"):
        await file.close()
    with pytest.raises(NotFound, match=r"^/space/deep: no such directory"):
        await fs.put(b"x", "/space/deep/a", parents="/space/deep")
    assert not await fs.exists("/space")
    with pytest.raises(NotADirectory):
        await fs.put(b"x", "/file/a", parents="/file")
    for path in ("/a", "/spac/a", "/spaces/a", "/space"):
        with pytest.raises(InvalidArgument, match="not a directory above"):
            await fs.put(b"x", path, parents="/space")


@over_seeds(1)
async def test_a_small_new_file_costs_what_put_costs(fs: Client) -> None:
    with asked_of_master() as of_put:
        await fs.put(b"x" * 1024, "/put")
    with asked_of_master() as asked:
        async with fs.create("/created") as file:
            assert not asked
            await file.write(b"x" * 1024)
    assert asked == of_put
    assert (asked["Publish"], asked["Stat"]) == (1, 0)


@over_seeds(1)
async def test_any_buffer_can_be_written(fs: Client) -> None:
    async with fs.create("/file") as file:
        numbers = memoryview(bytes(range(8))).cast("H")
        for piece in (b"ab", bytearray(b"cd"), numbers, memoryview(b"").cast("H"), b""):
            assert await file.write(piece) == memoryview(piece).nbytes
    assert await fs.get("/file") == b"abcd" + bytes(range(8))


@over_seeds(1)
async def test_an_open_file_is_streamed_without_another_look(chance: Random, fs: Client) -> None:
    data = content(chance, 2 * MIB + 100_000)
    await fs.put(data, "/file")
    with asked_of_master() as asked:
        async with await fs.open("/file") as file:
            assert isinstance(file, ExistingFile)
            for offset, length in [
                (0, None), (0, 0), (0, 1), (5, 10), (BLOCK_BYTES - 5, 10), (70_000, MIB),
                (2 * MIB, None), (len(data) - 1, 99), (len(data), None), (len(data) + 5, 5),
            ]:  # fmt: skip
                got = b""
                async with aclosing(file.stream(offset, length)) as pieces:
                    async for view in pieces:
                        assert 0 < len(view) <= MIB
                        got += view
                end = len(data) if length is None else offset + length
                assert got == data[offset:end]
            assert await file.pread(7, 9) == data[7:16]
            with pytest.raises(InvalidArgument):
                await anext(file.stream(-1))
    assert asked.keys() == {"Locate", "ReadChunk"}
    assert asked["Locate"] == 1
    with pytest.raises(ValueError, match="closed"):
        file.stream()


@over_seeds(1, client=SMALL_POOL)
async def test_readers_that_stall_starve_nobody(chance: Random, fs: Client) -> None:
    """More of them than the pool has buffers; and what they see stays right."""
    data = content(chance, 2 * MIB + 100_000)
    await fs.put(data, "/file")
    async with AsyncExitStack() as stack:
        stalled = []
        for _ in range(3 * POOL_BUFFERS):
            pieces = await stack.enter_async_context(aclosing(fs.stream("/file")))
            view = await anext(pieces)
            stalled.append((pieces, view, len(view)))
        assert fs._core.buffers.acquire_now() is None
        with trio.fail_after(60):
            assert b"".join([bytes(v) async for v in fs.stream("/file")]) == data
            await fs.put(data, "/other")
        assert {size for _, _, size in stalled} == {MIB, BLOCK_BYTES}
        for pieces, view, size in stalled:
            assert view == data[:size]
            rest = [bytes(v) async for v in pieces]
            assert b"".join(rest) == data[size:]
    # All that was taken is given back.
    for _ in range(POOL_BUFFERS):
        assert fs._core.buffers.acquire_now() is not None


@over_seeds(1, client=SMALL_POOL)
async def test_a_small_range_leaves_the_pool_alone(chance: Random, fs: Client) -> None:
    data = content(chance, MIB)
    await fs.put(data, "/file")
    ranges = [(0, 100), (60_000, BLOCK_BYTES), (MIB - 10, None)]
    for offset, length in ranges:
        async with aclosing(fs.stream("/file", offset, length)) as pieces:
            await anext(pieces)
            taken = [fs._core.buffers.acquire_now() for _ in range(POOL_BUFFERS)]
            assert None not in taken
            for buffer in taken:
                if buffer is not None:
                    fs._core.buffers.release(buffer)


@over_seeds(1)
async def test_attributes_and_times_are_set_later(chance: Random, fs: Client) -> None:
    data = content(chance, 70_000)
    entry = await fs.put(data, "/f", attributes=ATTRIBUTES, modified_ns=5)
    assert entry.modified_ns == 5
    changed = await fs.set_attributes("/f", {"owner": "b"}, expect=entry.inode)
    assert changed.attributes == ATTRIBUTES | {"owner": "b"}
    assert (changed.inode, changed.digest, changed.modified_ns) == (entry.inode, entry.digest, 5)
    changed = await fs.set_attributes("/f", removed=ATTRIBUTES, modified_ns=9)
    assert changed == await fs.stat("/f")
    assert (changed.attributes, changed.modified_ns) == ({}, 9)
    with pytest.raises(FileChanged):
        await fs.set_attributes("/f", ATTRIBUTES, expect=entry.inode + 1)
    with pytest.raises(InvalidArgument):
        await fs.set_attributes("/f", {"Big": ""})
    made = await fs.mkdir("/d/e", parents=True, attributes=ATTRIBUTES)
    assert (made.attributes, (await fs.stat("/d")).attributes) == (ATTRIBUTES, {})
    assert (await fs.set_attributes("/", {"a": "b"})).attributes == {"a": "b"}
    assert (await fs.snapshot("/f", "/g")).done
    assert (await fs.stat("/g")).modified_ns == 9
    async with fs.create("/h", attributes=ATTRIBUTES) as file:
        file.describe({"a": "b"}, 7)
    assert (file.entry.attributes, file.entry.modified_ns) == ({"a": "b"}, 7)

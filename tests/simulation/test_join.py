"""Files that are joined to one: it has what they had, and each goes its own way afterwards."""

from __future__ import annotations

from random import Random

import pytest
import trio

from gfs.blocks import CHUNK_BYTES
from gfs.client import Client, Entry
from gfs.errors import FileChanged, InvalidArgument
from gfs.testing import SimCluster

from .metadata import problems, read_metadata
from .promises import content, wait_settled
from .seeds import over_seeds

WRITERS = 30


@pytest.mark.costly
@over_seeds(2)
async def test_a_file_that_was_joined_has_the_bytes_of_all(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    first, second, third = (content(chance, CHUNK_BYTES) for _ in range(3))
    parts = [first, b"", second + third, content(chance, 100_000)]
    files = [await fs.put(data, f"/parts/{at}", replication=2) for at, data in enumerate(parts)]
    whole = b"".join(parts)
    before = await fs.put(b"replaced", "/whole")

    async def join(these: list[Entry]) -> Entry:
        async with fs.create("/whole", overwrite=True, expect=before.inode) as file:
            file.join(these)
            assert file.length == sum(each.length for each in these)
        assert file.replaced == before
        assert file.entry is not None
        return file.entry

    for refused in ([files[3], files[0]], [await fs.stat("/parts")]):
        with pytest.raises(InvalidArgument):
            await join(refused)
    joined = await join(files)
    assert (joined.length, joined.chunks) == (len(whole), 4)
    assert joined == await fs.stat("/whole")
    assert await fs.get("/whole") == whole
    assert (await fs.status()).totals.shared_bytes == len(whole)

    async with await fs.open("/parts/0", "r+") as file:
        await file.pwrite(7, b"the part's")
    async with await fs.open("/whole", "r+") as file:
        await file.pwrite(3 * CHUNK_BYTES + 7, b"the whole's")
    changed = bytearray(whole)
    changed[3 * CHUNK_BYTES + 7 : 3 * CHUNK_BYTES + 7 + len(b"the whole's")] = b"the whole's"
    assert await fs.get("/whole") == changed
    assert await fs.get("/parts/3") == parts[3]
    with pytest.raises(FileChanged):  # it was written
        async with fs.create("/again") as file:
            file.join([await fs.stat("/parts/0"), files[3]])
    await fs.delete("/parts/2")
    with pytest.raises(FileChanged):  # it is gone
        async with fs.create("/again") as file:
            file.join(files[2:])
    assert not await fs.exists("/again")
    await fs.delete("/parts", recursive=True, now=True)
    await fs.empty_trash("/", recursive=True)
    await cluster.restart("master")
    await trio.sleep(30)
    assert await fs.get("/whole") == changed
    assert (await fs.status()).totals.shared_bytes == 0
    await wait_settled(cluster, fs)
    assert not problems(read_metadata(cluster.directory))


@over_seeds(3)
async def test_who_writes_meanwhile_changes_one_of_both(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    async def once(number: int) -> None:
        path, old = f"/{number}", content(chance, 100_000)
        source = await fs.put(old, path)

        async with await fs.open(path, "r+") as file, trio.open_nursery() as nursery:
            nursery.start_soon(file.pwrite, 0, b"written")
            await trio.sleep(chance.random() / 100)
            try:
                async with fs.create(f"{path}-joined") as new:
                    new.join([source])
            except FileChanged:
                return
        assert await fs.get(f"{path}-joined") == old
        assert (await fs.get(path)).startswith(b"written")

    async with trio.open_nursery() as nursery:
        for number in range(WRITERS):
            nursery.start_soon(once, number)

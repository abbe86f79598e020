"""Networks that are slow beside the machines, as the paper's was."""

from __future__ import annotations

from random import Random

import trio

from gfs.blocks import MIB
from gfs.client import Client
from gfs.testing import SimCluster

from .promises import content, replicas
from .seeds import over_seeds
from .test_data_path import counted

#: 100 Mbit/s.
LINK_BYTES_PER_SECOND = 12_500_000


@over_seeds(2, chunkservers=3)
async def test_servers_pass_a_packet_on_while_it_arrives(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """The paper, 3.2: 1 MB comes to all replicas in the time of one link, and not of three."""
    data = content(chance, MIB)
    await fs.put(b"warm", "/warm")
    cluster.network.bytes_per_second = LINK_BYTES_PER_SECOND
    began = trio.current_time()
    await fs.put(data, "/file")
    links = (trio.current_time() - began) / (len(data) / LINK_BYTES_PER_SECOND)
    assert links < 2, f"it took the time of {links:.1f} links"
    assert await fs.get("/file") == data


@over_seeds(2, chunkservers=3)
async def test_records_may_be_on_their_way_for_long(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Nothing failed: one request of this client takes 5 s to arrive."""
    records = [content(chance, MIB // 4) for _ in range(4)]
    await fs.append("/log", b"first")
    before = (await fs.locate("/log")).chunks[0].version
    cluster.network.bytes_per_second = MIB / 5
    await fs.append_many("/log", records)
    cluster.network.bytes_per_second = None
    assert (await fs.locate("/log")).chunks[0].version == before, "the chain was given up"
    assert [record.data async for record in fs.records("/log")] == [b"first", *records]


@over_seeds(2, chunkservers=3)
async def test_a_reader_stays_with_a_server_that_is_slow(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """Another one would be no faster, and what is under way would be sent in vain."""
    data = content(chance, 4 * MIB)
    await fs.put(data, "/file")
    cluster.network.bytes_per_second = MIB
    began = trio.current_time()
    assert await fs.get("/file") == data
    assert trio.current_time() - began < 4.5, "bytes were sent in vain"


@over_seeds(2, user="writer")
async def test_links_of_a_chain_are_never_idle(
    chance: Random, cluster: SimCluster, fs: Client
) -> None:
    """A server does not wait for an acknowledgement while the next one still writes; the client
    sends once."""
    data = content(chance, 16 * MIB)
    await fs.put(b"warm", "/warm")
    cluster.network.bytes_per_second = LINK_BYTES_PER_SECOND
    cluster.network.buffer_bytes = 4 * MIB
    for name in cluster.chunkservers:
        cluster.machine(name).blocking_seconds = (0.03, 0.03)
    began = trio.current_time()
    with counted(cluster) as sent:
        await fs.put(data, "/file")
    links = (trio.current_time() - began) / (len(data) / LINK_BYTES_PER_SECOND)
    assert 1 <= links < 1.2, f"it took the time of {links:.2f} links"
    heavy = {pair: count for pair, count in sent.items() if count > MIB}
    assert len(heavy) == 3
    assert [source for source, _ in heavy].count("writer") == 1
    assert all(len(data) <= count < len(data) + MIB for count in heavy.values())
    assert await replicas(fs, "/file") == 3

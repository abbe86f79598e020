"""Shadow masters: they have what the master has, and can take its place.

What the master acknowledged with ``replicas_before_ack`` survives the loss of its
machine; a master of an old term is heard by nobody; a shadow whose history is
another one is noticed and starts over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from functools import partial
from random import Random

import pytest
import trio

from gfs.blocks import MIB
from gfs.client import Client
from gfs.config import ClientSettings
from gfs.errors import (
    Busy,
    DiskFailed,
    DiskFull,
    GfsError,
    NotFound,
    NotTheMaster,
    StaleVersion,
)
from gfs.master.metadata import terms
from gfs.master.metadata.store import Store, open_only
from gfs.master.shadows import log_receiver, log_sender, promises
from gfs.master.shadows.log_receiver import Following
from gfs.master.shadows.log_sender import BEAT_SECONDS
from gfs.protocol.handshake import Identity
from gfs.protocol.messages import Bind, Position, PositionReply, Retire, ShadowStatus

from .promises import content
from .seeds import over_seeds
from .shadowed import MASTER, ShadowedCluster, address
from .test_master_deaths import Acknowledged


class Steady(Acknowledged):
    """Fewer operations a second than could be done: the tests are of minutes."""

    async def _rename(self, fs: Client, path: str) -> None:
        await trio.sleep(self.chance.uniform(0, 0.2))
        await super()._rename(fs, path)

    async def _delete(self, fs: Client, path: str) -> None:
        await trio.sleep(self.chance.uniform(0, 0.2))
        await super()._delete(fs, path)


def rows(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    with store.read() as txn:
        names = [name for name in txn.db._fields if name != "meta"]
        return {name: list(txn.scan(b"", getattr(txn.db, name))) for name in names}


def stored(cluster: ShadowedCluster, name: str) -> dict[str, list[tuple[bytes, bytes]]]:
    """All rows of a master that does not run."""
    return stored_in(cluster.metadata(name))


def stored_in(directory: str) -> dict[str, list[tuple[bytes, bytes]]]:
    store = open_only(directory, 1 << 28, False)
    try:
        return rows(store)
    finally:
        store.close()


@over_seeds(4, kind=ShadowedCluster)
async def test_a_shadow_follows_and_serves_reads(chance: Random, cluster: ShadowedCluster) -> None:
    data = content(chance, 3 * MIB)
    async with cluster.client() as fs:
        await fs.put(data, "/a/file")
        await fs.rename("/a/file", "/a/other")
        await fs.mkdir("/b")
        await trio.sleep(1)
        async with cluster.at("shadow0") as reader:
            status = await reader.status()
            assert (status.role, status.behind_operations) == ("shadow", 0)
            assert status.sequence == (await fs.status()).sequence
            assert status.master == "master:9400"
            assert [entry.path for entry in await reader.list("/")] == ["/a", "/b"]
            assert await reader.get("/a/other") == data
            assert (await reader.disk_usage("/")).files == 1
            assert not (await reader.fsck()).damaged
            with pytest.raises(NotTheMaster, match="the master is at master:9400"):
                await reader.mkdir("/c")
    await cluster.level("shadow0")
    for name in cluster.masters:
        await cluster.crash(name)
    assert stored(cluster, "shadow0") == stored(cluster, MASTER)


@over_seeds(4, kind=ShadowedCluster, replicas_before_ack=1)
async def test_nothing_acknowledged_is_lost_with_the_masters_machine(
    chance: Random, cluster: ShadowedCluster, one: Client, other: Client
) -> None:
    """Under load, the master dies for good at any moment, and the shadow takes over."""
    work = Acknowledged(chance)
    await cluster.level("shadow0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.write, one, "one")
        nursery.start_soon(work.write, other, "other")
        await trio.sleep(chance.uniform(0, 0.4))
        await cluster.crash(MASTER)
        await trio.sleep(chance.choice([0, 0.5, 3]))
        reply = await cluster.promote("shadow0")
        assert reply.message == "it has everything that was acknowledged"
        # It waits for a shadow as well before it acknowledges: the old master can be it.
        nursery.cancel_scope.cancel()
    await make_shadow_of(cluster, MASTER, "shadow0")
    assert cluster.deposed == set()
    await cluster.level(MASTER)
    await work.check(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.write, one, "three")
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()
    await work.check(other)


@over_seeds(2, kind=ShadowedCluster)
async def test_of_an_away_shadow_only_what_is_known_is_reported(
    cluster: ShadowedCluster, fs: Client
) -> None:
    await fs.mkdir("/a")
    await cluster.level("shadow0")
    await cluster.crash("shadow0")
    before = (await fs.status()).sequence
    await fs.mkdir("/b")
    await trio.sleep(5)
    status = await fs.status()
    [shadow] = status.shadows
    assert (shadow.state, shadow.sequence, status.sequence) == ("away", before, before + 1)
    assert 5000 <= shadow.behind_ms <= 5000 + 1000 * (BEAT_SECONDS + 1)

    # A master that never saw it follow: it had been the master itself.
    await cluster.start("shadow0")
    await cluster.level("shadow0")
    await cluster.crash(MASTER)
    await cluster.promote("shadow0", force=True)
    [shadow] = (await fs.status()).shadows
    assert shadow == ShadowStatus("master:9400", "away", -1, -1)


@over_seeds(2, kind=ShadowedCluster)
async def test_a_new_shadow_waits_for_its_master_calmly(
    cluster: ShadowedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    for name in cluster.masters:
        await cluster.crash(name)
    shutil.rmtree(cluster.metadata("shadow0"))
    with caplog.at_level(logging.INFO, "gfs.master"):
        cluster.begin("shadow0")
        await trio.sleep(50)
    told = [each for each in caplog.records if each.name == log_receiver.__name__]
    # After 0, 0.5, 1.5, 3.5 and 7.5 s, then every 5 s, if it is refused at once.
    assert 8 <= len(told) <= 13
    await cluster.start(MASTER)
    await cluster.level("shadow0")


async def make_shadow_of(cluster: ShadowedCluster, name: str, master: str) -> None:
    """As an operator does with the master that was lost and found."""
    cluster.shadow_of[name] = master
    await cluster.start(name)


@over_seeds(4)
async def test_clients_go_on_through_a_promotion(seed: int, chance: Random) -> None:
    """Planned: the master lives, under load. Nothing is lost and nobody notices."""
    work = Steady(chance)
    async with (
        ShadowedCluster(seed, replicas_before_ack=chance.choice([0, 1])) as cluster,
        cluster.client() as one,
        cluster.client() as other,
    ):
        await cluster.level("shadow0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.write, one, "one")
            nursery.start_soon(work.write, other, "other")
            await trio.sleep(chance.uniform(0, 0.4))
            reply = await cluster.promote("shadow0")
            assert "nothing is lost" in reply.message
            await trio.sleep(1)
            before = len(work.done)
            await trio.sleep(chance.uniform(1, 3))
            assert len(work.done) > before, "the writers stand still"
            # And back.
            await cluster.level(MASTER)
            await cluster.promote(MASTER)
            await trio.sleep(3)
            nursery.cancel_scope.cancel()
        await work.check(one)
        status = await other.status()
        assert (status.term >> 32, status.role) == (2, "master")
        assert cluster.deposed == set()


@over_seeds(4, kind=ShadowedCluster)
async def test_the_old_master_comes_back(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """Its term is over: nobody acts on what it says, and it says so itself."""
    await fs.put(b"old", "/file")
    await cluster.level("shadow0")
    await cluster.crash(MASTER)
    with pytest.raises(StaleVersion, match="may be lost"):
        await cluster.promote("shadow0")
    await cluster.promote("shadow0", force=True)
    await fs.put(b"new", "/file", overwrite=True)
    await trio.sleep(chance.uniform(0, 5))
    cluster.begin(MASTER)
    await cluster.wait_until(lambda: MASTER in cluster.deposed, 10, "the old one's end")
    assert await fs.get("/file") == b"new"
    # Started again it does not even try.
    cluster.deposed.clear()
    await cluster.restart(MASTER)
    assert cluster.deposed == {MASTER}
    # As a shadow it may come back.
    await cluster.crash(MASTER)
    await make_shadow_of(cluster, MASTER, "shadow0")
    await cluster.level(MASTER)
    async with cluster.at(MASTER) as reader:
        assert await reader.get("/file") == b"new"


@over_seeds(4, kind=ShadowedCluster, shadows=2, replicas_before_ack=1)
async def test_a_master_that_is_cut_off_acknowledges_nothing(
    chance: Random, cluster: ShadowedCluster, stray: Client, fs: Client
) -> None:
    """It lives, and some clients reach it, but not its shadow, which is promoted."""
    await cluster.level(*cluster.shadows)
    await fs.put(b"both", "/file")
    await trio.sleep(1)
    others = [*cluster.shadows, *cluster.chunkservers, "client1", "operator9"]
    cluster.network.partition([MASTER, "stray"], [n for n in others if n != "stray"])
    await trio.sleep(chance.uniform(0, 8))
    with trio.move_on_after(2) as scope:
        await stray.mkdir("/lost")
    assert scope.cancelled_caught, "acknowledged without a shadow"
    await cluster.promote("shadow0", force=True)
    await cluster.level("shadow1")
    await fs.mkdir("/kept")
    cluster.network.heal()
    await cluster.wait_until(lambda: MASTER in cluster.deposed, 30, "the old one's end")
    await stray.mkdir("/later")
    assert [entry.path for entry in await stray.list("/")] == ["/file", "/kept", "/later"]


@over_seeds(4, kind=ShadowedCluster, user="client")
async def test_chunkservers_obey_no_master_whose_term_is_over(
    chance: Random, cluster: ShadowedCluster, stray: Client, fs: Client
) -> None:
    """It lives, and of all who know better only chunkservers reach it, over connections
    from before; and one client, who still takes it for the master."""
    data = content(chance, MIB)
    await fs.put(data, "/file")
    await cluster.level("shadow0")
    cluster.network.partition([MASTER, "stray"], ["shadow0", "client"])
    await cluster.promote("shadow0", force=True)

    async def all_know() -> bool:
        status = await cluster.status_of("shadow0")
        return (
            status is not None
            and status.role == "master"
            and all(server.state == "live" for server in status.servers)
        )

    await cluster.wait_until(all_know, 30)
    with trio.move_on_after(10), contextlib.suppress(GfsError):
        if chance.random() < 0.5:
            await stray.delete("/file", now=True)
        else:
            async with await stray.open("/file", "r+") as file:
                await file.pwrite(0, b"of no master")
    await trio.sleep(20)
    try:
        found = await fs.get("/file")
    except GfsError as error:
        raise AssertionError(f"/file is lost: {error}") from error
    assert found == data
    assert cluster.deposed == {MASTER}


@over_seeds(4, kind=ShadowedCluster)
async def test_what_only_the_old_master_had_means_nothing_new(
    cluster: ShadowedCluster, fs: Client
) -> None:
    """A shadow that was behind is promoted: the numbers of what is lost, handles,
    inodes and versions, are not given to anything else."""
    await fs.put(b"1" * 100, "/kept")
    await cluster.level("shadow0")
    cluster.network.partition(["shadow0"], [MASTER])
    await trio.sleep(7)
    lost = await fs.put(b"2" * 100, "/lost")
    async with await fs.open("/kept", "r+") as file:
        await file.write(b"3")  # a version that the shadow does not know
    versions = (await fs.locate("/kept")).chunks[0].version
    await cluster.crash(MASTER)
    with pytest.raises(StaleVersion, match="may be lost"):
        await cluster.promote("shadow0")
    await cluster.promote("shadow0", force=True)
    cluster.network.heal()
    assert [entry.path for entry in await fs.list("/")] == ["/kept"]
    new = await fs.put(b"4" * 100, "/new")
    assert new.inode > lost.inode
    handles = {chunk.handle for chunk in (await fs.locate("/new")).chunks}
    assert min(handles) > 1 << 48
    assert await fs.get("/new") == b"4" * 100
    assert (await fs.get("/kept"))[1:] == b"1" * 99
    async with await fs.open("/kept", "r+") as file:
        await file.write(b"5")
    assert (await fs.locate("/kept")).chunks[0].version > versions
    assert await fs.get("/kept") == b"5" + b"1" * 99


@over_seeds(4, kind=ShadowedCluster, shadows=2)
async def test_a_shadow_of_another_history_starts_over(
    cluster: ShadowedCluster, fs: Client
) -> None:
    """Two shadows; the one that was behind is promoted, the other has more: it is
    noticed, and it copies the new master's metadata."""
    await fs.put(b"1", "/kept")
    await cluster.level(*cluster.shadows)
    cluster.network.partition(["shadow0"], [MASTER])
    await trio.sleep(7)
    await fs.put(b"2", "/lost")
    await cluster.level("shadow1")
    await cluster.crash(MASTER)
    with pytest.raises(StaleVersion, match=r"shadow1:9400 has \d+ more operations"):
        await cluster.promote("shadow0")
    await cluster.promote("shadow0", force=True)
    cluster.network.heal()
    await fs.put(b"3", "/new")
    await cluster.level("shadow1")
    async with cluster.at("shadow1") as reader:
        assert [entry.path for entry in await reader.list("/")] == ["/kept", "/new"]
    for name in cluster.shadows:
        await cluster.crash(name)
    assert stored(cluster, "shadow1") == stored(cluster, "shadow0")


@over_seeds(6, kind=ShadowedCluster, shadows=2, replicas_before_ack=1)
async def test_shadows_and_masters_die_at_any_moment(
    chance: Random, cluster: ShadowedCluster, one: Client
) -> None:
    """With one shadow that must have everything; whoever dies comes back."""
    work = Steady(chance)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.write, one, "one")
        for _ in range(4):
            await trio.sleep(chance.uniform(0, 0.5))
            name = chance.choice(cluster.masters)
            await cluster.crash(name)
            await trio.sleep(chance.choice([0, 0.5, 4]))
            await cluster.start(name)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    await work.check(one)
    await cluster.level(*cluster.shadows)
    for name in cluster.masters:
        await cluster.crash(name)
    for shadow in cluster.shadows:
        assert stored(cluster, shadow) == stored(cluster, MASTER)


@over_seeds(4, kind=ShadowedCluster, shadows=2)
async def test_two_shadows_are_promoted_at_once(cluster: ShadowedCluster, fs: Client) -> None:
    """One of them is the master in the end, and all agree which."""
    await fs.put(b"1", "/kept")
    await cluster.level(*cluster.shadows)
    await cluster.crash(MASTER)
    async with trio.open_nursery() as nursery:
        for shadow in cluster.shadows:
            nursery.start_soon(promote_in_time, cluster, shadow)

    async def masters() -> list[str]:
        told = [(name, await cluster.status_of(name)) for name in cluster.shadows]
        return [name for name, status in told if status and status.role == "master"]

    async def one_is_left() -> bool:
        return len(await masters()) == 1

    await cluster.wait_until(one_is_left, 30)
    (winner,) = await masters()
    (loser,) = set(cluster.shadows) - {winner}
    # It ended; or it was still starting, and follows the other as its command says.
    ended = await cluster.status_of(loser)
    assert cluster.deposed == {loser} or (ended and ended.role == "shadow")
    await fs.put(b"2", "/new")
    status = await fs.status()
    assert status.role == "master"
    assert (await cluster.status_of(winner)) is not None
    await cluster.crash(loser)
    await make_shadow_of(cluster, loser, winner)
    await cluster.level(loser)
    assert [entry.path for entry in await fs.list("/")] == ["/kept", "/new"]


async def promote_in_time(cluster: ShadowedCluster, name: str) -> None:
    with contextlib.suppress(GfsError, ConnectionError):  # the other one may be first
        await cluster.promote(name, force=True)


IMPATIENT = ClientSettings(retry_seconds=2.0)


class Directories:
    """Clients make directories in /w, one after another, and what is acknowledged stays."""

    def __init__(self) -> None:
        self.acked: dict[str, float] = {}

    async def make(self, fs: Client, name: str, rest: float = 0.1) -> None:
        """Until cancelled."""
        for number in range(1_000_000):
            path = f"/w/{name}{number:05d}"
            with contextlib.suppress(GfsError):
                await fs.mkdir(path)
                self.acked[path] = trio.current_time()
            await trio.sleep(rest)

    async def check(self, fs: Client) -> None:
        there = {entry.path for entry in await fs.list("/w")}
        lost = {path: at for path, at in self.acked.items() if path not in there}
        assert not lost, f"acknowledged and lost: {lost}"


async def is_refused(fs: Client, path: str, match: str) -> None:
    with pytest.raises(GfsError, match=match):
        await fs.mkdir(path)


@over_seeds(4, kind=ShadowedCluster, shadows=2, replicas_before_ack=1, user="client")
async def test_a_master_that_only_seems_dead_is_not_replaced_while_another_follows_it(
    chance: Random, cluster: ShadowedCluster, stray: Client, fs: Client
) -> None:
    work = Directories()
    await cluster.level(*cluster.shadows)
    await fs.mkdir("/w")
    await trio.sleep(1)
    cluster.network.partition([MASTER, "stray"], ["shadow0", "client"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.make, stray, "a")
        await trio.sleep(chance.uniform(6, 9))
        with pytest.raises(StaleVersion, match="shadow1:9400 follows the master"):
            await cluster.promote("shadow0")
        before = len(work.acked)
        await trio.sleep(3)
        assert len(work.acked) > before, "the refusal costs nothing"
        # The other one does not have to be forced, and the master hands over to it.
        assert "nothing is lost" in (await cluster.promote("shadow1")).message
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    cluster.network.heal()
    await cluster.level("shadow0")
    await work.check(fs)


@over_seeds(4, kind=ShadowedCluster, shadows=2, replicas_before_ack=1, user="client")
async def test_a_promise_keeps_the_old_master_from_acknowledging(
    chance: Random,
    cluster: ShadowedCluster,
    stray: Client,
    fs: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The master is back for one of its shadows just when that has told another how far it
    is: between the looking and the beginning of the new term."""
    work = Directories()
    make = promises.Promises.make

    async def make_and_heal(self: promises.Promises, request: Bind) -> PositionReply:
        reply = await make(self, request)
        cluster.network.heal()
        cluster.network.partition([MASTER, "stray"], ["shadow0", "client"])
        return reply

    monkeypatch.setattr(promises.Promises, "make", make_and_heal)
    await cluster.level(*cluster.shadows)
    await fs.mkdir("/w")
    await trio.sleep(1)
    cluster.network.partition([MASTER, "stray"], [*cluster.shadows, "client"])
    await trio.sleep(7)
    cluster.machine("shadow0").blocking_seconds = (3.0, 6.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.make, stray, "a")
        nursery.start_soon(work.make, fs, "b")
        reply = await cluster.promote("shadow0")
        assert reply.message == "it has everything that was acknowledged"
        await trio.sleep(chance.uniform(1, 5))
        nursery.cancel_scope.cancel()
    cluster.network.heal()
    await cluster.wait_until(lambda: MASTER in cluster.deposed, 30, "the old one's end")
    await cluster.level("shadow1")
    await fs.mkdir("/later")
    await work.check(fs)


def promise_made(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Set once any shadow has made a promise."""
    made = trio.Event()
    make = promises.Promises.make

    async def make_and_tell(self: promises.Promises, request: Bind) -> PositionReply:
        reply = await make(self, request)
        made.set()
        return reply

    monkeypatch.setattr(promises.Promises, "make", make_and_tell)
    return made


@over_seeds(4, kind=ShadowedCluster, shadows=2, replicas_before_ack=1, user="client")
async def test_a_promise_is_given_up_when_nothing_came_of_it(
    chance: Random, cluster: ShadowedCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shadow that is to be promoted dies between the promise and its term."""
    made = promise_made(monkeypatch)
    await cluster.level(*cluster.shadows)
    cluster.network.partition([MASTER], [*cluster.shadows])
    await trio.sleep(7)
    cluster.machine("shadow0").blocking_seconds = (3.0, 6.0)
    async with trio.open_nursery() as nursery:

        async def promote() -> None:
            with contextlib.suppress(GfsError, ConnectionError):
                await cluster.promote("shadow0")

        nursery.start_soon(promote)
        await made.wait()
        await cluster.crash("shadow0")
        nursery.cancel_scope.cancel()
    cluster.machine("shadow0").blocking_seconds = (0.0001, 0.001)
    if chance.random() < 0.5:
        await cluster.restart("shadow1")
    cluster.network.heal()
    await trio.sleep(3)
    # It may have been promoted, for all that the other one knows.
    await is_refused(fs, "/a", r"Away: shadow.:9400, shadow.:9400")
    await cluster.start("shadow0")
    await cluster.level(*cluster.shadows)
    await fs.mkdir("/b")


@over_seeds(4, kind=ShadowedCluster, shadows=2, replicas_before_ack=2)
async def test_a_promise_for_a_term_that_began_keeps_nobody_from_being_promoted(
    chance: Random, cluster: ShadowedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that made it was cut off before it saw that term begin: the master that handed over
    in it has seen it, and is the master again."""
    made = promise_made(monkeypatch)
    await cluster.level(*cluster.shadows)
    cluster.machine("shadow0").blocking_seconds = (1.0, 2.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.promote, "shadow0")
        await made.wait()
        await trio.sleep(chance.uniform(0.1, 0.5))
        cluster.network.partition(["shadow0"], ["shadow1"])
    monkeypatch.undo()
    cluster.machine("shadow0").blocking_seconds = (0.0001, 0.001)
    await cluster.restart(MASTER)
    await trio.sleep(chance.uniform(2, 4))  # until it follows
    refusal = ""
    try:
        await cluster.promote(MASTER)
    except StaleVersion as error:
        refusal = str(error)
    assert not refusal


@over_seeds(4, kind=ShadowedCluster, shadows=2, late=1, replicas_before_ack=1)
async def test_a_shadow_that_was_away_is_not_promoted_over_one_that_has_more(
    chance: Random, cluster: ShadowedCluster
) -> None:
    """Another one came while it was away, and it never heard of that one."""
    work = Directories()
    async with cluster.client("client", IMPATIENT) as fs:
        await cluster.level("shadow0")
        await fs.mkdir("/w")
        await trio.sleep(1)
        cluster.network.partition(["shadow0"], [MASTER, "shadow1"])
        await trio.sleep(chance.uniform(6, 20))
        await cluster.start("shadow1")
        await cluster.level("shadow1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.make, fs, "a")
            await trio.sleep(3)
            nursery.cancel_scope.cancel()
        await cluster.crash(MASTER)
        cluster.network.heal()
        await trio.sleep(3)
        try:
            await cluster.promote("shadow0")
        except StaleVersion:
            await cluster.promote("shadow1")
        await work.check(fs)


@over_seeds(4, kind=ShadowedCluster, shadows=2, late=1, replicas_before_ack=1)
async def test_a_shadow_is_not_replaced_without_knowing_it(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """It is away, and another one follows: that does not count as long as the first could
    take itself for the only one. So that one can be promoted if the master burns."""
    await cluster.level("shadow0")
    await fs.mkdir("/a")
    await trio.sleep(1)
    cluster.network.partition(["shadow0"], [MASTER, "shadow1"])
    await trio.sleep(chance.uniform(6, 20))
    await cluster.start("shadow1")
    await cluster.level("shadow1")
    with pytest.raises(GfsError, match="replicas_before_ack"):
        await fs.mkdir("/b")
    await is_refused(fs, "/b", "Away: shadow0:9400;")
    status = await cluster.status_of(MASTER)
    states = {shadow.address: shadow.state for shadow in status.shadows}
    assert states == {"shadow0:9400": "away", "shadow1:9400": "not counted"}
    if chance.random() < 0.5:
        # Until it is back: then both count.
        cluster.network.heal()
        await cluster.level("shadow0")
        await fs.mkdir("/c")
        await cluster.crash("shadow0")
        await fs.mkdir("/d")
        await cluster.crash(MASTER)
        with pytest.raises(StaleVersion, match=r"shadow0:9400.* may have it"):
            await cluster.promote("shadow1")
        await cluster.start("shadow0")
        # Which of them is ahead is seen.
        with pytest.raises(StaleVersion, match=r"shadow1:9400 has \d+ more operations"):
            await cluster.promote("shadow0")
        await cluster.promote("shadow1")
        assert [e.path for e in await fs.list("/")] in (
            ["/a", "/c", "/d"],
            ["/a", "/b", "/c", "/d"],
        )
    else:
        await cluster.crash(MASTER)
        cluster.network.heal()
        await trio.sleep(3)
        reply = await cluster.promote(chance.choice(cluster.shadows))
        assert reply.message == "it has everything that was acknowledged"
        assert "/a" in [entry.path for entry in await fs.list("/")]


@over_seeds(4, kind=ShadowedCluster, shadows=2, late=1, replicas_before_ack=1)
async def test_a_shadow_that_is_lost_for_good_is_forgotten(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """An operator says so: then another one counts in its place."""
    await cluster.level("shadow0")
    await fs.mkdir("/a")
    with pytest.raises(GfsError, match="still follows this master"):
        async with cluster.at(MASTER, IMPATIENT) as operator:
            await operator.forget_shadow("shadow0:9400")
    await cluster.crash("shadow0")
    await cluster.start("shadow1")
    await cluster.level("shadow1")
    await is_refused(fs, "/b", "gfs forget")
    if chance.random() < 0.5:
        await cluster.restart(MASTER)  # it does not forget who counts
        await cluster.level("shadow1")
        await is_refused(fs, "/b", "gfs forget")
    async with cluster.at(MASTER) as operator:
        with pytest.raises(NotFound):
            await operator.forget_shadow("shadow9:9400")
        await operator.forget_shadow("shadow0:9400")
        assert [s.address for s in (await operator.status()).shadows] == ["shadow1:9400"]
    await fs.mkdir("/c")
    await cluster.crash(MASTER)
    reply = await cluster.promote("shadow1")
    assert reply.message == "it has everything that was acknowledged"
    assert "/c" in [entry.path for entry in await fs.list("/")]


@over_seeds(4, kind=ShadowedCluster, replicas_before_ack=1)
async def test_a_master_that_waits_for_fewer_says_so_first(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """It is started with a lower replicas_before_ack while a shadow is away that knows of
    the higher one: nothing is acknowledged until that knows, or is forgotten."""
    await cluster.level("shadow0")
    await fs.mkdir("/a")
    cluster.network.partition(["shadow0"], [MASTER])
    await trio.sleep(7)
    cluster.settings["replicas_before_ack"] = 0
    await cluster.restart(MASTER)
    await is_refused(fs, "/b", "Away: shadow0:9400;")
    if chance.random() < 0.5:
        await cluster.crash(MASTER)
        reply = await cluster.promote("shadow0")
        assert reply.message == "it has everything that was acknowledged"
        return
    cluster.network.heal()
    await cluster.level("shadow0")
    await fs.mkdir("/c")
    cluster.network.partition(["shadow0"], [MASTER])
    await fs.mkdir("/d")
    await trio.sleep(7)
    await cluster.crash(MASTER)
    with pytest.raises(StaleVersion, match="what it acknowledged since may be lost"):
        await cluster.promote("shadow0")


@pytest.mark.parametrize("replicas", [0, 1])
@over_seeds(4)
async def test_they_change_places_though_the_answer_is_lost(
    seed: int, chance: Random, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master has ended, and the shadow did not hear of it. Nothing is lost, and each
    of them can become the master without force."""
    retire = log_sender.Shadows.retire

    async def retire_and_cut(
        self: log_sender.Shadows, follower: log_sender.Follower, request: Retire
    ) -> PositionReply:
        reply = await retire(self, follower, request)
        cluster.network.cut(MASTER, "shadow0")
        return reply

    async with (
        ShadowedCluster(seed, replicas_before_ack=replicas) as cluster,
        cluster.client() as fs,
    ):
        await cluster.level("shadow0")
        await fs.mkdir("/a")
        with monkeypatch.context() as patched:
            patched.setattr(log_sender.Shadows, "retire", retire_and_cut)
            with pytest.raises(StaleVersion, match="could not hand over"):
                await cluster.promote("shadow0")

        async def is_shadow() -> bool:
            status = await cluster.status_of(MASTER)
            return status is not None and status.role == "shadow"

        await cluster.wait_until(is_shadow, 10, "the end of the master")
        for name in cluster.masters:
            if chance.random() < 0.3:
                await cluster.restart(name)
        name = chance.choice(cluster.masters)
        # Each has to ask the other: it could be the master.
        (other,) = set(cluster.masters) - {name}
        await cluster.crash(other)
        if replicas == 0 or name == MASTER:
            with pytest.raises(StaleVersion, match="may be lost"):
                await cluster.promote(name)
        await cluster.start(other)
        assert "nothing is lost" in (await cluster.promote(name)).message
        await cluster.level(other)
        await fs.mkdir("/later")
        assert [entry.path for entry in await fs.list("/")] == ["/a", "/later"]


@over_seeds(4, kind=ShadowedCluster, shadows=3, late=1, replicas_before_ack=1)
async def test_a_master_that_was_replaced_hands_over_to_nobody(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """It does not know yet, and a shadow that does not count follows it: whoever counts has
    to say that no other was promoted."""
    await cluster.level(*cluster.shadows[:2])
    await fs.mkdir("/a")
    await trio.sleep(1)
    cluster.network.partition(
        [MASTER, "shadow2"], ["shadow0", "shadow1", "client0", *cluster.chunkservers]
    )
    await cluster.start("shadow2")
    await trio.sleep(7)
    reply = await cluster.promote("shadow0")
    assert reply.message == "it has everything that was acknowledged"
    await fs.mkdir("/b")
    if chance.random() < 0.5:
        cluster.network.heal("shadow1")
        cluster.network.partition([MASTER, "shadow2"], ["shadow0"])
        cluster.network.partition([MASTER], ["shadow1"])
    with pytest.raises(StaleVersion, match=r"shadow0:9400 \(.*must answer that it was not"):
        await cluster.promote("shadow2")
    cluster.network.heal()
    await cluster.wait_until(lambda: MASTER in cluster.deposed, 30, "the old one's end")
    await cluster.level("shadow2")
    assert [entry.path for entry in await fs.list("/")] == ["/a", "/b"]


class Unrest:
    """Partitions, deaths and promotions without force, at random, and what must hold:
    whatever was acknowledged is there, and what can be promoted is."""

    ACTS = (
        *("part", "part", "heal", "cut", "slow", "slow"),
        *("die", "back", "restart", "promote", "promote", "promote"),
    )

    def __init__(self, cluster: ShadowedCluster, chance: Random) -> None:
        self.cluster = cluster
        self.chance = chance
        self.work = Directories()
        self.promoted = 0
        self.hosts = ["one", "other"]
        self.usual = cluster.machine(MASTER).blocking_seconds

    async def rage(self, steps: int) -> None:
        cluster, chance = self.cluster, self.chance
        async with trio.open_nursery() as nursery:
            for _ in range(steps):
                await trio.sleep(chance.choice([0.02, 0.3, 1, 4, 8]) * chance.uniform(0.5, 1))
                match chance.choice(self.ACTS):
                    case "part":
                        everybody = [*cluster.masters, *self.hosts]
                        chance.shuffle(everybody)
                        at = chance.randint(1, len(everybody) - 1)
                        cluster.network.partition(everybody[:at], everybody[at:])
                    case "heal":
                        cluster.network.heal()
                    case "slow":
                        seconds = chance.choice([self.usual, (0.05, 0.5), (0.5, 3)])
                        cluster.machine(chance.choice(cluster.masters)).blocking_seconds = seconds
                    case "cut":
                        cluster.network.cut(*chance.sample(cluster.masters, 2))
                    case "die":
                        await cluster.crash(chance.choice(cluster.masters))
                    case "restart":
                        name = chance.choice(cluster.masters)
                        await cluster.crash(name)
                        self.start(name)
                    case "back":
                        for name in cluster.masters:
                            if not cluster.node(name).running:
                                self.start(name)
                    case "promote":
                        nursery.start_soon(self.promote, chance.choice(cluster.masters))
            nursery.cancel_scope.deadline = trio.current_time() + chance.choice([0, 5])

    def start(self, name: str) -> None:
        cluster = self.cluster
        if name in cluster.deposed:
            cluster.deposed.discard(name)
            cluster.shadow_of[name] = self.chance.choice(
                [each for each in cluster.masters if each != name]
            )
        cluster.begin(name)

    async def promote(self, name: str) -> bool:
        try:
            async with self.cluster.at(name, IMPATIENT) as fs:
                reply = await fs.promote()
        except (GfsError, ConnectionError) as error:
            self.cluster.trace.add(f"promotion of {name}: {error}")
            return False
        self.cluster.trace.add(f"promotion of {name}: {reply.message}")
        self.promoted += 1
        return True

    async def calm(self, but: str = "") -> str:
        """All that is left is up and connected, and somebody is the master."""
        cluster = self.cluster
        cluster.network.heal()
        for name in cluster.masters:
            cluster.machine(name).blocking_seconds = self.usual
        for _ in range(20):
            for name in cluster.masters:
                if name != but and name in cluster.deposed:
                    await cluster.crash(name)
                if name != but and not cluster.node(name).running:
                    self.start(name)
            await trio.sleep(6)
            status = {name: await cluster.status_of(name) for name in cluster.masters}
            masters = [name for name, said in status.items() if said and said.role == "master"]
            if len(masters) == 1 and not cluster.deposed:
                for name in set(cluster.masters) - {but}:
                    if name != masters[0]:
                        cluster.shadow_of[name] = masters[0]
                        await cluster.restart(name)
                return masters[0]
            if not masters:
                for name in cluster.masters:
                    if name != but and await self.promote(name):
                        break
        raise AssertionError("nobody can be promoted")


@pytest.mark.parametrize(("shadow_count", "replicas"), [(2, 1), (2, 2), (3, 1), (3, 2)])
@over_seeds(4)
async def test_no_promotion_without_force_loses_what_was_acknowledged(
    seed: int, chance: Random, shadow_count: int, replicas: int
) -> None:
    async with (
        ShadowedCluster(
            seed,
            shadows=shadow_count,
            late=shadow_count - replicas if seed % 2 else 0,
            replicas_before_ack=replicas,
            chunkservers=0,
        ) as cluster,
        cluster.client("one", IMPATIENT) as one,
        cluster.client("other", IMPATIENT) as other,
    ):
        unrest = Unrest(cluster, chance)
        async with cluster.client() as fs:
            await fs.mkdir("/w")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unrest.work.make, one, "a")
            nursery.start_soon(unrest.work.make, other, "b")
            await unrest.rage(chance.randint(5, 30))
            nursery.cancel_scope.cancel()
        master = await unrest.calm()
        async with cluster.client() as fs:
            await unrest.work.check(fs)
            await cluster.level(*set(cluster.masters) - {master})
            await fs.mkdir("/w/calm")
        # Of those that count all are there: now the master's machine burns.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unrest.work.make, one, "c")
            nursery.start_soon(unrest.work.make, other, "d")
            await trio.sleep(chance.uniform(0, 1))
            if chance.random() < 0.5:
                away = chance.choice([name for name in cluster.masters if name != master])
                cluster.network.partition([away], cluster.masters)
            await trio.sleep(chance.uniform(0, 10))
            await cluster.crash(master)
            nursery.cancel_scope.cancel()
        await unrest.calm(but=master)
        async with cluster.client() as fs:
            await unrest.work.check(fs)


@over_seeds(2, kind=ShadowedCluster, chunkservers=4)
async def test_a_server_that_is_forgotten_is_so_by_shadows(
    chance: Random, cluster: ShadowedCluster, fs: Client
) -> None:
    """Its alarm would go on at a shadow otherwise: a dead server is counted there too."""
    await fs.put(content(chance, 5000), "/file")
    victim = chance.choice(cluster.chunkservers)

    async def states(master: str) -> dict[str, str]:
        async with cluster.at(master) as at:
            servers = (await at.status()).servers
        return {server.address.partition(":")[0]: server.state for server in servers}

    async def is_dead_everywhere() -> bool:
        return all([(await states(name)).get(victim) == "dead" for name in cluster.masters])

    async def is_forgotten() -> bool:
        try:
            await fs.forget_server(cluster.address(victim))
        except Busy:
            return False
        return True

    async def is_level() -> bool:
        return await states("shadow0") == await states(MASTER)

    await cluster.wait_until(is_level, 30)
    cluster.kill(victim)
    await cluster.wait_until(is_dead_everywhere, 60)
    await cluster.wait_until(is_forgotten, 120)
    assert victim not in await states(MASTER)
    await cluster.wait_until(is_level, 30)
    # Should it come back all the same, it is a new one to both.
    await cluster.start(victim)
    await cluster.wait_until(is_level, 30)
    assert (await states("shadow0"))[victim] == "live"


@over_seeds(2, kind=ShadowedCluster, replicas_before_ack=1, master={"heartbeat_seconds": 0.5})
async def test_a_file_whose_replicas_are_reported_before_it_is_acknowledged_is_whole(
    chance: Random, cluster: ShadowedCluster
) -> None:
    """Some servers report while the shadow master is waited for."""
    await cluster.level("shadow0")
    async with cluster.client() as fs:
        cluster.network.slow("master", "shadow0", (0.4, 0.6), 1e6)
        for name in cluster.chunkservers[1:]:  # else all report at one moment
            cluster.network.slow(name, "master", (0.2, 0.3), 1e6)
        for number in range(20):
            await fs.put(content(chance, 200_000), f"/{number}")
            await trio.sleep(chance.uniform(0, 0.5))
        await trio.sleep(2)
        assert not (await fs.status()).totals.under_replicated


@over_seeds(4, kind=ShadowedCluster, shadows=2)
async def test_who_promised_to_one_that_is_not_promoted_follows_again(
    chance: Random, cluster: ShadowedCluster
) -> None:
    """Within two seconds, however often it has tried by then."""
    await cluster.level("shadow0", "shadow1")
    world = cluster.universe.machine("operator").start_process().world
    identity = Identity("shadow", "shadow", cluster.key)
    ask = partial(promises.ask, world, address("shadow1"), identity)
    for number in range(1, chance.choice([2, 12])):
        bound = await ask(Bind(0, terms.next_term(number << 32, 7), address("shadow0"), leave=True))
        assert not bound.follows
        await trio.sleep(chance.uniform(0, 0.5))

    async def follows() -> bool:
        return bool((await ask(Position(id=0))).follows)

    await cluster.wait_until(follows, 2.0, "master to follow")


@over_seeds(4, kind=ShadowedCluster, late=1)
async def test_a_shadow_begins_when_there_is_room_for_its_copy(
    chance: Random,
    cluster: ShadowedCluster,
    fs: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until then it tries again, says where there is none, and leaves no part of a copy there."""
    incoming = os.path.join(cluster.metadata("shadow0"), "incoming")
    name = chance.choice(["commit", "sync", "put_copied", "set_standing"])
    work = getattr(Store, name)

    def work_if_there_is_room(store: Store, *arguments: object) -> object:
        if store._opened[0] == incoming:
            raise DiskFull("the disk is full: free some space there")
        return work(store, *arguments)

    monkeypatch.setattr(Store, name, work_if_there_is_room)
    await fs.mkdir("/a")
    cluster.begin("shadow0")
    await trio.sleep(12)
    assert "incoming" not in os.listdir(cluster.metadata("shadow0"))
    assert f"to {incoming} failed: the disk is full: free some space there" in caplog.text
    assert not cluster.node("shadow0").ready.is_set()
    monkeypatch.undo()
    await cluster.level("shadow0")


@over_seeds(2, kind=ShadowedCluster)
async def test_a_shadow_master_whose_disk_fails_ends(
    cluster: ShadowedCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever starts it again, or reports it, learns of that."""

    def fail(*_: object) -> None:
        raise DiskFailed("the master's metadata cannot be written any more")

    await cluster.level("shadow0")
    cluster.supervised = True
    cluster.hold("shadow0")
    monkeypatch.setattr(Following, "_replay", fail)
    await fs.mkdir("/a")
    with trio.fail_after(10):
        await cluster.node("shadow0").ended.wait()
    monkeypatch.undo()
    await cluster.start("shadow0")
    await cluster.level("shadow0")

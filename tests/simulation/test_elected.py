"""Masters that an engine elects, in the simulator: whatever the engine does, nothing that was
acknowledged is lost; and while it does not lie, nothing old is read."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from random import Random
from typing import Any

import msgspec
import pytest
import trio

from gfs.client import Client
from gfs.config import ClientSettings, MasterSettings
from gfs.errors import (
    Busy,
    DiskFull,
    GfsError,
    MasterUnavailable,
    NotFound,
    StaleVersion,
    StartupError,
    WrongClusterKey,
)
from gfs.io import World
from gfs.master import run_master
from gfs.master.election import View
from gfs.master.metadata import Standing, Store, Txn
from gfs.master.metadata.store import open_store
from gfs.master.shadows import Shadow
from gfs.protocol.rpc import Rpc

from .elected import HOLD_SECONDS, MASTER, ElectedCluster, SimDoor, Unkindness, address
from .linear import Event, explain, find_order
from .names_model import DIRECTORY, OK, Call, Delete, List, MakeDirectory, Rename
from .seeds import over_seeds
from .test_master_deaths import Acknowledged


@over_seeds(6, kind=ElectedCluster)
async def test_another_one_takes_over_from_a_master_that_dies(
    chance: Random, cluster: ElectedCluster, one: Client, other: Client
) -> None:
    work = Acknowledged(chance)
    first = await cluster.followed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.write, one, "one")
        nursery.start_soon(work.write, other, "other")
        await trio.sleep(chance.uniform(0, 0.4))
        await cluster.crash(first)
        died = trio.current_time()
        await one.mkdir("/after")
        assert trio.current_time() - died < HOLD_SECONDS + 2
        nursery.cancel_scope.cancel()
    await trio.sleep(chance.choice([0, 10]))
    await cluster.start(first)
    assert await cluster.followed() != first
    await work.check(one)


@over_seeds(8, kind=ElectedCluster)
async def test_a_holder_that_stands_still_costs_some_seconds(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """As one whose machine has lost its power: nobody is told, neither who waits for its answer
    nor the shadow master that is to follow the next one."""
    first = await cluster.followed()
    await fs.mkdir("/before")
    await trio.sleep(chance.uniform(0, 2))

    others = [each.name for each in cluster.universe.machines if each.name != first]
    end = trio.current_time() + 15

    async def stand_still() -> None:
        await trio.sleep(chance.choice([0, 0.003, 0.5]))
        cluster.engine.away = {first}
        cluster.network.partition([first], others)

    waited, number = 0.0, 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand_still)
        while trio.current_time() < end:
            began = trio.current_time()
            await fs.mkdir(f"/{number}")
            waited, number = max(waited, trio.current_time() - began), number + 1
            if cluster.engine.away:
                await trio.sleep(0.02)  # it was heard by the next one, and hundreds more will be
    assert 2 < waited < HOLD_SECONDS + 4
    assert await cluster.holder() != first
    cluster.network.heal()
    cluster.engine.away = set()
    await cluster.followed()


@over_seeds(2, kind=ElectedCluster)
async def test_masters_that_answer_late_are_found_as_well(cluster: ElectedCluster) -> None:
    """Each address gets longer in each round: here none answers in the first two."""
    await cluster.followed()
    for name in cluster.masters:
        for ends in (("far", name), (name, "far")):
            cluster.network.slow(*ends, (0.7, 0.7), 1e6)
    async with cluster._connected(cluster.masters, "far", None) as fs:
        await fs.mkdir("/a")
        began = trio.current_time()
        await fs.mkdir("/b")
        assert trio.current_time() - began < 2, "it is connected still"


@pytest.mark.costly
@over_seeds(12, kind=ElectedCluster)
async def test_nothing_acknowledged_is_lost_whatever_the_engine_does(
    chance: Random, cluster: ElectedCluster, one: Client, other: Client
) -> None:
    """It is late, loses requests and answers, is cut off from some or all, and gives the hold
    to another one although it has not ended; masters die meanwhile. Writers rest, and are busy
    whenever something happens."""
    work, rest = Acknowledged(chance), 0.4

    async def write(fs: Client, name: str) -> None:
        for turn in itertools.count():
            # The engine may be of no use for longer than a client waits.
            with suppress(MasterUnavailable):
                await work.write(fs, f"{name}{turn}")
                return

    await cluster.followed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, one, "one")
        nursery.start_soon(write, other, "other")
        for _ in range(6):
            cluster.engine.unkind = Unkindness(
                late=chance.choice([0.01, 0.3, 2.0]),
                lost=chance.choice([0.0, 0.1, 0.4]),
                early=chance.choice([1.0, 1.0, 0.3]),
            )
            cut = chance.choice([0, 1, 1, 3])
            cluster.engine.away = set(chance.sample(cluster.masters, cut))
            work.pause = rest
            await trio.sleep(chance.uniform(0, 2 * HOLD_SECONDS))
            work.pause = 0.0
            await trio.sleep(rest)
            if chance.random() < 0.4:
                victim = chance.choice(cluster.masters)
                await cluster.crash(victim)
                work.pause = rest
                await trio.sleep(chance.choice([0, 1, 6]))
                cluster.begin(victim)
        nursery.cancel_scope.cancel()
    cluster.engine.unkind, cluster.engine.away = Unkindness(), set()
    await cluster.followed()
    await work.check(one)


@over_seeds(8, kind=ElectedCluster)
async def test_a_master_whose_machine_was_suspended_answers_nothing(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """Its tasks go on in any order after that; a look-up may come before the end of its hold
    is noticed."""
    holder = await cluster.followed()
    await fs.mkdir("/a")
    quick = ClientSettings(retry_seconds=0.05)
    async with cluster._connected([holder, "nobody"], "alone", quick) as alone:
        await alone.stat("/a")
        await trio.sleep(chance.uniform(0, HOLD_SECONDS))
        cluster.machine(holder).time.suspended_seconds += chance.choice([HOLD_SECONDS, 3600])
        answers = []
        with suppress(GfsError):
            answers.append(await alone.stat("/a"))
        assert not answers
    await cluster.followed()
    await fs.mkdir("/b")


@over_seeds(8, kind=ElectedCluster)
async def test_no_read_is_older_than_what_was_acknowledged(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """A counter is a chain of names; readers look how far it is, at any master that says that
    it is one. While the engine does not lie, they never see less than was acknowledged before
    they asked, and never less than another one saw before."""
    made = seen = -1
    await cluster.followed()

    async def count() -> None:
        nonlocal made
        for number in range(10_000):
            with suppress(GfsError):
                await fs.mkdir(f"/{number}")
                made = number
            await trio.sleep(chance.uniform(0, 0.1))

    async def read(name: str) -> None:
        quick = ClientSettings(retry_seconds=0.2)
        while True:
            await trio.sleep(chance.uniform(0, 0.2))
            with suppress(GfsError):
                async with cluster._connected([name, "nobody"], None, quick) as reader:
                    while True:
                        await look(reader)

    async def look(reader: Client) -> None:
        nonlocal seen
        least = max(made, seen)
        found = [int(entry.path[1:]) for entry in await reader.list("/")]
        assert max(found, default=-1) >= least
        seen = max(seen, *found)
        await trio.sleep(chance.uniform(0, 0.05))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for name in cluster.masters:
            nursery.start_soon(read, name)
        for _ in range(4):
            await trio.sleep(chance.uniform(0, 2 * HOLD_SECONDS))
            await _fail(cluster, chance)
        nursery.cancel_scope.cancel()
    assert made >= 0
    await cluster.followed()


@pytest.mark.costly
@over_seeds(8, kind=ElectedCluster)
async def test_names_are_linearizable_over_failovers(
    chance: Random, cluster: ElectedCluster
) -> None:
    """There is an order of all calls that explains what every caller saw, whichever master
    answered it, those included that ask one master alone. The engine is late, loses requests and
    answers and is cut off, but does not lie."""
    history: list[Event] = []
    await cluster.followed()
    async with cluster.client() as one, cluster.client() as other, trio.open_nursery() as nursery:
        for name, fs in (("one", one), ("other", other)):
            nursery.start_soon(_change_names, fs, name, chance, history)
        for name in cluster.masters:
            nursery.start_soon(_look_at, cluster, name, chance, history)
        for _ in range(3):
            cluster.engine.unkind = Unkindness(
                late=chance.choice([0.01, 0.3, 0.7]), lost=chance.choice([0.0, 0.1, 0.3])
            )
            await trio.sleep(chance.uniform(0, 2 * HOLD_SECONDS))
            await _fail(cluster, chance)
        nursery.cancel_scope.cancel()
    cluster.engine.unkind = Unkindness()
    with trio.move_on_after(60) as wait:
        await cluster.holder(seconds=3600)
    assert not wait.cancelled_caught, "nobody is elected any more"
    if find_order(history) is None:
        raise AssertionError(explain(history))


#: Calls that fail with these have changed nothing, because of the names that were there.
REFUSALS = ("not_found", "already_exists", "directory_not_empty", "not_a_directory")
NAMES = ("a", "b", "c")


async def _record(history: list[Event], who: str, call: Call, work: Awaitable[object]) -> None:
    event = Event(who, call, trio.current_time())
    history.append(event)
    try:
        seen = await work
    except GfsError as error:
        if error.code in REFUSALS:
            event.ended, event.outcome = trio.current_time(), error.code
    else:
        event.ended, event.outcome, event.seen = trio.current_time(), OK, seen


async def _change_names(fs: Client, who: str, chance: Random, history: list[Event]) -> None:
    while True:
        number = len(history) + 1
        name, target = chance.sample(NAMES, 2)
        match chance.choice(["mkdir", "mkdir", "delete", "rename", "list"]):
            case "mkdir":
                await _record(history, who, MakeDirectory(number, (name,)), fs.mkdir(f"/{name}"))
            case "delete":
                await _record(history, who, Delete(number, (name,)), fs.delete(f"/{name}"))
            case "rename":
                call = Rename(number, (name,), (target,))
                await _record(history, who, call, fs.rename(f"/{name}", f"/{target}"))
            case "list":
                await _record(history, who, List(number, ()), _names(fs))
        await trio.sleep(chance.uniform(0, 0.4))


async def _names(fs: Client) -> dict[str, int]:
    return {entry.path[1:]: DIRECTORY for entry in await fs.list("/")}


async def _look_at(
    cluster: ElectedCluster, name: str, chance: Random, history: list[Event]
) -> None:
    """Ask this master alone, whether it is one or not."""
    quick = ClientSettings(retry_seconds=0.2)
    while True:
        await trio.sleep(chance.uniform(0, 0.3))
        with suppress(GfsError):
            async with cluster._connected([name, "nobody"], None, quick) as reader:
                while True:
                    await _record(history, name, List(len(history) + 1, ()), _names(reader))
                    await trio.sleep(chance.uniform(0, 0.4))


async def _fail(cluster: ElectedCluster, chance: Random) -> None:
    """Something happens to the holder, and passes."""
    holder = await cluster.holder()
    match chance.choice(["dies", "engine", "network", "suspended"]):
        case "dies":
            await cluster.crash(holder)
            await trio.sleep(chance.choice([0, 1, 6]))
            cluster.begin(holder)
        case "engine":
            cluster.engine.away = {holder}
            await trio.sleep(chance.uniform(0, 3 * HOLD_SECONDS))
            cluster.engine.away = set()
        case "network":
            others = [name for name in cluster.names if name != holder]
            cluster.engine.away = {holder}
            cluster.network.partition([holder], others)
            await trio.sleep(chance.uniform(0, 3 * HOLD_SECONDS))
            cluster.network.heal()
            cluster.engine.away = set()
        case "suspended":
            cluster.machine(holder).time.suspended_seconds += chance.uniform(0, 10)


@over_seeds(4, kind=ElectedCluster)
async def test_one_that_may_lack_something_is_not_elected(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """The master dies, one shadow master is cut off, and the other has missed what was
    acknowledged last: nobody serves until the two meet."""
    first = await cluster.followed()
    behind, ahead = chance.sample([name for name in cluster.masters if name != first], 2)
    cluster.network.partition([behind], [first, ahead])
    for number in range(20):
        await fs.mkdir(f"/{number}")
    await cluster.crash(first)
    cluster.engine.away = {ahead}
    taken = cluster.engine.taken
    await trio.sleep(4 * HOLD_SECONDS)
    assert cluster.engine.taken > taken, "it had the chance"
    assert not await cluster.serving()
    cluster.network.heal()
    cluster.engine.away = set()
    await cluster.followed(count=1)
    assert len(await fs.list("/")) == 20


@over_seeds(4, kind=ElectedCluster)
async def test_a_former_master_goes_on_with_one_witness(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """The engine was away for longer than a hold, and a shadow master is lost meanwhile: of the
    two that are left the former master has everything, and the other one, if it is level."""
    first = await cluster.followed()
    await fs.mkdir("/before")
    cluster.engine.away = set(cluster.masters)
    await trio.sleep(HOLD_SECONDS)
    assert not await cluster.serving()
    await cluster.crash(chance.choice([name for name in cluster.masters if name != first]))
    cluster.engine.away = set()
    await fs.mkdir("/after")
    await cluster.followed(count=1)


@over_seeds(2, kind=ElectedCluster)
async def test_a_cluster_that_lost_all_its_directories_is_not_begun_again(
    cluster: ElectedCluster,
) -> None:
    await cluster.followed()
    for name in cluster.masters:
        await cluster.crash(name)
        shutil.rmtree(cluster.metadata(name))
        cluster.begin(name)
    await trio.sleep(4 * HOLD_SECONDS)
    assert not await cluster.serving()


@over_seeds(6, kind=ElectedCluster)
async def test_a_master_that_lost_its_directory_leaves_the_hold_to_others(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """All start at once, and it is the first to ask."""
    cluster.engine.unkind = Unkindness(late=chance.choice([0.0, 0.01, 0.3]))
    await cluster.followed()
    await fs.mkdir("/before")
    for name in cluster.masters:
        await cluster.crash(name)
    lost = chance.choice(cluster.masters)
    shutil.rmtree(cluster.metadata(lost))
    await trio.sleep(2 * HOLD_SECONDS)
    for name in [lost, *(each for each in cluster.masters if each != lost)]:
        cluster.begin(name)
        await trio.sleep(chance.choice([0, 0.1, 1]))
    assert await cluster.followed() != lost
    await fs.stat("/before")


@over_seeds(4, kind=ElectedCluster)
async def test_an_operator_moves_the_master(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """It is the one that was asked which is the master then, in the next term, and calls that
    are under way wait for it."""
    work = Acknowledged(chance)
    first = await cluster.followed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.write, fs, "one")
        await trio.sleep(chance.uniform(0, 0.4))
        chosen = chance.choice([name for name in cluster.masters if name != first])
        reply = await cluster.promote(chosen)
        assert reply.term >> 32 == 2
        assert await cluster.holder() == chosen
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert await cluster.followed() == chosen
    await work.check(fs)


@over_seeds(12, kind=ElectedCluster, hold_seconds=120.0)
async def test_an_operator_moves_a_master_whose_hold_is_long(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """Who is to get it looks for it at once, however rarely it looks otherwise."""
    await cluster.followed()
    await trio.sleep(chance.uniform(0, 20))
    first = await cluster.followed()
    chosen = chance.choice([name for name in cluster.masters if name != first])
    began = trio.current_time()
    await cluster.promote(chosen)
    assert trio.current_time() - began < 5
    assert await cluster.holder() == chosen
    await fs.stat("/")


@over_seeds(4, kind=ElectedCluster)
async def test_who_holds_is_answered_while_a_master_is_elected(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """As every other call: with the same deadline, and one error at its end."""
    first = await cluster.followed()
    await fs.election()
    await cluster.crash(first)
    await trio.sleep(chance.uniform(0, 0.5))
    assert (await fs.election()).engine == "the engine"
    with pytest.raises(NotFound):
        await fs.order_disk("no-server", "/d", "status")
    for name in cluster.masters:
        if name != first:
            await cluster.crash(name)
    began = trio.current_time()
    with pytest.raises(MasterUnavailable, match="no answer from the master at"):
        await fs.election()
    assert trio.current_time() - began > cluster.client_settings.retry_seconds - 1


@over_seeds(4, kind=ElectedCluster)
async def test_nothing_is_handed_over_while_nobody_can_be_elected(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """The engine is away, for all or for the master alone: the order is refused, and the master
    serves for as long as it may."""
    first = await cluster.followed()
    chosen = chance.choice([name for name in cluster.masters if name != first])
    is_everybody = chance.random() < 0.5

    async def promote() -> None:
        with pytest.raises((Busy, StaleVersion)) as caught:
            await cluster.promote(chosen)
        if is_everybody:
            assert "the engine does not answer" in str(caught.value)
            assert "nothing was changed" in str(caught.value)

    await trio.sleep(chance.uniform(0, 1))
    cluster.engine.away = set(cluster.masters) if is_everybody else {first}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(promote)
        if is_everybody:
            await trio.sleep(1.0)
            with trio.fail_after(0.5):
                await fs.mkdir("/meanwhile")
    cluster.engine.away = set()
    await fs.mkdir("/after")
    await cluster.followed()


@over_seeds(4, kind=ElectedCluster, hold_seconds=600.0)
async def test_an_order_that_is_refused_keeps_no_master_from_its_work(
    chance: Random, cluster: ElectedCluster, fs: Client
) -> None:
    """However long its hold is: it acknowledges nothing while it looks at the engine."""
    first = await cluster.followed()
    chosen = chance.choice([name for name in cluster.masters if name != first])
    cluster.engine.away = {first}
    began = trio.current_time()
    with pytest.raises(StaleVersion, match="the engine does not answer"):
        await cluster.promote(chosen)
    await fs.mkdir("/after")
    assert trio.current_time() - began < 6
    assert await cluster.holder() == first


@over_seeds(2, kind=ElectedCluster)
async def test_one_that_waits_for_the_hold_follows_nobody(
    cluster: ElectedCluster, fs: Client
) -> None:
    """What it acknowledged meanwhile could have others acknowledge without it: it has been found
    to have everything before that."""
    first = await cluster.followed()
    chosen, other = (name for name in cluster.masters if name != first)
    cluster.network.partition([chosen, other], [first])
    await trio.sleep(30)  # they have noticed
    refusals = []

    async def promote() -> None:
        try:
            await cluster.promote(chosen)
        except (Busy, StaleVersion) as error:
            refusals.append(f"{error}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(promote)
        await trio.sleep(6)  # five of them it looked for the master
        cluster.network.heal()
        while not refusals:
            status = await fs.status()
            states = {shadow.address: shadow.state for shadow in status.shadows}
            assert refusals or states.get(address(chosen), "away") == "away"
            await trio.sleep(0.5)
    assert "did not get the hold" in refusals[0]
    assert await cluster.followed() == first


class Unrecorded(ElectedCluster):
    """Its first master has begun a cluster, and died before that was recorded."""

    def _make_nodes(self) -> None:
        store = open_store(self.metadata(MASTER), 1 << 28, False, "feed" * 4, 1)
        store.set_standing(Standing(successor=address(MASTER)))
        store.close()
        super()._make_nodes()

    async def start_all(self) -> None:
        pass


@over_seeds(6, kind=Unrecorded)
async def test_a_founder_that_died_founds_or_joins(chance: Random, cluster: Unrecorded) -> None:
    """There is never a second cluster, and nobody has to empty a directory."""
    which = chance.choice(["alone", "later", "together"])
    others = [name for name in cluster.masters if name != MASTER]
    for name in {"alone": [MASTER], "later": others}.get(which, []):
        cluster.begin(name)
    await trio.sleep(chance.choice([0, 20]) if which == "together" else 20)
    for name in cluster.names:
        if not cluster.node(name).running:
            cluster.begin(name)
    await cluster.followed()
    recorded = cluster.engine.view().cluster
    assert which != "alone" or recorded == "feed" * 4
    assert which != "later" or recorded != "feed" * 4
    async with cluster.client() as fs:
        await fs.put(b"x", "/x")
        assert (await fs.status()).cluster == recorded


@over_seeds(6, kind=Unrecorded)
async def test_an_empty_founder_leaves_the_hold_to_the_one_with_the_metadata(
    chance: Random, cluster: Unrecorded
) -> None:
    """All start at once, and the one that died as it began a cluster records it while another
    one gets the hold to begin one."""
    cluster.engine.unkind = Unkindness(late=chance.choice([0.01, 0.3, 0.6]))
    for name in chance.sample(cluster.names, len(cluster.names)):
        cluster.begin(name)
    await cluster.followed()


@over_seeds(6, kind=ElectedCluster)
async def test_one_that_is_to_copy_leaves_the_hold_to_others(
    chance: Random, cluster: ElectedCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master comes back with operations that were not acknowledged, and finds out that it is
    to follow another one right after it got the hold, because the engine lied. That one dies
    before it is copied."""
    fetch = Shadow._fetch_from_any

    async def fetch_slowly(shadow: Shadow) -> bool:
        await trio.sleep(1)
        return await fetch(shadow)

    first = await cluster.followed()
    others = [name for name in cluster.masters if name != first]
    cluster.network.partition([first], others)
    with trio.move_on_after(0.5):
        await fs.mkdir("/not-acknowledged")
    await cluster.crash(first)
    second = await cluster.holder()
    monkeypatch.setattr(Shadow, "_fetch_from_any", fetch_slowly)
    cluster.engine.unkind = Unkindness(late=0.6, early=0.3)
    await trio.sleep(HOLD_SECONDS / 2)
    cluster.engine.unkind = Unkindness(late=0.6)
    cluster.engine.away = set(others)
    cluster.begin(first)

    async def has_hold() -> bool:
        claim = cluster.engine.view().claim
        return claim is not None and claim.address == address(first)

    await cluster.wait_until(has_hold, 20, "its hold")
    await trio.sleep(chance.uniform(0, 0.5))
    cluster.network.heal()
    await trio.sleep(0.5)
    await cluster.crash(second)
    await trio.sleep(1)
    cluster.begin(second)
    cluster.engine.unkind, cluster.engine.away = Unkindness(), set()
    await cluster.followed()


@pytest.mark.parametrize("why", ["it copied from a master that was ending", "it errs"])
@over_seeds(4, kind=ElectedCluster)
async def test_a_shadow_is_never_taken_for_the_ended_master(
    chance: Random, cluster: ElectedCluster, fs: Client, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine was replaced and keeps its address, so that it counts. It lacks what only the
    other shadow master acknowledged, and must ask that one."""
    fetch = Shadow._fetch

    async def fetch_unseen(shadow: Shadow, rpc: Rpc, where: str) -> bool:
        cluster.engine.away, shadow._candidate.view = {new}, View()
        try:
            return await fetch(shadow, rpc, where)
        finally:
            cluster.engine.away = set()

    first = await cluster.followed()
    await fs.mkdir("/before")
    new, other = chance.sample([name for name in cluster.masters if name != first], 2)
    await cluster.crash(new)
    shutil.rmtree(cluster.metadata(new))
    if why != "it errs":
        monkeypatch.setattr(Shadow, "_fetch", fetch_unseen)
    cluster.begin(new)
    await cluster.followed()
    await cluster.crash(new)
    with closing(open_store(cluster.metadata(new), 1 << 28, False, "", 1)) as store:
        standing = store.standing
        assert standing.follows
        if why == "it errs":
            ended = {"ended": store.state.term, "successor": address(new)}
            store.set_standing(msgspec.structs.replace(standing, **ended))
    cluster.network.partition([new], [first, other])
    cluster.engine.away = {other}
    cluster.begin(new)
    await fs.mkdir("/after")
    await trio.sleep(chance.uniform(0, 1))
    await cluster.crash(first)
    taken = cluster.engine.taken
    await trio.sleep(3 * HOLD_SECONDS)
    assert cluster.engine.taken > taken, "it had the chance"
    assert not await cluster.serving()
    cluster.network.heal()
    cluster.engine.away = set()
    await cluster.followed(count=1)
    await fs.stat("/after")


@over_seeds(2, kind=Unrecorded)
async def test_a_master_without_shadows_that_lost_its_hold_is_a_shadow_after_a_restart(
    cluster: Unrecorded,
) -> None:
    cluster.begin(MASTER)
    await cluster.holder()
    cluster.engine.away = {MASTER}
    await trio.sleep(HOLD_SECONDS + 1)
    await cluster.crash(MASTER)
    with closing(open_store(cluster.metadata(MASTER), 1 << 28, False, "", 1)) as store:
        assert store.standing.follows == [address(MASTER)]
    cluster.engine.away = set()
    cluster.begin(MASTER)
    await cluster.holder()


@over_seeds(4, kind=ElectedCluster)
async def test_a_master_whose_disk_is_full_gives_up_its_hold_and_goes_on(
    chance: Random, cluster: ElectedCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot record that it is a shadow master, and is one nevertheless. When there is room it
    is recorded before anything of the next term is."""
    full: set[str] = set()
    commit = Store.commit

    def commit_if_there_is_room(store: Store, work: Callable[[Txn], object]) -> object:
        if store._opened[0] in full:
            raise DiskFull("the disk is full")
        return commit(store, work)

    monkeypatch.setattr(Store, "commit", commit_if_there_is_room)
    first = await cluster.followed()
    await fs.mkdir("/before")
    full.add(cluster.metadata(first))
    cluster.engine.away = {first}
    await trio.sleep(HOLD_SECONDS)  # until then it refuses changes
    await fs.mkdir("/after")
    assert await cluster.holder() != first
    await trio.sleep(chance.choice([0, 20]))
    if chance.random() < 0.5:
        cluster.engine.away = set()
    await trio.sleep(5)
    full.clear()
    await cluster.followed()
    await cluster.crash(first)
    with closing(open_store(cluster.metadata(first), 1 << 28, False, "", 1)) as store:
        assert store.standing.follows
    cluster.engine.away = set()
    cluster.begin(first)
    await cluster.followed()
    assert {entry.path for entry in await fs.list("/")} == {"/before", "/after"}


@over_seeds(4, kind=ElectedCluster)
async def test_a_master_whose_disk_is_full_as_it_begins_tries_again(
    chance: Random, cluster: ElectedCluster, fs: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its term has begun, so that no other one can take over from it."""
    begin = Store.begin
    left = chance.choice([1, 3])

    def begin_later(store: Store, fresh: str, now_ns: int) -> None:
        nonlocal left
        if left:
            left -= 1
            raise DiskFull("the disk is full")
        begin(store, fresh, now_ns)

    first = await cluster.followed()
    await fs.mkdir("/before")
    monkeypatch.setattr(Store, "begin", begin_later)
    await cluster.crash(first)
    await fs.mkdir("/after")
    assert not left
    cluster.begin(first)
    await cluster.followed()
    assert {entry.path for entry in await fs.list("/")} == {"/before", "/after"}


@over_seeds(2, kind=Unrecorded)
async def test_a_full_disk_where_a_cluster_is_to_begin_is_told_with_its_path(
    cluster: Unrecorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that ends, whether it is the only master, the first of several, or had begun a
    cluster while another one was recorded. When there is room, each starts as if it were new."""

    def commit(store: Store, work: Callable[[Txn], object]) -> object:
        raise DiskFull("the disk is full: free some space there")

    monkeypatch.setattr(Store, "commit", commit)
    only, first = cluster.metadata("only"), cluster.metadata("shadow0")

    async def fails(directory: str, engine: SimDoor | None) -> None:
        world = cluster.universe.machine("operator").start_process().world
        settings = MasterSettings(address="operator:9400", map_bytes=1 << 28)
        place = f"^{re.escape(directory)}: .*free some space there$"
        with pytest.raises(StartupError, match=place), trio.fail_after(60):
            await run_master(world, settings, directory, b"k" * 32, engine=engine)

    await fails(only, None)
    await fails(first, SimDoor(cluster.engine, "operator"))
    assert not cluster.engine.view().cluster
    cluster.engine.record("another")
    await fails(cluster.metadata(MASTER), SimDoor(cluster.engine, "operator"))
    monkeypatch.undo()
    cluster.engine._cluster = ""
    for name in cluster.names:
        cluster.begin(name)
    await cluster.followed()


class WithStranger(ElectedCluster):
    """Where one of the masters was there is one of another cluster, with another key."""

    def _make_nodes(self) -> None:
        super()._make_nodes()
        self._add("stranger", self._stranger)

    async def _stranger(self, world: World, task_status: trio.TaskStatus[Any]) -> None:
        settings = MasterSettings(address=address("stranger"), **self.settings)
        await run_master(
            world, settings, self.metadata("stranger"), b"x" * 32, task_status=task_status
        )


@over_seeds(2, kind=WithStranger)
async def test_an_address_of_another_cluster_does_not_hide_the_master(
    cluster: WithStranger,
) -> None:
    await cluster.start("stranger")
    first = await cluster.followed()
    addresses = [first, "stranger", *(name for name in cluster.masters if name != first)]
    async with cluster._connected(addresses, None, None) as fs:
        await fs.mkdir("/a")
        await cluster.crash(first)
        await fs.mkdir("/b")
    quick = ClientSettings(retry_seconds=1)
    with pytest.raises(WrongClusterKey):
        async with cluster._connected(["stranger"], None, quick):
            pass
    with pytest.raises(MasterUnavailable, match="another cluster key"):
        async with cluster._connected(["stranger", first], None, quick):
            pass

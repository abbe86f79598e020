"""Masters that an engine elects: the one that holds is killed, stopped, cut off and moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from elected import NAMES, Elected
from limits import wait_for
from processes import wait_until
from test_shadow import Load

import gfs
from gfs.config import ClientSettings
from gfs.errors import GfsError

pytestmark = pytest.mark.extra("etcd")

WRITERS = 4
#: No hold that is not renewed lasts longer.
HOLD_SECONDS = 3.0


@pytest.fixture
def elected(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Elected]:
    seconds = getattr(request, "param", HOLD_SECONDS)
    made = Elected(tmp_path / "elected", GFS_MASTER_HOLD_SECONDS=f"{seconds:g}")
    yield made
    made.stop()


async def roles(elected: Elected) -> list[str]:
    return sorted([await elected.role(name) for name in NAMES if name in elected.processes])


async def wait_roles(elected: Elected) -> None:
    async def are_all_there() -> bool:
        return await roles(elected) == ["master", "shadow", "shadow"]

    await wait_until(are_all_there, "a master and two shadow masters")


async def test_another_one_takes_over_from_a_master_that_is_killed(elected: Elected) -> None:
    """Under load; what was acknowledged is there, and the killed one follows when it is back."""
    killed = await elected.holder()
    await elected.wait_followed()
    load = Load()
    async with elected.connect() as fs, trio.open_nursery() as nursery:
        for writer in range(WRITERS):
            nursery.start_soon(load.write, fs, f"writer{writer}")
        await load.wait_for_more(20)
        elected.kill(killed)
        await load.wait_for_more(20)
        nursery.cancel_scope.cancel()
    assert await elected.holder() != killed
    elected.start_one(killed)
    await elected.wait_followed()
    async with elected.connect() as fs:
        await load.check(fs)
    await wait_roles(elected)


@pytest.mark.parametrize("writers", [0, 4])
async def test_a_master_that_was_stopped_answers_nothing(
    elected: Elected, writers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to requests that it had received, or that arrived while it stood still: what they
    read is not the newest any more. It is stopped in the middle of many reads and writes."""
    for name in ("CALL_SECONDS", "SILENT_SECONDS"):  # they are waited for
        monkeypatch.setattr(f"gfs.client.master.{name}", 300.0)
    stopped = await elected.holder()
    await elected.wait_followed()
    answers: list[object] = []
    before, goes_on = 0, False
    # Nobody is at the other address; with one alone it would ask a shadow master, too.
    only = f"{elected.addresses[stopped]},127.0.0.1:1"
    others = [name for name in NAMES if name != stopped]
    async with elected.connect() as fs:
        await fs.put(b"old", "/f")
    async with gfs.connect(
        only, key=elected.key, settings=ClientSettings(retry_seconds=0.1)
    ) as alone:
        assert (await alone.stat("/f")).length == 3

        async def ask(number: int) -> None:
            nonlocal before
            for turn in range(10**6):
                answer: object = None
                with suppress(GfsError):
                    if number >= writers:
                        answer = (await alone.stat("/f")).length
                    else:
                        answer = await alone.mkdir(f"/{number}-{turn}") or "made"
                if answer is None:
                    await trio.sleep(0.01)
                elif goes_on:
                    answers.append(answer)
                before += answer is not None

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(ask, number)

            async def is_under_load() -> bool:
                return before > 200

            await wait_until(is_under_load, "many answers")
            elected.freeze(stopped)
            for number in range(16, 36):
                nursery.start_soon(ask, number)
            async with elected.connect(*others) as fs:
                await fs.put(b"newest", "/f", overwrite=True)  # of the next master
            goes_on, waiting = True, alone._core.master._rpc
            assert not waiting.closed
            elected.thaw(stopped)
            await elected.wait_followed()
            nursery.cancel_scope.cancel()
    assert not answers
    assert await elected.holder() != stopped
    await elected.wait_followed()
    async with elected.connect() as fs:
        assert await fs.get("/f") == b"newest"
    await wait_roles(elected)


async def test_without_its_engine_a_master_serves_until_its_hold_ends(elected: Elected) -> None:
    """And nobody else does; when the engine is back, all goes on."""
    await elected.holder()
    await elected.wait_followed()
    async with elected.connect() as fs:
        await fs.put(b"before", "/before")
        elected.engine.freeze()

        async def is_without_master() -> bool:
            return "master" not in await roles(elected)

        assert await fs.get("/before") == b"before"
        await wait_until(is_without_master, "end of the hold")
        status = elected.gfs("status", master=elected.addresses["a"])
        assert "has not answered for" in status, status
        elected.engine.thaw()
        await fs.put(b"after", "/after")
        assert await fs.get("/before") == b"before"
    await wait_roles(elected)


# Nobody loses it who is only slow; with one much longer it is looked at too rarely to be moved.
@pytest.mark.parametrize("elected", [3 * HOLD_SECONDS], indirect=True)
async def test_an_operator_moves_the_master_and_no_call_fails(elected: Elected) -> None:
    first = await elected.holder()
    await elected.wait_followed()
    load = Load()
    async with elected.connect() as fs, trio.open_nursery() as nursery:
        for writer in range(WRITERS):
            nursery.start_soon(load.write, fs, f"writer{writer}")
        await load.wait_for_more(10)
        chosen = next(name for name in NAMES if name != first)
        said = elected.gfs("failover", elected.addresses[chosen])
        assert f"{elected.addresses[chosen]} is the master, in term 2" in said
        await load.wait_for_more(10)
        said = elected.gfs("failover")
        assert "in term 3" in said
        await load.wait_for_more(10)
        nursery.cancel_scope.cancel()
    await elected.wait_followed()
    async with elected.connect() as fs:
        await load.check(fs)
    holder = elected.addresses[await elected.holder()]

    def election() -> tuple[str, int]:
        found = json.loads(elected.gfs("status", "--json"))["election"]
        return found["holder"], found["away_ms"]

    wait_for(lambda: election() == (holder, 0), "word of the engine")

"""The adapter of a Lease with an API server that is simulated: whatever wall clocks say, one at a
time has the hold, and another one gets it when its holder is gone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio

from gfs.io import Clock
from gfs.master.election import Candidate
from gfs.master.election.lease import (
    CONFLICT,
    NOT_FOUND,
    KubernetesLease,
    Object,
    _Refused,
    _to_time,
)
from gfs.testing import Universe

from .elected import HOLD_SECONDS
from .seeds import over_seeds

YEAR_SECONDS = 365 * 86_400


class Server:
    """An API server with one Lease; those who write it have wrong clocks."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._lease: Object | None = None
        self._version = 0

    def get_namespaced_custom_object(self, name: str) -> Object:
        if self._lease is None:
            raise _Refused(NOT_FOUND, "there is none")
        return copy.deepcopy(self._lease)

    def create_namespaced_custom_object(self, body: Object) -> Object:
        if self._lease is not None:
            raise _Refused(CONFLICT, "it is there")
        return self._store(body)

    def replace_namespaced_custom_object(self, name: str, body: Object) -> Object:
        if body["metadata"].get("resourceVersion") != f"{self._version}":
            raise _Refused(CONFLICT, "it has another version")
        return self._store(body)

    def _store(self, body: Object) -> Object:
        self._version += 1
        self._lease = lease = copy.deepcopy(body)
        lease["metadata"] |= {"uid": "one", "resourceVersion": f"{self._version}"}
        wrong_ns = self._chance.randint(-YEAR_SECONDS, YEAR_SECONDS) * 10**9
        lease["spec"]["renewTime"] = _to_time(2 * YEAR_SECONDS * 10**9 + wrong_ns)
        return copy.deepcopy(lease)


class SimLease(KubernetesLease):
    def __init__(self, server: Server, clock: Clock, chance: random.Random) -> None:
        super().__init__("space", "masters", HOLD_SECONDS, cast(Any, server), clock.elapsed)
        self._chance = chance

    async def _ask(self, call: Callable[..., Any], *arguments: Any) -> Object:
        await trio.sleep(self._chance.uniform(0, 0.3))
        found: Object = call(*arguments)
        await trio.sleep(self._chance.uniform(0, 0.3))
        return found


@pytest.mark.parametrize("fails", ["dies", "suspended"])
@over_seeds(4)
async def test_one_at_a_time_has_a_lease(seed: int, chance: random.Random, fails: str) -> None:
    universe, server = Universe(seed), Server(chance)
    machines = [universe.machine(name) for name in ("one", "other", "third")]
    candidates = []
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in machines]

        async def campaign(candidate: Candidate) -> None:
            while True:
                await candidate.acquire()
                await candidate.lost.wait()

        async def live(scope: trio.CancelScope, candidate: Candidate) -> None:
            with scope:
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(candidate.run)
                    tasks.start_soon(campaign, candidate)

        for machine, scope in zip(machines, scopes, strict=True):
            clock = machine.start_process().world.clock
            engine = SimLease(server, clock, chance)
            candidates.append(Candidate(clock, engine, HOLD_SECONDS, f"{machine.name}:1"))
            nursery.start_soon(live, scope, candidates[-1])

        async def look(seconds: float) -> list[int]:
            """Who has had the hold, the last of them at the end."""
            seen: list[int] = []
            until = trio.current_time() + seconds
            while trio.current_time() < until:
                holders = [n for n, candidate in enumerate(candidates) if candidate.holds]
                assert len(holders) <= 1
                seen += holders
                await trio.sleep(0.01)
            return seen

        first = (await look(5 * HOLD_SECONDS))[-1]
        assert set(await look(10 * HOLD_SECONDS)) == {first}
        if fails == "dies":
            candidates[first]._hold = None  # nothing is renewed or given up any more
            scopes[first].cancel()
        else:
            machines[first].time.suspended_seconds += 3600
        assert (await look(5 * HOLD_SECONDS))[-1] in range(len(machines))
        if fails == "dies":
            assert not candidates[first].holds
        nursery.cancel_scope.cancel()

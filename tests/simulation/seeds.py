"""Tests that run once per seed, and say how to replay the one that failed. Of the seeds of
each ``make test`` runs a part: see ``tests/share.py``.

``GFS_SEEDS`` overrides which: ``17``, or ``0-999``.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import pytest
from share import turn

from gfs.testing import SimCluster, run_simulated


def seeds(default_count: int) -> list[int]:
    chosen = os.environ.get("GFS_SEEDS")
    if chosen is None:
        return list(turn(default_count))
    first, _, last = chosen.partition("-")
    return list(range(int(first), int(last or first) + 1))


def over_seeds(count: int, user: str | None = None, **settings: Any) -> Callable[..., Any]:
    """Makes a test of ``async scenario(seed, chance, cluster, fs, …)``.

    A scenario takes of these what it needs: ``chance`` is the seed's own, ``cluster`` a running
    :class:`SimCluster` with these settings, ``fs`` a client of it, whose name is ``user``.
    """

    def decorate(scenario: Callable[..., Awaitable[None]]) -> Any:
        signature = inspect.signature(scenario)
        given = [
            name for name in ("seed", "chance", "cluster", "fs") if name in signature.parameters
        ]

        async def run(seed: int, **more: object) -> None:
            ours: dict[str, object] = {"seed": seed, "chance": Random(f"{seed}/test")}
            async with AsyncExitStack() as stack:
                if "cluster" in given or "fs" in given:
                    cluster = await stack.enter_async_context(SimCluster(seed, **settings))
                    ours["cluster"] = cluster
                    if "fs" in given:
                        ours["fs"] = await stack.enter_async_context(cluster.client(user))
                await scenario(**{name: ours[name] for name in given}, **more)

        @pytest.mark.parametrize("seed", seeds(count))
        @functools.wraps(scenario)
        def test(seed: int, **more: object) -> None:
            try:
                run_simulated(seed, functools.partial(run, seed, **more))
            except BaseException as error:
                error.add_note(
                    f"replay: GFS_SEEDS={seed} python -m pytest "
                    f"tests/simulation -k {scenario.__name__}"
                )
                raise

        # What pytest is to give: the seed, and all of the scenario's arguments that are not ours.
        wanted = [p for name, p in signature.parameters.items() if name not in given]
        mine = inspect.Parameter("seed", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = signature.replace(parameters=[mine, *wanted])  # type: ignore[attr-defined]
        return test

    return decorate

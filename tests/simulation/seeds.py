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


#: Names of clients that a scenario may ask for.
CLIENTS = ("fs", "one", "other", "stray")


def over_seeds(
    which: int | list[int],
    *,
    kind: Callable[..., SimCluster] = SimCluster,
    user: str | None = None,
    **settings: Any,
) -> Callable[..., Any]:
    """Makes a test of ``async scenario(seed, chance, cluster, fs, …)``: for so many seeds, or
    for those that are named.

    A scenario takes of these what it needs: ``chance`` is the seed's own, ``cluster`` a running
    one of that kind with these settings, and each of ``CLIENTS`` a client of it. The name of
    ``fs`` is ``user``, that of ``stray`` the same.
    """

    def decorate(scenario: Callable[..., Awaitable[None]]) -> Any:
        signature = inspect.signature(scenario)
        given = [n for n in signature.parameters if n in ("seed", "chance", "cluster", *CLIENTS)]
        clients = [name for name in given if name in CLIENTS]

        async def run(seed: int, **more: object) -> None:
            found: dict[str, object] = {"seed": seed, "chance": Random(f"{seed}/test")}
            async with AsyncExitStack() as stack:
                if clients or "cluster" in given:
                    cluster = await stack.enter_async_context(kind(seed, **settings))
                    found["cluster"] = cluster
                    for name in clients:
                        named = {"fs": user, "stray": "stray"}.get(name)
                        found[name] = await stack.enter_async_context(cluster.client(named))
                await scenario(**{name: found[name] for name in given}, **more)

        @pytest.mark.parametrize("seed", which if isinstance(which, list) else seeds(which))
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

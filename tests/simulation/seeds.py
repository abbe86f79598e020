"""Tests that run once per seed, and say how to replay the one that failed. Of the seeds of
each ``make test`` runs a part: see ``tests/share.py``.

``GFS_SEEDS`` overrides which: ``17``, or ``0-999``.
"""

from __future__ import annotations

import functools
import inspect
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from share import turn

from gfs.testing import run_simulated


def seeds(default_count: int) -> list[int]:
    chosen = os.environ.get("GFS_SEEDS")
    if chosen is None:
        return list(turn(default_count))
    first, _, last = chosen.partition("-")
    return list(range(int(first), int(last or first) + 1))


def over_seeds(count: int) -> Callable[[Callable[..., Awaitable[None]]], Any]:
    """Makes a test of ``async scenario(seed, chance)``: ``chance`` is the seed's own."""

    def decorate(scenario: Callable[..., Awaitable[None]]) -> Any:
        @pytest.mark.parametrize("seed", seeds(count))
        @functools.wraps(scenario)
        def test(seed: int, **more: object) -> None:
            run = functools.partial(scenario, seed, random.Random(f"{seed}/test"), **more)
            try:
                run_simulated(seed, run)
            except BaseException as error:
                error.add_note(
                    f"replay: GFS_SEEDS={seed} python -m pytest "
                    f"tests/simulation -k {scenario.__name__}"
                )
                raise

        # What pytest is to give: all of the scenario's arguments but the chance.
        signature = inspect.signature(scenario)
        wanted = [p for name, p in signature.parameters.items() if name != "chance"]
        test.__signature__ = signature.replace(parameters=wanted)  # type: ignore[attr-defined]
        return test

    return decorate

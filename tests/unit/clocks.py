"""Clocks that a busy machine does not move: autouse fixtures for the tests of a module."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gfs.testing import run_simulated

#: So much of a second is over after one: a limit of 2 s is one of 40.
SLOW = 0.05

Main = Callable[[], Awaitable[None]]


def simulated(
    seed: int | None = None,
) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Makes an ordinary test of an async one: in virtual time, where ``seed`` decides, or
    the argument of that name."""

    def decorate(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @functools.wraps(function)
        def test(**given: object) -> None:
            decides: Any = given["seed"] if seed is None else seed
            run_simulated(decides, functools.partial(function, **given))

        return test

    return decorate


def run_slowly(function: Main, **_: object) -> None:
    """With real sockets: nothing that has a limit of some seconds reaches it."""
    trio.run(function, clock=MockClock(rate=SLOW))


def _run_simulated(function: Main, **_: object) -> None:
    run_simulated(1, function)


def _run_with(request: pytest.FixtureRequest, run: Callable[..., None]) -> None:
    if request.node.get_closest_marker("trio") is not None:
        request.node.add_marker(pytest.mark.trio(run=run), append=False)


@pytest.fixture
def slow_time(request: pytest.FixtureRequest) -> None:
    _run_with(request, run_slowly)


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    """For simulated worlds."""
    _run_with(request, _run_simulated)

"""One integer decides a whole Trio run: the only module that reaches into Trio.

Trio shuffles every batch of runnable tasks with a generator of its own, so that
nobody relies on an order. For a replay that generator is seeded here and the
batch is put in order before the shuffle, the way Trio's own tests do it
(``trio._core._run._r`` and ``_ALLOW_DETERMINISTIC_SCHEDULING``). With a clock
that jumps whenever all tasks wait, and no threads and no sockets, a run is then
a function of its seed. ``tests/unit/test_simulated_world.py`` compares two runs.

Hypothesis seeds the same generator to 0 before every example: inside it, draw
the seed and pass it here.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run

T = TypeVar("T")


@contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """The order in which tasks run follows from ``seed`` alone, in the body.

    Trio's generator and switch are put back afterwards.
    """
    generator: random.Random = _run._r
    before, ordered = generator.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    generator.seed(seed)
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = ordered  # type: ignore[misc]
        generator.setstate(before)


def run_simulated(seed: int, function: Callable[..., Awaitable[T]], *args: object) -> T:
    """``trio.run`` in virtual time from 0, scheduled by ``seed``.

    Must not be called inside a running Trio loop. A failure says the seed.
    """
    with deterministic_scheduling(seed):
        try:
            return trio.run(
                function,
                *args,
                clock=trio.testing.MockClock(autojump_threshold=0),
                strict_exception_groups=True,
            )
        except BaseException as error:
            error.add_note(f"simulated with seed {seed}")
            raise

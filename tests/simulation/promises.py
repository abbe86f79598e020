"""What the simulated tests share: bytes to store, and what must come true of them."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterable
from typing import Any

import trio

from gfs.blocks import MIB
from gfs.client import Client
from gfs.testing import SimCluster

#: Two chunks, the second partly full.
LARGE_BYTES = 66 * MIB + 4321
#: The longest wait a client may see when one chunkserver dies.
STALL_SECONDS = 5.0
#: From a death to the file being whole again everywhere.
REPAIR_SECONDS = 30.0


@functools.cache
def noise() -> bytes:
    return random.Random(0).randbytes(80 * MIB)


def content(chance: random.Random, length: int) -> bytes:
    """Bytes without a period, different for each call."""
    start = chance.randrange(len(noise()) - length)
    return noise()[start : start + length]


async def later(seconds: float, action: Callable[..., Any], *args: object) -> None:
    await trio.sleep(seconds)
    result = action(*args)
    if inspect.isawaitable(result):
        await result


async def replicas(fs: Client, path: str, without: Iterable[str] = ()) -> int:
    """The fewest replicas a chunk of the file has on other machines than these."""
    report = await fs.locate(path)
    hosts = [[r.address.partition(":")[0] for r in c.replicas] for c in report.chunks]
    return min(sum(host not in without for host in each) for each in hosts)


async def wait_for_goal(
    cluster: SimCluster, fs: Client, path: str, goal: int, without: Iterable[str] = (),
    timeout: float = REPAIR_SECONDS,
) -> None:  # fmt: skip
    async def reached() -> bool:
        return await replicas(fs, path, without) >= goal

    await cluster.wait_until(reached, timeout, f"{path} at {goal} replicas")


async def sound(fs: Client) -> bool:
    """Whether every replica of everything verifies and all files are at their goal."""
    return not (await fs.fsck()).damaged


async def assert_sound(fs: Client) -> None:
    report = await fs.fsck()
    assert not report.damaged, report.problems


async def wait_until_sound(cluster: SimCluster, fs: Client) -> None:
    async def reached() -> bool:
        return await sound(fs)

    await cluster.wait_until(reached, REPAIR_SECONDS, "everything is sound")


async def settled(fs: Client) -> bool:
    totals = (await fs.status()).totals
    return not (totals.under_replicated or totals.lost or totals.corrupt)

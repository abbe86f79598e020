"""What the simulated tests share: bytes to store, and what must come true of them."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest
import trio

from gfs.blocks import MIB
from gfs.client import Client
from gfs.protocol.messages import ServerStatus
from gfs.testing import SimCluster

T = TypeVar("T")

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


def noted(patch: pytest.MonkeyPatch, kind: type[T]) -> list[T]:
    """All of a kind that are made from now on."""
    made: list[T] = []
    begin = kind.__init__

    def begin_noted(self: T, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        made.append(self)

    patch.setattr(kind, "__init__", begin_noted)
    return made


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


async def wait_until_sound(
    cluster: SimCluster, fs: Client, timeout: float = REPAIR_SECONDS
) -> None:
    async def reached() -> bool:
        return await sound(fs) and await settled(fs)

    await cluster.wait_until(reached, timeout, "everything is sound", every=0.5)


async def server_at(fs: Client, name: str) -> ServerStatus:
    servers = (await fs.status()).servers
    (found,) = [each for each in servers if each.address.partition(":")[0] == name]
    return found


async def is_dead(fs: Client, name: str) -> bool:
    return (await server_at(fs, name)).state == "dead"


async def settled(fs: Client) -> bool:
    totals = (await fs.status()).totals
    return not (totals.under_replicated or totals.lost or totals.corrupt)


async def wait_settled(cluster: SimCluster, fs: Client, timeout: float = 60.0) -> None:
    """All is sound as soon as the master says that it is settled."""
    await cluster.wait_until(lambda: settled(fs), timeout)
    await assert_sound(fs)

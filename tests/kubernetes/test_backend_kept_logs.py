"""What a container has printed that is stopped, whose pod is gone."""

from __future__ import annotations

import re

from kube_backend import Running, name_of, running, spec
from kube_here import Kubernetes
from kube_rights import account_of_file
from msgspec.structs import replace

from control.compute.backend import Spec
from control.compute.kubernetes.logs import KEPT_BYTES
from control.compute.kubernetes.manifests import POD

STAMP = re.compile(r"^\S+ ")


async def printed(here: Running, one: Spec, tail: int = 10_000) -> list[str]:
    lines = [line async for line in here.backend.logs(one, tail, follow=False)]
    assert all(STAMP.match(line) for line in lines)
    return [STAMP.sub("", line) for line in lines]


async def test_logs_of_a_stopped_container_stay_until_it_is_started(kubernetes: Kubernetes) -> None:
    one = spec()
    again = replace(one, generation=2)
    async with running(account_of_file(kubernetes.server)) as here:
        await here.start(one)
        for text in ("one \u20ac", "{two}: 'x' \x07 \u2028 \U0001f600", "three"):
            kubernetes.kubelet.write_log(name_of(one), POD, text)
        there = await printed(here, one)
        assert there[-1] == "three"
        for _ in range(2):
            await here.backend.stop(one)
            await here.seen.phase(one, "stopped")
            assert await printed(here, one) == there
        assert await printed(here, one, 2) == there[-2:]
        assert await printed(here, one, 0) == []
        await here.backend.start(again)
        await here.seen.phase(again, "running")
        kubernetes.kubelet.write_log(name_of(one), POD, "another run")
        assert "three" not in await printed(here, again)
        await here.backend.stop(again)
        await here.seen.phase(again, "stopped")
        assert (await printed(here, again))[-1] == "another run"


async def test_of_many_lines_the_last_are_kept(kubernetes: Kubernetes) -> None:
    one = spec()
    async with running(kubernetes.admin) as here:
        await here.start(one)
        for number in range(2000):
            kubernetes.kubelet.write_log(name_of(one), POD, f"{number} {'x' * 200}")
        await here.backend.stop(one)
        await here.seen.phase(one, "stopped")
        kept = [int(line.split()[0]) for line in await printed(here, one)]
        assert kept == list(range(kept[0], 2000))
        assert KEPT_BYTES // 250 < len(kept) < KEPT_BYTES // 200

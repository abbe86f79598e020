"""What the control plane may open is shared out, and too little of it is said at the start."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from control.compute.backend import BackendUnavailable, Installation
from control.compute.podman import Podman
from control.compute.settings import ComputeSettings
from control.settings import ControlSettings
from gfs.cluster import process
from gfs.errors import StartupError


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft limit and the hard one, as the kernel keeps them."""
    now = [1024, 4096]

    def setrlimit(_: int, wanted: tuple[int, int]) -> None:
        assert wanted[0] <= now[1] or now[1] == resource.RLIM_INFINITY
        now[:] = wanted

    monkeypatch.setattr(process.resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(process.resource, "setrlimit", setrlimit)
    return now


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "there"),
    [
        (1024, 4096, 2000, 2000),
        (1024, 4096, 20_000, 4096),
        (65_536, 65_536, 20_000, 65_536),
        (1024, resource.RLIM_INFINITY, 20_000, 20_000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 20_000, sys.maxsize),
    ],
)
def test_the_limit_is_raised_as_far_as_permitted(
    limits: list[int], soft: int, hard: int, wanted: int, there: int
) -> None:
    limits[:] = soft, hard
    process.allow_descriptors(wanted, 1000, "it")
    assert process.descriptors() == there


def test_a_limit_that_is_too_low_for_the_settings_ends_the_start(limits: list[int]) -> None:
    limits[:] = 1024, 2048
    needed = ControlSettings().descriptors
    with pytest.raises(StartupError, match=r"connections_max needs 2560.*may have 2048.*LimitNO"):
        process.allow_descriptors(needed + 16_384, needed, "connections_max")
    process.allow_descriptors(20_000, ControlSettings(connections_max=700).descriptors, "fewer")


async def test_containers_cannot_run_where_nothing_is_left_for_their_connections(
    tmp_path: Path,
) -> None:
    here = Installation(
        id="c0ffee00", domain="test", image="none", directory=str(tmp_path), descriptors=200
    )
    with pytest.raises(BackendUnavailable, match=r"need 256 .* 200 are left.*connections_max"):
        await Podman(here, ComputeSettings(backend="podman")).check()

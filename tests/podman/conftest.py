"""Fixtures for tests with real containers. See :mod:`podman_here`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

# The clouds, and the ways to look at answers, are those of the control plane's tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "control"))

import podman_here
import podman_image
from alone import Alone
from limits import HANG_SECONDS
from needs import need
from podman_here import Here, User
from podman_stage import Stage, stage

from control.compute.backend import Spec
from control.compute.podman import terminal, watching
from control.compute.podman.engine import service


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given up after some seconds takes longer on a busy machine."""
    for module, names in (
        (service, ("START_SECONDS", "PING_SECONDS")),
        (terminal, ("TURN_SECONDS", "START_SECONDS", "PID_SECONDS", "END_SECONDS")),
        (watching, ("ANSWER_SECONDS",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, HANG_SECONDS)


@pytest.fixture(scope="session")
def containers_work() -> None:
    need(podman_image.missing())


@pytest.fixture(scope="session")
def cloud(containers_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A cloud that all tests of a process share. Each has users of its own, and deletes
    what they create; whoever kills processes takes ``alone``."""
    with podman_here.running(tmp_path_factory.mktemp("podman"), shared=True) as made:
        yield made


@pytest.fixture
def user(cloud: Here) -> Iterator[User]:
    """A new user, whose containers are deleted after the test."""
    made = cloud.user()
    yield made
    for container in made.client.get("/compute/containers").json()["containers"]:
        made.delete(container["id"])


@pytest.fixture
def alone(containers_work: None, tmp_path: Path) -> Iterator[Here]:
    """A control plane of a test's own, which may be killed."""
    with podman_here.running(tmp_path / "alone", Alone) as made:
        yield made


@pytest.fixture
async def here(containers_work: None, tmp_path: Path) -> AsyncIterator[Stage]:
    """The backend by itself."""
    async with stage(tmp_path / "stage") as made:
        yield made


@pytest.fixture
async def spec(here: Stage) -> Spec:
    """A container of it that runs."""
    return await here.run()

"""Fixtures for tests against a real Kubernetes. See :mod:`kube_here`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / each) for each in ("cluster", "control", "unit"))

import binaries
import kube_here
import pytest
from apiserver import Identity
from kube_api import Api
from kube_backend import OPENED, Running, running, spec
from kube_here import Kubernetes
from needs import need

from control.compute.backend import Spec
from control.compute.kubernetes import watching


@pytest.fixture(scope="session")
def running_kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """One for all tests of a process. Tests ask for ``kubernetes``."""
    need(binaries.missing())
    with kube_here.running(tmp_path_factory.mktemp("kubernetes")) as made:
        yield made


@pytest.fixture
def kubernetes(running_kubernetes: Kubernetes) -> Iterator[Kubernetes]:
    """A cluster with nodes. What a test does to the API server is put right after it;
    what it creates stays, so it makes a namespace of its own."""
    yield running_kubernetes
    running_kubernetes.server.ensure_up()
    running_kubernetes.kubelet.check()


_NUMBERS = itertools.count()


@pytest.fixture
def kube_identity(kubernetes: Kubernetes) -> Callable[..., Identity]:
    """Makes a ServiceAccount that may do what the given rules of a ClusterRole say."""

    def make(rules: list[dict[str, object]]) -> Identity:
        return kubernetes.server.identity(f"identity-{next(_NUMBERS)}", rules)

    return make


@pytest.fixture
async def kube(kubernetes: Kubernetes) -> AsyncIterator[Api]:
    """The tests' own client, as an administrator."""
    async with Api(kubernetes.admin) as api:
        yield api


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture
def looks_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start that gets nowhere waits for is looked into at once."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.1)


@pytest.fixture
async def here(kubernetes: Kubernetes) -> AsyncIterator[Running]:
    """The backend under test, as an administrator, with its watch."""
    async with running(kubernetes.admin) as made:
        yield made


@pytest.fixture
def one() -> Spec:
    return spec()

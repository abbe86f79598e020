"""Fixtures for tests against a real Kubernetes. See :mod:`kube_here`."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator

import binaries
import kube_here
import pytest
from apiserver import Identity
from kube_api import Api, insist
from kube_here import Kubernetes
from kube_pods import pod_body, pods_in
from needs import need


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


@pytest.fixture
async def namespace(kube: Api) -> str:
    """The name of a fresh namespace, in which pods can be made."""
    made = await kube.create("/api/v1/namespaces", {"metadata": {"generateName": "test-"}})
    name = str(made["metadata"]["name"])
    # A pod needs its account's token, which a controller makes.
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    await kube.wait_one(account, lambda found: found.get("secrets"))
    # Which the API server takes note of a little later.
    await insist(lambda: kube.create(f"{pods_in(name)}?dryRun=All", pod_body()))
    return name

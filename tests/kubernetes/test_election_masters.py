"""Masters that a Lease elects: the scenarios of those that etcd elects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apiserver import Identity
from elected import Elected, ElectionEngine
from kube_here import Kubernetes
from test_election_lease import RIGHTS
from test_failover import (  # noqa: F401 - tests
    test_a_master_that_was_stopped_answers_nothing,
    test_an_operator_moves_the_master_and_no_call_fails,
    test_another_one_takes_over_from_a_master_that_is_killed,
    test_without_its_engine_a_master_serves_until_its_hold_ends,
)

_NUMBERS = itertools.count()


class LeaseOf:
    """A Lease of its own on the API server of the tests."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self.elect = f"kubernetes://default/masters-of-processes-{next(_NUMBERS)}"
        self._server = kubernetes.server

    def freeze(self) -> None:
        self._server.freeze()

    def thaw(self) -> None:
        self._server.thaw()

    def stop(self) -> None:
        pass


class ElectedByLease(Elected):
    def __init__(self, directory: Path, kubernetes: Kubernetes, identity: Identity) -> None:
        self._kubernetes = kubernetes
        super().__init__(directory, KUBECONFIG=str(identity.kubeconfig))

    def start_engine(self, directory: Path) -> ElectionEngine:
        return LeaseOf(self._kubernetes)


@pytest.fixture
def elected(
    tmp_path: Path,
    kubernetes: Kubernetes,
    kube_identity: Callable[[list[dict[str, object]]], Identity],
) -> Iterator[ElectedByLease]:
    rights: list[dict[str, object]] = [*RIGHTS]
    made = ElectedByLease(tmp_path / "elected", kubernetes, kube_identity(rights))
    yield made
    made.stop()

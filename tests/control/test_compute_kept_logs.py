"""What is kept of the logs of a container in Kubernetes that is stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket

from control.compute.backend import BackendUnavailable, Installation, Spec
from control.compute.kubernetes import Kubernetes, logs, make
from control.compute.kubernetes.client import Refused
from control.compute.kubernetes.logs import KEPT_BYTES, KEPT_LINES, LINE_BYTES_MAX, Last
from control.compute.kubernetes.manifests import ANNOTATION_LOGS, labels
from control.compute.kubernetes.shapes import Meta, Namespace
from control.compute.settings import ComputeSettings

HERE = Installation(id="here", domain="test", image="image", directory="")
ONE = Spec(
    id="00000001", user_id="ada", name="box", image="image", architecture="amd64", cpus=1,
    memory_mb=512, storage_gb=5, ssh_keys=(), ssh_enabled=False, mount_paths=(), ports=(),
    generation=1,
)  # fmt: skip


class Cluster:
    """As the API server answers, of one container."""

    def __init__(self) -> None:
        #: What the pod prints until it has ended; None: there is no pod.
        self.output: list[str] | None = None
        #: What it prints when it is told to end.
        self.farewell: Iterable[str | None] = ()
        self.annotations: dict[str, str] = {}
        self.refuses_annotations = False

    async def namespace(self, name: str) -> Namespace:
        meta = Meta(name, labels=labels(HERE, ONE.user_id, ONE.id))
        return Namespace(meta)

    async def apply_namespace(self, manifest: Any) -> None:
        pass

    async def apply(self, manifest: Any) -> None:
        found = manifest["metadata"].get("annotations", {})
        if found and self.refuses_annotations:
            raise BackendUnavailable("denied: no other labels and annotations")
        self.annotations = found

    async def workload(self, namespace: str, name: str) -> Any:
        return SimpleNamespace(logs=self.annotations.get(ANNOTATION_LOGS, ""))

    @asynccontextmanager
    async def stream(
        self, api: Any, path: str, query: Any, *_: Any, **__: Any
    ) -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        if self.output is None:
            raise Refused.of(404, b"{}")
        left = deque(self.output)
        is_followed = dict(query)["follow"] == "true"

        async def get_message() -> str:
            await trio.lowlevel.checkpoint()
            if not left and is_followed:
                left.extend(self.farewell)
                self.farewell, self.output = (), None
            if not left:
                raise trio_websocket.ConnectionClosed(SimpleNamespace(code=1000))
            text = left.popleft()
            if text is None:
                await trio.sleep_forever()
            return f"{text}\n"

        yield SimpleNamespace(get_message=get_message)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(logs, "open_stream", made.stream)
    return made


@pytest.fixture
def backend(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Kubernetes:
    made = make(HERE, ComputeSettings())
    monkeypatch.setattr(made, "_api", cluster)
    return made


async def printed(backend: Kubernetes, tail: int = 100) -> list[str]:
    return [line async for line in backend.logs(ONE, tail, follow=False)]


async def test_what_a_run_has_printed_is_there_when_its_pod_is_gone(
    cluster: Cluster, backend: Kubernetes
) -> None:
    cluster.output, cluster.farewell = ["one", "t\u2028wo"], ["I am told to end"]
    for _ in range(2):  # a stop may be repeated, and there is no pod then
        await backend.stop(ONE)
        assert cluster.output is None
        assert await printed(backend) == ["one", "t\u2028wo", "I am told to end"]
    assert await printed(backend, 1) == ["I am told to end"]
    assert await printed(backend, 0) == []
    # A run has logs of its own, and so has the next stop.
    await cluster.apply(backend._workload(ONE, run=True))
    assert await printed(backend) == []
    cluster.output = ["another"]
    await backend.stop(ONE)
    assert await printed(backend) == ["another"]


async def test_a_run_is_stopped_whatever_becomes_of_its_logs(
    cluster: Cluster, backend: Kubernetes, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    cluster.output, cluster.farewell = ["one"], [None]  # it does not end
    await backend.stop(ONE)
    assert await printed(backend) == ["one"]
    assert trio.current_time() - began <= logs.LAST_SECONDS
    await cluster.apply(backend._workload(ONE, run=True))
    cluster.output, cluster.refuses_annotations = ["one"], True
    await backend.stop(ONE)
    assert await printed(backend) == []


def test_the_last_lines_are_kept_up_to_a_bound() -> None:
    last = Last()
    assert last.text == ""
    for number in range(KEPT_LINES + 5):
        last.add(f"{number}")
    assert last.text.split("\n")[:-1] == [f"{n}" for n in range(5, KEPT_LINES + 5)]
    for letter in "abcd":
        last.add("\u20ac" * (LINE_BYTES_MAX // 3 - 1) + letter)
    assert [line[-1] for line in last.text.splitlines()[-3:]] == ["b", "c", "d"]
    assert KEPT_BYTES - LINE_BYTES_MAX < len(last.text.encode()) <= KEPT_BYTES

"""The watch, and what may happen to it: nothing of that keeps the truth from coming."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from kube_api import Api
from kube_backend import Running, made, path_of, running, spec, started
from kube_here import Kubernetes
from limits import HANG_SECONDS

from control.compute.backend import Spec
from control.compute.kubernetes import mirror, watching
from control.compute.kubernetes.client.api import Api as OurApi
from control.compute.kubernetes.client.refusals import Refused
from control.compute.kubernetes.mirror import Mirror
from control.compute.kubernetes.shapes import Namespace


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another soon."""
    monkeypatch.setattr(mirror, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(mirror, "AGAIN_SECONDS_MAX", 0.1)


@pytest.fixture(scope="module")
def one(running_kubernetes: Kubernetes) -> Spec:
    """A container that runs, of the installation "watched". Made before anything happens
    to the API server: controllers take their time after that."""
    return started(running_kubernetes.admin, "watched")


async def in_thread(act: Any) -> None:
    with trio.fail_after(HANG_SECONDS):
        await trio.to_thread.run_sync(act)


_NUMBERS = itertools.count()


async def goes_on(here: Running, kube: Api, old: Spec) -> None:
    """All three watches report what happens: to a new namespace, a pod, and a Service.

    Only what needs no controller: those take their time after a restart.
    """
    new = spec()
    await here.backend.create(new)
    await here.seen.phase(new, "stopped")
    number = next(_NUMBERS)
    is_silent = number % 2 == 0
    ready = {"type": "Ready", "status": "False" if is_silent else "True"}
    await kube.patch(path_of(old, "/pods/container-0/status"), {"status": {"conditions": [ready]}})
    await here.seen.until(lambda: bool(here.seen.now[old.id].reason) == is_silent)
    address = {"status": {"loadBalancer": {"ingress": [{"ip": f"192.0.2.{number}"}]}}}
    await kube.patch(path_of(old, "/services/container/status"), address)
    await here.seen.until(lambda: here.seen.now[old.id].external_ip == f"192.0.2.{number}")


class Heard(logging.Handler):
    """Waits for a message of ours."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._heard = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._heard.set()

    async def wait(self) -> None:
        with trio.fail_after(HANG_SECONDS):
            await self._heard.wait()


@contextmanager
def hearing(text: str) -> Iterator[Heard]:
    logger = logging.getLogger("control.compute")
    heard, level = Heard(text), logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)


async def test_nothing_is_reported_as_gone_before_all_was_listed(
    kubernetes: Kubernetes, kube: Api
) -> None:
    """A pod that is not listed yet must not make a running container a pending one."""
    ones = [spec() for _ in range(3)]
    async with running(kubernetes.admin, "calm") as here:
        for one in ones:
            await here.start(one)
    for _ in range(3):
        async with running(kubernetes.admin, "calm") as again:
            assert [each.phase for each in again.seen.all] == ["running"] * 3
            assert all(each.external_ip for each in again.seen.all)
    await kube.get(path_of(ones[0]))


async def test_one_watch_of_each_kind_sees_all_containers_and_nothing_is_polled(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, and whatever happens to them."""
    opened: list[str] = []
    asked: list[str] = []
    open_stream = mirror.open_stream

    def counting(api: OurApi, path: str, *rest: Any, **more: Any) -> Any:
        opened.append(path)
        return open_stream(api, path, *rest, **more)

    def noting(name: str) -> Any:
        call = getattr(OurApi, name)

        async def noted(self: OurApi, *arguments: Any) -> Any:
            asked.append(name)
            return await call(self, *arguments)

        return noted

    monkeypatch.setattr(watching, "LOOK_SECONDS", HANG_SECONDS)  # no start is that slow
    monkeypatch.setattr(mirror, "open_stream", counting)
    for name in ("list", "namespace", "has_workload", "warnings", "metrics"):
        monkeypatch.setattr(OurApi, name, noting(name))
    ones = [spec() for _ in range(4)]
    async with running(kubernetes.admin) as here:
        for one in ones:
            await here.start(one)
        for one in ones:
            await here.backend.stop(one)
        for one in ones:
            await here.seen.phase(one, "stopped")
        assert sorted(opened) == ["/api/v1/namespaces", "/api/v1/pods", "/api/v1/services"]
        # A creation, a start and a stop look once each whose the namespace is.
        # Three kinds; and the nodes, for all containers together.
        assert sorted(asked) == ["list"] * 4 + ["namespace"] * 3 * len(ones)


async def test_what_is_listed_in_pages_is_complete(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = [spec() for _ in range(7)]
    async with running(kubernetes.admin, "pages") as here:
        for one in ones:
            await here.backend.create(one)
        found, version = await here.backend._api.list(
            Namespace, "gfs.control/cluster=pages", page_items=3
        )
        assert {each.metadata.label("gfs.control/container") for each in found} == {
            one.id for one in ones
        }
        assert version.isdigit()


async def test_watches_that_end_in_good_order_go_on_where_they_ended(
    kubernetes: Kubernetes, kube: Api, one: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "WATCH_SECONDS", 0.05)
    async with running(kubernetes.admin, "watched") as here:
        syncs = len(here.seen.syncs)
        await goes_on(here, kube, one)
        assert len(here.seen.syncs) == syncs, "it was listed again without a need"


async def test_pages_that_were_forgotten_half_way_are_410(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = [spec() for _ in range(3)]
    async with running(kubernetes.admin, "halfway") as here:
        for one in ones:
            await here.backend.create(one)
        ask = here.backend._api._ask
        asked = 0

        async def forgetting(call: Any) -> bytes:
            nonlocal asked
            asked += 1
            if asked == 2:
                await in_thread(kubernetes.server.compact)
            return await ask(call)

        monkeypatch.setattr(here.backend._api, "_ask", forgetting)
        with pytest.raises(Refused) as refused:
            await here.backend._api.list(Namespace, "gfs.control/cluster=halfway", page_items=1)
        assert refused.value.status == 410


async def test_it_outlives_restarts_of_the_api_server(
    kubernetes: Kubernetes, kube: Api, one: Spec
) -> None:
    async with running(kubernetes.admin, "watched") as here:
        syncs = len(here.seen.syncs)
        await in_thread(kubernetes.server.restart)
        await here.seen.until(lambda: len(here.seen.syncs) > syncs)
        assert here.seen.phases(one)[-1] == "running"
        assert one.id not in here.seen.was_gone
        await goes_on(here, kube, one)


async def test_what_happened_while_the_api_server_was_away_is_reported(
    kubernetes: Kubernetes, kube: Api
) -> None:
    """Its watch was cut before; what others did meanwhile, it must find by comparing."""
    lost, kept, new = spec(), spec(), spec()
    async with running(kubernetes.admin, "away") as here:
        for each in (lost, kept):
            await here.backend.create(each)
            await here.seen.phase(each, "stopped")
        await in_thread(kubernetes.server.kill)
        # Held off, so that it comes back after all has happened.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(here.backend._api, "list", refuse)
            await in_thread(kubernetes.server.restart)
            await made(kubernetes.admin, "away").create(new)
            labels = {"metadata": {"labels": {"gfs.control/cluster": "another"}}}
            await kube.patch(path_of(lost), labels)
        await here.seen.until(lambda: here.seen.syncs[-1] == {kept.id, new.id})
        assert set(here.seen.now) == {kept.id, new.id}
        assert lost.id in here.seen.was_gone


async def refuse(*_: Any) -> Any:
    raise Refused.of(503, b"not now")


async def test_it_outlives_410_gone(kubernetes: Kubernetes, kube: Api, one: Spec) -> None:
    """The API server forgets the past: no version of before can be watched from, so it is
    listed."""
    lists = trio.Event()

    def changed(namespaces: set[str], after_list: bool) -> None:
        if after_list:
            lists.set()

    async with running(kubernetes.admin, "watched") as here:
        api = here.backend._api
        follower = Mirror(api, "/api/v1/namespaces", Namespace, "none=such", changed)
        await follower._list()
        lists = trio.Event()
        syncs = len(here.seen.syncs)
        await in_thread(kubernetes.server.forget)
        with hearing("too old resource version") as heard:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follower.run)
                await heard.wait()
                with trio.fail_after(HANG_SECONDS):
                    await lists.wait()
                nursery.cancel_scope.cancel()
        await here.seen.until(lambda: len(here.seen.syncs) > syncs)
        await goes_on(here, kube, one)


async def test_a_silent_api_server_is_noticed(
    kubernetes: Kubernetes, kube: Api, monkeypatch: pytest.MonkeyPatch, one: Spec
) -> None:
    monkeypatch.setattr(mirror, "PING_SECONDS", 0.1)
    monkeypatch.setattr(mirror, "PONG_SECONDS", 0.5)
    async with running(kubernetes.admin, "watched") as here:
        syncs = len(here.seen.syncs)
        await goes_on(here, kube, one)  # so its watches are open
        with hearing("restarting the watch of /api/v1/namespaces: silent for") as heard:
            await in_thread(kubernetes.server.freeze)
            await heard.wait()
        await in_thread(kubernetes.server.thaw)
        await here.seen.until(lambda: len(here.seen.syncs) > syncs)
        await goes_on(here, kube, one)


async def test_everything_is_listed_again_from_time_to_time(
    kubernetes: Kubernetes, one: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a watch ever miss something."""
    monkeypatch.setattr(mirror, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "LIST_SECONDS", 0.05)
    async with running(kubernetes.admin, "watched") as here:
        syncs = len(here.seen.syncs)
        await here.seen.until(lambda: len(here.seen.syncs) > syncs + 3)
        assert here.seen.phases(one)[-1] == "running"

"""The contracts of compute and of S3 once more, over three control planes on one PostgreSQL."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from checks import bearer, ok, wait_for, with_token
from postgresql import PostgreSQL
from signals import send
from spread import Plane, Proxy, SpreadComputeCloud, a_connection_for_each_request
from test_compute_contract import *  # noqa: F403
from test_s3 import *  # noqa: F403
from test_several_planes import server as server

pytestmark = pytest.mark.extra
#: PostgreSQL ends the session of a machine that is cut off after so long, by its keepalives. The
#: proxy's kernel answers these, so the test ends it.
CUT_OFF_SECONDS = 11.0


@pytest.fixture(scope="module")
def cloud(
    server: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SpreadComputeCloud]:
    with (
        SpreadComputeCloud(tmp_path_factory.mktemp("spread"), server, chunkservers=3) as made,
        a_connection_for_each_request(),
    ):
        yield made.start()


@pytest.fixture(scope="module")
def computing(cloud: SpreadComputeCloud) -> SpreadComputeCloud:
    return cloud


def test_one_at_a_time_drives_containers_whichever_dies_or_is_cut_off(
    cloud: SpreadComputeCloud, server: PostgreSQL, tmp_path: Path
) -> None:
    line = Proxy([("127.0.0.1", server.port)])
    url = server.url.replace(str(server.port), str(line.port))
    plane = Plane(cloud, tmp_path, GFS_CONTROL_RECORDS=url)
    world = cloud.world
    token = bearer(cloud.make_user()[0])
    supervisor = cloud.cluster.pid("supervisor")
    try:
        plane.start()
        for other in cloud.planes:
            other.stop()
        before = len(world.calls())
        first = cloud.cluster.pid("control")
        with with_token(cloud.urls[0], token) as client:
            path = f"/compute/containers/{cloud.running(client)['id']}"
            world.hold("stop-half")
            ok(client.post(f"{path}/stop"))
        assert world.wait_held("stop-half") == first
        send(supervisor, signal.SIGSTOP)  # it would start the control plane again
        send(first, signal.SIGKILL)
        second = _next_to_be_held(cloud, "stop-half", first)
        assert plane.process is not None
        assert second == plane.process.pid
        world.let_go("stop-half")
        send(supervisor, signal.SIGCONT)
        third = cloud.cluster.wait_restarted("control", first)

        with with_token(cloud.urls[0], token) as client:
            container_id = path.rpartition("/")[2]
            cloud.until(client, container_id, "stopped")
            ok(client.post(f"{path}/start"))
            cloud.until(client, container_id, "running")
            for place in ("stop-half", "stop-after"):
                world.hold(place)
            ok(client.post(f"{path}/stop"))
            assert world.wait_held("stop-half") == second
            line.flows.clear()
            cut = time.monotonic()
            wait_for(lambda: time.monotonic() > cut + CUT_OFF_SECONDS, "end of the session")
            # If it still drove containers, it would go on with this one.
            world.let_go("stop-half")
            with psycopg.connect(server.url) as operator:
                operator.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = %s",
                    [f"gfs control {second}"],
                )
            assert world.wait_held("stop-after") == third
            world.let_go("stop-after")
            line.flows.set()
            wait_for(lambda: plane.answers("/readyz"), "control plane")
            ok(client.post(f"{path}/start"))
            cloud.until(client, container_id, "running")
            ok(client.delete(path))
            cloud.until_gone(container_id)
        callers = [pid for _, _, pid in world.calls()[before:]]
        assert [pid for pid, _ in itertools.groupby(callers)] == [first, second, third]
    finally:
        send(supervisor, signal.SIGCONT)
        line.flows.set()
        plane.stop()
        line.close()
        for other in cloud.planes:
            other.start()


def _next_to_be_held(cloud: SpreadComputeCloud, place: str, before: int) -> int:
    """The process whose call comes to ``place`` after that of ``before``."""
    wait_for(lambda: cloud.world.wait_held(place) != before, "another's call")
    return cloud.world.wait_held(place)

"""``gfs up`` with several masters, of which etcd elects one."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from elected import EtcdServer
from harness import Cluster
from limits import HANG_SECONDS, wait_for
from signals import send

pytestmark = pytest.mark.extra("etcd")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    made = EtcdServer(tmp_path / "etcd")
    yield made
    made.stop()


@pytest.fixture
def cluster(tmp_path: Path, etcd: EtcdServer) -> Iterator[Cluster]:
    made = Cluster(tmp_path, "--masters", "3", "--elect", etcd.elect)
    yield made
    made.stop()


def test_one_of_three_masters_serves_whichever_is_killed(cluster: Cluster) -> None:
    cluster.start()

    def status() -> dict[str, object]:
        found: dict[str, object] = json.loads(cluster.gfs("status", "--json").stdout)
        return found

    def holder() -> str:
        with suppress(AssertionError):
            election = status()["election"]
            assert isinstance(election, dict)
            return str(election["holder"])
        return ""

    masters = {each["address"]: each["pid"] for each in cluster.ready["masters"]}
    assert len(masters) == 3
    cluster.gfs("put", "-", "/before", input=b"before")
    first = holder()
    send(masters[first], signal.SIGKILL)
    cluster.gfs("put", "-", "/after", input=b"after")
    # Whichever gets it: the killed one is started again sooner than a hold ends.
    wait_for(lambda: holder() in masters, "a holder")
    assert int(str(status()["term"])) >= 2
    wait_for(
        lambda: [each["state"] for each in status()["shadows"]] == ["following"] * 2,
        "two followers",
    )
    cluster.stop()
    # Another start needs no options, and keeps the addresses by which they know one another.
    for option in ("--masters", "--elect"):
        at = cluster.arguments.index(option)
        del cluster.arguments[at : at + 2]
    cluster.start()
    assert {each["address"] for each in cluster.ready["masters"]} == set(masters)
    for name in ("before", "after"):
        assert cluster.gfs("cat", f"/{name}").stdout == name.encode()


def test_names_are_restored_beside_empty_masters(cluster: Cluster, tmp_path: Path) -> None:
    """All start at once; those without metadata want no hold, and copy it."""
    cluster.start()
    backup = tmp_path / "names.backup"
    cluster.gfs("put", "-", "/before", input=b"before")
    cluster.gfs("backup", str(backup))
    cluster.gfs("put", "-", "/after", input=b"after")
    cluster.stop()
    for directory in [cluster.state / "master", *cluster.state.glob("master-*/master")]:
        directory.rename(directory.with_suffix(".before"))
    cluster.gfs("restore", str(backup), "--state", str(cluster.state))
    cluster.start()
    assert cluster.gfs("cat", "/before").stdout == b"before"
    assert b"after" not in cluster.gfs("ls", "/").stdout


def test_several_masters_need_an_engine(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "--masters", "3")
    cluster.launch()
    assert cluster.process.wait(HANG_SECONDS) == 2
    assert "--masters 3 needs an engine" in cluster.output.read_text()
    cluster.process = None
    assert not cluster.state.exists()

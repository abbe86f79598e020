"""REST and S3 go on when another master is elected, by a death or by an administrator."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checks import get, make_namespace, ok, put
from cloud import Cloud
from elected import EtcdServer
from limits import wait_for
from s3_client import S3Client, client_of, done, new_key
from signals import send

pytestmark = pytest.mark.extra("etcd")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    etcd = EtcdServer(tmp_path / "etcd")
    try:
        with Cloud(tmp_path, "--masters", "3", "--elect", etcd.elect, chunkservers=1) as made:
            yield made.start()
    finally:
        etcd.stop()


def test_requests_find_the_new_master(cloud: Cloud) -> None:
    user, user_id = cloud.make_user()
    bucket = make_namespace(user, "elected")

    def masters() -> dict[str, Any]:
        found: dict[str, Any] = ok(cloud.admin.get("/admin/cluster/masters"))
        return found

    def is_whole() -> bool:
        return [each["state"] for each in masters()["shadows"]] == ["following"] * 2

    def store(s3: S3Client, name: str) -> None:
        """And read each by the other door."""
        data = name.encode()
        put(user, bucket, f"{name}-rest", data)
        done(s3.put(f"{bucket}/{name}-s3", data))
        assert done(s3.get(f"{bucket}/{name}-rest")).content == data
        assert get(user, bucket, f"{name}-s3") == data

    with client_of(cloud, new_key(user, user_id)) as s3:
        wait_for(is_whole, "two followers")
        wait_for(lambda: not ok(cloud.admin.get("/admin/cluster"))["warnings"], "no warning")
        store(s3, "before")
        processes = {each["address"]: each["pid"] for each in cloud.cluster.ready["masters"]}
        send(processes[masters()["election"]["holder"]], signal.SIGKILL)
        store(s3, "killed")
        wait_for(is_whole, "two followers")
        before = masters()
        after = ok(cloud.admin.post("/admin/cluster/failover", json={}))
        store(s3, "moved")
        assert after["master"] in {*processes} - {before["election"]["holder"]}
        assert after["term"] > before["term"]
        assert masters()["election"]["holder"] == after["master"]

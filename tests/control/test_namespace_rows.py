"""Every row about a storage namespace ends in the transaction that ends the namespace."""

from __future__ import annotations

from collections import Counter

import pytest
from auth_server import CheapAuth, Server, running
from checks import ok
from harness import Cluster
from s3_client import done, s3_of

from control.s3 import S3
from control.s3.configuration import Configuration, configurations
from control.storage import Storage

pytestmark = [pytest.mark.real, pytest.mark.thin]

RULE = (
    "<Rule><Status>Enabled</Status><Filter><Prefix>a</Prefix></Filter>"
    "<Expiration><Days>1</Days></Expiration></Rule>"
)
CORS = "<CORSRule><AllowedOrigin>a</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule>"
DOCUMENTS = {
    "lifecycle": f"<LifecycleConfiguration>{RULE}</LifecycleConfiguration>",
    "cors": f"<CORSConfiguration>{CORS}</CORSConfiguration>",
    "tagging": "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>",
}


def rows(server: Server) -> Counter[str]:
    """How many rows each table of each module has."""
    control = server.app.control
    with control.records.read() as txn:
        return Counter(
            {
                table.name: sum(1 for _ in table.scan(txn))
                for schema in control.schemas
                for table in schema.tables
            }
        )


@pytest.mark.parametrize("door", ["s3", "rest"])
async def test_a_namespace_that_is_deleted_leaves_no_rows(cluster: Cluster, door: str) -> None:
    name = f"ends-{door}"
    async with running(cluster.state, modules=(CheapAuth, Storage, S3)) as server:
        ports, rest = server.app.control.ports, dict(server.app.control.ports)
        who = {"Authorization": f"Bearer {server.admin['token']}"}
        async with s3_of(server) as call:
            s3 = dict(ports)
            before = rows(server)
            done(await call("PUT", name))
            for subresource, text in DOCUMENTS.items():
                done(await call("PUT", name, {subresource: ""}, text.encode()))
            done(await call("POST", f"{name}/g", {"uploads": ""}))
            ports.clear()
            ports.update(rest)
            ok(await server.http.put(f"/storage/{name}/f", content=b"x", headers=who))
            url = f"/storage/namespaces/{name}"
            ok(await server.http.post(f"{url}/shares", json={"path": "f"}, headers=who))
            assert {"namespaces", "shares", "s3_buckets"} <= (rows(server) - before).keys()
            if door == "rest":
                ok(await server.http.delete(url, headers=who))
            else:
                ok(await server.http.delete(f"/storage/{name}/f", headers=who))
                ports.update(s3)
                done(await call("DELETE", name))
            assert rows(server) == before


async def test_rows_that_an_earlier_release_has_left_are_deleted(cluster: Cluster) -> None:
    """And no others: a bucket that is there keeps its documents."""
    async with running(cluster.state, modules=(CheapAuth, Storage, S3)) as server:
        module = next(each for each in server.app.modules if isinstance(each, S3))
        records = server.app.control.records
        left = [Configuration(f"{number:08x}", {"lifecycle": RULE}) for number in range(40)]
        async with s3_of(server) as call:
            done(await call("PUT", "stays"))
            done(await call("PUT", "stays", {"lifecycle": ""}, DOCUMENTS["lifecycle"].encode()))
            for row in left:
                await records.write(lambda txn, row=row: configurations.put(txn, row))
            await module._lifecycle._forget_gone()
            with records.read() as txn:
                kept = [row.space_id for row in configurations.scan(txn)]
            assert not {row.space_id for row in left} & set(kept)
            done(await call("GET", "stays", {"lifecycle": ""}))

"""Tables through obstore, delta-rs, Polars and DuckDB. Run by test_s3_clients.py in their
environment."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import deltalake
import duckdb
import duckdb_extension_httpfs
import obstore
import polars
import pyarrow
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

bucket = "tables"
boto3.client("s3").create_bucket(Bucket=bucket)
url = os.environ["AWS_ENDPOINT_URL"]
store = S3Store(bucket, endpoint=url, client_options={"allow_http": True})
obstore.put(store, "x", b"abc")
assert bytes(obstore.get(store, "x").bytes()) == b"abc"
obstore.put(store, "large", os.urandom(12_000_000), chunk_size=5 * 2**20)
try:
    obstore.put(store, "x", b"abc", mode="create")
except AlreadyExistsError:
    pass
else:
    raise AssertionError("it was created twice")
obstore.copy(store, "x", "y")
obstore.delete(store, ["x", "large", "y"])
assert obstore.list(store).collect() == []

options = {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "conditional_put": "etag"}
options |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def append(number: int) -> None:
    """One of several writers, each of which may lose a race for the next version."""
    for tries in range(20):
        try:
            table = pyarrow.table({"a": [number]})
            deltalake.write_deltalake(
                f"s3://{bucket}/delta", table, mode="append", storage_options=options
            )
            return
        except deltalake.exceptions.CommitFailedError:
            if tries == 19:
                raise


append(0)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(append, range(1, 9)))
delta = deltalake.DeltaTable(f"s3://{bucket}/delta", storage_options=options)
assert sorted(delta.to_pyarrow_table()["a"].to_pylist()) == list(range(9))

lower = {name.lower(): value for name, value in options.items() if name.startswith("AWS_")}
polars.LazyFrame({"a": range(100_000)}).sink_parquet(
    f"s3://{bucket}/polars.parquet", storage_options=lower
)
total = polars.scan_parquet(f"s3://{bucket}/polars.parquet", storage_options=lower)
assert total.select(polars.sum("a")).collect().item() == sum(range(100_000))

duck = duckdb.connect(config={"allow_unsigned_extensions": "true"})
(extension,) = Path(duckdb_extension_httpfs.__file__).parent.rglob("*.duckdb_extension")
duck.execute(f"load '{extension}'")
duck.execute(
    f"create secret (type s3, key_id '{os.environ['AWS_ACCESS_KEY_ID']}', "
    f"secret '{os.environ['AWS_SECRET_ACCESS_KEY']}', endpoint '{url.removeprefix('http://')}', "
    "use_ssl false, url_style 'path', region 'us-east-1')"
)
duck.execute(f"copy (select range a from range(100000)) to 's3://{bucket}/duck.parquet'")
(answer,) = duck.execute(f"select sum(a) from 's3://{bucket}/*.parquet'").fetchall()
assert answer == (2 * sum(range(100_000)),)

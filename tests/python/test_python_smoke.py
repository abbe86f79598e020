"""A partitioned Parquet data set and a query by SQL over ``gfs://``, with what ``make install-s3``
has of these libraries: in ``.ci/run``, which has no time to install all of ``make test-python``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from harness import python
from needs import need

NEEDED = ["duckdb", "pyarrow"]
CLIENTS = Path(__file__).parents[2] / ".venv-s3"

SCRIPT = """
import sys
import site

for folder in sys.argv[3:]:
    site.addsitedir(folder)  # behind what is there already
import duckdb, fsspec, pyarrow, pyarrow.dataset
from pyarrow.fs import FSSpecHandler, PyFileSystem

url, key = sys.argv[1:3]
gfs = fsspec.filesystem("gfs", master=url.removeprefix("gfs://"), key=key)
fs = PyFileSystem(FSSpecHandler(gfs))
table = pyarrow.table({"n": list(range(1000)), "kind": ["a", "b"] * 500})
pyarrow.dataset.write_dataset(
    table, "/smoke/parts", format="parquet", filesystem=fs,
    partitioning=["kind"], partitioning_flavor="hive",
)
assert gfs.find("/smoke") == [f"/smoke/parts/kind={kind}/part-0.parquet" for kind in "ab"]
parts = pyarrow.dataset.dataset("/smoke/parts", filesystem=fs, partitioning="hive")
field = pyarrow.dataset.field
found = parts.to_table(filter=(field("kind") == "b") & (field("n") < 100), use_threads=False)
assert found["n"].to_pylist() == list(range(1, 100, 2))
with duckdb.connect() as database:
    database.register_filesystem(gfs)
    query = "SELECT sum(n) FROM read_parquet('gfs:///smoke/parts/*/*.parquet', " \
        "hive_partitioning=true) WHERE kind = 'a'"
    assert database.execute(query).fetchone() == (249500,)
gfs.mv("/smoke/parts", "/smoke/moved")
gfs.rm("/smoke", recursive=True)
assert not gfs.exists("/smoke/moved")
"""


@pytest.mark.smoke
def test_a_table_goes_there_and_back(url: str, options: dict[str, str], tmp_path: Path) -> None:
    folders = [str(folder) for folder in CLIENTS.glob("lib/python*/site-packages")]
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    need(
        f"{', '.join(absent)}: not installed: run  make install-s3"
        if absent and not folders
        else ""
    )
    script = tmp_path / "tables.py"
    script.write_text(SCRIPT)
    python("-W", "ignore", script, url, options["key"], *folders)

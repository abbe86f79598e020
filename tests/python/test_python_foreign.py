"""pandas, pyarrow, dask, xarray, zarr, DuckDB, numpy and joblib over ``gfs://``: what they
write comes back, and what they need not read is not read."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from harness import python
from needs import need_modules

from gfs.client.sync import SyncFile
from gfs.fsspec import GfsFileSystem

NEEDED = ["dask", "duckdb", "joblib", "numpy", "pandas", "pyarrow", "xarray", "zarr"]
ROWS = 20_000

# What these packages say to one another about their futures is not ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def packages() -> None:
    need_modules(*NEEDED, install="make test-python")


@pytest.fixture(scope="module")
def table() -> Any:
    need_modules(*NEEDED, install="make test-python")
    import numpy
    import pandas

    random = numpy.random.default_rng(7)
    return pandas.DataFrame(
        {
            "number": numpy.arange(ROWS),
            "value": random.random(ROWS),
            "kind": random.choice(["a", "b", "c"], ROWS),
        }
    )


def test_pandas(url: str, options: dict[str, str], table: Any) -> None:
    import pandas

    for name, write, read in (
        ("x.parquet", table.to_parquet, pandas.read_parquet),
        ("x.feather", table.to_feather, pandas.read_feather),
        ("x.csv", lambda *a, **o: table.to_csv(*a, index=False, **o), pandas.read_csv),
        ("x.csv.gz", lambda *a, **o: table.to_csv(*a, index=False, **o), pandas.read_csv),
        ("x.json", table.to_json, pandas.read_json),
        ("x.pickle", table.to_pickle, pandas.read_pickle),
    ):
        write(f"{url}/pandas/{name}", storage_options=options)
        found = read(f"{url}/pandas/{name}", storage_options=options)
        pandas.testing.assert_frame_equal(found, table)
    columns = pandas.read_parquet(
        f"{url}/pandas/x.parquet", columns=["number"], storage_options=options
    )
    assert list(columns) == ["number"]
    with pytest.raises(FileNotFoundError, match="/pandas/none"):
        pandas.read_parquet(f"{url}/pandas/none", storage_options=options)


class Unprintable:
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("name", "method"),
    [("x.csv", "to_csv"), ("x.csv.gz", "to_csv"), ("x.pickle", "to_pickle")],
)
def test_a_table_that_cannot_be_written_is_not_there(
    url: str, options: dict[str, str], fs: GfsFileSystem, name: str, method: str
) -> None:
    import pandas

    table = pandas.DataFrame({"a": [1] * 200_000 + [Unprintable(), lambda: None]})
    fs.pipe(f"/unwritten/{name}", b"old")
    with pytest.raises(Exception, match=r".*"):
        getattr(table, method)(f"{url}/unwritten/{name}", storage_options=options)
    assert fs.cat(f"/unwritten/{name}") == b"old"


def test_pyarrow_reads_what_a_query_needs(
    fs: GfsFileSystem, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    import pyarrow.compute
    import pyarrow.dataset
    import pyarrow.parquet

    data = pyarrow.Table.from_pandas(table, preserve_index=False)
    pyarrow.dataset.write_dataset(
        data,
        "/arrow/parts",
        format="parquet",
        partitioning=["kind"],
        partitioning_flavor="hive",
        filesystem=fs,
    )
    parts = pyarrow.dataset.dataset("/arrow/parts", filesystem=fs, partitioning="hive")
    assert sorted(parts.files) == [f"/arrow/parts/kind={kind}/part-0.parquet" for kind in "abc"]
    opened: list[str] = []
    read_bytes: list[int] = []
    pread = SyncFile.pread

    def counted(self: SyncFile, offset: int, count: int) -> bytes:
        opened.append(self.path)
        read_bytes.append(count)
        return pread(self, offset, count)

    monkeypatch.setattr(SyncFile, "pread", counted)
    field = pyarrow.compute.field
    found = parts.to_table(filter=(field("kind") == "b") & (field("number") < 1000)).to_pandas()
    assert set(opened) == {"/arrow/parts/kind=b/part-0.parquet"}
    assert len(found) == ((table.kind == "b") & (table.number < 1000)).sum()

    # Only one of twenty row groups is asked for, with all of its columns.
    rows = 20 * ROWS
    data = pyarrow.table({"number": range(rows), "noise": [os.urandom(16) for _ in range(rows)]})
    pyarrow.parquet.write_table(data, "/arrow/one.parquet", filesystem=fs, row_group_size=ROWS)
    read_bytes.clear()
    found = pyarrow.parquet.read_table(
        "/arrow/one.parquet", filesystem=fs, filters=[("number", "<", ROWS)]
    )
    assert found.equals(data.slice(0, ROWS))
    assert sum(read_bytes) < fs.size("/arrow/one.parquet") / 10
    again = pyarrow.parquet.read_table("/arrow/one.parquet", filesystem=fs)
    assert again.equals(data)
    # Handlers of a file system that pyarrow has made itself, and its own copy.
    arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    (info,) = arrow.get_file_info(["/arrow/one.parquet"])
    assert (info.size, info.mtime) == (
        fs.size("/arrow/one.parquet"),
        fs.modified("/arrow/one.parquet"),
    )
    arrow.copy_file("/arrow/one.parquet", "/arrow/two.parquet")
    arrow.move("/arrow/two.parquet", "/arrow/three.parquet")
    arrow.delete_dir("/arrow/parts")
    assert fs.find("/arrow") == ["/arrow/one.parquet", "/arrow/three.parquet"]


def test_a_parquet_file_whose_block_raises_is_not_there(fs: GfsFileSystem, table: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    data = pyarrow.Table.from_pandas(table)
    fs.pipe("/unwritten/x.parquet", b"old")

    def fails() -> None:
        with pyarrow.parquet.ParquetWriter(
            "/unwritten/x.parquet", data.schema, filesystem=fs
        ) as writer:
            writer.write_table(data)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert fs.cat("/unwritten/x.parquet") == b"old"


DASK = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import dask, dask.dataframe, pandas

if __name__ == "__main__":
    url, options = sys.argv[1], {"key": sys.argv[2]}
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(sys.argv[3]))
    dask.config.set(scheduler="processes", pool=pool)
    rows = pandas.DataFrame({"number": range(1000), "kind": ["a", "b"] * 500})
    frame = dask.dataframe.from_pandas(rows, npartitions=4)
    frame.to_parquet(f"{url}/dask/parquet", storage_options=options)
    frame.to_csv(f"{url}/dask/csv-*.csv", index=False, storage_options=options)
    found = dask.dataframe.read_parquet(f"{url}/dask/parquet", storage_options=options)
    assert found.npartitions == 4
    assert found.number.sum().compute() == 499500
    assert found[found.kind == "b"].number.sum().compute() == 250000
    found = dask.dataframe.read_csv(f"{url}/dask/csv-*.csv", storage_options=options)
    assert found.number.sum().compute() == 499500
    pids = {os.getpid()} | set(found.map_partitions(lambda part: pandas.Series([os.getpid()]),
        meta=("pid", int)).compute())
    assert len(pids) > 1, pids
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dask_by_processes(url: str, options: dict[str, str], context: str, tmp_path: Path) -> None:
    script = tmp_path / "dasked.py"
    script.write_text(DASK)
    python("-W", "ignore", script, url, options["key"], context)


def test_xarray_and_zarr(url: str, options: dict[str, str], fs: GfsFileSystem) -> None:
    import numpy
    import xarray
    import zarr

    field = xarray.Dataset(
        {"heat": (("time", "x"), numpy.random.default_rng(3).random((40, 50)))},
        coords={"time": numpy.arange(40), "x": numpy.linspace(0, 1, 50)},
    )
    there = f"{url}/xarray/field.zarr"
    field.to_zarr(there, storage_options=options, encoding={"heat": {"chunks": (10, 50)}})
    found = xarray.open_zarr(there, storage_options=options, chunks=None)
    xarray.testing.assert_identical(found.load(), field)
    later = field.assign_coords(time=field.time + 40)
    later.to_zarr(there, storage_options=options, append_dim="time")
    found = xarray.open_zarr(there, storage_options=options, chunks=None)
    assert found.sizes["time"] == 80
    assert float(found.heat[55, 7]) == float(field.heat[15, 7])
    xarray.testing.assert_identical(
        xarray.open_zarr(fs.get_mapper("/xarray/field.zarr"), chunks=None).load(), found.load()
    )
    array = zarr.create_array(
        f"{url}/zarr-array", shape=(100, 100), chunks=(10, 10), dtype="i4", storage_options=options
    )
    array[:] = numpy.arange(10_000).reshape(100, 100)
    array[20:30, 20:30] = -1
    again = zarr.open_array(f"{url}/zarr-array", mode="r", storage_options=options)
    assert again[25, 25] == -1
    assert again[99, 99] == 9999


def test_zarr_s_own_tests(url: str, options: dict[str, str], tmp_path: Path) -> None:
    need_modules("pytest_asyncio", install="make test-python")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    done = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:trio"),
        *("-c", tmp_path / "pytest.ini", Path(__file__).with_name("zarr_store.py")),
        env={**os.environ, "ZARR_URL": url, "ZARR_KEY": options["key"]},
    )
    assert int(done.stdout.rpartition("\n\n")[2].partition(" passed")[0].split()[-1]) > 40


def test_duckdb(fs: GfsFileSystem, table: Any) -> None:
    import duckdb

    fs.mkdir("/duckdb")
    with duckdb.connect() as database:
        database.register_filesystem(fs)
        database.register("t", table)
        database.execute("COPY t TO 'gfs:///duckdb/x.parquet' (FORMAT parquet)")
        database.execute("COPY t TO 'gfs:///duckdb/x.csv' (HEADER)")
        total = float(table.value.sum())
        for name in ("x.parquet", "x.csv"):
            query = f"SELECT count(*), sum(value) FROM 'gfs:///duckdb/{name}' WHERE number >= 0"
            rows, found = database.execute(query).fetchone() or (0, 0.0)
            assert (rows, found) == (ROWS, pytest.approx(total))
        query = "SELECT count(*) FROM read_parquet('gfs:///duckdb/*.parquet') WHERE kind = 'a'"
        (rows,) = database.execute(query).fetchone() or (0,)
        assert rows == (table.kind == "a").sum()


def _sum(path: str) -> float:
    import numpy

    return float(numpy.load(path, mmap_mode="r").sum())


def test_memory_maps_of_a_local_copy(
    url: str, options: dict[str, str], fs: GfsFileSystem, tmp_path: Path
) -> None:
    import joblib
    import numpy

    data = numpy.arange(100_000, dtype="f8")
    with fs.open("/numpy/x.npy", "wb") as file:
        numpy.save(file, data)
    with fs.open("/numpy/x.npz", "wb") as file:
        numpy.savez_compressed(file, a=data, b=data[:10])
    with fs.open("/numpy/x.npz") as file, numpy.load(file) as loaded:
        assert (loaded["a"] == data).all()
        assert (loaded["b"] == data[:10]).all()
    copies = {"filecache": {"cache_storage": str(tmp_path)}, "gfs": options}
    local = fsspec.open_local(f"filecache::{url}/numpy/x.npy", **copies)
    assert (numpy.load(local, mmap_mode="r") == data).all()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_sum, [local] * 4) == [data.sum()] * 4
    with fs.open("/joblib/model", "wb") as file:
        joblib.dump({"weights": data}, file)
    with fs.open("/joblib/model") as file:
        assert (joblib.load(file)["weights"] == data).all()
    mapped = joblib.load(
        fsspec.open_local(f"filecache::{url}/joblib/model", **copies), mmap_mode="r"
    )
    assert isinstance(mapped["weights"], numpy.memmap)
    assert (mapped["weights"] == data).all()

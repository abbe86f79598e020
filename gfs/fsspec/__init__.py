"""``gfs://`` for whatever reads and writes through fsspec: pandas, pyarrow, dask, xarray, zarr,
DuckDB and others.

::

    import pandas

    pandas.read_parquet("gfs:///data/events")
    pandas.read_csv("gfs://10.0.0.5:9400/data.csv", storage_options={"key": "/etc/gfs.key"})

Needs ``pip install 'gfs-control-plane[fsspec]'``; fsspec finds it by itself (entry-point
group ``fsspec.specs``).
"""

from gfs.fsspec.system import GfsFileSystem

__all__ = ["GfsFileSystem"]

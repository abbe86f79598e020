"""zarr's own tests of a store, by ``gfs://``. ``test_python_foreign.py`` runs them in a pytest
of their own, since they are for asyncio and all others here for Trio."""

from __future__ import annotations

import itertools
import os
from typing import Any

import fsspec
import pytest
from zarr.core.buffer import Buffer, cpu
from zarr.storage import FsspecStore
from zarr.testing.store import StoreTests

URL, KEY = os.environ["ZARR_URL"], os.environ["ZARR_KEY"]
_numbers = itertools.count()


class TestStore(StoreTests[FsspecStore, cpu.Buffer]):
    store_cls = FsspecStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self) -> dict[str, Any]:
        store = FsspecStore.from_url(
            f"{URL}/zarr/{next(_numbers)}", storage_options={"key": KEY}, read_only=False
        )
        return {"fs": store.fs, "path": store.path}

    @pytest.fixture
    def open_kwargs(self, store_kwargs: dict[str, Any]) -> dict[str, Any]:
        return store_kwargs

    @staticmethod
    def _at(store: FsspecStore, key: str) -> tuple[Any, str]:
        return fsspec.filesystem("gfs", master=URL[6:], key=KEY), f"{store.path}/{key}"

    async def set(self, store: FsspecStore, key: str, value: Buffer) -> None:
        fs, path = self._at(store, key)
        fs.pipe_file(path, value.to_bytes())

    async def get(self, store: FsspecStore, key: str) -> Buffer:
        fs, path = self._at(store, key)
        return self.buffer_cls.from_bytes(fs.cat_file(path))

    def test_store_repr(self, store: FsspecStore) -> None:
        assert "FsspecStore" in repr(store)

    def test_store_supports_writes(self, store: FsspecStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: FsspecStore) -> None:
        assert store.supports_listing

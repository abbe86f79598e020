"""fsspec's own tests of a file system, on s3fs. Run by test_s3_clients.py in the clients'
environment, by pytest."""

from __future__ import annotations

from typing import Any

import fsspec.tests.abstract as abstract
import pytest
import s3fs


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture(scope="class")
    def fs(self) -> Any:
        made = s3fs.S3FileSystem(skip_instance_cache=True)
        made.makedirs("s3fs-suite", exist_ok=True)
        made.invalidate_cache()
        return made

    @pytest.fixture
    def fs_path(self) -> str:
        return "s3fs-suite"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestExclusive(Fixtures):
    """Instead of the tests of one call each for opening and piping: to s3fs an object that is
    there already (``PreconditionFailed``) is OSError, and not FileExistsError, also with AWS."""

    def test_open_and_pipe(self, fs: Any, fs_path: str) -> None:
        path = f"{fs_path}/exclusive"
        with fs.open(path, "xb") as file:
            file.write(b"data")
        with pytest.raises(OSError), fs.open(path, "xb") as file:  # noqa: PT011
            file.write(b"other")
        with pytest.raises(OSError):  # noqa: PT011
            fs.pipe_file(path, b"other", mode="create")
        fs.pipe_file(path, b"new")
        assert fs.cat_file(path) == b"new"

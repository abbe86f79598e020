"""Keys of objects and their paths."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from control.errors import BadRequest
from control.s3.errors import S3Error
from control.s3.names import key_of, path_in_keys, path_of
from control.storage import check_path

keys = st.text(
    st.sampled_from("/%[\\]~\0\x01\x7f\x80\x9f\xa0\ufffb\ufffc\ufffd\ufffeaz09.-= \U0001f600"),
    min_size=1,
    max_size=130,
)


@given(keys)
def test_every_key_has_a_path_and_every_path_its_key(key: str) -> None:
    path = path_of(key)
    assert check_path(path) == path
    assert key_of(path) == key


@given(keys, keys)
def test_paths_of_other_keys_sort_as_the_keys_do(one: str, other: str) -> None:
    paths = path_in_keys(one).encode(), path_in_keys(other).encode()
    assert (paths[0] < paths[1]) == (one.encode() < other.encode())
    assert path_in_keys(one + other).startswith(path_in_keys(one))


@given(keys)
def test_a_path_has_one_key(path: str) -> None:
    for each in (path, f".s3-keys/{path}", f".s3-keys/={path}"):
        try:
            check_path(each)
        except BadRequest:
            assume(False)
        key = key_of(each)
        assert key is None or path_of(key) == each


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a/b.txt", "a/b.txt"),
        ("a//b", ".s3-keys/=a%2F%2Fb"),
        ("a/", ".s3-keys/=a%2F"),
        (".s3-keys/x", ".s3-keys/=%2Es3%2Dkeys%2Fx"),
        ("x" * 256, ".s3-keys/" + "/".join(["=" + "x" * 60] * 4 + ["=" + "x" * 16])),
        ("/" + "x" * 57, ".s3-keys/=%2F" + "x" * 57 + "/="),
    ],
)
def test_paths_of_keys(key: str, path: str) -> None:
    assert path_of(key) == path


@pytest.mark.parametrize("key", ["x" * 1025, "/" * 400, "é" * 600])
def test_long_keys_are_refused(key: str) -> None:
    with pytest.raises(S3Error) as refused:
        path_of(key)
    assert refused.value.code == "KeyTooLongError"

"""What a path of the namespace may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfs.errors import InvalidName
from gfs.master.metadata.paths import join, parse


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("/", []),
        ("/a", [b"a"]),
        ("/a/", [b"a"]),
        ("/a/b c/ö", [b"a", b"b c", "ö".encode()]),
        ("/...", [b"..."]),
        ("/" + 255 * "x", [255 * b"x"]),
        ("/" + "/".join(2047 * ["x"]) + "/y", [*(2047 * [b"x"]), b"y"]),
    ],
)
def test_good_paths(path: str, segments: list[bytes]) -> None:
    assert parse(path) == segments


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("", "must begin with /"),
        ("a/b", "must begin with /"),
        ("//", "empty name"),
        ("/a//b", "empty name"),
        ("/a/./b", "'.'"),
        ("/..", "'..'"),
        ("/a\0b", "NUL"),
        ("/" + 256 * "x", "256 bytes"),
        ("/" + 128 * "ö", "256 bytes"),
        ("/" + 2048 * "x/" + "y", "4098 bytes"),
        ("/\ud800", "UTF-8"),
    ],
)
def test_bad_paths_are_refused_with_the_reason(path: str, rule: str) -> None:
    with pytest.raises(InvalidName, match=r"path .* (is|has|must|contains)") as caught:
        parse(path)
    assert rule in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.text())
def test_any_text_is_a_path_or_refused(text: str) -> None:
    for path in (text, "/" + text):
        try:
            segments = parse(path)
        except InvalidName:
            continue
        assert parse(join(segments)) == segments
        assert all(0 < len(s) <= 255 and b"/" not in s and b"\0" not in s for s in segments)

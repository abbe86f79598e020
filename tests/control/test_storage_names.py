"""What may be called how: a model of the rule against the code."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control.errors import BadRequest
from control.storage.names import check_path, check_space_name, in_folder, last_segment, reduced
from control.storage.transfer.disposition import content_disposition

#: Mostly what matters to the rule, so that both answers come often.
awkward = st.text(
    alphabet=st.sampled_from("ab./\\\0\n\x7f\x85\ufffdü€\U0001f600\ud800 "), max_size=20
)


def is_allowed(path: str) -> bool:
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in path) or set(path) & {"\\", "\ufffd"}:
        return False
    segments = path.split("/")
    return (
        len(path.encode()) <= 1024
        and len(segments) <= 64
        and all(s not in ("", ".", "..") and len(s.encode()) <= 255 for s in segments)
    )


@given(
    st.text() | awkward | st.text("ä/", max_size=300) | st.text("ab", min_size=250, max_size=260)
)
@example("a" * 255)
@example("a" * 256)
@example("ü" * 128)
@example("/".join("a" * 64))
@example("/".join("a" * 65))
@example("a" * 255 + ("/" + "b" * 255) * 3 + "/c")
@example("a\\b")
@example("a\ufffd")
@example("a\n")
@example("a/../b")
def test_a_path_is_taken_by_the_rule(path: str) -> None:
    if is_allowed(path):
        assert check_path(path) == path
    else:
        with pytest.raises(BadRequest):
            check_path(path)


@given(st.text() | awkward)
def test_a_form_cannot_leave_its_folder(filename: str) -> None:
    assert not set(reduced(filename)) & {"/", "\\"}
    assert filename.endswith(reduced(filename))


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("report.pdf", "report.pdf"),
        (r"C:\fakepath\report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        (r"a/b\c/d", "d"),
        ("folder/", ""),
        ("..", ".."),
    ],
)
def test_a_form_s_filename_is_reduced(filename: str, name: str) -> None:
    assert reduced(filename) == name


@pytest.mark.parametrize(
    ("folder", "path"), [("", "x"), ("a", "a/x"), ("a/b/", "a/b/x"), ("/a", "a/x"), ("/", "x")]
)
def test_a_folder_is_put_before_a_name(folder: str, path: str) -> None:
    assert in_folder(folder, "x") == path
    assert last_segment(path) == "x"


@given(st.text(max_size=70) | st.text(alphabet="abZ0._-/ \n%+:?\\\0äé", max_size=70))
@example("x" * 65)
@example("files.")
@example("\ud83d")
@example("status\n")
@example("status")
@example("...")
def test_a_namespace_is_taken_by_the_rule(name: str) -> None:
    plain = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    reserved = {"files", "upload", "download", "delete", "status", "namespaces", ".", ".."}
    if 1 <= len(name) <= 64 and set(name) <= plain and name not in reserved:
        check_space_name(name)
    else:
        with pytest.raises(BadRequest):
            check_space_name(name)


def parse_disposition(header: str) -> tuple[str, str, str]:
    """kind, filename, filename*; by the grammar of RFC 6266 and RFC 8187."""
    kind, first, second = header.split("; ", 2)
    assert first.startswith('filename="')
    assert first.endswith('"')
    plain = first[len('filename="') : -1]
    assert '"' not in plain
    assert "\\" not in plain
    assert second.startswith("filename*=UTF-8''")
    value = second[len("filename*=UTF-8''") :]
    allowed = set("!#$&+-.^_`|~%0123456789") | set(map(chr, [*range(65, 91), *range(97, 123)]))
    assert set(value) <= allowed
    return kind, plain, unquote_to_bytes(value).decode()


names = st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\;"))


@given(names)
@example('a "quoted" näme.txt')
@example("100%.txt")
def test_a_name_survives_its_header(name: str) -> None:
    header = content_disposition("attachment", name)
    assert header.isascii()
    assert header.isprintable()
    kind, plain, full = parse_disposition(header)
    assert kind == "attachment"
    assert full == name
    assert len(plain) == len(name)
    if name.isascii() and not set(name) & {'"', "%"}:
        assert plain == name

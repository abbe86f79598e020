"""A form gives the same file however its bytes happen to come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control.errors import BadRequest
from control.storage.transfer.multipart import OTHERS_MAX, FileBegins, FormReader, is_form

BOUNDARY = "b0undary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
END = f"--{BOUNDARY}--\r\n".encode()


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    extra = f'; filename="{filename}"' if filename is not None else ""
    return plain_part(f'form-data; name="{name}"{extra}'.encode(), data)


def plain_part(disposition: bytes, data: bytes, more: bytes = b"") -> bytes:
    head = b"--b0undary\r\nContent-Disposition: " + disposition + b"\r\n" + more + b"\r\n"
    return head + data + b"\r\n"


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[a:b] for a, b in itertools.pairwise(edges)]


def read(pieces: list[bytes], content_type: str = TYPE) -> tuple[str | None, bytes]:
    """The file's name and bytes. Raises BadRequest."""
    reader = FormReader(content_type)
    name: str | None = None
    data = bytearray()
    is_begun = False
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, FileBegins):
                assert not is_begun
                is_begun, name = True, event.filename
            else:
                assert is_begun
                assert event
                data += event
    reader.finish()
    assert is_begun
    return name, bytes(data)


#: Full of what looks like the beginning of a boundary.
contents = (
    st.lists(
        st.sampled_from(
            [b"\r", b"\n", b"\r\n", b"--", b"\r\n--b0un", b"x", b"\0", b"-", b"b0undary"]
        )
    )
    .map(b"".join)
    .filter(lambda data: b"\r\n--b0undary" not in b"\r\n" + data)
)
places = st.lists(st.integers(0, 10_000), max_size=12)
preambles = st.sampled_from([b"", b"\r\n", b"hello\r\n", b"x--b0undary\r\n", b"\r\r\n"])
epilogues = st.sampled_from([b"", b"bye", b"\r\n--b0undary\r\nmore", b"\r"])


@given(contents, contents, places, preambles, epilogues)
@example(b"", b"", list(range(300)), b"", b"")
def test_the_file_comes_out_as_it_went_in(
    data: bytes, other: bytes, places: list[int], preamble: bytes, epilogue: bytes
) -> None:
    body = part("note", other) + part("file", data, "ü.txt") + part("file2", other, "x") + END
    assert read(cut(preamble + body + epilogue, places)) == ("ü.txt", data)


forms = st.lists(
    st.sampled_from(
        [
            part("file", b"data", "a"),
            part("x", b"y"),
            b"--b0undary",
            b"--",
            b"\r\n",
            b"--b0undary--",
            b'Content-Disposition: form-data; name="file"\r\n\r\n',
            b": \r\n",
            b"junk",
            b"Content-Length: 3\r\n",
            END,
        ]
    ),
    max_size=8,
).map(b"".join)


@given(forms, places)
@example(b"x--b0undary--\r\n", [1])
@example(part("file", b"d", "a") + b"--b0undary", [])
def test_how_it_is_cut_changes_nothing(body: bytes, places: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[str | None, bytes] | None:
        try:
            return read(pieces)
        except BadRequest:
            return None

    assert outcome(cut(body, places)) == outcome([body])


@given(places)
def test_a_form_cut_short_is_none(places: list[int]) -> None:
    body = part("file", b"data" * 10, "a") + END
    for end in range(len(body) - 2):  # the last line break may be missing
        with pytest.raises(BadRequest):
            read(cut(body[:end], places))
    assert read([body[:-2]]) == ("a", b"data" * 10)


def test_a_piece_of_the_file_is_passed_on_without_a_copy() -> None:
    reader = FormReader(TYPE)
    assert len(list(reader.feed(part("file", b"", "a")[:-2]))) == 1
    piece = b"x" * 100_000
    assert [event is piece for event in reader.feed(piece)] == [True]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        END,
        b"\r\n" + END,
        b"nonsense",
        b"\r\n" * 10_000,
        part("other", b"x", "a") + END,
        part("File", b"x", "a") + END,
        part("", b"x", "a") + END,
        b"--b0undary\r\n\r\nno headers\r\n" + END,
        b"--b0undary\r\nno colon here\r\n\r\nx\r\n" + END,
        plain_part(b"attachment", b"x") + END,
        part("x" * 5000, b"x", "a") + END,
        part("file", b"x", "a" * 5000) + END,
        part("file", b"x", "a") + part("x", b"") * (OTHERS_MAX + 1) + END,
        part("file", b"1", "a") + part("file", b"2", "b") + END,
        b"--other\r\n",
        b'{"not": "a form"}' * 10,
        b"--b0undary\nContent-Disposition: form-data; name=file\n\n",
        b"--b0undary\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END,
        b"--b0undary\r\n" + b"X: " + b"y" * 5000 + b"\r\n\r\n" + END,
        b"--b0undary\r\n" + b"X-Y: z\r\n" * 9 + b"\r\n" + END,
        part("x", b"") * (OTHERS_MAX + 1) + part("file", b"x", "a") + END,
        b"--b0undary\r\nContent-Disposition: form-data; name=file\r\n"
        + b"Content-Length: 2\r\n\r\nabc\r\n"
        + END,
    ],
    ids=range(23),
)
def test_other_bodies_are_refused_as_forms(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read([body])


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        (b"form-data; name=\"file\"; filename*=UTF-8''na%20me.bin", None),
        (b"form-data; name=\"file\"; filename*=UTF-8''..%2f..%2fevil.bin", None),
        (b'form-data; name="file"; filename*=nonsense', None),
        (b'form-data; name="file"; filename="a.bin"; filename="../b.bin"', "../b.bin"),
        (b'form-data; name="file"; filename="unclosed', None),
        (b'form-data; name="file"; filename="a\\"; name=\\"x.bin"', 'a"; name="x.bin'),
        (b'form-data; name="file; filename=x"', None),
        (b"form-data; name=file; filename=plain.bin", "plain.bin"),
        (b'form-data; name="file"; filename="a%22b.bin"', 'a"b.bin'),  # as browsers write a quote
        (b'form-data; name="fi\\le"; filename="x.bin"', None),
        (b'FORM-DATA; NAME="file"; FILENAME="upper.bin"', "upper.bin"),
        *(
            (b'form-data; name="file"; filename="%s"' % name, None)
            for name in (b"\xc0\xae", b"\xff\xfe", b"\xed\xa0\x80", b"a\x80", b"\xf5\x80\x80\x80")
        ),
    ],
)
def test_odd_dispositions(disposition: bytes, expected: str | None) -> None:
    """Refused, or a file without a name, which nobody stores, or of this name: never of another."""
    try:
        name, _ = read([plain_part(disposition, b"x") + END])
    except BadRequest:
        name = None
    assert name == expected


@pytest.mark.parametrize("encoding", [b"base64", b"quoted-printable", b"gzip", b"nonsense"])
def test_a_part_in_a_transfer_encoding_is_taken_as_it_came(encoding: bytes) -> None:
    """RFC 7578, 4.7: deprecated."""
    more = b"Content-Transfer-Encoding: %s\r\n" % encoding
    body = plain_part(b'form-data; name="file"; filename="a"', b"aGVsbG8=", more) + END
    assert read([body]) == ("a", b"aGVsbG8=")


def test_a_preamble_may_be_long() -> None:
    assert read([b"x" * 4096] * 1024 + [b"\r\n" + part("file", b"x", "a") + END]) == ("a", b"x")


def test_as_many_other_parts_as_the_limit_says() -> None:
    body = part("x", b"") * OTHERS_MAX + part("file", b"x", "a") + END
    assert read([body]) == ("a", b"x")


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 201,
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="unclosed',
        'multipart/form-data; boundary="\u00fc"',
        'multipart/form-data; boundary="a\nb"',
    ],
)
def test_a_form_needs_a_boundary(content_type: str) -> None:
    assert is_form(content_type)
    with pytest.raises(BadRequest):
        FormReader(content_type)


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", ";;;=", "multipart/mixed; boundary=x"]
)
def test_other_bodies_are_no_forms(content_type: str | None) -> None:
    assert not is_form(content_type)


def test_a_boundary_may_be_quoted() -> None:
    body = part("file", b"x", "a") + END
    assert read([body], f'Multipart/Form-Data; charset=utf-8; boundary="{BOUNDARY}"') == ("a", b"x")

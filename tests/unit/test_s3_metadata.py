"""What headers of a request become metadata of an object."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from control.s3.checksums import ALGORITHMS, text_of
from control.s3.errors import S3Error
from control.s3.metadata import BYTES_MAX, Metadata, attributes, check_room, of_request


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-meta-a": "b\r\nset-cookie: c"},
        {"x-amz-meta-a": "\0"},
        {"x-amz-meta-a\n": "b"},
        {"content-type": "text/plain\n"},
        {"cache-control": "a\x7f"},
    ],
)
def test_what_would_break_an_answer_is_refused(headers: dict[str, str]) -> None:
    """Our server refuses such heads before; what they would do is not left to it."""
    with pytest.raises(S3Error, match="control characters") as refusal:
        of_request(headers)
    assert refusal.value.code == "InvalidArgument"


def test_a_tab_and_other_letters_are_no_control_characters() -> None:
    assert of_request({"x-amz-meta-a": "b\tc \xc3\xa4"}).user == {"a": "b\tc ä"}


@pytest.mark.parametrize("algorithm", ["", *ALGORITHMS])
@pytest.mark.parametrize("parts", ["", "-1", "-10000"])
def test_what_is_accepted_has_room_for_its_etag_and_checksum(algorithm: str, parts: str) -> None:
    accepted = 0
    for size in range(BYTES_MAX):
        asked = Metadata(user={"a": "x" * size})
        try:
            check_room(asked, algorithm, in_parts=bool(parts))
        except S3Error:
            break
        accepted = size
        sums = text_of(b"\xff" * ALGORITHMS[algorithm][1]) if algorithm else ""
        checksum = f"{algorithm}:{sums}{parts}" if algorithm else ""
        attributes(replace(asked, etag="f" * 32 + parts, checksum=checksum))
    assert 700 < accepted < BYTES_MAX

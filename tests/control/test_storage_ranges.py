"""Ranges and conditions against a simple model of RFC 9110."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control.storage.transfer.conditional import Validators, Verdict, judge, matches, range_counts
from control.storage.transfer.ranges import RANGES_MAX, Span, Unsatisfiable, wanted

lengths = st.integers(0, 40)
spec = st.one_of(
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda p: f"{p[0]}-{p[1]}"),
    st.integers(0, 50).map(lambda n: f"{n}-"),
    st.integers(0, 50).map(lambda n: f"-{n}"),
)


def bytes_of(one: str, data: bytes) -> bytes | None:
    """What one range asks for; None if it is no range."""
    first, _, last = one.partition("-")
    if not first:
        return data[max(0, len(data) - int(last)) :]
    if not last:
        return data[int(first) :]
    return data[int(first) : int(last) + 1] if int(last) >= int(first) else None


@given(st.lists(spec, min_size=1, max_size=20), lengths, st.sampled_from([",", ", ", " ,\t"]))
@example(["-5"], 0, ",")
@example(["0-"], 0, ",")
@example(["-0"], 5, ",")
@example(["0-1", "3-4"], 40, ",,")
@example(["5-9", "0-3"], 40, ",")
@example(["0-3", "2-5"], 40, ",")
def test_ranges_are_what_the_model_says(specs: list[str], length: int, comma: str) -> None:
    data = bytes(range(length))
    parts = [bytes_of(one, data) for one in specs]
    there = [part for part in parts if part]
    header = "bytes=" + comma.join(specs)
    suffix_of_nothing = not length and any(s[0] == "-" and int(s[1:]) for s in specs)
    if len(specs) > RANGES_MAX or None in parts or suffix_of_nothing:
        assert wanted(header, length) is None
    elif not there:
        with pytest.raises(Unsatisfiable):
            wanted(header, length)
    elif len(there) > 1 and sum(map(len, there)) > length:
        assert wanted(header, length) is None
    else:
        spans = wanted(header, length)
        assert spans is not None
        assert [data[span.start : span.stop] for span in spans] == there


@given(st.text(alphabet="bytes=0123456789-, \t\u0665x", max_size=40), lengths)
@example("bytes=" + "9" * 5000 + "-", 10)
@example("bytes=0-" + "9" * 5000, 10)
@example("bytes=" + "0" * 5000 + "1-2", 10)
@example("bytes=\u0661-", 10)
@example("lines=0-1", 10)
@example("bytes", 10)
@example("bytes=", 10)
@example("bytes=,", 10)
def test_no_header_is_too_strange(header: str, length: int) -> None:
    try:
        spans = wanted(header, length)
    except Unsatisfiable:
        return
    for span in spans or []:
        assert 0 <= span.start < span.stop <= length


def test_a_range_beyond_all_numbers_is_cut_to_the_file() -> None:
    assert wanted("bytes=3-" + "9" * 5000, 10) == [Span(3, 10)]
    assert wanted("Bytes=-" + "9" * 30, 10) == [Span(0, 10)]
    assert Span(3, 10).content_range(10) == "bytes 3-9/10"


NOON = datetime(2026, 2, 3, 12, 0, 0, tzinfo=UTC)
STRONG = Validators('"abc"', int(NOON.timestamp()))
#: Of a file that was written in place.
NONE = Validators(None, None)


def ask(validators: Validators, headers: Mapping[str, str]) -> Verdict:
    return judge(headers.get, validators)


def date(seconds: int) -> str:
    return format_datetime(NOON + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("header", "strong", "weak"),
    [
        ('"abc"', True, True),
        ('W/"abc"', False, True),
        ("*", True, True),
        ('"x", "abc"', True, True),
        ('"x","y" , W/"abc"', False, True),
        ('"a,bc"', False, False),
        ("abc", False, False),
        ("", False, False),
        ('"abc', False, False),
        ('"x" "abc"', False, False),
        (' , "x",, "abc" ,', True, True),
    ],
)
def test_a_list_of_tags(header: str, strong: bool, weak: bool) -> None:
    assert matches(header, '"abc"', strong=True) is strong
    assert matches(header, '"abc"', strong=False) is weak
    assert matches(header, None, strong=False) is (header == "*")


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({}, Verdict.GO),
        ({"If-None-Match": '"abc"'}, Verdict.NOT_MODIFIED),
        ({"If-None-Match": 'W/"abc"'}, Verdict.NOT_MODIFIED),
        ({"If-None-Match": "*"}, Verdict.NOT_MODIFIED),
        ({"If-None-Match": '"x"'}, Verdict.GO),
        ({"If-Modified-Since": date(0)}, Verdict.NOT_MODIFIED),
        ({"If-Modified-Since": date(1)}, Verdict.NOT_MODIFIED),
        ({"If-Modified-Since": date(-1)}, Verdict.GO),
        ({"If-Modified-Since": "yesterday"}, Verdict.GO),
        ({"If-Modified-Since": "Tuesday, 03-Feb-26 12:00:00 GMT"}, Verdict.NOT_MODIFIED),
        ({"If-Modified-Since": "Tue Feb  3 12:00:00 2026"}, Verdict.NOT_MODIFIED),
        # The tag is the better witness: the date is not asked.
        ({"If-None-Match": '"x"', "If-Modified-Since": date(1)}, Verdict.GO),
        ({"If-Match": '"abc"'}, Verdict.GO),
        ({"If-Match": "*"}, Verdict.GO),
        ({"If-Match": 'W/"abc"'}, Verdict.FAILED),
        ({"If-Match": '"x"'}, Verdict.FAILED),
        ({"If-Match": '"x"', "If-None-Match": '"abc"'}, Verdict.FAILED),
        ({"If-Unmodified-Since": date(0)}, Verdict.GO),
        ({"If-Unmodified-Since": date(-1)}, Verdict.FAILED),
        ({"If-Match": '"abc"', "If-Unmodified-Since": date(-1)}, Verdict.GO),
        ({"If-Match": '"abc"', "If-None-Match": '"abc"'}, Verdict.NOT_MODIFIED),
    ],
    ids=str,
)
def test_conditions(headers: dict[str, str], verdict: Verdict) -> None:
    assert ask(STRONG, headers) is verdict


@pytest.mark.parametrize(
    ("if_range", "counts"),
    [
        (None, True),
        ('"abc"', True),
        (' "abc" ', True),
        ('W/"abc"', False),
        ('"x"', False),
        ("*", False),
        # Within its second there may have been another content.
        (date(0), False),
        (date(1), False),
        ("nonsense", False),
    ],
)
def test_a_part_counts_only_of_the_same_file(if_range: str | None, counts: bool) -> None:
    assert range_counts(if_range, STRONG) is counts
    assert range_counts(if_range, NONE) is (if_range is None)


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({}, Verdict.GO),
        ({"If-None-Match": '"abc"'}, Verdict.GO),
        ({"If-None-Match": "*"}, Verdict.GO),
        ({"If-Modified-Since": date(1)}, Verdict.GO),
        ({"If-Match": '"abc"'}, Verdict.FAILED),
        ({"If-Match": "*"}, Verdict.GO),
        ({"If-Unmodified-Since": date(1)}, Verdict.FAILED),
    ],
    ids=str,
)
def test_what_nothing_is_known_of_is_never_the_same(
    headers: dict[str, str], verdict: Verdict
) -> None:
    assert ask(NONE, headers) is verdict


@given(st.text(max_size=60))
@example("Tue, 03 Feb 99999 12:00:00 GMT")
@example("Tue, 03 Feb 2026 12:00:00 +9999999999")
@example("Tue, 03 Feb 2026 12:00:00 +99999999999999999999")
def test_no_date_is_too_strange(text: str) -> None:
    headers = {"If-Modified-Since": text, "If-Unmodified-Since": text}
    assert ask(STRONG, headers) in Verdict
    assert range_counts(text, STRONG) in (True, False)

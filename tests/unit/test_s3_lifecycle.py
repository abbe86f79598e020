"""Rules of lifecycle as they are stored."""

from __future__ import annotations

import pytest

from control.s3 import lifecycle

ABORT = (
    "<Rule><ID>one</ID><Filter>{}</Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload>"
    "<DaysAfterInitiation>2</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>"
)


@pytest.mark.parametrize(
    ("scope", "days"),
    [
        ("<Prefix>p</Prefix>", 2),
        ("<And><Prefix>p</Prefix><Tag><Key>a</Key><Value>b</Value></Tag></And>", 0),
        ("<ObjectSizeGreaterThan>0</ObjectSizeGreaterThan>", 0),
        ("<ObjectSizeLessThan>9</ObjectSizeLessThan>", 0),
    ],
)
def test_a_stored_rule_with_tags_or_sizes_ends_no_uploads(scope: str, days: int) -> None:
    """They are refused by now. An upload has neither: the rule ended all with its prefix."""
    [rule] = lifecycle._rules(ABORT.format(scope))
    assert rule.abort_days == days


def test_a_rule_is_about_a_tag_as_it_is_written() -> None:
    tag = "<Tag><Key> a</Key><Value>b </Value></Tag>"
    [rule] = lifecycle._rules(ABORT.format(tag))
    assert rule.tags == {" a": "b "}

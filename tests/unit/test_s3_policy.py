"""Policies of buckets: which are taken, and what they say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.s3 import acl
from control.s3.errors import S3Error
from control.s3.policy import ARN, LETTERS_MAX, Who, fits, parse, verdict

ANNA = Who("anna01", "GFSKEY")
NOBODY = Who()


def statement(**fields: Any) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"{ARN}photos/*",
        **fields,
    }


def text_of(*statements: Any, **fields: Any) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements), **fields})


def said(
    statements: list[dict[str, Any]],
    who: Who = NOBODY,
    action: str = "s3:GetObject",
    resource: str = f"{ARN}photos/a",
    **values: str,
) -> bool | None:
    found = {name.replace("__", ":"): value for name, value in values.items()}
    policy = parse(text_of(*statements), "photos")
    return verdict(policy.about(who, action, resource), found.get)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("a", "a", True),
        ("a", "ab", False),
        ("a*", "a", True),
        ("a*", "ba", False),
        ("*a", "ba", True),
        ("*a", "ab", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "aXbXc", True),
        ("a*b*c", "aXcXb", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("*?", "", False),
        ("*?", "\n", True),
        ("??*b", "aab", True),
        ("*a?*", "ba", False),
        ("[a]*", "[a]b", True),
        ("[a]*", "ab", False),
    ],
)
def test_patterns(pattern: str, text: str, expected: bool) -> None:
    assert fits(pattern, text) == expected


@given(st.text("ab?*", max_size=10), st.text("ab\n", max_size=12))
def test_patterns_match_what_an_expression_matches(pattern: str, text: str) -> None:
    """By Python's regular expressions, which try all ways."""
    wanted = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    assert fits(pattern, text) == (re.fullmatch(wanted, text, re.DOTALL) is not None)


@pytest.mark.parametrize(
    "pattern",
    ["*" + "?" * 2040 + "b*", "*" + "a?" * 1000 + "b*", "*a" * 1000 + "b", "*?a" * 600 + "b"],
    ids=lambda pattern: pattern[:4],
)
def test_a_pattern_takes_one_step_for_each_of_its_characters(pattern: str) -> None:
    """Also in a text that nearly matches everywhere: one of the pattern's, one of the text's."""
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal steps
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        assert not fits(pattern, "a" * 4096)
    finally:
        sys.settrace(before)
    assert steps < 10 * (len(pattern) + 4096)


READERS = {"Principal": {"AWS": ["arn:aws:iam::anna01:user/anna", "bert01"]}}
DENIED = statement(Effect="Deny", Resource=f"{ARN}photos/secret/*")


@pytest.mark.parametrize(
    ("statements", "options", "expected"),
    [
        ([statement()], {}, True),
        ([statement()], {"who": ANNA}, True),
        ([statement()], {"action": "s3:PutObject"}, None),
        ([statement()], {"action": "s3:GetObjectTagging"}, None),
        ([statement()], {"resource": f"{ARN}photos"}, None),
        ([statement(Action="s3:get*")], {}, True),
        ([statement(Action=["s3:PutObject", "s3:GETOBJECT"])], {}, True),
        ([statement(Action="*")], {"action": "s3:PutObject"}, True),
        ([statement(Resource=f"{ARN}photos/A")], {}, None),
        ([statement(**READERS)], {}, None),
        ([statement(**READERS)], {"who": ANNA}, True),
        ([statement(**READERS)], {"who": Who("bert01")}, True),
        ([statement(**READERS)], {"who": Who("carl01")}, None),
        ([statement(Principal={"AWS": "GFSKEY"})], {"who": ANNA}, True),
        ([statement(Principal={"AWS": "GFSKEY"})], {"who": Who("anna01", "GFSOTHER")}, None),
        ([statement(), DENIED], {}, True),
        ([statement(), DENIED], {"resource": f"{ARN}photos/secret/a"}, False),
        ([DENIED, statement()], {"resource": f"{ARN}photos/secret/a", "who": ANNA}, False),
    ],
)
def test_who_may_do_what(
    statements: list[dict[str, Any]], options: dict[str, Any], expected: bool | None
) -> None:
    assert said(statements, **options) is expected


@pytest.mark.parametrize(
    ("condition", "values", "expected"),
    [
        ({"StringEquals": {"s3:prefix": "a"}}, {"s3__prefix": "a"}, True),
        ({"StringEquals": {"s3:prefix": ["a", "b"]}}, {"s3__prefix": "b"}, True),
        ({"StringEquals": {"s3:prefix": "a"}}, {"s3__prefix": "A"}, None),
        ({"StringEquals": {"s3:prefix": "a"}}, {}, None),
        ({"StringEqualsIgnoreCase": {"s3:prefix": "a"}}, {"s3__prefix": "A"}, True),
        ({"StringEqualsIfExists": {"s3:prefix": "a"}}, {}, True),
        ({"StringEqualsIfExists": {"s3:prefix": "a"}}, {"s3__prefix": "b"}, None),
        ({"StringNotEquals": {"s3:prefix": ["a", "b"]}}, {"s3__prefix": "b"}, None),
        ({"StringNotEquals": {"s3:prefix": ["a", "b"]}}, {"s3__prefix": "c"}, True),
        ({"StringNotEquals": {"s3:prefix": "a"}}, {}, True),
        ({"StringLike": {"AWS:Referer": "http://*.org/"}}, {"aws__referer": "http://a.org/"}, True),
        ({"StringNotLike": {"aws:Referer": "http://*"}}, {"aws__referer": "http://a"}, None),
        ({"Bool": {"aws:SecureTransport": False}}, {"aws__securetransport": "false"}, True),
        ({"Bool": {"aws:SecureTransport": "true"}}, {"aws__securetransport": "false"}, None),
        ({"IpAddress": {"aws:SourceIp": "10.1.0.0/16"}}, {"aws__sourceip": "10.1.2.3"}, True),
        ({"IpAddress": {"aws:SourceIp": "10.1.0.0/16"}}, {"aws__sourceip": "10.2.2.3"}, None),
        ({"IpAddress": {"aws:SourceIp": "10.1.0.0/16"}}, {"aws__sourceip": "::1"}, None),
        ({"NotIpAddress": {"aws:SourceIp": "10.1.0.0/16"}}, {"aws__sourceip": "::1"}, True),
        ({"Null": {"s3:prefix": "true"}}, {}, True),
        ({"Null": {"s3:prefix": "false"}}, {}, None),
        ({"StringEquals": {"s3:ExistingObjectTag/A": "b"}}, {"s3__existingobjecttag/A": "b"}, True),
        (
            {"StringEquals": {"s3:prefix": "a"}, "StringLike": {"s3:delimiter": "*"}},
            {"s3__prefix": "a"},
            None,
        ),
    ],
)
def test_conditions(condition: dict[str, Any], values: dict[str, str], expected: bool) -> None:
    assert said([statement(Condition=condition)], **values) is expected
    denied = statement(Effect="Deny", Condition=condition)
    assert said([denied], **values) is (False if expected else None)


DEEP = '{"Statement":' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "MalformedPolicy"),
        ("x", "MalformedPolicy"),
        ("[]", "MalformedPolicy"),
        ("null", "MalformedPolicy"),
        (DEEP, "MalformedPolicy"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "MalformedPolicy"),
        (text_of(statement()).replace('"Effect"', '"Effect": "Deny", "Effect"'), "MalformedPolicy"),
        (text_of(), "MalformedPolicy"),
        (text_of(*[statement()] * 101), "MalformedPolicy"),
        (text_of(statement(), Version="2020-01-01"), "MalformedPolicy"),
        (text_of(statement(), Other=1), "MalformedPolicy"),
        (text_of("Allow"), "MalformedPolicy"),
        (text_of(statement(Effect="allow")), "MalformedPolicy"),
        (text_of(statement(Principal="anna01")), "MalformedPolicy"),
        (text_of(statement(Principal={"AWS": "an*"})), "MalformedPolicy"),
        (text_of(statement(Principal={"AWS": []})), "MalformedPolicy"),
        (text_of(statement(Principal={"Service": "ec2"})), "MalformedPolicy"),
        (text_of(statement(NotPrincipal="*")), "MalformedPolicy"),
        (text_of(statement(Action="iam:GetUser")), "MalformedPolicy"),
        (text_of(statement(Action=[1])), "MalformedPolicy"),
        (text_of(statement(Action={})), "MalformedPolicy"),
        (text_of(statement(NotAction="s3:GetObject")), "NotImplemented"),
        (text_of(statement(NotResource="a")), "NotImplemented"),
        (text_of(statement(Resource="photos/*")), "MalformedPolicy"),
        (text_of(statement(Resource=f"{ARN}films/*")), "MalformedPolicy"),
        (text_of(statement(Resource=f"{ARN}photos/{'a' * 2048}")), "MalformedPolicy"),
        (text_of(statement(Resource=f"{ARN}photos/${{aws:username}}")), "NotImplemented"),
        (text_of(statement(Condition=[])), "MalformedPolicy"),
        (text_of(statement(Condition={"StringEquals": []})), "MalformedPolicy"),
        (text_of(statement(Condition={"StringEquals": {"s3:prefix": 1}})), "MalformedPolicy"),
        (text_of(statement(Condition={"StringEquals": {"s3:prefix": [[]]}})), "MalformedPolicy"),
        (text_of(statement(Condition={"DateLessThan": {"s3:prefix": "a"}})), "NotImplemented"),
        (text_of(statement(Condition={"NullIfExists": {"s3:prefix": "a"}})), "NotImplemented"),
        (text_of(statement(Condition={"StringEquals": {"s3:max": "a"}})), "NotImplemented"),
        (text_of(statement(Condition={"StringEquals": {"aws:CurrentTime": "a"}})),
         "NotImplemented"),
        (text_of(statement(Condition={"ForAllValues:StringLike": {"s3:prefix": "a"}})),
         "NotImplemented"),
        (text_of(statement(Condition={"IpAddress": {"aws:SourceIp": "x"}})), "MalformedPolicy"),
    ],
)  # fmt: skip
def test_what_is_not_carried_out_is_refused(text: str, code: str) -> None:
    with pytest.raises(S3Error) as refusal:
        parse(text, "photos")
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"Principal": {"AWS": ["anna01", "*"]}}, True),
        ({"Principal": {"AWS": "anna01"}}, False),
        ({"Effect": "Deny"}, False),
        ({"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}, False),
        ({"Condition": {"IpAddressIfExists": {"aws:SourceIp": "10.0.0.0/8"}}}, True),
        ({"Condition": {"StringLike": {"aws:Referer": "http://a/*"}}}, True),
    ],
)
def test_whether_it_is_public(fields: dict[str, Any], expected: bool) -> None:
    assert parse(text_of(statement(**fields)), "photos").is_public == expected


def test_the_longest_policy_is_read() -> None:
    wide = [f"{ARN}photos/{'*?' * 40}{number}" for number in range(180)]
    text = text_of(statement(Resource=wide))
    assert LETTERS_MAX - 2000 < len(text) < LETTERS_MAX
    policy = parse(text, "photos")
    assert policy.about(NOBODY, "s3:GetObject", f"{ARN}photos/{'a' * 1024}") == []


def test_no_user_has_an_address_of_mail() -> None:
    document = ElementTree.fromstring(
        "<AccessControlPolicy><AccessControlList><Grant><Grantee><EmailAddress>a@example.org"
        "</EmailAddress></Grantee><Permission>READ</Permission></Grant></AccessControlList>"
        "</AccessControlPolicy>"
    )
    space: Any = SimpleNamespace(owner_id="anna01")
    with pytest.raises(S3Error) as failed:
        acl.written(document, space)
    assert (failed.value.code, failed.value.status) == ("UnresolvableGrantByEmailAddress", 400)

"""Policies of buckets: who may do what with which objects, under which conditions. Pure: a document
and a request in, a verdict out.

A statement allows or denies. Of all that fit a request, one that denies wins; if none fits, the
owner and the visibility of the bucket decide, as without a policy. A policy is refused as a whole
when it comes if it has anything that is not carried out here: what is stored holds.

Source: "Policies and permissions in Amazon S3" and the grammar of the IAM policy language.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from control.s3.errors import S3Error

#: As in S3.
LETTERS_MAX = 20 * 1024
STATEMENTS_MAX = 100
PATTERN_LETTERS_MAX = 2048
#: Names and values of a document that is stored. One that was stored by an earlier release may
#: have more.
TEXTS_MAX = 2000
#: The longest address, with a zone.
ADDRESS_LETTERS_MAX = 64
ARN = "arn:aws:s3:::"
VERSIONS = ("2012-10-17", "2008-10-17")
_FIELDS = frozenset({"Sid", "Effect", "Principal", "Action", "Resource", "Condition"})
_ACTION = re.compile(r"\*|s3:[A-Za-z*?]{1,64}")
#: Who: everybody, a user's id, the id of an access key, or a user as IAM names it.
_WHO = re.compile(r"[0-9A-Za-z]{1,64}")
_ARN_OF_USER = re.compile(r"arn:aws:iam::([0-9A-Za-z]{1,64}):(?:root|user/[^*?]{1,128})")
#: Keys of conditions, in small letters; those that end with a slash or hyphen are the start of one.
_KEYS = frozenset(
    {"aws:referer", "aws:securetransport", "aws:sourceip", "aws:useragent", "aws:userid",
     "aws:username", "s3:delimiter", "s3:prefix", "s3:versionid"}
)  # fmt: skip
_KEYS_STARTS = ("s3:existingobjecttag/", "s3:requestobjecttag/", "s3:x-amz-")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: The value of a condition's key in a request; None if it has none.
Values = Callable[[str], str | None]


class Who(NamedTuple):
    """Who asks. Empty: nobody has signed."""

    user_id: str = ""
    access_key_id: str = ""


class Condition(NamedTuple):
    operator: str
    #: True also if the request has no such value.
    if_exists: bool
    key: str
    wanted: tuple[str, ...]

    def holds(self, found: str | None) -> bool:
        if self.operator == "null":
            return any((found is None) == (text == "true") for text in self.wanted)
        is_negated = "not" in self.operator
        if found is None:
            return self.if_exists or is_negated
        return _is_any(self.operator.replace("not", ""), self.wanted, found) != is_negated


@lru_cache(256)
def _is_any(operator: str, wanted: tuple[str, ...], found: str) -> bool:
    """Whether a value is one of those that are wanted. The answer is kept: a request about a
    thousand keys has the same referrer, address and action for each of them."""
    return _OPERATORS[operator](wanted, found)


def _is_like_any(patterns: tuple[str, ...], text: str) -> bool:
    return any(fits(pattern, text) for pattern in patterns)


def _is_within_any(networks: tuple[str, ...], text: str) -> bool:
    try:
        address = ipaddress.ip_address(text[:ADDRESS_LETTERS_MAX])
    except ValueError:
        return False
    return any(address in network for network in _parsed(networks))


@lru_cache(256)
def _parsed(networks: tuple[str, ...]) -> list[Network]:
    return [ipaddress.ip_network(network, strict=False) for network in networks]


def _is_some_place(network: Network) -> bool:
    """Whether these addresses are not half of the world: S3 draws the line here as well."""
    return network.is_private or network.prefixlen >= (8 if network.version == 4 else 32)


#: Each folds or parses the value of the request once, however many are wanted.
_OPERATORS: dict[str, Callable[[tuple[str, ...], str], bool]] = {
    "stringequals": lambda wanted, found: found in wanted,
    "stringequalsignorecase": lambda wanted, found: found.casefold() in map(str.casefold, wanted),
    "stringlike": _is_like_any,
    "bool": lambda wanted, found: found.lower() in map(str.lower, wanted),
    "ipaddress": _is_within_any,
}
_NAMES = frozenset(
    {*_OPERATORS, "stringnotequals", "stringnotequalsignorecase", "stringnotlike", "notipaddress",
     "null"}
)  # fmt: skip


def _is_of_some_place(condition: Condition) -> bool:
    is_sure = condition.operator == "ipaddress" and not condition.if_exists
    return is_sure and all(map(_is_some_place, _parsed(condition.wanted)))


class Statement(NamedTuple):
    allows: bool
    #: "*", or ids of users and of access keys.
    who: frozenset[str]
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[Condition, ...]

    @property
    def is_public(self) -> bool:
        """Whether it lets everybody do something, wherever he is."""
        return self.allows and "*" in self.who and not any(map(_is_of_some_place, self.conditions))

    def is_about(self, who: Who, action: str, resource: str) -> bool:
        """Whether it may fit: its conditions are not looked at."""
        if "*" not in self.who and self.who.isdisjoint(each for each in who if each):
            return False
        is_asked = _is_any("stringlike", self.actions, action.lower())
        return is_asked and any(fits(each, resource) for each in self.resources)

    def holds(self, values: Values) -> bool:
        return all(condition.holds(values(condition.key)) for condition in self.conditions)


class Policy(NamedTuple):
    statements: tuple[Statement, ...]
    #: Whether a statement lets everybody do something, wherever he is.
    is_public: bool

    def about(self, who: Who, action: str, resource: str) -> list[Statement]:
        return [each for each in self.statements if each.is_about(who, action, resource)]


def verdict(statements: Iterable[Statement], values: Values) -> bool | None:
    """Whether these statements deny (False) or allow (True); None: neither."""
    effects = {each.allows for each in statements if each.holds(values)}
    return None if not effects else False not in effects


def fits(pattern: str, text: str) -> bool:
    """Whether a pattern matches a whole text: ``*`` in it stands for any characters, ``?`` for one.

    Each piece between two ``*`` is taken at the first place where it matches. That costs at most
    one step for each character of the pattern, and one for each of the text: no pattern that a
    tenant stores makes a stranger's request expensive.
    """
    first, *middle = pattern.split("*")
    if not middle:
        return len(first) == len(text) and _is_at(first, text, 0)
    last = middle.pop()
    end = len(text) - len(last)
    if end < len(first) or not (_is_at(first, text, 0) and _is_at(last, text, end)):
        return False
    at = len(first)
    for piece in middle:
        at = _find(piece, text, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _is_at(piece: str, text: str, start: int) -> bool:
    """Whether a piece, whose ``?`` stand for one character each, matches the text at a place."""
    return all(wanted in ("?", found) for wanted, found in zip(piece, text[start:], strict=False))


def _find(piece: str, text: str, start: int, end: int) -> int:
    """Return the first place between ``start`` and ``end`` where a piece matches; -1: nowhere.

    A search that begins again at each place, as that of ``str.find`` in a short text, costs the
    product of both lengths if the text nearly matches everywhere. Here bit ``i`` of a number says
    whether place ``start + i`` may still be it, and each character of the piece clears those bits
    whose text has another one.
    """
    places = end - start - len(piece) + 1
    if places <= 0:
        return -1
    has = _places(text)
    possible = (1 << places) - 1
    for offset, wanted in enumerate(piece):
        if wanted != "?":
            possible &= has.get(wanted, 0) >> (start + offset)
            if not possible:
                return -1
    return start + (possible & -possible).bit_length() - 1


@lru_cache(16)
def _places(text: str) -> dict[str, int]:
    """For each character of a text the number whose bits are its places."""
    marks: dict[str, bytearray] = {}
    for place, found in enumerate(text):
        if found not in marks:
            marks[found] = bytearray((len(text) + 7) // 8)
        marks[found][place >> 3] |= 1 << (place & 7)
    return {found: int.from_bytes(mark, "little") for found, mark in marks.items()}


# --- reading a document -----------------------------------------------------------------------


@lru_cache(256)
def parse(text: str, bucket: str) -> Policy:
    """The policy of a bucket. Raises S3Error for what is none, and for what is not offered."""
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise malformed("the policy is no JSON, or has a name twice") from None
    if not isinstance(found, dict) or found.keys() - {"Version", "Id", "Statement"}:
        raise malformed("a policy has Version, Id and Statement")
    if found.get("Version", VERSIONS[0]) not in VERSIONS:
        raise malformed(f"Version is {VERSIONS[0]}")
    if not isinstance(found.get("Id", ""), str):
        raise malformed("Id is a text")
    statements = found.get("Statement")
    statements = [statements] if isinstance(statements, dict) else statements
    if not isinstance(statements, list) or not 1 <= len(statements) <= STATEMENTS_MAX:
        raise malformed(f"a policy has 1 to {STATEMENTS_MAX} statements")
    made = tuple(_statement(each, bucket) for each in statements)
    return Policy(made, any(each.is_public for each in made))


def malformed(message: str) -> S3Error:
    return S3Error("MalformedPolicy", message)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _statement(each: Any, bucket: str) -> Statement:
    if not isinstance(each, dict):
        raise malformed("a statement is an object")
    for name in ("NotAction", "NotResource"):
        if name in each:
            raise S3Error("NotImplemented", f"{name} is not offered in policies")
    if each.keys() - _FIELDS or not isinstance(each.get("Sid", ""), str):
        raise malformed(f"a statement has {', '.join(sorted(_FIELDS))}")
    if each.get("Effect") not in ("Allow", "Deny"):
        raise malformed("Effect is Allow or Deny")
    actions = _texts(each.get("Action"), "Action")
    if not all(map(_ACTION.fullmatch, actions)):
        raise malformed("an Action is s3:NAME or *")
    resources = _texts(each.get("Resource"), "Resource")
    for resource in resources:
        name = resource.removeprefix(ARN).partition("/")[0]
        if not (resource.startswith(ARN) and (fits(name, bucket) or "*" in name)):
            raise malformed(f"a Resource is {ARN}{bucket}, or {ARN}{bucket}/KEY")
    return Statement(
        each["Effect"] == "Allow",
        frozenset(_principals(each.get("Principal"))),
        tuple("*" if action == "*" else action.lower() for action in actions),
        tuple(resources),
        tuple(_conditions(each.get("Condition", {}))),
    )


def _texts(value: Any, what: str) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise malformed(f"{what} is a text, or a list of some")
    for text in found:
        if not isinstance(text, str) or len(text) > PATTERN_LETTERS_MAX:
            raise malformed(f"{what} has texts of at most {PATTERN_LETTERS_MAX} letters")
        if "${" in text:
            raise S3Error("NotImplemented", "variables of policies are not offered")
    return found


def _principals(value: Any) -> Iterable[str]:
    if value == "*":
        return ["*"]
    if not isinstance(value, dict) or value.keys() - {"AWS", "CanonicalUser"} or not value:
        raise malformed('Principal is "*", or {"AWS": …}')
    found = []
    for texts in value.values():
        for text in _texts(texts, "Principal"):
            named = _ARN_OF_USER.fullmatch(text)
            if text != "*" and named is None and not _WHO.fullmatch(text):
                raise malformed("a principal is *, an id, or arn:aws:iam::ID:user/NAME")
            found.append(named[1] if named is not None else text)
    return found


def _conditions(value: Any) -> Iterable[Condition]:
    if not isinstance(value, dict):
        raise malformed("Condition is an object")
    for name, keys in value.items():
        operator = name.lower().removesuffix("ifexists")
        if operator not in _NAMES or (operator == "null" and operator != name.lower()):
            raise S3Error("NotImplemented", f"the condition {name:.80} is not offered")
        if not isinstance(keys, dict) or not keys:
            raise malformed("a condition has keys")
        for key, wanted in keys.items():
            small = key.lower()
            tagged = small.startswith(_KEYS_STARTS[:2])
            if small not in _KEYS and not small.startswith(_KEYS_STARTS):
                raise S3Error("NotImplemented", f"the condition's key {key:.80} is not offered")
            values = [_truth(each) for each in wanted] if isinstance(wanted, list) else wanted
            texts = tuple(_texts(_truth(values), "Condition"))
            if "ipaddress" in operator:
                _check_networks(texts)
            start = small.partition("/")[0] + "/" + key.partition("/")[2] if tagged else small
            yield Condition(operator, name.lower().endswith("ifexists"), start, texts)


def _truth(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _check_networks(texts: tuple[str, ...]) -> None:
    try:
        _parsed(texts)
    except ValueError:
        raise malformed("an address is like 10.0.0.0/8") from None

"""CORS: which pages of other origins a browser may let read a bucket.

It protects users of browsers, not the bucket: who may do what is decided by signatures alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple
from xml.etree.ElementTree import Element

from werkzeug.exceptions import RequestHeaderFieldsTooLarge

from control.api import Control, NoSuchThing, Response
from control.s3.configuration import stored
from control.s3.documents import around, parse, text_of
from control.s3.errors import S3Error
from control.storage import Spaces

ROOT = "CORSConfiguration"
METHODS = frozenset({"GET", "PUT", "POST", "DELETE", "HEAD"})
RULES_MAX = 100
#: Headers that all rules allow together, and that one page may ask for: each of these may be
#: compared with each of those.
HEADERS_MAX = 500
ASKED_MAX = 100


class Rule(NamedTuple):
    origins: list[str]
    methods: list[str]
    headers: list[str]
    exposed: list[str]
    max_age: str

    def origin(self, origin: str) -> str | None:
        """What an answer to this origin allows; None if the rule is not about it."""
        if "*" in self.origins:
            return "*"
        return origin if any(_like(each, origin) for each in self.origins) else None


def rules(root: Element) -> list[Rule]:
    """Raises S3Error."""
    found = []
    for each in root.findall("CORSRule"):
        origins, methods, headers, exposed = (
            [(child.text or "").strip() for child in each.findall(name)]
            for name in ("AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader")
        )
        age = text_of(each, "MaxAgeSeconds")
        if age and not re.fullmatch(r"[0-9]{1,9}", age):
            raise S3Error("MalformedXML", "MaxAgeSeconds must be a number")
        if not (origins and methods):
            raise S3Error("MalformedXML", "a rule has an AllowedOrigin and an AllowedMethod")
        for method in methods:
            if method not in METHODS:
                raise S3Error("InvalidRequest", f"AllowedMethod: {method:.40} is not offered")
        for text in origins + headers:
            if text.count("*") > 1:
                raise S3Error("InvalidRequest", f"{text:.80} has more than one *")
        if not "".join(origins + headers + exposed).isprintable():
            raise S3Error("MalformedXML", "a rule has control characters")
        found.append(Rule(origins, methods, headers, exposed, age))
    if not 1 <= len(found) <= RULES_MAX:
        raise S3Error("MalformedXML", f"give 1 to {RULES_MAX} rules")
    return found


def check(root: Element) -> None:
    """Raises S3Error for a document that is not to be stored."""
    if sum(len(rule.headers) for rule in rules(root)) > HEADERS_MAX:
        raise S3Error("InvalidRequest", f"all rules have at most {HEADERS_MAX} AllowedHeaders")


@lru_cache(256)
def _stored_rules(text: str) -> list[Rule]:
    return rules(parse(around(ROOT, text), ROOT))


def _like(pattern: str, text: str) -> bool:
    """Whether a text is like a pattern, which may have one ``*``."""
    start, star, end = pattern.partition("*")
    if not star:
        return text == pattern
    return len(text) >= len(start) + len(end) and text.startswith(start) and text.endswith(end)


class Cors:
    def __init__(self, control: Control, spaces: Spaces) -> None:
        self._control = control
        self._spaces = spaces

    def _find(
        self, bucket: str, origin: str, method: str, asked: list[str]
    ) -> dict[str, str] | None:
        """The headers of an answer; None if no rule allows it."""
        try:
            text = stored(self._control.records, self._spaces.get(bucket), "cors")
        except NoSuchThing:
            return None
        for rule in _stored_rules(text) if text is not None else []:
            allowed = rule.origin(origin)
            patterns = [pattern.lower() for pattern in rule.headers]
            if (
                allowed is not None
                and method in rule.methods
                and all(any(_like(pattern, name) for pattern in patterns) for name in asked)
            ):
                headers = {
                    "Access-Control-Allow-Origin": allowed,
                    "Access-Control-Allow-Methods": ", ".join(rule.methods),
                    "Vary": "Origin, Access-Control-Request-Headers, Access-Control-Request-Method",
                }
                if asked:
                    headers["Access-Control-Allow-Headers"] = ", ".join(asked)
                if rule.exposed:
                    headers["Access-Control-Expose-Headers"] = ", ".join(rule.exposed)
                if rule.max_age:
                    headers["Access-Control-Max-Age"] = rule.max_age
                return headers
        return None

    def preflight(self, bucket: str, headers: Mapping[str, str]) -> Response:
        """The answer to OPTIONS. Raises S3Error."""
        origin = headers.get("origin")
        method = headers.get("access-control-request-method")
        if origin is None or method is None:
            raise S3Error("BadRequest", "send Origin and Access-Control-Request-Method")
        names = headers.get("access-control-request-headers", "").lower().split(",")
        asked = [name.strip() for name in names if name.strip()]
        if len(asked) > ASKED_MAX:
            raise S3Error("BadRequest", f"a page asks for at most {ASKED_MAX} headers")
        found = self._find(bucket, origin, method, asked)
        if found is None:
            raise S3Error("AccessForbidden", "no rule of the bucket allows this")
        return Response(b"", 200, found)

    def mark(
        self, response: Response, bucket: str, method: str, headers: Mapping[str, str]
    ) -> None:
        """Add to an answer what the page that asked may do with it."""
        with suppress(RequestHeaderFieldsTooLarge):  # no page has such an origin
            origin = headers.get("origin")
            if origin is not None:
                method = headers.get("access-control-request-method", method)
                response.headers.update(self._find(bucket, origin, method, []) or {})

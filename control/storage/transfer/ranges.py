"""The ``Range`` header (RFC 9110, section 14): which bytes of a file are wanted.

A range that cannot be understood is ignored, as the RFC says: the whole file is
the answer. So it is when the ranges are many, or together longer than the file:
nobody needs that, and it is the known way to make a server work for nothing.

``werkzeug.http`` parses this header too, and would answer with the whole file where the
RFC lets us do better: to ranges that overlap or do not ascend, to empty members of the
list (``0-1,,3-4``), to numbers of more than 4,300 digits; to ``-0``, which no file can
satisfy, it would not answer 416. And it reads as many ranges as are sent.
"""

from __future__ import annotations

import re
from typing import NamedTuple

RANGES_MAX = 16

#: More digits than any file has bytes.
_DIGITS_MAX = 19
_one = re.compile(r"([0-9]*)-([0-9]*)")


class Span(NamedTuple):
    """Bytes ``start`` … ``stop - 1``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def content_range(self, length: int) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{length}"


class Unsatisfiable(Exception):
    """No byte that is asked for is in the file."""


def wanted(header: str, length: int) -> list[Span] | None:
    """The spans in the order asked for, of a file of ``length`` bytes.

    None: the whole file. Raises Unsatisfiable.
    """
    unit, equals, text = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = [spec.strip(" \t") for spec in text.split(",", RANGES_MAX * 2)]
    specs = [spec for spec in specs if spec]
    if not specs or len(specs) > RANGES_MAX:
        return None
    spans: list[Span] = []
    for spec in specs:
        found = _one.fullmatch(spec)
        bounds = _bounds(found[1], found[2], length) if found is not None else None
        if bounds is None:
            return None
        if bounds.length:
            spans.append(bounds)
    if not spans:
        raise Unsatisfiable
    if len(spans) > 1 and sum(span.length for span in spans) > length:
        return None
    return spans


def _bounds(first: str, last: str, length: int) -> Span | None:
    """Cut to the file; empty if nothing of it is there. None: not a range."""
    if not first:
        # The last n bytes of nothing are all of it, which no range can say.
        if not last or (not length and _number(last)):
            return None
        return Span(max(0, length - _number(last)), length)
    start = _number(first)
    stop = _number(last) + 1 if last else length
    if last and stop <= start:
        return None
    return Span(min(start, length), min(stop, length))


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX

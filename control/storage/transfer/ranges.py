"""The ``Range`` header (RFC 9110, section 14): which bytes of a file to send.

An invalid header is ignored, as the RFC says, and the whole file is sent. The same
holds for more than 16 ranges, or ranges that are longer together than the file: no
client needs them, and they are a known way to keep a server busy.

``werkzeug.http`` parses this header too, and would answer with the whole file where the
RFC lets us do better: to ranges that overlap or do not ascend, to empty members of the
list (``0-1,,3-4``), to numbers of more than 4,300 digits; to ``-0``, which no file can
satisfy, it would not answer 416. And it does not limit the number of ranges.
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
    """The file has none of the requested bytes."""


def wanted(header: str, length: int) -> list[Span] | None:
    """The requested spans of a file of ``length`` bytes, in the order of the header; None for
    the whole file. Raises Unsatisfiable.
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
    """A range, cut to the file; empty if the file ends before it. None if it is invalid."""
    if not first:
        # The last n bytes of an empty file are the whole file.
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

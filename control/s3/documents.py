"""The XML of requests and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from control.s3.errors import S3Error

DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
CONTENT_TYPE = "application/xml"
#: A request's document: 10,000 parts, or 1,000 keys.
BYTES_MAX = 2 * 1024 * 1024
#: A document's elements: a thousand rules, or tags, or grants.
ELEMENTS_MAX = 8_000
#: Quotes of its attributes and in its texts, where it has fewer elements.
QUOTES_MAX = 20_000
#: The longest text of an element: keys, ETags, times, names.
TEXT_LETTERS_MAX = 4 * 1024
#: So much is parsed in a millisecond.
PIECE_BYTES = 8 * 1024

#: What no document can have, however it is escaped: a message may repeat it.
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: Readers take a bare one for a line feed: it would name another key.
_CR = {"\r": "&#13;"}

#: A child: its name (and attributes) and its text, a number, a truth, its own children, or None
#: to leave it out.
Child = tuple[str, Any]


def document(root: str, children: Iterable[Child], *, is_error: bool = False) -> bytes:
    text = "".join(_elements(children))
    if not is_error:
        return around(root, text)
    return DECLARATION + f"<{root}>{text}</{root}>".encode()


def _elements(children: Iterable[Child]) -> Iterator[str]:
    for name, value in children:
        if value is None:
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, list):
            text = "".join(_elements(value))
        else:
            text = escape(_NO_XML.sub("\ufffd", str(value)), _CR)
        yield f"<{name}>{text}</{name.partition(' ')[0]}>"


def inside(root: ElementTree.Element) -> str:
    """What is in a document's root, to be stored, and sent back by :func:`around`. Raises
    S3Error."""
    for element in root.iter():
        element.attrib.clear()  # none has a meaning, and each could need a namespace of the root
    try:
        text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
        text = text[text.index(">") + 1 : text.rindex("<")]
        return text.replace("\r", _CR["\r"])
    except RecursionError:
        raise S3Error("MalformedXML", "the document is too deep") from None


def around(root: str, text: str) -> bytes:
    return DECLARATION + f'<{root} xmlns="{NAMESPACE}">{text}</{root}>'.encode()


def time_of(ns: int) -> str:
    """As S3 has times: in milliseconds, UTC."""
    at = datetime.fromtimestamp(ns // 10**9, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{ns // 10**6 % 1000:03d}Z"


def url_encoded(text: str, is_asked: bool) -> str:
    return quote(text, safe="/") if is_asked else text


def parse(data: bytes, root: str, elements_max: int = ELEMENTS_MAX) -> ElementTree.Element:
    """Return the root element of a request's document, which has no entities, no document type
    and at most ``elements_max`` elements. Raises S3Error.

    The parser holds Python's lock until it has read all that it is given, so a thread that calls
    this keeps the event loop waiting for one piece at a time.
    """
    try:
        data.decode()  # and nothing else than UTF-8
        if b"<!" in data:  # entities could be a bomb, or name files of this machine
            raise ValueError
        if data.count(b"<") > 2 * elements_max + 2:  # a start, an end; a declaration
            raise ValueError
        # The attributes of one element are read in one go, however many there are.
        if data.count(b'"') + data.count(b"'") > max(elements_max, QUOTES_MAX):
            raise ValueError
        parser = ElementTree.XMLParser(encoding="utf-8")
        for start in range(0, len(data), PIECE_BYTES):
            parser.feed(data[start : start + PIECE_BYTES])
        found: ElementTree.Element = parser.close()
    except (ValueError, ElementTree.ParseError):
        raise S3Error("MalformedXML", "the body is not the document that S3 has here") from None
    for element in found.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.text is not None and len(element.text) > TEXT_LETTERS_MAX:
            raise S3Error("MalformedXML", f"a text has more than {TEXT_LETTERS_MAX} characters")
    if found.tag != root:
        raise S3Error("MalformedXML", f"the document is {found.tag:.80}, and should be {root}")
    return found


def text_of(element: ElementTree.Element, name: str) -> str:
    """The text of a child; empty if there is none."""
    return (element.findtext(name) or "").strip()


def error_document(error: S3Error, resource: str, request_id: str | None = None) -> bytes:
    said: list[Child] = [("Code", error.code), ("Message", str(error)), ("Resource", resource)]
    return document("Error", [*said, ("RequestId", request_id)], is_error=True)

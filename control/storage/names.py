"""Rules for the names of storage namespaces and files.

Every name from outside is checked here before it becomes part of a path. Names
are compared byte by byte: no case folding, no Unicode normalisation.
"""

from __future__ import annotations

import re
import unicodedata

from control.api import BadRequest

#: Created at the first start. It has no owner; all users who are logged in may use it.
DEFAULT = "default"

SPACE_BYTES_MAX = 64
SEGMENT_BYTES_MAX = 255
#: The longest path. With the directory before it, it is far below the file system's 4,096.
PATH_BYTES_MAX = 1024
#: How deep folders nest: a listing keeps a page of each level that it is in.
SEGMENTS_MAX = 64

#: ``/storage/<one of these>`` is a route of its own.
RESERVED = frozenset(("files", "upload", "download", "delete", "status", "namespaces"))

#: Folders of uploads under way (:mod:`control.s3.uploads`) and of older versions
#: (:mod:`.versions`). Nobody puts a file there by its path: in ``default`` one user's file would be
#: in the place of another's part.
KEPT = (".s3-uploads", ".s3-versions")

_space = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: The same rule for the documentation (ECMA 262).
SPACE_PATTERN = r"^(?!\.{1,2}$)(?!(?:" + "|".join(sorted(RESERVED)) + r")$)[A-Za-z0-9._-]{1,64}$"

#: The rule for a file's path, except its length in bytes.
_SEGMENT_PATTERN = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f-\x9f\ufffd]+"
PATH_PATTERN = f"^{_SEGMENT_PATTERN}(?:/{_SEGMENT_PATTERN})*$"


def check_space_name(name: str) -> None:
    """Raises BadRequest for a name that no storage namespace may have."""
    if not _space.fullmatch(name):
        raise BadRequest(f"name: 1 to {SPACE_BYTES_MAX} letters, digits, hyphens, _ and dots")
    if name in (".", ".."):
        raise BadRequest(f"name: {name!r} is not a valid name")
    if name in RESERVED:
        raise BadRequest(f"name: {name!r} is a route of this service, choose another")


def check_path(path: str) -> str:
    """``path`` if it may name a file; slashes make folders. Raises BadRequest."""
    if not path:
        raise BadRequest("name: a file's name is empty")
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise BadRequest("name: is not valid UTF-8") from None
    if len(raw) > PATH_BYTES_MAX:
        raise BadRequest(f"name: {len(raw)} bytes, at most {PATH_BYTES_MAX} are allowed")
    _check_characters(path)
    segments = path.split("/")
    if len(segments) > SEGMENTS_MAX:
        raise BadRequest(f"name: {len(segments)} levels, at most {SEGMENTS_MAX} are allowed")
    for segment in segments:
        _check_segment(segment)
    return path


def check_own_path(path: str) -> str:
    """``path`` if a user may store a file there. Raises BadRequest."""
    if path.partition("/")[0] in KEPT:
        raise BadRequest(
            f"name: files in {path.partition('/')[0]} are parts of uploads over S3, or versions"
        )
    return check_path(path)


def _check_characters(path: str) -> None:
    if "\\" in path:
        raise BadRequest("name: a backslash is not allowed, / makes folders")
    # Bytes of a URL that are not UTF-8 arrive as this character, so it is unknown which
    # name the client meant.
    if "\ufffd" in path:
        raise BadRequest("name: is not valid UTF-8")
    if not path.isprintable() and any(unicodedata.category(c) == "Cc" for c in path):
        raise BadRequest("name: control characters are not allowed")


def _check_segment(segment: str) -> None:
    if segment in ("", ".", ".."):
        raise BadRequest(f"name: the part {segment!r} is not allowed")
    size = len(segment.encode())
    if size > SEGMENT_BYTES_MAX:
        raise BadRequest(f"name: a part of {size} bytes, at most {SEGMENT_BYTES_MAX} are allowed")


def last_segment(path: str) -> str:
    return path.rpartition("/")[2]


def in_folder(folder: str, name: str) -> str:
    """``name`` in ``folder``, which may be empty and may begin or end with a slash."""
    folder = folder.strip("/")
    return f"{folder}/{name}" if folder else name


def reduced(filename: str) -> str:
    """The last segment of the file name that a browser sends, whether its system writes
    paths with slashes or backslashes."""
    return filename.replace("\\", "/").rpartition("/")[2]

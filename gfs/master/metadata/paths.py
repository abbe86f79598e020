"""Paths of the namespace: what a name may be, and nothing else.

A path is absolute, at most 4096 bytes of UTF-8, its segments 1 to 255 bytes
each, without NUL, and never ``.`` or ``..``. ``/`` is the root. One trailing slash is
ignored (people type ``/data/``); an empty segment anywhere else is refused. Names are
compared byte by byte: no case folding and no Unicode normalisation.
"""

from __future__ import annotations

from gfs.errors import InvalidName
from gfs.protocol.messages import PATH_BYTES_MAX

SEGMENT_BYTES_MAX = 255

_REFUSED = frozenset((b"", b".", b".."))


def parse(path: str) -> list[bytes]:
    """The segments of ``path``, none for the root. Raises InvalidName, which names the rule."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise _invalid(path, "is not valid UTF-8") from None
    if raw[:1] != b"/":
        raise _invalid(path, "must begin with /")
    if len(raw) > PATH_BYTES_MAX:
        raise _invalid(path, f"is {len(raw)} bytes long, at most {PATH_BYTES_MAX} are allowed")
    if b"\0" in raw:
        raise _invalid(path, "contains a NUL byte")
    segments = raw[1:].split(b"/")
    if not segments[-1]:
        del segments[-1]
    for segment in segments:
        if segment in _REFUSED or len(segment) > SEGMENT_BYTES_MAX:
            raise _bad_segment(path, segment)
    return segments


def in_folder(path: str) -> tuple[str, bytes] | None:
    """The folder and the name of a path that is valid if its folder is. None: not that simple."""
    folder, slash, name = path.rpartition("/")
    is_simple = slash and path.isascii() and len(path) <= PATH_BYTES_MAX and "\0" not in name
    if not (is_simple and 0 < len(name) <= SEGMENT_BYTES_MAX) or name in (".", ".."):
        return None
    return folder, name.encode()


def join(segments: list[bytes]) -> str:
    """The path of ``segments`` as text."""
    return "/" + b"/".join(segments).decode()


def _bad_segment(path: str, segment: bytes) -> InvalidName:
    if not segment:
        return _invalid(path, "has an empty name between two slashes")
    if segment in _REFUSED:
        return _invalid(path, f"has the name {segment.decode()!r}, which is refused")
    return _invalid(
        path, f"has a name of {len(segment)} bytes, at most {SEGMENT_BYTES_MAX} are allowed"
    )


def _invalid(path: str, rule: str) -> InvalidName:
    shown = path if len(path) <= 100 else path[:97] + "..."
    return InvalidName(f"path {shown!r} {rule}")

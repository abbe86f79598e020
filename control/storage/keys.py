"""Keys of objects, the paths of the files that they are, and of their older versions.

A key is the path of a file in its storage namespace, letter by letter, if it can be one. Any other
key (``a/``, ``a//b``, ``/a``, ``a/../b``, control characters, a part of over 255 bytes, more than
63 slashes) is a file in the folder ``.s3-keys``, named by the whole key: letters that sort before
the digits are written like ``%2F``, the few others that no name may have like ``[5C``, and it is
cut into folders of 60 letters, each of which begins with ``=``. For instance ``a//b`` is
``.s3-keys/=a%2F%2Fb``. These paths sort as the keys do, so a list merges two sorted ones.

``.s3-uploads`` has multipart uploads under way, and ``.s3-versions`` what was replaced or deleted
in a bucket with versions: named by its key in the same way, ``!``, and its place among the versions
of the key (:mod:`.versions`). Keys that begin with one of these folders are in ``.s3-keys`` as
well, so nothing is reserved. But there cannot be ``a`` and ``a/b`` at the same time, if both can be
paths.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from math import inf

from control.api import BadRequest, Conflict
from control.storage import listing
from control.storage.names import KEPT, PATH_BYTES_MAX, check_path
from gfs.client import Client, Entry

KEYS = ".s3-keys"
UPLOADS, VERSIONS = KEPT
#: Folders of a storage namespace that no key begins with as a path.
NO_KEYS = frozenset({f"{KEYS}/", f"{UPLOADS}/", f"{VERSIONS}/"})
#: Of at most four bytes each, and the place of a version has 17: a name has 255.
PIECE_LETTERS = 60

#: Of a version: digits that count down from the time, and a mark if its id is ``null``.
PLACE = re.compile("[0-9a-f]{16}~?")
_escaped = re.compile("[\0-/\\[\\\\~-\x9f\ufffc\ufffd]")
_escape = re.compile("[%\\[~]([0-9A-F]{2})|\ufffc([CD])")


def path_for(key: str) -> str:
    """The path of an object's file, however long it is."""
    return key if _is_path(key) else spelled(KEYS, key)


def _is_path(key: str) -> bool:
    if key.partition("/")[0] in (KEYS, *KEPT):
        return False
    try:
        return bool(check_path(key))
    except BadRequest:
        return False


def spelled(folder: str, key: str) -> str:
    """The path that a key is written as in a folder; of the start of a key, the start of that."""
    text = _escaped.sub(_written, key)
    pieces = range(0, len(text) + 1, PIECE_LETTERS)
    return folder + "".join(f"/={text[at : at + PIECE_LETTERS]}" for at in pieces)


def _spelt(path: str) -> str:
    """The key that was written as this path, without its folder."""
    return _escape.sub(_read, "".join(piece[1:] for piece in path.split("/")))


def key_of(path: str) -> str | None:
    """The key of a file; None for one that is no object."""
    folder, _, rest = path.partition("/")
    if folder in KEPT:
        return None
    if folder != KEYS:
        return path
    key = _spelt(rest)
    is_one = bool(key) and len(path.encode()) <= PATH_BYTES_MAX and path_for(key) == path
    return key if is_one else None


def version_of(path: str) -> tuple[str, str] | None:
    """The key of an older version, and its place; None if the file is none."""
    folder, _, rest = path.partition("/")
    text, mark, place = rest.rpartition("!")
    if folder != VERSIONS or not mark or not PLACE.fullmatch(place):
        return None
    key = _spelt(text)
    return (key, place) if f"{spelled(VERSIONS, key)}!{place}" == path else None


def _written(found: re.Match[str]) -> str:
    """A letter, as two or three that sort where it does."""
    letter = found[0]
    if letter >= "\ufffc":
        return "\ufffc" + "CD"[letter == "\ufffd"]
    first = "%" if letter < "0" else "[" if letter < "~" else "~"
    return f"{first}{ord(letter):02X}"


def _read(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else "\ufffc\ufffd"["CD".index(found[2])]


async def all_keys(
    fs: Client,
    directory: str,
    prefix: str = "",
    *,
    by_folder: bool = False,
    after: str = "",
    page: int = listing.PAGE,
    turn: AbstractAsyncContextManager[object] | None = None,
    vain_max: float = inf,
) -> AsyncGenerator[tuple[str, Entry], None]:
    """All keys with a prefix after another, in order. ``by_folder``: of a folder only its name.
    Those that are paths and the others are two lists, which are merged. Raises Conflict if more
    than ``vain_max`` files among the others are no keys, as only who stores there makes them."""
    files = partial(listing.files, fs, directory, page=page, turn=turn)
    plain = files(prefix=prefix, after=after, folders=by_folder, without=NO_KEYS)
    start = spelled(KEYS, after) if after else ""
    others = files(prefix=spelled(KEYS, prefix), after=start)
    async with aclosing(plain), aclosing(others), aclosing(_keys_of(others, vain_max)) as keys:
        next_plain, next_other = await anext(plain, None), await anext(keys, None)
        while next_plain is not None or next_other is not None:
            if next_other is None or (next_plain is not None and next_plain[0] < next_other[0]):
                assert next_plain is not None
                yield next_plain
                next_plain = await anext(plain, None)
            else:
                yield next_other
                next_other = await anext(keys, None)


async def _keys_of(
    found: AsyncGenerator[tuple[str, Entry], None], vain_max: float
) -> AsyncGenerator[tuple[str, Entry], None]:
    vain = 0
    async for path, entry in found:
        key = key_of(path)
        if key is not None:
            yield key, entry
            continue
        vain += 1
        if vain > vain_max:
            raise Conflict(f"{KEYS} has over {vain_max} files that are no objects: delete them")

"""The digest and the attributes of a file, and their limits.

Both sides check them: a client before it sends the first byte of a file, the master
because it trusts no client. The limits keep an entry small enough for a page of a
listing (see ``PAGE_BYTES_MAX``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gfs.errors import InvalidArgument
from gfs.protocol.messages import ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX, FILE_DIGEST_BYTES

_NAME = re.compile(r"[a-z0-9._-]{1,64}")


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Raises InvalidArgument, which names the rule, if no file may have these attributes."""
    if len(attributes) > ATTRIBUTES_MAX:
        raise InvalidArgument(f"{len(attributes)} attributes: a file has at most {ATTRIBUTES_MAX}")
    size = 0
    for name, value in attributes.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"an attribute named {name!r:.80}: use 1 to 64 of a-z, 0-9, dot, _ and -"
            )
        if not isinstance(value, str):
            raise InvalidArgument(f"attribute {name}: its value must be text")
        try:
            size += len(name) + len(value.encode())
        except UnicodeEncodeError:
            raise InvalidArgument(f"attribute {name}: its value is not valid UTF-8") from None
    if size > ATTRIBUTES_BYTES_MAX:
        raise InvalidArgument(
            f"attributes of {size} bytes: a file has at most {ATTRIBUTES_BYTES_MAX}"
        )


def check_digest(digest: bytes) -> None:
    """Raises InvalidArgument unless it is empty or of the right length."""
    if len(digest) not in (0, FILE_DIGEST_BYTES):
        raise InvalidArgument(
            f"a digest of {len(digest)} bytes: give one of {FILE_DIGEST_BYTES} bytes, or none"
        )

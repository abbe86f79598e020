"""Keys of objects, and the paths of the files that they are: see :mod:`control.storage.keys`."""

from __future__ import annotations

from control.s3.errors import S3Error
from control.storage import PATH_BYTES_MAX
from control.storage.keys import KEYS, UPLOADS, VERSIONS, key_of, path_for, spelled

__all__ = ["KEYS", "UPLOADS", "VERSIONS", "key_of", "path_in_keys", "path_of", "path_of_version"]


def path_of(key: str) -> str:
    """The path of an object's file. Raises S3Error."""
    if not key:
        raise S3Error("InvalidArgument", "a key is empty")
    path = path_for(key)
    if len(path.encode()) > PATH_BYTES_MAX:
        raise S3Error("KeyTooLongError", f"a key, and its path, has at most {PATH_BYTES_MAX} bytes")
    return path


def path_in_keys(key: str) -> str:
    """Where a key is that can be no path; of the start of a key, the start of that."""
    return spelled(KEYS, key)


def path_of_version(key: str) -> str:
    """The start of the paths of older versions; of the start of a key, the start of that."""
    return spelled(VERSIONS, key)

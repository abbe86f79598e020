"""What a POSIX inode has and the file system does not: mode, owner and times. They are kept in two
attributes of the file or directory, which every other client may read.

``posix`` is ``MODE UID GID CTIME ATIME``: the mode in octal, times in nanoseconds since 1970 (ATIME
0: it was never set). ``posix.link`` makes a file a symbolic link and is its target. The time of
change of the contents is the file's own.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, replace

from gfs.client import Entry

POSIX = "posix"
LINK = "posix.link"
#: A target has to fit into the attributes, beside the rest.
LINK_BYTES_MAX = 900
PERMISSIONS = 0o7777
_FORM = re.compile(r"([0-7]{1,4}) (\d{1,10}) (\d{1,10}) (\d{1,19}) (\d{1,19})")


@dataclass(frozen=True, slots=True)
class Posix:
    mode: int
    uid: int
    gid: int
    ctime_ns: int = 0
    atime_ns: int = 0

    def text(self) -> str:
        return f"{self.mode:o} {self.uid} {self.gid} {self.ctime_ns} {self.atime_ns}"

    def without_privileges(self) -> Posix:
        """As Linux leaves it when the file is written or given away."""
        gone = stat.S_ISUID | (stat.S_ISGID if self.mode & stat.S_IXGRP else 0)
        return replace(self, mode=self.mode & ~gone)


def posix_of(entry: Entry, uid: int, gid: int) -> Posix:
    """``uid`` and ``gid`` own what another client made, and everybody reads it."""
    found = _FORM.fullmatch(entry.attributes.get(POSIX, ""))
    if found is None:
        return Posix(0o755 if entry.kind == "directory" else 0o644, uid, gid)
    return Posix(int(found[1], 8), *map(int, found.groups()[1:]))


def kind_bits(entry: Entry) -> int:
    if entry.kind == "directory":
        return stat.S_IFDIR
    return stat.S_IFLNK if LINK in entry.attributes else stat.S_IFREG

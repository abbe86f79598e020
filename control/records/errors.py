"""The errors of records, besides those of the disk."""

from __future__ import annotations

from gfs.errors import AlreadyExists, Busy, DiskFailed, GfsError


class Taken(AlreadyExists):
    """Another row has this key (``index`` is "") or this unique index value."""

    code = "taken"

    def __init__(self, table: str, index: str, value: str) -> None:
        super().__init__(f"{table}: {index or 'key'} {value!r} is taken")
        self.table = table
        self.index = index
        self.value = value


class RecordsBusy(Busy):
    """The write could not be done in time. It may still happen, or may have."""

    code = "records_busy"


class RecordsFailed(DiskFailed):
    """This process does not know any more what is on its disk, and should end."""

    code = "records_failed"


class RowUnreadable(GfsError):
    """A stored row does not fit its type, or is missing from under an index."""

    code = "row_unreadable"

    def __init__(self, table: str, key: str, why: str) -> None:
        super().__init__(
            f"{table}: the row {key!r} cannot be read ({why}): "
            "if a newer release wrote it, run that release"
        )
        self.table = table
        self.key = key

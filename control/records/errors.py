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
    """The write did not end in time. It may have been carried out, or may still be."""

    code = "records_busy"


class RecordsAway(RecordsBusy):
    """PostgreSQL does not answer. A write may have been carried out only if the message says so."""

    code = "records_away"


class RecordsUpgraded(Busy):
    """Another release has upgraded the tables, so this process must not write them any more: it
    has to be restarted with that release. Nothing was changed."""

    code = "records_upgraded"


class RecordsFailed(DiskFailed):
    """A write failed, so that this process does not know what is on the disk and should end."""

    code = "records_failed"


class RowUnreadable(GfsError):
    """A stored row does not fit its type, or an index names a row that is missing."""

    code = "row_unreadable"

    def __init__(self, table: str, key: str, why: str) -> None:
        super().__init__(
            f"{table}: the row {key!r} cannot be read ({why}): "
            "if a newer release wrote it, run that release"
        )
        self.table = table
        self.key = key

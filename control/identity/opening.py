"""Where the records of a control plane are: in its state directory, or in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from control.identity.rows import SECRETS
from control.records import Records, Schema
from control.settings import ControlSettings


def open_records(settings: ControlSettings, directory: Path, schemas: Sequence[Schema]) -> Records:
    """The records of the control plane whose state is in ``directory``, wherever they are."""
    map_bytes = settings.map_bytes
    if settings.records:
        every = [*schemas, SECRETS]
        return Records.open_shared(
            settings.records, directory / "copies", every, map_bytes=map_bytes
        )
    return Records.open(directory / "records", schemas, map_bytes=map_bytes, sync=settings.sync)

"""The JSON of requests and answers. The documentation is generated from these types."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from control.api import PRIVATE
from control.storage.names import DEFAULT, PATH_PATTERN, SPACE_PATTERN

Visibility = Annotated[
    int, Meta(ge=0, le=2, description="0: private, 1: visible but not listed, 2: public")
]
SpaceName = Annotated[
    str,
    Meta(
        description="Letters, digits, hyphens, underscores and dots",
        extra_json_schema={"pattern": SPACE_PATTERN},
    ),
]
SpaceParameter = Annotated[str, Meta(description="The storage namespace")]
FileName = Annotated[
    str,
    Meta(
        description="The file's path in its storage namespace",
        extra_json_schema={"pattern": PATH_PATTERN},
    ),
]
TransferId = Annotated[
    str,
    Meta(
        description="Chosen by the client, to follow the transfer: 1 to 128 visible ASCII "
        "characters",
        extra_json_schema={"pattern": "^[!-~]{0,128}$"},
    ),
]
Overwrite = Annotated[str, Meta(description="`true` replaces a file that is there already")]


class SpaceInfo(msgspec.Struct):
    name: str
    #: How many files it has.
    count: int
    hidden: bool
    visibility: int
    owner_id: str | None


class NewSpace(msgspec.Struct):
    name: SpaceName
    visibility: Visibility = PRIVATE
    hidden: bool = False


class SpaceChange(msgspec.Struct):
    visibility: Visibility


class FileInfo(msgspec.Struct):
    name: str
    path: str
    namespace: str
    size: int
    created_at: int
    modified_at: int


class AdminFileInfo(FileInfo):
    #: The uploader.
    owner_id: str | None


class Done(msgspec.Struct):
    """The answer to a change; ``name`` is that of the file or storage namespace."""

    name: str
    status: str = "ok"


#: Fields of answers to deletions.
IsKept = Annotated[bool, Meta(description="Whether it is in the trash now, or is a version")]
Until = Annotated[
    int | None,
    Meta(
        description="When it is deleted for good, in unix seconds; null: it is gone already, or is "
        "a version, which is kept until somebody deletes it"
    ),
]


class StatusInfo(msgspec.Struct):
    #: With a heartbeat in the last 30 seconds.
    chunkserver_count: int
    total_servers: int
    files: int
    bytes: int
    under_replicated: int
    corrupt: int
    lost: int
    repairs_active: int
    repairs_queued: int


class ListQuery(msgspec.Struct):
    namespace: SpaceParameter = DEFAULT
    prefix: Annotated[str, Meta(description="Only paths that begin with this")] = ""
    limit: Annotated[int, Meta(ge=1, description="At most so many; all if left out")] | None = None
    after: Annotated[str, Meta(description="Only paths after this one")] = ""


class SpaceListQuery(msgspec.Struct):
    limit: Annotated[int, Meta(ge=1, description="At most so many; all if left out")] | None = None
    after: Annotated[str, Meta(description="Only names after this one")] = ""


class AdminListQuery(msgspec.Struct):
    namespace: Annotated[str, Meta(description="Only this one; all if left out")] = ""
    prefix: Annotated[str, Meta(description="Only paths that begin with this")] = ""
    limit: Annotated[int, Meta(ge=1, description="At most so many; all if left out")] | None = None
    after: Annotated[
        str,
        Meta(description="Only files after this path, or without `namespace` after NAMESPACE/PATH"),
    ] = ""


class UploadQuery(msgspec.Struct):
    namespace: SpaceParameter = DEFAULT
    overwrite: Overwrite = ""
    name: Annotated[
        str, Meta(description="Instead of the form's file name; required if the body is not a form")
    ] = ""
    path: Annotated[str, Meta(description="A folder to put the file in")] = ""
    id: TransferId = ""


class PutQuery(msgspec.Struct):
    overwrite: Overwrite = ""
    id: TransferId = ""


class DownloadQuery(msgspec.Struct):
    name: FileName
    namespace: SpaceParameter = DEFAULT
    id: TransferId = ""


class FileQuery(msgspec.Struct):
    name: FileName
    namespace: SpaceParameter = DEFAULT


class TransferQuery(msgspec.Struct):
    id: TransferId = ""


class ProgressQuery(msgspec.Struct):
    id: TransferId
